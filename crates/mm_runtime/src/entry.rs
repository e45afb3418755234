//! How a runtime driver enters MM.

#[cfg(any(target_arch = "aarch64", unix, windows))]
use core::fmt;
#[cfg(any(target_arch = "aarch64", unix, windows))]
use mm_comm::smc::{Conduit, Connection, SecureMm};
use mm_comm::{PortTrigger, Ports, SmiEnableRegister};
use mm_wire::EfiStatus;

/// How far MM is when `enter` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// An MMI was raised; the mailbox shows when MM took the request.
    Raised,
    /// MM ran and has returned.
    Returned,
}

/// Enters MM.
///
/// It lives in the driver's memory, which moves to another address with `SetVirtualAddressMap`. So
/// it must not hold references, `dyn` objects, or pointers that [`Self::convert`] does not convert.
pub trait Entry {
    /// Whether MM takes a header without a message: edk2's MM cores for x86 do, the one for Arm
    /// does not.
    const TAKES_EMPTY_MESSAGES: bool = true;

    /// Enters MM with the request in the comm buffer at this physical address.
    ///
    /// # Errors
    ///
    /// The status for the caller, if MM was not entered or refused; the reason goes to `sink`.
    fn enter(&self, comm_buffer: u64, sink: &dyn crate::Sink) -> Result<Progress, EfiStatus>;

    /// Lets some time pass, in which a raised MMI is taken.
    fn pause(&self) {
        core::hint::spin_loop();
    }

    /// The address of a memory-mapped register, if one is used.
    fn register(&self) -> Option<usize> {
        None
    }

    /// Converts every address that is kept; `false` if one cannot be converted. The new addresses
    /// are not mapped yet: they must not be used here.
    fn convert(&mut self, convert: &mut dyn FnMut(usize) -> Option<usize>) -> bool {
        let _ = convert;
        true
    }
}

/// x86 ports.
#[derive(Clone, Copy, Debug)]
pub struct PortEntry<P> {
    /// The processor's I/O.
    pub ports: P,
    /// The ports, and SMI_EN.
    pub trigger: PortTrigger,
    /// What is written to the command port.
    pub command: u8,
    /// What is written to the data port.
    pub data: u8,
}

impl<P: Ports> Entry for PortEntry<P> {
    fn enter(&self, _: u64, sink: &dyn crate::Sink) -> Result<Progress, EfiStatus> {
        let raised = self.trigger.raise(&self.ports, self.command, self.data);
        raised.map_err(|error| {
            sink.error(format_args!("no MMI was raised: {error}"));
            error.status()
        })?;
        Ok(Progress::Raised)
    }

    fn pause(&self) {
        self.ports.pause();
    }

    fn register(&self) -> Option<usize> {
        match self.trigger.smi_enable {
            Some(SmiEnableRegister::Mmio(address)) => Some(address),
            Some(SmiEnableRegister::Io(_)) | None => None,
        }
    }

    fn convert(&mut self, convert: &mut dyn FnMut(usize) -> Option<usize>) -> bool {
        let Some(address) = self.register() else {
            return true;
        };
        let converted = convert(address);
        // An address that was not converted must not be read any more. The MMI itself does not need
        // memory.
        self.trigger.smi_enable = converted.map(SmiEnableRegister::Mmio);
        converted.is_some()
    }
}

/// Secure monitor calls. Not in x86 firmware.
#[cfg(any(target_arch = "aarch64", unix, windows))]
#[derive(Debug)]
pub struct SecureEntry<C>(Connection<C>);

#[cfg(any(target_arch = "aarch64", unix, windows))]
impl<C> SecureEntry<C> {
    /// Uses a connection that [`mm_comm::smc::connect`] made.
    #[must_use]
    pub const fn new(connection: Connection<C>) -> Self {
        Self(connection)
    }
}

#[cfg(any(target_arch = "aarch64", unix, windows))]
impl<C> fmt::Display for SecureEntry<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(any(target_arch = "aarch64", unix, windows))]
impl<C: Conduit> Entry for SecureEntry<C> {
    const TAKES_EMPTY_MESSAGES: bool = false;

    fn enter(&self, comm_buffer: u64, sink: &dyn crate::Sink) -> Result<Progress, EfiStatus> {
        self.0.communicate(comm_buffer).map_err(|error| {
            sink.error(format_args!("MM did not take the request: {error}"));
            error.status()
        })?;
        Ok(Progress::Returned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;
    use core::cell::Cell;
    use mm_comm::SmiCheck;

    /// A chipset whose SMI_EN is memory-mapped, at an address that changes.
    struct Chipset<'a> {
        smi_en: &'a Cell<usize>,
        mmis: &'a Cell<u32>,
    }

    impl Ports for Chipset<'_> {
        fn write_u8(&self, port: u16, _: u8) {
            self.mmis
                .update(|mmis| if port == 0xb2 { mmis + 1 } else { mmis });
        }
        fn read_u32(&self, _: u16) -> u32 {
            unreachable!()
        }
        fn write_u32(&self, _: u16, _: u32) {
            unreachable!()
        }
        fn read_mmio_u32(&self, address: usize) -> u32 {
            assert_eq!(address, self.smi_en.get(), "a stale address");
            0x21
        }
        fn write_mmio_u32(&self, _: usize, _: u32) {
            unreachable!()
        }
        fn pause(&self) {}
    }

    fn entry<'a>(smi_en: &'a Cell<usize>, mmis: &'a Cell<u32>) -> PortEntry<Chipset<'a>> {
        PortEntry {
            ports: Chipset { smi_en, mmis },
            trigger: PortTrigger {
                command_port: 0xb2,
                data_port: 0xb3,
                smi_enable: SmiEnableRegister::behind_mmio_base(smi_en.get() - 0x30).ok(),
                check: SmiCheck::Require,
            },
            command: 0xff,
            data: 0,
        }
    }

    #[test]
    fn memory_mapped_register_is_read_at_its_converted_address() {
        let (smi_en, mmis) = (Cell::new(0xfed0_0030), Cell::new(0));
        let mut entry = entry(&smi_en, &mmis);
        assert_eq!(entry.register(), Some(0xfed0_0030));
        assert_eq!(entry.enter(0x1000, &Silent), Ok(Progress::Raised));
        assert!(entry.convert(&mut |address| Some(address | 0xffff_0000_0000_0000)));
        smi_en.set(0xffff_0000_fed0_0030);
        assert_eq!(entry.enter(0x1000, &Silent), Ok(Progress::Raised));
        assert_eq!(mmis.get(), 2);
    }

    #[test]
    fn register_that_is_not_mapped_is_not_read_any_more() {
        let (smi_en, mmis) = (Cell::new(0xfed0_0030), Cell::new(0));
        let mut entry = entry(&smi_en, &mmis);
        assert!(!entry.convert(&mut |_| None));
        smi_en.set(0);
        assert_eq!(entry.enter(0x1000, &Silent), Ok(Progress::Raised));
        assert_eq!((entry.register(), mmis.get()), (None, 1));
    }
}
