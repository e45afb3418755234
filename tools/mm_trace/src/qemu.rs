//! QEMU's log of interrupts: `-d int -D FILE`, with `trace:serial_write` the serial line, too.
//!
//! | line | from |
//! |---|---|
//! | `SMM: enter`, then the registers | `target/i386/tcg/sysemu/smm_helper.c`, `do_smm_enter` |
//! | `SMM: after RSM`, then the registers | the same, `helper_rsm` |
//! | `n: v=0e e=0000 i=0 cpl=0 IP=… pc=… SP=… CR2=…` | `target/i386/tcg/seg_helper.c`, `do_interrupt_all` |
//! | `Taking exception 13 [Secure Monitor Call] on CPU 0`, `...from EL1 to EL3` | `target/arm/helper.c`, `arm_cpu_do_interrupt` |
//! | `Exception return from AArch64 EL3 to AArch64 EL1 PC 0x…` | `target/arm/helper-a64.c`, `exception_return` |
//! | `serial_write write addr 0x00 val 0x41` | `hw/char/trace-events` |

use crate::calls::{Calls, Sink};
use crate::log::Level;
use std::io;

/// Bytes of a serial line that are kept.
const MAX_SERIAL_LINE: usize = 16 * 1024;

/// A line of the guest's serial port.
pub(crate) type SerialLine<'a> = &'a mut dyn FnMut(u64, &[u8], &mut Calls, &mut dyn Sink) -> io::Result<()>;

/// The state of the reader of QEMU's log.
#[derive(Debug, Default)]
pub struct Interrupts {
    /// An SMI or exception whose registers were not read yet.
    pending: Option<Pending>,
    in_mm: bool,
    /// How often MM was entered.
    pub entered: u64,
    serial: Vec<u8>,
}

#[derive(Debug)]
enum Pending {
    Smi(u64),
    Exception(u64, String),
}

impl Interrupts {
    /// Takes a line.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::event`].
    pub(crate) fn take(
        &mut self,
        number: u64,
        line: &[u8],
        calls: &mut Calls,
        sink: &mut dyn Sink,
        serial_line: SerialLine<'_>,
    ) -> io::Result<()> {
        // Most lines are registers.
        if (!matches!(line, [b'R', b'I' | b'A', ..] | [b'E', b'I' | b'A', ..]) || self.pending.is_none())
            && let Some(byte) = serial_byte(line)
        {
            return match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.serial);
                    let line = line.strip_suffix(b"\r").unwrap_or(&line);
                    serial_line(number, line, calls, sink)
                }
                byte => {
                    if self.serial.len() < MAX_SERIAL_LINE {
                        self.serial.push(byte);
                    }
                    Ok(())
                }
            };
        }
        let text = String::from_utf8_lossy(line);
        if text.starts_with("SMM: enter") {
            self.flush(None, calls, sink)?;
            self.pending = Some(Pending::Smi(number));
            self.in_mm = true;
        } else if text.starts_with("SMM: after RSM") {
            self.flush(None, calls, sink)?;
            self.in_mm = false;
        } else if let Some(rip) = register(&text, "RIP=").or_else(|| register(&text, "EIP=")) {
            if matches!(self.pending, Some(Pending::Smi(_))) {
                self.flush(Some(rip), calls, sink)?;
            }
        } else if let Some(vector) = vector(&text) {
            self.flush(None, calls, sink)?;
            if vector < 0x20 {
                let place = if self.in_mm { "inside MM" } else { "outside MM" };
                let level = if self.in_mm { Level::Error } else { Level::Warn };
                let pc = register(&text, "pc=").unwrap_or("?");
                let cr2 = register(&text, "CR2=")
                    .map(|cr2| format!(", CR2 {cr2}"))
                    .unwrap_or_default();
                let words = format!("exception {vector:#04x} {place} at {pc}{cr2}");
                calls.taken(number, level, words, sink)?;
            }
        } else if text.starts_with("Triple fault") {
            calls.taken(
                number,
                Level::Error,
                "triple fault: the processor was reset".to_owned(),
                sink,
            )?;
        } else if let Some(rest) = text.strip_prefix("Taking exception ") {
            self.flush(None, calls, sink)?;
            let name = rest.split(['[', ']']).nth(1).unwrap_or(rest);
            self.pending = Some(Pending::Exception(number, name.to_owned()));
        } else if let Some(levels) = text.strip_prefix("...from ") {
            if let Some(Pending::Exception(at, name)) = self.pending.take()
                && let Some((from, "EL3")) = levels.trim_end().split_once(" to ")
            {
                let level = if from == "EL3" { Level::Error } else { Level::Trace };
                self.entered = self.entered.saturating_add(1);
                self.in_mm = true;
                calls.taken(at, level, format!("taken to EL3 from {from}: {name}"), sink)?;
            }
        } else if text.starts_with("Exception return from AArch64 EL3 ") {
            self.in_mm = false;
        }
        Ok(())
    }

    /// Reports the pending SMI or exception, whose place is known now.
    fn flush(&mut self, rip: Option<&str>, calls: &mut Calls, sink: &mut dyn Sink) -> io::Result<()> {
        if let Some(Pending::Smi(line)) = self.pending.take() {
            self.entered = self.entered.saturating_add(1);
            let place = rip.map(|rip| format!(" at {rip}")).unwrap_or_default();
            calls.taken(line, Level::Trace, format!("SMI taken{place}"), sink)?;
        }
        Ok(())
    }

    /// Reports what is still pending at the end of the log.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::event`].
    pub fn finish(&mut self, number: u64, calls: &mut Calls, sink: &mut dyn Sink) -> io::Result<()> {
        self.flush(None, calls, sink)?;
        if self.in_mm {
            calls.taken(number, Level::Error, "the log ends inside MM".to_owned(), sink)?;
        }
        Ok(())
    }
}

