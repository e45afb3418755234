//! FF-A 1.2: MM in a secure partition that is found by the UUID of its service.
//!
//! | call | why |
//! |---|---|
//! | FFA_VERSION | first of all; fixes the version |
//! | FFA_ID_GET | our own identifier, the source of direct requests |
//! | FFA_PARTITION_INFO_GET_REGS | the MM partition's identifier, in registers |
//! | FFA_RXTX_MAP, FFA_PARTITION_INFO_GET, FFA_RX_RELEASE, FFA_RXTX_UNMAP | the same through two pages, where the former is missing |
//! | FFA_MSG_SEND_DIRECT_REQ or _REQ2 | a request; x3 or x4 is the buffer's physical address |
//! | FFA_RUN | resumes a partition that was interrupted or yielded |
//!
//! Registers are encoded and decoded by `arm-ffa`, which panics on what it takes for its caller's mistake. `invoke` gives
//! it only what cannot be one: calls of FF-A 1.2 or older, and answers of the kinds that a caller can get.

use super::{Patience, SmcError, call, low};
use crate::region::SharedRegion;
use arm_ffa::interface_args::{
    DirectMsg2Args, DirectMsgArgs, RxTxAddr, SuccessArgs, SuccessArgsIdGet, TargetInfo, VersionFlags,
    VersionQueryType,
};
use arm_ffa::partition_info::{
    PartitionInfo, PartitionInfoGetFlags, PartitionInfoIterator, SuccessArgsPartitionInfoGet,
};
use arm_ffa::{Error, FuncId, Interface, Uuid, Version, VersionOut};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use mm_wire::EfiStatus;
use smccc::Call;

/// The version that is asked for and spoken, whatever newer minor version the other side has.
const VERSION: Version = Version(1, 2);

/// The MM communication service: the GUID of `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4, 5.7.6) in the byte order
/// of RFC 4122.
pub const MM_SERVICE: Uuid = Uuid::from_u128(0x378daedc_f06b_4446_8314_40ab933c87a3);

/// FFA_MSG_SEND_DIRECT_REQ with 64-bit registers.
pub const MSG_SEND_DIRECT_REQ: u32 = FuncId::MsgSendDirectReq64 as u32;
/// FFA_MSG_SEND_DIRECT_REQ2.
pub const MSG_SEND_DIRECT_REQ2: u32 = FuncId::MsgSendDirectReq64_2 as u32;

/// One page for each direction.
const RX_TX_LEN: usize = 2 * mm_wire::PAGE_LEN;

/// What FFA_ERROR carries in w2 (Arm DEN0077A, table 12.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfaCode(pub i32);

impl FfaCode {
    const NOT_SUPPORTED: Self = Self(-1);
    const INVALID_PARAMETERS: Self = Self(-2);
    const BUSY: Self = Self(-4);
    const INTERRUPTED: Self = Self(-5);
    const RETRY: Self = Self(-7);

    /// The code's name and its `EFI_STATUS`; `None` for a code that FF-A 1.2 does not have.
    const fn known(self) -> Option<(&'static str, EfiStatus)> {
        Some(match self.0 {
            -1 => ("NOT_SUPPORTED", EfiStatus::UNSUPPORTED),
            -2 => ("INVALID_PARAMETERS", EfiStatus::INVALID_PARAMETER),
            -3 => ("NO_MEMORY", EfiStatus::OUT_OF_RESOURCES),
            -4 => ("BUSY", EfiStatus::TIMEOUT),
            -5 => ("INTERRUPTED", EfiStatus::INTERRUPT_PENDING),
            -6 => ("DENIED", EfiStatus::ACCESS_DENIED),
            -7 => ("RETRY", EfiStatus::TIMEOUT),
            -8 => ("ABORTED", EfiStatus::ABORTED),
            -9 => ("NO_DATA", EfiStatus::NOT_FOUND),
            -10 => ("NOT_READY", EfiStatus::NOT_READY),
            _ => return None,
        })
    }

    /// The same as an `EFI_STATUS`: `EFI_DEVICE_ERROR` where the code is unknown.
    #[must_use]
    pub const fn status(self) -> EfiStatus {
        match self.known() {
            Some((_, status)) => status,
            None => EfiStatus::DEVICE_ERROR,
        }
    }
}

impl fmt::Display for FfaCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.known().map_or("unknown code", |(name, _)| name);
        write!(f, "{name} ({})", self.0)
    }
}

