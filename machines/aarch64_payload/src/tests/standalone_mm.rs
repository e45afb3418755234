//! What edk2's StandaloneMm does that other MM cores do not, and what a caller gets from it.

use super::{NotOk, Place, Report, expect, field, one_buffer, status, write_request};
use aarch64_monitor::Interface;
use aarch64_monitor::layout::SECURE_RAM;
use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use mm_comm::SharedRegion;
use mm_comm::smc::{Conduit, SecureMm};
use mm_conformance::mm;
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, PAGE_LEN, guid};

/// A GUID without a handler.
const UNKNOWN: Guid = guid!("3f8c1e52-77b0-4c0e-8d3a-6f5be1a4d902");
/// Where BufferSize and MessageSize are in a v3 header.
const BUFFER_SIZE: usize = 16;
const MESSAGE_SIZE: usize = 48;

pub(super) fn run<C: Conduit>(place: &Place<'_>, report: &mut Report<impl Write>) {
    for (name, test) in [
        (
            "secure_world.standalone_mm_says_success_without_a_handler",
            says_success_without_a_handler::<C> as fn(&SharedRegion) -> _,
        ),
        (
            "secure_world.standalone_mm_copies_back_as_much_as_it_got",
            copies_back_as_much_as_it_got::<C>,
        ),
        (
            "secure_world.standalone_mm_serves_its_whole_region",
            serves_its_whole_region::<C>,
        ),
        (
            "secure_world.standalone_mm_denies_lengths_beyond_its_region",
            denies_lengths_beyond_its_region::<C>,
        ),
    ] {
        report.test(name, || match place.interface {
            Interface::StandaloneMm => test(&(place.shared)().ok_or("no shared memory")?),
            _ => Err(NotOk::Skipped(String::from("MM is not StandaloneMm"))),
        });
    }
}

fn says_success_without_a_handler<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for format in [HeaderFormat::V1, HeaderFormat::V3] {
        for recipient in [UNKNOWN, mm::FAIL] {
            let message = [0x5a; 40];
            write_request(shared, format, recipient, &message)?;
            let mut before = [0; 96];
            let _ = shared.read(0, &mut before);
            expect("request", &connection.communicate(buffer), &Ok(()))?;
            let mut after = [0; 96];
            let _ = shared.read(0, &mut after);
            expect("the buffer after it", &after, &before)?;
        }
    }
    Ok(())
}

fn copies_back_as_much_as_it_got<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for (format, length_at) in [(HeaderFormat::V1, 16), (HeaderFormat::V3, MESSAGE_SIZE)] {
        for (wanted, response) in [(100, 100), (400, 400), (401, 400)] {
            let mut message = [0xaa; 400];
            let (first, _) = message.split_at_mut(8);
            first.copy_from_slice(&mm::stretch(wanted));
            write_request(shared, format, mm::STRETCH, &message)?;
            let behind = format.header_len() + message.len();
            expect("behind the request", &shared.write(behind, &[0xee]), &true)?;
            expect("request", &connection.communicate(buffer), &Ok(()))?;
            expect("length", &field(shared, length_at)?, &(response as u64))?;
            if format == HeaderFormat::V3 {
                expect("BufferSize", &field(shared, BUFFER_SIZE)?, &456)?;
            }
            // The handler fails if its response is longer than the request, and the request comes back.
            let last = match wanted {
                100 => 100,
                400 => 149,
                _ => 0xaa,
            };
            let mut found = [0];
            let _ = shared.read(format.header_len() + response - 1, &mut found);
            expect("last byte", &found, &[last])?;
            let _ = shared.read(behind, &mut found);
            expect("the byte behind the request", &found, &[0xee])?;
        }
    }
    // BufferSize is room for a response that is longer than its request.
    let header = Header::new(HeaderFormat::V3, mm::STRETCH, 300).ok_or("no header")?;
    let header = header.with_message_size(8);
    let written = shared.write(0, header.encode().as_ref()) && shared.write(56, &mm::stretch(300));
    expect("written", &written, &true)?;
    expect("request", &connection.communicate(buffer), &Ok(()))?;
    expect("MessageSize", &field(shared, MESSAGE_SIZE)?, &300)?;
    expect("BufferSize", &field(shared, BUFFER_SIZE)?, &356)?;
    expect("wiped", &shared.wipe(0, PAGE_LEN), &true)
}

fn serves_its_whole_region<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    let header = Header::new(HeaderFormat::V1, mm::STRETCH, 16).ok_or("no header")?;
    // The last request ends where the region does.
    for offset in [8, PAGE_LEN, PAGE_LEN * 3 + 40, shared.len() - 40] {
        let mut message = [0; 16];
        let (first, _) = message.split_at_mut(8);
        first.copy_from_slice(&mm::stretch(3));
        let written = shared.write(offset, header.encode().as_ref()) && shared.write(offset + 24, &message);
        expect("written", &written, &true)?;
        let result = connection.communicate(buffer + offset as u64);
        expect(&format!("request at +{offset:#x}"), &result, &Ok(()))?;
        let mut response = [0; 4];
        let _ = shared.read(offset + 24, &mut response);
        expect("response", &response, &[1, 2, 3, 0])?;
        expect("wiped", &shared.wipe(offset, 40), &true)?;
    }
    let end = buffer + shared.len() as u64;
    for address in [0, SECURE_RAM.start(), buffer - 8, end - 31, end, u64::MAX] {
        let found = status(connection.communicate(address));
        expect(
            &format!("request at {address:#x}"),
            &found,
            &EfiStatus::ACCESS_DENIED,
        )?;
    }
    Ok(())
}

fn denies_lengths_beyond_its_region<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for (what, len) in [
        ("one byte more than the region", shared.len() as u64 - 23),
        ("a length that wraps", u64::MAX - 8),
        ("the largest length", u64::MAX),
    ] {
        let header = Header::new(HeaderFormat::V1, mm::ECHO, 8).ok_or("no header")?;
        let written = shared.write(0, header.encode().as_ref()) && shared.write(16, &len.to_le_bytes());
        expect("written", &written, &true)?;
        let found = status(connection.communicate(buffer));
        expect(what, &found, &EfiStatus::ACCESS_DENIED)?;
        expect("the length after it", &field(shared, 16)?, &len)?;
    }
    Ok(())
}
