//! Serves the secure monitor calls of the non-secure world.

use crate::ffa::{Ffa, Kind};
use crate::layout::{COUNT_REQUESTS, Interface, MODE, Mode, SET_BUFFER};
use crate::mm::Mm;
use crate::spm_mm;
use mm_wire::{AddressRange, Header};

/// Registers x0 to x17.
pub type Registers = [u64; 18];

/// What the monitor has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Return to the caller.
    Return,
    /// Return to the caller with its vector registers changed: the partition ran, and they were not
    /// saved for the caller. TF-A built with `CTX_INCLUDE_FPREGS=0`, the default, does not save
    /// them.
    ReturnWithOtherVectors,
    /// End the machine. Test runs do not end this way; firmware that resets or gives up does.
    PowerOff,
}

/// The bit of a function's identifier by which its arguments have 64 bits.
const SMC64: u32 = 1 << 30;

const SMCCC_VERSION: u32 = 0x8000_0000;
const PSCI_VERSION: u32 = 0x8400_0000;
const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;

const SMCCC_1_2: u64 = 0x1_0002;
const PSCI_1_1: u64 = 0x1_0001;
/// The calling convention's response to an unknown function.
const UNKNOWN: u64 = u64::MAX;

/// The interface that is presented, and its state.
#[derive(Debug)]
enum Service {
    NoMm,
    SpmMm,
    Ffa(Ffa),
}

/// The secure world.
#[derive(Debug)]
pub struct World<'a> {
    mode: Mode,
    mm: Mm<'a>,
    service: Service,
}

impl<'a> World<'a> {
    /// Makes a secure world.
    #[must_use]
    pub const fn new(mode: Mode, mm: Mm<'a>) -> Self {
        let service = match mode.interface {
            Interface::NoMm | Interface::NoEl3 => Service::NoMm,
            Interface::SpmMm => Service::SpmMm,
            Interface::Ffa => Service::Ffa(Ffa::new(Kind::Registers)),
            Interface::FfaWithoutRegs => Service::Ffa(Ffa::new(Kind::Pages)),
            Interface::StandaloneMm => Service::Ffa(Ffa::new(Kind::StandaloneMm)),
        };
        Self { mode, mm, service }
    }

    /// In a demo above UEFI: how many requests MM was given, and the last one.
    #[must_use]
    pub fn shown(&self) -> Option<(u64, Option<(AddressRange, Header)>)> {
        (self.mode.demo && self.mode.uefi).then(|| (self.mm.requests(), self.mm.last_request()))
    }

    /// Serves a call.
    pub fn call(&mut self, registers: &mut Registers) -> Effect {
        let [x0, mut arguments @ ..] = *registers;
        // Bits 63:32 of the identifier are not part of it (Arm DEN0028, 2.5).
        let function = u32::try_from(x0 & 0xffff_ffff).unwrap_or_default();
        if function & SMC64 == 0 {
            // The arguments are w1 to w17, as in TF-A's `std_svc_smc_handler`.
            arguments = arguments.map(|argument| argument & 0xffff_ffff);
        }
        let [x1, x2, x3, ..] = arguments;
        let x0 = match function {
            PSCI_SYSTEM_OFF | PSCI_SYSTEM_RESET => return Effect::PowerOff,
            SMCCC_VERSION => SMCCC_1_2,
            PSCI_VERSION => PSCI_1_1,
            PSCI_FEATURES => psci_features(x1),
            SET_BUFFER => self
                .mm
                .set_buffer(x1, x2, x3)
                .map_or_else(|error| spm_mm::code(error.spm_mm()), |()| 0),
            COUNT_REQUESTS => self.mm.requests(),
            MODE => self.mode.word().into(),
            _ => match &mut self.service {
                Service::NoMm => UNKNOWN,
                Service::SpmMm => spm_mm::call(&mut self.mm, function, arguments).unwrap_or(UNKNOWN),
                Service::Ffa(ffa) => match ffa.call(&mut self.mm, function, arguments) {
                    Some(response) => {
                        *registers = [0; 18];
                        for (register, value) in registers.iter_mut().zip(response) {
                            *register = value;
                        }
                        return if ffa.changes_vectors(function) {
                            Effect::ReturnWithOtherVectors
                        } else {
                            Effect::Return
                        };
                    }
                    None => UNKNOWN,
                },
            },
        };
        let [first, ..] = registers;
        *first = x0;
        Effect::Return
    }
}

