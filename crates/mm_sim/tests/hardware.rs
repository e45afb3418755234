//! The simulated machine, seen from outside: by the client core, and by MM.
#![expect(clippy::unwrap_used, reason = "tests")]

use mm_comm::{Channel, PortTrigger, Ports, ResponseError, SmiCheck, SmiEnable, TriggerError};
use mm_core::handlers::Echo;
use mm_core::setup::Purpose;
use mm_core::{CommBuffer, Mmi, Outcome, Request, SetupError};
use mm_sim::{Config, IoWrite, MAX_VARIABLE_LEN, Machine, SUPERVISOR, SimError, StandardMm};
use mm_wire::header::HeaderFormat::{self, V1, V3};
use mm_wire::message::{supervisor, variable};
use mm_wire::{AddressRange, EfiStatus, Guid, guid};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const OTHER: Guid = guid!("11111111-2222-3333-4444-555555555555");
const COMMAND: u16 = 0xb2;
const DATA: u16 = 0xb3;
const SMI_EN: u16 = 0x630;

/// One exchange; the trigger must succeed.
fn exchange(
    machine: &Machine,
    channel: &Channel,
    format: HeaderFormat,
    recipient: Guid,
    message: &[u8],
) -> Result<Vec<u8>, ResponseError> {
    let staged = channel.begin(format, recipient, message).unwrap();
    machine
        .trigger(SmiCheck::Require)
        .raise(machine, 0xff, 0)
        .unwrap();
    staged.wait(20, || machine.pause());
    let response = staged.finish()?;
    let mut bytes = vec![0; response.len()];
    response.copy_to(&mut bytes).unwrap();
    Ok(bytes)
}

fn standard(pages: &[usize]) -> (Machine, Vec<Channel>) {
    let (machine, buffers) = Machine::with_standard_handlers(Config::default(), pages).unwrap();
    let channels = buffers
        .into_iter()
        .map(|buffer| machine.channel(buffer).unwrap())
        .collect();
    (machine, channels)
}

#[test]
fn mmi_between_response_and_wipe_does_not_serve_a_request_twice() {
    let append = |log: &Rc<RefCell<Vec<Vec<u8>>>>| {
        let log = Rc::clone(log);
        move |request: &mut Request<'_>| {
            log.borrow_mut().push(request.message().to_vec());
            request
                .respond(b"appended")
                .map_err(|_full| EfiStatus::BUFFER_TOO_SMALL)
        }
    };
    for format in [V1, V3] {
        for with_mailbox in [true, false] {
            let machine = Machine::new(Config::default());
            let buffers = vec![machine.allocate_buffer(1, with_mailbox).unwrap()].leak();
            let channel = machine.channel(buffers[0]).unwrap();
            let log = Rc::default();
            let mut handler = append(&log);
            let scratch = vec![0; 4096].leak();
            let mut core = mm_core::MmCore::new(&[machine.mmram()], buffers, scratch).unwrap();
            machine.install_mm(move |memory, mmi| {
                core.enter(memory, mmi, &mut [(OTHER, &mut handler)], &mut []);
            });
            let mmi = || {
                machine.trigger(SmiCheck::Require).raise(&machine, 0, 0).unwrap();
                (0..16).for_each(|_| machine.pause());
            };
            let staged = channel.begin(format, OTHER, b"one").unwrap();
            mmi();
            let mut response = staged.finish().unwrap();
            // Another driver raises an MMI for its own purpose.
            mmi();
            let mut bytes = [0; 16];
            assert_eq!(response.read(&mut bytes), b"appended");
            mmi();
            drop(response);
            mmi();
            // A request that was given up is not served later.
            drop(channel.begin(format, OTHER, b"given up").unwrap());
            mmi();
            assert_eq!(*log.borrow(), [b"one"], "{format:?}, mailbox: {with_mailbox}");
        }
    }
}

