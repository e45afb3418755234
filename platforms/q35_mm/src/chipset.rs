//! Where SMRAM is locked on Q35: the registers that control it, and the order in which they are
//! locked.
//!
//! It is separate from the launcher and from any hardware, so that tests can use a chipset that
//! ignores writes.

use thiserror::Error;

/// The register SMRAM, for the compatible segment (82G33 GMCH, 5.1.37): all code reaches it.
pub const OPEN: u8 = 0x4a;
/// Only MM reaches it.
pub const CLOSED: u8 = 0x0a;
/// Only MM reaches it, and until the next reset the register stays as it is.
pub const LOCKED: u8 = CLOSED | D_LCK;
const D_LCK: u8 = 1 << 4;
const D_OPEN: u8 = 1 << 6;

/// Sends data accesses of MM to what other code has at these addresses. The lock leaves it free,
/// and the MM image clears it at each SMI.
pub const D_CLS: u8 = 1 << 5;

/// SMI_LOCK in GEN_PMCON_1 (ICH9, 13.8.1.1): GBL_SMI_EN stays as it is until a reset.
pub const SMI_LOCK: u8 = 1 << 4;

/// The command and the data port (ICH9, 13.7.1 and 13.7.2).
pub const COMMAND_PORT: u16 = 0xb2;
/// See [`COMMAND_PORT`].
pub const DATA_PORT: u16 = 0xb3;

/// The command that enters MM. The image takes any command except 2 and 3, for which QEMU raises no
/// SMI.
pub const COMMAND: u8 = 0xff;

/// Items of QEMU's fw_cfg (QEMU, `docs/specs/fw_cfg.rst`; edk2 `OvmfPkg/Include/IndustryStandard/QemuFwCfg.h`).
const FW_CFG_SIGNATURE: u16 = 0;
const FW_CFG_NB_CPUS: u16 = 5;
const FW_CFG_MAX_CPUS: u16 = 0xf;
const QEMU: [u8; 4] = *b"QEMU";

/// The registers.
pub trait Chipset {
    /// Reads the register SMRAM.
    fn smram(&self) -> u8;
    /// Writes it.
    fn set_smram(&self, value: u8);
    /// Reads the low byte of GEN_PMCON_1.
    fn pmcon(&self) -> u8;
    /// Writes it.
    fn set_pmcon(&self, value: u8);
    /// Sets APMC_EN and GBL_SMI_EN in SMI_EN.
    fn switch_smis_on(&self);
    /// Clears both.
    fn switch_smis_off(&self);
    /// Reads the start of an item of QEMU's fw_cfg.
    fn fw_cfg(&self, item: u16, out: &mut [u8]);
}

/// Why the lock does not hold.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the chipset did not lock: SMRAM {smram:#x}, GEN_PMCON_1 {pmcon:#x}")]
pub struct NotLocked {
    /// The register SMRAM, after the attempt to open it again.
    pub smram: u8,
    /// The low byte of GEN_PMCON_1.
    pub pmcon: u8,
}

/// Whether SMRAM was locked since the last reset.
#[must_use]
pub fn is_locked(chipset: &impl Chipset) -> bool {
    chipset.smram() & D_LCK != 0
}

/// Closes SMRAM to all but MM, and fixes that and GBL_SMI_EN until the next reset.
///
/// # Errors
///
/// [`NotLocked`], if SMRAM could be opened again or SMI_LOCK does not hold. SMRAM was closed then,
/// and SMIs were switched off, as far as the chipset allows it.
pub fn lock(chipset: &impl Chipset) -> Result<(), NotLocked> {
    close_and_lock(chipset, |smram| smram == LOCKED, true)
}

/// Like [`lock`], but for a machine without MM: with SMIs off, so that GBL_SMI_EN stays off.
///
/// If SMRAM is locked already SMIs stay as they are, also after an error: there may be an MM, which
/// cannot be reached without SMIs. Its SMRAM may be another segment.
///
/// # Errors
///
/// Those of [`lock`].
pub fn lock_without_mm(chipset: &impl Chipset) -> Result<(), NotLocked> {
    if is_locked(chipset) {
        return close_and_lock(chipset, |smram| smram & (D_LCK | D_OPEN) == D_LCK, false);
    }
    chipset.switch_smis_off();
    lock(chipset)
}

