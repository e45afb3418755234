//! The platform's MMI ports and ACPI registers.

use core::fmt;

/// How an MMI port is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MmiPort {
    /// An x86 I/O port, such as 0xB2 (command) and 0xB3 (data) on Intel chipsets.
    Smi(u16),
    /// The function identifier of an AArch64 secure monitor call. Which call is made depends on the
    /// machine:
    ///
    /// | identifier | meaning |
    /// |---|---|
    /// | 0xC400_0041, 0x8400_0041 (MM_COMMUNICATE) | FF-A if FFA_VERSION returns 1.2 or later, else SPM_MM |
    /// | 0xC400_006F, 0xC400_008D (FFA_MSG_SEND_DIRECT_REQ, _REQ2) | FF-A only; which of the two requests is sent depends on what the MM partition takes |
    Smc(u32),
}

impl MmiPort {
    /// The instruction's name in `Debug` and in `Display`, and the value with its digits.
    fn parts(self) -> (&'static str, &'static str, u32, usize) {
        match self {
            Self::Smi(port) => ("Smi", "SMI", port.into(), 4),
            Self::Smc(function) => ("Smc", "SMC", function, 8),
        }
    }
}

impl fmt::Debug for MmiPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _, value, digits) = self.parts();
        write!(f, "MmiPort::{name}(0x{value:0digits$X})")
    }
}

impl fmt::Display for MmiPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name, value, digits) = self.parts();
        write!(f, "{name}(0x{value:0digits$X})")
    }
}

/// Intel's PMBASE, the base of the ACPI registers among which SMI_EN is. Zero means that the
/// platform gives none.
///
/// A value is a promise of the platform: SMI_EN is at +0x30, and is read and possibly written
/// there. On a chipset with another layout (AMD's FCH; Intel's Apollo Lake has SMI_EN at +0x40)
/// leave it zero, or set [`SmiCheck::Off`](crate::config::SmiCheck::Off).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AcpiBase {
    /// A physical address, mapped one to one, of registers and not of memory.
    Mmio(usize),
    /// An x86 I/O port.
    Io(u16),
}

impl AcpiBase {
    /// The I/O port; zero if the base is memory-mapped.
    #[must_use]
    pub fn get_io_value(&self) -> u16 {
        match *self {
            Self::Io(port) => port,
            Self::Mmio(_) => 0,
        }
    }

    /// The address; zero if the base is an I/O port.
    #[must_use]
    pub fn get_mmio_value(&self) -> usize {
        match *self {
            Self::Mmio(address) => address,
            Self::Io(_) => 0,
        }
    }
}

impl fmt::Debug for AcpiBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mmio(address) => write!(f, "AcpiBase::Mmio({address:#X})"),
            Self::Io(port) => write!(f, "AcpiBase::Io({port:#06X})"),
        }
    }
}

impl fmt::Display for AcpiBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mmio(address) => write!(f, "MMIO({address:#X})"),
            Self::Io(port) => write!(f, "IO({port:#06X})"),
        }
    }
}

impl From<usize> for AcpiBase {
    fn from(address: usize) -> Self {
        Self::Mmio(address)
    }
}

impl From<*const u32> for AcpiBase {
    fn from(register: *const u32) -> Self {
        Self::Mmio(register.expose_provenance())
    }
}

impl From<*const u64> for AcpiBase {
    fn from(register: *const u64) -> Self {
        Self::Mmio(register.expose_provenance())
    }
}

impl From<u16> for AcpiBase {
    fn from(port: u16) -> Self {
        Self::Io(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn ports_and_bases_print_as_existing_logs_show_them() {
        assert_eq!(
            format!("{:?} {0}", MmiPort::Smi(0xff)),
            "MmiPort::Smi(0x00FF) SMI(0x00FF)"
        );
        assert_eq!(
            format!("{:?} {0}", MmiPort::Smc(0x1234_5678)),
            "MmiPort::Smc(0x12345678) SMC(0x12345678)"
        );
        assert_eq!(
            format!("{:?} {0}", AcpiBase::Io(0x1234)),
            "AcpiBase::Io(0x1234) IO(0x1234)"
        );
        assert_eq!(
            format!("{:?} {0}", AcpiBase::Mmio(0)),
            "AcpiBase::Mmio(0x0) MMIO(0x0)"
        );
        assert_eq!(format!("{}", AcpiBase::Io(0x60)), "IO(0x0060)");
    }

    #[test]
    fn a_base_comes_from_pointers_addresses_and_ports() {
        let register = core::ptr::without_provenance::<u32>(0xfed0_0000);
        assert_eq!(AcpiBase::from(register), AcpiBase::Mmio(0xfed0_0000));
        assert_eq!(
            AcpiBase::from(register.cast::<u64>()).get_mmio_value(),
            0xfed0_0000
        );
        assert_eq!(AcpiBase::from(0x600_usize).get_io_value(), 0);
        assert_eq!(AcpiBase::from(0x600_u16).get_io_value(), 0x600);
        assert_eq!(AcpiBase::from(0x600_u16).get_mmio_value(), 0);
    }
}
