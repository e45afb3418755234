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

fn data_port_is_written_before_the_command_port(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            command_value: Some(0x80),
            data_value: 0x5a,
            ..Setup::default()
        },
    )?;
    let (command, data) = client.ports();
    let _ = client.communicate(0, b"x", super::refusals::NOBODY);
    ensure_eq!(client.port_writes(), [(data, 0x5a), (command, 0x80)]);
    Ok(())
}

fn mm_reads_the_data_value(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            command_value: Some(0x81),
            data_value: 0xa7,
            ..Setup::default()
        },
    )?;
    ensure_eq!(client.communicate(0, b"x", mm::PORTS), Ok([0x81, 0xa7].to_vec()));
    Ok(())
}

fn command_value_is_configurable(lab: &Lab) -> Seen {
    for value in [0x00, 0x11, 0xfe] {
        let client = up(
            lab,
            &Setup {
                command_value: Some(value),
                ..Setup::default()
            },
        )?;
        let _ = client.communicate(0, b"x", super::refusals::NOBODY);
        let (command, _) = client.ports();
        ensure_eq!(client.port_writes().last(), Some(&(command, value)));
    }
    Ok(())
}

fn command_value_defaults_to_ff(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let _ = client.communicate(0, b"x", super::refusals::NOBODY);
    let (command, data) = client.ports();
    ensure_eq!(client.port_writes(), [(data, 0x00), (command, 0xff)]);
    Ok(())
}

fn one_call_raises_one_mmi(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for calls in 1..=5 {
        let _ = client.communicate(0, b"x", super::refusals::NOBODY);
        ensure_eq!(client.mmis(), calls);
    }
    Ok(())
}

fn switched_off_smis_are_an_error(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.switch_smis(false);
    let result = client.communicate(0, &pattern(100), super::refusals::NOBODY);
    let raised = client.mmis();
    client.switch_smis(true);
    ensure!(
        matches!(result, Err(Status::MmiNotRaised(_))),
        "the result is {result:?}"
    );
    ensure_eq!(raised, 0);
    ensure_clean(&client, 0)
}

fn smis_are_switched_on_on_request(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            enable_smis: true,
            ..Setup::default()
        },
    )?;
    client.switch_smis(false);
    let result = client.communicate(0, b"wake up", mm::ECHO);
    let on = client.smis_are_on();
    client.switch_smis(true);
    ensure_eq!(result, Ok(b"wake up".to_vec()));
    ensure!(on, "SMIs are still off");
    Ok(())
}

fn smis_are_not_switched_on_unasked(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    client.switch_smis(false);
    let _ = client.communicate(0, b"x", super::refusals::NOBODY);
    let on = client.smis_are_on();
    client.switch_smis(true);
    ensure!(!on, "SMIs were switched on");
    Ok(())
}

fn smis_that_cannot_be_switched_on_are_an_error(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            enable_smis: true,
            ..Setup::default()
        },
    )?;
    client.switch_smis(false);
    client.lock_smis(true);
    let result = client.communicate(0, &pattern(100), super::refusals::NOBODY);
    let raised = client.mmis();
    client.lock_smis(false);
    client.switch_smis(true);
    ensure!(
        matches!(
            result,
            Err(Status::MmiNotRaised(TriggerError::EnableRefused { .. }))
        ),
        "the result is {result:?}"
    );
    ensure_eq!(raised, 0);
    ensure_clean(&client, 0)
}

fn failing_trigger_is_an_error(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            failing_trigger: true,
            ..Setup::default()
        },
    )?;
    for _ in 0..2 {
        ensure_eq!(
            client.communicate(0, &pattern(100), super::refusals::NOBODY),
            Err(Status::SwMmiFailed)
        );
        ensure_clean(&client, 0)?;
    }
    ensure_eq!(client.mmis(), 0);
    Ok(())
}

fn smi_after_many_pauses_is_awaited(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            latency: 999,
            polls: 1000,
            ..Setup::default()
        },
    )?;
    ensure_eq!(
        client.communicate(0, b"patience", mm::ECHO),
        Ok(b"patience".to_vec())
    );
    Ok(())
}
