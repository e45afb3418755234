//! FF-A with one secure partition (Arm DEN0077A).
//!
//! The partition does everything that a caller must expect: of three requests the first finds it
//! busy, the second is interrupted, yields once, and finishes when it is resumed again, the third
//! is served at once. It has several virtual processors, and not the first of them runs.
//!
//! [`Kind::StandaloneMm`] is Hafnium, with edk2's StandaloneMm in the partition:
//!
//! | what | source |
//! |---|---|
//! | FFA_VERSION returns 1.3; another call settles what was asked for | Hafnium `api_ffa_version` |
//! | descriptors of 48 bytes in registers | `api_ffa_partition_info_get_regs` |
//! | INTERRUPT names a partition that MM has asked; FFA_RUN of MM is BUSY | FF-A 1.2; edk2#12800 |
//! | the response's x1 is sign-extended | edk2 `PACK_PARTITION_ID_INFO` |
//! | its x3 is MM_SP_EVENT_COMPLETE; a failure is FFA_ERROR | edk2 `SetEventCompleteSvcArgs` |
//! | the vector registers have changed | TF-A, `CTX_INCLUDE_FPREGS=0` |
//!
//! FFA_ERROR of a partition reaches the caller on TF-A (`ffa_error_handler`). On Hafnium the call
//! would never return.

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

/// The identifiers of all its calls, without the bit for 64-bit arguments (TF-A `is_ffa_fid`).
const FUNCTIONS: core::ops::RangeInclusive<u32> = 0x8400_0060..=0x8400_008f;
const SMC64: u32 = 1 << 30;

const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const BUSY: i32 = -4;
const DENIED: i32 = -6;

const VERSION_1_2: u64 = 0x1_0002;
const VERSION_1_3: u64 = 0x1_0003;
/// The partition's identifier. The caller's is 0: there is no hypervisor between.
const PARTITION: u64 = 0x8002;
/// Its virtual processors, and the one that serves requests.
const VCPUS: u64 = 3;
const VCPU: u64 = PARTITION << 16 | 2;
/// StandaloneMm's only virtual processor, and that of a partition which it asks while it serves a
/// request.
const STANDALONE_MM: u64 = PARTITION << 16;
const ASKED_BY_MM: u64 = 0x8003 << 16 | 3;
/// MM_SP_EVENT_COMPLETE.
const EVENT_COMPLETE: u64 = 0xc400_0061;
/// The service's UUID as in two registers.
const SERVICE: [u64; 2] = [0x4644_6bf0_dcae_8d37, 0xa387_3c93_ab40_1483];
/// The UUID that asks for all partitions.
const ALL: [u64; 2] = [0; 2];
/// Bytes of a partition descriptor: in a page as in FF-A 1.2, in registers as in 1.3, which Hafnium
/// 2.15 gives to callers of 1.2 too.
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

/// Which half of the interface exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PARTITION_INFO_GET_REGS and the first kind of request.
    Registers,
    /// RX and TX pages and the second kind of request.
    Pages,
    /// Hafnium with edk2's StandaloneMm: see the module.
    StandaloneMm,
}

/// A request that was interrupted.
#[derive(Clone, Copy, Debug)]
struct Interrupted {
    response: u64,
    buffer: u64,
    /// What FFA_RUN must name.
    at: u64,
    resumed: u32,
}

/// The state of the partition manager.
#[derive(Debug)]
pub struct Ffa {
    kind: Kind,
    rx: Option<AddressRange>,
    rx_is_full: bool,
    turn: u32,
    interrupted: Option<Interrupted>,
    /// The version that was asked for last, and whether another call has settled it.
    version: u64,
    version_is_settled: bool,
}

