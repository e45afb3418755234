//! Writes the exchange as one self-contained page for a browser.

use crate::calls::{Call, Event, Note, Sink};
use crate::guids;
use crate::input::Damage;
use crate::log::Level;
use mm_wire::Guid;
use serde::Serialize;
use std::io::{self, Write};

/// The page around its data.
const TEMPLATE: &str = include_str!("page.html");
/// The place of the data in the template.
const PLACE: &str = "@DATA@";

/// How many calls, and how many lines outside of calls, a page has by default.
pub const CALLS: usize = 5000;

/// Writes a page as events come.
#[derive(Debug)]
pub struct Page<W: Write> {
    out: W,
    only: Option<Guid>,
    limit: usize,
    inputs: usize,
    items: usize,
    left_out: u64,
}

/// An item of the page's data.
#[derive(Serialize)]
#[serde(tag = "t", rename_all = "lowercase")]
enum Item<'a> {
    Call {
        to: String,
        source: &'static str,
        #[serde(flatten)]
        call: &'a Call,
    },
    Mmi(&'a Note),
    Note(&'a Note),
    Restart {
        at: crate::calls::Moment,
        boot: u32,
    },
    Damaged {
        line: u64,
        column: usize,
        what: &'a str,
    },
    Dump(&'a crate::dump::Dump),
}

impl<W: Write> Page<W> {
    /// Starts a page; only calls to this recipient if there is one, and not more than `limit`.
    ///
    /// # Errors
    ///
    /// The output's error.
    pub fn new(mut out: W, only: Option<Guid>, limit: usize) -> io::Result<Self> {
        let (before, _) = TEMPLATE.split_once(PLACE).unwrap_or((TEMPLATE, ""));
        out.write_all(before.as_bytes())?;
        out.write_all(b"{\"inputs\":[")?;
        Ok(Self {
            out,
            only,
            limit,
            inputs: 0,
            items: 0,
            left_out: 0,
        })
    }

    fn end_input(&mut self) -> io::Result<()> {
        if self.inputs > 0 {
            write!(self.out, "],\"left_out\":{}}}", self.left_out)?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item<'_>) -> io::Result<()> {
        if self.items >= self.limit {
            self.left_out = self.left_out.saturating_add(1);
            return Ok(());
        }
        if self.items > 0 {
            self.out.write_all(b",")?;
        }
        self.items = self.items.saturating_add(1);
        self.json(item)
    }

    /// Writes JSON that cannot end the script element around it.
    fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        for part in text.split_inclusive('<') {
            match part.strip_suffix('<') {
                Some(before) => {
                    self.out.write_all(before.as_bytes())?;
                    self.out.write_all(b"\\u003c")?;
                }
                None => self.out.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }

    /// Ends the page, and gives the output back.
    ///
    /// # Errors
    ///
    /// The output's error.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_input()?;
        self.out.write_all(b"]}")?;
        let (_, behind) = TEMPLATE.split_once(PLACE).unwrap_or_default();
        self.out.write_all(behind.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Sink for Page<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match *event {
            Event::Input(name, kind) => {
                self.end_input()?;
                if self.inputs > 0 {
                    self.out.write_all(b",")?;
                }
                self.inputs = self.inputs.saturating_add(1);
                self.items = 0;
                self.left_out = 0;
                self.out.write_all(b"{\"name\":")?;
                self.json(&name)?;
                self.out.write_all(b",\"kind\":")?;
                self.json(&kind)?;
                self.out.write_all(b",\"items\":[")
            }
            Event::End(call) => {
                if self.only.is_some_and(|only| call.recipient != Some(only)) {
                    return Ok(());
                }
                let known = call.recipient.and_then(guids::find);
                self.item(&Item::Call {
                    to: call.to(),
                    source: known.map_or("", |known| known.source),
                    call,
                })
            }
            // MMIs inside a call are part of the call.
            Event::Mmi(note, None) if self.only.is_none() || note.level >= Level::Warn => {
                self.item(&Item::Mmi(note))
            }
            Event::Note(note, None) if self.only.is_none() || note.level >= Level::Warn => {
                self.item(&Item::Note(note))
            }
            Event::Restart(at, boot) => self.item(&Item::Restart { at, boot }),
            Event::Damaged(Damage { line, column, what }) => self.item(&Item::Damaged {
                line: *line,
                column: *column,
                what,
            }),
            Event::Dump(dump) => self.item(&Item::Dump(dump)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{Format, read};

    fn page(log: &str, only: Option<Guid>, limit: usize) -> (String, serde_json::Value) {
        let mut page = Page::new(Vec::new(), only, limit).unwrap();
        read(log.as_bytes(), "</script>", Some(Format::Log), None, &mut page).unwrap();
        let page = String::from_utf8(page.finish().unwrap()).unwrap();
        let (_, data) = page.split_once("id=\"data\">").unwrap();
        let (data, _) = data.split_once("</script>").unwrap();
        (page.clone(), serde_json::from_str(data).unwrap())
    }

    const LOG: &str = "TRACE mm_comm: call 1 at 5 us, comm buffer 0: request to ed32d533-99e6-4209-9cc0-2d72cdd998a7, V1 header, \
                       1 of 1 bytes: [00]\n\
                       DEBUG mm_comm: call 1 at 9 us, comm buffer 0: 1 bytes to ed32d533-99e6-4209-9cc0-2d72cdd998a7: <b>no</b></script>\n\
                       DEBUG mm_comm: call 2 at 11 us, comm buffer 0: 1 bytes to 0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11, 2 bytes back\n\
                       ERROR sw_mmi: oh no\n";

    #[test]
    fn the_data_cannot_end_its_element_and_says_what_the_log_says() {
        let (page, data) = page(LOG, None, CALLS);
        let (template, _) = TEMPLATE.split_once(PLACE).unwrap();
        assert!(page.starts_with(template) && page.ends_with("</html>\n"));
        let input = &data["inputs"][0];
        assert_eq!(input["name"], "</script>");
        let items = input["items"].as_array().unwrap();
        assert_eq!(items.len(), 3);
        assert_eq!(items[0]["to"], "variable service");
        assert_eq!(items[0]["outcome"], "failed");
        assert_eq!(items[0]["why"], "<b>no</b></script>");
        assert_eq!(items[0]["request"]["bytes"], "00");
        assert_eq!(items[1]["outcome"], "responded");
        assert_eq!(items[2]["words"], "oh no");
    }

    #[test]
    fn a_page_has_no_more_than_its_limit_and_says_so() {
        let (_, data) = page(LOG, None, 1);
        assert_eq!(data["inputs"][0]["items"].as_array().unwrap().len(), 1);
        assert_eq!(data["inputs"][0]["left_out"], 2);
        let only = mm_wire::guid!("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");
        let (_, data) = page(LOG, Some(only), CALLS);
        assert_eq!(data["inputs"][0]["items"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for word in [
            "src=",
            "href=",
            "@import",
            "url(http",
            "fetch(",
            "XMLHttpRequest",
            "innerHTML",
            "eval(",
        ] {
            assert!(!TEMPLATE.contains(word), "{word}");
        }
        assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
    }
}