/// How the MM partition takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// FFA_MSG_SEND_DIRECT_REQ, as edk2 sends it.
    Direct,
    /// FFA_MSG_SEND_DIRECT_REQ2, which names the service: for partitions that take nothing else.
    Direct2,
}

impl Method {
    /// The call's name.
    const fn call(self) -> &'static str {
        match self {
            Self::Direct => "FFA_MSG_SEND_DIRECT_REQ",
            Self::Direct2 => "FFA_MSG_SEND_DIRECT_REQ2",
        }
    }
}

/// The MM partition, who we are to it, and what it owes us.
#[derive(Debug)]
pub(super) struct Partition {
    own_id: u16,
    id: u16,
    method: Method,
    /// The virtual processor that stands in the middle of a request, as FFA_RUN names it; [`IDLE`] where there is none.
    /// Changed in calls only, of which there is one at a time.
    in_request: AtomicU32,
}

/// No virtual processor: no partition has the identifier 0.
const IDLE: u32 = 0;

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {:#06x} by {}", self.id, self.method.call())
    }
}

/// Why a call has no response of its own kind.
enum Failure {
    /// FFA_ERROR, or the calling convention's "unknown function".
    Code(FfaCode),
    /// Something else that is no response.
    Foreign(u32),
}

/// Makes a call and decodes its response. Beside it stands w1 as INTERRUPT and YIELD have it: what was interrupted. The crate
/// leaves it out of the latter.
fn invoke<C: Call>(request: &Interface) -> Result<(Interface, TargetInfo), Failure> {
    let mut registers = [0; 18];
    request.to_regs(VERSION, &mut registers);
    let response = call::<C>(registers);
    let [function, target, ..] = response;
    let function = low(function);
    match FuncId::try_from(function) {
        Ok(
            FuncId::Error32
            | FuncId::Success32
            | FuncId::Success64
            | FuncId::Interrupt32
            | FuncId::Yield32
            | FuncId::MsgSendDirectResp32
            | FuncId::MsgSendDirectResp64
            | FuncId::MsgSendDirectResp64_2,
        ) => {}
        _ if function.cast_signed() == FfaCode::NOT_SUPPORTED.0 => {
            return Err(Failure::Code(FfaCode::NOT_SUPPORTED));
        }
        _ => return Err(Failure::Foreign(function)),
    }
    match Interface::from_regs(VERSION, &response) {
        Ok(Interface::Error { error_code, .. }) => Err(Failure::Code(FfaCode(error_code.into()))),
        // Such as -10, which the crate does not have.
        Err(Error::UnrecognisedErrorCode(code)) => Err(Failure::Code(FfaCode(code))),
        Ok(response) => Ok((response, TargetInfo::from(low(target)))),
        Err(_) => Err(Failure::Foreign(function)),
    }
}

/// Makes a call until it is not answered with BUSY any more, `attempts` times at the most.
fn insist<C: Call>(call: &'static str, request: &Interface, attempts: u32) -> Result<Interface, SmcError> {
    let mut made: u32 = 0;
    loop {
        made = made.saturating_add(1);
        match invoke::<C>(request) {
            Ok((response, _)) => return Ok(response),
            Err(Failure::Code(FfaCode::BUSY)) if made < attempts => core::hint::spin_loop(),
            Err(Failure::Code(FfaCode::BUSY)) => {
                return Err(SmcError::Timeout { call, attempts: made });
            }
            Err(Failure::Code(code)) => return Err(SmcError::Ffa { call, code }),
            Err(Failure::Foreign(response)) => return Err(SmcError::Protocol { call, response }),
        }
    }
}

/// The function identifier of a response that its call does not have.
fn unexpected(call: &'static str, response: &Interface) -> SmcError {
    SmcError::Protocol {
        call,
        response: response.function_id().map_or(0, u32::from),
    }
}

/// Asks for FF-A 1.2. The error is the response that says otherwise.
pub(super) fn version<C: Call>() -> Result<(), u32> {
    let request = Interface::Version {
        input_version: VERSION,
        flags: VersionFlags {
            query_type: VersionQueryType::Negotiate,
        },
    };
    let mut registers = [0; 18];
    request.to_regs(VERSION, &mut registers);
    let [response, ..] = call::<C>(registers);
    let response = low(response);
    match VersionOut::try_from(response) {
        Ok(VersionOut::Version(theirs)) if VERSION.is_compatible_to(theirs) => Ok(()),
        _ => Err(response),
    }
}

