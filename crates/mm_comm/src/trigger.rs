//! Raising an MMI through the chipset's ports.
//!
//! Data first, then command: the write to the command port (APM_CNT, 0xB2 on Intel chipsets) is
//! what raises the SMI, and the handler reads the data port (APM_STS, 0xB3). edk2's
//! `SmmControl2Dxe` for Q35 writes them in this order.

use crate::ports::Ports;
use crate::transaction::PAUSES_WITHOUT_MAILBOX;
use core::cell::Cell;
use core::fmt;
use mm_wire::EfiStatus;
use thiserror::Error;

/// Why no MMI was raised.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TriggerError {
    /// This target has no x86 port instructions that the running code may use.
    #[error(
        "platform: this build has no x86 ports to raise an MMI with; host tests give their own (`with_ports`)"
    )]
    NoPortIo,
    /// SMIs do not reach the processor.
    #[error(
        "platform: SMIs are off: SMI_EN at {register:#x} is {value:#010x}, {missing} missing; set that, or use \
         SmiCheck::Enable; SmiCheck::Off if it is not SMI_EN"
    )]
    SmisDisabled {
        /// Address or port of SMI_EN.
        register: usize,
        /// Its value.
        value: u32,
        /// The bits that would have to be set.
        missing: SmiEnable,
    },
    /// The chipset refused to switch SMIs on.
    #[error(
        "platform: SMI_EN at {register:#x} stays {value:#010x} after {missing} was written to it; it may be locked \
         (SMI_LOCK)"
    )]
    EnableRefused {
        /// Address or port of SMI_EN.
        register: usize,
        /// Its value after the write.
        value: u32,
        /// The bits that did not stick.
        missing: SmiEnable,
    },
    /// The ACPI base is so high that SMI_EN would wrap.
    #[error("platform: the ACPI base {base:#x} has no SMI_EN at +0x30")]
    NoRegister {
        /// The configured base.
        base: usize,
    },
    /// The ACPI base is an I/O port that PMBASE cannot hold: its low 7 bits are zero.
    #[error(
        "platform: acpi_base {base:#x} is not PMBASE, a multiple of 0x80 (SMI_EN is base+0x30): PMBASE may be {likely:#x}; \
         SmiCheck::Off if SMI_EN is elsewhere"
    )]
    NotPmBase {
        /// The configured base.
        base: u16,
        /// The multiple of 0x80 below it.
        likely: u16,
    },
    /// The ACPI base is configured as memory, but has the value of an I/O port: at this address
    /// there is memory, not a register.
    #[error("platform: acpi_base MMIO({base:#x}) has the value of an I/O port: use AcpiBase::Io, or a u16")]
    PortAsAddress {
        /// The configured base.
        base: usize,
    },
    /// SMI_EN reads as all ones, like an address that no device decodes.
    #[error(
        "platform: SMI_EN at {register:#x} reads 0xFFFFFFFF: nothing answers there; acpi_base must be PMBASE \
         (SMI_EN is base+0x30), or use SmiCheck::Off"
    )]
    NothingAnswers {
        /// Address or port of SMI_EN.
        register: usize,
    },
    /// What is read has bits that are reserved in every SMI_EN: it is another register.
    #[error(
        "platform: {value:#010x} at {register:#x} is not SMI_EN, whose bits {reserved:#x} are reserved; acpi_base \
         must be PMBASE (SMI_EN is base+0x30), or use SmiCheck::Off"
    )]
    NotSmiEnable {
        /// Address or port of the register.
        register: usize,
        /// Its value.
        value: u32,
        /// The reserved bits that are set.
        reserved: u32,
    },
}

impl TriggerError {
    /// The same as an `EFI_STATUS`.
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self {
            Self::NoPortIo => EfiStatus::UNSUPPORTED,
            Self::SmisDisabled { .. } => EfiStatus::NOT_READY,
            Self::EnableRefused { .. } => EfiStatus::ACCESS_DENIED,
            Self::NoRegister { .. }
            | Self::NotPmBase { .. }
            | Self::PortAsAddress { .. }
            | Self::NothingAnswers { .. }
            | Self::NotSmiEnable { .. } => EfiStatus::INVALID_PARAMETER,
        }
    }
}

