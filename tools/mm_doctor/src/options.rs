//! The command line, as the UEFI Shell has them: `mm_doctor probe -json -o fs0:\mm.json`.

use alloc::string::{String, ToString};

/// What `-?` prints.
pub const USAGE: &str = "\
Looks at what this machine has for Management Mode (MM), and says what to write.

mm_doctor [probe] [-json] [-o FILE] [-b] [-off] [-?]

  probe    asks MM harmless questions, by each way that there is: the variable
           service for its payload size, the supervisor for its version, and a
           GUID that no handler has. Without this the doctor only reads.
  -json    prints everything as JSON
  -o FILE  writes everything as JSON to a file of the volume that this was
           started from, for a bug report. No bytes of other people's messages.
  -b       waits for a key after each page
  -off     switches the machine off afterwards, for scripts
  -?       prints this

The exit status is 0, or 7 (EFI_DEVICE_ERROR) if something is broken, or
2 (EFI_INVALID_PARAMETER) if the command line is wrong.
";

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Ask MM.
    pub probe: bool,
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
/// What is not understood.
pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "probe" => options.probe = true,
            "-json" => options.json = true,
            "-b" => options.pages = true,
            "-off" => options.off = true,
            "-?" | "-h" | "--help" => options.help = true,
            "-o" => match words.next() {
                Some(file) => options.file = Some(file.to_string()),
                None => return Err("-o wants a file".to_string()),
            },
            other => return Err(alloc::format!("`{other}` is not known; see -?")),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_usage() {
        assert_eq!(parse([]), Ok(Options::default()));
        assert_eq!(
            parse(["probe", "-json", "-o", "mm.json", "-b"]),
            Ok(Options {
                probe: true,
                json: true,
                file: Some("mm.json".to_string()),
                pages: true,
                off: false,
                help: false,
            })
        );
        assert!(parse(["-?"]).unwrap().help && parse(["-off"]).unwrap().off);
        assert!(parse(["-o"]).is_err() && parse(["prob"]).is_err());
        for word in ["probe", "-json", "-o", "-b", "-off", "-?"] {
            assert!(USAGE.contains(word));
        }
        assert!(USAGE.lines().all(|line| line.len() <= 80));
    }
}
