//! FF-A discovery: which version the secure world speaks, and which partition offers MM.
//!
//! ```text
//! FFA_VERSION(1.2) ──► 1.2 or later ──► FFA_ID_GET ──► the platform named the partition?  ─ yes ──► done
//!      │ refused: another version is settled           │ no
//!      └─► FFA_VERSION(1.3) ──► the same               └─► FFA_PARTITION_INFO_GET_REGS ──► done
//!                                                               │ NOT_SUPPORTED
//!                              FFA_RXTX_MAP, FFA_PARTITION_INFO_GET, FFA_RX_RELEASE, FFA_RXTX_UNMAP ──► done
//!                                   │ DENIED: mapped already
//!                                   └─► FFA_PARTITION_INFO_GET, FFA_RX_RELEASE in the pages that are mapped ──► done
//! ```

use super::{DirectRequest, FfaCode, MM_SERVICE, NamedPartition, Partition, VERSION, insist, unexpected};
use crate::region::SharedRegion;
use crate::smc::codes::OtherVersion;
use crate::smc::conduit::{call, low};
use crate::smc::{Conduit, SmcError, limit::Limits};
use arm_ffa::interface_args::{RxTxAddr, SuccessArgs, SuccessArgsIdGet, VersionFlags, VersionQueryType};
use arm_ffa::partition_info::{
    PartitionInfo, PartitionInfoGetFlags, PartitionInfoIterator, SuccessArgsPartitionInfoGet,
};
use arm_ffa::{Interface, Version, VersionOut};

/// One page for each direction.
const RX_TX_LEN: usize = 2 * mm_wire::PAGE_LEN;

/// Memory for discovery by an FF-A that lacks PARTITION_INFO_GET_REGS. A closure that returns two
/// pages implements it.
pub trait RxTxMemory {
    /// Two pages of shared memory, mapped one to one, to be mapped as RX and TX buffers and
    /// unmapped again.
    fn two_pages(&mut self) -> Option<SharedRegion>;

    /// The RX buffer that another driver has mapped and announced. Asked for only if FFA_RXTX_MAP
    /// is DENIED.
    fn mapped_rx(&mut self) -> Option<SharedRegion> {
        None
    }
}

impl<F: FnMut() -> Option<SharedRegion>> RxTxMemory for F {
    fn two_pages(&mut self) -> Option<SharedRegion> {
        self()
    }
}

/// FFA_VERSION with a version that the caller offers.
fn ask_for_version<C: Conduit>(input_version: Version) -> u32 {
    let request = Interface::Version {
        input_version,
        flags: VersionFlags {
            query_type: VersionQueryType::Negotiate,
        },
    };
    let mut registers = [0; 18];
    request.to_regs(VERSION, &mut registers);
    let [response, ..] = call::<C>(registers);
    low(response)
}

/// The version in a result; `None` for one of the errors.
fn version_in(response: u32) -> Option<Version> {
    match VersionOut::try_from(response) {
        Ok(VersionOut::Version(version)) => Some(version),
        _ => None,
    }
}

/// Negotiates a version that is compatible with 1.2.
///
/// The first call that is not FFA_VERSION settles the version. If another driver has made one
/// before us, another version is refused: Hafnium (`api_ffa_version`) returns NOT_SUPPORTED for any
/// other, TF-A (`ffa_version_handler`) returns the settled one. 1.3 is as good as 1.2, older
/// versions are not.
pub(in crate::smc) fn version<C: Conduit>() -> Result<(), OtherVersion> {
    const NEWER: Version = Version(1, 3);
    const OLDER: [Version; 2] = [Version(1, 1), Version(1, 0)];
    let serves_1_2 = |response| version_in(response).is_some_and(|theirs| VERSION.is_compatible_to(theirs));
    let response = ask_for_version::<C>(VERSION);
    if serves_1_2(response) {
        return Ok(());
    }
    if version_in(response).is_some() {
        return Err(OtherVersion::refused(response));
    }
    if serves_1_2(ask_for_version::<C>(NEWER)) {
        return Ok(());
    }
    // The result is always the firmware's own version. A version instead of an error means that the
    // one in the request was settled.
    let accepted = OLDER
        .into_iter()
        .find(|older| version_in(ask_for_version::<C>(*older)).is_some());
    Err(OtherVersion {
        response,
        accepted: accepted.map(|Version(_, minor)| minor),
    })
}

