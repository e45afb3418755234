//! How an MMI is raised.

use super::refusals::NO_HANDLER;
use super::{Seen, ensure_clean, pattern, ready, up};
use crate::lab::{Client, Lab, Setup};
use crate::mm;
use alloc::string::String;
use alloc::vec::Vec;
use mm_wire::Guid;
use patina_mm::component::communicator::Status;
use patina_mm::component::sw_mmi_manager::TriggerError;

scenarios! {
    data_port_is_written_before_the_command_port: PORTS, "the write that raises the MMI is the last one";
    mm_reads_the_data_value: CONTROLLED_MM | PORTS, "MM sees the configured data and command values";
    command_value_is_configurable: PORTS, "the platform chooses the value for the command port";
    command_value_defaults_to_ff: PORTS, "by default the value for the command port is 0xFF";
    one_call_raises_one_mmi: MM, "a call raises exactly one MMI";
    switched_off_smis_are_an_error: SMI_SWITCH, "with SMIs off nothing is raised, and nothing stays behind";
    smis_are_switched_on_on_request: CONTROLLED_MM | SMI_SWITCH, "SMIs are switched on if the platform asks for that";
    smis_are_not_switched_on_unasked: SMI_SWITCH, "without the request SMI_EN is only read";
    smis_that_cannot_be_switched_on_are_an_error: SMI_SWITCH, "if the chipset does not allow SMIs to be switched on nothing is raised, and the error says so";
    failing_trigger_is_an_error: MM, "a platform's own trigger that fails is an error, and nothing stays behind";
    smi_after_many_pauses_is_awaited: CONTROLLED_MM | LATENCY, "an MMI that is taken late is waited for";
}

/// A client that writes these values to the ports.
fn writing(lab: &Lab, command: u8, data: u8) -> Result<Client, String> {
    let setup = Setup {
        command_value: Some(command),
        data_value: data,
        ..Setup::default()
    };
    up(lab, &setup)
}

fn data_port_is_written_before_the_command_port(lab: &Lab) -> Seen {
    let client = writing(lab, 0x80, 0x5a)?;
    let (command, data) = client.ports();
    let _ = client.communicate(0, b"x", NO_HANDLER);
    ensure_eq!(client.port_writes(), [(data, 0x5a), (command, 0x80)]);
    Ok(())
}

fn mm_reads_the_data_value(lab: &Lab) -> Seen {
    let client = writing(lab, 0x81, 0xa7)?;
    ensure_eq!(client.communicate(0, b"x", mm::PORTS), Ok([0x81, 0xa7].to_vec()));
    Ok(())
}

fn command_value_is_configurable(lab: &Lab) -> Seen {
    for value in [0x00, 0x11, 0xfe] {
        let client = writing(lab, value, 0)?;
        let _ = client.communicate(0, b"x", NO_HANDLER);
        let (command, _) = client.ports();
        ensure_eq!(client.port_writes().last(), Some(&(command, value)));
    }
    Ok(())
}

fn command_value_defaults_to_ff(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    let _ = client.communicate(0, b"x", NO_HANDLER);
    let (command, data) = client.ports();
    ensure_eq!(client.port_writes(), [(data, 0x00), (command, 0xff)]);
    Ok(())
}

fn one_call_raises_one_mmi(lab: &Lab) -> Seen {
    let client = ready(lab)?;
    for calls in 1..=5 {
        let _ = client.communicate(0, b"x", NO_HANDLER);
        ensure_eq!(client.mmis(), calls);
    }
    Ok(())
}

/// A call that was made with SMIs off.
struct CallWithSmisOff {
    client: Client,
    result: Result<Vec<u8>, Status>,
    /// Whether SMIs were on after it.
    are_on: bool,
}

/// Makes a call with SMIs off, on a client that may or may not switch them on.
fn call_with_smis_off(
    lab: &Lab,
    enable_smis: bool,
    recipient: Guid,
    register_is_locked: bool,
) -> Result<CallWithSmisOff, String> {
    let setup = Setup {
        enable_smis,
        ..Setup::default()
    };
    let client = up(lab, &setup)?;
    client.switch_smis(false);
    client.lock_smis(register_is_locked);
    let result = client.communicate(0, &pattern(100), recipient);
    let are_on = client.smis_are_on();
    client.lock_smis(false);
    client.switch_smis(true);
    Ok(CallWithSmisOff {
        client,
        result,
        are_on,
    })
}

fn switched_off_smis_are_an_error(lab: &Lab) -> Seen {
    let CallWithSmisOff { client, result, .. } = call_with_smis_off(lab, false, NO_HANDLER, false)?;
    ensure!(
        matches!(result, Err(Status::MmiNotRaised(_))),
        "the result is {result:?}"
    );
    ensure_eq!(client.mmis(), 0);
    ensure_clean(&client, 0)
}

fn smis_are_switched_on_on_request(lab: &Lab) -> Seen {
    let CallWithSmisOff { result, are_on, .. } = call_with_smis_off(lab, true, mm::ECHO, false)?;
    ensure_eq!(result, Ok(pattern(100)));
    ensure!(are_on, "SMIs are still off");
    Ok(())
}

fn smis_are_not_switched_on_unasked(lab: &Lab) -> Seen {
    let CallWithSmisOff { are_on, .. } = call_with_smis_off(lab, false, NO_HANDLER, false)?;
    ensure!(!are_on, "SMIs were switched on");
    Ok(())
}

fn smis_that_cannot_be_switched_on_are_an_error(lab: &Lab) -> Seen {
    let CallWithSmisOff { client, result, .. } = call_with_smis_off(lab, true, NO_HANDLER, true)?;
    ensure!(
        matches!(
            result,
            Err(Status::MmiNotRaised(TriggerError::EnableRefused { .. }))
        ),
        "the result is {result:?}"
    );
    ensure_eq!(client.mmis(), 0);
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
            client.communicate(0, &pattern(100), NO_HANDLER),
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
