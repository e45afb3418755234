//! Reads lines of any length with little memory, and gives the line and column of an error.

use std::borrow::Cow;
use std::io::{self, BufRead, Read as _};
use thiserror::Error;

/// The bytes of a line that are looked at. The crate's longest line has some 500.
const MAX_LINE: usize = 16 * 1024;

/// A part of the input that cannot be read as what it claims to be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}, column {column}: {what}")]
pub struct Damage {
    /// The line, from 1.
    pub line: u64,
    /// The column in bytes, from 1.
    pub column: usize,
    /// What was expected there.
    pub what: String,
}

/// Reads one line after the other into one buffer.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Reads from `input`.
    pub const fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line, without its end, and its number from 1. Only the first 16 KiB of a line are
    /// kept.
    ///
    /// # Errors
    ///
    /// The input's error.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend its buffer")]
    pub fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        self.line.clear();
        let read = (&mut self.input)
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if read == MAX_LINE && !self.line.ends_with(b"\n") {
            self.input.skip_until(b'\n')?;
        }
        self.number = self.number.saturating_add(1);
        while let [rest @ .., b'\n' | b'\r'] = self.line.as_slice() {
            self.line.truncate(rest.len());
        }
        Ok(Some((self.number, &self.line)))
    }
}

/// A line as text. Bytes that are not UTF-8 are a question mark each, so that columns stay.
#[must_use]
pub fn text(line: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(line) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    Cow::Owned(text)
}

/// A place in a line, from which words can be read.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a str,
    column: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at a column of a line.
    #[must_use]
    pub const fn new(rest: &'a str, column: usize) -> Self {
        Self { rest, column }
    }

    /// The rest that was not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a str {
        self.rest
    }

    /// The column of the rest, in bytes from 1.
    #[must_use]
    pub const fn column(&self) -> usize {
        self.column
    }

    fn advance(&mut self, len: usize) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        self.column = self.column.saturating_add(len);
        Some(taken)
    }

    /// Reads these words, if they are next.
    pub fn eat(&mut self, words: &str) -> bool {
        self.rest.starts_with(words) && self.advance(words.len()).is_some()
    }

    /// Reads these words; if they are missing, returns where.
    ///
    /// # Errors
    ///
    /// The column, and what was expected there.
    pub fn expect(&mut self, words: &str) -> Result<(), Expected> {
        if self.eat(words) {
            Ok(())
        } else {
            Err(self.expected(format!("`{words}`")))
        }
    }

    /// Reads as many characters as fit `of`.
    pub fn word(&mut self, of: impl Fn(char) -> bool) -> &'a str {
        let len = self.rest.find(|c| !of(c)).unwrap_or(self.rest.len());
        self.advance(len).unwrap_or_default()
    }

    /// Reads a decimal number.
    ///
    /// # Errors
    ///
    /// Those of [`Self::expect`].
    pub fn number<T: std::str::FromStr>(&mut self) -> Result<T, Expected> {
        let start = *self;
        let digits = self.word(|c| c.is_ascii_digit());
        digits.parse().map_err(|_other| start.expected("a number"))
    }

    /// Reads a GUID.
    ///
    /// # Errors
    ///
    /// Those of [`Self::expect`].
    pub fn guid(&mut self) -> Result<mm_wire::Guid, Expected> {
        let start = *self;
        let digits = self.word(|c| c.is_ascii_hexdigit() || c == '-');
        digits.parse().map_err(|_other| start.expected("a GUID"))
    }

    /// Reads a number of two hexadecimal digits.
    ///
    /// # Errors
    ///
    /// Those of [`Self::expect`].
    pub fn byte(&mut self) -> Result<u8, Expected> {
        let start = *self;
        let digits = self.word(|c| c.is_ascii_alphanumeric());
        match digits.len() {
            2 => u8::from_str_radix(digits, 16).map_err(|_other| start.expected("two hexadecimal digits")),
            _ => Err(start.expected("two hexadecimal digits")),
        }
    }

    /// An error that says what is missing here.
    pub fn expected(&self, what: impl Into<String>) -> Expected {
        Expected {
            column: self.column,
            what: what.into(),
            found: self.rest.chars().take(20).collect(),
        }
    }
}

/// A column, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    column: usize,
    what: String,
    found: String,
}

impl Expected {
    /// Adds the number of the line.
    #[must_use]
    pub fn at(self, line: u64) -> Damage {
        let found = match self.found.as_str() {
            "" => "the end of the line".to_owned(),
            found => format!("`{}`", found.escape_debug()),
        };
        Damage {
            line,
            column: self.column,
            what: format!("expected {}, found {found}", self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_numbers_whatever_their_length_and_end() {
        let long = "x".repeat(MAX_LINE * 3);
        let exact = "y".repeat(MAX_LINE - 1);
        let text = format!("one\r\n{long}\n{exact}\n\nlast");
        let mut lines = Lines::new(text.as_bytes());
        let mut seen = Vec::new();
        while let Some((number, line)) = lines.next().unwrap() {
            seen.push((number, line.len()));
        }
        assert_eq!(seen, [(1, 3), (2, MAX_LINE), (3, MAX_LINE - 1), (4, 0), (5, 4)]);
    }

    #[test]
    fn a_missing_word_is_reported_with_its_column() {
        let mut cursor = Cursor::new("call 7x", 5);
        cursor.expect("call ").unwrap();
        assert_eq!(cursor.number::<u32>(), Ok(7));
        let damage = cursor.expect(", ").unwrap_err().at(3);
        assert_eq!(damage.to_string(), "line 3, column 11: expected `, `, found `x`");
        let end = Cursor::new("", 9).expected("a GUID").at(1);
        assert_eq!(
            end.to_string(),
            "line 1, column 9: expected a GUID, found the end of the line"
        );
    }
}
