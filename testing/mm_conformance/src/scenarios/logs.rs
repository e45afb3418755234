//! What the client logs.

use super::nesting::look_during;
use super::{Seen, ready, up};
use crate::lab::{BufferSetup, CCall, CProtocol, Client, Lab, LogLevel, MailboxSetup, Setup};
use crate::mm;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::{Header, HeaderFormat};

scenarios! {
    log_below_trace_has_no_message_bytes: CONTROLLED_MM | LOGS, "requests and responses stay out of the log, as text and as numbers";
    log_of_a_call_is_bounded_at_trace: CONTROLLED_MM | LOGS, "a call with the largest message logs at most 2 KiB";
    log_lines_carry_their_calls_number: CONTROLLED_MM | CALLBACKS | LOGS, "at trace the lines of a call and of one inside it have different numbers";
    log_names_each_transaction: CONTROLLED_MM | LOGS | LONGER_RESPONSES, "a call is one debug line with both lengths";
    missing_mailboxes_are_warned_of_once: CONTROLLED_MM | PORTS | LOGS, "if a response cannot be distinguished from the request, the log warns once, when the client comes up";
    failed_calls_are_one_line_each: CONTROLLED_MM | MAILBOX | LOGS, "a call that fails is one line, an error with the length, the recipient and the reason, from every cause";
    failed_c_call_is_one_error_line: CONTROLLED_MM | MAILBOX | PRODUCED_PROTOCOLS | LOGS, "a failed call of a driver in C is one error line";
    failed_entry_is_one_error_line: SMI_SWITCH | LOGS, "MM that cannot be entered is one error line, with the reason";
    printing_shows_no_message_bytes: CONTROLLED_MM | CALLBACKS, "a communicator's debug output in the middle of a call has no message bytes";
}

const SECRET: &[u8] = b"password=correct horse battery staple";

fn log_of(lab: &Lab, level: LogLevel, client: &Client, message: &[u8]) -> String {
    lab.with_log(level, &mut || {
        let _ = client.communicate(0, message, mm::ECHO);
        let _ = client.communicate(0, message, super::refusals::NO_HANDLER);
    })
}

fn no_secret_in(log: &str) -> Seen {
    let bytes: [(&str, String); 4] = [
        ("text", String::from("password")),
        ("hexadecimal", String::from("70, 61, 73, 73")),
        ("hexadecimal", String::from("0x70, 0x61, 0x73")),
        ("decimal", String::from("112, 97, 115, 115")),
    ];
    for (form, needle) in bytes {
        ensure!(
            !log.contains(&needle),
            "the message is in the log as {form}: {log}"
        );
    }
    Ok(())
}

fn log_below_trace_has_no_message_bytes(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let log = log_of(lab, LogLevel::Debug, &client, SECRET);
    ensure!(!log.is_empty(), "nothing was recorded");
    no_secret_in(&log)
}

fn log_of_a_call_is_bounded_at_trace(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let message = super::pattern(client.capacity(0));
    let log = lab.with_log(LogLevel::Trace, &mut || {
        let _ = client.communicate(0, &message, mm::ECHO);
    });
    ensure!(!log.is_empty(), "nothing was recorded");
    ensure!(log.len() <= 2048, "{} bytes of log for one call", log.len());
    Ok(())
}

fn log_lines_carry_their_calls_number(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let log = lab.with_log(LogLevel::Trace, &mut || {
        let _ = look_during(&client, b"outer", mm::ECHO, |client| {
            let _ = client.communicate(1, b"inner one", mm::ECHO);
        });
    });
    let numbers: Vec<u32> = (log.lines().filter_map(|line| line.split_once(" mm_comm: call ")))
        .filter_map(|(_, rest)| rest.split([' ', ',']).next()?.parse().ok())
        .collect();
    let (Some(outer), Some(last)) = (numbers.first(), numbers.last()) else {
        return Err(alloc::format!("no line has a number: {log}"));
    };
    ensure_eq!(outer, last);
    ensure!(
        numbers.iter().any(|number| number != outer),
        "one number for both calls: {log}"
    );
    ensure!(
        log.contains(&alloc::format!(
            "request to {}, V1 header, 5 of 5 bytes: [6f, 75",
            mm::ECHO
        )),
        "no request: {log}"
    );
    ensure!(
        log.contains("response, 5 of 5 bytes: [6f, 75"),
        "no response: {log}"
    );
    Ok(())
}

