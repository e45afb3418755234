//! The tests of this platform.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "on constants, and addresses below 4 GiB"
)]

use super::control::{Control, FIXED_BUFFER};
use super::site::MANY_CALLS;
use super::traffic::Traffic;
use super::{EXAMPLES_RESPONSE, Services};
use crate::chipset::{PciByte, SMI_EN, cr2, ports, set_cr2};
use crate::mm::{IMAGE, smram_window, within_reach};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;
use log::LevelFilter;
use mm_comm::{Ports, SmiEnable};
use mm_conformance::mm::ECHO;
use mm_conformance::report::{ensure, equal, failed};
use mm_conformance::soak::{self, Through};
use mm_conformance::test_protocol::Findings;
use mm_conformance::{Lab, NotOk, Report, all};
use mm_core::CommBuffer;
use mm_wire::message::supervisor::{RequestHeader, SIGNATURE};
use mm_wire::{AddressRange, EfiStatus, PAGE_LEN};
use ovmf_platform::devices::Console;
use ovmf_platform::dxe_services;
use patina::Guid;
use patina::component::service::uefi_services::protocol::{Handle, ProtocolServicesExt, Tpl};
use patina::component::service::uefi_services::timer_event::{TimerEventServicesExt, TimerType};
use patina::error::EfiError;
use patina::pi::dxe_services::{GcdMemoryType, MemorySpaceDescriptor};
use patina::standard::efi::{self, protocols::loaded_image};
use patina_mm::component::communicator::Status;
use q35_mm::chipset::{D_CLS, LOCKED, OPEN, SMI_LOCK};
use q35_mm::layout::{CONSTANT, REACH, SMRAM_BASE, SMRAM_LEN, hash};
use zerocopy::FromBytes;

type Verdict = Result<(), NotOk>;

/// The values of the ports, which MM must see as they were written.
const COMMAND: u8 = 0x42;
const DATA: u8 = 0x37;

fn echo(services: Services, buffer: u8, message: &[u8]) -> Result<Vec<u8>, Status> {
    services
        .mm
        .communicate(buffer, message, Guid::from_bytes(&ECHO.to_bytes()))
}

