//! Where drivers in C come in. An unsafe island (`docs/unsafe.md`): they call it with their pointers.

use super::bridge::{Bridge, answer};
use crate::component::protocols::{Communication, Communication2, Communication3};
use crate::config::HeaderFormat;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::ffi::c_void;
use mm_comm::c_request::{self, Buffer, Memory, Reply, RequestError};
use mm_wire::EfiStatus;
use patina::BinaryGuid;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolError, ProtocolPtr, ProtocolServices,
};
use patina::protocol::ProtocolInterface;
use patina::standard::efi;

/// An interface as it is installed. The caller's `This` points to the first field, and so to all of it.
#[repr(C)]
struct Produced<P> {
    interface: P,
    bridge: Rc<Bridge>,
}

/// Installs protocols 1 and 2, and protocol 3 if that is wanted, on one handle, or none.
pub(super) fn install(
    protocols: &Service<dyn ProtocolServices>,
    bridge: &Rc<Bridge>,
    with_protocol3: bool,
) -> Result<Handle, ProtocolError> {
    let first = Communication {
        communicate: communicate1,
    };
    let second = Communication2 {
        communicate: communicate2,
    };
    let third = Communication3 {
        communicate: communicate3,
    };
    let (handle, installed1) = install_one(protocols, None, first, bridge)?;
    let (_, installed2) = install_one(protocols, Some(handle), second, bridge)
        .inspect_err(|_| uninstall(protocols, handle, Communication::PROTOCOL_GUID, installed1))?;
    if with_protocol3 {
        install_one(protocols, Some(handle), third, bridge).inspect_err(|_| {
            uninstall(protocols, handle, Communication2::PROTOCOL_GUID, installed2);
            uninstall(protocols, handle, Communication::PROTOCOL_GUID, installed1);
        })?;
    }
    Ok(handle)
}

fn install_one<P: ProtocolInterface>(
    protocols: &Service<dyn ProtocolServices>,
    handle: Option<Handle>,
    interface: P,
    bridge: &Rc<Bridge>,
) -> Result<(Handle, ProtocolPtr), ProtocolError> {
    let bridge = Rc::clone(bridge);
    let produced = Box::into_raw(Box::new(Produced { interface, bridge }));
    produced.expose_provenance();
    let pointer = ProtocolPtr::from_raw(produced.cast()).ok_or(ProtocolError::Internal)?;
    match protocols.install_interface(handle, P::PROTOCOL_GUID, pointer) {
        // Never freed: a caller may keep the interface for as long as it lives.
        Ok(handle) => Ok((handle, pointer)),
        Err(error) => {
            // SAFETY: it came from `Box::into_raw`, and the database refused it.
            drop(unsafe { Box::from_raw(produced) });
            Err(error)
        }
    }
}

fn uninstall(
    protocols: &Service<dyn ProtocolServices>,
    handle: Handle,
    guid: BinaryGuid,
    pointer: ProtocolPtr,
) {
    if let Err(error) = protocols.uninstall_interface(handle, guid, pointer) {
        log::error!(target: "mm_comm", "protocol {guid} stays installed: {error:?}");
    }
}

/// The bridge behind an interface.
///
/// # Safety
///
/// `this` is null, or an interface that [`install_one`] installed.
unsafe fn bridge_of<'a, P>(this: *const P) -> Option<&'a Bridge> {
    if this.is_null() {
        log::error!(target: "mm_comm", "caller: the protocol's This is null");
        return None;
    }
    // By address: a caller in Rust may have come here from a reference to the interface, and no further.
    let produced = core::ptr::with_exposed_provenance::<Produced<P>>(this.addr());
    // SAFETY: the caller's promise: `this` is the first field of a `Produced<P>` that is never freed and never changed,
    // and whose provenance was exposed.
    Some(unsafe { &(*produced).bridge })
}