bitflags::bitflags! {
    /// The bits of SMI_EN that a software SMI needs (Intel ICH9, 13.8.3.8; same place on every
    /// later PCH).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SmiEnable: u32 {
        /// GBL_SMI_EN: SMIs are generated at all.
        const GLOBAL = 1 << 0;
        /// APMC_EN: a write to the command port generates one.
        const APMC = 1 << 5;
    }
}

impl SmiEnable {
    /// What an SMI needs and `value` does not have.
    #[must_use]
    pub const fn missing_in(value: u32) -> Self {
        Self::all().difference(Self::from_bits_truncate(value))
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

/// The distance of SMI_EN from PMBASE.
const SMI_EN_OFFSET: u8 = 0x30;

/// PMBASE is a multiple of this (Intel ICH9, 13.1.13: bits 15:7).
const PMBASE_ALIGN: u16 = 0x80;

/// Bits of SMI_EN that are unused in every chipset that has it at PMBASE + 0x30: reserved in the
/// Intel ICH9 (13.8.3.8), and without a name in coreboot's headers of later ones (`SMI_EN` in
/// `pm.h` under `src/southbridge/intel` and `src/soc/intel`).
const RESERVED: u32 = 0b111 << 8 | 1 << 12 | 0b11 << 15;

/// The value of an address that no device decodes.
const NOTHING_THERE: u32 = u32::MAX;

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
    /// [`TriggerError::NoRegister`] if the port number would wrap, [`TriggerError::NotPmBase`] if
    /// the base is not a multiple of 0x80, like SMI_EN's own port.
    pub fn behind_io_base(base: u16) -> Result<Self, TriggerError> {
        let port = base
            .checked_add(SMI_EN_OFFSET.into())
            .ok_or(TriggerError::NoRegister { base: base.into() })?;
        if base.is_multiple_of(PMBASE_ALIGN) {
            return Ok(Self::Io(port));
        }
        let likely = base & !(PMBASE_ALIGN - 1);
        Err(TriggerError::NotPmBase { base, likely })
    }

    /// SMI_EN behind a memory-mapped ACPI base.
    ///
    /// # Errors
    ///
    /// [`TriggerError::NoRegister`] if the address would wrap or is not aligned to 4 bytes,
    /// [`TriggerError::PortAsAddress`] if it is below 64 KiB: every PC has RAM there.
    pub fn behind_mmio_base(base: usize) -> Result<Self, TriggerError> {
        if base <= u16::MAX.into() {
            return Err(TriggerError::PortAsAddress { base });
        }
        base.checked_add(SMI_EN_OFFSET.into())
            .filter(|address| address.is_multiple_of(4))
            .map(Self::Mmio)
            .ok_or(TriggerError::NoRegister { base })
    }

    /// The port's number, or the register's address.
    #[must_use]
    pub fn address(self) -> usize {
        match self {
            Self::Io(port) => port.into(),
            Self::Mmio(address) => address,
        }
    }

    /// Reads the register.
    ///
    /// # Errors
    ///
    /// [`TriggerError::NothingAnswers`] and [`TriggerError::NotSmiEnable`] if what is read cannot
    /// be SMI_EN.
    pub fn read_checked(self, ports: &dyn Ports) -> Result<u32, TriggerError> {
        let (register, value) = (self.address(), self.read(ports));
        match value & RESERVED {
            _ if value == NOTHING_THERE => Err(TriggerError::NothingAnswers { register }),
            0 => Ok(value),
            reserved => Err(TriggerError::NotSmiEnable {
                register,
                value,
                reserved,
            }),
        }
    }

    /// Reads the register, without the checks of [`Self::read_checked`].
    pub fn read(self, ports: &dyn Ports) -> u32 {
        match self {
            Self::Io(port) => ports.read_u32(port),
            Self::Mmio(address) => ports.read_mmio_u32(address),
        }
    }

    /// Writes the register.
    pub fn write(self, ports: &dyn Ports, value: u32) {
        match self {
            Self::Io(port) => ports.write_u32(port, value),
            Self::Mmio(address) => ports.write_mmio_u32(address, value),
        }
    }
}

/// Whether SMI_EN is checked before an MMI, and what to do if SMIs are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SmiCheck {
    /// Return an error and raise no MMI. What 0 means depends on the [`Purpose`] of the MMI.
    #[default]
    Require,
    /// Switch them on; return an error if the chipset refuses.
    ///
    /// This writes 32 bits to the register that [`PortTrigger::smi_enable`] names: the value that
    /// was read, with GBL_SMI_EN and APMC_EN set. The platform promises that the register is the
    /// chipset's SMI_EN.
    Enable,
    /// Neither read nor write SMI_EN. For chipsets without SMI_EN, or with SMI_EN at another place
    /// than Intel's PMBASE + 0x30: AMD's FCH, Intel's Apollo Lake (+0x40). The MMI is raised
    /// unchecked.
    Off,
}

