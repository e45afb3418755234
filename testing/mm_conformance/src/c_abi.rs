//! Calls the protocols for C as a driver in C does: a located interface, raw pointers, a status. An
//! unsafe island (`docs/unsafe.md`).

use crate::lab::{CCall, CProtocol, CReply};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{from_mut, null_mut};
use mm_comm::SharedRegion;
use mm_comm::c_request::{Communication, Communication2, Communication3};
use mm_wire::EfiStatus;
use patina::BinaryGuid;
use patina::component::service::uefi_services::protocol::ProtocolServices;
use patina::protocol::ProtocolInterface;
use patina_mm::component::protocols;

/// How far the addresses of [`CProtocol::TwoApart`] are apart.
const APART: usize = 8;

/// A caller's buffer: its physical address, and where the caller reaches it.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The physical address.
    pub physical: *mut c_void,
    /// The virtual address.
    pub virt: *mut c_void,
}

impl Addresses {
    /// A buffer that is mapped one to one.
    const fn same(at: *mut c_void) -> Self {
        Self {
            physical: at,
            virt: at,
        }
    }
}

/// The GUID of a protocol.
#[must_use]
pub const fn guid(protocol: CProtocol) -> BinaryGuid {
    match protocol {
        CProtocol::One => protocols::Communication::PROTOCOL_GUID,
        CProtocol::Two | CProtocol::TwoApart | CProtocol::TwoInPlace(_) => {
            protocols::Communication2::PROTOCOL_GUID
        }
        CProtocol::Three | CProtocol::ThreeApart | CProtocol::ThreeInPlace(_) => {
            protocols::Communication3::PROTOCOL_GUID
        }
    }
}

/// Calls the function of an interface.
///
/// # Safety
///
/// `interface` is one of the protocol with this [`guid`]. The buffer is null, or as long as its
/// header or `comm_size` says, and nothing refers to it.
pub unsafe fn invoke(
    interface: *const c_void,
    protocol: CProtocol,
    buffer: Addresses,
    comm_size: &mut Option<usize>,
) -> EfiStatus {
    let size = comm_size.as_mut().map_or(null_mut(), from_mut);
    let Addresses { physical, virt } = buffer;
    let status = match protocol {
        CProtocol::One => {
            let this = interface.cast::<Communication>();
            // SAFETY: the caller's promise.
            let function = unsafe { (*this).communicate };
            // SAFETY: the caller's promise; protocol 1 takes the address at which it reaches the
            // buffer.
            unsafe { function(this, virt, size) }
        }
        CProtocol::Two | CProtocol::TwoApart | CProtocol::TwoInPlace(_) => {
            let this = interface.cast::<Communication2>();
            // SAFETY: the caller's promise.
            let function = unsafe { (*this).communicate };
            // SAFETY: the caller's promise.
            unsafe { function(this, physical, virt, size) }
        }
        CProtocol::Three | CProtocol::ThreeApart | CProtocol::ThreeInPlace(_) => {
            let this = interface.cast::<Communication3>();
            // SAFETY: the caller's promise.
            let function = unsafe { (*this).communicate };
            // SAFETY: the caller's promise.
            unsafe { function(this, physical, virt) }
        }
    };
    EfiStatus::from_native(status.as_usize())
}

/// Makes a call of protocol 2 or 3 with the caller's bytes at the start of `memory`, or with the
/// bytes that are there already; `None` if the protocol is not installed, or if the bytes do not
/// fit.
#[must_use]
pub fn call_in_place(
    protocols: &dyn ProtocolServices,
    memory: &SharedRegion,
    call: &CCall,
) -> Option<CReply> {
    let interface = protocols.locate_interface(guid(call.protocol)).ok()?.as_raw();
    let buffer = Addresses::same(memory.as_ptr().cast());
    in_place(memory, call, |comm_size| {
        // SAFETY: the database has this interface for this GUID. The memory is as long as the
        // caller's bytes say, and reached through volatile accesses only.
        unsafe { invoke(interface, call.protocol, buffer, comm_size) }
    })
}

/// Puts the caller's bytes at the start of `memory`, makes the call, and reads them back; `None` if
/// they do not fit.
#[must_use]
pub fn in_place(
    memory: &SharedRegion,
    call: &CCall,
    invoke: impl FnOnce(&mut Option<usize>) -> EfiStatus,
) -> Option<CReply> {
    let mut comm_size = call.comm_size;
    let len = call.bytes.as_ref().map(Vec::len).or(comm_size)?;
    let mut bytes = alloc::vec![0; len];
    if !call.bytes.as_ref().is_none_or(|bytes| memory.write(0, bytes)) {
        return None;
    }
    let status = invoke(&mut comm_size);
    memory.read(0, &mut bytes).then_some(CReply {
        status,
        bytes,
        comm_size,
    })
}

/// Makes a call; `None` if the protocol is not installed.
#[must_use]
pub fn call(protocols: &dyn ProtocolServices, call: &CCall) -> Option<CReply> {
    if let CProtocol::TwoInPlace(_) | CProtocol::ThreeInPlace(_) = call.protocol {
        return None;
    }
    let interface = protocols.locate_interface(guid(call.protocol)).ok()?.as_raw();
    let is_apart = matches!(call.protocol, CProtocol::TwoApart | CProtocol::ThreeApart);
    Some(elsewhere(call, |buffer, comm_size| {
        let addresses = match is_apart {
            true => Addresses {
                physical: buffer,
                virt: buffer.wrapping_byte_add(APART),
            },
            false => Addresses::same(buffer),
        };
        // SAFETY: the database has this interface for this GUID. The buffer is null, or as long as
        // its header or `comm_size` says; the producer checks both.
        unsafe { invoke(interface, call.protocol, addresses, comm_size) }
    }))
}

/// Makes a call with the caller's bytes in memory of exactly their length, or with a null pointer.
pub fn elsewhere(call: &CCall, invoke: impl FnOnce(*mut c_void, &mut Option<usize>) -> EfiStatus) -> CReply {
    let mut bytes = call.bytes.clone();
    let mut comm_size = call.comm_size;
    let buffer = bytes
        .as_mut()
        .map_or(null_mut(), |bytes| bytes.as_mut_ptr().cast::<c_void>());
    buffer.expose_provenance();
    let status = invoke(buffer, &mut comm_size);
    CReply {
        status,
        bytes: bytes.unwrap_or_default(),
        comm_size,
    }
}
