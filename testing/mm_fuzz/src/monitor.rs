//! The secure world of machine `aarch64` against a normal world that makes any call and writes
//! anything: what it reads and writes stays in the memory that was shared for it.

use crate::header::{Fields, Name, Size};
use crate::memory::{Block, Purpose};
use aarch64_monitor::mm::Mm;
use aarch64_monitor::{Effect, Interface, Mode, World};
use arbitrary::{Arbitrary, Unstructured};
use mm_core::handlers::VariableStore;
use mm_wire::AddressRange;
use std::ops::Range;

const PAGE: usize = 4096;
const RAM_LEN: usize = 4 * PAGE;
/// The shared region, as offsets in RAM.
const SHARED: Range<usize> = PAGE..2 * PAGE + 0x400;
const SCRATCH_LEN: usize = 0x600;

const SET_BUFFER: u32 = 0xc300_0001;
const FUNCTIONS: [u32; 22] = [
    SET_BUFFER,
    0xc300_0002,
    0xc300_0003,
    0x8000_0000,
    0x8400_0000,
    0x8400_0009,
    0x8400_000a,
    0x8400_0040,
    0xc400_0041,
    0x8400_0063,
    0x8400_0065,
    0xc400_0066,
    0x8400_0067,
    0x8400_0068,
    0x8400_0069,
    0x8400_006d,
    0xc400_006f,
    0xc400_008b,
    0xc400_008d,
    0x8400_0060,
    0xc400_0061,
    0x8400_0061,
];