/// The purpose of an MMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// MM is to take a message from a comm buffer. SMI_EN 0 means that SMIs are off, so that
    /// nothing is raised: without a status mailbox the caller would get its own request back as the
    /// response.
    Message,
    /// The command alone tells MM what to do. SMI_EN 0 counts as a chipset without SMI_EN, and the
    /// MMI is raised.
    Command,
}

/// The data byte of the call that is between its two port writes, if there is one.
#[derive(Debug, Default)]
pub struct Pair(Cell<Option<u8>>);

/// The ports of a platform, and its SMI_EN.
#[derive(Clone, Copy, Debug)]
pub struct PortTrigger {
    /// The port whose write raises the MMI.
    pub command_port: u16,
    /// The port whose value the MM side can read.
    pub data_port: u16,
    /// SMI_EN, if the platform named its ACPI base.
    pub smi_enable: Option<SmiEnableRegister>,
    /// What to do about SMI_EN.
    pub check: SmiCheck,
}

impl PortTrigger {
    /// SMI_EN, unless [`SmiCheck::Off`] says that it is not used.
    #[must_use]
    pub fn checked_register(&self) -> Option<SmiEnableRegister> {
        self.smi_enable.filter(|_| self.check != SmiCheck::Off)
    }

    /// Raises one MMI for a message. The processor may take it some time after this returns: see
    /// [`Ports::pause`].
    ///
    /// # Errors
    ///
    /// If the platform named SMI_EN: [`TriggerError::SmisDisabled`] or
    /// [`TriggerError::EnableRefused`] if SMIs are off, [`TriggerError::NothingAnswers`] or
    /// [`TriggerError::NotSmiEnable`] if the register is not SMI_EN. Neither port was written then.
    pub fn raise(&self, ports: &dyn Ports, command: u8, data: u8) -> Result<(), TriggerError> {
        self.raise_observed(ports, &Pair::default(), Purpose::Message, command, data)
            .map(drop)
    }

    /// Like [`Self::raise`], for any purpose, but returns the value of SMI_EN just before the MMI;
    /// `None` if it was not read.
    ///
    /// All calls for the same two ports pass the same `pair`. A call that comes between the two
    /// writes of another one restores the other's value in the data port, so that MM finds the data
    /// that belongs to each command.
    ///
    /// # Errors
    ///
    /// Those of [`Self::raise`].
    pub fn raise_observed(
        &self,
        ports: &dyn Ports,
        pair: &Pair,
        purpose: Purpose,
        command: u8,
        data: u8,
    ) -> Result<Option<u32>, TriggerError> {
        let enabled = self
            .checked_register()
            .map(|register| self.ensure_enabled(ports, register, purpose))
            .transpose()?;
        // The request is in shared memory before MM looks.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let interrupted = pair.0.replace(Some(data));
        ports.write_u8(self.data_port, data);
        ports.write_u8(self.command_port, command);
        pair.0.set(interrupted);
        if let Some(data) = interrupted {
            // MM reads the data port when it takes this MMI, so that comes first.
            (0..PAUSES_WITHOUT_MAILBOX).for_each(|_| ports.pause());
            ports.write_u8(self.data_port, data);
        }
        Ok(enabled)
    }

