//! PCI configuration space, and in it PMBASE of Intel's ICH9 and of what is compatible with it,
//! QEMU's Q35 included.

use crate::ports::Ports;
use thiserror::Error;

/// PCI configuration mechanism #1 (PCI local bus specification 3.0, 3.2.2.3.2): address and data
/// port.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// A register in the configuration space of a device on PCI bus 0.
///
/// Address and data are two ports: code that interrupts an access, and uses them too, breaks it.
/// [`Self::read_undisturbed`] notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciRegister {
    /// What is written to the address port: the dword, with the enable bit.
    dword: u32,
    byte: u8,
}

impl PciRegister {
    /// The register at this offset of a device's function. Device and function are taken modulo 32
    /// and 8.
    #[must_use]
    pub const fn new(device: u8, function: u8, offset: u8) -> Self {
        let [device, function] = [device as u32 & 0x1f, function as u32 & 7];
        Self {
            dword: 1 << 31 | device << 11 | function << 8 | (offset & !3) as u32,
            byte: offset & 3,
        }
    }

    /// Reads the dword that the register is in.
    pub fn read_dword(self, ports: &dyn Ports) -> u32 {
        ports.write_u32(CONFIG_ADDRESS, self.dword);
        ports.read_u32(CONFIG_DATA)
    }

    /// Reads the byte at the register.
    pub fn read_u8(self, ports: &dyn Ports) -> u8 {
        let bytes = self.read_dword(ports).to_le_bytes();
        bytes.get(usize::from(self.byte)).copied().unwrap_or_default()
    }

    /// Writes the byte at the register.
    pub fn write_u8(self, ports: &dyn Ports, value: u8) {
        ports.write_u32(CONFIG_ADDRESS, self.dword);
        ports.write_u8(CONFIG_DATA | u16::from(self.byte), value);
    }

    /// Reads the dword that the register is in. The address is read back, and two reads in a row
    /// must agree.
    ///
    /// # Errors
    ///
    /// [`Ich9Error::Disturbed`] if 16 reads are not enough.
    pub fn read_undisturbed(self, ports: &dyn Ports) -> Result<u32, Ich9Error> {
        let (mut last, mut found) = (None, self.dword);
        for _ in 0..LOOKS {
            let value = self.read_dword(ports);
            found = ports.read_u32(CONFIG_ADDRESS);
            let look = (found == self.dword).then_some(value);
            if look.is_some() && look == last {
                return Ok(value);
            }
            last = look;
        }
        Err(Ich9Error::Disturbed {
            register: self.dword,
            found,
        })
    }
}

/// PMBASE of the LPC bridge 0:1f.0 (Intel ICH9 datasheet, 13.1.13): bits 15:7 are the base, bit 0
/// says that it is in I/O space.
const PMBASE: PciRegister = PciRegister::new(0x1f, 0, 0x40);
const PMBASE_MASK: u32 = 0xff80;
/// ACPI_CNTL: bit 7 says that the registers behind PMBASE are decoded.
const ACPI_CNTL: PciRegister = PciRegister::new(0x1f, 0, 0x44);
const ACPI_EN: u32 = 1 << 7;
/// The value of a register on a bus without a device.
const NOTHING_THERE: u32 = u32::MAX;
/// Number of reads until two in a row were undisturbed and agree.
const LOOKS: u32 = 16;

/// Why the ACPI base cannot be read from the chipset. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ich9Error {
    /// This target has no x86 port instructions that the running code may use.
    #[error(
        "platform: this build has no x86 port I/O to read PMBASE with; in host tests use MmHobConfiguration::with_ports"
    )]
    NoPortIo,
    /// There is no device at 0:1F.0.
    #[error("platform: there is no LPC bridge at PCI 0:1f.0; give the base with AcpiBaseSource::Fixed")]
    NoBridge,
    /// Code that interrupts this uses the same two ports each time.
    #[error(
        "platform: PCI register {register:#x} cannot be read: port 0xcf8 was {found:#x} after each of {LOOKS} reads"
    )]
    Disturbed {
        /// The value that was written to the address port.
        register: u32,
        /// Its value after the last read.
        found: u32,
    },
    /// PMBASE was never programmed.
    #[error(
        "platform: PMBASE (PCI 0:1f.0, register 0x40) is {value:#x}, which is not a base: firmware has not set it, or \
         the chipset keeps it elsewhere (PCHs since Skylake: 0:1f.2); give the base with AcpiBaseSource::Fixed"
    )]
    NotProgrammed {
        /// The register's value.
        value: u32,
    },
    /// The registers behind PMBASE are not decoded.
    #[error("platform: ACPI_CNTL (PCI 0:1f.0, register 0x44) is {value:#x}: ACPI_EN, bit 7, is clear")]
    NotDecoded {
        /// The register's value.
        value: u32,
    },
}

