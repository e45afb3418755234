//! A conversation with MM that a person can follow.
//!
//! It needs only a lab, so it is the same on the simulated machine and on firmware under QEMU.

use crate::lab::{Abilities, Client, Lab, LogLevel, Setup};
use crate::scenarios::NO_HANDLER;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::cell::RefCell;
use core::fmt;
use mm_wire::message::supervisor::{self, RequestHeader, VersionInfo};
use mm_wire::message::variable::{self, AccessVariable, FunctionHeader, PayloadSize, function};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage, guid};
use patina_mm::component::communicator::Status;
use zerocopy::{FromBytes, IntoBytes};

/// Gets the transcript, line by line.
pub type Out<'o> = &'o mut dyn FnMut(fmt::Arguments<'_>);

const VENDOR: Guid = guid!("6b2f1ad5-94f2-4c9c-8a43-cbd3a2a8d2f7");
const NAME: &str = "Greeting";
const TEXT: &str = "hello from DXE";
const BYTES_A_LINE: usize = 16;
const LINES_SHOWN: usize = 6;

/// One question to MM.
struct Question {
    title: &'static str,
    recipient: Guid,
    who: &'static str,
    message: Vec<u8>,
    explain: fn(&[u8]) -> Option<String>,
}

/// What a line of the log starts with.
pub const LOG: &str = "LOG ";

/// Holds the conversation. If the lab can read the client's log, its lines up to trace follow, each
/// behind [`LOG`].
///
/// # Errors
///
/// A text, if the lab's client does not come up or a response is not what the demo expects.
pub fn run(lab: &Lab, place: &str, out: Out<'_>) -> Result<(), String> {
    if !lab.abilities().contains(Abilities::LOGS) {
        return talk(lab, place, out);
    }
    let mut result = Ok(());
    let log = lab.with_log(LogLevel::Trace, &mut || result = talk(lab, place, &mut *out));
    log.lines().for_each(|line| out(format_args!("{LOG}{line}")));
    result
}

fn talk(lab: &Lab, place: &str, out: Out<'_>) -> Result<(), String> {
    out(format_args!(
        "A Patina component talks to Management Mode, {place}."
    ));
    out(format_args!(""));
    let client = lab
        .bring_up(&Setup::default())
        .map_err(|failure| failure.to_string())?;
    out(format_args!("1  The platform is configured"));
    if lab.abilities().contains(Abilities::PORTS) {
        let (command, data) = client.ports();
        out(format_args!(
            "   command port  {command:#04x}, data port {data:#04x}"
        ));
        out(format_args!(
            "   SMIs          {}",
            if client.smis_are_on() {
                "on (SMI_EN was read)"
            } else {
                "off"
            }
        ));
    } else {
        out(format_args!("   entry         secure monitor calls"));
    }
    for line in client.describe_buffers() {
        out(format_args!("   {line}"));
    }
    out(format_args!(
        "   dispatched    SwMmiManager, MmCommunicator, then the component that asks"
    ));

    let mut number = 2;
    for question in questions(lab.abilities()) {
        out(format_args!(""));
        ask(&client, number, &question, out)?;
        number += 1;
    }

    out(format_args!(""));
    out(format_args!("{number}  What if no handler takes the request?"));
    let missing = client.communicate(0, b"is it running?", NO_HANDLER);
    out(format_args!("   request       14 bytes to {NO_HANDLER}"));
    out(format_args!("   error         {}", told(&missing)));
    number += 1;
    if lab
        .abilities()
        .contains(Abilities::CALLBACKS | Abilities::VARIABLES)
    {
        out(format_args!(""));
        interrupt(lab, &client, number, out);
        number += 1;
    }
    if lab.abilities().contains(Abilities::SMI_SWITCH) {
        out(format_args!(""));
        out(format_args!("{number}  What if the chipset delivers no SMIs?"));
        let before = client.mmis();
        client.switch_smis(false);
        let off = client.communicate(0, b"is it running?", NO_HANDLER);
        client.switch_smis(true);
        out(format_args!("   error         {}", told(&off)));
        out(format_args!("   MMIs raised   {}", client.mmis() - before));
    }
    out(format_args!(""));
    out(format_args!(
        "{} MMIs were raised. The comm buffer holds {}.",
        client.mmis(),
        remains(&client)
    ));
    Ok(())
}

/// A call that others interrupt: through its own buffer and, if MM has two of them, through the
/// other one.
fn interrupt(lab: &Lab, client: &Client, number: u32, out: Out<'_>) {
    out(format_args!(
        "{number}  What if a timer asks, too, in the middle of a call?"
    ));
    let message = payload_size();
    let buffers: &[u8] = if lab.abilities().contains(Abilities::CONTROLLED_MM) {
        &[0, 1]
    } else {
        &[0]
    };
    let inner = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&inner);
    let ask = message.clone();
    let callback = move |client: &Client| {
        for buffer in buffers {
            let result = client.communicate(*buffer, &ask, variable::GUID);
            seen.borrow_mut().push((*buffer, outcome(&result)));
        }
    };
    let outer = client.communicate_around(0, &message, variable::GUID, Box::new(callback));
    for (buffer, outcome) in inner.take() {
        out(format_args!(
            "   inside it     through comm buffer {buffer}: {outcome}"
        ));
    }
    out(format_args!(
        "   the call      through comm buffer 0: {}",
        outcome(&outer)
    ));
}

