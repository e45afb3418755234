//! A platform's mistakes are refused when the client comes up, and its hooks are called.

use super::{COMMUNICATOR, Refused, Seen, ensure_refused, up};
use crate::lab::{BufferSetup, Lab, LockSetup, MailboxSetup, PortSetup, Setup};
use alloc::vec::Vec;
use mm_wire::EfiStatus;
use patina_mm::config::CommunicateBufferStatus;

scenarios! {
    unset_configuration_is_refused: , "a forgotten configuration offers no MMIs, instead of writing to ports 0xFF and 0x00";
    absent_configuration_is_refused: , "a missing configuration offers no MMIs, instead of writing to ports 0xFF and 0x00";
    half_set_ports_are_refused: PORTS, "one port that was forgotten is refused too, instead of writing to port 0xFF or 0x00";
    one_port_for_both_is_refused: PORTS, "command and data port are two ports";
    smc_ports_are_refused_on_x86: PORTS, "secure monitor calls on a machine without them are a configuration error";
    mixed_ports_are_refused: , "one port of each kind is a configuration error";
    duplicate_buffer_ids_are_refused: MM, "two comm buffers of one identifier are refused";
    overlapping_buffers_are_refused: MM, "comm buffers that share memory are refused";
    mailbox_in_another_buffer_is_refused: MAILBOX, "a mailbox inside another comm buffer is refused";
    late_configuration_is_waited_for: MM, "a configuration that is locked later is waited for, not taken as empty";
    platform_control_is_called_once: MM, "the platform's hook is called, once";
    machine_without_mm_is_unsupported: NO_MM, "if the machine has no MM, the client does not come up, and says why";
    failed_platform_control_offers_no_mmis: , "if the platform's hook fails, there is no service that raises MMIs";
    buffer_too_small_for_a_header_is_refused: , "23 bytes are too small for a comm buffer, 24 are enough";
    null_buffer_is_refused: , "address zero is not a comm buffer";
    misaligned_buffer_is_refused: , "a comm buffer starts on a page";
    wrapping_buffer_is_refused: , "a comm buffer ends inside the address space";
    buffers_are_checked_in_the_documented_order: , "of several mistakes the first of wrapping, size, null and alignment is the error";
    enormous_buffer_is_refused: , "a size above isize::MAX is refused";
    null_mailbox_is_refused: , "a mailbox at address zero is refused, not treated as a missing one";
    misaligned_mailbox_is_refused: , "a mailbox is aligned to its 64-bit fields";
    wrapping_mailbox_is_refused: , "a mailbox ends inside the address space";
    mailbox_inside_its_buffer_is_refused: , "a mailbox in the memory of messages is refused, at its edges too";
}

const PAGE: u64 = 4096;
const LAST_PAGE: u64 = u64::MAX - PAGE + 1;

fn refused(lab: &Lab, setup: &Setup, by: &'static str, status: EfiStatus, because: &'static str) -> Seen {
    ensure_refused(lab, setup, &Refused { by, status, because })
}

const TRIGGER: &str = "SwMmiManager";

fn unset_configuration_is_refused(lab: &Lab) -> Seen {
    let unset = with_ports(PortSetup::Unset);
    refused(lab, &unset, TRIGGER, EfiStatus::NOT_STARTED, "was never set")
}

fn absent_configuration_is_refused(lab: &Lab) -> Seen {
    let absent = Setup {
        lock: LockSetup::Absent,
        ..Setup::default()
    };
    refused(lab, &absent, TRIGGER, EfiStatus::NOT_STARTED, "was never set")
}

fn with_ports(ports: PortSetup) -> Setup {
    Setup {
        ports,
        ..Setup::default()
    }
}

fn smc_ports_are_refused_on_x86(lab: &Lab) -> Seen {
    let setup = with_ports(PortSetup::Smc);
    let because = "SMC(0xC4000041) is a secure monitor call";
    refused(lab, &setup, TRIGGER, EfiStatus::UNSUPPORTED, because)
}

