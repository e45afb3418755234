//! Dumps of comm buffers, mailboxes and messages: as bytes, or as text of the usual tools.

use crate::decode::{self, Decoded, Direction};
use crate::guids;
use crate::input::Damage;
use mm_comm::ResponseError;
use mm_comm::error::LengthSource;
use mm_wire::{Guid, Header, HeaderFormat, MailboxImage};
use serde::Serialize;
use zerocopy::FromBytes as _;

/// The most bytes that a dump shows; decoding sees all.
const SHOWN: usize = 4096;
/// The most bytes that a text dump may describe.
const LARGEST: usize = 64 << 20;

/// A decoded dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// The kind of memory.
    pub title: String,
    /// The handler's GUID, if the dump has one.
    pub recipient: Option<String>,
    /// Field by field.
    pub fields: Vec<(String, String)>,
    /// The decoded message.
    pub message: Option<Decoded>,
    /// The problems.
    pub problems: Vec<String>,
    /// The first bytes, as hexadecimal digits.
    pub bytes: String,
}

impl Dump {
    fn new(title: &str, bytes: &[u8]) -> Self {
        let shown = bytes.get(..SHOWN).unwrap_or(bytes);
        Self {
            title: title.to_owned(),
            bytes: shown.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..Self::default()
        }
    }

    fn field(&mut self, name: &str, value: impl ToString) {
        self.fields.push((name.to_owned(), value.to_string()));
    }

    fn problem(&mut self, words: impl ToString) {
        self.problems.push(words.to_string());
    }

    fn recipient(&mut self, recipient: Guid) {
        self.recipient = Some(recipient.to_string());
        self.field(
            "recipient",
            format_args!("{} ({recipient})", guids::name(recipient)),
        );
    }

    fn message(&mut self, recipient: Guid, direction: Direction, bytes: &[u8], total: u64) {
        let decoded = decode::message(recipient, direction, bytes, total);
        self.problems.extend(decoded.problems.iter().cloned());
        self.message = Some(decoded);
    }
}

/// Whether bytes look like a status mailbox: its size, and zeros in its reserved bytes.
#[must_use]
pub fn is_mailbox(bytes: &[u8]) -> bool {
    // The second byte is TalkToSupervisor in a mailbox that the MM supervisor shares with its
    // users.
    bytes.len() == mm_wire::mailbox::MAILBOX_LEN && matches!(bytes, [0 | 1, 0 | 1, 0, 0, 0, 0, 0, 0, ..])
}

/// Describes a status mailbox. `header` and `capacity` are of the comm buffer that it belongs to,
/// if it is known.
fn mailbox_of(
    dump: &mut Dump,
    bytes: &[u8],
    header: HeaderFormat,
    capacity: Option<usize>,
) -> Option<MailboxImage> {
    let Ok((image, rest)) = MailboxImage::read_from_prefix(bytes) else {
        dump.problem(format_args!(
            "a status mailbox takes {} bytes, the dump has {}",
            mm_wire::mailbox::MAILBOX_LEN,
            bytes.len()
        ));
        return None;
    };
    if !rest.is_empty() && rest.iter().any(|byte| *byte != 0) {
        dump.field(
            "behind the mailbox",
            format_args!("{} bytes, not all zero", rest.len()),
        );
    }
    let valid = bytes.first().copied().unwrap_or_default();
    dump.field("IsCommBufferValid", valid);
    if image.is_for_supervisor() {
        dump.field(
            "TalkToSupervisor",
            "set: the request is in the supervisor's comm buffer",
        );
    }
    dump.field("ReturnStatus", image.return_status());
    dump.field("ReturnBufferSize", image.return_buffer_size());
    if image.is_pending() {
        dump.problem(ResponseError::NotProcessed);
        return None;
    }
    if image.return_status().is_error() {
        dump.problem(ResponseError::Mm(image.return_status()));
    }
    let claimed = image.return_buffer_size();
    let minimum = header.header_len();
    // Both zero: MM never responded here, or the request was withdrawn.
    if claimed < minimum as u64 && (claimed != 0 || image.return_status().is_error()) {
        dump.problem(ResponseError::ResponseBelowHeader { claimed, minimum });
    }
    if let Some(capacity) = capacity.filter(|capacity| claimed > *capacity as u64) {
        dump.problem(ResponseError::ResponseBeyondBuffer {
            told_by: LengthSource::Mailbox,
            claimed,
            capacity,
        });
    }
    Some(image)
}