fn outcome(result: &Result<Vec<u8>, Status>) -> String {
    match result {
        Ok(response) => format!("{} bytes", response.len()),
        Err(failure) => failure.to_string(),
    }
}

fn told(result: &Result<Vec<u8>, Status>) -> String {
    match result {
        Ok(response) => format!("none, but {} bytes", response.len()),
        Err(failure) => failure.to_string(),
    }
}

fn remains(client: &Client) -> String {
    let left = client.region(0).iter().filter(|byte| **byte != 0).count();
    if left == 0 {
        String::from("nothing any more: all zeroes")
    } else {
        format!("{left} bytes that are not zero")
    }
}

/// What is in shared memory during a call.
struct Staged {
    region: Vec<u8>,
    mailbox: Option<MailboxImage>,
}

fn ask(client: &Client, number: u32, question: &Question, out: Out<'_>) -> Result<(), String> {
    out(format_args!("{number}  {}", question.title));
    out(format_args!(
        "   to            {} ({})",
        question.recipient, question.who
    ));
    let staged = Rc::new(RefCell::new(None));
    let seen = Rc::clone(&staged);
    let before = client.port_writes().len();
    let look = move |client: &Client| {
        *seen.borrow_mut() = Some(Staged {
            region: client.region(0),
            mailbox: client.mailbox(0),
        });
    };
    let response = client.communicate_around(0, &question.message, question.recipient, Box::new(look));
    if let Some(staged) = staged.take() {
        let header = Header::parse(&staged.region).map_err(|error| error.to_string())?;
        out(format_args!(
            "   request       {} bytes behind a {}-byte header",
            header.message_len(),
            HeaderFormat::V1.header_len()
        ));
        let total = usize::try_from(header.total_len()).unwrap_or(usize::MAX);
        dump(staged.region.get(..total).unwrap_or_default(), out);
        if staged.mailbox.is_some_and(|mailbox| mailbox.is_pending()) {
            out(format_args!("   mailbox       IsCommBufferValid = 1"));
        }
    }
    for (port, value) in client.port_writes().split_off(before) {
        let raises = if port == client.ports().0 {
            ", which raises the MMI"
        } else {
            ""
        };
        out(format_args!(
            "   out           {port:#04x} <- {value:#04x}{raises}"
        ));
    }
    for line in client.mm_report() {
        out(format_args!("   in MM         {line}"));
    }
    if let Some(mailbox) = client.mailbox(0) {
        out(format_args!(
            "   mailbox       {}, {} bytes with the header",
            mailbox.return_status(),
            mailbox.return_buffer_size()
        ));
    }
    let response = response.map_err(|failure| format!("{}: {failure}", question.title))?;
    out(format_args!("   response        {} bytes", response.len()));
    dump(&response, out);
    let meaning = (question.explain)(&response)
        .ok_or_else(|| format!("{}: the response makes no sense", question.title))?;
    out(format_args!("   that is       {meaning}"));
    Ok(())
}

