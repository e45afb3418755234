//! What this machine tests besides the suite: which interface was found, and that the secure world
//! checks its input.

mod ffa_drivers;
mod standalone_mm;

use crate::site::monitor;
use crate::{Place, Vectors};
use aarch64_monitor::Interface;
use aarch64_monitor::layout::{COUNT_REQUESTS, SECURE_RAM, SET_BUFFER};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::{Debug, Write};
use mm_comm::smc::{
    self, Conduit, Connection, Patience, SecureMm, Setup, SmcError, ffa, ffa::OtherVersion, spm_mm,
};
use mm_comm::{SharedRegion, smc::Interface as Wanted};
use mm_conformance::mm;
use mm_conformance::report::{NotOk, Report};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, PAGE_LEN};

const OK: u64 = 0;
const INVALID_PARAMETERS: u64 = 0xffff_fffe;
const DENIED: u64 = 0xffff_fffd;
const UNKNOWN: u64 = u64::MAX;

/// Why a test is skipped on a machine without MM.
const NO_MM: &str = "there is no MM";

/// How many requests the secure world's MM core was given.
pub(crate) fn requests_served<C: Conduit>(interface: Interface) -> u64 {
    match interface {
        Interface::NoEl3 => 0,
        _ => monitor::<C>(COUNT_REQUESTS, [0; 3]),
    }
}

fn two_pages() -> Option<SharedRegion> {
    #[repr(C, align(4096))]
    struct Pages([u8; 2 * PAGE_LEN]);
    let pages = Box::leak(Box::new(Pages([0; 2 * PAGE_LEN])));
    Some(SharedRegion::over_static(&mut pages.0))
}

fn connect<C: Conduit>(interface: Wanted) -> Result<Connection<C>, SmcError> {
    let setup = Setup {
        interface,
        ..Setup::default()
    };
    smc::connect(setup, &mut two_pages)
}

/// With no patience for interruptions.
fn connect_impatiently<C: Conduit>() -> Result<Connection<C>, SmcError> {
    let setup = Setup {
        patience: Patience {
            resumes: 0,
            ..Patience::default()
        },
        time_limit: None,
        ..Setup::default()
    };
    smc::connect(setup, &mut two_pages)
}

fn expect<T: Debug + PartialEq>(what: &str, found: &T, expected: &T) -> Result<(), NotOk> {
    if found == expected {
        Ok(())
    } else {
        Err(NotOk::Failed(format!("{what}: {found:?}, not {expected:?}")))
    }
}

pub(crate) fn run<C: Conduit>(place: &Place<'_>, report: &mut Report<impl Write>) {
    ffa_drivers::run::<C>(place, report);
    report.test("secure_world.interface_is_found", || {
        interface_is_found::<C>(place)
    });
    report.test("secure_world.ffa_alone_is_no_spm_mm", || {
        ffa_alone_is_no_spm_mm::<C>(place)
    });
    report.test("secure_world.unknown_calls_are_unknown", || {
        unknown_calls_are_unknown::<C>(place)
    });
    let shared = || (place.shared)().ok_or("no shared memory");
    standalone_mm::run::<C>(place, report);
    report.test("secure_world.buffers_are_shared_memory", || {
        match place.interface {
            Interface::NoEl3 => Err(NotOk::Skipped(String::from("a call would trap"))),
            _ => buffers_are_shared_memory::<C>(&shared()?),
        }
    });
    for (name, test) in [
        (
            "secure_world.requests_lie_in_buffers",
            requests_lie_in_buffers::<C> as fn(&SharedRegion) -> _,
        ),
        (
            "secure_world.damaged_requests_are_refused",
            damaged_requests_are_refused::<C>,
        ),
        (
            "secure_world.both_headers_are_served",
            both_headers_are_served::<C>,
        ),
    ] {
        report.test(name, || match place.interface {
            Interface::NoMm | Interface::NoEl3 => Err(NotOk::Skipped(String::from(NO_MM))),
            Interface::StandaloneMm => Err(NotOk::Skipped(String::from("StandaloneMm has a separate test"))),
            _ => test(&shared()?),
        });
    }
    report.test("secure_world.vector_registers_survive", || {
        // Of 32 registers both halves, unless the secure world saves them.
        let changed = match place.interface {
            Interface::NoMm | Interface::NoEl3 => return Err(NotOk::Skipped(String::from(NO_MM))),
            Interface::StandaloneMm => 64,
            _ => 0,
        };
        let vectors = place
            .vectors
            .ok_or_else(|| NotOk::Skipped(String::from("this program uses them itself")))?;
        vector_registers_survive::<C>(&shared()?, vectors, changed)
    });
    report.test("secure_world.floating_point_survives", || match place.interface {
        Interface::NoMm | Interface::NoEl3 => Err(NotOk::Skipped(String::from(NO_MM))),
        _ => floating_point_survives::<C>(&shared()?),
    });
    report.test("secure_world.given_up_requests_end_first", || {
        match place.interface {
            Interface::Ffa | Interface::FfaWithoutRegs | Interface::StandaloneMm => {
                given_up_requests_end_first::<C>(&shared()?)
            }
            _ => Err(NotOk::Skipped(String::from("requests are not interrupted"))),
        }
    });
}