/// Finds the partition that offers MM.
pub(super) fn find_mm<C: Call>(
    attempts: u32,
    rx_tx: &mut dyn FnMut() -> Option<SharedRegion>,
) -> Result<Partition, SmcError> {
    let own_id = own_id::<C>(attempts)?;
    let found = match by_registers::<C>(attempts) {
        Err(SmcError::Ffa {
            code: FfaCode::NOT_SUPPORTED,
            ..
        }) => by_pages::<C>(attempts, rx_tx),
        found => found,
    };
    let partition = found?.ok_or(SmcError::NoPartition)?;
    let method = if partition.props.support_direct_req_rec {
        Method::Direct
    } else if partition.props.support_direct_req2_rec == Some(true) {
        Method::Direct2
    } else {
        return Err(SmcError::NoDirectRequests {
            id: partition.partition_id,
        });
    };
    Ok(Partition {
        own_id,
        id: partition.partition_id,
        method,
        in_request: AtomicU32::new(IDLE),
    })
}

fn own_id<C: Call>(attempts: u32) -> Result<u16, SmcError> {
    const CALL: &str = "FFA_ID_GET";
    let response = insist::<C>(CALL, &Interface::IdGet, attempts)?;
    match response {
        Interface::Success { args, .. } => match SuccessArgsIdGet::try_from(args) {
            Ok(SuccessArgsIdGet { id }) => Ok(id),
            Err(_) => Err(unexpected(CALL, &response)),
        },
        _ => Err(unexpected(CALL, &response)),
    }
}

/// Asks for a list of the partitions that have the MM service. `None` where there is none: what both calls say of a UUID that
/// nobody has is INVALID_PARAMETERS, which means something else in the answers of other calls.
fn ask_for_list<C: Call>(
    call: &'static str,
    request: &Interface,
    attempts: u32,
) -> Result<Option<Interface>, SmcError> {
    match insist::<C>(call, request, attempts) {
        Err(SmcError::Ffa {
            code: FfaCode::INVALID_PARAMETERS,
            ..
        }) => Ok(None),
        response => response.map(Some),
    }
}

/// The `count` descriptors at the start of `bytes`, each of which has `len` bytes; `None` where that cannot be.
///
/// Newer versions append fields, and a secure world may answer callers of 1.2 in its own format (Hafnium 2.15: 48 bytes, as in
/// FF-A 1.3). So `len` is how far it is to the next descriptor, of which the first 24 bytes are those of 1.2.
fn descriptors(bytes: &[u8], count: usize, len: usize) -> Option<impl Iterator<Item = &[u8]>> {
    let fits = count.checked_mul(len).is_some_and(|total| total <= bytes.len());
    (fits && len >= PartitionInfo::DESC_SIZE && len.is_multiple_of(size_of::<u64>()))
        .then(|| bytes.chunks_exact(len).take(count))
}

/// The first descriptor of the MM service. Where the callee filters by the service, it leaves the UUID zero; an identifier of
/// zero is the hypervisor's, not a partition's.
fn first_mm<'a>(descriptors: impl Iterator<Item = &'a [u8]>) -> Option<PartitionInfo> {
    descriptors
        .filter_map(|descriptor| PartitionInfoIterator::new(VERSION, descriptor, 1).ok())
        .flatten()
        .flatten()
        .find(|partition| {
            partition.partition_id != 0 && (partition.uuid.is_nil() || partition.uuid == MM_SERVICE)
        })
}

/// A part of the list, as PARTITION_INFO_GET_REGS tells it in x2 to x17.
struct Part {
    /// The index of the list's last descriptor, and of the last one that is told here.
    last: u16,
    current: u16,
    /// What the next part is asked for with.
    tag: u16,
    /// Bytes of a descriptor.
    len: u16,
    descriptors: [[u8; 8]; 15],
}

impl Part {
    /// `None` where the response has not these registers. The crate's own decoding is not used: it takes descriptors of 24 bytes
    /// only.
    fn new(args: SuccessArgs) -> Option<Self> {
        let SuccessArgs::Args64([told, registers @ ..]) = args else {
            return None;
        };
        let [a, b, c, d, e, f, g, h] = told.to_le_bytes();
        Some(Self {
            last: u16::from_le_bytes([a, b]),
            current: u16::from_le_bytes([c, d]),
            tag: u16::from_le_bytes([e, f]),
            len: u16::from_le_bytes([g, h]),
            descriptors: registers.map(u64::to_le_bytes),
        })
    }