/// Describes a dump of a status mailbox.
#[must_use]
pub fn mailbox(bytes: &[u8]) -> Dump {
    let mut dump = Dump::new("status mailbox", bytes);
    mailbox_of(&mut dump, bytes, HeaderFormat::V1, None);
    dump
}

/// Describes a dump of a message to, or from, this handler.
#[must_use]
pub fn message(recipient: Guid, bytes: &[u8]) -> Dump {
    let mut dump = Dump::new("message", bytes);
    dump.recipient(recipient);
    dump.message(recipient, Direction::Unknown, bytes, bytes.len() as u64);
    dump
}

/// Describes a dump of a comm buffer, and of its mailbox if there is one.
#[must_use]
pub fn comm_buffer(bytes: &[u8], mailbox: Option<&[u8]>) -> Dump {
    let mut dump = Dump::new("comm buffer", bytes);
    dump.field("size", format_args!("{} bytes", bytes.len()));
    let header = Header::parse(bytes);
    let format = header.as_ref().map_or(HeaderFormat::V1, Header::format);
    let state = mailbox.and_then(|mailbox| mailbox_of(&mut dump, mailbox, format, Some(bytes.len())));
    if bytes.iter().all(|byte| *byte == 0) {
        dump.field(
            "content",
            "all zeroes: no call is under way, and the last one was wiped",
        );
        return dump;
    }
    let header = match header {
        Ok(header) => header,
        Err(error) => {
            dump.problem(error);
            return dump;
        }
    };
    dump.field(
        "header",
        format_args!("{format:?}, {} bytes", format.header_len()),
    );
    dump.recipient(header.recipient());
    dump.field("message", format_args!("{} bytes", header.message_len()));
    if format == HeaderFormat::V3 {
        dump.field("MessageSize", header.message_size());
        if header.message_size() > header.message_len() {
            dump.problem(format_args!(
                "MessageSize is {} bytes, BufferSize leaves room for {}",
                header.message_size(),
                header.message_len()
            ));
        }
    }
    let capacity = bytes.len().saturating_sub(format.header_len());
    if header.message_len() > capacity as u64 {
        dump.problem(ResponseError::ResponseBeyondBuffer {
            told_by: LengthSource::Header,
            claimed: header.total_len(),
            capacity: bytes.len(),
        });
    }
    let claimed = state.map(|state| {
        state
            .return_buffer_size()
            .saturating_sub(format.header_len() as u64)
    });
    let (len, direction) = match claimed.filter(|len| *len > 0) {
        Some(len) => (len, Direction::Response),
        None if mailbox.is_some() => (header.message_len(), Direction::Request),
        None => (header.message_len(), Direction::Unknown),
    };
    let rest = bytes.get(format.header_len()..).unwrap_or_default();
    let end = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
    let (body, behind) = rest.split_at(end);
    dump.message(header.recipient(), direction, body, len);
    let left = behind.iter().filter(|byte| **byte != 0).count();
    if left > 0 {
        dump.field(
            "behind the message",
            format_args!("{left} bytes that are not zero"),
        );
    }
    dump
}

/// Whether bytes are text, and so a dump in digits.
#[must_use]
pub fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
}

