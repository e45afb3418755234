use super::discovery::{RxTxMemory, by_pages, find_mm, own_id};
use super::*;
use crate::region::SharedRegion;
use crate::smc::world::{self, Arguments, FakeConduit, Response, Seen, World, answer, error};
use crate::smc::{Connection, Counter, Patience, SecureMm, Setup, TimeLimit, connect};
use core::time::Duration;
use mm_wire::EfiStatus;
use proptest::prelude::*;
use std::boxed::Box;
use std::cell::Cell;
use std::rc::Rc;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

const OWN_ID: u64 = 0x1234;
const MM_ID: u16 = 0x8002;
const BUFFER: u64 = 0x12_3456_7000;

const ID_GET: u32 = 0x8400_0069;
const GET_REGS: u32 = 0xc400_008b;
const DIRECT_REQ: u32 = 0xc400_006f;
const DIRECT_REQ2: u32 = 0xc400_008d;
const RUN_SP: u32 = 0x8400_006d;
const RXTX_MAP: u32 = 0xc400_0066;
const RXTX_UNMAP: u32 = 0x8400_0067;
const INFO_GET: u32 = 0x8400_0068;
const RX_RELEASE: u32 = 0x8400_0065;

/// Properties of a partition: AArch64, and direct requests of the first, of the second kind.
const TAKES_REQ: u32 = 1 << 8 | 1;
const TAKES_REQ2: u32 = 1 << 8 | 1 << 9;

/// A partition descriptor, 24 bytes (Arm DEN0077A, table 6.1).
fn descriptor(id: u16, properties: u32, uuid: [u8; 16]) -> Vec<u8> {
    [
        &id.to_le_bytes()[..],
        &1_u16.to_le_bytes(),
        &properties.to_le_bytes(),
        &uuid,
    ]
    .concat()
}

/// The same as FF-A 1.3 has it and Hafnium 2.15 gives it to callers of 1.2: 48 bytes, with the
/// image's UUID and the version that the partition speaks.
fn long_descriptor(id: u16, properties: u32, uuid: [u8; 16]) -> Vec<u8> {
    let appended = [&[0x5a; 16][..], &0x1_0003_u32.to_le_bytes(), &[0; 4]].concat();
    [descriptor(id, properties, uuid), appended].concat()
}

type Descriptor = fn(u16, u32, [u8; 16]) -> Vec<u8>;

/// Both descriptor formats.
const DESCRIPTORS: [Descriptor; 2] = [descriptor, long_descriptor];

