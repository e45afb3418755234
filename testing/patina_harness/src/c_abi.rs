//! Calls the protocols for C as a driver in C does: a located interface, raw pointers, a status.

use core::ffi::c_void;
use core::ptr::{from_ref, null_mut};
use mm_comm::SharedRegion;
use mm_conformance::lab::{CCall, CProtocol, CReply};
use mm_wire::EfiStatus;
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt};
use patina_mm::component::protocols::{Communication, Communication2, Communication3};

/// How far the addresses of [`CProtocol::TwoApart`] are apart.
const APART: usize = 8;

/// Makes a call of protocol 2 or 3 with the caller's bytes in `memory`, or with what is there; `None` if the protocol is not
/// installed, or if they do not fit.
#[must_use]
pub fn call_in_place(
    protocols: &dyn ProtocolServices,
    memory: &SharedRegion,
    call: &CCall,
) -> Option<CReply> {
    let mut comm_size = call.comm_size;
    let len = call.bytes.as_ref().map(alloc::vec::Vec::len).or(comm_size)?;
    let mut bytes = alloc::vec![0; len];
    if !call.bytes.as_ref().is_none_or(|bytes| memory.write(0, bytes)) {
        return None;
    }
    let buffer = memory.as_ptr().cast();
    let size = comm_size.as_mut().map_or(null_mut(), core::ptr::from_mut);
    let status = match call.protocol {
        CProtocol::ThreeInPlace(_) => protocols.with_protocol(|three: &Communication3| {
            // SAFETY: the memory is as long as its header says, and reached through volatile accesses only.
            unsafe { (three.0.communicate)(from_ref(&three.0), buffer, buffer) }
        }),
        _ => protocols.with_protocol(|two: &Communication2| {
            // SAFETY: the memory is as long as `size` says, or its header, and reached through volatile accesses only.
            unsafe { (two.0.communicate)(from_ref(&two.0), buffer, buffer, size) }
        }),
    };
    memory.read(0, &mut bytes).then_some(CReply {
        status: EfiStatus::from_native(status.ok()?.as_usize()),
        bytes,
        comm_size,
    })
}

/// Makes a call; `None` if the protocol is not installed.
#[must_use]
pub fn call(protocols: &dyn ProtocolServices, call: &CCall) -> Option<CReply> {
    let mut bytes = call.bytes.clone();
    let mut comm_size = call.comm_size;
    let buffer = bytes
        .as_mut()
        .map_or(null_mut(), |bytes| bytes.as_mut_ptr().cast::<c_void>());
    let size = comm_size.as_mut().map_or(null_mut(), core::ptr::from_mut);
    let apart = buffer.wrapping_byte_add(APART);
    let status = match call.protocol {
        CProtocol::TwoInPlace(_) | CProtocol::ThreeInPlace(_) => return None,
        CProtocol::One => protocols.with_protocol(|one: &Communication| {
            // SAFETY: the buffer is as long as its header or `size` says, or null; the producer checks both.
            unsafe { (one.0.communicate)(from_ref(&one.0), buffer, size) }
        }),
        CProtocol::Two | CProtocol::TwoApart => protocols.with_protocol(|two: &Communication2| {
            let other = if call.protocol == CProtocol::Two {
                buffer
            } else {
                apart
            };
            // SAFETY: the buffer is as long as its header or `size` says, or null; the producer checks both.
            unsafe { (two.0.communicate)(from_ref(&two.0), buffer, other, size) }
        }),
        CProtocol::Three | CProtocol::ThreeApart => protocols.with_protocol(|three: &Communication3| {
            let other = if call.protocol == CProtocol::Three {
                buffer
            } else {
                apart
            };
            // SAFETY: the buffer is as long as its header says, or null; the producer checks that.
            unsafe { (three.0.communicate)(from_ref(&three.0), buffer, other) }
        }),
    };
    Some(CReply {
        status: EfiStatus::from_native(status.ok()?.as_usize()),
        bytes: bytes.unwrap_or_default(),
        comm_size,
    })
}