    /// The descriptors from `start` to the current one; `None` where the part contradicts itself, or does not go on from where
    /// it was asked to, which would keep its reader for ever.
    fn starting_at(&self, start: u16) -> Option<impl Iterator<Item = &[u8]>> {
        let before_current = self.current.checked_sub(start)?;
        let count = usize::from(before_current).saturating_add(1);
        let listed = descriptors(self.descriptors.as_flattened(), count, self.len.into())?;
        (self.current <= self.last).then_some(listed)
    }
}

/// PARTITION_INFO_GET_REGS, from the first to the last descriptor.
fn by_registers<C: Call>(attempts: u32) -> Result<Option<PartitionInfo>, SmcError> {
    const CALL: &str = "FFA_PARTITION_INFO_GET_REGS";
    let mut start_index = 0;
    let mut info_tag = 0;
    let mut restarts: u32 = 0;
    loop {
        let request = Interface::PartitionInfoGetRegs {
            uuid: MM_SERVICE,
            start_index,
            info_tag,
        };
        let response = match ask_for_list::<C>(CALL, &request, attempts) {
            // The list has changed since its first part was told.
            Err(SmcError::Ffa {
                code: FfaCode::RETRY, ..
            }) if restarts < attempts => {
                restarts = restarts.saturating_add(1);
                (start_index, info_tag) = (0, 0);
                continue;
            }
            response => response?,
        };
        let Some(response) = response else { return Ok(None) };
        let Interface::Success { args, .. } = response else {
            return Err(unexpected(CALL, &response));
        };
        let part = Part::new(args).ok_or_else(|| unexpected(CALL, &response))?;
        let listed = part
            .starting_at(start_index)
            .ok_or_else(|| unexpected(CALL, &response))?;
        if let Some(partition) = first_mm(listed) {
            return Ok(Some(partition));
        }
        match part.current.checked_add(1) {
            Some(next) if next <= part.last => (start_index, info_tag) = (next, part.tag),
            _ => return Ok(None),
        }
    }
}

/// PARTITION_INFO_GET through RX and TX buffers that are mapped for this and unmapped again.
///
/// Unmapping them belongs to it: where that fails nothing was found. The pages would stay the secure world's, and whoever maps
/// buffers next, the operating system above all, would be denied; the platform's owner must hear of it.
fn by_pages<C: Call>(
    attempts: u32,
    rx_tx: &mut dyn FnMut() -> Option<SharedRegion>,
) -> Result<Option<PartitionInfo>, SmcError> {
    let pages = rx_tx()
        .filter(|pages| pages.len() >= RX_TX_LEN && pages.as_ptr().addr().is_multiple_of(mm_wire::PAGE_LEN))
        .ok_or(SmcError::NoRxTxMemory { needed: RX_TX_LEN })?;
    let rx = pages.as_ptr().expose_provenance() as u64;
    let map = Interface::RxTxMap {
        addr: RxTxAddr::Addr64 {
            rx,
            tx: rx.saturating_add(mm_wire::PAGE_LEN as u64),
        },
        page_cnt: 1,
    };
    expect_success::<C>("FFA_RXTX_MAP", &map, attempts)?;
    let found = read_pages::<C>(attempts, &pages);
    let unmapped = expect_success::<C>("FFA_RXTX_UNMAP", &Interface::RxTxUnmap { id: 0 }, attempts);
    let found = found?;
    unmapped?;
    Ok(found)
}

/// Has the RX page filled, copies it, gives it back.
fn read_pages<C: Call>(attempts: u32, pages: &SharedRegion) -> Result<Option<PartitionInfo>, SmcError> {
    const CALL: &str = "FFA_PARTITION_INFO_GET";
    let flags = PartitionInfoGetFlags { count_only: false };
    let request = Interface::PartitionInfoGet {
        uuid: MM_SERVICE,
        flags,
    };
    let Some(response) = ask_for_list::<C>(CALL, &request, attempts)? else {
        // The RX page was not filled: it is not ours to release.
        return Ok(None);
    };
    let mut copy = [0; mm_wire::PAGE_LEN];
    let read = pages.read(0, &mut copy);
    expect_success::<C>("FFA_RX_RELEASE", &Interface::RxRelease { vm_id: 0 }, attempts)?;

    let Interface::Success { args, .. } = response else {
        return Err(unexpected(CALL, &response));
    };
    let (count, len) = match SuccessArgsPartitionInfoGet::try_from((flags, args)) {
        Ok(SuccessArgsPartitionInfoGet { count, size }) => (count, size.unwrap_or_default()),
        Err(_) => return Err(unexpected(CALL, &response)),
    };
    let [count, len] = [count, len].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    match descriptors(&copy, count, len) {
        Some(listed) if read => Ok(first_mm(listed)),
        _ => Err(unexpected(CALL, &response)),
    }
}