/// FFA_SUCCESS of PARTITION_INFO_GET_REGS.
fn part(last: u16, current: u16, tag: u16, descriptors: &[Vec<u8>]) -> Response {
    let [last, current, tag] = [last, current, tag].map(u64::from);
    let len = descriptors[0].len() as u64;
    let mut registers = answer(&[0xc400_0061, 0, last | current << 16 | tag << 32 | len << 48]);
    for (register, bytes) in registers[3..].iter_mut().zip(descriptors.concat().chunks(8)) {
        *register = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    registers
}

fn response(function: u64, source: u16) -> Response {
    answer(&[function, u64::from(source) << 16 | OWN_ID])
}

/// A kind of request: its call and the response's, and the partition that takes it.
#[derive(Clone, Copy)]
struct Kind {
    request: u32,
    call: &'static str,
    response: u64,
    properties: u32,
}

const KINDS: [Kind; 2] = [
    Kind {
        request: DIRECT_REQ,
        call: "FFA_MSG_SEND_DIRECT_REQ",
        response: 0xc400_0070,
        properties: TAKES_REQ,
    },
    Kind {
        request: DIRECT_REQ2,
        call: "FFA_MSG_SEND_DIRECT_REQ2",
        response: 0xc400_008e,
        properties: TAKES_REQ2,
    },
];

impl Kind {
    fn answered(self) -> Response {
        response(self.response, MM_ID)
    }

    /// A world with an MM partition, found by registers, whose responses to requests and
    /// resumptions are a list, the last response for ever.
    fn serving(self, answers: Vec<Response>) -> World {
        let next = Cell::new(0);
        ffa(move |function, _, _| {
            if function == GET_REGS {
                return Some(part(0, 0, 0, &[descriptor(MM_ID, self.properties, [0; 16])]));
            }
            (function == self.request || function == RUN_SP).then(|| {
                let turn = next.replace(next.get() + 1);
                answers[turn.min(answers.len() - 1)]
            })
        })
    }
}

fn answered() -> Response {
    KINDS[0].answered()
}

fn target(vcpu: u64) -> u64 {
    u64::from(MM_ID) << 16 | vcpu
}

fn interrupted(vcpu: u64) -> Response {
    answer(&[0x8400_0062, target(vcpu), 27])
}

fn yielded(vcpu: u64) -> Response {
    answer(&[0x8400_006c, target(vcpu)])
}

fn ffa(answers: impl Fn(u32, &Arguments, usize) -> Option<Response> + 'static) -> World {
    World {
        ffa_version: 0x1_0002,
        ffa: Rc::new(answers),
        ..World::default()
    }
}

/// TF-A's EL3 SPMC: no GET_REGS, and RXTX_MAP is DENIED while buffers are mapped.
fn world_with_mapped_pages() -> World {
    ffa(|function, _, _| match function {
        GET_REGS => Some(error(-1)),
        RXTX_MAP => Some(error(-6)),
        INFO_GET => Some(answer(&[0x8400_0061, 0, 1, 24])),
        RX_RELEASE => Some(answer(&[0x8400_0061])),
        _ => None,
    })
}

fn connected(world: &World) -> (Result<Connection<FakeConduit>, SmcError>, Seen) {
    world::with(world.clone(), || {
        connect::<FakeConduit>(Setup::default(), &mut world::two_pages)
    })
}

fn communicate(world: World, patience: Patience) -> (Result<(), SmcError>, Seen) {
    let (results, seen) = communicate_often(1, world, patience);
    (results[0], seen)
}

fn communicate_often(times: usize, world: World, patience: Patience) -> (Vec<Result<(), SmcError>>, Seen) {
    let mut connection = connected(&world).0.unwrap();
    connection.limits = limits(patience);
    world::with(world, || {
        (0..times).map(|_| connection.communicate(BUFFER)).collect()
    })
}

/// The endpoints that FFA_RUN was asked to resume.
fn resumed(seen: &Seen) -> Vec<u64> {
    let runs = seen.calls.iter().filter(|(function, _)| *function == RUN_SP);
    runs.map(|(_, arguments)| arguments[0]).collect()
}

fn limits(patience: Patience) -> Limits {
    Limits { patience, time: None }
}

fn patience(busy: u32, resumes: u32) -> Patience {
    Patience { busy, resumes }
}

#[test]
fn the_service_is_in_the_registers_as_measured() {
    assert_eq!(
        arm_ffa::UuidHelper::to_u64_regs(MM_SERVICE),
        [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483]
    );
}

#[test]
fn a_partition_is_found_by_registers_and_asked_directly() {
    let world = KINDS[0].serving(vec![answered()]);
    let (connection, seen) = connected(&world);
    let connection = connection.unwrap();
    assert_eq!(
        connection.to_string(),
        "FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ"
    );
    assert_eq!(seen.functions(), [0x8400_0063, ID_GET, GET_REGS]);
    assert_eq!(
        seen.calls[2].1[..3],
        [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483, 0]
    );

    let (result, seen) = world::with(world, || connection.communicate(BUFFER));
    assert_eq!(result, Ok(()));
    let mut arguments = [0; 17];
    arguments[0] = OWN_ID << 16 | u64::from(MM_ID);
    arguments[2] = BUFFER;
    assert_eq!(seen.calls, [(DIRECT_REQ, arguments)]);
}

#[test]
fn a_partition_that_takes_only_the_second_kind_gets_it() {
    let world = ffa(|function, _, _| match function {
        GET_REGS => Some(part(0, 0, 0, &[descriptor(MM_ID, TAKES_REQ2, [0; 16])])),
        DIRECT_REQ2 => Some(response(0xc400_008e, MM_ID)),
        _ => None,
    });
    let (result, seen) = communicate(world, Patience::default());
    assert_eq!(result, Ok(()));
    let (function, arguments) = seen.calls[0];
    assert_eq!(function, DIRECT_REQ2);
    assert_eq!(
        arguments[..5],
        [
            OWN_ID << 16 | u64::from(MM_ID),
            0x4644_6bf0_dcae_8d37,
            0xa387_3c93_ab40_1483,
            BUFFER,
            0
        ]
    );
}

#[test]
fn a_partition_that_takes_no_requests_is_an_error() {
    let world = ffa(|function, _, _| {
        (function == GET_REGS).then(|| part(0, 0, 0, &[descriptor(7, 1 << 8, [0; 16])]))
    });
    assert_eq!(
        connected(&world).0.unwrap_err(),
        SmcError::NoDirectRequests { id: 7 }
    );
}

#[test]
fn the_list_is_read_part_by_part_until_the_service_is_there() {
    // The secure world does not filter: the first part has as many other partitions as fit (five or
    // two), the second one more and ours.
    for (descriptor, others) in DESCRIPTORS.into_iter().zip([5, 2]) {
        let world = ffa(move |function, arguments, _| {
            let other = |id| descriptor(id, TAKES_REQ, [9; 16]);
            let first: Vec<_> = (1..=others).map(other).collect();
            let ours = descriptor(MM_ID, TAKES_REQ, *MM_SERVICE.as_bytes());
            let last = others + 1;
            match (function, arguments[2]) {
                (GET_REGS, 0) => Some(part(last, others - 1, 0x77, &first)),
                (GET_REGS, next) if next == 0x77_0000 | u64::from(others) => {
                    Some(part(last, last, 0x77, &[other(last), ours]))
                }
                _ => None,
            }
        });
        let (connection, seen) = connected(&world);
        assert!(connection.unwrap().to_string().contains("0x8002"));
        assert_eq!(seen.functions(), [0x8400_0063, ID_GET, GET_REGS, GET_REGS]);
    }
}

#[test]
fn bytes_that_longer_descriptors_append_are_not_taken_for_a_descriptor() {
    // The bytes behind the first 24 look like a partition that takes requests.
    let disguised = [(3, [9; 16]), (MM_ID, [0; 16])]
        .map(|(id, uuid)| descriptor(id, TAKES_REQ, uuid))
        .concat();
    let listed = disguised.clone();
    let world = ffa(move |function, _, _| {
        (function == GET_REGS).then(|| part(0, 0, 0, core::slice::from_ref(&listed)))
    });
    assert_eq!(connected(&world).0.unwrap_err(), SmcError::NoPartition);
    let world = with_pages(error(-1), 1, 48, disguised);
    assert_eq!(connected(&world).0.unwrap_err(), SmcError::NoPartition);
}

#[test]
fn a_list_that_changes_is_read_again_and_not_for_ever() {
    let patient = |times: usize| {
        ffa(move |function, _, before| match function {
            GET_REGS if before < times => Some(error(-7)),
            GET_REGS => Some(part(0, 0, 0, &[descriptor(MM_ID, TAKES_REQ, [0; 16])])),
            _ => None,
        })
    };
    let find = |times| {
        world::with(patient(times), || {
            find_mm::<FakeConduit>(None, limits(patience(5, 0)), &mut world::two_pages)
        })
        .0
    };
    assert!(find(5).is_ok());
    let error = find(6).unwrap_err();
    assert_eq!(error.to_string(), "FFA_PARTITION_INFO_GET_REGS: RETRY (-7)");
    assert_eq!(error.status(), EfiStatus::TIMEOUT);
}

#[test]
fn a_list_that_lies_about_itself_is_refused() {
    let one = || descriptor(1, TAKES_REQ, [9; 16]);
    for (first, second) in [
        // More descriptors than registers.
        (part(9, 5, 0, &[one()]), answered()),
        (
            part(9, 2, 0, &[long_descriptor(1, TAKES_REQ, [9; 16])]),
            answered(),
        ),
        // Descriptors that are shorter than in FF-A 1.1, that end inside a register, that are
        // longer than all registers.
        (answer(&[0xc400_0061]), answered()),
        (answer(&[0xc400_0061, 0, 16 << 48]), answered()),
        (answer(&[0xc400_0061, 0, 20 << 48]), answered()),
        (answer(&[0xc400_0061, 0, 28 << 48]), answered()),
        (answer(&[0xc400_0061, 0, 128 << 48]), answered()),
        (answer(&[0xc400_0061, 0, 0xffff << 48]), answered()),
        // The second part starts before the requested index.
        (part(9, 4, 1, &[one()]), part(9, 2, 1, &[one()])),
        // The last index is below the current one.
        (part(1, 4, 0, &[one()]), answered()),
        // A success without the registers.
        (answer(&[0x8400_0061]), answered()),
        // A response of another call.
        (answered(), answered()),
    ] {
        let world = ffa(move |function, _, before| {
            (function == GET_REGS).then_some(if before == 0 { first } else { second })
        });
        let error = connected(&world).0.unwrap_err();
        assert!(matches!(error, SmcError::Protocol { .. }), "{error}");
    }
}

/// A world without GET_REGS that fills the RX page with descriptors, each of which claims to have
/// `len` bytes.
fn with_pages(missing: Response, count: u64, len: u64, descriptors: Vec<u8>) -> World {
    let rx = Rc::new(Cell::new(0));
    ffa(move |function, arguments, _| {
        let done = answer(&[0x8400_0061]);
        match function {
            GET_REGS => Some(missing),
            RXTX_MAP => {
                assert_eq!(arguments[0], arguments[1] + 4096, "TX, then RX");
                assert_eq!((arguments[1] % 4096, arguments[2]), (0, 1));
                rx.set(arguments[1]);
                Some(done)
            }
            INFO_GET => {
                assert_eq!(
                    arguments[..5],
                    [0xdcae_8d37, 0x4644_6bf0, 0xab40_1483, 0xa387_3c93, 0]
                );
                let to = core::ptr::with_exposed_provenance_mut(usize::try_from(rx.get()).unwrap());
                // SAFETY: two pages that are leaked and that nothing else uses.
                let page = unsafe { SharedRegion::new(to, 4096) }.unwrap();
                assert!(page.write(0, &descriptors));
                Some(answer(&[0x8400_0061, 0, count, len]))
            }
            RX_RELEASE | RXTX_UNMAP => Some(done),
            _ => None,
        }
    })
}

#[test]
fn without_registers_the_partition_is_found_through_pages_that_are_given_back() {
    for (descriptor, len) in DESCRIPTORS.into_iter().zip([24, 48]) {
        let ours = [
            descriptor(3, TAKES_REQ, [9; 16]),
            descriptor(MM_ID, TAKES_REQ2, *MM_SERVICE.as_bytes()),
        ]
        .concat();
        for missing in [error(-1), answer(&[u64::MAX]), answer(&[0xffff_ffff])] {
            let (connection, seen) = connected(&with_pages(missing, 2, len, ours.clone()));
            assert_eq!(
                connection.unwrap().to_string(),
                "FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ2"
            );
            assert_eq!(
                seen.functions()[3..],
                [RXTX_MAP, INFO_GET, RX_RELEASE, RXTX_UNMAP]
            );
        }
    }
}

#[test]
fn pages_are_given_back_whatever_their_contents() {
    let refused = SmcError::Protocol {
        call: "FFA_PARTITION_INFO_GET",
        response: 0x8400_0061,
    };
    let other = descriptor(3, TAKES_REQ, [9; 16]);
    for (count, len, expected) in [
        (1, 24, SmcError::NoPartition),
        (0, 24, SmcError::NoPartition),
        // As many descriptors as a page holds, and one more.
        (170, 24, SmcError::NoPartition),
        (171, 24, refused),
        (85, 48, SmcError::NoPartition),
        (86, 48, refused),
        (1, 4096, SmcError::NoPartition),
        (1, 4104, refused),
        (u64::from(u32::MAX), 24, refused),
        (u64::from(u32::MAX), u64::from(u32::MAX), refused),
        (1, 0, refused),
        (1, 16, refused),
        (1, 20, refused),
        (1, 28, refused),
    ] {
        let (result, seen) = connected(&with_pages(error(-1), count, len, other.clone()));
        assert_eq!(result.unwrap_err(), expected, "{count} of {len} bytes");
        assert_eq!(seen.functions()[5..], [RX_RELEASE, RXTX_UNMAP]);
    }
}

#[test]
fn pages_that_cannot_be_had_or_mapped_are_an_error() {
    let once = limits(patience(1, 0));
    let world = || ffa(|function, _, _| (function == RXTX_MAP).then(|| error(-6)).or(Some(error(-1))));
    let (result, _) = world::with(world(), || by_pages::<FakeConduit>(once, &mut || None));
    assert_eq!(result.unwrap_err(), SmcError::NoRxTxMemory { needed: 8192 });
    let (result, seen) = world::with(world(), || by_pages::<FakeConduit>(once, &mut world::two_pages));
    let error = result.unwrap_err();
    assert_eq!(error, SmcError::RxTxMapped);
    assert!(error.to_string().contains("FFA_RXTX_MAP: DENIED (-6)"), "{error}");
    assert_eq!(error.status(), EfiStatus::ACCESS_DENIED);
    assert_eq!(seen.functions(), [RXTX_MAP]);
}

#[test]
fn memory_other_than_two_pages_is_not_mapped() {
    #[repr(C, align(4096))]
    struct Pages([u8; 3 * 4096]);
    for (start, len, fits) in [
        (0, 8192, true),
        (4096, 8192, true),
        (0, 12288, true),
        // One that is only misaligned, one that is only too short.
        (8, 8192, false),
        (2048, 8192, false),
        (4095, 8192, false),
        (0, 8191, false),
        (0, 4096, false),
        (4096, 4097, false),
    ] {
        let world = with_pages(error(-1), 1, 24, descriptor(MM_ID, TAKES_REQ, [0; 16]));
        let (result, seen) = world::with(world, || {
            by_pages::<FakeConduit>(limits(patience(1, 0)), &mut || {
                let pages = &mut Box::leak(Box::new(Pages([0; 3 * 4096]))).0;
                Some(SharedRegion::over_static(&mut pages[start..start + len]))
            })
        });
        if fits {
            assert_eq!(result.unwrap().unwrap().partition_id, MM_ID);
            assert_eq!(seen.functions(), [RXTX_MAP, INFO_GET, RX_RELEASE, RXTX_UNMAP]);
        } else {
            assert_eq!(
                result.unwrap_err(),
                SmcError::NoRxTxMemory { needed: 8192 },
                "{len} bytes from {start}"
            );
            assert_eq!(seen.functions(), []);
        }
    }
}

/// Two pages of our own, and an RX page that another driver has mapped and announced.
struct Announced {
    rx: Option<SharedRegion>,
}

impl RxTxMemory for Announced {
    fn two_pages(&mut self) -> Option<SharedRegion> {
        world::two_pages()
    }

    fn mapped_rx(&mut self) -> Option<SharedRegion> {
        self.rx.take()
    }
}

#[test]
fn pages_that_another_driver_has_mapped_are_used_and_stay_mapped() {
    let rx = world::two_pages().unwrap();
    assert!(rx.write(0, &descriptor(MM_ID, TAKES_REQ, [0; 16])));
    let world = world_with_mapped_pages();
    let mut memory = Announced { rx: Some(rx) };
    let (result, seen) = world::with(world, || {
        connect::<FakeConduit>(Setup::default(), &mut memory).map(|found| found.to_string())
    });
    assert_eq!(
        result.unwrap(),
        "FF-A, partition 0x8002 by FFA_MSG_SEND_DIRECT_REQ"
    );
    assert_eq!(seen.functions()[3..], [RXTX_MAP, INFO_GET, RX_RELEASE]);
}

#[test]
fn rx_page_of_another_driver_that_is_too_short_is_an_error() {
    let rx = SharedRegion::over_static(Box::leak(vec![0; 4095].into_boxed_slice()));
    let world = world_with_mapped_pages();
    let mut memory = Announced { rx: Some(rx) };
    let (result, _) = world::with(world, || {
        connect::<FakeConduit>(Setup::default(), &mut memory).map(drop)
    });
    let call = "FFA_PARTITION_INFO_GET";
    let response = 0x8400_0061;
    assert_eq!(result, Err(SmcError::Protocol { call, response }));
}

#[test]
fn a_partition_that_the_platform_names_is_not_looked_for() {
    for (request, call) in [(DirectRequest::Req, 0), (DirectRequest::Req2, 1)].map(|(r, k)| (r, KINDS[k])) {
        let world = ffa(move |function, _, _| match function {
            ID_GET => None,
            _ if function == call.request => Some(response(call.response, 0x8005)),
            _ => unreachable!("{function:#x}"),
        });
        let setup = Setup {
            partition: Some(NamedPartition { id: 0x8005, request }),
            ..Setup::default()
        };
        let (result, seen) = world::with(world, || {
            let connection = connect::<FakeConduit>(setup, &mut || None)?;
            connection.communicate(BUFFER)
        });
        assert_eq!(result, Ok(()));
        assert_eq!(seen.functions(), [0x8400_0063, ID_GET, call.request]);
        assert_eq!(seen.calls[2].1[0], OWN_ID << 16 | 0x8005);
    }
}

/// The failures that a call can have, and the code of each.
fn failures() -> Vec<(Response, i32)> {
    // FF-A 1.2 has -1 to -10.
    let coded = (-11..=1).chain([i32::MIN, i32::MAX]);
    let unknown_function = [u64::MAX, 0xffff_ffff].map(|x0| (answer(&[x0]), -1));
    coded
        .map(|code| (error(code), code))
        .chain(unknown_function)
        .collect()
}

/// A world in which one call fails; everything else is as in `world`.
fn failing(failed: u32, failure: Response, world: World) -> World {
    ffa(move |function, arguments, before| {
        if function == failed {
            Some(failure)
        } else {
            (world.ffa)(function, arguments, before)
        }
    })
}

#[test]
#[cfg_attr(miri, ignore = "it takes Miri minutes")]
fn every_failed_discovery_call_is_named() {
    for (failed, call) in [
        (ID_GET, "FFA_ID_GET"),
        (GET_REGS, "FFA_PARTITION_INFO_GET_REGS"),
        (RXTX_MAP, "FFA_RXTX_MAP"),
        (INFO_GET, "FFA_PARTITION_INFO_GET"),
        (RX_RELEASE, "FFA_RX_RELEASE"),
        (RXTX_UNMAP, "FFA_RXTX_UNMAP"),
    ] {
        for (failure, code) in failures() {
            let ours = descriptor(MM_ID, TAKES_REQ2, [0; 16]);
            let world = failing(failed, failure, with_pages(error(-1), 1, 24, ours));
            let setup = Setup {
                patience: patience(3, 0),
                ..Setup::default()
            };
            let (result, seen) = world::with(world, || {
                connect::<FakeConduit>(setup, &mut world::two_pages).map(drop)
            });
            let expected = match (failed, code) {
                // Discovery continues with RX and TX pages.
                (GET_REGS, -1) => Ok(()),
                // No partition has the service's UUID.
                (GET_REGS | INFO_GET, -2) => Err(SmcError::NoPartition),
                (_, -4) => Err(SmcError::Timeout { call, attempts: 3 }),
                // Another driver has mapped the buffers.
                (RXTX_MAP, -6) => Err(SmcError::RxTxMapped),
                (_, code) => Err(SmcError::Ffa {
                    call,
                    code: FfaCode(code),
                }),
            };
            assert_eq!(result, expected, "{call} failed with {code}");

            // Pages that were mapped are unmapped, a page that was filled is released, and nothing
            // else is.
            let functions = seen.functions();
            let made = |function| functions.contains(&function);
            let mapped = made(RXTX_MAP) && failed != RXTX_MAP;
            let filled = made(INFO_GET) && failed != INFO_GET;
            assert_eq!(made(RXTX_UNMAP), mapped, "{call} failed with {code}");
            assert_eq!(functions.ends_with(&[RXTX_UNMAP]), mapped);
            assert_eq!(made(RX_RELEASE), filled, "{call} failed with {code}");
            assert!(!made(0x8400_0040), "no SPM_MM behind FF-A's back");
        }
    }
}

#[test]
fn every_failure_of_a_request_and_of_its_resumption_names_the_call() {
    for kind in KINDS {
        for (failure, code) in failures() {
            for (before, call) in [(vec![], kind.call), (vec![interrupted(0)], "FFA_RUN")] {
                let answers = [&before[..], &[failure]].concat();
                let (result, seen) = communicate(kind.serving(answers), patience(3, 4));
                let (expected, calls) = match code {
                    -4 => (SmcError::Timeout { call, attempts: 3 }, before.len() + 3),
                    // -5 is INTERRUPTED: the call and every resumption was interrupted.
                    -5 => (
                        SmcError::Timeout {
                            call: "FFA_RUN",
                            attempts: 4,
                        },
                        5,
                    ),
                    code => (
                        SmcError::Ffa {
                            call,
                            code: FfaCode(code),
                        },
                        before.len() + 1,
                    ),
                };
                assert_eq!(result, Err(expected), "{call} failed with {code}");
                assert_eq!(seen.calls.len(), calls, "{call} failed with {code}");
            }
        }
    }
}

#[test]
fn a_busy_partition_is_asked_again_until_patience_ends() {
    for kind in KINDS {
        let mut answers = vec![error(-4); 9];
        answers.push(kind.answered());
        let (result, seen) = communicate(kind.serving(answers), patience(10, 0));
        assert_eq!(result, Ok(()));
        assert_eq!(seen.functions(), [kind.request; 10]);

        let (result, seen) = communicate(kind.serving(vec![error(-4)]), patience(10, 0));
        let error = result.unwrap_err();
        assert_eq!(
            error,
            SmcError::Timeout {
                call: kind.call,
                attempts: 10
            }
        );
        assert_eq!(error.status(), EfiStatus::TIMEOUT);
        assert_eq!(seen.functions(), [kind.request; 10]);
    }
}

#[test]
fn busy_discovery_is_waited_for_too() {
    let world = |times| {
        ffa(move |function, _, before| match function {
            ID_GET if before < times => Some(error(-4)),
            _ => None,
        })
    };
    let ask = |times| world::with(world(times), || own_id::<FakeConduit>(limits(patience(4, 0)))).0;
    assert_eq!(ask(3), Ok(0x1234));
    assert_eq!(
        ask(4),
        Err(SmcError::Timeout {
            call: "FFA_ID_GET",
            attempts: 4
        })
    );
}

#[test]
fn the_endpoint_that_was_interrupted_is_the_one_that_is_resumed() {
    const OTHER: u64 = 0x8003_0003;
    let interrupted_at = |target| answer(&[0x8400_0062, target, 27]);
    let yielded_at = |target| answer(&[0x8400_006c, target]);
    for kind in KINDS {
        let answers = vec![
            interrupted_at(target(2)),
            interrupted_at(target(0)),
            yielded_at(target(2)),
            // MM has called another partition, which was stopped.
            interrupted_at(OTHER),
            yielded_at(OTHER | 1 << 63),
            // These name none, so it is still the same partition.
            interrupted_at(0),
            answer(&[0x8400_006c]),
            error(-5),
            // The other partition has responded to MM.
            yielded_at(target(1)),
            kind.answered(),
        ];
        let (result, seen) = communicate(kind.serving(answers), patience(1, 9));
        assert_eq!(result, Ok(()));
        assert_eq!(seen.calls[0].0, kind.request);
        let [mm0, mm1, mm2] = [0, 1, 2].map(target);
        assert_eq!(
            resumed(&seen),
            [mm2, mm0, mm2, OTHER, OTHER, OTHER, OTHER, OTHER, mm1]
        );
    }
}

/// MM waits for another partition; FFA_RUN of MM itself is refused as BUSY until the other one has
/// responded.
#[test]
fn a_partition_that_mm_waits_for_is_resumed_and_mm_is_not() {
    const OTHER: u64 = 0x8003_0003;
    for kind in KINDS {
        for (first, second) in [(0x8400_0062, 0x8400_006c), (0x8400_006c, 0x8400_0062)] {
            let stops = Cell::new(3);
            let world = ffa(move |function, arguments, _| match function {
                GET_REGS => Some(part(0, 0, 0, &[descriptor(MM_ID, kind.properties, [0; 16])])),
                RUN_SP if arguments[0] != OTHER => Some(error(-4)),
                _ if function == kind.request || function == RUN_SP => match stops.get() {
                    0 => Some(kind.answered()),
                    left => {
                        stops.set(left - 1);
                        Some(answer(&[if left % 2 == 0 { second } else { first }, OTHER, 27]))
                    }
                },
                _ => None,
            });
            let (result, seen) = communicate(world, patience(50, 50));
            assert_eq!(result, Ok(()));
            assert_eq!(resumed(&seen), [OTHER; 3]);
        }
    }
}

#[test]
fn a_request_that_was_given_up_in_another_partition_is_ended_there() {
    const OTHER: u64 = 0x8003_0003;
    for kind in KINDS {
        let elsewhere = answer(&[0x8400_0062, OTHER, 27]);
        let answers = vec![elsewhere, elsewhere, kind.answered(), kind.answered()];
        let (results, seen) = communicate_often(3, kind.serving(answers), patience(1, 1));
        let given_up = SmcError::Timeout {
            call: "FFA_RUN",
            attempts: 1,
        };
        assert_eq!(results, [Err(given_up), Err(SmcError::EarlierEnded), Ok(())]);
        assert_eq!(resumed(&seen), [OTHER; 2]);
    }
}

#[test]
fn an_interruption_that_names_no_endpoint_is_of_the_first_virtual_processor() {
    for unnamed in [
        answer(&[0x8400_0062]),
        answer(&[0x8400_006c]),
        // No partition has the identifier 0.
        answer(&[0x8400_0062, 3, 27]),
        answer(&[0x8400_006c, 3]),
        error(-5),
    ] {
        let (result, seen) = communicate(KINDS[0].serving(vec![unnamed, answered()]), Patience::default());
        assert_eq!(result, Ok(()));
        assert_eq!(resumed(&seen), [target(0)]);
    }
}

/// The response of StandaloneMm, with a status in the registers that it may fill.
fn with_status(kind: Kind, [first, second]: [u64; 2]) -> Response {
    let mut response = kind.answered();
    let at = if kind.request == DIRECT_REQ { 3 } else { 4 };
    (response[at], response[at + 1]) = (first, second);
    response
}

#[test]
#[cfg_attr(miri, ignore = "it takes Miri minutes")]
fn a_status_in_the_response_is_the_result() {
    const DONE: u64 = 0xc400_0061;
    const DONE_32: u64 = 0x8400_0061;
    let short = |code: i32| u64::from(code.cast_unsigned());
    let long = |code: i32| i64::from(code).cast_unsigned();
    for kind in KINDS {
        // In response to the request, and to a resumption.
        for before in [vec![], vec![interrupted(0)]] {
            let ask = |registers| {
                let answers = [&before[..], &[with_status(kind, registers)]].concat();
                communicate(kind.serving(answers), Patience::default()).0
            };
            for success in [
                [0, 0],
                [DONE, 0],
                [DONE_32, 0],
                // Registers that hold no status: an address, the request's own.
                [BUFFER, 0],
                [0, BUFFER],
                [u64::from(DIRECT_REQ), 1],
                // The upper half is not looked at.
                [DONE | 0xffff_ffff << 32, 0xffff_ffff_0000_0000],
            ] {
                assert_eq!(ask(success), Ok(()), "{success:x?}");
            }
            for code in [-1, -2, -3, -4, -5, -6, -17] {
                for failure in [
                    [DONE, short(code)],
                    [DONE, long(code)],
                    [DONE_32, short(code)],
                    [short(code), 0],
                    [long(code), 0],
                    [0, long(code)],
                ] {
                    let (call, code) = (kind.call, SpmMmCode(code));
                    assert_eq!(
                        ask(failure),
                        Err(SmcError::Refused { call, code }),
                        "{failure:x?}"
                    );
                }
            }
            let (call, code) = (kind.call, SpmMmCode(1));
            assert_eq!(ask([DONE, 1]), Err(SmcError::Refused { call, code }));
        }
    }
    let refused = SmcError::Refused {
        call: KINDS[0].call,
        code: SpmMmCode(-3),
    };
    assert_eq!(
        refused.to_string(),
        "FFA_MSG_SEND_DIRECT_REQ: the partition's response says DENIED (-3)"
    );
    assert_eq!(refused.status(), EfiStatus::ACCESS_DENIED);
}

#[test]
fn response_in_32_bit_registers_has_its_status_there_too() {
    let kind = KINDS[0];
    let status = |first: u64, second: u64| {
        let mut response = response(0x8400_0070, MM_ID);
        (response[3], response[4]) = (first, second);
        communicate(kind.serving(vec![response]), Patience::default()).0
    };
    assert_eq!(status(0, 0), Ok(()));
    assert_eq!(status(0x8400_0061, 0), Ok(()));
    let (call, code) = (kind.call, SpmMmCode(-3));
    let denied = u64::from((-3_i32).cast_unsigned());
    let refused = Err(SmcError::Refused { call, code });
    assert_eq!(status(0x8400_0061, denied), refused);
    assert_eq!(status(denied, 0), refused);
}

#[test]
fn a_failed_request_leaves_nothing_to_end() {
    for kind in KINDS {
        let failed = with_status(kind, [0xc400_0061, u64::from((-2_i32).cast_unsigned())]);
        let answers = vec![interrupted(1), failed, kind.answered()];
        let (results, seen) = communicate_often(2, kind.serving(answers.clone()), patience(1, 1));
        assert!(matches!(results[..], [Err(SmcError::Refused { .. }), Ok(())]));
        assert_eq!(seen.functions(), [kind.request, RUN_SP, kind.request]);
        // The same for a request that was given up.
        let (results, _) = communicate_often(3, kind.serving(answers), patience(1, 0));
        assert_eq!(results[1..], [Err(SmcError::EarlierEnded), Ok(())]);
    }
}

#[test]
fn identifiers_are_compared_in_their_32_bits() {
    // edk2 shifts them as a signed number: from partition 0x8002 on, x1 has ones in its upper half.
    for kind in KINDS {
        let mut extended = kind.answered();
        extended[1] |= 0xffff_ffff << 32;
        let (result, _) = communicate(kind.serving(vec![extended]), Patience::default());
        assert_eq!(result, Ok(()));
        let mut function = kind.answered();
        function[0] |= 0xffff_ffff << 32;
        let (result, _) = communicate(kind.serving(vec![function]), Patience::default());
        assert_eq!(result, Ok(()));
        let mut failure = error(-6);
        failure[2] = i64::from(-6).cast_unsigned();
        let (result, _) = communicate(kind.serving(vec![failure]), Patience::default());
        let (call, code) = (kind.call, FfaCode(-6));
        assert_eq!(result, Err(SmcError::Ffa { call, code }));
        let stopped = answer(&[0x8400_0062, target(2) | 0xffff_ffff << 32, 27]);
        let (result, seen) = communicate(kind.serving(vec![stopped, kind.answered()]), Patience::default());
        assert_eq!(result, Ok(()));
        assert_eq!(resumed(&seen), [target(2)]);
    }
}

/// A world whose counter, of 1000 ticks a second, goes on by `per_call` with each look at it.
fn timed(world: World, per_call: u64) -> World {
    let ticks = Cell::new(0);
    World {
        counter: Rc::new(move || {
            let now = ticks.replace(ticks.get() + per_call);
            Some(Counter {
                ticks: now,
                per_second: 1000,
            })
        }),
        ..world
    }
}

#[test]
fn with_a_counter_patience_ends_by_time() {
    let time = TimeLimit {
        busy: Duration::from_millis(100),
        request: Duration::from_millis(300),
    };
    for kind in KINDS {
        for (stuck, call, limit) in [
            (error(-4), kind.call, 100),
            (interrupted(0), "FFA_RUN", 300),
            (yielded(0), "FFA_RUN", 300),
            (error(-5), "FFA_RUN", 300),
        ] {
            for per_call in [1, 10, 1000] {
                let world = timed(kind.serving(vec![stuck]), per_call);
                let mut connection = connected(&world).0.unwrap();
                connection.limits = Limits {
                    patience: patience(1, 1),
                    time: Some(time),
                };
                let (result, seen) = world::with(world, || connection.communicate(BUFFER));
                let Err(SmcError::Timeout {
                    call: found,
                    attempts,
                }) = result
                else {
                    panic!("{result:?}")
                };
                assert_eq!(found, call);
                let looks = (limit / per_call).max(1);
                assert!(u64::from(attempts).abs_diff(looks) <= 1, "{attempts} of {looks}");
                assert!(seen.calls.len() as u64 >= looks);
            }
        }
        // A partition that runs may be busy as long again.
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.extend(vec![error(-4); 80]);
            answers.push(yielded(0));
        }
        answers.push(kind.answered());
        let world = timed(kind.serving(answers), 1);
        let mut connection = connected(&world).0.unwrap();
        connection.limits = Limits {
            patience: patience(1, 1),
            time: Some(TimeLimit {
                request: Duration::from_secs(1),
                ..time
            }),
        };
        assert_eq!(world::with(world, || connection.communicate(BUFFER)).0, Ok(()));
    }
}