fn bad_ports_are_refused(lab: &Lab, ports: PortSetup, because: &'static str) -> Seen {
    refused(
        lab,
        &with_ports(ports),
        TRIGGER,
        EfiStatus::INVALID_PARAMETER,
        because,
    )
}

fn mixed_ports_are_refused(lab: &Lab) -> Seen {
    bad_ports_are_refused(lab, PortSetup::Mixed, "are of different kinds")
}

fn half_set_ports_are_refused(lab: &Lab) -> Seen {
    bad_ports_are_refused(lab, PortSetup::CommandOnly, "the data port was never set")?;
    bad_ports_are_refused(lab, PortSetup::DataOnly, "the command port was never set")
}

fn one_port_for_both_is_refused(lab: &Lab) -> Seen {
    bad_ports_are_refused(lab, PortSetup::Same, "are both SMI(")
}

fn bad_buffers_are_refused(lab: &Lab, buffers: &[BufferSetup], because: &'static str) -> Seen {
    let setup = Setup {
        buffers: buffers.to_vec(),
        ..Setup::default()
    };
    refused(lab, &setup, COMMUNICATOR, EfiStatus::INVALID_PARAMETER, because)
}

fn duplicate_buffer_ids_are_refused(lab: &Lab) -> Seen {
    let buffers = [BufferSetup::new(3), BufferSetup::new(4), BufferSetup::new(3)];
    bad_buffers_are_refused(lab, &buffers, "two comm buffers have the identifier 3")
}

fn overlapping_buffers_are_refused(lab: &Lab) -> Seen {
    let buffers = [
        BufferSetup::new(0),
        BufferSetup {
            overlaps_previous: true,
            ..BufferSetup::new(1)
        },
    ];
    bad_buffers_are_refused(lab, &buffers, "comm buffers 0 and 1 share memory")
}

fn mailbox_in_another_buffer_is_refused(lab: &Lab) -> Seen {
    let buffers = [
        BufferSetup::new(0),
        BufferSetup {
            mailbox: MailboxSetup::InFirstBuffer,
            ..BufferSetup::new(1)
        },
    ];
    bad_buffers_are_refused(lab, &buffers, "comm buffers 0 and 1 share memory")
}

fn late_configuration_is_waited_for(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            lock: LockSetup::Later,
            ..Setup::default()
        },
    )?;
    let _ = client.communicate(0, b"x", super::refusals::NO_HANDLER);
    ensure_eq!(client.mmis(), 1);
    Ok(())
}

fn platform_control_is_called_once(lab: &Lab) -> Seen {
    let client = up(
        lab,
        &Setup {
            platform_control: Some(Ok(())),
            ..Setup::default()
        },
    )?;
    ensure_eq!((client.platform_control_calls(), client.mmis()), (1, 0));
    for calls in 1..=2 {
        let _ = client.communicate(0, b"x", super::refusals::NO_HANDLER);
        ensure_eq!((client.platform_control_calls(), client.mmis()), (1, calls));
    }
    Ok(())
}

fn machine_without_mm_is_unsupported(lab: &Lab) -> Seen {
    let setup = Setup::default();
    refused(
        lab,
        &setup,
        TRIGGER,
        EfiStatus::UNSUPPORTED,
        "no software MMIs: platform: ",
    )
}

fn failed_platform_control_offers_no_mmis(lab: &Lab) -> Seen {
    let setup = Setup {
        platform_control: Some(Err(EfiStatus::DEVICE_ERROR)),
        ..Setup::default()
    };
    let because = "PlatformMmControl::init failed: EFI_DEVICE_ERROR";
    refused(lab, &setup, TRIGGER, EfiStatus::DEVICE_ERROR, because)
}

fn buffer_too_small_for_a_header_is_refused(lab: &Lab) -> Seen {
    let at = lab.scratch();
    for len in [0, 1, 23] {
        ensure_eq!(
            lab.adopt(at, len, None),
            Err(CommunicateBufferStatus::TooSmallForHeader)
        );
    }
    ensure_eq!(lab.adopt(at, 24, None), Ok(()));
    Ok(())
}