/// Finds the partition that offers MM, or takes the one that the platform named.
pub(in crate::smc) fn find_mm<C: Conduit>(
    named: Option<NamedPartition>,
    limits: Limits,
    rx_tx: &mut dyn RxTxMemory,
) -> Result<Partition, SmcError> {
    let own_id = own_id::<C>(limits)?;
    if let Some(NamedPartition { id, request }) = named {
        return Ok(Partition::new(own_id, id, request));
    }
    let found = match by_registers::<C>(limits) {
        Err(SmcError::Ffa {
            code: FfaCode::NOT_SUPPORTED,
            ..
        }) => by_pages::<C>(limits, rx_tx),
        found => found,
    };
    let partition = found?.ok_or(SmcError::NoPartition)?;
    let id = partition.partition_id;
    let request = if partition.props.support_direct_req_rec {
        DirectRequest::Req
    } else if partition.props.support_direct_req2_rec == Some(true) {
        DirectRequest::Req2
    } else {
        return Err(SmcError::NoDirectRequests { id });
    };
    Ok(Partition::new(own_id, id, request))
}

pub(super) fn own_id<C: Conduit>(limits: Limits) -> Result<u16, SmcError> {
    const CALL: &str = "FFA_ID_GET";
    let response = insist::<C>(CALL, &Interface::IdGet, limits)?;
    match response {
        Interface::Success { args, .. } => match SuccessArgsIdGet::try_from(args) {
            Ok(SuccessArgsIdGet { id }) => Ok(id),
            Err(_) => Err(unexpected(CALL, &response)),
        },
        _ => Err(unexpected(CALL, &response)),
    }
}

/// Asks for a list of the partitions that have the MM service. `None` if there is none: both calls
/// fail with INVALID_PARAMETERS for a UUID that no partition has. From other calls that code means
/// something else.
fn ask_for_list<C: Conduit>(
    call: &'static str,
    request: &Interface,
    limits: Limits,
) -> Result<Option<Interface>, SmcError> {
    match insist::<C>(call, request, limits) {
        Err(SmcError::Ffa {
            code: FfaCode::INVALID_PARAMETERS,
            ..
        }) => Ok(None),
        response => response.map(Some),
    }
}

/// The `count` descriptors at the start of `bytes`, each of which has `len` bytes; `None` if they
/// do not fit.
///
/// Newer versions append fields, and a secure world may use its own format for callers of 1.2
/// (Hafnium 2.15: 48 bytes, as in FF-A 1.3). So `len` is the distance to the next descriptor, and
/// the first 24 bytes are those of 1.2.
fn descriptors(bytes: &[u8], count: usize, len: usize) -> Option<impl Iterator<Item = &[u8]>> {
    let fits = count.checked_mul(len).is_some_and(|total| total <= bytes.len());
    (fits && len >= PartitionInfo::DESC_SIZE && len.is_multiple_of(size_of::<u64>()))
        .then(|| bytes.chunks_exact(len).take(count))
}

/// The first descriptor of the MM service. If the callee filters by the service, it leaves the UUID
/// zero. The identifier zero is the hypervisor's, not a partition's.
fn first_mm<'a>(descriptors: impl Iterator<Item = &'a [u8]>) -> Option<PartitionInfo> {
    descriptors
        .filter_map(|descriptor| PartitionInfoIterator::new(VERSION, descriptor, 1).ok())
        .flatten()
        .flatten()
        .find(|partition| {
            partition.partition_id != 0 && (partition.uuid.is_nil() || partition.uuid == MM_SERVICE)
        })
}

/// A part of the list, as PARTITION_INFO_GET_REGS returns it in x2 to x17.
struct Part {
    /// The index of the list's last descriptor, and of the last one in this part.
    last: u16,
    current: u16,
    /// To be passed with the request for the next part.
    tag: u16,
    /// Bytes of a descriptor.
    len: u16,
    descriptors: [[u8; 8]; 15],
}