fn interface_is_found<C: Conduit>(place: &Place<'_>) -> Result<(), NotOk> {
    let found = connect::<C>(Wanted::Discover).map(|connection| connection.to_string());
    let expected = match place.interface {
        Interface::SpmMm => Ok("SPM_MM 1.0"),
        Interface::Ffa | Interface::StandaloneMm => Ok("FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ"),
        Interface::FfaWithoutRegs => Ok("FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ2"),
        Interface::NoMm => Err(SmcError::NoMm {
            ffa_version: OtherVersion::refused(u32::MAX),
            mm_version: spm_mm::SpmMmCode(-1),
        }),
        Interface::NoEl3 => Err(SmcError::NoConduit),
    };
    expect("interface", &found, &expected.map(String::from))
}

fn ffa_alone_is_no_spm_mm<C: Conduit>(place: &Place<'_>) -> Result<(), NotOk> {
    let found = connect::<C>(Wanted::Ffa).map(drop);
    let expected = match place.interface {
        Interface::Ffa | Interface::FfaWithoutRegs | Interface::StandaloneMm => Ok(()),
        Interface::SpmMm | Interface::NoMm => Err(SmcError::NoFfa(OtherVersion::refused(u32::MAX))),
        Interface::NoEl3 => Err(SmcError::NoConduit),
    };
    expect("FF-A", &found, &expected)
}

/// The identifiers of the other interface are among them, and the 64-bit form of MM_VERSION, which
/// does not exist.
fn unknown_calls_are_unknown<C: Conduit>(place: &Place<'_>) -> Result<(), NotOk> {
    let foreign: &[u32] = match place.interface {
        Interface::SpmMm => &[0x8400_0063, 0x8400_0069, ffa::MSG_SEND_DIRECT_REQ, 0x8400_006d],
        Interface::Ffa | Interface::FfaWithoutRegs | Interface::StandaloneMm => {
            &[spm_mm::MM_VERSION, spm_mm::MM_COMMUNICATE]
        }
        Interface::NoMm => &[0x8400_0063, spm_mm::MM_VERSION, spm_mm::MM_COMMUNICATE],
        Interface::NoEl3 => return Err(NotOk::Skipped(String::from("a call would trap"))),
    };
    for function in foreign.iter().chain(&[0xc400_0040, 0xc300_1234]) {
        // Not through the tap, because these are not requests.
        let [x0, ..] = C::call64(*function, [0; 17]);
        expect("response", &x0, &UNKNOWN)?;
    }
    Ok(())
}

