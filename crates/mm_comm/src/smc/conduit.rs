//! The instruction that reaches the secure world. An unsafe island (`docs/unsafe.md`).

pub use smccc::Call;

/// The instruction that reaches the secure world, and what the processor says about itself.
pub trait Conduit: Call {
    /// Whether the processor implements EL3 (`ID_AA64PFR0_EL1`, bits 15:12, are not zero).
    fn el3_is_implemented() -> bool;

    /// A counter that limits waits; `None` if the processor has none: waits then end after a number
    /// of calls.
    #[must_use]
    fn counter() -> Option<Counter> {
        None
    }
}

/// A counter that runs at a constant rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its value. It may wrap.
    pub ticks: u64,
    /// How many ticks it makes in a second.
    pub per_second: u64,
}

/// Makes a call with registers x0 to x17.
///
/// Also for identifiers of 32-bit calls: [`Call::call32`] would let the compiler keep values in x8
/// to x17, which the older calling convention lets the callee change.
pub(super) fn call<C: Call>(registers: [u64; 18]) -> [u64; 18] {
    let [function, arguments @ ..] = registers;
    C::call64(low(function), arguments)
}

/// The low 32 bits. Only these are compared in a result: an unknown identifier returns -1 in 64
/// bits, other failures are negative in 32 bits only, and identifiers of partitions may be
/// sign-extended.
pub(super) const fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The `smc` instruction of this processor.
///
/// It declares as changed what the callee may change:
///
/// | registers | why |
/// |---|---|
/// | x0 to x17 | results and scratch registers of the calling convention (Arm DEN0028) |
/// | v0 to v31, p0 to p15, FFR | TF-A's default, `CTX_INCLUDE_FPREGS=0`, saves none for a caller |
/// | x30, flags, all memory | nothing is assumed about them |
///
/// `smccc::Smc` is not used here: it does not declare the vector registers, because the calling
/// convention says that the callee preserves them.
#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
#[derive(Clone, Copy, Debug)]
pub struct Smc;

#[cfg(all(target_arch = "aarch64", any(target_os = "uefi", target_os = "none")))]
mod native {
    use super::{Call, Conduit, Counter, Smc};
    use core::arch::asm;

    /// The bits of `ID_AA64PFR0_EL1` that describe EL3.
    const EL3_SHIFT: u32 = 12;

    impl Call for Smc {
        fn call32(function: u32, arguments: [u32; 7]) -> [u32; 8] {
            let [a, b, c, d, e, f, g] = arguments.map(u64::from);
            let result = Self::call64(function, [a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let [a, b, c, d, e, f, g, h, ..] = result.map(super::low);
            [a, b, c, d, e, f, g, h]
        }

        fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
            let [
                x1,
                x2,
                x3,
                x4,
                x5,
                x6,
                x7,
                x8,
                x9,
                x10,
                x11,
                x12,
                x13,
                x14,
                x15,
                x16,
                x17,
            ] = arguments;
            let mut results = [0; 18];
            let [
                r0,
                r1,
                r2,
                r3,
                r4,
                r5,
                r6,
                r7,
                r8,
                r9,
                r10,
                r11,
                r12,
                r13,
                r14,
                r15,
                r16,
                r17,
            ] = &mut results;
            // SAFETY:
            // 1. The call leaves the stack alone, as the calling convention has it (Arm DEN0028).
            // 2. Every register that it may change is an output or in `clobber_abi`.
            // 3. Any memory may have changed after it: `nomem` is not given.
            // 4. Which memory it does change is up to the callers of `SecureMm`, who name a comm
            //    buffer.
            unsafe {
                asm!(
                    "smc #0",
                    inout("x0") u64::from(function) => *r0,
                    inout("x1") x1 => *r1,
                    inout("x2") x2 => *r2,
                    inout("x3") x3 => *r3,
                    inout("x4") x4 => *r4,
                    inout("x5") x5 => *r5,
                    inout("x6") x6 => *r6,
                    inout("x7") x7 => *r7,
                    inout("x8") x8 => *r8,
                    inout("x9") x9 => *r9,
                    inout("x10") x10 => *r10,
                    inout("x11") x11 => *r11,
                    inout("x12") x12 => *r12,
                    inout("x13") x13 => *r13,
                    inout("x14") x14 => *r14,
                    inout("x15") x15 => *r15,
                    inout("x16") x16 => *r16,
                    inout("x17") x17 => *r17,
                    clobber_abi("C"),
                    options(nostack),
                );
            }
            results
        }
    }

    impl Conduit for Smc {
        fn el3_is_implemented() -> bool {
            let features: u64;
            // SAFETY: the register can be read at EL1 and above (Arm ARM, D24.2.76), and UEFI
            // images and bare payloads run there; the read has no side effect.
            unsafe {
                asm!("mrs {}, id_aa64pfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags))
            };
            (features >> EL3_SHIFT) & 0xf != 0
        }

        fn counter() -> Option<Counter> {
            let (ticks, per_second): (u64, u64);
            // SAFETY: the virtual counter and its frequency can be read at EL1 and above, also
            // below a hypervisor that keeps the physical counter to itself (Arm ARM, D24.8.4,
            // D24.8.24); the reads have no effect but the values. `isb` keeps the read from being
            // made early.
            unsafe {
                asm!(
                    "isb",
                    "mrs {ticks}, cntvct_el0",
                    "mrs {frequency}, cntfrq_el0",
                    ticks = out(reg) ticks,
                    frequency = out(reg) per_second,
                    options(nomem, nostack, preserves_flags),
                );
            };
            Some(Counter { ticks, per_second })
        }
    }
}
