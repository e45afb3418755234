//! What a platform's own log prints of the crate's types, and the errors that a component returns.
#![allow(clippy::unwrap_used, reason = "this is a test: what is not there fails it")]

use mm_comm::TriggerError;
use mm_comm::ich9::Ich9Error;
use patina::error::EfiError;
use patina::{BinaryGuid, Guid};
use patina_mm::component::communicator::{CallOptions, MmCommunication, MmCommunicator, Status};
use patina_mm::component::hob_configuration::{AcpiBaseSource, HobConfigurationError, MmHobConfiguration};
use patina_mm::component::supervisor::SupervisorError;
use patina_mm::component::sw_mmi_manager::SwMmiManager;
use patina_mm::config::{AcpiBase, HeaderFormat};
use patina_mm::service::EfiStatus;
use std::cell::RefCell;

#[test]
fn components_are_printed_without_their_memory() {
    let hobs = MmHobConfiguration::default()
        .with_acpi_base(AcpiBaseSource::Fixed(AcpiBase::Io(0x600)))
        .with_exclusive_buffers();
    let text = format!("{hobs:?} {:?} {:?}", MmCommunicator::new(), SwMmiManager::new());
    for part in ["acpi_base: Fixed(", "MM Executor Set: false", "SwMmiManager"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn errors_of_hobs_and_of_the_supervisor_are_those_of_the_sdk() {
    let of_hobs: [(HobConfigurationError, EfiError); 3] = [
        (HobConfigurationError::NoHob, EfiError::NotFound),
        (
            HobConfigurationError::AcpiBase(Ich9Error::NoPortIo),
            EfiError::Unsupported,
        ),
        (
            HobConfigurationError::AcpiBase(Ich9Error::NoBridge),
            EfiError::DeviceError,
        ),
    ];
    for (error, expected) in of_hobs {
        assert_eq!(EfiError::from(error), expected, "{error}");
    }
    let result = EfiStatus::SECURITY_VIOLATION;
    for (error, expected) in [
        (SupervisorError::HasDriver, EfiError::AccessDenied),
        (
            SupervisorError::MovedInPart {
                result,
                users_moved: true,
            },
            EfiError::DeviceError,
        ),
        (SupervisorError::NotTaken { request: 3 }, EfiError::NoResponse),
        (
            SupervisorError::RequestLevel { claimed: 1 },
            EfiError::ProtocolError,
        ),
        (
            SupervisorError::Refused { request: 3, result },
            EfiError::SecurityViolation,
        ),
    ] {
        assert!(!error.to_string().is_empty());
        assert_eq!(EfiError::from(error), expected, "{error}");
    }
    let refused = Status::MmiNotRaised(TriggerError::NoPortIo);
    assert!(format!("{refused:?}").starts_with("MmiNotRaised("));
}

/// A platform's own communication service, with only the required method.
#[derive(Default)]
struct Own(RefCell<Vec<u8>>);

impl MmCommunication for Own {
    fn communicate<'a>(&self, _: u8, message: &[u8], _: Guid<'a>) -> Result<Vec<u8>, Status> {
        self.0.replace(message.to_vec());
        Ok(message.iter().rev().copied().collect())
    }
}

#[test]
fn a_service_with_one_function_offers_the_others() {
    let own = Own::default();
    let recipient = BinaryGuid::from_bytes(&[7; 16]);
    let mut seen = Vec::new();
    let v1 = CallOptions::new().with_header(HeaderFormat::V1);
    own.communicate_with(3, &[1, 2, 3], recipient.as_guid(), v1, &mut |response| {
        assert_eq!((response.len(), response.is_empty()), (3, false));
        seen = response.read_to_vec().unwrap();
    })
    .unwrap();
    assert_eq!((own.0.take(), seen), (vec![1, 2, 3], vec![3, 2, 1]));
    let v3 = CallOptions::new().with_header(HeaderFormat::V3);
    let refused = own.communicate_with(3, &[1], recipient.as_guid(), v3, &mut |_| unreachable!());
    assert_eq!(refused, Err(Status::Unsupported));
    assert_eq!(own.message_capacity(3, v1), Err(Status::Unsupported));
    assert!(own.confirms(3));
}
