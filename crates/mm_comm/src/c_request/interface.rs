//! The protocols as C sees them, and the functions that C calls. An unsafe island
//! (`docs/unsafe.md`): it gets C's pointers, reads and writes CommSize, and makes the region
//! through which all the rest reads and writes the caller's buffer.

use super::{Given, Refused, Reply, RequestError};
use crate::region::SharedRegion;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ptr;
use mm_wire::{EfiStatus, Guid, HeaderFormat, protocol};
use r_efi::efi;

/// `EFI_MM_COMMUNICATION_PROTOCOL` (PI 1.9, volume 4, 5.7.1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication {
    /// Sends what is at `comm_buffer`. `comm_size`, which may be null, points to the number of
    /// bytes, header included, and is set to the response's.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication,
        comm_buffer: *mut c_void,
        comm_size: *mut usize,
    ) -> efi::Status,
}

/// `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4, 5.7.4).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication2 {
    /// Like [`Communication::communicate`], with the buffer's physical and virtual address.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication2,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
        comm_size: *mut usize,
    ) -> efi::Status,
}

/// `EFI_MM_COMMUNICATION3_PROTOCOL` (PI 1.9, volume 4, 5.7.5).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Communication3 {
    /// Like [`Communication2::communicate`], for v3 headers, which have the size.
    pub communicate: unsafe extern "efiapi" fn(
        this: *const Communication3,
        comm_buffer_physical: *mut c_void,
        comm_buffer_virtual: *mut c_void,
    ) -> efi::Status,
}

/// What serves the calls of C drivers.
pub trait Driver: Sized {
    /// Serves a call, by [`Call::serve`].
    fn serve(&self, call: Call<'_>) -> efi::Status;

    /// A caller passed a null `This`, so that no driver can be found. It gets
    /// `EFI_INVALID_PARAMETER`.
    fn this_is_null() {}
}

/// The three interfaces, and the driver behind them. A caller's `This` points to one of the
/// interfaces, and so leads to the driver.
#[derive(Debug)]
#[repr(C)]
pub struct Interfaces<D> {
    one: Communication,
    two: Communication2,
    three: Communication3,
    driver: D,
}

impl<D: Driver> Interfaces<D> {
    /// Interfaces whose calls `driver` serves.
    #[must_use]
    pub const fn new(driver: D) -> Self {
        Self {
            one: Communication {
                communicate: communicate1::<D>,
            },
            two: Communication2 {
                communicate: communicate2::<D>,
            },
            three: Communication3 {
                communicate: communicate3::<D>,
            },
            driver,
        }
    }

    /// The driver.
    #[must_use]
    pub const fn driver(&self) -> &D {
        &self.driver
    }

    /// What to install: GUID and address of each interface.
    ///
    /// # Safety
    ///
    /// `block` is valid for as long as one of these addresses is known to C, or to the protocol
    /// database.
    pub unsafe fn to_install(block: *mut Self) -> [(Guid, *mut c_void); 3] {
        // The functions get these addresses back from C.
        block.expose_provenance();
        let interface = |offset| block.cast::<c_void>().wrapping_byte_add(offset);
        [
            (protocol::COMMUNICATION, interface(offset_of!(Self, one))),
            (protocol::COMMUNICATION2, interface(offset_of!(Self, two))),
            (protocol::COMMUNICATION3, interface(offset_of!(Self, three))),
        ]
    }

    /// Converts the addresses of the interfaces' functions. One that `convert` returns `None` for
    /// stays as it is.
    ///
    /// # Safety
    ///
    /// `block` is valid, and nothing else accesses it meanwhile. What `convert` returns is the
    /// address under which C will find the function.
    pub unsafe fn convert(block: *mut Self, convert: &mut dyn FnMut(usize) -> Option<usize>) {
        for offset in [
            offset_of!(Self, one),
            offset_of!(Self, two),
            offset_of!(Self, three),
        ] {
            // Each interface is one pointer to a function.
            let function = block.cast::<usize>().wrapping_byte_add(offset);
            // SAFETY: a field of the block, which is valid by the caller's promise.
            let address = unsafe { function.read() };
            if let Some(converted) = convert(address) {
                // SAFETY: a field of the block, which nothing else accesses by the caller's
                // promise.
                unsafe { function.write(converted) };
            }
        }
    }
}

/// One call of a C driver, while it lasts.
///
/// Holding one proves what the protocols demand of their callers:
///
/// - CommSize is null, or valid for reads and writes.
/// - The buffer is null, or valid under its virtual address for reads and writes of CommSize bytes;
///   without CommSize, of the header, and of as many bytes as it counts.
/// - There is no reference to either while the call lasts.
#[derive(Debug)]
pub struct Call<'c> {
    /// `None` if the protocol has no physical address.
    physical: Option<*mut c_void>,
    virt: *mut c_void,
    comm_size: *mut usize,
    /// The one format that the protocol takes.
    only: Option<HeaderFormat>,
    lasts: PhantomData<&'c ()>,
}

