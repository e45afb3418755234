//! How an MMI is raised.

use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{Lab, Setup};
use crate::mm;
use patina_mm::component::communicator::Status;
use patina_mm::component::sw_mmi_manager::TriggerError;

scenarios! {
    data_port_is_written_before_the_command_port: PORTS, "the write that raises the MMI is the last one";
    mm_reads_the_data_value: CONTROLLED_MM | PORTS, "MM sees the configured data and command values";
    command_value_is_configurable: PORTS, "what is written to the command port is the platform's choice";
    command_value_defaults_to_ff: PORTS, "without a choice it is 0xFF";
    one_call_raises_one_mmi: MM, "a call raises exactly one MMI";
    switched_off_smis_are_an_error: SMI_SWITCH, "with SMIs off nothing is raised, and nothing stays behind";
    smis_are_switched_on_on_request: CONTROLLED_MM | SMI_SWITCH, "a platform can have SMIs switched on";
    smis_are_not_switched_on_unasked: SMI_SWITCH, "without the request SMI_EN is only read";
    smis_that_cannot_be_switched_on_are_an_error: SMI_SWITCH, "where the chipset does not let SMIs be switched on nothing is raised, and the error says so";
    failing_trigger_is_an_error: MM, "a trigger of the platform's own that fails is an error, and nothing stays behind";
    smi_after_many_pauses_is_awaited: CONTROLLED_MM | LATENCY, "an MMI that is taken late is waited for";
}

fn data_port_is_written_before_the_command_port(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            command_value: Some(0x80),
            data_value: 0x5a,
            ..Setup::default()
        },
    )?;
    let (command, data) = machine.ports();
    let _ = machine.communicate(0, b"x", super::refusals::NOBODY);
    ensure_eq!(machine.port_writes(), [(data, 0x5a), (command, 0x80)]);
    Ok(())
}

fn mm_reads_the_data_value(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            command_value: Some(0x81),
            data_value: 0xa7,
            ..Setup::default()
        },
    )?;
    ensure_eq!(machine.communicate(0, b"x", mm::PORTS), Ok([0x81, 0xa7].to_vec()));
    Ok(())
}

fn command_value_is_configurable(lab: &dyn Lab) -> Seen {
    for value in [0x00, 0x11, 0xfe] {
        let machine = up(
            lab,
            &Setup {
                command_value: Some(value),
                ..Setup::default()
            },
        )?;
        let _ = machine.communicate(0, b"x", super::refusals::NOBODY);
        let (command, _) = machine.ports();
        ensure_eq!(machine.port_writes().last(), Some(&(command, value)));
    }
    Ok(())
}

fn command_value_defaults_to_ff(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    let _ = machine.communicate(0, b"x", super::refusals::NOBODY);
    let (command, data) = machine.ports();
    ensure_eq!(machine.port_writes(), [(data, 0x00), (command, 0xff)]);
    Ok(())
}

fn one_call_raises_one_mmi(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    for calls in 1..=5 {
        let _ = machine.communicate(0, b"x", super::refusals::NOBODY);
        ensure_eq!(machine.mmis(), calls);
    }
    Ok(())
}

fn switched_off_smis_are_an_error(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    machine.switch_smis(false);
    let result = machine.communicate(0, &pattern(100), super::refusals::NOBODY);
    let raised = machine.mmis();
    machine.switch_smis(true);
    ensure!(
        matches!(result, Err(Status::MmiNotRaised(_))),
        "the result is {result:?}"
    );
    ensure_eq!(raised, 0);
    ensure_clean(&*machine, 0)
}

fn smis_are_switched_on_on_request(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            enable_smis: true,
            ..Setup::default()
        },
    )?;
    machine.switch_smis(false);
    let result = machine.communicate(0, b"wake up", mm::ECHO);
    let on = machine.smis_are_on();
    machine.switch_smis(true);
    ensure_eq!(result, Ok(b"wake up".to_vec()));
    ensure!(on, "SMIs are still off");
    Ok(())
}

fn smis_are_not_switched_on_unasked(lab: &dyn Lab) -> Seen {
    let machine = ready(lab)?;
    machine.switch_smis(false);
    let _ = machine.communicate(0, b"x", super::refusals::NOBODY);
    let on = machine.smis_are_on();
    machine.switch_smis(true);
    ensure!(!on, "SMIs were switched on");
    Ok(())
}

fn smis_that_cannot_be_switched_on_are_an_error(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            enable_smis: true,
            ..Setup::default()
        },
    )?;
    machine.switch_smis(false);
    machine.lock_smis(true);
    let result = machine.communicate(0, &pattern(100), super::refusals::NOBODY);
    let raised = machine.mmis();
    machine.lock_smis(false);
    machine.switch_smis(true);
    ensure!(
        matches!(
            result,
            Err(Status::MmiNotRaised(TriggerError::EnableRefused { .. }))
        ),
        "the result is {result:?}"
    );
    ensure_eq!(raised, 0);
    ensure_clean(&*machine, 0)
}

fn failing_trigger_is_an_error(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            failing_trigger: true,
            ..Setup::default()
        },
    )?;
    for _ in 0..2 {
        ensure_eq!(
            machine.communicate(0, &pattern(100), super::refusals::NOBODY),
            Err(Status::SwMmiFailed)
        );
        ensure_clean(&*machine, 0)?;
    }
    ensure_eq!(machine.mmis(), 0);
    Ok(())
}

fn smi_after_many_pauses_is_awaited(lab: &dyn Lab) -> Seen {
    let machine = up(
        lab,
        &Setup {
            latency: 999,
            polls: 1000,
            ..Setup::default()
        },
    )?;
    ensure_eq!(
        machine.communicate(0, b"patience", mm::ECHO),
        Ok(b"patience".to_vec())
    );
    Ok(())
}
