//! The command line, as the UEFI Shell has them: `mm_doctor probe -json -o fs0:\mm.json`.

use crate::facts::Range;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The text that `-?` prints.
pub const USAGE: &str = "\
Looks at what this machine has for Management Mode (MM), and says what to write.

mm_doctor [probe | probe-all] [-r ADDRESS,BYTES] [-json] [-o FILE] [-b] [-off]
          [-?]

  probe    sends MM three harmless messages, by each way that there is: the
           variable service is asked for its payload size, the supervisor for
           its version, and the third has a GUID without a handler. Without
           this word mm_doctor only reads. On Arm only the first is sent: a
           DEBUG build of StandaloneMm never returns from a message whose GUID
           has no handler.
  probe-all
           sends all three on Arm, too
  -r ADDRESS,BYTES
           names the memory that is shared with the secure world, which Arm
           firmware does not announce (PcdMmBufferBase and PcdMmBufferSize)
  -json    prints everything as JSON
  -o FILE  writes everything as JSON to a file on the volume that mm_doctor was
           started from, for a bug report; no bytes of other programs' messages
  -b       waits for a key after each page
  -off     switches the machine off afterwards, for scripts
  -?       prints this text; so does -h. The UEFI Shell takes -? itself, and
           needs the file mm_doctor.man beside mm_doctor.efi for it

Examples:
  mm_doctor -b                               look at this machine
  mm_doctor probe -o mm.json                 everything, for a bug report
  mm_doctor probe -r 0xff600000,0x10000      an Arm machine

The exit status is 0; 7 (EFI_DEVICE_ERROR) if something is broken;
2 (EFI_INVALID_PARAMETER) if the command line is wrong;
21 (EFI_ABORTED) if the file cannot be written.
";

/// The usage as a file `mm_doctor.man`, in which the UEFI Shell looks for it: the Shell does not
/// hand `-?` to an application (UEFI Shell 2.2, 3.5).
#[must_use]
pub fn manual() -> String {
    alloc::format!(".TH mm_doctor 0 \"Looks at what this machine has for MM.\"\n.SH NAME\n{USAGE}")
}

/// The options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Send MM requests.
    pub probe: bool,
    /// Also send requests for which MM may have no handler, on Arm, too.
    pub probe_all: bool,
    /// Memory that is shared with the secure world.
    pub regions: Vec<Range>,
    /// Print JSON.
    pub json: bool,
    /// Write JSON to this file.
    pub file: Option<String>,
    /// Wait after each page.
    pub pages: bool,
    /// Switch the machine off afterwards.
    pub off: bool,
    /// Print the usage, and nothing else.
    pub help: bool,
}

/// Reads the words behind the program's name.
///
/// # Errors
///
/// The word that is not understood.
pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "probe" => options.probe = true,
            "probe-all" => (options.probe, options.probe_all) = (true, true),
            "-json" => options.json = true,
            "-b" => options.pages = true,
            "-off" => options.off = true,
            "-?" | "-h" | "--help" => options.help = true,
            "-o" => match words.next() {
                Some(file) => options.file = Some(file.to_string()),
                None => return Err("-o needs a file".to_string()),
            },
            "-r" => match words.next().and_then(range) {
                Some(range) => options.regions.push(range),
                None => return Err("-r needs an address and bytes, such as 0xff600000,0x10000".to_string()),
            },
            other => return Err(alloc::format!("`{other}` is not known")),
        }
    }
    Ok(options)
}

/// An address and a length, of at least one byte, that fit into the address space.
fn range(word: &str) -> Option<Range> {
    let number = |text: &str| match text.strip_prefix("0x") {
        // They take a sign, too.
        _ if text.contains('+') => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (start, len) = word.split_once(',')?;
    let (start, len): (u64, u64) = (number(start)?, number(len)?);
    (len > 0 && start.checked_add(len).is_some()).then_some(Range { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_usage() {
        assert_eq!(parse([]), Ok(Options::default()));
        let region = Range {
            start: 0xff60_0000,
            len: 65536,
        };
        assert_eq!(
            parse(["probe", "-r", "0xff600000,65536", "-json", "-o", "mm.json", "-b"]),
            Ok(Options {
                probe: true,
                probe_all: false,
                regions: alloc::vec![region],
                json: true,
                file: Some("mm.json".to_string()),
                pages: true,
                off: false,
                help: false,
            })
        );
        assert!(parse(["probe-all"]).is_ok_and(|options| options.probe && options.probe_all));
        assert!(parse(["-?"]).unwrap().help && parse(["-off"]).unwrap().off);
        assert!(parse(["-o"]).is_err() && parse(["prob"]).is_err());
        for wrong in [
            "0x1000",
            "0x1000,0",
            "x,1",
            "0xffffffffffffffff,1",
            "1,0x",
            "",
            "0x+1,1",
            "1,+1",
        ] {
            assert!(
                parse(["-r", wrong]).unwrap_err().starts_with("-r needs"),
                "{wrong}"
            );
        }
        for word in ["probe", "-r", "-json", "-o", "-b", "-off", "-?"] {
            assert!(USAGE.contains(word));
        }
        assert!(USAGE.lines().all(|line| line.len() <= 80));
        // The Shell takes a line that starts with a dot for a heading (`.TH`, `.SH`).
        assert!(USAGE.lines().all(|line| !line.starts_with('.')));
        assert!(manual().starts_with(".TH mm_doctor 0 \""));
    }
}