/// A machine that records the MMIs it takes, and how many.
fn recording(config: Config) -> (Machine, Rc<RefCell<Vec<Mmi>>>) {
    let machine = Machine::new(config);
    let mmis = Rc::new(RefCell::new(vec![]));
    let record = Rc::clone(&mmis);
    machine.install_mm(move |_, mmi| record.borrow_mut().push(mmi));
    (machine, mmis)
}

#[test]
fn messages_of_all_headers_and_lengths_come_back_from_mm() {
    let (machine, channels) = standard(&[2]);
    for format in [V1, V3] {
        for len in [1, 17, 4096, channels[0].capacity(format)] {
            let message: Vec<u8> = (0..=250).cycle().take(len).collect();
            let response = exchange(&machine, &channels[0], format, Echo::GUID, &message);
            assert_eq!(response.unwrap(), message, "{format:?}, {len} bytes");
        }
    }
    assert_eq!(machine.smis_taken(), 8);
}

#[test]
fn standard_supervisor_returns_its_version() {
    let (machine, channels) = standard(&[1]);
    let request = supervisor::version_request();
    let response = exchange(&machine, &channels[0], V1, supervisor::GUID, &request).unwrap();
    assert_eq!(response.len(), 40);
    assert_eq!(response[24..28], SUPERVISOR.version.to_le_bytes());
    assert_eq!(response[28..32], SUPERVISOR.patch_level.to_le_bytes());
}

#[test]
fn response_may_be_longer_than_its_request() {
    let machine = Machine::new(Config::default());
    let buffer = machine.allocate_buffer(1, true).unwrap();
    let mut mm = StandardMm::new(machine.mmram(), &[buffer]).unwrap().with_handler(
        OTHER,
        |request: &mut Request<'_>| {
            request.respond(&[7; 40]).unwrap();
            Ok(())
        },
    );
    machine.install_mm(move |memory, mmi| {
        mm.enter(memory, mmi);
    });
    let channel = machine.channel(buffer).unwrap();
    assert_eq!(
        exchange(&machine, &channel, V1, OTHER, &[1; 24]).unwrap(),
        [7; 40]
    );
}

#[test]
fn variables_outlive_the_exchange_and_are_found_through_each_buffer() {
    let (machine, channels) = standard(&[1, 2]);
    let name = b"V\0\0\0";
    let message = |function: u64, data: &[u8]| {
        let access = variable::AccessVariable {
            vendor: OTHER.to_bytes(),
            data_size: (data.len() as u64).into(),
            name_size: 4.into(),
            attributes: 7.into(),
        };
        let header = variable::FunctionHeader::new(function);
        let mut message = zerocopy::IntoBytes::as_bytes(&header).to_vec();
        message.extend_from_slice(zerocopy::IntoBytes::as_bytes(&access));
        message.extend_from_slice(name);
        message.extend_from_slice(data);
        message
    };
    let set = message(variable::function::SET_VARIABLE, b"data");
    let response = exchange(&machine, &channels[0], V1, variable::GUID, &set).unwrap();
    assert_eq!(response[8..16], [0; 8]);
    let get = message(variable::function::GET_VARIABLE, &[0; 4]);
    let response = exchange(&machine, &channels[1], V3, variable::GUID, &get).unwrap();
    assert_eq!(response[8..16], [0; 8]);
    assert!(response.ends_with(b"V\0\0\0data"));

    let header = variable::FunctionHeader::new(variable::function::GET_PAYLOAD_SIZE);
    let mut payload_size = zerocopy::IntoBytes::as_bytes(&header).to_vec();
    payload_size.extend([0; 8]);
    let response = exchange(&machine, &channels[0], V1, variable::GUID, &payload_size).unwrap();
    assert_eq!(response[16..], (MAX_VARIABLE_LEN as u64 + 48).to_le_bytes());
}

#[test]
fn missing_handler_is_an_error_from_mm() {
    let (machine, channels) = standard(&[1]);
    assert_eq!(
        exchange(&machine, &channels[0], V1, OTHER, b"handler?"),
        Err(ResponseError::Mm(EfiStatus::NOT_FOUND))
    );
}

