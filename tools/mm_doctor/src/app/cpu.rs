//! Reads the processor and its chipset. An unsafe island (`docs/unsafe.md`).

use core::time::Duration;
use mm_doctor::facts::Facts;
use uefi::boot;

pub(super) use here::{ARCH, look, paging};

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
    use crate::app::firmware::Physical;
    use core::arch::asm;
    use core::arch::x86_64::_rdtsc;
    use mm_comm::ports::NativePorts;
    use mm_doctor::chipset;
    use mm_doctor::paging::Paging;
    use uefi::boot::{self, Tpl};

    const IA32_PAT: u32 = 0x277;
    /// CR4.LA57.
    const FIVE_LEVELS: u64 = 1 << 12;

    pub(in super::super) const ARCH: &str = "x86_64";

    /// The processor's ports.
    pub(in super::super) fn ports() -> NativePorts {
        // SAFETY: a UEFI image runs in ring 0 (UEFI 2.11, 2.3.4). The ports are used for PCI
        // configuration space and the registers behind PMBASE, which are read, and for probes that
        // the user asked for.
        unsafe { NativePorts::new() }
    }

    /// The page tables in use.
    pub(in super::super) fn paging() -> Option<Paging> {
        let (root, cr4): (u64, u64);
        let (low, high): (u32, u32);
        // SAFETY: ring 0 may read CR3; the read has no other effect.
        unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
        // SAFETY: the same for CR4.
        unsafe { asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags)) };
        // SAFETY: every processor with long mode has this register.
        unsafe {
            asm!(
                "rdmsr", in("ecx") IA32_PAT, out("eax") low, out("edx") high,
                options(nomem, nostack, preserves_flags)
            );
        }
        Some(Paging::X86 {
            root,
            levels: if cr4 & FIVE_LEVELS != 0 { 5 } else { 4 },
            pat: u64::from(high) << 32 | u64::from(low),
        })
    }

    pub(in super::super) fn look(facts: &mut Facts, _memory: &Physical) {
        // SAFETY: the level is restored below, a few port accesses later. Nothing may come between
        // address and data.
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
pub(super) use here::two_pages;

#[cfg(target_arch = "aarch64")]
mod here {
    use super::Facts;
    use crate::app::firmware::{self, Physical};
    use core::arch::asm;
    use mm_comm::SharedRegion;
    use mm_comm::smc::{Conduit as _, Smc};
    use mm_doctor::facts::Arm;
    use mm_doctor::paging::Paging;
    use mm_doctor::{Memory as _, arm};
    use uefi::boot::{self, AllocateType, MemoryType};

    pub(in super::super) const ARCH: &str = "aarch64";

    /// SCTLR_ELx.M: the MMU is on.
    const MMU_ON: u64 = 1;
    /// Pages of FF-A's RX and TX buffers.
    const RX_TX_PAGES: usize = 2;
    /// No device tree has as many bytes.
    const LONGEST_TREE: usize = 4 << 20;

    /// Reads a system register that exists at the current exception level.
    macro_rules! register {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: the caller names a register that can be read at this exception level; the
            // read has no other effect.
            unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }};
    }

    /// The page tables in use.
    pub(in super::super) fn paging() -> Option<Paging> {
        let [control, root, translation, mair] = match level() {
            1 => [
                register!("SCTLR_EL1"),
                register!("TTBR0_EL1"),
                register!("TCR_EL1"),
                register!("MAIR_EL1"),
            ],
            2 => [
                register!("SCTLR_EL2"),
                register!("TTBR0_EL2"),
                register!("TCR_EL2"),
                register!("MAIR_EL2"),
            ],
            _ => return None,
        };
        if control & MMU_ON == 0 {
            return Some(Paging::Off);
        }
        let granule = match translation >> 14 & 0b11 {
            0b00 => 12,
            0b01 => 16,
            0b10 => 14,
            _ => return None,
        };
        Some(Paging::Arm {
            root,
            t0sz: u32::try_from(translation & 0x3f).ok()?,
            granule,
            mair,
        })
    }

    pub(in super::super) fn look(facts: &mut Facts, memory: &Physical) {
        let tree = firmware::configuration_table(arm::DEVICE_TREE).and_then(|at| device_tree(memory, at));
        let (conduit, conduit_from) = arm::psci(facts.acpi.arm_boot, tree.as_deref());
        let mut found = Arm {
            level: level(),
            conduit,
            conduit_from,
            ..Arm::default()
        };
        arm::ask::<Smc>(&mut found, &mut two_pages);
        facts.arm = Some(found);
    }

    /// The device tree; its second word is its length.
    fn device_tree(memory: &Physical, at: u64) -> Option<alloc::vec::Vec<u8>> {
        let [.., a, b, c, d]: [u8; 8] = memory.value(at)?;
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        let mut bytes = alloc::vec![0; len.min(LONGEST_TREE)];
        memory.read(at, &mut bytes).then_some(bytes)
    }

    /// Pages for FF-A's RX and TX buffers. They are never freed: a secure world that failed to
    /// unmap them would write to them.
    pub(in super::super) fn two_pages() -> Option<SharedRegion> {
        let memory = boot::allocate_pages(
            AllocateType::AnyPages,
            MemoryType::BOOT_SERVICES_DATA,
            RX_TX_PAGES,
        )
        .ok()?;
        let len = RX_TX_PAGES.saturating_mul(mm_wire::PAGE_LEN);
        // SAFETY: the pages were allocated just now and are never freed.
        unsafe { SharedRegion::new(memory.as_ptr(), len) }.ok()
    }

    fn level() -> u8 {
        u8::try_from(register!("CurrentEL") >> 2 & 3).unwrap_or_default()
    }

    pub(super) fn ticks() -> u64 {
        Smc::counter().map_or(0, |counter| counter.ticks)
    }
}