impl Call<'_> {
    /// Lets `respond` serve the request, and writes CommSize back. `refused` gets what is wrong
    /// with the request.
    ///
    /// `one_to_one` says that all memory is mapped one to one: then physical and virtual address
    /// must be the same.
    pub fn serve(
        self,
        one_to_one: bool,
        respond: impl FnOnce(&Given<'_>) -> Result<Reply, Refused>,
        refused: impl FnOnce(&RequestError),
    ) -> efi::Status {
        let Self {
            virt,
            comm_size,
            only,
            ..
        } = self;
        let has_size = !comm_size.is_null();
        let reply = self.check_addresses(one_to_one).and_then(|()| {
            // SAFETY: a pointer that is not null is valid, by the type's invariant.
            let comm_size = has_size.then(|| unsafe { comm_size.read_unaligned() });
            // SAFETY: valid bytes, to which there is no reference, by the type's invariant.
            let memory = |len| unsafe { SharedRegion::new(virt.cast(), len) }.ok();
            respond(&Given::new(comm_size, only, &memory))
        });
        let reply = reply.unwrap_or_else(|Refused { error, reply }| {
            refused(&error);
            reply
        });
        if let Some(size) = reply.comm_size.filter(|_| has_size) {
            // SAFETY: a pointer that is not null is valid, by the type's invariant.
            unsafe { comm_size.write_unaligned(size) };
        }
        status_for_c(reply.status)
    }

    fn check_addresses(&self, one_to_one: bool) -> Result<(), Refused> {
        let (physical, virt) = (self.physical.unwrap_or(self.virt), self.virt);
        let error = if one_to_one && physical != virt {
            RequestError::Addresses {
                physical: physical.addr(),
                virt: virt.addr(),
            }
        } else if virt.is_null() || physical.is_null() {
            RequestError::NullBuffer
        } else {
            return Ok(());
        };
        Err(Refused::invalid(error))
    }
}

/// A status in C's type.
#[must_use]
pub fn status_for_c(status: EfiStatus) -> efi::Status {
    efi::Status::from_usize(status.to_native())
}

unsafe extern "efiapi" fn communicate1<D: Driver>(
    this: *const Communication,
    comm_buffer: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    let call = Call {
        physical: None,
        virt: comm_buffer,
        comm_size,
        only: None,
        lasts: PhantomData,
    };
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    unsafe { serve::<D>(this.addr(), offset_of!(Interfaces<D>, one), call) }
}

unsafe extern "efiapi" fn communicate2<D: Driver>(
    this: *const Communication2,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    let call = Call {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
        comm_size,
        only: None,
        lasts: PhantomData,
    };
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    unsafe { serve::<D>(this.addr(), offset_of!(Interfaces<D>, two), call) }
}

unsafe extern "efiapi" fn communicate3<D: Driver>(
    this: *const Communication3,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
) -> efi::Status {
    let call = Call {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
        comm_size: ptr::null_mut(),
        only: Some(HeaderFormat::V3),
        lasts: PhantomData,
    };
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1).
    unsafe { serve::<D>(this.addr(), offset_of!(Interfaces<D>, three), call) }
}

/// Finds the driver, and lets it serve the call.
///
/// # Safety
///
/// `this` is null, or the address of the interface at `offset` of an [`Interfaces`] whose addresses
/// [`Interfaces::to_install`] gave away.
unsafe fn serve<D: Driver>(this: usize, offset: usize, call: Call<'_>) -> efi::Status {
    let block = this.checked_sub(offset).filter(|block| *block != 0);
    let Some(block) = block.filter(|_| this != 0) else {
        D::this_is_null();
        return efi::Status::INVALID_PARAMETER;
    };
    // By address: a caller in Rust may have made `This` from a reference to the interface alone,
    // whose provenance does not cover the rest of the block.
    let block = ptr::with_exposed_provenance::<Interfaces<D>>(block);
    // SAFETY:
    // 1. `block` is an `Interfaces<D>`, by the caller's promise: it is where `This` has its
    //    function from.
    // 2. It is still valid, by the promise of `to_install`'s caller, who also exposed its
    //    provenance.
    // 3. Only `convert` changes the interfaces. The reference is to the driver alone, which nothing
    //    changes but itself.
    let driver = unsafe { &(*block).driver };
    driver.serve(call)
}