/// Tests the launcher, the MM image, and the boot services that MM depends on.
pub(super) fn platform(
    report: &mut Report<Console>,
    services: Services,
    traffic: &Traffic,
    findings: Findings,
) {
    let control = Control(services.mm);
    report.test("boot.the_application_finds_the_protocols", || {
        ensure(!findings.update.is_null(), "no comm-buffer update protocol")?;
        equal(findings.update, traffic.update)
    });
    report.test("boot.the_application_talks_to_mm_through_pi_protocols", || {
        equal(findings.answered, 3)
    });
    report.test("boot.the_example_component_got_a_response", || {
        let response = EXAMPLES_RESPONSE.lock().take();
        let response = response.ok_or_else(|| NotOk::Failed("it was not".into()))?;
        equal(response.len(), 28)?;
        let (header, _) = RequestHeader::read_from_prefix(&response).map_err(failed)?;
        // The supervisor does not know its message, and says so in the result field.
        equal(header.result.get(), EfiStatus::INVALID_PARAMETER.0)?;
        equal(header.signature, SIGNATURE)
    });
    report.test("smram.is_locked_and_cannot_be_opened", || {
        for value in [OPEN, 0x0a, 0x02, 0] {
            equal(PciByte::SMRAM.read(), LOCKED)?;
            PciByte::SMRAM.write(value);
        }
        equal(PciByte::SMRAM.read(), LOCKED)
    });
    report.test("smram.d_cls_does_not_outlast_an_smi", || {
        // The lock leaves this bit free; it would send MM's data accesses to the VGA's memory.
        PciByte::SMRAM.write(LOCKED | D_CLS);
        equal(PciByte::SMRAM.read(), LOCKED | D_CLS)?;
        equal(
            echo(services, FIXED_BUFFER, b"with D_CLS"),
            Ok(b"with D_CLS".to_vec()),
        )?;
        equal(PciByte::SMRAM.read(), LOCKED)
    });
    report.test("launcher.called_again_leaves_mm_alone", || {
        let before = (control.state()?.smis.get(), ports().read_u32(SMI_EN));
        equal(services.launcher.init(), Ok(()))?;
        let after = (
            control.state()?.smis.get().saturating_sub(1),
            ports().read_u32(SMI_EN),
        );
        equal(after, before)
    });
    report.test("smram.smis_cannot_be_switched_off_for_good", || {
        equal(PciByte::GEN_PMCON_1.read() & SMI_LOCK, SMI_LOCK)?;
        PciByte::GEN_PMCON_1.write(PciByte::GEN_PMCON_1.read() & !SMI_LOCK);
        equal(PciByte::GEN_PMCON_1.read() & SMI_LOCK, SMI_LOCK)?;
        let before = ports().read_u32(SMI_EN);
        ports().write_u32(SMI_EN, before & !SmiEnable::GLOBAL.bits());
        equal(ports().read_u32(SMI_EN), before)
    });
    report.test("smram.outside_reads_do_not_see_mms_memory", || {
        let outside = read_window(services)?;
        // Runs of one value prove nothing.
        let telling = |chunk: &[u8]| chunk.iter().any(|byte| Some(byte) != chunk.first());
        let pairs = outside.chunks_exact(16).zip(IMAGE.chunks_exact(16));
        let (mut compared, mut alike) = (0_u32, 0_u32);
        for (outside, image) in pairs.filter(|(_, image)| telling(image)) {
            compared = compared.saturating_add(1);
            alike = alike.saturating_add(u32::from(outside == image));
        }
        ensure(
            compared > 1000 && alike == 0,
            format_args!("{alike} of {compared} pieces are MM's"),
        )
    });
    report.test("smram.outside_writes_change_nothing", || {
        let before = control.state()?;
        let window = smram_window(services.tables)?;
        for value in [0x00, 0xcc, 0xff] {
            ensure(
                window.write(0, &vec![value; SMRAM_LEN]),
                "the window is too small",
            )?;
            let after = control.state()?;
            equal(after.constant_hash, before.constant_hash)?;
        }
        // Its data are as they were as well: it counted on.
        equal(control.state()?.smis.get(), before.smis.get().saturating_add(4))
    });
    report.test("images.from_outside_keep_their_protection", || {
        protection_of_images(services)
    });
    report.test("mm.is_the_image_that_was_built", || {
        let byte = |address: u64| {
            let at = address
                .checked_sub(SMRAM_BASE)
                .and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| IMAGE.get(at).copied()).unwrap_or(0)
        };
        let built = hash(CONSTANT.into_iter().flatten().map(byte));
        equal(control.state()?.constant_hash.get(), built)
    });
    report.test("mm.takes_every_smi", || {
        let before = control.state()?.smis.get();
        for n in 0..1000_u32 {
            echo(services, FIXED_BUFFER, &n.to_le_bytes())?;
        }
        equal(control.state()?.smis.get(), before.saturating_add(1001))
    });
    report.test("mm.root_handler_sees_every_smi_and_both_ports", || {
        services.trigger.raise_mmi(COMMAND, DATA)?;
        services.trigger.pause();
        let state = control.state()?;
        // This message's own SMI, and the one that started MM.
        equal(state.root_calls.get(), state.smis.get().saturating_sub(2))?;
        equal(
            (state.last_command.get(), state.last_data.get()),
            (COMMAND.into(), DATA.into()),
        )
    });
    report.test("mm.refuses_buffers_that_it_must_not_touch", || {
        refused_buffers(services, control)
    });
    report.test("mm.message_crosses_a_buffer_of_8_pages", || {
        let message: Vec<u8> = (1..=251).cycle().take(8 * PAGE_LEN - 24).collect();
        ensure(
            echo(services, 0, &message).as_ref() == Ok(&message),
            "it came back changed",
        )
    });
    report.test("update.no_message_is_lost_while_the_buffer_moves", || {
        let counts = traffic.counts();
        let (all, after, lost) = (
            counts.served.get(),
            counts.after_the_move.get(),
            counts.lost.get(),
        );
        log::info!("{all} messages from the timer, {after} of them after the comm buffer was announced");
        equal(lost, 0)?;
        ensure(
            after > 10 && all > after.saturating_add(10),
            format_args!("{all} messages, {after} after the move"),
        )
    });
    report.test("timer.callback_communicates_during_a_call", || {
        calls_from_a_timer(services)
    });
}

