//! The serial port, for lines of text and for the `log` crate.

use crate::devices::{self, Uart};
use core::fmt;
use patina::debug::log::{Format, SerialLogger};
use patina::peripheral::serial::SerialIO;
use patina::peripheral::serial::shared::SharedSerial;

static SERIAL: SharedSerial<Uart> = SharedSerial::new(devices::uart());

/// Text for the serial port; a line end becomes CR LF.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let written = match line.strip_suffix('\n') {
                Some(line) => SERIAL.write(line.as_bytes()).and_then(|()| SERIAL.write(b"\r\n")),
                None => SERIAL.write(line.as_bytes()),
            };
            // Only a notification in the middle of a line can find the port taken.
            written.map_err(|_busy| fmt::Error)?;
        }
        Ok(())
    }
}

impl SerialIO for Console {
    fn init(&mut self) {
        // The firmware has set the port up.
    }

    fn write(&mut self, bytes: &[u8]) {
        // A log line from a notification in the middle of another one is lost.
        let _ = SERIAL.write(bytes);
    }

    fn read(&mut self) -> u8 {
        loop {
            if let Some(byte) = self.try_read() {
                return byte;
            }
        }
    }

    fn try_read(&mut self) -> Option<u8> {
        SERIAL.try_read().ok().flatten()
    }
}

static LOGGER: SerialLogger<'static, Console> =
    SerialLogger::new(Format::Standard, &[], log::LevelFilter::Trace, Console);

/// Sends the `log` crate's records up to `level` to the serial port.
pub fn log_to_serial(level: log::LevelFilter) {
    log::set_max_level(level);
    // An error says that a logger is installed already: this one, from an earlier call.
    let _ = log::set_logger(&LOGGER);
}