fn close_and_lock(
    chipset: &impl Chipset,
    is_locked: impl FnOnce(u8) -> bool,
    off_after_failure: bool,
) -> Result<(), NotLocked> {
    chipset.set_smram(CLOSED);
    chipset.set_smram(LOCKED);
    // The lock does not hold if SMRAM can be opened again.
    chipset.set_smram(OPEN);
    let smram = chipset.smram();
    let is_locked = is_locked(smram);
    let switch_off = || {
        if off_after_failure {
            chipset.switch_smis_off();
        }
    };
    if !is_locked {
        chipset.set_smram(CLOSED);
        // While SMIs can still be switched off.
        switch_off();
    }
    chipset.set_pmcon(chipset.pmcon() | SMI_LOCK);
    let pmcon = chipset.pmcon();
    if is_locked && pmcon & SMI_LOCK != 0 {
        return Ok(());
    }
    switch_off();
    Err(NotLocked { smram, pmcon })
}

/// Runs `first`, which raises the first SMI, with SMIs on. `prepare` comes before that: it puts the
/// code in place that the SMI runs, and an SMI of another source must not find anything else there.
/// If `first` fails SMIs are off again before what `prepare` returned is dropped.
///
/// # Errors
///
/// Those of `prepare` and of `first`.
pub fn first_smi<T, E>(
    chipset: &impl Chipset,
    prepare: impl FnOnce() -> Result<T, E>,
    first: impl FnOnce(&T) -> Result<(), E>,
) -> Result<(), E> {
    let prepared = prepare()?;
    chipset.switch_smis_on();
    first(&prepared).inspect_err(|_| chipset.switch_smis_off())
}

/// Why it is not certain that there is only one processor.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProcessorsError {
    /// QEMU does not say how many there are.
    #[error("the number of processors is unknown: QEMU's fw_cfg has signature {0:02x?}")]
    Unknown([u8; 4]),
    /// There is more than one processor, or there can be.
    #[error("processors: {present} present, room for {room}; the MM image serves one, and none may be added")]
    NotOne {
        /// Number of processors present.
        present: u16,
        /// One more than the highest possible APIC identifier.
        room: u16,
    },
}

