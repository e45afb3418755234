//! PMBASE of Intel's ICH9 and of what is compatible with it, QEMU's Q35 included (Intel ICH9 datasheet, 13.1.13).

use mm_comm::Ports;
use thiserror::Error;

/// PCI configuration mechanism #1 (PCI local bus specification 3.0, 3.2.2.3.2): address and data port.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// The LPC bridge, bus 0, device 0x1F, function 0, with the enable bit of mechanism #1.
const LPC_BRIDGE: u32 = 0x8000_0000 | (0x1f << 11);
/// PMBASE: bits 15:7 are the base, bit 0 says that it is in I/O space.
const PMBASE: u32 = LPC_BRIDGE | 0x40;
const PMBASE_MASK: u32 = 0xff80;
/// ACPI_CNTL: bit 7 says that the registers behind PMBASE are decoded.
const ACPI_CNTL: u32 = LPC_BRIDGE | 0x44;
const ACPI_EN: u32 = 1 << 7;
/// What a bus without a device returns.
const NOTHING_THERE: u32 = u32::MAX;
/// How often a register is read until two looks in a row were undisturbed and agree.
const LOOKS: u32 = 16;

/// Why the chipset names no ACPI base. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ich9Error {
    /// This target has no x86 port instructions that the running code may use.
    #[error(
        "platform: this build has no x86 port I/O to read PMBASE with; in host tests use MmHobConfiguration::with_ports"
    )]
    NoPortIo,
    /// No device answers at 0:1F.0.
    #[error("platform: no LPC bridge answers at PCI 0:1f.0; give the base with AcpiBaseSource::Fixed")]
    NoBridge,
    /// Somebody who interrupts this code uses the same two ports, again and again.
    #[error(
        "platform: PCI register {register:#x} cannot be read: port 0xcf8 was {found:#x} after each of {LOOKS} looks"
    )]
    Disturbed {
        /// What was written to the address port.
        register: u32,
        /// What stood there at the end.
        found: u32,
    },
    /// PMBASE was never programmed.
    #[error(
        "platform: PMBASE (PCI 0:1f.0, register 0x40) is {value:#x}, which names no base: firmware has not set it, or the \
         chipset keeps it elsewhere (PCHs since Skylake: 0:1f.2); give the base with AcpiBaseSource::Fixed"
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

/// Reads and checks PMBASE. An I/O port.
///
/// # Errors
///
/// Each [`Ich9Error`] names the register's value.
pub(super) fn pm_base(ports: Option<&dyn Ports>) -> Result<u16, Ich9Error> {
    let ports = ports.ok_or(Ich9Error::NoPortIo)?;
    // Code that this interrupts may be about to read the data port.
    let before = ports.read_u32(CONFIG_ADDRESS);
    let base = checked_base(|register| read(ports, register));
    ports.write_u32(CONFIG_ADDRESS, before);
    base
}

/// Reads a register. Address and data are two ports, and whatever interrupts this between them may use them too: so the
/// address is read back, and two looks have to agree.
fn read(ports: &dyn Ports, register: u32) -> Result<u32, Ich9Error> {
    let (mut last, mut found) = (None, register);
    for _ in 0..LOOKS {
        ports.write_u32(CONFIG_ADDRESS, register);
        let value = ports.read_u32(CONFIG_DATA);
        found = ports.read_u32(CONFIG_ADDRESS);
        let look = (found == register).then_some(value);
        if look.is_some() && look == last {
            return Ok(value);
        }
        last = look;
    }
    Err(Ich9Error::Disturbed { register, found })
}

fn checked_base(read: impl Fn(u32) -> Result<u32, Ich9Error>) -> Result<u16, Ich9Error> {
    let value = read(PMBASE)?;
    if value == NOTHING_THERE {
        return Err(Ich9Error::NoBridge);
    }
    let base = u16::try_from(value & PMBASE_MASK)
        .ok()
        .filter(|base| *base != 0)
        .ok_or(Ich9Error::NotProgrammed { value })?;
    let control = read(ACPI_CNTL)?;
    if control & ACPI_EN == 0 {
        return Err(Ich9Error::NotDecoded { value: control });
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

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

    /// What somebody else has left in the address port.
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
    fn the_base_is_read_and_checked() {
        assert_eq!(read(0x0601, 0x80), Ok(0x600));
        assert_eq!(read(0xb001, 0xa0), Ok(0xb000));
        assert_eq!(read(1, 0x80), Err(Ich9Error::NotProgrammed { value: 1 }));
        assert_eq!(read(0x601, 0), Err(Ich9Error::NotDecoded { value: 0 }));
        assert_eq!(read(u32::MAX, u32::MAX), Err(Ich9Error::NoBridge));
        assert_eq!(super::pm_base(None), Err(Ich9Error::NoPortIo));
    }
}