/// A driver that looks as if `ovmf_image` had flattened it: one section over all of it, headers
/// included.
fn flat_driver() -> Vec<u8> {
    const PAGE: [u8; 4] = 0x1000_u32.to_le_bytes();
    let mut file = vec![0; PAGE_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE");
    // File header: x86-64, one section, length of the optional header, an executable.
    put(0x44, &0x8664_u16.to_le_bytes());
    put(0x46, &1_u16.to_le_bytes());
    put(0x54, &0xf0_u16.to_le_bytes());
    put(0x56, &0x22_u16.to_le_bytes());
    // Optional header: PE32+, entry point, alignments, lengths, a boot service driver, 16 empty
    // data directories.
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x68, &0x800_u32.to_le_bytes());
    put(0x78, &PAGE);
    put(0x7c, &PAGE);
    put(0x90, &PAGE);
    put(0x94, &0x200_u32.to_le_bytes());
    put(0x9c, &11_u16.to_le_bytes());
    put(0xc4, &16_u32.to_le_bytes());
    // The section: name, length and address, length and offset in the file, code that is executed
    // and read.
    put(0x148, b".text");
    put(0x150, &PAGE);
    put(0x158, &PAGE);
    put(0x16c, &0x6000_0020_u32.to_le_bytes());
    // ret
    put(0x800, &[0xc3]);
    file
}

/// How the page at the start of an image is mapped.
fn attributes_of(services: Services, image: Handle) -> Result<u64, NotOk> {
    let base = services
        .protocols
        .with_protocol_on::<loaded_image::Protocol, _>(image, |image| image.image_base.addr())
        .map_err(failed)?;
    let mut found = MemorySpaceDescriptor {
        base_address: 0,
        length: 0,
        capabilities: 0,
        attributes: 0,
        memory_type: GcdMemoryType::NonExistent,
        image_handle: core::ptr::null_mut(),
        device_handle: core::ptr::null_mut(),
    };
    let describe = dxe_services(services.tables)
        .map_err(failed)?
        .get_memory_space_descriptor;
    EfiError::status_to_result(describe(base as u64, &raw mut found)).map_err(failed)?;
    Ok(found.attributes)
}

/// OVMF's flattened drivers lose the protection that their layout does not allow. No other image
/// does, whatever its layout.
fn protection_of_images(services: Services) -> Verdict {
    let images = services
        .protocols
        .locate_handles_for::<loaded_image::Protocol>()
        .map_err(failed)?;
    let protection = efi::MEMORY_RO | efi::MEMORY_XP;
    let mut open = 0;
    for image in images.iter().copied() {
        open += u32::from(attributes_of(services, image)? & protection == 0);
    }
    ensure(
        open > 50,
        format_args!("{open} of {} images are writable", images.len()),
    )?;

    let parent = *images.first().ok_or_else(|| NotOk::Failed("no image".into()))?;
    let image = services
        .images
        .load_image(parent, &flat_driver())
        .map_err(failed)?;
    let attributes = attributes_of(services, image);
    services.images.unload_image(image).map_err(failed)?;
    equal(attributes? & protection, efi::MEMORY_RO)
}

fn read_window(services: Services) -> Result<Vec<u8>, NotOk> {
    let window = smram_window(services.tables)?;
    let mut bytes = vec![0; SMRAM_LEN];
    ensure(window.read(0, &mut bytes), "the window is too small")?;
    Ok(bytes)
}

