//! Raising an MMI through the chipset's ports.
//!
//! Data first, then command: the write to the command port (APM_CNT, 0xB2 on Intel chipsets) is what raises the SMI, and
//! the handler reads the data port (APM_STS, 0xB3). edk2's `SmmControl2Dxe` for Q35 writes them in this order.

use crate::error::TriggerError;
use crate::ports::Ports;
use core::fmt;

bitflags::bitflags! {
    /// The bits of SMI_EN that a software SMI needs (Intel ICH9, 13.8.3.8; same place on every later PCH).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SmiEnable: u32 {
        /// GBL_SMI_EN: SMIs are generated at all.
        const GLOBAL = 1 << 0;
        /// APMC_EN: a write to the command port generates one.
        const APMC = 1 << 5;
    }
}

impl fmt::Display for SmiEnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.contains(Self::GLOBAL), self.contains(Self::APMC)) {
            (true, true) => "GBL_SMI_EN and APMC_EN",
            (true, false) => "GBL_SMI_EN",
            (false, true) => "APMC_EN",
            (false, false) => "nothing",
        };
        f.write_str(name)
    }
}

/// How far SMI_EN stands behind the ACPI base.
const SMI_EN_OFFSET: u8 = 0x30;

/// Where SMI_EN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmiEnableRegister {
    /// A 32-bit I/O port.
    Io(u16),
    /// A memory-mapped register.
    Mmio(usize),
}

impl SmiEnableRegister {
    /// SMI_EN behind an ACPI base in I/O space.
    ///
    /// # Errors
    ///
    /// [`TriggerError::NoRegister`] where the port number would wrap.
    pub fn behind_io_base(base: u16) -> Result<Self, TriggerError> {
        base.checked_add(SMI_EN_OFFSET.into())
            .filter(|port| port.is_multiple_of(4))
            .map(Self::Io)
            .ok_or(TriggerError::NoRegister { base: base.into() })
    }

    /// SMI_EN behind a memory-mapped ACPI base.
    ///
    /// # Errors
    ///
    /// [`TriggerError::NoRegister`] where the address would wrap or is not aligned to 4 bytes.
    pub fn behind_mmio_base(base: usize) -> Result<Self, TriggerError> {
        base.checked_add(SMI_EN_OFFSET.into())
            .filter(|address| address.is_multiple_of(4))
            .map(Self::Mmio)
            .ok_or(TriggerError::NoRegister { base })
    }

    fn address(self) -> usize {
        match self {
            Self::Io(port) => port.into(),
            Self::Mmio(address) => address,
        }
    }

    fn read(self, ports: &dyn Ports) -> u32 {
        match self {
            Self::Io(port) => ports.read_u32(port),
            Self::Mmio(address) => ports.read_mmio_u32(address),
        }
    }

    fn write(self, ports: &dyn Ports, value: u32) {
        match self {
            Self::Io(port) => ports.write_u32(port, value),
            Self::Mmio(address) => ports.write_mmio_u32(address, value),
        }
    }
}

/// What to do where SMI_EN says that SMIs are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SmiCheck {
    /// Raise nothing and report it.
    #[default]
    Require,
    /// Switch them on; report it where the chipset refuses.
    ///
    /// This writes 32 bits to the register that [`PortTrigger::smi_enable`] names, with GBL_SMI_EN and APMC_EN added to
    /// what was read there. Whoever asks for it answers for the register: it must be the chipset's SMI_EN.
    Enable,
}

/// The ports of one platform, and what is known about its SMI_EN.
#[derive(Clone, Copy, Debug)]
pub struct PortTrigger {
    /// The port whose write raises the MMI.
    pub command_port: u16,
    /// The port whose value the MM side can read.
    pub data_port: u16,
    /// SMI_EN, where the platform named its ACPI base. It is read before each MMI, as it stands: nothing can tell whether a
    /// register is there.
    pub smi_enable: Option<SmiEnableRegister>,
    /// What to do where SMIs are off.
    pub check: SmiCheck,
}

impl PortTrigger {
    /// Raises one MMI. It need not have been taken when this returns: see [`Ports::pause`].
    ///
    /// # Errors
    ///
    /// [`TriggerError::SmisDisabled`] or [`TriggerError::EnableRefused`] where the platform named SMI_EN and SMIs are off.
    /// Neither port was written then.
    pub fn raise(&self, ports: &dyn Ports, command: u8, data: u8) -> Result<(), TriggerError> {
        if let Some(register) = self.smi_enable {
            self.ensure_enabled(ports, register)?;
        }
        // Whatever was put into shared memory is there before MM looks.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        ports.write_u8(self.data_port, data);
        ports.write_u8(self.command_port, command);
        Ok(())
    }