const fn psci_features(function: u64) -> u64 {
    match function {
        0x8400_0000 | 0x8400_0008 | 0x8400_0009 | 0x8400_000a | 0x8000_0000 => 0,
        _ => spm_mm::code(-1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_comm::SharedRegion;
    use mm_core::handlers::VariableStore;
    use std::boxed::Box;
    use std::vec;

    #[repr(C, align(4096))]
    struct Ram([u8; 0x8000]);

    /// A secure world whose non-secure RAM starts at this address, the first half of it shared.
    fn world(interface: Interface) -> (World<'static>, u64) {
        let ram = SharedRegion::over_static(&mut Box::leak(Box::new(Ram([0; 0x8000]))).0);
        let base = ram.range().unwrap().start();
        let mode = Mode {
            interface,
            uefi: false,
            demo: false,
            soak: false,
        };
        let mm = Mm::new(
            ram,
            AddressRange::new(base, 0x4000).unwrap(),
            AddressRange::new(0x0e00_0000, 0x1000).unwrap(),
            vec![0; 0x1000].leak(),
            VariableStore::new(vec![0; 0x400].leak(), 64),
        );
        (World::new(mode, mm), base)
    }

    fn call(world: &mut World<'_>, first: &[u64]) -> Registers {
        let mut registers = [0; 18];
        registers[..first.len()].copy_from_slice(first);
        assert_eq!(world.call(&mut registers), Effect::Return);
        registers
    }

    #[test]
    fn upper_halves_of_registers_are_no_arguments_of_32_bit_calls() {
        const GARBAGE: u64 = 0xdead_beef_0000_0000;
        let (mut world, base) = world(Interface::FfaWithoutRegs);
        let [x0, ..] = call(&mut world, &[PSCI_FEATURES.into(), GARBAGE | 0x8400_0008]);
        assert_eq!(x0, 0);
        // FFA_RXTX_MAP has 64-bit arguments.
        let mapped = call(&mut world, &[0xc400_0066, base + 0x5000, base + 0x6000, 1]);
        assert_eq!(mapped[0], 0x8400_0061);
        let service = [0xdcae_8d37_u64, 0x4644_6bf0, 0xab40_1483, 0xa387_3c93].map(|word| GARBAGE | word);
        let found = call(&mut world, &[&[0x8400_0068], &service[..]].concat());
        assert_eq!(found[..3], [0x8400_0061, 0, 1]);
    }

    #[test]
    fn a_buffer_that_is_refused_changes_none() {
        let (mut world, base) = world(Interface::SpmMm);
        let mut set = |index, start, len| call(&mut world, &[SET_BUFFER.into(), index, start, len])[0];
        assert_eq!((set(0, base, 0x1000), set(1, base + 0x1000, 0x1000)), (0, 0));
        // Less than a header; then buffer 1 still has its place.
        let invalid = spm_mm::code(-2);
        assert_eq!(set(0, base + 0x3000, 23), invalid);
        assert_eq!(set(2, base + 0x1000, 0x1000), invalid);
        // A buffer may be replaced where it is, but not over another one.
        assert_eq!(set(1, base + 0x1800, 0x1000), 0);
        assert_eq!(set(1, base, 0x1800), invalid);
        assert_eq!(set(2, base + 0x2000, 0x1000), invalid);
        assert_eq!(set(0, base + 0x1800, 0x1000), 0);
    }
}