/// Reads a dump in digits: of `xxd`, `hexdump -C`, the UEFI Shell's `dmem`, QEMU's `xp`, or just
/// digits.
///
/// Numbers with `0x` in front of more than two digits are words of a little-endian machine, as QEMU
/// prints them.
///
/// # Errors
///
/// [`Damage`] with line and column.
pub fn parse(text: &str) -> Result<Vec<u8>, Damage> {
    let mut bytes = Vec::new();
    let mut start = None;
    let mut repeats = false;
    for (number, line) in (1..).zip(text.lines()) {
        let damage = |at: usize, what: String| Damage {
            line: number,
            column: at.saturating_add(1),
            what,
        };
        let content = line.trim();
        let indent = line.len().saturating_sub(line.trim_start().len());
        if content.is_empty() {
            continue;
        }
        if content == "*" {
            repeats = true;
            continue;
        }
        let (address, mut at) = address_of(line, indent, start.is_some());
        if let Some(address) = address {
            let start = *start.get_or_insert(address);
            let here = start.saturating_add(bytes.len() as u64);
            if repeats && address >= here {
                let missing = usize::try_from(address.saturating_sub(here)).unwrap_or(usize::MAX);
                if missing > LARGEST.saturating_sub(bytes.len()) {
                    return Err(damage(indent, format!("the dump jumps to {address:#x}, too far")));
                }
                let pattern: Vec<u8> = bytes.rchunks(16).next().unwrap_or(&[0]).to_vec();
                bytes.extend(pattern.iter().cycle().take(missing));
            } else if address != here {
                return Err(damage(
                    indent,
                    format!("expected the bytes at {here:#x}, found those at {address:#x}"),
                ));
            }
        }
        repeats = false;
        let mut on_this_line = 0;
        while let Some((from, word)) = next_word(line, &mut at) {
            if word.starts_with(['|', '*']) || (address.is_some() && on_this_line >= 16) {
                break;
            }
            let before = bytes.len();
            let gap = line.get(..from).is_some_and(|before| before.ends_with("  "));
            match word_bytes(word, &mut bytes) {
                Ok(()) => on_this_line += bytes.len().saturating_sub(before),
                // The text column behind the digits starts here.
                Err(_) if address.is_some() && gap && on_this_line > 0 => {
                    bytes.truncate(before);
                    break;
                }
                Err(what) => return Err(damage(from, what)),
            }
            if bytes.len() > LARGEST {
                return Err(damage(from, format!("the dump has more than {LARGEST} bytes")));
            }
        }
    }
    Ok(bytes)
}

/// The address at the start of a line, and where the bytes start. `has_addresses`: a line before had
/// one.
fn address_of(line: &str, indent: usize, has_addresses: bool) -> (Option<u64>, usize) {
    let rest = line.get(indent..).unwrap_or_default();
    let digits = rest.strip_prefix("0x").unwrap_or(rest);
    let prefix = rest.len().saturating_sub(digits.len());
    let len = digits
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    let behind = digits.get(len..).unwrap_or_default();
    let is_address = len >= 4 && (behind.starts_with(':') || behind.starts_with("  "))
        // `hexdump -C` ends with the length alone; four bytes at the end of `xxd -p` look the same.
        || has_addresses && len == 8 && behind.is_empty() && prefix == 0;
    let address = digits
        .get(..len)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match address.filter(|_| is_address) {
        Some(address) => {
            let colon = usize::from(behind.starts_with(':'));
            let at = indent
                .saturating_add(prefix)
                .saturating_add(len)
                .saturating_add(colon);
            (Some(address), at)
        }
        None => (None, indent),
    }
}

/// The next word from `at` on, and where it starts.
fn next_word<'a>(line: &'a str, at: &mut usize) -> Option<(usize, &'a str)> {
    const BETWEEN: [char; 7] = [' ', '\t', ',', ';', '-', '[', ']'];
    let rest = line.get(*at..)?;
    let skipped = rest.len().saturating_sub(rest.trim_start_matches(BETWEEN).len());
    let from = at.saturating_add(skipped);
    let rest = line.get(from..)?;
    let len = rest.find(BETWEEN).unwrap_or(rest.len());
    *at = from.saturating_add(len);
    rest.get(..len)
        .filter(|word| !word.is_empty())
        .map(|word| (from, word))
}