/// The byte that the guest wrote to its serial port.
fn serial_byte(line: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(line).ok()?;
    let (_, value) = text.split_once("serial_write write addr 0x00 val 0x")?;
    u8::from_str_radix(value.trim(), 16).ok()
}

/// The digits behind a register's name, at the start of a line or behind a space.
fn register<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.find(name)?;
    let before = text.get(..at)?;
    if !(before.is_empty() || before.ends_with(' ')) {
        return None;
    }
    text.get(at.saturating_add(name.len())..)?
        .split_whitespace()
        .next()
}

/// The vector in a line such as `     0: v=20 e=0000 …`.
fn vector(text: &str) -> Option<u8> {
    let (number, rest) = text.trim_start().split_once(": v=")?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    u8::from_str_radix(rest.get(..2)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Event;

    fn events(log: &str) -> (Vec<String>, u64) {
        let mut interrupts = Interrupts::default();
        let mut calls = Calls::default();
        let mut seen = Vec::new();
        let mut serial = Vec::new();
        let mut sink = |event: &Event<'_>| {
            if let Event::Mmi(note, _) = event {
                seen.push(format!("{} {:?}: {}", note.at.line, note.level, note.words));
            }
            Ok(())
        };
        let mut on_serial = |number: u64, line: &[u8], _: &mut Calls, _: &mut dyn Sink| {
            serial.push(format!("{number} serial: {}", String::from_utf8_lossy(line)));
            Ok(())
        };
        let mut last = 0;
        for (number, line) in (1..).zip(log.lines()) {
            last = number;
            interrupts
                .take(number, line.as_bytes(), &mut calls, &mut sink, &mut on_serial)
                .unwrap();
        }
        interrupts.finish(last, &mut calls, &mut sink).unwrap();
        seen.extend(serial);
        (seen, interrupts.entered)
    }

    #[test]
    fn smis_of_x86_have_the_place_that_they_interrupted() {
        let (seen, entered) = events(
            "SMM: enter\nRAX=01 RBX=02\nRIP=000000000e0c4d5f RFL=00000246\nEFER=0\nSMM: after RSM\nRIP=1\n\
             Servicing hardware INT=0x20\n     0: v=20 e=0000 i=0 cpl=0 IP=0038:0e pc=0e SP=0030:0e\n\
             SMM: enter\n     1: v=0e e=0002 i=0 cpl=0 IP=0038:0e pc=0000000007f00010 SP=0:0 CR2=0000000000001000\n\
             Triple fault",
        );
        assert_eq!(
            seen,
            [
                "1 Trace: SMI taken at 000000000e0c4d5f",
                "9 Trace: SMI taken",
                "10 Error: exception 0x0e inside MM at 0000000007f00010, CR2 0000000000001000",
                "11 Error: triple fault: the processor was reset",
                "11 Error: the log ends inside MM",
            ]
        );
        assert_eq!(entered, 2);
    }

    #[test]
    fn secure_monitor_calls_of_arm_are_entries_too() {
        let (seen, entered) = events(
            "Taking exception 13 [Secure Monitor Call] on CPU 0\n...from EL1 to EL3\n...with ESR 0x17/0x5e000000\n\
             Taking exception 4 [Data Abort] on CPU 0\n...from EL3 to EL3\n\
             Exception return from AArch64 EL3 to AArch64 EL1 PC 0x40100000\n\
             Taking exception 5 [IRQ] on CPU 0\n...from EL1 to EL1",
        );
        assert_eq!(
            seen,
            [
                "1 Trace: taken to EL3 from EL1: Secure Monitor Call",
                "4 Error: taken to EL3 from EL3: Data Abort",
            ]
        );
        assert_eq!(entered, 2);
    }

    #[test]
    fn the_serial_line_is_put_together() {
        let log: String = "hi\r\nyou\n"
            .bytes()
            .map(|byte| format!("serial_write write addr 0x00 val 0x{byte:02x}\n"))
            .collect();
        let (seen, _) = events(&log);
        assert_eq!(seen, ["4 serial: hi", "8 serial: you"]);
    }
}