    /// Whether this value may mean that there is no SMI_EN, rather than that SMIs are off: Intel's
    /// has EOS set outside of SMM (ICH9, 13.8.3.8: 2 after a reset), so 0 is what a chipset of
    /// another kind returns for a register that it does not have. QEMU's has no EOS: there 0 means
    /// that SMIs are off.
    #[must_use]
    pub fn may_be_absent(&self, value: u32) -> bool {
        value == 0 && self.check == SmiCheck::Require
    }

    fn ensure_enabled(
        &self,
        ports: &dyn Ports,
        register: SmiEnableRegister,
        purpose: Purpose,
    ) -> Result<u32, TriggerError> {
        let value = register.read_checked(ports)?;
        let missing = SmiEnable::missing_in(value);
        if missing.is_empty() || purpose == Purpose::Command && self.may_be_absent(value) {
            return Ok(value);
        }
        if self.check != SmiCheck::Enable {
            return Err(TriggerError::SmisDisabled {
                register: register.address(),
                value,
                missing,
            });
        }
        register.write(ports, value | missing.bits());
        let value = register.read(ports);
        let missing = SmiEnable::missing_in(value);
        if missing.is_empty() {
            return Ok(value);
        }
        Err(TriggerError::EnableRefused {
            register: register.address(),
            value,
            missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn each_error_has_a_status_and_each_missing_bit_a_name() {
        let port = 0x630;
        for (error, status) in [
            (TriggerError::NoPortIo, EfiStatus::UNSUPPORTED),
            (TriggerError::NoRegister { base: 0 }, EfiStatus::INVALID_PARAMETER),
        ] {
            assert_eq!(error.status(), status, "{error} at {port:#x}");
        }
        for (value, missing) in [
            (0, "GBL_SMI_EN and APMC_EN"),
            (1, "APMC_EN"),
            (1 << 5, "GBL_SMI_EN"),
            (0x21, "nothing"),
        ] {
            assert_eq!(SmiEnable::missing_in(value).to_string(), missing);
        }
    }

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

    type Callback<'a> = &'a dyn Fn(&dyn Ports);

    /// Runs code before each byte that is written to the command port, and records which data MM
    /// finds at each command.
    struct Interrupted<'a> {
        chipset: Chipset,
        before_command: RefCell<Vec<Callback<'a>>>,
        found_by_mm: RefCell<Vec<(u8, u8)>>,
    }

    impl Ports for Interrupted<'_> {
        fn write_u8(&self, port: u16, value: u8) {
            if port == 0xb2 {
                let interrupt = self.before_command.borrow_mut().pop();
                interrupt.into_iter().for_each(|interrupt| interrupt(self));
                let data = self.chipset.bytes_written.borrow();
                let (_, data) = data.iter().rev().find(|(port, _)| *port == 0xb3).unwrap();
                self.found_by_mm.borrow_mut().push((value, *data));
            }
            self.chipset.write_u8(port, value);
        }
        fn read_u32(&self, port: u16) -> u32 {
            self.chipset.read_u32(port)
        }
        fn write_u32(&self, port: u16, value: u32) {
            self.chipset.write_u32(port, value);
        }
        fn read_mmio_u32(&self, address: usize) -> u32 {
            self.chipset.read_mmio_u32(address)
        }
        fn write_mmio_u32(&self, address: usize, value: u32) {
            self.chipset.write_mmio_u32(address, value);
        }
        fn pause(&self) {}
    }

    #[test]
    fn mm_finds_the_data_of_each_command_whatever_comes_between_the_two_writes() {
        let (trigger, pair) = (trigger(None, SmiCheck::Require), Pair::default());
        let raise = |ports: &dyn Ports, command, data| {
            trigger
                .raise_observed(ports, &pair, Purpose::Message, command, data)
                .unwrap();
        };
        let innermost = |ports: &dyn Ports| raise(ports, 3, 0xc);
        let twice = |ports: &dyn Ports| {
            raise(ports, 2, 0xb);
            raise(ports, 4, 0xd);
        };
        let ports = Interrupted {
            chipset: Chipset::new(0, 0, SmiEnableRegister::Io(0)),
            before_command: RefCell::new(std::vec![&innermost, &twice]),
            found_by_mm: RefCell::default(),
        };
        raise(&ports, 1, 0xa);
        assert_eq!(
            *ports.found_by_mm.borrow(),
            [(3, 0xc), (2, 0xb), (4, 0xd), (1, 0xa)]
        );
        // Nothing is written again if nothing was interrupted.
        ports.chipset.bytes_written.take();
        raise(&ports, 5, 0xe);
        assert_eq!(*ports.chipset.bytes_written.borrow(), [(0xb3, 0xe), (0xb2, 5)]);
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
            "platform: SMIs are off: SMI_EN at 0x630 is 0x00000001, APMC_EN missing; set that, or use \
             SmiCheck::Enable; SmiCheck::Off if it is not SMI_EN"
        );
        assert!(chipset.bytes_written.borrow().is_empty());
    }