fn log_names_each_transaction(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let log = lab.with_log(LogLevel::Debug, &mut || {
        let _ = client.communicate(0, &mm::stretch(300), mm::STRETCH);
    });
    let lines: Vec<&str> = log.lines().collect();
    ensure!(lines.len() == 1, "{} lines: {log}", lines.len());
    ensure!(log.contains("8 bytes") && log.contains("300 bytes"), "{log}");
    Ok(())
}

fn missing_mailboxes_are_warned_of_once(lab: &Lab) -> Seen {
    let warnings = |mailbox| -> Result<usize, String> {
        let setup = Setup {
            buffers: [BufferSetup {
                mailbox,
                ..BufferSetup::new(5)
            }]
            .to_vec(),
            ..Setup::default()
        };
        let mut answers = Err(String::from("nothing was run"));
        let log = lab.with_log(LogLevel::Debug, &mut || {
            answers = up(lab, &setup)
                .map(|client| [b"one", b"two"].map(|message| client.communicate(5, message, mm::ECHO)));
        });
        ensure_eq!(answers?, [Ok(b"one".to_vec()), Ok(b"two".to_vec())]);
        let warnings = log.lines().filter(|line| line.starts_with("WARN"));
        Ok(warnings
            .filter(|line| line.contains("comm buffers 5 have no status mailbox"))
            .count())
    };
    ensure_eq!(warnings(MailboxSetup::None)?, 1);
    ensure_eq!(warnings(MailboxSetup::OwnPage)?, 0);
    Ok(())
}

/// The call left one line, an error with all of these words.
fn one_error(log: &str, words: &[&str]) -> Seen {
    let lines: Vec<&str> = log.lines().collect();
    let [line] = lines.as_slice() else {
        return Err(alloc::format!("{} lines: {log}", lines.len()));
    };
    ensure!(line.starts_with("ERROR"), "{log}");
    for word in words {
        ensure!(line.contains(word), "{word} is not in {log}");
    }
    Ok(())
}

fn failed_calls_are_one_line_each(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let log_of = |buffer, message: &[u8], recipient| {
        lab.with_log(LogLevel::Debug, &mut || {
            let _ = client.communicate(buffer, message, recipient);
        })
    };
    let recipient = "to 0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11: ";
    one_error(
        &log_of(0, b"12345", super::refusals::NO_HANDLER),
        &["5 bytes", recipient, "MM returned EFI_", "no handler"],
    )?;
    let too_long = super::pattern(client.capacity(0) + 1);
    one_error(&log_of(0, &too_long, mm::ECHO), &["caller: the message has"])?;
    one_error(&log_of(0, b"", mm::ECHO), &["caller: the message is empty"])?;
    let lie = mm::Lie::Size(u64::MAX).request();
    one_error(&log_of(0, &lie, mm::LIAR), &["MM: ReturnBufferSize is"])?;
    one_error(&log_of(77, b"x", mm::ECHO), &["1 bytes", "there are: 0, 1"])
}

fn failed_c_call_is_one_error_line(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            produced: Some(0),
            ..Setup::default()
        },
    )?;
    let header = Header::new(HeaderFormat::V1, super::refusals::NO_HANDLER, 1);
    let bytes = header.map(|header| [header.encode().as_ref(), b"x"].concat());
    let call = CCall {
        protocol: CProtocol::Two,
        bytes,
        comm_size: Some(25),
    };
    let mut reply = None;
    let log = lab.with_log(LogLevel::Debug, &mut || reply = client.call_c(&call));
    ensure!(reply.is_some_and(|reply| reply.status.is_error()), "it succeeded");
    one_error(&log, &["1 bytes to ", "MM returned EFI_"])
}

fn failed_entry_is_one_error_line(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.switch_smis(false);
    let log = lab.with_log(LogLevel::Debug, &mut || {
        let _ = client.communicate(0, b"x", mm::ECHO);
    });
    client.switch_smis(true);
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("ERROR")).collect();
    ensure!(errors.len() == 1, "{} lines of errors: {log}", errors.len());
    ensure!(log.contains("SMIs are off"), "{log}");
    Ok(())
}

fn printing_shows_no_message_bytes(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let (text, _) = look_during(&client, SECRET, mm::ECHO, |client| client.describe());
    let text = text.unwrap_or_default();
    ensure!(
        text.contains("in_use: true"),
        "no comm buffer is in use in {text}"
    );
    no_secret_in(&text)
}