fn expect_success<C: Call>(call: &'static str, request: &Interface, attempts: u32) -> Result<(), SmcError> {
    match insist::<C>(call, request, attempts)? {
        Interface::Success { .. } => Ok(()),
        response => Err(unexpected(call, &response)),
    }
}

const RUN: &str = "FFA_RUN";

/// FFA_RUN.
const fn resume(target_info: TargetInfo) -> Interface {
    Interface::Run {
        target_info,
        is_32bit: true,
    }
}

impl Partition {
    /// Has the partition process the request at `buffer`, and resumes it as often as it is interrupted.
    ///
    /// Where patience ends in the middle of a request, the partition keeps it and goes on as soon as it is resumed, reading and
    /// writing shared memory. So it is resumed before anything else is asked of it; and since nobody knows what it has made of
    /// shared memory then, a request that stood there meanwhile is not sent.
    pub(super) fn communicate<C: Call>(&self, buffer: u64, patience: Patience) -> Result<(), SmcError> {
        match self.in_request.load(Ordering::Relaxed) {
            IDLE => self.run::<C>(self.method.call(), self.request(buffer), patience),
            target => match self.run::<C>(RUN, resume(target.into()), patience) {
                Err(SmcError::Timeout { attempts, .. }) => Err(SmcError::EarlierUnfinished { attempts }),
                // Answered, or there is nothing to resume any more.
                Ok(()) | Err(SmcError::Ffa { .. }) => Err(SmcError::EarlierEnded),
                result => result,
            },
        }
    }

    /// Makes a call that has the partition run, and resumes the partition until it has answered.
    fn run<C: Call>(
        &self,
        mut call: &'static str,
        mut next: Interface,
        patience: Patience,
    ) -> Result<(), SmcError> {
        let mut busy: u32 = 0;
        let mut resumes = u32::from(matches!(next, Interface::Run { .. }));
        loop {
            let named = match invoke::<C>(&next) {
                Ok((Interface::MsgSendDirectResp { src_id, dst_id, .. }, _))
                    if self.method == Method::Direct && self.is_ours(src_id, dst_id) =>
                {
                    self.in_request.store(IDLE, Ordering::Relaxed);
                    return Ok(());
                }
                Ok((Interface::MsgSendDirectResp2 { src_id, dst_id, .. }, _))
                    if self.method == Method::Direct2 && self.is_ours(src_id, dst_id) =>
                {
                    self.in_request.store(IDLE, Ordering::Relaxed);
                    return Ok(());
                }
                Ok((Interface::Interrupt { .. } | Interface::Yield { .. }, target)) => Some(target),
                Err(Failure::Code(FfaCode::INTERRUPTED)) => None,
                Err(Failure::Code(FfaCode::BUSY)) => {
                    busy = busy.saturating_add(1);
                    if busy >= patience.busy {
                        return Err(SmcError::Timeout { call, attempts: busy });
                    }
                    core::hint::spin_loop();
                    continue;
                }
                Err(Failure::Code(code)) => {
                    // The partition has crashed, or the partition manager has nothing to resume.
                    self.in_request.store(IDLE, Ordering::Relaxed);
                    return Err(SmcError::Ffa { call, code });
                }
                Ok((response, _)) => return Err(unexpected(call, &response)),
                Err(Failure::Foreign(response)) => return Err(SmcError::Protocol { call, response }),
            };
            let target = self.interrupted(named);
            self.in_request.store(target.into(), Ordering::Relaxed);
            if resumes >= patience.resumes {
                return Err(SmcError::Timeout {
                    call: RUN,
                    attempts: resumes,
                });
            }
            resumes = resumes.saturating_add(1);
            (call, next) = (RUN, resume(target));
        }
    }

    /// The virtual processor to be resumed. A response that names none of the partition's means the one that ran.
    fn interrupted(&self, named: Option<TargetInfo>) -> TargetInfo {
        let last = TargetInfo::from(self.in_request.load(Ordering::Relaxed));
        TargetInfo {
            endpoint_id: self.id,
            vcpu_id: named
                .filter(|named| named.endpoint_id == self.id)
                .map_or(last.vcpu_id, |named| named.vcpu_id),
        }
    }

