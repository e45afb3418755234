//! Looks at the machine, prints, writes.

mod cpu;
mod firmware;
mod probe;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use firmware::Physical;
use mm_doctor::facts::{Buffer, FORMAT, Facts, Mailbox, NAMED};
use mm_doctor::findings::{self, Level};
use mm_doctor::options::{self, Options};
use mm_doctor::{Memory as _, acpi, hobs, paste, report};
use mm_wire::MailboxImage;
use uefi::proto::shell_params::ShellParameters;
use uefi::runtime::{self, ResetType};
use uefi::{CString16, Status, boot, entry, println, system};

/// Lines of a page, with one for the prompt.
const PAGE: usize = 24;

/// The file beside the application that has its command line, for firmware that starts it without a
/// shell.
const WORDS_FILE: &str = "\\EFI\\BOOT\\DOCTOR.TXT";

#[entry]
fn main() -> Status {
    let words = words();
    let options = match options::parse(words.iter().map(String::as_str)) {
        Ok(options) => options,
        Err(why) => {
            println!("mm_doctor: {why}; see mm_doctor -h");
            return Status::INVALID_PARAMETER;
        }
    };
    if options.help {
        show(options::USAGE, options.pages);
        return Status::SUCCESS;
    }
    let status = report(&options);
    if options.off {
        runtime::reset(ResetType::SHUTDOWN, status, None);
    }
    status
}

/// Looks, prints, writes. Returns the exit status.
fn report(options: &Options) -> Status {
    let facts = look(options);
    let findings = findings::judge(&facts);
    let rust = paste::rust(&facts);
    let pasted = rust.as_deref().map_err(|why| *why);
    let json = report::json(&facts, &findings, pasted).unwrap_or_default();
    let text = if options.json {
        json.clone()
    } else {
        report::text(&facts, &findings, pasted)
    };
    show(&text, options.pages);
    if let Some(file) = &options.file {
        match firmware::write_file(file, json.as_bytes()) {
            Ok(()) => println!("written: {file}"),
            Err(why) => {
                println!("{file} cannot be written: {why}");
                return Status::ABORTED;
            }
        }
    }
    match findings::worst(&findings) {
        Level::Broken => Status::DEVICE_ERROR,
        Level::Ok | Level::Look => Status::SUCCESS,
    }
}

/// The command line's words, without the program's name.
fn words() -> Vec<String> {
    let image = boot::image_handle();
    if let Ok(shell) = boot::open_protocol_exclusive::<ShellParameters>(image) {
        return shell.args().skip(1).map(ToString::to_string).collect();
    }
    let file = firmware::read_file(WORDS_FILE).unwrap_or_default();
    let text = String::from_utf8(file).unwrap_or_default();
    text.split_whitespace().map(String::from).collect()
}

fn look(options: &Options) -> Facts {
    let memory = Physical::new(cpu::paging());
    let mut facts = Facts {
        tool: "mm_doctor",
        format: FORMAT,
        arch: cpu::ARCH,
        firmware: alloc::format!(
            "{} {:#x}, UEFI {}",
            system::firmware_vendor(),
            system::firmware_revision(),
            system::uefi_revision()
        ),
        paging: memory.paging(),
        ..Facts::default()
    };
    if let Some(list) = firmware::configuration_table(hobs::HOB_LIST) {
        hobs::gather(&memory, list, &mut facts);
    }
    if let Some(table) = firmware::configuration_table(hobs::COMM_REGION_TABLE) {
        hobs::region_table(&memory, table, &mut facts);
    }
    facts.buffers.extend(options.regions.iter().map(|region| Buffer {
        source: NAMED.to_string(),
        region: Some(*region),
        ..Buffer::default()
    }));
    for buffer in &mut facts.buffers {
        describe(&memory, buffer);
    }
    for region in &mut facts.regions {
        region.memory = Some(memory.mapped(region.range.start, region.range.len));
    }
    if let Some(rsdp) = firmware::configuration_table(acpi::RSDP) {
        facts.acpi = acpi::gather(&memory, rsdp);
    }
    facts.protocols = firmware::protocols(&memory);
    cpu::look(&mut facts, &memory);
    if options.probe {
        facts.probes = probe::ask(&facts, options.probe_all);
    }
    facts
}

/// Adds what the memory map and the mailbox say about the buffer.
fn describe(memory: &Physical, buffer: &mut Buffer) {
    buffer.memory = buffer
        .region
        .map(|region| memory.mapped(region.start, region.len));
    let Some(mailbox) = buffer.mailbox else {
        return;
    };
    buffer.mailbox_memory = Some(memory.mapped(mailbox, mm_wire::mailbox::MAILBOX_LEN as u64));
    let image: Option<MailboxImage> = memory.value(mailbox);
    buffer.state = image.map(|image| Mailbox {
        pending: image.is_pending(),
        status: image.return_status().0,
        size: image.return_buffer_size(),
    });
}

/// Prints, and waits for a key after each page if that is wanted.
fn show(text: &str, pages: bool) {
    for (number, line) in (1_usize..).zip(text.lines()) {
        println!("{line}");
        if pages && number.is_multiple_of(PAGE) {
            println!("-- any key --");
            firmware::wait_for_key();
        }
    }
}

/// A path as the firmware takes it.
fn path(text: &str) -> Result<CString16, String> {
    // The text behind a drive's name is a path on the application's own volume.
    let path = text.rsplit(':').next().unwrap_or(text).replace('/', "\\");
    CString16::try_from(path.as_str()).map_err(|error| alloc::format!("{error:?}"))
}
