//! FF-A 1.2 with one secure partition (Arm DEN0077A).
//!
//! The partition is what a caller must be ready for: of three requests the first finds it busy, the second is interrupted,
//! yields once, and finishes when it is resumed again, the third is served at once. It has several virtual processors, and it is
//! not the first that runs.

use crate::memory::Window;
use crate::mm::Mm;
use crate::spm_mm::code;
use mm_core::SystemMemory;
use mm_wire::AddressRange;

const ERROR: u64 = 0x8400_0060;
const SUCCESS: u64 = 0x8400_0061;
const SUCCESS_64: u64 = 0xc400_0061;
const INTERRUPT: u64 = 0x8400_0062;
const YIELD: u64 = 0x8400_006c;

const VERSION: u32 = 0x8400_0063;
const RX_RELEASE: u32 = 0x8400_0065;
const RXTX_MAP: u32 = 0xc400_0066;
const RXTX_UNMAP: u32 = 0x8400_0067;
const PARTITION_INFO_GET: u32 = 0x8400_0068;
const ID_GET: u32 = 0x8400_0069;
const RUN: u32 = 0x8400_006d;
const DIRECT_REQ: u32 = 0xc400_006f;
const PARTITION_INFO_GET_REGS: u32 = 0xc400_008b;
const DIRECT_REQ2: u32 = 0xc400_008d;

const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const BUSY: i32 = -4;
const DENIED: i32 = -6;

const VERSION_1_2: u64 = 0x1_0002;
/// The partition's identifier. The caller's is 0: there is no hypervisor between.
const PARTITION: u64 = 0x8002;
/// Its virtual processors, and the one that serves requests.
const VCPUS: u64 = 3;
const VCPU: u64 = PARTITION << 16 | 2;
/// The service's UUID as in two registers.
const SERVICE: [u64; 2] = [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483];
/// Bytes of a partition descriptor: in a page as in FF-A 1.2, in registers as in 1.3, which Hafnium 2.15 gives to callers of
/// 1.2 too.
const DESCRIPTOR_LEN: u64 = 24;
const LONG_DESCRIPTOR_LEN: u64 = 48;
/// What 1.3 appends: the UUID of the partition's image, and the version that it speaks.
const IMAGE: [u64; 2] = [0x9a41_25c1_7b21_4d0e, 0x0f6d_33a7_c2b8_5e94];
const SPEAKS: u64 = 0x1_0003;
/// A partition's properties: it runs AArch64 code and takes the one or the other request.
const IS_AARCH64: u64 = 1 << 8;
const TAKES_REQ: u64 = 1;
const TAKES_REQ2: u64 = 1 << 9;

const PAGE_LEN: u64 = mm_wire::PAGE_LEN as u64;

/// Which half of the interface is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PARTITION_INFO_GET_REGS and the first kind of request.
    Registers,
    /// RX and TX pages and the second kind of request.
    Pages,
}

/// A request that the partition was interrupted in.
#[derive(Clone, Copy, Debug)]
struct Interrupted {
    response: u64,
    buffer: u64,
    resumed: u32,
}

/// What the partition manager remembers.
#[derive(Debug)]
pub struct Ffa {
    kind: Kind,
    rx: Option<AddressRange>,
    rx_is_full: bool,
    turn: u32,
    interrupted: Option<Interrupted>,
}

/// The registers of a response that come first; the others are zero.
type Response = [u64; 9];

const fn answer(function: u64, x1: u64, x2: u64, x3: u64) -> Response {
    [function, x1, x2, x3, 0, 0, 0, 0, 0]
}

const fn error(error: i32) -> Response {
    answer(ERROR, 0, code(error), 0)
}

const fn success() -> Response {
    answer(SUCCESS, 0, 0, 0)
}

