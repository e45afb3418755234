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

/// Why the chipset names no ACPI base. The platform's fault.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ich9Error {
    /// This target has no x86 port instructions that the running code may use.
    #[error("platform: there is no x86 port I/O on this target to read PMBASE with")]
    NoPortIo,
    /// No device answers at 0:1F.0.
    #[error("platform: no LPC bridge answers at PCI 0:1f.0")]
    NoBridge,
    /// PMBASE was never programmed.
    #[error("platform: PMBASE (PCI 0:1f.0, register 0x40) is {value:#x}, which names no base")]
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
    let read = |register| {
        ports.write_u32(CONFIG_ADDRESS, register);
        ports.read_u32(CONFIG_DATA)
    };
    let value = read(PMBASE);
    if value == NOTHING_THERE {
        return Err(Ich9Error::NoBridge);
    }
    let base = u16::try_from(value & PMBASE_MASK)
        .ok()
        .filter(|base| *base != 0)
        .ok_or(Ich9Error::NotProgrammed { value })?;
    let control = read(ACPI_CNTL);
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
    }

    impl Ports for Bus {
        fn write_u8(&self, _: u16, _: u8) {
            panic!("PCI configuration space is reached in 32 bits");
        }
        fn read_u32(&self, port: u16) -> u32 {
            assert_eq!(port, 0xcfc);
            match self.address.get() {
                0x8000_f840 => self.pm_base,
                0x8000_f844 => self.acpi_cntl,
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

    fn read(pm_base: u32, acpi_cntl: u32) -> Result<u16, Ich9Error> {
        let bus = Bus {
            address: Cell::new(0),
            pm_base,
            acpi_cntl,
        };
        super::pm_base(Some(&bus))
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
