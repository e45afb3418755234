//! Decodes the bytes of a message.
//!
//! A log shows the start of a message only, so everything here takes a message that may be cut:
//! missing bytes behind the cut are not an error.

use crate::guids::{self, Kind};
use mm_wire::message::supervisor::{
    self, CommUpdate, PolicyHeader, RequestHeader, SharedCommUpdate, UnblockMemory, VersionInfo,
};
use mm_wire::message::variable::{
    self, AccessVariable, Attributes, FunctionHeader, NextName, PayloadSize, QueryInfo, function,
};
use mm_wire::{EfiStatus, Guid};
use serde::Serialize;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To MM.
    Request,
    /// From MM.
    Response,
    /// Not known, as in a dump.
    Unknown,
}

/// A decoded message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Decoded {
    /// In a few words; empty if nothing is known about the recipient's messages.
    pub what: String,
    /// Field by field.
    pub fields: Vec<(String, String)>,
    /// The problems of the message.
    pub problems: Vec<String>,
}

impl Decoded {
    fn field(&mut self, name: &str, value: impl ToString) {
        self.fields.push((name.to_owned(), value.to_string()));
    }

    fn problem(&mut self, words: impl ToString) {
        self.problems.push(words.to_string());
    }

    /// Adds a status that MM returned in the message; an error is a problem.
    fn status(&mut self, name: &str, value: u64, direction: Direction) {
        let status = EfiStatus(value);
        if direction == Direction::Request {
            // In a request this field is only room for the status, which firmware does not clear.
            return;
        }
        self.field(name, status);
        if status.is_error() && direction == Direction::Response {
            self.problem(format_args!("MM: {name} is {status}"));
        }
    }
}

/// A message, or its known part.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    bytes: &'a [u8],
    /// How long it is.
    total: u64,
    direction: Direction,
}

impl<'a> Message<'a> {
    /// Whether bytes are missing.
    fn is_cut(&self) -> bool {
        self.total > self.bytes.len() as u64
    }

    /// Reads a value from the front; `None` with a problem if the message ends before, `None` alone
    /// if it is cut.
    fn take<T: FromBytes>(&mut self, what: &str, into: &mut Decoded) -> Option<T> {
        match T::read_from_prefix(self.bytes) {
            Ok((value, rest)) => {
                self.skip_to(rest);
                Some(value)
            }
            Err(_) => {
                let needed = size_of::<T>() as u64;
                if self.total < needed {
                    into.problem(format_args!(
                        "{what} takes {needed} bytes, the message has {} left",
                        self.total
                    ));
                }
                None
            }
        }
    }

    fn skip_to(&mut self, rest: &'a [u8]) {
        let taken = self.bytes.len().saturating_sub(rest.len()) as u64;
        self.total = self.total.saturating_sub(taken);
        self.bytes = rest;
    }

    /// The next `len` bytes, or the known ones among them.
    fn bytes(&mut self, len: u64) -> &'a [u8] {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.bytes.len());
        let (taken, rest) = self.bytes.split_at(len);
        self.skip_to(rest);
        taken
    }
}

/// Decodes the message to, or from, `recipient`: the first bytes of `total`.
#[must_use]
pub fn message(recipient: Guid, direction: Direction, bytes: &[u8], total: u64) -> Decoded {
    let message = Message {
        bytes,
        total,
        direction,
    };
    let mut decoded = Decoded::default();
    let known = guids::find(recipient);
    match recipient {
        variable::GUID => variables(message, &mut decoded),
        supervisor::GUID => supervisor(message, &mut decoded),
        FAULT_TOLERANT_WRITE => fault_tolerant_write(message, &mut decoded),
        VARIABLE_POLICY => variable_policy(message, &mut decoded),
        _ => {
            if let Some(event) = known.filter(|known| known.kind == Kind::Event) {
                decoded.what = format!("event: {}", event.name);
            }
        }
    }
    decoded
}

