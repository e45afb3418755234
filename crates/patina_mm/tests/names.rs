//! Names each type of another crate that a public signature of `patina_mm` has, with `patina_mm` as
//! the only dependency: a consumer can store, match and implement all of them.

use patina_mm::component::hob_configuration::{HobConfigurationError, PlaceError};
use patina_mm::component::sw_mmi_manager::{
    Call, Conduit, FfaCode, Ports, SmcError, SmiEnable, SpmMmCode, SwMmiManager, TriggerError,
};
use patina_mm::config::{
    AddressRange, ConfigurationError, HeaderFormat, Patience, PsciConduit, SmcOptions, SmiCheck,
};
use patina_mm::service::{EfiStatus, SupervisorError};

/// A consumer's implementation of ports.
struct NoPorts;

impl Ports for NoPorts {
    fn write_u8(&self, _: u16, _: u8) {}
    fn read_u32(&self, _: u16) -> u32 {
        0
    }
    fn write_u32(&self, _: u16, _: u32) {}
    fn read_mmio_u32(&self, _: usize) -> u32 {
        0
    }
    fn write_mmio_u32(&self, _: usize, _: u32) {}
    fn pause(&self) {}
}

/// A consumer's implementation of secure monitor calls.
struct NoCalls;

impl Call for NoCalls {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        [u32::MAX; 8]
    }
    fn call64(_: u32, _: [u64; 17]) -> [u64; 18] {
        [u64::MAX; 18]
    }
}

impl Conduit for NoCalls {
    fn el3_is_implemented() -> bool {
        false
    }
}

#[test]
fn consumer_implements_ports_and_conduit() {
    let managers = [
        SwMmiManager::with_ports(NoPorts),
        SwMmiManager::with_conduit::<NoCalls>(),
    ];
    assert!(
        managers
            .iter()
            .all(|manager| format!("{manager:?}").contains("SwMmiManager"))
    );
}

#[test]
fn consumer_names_what_errors_and_options_carry() {
    let memory = AddressRange::new(0x1000, 0x1000).unwrap();
    let shared = ConfigurationError::SharedMemory {
        first: 0,
        first_range: memory,
        second: 1,
        second_range: memory,
    };
    let of_shared = |error| match error {
        ConfigurationError::SharedMemory { first_range, .. } => Some::<AddressRange>(first_range),
        _ => None,
    };
    assert_eq!(of_shared(shared), Some(memory));
    let place = |error: HobConfigurationError| -> Option<PlaceError> {
        match error {
            HobConfigurationError::Place(error) => Some(error),
            _ => None,
        }
    };
    assert_eq!(place(HobConfigurationError::NoHob), None);
    let code = |error: SmcError| match error {
        SmcError::SpmMm(SpmMmCode(code)) => code,
        SmcError::Ffa {
            code: FfaCode(code), ..
        } => code,
        _ => 0,
    };
    assert_eq!(code(SmcError::SpmMm(SpmMmCode(-3))), -3);
    let missing = |error: TriggerError| -> Option<SmiEnable> {
        match error {
            TriggerError::SmisDisabled { missing, .. } => Some(missing),
            _ => None,
        }
    };
    assert_eq!(missing(TriggerError::NoPortIo), None);
    let refused = |error: SupervisorError| -> Option<EfiStatus> {
        match error {
            SupervisorError::Refused { result, .. } => Some(result),
            _ => None,
        }
    };
    let denied = SupervisorError::Refused {
        request: 3,
        result: EfiStatus::ACCESS_DENIED,
    };
    assert_eq!(refused(denied), Some(EfiStatus::ACCESS_DENIED));
    let _: (HeaderFormat, SmiCheck) = Default::default();
    let SmcOptions { psci, patience, .. } = SmcOptions::default();
    let _: (PsciConduit, Patience) = (psci, patience);
}