#[test]
fn a_resumption_can_find_the_partition_busy() {
    for kind in KINDS {
        let answers = vec![interrupted(0), error(-4), error(-4), kind.answered()];
        let (result, seen) = communicate(kind.serving(answers), patience(3, 1));
        assert_eq!(result, Ok(()));
        assert_eq!(seen.functions(), [kind.request, RUN_SP, RUN_SP, RUN_SP]);
    }
}

#[test]
fn a_partition_that_never_finishes_is_given_up() {
    for kind in KINDS {
        for stuck in [interrupted(0), yielded(0), error(-5)] {
            let (result, seen) = communicate(kind.serving(vec![stuck]), patience(1, 100));
            assert_eq!(
                result,
                Err(SmcError::Timeout {
                    call: "FFA_RUN",
                    attempts: 100
                })
            );
            assert_eq!(seen.calls.len(), 101);
        }
    }
}

#[test]
fn a_request_that_was_given_up_is_ended_before_the_next_one_is_sent() {
    for kind in KINDS {
        let answers = vec![
            // The first call gives up.
            interrupted(3),
            yielded(3),
            interrupted(3),
            // The second call resumes the request and gives up again.
            interrupted(3),
            interrupted(1),
            // The third call resumes it, and it ends.
            yielded(1),
            kind.answered(),
            // The response to the fourth request.
            kind.answered(),
        ];
        let (results, seen) = communicate_often(4, kind.serving(answers), patience(5, 2));
        let given_up = SmcError::Timeout {
            call: "FFA_RUN",
            attempts: 2,
        };
        assert_eq!(
            results,
            [
                Err(given_up),
                Err(SmcError::EarlierUnfinished { attempts: 2 }),
                Err(SmcError::EarlierEnded),
                Ok(()),
            ]
        );
        assert_eq!(resumed(&seen), [3, 3, 3, 3, 1, 1].map(target));
        let [first, .., last] = &seen.functions()[..] else {
            panic!("no calls")
        };
        assert_eq!(
            [*first, *last],
            [kind.request; 2],
            "nothing between was a request"
        );
    }
}