    fn ensure_enabled(&self, ports: &dyn Ports, register: SmiEnableRegister) -> Result<(), TriggerError> {
        let value = register.read(ports);
        let missing = SmiEnable::all().difference(SmiEnable::from_bits_truncate(value));
        if missing.is_empty() {
            return Ok(());
        }
        if self.check == SmiCheck::Require {
            return Err(TriggerError::SmisDisabled {
                register: register.address(),
                value,
                missing,
            });
        }
        register.write(ports, value | missing.bits());
        let value = register.read(ports);
        let missing = SmiEnable::all().difference(SmiEnable::from_bits_truncate(value));
        if missing.is_empty() {
            Ok(())
        } else {
            Err(TriggerError::EnableRefused {
                register: register.address(),
                value,
                missing,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::string::ToString;
    use std::vec::Vec;

    /// A chipset with SMI_EN, whose bits outside `writable` cannot be changed.
    struct Chipset {
        smi_en: Cell<u32>,
        writable: u32,
        bytes_written: RefCell<Vec<(u16, u8)>>,
        register: SmiEnableRegister,
    }

    impl Chipset {
        fn new(smi_en: u32, writable: u32, register: SmiEnableRegister) -> Self {
            Self {
                smi_en: Cell::new(smi_en),
                writable,
                bytes_written: RefCell::default(),
                register,
            }
        }

        fn set(&self, value: u32) {
            self.smi_en
                .set((self.smi_en.get() & !self.writable) | (value & self.writable));
        }
    }

    impl Ports for Chipset {
        fn write_u8(&self, port: u16, value: u8) {
            self.bytes_written.borrow_mut().push((port, value));
        }
        fn read_u32(&self, port: u16) -> u32 {
            assert_eq!(SmiEnableRegister::Io(port), self.register);
            self.smi_en.get()
        }
        fn write_u32(&self, port: u16, value: u32) {
            assert_eq!(SmiEnableRegister::Io(port), self.register);
            self.set(value);
        }
        fn read_mmio_u32(&self, address: usize) -> u32 {
            assert_eq!(SmiEnableRegister::Mmio(address), self.register);
            self.smi_en.get()
        }
        fn write_mmio_u32(&self, address: usize, value: u32) {
            assert_eq!(SmiEnableRegister::Mmio(address), self.register);
            self.set(value);
        }
        fn pause(&self) {}
    }

    fn trigger(smi_enable: Option<SmiEnableRegister>, check: SmiCheck) -> PortTrigger {
        PortTrigger {
            command_port: 0xb2,
            data_port: 0xb3,
            smi_enable,
            check,
        }
    }

    #[test]
    fn data_is_written_before_the_command() {
        let chipset = Chipset::new(0, 0, SmiEnableRegister::Io(0));
        trigger(None, SmiCheck::Require)
            .raise(&chipset, 0xff, 0x5a)
            .unwrap();
        assert_eq!(*chipset.bytes_written.borrow(), [(0xb3, 0x5a), (0xb2, 0xff)]);
    }

    #[test]
    fn switched_off_smis_are_an_error_and_no_port_is_written() {
        let register = SmiEnableRegister::behind_io_base(0x600).unwrap();
        let chipset = Chipset::new(0x1, u32::MAX, register);
        let error = trigger(Some(register), SmiCheck::Require)
            .raise(&chipset, 0xff, 0)
            .unwrap_err();
        assert_eq!(
            error,
            TriggerError::SmisDisabled {
                register: 0x630,
                value: 1,
                missing: SmiEnable::APMC
            }
        );
        assert_eq!(
            error.to_string(),
            "platform: SMIs are off: SMI_EN at 0x630 is 0x00000001, APMC_EN missing"
        );
        assert!(chipset.bytes_written.borrow().is_empty());
    }

    #[test]
    fn smis_are_switched_on_where_that_is_asked_for_and_other_bits_stay() {
        let register = SmiEnableRegister::behind_mmio_base(0xfed0_0000).unwrap();
        let chipset = Chipset::new(0x8000_0000, u32::MAX, register);
        trigger(Some(register), SmiCheck::Enable)
            .raise(&chipset, 0, 0)
            .unwrap();
        assert_eq!(chipset.smi_en.get(), 0x8000_0021);
        assert_eq!(chipset.bytes_written.borrow().len(), 2);
    }

    #[test]
    fn a_locked_enable_bit_is_an_error() {
        let register = SmiEnableRegister::Io(0x630);
        let chipset = Chipset::new(0, SmiEnable::APMC.bits(), register);
        let error = trigger(Some(register), SmiCheck::Enable)
            .raise(&chipset, 0, 0)
            .unwrap_err();
        assert_eq!(
            error,
            TriggerError::EnableRefused {
                register: 0x630,
                value: 0x20,
                missing: SmiEnable::GLOBAL
            }
        );
        assert!(chipset.bytes_written.borrow().is_empty());
    }

    #[test]
    fn a_base_without_room_for_the_register_is_refused() {
        assert_eq!(
            SmiEnableRegister::behind_io_base(0xffd1),
            Err(TriggerError::NoRegister { base: 0xffd1 })
        );
        assert_eq!(
            SmiEnableRegister::behind_mmio_base(usize::MAX),
            Err(TriggerError::NoRegister { base: usize::MAX })
        );
        assert_eq!(
            SmiEnableRegister::behind_mmio_base(0x602),
            Err(TriggerError::NoRegister { base: 0x602 })
        );
    }
}
