//! Calls the protocols as a driver in C does. An unsafe island (`docs/unsafe.md`).

use mm_comm::SharedRegion;
use mm_conformance::lab::{CCall, CProtocol, CReply};
use mm_runtime::protocols::{
    COMMUNICATION, COMMUNICATION2, COMMUNICATION3, Communication, Communication2, Communication3,
};
use mm_wire::EfiStatus;
use r_efi::efi;
use std::ffi::c_void;
use std::ptr;

/// The addresses of the caller's buffer.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) physical: usize,
    pub(crate) virt: usize,
}

/// The protocol that a call goes through.
pub(crate) fn guid(protocol: CProtocol) -> efi::Guid {
    match protocol {
        CProtocol::One => COMMUNICATION,
        CProtocol::Two | CProtocol::TwoApart | CProtocol::TwoInPlace(_) => COMMUNICATION2,
        CProtocol::Three | CProtocol::ThreeApart | CProtocol::ThreeInPlace(_) => COMMUNICATION3,
    }
}

/// Calls the interface at this address.
pub(crate) fn call(
    interface: usize,
    protocol: CProtocol,
    buffer: Addresses,
    comm_size: &mut Option<usize>,
) -> EfiStatus {
    let size = comm_size.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
    let physical = ptr::with_exposed_provenance_mut::<c_void>(buffer.physical);
    let virt = ptr::with_exposed_provenance_mut::<c_void>(buffer.virt);
    let guid = guid(protocol);
    let status = if guid == COMMUNICATION {
        let this = ptr::with_exposed_provenance::<Communication>(interface);
        // SAFETY: the driver's interface.
        let function = unsafe { (*this).communicate };
        // SAFETY: the buffer is as long as its header or `size` says, or null; the driver checks both.
        unsafe { function(this, virt, size) }
    } else if guid == COMMUNICATION2 {
        let this = ptr::with_exposed_provenance::<Communication2>(interface);
        // SAFETY: the driver's interface.
        let function = unsafe { (*this).communicate };
        // SAFETY: the buffer is as long as its header or `size` says, or null; the driver checks both.
        unsafe { function(this, physical, virt, size) }
    } else {
        let this = ptr::with_exposed_provenance::<Communication3>(interface);
        // SAFETY: the driver's interface.
        let function = unsafe { (*this).communicate };
        // SAFETY: the buffer is as long as its header says, or null; the driver checks that.
        unsafe { function(this, physical, virt) }
    };
    EfiStatus(status.as_usize() as u64)
}

/// Calls with the caller's bytes at the start of `memory`, which is the comm buffer, or with what is there.
pub(crate) fn call_in_place(
    interface: usize,
    memory: &SharedRegion,
    buffer: Addresses,
    call_: &CCall,
) -> Option<CReply> {
    let mut comm_size = call_.comm_size;
    let len = call_.bytes.as_ref().map(Vec::len).or(comm_size)?;
    let mut bytes = vec![0; len];
    if !call_.bytes.as_ref().is_none_or(|bytes| memory.write(0, bytes)) {
        return None;
    }
    let status = call(interface, call_.protocol, buffer, &mut comm_size);
    memory.read(0, &mut bytes).then_some(CReply {
        status,
        bytes,
        comm_size,
    })
}