#[test]
fn a_partition_that_runs_elsewhere_is_waited_for_before_the_next_request() {
    let answers = vec![
        interrupted(0),
        error(-4),
        error(-4),
        error(-4),
        error(-4),
        answered(),
    ];
    let (results, seen) = communicate_often(3, KINDS[0].serving(answers), patience(2, 1));
    assert_eq!(
        results,
        [
            Err(SmcError::Timeout {
                call: "FFA_RUN",
                attempts: 2
            }),
            Err(SmcError::EarlierUnfinished { attempts: 2 }),
            Err(SmcError::EarlierEnded),
        ]
    );
    assert_eq!(
        seen.functions(),
        [DIRECT_REQ, RUN_SP, RUN_SP, RUN_SP, RUN_SP, RUN_SP]
    );
}

#[test]
fn a_request_that_cannot_be_resumed_is_over() {
    for (failure, code) in failures() {
        if let -5 | -4 = code {
            continue;
        }
        // The call itself fails: the next one finds nothing to wait for.
        let answers = vec![interrupted(0), failure, answered()];
        let (results, seen) = communicate_often(2, KINDS[0].serving(answers), patience(1, 1));
        let refused = SmcError::Ffa {
            call: "FFA_RUN",
            code: FfaCode(code),
        };
        assert_eq!(results, [Err(refused), Ok(())]);
        assert_eq!(seen.functions(), [DIRECT_REQ, RUN_SP, DIRECT_REQ]);

        // The next call resumes it and fails: it does not know what MM wrote meanwhile.
        let answers = vec![interrupted(0), failure, answered()];
        let (results, seen) = communicate_often(3, KINDS[0].serving(answers), patience(1, 0));
        assert_eq!(results[1..], [Err(SmcError::EarlierEnded), Ok(())]);
        assert_eq!(seen.functions(), [DIRECT_REQ, RUN_SP, DIRECT_REQ]);
    }
}