/// MM must refuse these comm buffers, say why, and continue with those that it has.
fn refused_buffers(services: Services, control: Control) -> Verdict {
    let good = services
        .memory
        .allocate_zero_pages(2, within_reach())
        .map_err(failed)?;
    let good = good
        .into_raw_ptr::<u8>()
        .ok_or_else(|| NotOk::Failed("no memory".into()))?;
    let good = good.expose_provenance() as u64;
    let page = PAGE_LEN as u64;
    let buffer = |start, len, mailbox| -> Option<CommBuffer> {
        Some(CommBuffer {
            region: AddressRange::new(start, len)?,
            mailbox,
        })
    };
    let smram_end = SMRAM_BASE.saturating_add(SMRAM_LEN as u64);
    let cases = [
        ("all of SMRAM", buffer(SMRAM_BASE, page, None), "overlaps MMRAM"),
        (
            "into SMRAM",
            buffer(SMRAM_BASE - page, page + 1, None),
            "overlaps MMRAM",
        ),
        (
            "out of SMRAM",
            buffer(smram_end - 1, page, None),
            "overlaps MMRAM",
        ),
        (
            "around SMRAM",
            // A buffer around SMRAM is also longer than MM can copy, which MM checks first.
            buffer(SMRAM_BASE - page, page + SMRAM_LEN as u64 + page, None),
            "scratch memory",
        ),
        (
            "a mailbox in SMRAM",
            buffer(good, page, Some(SMRAM_BASE)),
            "overlaps MMRAM",
        ),
        (
            "a mailbox into SMRAM",
            buffer(good, page, Some(SMRAM_BASE - 16)),
            "overlaps MMRAM",
        ),
        (
            "a mailbox in its buffer",
            buffer(good, page, Some(good)),
            "overlaps the status mailbox",
        ),
        (
            "a crooked mailbox",
            buffer(good, page, Some(good + page + 4)),
            "not aligned",
        ),
        ("page zero", buffer(8, page, None), "no access"),
        (
            "PCI configuration space",
            buffer(0xb000_0000, page, None),
            "no access",
        ),
        ("out of reach", buffer(REACH - 8, page, None), "no access"),
        (
            "more than MM can copy",
            buffer(0x10_0000, 9 * page, None),
            "scratch memory",
        ),
    ];
    for (what, buffer, why) in cases {
        let buffer = buffer.ok_or_else(|| NotOk::Failed(format!("{what}: no range")))?;
        match control.register(&[buffer]) {
            Err((EfiStatus::ACCESS_DENIED, text)) if text.contains(why) => {}
            other => return Err(NotOk::Failed(format!("{what}: {other:?}"))),
        }
        equal(
            echo(services, FIXED_BUFFER, b"still there"),
            Ok(b"still there".to_vec()),
        )?;
    }
    equal(
        control.register(
            &buffer(good, page, Some(good + page))
                .into_iter()
                .collect::<Vec<_>>(),
        ),
        Ok(()),
    )?;
    equal(control.register(&[]), Ok(()))
}

/// What a timer's callback saw.
#[derive(Default)]
struct Callback {
    busy: Cell<u32>,
    served: Cell<u32>,
    wrong: Cell<Option<Status>>,
}