/// The first registers of a response; the others are zero.
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
            version: 0,
            version_is_settled: false,
        }
    }

    /// Serves a call; `None` if this partition manager does not have it.
    pub fn call(&mut self, mm: &mut Mm<'_>, function: u32, arguments: [u64; 17]) -> Option<Response> {
        let [x1, x2, x3, x4, ..] = arguments;
        self.version_is_settled |= function != VERSION;
        Some(match (function, self.kind) {
            (VERSION, Kind::StandaloneMm) => self.negotiate(x1),
            (VERSION, _) => answer(VERSION_1_2, 0, 0, 0),
            (ID_GET, _) => success(),
            (PARTITION_INFO_GET_REGS, Kind::Registers | Kind::StandaloneMm) => {
                partition_in_registers([x1, x2], x3)
            }
            (RXTX_MAP, Kind::Pages) => self.map(mm, x1, x2, x3),
            (RXTX_UNMAP, Kind::Pages) => {
                // Buffers that are mapped next are empty.
                self.rx_is_full = false;
                self.rx.take().map_or(error(INVALID_PARAMETERS), |_| success())
            }
            (PARTITION_INFO_GET, Kind::Pages) => self.partition_in_page(mm, [x1, x2, x3, x4]),
            (RX_RELEASE, Kind::Pages) if self.rx_is_full => {
                self.rx_is_full = false;
                success()
            }
            (RX_RELEASE, Kind::Pages) => error(DENIED),
            // Endpoints and flags are w1 and w2, also in the call with 64-bit arguments.
            (DIRECT_REQ, Kind::Registers | Kind::StandaloneMm)
                if [x1, x2].map(|word| word & 0xffff_ffff) == [PARTITION, 0] =>
            {
                self.request(mm, DIRECT_REQ, x3)
            }
            (DIRECT_REQ2, Kind::Pages) if x1 == PARTITION && [x2, x3] == SERVICE => {
                self.request(mm, DIRECT_REQ2, x4)
            }
            (DIRECT_REQ | DIRECT_REQ2, _) => error(INVALID_PARAMETERS),
            (RUN, _) => self.resume(mm, x1),
            // The interface exists, this call of it does not: TF-A `spmd_smc_handler`.
            _ if FUNCTIONS.contains(&(function & !SMC64)) => error(NOT_SUPPORTED),
            _ => return None,
        })
    }

    /// Whether the partition has changed the vector registers in this call.
    #[must_use]
    pub fn changes_vectors(&self, function: u32) -> bool {
        self.kind == Kind::StandaloneMm && matches!(function, DIRECT_REQ | RUN)
    }

    /// FFA_VERSION of Hafnium.
    fn negotiate(&mut self, asked: u64) -> Response {
        if asked > VERSION_1_3 || self.version_is_settled && asked != self.version {
            return answer(code(NOT_SUPPORTED), 0, 0, 0);
        }
        self.version = asked;
        answer(VERSION_1_3, 0, 0, 0)
    }

    /// Maps two pages of the caller's. They must be RAM that it can use itself, and not the same.
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
        let uuid = [a | b << 32, c | d << 32];
        if !matches!(uuid, SERVICE | ALL) {
            return error(INVALID_PARAMETERS);
        }
        if self.rx_is_full {
            return error(BUSY);
        }
        let Some(mut window) = Window::new(mm.ram(), rx) else {
            return error(DENIED);
        };
        let words = descriptor_for(uuid, TAKES_REQ2).map(u64::to_le_bytes);
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
                let at = match self.kind {
                    Kind::StandaloneMm => ASKED_BY_MM,
                    Kind::Registers | Kind::Pages => VCPU,
                };
                self.interrupted = Some(Interrupted {
                    response,
                    buffer,
                    at,
                    resumed: 0,
                });
                answer(INTERRUPT, at, 27, 0)
            }
            _ => self.serve(mm, response, buffer),
        }
    }

    fn resume(&mut self, mm: &mut Mm<'_>, target: u64) -> Response {
        match self.interrupted.take() {
            Some(mut request) if target == request.at => {
                if request.resumed == 0 {
                    if self.kind == Kind::StandaloneMm {
                        // The other partition has responded.
                        request.at = STANDALONE_MM;
                    }
                    let at = request.at;
                    request.resumed = 1;
                    self.interrupted = Some(request);
                    return answer(YIELD, at, 0, 0);
                }
                self.serve(mm, request.response, request.buffer)
            }
            Some(request) if self.kind == Kind::StandaloneMm && target == STANDALONE_MM => {
                self.interrupted = Some(request);
                error(BUSY)
            }
            request => {
                self.interrupted = request;
                error(INVALID_PARAMETERS)
            }
        }
    }

    fn serve(&self, mm: &mut Mm<'_>, response: u64, buffer: u64) -> Response {
        const SIGN: u64 = 0xffff_ffff_0000_0000;
        let (result, x1, x3) = match self.kind {
            Kind::StandaloneMm => (
                mm.serve_as_standalone_mm(buffer),
                SIGN | PARTITION << 16,
                EVENT_COMPLETE,
            ),
            Kind::Registers | Kind::Pages => (mm.serve(buffer), PARTITION << 16, 0),
        };
        match result {
            Ok(()) => answer(response, x1, 0, x3),
            Err(refused) => error(refused.ffa()),
        }
    }
}

