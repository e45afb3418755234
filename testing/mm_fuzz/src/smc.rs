//! The client of secure monitor calls against a secure world whose registers, descriptors and RX page say anything.

use crate::memory::{Block, Purpose};
use arbitrary::{Arbitrary, Unstructured};
use mm_comm::SharedRegion;
use mm_comm::smc::ffa::{DirectRequest, NamedPartition};
use mm_comm::smc::{
    Call, Conduit, Counter, Interface, Patience, PsciConduit, RxTxMemory, SecureMm, Setup, SmcError, connect,
};
use mm_wire::PAGE_LEN;
use std::cell::RefCell;

const BUFFER: u64 = 0x5000_0000;
const VERSION: u32 = 0x8400_0063;
const RXTX_MAP: u32 = 0xc400_0066;
const RXTX_UNMAP: u32 = 0x8400_0067;
const MM_COMMUNICATE: u32 = 0xc400_0041;
const DIRECT_RESPONSES: [u32; 2] = [0xc400_0070, 0xc400_008e];
const SERVICE: [u64; 2] = [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483];

#[derive(Arbitrary, Debug)]
struct Case {
    el3: bool,
    psci: u8,
    only_ffa: bool,
    busy: u8,
    resumes: u8,
    named: Option<(u16, bool)>,
    has_counter: bool,
    memory: Memory,
    rx: Vec<Descriptor>,
    calls: u8,
    responses: Vec<Response>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Memory {
    Pages,
    None,
    OnePage,
    Misaligned,
    Mapped,
}

#[derive(Arbitrary, Clone, Debug)]
enum Response {
    /// The real secure world's response to this call.
    Usual,
    Version(u16, u16),
    Error(i8),
    Success {
        wide: bool,
        registers: [u64; 4],
    },
    List {
        last: u8,
        current: u8,
        tag: u16,
        len: u8,
        partitions: Vec<Descriptor>,
    },
    Interrupt {
        yields: bool,
        target: u16,
        vcpu: u8,
    },
    Direct {
        second: bool,
        source: Source,
        registers: [u64; 3],
    },
    Any(u64, [u64; 8]),
    Unknown,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Source {
    Asked,
    Other(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Descriptor {
    id: u16,
    vcpus: u8,
    properties: u16,
    uuid: Uuid,
    long: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Uuid {
    Nil,
    Mm,
    Other(u8),
}

impl Descriptor {
    fn bytes(self) -> Vec<u8> {
        let uuid = match self.uuid {
            Uuid::Nil => [0; 2],
            Uuid::Mm => SERVICE,
            Uuid::Other(byte) => [u64::from(byte) + 1; 2],
        };
        let first = u64::from(self.id) | u64::from(self.vcpus) << 16 | u64::from(self.properties) << 32;
        let mut words = vec![first, uuid[0], uuid[1]];
        if self.long {
            words.extend([7; 3]);
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// The next responses of this thread's secure world, and the calls that it got.
#[derive(Debug, Default)]
struct World {
    el3: bool,
    has_counter: bool,
    ticks: u64,
    responses: Vec<Response>,
    calls: Vec<(u32, [u64; 17], [u64; 18])>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

struct Fake;

impl Call for Fake {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("calls are made with all registers")
    }

    fn call64(function: u32, arguments: [u64; 17]) -> [u64; 18] {
        WORLD.with_borrow_mut(|world| {
            let next = world.responses.pop().unwrap_or(Response::Usual);
            let registers = respond(function, &arguments, next);
            world.calls.push((function, arguments, registers));
            registers
        })
    }
}

impl Conduit for Fake {
    fn el3_is_implemented() -> bool {
        WORLD.with_borrow(|world| world.el3)
    }

    fn counter() -> Option<Counter> {
        WORLD.with_borrow_mut(|world| {
            // The counter wraps in the middle of a case.
            world.ticks = world.ticks.wrapping_add(u64::MAX / 64);
            world.has_counter.then_some(Counter {
                ticks: world.ticks,
                per_second: u64::MAX / 512,
            })
        })
    }
}

fn respond(function: u32, arguments: &[u64; 17], response: Response) -> [u64; 18] {
    let registers: Vec<u64> = match response {
        Response::Usual => match function {
            VERSION => vec![0x1_0002],
            0x8400_0040 => vec![0x1_0000],
            MM_COMMUNICATE => vec![0],
            0x8400_0069 => vec![0x8400_0061, 0, 0x1234],
            0xc400_008b => vec![0xc400_0061, 0, 24 << 48, 0x8002 | 0x101 << 32],
            0x8400_0068 => vec![0x8400_0061, 0, 1, 24],
            0xc400_006f => vec![0xc400_0070, arguments[0] << 16 | arguments[0] >> 16],
            0xc400_008d => vec![0xc400_008e, arguments[0] << 16 | arguments[0] >> 16],
            _ => vec![0x8400_0061],
        },
        Response::Version(major, minor) => vec![u64::from(major) << 16 | u64::from(minor)],
        Response::Error(code) => vec![0x8400_0060, 0, u64::from(i32::from(code).cast_unsigned())],
        Response::Success { wide, registers } => [
            vec![if wide { 0xc400_0061 } else { 0x8400_0061 }],
            registers.to_vec(),
        ]
        .concat(),
        Response::List {
            last,
            current,
            tag,
            len,
            partitions,
        } => {
            let metadata = [
                u64::from(last),
                u64::from(current),
                u64::from(tag),
                u64::from(len),
            ];
            let metadata = metadata[0] | metadata[1] << 16 | metadata[2] << 32 | metadata[3] << 48;
            let bytes: Vec<u8> = partitions
                .iter()
                .flat_map(|descriptor| descriptor.bytes())
                .collect();
            let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
            [0xc400_0061, 0, metadata]
                .into_iter()
                .chain(words)
                .take(18)
                .collect()
        }
        Response::Interrupt { yields, target, vcpu } => {
            let function = if yields { 0x8400_006c } else { 0x8400_0062 };
            vec![function, u64::from(target) << 16 | u64::from(vcpu), 27]
        }
        Response::Direct {
            second,
            source,
            registers,
        } => {
            let source = match source {
                Source::Asked => arguments[0] << 16 & 0xffff_0000 | arguments[0] >> 16 & 0xffff,
                Source::Other(source) => source.into(),
            };
            [
                vec![u64::from(DIRECT_RESPONSES[usize::from(second)]), source],
                registers.to_vec(),
            ]
            .concat()
        }
        Response::Any(function, registers) => [vec![function], registers.to_vec()].concat(),
        Response::Unknown => vec![u64::MAX],
    };
    let mut all = [0; 18];
    all[..registers.len()].copy_from_slice(&registers);
    all
}

struct Pages(Memory);

impl RxTxMemory for Pages {
    fn two_pages(&mut self) -> Option<SharedRegion> {
        let block = Block::of(Purpose::Other, 2 * PAGE_LEN, 0);
        fill(block);
        match self.0 {
            Memory::None => None,
            Memory::OnePage => Some(block.region(PAGE_LEN)),
            Memory::Misaligned => Some(block.region_at(8, 2 * PAGE_LEN)),
            Memory::Pages | Memory::Mapped => Some(block.region(2 * PAGE_LEN)),
        }
    }

    fn mapped_rx(&mut self) -> Option<SharedRegion> {
        let block = Block::of(Purpose::Region, PAGE_LEN, 0);
        fill(block);
        matches!(self.0, Memory::Mapped).then(|| block.region(PAGE_LEN))
    }
}

thread_local! {
    static RX: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The partition manager's side of the RX page. It is filled early, which the client cannot tell.
fn fill(block: &Block) {
    RX.with_borrow(|bytes| block.put(0, bytes));
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let (busy, resumes) = (u32::from(case.busy % 8), u32::from(case.resumes % 8));
    let setup = Setup {
        psci: [PsciConduit::Unknown, PsciConduit::Smc, PsciConduit::Hvc][usize::from(case.psci % 3)],
        interface: if case.only_ffa {
            Interface::Ffa
        } else {
            Interface::Discover
        },
        patience: Patience { busy, resumes },
        partition: case.named.map(|(id, second)| NamedPartition {
            id,
            request: if second {
                DirectRequest::Req2
            } else {
                DirectRequest::Req
            },
        }),
        ..Setup::default()
    };
    let answers = case.responses.len();
    RX.set(
        case.rx
            .iter()
            .flat_map(|descriptor| descriptor.bytes())
            .take(PAGE_LEN)
            .collect(),
    );
    WORLD.set(World {
        el3: case.el3,
        has_counter: case.has_counter,
        responses: case.responses.into_iter().rev().collect(),
        ..World::default()
    });
    let connection = connect::<Fake>(setup, &mut Pages(case.memory));
    let calls = WORLD.with_borrow_mut(|world| std::mem::take(&mut world.calls));
    if !case.el3 && setup.psci != PsciConduit::Smc {
        assert_eq!(connection.as_ref().err(), Some(&SmcError::NoConduit));
        assert!(calls.is_empty(), "a call that nothing takes");
    }
    // Each wait ends after the number of calls in `Patience`, or with a counter after the time
    // limit.
    assert!(
        calls.len() <= 100 + 60 * (answers + 8),
        "{} calls for {answers} responses",
        calls.len()
    );
    // Pages that were mapped for us are unmapped again, or the result says that this failed.
    let is_success = |response: &[u64; 18]| matches!(response[0] as u32, 0x8400_0061 | 0xc400_0061);
    if let Some(mapped) = calls
        .iter()
        .position(|(function, _, response)| *function == RXTX_MAP && is_success(response))
    {
        let unmap = calls[mapped..]
            .iter()
            .rfind(|(function, ..)| *function == RXTX_UNMAP);
        let (_, _, response) = unmap.expect("pages stayed mapped");
        assert!(
            is_success(response) || connection.is_err(),
            "pages stayed mapped without an error"
        );
    }
    let Ok(connection) = connection else { return };
    let described = connection.to_string();
    assert!(!format!("{connection:?}").is_empty());
    for _ in 0..case.calls % 4 + 1 {
        let result = connection.communicate(BUFFER);
        let calls = WORLD.with_borrow_mut(|world| std::mem::take(&mut world.calls));
        assert!(calls.len() <= 100 + 60 * (answers + 8));
        match result {
            Ok(()) => {
                let (_, _, response) = calls.last().expect("a success without a call");
                let function = response[0] as u32;
                if described.starts_with("SPM_MM") {
                    assert_eq!(function, 0);
                } else {
                    assert!(
                        DIRECT_RESPONSES.contains(&function),
                        "{function:#x} is no response"
                    );
                    let source = format!("{:#06x}", response[1] as u32 >> 16);
                    assert!(described.contains(&source), "a response of {source}: {described}");
                    let sent = calls.iter().any(|(_, arguments, _)| arguments.contains(&BUFFER));
                    assert!(sent, "the request was not sent");
                }
            }
            Err(error) => {
                assert!(error.status().is_error() && !error.to_string().is_empty());
                if matches!(error, SmcError::EarlierUnfinished { .. } | SmcError::EarlierEnded) {
                    let sent = calls
                        .iter()
                        .any(|(_, arguments, _)| arguments[2..].contains(&BUFFER));
                    assert!(!sent, "{error}, but the request was sent");
                }
            }
        }
    }
}