/// Bytes as hexadecimal and text.
fn dump(bytes: &[u8], out: Out<'_>) {
    for (index, line) in bytes.chunks(BYTES_A_LINE).enumerate() {
        if index == LINES_SHOWN {
            out(format_args!(
                "                 ... {} more bytes",
                bytes.len() - index * BYTES_A_LINE
            ));
            return;
        }
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = line
            .iter()
            .map(|byte| {
                if byte.is_ascii_graphic() {
                    char::from(*byte)
                } else {
                    '.'
                }
            })
            .collect();
        out(format_args!(
            "                 {:04x}  {:<47}  {text}",
            index * BYTES_A_LINE,
            hex.join(" ")
        ));
    }
}

fn questions(abilities: Abilities) -> Vec<Question> {
    let mut questions = Vec::new();
    if abilities.contains(Abilities::CONTROLLED_MM) {
        questions.push(Question {
            title: "Which version has the MM supervisor?",
            recipient: supervisor::GUID,
            who: "the MM supervisor",
            message: supervisor::version_request().to_vec(),
            explain: |response| {
                let (header, rest) = RequestHeader::read_from_prefix(response).ok()?;
                let info = VersionInfo::read_from_bytes(rest).ok()?;
                Some(format!(
                    "{}, version {:#x}, patch level {:#x}, requests up to {}",
                    EfiStatus(header.result.get()),
                    info.version,
                    info.patch_level,
                    info.max_request_level
                ))
            },
        });
    }
    if abilities.contains(Abilities::VARIABLES) {
        let who = "the variable service";
        questions.push(Question {
            title: "How large may a variable message be?",
            recipient: variable::GUID,
            who,
            message: payload_size(),
            explain: |response| {
                let (header, rest) = FunctionHeader::read_from_prefix(response).ok()?;
                let size = PayloadSize::read_from_bytes(rest).ok()?.size;
                Some(format!("{}, {size} bytes", EfiStatus(header.return_status.get())))
            },
        });
        questions.push(Question {
            title: "Please keep a greeting in a variable.",
            recipient: variable::GUID,
            who,
            message: access(function::SET_VARIABLE, 2, TEXT.as_bytes()),
            explain: |response| {
                let (header, _) = FunctionHeader::read_from_prefix(response).ok()?;
                Some(EfiStatus(header.return_status.get()).to_string())
            },
        });
        questions.push(Question {
            title: "What was the greeting?",
            recipient: variable::GUID,
            who,
            message: access(function::GET_VARIABLE, 0, &vec![0; TEXT.len()]),
            explain: |response| {
                let (header, rest) = FunctionHeader::read_from_prefix(response).ok()?;
                let (_, rest) = AccessVariable::read_from_prefix(rest).ok()?;
                let data = rest.get(name().len()..)?;
                let text = core::str::from_utf8(data).ok()?;
                (text == TEXT).then(|| format!("{}, \"{text}\"", EfiStatus(header.return_status.get())))
            },
        });
    }
    questions
}

/// The request for the longest payload that the variable service takes.
fn payload_size() -> Vec<u8> {
    [
        FunctionHeader::new(function::GET_PAYLOAD_SIZE).as_bytes(),
        PayloadSize::default().as_bytes(),
    ]
    .concat()
}

/// The variable's name in UTF-16, with its NUL.
fn name() -> Vec<u8> {
    NAME.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

fn access(function: u64, attributes: u32, data: &[u8]) -> Vec<u8> {
    let name = name();
    let fields = AccessVariable {
        vendor: VENDOR.to_bytes(),
        data_size: (data.len() as u64).into(),
        name_size: (name.len() as u64).into(),
        attributes: attributes.into(),
    };
    [
        FunctionHeader::new(function).as_bytes(),
        fields.as_bytes(),
        &name,
        data,
    ]
    .concat()
}