fn null_buffer_is_refused(lab: &Lab) -> Seen {
    ensure_eq!(lab.adopt(0, 4096, None), Err(CommunicateBufferStatus::NoBuffer));
    Ok(())
}

fn misaligned_buffer_is_refused(lab: &Lab) -> Seen {
    for offset in [1, 8, 64, 4095] {
        ensure_eq!(
            lab.adopt(lab.scratch() + offset, 4096, None),
            Err(CommunicateBufferStatus::NotAligned)
        );
    }
    Ok(())
}

fn wrapping_buffer_is_refused(lab: &Lab) -> Seen {
    ensure_eq!(
        lab.adopt(LAST_PAGE, 4096, None),
        Err(CommunicateBufferStatus::AddressValidationFailed)
    );
    ensure_eq!(
        lab.adopt(LAST_PAGE, 8192, None),
        Err(CommunicateBufferStatus::AddressValidationFailed)
    );
    Ok(())
}

fn buffers_are_checked_in_the_documented_order(lab: &Lab) -> Seen {
    for (address, len, expected) in [
        (
            LAST_PAGE + 1,
            8192,
            CommunicateBufferStatus::AddressValidationFailed,
        ),
        (u64::MAX, 2, CommunicateBufferStatus::AddressValidationFailed),
        (0, 23, CommunicateBufferStatus::TooSmallForHeader),
        (1, 23, CommunicateBufferStatus::TooSmallForHeader),
        (0, usize::MAX, CommunicateBufferStatus::NoBuffer),
        (
            1,
            isize::MAX.unsigned_abs() + 1,
            CommunicateBufferStatus::NotAligned,
        ),
    ] {
        ensure_eq!(lab.adopt(address, len, Some(1)), Err(expected));
    }
    ensure_eq!(
        lab.adopt(lab.scratch() + 8, 4096, Some(1)),
        Err(CommunicateBufferStatus::NotAligned)
    );
    Ok(())
}

fn enormous_buffer_is_refused(lab: &Lab) -> Seen {
    for len in [isize::MAX.unsigned_abs() + 1, usize::MAX] {
        ensure_eq!(
            lab.adopt(4096, len, None),
            Err(CommunicateBufferStatus::AddressValidationFailed)
        );
    }
    Ok(())
}

fn null_mailbox_is_refused(lab: &Lab) -> Seen {
    ensure_eq!(
        lab.adopt(lab.scratch(), 4096, Some(0)),
        Err(CommunicateBufferStatus::AddressValidationFailed)
    );
    Ok(())
}

fn misaligned_mailbox_is_refused(lab: &Lab) -> Seen {
    let behind = lab.scratch() + PAGE;
    for offset in 1..8 {
        ensure_eq!(
            lab.adopt(lab.scratch(), 4096, Some(behind + offset)),
            Err(CommunicateBufferStatus::NotAligned)
        );
    }
    ensure_eq!(lab.adopt(lab.scratch(), 4096, Some(behind)), Ok(()));
    Ok(())
}

fn wrapping_mailbox_is_refused(lab: &Lab) -> Seen {
    ensure_eq!(
        lab.adopt(lab.scratch(), 4096, Some(u64::MAX - 15)),
        Err(CommunicateBufferStatus::AddressValidationFailed)
    );
    Ok(())
}

fn mailbox_inside_its_buffer_is_refused(lab: &Lab) -> Seen {
    let second_page = lab.scratch() + PAGE;
    let inside: Vec<u64> = [0, 8, 2048, PAGE - 8, PAGE - 24]
        .iter()
        .map(|at| second_page + at)
        .collect();
    for mailbox in inside.into_iter().chain([second_page - 16]) {
        ensure_eq!(
            lab.adopt(second_page, 4096, Some(mailbox)),
            Err(CommunicateBufferStatus::AddressValidationFailed)
        );
    }
    ensure_eq!(lab.adopt(second_page, 4096, Some(second_page - 24)), Ok(()));
    Ok(())
}