    fn request(&self, buffer: u64) -> Interface {
        let (src_id, dst_id) = (self.own_id, self.id);
        match self.method {
            Method::Direct => {
                let mut args = [0; 15];
                let [first, ..] = &mut args;
                *first = buffer;
                let args = DirectMsgArgs::Args64(args);
                Interface::MsgSendDirectReq { src_id, dst_id, args }
            }
            Method::Direct2 => {
                let mut args = [0; 14];
                let [first, ..] = &mut args;
                *first = buffer;
                Interface::MsgSendDirectReq2 {
                    src_id,
                    dst_id,
                    uuid: MM_SERVICE,
                    args: DirectMsg2Args(args),
                }
            }
        }
    }

    /// Whether a response goes from the partition to us.
    const fn is_ours(&self, src_id: u16, dst_id: u16) -> bool {
        src_id == self.id && dst_id == self.own_id
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{self, Arguments, FakeConduit, Response, Seen, World, answer, error};
    use super::super::{Connection, SecureMm, Setup, connect};
    use super::*;
    use proptest::prelude::*;
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

    /// The same as FF-A 1.3 has it and Hafnium 2.15 gives it to callers of 1.2: 48 bytes, with the image's UUID and the
    /// version that the partition speaks.
    fn long_descriptor(id: u16, properties: u32, uuid: [u8; 16]) -> Vec<u8> {
        let appended = [&[0x5a; 16][..], &0x1_0003_u32.to_le_bytes(), &[0; 4]].concat();
        [descriptor(id, properties, uuid), appended].concat()
    }

    type Descriptor = fn(u16, u32, [u8; 16]) -> Vec<u8>;

    /// Both kinds.
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

        /// A world with an MM partition, found by registers, whose requests and resumptions are answered from a list, the last
        /// response for ever.
        fn serving(self, answers: Vec<Response>) -> World {
            let next = std::cell::Cell::new(0);
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

    fn connected(world: &World) -> (Result<Connection<FakeConduit>, SmcError>, Seen) {
        world::with(world.clone(), || {
            connect::<FakeConduit>(Setup::default(), &mut world::two_pages)
        })
    }

    fn communicate(world: World, patience: Patience) -> (Result<(), SmcError>, Seen) {
        let (results, seen) = communicate_often(1, world, patience);
        (results[0], seen)
    }

    fn communicate_often(
        times: usize,
        world: World,
        patience: Patience,
    ) -> (Vec<Result<(), SmcError>>, Seen) {
        let mut connection = connected(&world).0.unwrap();
        connection.patience = patience;
        world::with(world, || {
            (0..times).map(|_| connection.communicate(BUFFER)).collect()
        })
    }

    /// What FFA_RUN was told to resume.
    fn resumed(seen: &Seen) -> Vec<u64> {
        let runs = seen.calls.iter().filter(|(function, _)| *function == RUN_SP);
        runs.map(|(_, arguments)| arguments[0]).collect()
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
        // The secure world does not filter: five or two others, as many as there is room for, then one and ours.
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
    fn what_longer_descriptors_append_is_not_taken_for_a_descriptor() {
        // Behind the first 24 bytes stands what would be a partition that takes requests.
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
                find_mm::<FakeConduit>(5, &mut world::two_pages)
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
            // Descriptors of less than FF-A 1.1 has, of parts of a register, longer than all registers.
            (answer(&[0xc400_0061]), answered()),
            (answer(&[0xc400_0061, 0, 16 << 48]), answered()),
            (answer(&[0xc400_0061, 0, 20 << 48]), answered()),
            (answer(&[0xc400_0061, 0, 28 << 48]), answered()),
            (answer(&[0xc400_0061, 0, 128 << 48]), answered()),
            (answer(&[0xc400_0061, 0, 0xffff << 48]), answered()),
            // The second part starts before it was asked to.
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

    /// A world without GET_REGS that fills the RX page with descriptors, each of which claims to have `len` bytes.
    fn with_pages(missing: Response, count: u64, len: u64, descriptors: Vec<u8>) -> World {
        let rx = Rc::new(std::cell::Cell::new(0));
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
                    // SAFETY: two pages that are leaked and that nobody else uses.
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
    fn pages_are_given_back_whatever_stands_in_them() {
        let refused = SmcError::Protocol {
            call: "FFA_PARTITION_INFO_GET",
            response: 0x8400_0061,
        };
        let other = descriptor(3, TAKES_REQ, [9; 16]);
        for (count, len, expected) in [
            (1, 24, SmcError::NoPartition),
            (0, 24, SmcError::NoPartition),
            // As many as a page holds, and one more.
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
        let world = || ffa(|function, _, _| (function == RXTX_MAP).then(|| error(-6)).or(Some(error(-1))));
        let (result, _) = world::with(world(), || by_pages::<FakeConduit>(1, &mut || None));
        assert_eq!(result.unwrap_err(), SmcError::NoRxTxMemory { needed: 8192 });
        let (result, seen) = world::with(world(), || by_pages::<FakeConduit>(1, &mut world::two_pages));
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "FFA_RXTX_MAP: DENIED (-6)");
        assert_eq!(error.status(), EfiStatus::ACCESS_DENIED);
        assert_eq!(seen.functions(), [RXTX_MAP]);
    }

    #[test]
    fn every_code_has_its_name_and_its_status() {
        for (code, status, name) in [
            (-1, EfiStatus::UNSUPPORTED, "NOT_SUPPORTED (-1)"),
            (-2, EfiStatus::INVALID_PARAMETER, "INVALID_PARAMETERS (-2)"),
            (-3, EfiStatus::OUT_OF_RESOURCES, "NO_MEMORY (-3)"),
            (-4, EfiStatus::TIMEOUT, "BUSY (-4)"),
            (-5, EfiStatus::INTERRUPT_PENDING, "INTERRUPTED (-5)"),
            (-6, EfiStatus::ACCESS_DENIED, "DENIED (-6)"),
            (-7, EfiStatus::TIMEOUT, "RETRY (-7)"),
            (-8, EfiStatus::ABORTED, "ABORTED (-8)"),
            (-9, EfiStatus::NOT_FOUND, "NO_DATA (-9)"),
            (-10, EfiStatus::NOT_READY, "NOT_READY (-10)"),
            (-11, EfiStatus::DEVICE_ERROR, "unknown code (-11)"),
            (0, EfiStatus::DEVICE_ERROR, "unknown code (0)"),
        ] {
            let code = FfaCode(code);
            assert_eq!(code.status(), status);
            let error = SmcError::Ffa {
                call: "FFA_RUN",
                code,
            };
            assert_eq!(error.status(), status);
            assert_eq!(error.to_string(), std::format!("FFA_RUN: {name}"));
        }
    }

    /// What a call can be answered with instead of success, and the code that this is.
    fn failures() -> Vec<(Response, i32)> {
        // FF-A 1.2 has -1 to -10.
        let coded = (-11..=1).chain([i32::MIN, i32::MAX]);
        let unknown_function = [u64::MAX, 0xffff_ffff].map(|x0| (answer(&[x0]), -1));
        coded
            .map(|code| (error(code), code))
            .chain(unknown_function)
            .collect()
    }

    /// A world in which one call fails and everything else is as it was.
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
    fn every_failure_of_every_discovery_call_is_told_with_its_call() {
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
                    // Then there are the pages.
                    (GET_REGS, -1) => Ok(()),
                    // Nobody has the service's UUID.
                    (GET_REGS | INFO_GET, -2) => Err(SmcError::NoPartition),
                    (_, -4) => Err(SmcError::Timeout { call, attempts: 3 }),
                    (_, code) => Err(SmcError::Ffa {
                        call,
                        code: FfaCode(code),
                    }),
                };
                assert_eq!(result, expected, "{call} answered {code}");

                // What was mapped is unmapped, what was filled is released, nothing else is.
                let functions = seen.functions();
                let made = |function| functions.contains(&function);
                let mapped = made(RXTX_MAP) && failed != RXTX_MAP;
                let filled = made(INFO_GET) && failed != INFO_GET;
                assert_eq!(made(RXTX_UNMAP), mapped, "{call} answered {code}");
                assert_eq!(functions.ends_with(&[RXTX_UNMAP]), mapped);
                assert_eq!(made(RX_RELEASE), filled, "{call} answered {code}");
                assert!(!made(0x8400_0040), "no SPM_MM behind FF-A's back");
            }
        }
    }

    #[test]
    fn every_failure_of_a_request_and_of_its_resumption_is_told_with_its_call() {
        for kind in KINDS {
            for (failure, code) in failures() {
                for (before, call) in [(vec![], kind.call), (vec![interrupted(0)], "FFA_RUN")] {
                    let answers = [&before[..], &[failure]].concat();
                    let (result, seen) = communicate(kind.serving(answers), patience(3, 4));
                    let (expected, calls) = match code {
                        -4 => (SmcError::Timeout { call, attempts: 3 }, before.len() + 3),
                        // Which is an interruption, of this and of every resumption.
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
                    assert_eq!(result, Err(expected), "{call} answered {code}");
                    assert_eq!(seen.calls.len(), calls, "{call} answered {code}");
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
        let ask = |times| world::with(world(times), || own_id::<FakeConduit>(4)).0;
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
    fn an_interrupted_request_is_resumed_where_it_was() {
        let elsewhere = |function| answer(&[function, 0x8003_0001, 27]);
        for kind in KINDS {
            let answers = vec![
                interrupted(2),
                interrupted(0),
                yielded(2),
                // These name no virtual processor of the partition: it is still the same.
                elsewhere(0x8400_0062),
                elsewhere(0x8400_006c),
                answer(&[0x8400_006c]),
                error(-5),
                yielded(1),
                kind.answered(),
            ];
            let (result, seen) = communicate(kind.serving(answers), patience(1, 8));
            assert_eq!(result, Ok(()));
            assert_eq!(seen.calls[0].0, kind.request);
            assert_eq!(resumed(&seen), [2, 0, 2, 2, 2, 2, 2, 1].map(target));
        }
    }

    #[test]
    fn an_interruption_that_names_nobody_is_of_the_first_virtual_processor() {
        for unnamed in [answer(&[0x8400_0062]), answer(&[0x8400_006c]), error(-5)] {
            let (result, seen) =
                communicate(KINDS[0].serving(vec![unnamed, answered()]), Patience::default());
            assert_eq!(result, Ok(()));
            assert_eq!(resumed(&seen), [target(0)]);
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
                // Given up.
                interrupted(3),
                yielded(3),
                interrupted(3),
                // Resumed and given up again.
                interrupted(3),
                interrupted(1),
                // Resumed on behalf of the third call, and ended.
                yielded(1),
                kind.answered(),
                // The fourth one's own.
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
    fn what_cannot_be_resumed_is_over() {
        for (failure, code) in failures() {
            if let -5 | -4 = code {
                continue;
            }
            // In the call itself: the next one finds nothing to wait for.
            let answers = vec![interrupted(0), failure, answered()];
            let (results, seen) = communicate_often(2, KINDS[0].serving(answers), patience(1, 1));
            let refused = SmcError::Ffa {
                call: "FFA_RUN",
                code: FfaCode(code),
            };
            assert_eq!(results, [Err(refused), Ok(())]);
            assert_eq!(seen.functions(), [DIRECT_REQ, RUN_SP, DIRECT_REQ]);

            // On behalf of the next one, which does not know what was written meanwhile.
            let answers = vec![interrupted(0), failure, answered()];
            let (results, seen) = communicate_often(3, KINDS[0].serving(answers), patience(1, 0));
            assert_eq!(results[1..], [Err(SmcError::EarlierEnded), Ok(())]);
            assert_eq!(seen.functions(), [DIRECT_REQ, RUN_SP, DIRECT_REQ]);
        }
    }

    #[test]
    fn a_resumption_that_is_answered_with_nonsense_ends_nothing() {
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
    fn a_request_that_nobody_took_leaves_nothing_to_end() {
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
        /// Also says that `arm-ffa` is never given what it panics on.
        #[test]
        fn no_response_of_the_secure_world_makes_the_client_panic_or_hang(
            answers in proptest::collection::vec((0..12_usize, proptest::array::uniform17(any::<u64>())), 1..20),
        ) {
            const FUNCTIONS: [u64; 12] = [
                0x8400_0060, 0x8400_0061, 0xc400_0061, 0x8400_0062, 0xc400_0062, 0x8400_006c, 0xc400_006c, 0x8400_0070,
                0xc400_0070, 0xc400_008e, 0xc400_0060, 0xc400_008a,
            ];
            let next = std::cell::Cell::new(0);
            let world = ffa(move |function, arguments, _| {
                let (index, rest) = answers[next.get() % answers.len()];
                next.set(next.get() + 1);
                let mut registers = answer(&[FUNCTIONS[index]]);
                registers[1..].copy_from_slice(&rest);
                // Now and then what is asked for, so that there is a next step.
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
                // Often, since a request that is given up is the next one's concern.
                (0..4).map(|_| mm.communicate(BUFFER)).last().unwrap_or(Ok(()))
            });
            prop_assert!(seen.calls.len() < 200);
        }
    }
}