/// Makes calls through comm buffer 0, while a timer's callback makes calls through it, too, and
/// through comm buffer 1.
fn calls_from_a_timer(services: Services) -> Verdict {
    const ENOUGH: u32 = 5;
    const MOST_CALLS: u32 = 50_000;
    let seen = Rc::new(Callback::default());
    let inside = Rc::clone(&seen);
    let timer = services
        .timers
        .on_timer_event(Tpl::Callback, move || {
            match echo(services, 0, b"from the timer") {
                Ok(response) if response == b"from the timer" => {}
                Ok(_) => inside.wrong.set(Some(Status::InvalidResponse)),
                Err(Status::Busy) => {
                    inside.busy.set(inside.busy.get().saturating_add(1));
                    match echo(services, 1, b"through the other one") {
                        Ok(response) if response == b"through the other one" => {
                            inside.served.set(inside.served.get().saturating_add(1));
                        }
                        other => inside.wrong.set(other.err().or(Some(Status::InvalidResponse))),
                    }
                }
                Err(other) => inside.wrong.set(Some(other)),
            }
        })
        .map_err(failed)?;
    services
        .timers
        .set_timer(timer, TimerType::Periodic(Duration::from_millis(1)))
        .map_err(failed)?;
    let mut outer = Ok(());
    let mut calls = 0;
    while outer.is_ok() && seen.busy.get() < ENOUGH && calls < MOST_CALLS {
        let message: u32 = calls;
        outer = equal(
            echo(services, 0, &message.to_le_bytes()),
            Ok(message.to_le_bytes().to_vec()),
        );
        calls = calls.saturating_add(1);
    }
    services
        .timers
        .set_timer(timer, TimerType::Cancel)
        .map_err(failed)?;
    services.events.close_event(timer).map_err(failed)?;
    outer?;
    equal(seen.wrong.get(), None)?;
    log::info!(
        "{calls} calls, {} of them interrupted by a callback that communicates",
        seen.busy.get()
    );
    // More than enough if the last call was interrupted twice.
    ensure(
        seen.busy.get() >= ENOUGH,
        format_args!("{} interrupted calls", seen.busy.get()),
    )?;
    equal(seen.served.get(), seen.busy.get())
}

/// The scenarios with many calls.
const ENDURANCE: [&str; 2] = ["many_calls_work", "many_calls_to_the_variable_service_work"];

/// Runs the conformance suite. The number of SMIs that MM has taken by then.
pub(super) fn suite(report: &mut Report<Console>, lab: &Lab, control: Control) -> u64 {
    // The platform's mistakes that the scenarios make on purpose would fill the serial line.
    let level = log::max_level();
    log::set_max_level(LevelFilter::Off);
    let mut endurance = Vec::new();
    for scenario in all() {
        let before = control.state();
        report.scenario(scenario, lab);
        if let (Ok(before), Ok(after)) = (before, control.state()) {
            let taken = after.smis.get().saturating_sub(before.smis.get());
            if taken >= MANY_CALLS.into() {
                endurance.push((scenario.name, taken));
            }
        }
    }
    log::set_max_level(level);
    report.test("conformance.mm_took_the_smi_of_each_of_many_calls", || {
        // The scenario's calls, the registration of the client's comm buffers, and this question.
        let taken = u64::from(MANY_CALLS).saturating_add(2);
        equal(endurance, ENDURANCE.map(|name| (name, taken)))
    });
    match control.state() {
        Ok(state) => state.smis.get(),
        Err(why) => {
            report.verdict("conformance.mm_is_there_afterwards", Err(NotOk::Failed(why)));
            0
        }
    }
}

/// Makes very many calls; `true` if each went well, and MM took the SMI of each.
pub(super) fn soak(lab: &Lab, control: Control, findings: Findings) -> bool {
    log::set_max_level(LevelFilter::Off);
    let mut report = Report::new(Console);
    let before = control.state();
    let free = || Some((findings.free_memory)()).filter(|bytes| *bytes > 0);
    let raised = soak::run(&mut report, lab, Through::Components, &free);
    report.test("soak.mm_took_the_smi_of_each_call", || {
        let taken = control.state()?.smis.get().saturating_sub(before?.smis.get());
        // The registration of the client's comm buffers, and the question.
        equal(taken, raised.saturating_add(2))
    });
    report.finish(raised)
}

/// Makes MM fault. The last test: MM does not run afterwards.
pub(super) fn fault(report: &mut Report<Console>, services: Services) {
    report.test("fault.in_a_handler_is_reported_and_hangs_nothing", || {
        let aborted = || Status::MmReturned(efi::Status::ABORTED);
        // An address that nothing here faults at; the stack of MM ends elsewhere.
        const OWN: u64 = 0x1234_5678_9000;
        set_cr2(OWN);
        let fault = Control(services.mm).fault();
        equal(cr2(), OWN)?;
        equal(fault, Err(aborted()))?;
        // No request is handled any more.
        equal(echo(services, 0, b"is it running?"), Err(aborted()))?;
        equal(Control(services.mm).state(), Err(aborted().to_string()))
    });
}