fn known_name(name: Option<&'static str>, number: impl Into<u64>) -> String {
    name.map_or_else(
        || format!("function {}, not known here", number.into()),
        str::to_owned,
    )
}

/// `MdeModulePkg/Include/Guid/SmmVariableCommon.h`.
const VARIABLE_FUNCTIONS: [&str; 14] = [
    "GET_VARIABLE",
    "GET_NEXT_VARIABLE_NAME",
    "SET_VARIABLE",
    "QUERY_VARIABLE_INFO",
    "READY_TO_BOOT",
    "EXIT_BOOT_SERVICE",
    "GET_STATISTICS",
    "LOCK_VARIABLE",
    "VAR_CHECK_VARIABLE_PROPERTY_SET",
    "VAR_CHECK_VARIABLE_PROPERTY_GET",
    "GET_PAYLOAD_SIZE",
    "INIT_RUNTIME_VARIABLE_CACHE_CONTEXT",
    "SYNC_RUNTIME_CACHE",
    "GET_RUNTIME_CACHE_INFO",
];

/// The name of a function that counts from one.
fn nth(names: &[&'static str], number: u64) -> Option<&'static str> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    names.get(index).copied()
}

/// The fields in front of a message: which function it calls, and its status.
fn called_function(
    message: &mut Message<'_>,
    names: &[&'static str],
    service: &str,
    decoded: &mut Decoded,
) -> Option<FunctionHeader> {
    let header = message.take::<FunctionHeader>(&format!("{service}'s header"), decoded)?;
    let number = header.function.get();
    let name = nth(names, number);
    decoded.what = known_name(name, number);
    if name.is_none() {
        decoded.problem(format_args!("{number} is not a function of {service}"));
    }
    decoded.status("ReturnStatus", header.return_status.get(), message.direction);
    Some(header)
}

fn variables(mut message: Message<'_>, decoded: &mut Decoded) {
    let Some(header) = called_function(&mut message, &VARIABLE_FUNCTIONS, "the variable service", decoded)
    else {
        return;
    };
    let number = header.function.get();
    let failed = message.direction == Direction::Response && EfiStatus(header.return_status.get()).is_error();
    match number {
        function::GET_VARIABLE | function::SET_VARIABLE => access(message, failed, decoded),
        function::GET_NEXT_VARIABLE_NAME => {
            let Some(next) = message.take::<NextName>("the next name's header", decoded) else {
                return;
            };
            decoded.field("vendor", guids::name(Guid::from_bytes(next.vendor)));
            if message.direction == Direction::Request {
                decoded.field("room for a name", bytes_of(next.name_size.get()));
            }
            let name = Utf16::until_nul(message.bytes);
            decoded.field("name", name.quoted(message.is_cut()));
            decoded.what = format!("{} {}", decoded.what, name.quoted(message.is_cut()));
        }
        function::QUERY_VARIABLE_INFO => {
            let Some(info) = message.take::<QueryInfo>("the store's sizes", decoded) else {
                return;
            };
            if message.direction != Direction::Request && !failed {
                decoded.field("whole store", bytes_of(info.maximum_storage.get()));
                decoded.field("free", bytes_of(info.remaining_storage.get()));
                decoded.field("largest variable", bytes_of(info.maximum_variable.get()));
            }
            decoded.field("attributes", attributes(info.attributes.get()));
        }
        function::GET_PAYLOAD_SIZE => {
            let size = message.take::<PayloadSize>("the payload size", decoded);
            if let Some(size) = size.filter(|_| message.direction != Direction::Request && !failed) {
                decoded.field("payload size", bytes_of(size.size.get()));
            }
        }
        _ => {}
    }
}

/// Get and set.
fn access(mut message: Message<'_>, failed: bool, decoded: &mut Decoded) {
    let Some(access) = message.take::<AccessVariable>("the variable's header", decoded) else {
        return;
    };
    let (name_len, data_len) = (access.name_size.get(), access.data_size.get());
    decoded.field("vendor", guids::name(Guid::from_bytes(access.vendor)));
    if !name_len.is_multiple_of(2) {
        decoded.problem(format_args!(
            "caller: NameSize is {name_len} bytes, and UTF-16 takes an even number"
        ));
    }
    let claimed = name_len.saturating_add(data_len);
    // After a refusal of MM, DataSize may say how much room is needed.
    if claimed > message.total && !failed {
        decoded.problem(format_args!(
            "NameSize {name_len} and DataSize {data_len} exceed the {} bytes that follow the header",
            message.total
        ));
    }
    let is_whole = message.bytes.len() as u64 >= name_len;
    let name = Utf16::until_nul(message.bytes(name_len));
    if is_whole && !name.ends_with_nul {
        decoded.problem(format_args!(
            "caller: the name {} does not end with NUL",
            name.quoted(false)
        ));
    }
    decoded.what = format!("{} {}", decoded.what, name.quoted(!is_whole));
    decoded.field("name", name.quoted(!is_whole));
    decoded.field("attributes", attributes(access.attributes.get()));
    decoded.field("data size", bytes_of(data_len));
}

fn attributes(bits: u32) -> String {
    let known = Attributes::from_bits_truncate(bits);
    let names: Vec<&str> = known.iter_names().map(|(name, _)| name).collect();
    let rest = bits & !known.bits();
    match (names.is_empty(), rest) {
        (true, 0) => "none".to_owned(),
        (true, rest) => format!("{rest:#x}"),
        (false, 0) => names.join(" | "),
        (false, rest) => format!("{} | {rest:#x}", names.join(" | ")),
    }
}

fn bytes_of(len: u64) -> String {
    match len {
        1 => "1 byte".to_owned(),
        len => format!("{len} bytes"),
    }
}

/// A string of the firmware.
struct Utf16 {
    text: String,
    ends_with_nul: bool,
}

impl Utf16 {
    fn until_nul(bytes: &[u8]) -> Self {
        let (units, _odd) = bytes.as_chunks::<2>();
        let units: Vec<u16> = units.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        let end = units.iter().position(|unit| *unit == 0);
        let text = units.get(..end.unwrap_or(units.len())).unwrap_or_default();
        Self {
            text: String::from_utf16_lossy(text),
            ends_with_nul: end.is_some(),
        }
    }

    /// In quotes, with control characters escaped; an ellipsis if the rest is not known.
    fn quoted(&self, is_cut: bool) -> String {
        let rest = if is_cut && !self.ends_with_nul { "…" } else { "" };
        format!("\"{}{rest}\"", self.text.escape_debug())
    }
}

fn supervisor(mut message: Message<'_>, decoded: &mut Decoded) {
    let Some(header) = message.take::<RequestHeader>("the supervisor's request header", decoded) else {
        return;
    };
    if header.signature != supervisor::SIGNATURE {
        decoded.problem(format_args!(
            "caller: the request starts with {:02x?}, the supervisor wants {:02x?} (\"MSUP\")",
            header.signature,
            supervisor::SIGNATURE
        ));
    }
    if header.revision.get() != supervisor::REVISION {
        decoded.problem(format_args!(
            "caller: the request's revision is {}, the supervisor knows {}",
            header.revision,
            supervisor::REVISION
        ));
    }
    let request = header.request.get();
    let name = match request {
        supervisor::REQUEST_UNBLOCK_MEMORY => Some("unblock memory"),
        supervisor::REQUEST_FETCH_POLICY => Some("fetch policy"),
        supervisor::REQUEST_VERSION => Some("version"),
        supervisor::REQUEST_COMM_UPDATE => Some("move the comm buffers"),
        _ => None,
    };
    decoded.what = known_name(name, request);
    decoded.status("Result", header.result.get(), message.direction);
    let is_response = message.direction != Direction::Request;
    match request {
        supervisor::REQUEST_VERSION => {
            let info = message.take::<VersionInfo>("room for the version", decoded);
            if let Some(info) = info.filter(|_| is_response) {
                decoded.field("version", format_args!("{:#x}", info.version));
                decoded.field("patch level", format_args!("{:#x}", info.patch_level));
                decoded.field("highest request", info.max_request_level);
            }
        }
        supervisor::REQUEST_UNBLOCK_MEMORY => {
            if let Some(memory) = message.take::<UnblockMemory>("the memory's description", decoded) {
                decoded.field("memory", describe(&memory));
            }
        }
        // v20.0.0 to v23.0.3 have one mailbox for both channels.
        supervisor::REQUEST_COMM_UPDATE if message.total == size_of::<SharedCommUpdate>() as u64 => {
            if let Some(update) = message.take::<SharedCommUpdate>("the new places", decoded) {
                let [supervisors, users] = update.buffers;
                for (name, memory) in [
                    ("mailbox of both", update.mailbox),
                    ("supervisor's buffer", supervisors),
                    ("users' buffer", users),
                ] {
                    decoded.field(name, describe(&memory));
                }
            }
        }
        supervisor::REQUEST_COMM_UPDATE => {
            if !message.is_cut()
                && let Some(update) = message.take::<CommUpdate>("the new places", decoded)
            {
                let [supervisors, users] = update.mailboxes;
                let [supervisors_buffer, users_buffer] = update.buffers;
                for (name, memory) in [
                    ("supervisor's mailbox", supervisors),
                    ("users' mailbox", users),
                    ("supervisor's buffer", supervisors_buffer),
                    ("users' buffer", users_buffer),
                ] {
                    decoded.field(name, describe(&memory));
                }
            }
        }
        supervisor::REQUEST_FETCH_POLICY if is_response => {
            if let Some(policy) = message.take::<PolicyHeader>("the policy's header", decoded) {
                decoded.field(
                    "policy",
                    format_args!(
                        "version {}.{}, {} bytes",
                        policy.version_major, policy.version_minor, policy.size
                    ),
                );
            }
        }
        _ => {}
    }
}

fn describe(memory: &UnblockMemory) -> String {
    format!(
        "{} pages at {:#x}, type {}, attributes {:#x}, for {}",
        memory.pages,
        memory.physical_start,
        memory.memory_type,
        memory.attributes,
        guids::name(Guid::from_bytes(memory.identifier))
    )
}

/// The handler of edk2's fault-tolerant write.
const FAULT_TOLERANT_WRITE: Guid = mm_wire::guid!("3868fc3b-7e45-43a7-906c-4ba47de1754d");

/// `MdeModulePkg/Universal/FaultTolerantWriteDxe/FaultTolerantWriteSmmCommon.h`.
const WRITE_FUNCTIONS: [&str; 6] = [
    "GET_MAX_BLOCK_SIZE",
    "ALLOCATE",
    "WRITE",
    "RESTART",
    "ABORT",
    "GET_LAST_WRITE",
];

fn fault_tolerant_write(mut message: Message<'_>, decoded: &mut Decoded) {
    // The same two fields in front as in the variable service's messages.
    let Some(header) = called_function(&mut message, &WRITE_FUNCTIONS, "fault-tolerant write", decoded)
    else {
        return;
    };
    let number = header.function.get();
    if number == 1
        && message.direction != Direction::Request
        && let Some(size) = message.take::<U64>("the block size", decoded)
    {
        decoded.field("block size", bytes_of(size.get()));
    }
}

/// The handler of edk2's variable policy.
const VARIABLE_POLICY: Guid = mm_wire::guid!("da1b0d11-d1a7-46c4-9dc9-f3714875c6eb");

/// `MdeModulePkg/Include/Guid/VarCheckPolicyMmi.h`.
const POLICY_COMMANDS: [&str; 7] = [
    "DISABLE",
    "IS_ENABLED",
    "REGISTER",
    "DUMP",
    "LOCK",
    "GET_INFO",
    "GET_LOCK_VAR_STATE_INFO",
];

/// `VAR_CHECK_POLICY_COMM_HEADER`: signature @0, revision @4, command @8, result @12, packed.
fn variable_policy(mut message: Message<'_>, decoded: &mut Decoded) {
    const WHAT: &str = "the variable policy's header";
    let Some([signature, revision, command]) = message.take::<[U32; 3]>(WHAT, decoded) else {
        return;
    };
    if signature.as_ref() != b"VCPC" {
        decoded.problem(format_args!(
            "caller: the signature is {:02x?}, not \"VCPC\"",
            signature.as_ref()
        ));
    }
    if revision.get() != 1 {
        decoded.problem(format_args!(
            "caller: the revision is {revision}, the handler knows 1"
        ));
    }
    let number = u64::from(command.get());
    decoded.what = known_name(nth(&POLICY_COMMANDS, number), number);
    if let Some(result) = message.take::<U64>(WHAT, decoded) {
        decoded.status("Result", result.get(), message.direction);
    }
    if number == 2
        && message.direction != Direction::Request
        && let Some(state) = message.take::<u8>("the state", decoded)
    {
        decoded.field("enabled", if state == 0 { "no" } else { "yes" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    const VENDOR: Guid = mm_wire::guid!("8be4df61-93ca-11d2-aa0d-00e098032b8c");

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn get(name: &[u8], data_size: u64, status: u64) -> Vec<u8> {
        let header = FunctionHeader {
            function: function::GET_VARIABLE.into(),
            return_status: status.into(),
        };
        let access = AccessVariable {
            vendor: VENDOR.to_bytes(),
            data_size: data_size.into(),
            name_size: (name.len() as u64).into(),
            attributes: 0x87.into(),
        };
        [header.as_bytes(), access.as_bytes(), name, &[1, 2]].concat()
    }

    fn decoded(recipient: Guid, direction: Direction, bytes: &[u8]) -> Decoded {
        message(recipient, direction, bytes, bytes.len() as u64)
    }

    #[test]
    fn a_variable_is_named_with_its_vendor_and_attributes() {
        let bytes = get(&utf16("BootOrder\0"), 2, 0);
        let response = decoded(variable::GUID, Direction::Response, &bytes);
        assert_eq!(response.what, "GET_VARIABLE \"BootOrder\"");
        let fields: Vec<(&str, &str)> = response
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            fields,
            [
                ("ReturnStatus", "EFI_SUCCESS (0x0)"),
                ("vendor", "UEFI's global variables"),
                ("name", "\"BootOrder\""),
                ("attributes", "NON_VOLATILE | BOOT_SERVICE | RUNTIME | 0x80"),
                ("data size", "2 bytes"),
            ]
        );
        assert_eq!(response.problems, [""; 0]);
    }

    #[test]
    fn faults_of_a_variable_message_are_reported_with_their_numbers() {
        for (bytes, problem) in [
            (
                get(&utf16("X"), 2, 0),
                "caller: the name \"X\" does not end with NUL",
            ),
            (
                get(&utf16("X\0"), 3, 0),
                "NameSize 4 and DataSize 3 exceed the 6 bytes that follow the header",
            ),
            (
                get(b"X\0\0", 2, 0),
                "caller: NameSize is 3 bytes, and UTF-16 takes an even number",
            ),
            (
                get(&utf16("X\0"), 2, EfiStatus::NOT_FOUND.0),
                "MM: ReturnStatus is EFI_NOT_FOUND (0x800000000000000e)",
            ),
            (
                vec![1, 0, 0],
                "the variable service's header takes 16 bytes, the message has 3 left",
            ),
            (
                vec![99; 16],
                "7161677110969590627 is not a function of the variable service",
            ),
        ] {
            let problems = decoded(variable::GUID, Direction::Response, &bytes).problems;
            assert!(problems.iter().any(|it| it == problem), "{problems:?}");
        }
        // MM says how much room it needs, which is more than there was.
        let refused = get(&utf16("X\0"), 900, EfiStatus::BUFFER_TOO_SMALL.0);
        assert_eq!(
            decoded(variable::GUID, Direction::Response, &refused)
                .problems
                .len(),
            1
        );
    }

    #[test]
    fn a_cut_message_is_no_fault() {
        let whole = get(&utf16("ALongNameThatIsCut\0"), 2, 0);
        for len in 0..whole.len() {
            let cut = message(
                variable::GUID,
                Direction::Request,
                &whole[..len],
                whole.len() as u64,
            );
            assert_eq!(cut.problems, [""; 0], "{len} bytes of it");
        }
        let cut = message(
            variable::GUID,
            Direction::Request,
            &whole[..60],
            whole.len() as u64,
        );
        assert_eq!(cut.what, "GET_VARIABLE \"ALon…\"");
    }

    #[test]
    fn the_supervisors_version_is_read_and_wrong_requests_are_named() {
        let header = RequestHeader::new(supervisor::REQUEST_VERSION);
        let info = VersionInfo {
            version: 0x10002.into(),
            patch_level: 3.into(),
            max_request_level: 4.into(),
        };
        let bytes = [header.as_bytes(), info.as_bytes()].concat();
        let response = decoded(supervisor::GUID, Direction::Response, &bytes);
        assert_eq!(response.what, "version");
        assert!(
            response
                .fields
                .contains(&("version".to_owned(), "0x10002".to_owned()))
        );
        let short = decoded(supervisor::GUID, Direction::Request, header.as_bytes());
        assert_eq!(
            short.problems,
            ["room for the version takes 16 bytes, the message has 0 left"]
        );
        let mut wrong = header;
        wrong.signature = *b"PUSM";
        wrong.revision = 2.into();
        assert_eq!(
            decoded(supervisor::GUID, Direction::Request, wrong.as_bytes())
                .problems
                .len(),
            3
        );
    }

    #[test]
    fn a_move_is_read_in_the_layout_of_each_supervisor() {
        let header = RequestHeader::new(supervisor::REQUEST_COMM_UPDATE);
        for (len, mailboxes) in [
            (168, ["mailbox of both"].as_slice()),
            (224, &["supervisor's mailbox", "users' mailbox"]),
        ] {
            let request = [header.as_bytes(), &vec![0; len]].concat();
            let request = decoded(supervisor::GUID, Direction::Request, &request);
            let names: Vec<_> = request.fields.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(
                names,
                [mailboxes, &["supervisor's buffer", "users' buffer"]].concat()
            );
            assert_eq!(request.problems, [""; 0]);
        }
    }

    #[test]
    fn the_smaller_handlers_are_known_by_their_functions() {
        let block = [1_u64, 0, 4096].map(u64::to_le_bytes).concat();
        let block = decoded(FAULT_TOLERANT_WRITE, Direction::Response, &block);
        assert_eq!(
            (block.what.as_str(), block.problems.len()),
            ("GET_MAX_BLOCK_SIZE", 0)
        );
        assert!(
            block
                .fields
                .contains(&("block size".to_owned(), "4096 bytes".to_owned()))
        );

        let policy = b"VCPC\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x01";
        let policy = decoded(VARIABLE_POLICY, Direction::Response, policy);
        assert_eq!((policy.what.as_str(), policy.problems.len()), ("IS_ENABLED", 0));
        assert!(policy.fields.contains(&("enabled".to_owned(), "yes".to_owned())));

        let event = mm_wire::guid!("7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b");
        assert_eq!(
            decoded(event, Direction::Request, &[0]).what,
            "event: ready to boot"
        );
        assert_eq!(decoded(Guid::ZERO, Direction::Request, &[0]), Decoded::default());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(
            bytes in prop::collection::vec(any::<u8>(), 0..300), total in any::<u64>(), number in 0..16_u8,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = number;
            }
            for recipient in [variable::GUID, supervisor::GUID, FAULT_TOLERANT_WRITE, VARIABLE_POLICY] {
                for direction in [Direction::Request, Direction::Response, Direction::Unknown] {
                    let _ = message(recipient, direction, &bytes, total);
                }
            }
        }
    }
}
