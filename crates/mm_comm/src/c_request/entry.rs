//! The entry for a driver's pointers. An unsafe island (`docs/unsafe.md`): it reads and writes CommSize, and makes the region that
//! all the rest reads and writes the caller's buffer through.

use super::{Memory, Reply, RequestError};
use crate::region::SharedRegion;
use core::ffi::c_void;
use mm_wire::EfiStatus;

/// The addresses that a caller gives.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// The physical address; `None` if the protocol has none.
    pub physical: Option<*mut c_void>,
    /// The address under which the caller reaches it.
    pub virt: *mut c_void,
}

/// Serves a call of one of the protocols: reads CommSize, lets `response` serve the request, writes CommSize back.
///
/// `one_to_one` says that all memory is mapped so: then physical and virtual address must be the same.
///
/// # Safety
///
/// `comm_size` is null, or valid for reads and writes. The buffer is null, or valid for reads and writes of `*comm_size` bytes
/// under its virtual address; without `comm_size`, of as many as the header there counts, and of the header. There is no
/// reference to it while the call lasts.
pub unsafe fn serve(
    buffer: Buffer,
    comm_size: *mut usize,
    one_to_one: bool,
    response: impl FnOnce(Result<(Option<usize>, &Memory<'_>), RequestError>) -> Reply,
) -> EfiStatus {
    let Buffer { physical, virt } = buffer;
    let error = match physical {
        Some(physical) if one_to_one && physical != virt => Some(RequestError::Addresses {
            physical: physical.addr(),
            virt: virt.addr(),
        }),
        _ if virt.is_null() || physical.is_some_and(<*mut c_void>::is_null) => Some(RequestError::NullBuffer),
        _ => None,
    };
    if let Some(error) = error {
        return response(Err(error)).status;
    }
    let given = match comm_size.is_null() {
        true => None,
        // SAFETY: the caller's promise for a pointer that is not null.
        false => Some(unsafe { comm_size.read_unaligned() }),
    };
    // SAFETY: the caller's promise: that many bytes are valid, and there is no reference to them while the call lasts.
    let memory = |len| unsafe { SharedRegion::new(virt.cast(), len) }.ok();
    let reply = response(Ok((given, &memory)));
    if let Some(size) = reply.comm_size.filter(|_| !comm_size.is_null()) {
        // SAFETY: the caller's promise for a pointer that is not null.
        unsafe { comm_size.write_unaligned(size) };
    }
    reply.status
}
