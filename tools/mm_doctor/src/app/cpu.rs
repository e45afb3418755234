//! What the processor and its chipset say. An unsafe island (`docs/unsafe.md`).

use core::time::Duration;
use mm_doctor::facts::Facts;
use uefi::boot;

pub(super) use here::ARCH;
pub(super) use here::look;

/// Counts time.
pub(super) struct Clock {
    per_ms: u64,
}

impl Clock {
    /// Compares the counter with the firmware's own delay.
    pub(super) fn new() -> Self {
        const MS: u64 = 10;
        let start = here::ticks();
        boot::stall(Duration::from_millis(MS));
        let ticks = here::ticks().wrapping_sub(start);
        Self {
            per_ms: ticks.checked_div(MS).unwrap_or_default(),
        }
    }

    /// Runs code, and returns how many microseconds it took.
    pub(super) fn time<T>(&self, code: impl FnOnce() -> T) -> (T, Option<u64>) {
        let start = here::ticks();
        let result = code();
        let ticks = here::ticks().wrapping_sub(start);
        (result, ticks.saturating_mul(1000).checked_div(self.per_ms))
    }
}

#[cfg(target_arch = "x86_64")]
mod here {
    use super::Facts;
    use core::arch::x86_64::_rdtsc;
    use mm_comm::ports::NativePorts;
    use mm_doctor::chipset;
    use uefi::boot::{self, Tpl};

    pub(in super::super) const ARCH: &str = "x86_64";

    /// The processor's ports.
    pub(in super::super) fn ports() -> NativePorts {
        // SAFETY: a UEFI image runs in ring 0 (UEFI 2.11, 2.3.4). The ports are used for PCI configuration space and the
        // registers behind PMBASE, which are read, and for probes that the user asked for.
        unsafe { NativePorts::new() }
    }

    pub(in super::super) fn look(facts: &mut Facts) {
        // SAFETY: the level is restored below, a few port accesses later. Nothing may come between address and data.
        let undisturbed = unsafe { boot::raise_tpl(Tpl::HIGH_LEVEL) };
        let chipset = chipset::gather(&ports(), &facts.acpi);
        drop(undisturbed);
        facts.chipset = Some(chipset);
    }

    pub(super) fn ticks() -> u64 {
        // SAFETY: every x86-64 processor has the instruction, and ring 0 may use it.
        unsafe { _rdtsc() }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use here::ports;

#[cfg(target_arch = "aarch64")]
mod here {
    use super::Facts;
    use alloc::format;
    use core::arch::asm;
    use mm_comm::smc::{Call, Conduit, Smc};
    use mm_doctor::facts::Arm;

    pub(in super::super) const ARCH: &str = "aarch64";

    /// `FFA_VERSION` (Arm DEN0077A, 13.2) with version 1.0, and `MM_VERSION` (Arm DEN0060A, 2.2).
    const FFA_VERSION: u32 = 0x8400_0063;
    const MM_VERSION: u32 = 0x8400_0040;

    /// The bits of the FADT's ARM_BOOT_ARCH.
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;

    pub(in super::super) fn look(facts: &mut Facts) {
        let flags = facts.acpi.arm_boot.unwrap_or_default();
        let conduit = match (flags & PSCI_COMPLIANT != 0, flags & PSCI_USE_HVC != 0) {
            (false, _) => "",
            (true, true) => "HVC",
            (true, false) => "SMC",
        };
        let mut arm = Arm {
            level: level(),
            conduit,
            ..Arm::default()
        };
        // Without EL3 the instruction is undefined.
        if Smc::el3_is_implemented() {
            let version = |function, argument| {
                let [version, ..] = Smc::call32(function, [argument, 0, 0, 0, 0, 0, 0]);
                if version & 1 << 31 != 0 {
                    return Err(format!("function {function:#x} is not there: {version:#x}"));
                }
                let [a, b, c, d] = version.to_le_bytes();
                Ok((u16::from_le_bytes([c, d]), u16::from_le_bytes([a, b])))
            };
            arm.ffa = Some(version(FFA_VERSION, 0x1_0000));
            arm.spm_mm = Some(version(MM_VERSION, 0));
        }
        facts.arm = Some(arm);
    }

    fn level() -> u8 {
        let level: u64;
        // SAFETY: the register can be read at EL1 and above, where UEFI runs; the read has no effect but the value.
        unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
        u8::try_from(level >> 2 & 3).unwrap_or_default()
    }

    pub(super) fn ticks() -> u64 {
        Smc::counter().map_or(0, |counter| counter.ticks)
    }
}