fn buffers_are_shared_memory<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let range = shared.range().ok_or("no shared memory")?;
    let set = |index, start, len| monitor::<C>(SET_BUFFER, [index, start, len]);
    let page = PAGE_LEN as u64;
    expect("first page", &set(0, range.start(), page), &OK)?;
    expect(
        "all of it but what is taken",
        &set(1, range.start(), range.len()),
        &INVALID_PARAMETERS,
    )?;
    expect("next page", &set(1, range.start() + page, page), &OK)?;
    expect(
        "ninth buffer",
        &set(8, range.start() + 2 * page, page),
        &INVALID_PARAMETERS,
    )?;
    expect(
        "less than a header",
        &set(2, range.start() + 2 * page, 23),
        &INVALID_PARAMETERS,
    )?;
    for (what, start, len) in [
        ("secure RAM", SECURE_RAM.start(), page),
        ("before the region", range.start() - page, page),
        ("across its start", range.start() - 8, page),
        ("across its end", range.end() - page + 8, page),
        ("behind its end", range.end(), page),
        ("null", 0, page),
    ] {
        expect(what, &set(0, start, len), &DENIED)?;
    }
    for (what, start, len) in [
        ("past the last address", u64::MAX - 15, 32),
        ("no bytes", range.start(), 0),
    ] {
        expect(what, &set(0, start, len), &INVALID_PARAMETERS)?;
    }
    Ok(())
}

/// One buffer of a page, at the start of the shared memory.
fn one_buffer<C: Conduit>(shared: &SharedRegion) -> Result<(Connection<C>, u64), NotOk> {
    let range = shared.range().ok_or("no shared memory")?;
    let code = monitor::<C>(SET_BUFFER, [0, range.start(), PAGE_LEN as u64]);
    expect("a buffer", &code, &OK)?;
    Ok((connect::<C>(Wanted::Discover)?, range.start()))
}

fn status(result: Result<(), SmcError>) -> EfiStatus {
    result.err().map_or(EfiStatus::SUCCESS, SmcError::status)
}

fn requests_lie_in_buffers<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    // TF-A's SPM_MM has a separate code for the address 0 (`mm_communicate`).
    expect("request at 0", &connection.communicate(0).is_err(), &true)?;
    for address in [
        SECURE_RAM.start(),
        buffer - PAGE_LEN as u64,
        buffer + 8,
        buffer + PAGE_LEN as u64,
        u64::MAX,
    ] {
        let found = status(connection.communicate(address));
        expect(
            &format!("request at {address:#x}"),
            &found,
            &EfiStatus::ACCESS_DENIED,
        )?;
    }
    Ok(())
}

fn damaged_requests_are_refused<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    let mut longer = [0; 56];
    for (what, len) in [
        ("no request", 0),
        ("one byte more than the buffer", PAGE_LEN as u64 - 23),
        ("a length that wraps", u64::MAX - 8),
        ("the largest length", u64::MAX),
    ] {
        let (guid, rest) = longer.split_at_mut(16);
        guid.copy_from_slice(&mm::ECHO.to_bytes());
        rest.split_at_mut(8).0.copy_from_slice(&len.to_le_bytes());
        if !shared.write(0, &longer) {
            return Err(NotOk::Failed(String::from("the shared memory is too small")));
        }
        let found = status(connection.communicate(buffer));
        expect(what, &found, &EfiStatus::INVALID_PARAMETER)?;
        let mut after = [0; 56];
        let _ = shared.read(0, &mut after);
        expect("the buffer after it", &after, &longer)?;
    }
    Ok(())
}

/// Writes a request to the start of the shared memory.
fn write_request(
    shared: &SharedRegion,
    format: HeaderFormat,
    recipient: Guid,
    message: &[u8],
) -> Result<(), NotOk> {
    let header = Header::new(format, recipient, message.len() as u64).ok_or("no header")?;
    let written = shared.write(0, header.encode().as_ref()) && shared.write(format.header_len(), message);
    expect("written", &written, &true)
}

/// Writes a v1 request for a response of `len` bytes. It has more bytes than that, so that MM which
/// copies no more back than it got serves it, too.
fn write_stretch(shared: &SharedRegion, len: usize) -> Result<(), NotOk> {
    let mut message = [0; 400];
    let (first, _) = message.split_at_mut(8);
    first.copy_from_slice(&mm::stretch(len));
    write_request(shared, HeaderFormat::V1, mm::STRETCH, &message)
}