    #[test]
    fn enable_switches_smis_on_and_keeps_other_bits() {
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
            SmiEnableRegister::behind_mmio_base(0xfed0_0002),
            Err(TriggerError::NoRegister { base: 0xfed0_0002 })
        );
    }

    #[test]
    fn only_zero_may_mean_that_there_is_no_smi_en_and_only_if_it_is_required() {
        let register = SmiEnableRegister::Io(0x630);
        for (check, value, expected) in [
            (SmiCheck::Require, 0, true),
            (SmiCheck::Require, 2, false),
            (SmiCheck::Enable, 0, false),
            (SmiCheck::Enable, 2, false),
            (SmiCheck::Off, 0, false),
        ] {
            let trigger = trigger(Some(register), check);
            assert_eq!(trigger.may_be_absent(value), expected, "{check:?} {value}");
        }
    }

    #[test]
    fn smi_en_zero_refuses_a_message_and_lets_a_command_pass() {
        let register = SmiEnableRegister::behind_io_base(0x800).unwrap();
        let chipset = Chipset::new(0, 0, register);
        let required = trigger(Some(register), SmiCheck::Require);
        let off = TriggerError::SmisDisabled {
            register: 0x830,
            value: 0,
            missing: SmiEnable::all(),
        };
        assert_eq!(required.raise(&chipset, 0x10, 0x20), Err(off));
        assert!(chipset.bytes_written.borrow().is_empty());
        let command = required.raise_observed(&chipset, &Pair::default(), Purpose::Command, 0x10, 0x20);
        assert_eq!(command, Ok(Some(0)));
        assert_eq!(*chipset.bytes_written.borrow(), [(0xb3, 0x20), (0xb2, 0x10)]);
        // With `Enable` the platform promises that SMI_EN is there.
        let enable = trigger(Some(register), SmiCheck::Enable).raise(&chipset, 0, 0);
        assert!(
            matches!(enable, Err(TriggerError::EnableRefused { .. })),
            "{enable:?}"
        );
    }

    #[test]
    fn a_port_given_as_an_address_is_noticed() {
        let error = SmiEnableRegister::behind_mmio_base(0x600).unwrap_err();
        assert_eq!(error, TriggerError::PortAsAddress { base: 0x600 });
        assert!(
            error
                .to_string()
                .contains("MMIO(0x600) has the value of an I/O port: use AcpiBase::Io"),
            "{error}"
        );
        assert!(SmiEnableRegister::behind_mmio_base(0x1_0000).is_ok());
    }

    #[test]
    fn smi_en_given_as_the_base_is_noticed() {
        for (base, likely) in [(0x630, 0x600), (0x604, 0x600), (0xb0b0, 0xb080)] {
            let error = SmiEnableRegister::behind_io_base(base).unwrap_err();
            assert_eq!(error, TriggerError::NotPmBase { base, likely });
        }
        let error = SmiEnableRegister::behind_io_base(0x630).unwrap_err().to_string();
        assert!(error.contains("SMI_EN is base+0x30"), "{error}");
        assert!(error.contains("PMBASE may be 0x600"), "{error}");
    }

    #[test]
    fn a_register_that_cannot_be_smi_en_is_refused_and_no_port_is_written() {
        let register = SmiEnableRegister::Io(0x630);
        for check in [SmiCheck::Require, SmiCheck::Enable] {
            let nothing = Chipset::new(u32::MAX, u32::MAX, register);
            let error = trigger(Some(register), check)
                .raise(&nothing, 0xff, 0)
                .unwrap_err();
            assert_eq!(error, TriggerError::NothingAnswers { register: 0x630 });
            let text = error.to_string();
            let expected = "nothing answers there; acpi_base must be PMBASE (SMI_EN is base+0x30)";
            assert!(text.contains(expected), "{text}");

            // Another register, for example a timer.
            let other = Chipset::new(0x0003_9521, u32::MAX, register);
            assert_eq!(
                trigger(Some(register), check).raise(&other, 0xff, 0),
                Err(TriggerError::NotSmiEnable {
                    register: 0x630,
                    value: 0x0003_9521,
                    reserved: 0x0001_9500,
                })
            );
            assert_eq!(other.smi_en.get(), 0x0003_9521, "it was written to");
            assert!(nothing.bytes_written.borrow().is_empty() && other.bytes_written.borrow().is_empty());
        }
        // Every bit that has a name on some chipset.
        let named = Chipset::new(!RESERVED, 0, register);
        assert_eq!(
            trigger(Some(register), SmiCheck::Require).raise(&named, 0, 0),
            Ok(())
        );
    }

    #[test]
    fn without_the_check_smi_en_is_neither_read_nor_written() {
        struct Ports(RefCell<Vec<(u16, u8)>>);
        impl super::Ports for Ports {
            fn write_u8(&self, port: u16, value: u8) {
                self.0.borrow_mut().push((port, value));
            }
            fn read_u32(&self, _: u16) -> u32 {
                unreachable!()
            }
            fn write_u32(&self, _: u16, _: u32) {
                unreachable!()
            }
            fn read_mmio_u32(&self, _: usize) -> u32 {
                unreachable!()
            }
            fn write_mmio_u32(&self, _: usize, _: u32) {
                unreachable!()
            }
            fn pause(&self) {}
        }
        let ports = Ports(RefCell::default());
        let unchecked = trigger(Some(SmiEnableRegister::Io(0x630)), SmiCheck::Off);
        assert_eq!(
            unchecked.raise_observed(&ports, &Pair::default(), Purpose::Message, 0xff, 1),
            Ok(None)
        );
        assert_eq!(ports.0.take(), [(0xb3, 1), (0xb2, 0xff)]);
    }

    #[test]
    fn the_value_of_smi_en_at_the_mmi_is_returned() {
        let register = SmiEnableRegister::Io(0x630);
        let chipset = Chipset::new(0x20, u32::MAX, register);
        let enabling = trigger(Some(register), SmiCheck::Enable);
        assert_eq!(
            enabling.raise_observed(&chipset, &Pair::default(), Purpose::Message, 0, 0),
            Ok(Some(0x21))
        );
    }
}