#[derive(Arbitrary, Debug)]
struct Case {
    interface: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Call {
        function: u8,
        x1: Value,
        x2: Value,
        x3: Value,
        x4: Value,
        x5: Value,
    },
    Any([u64; 6]),
    SetBuffer {
        index: u8,
        start: u16,
        len: u16,
    },
    Header {
        at: u16,
        v3: bool,
        name: Name,
        len: Size,
        message_size: Size,
    },
    Variable {
        at: u16,
        function: u8,
        name_size: u16,
        data_size: u16,
        len: u8,
    },
    Write {
        at: u16,
        bytes: [u8; 8],
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value {
    Small(u8),
    Address(u16),
    Page(u8),
    Partition,
    Service(bool),
    ServiceHalf(u8),
    Any(u64),
}

impl Value {
    fn of(self, base: u64) -> u64 {
        const SERVICE: [u64; 2] = [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483];
        match self {
            Self::Small(value) => value.into(),
            Self::Address(offset) => base + u64::from(offset),
            Self::Page(page) => base + u64::from(page % 5) * PAGE as u64,
            Self::Partition => 0x8002,
            Self::Service(second) => SERVICE[usize::from(second)],
            Self::ServiceHalf(half) => SERVICE[usize::from(half / 2 % 2)] >> (32 * (half % 2)) & 0xffff_ffff,
            Self::Any(value) => value,
        }
    }
}

/// What the model knows of the world.
struct Model {
    buffers: [Option<Range<usize>>; 8],
    /// Whether buffer 0 was named. Until then it is longer than the shared memory of these cases, so
    /// it overlaps every other buffer, and no request in it is served.
    is_first_named: bool,
    rx: Option<Range<usize>>,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let interfaces = [
        Interface::SpmMm,
        Interface::Ffa,
        Interface::FfaWithoutRegs,
        Interface::NoMm,
        Interface::StandaloneMm,
    ];
    let interface = interfaces[usize::from(case.interface) % interfaces.len()];
    let ram = Block::of(Purpose::Other, RAM_LEN, 0);
    let base = ram.address();
    let shared = AddressRange::new(base + SHARED.start as u64, SHARED.len() as u64).unwrap();
    let mmram = AddressRange::new(0x0e00_0000, 0x1000).unwrap();
    let (mut scratch, mut store) = (vec![0; SCRATCH_LEN], vec![0; 0x200]);
    let variables = VariableStore::new(&mut store, 64);
    let mm = Mm::new(ram.region(RAM_LEN), shared, mmram, &mut scratch, variables);
    let mut world = World::new(
        Mode {
            interface,
            uefi: false,
            demo: false,
            soak: false,
        },
        mm,
    );
    let mut model = Model {
        buffers: [const { None }; 8],
        is_first_named: false,
        rx: None,
    };
    for step in case.steps.iter().take(40) {
        match step {
            Step::Write { at, bytes } => ram.put(usize::from(*at) % RAM_LEN, bytes),
            Step::Header {
                at,
                v3,
                name,
                len,
                message_size,
            } => {
                let at = usize::from(*at) % RAM_LEN;
                let header = Fields {
                    v3: *v3,
                    guid: name.bytes(),
                    counted: len.of(0x400).min(u64::MAX - 56),
                    message_size: message_size.of(0x400),
                };
                ram.put(at, &header.write());
            }
            Step::Variable {
                at,
                function,
                name_size,
                data_size,
                len,
            } => {
                let at = usize::from(*at) % RAM_LEN;
                let header = Fields {
                    v3: false,
                    guid: mm_wire::message::variable::GUID.to_bytes(),
                    counted: (*len).into(),
                    message_size: 0,
                };
                let body = [
                    u64::from(function % 12),
                    0,
                    1,
                    1,
                    u64::from(*data_size),
                    u64::from(*name_size),
                    7,
                ];
                ram.put(
                    at,
                    &[header.write(), body.map(u64::to_le_bytes).concat()].concat(),
                );
            }
            Step::SetBuffer { index, start, len } => {
                let numbers = [u64::from(*index), base + u64::from(*start), u64::from(*len)];
                model.call(
                    &mut world,
                    ram,
                    interface,
                    [SET_BUFFER.into(), numbers[0], numbers[1], numbers[2], 0, 0],
                );
            }
            Step::Call {
                function,
                x1,
                x2,
                x3,
                x4,
                x5,
            } => {
                let function = FUNCTIONS[usize::from(*function) % FUNCTIONS.len()];
                let [x1, x2, x3, x4, x5] = [x1, x2, x3, x4, x5].map(|value| value.of(base));
                model.call(&mut world, ram, interface, [function.into(), x1, x2, x3, x4, x5]);
            }
            Step::Any(registers) => model.call(&mut world, ram, interface, *registers),
        }
    }
    ram.check_guards();
}

impl Model {
    fn call(&mut self, world: &mut World<'_>, ram: &Block, interface: Interface, first: [u64; 6]) {
        let before = ram.bytes();
        let mut registers = [0; 18];
        registers[..6].copy_from_slice(&first);
        let effect = world.call(&mut registers);
        let after = ram.bytes();
        let [x0, x1, x2, x3, ..] = first;
        let function = x0 as u32;
        let base = ram.address();
        if effect == Effect::PowerOff {
            assert!(matches!(function, 0x8400_0008 | 0x8400_0009));
        }
        if function == SET_BUFFER {
            let expected = self.set_buffer(x1, x2.wrapping_sub(base), x2, x3);
            assert_eq!(
                registers[0] as u32,
                expected.cast_unsigned(),
                "SET_BUFFER {x1} {x2:#x} {x3:#x}"
            );
        }
        // Where the call may have written.
        let changed: Vec<usize> = (0..RAM_LEN).filter(|at| before[*at] != after[*at]).collect();
        let is_ffa = matches!(
            interface,
            Interface::Ffa | Interface::FfaWithoutRegs | Interface::StandaloneMm
        );
        let may_write = match function {
            0xc400_0041 => interface == Interface::SpmMm,
            0xc400_006f | 0xc400_008d | 0x8400_006d => is_ffa,
            0x8400_0068 => interface == Interface::FfaWithoutRegs,
            _ => false,
        };
        assert!(may_write || changed.is_empty(), "{function:#x} wrote to memory");
        for at in changed {
            let allowed = match (function, interface) {
                (0x8400_0068, _) => self.rx.as_ref().is_some_and(|rx| rx.contains(&at)),
                (_, Interface::StandaloneMm) => SHARED.contains(&at),
                _ => self.buffers.iter().flatten().any(|buffer| buffer.contains(&at)),
            };
            assert!(
                allowed,
                "{function:#x} wrote at {at:#x}, outside the memory that is shared for it"
            );
        }
        if interface == Interface::FfaWithoutRegs {
            let succeeded = registers[0] as u32 == 0x8400_0061;
            match function {
                0xc400_0066 if succeeded => {
                    let page = |address: u64| {
                        let at = usize::try_from(address.checked_sub(base)?).ok()?;
                        (address.is_multiple_of(PAGE as u64) && at + PAGE <= RAM_LEN).then_some(at)
                    };
                    let (tx, rx) = (
                        page(x1).expect("TX outside RAM"),
                        page(x2).expect("RX outside RAM"),
                    );
                    assert!(tx != rx && x3 == 1 && self.rx.is_none(), "RX and TX were mapped");
                    self.rx = Some(rx..rx + PAGE);
                }
                0x8400_0067 => {
                    assert_eq!(succeeded, self.rx.is_some());
                    self.rx = None;
                }
                _ => {}
            }
        }
    }

    /// What SET_BUFFER must return.
    fn set_buffer(&mut self, index: u64, offset: u64, start: u64, len: u64) -> i32 {
        const INVALID: i32 = -2;
        const DENIED: i32 = -3;
        if len == 0 || start.checked_add(len).is_none() {
            return INVALID;
        }
        let end = u128::from(offset) + u128::from(len);
        if offset < SHARED.start as u64 || end > SHARED.end as u128 {
            return DENIED;
        }
        if index > 7 {
            return INVALID;
        }
        let mut others = self.buffers.clone();
        if index == 0 {
            others = [const { None }; 8];
        }
        others[index as usize] = None;
        let region = offset as usize..end as usize;
        let overlaps = |other: &Range<usize>| other.start < region.end && region.start < other.end;
        let meets_first = !self.is_first_named && index > 0;
        let is_overlap = meets_first || others.iter().flatten().any(overlaps);
        if is_overlap || !(24..=24 + SCRATCH_LEN).contains(&region.len()) {
            return INVALID;
        }
        self.is_first_named = true;
        self.buffers = others;
        self.buffers[index as usize] = Some(region);
        0
    }
}
