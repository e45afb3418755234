//! The platform's hook, declared and offered late.

use super::{Refused, Seen, ensure_refused, up};
use crate::lab::{ControlSetup, Lab, Remains, Setup, SetupFailure};
use mm_wire::EfiStatus;

scenarios! {
    declared_platform_control_is_waited_for: MM, "a hook that is offered after the trigger is called, once, if the platform declares it";
    late_platform_control_can_fail: , "if a hook that is offered late fails, there is no service that raises MMIs";
    missing_platform_control_offers_no_mmis: , "a hook that is declared and never offered keeps MMIs from being raised";
}

fn setup(control: ControlSetup, result: Result<(), EfiStatus>) -> Setup {
    Setup {
        platform_control: Some(result),
        control,
        ..Setup::default()
    }
}

fn declared_platform_control_is_waited_for(lab: &Lab) -> Seen {
    let client = up(lab, &setup(ControlSetup::LateAndDeclared, Ok(())))?;
    ensure_eq!(client.platform_control_calls(), 1);
    let _ = client.communicate(0, b"x", super::refusals::NO_HANDLER);
    ensure_eq!(client.mmis(), 1);
    ensure_eq!(client.platform_control_calls(), 1);
    Ok(())
}

fn late_platform_control_can_fail(lab: &Lab) -> Seen {
    let failing = setup(ControlSetup::LateAndDeclared, Err(EfiStatus::DEVICE_ERROR));
    let expected = Refused {
        by: "AfterPlatformControl",
        status: EfiStatus::DEVICE_ERROR,
        because: "PlatformMmControl::init failed: EFI_DEVICE_ERROR",
    };
    ensure_refused(lab, &failing, &expected)
}

fn missing_platform_control_offers_no_mmis(lab: &Lab) -> Seen {
    let missing = setup(ControlSetup::MissingAndDeclared, Ok(()));
    match lab.bring_up(&missing).map(drop) {
        Err(SetupFailure::NotDispatched { component, remains }) => {
            ensure!(component.contains("AfterPlatformControl"), "{component} waits");
            ensure_eq!(remains, Remains::default());
            Ok(())
        }
        other => Err(alloc::format!("the client ended with {other:?}")),
    }
}