unsafe extern "efiapi" fn communicate1(
    this: *const Communication,
    comm_buffer: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    let buffer = Buffer {
        physical: None,
        virt: comm_buffer,
    };
    // SAFETY: the protocol's caller passes a buffer and its size, as PI 1.9 describes them.
    unsafe { serve(bridge, buffer, comm_size, None) }
}

unsafe extern "efiapi" fn communicate2(
    this: *const Communication2,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    let buffer = Buffer {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
    };
    // SAFETY: the protocol's caller passes a buffer and its size, as PI 1.9 describes them.
    unsafe { serve(bridge, buffer, comm_size, None) }
}

unsafe extern "efiapi" fn communicate3(
    this: *const Communication3,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
) -> efi::Status {
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    let bridge = unsafe { bridge_of(this) };
    let buffer = Buffer {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
    };
    let no_size = core::ptr::null_mut();
    // SAFETY: the protocol's caller passes a buffer, as PI 1.9 describes it. A null size is not used.
    unsafe { serve(bridge, buffer, no_size, Some(HeaderFormat::V3)) }
}

/// Serves a call of any of the three protocols.
///
/// # Safety
///
/// That of [`c_request::serve`].
unsafe fn serve(
    bridge: Option<&Bridge>,
    buffer: Buffer,
    comm_size: *mut usize,
    only: Option<HeaderFormat>,
) -> efi::Status {
    let Some(bridge) = bridge else {
        return efi::Status::INVALID_PARAMETER;
    };
    let response = |given: Result<(Option<usize>, &Memory<'_>), RequestError>| match given {
        Ok((comm_size, memory)) => answer(bridge, comm_size, only, memory),
        Err(error) => {
            log::error!(target: "mm_comm", "{error}");
            Reply::status(EfiStatus::INVALID_PARAMETER)
        }
    };
    // SAFETY: the caller's promise.
    let status = unsafe { c_request::serve(buffer, comm_size, true, response) };
    usize::try_from(status.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::communicator::MockMmCommunication;
    use crate::service::MmCommunication;
    use patina::component::service::uefi_services::protocol::MockProtocolServices;

    fn handle() -> Handle {
        Handle::from_raw(core::ptr::dangling_mut()).unwrap()
    }

    #[test]
    fn all_wanted_protocols_are_installed_or_none() {
        for (wanted, failing) in [(3, 0), (3, 1), (3, 2), (3, 3), (2, 1), (2, 2)] {
            let mut protocols = MockProtocolServices::new();
            let mut installed = 0;
            protocols
                .expect_install_interface()
                .times(wanted.min(failing + 1))
                .returning_st(move |at, _, _| {
                    assert_eq!(at, (installed > 0).then(handle));
                    installed += 1;
                    (installed - 1 != failing)
                        .then(handle)
                        .ok_or(ProtocolError::OutOfResources)
                });
            let taken_back = if failing == wanted { 0 } else { failing };
            protocols
                .expect_uninstall_interface()
                .times(taken_back)
                .returning(|_, _, _| Ok(()));
            let mm: Box<dyn MmCommunication> = Box::new(MockMmCommunication::new());
            let bridge = Rc::new(Bridge::new(Service::mock(mm), 0, None).unwrap());
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let installed = install(&Service::mock(protocols), &bridge, wanted == 3);
            assert_eq!(installed.is_ok(), failing == wanted);
            // A caller that located an interface which was taken back may still call it; one that was refused is gone.
            assert_eq!(Rc::strong_count(&bridge), 1 + failing);
        }
    }

    #[test]
    fn null_this_is_refused() {
        let mut bytes = [0_u8; 32];
        let buffer = (&raw mut bytes).cast();
        // SAFETY: the buffer is valid; a null `This` is what the function has to notice.
        let status = unsafe { communicate1(core::ptr::null(), buffer, core::ptr::null_mut()) };
        assert_eq!(status, efi::Status::INVALID_PARAMETER);
    }
}