#[test]
fn without_mailboxes_the_exchange_works_through_the_header() {
    let machine = Machine::new(Config::default());
    let buffer = machine.allocate_buffer(1, false).unwrap();
    let mut mm = StandardMm::new(machine.mmram(), &[buffer]).unwrap().with_handler(
        OTHER,
        |request: &mut Request<'_>| {
            request.respond(b"yes").unwrap();
            Ok(())
        },
    );
    machine.install_mm(move |memory, mmi| {
        mm.enter(memory, mmi);
    });
    let channel = machine.channel(buffer).unwrap();
    for format in [V1, V3] {
        assert_eq!(
            exchange(&machine, &channel, format, OTHER, b"handler?").unwrap(),
            b"yes"
        );
    }
}

#[test]
fn mm_can_be_observed_and_made_to_send_wrong_responses() {
    let machine = Machine::new(Config::default());
    let buffer = machine.allocate_buffer(1, true).unwrap();
    let seen = Rc::new(RefCell::new(vec![]));
    let root = Rc::clone(&seen);
    let mut mm = StandardMm::new(machine.mmram(), &[buffer])
        .unwrap()
        .with_root_handler(move |mmi: Mmi| root.borrow_mut().push(mmi));
    let outcome = Rc::new(Cell::new(Outcome::NoRequest));
    let told = Rc::clone(&outcome);
    machine.install_mm(move |memory, mmi| {
        told.set(mm.enter(memory, mmi).outcomes()[0]);
        // ReturnBufferSize beyond the comm buffer.
        assert!(memory.write(buffer.mailbox.unwrap() + 16, &4097u64.to_le_bytes()));
    });
    let channel = machine.channel(buffer).unwrap();
    assert_eq!(
        exchange(&machine, &channel, V1, Echo::GUID, b"12345"),
        Err(ResponseError::ResponseBeyondBuffer {
            told_by: mm_comm::error::LengthSource::Mailbox,
            claimed: 4097,
            capacity: 4096
        })
    );
    let honest = Outcome::Dispatched {
        recipient: Echo::GUID,
        request_len: 5,
        response_len: 5,
        status: EfiStatus::SUCCESS,
    };
    assert_eq!(outcome.get(), honest);
    let command = 0xff;
    assert_eq!(*seen.borrow(), [Mmi { command, data: 0 }]);
}

#[test]
fn smi_is_taken_at_a_pause_and_not_by_the_port_write() {
    let (machine, channels) = standard(&[1]);
    let staged = channels[0].begin(V1, Echo::GUID, b"later").unwrap();
    machine
        .trigger(SmiCheck::Require)
        .raise(&machine, 0xff, 0)
        .unwrap();
    assert!(machine.is_smi_pending());
    assert_eq!(machine.smis_taken(), 0);
    assert_eq!(staged.finish().unwrap_err(), ResponseError::NotProcessed);
    machine.pause();
    machine.pause();
    assert_eq!(machine.smis_taken(), 1);
}

#[test]
fn latency_counts_pauses() {
    for latency in [0, 1, 2, 7] {
        let (machine, mmis) = recording(Config {
            latency,
            ..Config::default()
        });
        machine.write_u8(COMMAND, 0);
        for pauses in 0..latency {
            assert_eq!(mmis.borrow().len(), 0, "{pauses} of {latency} pauses");
            machine.pause();
        }
        assert_eq!(mmis.borrow().len(), 1);
    }

    // A second write does not delay the pending SMI.
    let (machine, mmis) = recording(Config {
        latency: 2,
        ..Config::default()
    });
    machine.write_u8(COMMAND, 0);
    machine.pause();
    machine.write_u8(COMMAND, 0);
    machine.pause();
    assert_eq!(mmis.borrow().len(), 1);
}