impl Ffa {
    /// Makes a partition manager.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            rx: None,
            rx_is_full: false,
            turn: 0,
            interrupted: None,
        }
    }

    /// Answers a call; `None` where it is none that this partition manager has.
    pub fn call(&mut self, mm: &mut Mm<'_>, function: u32, arguments: [u64; 17]) -> Option<Response> {
        let [x1, x2, x3, x4, ..] = arguments;
        Some(match (function, self.kind) {
            (VERSION, _) => answer(VERSION_1_2, 0, 0, 0),
            (ID_GET, _) => success(),
            (PARTITION_INFO_GET_REGS, Kind::Registers) => partition_in_registers([x1, x2], x3),
            (RXTX_MAP, Kind::Pages) => self.map(mm, x1, x2, x3),
            (RXTX_UNMAP, Kind::Pages) => self.rx.take().map_or(error(INVALID_PARAMETERS), |_| success()),
            (PARTITION_INFO_GET, Kind::Pages) => self.partition_in_page(mm, [x1, x2, x3, x4]),
            (RX_RELEASE, Kind::Pages) if self.rx_is_full => {
                self.rx_is_full = false;
                success()
            }
            (RX_RELEASE, Kind::Pages) => error(DENIED),
            (DIRECT_REQ, Kind::Registers) if x1 == PARTITION && x2 == 0 => self.request(mm, DIRECT_REQ, x3),
            (DIRECT_REQ2, Kind::Pages) if x1 == PARTITION && [x2, x3] == SERVICE => {
                self.request(mm, DIRECT_REQ2, x4)
            }
            (DIRECT_REQ | DIRECT_REQ2, _) => error(INVALID_PARAMETERS),
            (RUN, _) => self.resume(mm, x1),
            // The interface is there, this call of it is not.
            (PARTITION_INFO_GET_REGS | PARTITION_INFO_GET | RXTX_MAP | RXTX_UNMAP | RX_RELEASE, _) => {
                error(NOT_SUPPORTED)
            }
            _ => return None,
        })
    }

    /// Takes two pages of the caller's. They must be RAM that it can use itself, and not the same.
    fn map(&mut self, mm: &Mm<'_>, tx: u64, rx: u64, pages: u64) -> Response {
        let page = |address: u64| {
            AddressRange::new(address, PAGE_LEN)
                .filter(|page| address.is_multiple_of(PAGE_LEN) && Window::new(mm.ram(), *page).is_some())
        };
        let (Some(tx), Some(rx)) = (page(tx), page(rx)) else {
            return error(INVALID_PARAMETERS);
        };
        if pages != 1 || tx.overlaps(rx) {
            return error(INVALID_PARAMETERS);
        }
        if self.rx.is_some() {
            return error(DENIED);
        }
        self.rx = Some(rx);
        success()
    }

    fn partition_in_page(&mut self, mm: &Mm<'_>, [a, b, c, d]: [u64; 4]) -> Response {
        let Some(rx) = self.rx else {
            return error(DENIED);
        };
        if [a | b << 32, c | d << 32] != SERVICE {
            return error(INVALID_PARAMETERS);
        }
        if self.rx_is_full {
            return error(BUSY);
        }
        let Some(mut window) = Window::new(mm.ram(), rx) else {
            return error(DENIED);
        };
        let words = descriptor(TAKES_REQ2).map(u64::to_le_bytes);
        if !window.write(rx.start(), words.as_flattened()) {
            return error(DENIED);
        }
        self.rx_is_full = true;
        answer(SUCCESS, 0, 1, DESCRIPTOR_LEN)
    }

    fn request(&mut self, mm: &mut Mm<'_>, function: u32, buffer: u64) -> Response {
        if self.interrupted.is_some() {
            return error(BUSY);
        }
        // The response's identifier follows its request's.
        let response = u64::from(function).wrapping_add(1);
        let turn = self.turn % 3;
        self.turn = self.turn.wrapping_add(1);
        match turn {
            0 => error(BUSY),
            1 => {
                self.interrupted = Some(Interrupted {
                    response,
                    buffer,
                    resumed: 0,
                });
                answer(INTERRUPT, VCPU, 27, 0)
            }
            _ => serve(mm, response, buffer),
        }
    }

    fn resume(&mut self, mm: &mut Mm<'_>, target: u64) -> Response {
        match self.interrupted.take() {
            Some(mut request) if target == VCPU => {
                if request.resumed == 0 {
                    request.resumed = 1;
                    self.interrupted = Some(request);
                    return answer(YIELD, VCPU, 0, 0);
                }
                serve(mm, request.response, request.buffer)
            }
            request => {
                self.interrupted = request;
                error(INVALID_PARAMETERS)
            }
        }
    }
}

fn serve(mm: &mut Mm<'_>, response: u64, buffer: u64) -> Response {
    match mm.serve(buffer) {
        Ok(()) => answer(response, PARTITION << 16, 0, 0),
        Err(refusal) => error(refusal.ffa()),
    }
}

/// The partition's descriptor in FF-A 1.2. The service's UUID is left out: callers ask for it.
const fn descriptor(takes: u64) -> [u64; 3] {
    [PARTITION | VCPUS << 16 | (IS_AARCH64 | takes) << 32, 0, 0]
}

fn partition_in_registers(uuid: [u64; 2], index_and_tag: u64) -> Response {
    if uuid != SERVICE || index_and_tag != 0 {
        return error(INVALID_PARAMETERS);
    }
    let [a, b, c] = descriptor(TAKES_REQ);
    let [d, e] = IMAGE;
    let len = LONG_DESCRIPTOR_LEN << 48;
    [SUCCESS_64, 0, len, a, b, c, d, e, SPEAKS]
}