/// Reads PMBASE, which is an I/O port, and checks it. `ports` is `None` in a build without port
/// instructions.
///
/// # Errors
///
/// Each [`Ich9Error`] names the register's value.
pub fn pm_base(ports: Option<&dyn Ports>) -> Result<u16, Ich9Error> {
    let ports = ports.ok_or(Ich9Error::NoPortIo)?;
    // This may interrupt code that is about to read the data port, so the address is restored.
    let before = ports.read_u32(CONFIG_ADDRESS);
    let base = checked_base(ports);
    ports.write_u32(CONFIG_ADDRESS, before);
    base
}

fn checked_base(ports: &dyn Ports) -> Result<u16, Ich9Error> {
    let value = PMBASE.read_undisturbed(ports)?;
    if value == NOTHING_THERE {
        return Err(Ich9Error::NoBridge);
    }
    let base = u16::try_from(value & PMBASE_MASK)
        .ok()
        .filter(|base| *base != 0)
        .ok_or(Ich9Error::NotProgrammed { value })?;
    let control = ACPI_CNTL.read_undisturbed(ports)?;
    if control & ACPI_EN == 0 {
        return Err(Ich9Error::NotDecoded { value: control });
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::vec::Vec;

    struct Bus {
        address: Cell<u32>,
        pm_base: u32,
        acpi_cntl: u32,
        /// At which reads of the data port, counted from 1, an interrupt has left another address.
        interrupts: fn(u32) -> bool,
        reads: Cell<u32>,
    }

    impl Ports for Bus {
        fn write_u8(&self, _: u16, _: u8) {
            panic!("PCI configuration space is reached in 32 bits");
        }
        fn read_u32(&self, port: u16) -> u32 {
            if port == 0xcf8 {
                return self.address.get();
            }
            assert_eq!(port, 0xcfc);
            self.reads.update(|reads| reads + 1);
            if (self.interrupts)(self.reads.get()) {
                self.address.set(0x8000_0000);
            }
            match self.address.get() {
                0x8000_f840 => self.pm_base,
                0x8000_f844 => self.acpi_cntl,
                0x8000_0000 => 0x29c0_8086,
                other => panic!("register {other:#x}"),
            }
        }
        fn write_u32(&self, port: u16, value: u32) {
            assert_eq!(port, 0xcf8);
            self.address.set(value);
        }
        fn read_mmio_u32(&self, _: usize) -> u32 {
            panic!("nothing is memory-mapped");
        }
        fn write_mmio_u32(&self, _: usize, _: u32) {
            panic!("nothing is memory-mapped");
        }
        fn pause(&self) {}
    }

    /// What other code has left in the address port.
    const BEFORE: u32 = 0x8000_1234;

    fn interrupted(pm_base: u32, acpi_cntl: u32, interrupts: fn(u32) -> bool) -> Result<u16, Ich9Error> {
        let bus = Bus {
            address: Cell::new(BEFORE),
            pm_base,
            acpi_cntl,
            interrupts,
            reads: Cell::new(0),
        };
        let base = super::pm_base(Some(&bus));
        assert_eq!(bus.address.get(), BEFORE);
        base
    }

    fn read(pm_base: u32, acpi_cntl: u32) -> Result<u16, Ich9Error> {
        interrupted(pm_base, acpi_cntl, |_| false)
    }

    #[test]
    fn an_interrupt_that_uses_the_ports_is_noticed() {
        for interrupts in [
            |read| read == 1,
            |read| read == 2 || read == 4,
            |read| read < 14,
            |read| read > 2 && read < 10,
        ] {
            assert_eq!(interrupted(0x601, 0x80, interrupts), Ok(0x600));
        }
        assert_eq!(
            interrupted(0x601, 0x80, |_| true),
            Err(Ich9Error::Disturbed {
                register: 0x8000_f840,
                found: 0x8000_0000
            })
        );
    }

    #[test]
    fn a_value_counts_once_two_reads_in_a_row_agree() {
        /// What comes from the data port, one value for each read.
        struct Changing(RefCell<Vec<u32>>);
        impl Ports for Changing {
            fn write_u8(&self, _: u16, _: u8) {
                panic!("PCI configuration space is reached in 32 bits");
            }
            fn read_u32(&self, port: u16) -> u32 {
                if port == 0xcf8 {
                    return 0x8000_f840;
                }
                self.0.borrow_mut().pop().unwrap()
            }
            fn write_u32(&self, _: u16, _: u32) {}
            fn read_mmio_u32(&self, _: usize) -> u32 {
                panic!("nothing is memory-mapped");
            }
            fn write_mmio_u32(&self, _: usize, _: u32) {
                panic!("nothing is memory-mapped");
            }
            fn pause(&self) {}
        }
        let read = |values: &[u32]| {
            let ports = Changing(RefCell::new(values.iter().rev().copied().collect()));
            let value = PMBASE.read_undisturbed(&ports);
            (value, ports.0.take().len())
        };
        assert_eq!(read(&[7, 7, 9]), (Ok(7), 1));
        assert_eq!(read(&[5, 7, 5, 9, 9, 1]), (Ok(9), 1));
        let disturbed = Ich9Error::Disturbed {
            register: 0x8000_f840,
            found: 0x8000_f840,
        };
        let changing: Vec<u32> = (0..17).collect();
        assert_eq!(read(&changing), (Err(disturbed), 1));
    }

    #[test]
    fn the_base_is_read_and_checked() {
        assert_eq!(read(0x0601, 0x80), Ok(0x600));
        assert_eq!(read(0xb001, 0xa0), Ok(0xb000));
        assert_eq!(read(1, 0x80), Err(Ich9Error::NotProgrammed { value: 1 }));
        assert_eq!(read(0x601, 0), Err(Ich9Error::NotDecoded { value: 0 }));
        assert_eq!(read(u32::MAX, u32::MAX), Err(Ich9Error::NoBridge));
        assert_eq!(super::pm_base(None), Err(Ich9Error::NoPortIo));
    }
    #[test]
    fn a_byte_of_a_register_is_selected_by_the_data_port() {
        #[derive(Default)]
        struct Recorder(RefCell<Vec<(u16, u32)>>);
        impl Ports for Recorder {
            fn write_u8(&self, port: u16, value: u8) {
                self.0.borrow_mut().push((port, value.into()));
            }
            fn read_u32(&self, _: u16) -> u32 {
                0x4433_2211
            }
            fn write_u32(&self, port: u16, value: u32) {
                self.0.borrow_mut().push((port, value));
            }
            fn read_mmio_u32(&self, _: usize) -> u32 {
                panic!("nothing is memory-mapped");
            }
            fn write_mmio_u32(&self, _: usize, _: u32) {
                panic!("nothing is memory-mapped");
            }
            fn pause(&self) {}
        }
        let ports = Recorder::default();
        let smram = PciRegister::new(0, 0, 0x9d);
        assert_eq!(smram.read_u8(&ports), 0x22);
        smram.write_u8(&ports, 0x1a);
        let select = (0xcf8, 0x8000_009c);
        assert_eq!(ports.0.take(), [select, select, (0xcfd, 0x1a)]);
        assert_eq!(PciRegister::new(0x1f, 0, 0xa0).read_u8(&ports), 0x11);
        assert_eq!(ports.0.take(), [(0xcf8, 0x8000_f8a0)]);
    }
}