#[test]
fn pending_smis_merge_and_mm_reads_the_newest_values() {
    let (machine, mmis) = recording(Config::default());
    for value in [1, 4, 9] {
        machine.write_u8(DATA, value);
        machine.write_u8(COMMAND, value);
    }
    machine.pause();
    machine.pause();
    assert_eq!(*mmis.borrow(), [Mmi { command: 9, data: 9 }]);
    assert_eq!(machine.smis_taken(), 1);
}

#[test]
fn acpi_commands_and_other_ports_raise_nothing_and_are_recorded() {
    let (machine, mmis) = recording(Config::default());
    machine.write_u8(COMMAND, 0x02);
    machine.write_u8(COMMAND, 0x03);
    machine.write_u8(0xff, 0xb2);
    machine.write_u32(COMMAND, 1);
    machine.write_mmio_u32(0x630, 1);
    machine.pause();
    assert!(mmis.borrow().is_empty());
    let expected = [
        IoWrite::Byte(COMMAND, 2),
        IoWrite::Byte(COMMAND, 3),
        IoWrite::Byte(0xff, 0xb2),
        IoWrite::Dword(COMMAND, 1),
        IoWrite::Mmio(0x630, 1),
    ];
    assert_eq!(machine.take_writes(), expected);
    assert_eq!(machine.take_writes(), []);
    assert_eq!(machine.read_u32(0x634), u32::MAX);
    assert_eq!(machine.read_mmio_u32(0x630), u32::MAX);
}

#[test]
fn second_smi_is_not_taken_while_mm_runs() {
    let machine = Machine::new(Config::default());
    let inner = machine.clone();
    machine.install_mm(move |_, mmi| {
        if mmi.command == 7 {
            inner.write_u8(COMMAND, 8);
            inner.pause();
            inner.pause();
            assert_eq!(inner.smis_taken(), 1);
        }
    });
    machine.write_u8(COMMAND, 7);
    machine.pause();
    assert_eq!(machine.smis_taken(), 1);
    assert!(machine.is_smi_pending());
    machine.pause();
    assert_eq!(machine.smis_taken(), 2);
}

#[test]
fn switched_off_smis_are_noticed_before_a_port_is_written() {
    let (machine, channels) = standard(&[1]);
    machine.set_smi_enable(0x8000_0000 | SmiEnable::GLOBAL.bits());
    let staged = channels[0].begin(V1, Echo::GUID, b"x").unwrap();
    assert_eq!(
        machine.trigger(SmiCheck::Require).raise(&machine, 0xff, 0),
        Err(TriggerError::SmisDisabled {
            register: SMI_EN.into(),
            value: 0x8000_0001,
            missing: SmiEnable::APMC
        })
    );
    assert_eq!(machine.take_writes(), []);

    // A trigger that does not know SMI_EN finds out by waiting.
    let blind = PortTrigger {
        smi_enable: None,
        ..machine.trigger(SmiCheck::Require)
    };
    blind.raise(&machine, 0xff, 0x5a).unwrap();
    assert_eq!(
        machine.take_writes(),
        [IoWrite::Byte(DATA, 0x5a), IoWrite::Byte(COMMAND, 0xff)]
    );
    assert_eq!(staged.wait(20, || machine.pause()), 20);
    assert_eq!(staged.finish().unwrap_err(), ResponseError::NotProcessed);
    assert_eq!(machine.smis_taken(), 0);

    machine.lock_smi_enable(SmiEnable::APMC.bits());
    let enable = machine.trigger(SmiCheck::Enable);
    assert!(matches!(
        enable.raise(&machine, 0xff, 0),
        Err(TriggerError::EnableRefused {
            value: 0x8000_0001,
            missing: SmiEnable::APMC,
            ..
        })
    ));
}

