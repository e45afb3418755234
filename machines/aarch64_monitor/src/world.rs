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
        let [x0, arguments @ ..] = *registers;
        // Bits 63:32 of the identifier are not part of it (Arm DEN0028, 2.5).
        let function = u32::try_from(x0 & 0xffff_ffff).unwrap_or_default();
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