/// The bytes of a word of digits.
fn word_bytes(word: &str, into: &mut Vec<u8>) -> Result<(), String> {
    let (digits, is_number) = match word.strip_prefix("0x") {
        Some(digits) => (digits, true),
        None => (word, false),
    };
    let before = into.len();
    let (pairs, odd) = digits.as_bytes().as_chunks::<2>();
    let wrong = || {
        format!(
            "expected pairs of hexadecimal digits, found `{}`",
            word.escape_debug()
        )
    };
    // A sign is not a digit, although `from_str_radix` takes one.
    if !odd.is_empty() || pairs.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for pair in pairs {
        let text = std::str::from_utf8(pair).map_err(|_not_text| wrong())?;
        into.push(u8::from_str_radix(text, 16).map_err(|_not_digits| wrong())?);
    }
    if is_number {
        into.get_mut(before..).unwrap_or_default().reverse();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_wire::EfiStatus;
    use mm_wire::message::variable;
    use proptest::prelude::*;
    use zerocopy::IntoBytes as _;

    /// A question for the payload size, as the variable service gets it.
    fn question(format: HeaderFormat) -> Vec<u8> {
        let header = Header::new(format, variable::GUID, 24).unwrap().encode();
        let message = [11_u64, 0, 0].map(u64::to_le_bytes).concat();
        [header.as_ref(), &message].concat()
    }

    #[test]
    fn dumps_of_the_usual_tools_give_the_same_bytes() {
        let bytes = question(HeaderFormat::V1);
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let rows = || hex.chunks(16).enumerate().map(|(row, bytes)| (row * 16, bytes));
        let lines = |line: &dyn Fn(usize, &[String]) -> String| -> String {
            rows().map(|(at, bytes)| line(at, bytes) + "\n").collect()
        };
        let xxd = lines(&|at, bytes| {
            let groups: Vec<String> = bytes.chunks(2).map(|pair| pair.concat()).collect();
            format!("{at:08x}: {}  3.2....B..-r ab", groups.join(" "))
        });
        let hexdump = lines(&|at, bytes| {
            let (left, right) = bytes.split_at(8);
            format!(
                "{at:08x}  {}  {}  |3.2....B..-r ab|",
                left.join(" "),
                right.join(" ")
            )
        }) + "00000030\n";
        let dmem = lines(&|at, bytes| {
            let (left, right) = bytes.split_at(8);
            let (left, right) = (left.join(" ").to_uppercase(), right.join(" ").to_uppercase());
            format!("  {:08X}: {left}-{right}  *3.2....B..-r ab*", 0x7f00_0000 + at)
        });
        let xp = lines(&|at, bytes| format!("000000007f0000{at:02x}: 0x{}", bytes.join(" 0x")));
        let words = lines(&|at, bytes| {
            let words: Vec<String> = bytes
                .chunks(4)
                .map(|word| format!("0x{}", word.iter().rev().cloned().collect::<String>()))
                .collect();
            format!("000000007f0000{at:02x}: {}", words.join(" "))
        });
        let demo = lines(&|at, bytes| format!("      {at:04x}  {:<47}  3.2....B..-r ab", bytes.join(" ")));
        let list = format!("[{}]", hex.join(", "));
        for text in [xxd, hexdump, dmem, xp, words, demo, list, hex.concat()] {
            assert_eq!(parse(&text).as_deref(), Ok(bytes.as_slice()), "{text}");
        }
        assert_eq!(
            parse("00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |.|\n*\n00000040").unwrap(),
            [0; 64]
        );
    }

    #[test]
    fn a_damaged_dump_is_an_error_with_line_and_column() {
        for (text, line, column) in [
            ("00 01\n02 0x", 2, 4),
            ("0 1", 1, 1),
            ("00000000: 0011 22\n00000004: 33", 2, 1),
            ("00000000: zz", 1, 11),
            ("00000000  00\n*\nffffffff00000000: 00", 3, 1),
        ] {
            let damage = parse(text).unwrap_err();
            assert_eq!((damage.line, damage.column), (line, column), "{damage}");
        }
    }

    #[test]
    fn a_last_line_of_four_bytes_is_not_an_address() {
        // `xxd -p` writes 30 bytes in a line, and 64 bytes as 30, 30 and 4.
        let bytes: Vec<u8> = (0..64).collect();
        let lines: Vec<String> = bytes
            .chunks(30)
            .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        assert_eq!(parse(&lines.join("\n")), Ok(bytes));
    }

    #[test]
    fn a_sign_is_not_a_digit() {
        let damage = parse("00 +1").unwrap_err();
        assert_eq!((damage.line, damage.column), (1, 4), "{damage}");
    }

    #[test]
    fn a_request_that_mm_did_not_take_is_named() {
        let armed = MailboxImage::armed();
        let dump = comm_buffer(&question(HeaderFormat::V3), Some(armed.as_bytes()));
        assert_eq!(dump.problems, [ResponseError::NotProcessed.to_string()]);
        assert_eq!(dump.message.unwrap().what, "GET_PAYLOAD_SIZE");
        assert_eq!(
            dump.recipient.as_deref(),
            Some("ed32d533-99e6-4209-9cc0-2d72cdd998a7")
        );
    }

    #[test]
    fn mms_claims_are_compared_with_the_buffer() {
        let bytes = question(HeaderFormat::V1);
        let problems = |status, size| {
            comm_buffer(&bytes, Some(MailboxImage::answered(status, size).as_bytes())).problems
        };
        assert_eq!(problems(EfiStatus::SUCCESS, 48), [""; 0]);
        assert_eq!(
            problems(EfiStatus::SUCCESS, 49),
            [ResponseError::ResponseBeyondBuffer {
                told_by: LengthSource::Mailbox,
                claimed: 49,
                capacity: 48
            }
            .to_string()]
        );
        assert_eq!(
            problems(EfiStatus::NOT_FOUND, 0),
            [
                ResponseError::Mm(EfiStatus::NOT_FOUND).to_string(),
                ResponseError::ResponseBelowHeader {
                    claimed: 0,
                    minimum: 24
                }
                .to_string()
            ]
        );
        let mut long = bytes.clone();
        long[16] = 25;
        assert_eq!(
            comm_buffer(&long, None).problems,
            [ResponseError::ResponseBeyondBuffer {
                told_by: LengthSource::Header,
                claimed: 49,
                capacity: 48
            }
            .to_string()]
        );
        assert_eq!(comm_buffer(&[0; 4096], None).problems, [""; 0]);
        assert_eq!(comm_buffer(&[1; 7], None).problems.len(), 1);
        assert!(is_mailbox(MailboxImage::armed().as_bytes()));
        let shared = MailboxImage::armed_for_supervisor();
        assert!(is_mailbox(shared.as_bytes()));
        let dump = mailbox(shared.as_bytes());
        assert!(dump.fields.iter().any(|(name, _)| name == "TalkToSupervisor"));
        assert!(!is_mailbox(&bytes[..24]));
        assert_eq!(mailbox(&[0; 3]).problems.len(), 1);
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "[0-9a-fx:|* \n-]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), v3 in any::<bool>()) {
            let header = Header::new(if v3 { HeaderFormat::V3 } else { HeaderFormat::V1 }, variable::GUID, 9).unwrap();
            let whole = [header.encode().as_ref(), &bytes].concat();
            let _ = (comm_buffer(&bytes, Some(&bytes)), comm_buffer(&whole, Some(&bytes)), mailbox(&bytes));
        }
    }
}
