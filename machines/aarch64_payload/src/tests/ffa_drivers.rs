//! Beside other FF-A drivers: versions and buffers that they have settled, and patience with a busy
//! partition.

use super::{
    Conduit, NotOk, OtherVersion, PAGE_LEN, Place, Report, expect, one_buffer, two_pages, write_stretch,
};
use aarch64_monitor::Interface;
use alloc::string::String;
use core::fmt::Write;
use core::time::Duration;
use mm_comm::SharedRegion;
use mm_comm::smc::ffa::{DirectRequest, NamedPartition};
use mm_comm::smc::{RxTxMemory, SecureMm, Setup, SmcError, TimeLimit, connect};

const VERSION: u32 = 0x8400_0063;
const ID_GET: u32 = 0x8400_0069;
const RXTX_MAP: u32 = 0xc400_0066;
const RXTX_UNMAP: u32 = 0x8400_0067;
const SUCCESS: u64 = 0x8400_0061;
const NOT_SUPPORTED: u64 = 0xffff_ffff;

pub(super) fn run<C: Conduit>(place: &Place<'_>, report: &mut Report<impl Write>) {
    // This test is the first: another driver settles the version for the whole run.
    report.test("secure_world.settled_version_is_used", || match place.interface {
        Interface::StandaloneMm => settled_version_is_used::<C>(),
        _ => Err(NotOk::Skipped(String::from(
            "FFA_VERSION returns 1.2 to every caller",
        ))),
    });
    report.test("secure_world.mapped_buffers_are_used", || match place.interface {
        Interface::FfaWithoutRegs => mapped_buffers_are_used::<C>(),
        _ => Err(NotOk::Skipped(String::from(
            "partitions are found without RX and TX buffers",
        ))),
    });
    let request = match place.interface {
        Interface::Ffa | Interface::StandaloneMm => Some(DirectRequest::Req),
        Interface::FfaWithoutRegs => Some(DirectRequest::Req2),
        _ => None,
    };
    let skipped = || NotOk::Skipped(String::from("there is no FF-A"));
    let shared = || (place.shared)().ok_or("no shared memory");
    report.test("secure_world.named_partition_is_asked", || {
        named_partition_is_asked::<C>(&shared()?, request.ok_or_else(skipped)?)
    });
    report.test("secure_world.busy_partition_is_given_up_by_time", || {
        request.ok_or_else(skipped)?;
        match C::counter() {
            Some(_) => busy_partition_is_given_up_by_time::<C>(&shared()?),
            None => Err(NotOk::Skipped(String::from("there is no counter"))),
        }
    });
}

/// Makes an FF-A call as another driver would, and returns x0.
fn ffa<C: Conduit>(function: u32, first: [u64; 3]) -> u64 {
    crate::site::monitor::<C>(function, first)
}

fn settled_version_is_used<C: Conduit>() -> Result<(), NotOk> {
    let version = |version| ffa::<C>(VERSION, [version, 0, 0]);
    expect("FFA_VERSION(1.3)", &version(0x1_0003), &0x1_0003)?;
    expect("FFA_ID_GET", &ffa::<C>(ID_GET, [0; 3]), &SUCCESS)?;
    expect("FFA_VERSION(1.2)", &version(0x1_0002), &NOT_SUPPORTED)?;
    let found = connect::<C>(Setup::default(), &mut two_pages).map(drop);
    expect("connection", &found, &Ok(()))?;
    // The result for a caller if the version is older.
    let older = OtherVersion {
        response: u32::MAX,
        accepted: Some(1),
    };
    expect(
        "text",
        &alloc::format!("{older}").contains("1.1 is accepted"),
        &true,
    )
}

/// Pages that another driver has mapped: RX first, then TX.
struct Mapped(Option<SharedRegion>);

impl RxTxMemory for Mapped {
    fn two_pages(&mut self) -> Option<SharedRegion> {
        two_pages()
    }

    fn mapped_rx(&mut self) -> Option<SharedRegion> {
        self.0.take()
    }
}

fn mapped_buffers_are_used<C: Conduit>() -> Result<(), NotOk> {
    let pages = two_pages().ok_or("no pages")?;
    let rx = pages.as_ptr().expose_provenance() as u64;
    let map = || ffa::<C>(RXTX_MAP, [rx + PAGE_LEN as u64, rx, 1]);
    let unmap = || ffa::<C>(RXTX_UNMAP, [0; 3]);
    expect("FFA_RXTX_MAP", &map(), &SUCCESS)?;
    let found = connect::<C>(Setup::default(), &mut two_pages).map(drop);
    expect("not announced", &found, &Err(SmcError::RxTxMapped))?;
    let found = connect::<C>(Setup::default(), &mut Mapped(Some(pages))).map(drop);
    expect("announced", &found, &Ok(()))?;
    expect("FFA_RXTX_UNMAP", &unmap(), &SUCCESS)?;
    let found = connect::<C>(Setup::default(), &mut two_pages).map(drop);
    expect("unmapped", &found, &Ok(()))
}

fn named_partition_is_asked<C: Conduit>(shared: &SharedRegion, request: DirectRequest) -> Result<(), NotOk> {
    let (_, buffer) = one_buffer::<C>(shared)?;
    for (id, expected) in [(0x8002, true), (0x8004, false)] {
        let setup = Setup {
            partition: Some(NamedPartition { id, request }),
            ..Setup::default()
        };
        let connection = connect::<C>(setup, &mut || None)?;
        write_stretch(shared, 3)?;
        expect("request", &connection.communicate(buffer).is_ok(), &expected)?;
    }
    Ok(())
}

/// Of three requests the first finds the partition busy.
fn busy_partition_is_given_up_by_time<C: Conduit>(shared: &SharedRegion) -> Result<(), NotOk> {
    let (_, buffer) = one_buffer::<C>(shared)?;
    let setup = Setup {
        time_limit: Some(TimeLimit {
            busy: Duration::ZERO,
            ..TimeLimit::default()
        }),
        ..Setup::default()
    };
    let connection = connect::<C>(setup, &mut two_pages)?;
    let mut given_up = 0;
    for _ in 0..3 {
        write_stretch(shared, 3)?;
        match connection.communicate(buffer) {
            Ok(()) => {}
            Err(SmcError::Timeout { attempts: 1, .. }) => given_up += 1,
            Err(error) => return Err(NotOk::Failed(alloc::format!("{error}"))),
        }
    }
    expect("requests that were given up", &given_up, &1)
}