impl Part {
    /// `None` if the result does not have these registers. The decoder of `arm-ffa` is not used: it
    /// takes descriptors of 24 bytes only.
    fn new(args: SuccessArgs) -> Option<Self> {
        let SuccessArgs::Args64([metadata, registers @ ..]) = args else {
            return None;
        };
        let [a, b, c, d, e, f, g, h] = metadata.to_le_bytes();
        Some(Self {
            last: u16::from_le_bytes([a, b]),
            current: u16::from_le_bytes([c, d]),
            tag: u16::from_le_bytes([e, f]),
            len: u16::from_le_bytes([g, h]),
            descriptors: registers.map(u64::to_le_bytes),
        })
    }

    /// The descriptors from `start` to the current one; `None` if the part contradicts itself, or
    /// does not continue from `start`, which would make the reader loop for ever.
    fn starting_at(&self, start: u16) -> Option<impl Iterator<Item = &[u8]>> {
        let before_current = self.current.checked_sub(start)?;
        let count = usize::from(before_current).saturating_add(1);
        let listed = descriptors(self.descriptors.as_flattened(), count, self.len.into())?;
        (self.current <= self.last).then_some(listed)
    }
}

/// PARTITION_INFO_GET_REGS, from the first to the last descriptor.
fn by_registers<C: Conduit>(limits: Limits) -> Result<Option<PartitionInfo>, SmcError> {
    const CALL: &str = "FFA_PARTITION_INFO_GET_REGS";
    let mut start_index = 0;
    let mut info_tag = 0;
    let mut restarts: u32 = 0;
    let limit = limits.busy::<C>();
    loop {
        let request = Interface::PartitionInfoGetRegs {
            uuid: MM_SERVICE,
            start_index,
            info_tag,
        };
        let response = match ask_for_list::<C>(CALL, &request, limits) {
            // The list has changed since its first part was read.
            Err(SmcError::Ffa {
                code: FfaCode::RETRY, ..
            }) if !limit.is_reached::<C>(restarts) => {
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

/// PARTITION_INFO_GET through RX and TX buffers that are mapped for this and unmapped again, or
/// through those that another driver has mapped.
///
/// If our own buffers cannot be unmapped, this fails even if the partition was found: the pages
/// would stay the secure world's, and the next caller that maps buffers, usually the operating
/// system, would be denied. The platform's owner must see that.
pub(super) fn by_pages<C: Conduit>(
    limits: Limits,
    rx_tx: &mut dyn RxTxMemory,
) -> Result<Option<PartitionInfo>, SmcError> {
    let pages = rx_tx
        .two_pages()
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
    match expect_success::<C>("FFA_RXTX_MAP", &map, limits) {
        Err(SmcError::Ffa {
            code: FfaCode::DENIED,
            ..
        }) => {
            let rx = rx_tx.mapped_rx().ok_or(SmcError::RxTxMapped)?;
            return read_rx_page::<C>(limits, &rx);
        }
        mapped => mapped?,
    }
    let found = read_rx_page::<C>(limits, &pages);
    let unmapped = expect_success::<C>("FFA_RXTX_UNMAP", &Interface::RxTxUnmap { id: 0 }, limits);
    let found = found?;
    unmapped?;
    Ok(found)
}

/// Makes the secure world fill the RX page, copies it, and releases it.
fn read_rx_page<C: Conduit>(limits: Limits, rx: &SharedRegion) -> Result<Option<PartitionInfo>, SmcError> {
    const CALL: &str = "FFA_PARTITION_INFO_GET";
    let flags = PartitionInfoGetFlags { count_only: false };
    let request = Interface::PartitionInfoGet {
        uuid: MM_SERVICE,
        flags,
    };
    let Some(response) = ask_for_list::<C>(CALL, &request, limits)? else {
        // The RX page was not filled: it is not ours to release.
        return Ok(None);
    };
    let mut copy = [0; mm_wire::PAGE_LEN];
    let read = rx.read(0, &mut copy);
    expect_success::<C>("FFA_RX_RELEASE", &Interface::RxRelease { vm_id: 0 }, limits)?;

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

fn expect_success<C: Conduit>(
    call: &'static str,
    request: &Interface,
    limits: Limits,
) -> Result<(), SmcError> {
    match insist::<C>(call, request, limits)? {
        Interface::Success { .. } => Ok(()),
        response => Err(unexpected(call, &response)),
    }
}