/// A field of the header, at the start of the shared memory.
fn field(shared: &SharedRegion, offset: usize) -> Result<u64, NotOk> {
    let mut field = [0; 8];
    expect("read", &shared.read(offset, &mut field), &true)?;
    Ok(u64::from_le_bytes(field))
}

/// A caller's floating point and vector registers are its own, unless the secure world does not
/// save them. Three requests, so that one is interrupted.
fn vector_registers_survive<C: Conduit>(
    shared: &SharedRegion,
    vectors: Vectors<'_>,
    expected: u64,
) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for _ in 0..3 {
        write_stretch(shared, 300)?;
        let mut result = Ok(());
        let changed = vectors(&mut || result = connection.communicate(buffer));
        expect("request", &result, &Ok(()))?;
        expect("halves of registers that have changed", &changed, &expected)?;
    }
    Ok(())
}

/// Compiled code keeps its numbers over a request, even if the secure world changes the registers.
fn floating_point_survives<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for round in 0..3_u8 {
        write_stretch(shared, 300)?;
        // More numbers than the procedure call standard has registers for that a function must
        // preserve.
        let numbers: [f64; 12] =
            core::array::from_fn(|index| f64::from(round) + core::hint::black_box(index as f64) / 3.0);
        let sums = [numbers.iter().sum::<f64>(), numbers.iter().product::<f64>()];
        expect("request", &connection.communicate(buffer), &Ok(()))?;
        let again = [numbers.iter().sum::<f64>(), numbers.iter().product::<f64>()];
        expect("the same sums", &again, &sums)?;
    }
    Ok(())
}

/// A request that is in the region when an earlier one continues may be damaged by it, so it is not
/// sent.
fn given_up_requests_end_first<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (_, buffer) = one_buffer::<C>(shared)?;
    let connection = connect_impatiently::<C>()?;
    let communicate = |response_len| {
        write_stretch(shared, response_len)?;
        let result = connection.communicate(buffer);
        Ok::<_, NotOk>((result, field(shared, 16)?))
    };
    let given_up = Err(SmcError::Timeout {
        call: "FFA_RUN",
        attempts: 0,
    });
    // Of three requests one is interrupted.
    let mut first = communicate(300)?;
    for _ in 0..2 {
        if first == (Ok(()), 300) {
            first = communicate(300)?;
        }
    }
    expect("the interrupted one", &first, &(given_up, 400))?;
    let served = monitor::<C>(COUNT_REQUESTS, [0; 3]);

    let unfinished = Err(SmcError::EarlierUnfinished { attempts: 1 });
    expect("the next one", &communicate(200)?, &(unfinished, 400))?;
    expect(
        "the one that it is finished for, which is overwritten",
        &communicate(200)?,
        &(Err(SmcError::EarlierEnded), 200),
    )?;
    expect("the one after it", &communicate(100)?, &(Ok(()), 100))?;
    let requests = monitor::<C>(COUNT_REQUESTS, [0; 3]).wrapping_sub(served);
    expect("requests that were served", &requests, &2)
}

/// The response's length is what the callee leaves in MessageLength or in MessageSize.
fn both_headers_are_served<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (connection, buffer) = one_buffer::<C>(shared)?;
    for (format, length_at) in [(HeaderFormat::V1, 16), (HeaderFormat::V3, 48)] {
        write_request(shared, format, mm::STRETCH, &mm::stretch(300))?;
        expect(
            "status",
            &status(connection.communicate(buffer)),
            &EfiStatus::SUCCESS,
        )?;
        expect("length", &field(shared, length_at)?, &300)?;
        let mut last = [0; 2];
        let _ = shared.read(format.header_len() + 299, &mut last);
        expect("last byte, and the one behind it", &last, &[49, 0])?;
        expect("wiped", &shared.wipe(0, PAGE_LEN), &true)?;
    }
    Ok(())
}