#[test]
fn a_nonsense_response_to_a_resumption_ends_nothing() {
    let nonsense = answer(&[0x8400_0061]);
    let answers = vec![interrupted(0), nonsense, nonsense, answered(), answered()];
    let (results, seen) = communicate_often(4, KINDS[0].serving(answers), patience(1, 1));
    let refused = SmcError::Protocol {
        call: "FFA_RUN",
        response: 0x8400_0061,
    };
    assert_eq!(
        results,
        [Err(refused), Err(refused), Err(SmcError::EarlierEnded), Ok(())]
    );
    assert_eq!(seen.functions(), [DIRECT_REQ, RUN_SP, RUN_SP, RUN_SP, DIRECT_REQ]);
}

#[test]
fn a_request_that_was_not_taken_leaves_nothing_to_end() {
    for failure in [error(-4), error(-6), answer(&[0x1234])] {
        let answers = vec![failure, answered()];
        let (results, seen) = communicate_often(2, KINDS[0].serving(answers), patience(1, 0));
        assert!(results[0].is_err());
        assert_eq!(results[1], Ok(()));
        assert_eq!(seen.functions(), [DIRECT_REQ; 2]);
    }
}

#[test]
fn a_response_that_is_not_to_this_request_is_refused() {
    for (kind, other) in [(KINDS[0], KINDS[1]), (KINDS[1], KINDS[0])] {
        for wrong in [
            response(kind.response, 0x8003),
            answer(&[kind.response, target(0) | 0x4321]),
            other.answered(),
            answer(&[0x8400_0061]),
            answer(&[kind.request.into()]),
            answer(&[0x1234]),
            answer(&[0]),
        ] {
            let (result, _) = communicate(kind.serving(vec![wrong]), Patience::default());
            let response = low(wrong[0]);
            let call = kind.call;
            assert_eq!(result, Err(SmcError::Protocol { call, response }));
        }
    }
    // A framework message.
    let wrong = answer(&[0xc400_0070, target(0) | OWN_ID, 0x8000_0000]);
    let (result, _) = communicate(KINDS[0].serving(vec![wrong]), Patience::default());
    assert!(matches!(
        result,
        Err(SmcError::Protocol {
            response: 0xc400_0070,
            ..
        })
    ));
}