/// The partition's descriptor in FF-A 1.2. The service's UUID is left out: callers ask for it.
const fn descriptor(takes: u64) -> [u64; 3] {
    [PARTITION | VCPUS << 16 | (IS_AARCH64 | takes) << 32, 0, 0]
}

/// The descriptor for a list of all partitions has the service's UUID (FF-A 1.2, 13.8).
fn descriptor_for(uuid: [u64; 2], takes: u64) -> [u64; 3] {
    let [a, b, c] = descriptor(takes);
    match uuid {
        ALL => [a, SERVICE[0], SERVICE[1]],
        _ => [a, b, c],
    }
}

fn partition_in_registers(uuid: [u64; 2], index_and_tag: u64) -> Response {
    if !matches!(uuid, SERVICE | ALL) || index_and_tag != 0 {
        return error(INVALID_PARAMETERS);
    }
    let [a, b, c] = descriptor_for(uuid, TAKES_REQ);
    let [d, e] = IMAGE;
    let len = LONG_DESCRIPTOR_LEN << 48;
    [SUCCESS_64, 0, len, a, b, c, d, e, SPEAKS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use mm_comm::SharedRegion;
    use mm_core::handlers::VariableStore;
    use std::boxed::Box;
    use std::vec;

    #[repr(C, align(4096))]
    struct Ram([u8; 0x4000]);

    fn mm(ram: SharedRegion) -> Mm<'static> {
        let base = ram.range().unwrap().start();
        Mm::new(
            ram,
            AddressRange::new(base, 0x1000).unwrap(),
            AddressRange::new(0x0e00_0000, 0x1000).unwrap(),
            vec![0; 0x1000].leak(),
            VariableStore::new(vec![0; 0x400].leak(), 64),
        )
    }

    /// MM with RAM that starts at this address, and calls with these arguments to its partition manager.
    fn caller(kind: Kind) -> (u64, impl FnMut(u32, &[u64]) -> Response) {
        let ram = SharedRegion::over_static(&mut Box::leak(Box::new(Ram([0; 0x4000]))).0);
        let base = ram.range().unwrap().start();
        let (mut mm, mut ffa) = (mm(ram), Ffa::new(kind));
        let call = move |function, first: &[u64]| {
            let mut arguments = [0; 17];
            arguments[..first.len()].copy_from_slice(first);
            ffa.call(&mut mm, function, arguments).unwrap()
        };
        (base, call)
    }

    #[test]
    fn rx_and_tx_are_two_whole_pages_of_ram() {
        let (base, mut call) = caller(Kind::Pages);
        let good = [base + 0x1000, base + 0x2000];
        let (first, last, behind) = (base, base + 0x3000, base + 0x4000);
        let bad = [
            // Not page-aligned, by 8 bytes, by one, and by all but one of a page.
            base + 0x1008,
            base + 0x1001,
            base + 0x1fff,
            // Pages that are RAM only in part, or not at all.
            last + 8,
            behind - 8,
            behind,
            first.wrapping_sub(PAGE_LEN),
            first.wrapping_sub(8),
            // MM's own memory, address zero, and pages that would wrap.
            0x0e00_0000,
            0,
            u64::MAX - PAGE_LEN + 1,
            u64::MAX,
        ];
        let mut refused = |tx, rx, pages| {
            let response = call(RXTX_MAP, &[tx, rx, pages]);
            // Nothing is mapped then, so there is nothing to unmap.
            let unmapped = call(RXTX_UNMAP, &[]);
            match response == success() {
                true => assert_eq!(unmapped, success()),
                false => assert_eq!(
                    (response, unmapped),
                    (error(INVALID_PARAMETERS), error(INVALID_PARAMETERS))
                ),
            }
            response != success()
        };
        let [tx, rx] = good;
        assert!(!refused(tx, rx, 1));
        assert!(!refused(first, last, 1), "the first and the last page");
        for bad in bad {
            assert!(refused(bad, rx, 1), "TX at {bad:#x}");
            assert!(refused(tx, bad, 1), "RX at {bad:#x}");
        }
        assert!(refused(tx, tx, 1), "one page for both");
        // The number of pages is in bits 5:0 (FF-A 1.2, 13.2); this partition manager takes one each.
        for pages in [0, 2, 63, 1 << 6 | 1, u64::MAX] {
            assert!(refused(tx, rx, pages), "{pages} pages");
        }
    }

    #[test]
    fn buffers_that_are_mapped_anew_are_empty() {
        let (base, mut call) = caller(Kind::Pages);
        let map = [base + 0x1000, base + 0x2000, 1];
        let [low, high] = SERVICE;
        let service = [low & 0xffff_ffff, low >> 32, high & 0xffff_ffff, high >> 32];
        for round in 0..2 {
            assert_eq!(call(RXTX_MAP, &map), success(), "round {round}");
            assert_eq!(call(RXTX_MAP, &map), error(DENIED));
            assert_eq!(call(PARTITION_INFO_GET, &service)[..3], [SUCCESS, 0, 1]);
            // The RX page is full until it is released, or unmapped.
            assert_eq!(call(PARTITION_INFO_GET, &service), error(BUSY));
            assert_eq!(call(RXTX_UNMAP, &[]), success());
            assert_eq!(call(RX_RELEASE, &[]), error(DENIED));
            assert_eq!(call(RXTX_UNMAP, &[]), error(INVALID_PARAMETERS));
        }
    }

    #[test]
    fn calls_of_the_interface_that_do_not_exist_are_not_supported() {
        for kind in [Kind::Registers, Kind::Pages, Kind::StandaloneMm] {
            let (_, mut call) = caller(kind);
            // FFA_FEATURES, FFA_MEM_SHARE in both forms, FFA_CONSOLE_LOG.
            for function in [0x8400_0064, 0x8400_0073, 0xc400_0073, 0x8400_008a] {
                assert_eq!(call(function, &[]), error(NOT_SUPPORTED), "{function:#x}");
            }
            let mut ffa = Ffa::new(kind);
            let mut mm = mm(SharedRegion::over_static(
                &mut Box::leak(Box::new(Ram([0; 0x4000]))).0,
            ));
            for function in [0x8400_005f, 0x8400_0090, 0x8600_0064] {
                assert_eq!(ffa.call(&mut mm, function, [0; 17]), None, "{function:#x}");
            }
        }
    }

    #[test]
    fn the_partition_that_mm_waits_for_is_resumed_first() {
        let (buffer, mut call) = caller(Kind::StandaloneMm);
        let request = [PARTITION, 0, buffer];
        assert_eq!(call(DIRECT_REQ, &request), error(BUSY));
        assert_eq!(call(DIRECT_REQ, &request), answer(INTERRUPT, ASKED_BY_MM, 27, 0));
        assert_eq!(call(RUN, &[STANDALONE_MM, 0, 0]), error(BUSY));
        assert_eq!(call(RUN, &[PARTITION << 16 | 1, 0, 0]), error(INVALID_PARAMETERS));
        assert_eq!(
            call(RUN, &[ASKED_BY_MM, 0, 0]),
            answer(YIELD, STANDALONE_MM, 0, 0)
        );
        let response = call(RUN, &[STANDALONE_MM, 0, 0]);
        assert_eq!(
            response[..4],
            [0xc400_0070, 0xffff_ffff_8002_0000, 0, EVENT_COMPLETE]
        );
    }
}
