//! `mm_trace`: reads the messages between a boot and its Management Mode, decodes them, and draws
//! them.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use mm_trace::calls::{Event, Sink};
use mm_trace::guids;
use mm_trace::page::{self, Page};
use mm_trace::read::{self, Format};
use mm_trace::transcript::Transcript;
use mm_wire::Guid;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Decodes and draws the messages between a boot and its Management Mode (MM).
///
/// Reads serial logs with the lines of patina_mm (levels debug and trace), QEMU's log of interrupts
/// (-d int), mm_doctor's file, and dumps of comm buffers, status mailboxes and messages, as bytes
/// or as xxd, hexdump -C, the UEFI Shell's dmem or QEMU's xp print them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  mm_trace serial.log                        the calls of a boot, decoded
  mm_trace serial.log --html trace.html      the same as a page with a timeline
  mm_trace int.log                           QEMU's -d int,trace:serial_write -D int.log: SMIs between the lines
  mm_trace buffer.bin --mailbox mailbox.bin  a dump of a comm buffer, with its status mailbox
  mm_trace message.hex --as message --guid 'variable service'
  mm_trace mm.json                           the file that mm_doctor wrote with -o

The exit status is 0 if all was read, 1 if something is damaged or cannot be read."
)]
struct Options {
    /// The files to read; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the files are. Without this, mm_trace guesses by their first bytes.
    #[arg(long = "as", value_name = "KIND")]
    kind: Option<Kind>,
    /// The status mailbox that goes with a comm buffer.
    #[arg(long, value_name = "FILE")]
    mailbox: Option<PathBuf>,
    /// Only calls to this handler: its GUID, or a name that mm_trace knows.
    #[arg(long, value_name = "GUID", value_parser = recipient)]
    guid: Option<Guid>,
    /// Also write a page for a browser.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How many calls the page has at most.
    #[arg(long, value_name = "NUMBER", default_value_t = page::CALLS)]
    page_calls: usize,
    /// Print no transcript.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A serial log.
    Log,
    /// QEMU's log of interrupts.
    Qemu,
    /// A comm buffer.
    CommBuffer,
    /// A status mailbox.
    Mailbox,
    /// The file that mm_doctor writes.
    Doctor,
    /// A message to, or from, the handler that --guid names.
    Message,
}

/// A GUID, or the name of one.
fn recipient(text: &str) -> Result<Guid, String> {
    if let Ok(guid) = text.parse() {
        return Ok(guid);
    }
    let known = guids::KNOWN
        .iter()
        .find(|known| known.name.eq_ignore_ascii_case(text));
    known.map(|known| known.guid).ok_or_else(|| {
        let names: Vec<&str> = guids::KNOWN.iter().map(|known| known.name).collect();
        format!("neither a GUID nor one of: {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(damaged) => {
            eprintln!("error: {damaged} damaged lines, see above");
            ExitCode::FAILURE
        }
        // The reader of a pipe has closed it, which is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The output, whose reader may close it.
struct Output<W> {
    to: W,
    /// Whether that is not an error.
    goes_on: bool,
}

impl<W> Output<W> {
    fn or<T>(&self, result: io::Result<T>, otherwise: T) -> io::Result<T> {
        match result {
            Err(error) if self.goes_on && error.kind() == io::ErrorKind::BrokenPipe => Ok(otherwise),
            result => result,
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.to.write(bytes);
        self.or(result, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.to.flush();
        self.or(result, ())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns how many lines are damaged.
fn run(options: &Options) -> Result<u64> {
    let format = match options.kind {
        None => None,
        Some(Kind::Log) => Some(Format::Log),
        Some(Kind::Qemu) => Some(Format::Qemu),
        Some(Kind::CommBuffer) => Some(Format::CommBuffer),
        Some(Kind::Mailbox) => Some(Format::Mailbox),
        Some(Kind::Doctor) => Some(Format::Doctor),
        Some(Kind::Message) => match options.guid {
            Some(guid) => Some(Format::Message(guid)),
            None => bail!("a message does not contain its handler's GUID: add --guid"),
        },
    };
    let mailbox = options.mailbox.as_deref().map(read_mailbox).transpose()?;
    let text: Box<dyn Write> = if options.quiet {
        Box::new(io::sink())
    } else {
        Box::new(BufWriter::new(Output {
            to: io::stdout().lock(),
            // The page has to be complete also if nothing reads the transcript any more.
            goes_on: options.html.is_some(),
        }))
    };
    let mut transcript = Transcript::new(text, options.guid);
    let mut page = match &options.html {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
            Some(Page::new(BufWriter::new(file), options.guid, options.page_calls)?)
        }
        None => None,
    };
    let mut damaged: u64 = 0;
    let mut first_damage = None;
    for path in &options.files {
        let name = path.display().to_string();
        let mut sink = |event: &Event<'_>| {
            if let Event::Damaged(damage) = event {
                first_damage.get_or_insert_with(|| format!("{name}: {damage}"));
            }
            transcript.event(event)?;
            page.as_mut().map_or(Ok(()), |page| page.event(event))
        };
        let read = |input: &mut dyn io::BufRead, sink: &mut dyn Sink| {
            read::read(input, &name, format, mailbox.as_deref(), sink)
        };
        let summary = if path.as_os_str() == "-" {
            read(&mut io::stdin().lock(), &mut sink)?
        } else {
            let cannot = || format!("{name} cannot be read");
            let file = File::open(path).with_context(cannot)?;
            ensure!(
                !file.metadata().with_context(cannot)?.is_dir(),
                "{name} is a directory"
            );
            read(&mut BufReader::with_capacity(1 << 16, file), &mut sink)?
        };
        damaged = damaged.saturating_add(summary.damaged);
    }
    transcript.finish()?.flush()?;
    if let Some(page) = page {
        page.finish()?;
    }
    if let Some(first) = first_damage {
        eprintln!("{first}");
    }
    Ok(damaged)
}

fn read_mailbox(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(1 << 20).read_to_end(&mut bytes))
        .with_context(|| format!("{} cannot be read", path.display()))?;
    read::in_bytes(bytes).with_context(|| path.display().to_string())
}