/// Makes sure that the machine has one processor and never gets another. Each has its own SMBASE,
/// and a processor whose SMBASE was not moved lets any code run in System Management Mode.
///
/// CPUID does not tell it: it counts only the processors of one package.
///
/// # Errors
///
/// [`ProcessorsError`] with the numbers.
pub fn require_one_processor(chipset: &impl Chipset) -> Result<(), ProcessorsError> {
    let mut signature = [0; 4];
    chipset.fw_cfg(FW_CFG_SIGNATURE, &mut signature);
    if signature != QEMU {
        return Err(ProcessorsError::Unknown(signature));
    }
    let number = |item| {
        let mut bytes = [0; 2];
        chipset.fw_cfg(item, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    match (number(FW_CFG_NB_CPUS), number(FW_CFG_MAX_CPUS)) {
        (1, 1) => Ok(()),
        (present, room) => Err(ProcessorsError::NotOne { present, room }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A chipset that may ignore writes.
    struct Fake {
        smram: Cell<u8>,
        pmcon: Cell<u8>,
        smis: Cell<bool>,
        /// Bits that are never set.
        missing_in_smram: u8,
        missing_in_pmcon: u8,
        signature: [u8; 4],
        processors: (u16, u16),
    }

    impl Fake {
        fn new() -> Self {
            Self {
                smram: Cell::new(OPEN),
                pmcon: Cell::new(0x01),
                smis: Cell::new(true),
                missing_in_smram: 0,
                missing_in_pmcon: 0,
                signature: QEMU,
                processors: (1, 1),
            }
        }
    }

    impl Chipset for Fake {
        fn smram(&self) -> u8 {
            self.smram.get()
        }

        fn set_smram(&self, value: u8) {
            if self.smram.get() & D_LCK == 0 {
                self.smram.set(value & !self.missing_in_smram);
            }
        }

        fn pmcon(&self) -> u8 {
            self.pmcon.get()
        }

        fn set_pmcon(&self, value: u8) {
            self.pmcon.set(value & !self.missing_in_pmcon);
        }

        fn switch_smis_on(&self) {
            self.smis.set(true);
        }

        fn switch_smis_off(&self) {
            if self.pmcon.get() & SMI_LOCK == 0 {
                self.smis.set(false);
            }
        }

        fn fw_cfg(&self, item: u16, out: &mut [u8]) {
            let (present, room) = self.processors;
            match item {
                0 => out.copy_from_slice(&self.signature),
                5 => out.copy_from_slice(&present.to_le_bytes()),
                0xf => out.copy_from_slice(&room.to_le_bytes()),
                _ => out.fill(0),
            }
        }
    }

    #[test]
    fn lock_leaves_smis_on_with_mm_and_off_without() {
        let chipset = Fake::new();
        assert!(!is_locked(&chipset));
        assert_eq!(lock(&chipset), Ok(()));
        assert!(is_locked(&chipset) && chipset.smis.get());
        assert_eq!((chipset.smram(), chipset.pmcon()), (LOCKED, 0x11));
        // A second lock changes nothing.
        assert_eq!(lock(&chipset), Ok(()));

        let chipset = Fake::new();
        assert_eq!(lock_without_mm(&chipset), Ok(()));
        assert!(is_locked(&chipset) && !chipset.smis.get());
    }

    #[test]
    fn mm_that_runs_keeps_its_smis() {
        let chipset = Fake::new();
        assert_eq!(lock(&chipset), Ok(()));
        // The real chipset locks GBL_SMI_EN only.
        chipset.pmcon.set(0x01);
        assert_eq!(lock_without_mm(&chipset), Ok(()));
        assert!(chipset.smis.get(), "MM is cut off");

        // Another firmware's MM, without the compatible segment or with an open one.
        for (smram, expected) in [
            (D_LCK | 2, Ok(())),
            (
                LOCKED | D_OPEN,
                Err(NotLocked {
                    smram: LOCKED | D_OPEN,
                    pmcon: 0x11,
                }),
            ),
        ] {
            let chipset = Fake::new();
            chipset.smram.set(smram);
            assert_eq!(lock_without_mm(&chipset), expected);
            assert!(chipset.smis.get(), "MM is cut off");
        }
        let mut chipset = Fake::new();
        chipset.smram.set(LOCKED);
        chipset.missing_in_pmcon = SMI_LOCK;
        assert!(lock_without_mm(&chipset).is_err() && chipset.smis.get());
    }

    /// The code for the first SMI.
    struct Code<'a>(&'a Fake);

    impl Drop for Code<'_> {
        fn drop(&mut self) {
            // Does not check drops in a test that has failed.
            assert!(std::thread::panicking() || !self.0.smis.get() || self.0.pmcon.get() == 2);
        }
    }

    #[test]
    fn smis_are_on_only_while_the_first_ones_code_is_in_place() {
        let chipset = Fake::new();
        chipset.smis.set(false);
        let prepare = || {
            assert!(!chipset.smis.get(), "an SMI would not find its code");
            Ok(Code(&chipset))
        };
        let failed = first_smi(&chipset, prepare, |_| {
            assert!(chipset.smis.get());
            Err("it did not come")
        });
        assert_eq!((failed, chipset.smis.get()), (Err("it did not come"), false));
        let taken = first_smi(&chipset, prepare, |_| {
            // It moved SMBASE: the code is not needed any more.
            chipset.pmcon.set(2);
            Ok(())
        });
        assert_eq!((taken, chipset.smis.get()), (Ok(()), true));
        chipset.smis.set(false);
        let unprepared = first_smi(&chipset, || Err::<Code<'_>, _>("no memory"), |_| Ok(()));
        assert_eq!((unprepared, chipset.smis.get()), (Err("no memory"), false));
    }

    #[test]
    fn a_lock_that_does_not_hold_leaves_smram_closed_and_smis_off() {
        let mut chipset = Fake::new();
        chipset.missing_in_smram = D_LCK;
        let refused = NotLocked {
            smram: OPEN,
            pmcon: 0x11,
        };
        assert_eq!(lock(&chipset), Err(refused));
        assert_eq!((chipset.smram(), chipset.smis.get()), (CLOSED, false));

        let mut chipset = Fake::new();
        chipset.missing_in_pmcon = SMI_LOCK;
        let refused = NotLocked {
            smram: LOCKED,
            pmcon: 0x01,
        };
        assert_eq!(lock(&chipset), Err(refused));
        assert_eq!((chipset.smram(), chipset.smis.get()), (LOCKED, false));
    }

    #[test]
    fn one_processor_is_one_that_stays_alone() {
        let mut chipset = Fake::new();
        assert_eq!(require_one_processor(&chipset), Ok(()));
        for (present, room) in [(2, 2), (1, 2), (0, 1), (1, 0), (256, 256), (0x0101, 0x0101)] {
            chipset.processors = (present, room);
            let refused = ProcessorsError::NotOne { present, room };
            assert_eq!(require_one_processor(&chipset), Err(refused));
        }
        chipset.signature = [0xff; 4];
        assert_eq!(
            require_one_processor(&chipset),
            Err(ProcessorsError::Unknown([0xff; 4]))
        );
    }
}