proptest! {
    /// Also shows that `arm-ffa` never gets inputs that it panics on.
    #[test]
    fn no_response_of_the_secure_world_makes_the_client_panic_or_hang(
        answers in proptest::collection::vec((0..12_usize, proptest::array::uniform17(any::<u64>())), 1..20),
    ) {
        const FUNCTIONS: [u64; 12] = [
            0x8400_0060, 0x8400_0061, 0xc400_0061, 0x8400_0062, 0xc400_0062, 0x8400_006c, 0xc400_006c, 0x8400_0070,
            0xc400_0070, 0xc400_008e, 0xc400_0060, 0xc400_008a,
        ];
        let next = Cell::new(0);
        let world = ffa(move |function, arguments, _| {
            let (index, rest) = answers[next.get() % answers.len()];
            next.set(next.get() + 1);
            let mut registers = answer(&[FUNCTIONS[index]]);
            registers[1..].copy_from_slice(&rest);
            // Sometimes the result that was asked for, so that there is a next step.
            match function {
                ID_GET if index % 2 == 0 => None,
                GET_REGS if index % 3 == 0 => Some(part(0, 0, 0, &[descriptor(MM_ID, low(arguments[0]) | 1, [0; 16])])),
                GET_REGS if index % 3 == 1 => Some(error(-1)),
                RXTX_MAP | RX_RELEASE | RXTX_UNMAP => Some(answer(&[0x8400_0061])),
                _ => Some(registers),
            }
        });
        let setup = Setup { patience: patience(5, 5), ..Setup::default() };
        let (_, seen) = world::with(world, || {
            let mm = connect::<FakeConduit>(setup, &mut world::two_pages)?;
            // Several calls, because a request that was given up affects the next one.
            (0..4).map(|_| mm.communicate(BUFFER)).last().unwrap_or(Ok(()))
        });
        prop_assert!(seen.calls.len() < 200);
    }
}