#[test]
fn smis_can_be_switched_on_through_ports_and_memory() {
    let mmio = 0xfed0_0030;
    let machine = Machine::new(Config {
        smi_enable: 0,
        smi_enable_mmio: Some(mmio),
        ..Config::default()
    });
    machine
        .trigger(SmiCheck::Enable)
        .raise(&machine, 0xff, 0)
        .unwrap();
    assert!(machine.is_smi_pending());
    assert_eq!(machine.read_mmio_u32(mmio), 0x21);
    machine.lock_smi_enable(0x20);
    machine.write_mmio_u32(mmio, 0x8000_0000);
    assert_eq!(machine.smi_enable(), 0x8000_0020);
    assert_eq!(machine.read_u32(SMI_EN), 0x8000_0020);
}

#[test]
fn only_mm_can_access_closed_mmram() {
    let machine = Machine::new(Config::default());
    let mmram = machine.mmram();
    let (first, last) = (mmram.start(), mmram.end() - 1);
    let mut seen = [0; 3];
    machine.write_outside(first, b"key");
    machine.read_outside(first, &mut seen);
    assert_eq!(seen, *b"key");

    machine.close_mmram();
    machine.write_outside(first, b"bad");
    machine.read_outside(first, &mut seen);
    assert_eq!(seen, [0xff; 3]);
    machine.read_outside(last, &mut seen);
    assert_eq!(seen, [0xff; 3]);

    machine.install_mm(move |memory, _| {
        let mut inside = [0; 3];
        assert!(memory.read(first, &mut inside));
        assert_eq!(inside, *b"key");
        assert!(memory.write(last, &[1]));
        assert!(!memory.write(last, &[1, 2]));
        assert!(!memory.read(first - 1, &mut inside));
    });
    machine.write_u8(COMMAND, 0);
    machine.pause();
    assert_eq!(machine.smis_taken(), 1);
}

#[test]
fn mm_reaches_allocated_ram_and_nothing_else() {
    let machine = Machine::new(Config::default());
    let ram = machine.allocate_buffer(2, false).unwrap().region;
    assert_eq!(ram.start() % 4096, 0);
    let mut zeroes = vec![0xee; 8192];
    machine.read_outside(ram.start(), &mut zeroes);
    assert_eq!(zeroes, vec![0; 8192]);

    machine.install_mm(move |memory, _| {
        let mut byte = [0];
        assert!(memory.write(ram.end() - 1, b"!"));
        assert!(!memory.write(0x2000, b"!"));
        assert!(!memory.read(u64::MAX, &mut byte));
        assert!(!memory.read(ram.start(), &mut vec![0; 8193]));
    });
    machine.write_u8(COMMAND, 0);
    machine.pause();
    assert_eq!(machine.smis_taken(), 1);
    let mut byte = [0];
    machine.read_outside(ram.end() - 1, &mut byte);
    assert_eq!(byte, *b"!");
    let mut nothing = [0; 2];
    machine.read_outside(u64::MAX, &mut nothing);
    assert_eq!(nothing, [0xff; 2]);
}

#[test]
fn unfit_buffers_are_refused_by_the_side_that_they_would_harm() {
    let machine = Machine::new(Config::default());
    let mmram = machine.mmram();
    let region = AddressRange::new(mmram.start(), 4096).unwrap();
    let in_mmram = CommBuffer {
        region,
        mailbox: None,
    };
    assert_eq!(
        StandardMm::new(mmram, &[in_mmram]).err(),
        Some(SetupError::Overlap {
            purpose: Purpose::CommBuffer,
            range: region,
            other_purpose: Purpose::Mmram,
            other: mmram
        })
    );
    assert_eq!(machine.channel(in_mmram).map(drop), Err(SimError::NotRam(region)));
    assert_eq!(machine.allocate_buffer(0, true), Err(SimError::NoPages));
    assert!(machine.allocate_pages(0).is_null());
    let too_many = Machine::with_standard_handlers(Config::default(), &[1; 9]).map(drop);
    assert_eq!(
        too_many,
        Err(SimError::Setup(SetupError::TooManyBuffers {
            count: 9,
            maximum: 8
        }))
    );
}
