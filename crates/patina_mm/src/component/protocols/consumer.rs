//! Sends through the protocol that the firmware has. An unsafe island (`docs/unsafe.md`): it calls a C function.

use super::{Communication2, Communication3};
use crate::component::communicator::{MmCommunicator, MmExecutor, Status};
use crate::config::{CommunicateBuffer, CommunicateBufferStatus, HeaderFormat};
use core::ffi::c_void;
use core::fmt;
use mm_wire::Header;
use patina::component::component;
use patina::component::params::Commands;
use patina::component::protocol::Protocol;
use patina::component::service::Service;
use patina::component::service::memory::{AllocationOptions, MemoryManager};
use patina::component::service::uefi_services::protocol::{
    ProtocolError, ProtocolServices, ProtocolServicesExt,
};
use patina::error::EfiError;
use patina::uefi::memory::EfiMemoryType;

/// Has the firmware's own driver enter MM: messages with a v3 header go through `EFI_MM_COMMUNICATION3_PROTOCOL`, all others
/// through `EFI_MM_COMMUNICATION2_PROTOCOL`.
///
/// The protocol is looked up at each call, so that it may be installed at any time before. A comm buffer for this
/// executor is memory that the firmware's MM takes: RuntimeServicesData, as large as the longest response.
///
/// Protocol 2 says how long the response is. After protocol 3 its length is what BufferSize counts behind the header where the
/// driver has changed that, as edk2's Arm driver does, else what MessageSize says. A driver that changes neither has
/// answered as many bytes as were sent.
///
/// Either way a response is no longer than its request: that is all the room that the driver is told of, and a longer one is
/// its error, `EFI_BUFFER_TOO_SMALL` for instance. A request for more is padded by its caller.
#[derive(Clone, Copy)]
pub struct FirmwareMmExecutor {
    protocols: Service<dyn ProtocolServices>,
}

impl FirmwareMmExecutor {
    /// Makes an executor that looks the protocols up here.
    #[must_use]
    pub const fn new(protocols: Service<dyn ProtocolServices>) -> Self {
        Self { protocols }
    }

    /// Sends through protocol 2. Returns the response's bytes with the header: a claim.
    fn send2(&self, buffer: *mut c_void, len: usize) -> Result<u64, Status> {
        let mut comm_size = len;
        let status = self
            .protocols
            .with_protocol(|protocol: &Communication2| {
                let this = core::ptr::from_ref(protocol);
                // SAFETY: `this` is the interface that the function belongs to. A comm buffer is memory for MM without
                // references into it, by its own contract, and mapped one to one until the operating system takes over.
                unsafe { (protocol.communicate)(this, buffer, buffer, &raw mut comm_size) }
            })
            .map_err(unavailable)?;
        if status.is_error() {
            log::error!(target: "mm_comm", "the firmware's EFI_MM_COMMUNICATION2_PROTOCOL answered {status:?}");
            return Err(Status::MmReturned(status));
        }
        Ok(comm_size as u64)
    }

    /// Sends through protocol 3.
    fn send3(&self, buffer: *mut c_void) -> Result<(), Status> {
        let status = self
            .protocols
            .with_protocol(|protocol: &Communication3| {
                let this = core::ptr::from_ref(protocol);
                // SAFETY: as in `send2`.
                unsafe { (protocol.communicate)(this, buffer, buffer) }
            })
            .map_err(unavailable)?;
        if status.is_error() {
            log::error!(target: "mm_comm", "the firmware's EFI_MM_COMMUNICATION3_PROTOCOL answered {status:?}");
            return Err(Status::MmReturned(status));
        }
        Ok(())
    }
}

fn unavailable(error: ProtocolError) -> Status {
    log::error!(target: "mm_comm", "platform: the firmware has no MM communication protocol: {error:?}");
    Status::SwMmiServiceNotAvailable
}

fn unusable(error: CommunicateBufferStatus) -> Status {
    log::error!(target: "mm_comm", "{error}");
    Status::InvalidResponse
}

impl MmExecutor for FirmwareMmExecutor {
    fn execute_mm(&self, comm_buffer: &mut CommunicateBuffer) -> Result<(), Status> {
        let sent = comm_buffer
            .channel()
            .tracked()
            .ok_or(Status::CommBufferInitError)?;
        let buffer = comm_buffer.as_ptr().cast::<c_void>();
        let capacity = comm_buffer.len();
        let minimum = sent.format().header_len();
        let claimed = match sent.format() {
            HeaderFormat::V1 => {
                let len = usize::try_from(sent.total_len()).unwrap_or(capacity);
                self.send2(buffer, len)?
            }
            HeaderFormat::V3 => {
                self.send3(buffer)?;
                v3_total(comm_buffer, sent)?
            }
        };
        let total = usize::try_from(claimed)
            .ok()
            .filter(|total| *total <= capacity)
            .ok_or(Status::ResponseBeyondBuffer { claimed, capacity })?;
        let len = total
            .checked_sub(minimum)
            .ok_or(Status::ResponseBelowHeader { claimed, minimum })?;
        comm_buffer.accept_in_place(len).map_err(unusable)
    }
}

/// The bytes of the response with its header, as the v3 header claims that stands in the buffer now.
fn v3_total(comm_buffer: &CommunicateBuffer, sent: Header) -> Result<u64, Status> {
    const BUFFER_SIZE: usize = 16;
    const MESSAGE_SIZE: usize = 48;
    let field = |offset| {
        let mut bytes = [0; 8];
        let is_read = comm_buffer.channel().region().read(offset, &mut bytes);
        is_read.then(|| u64::from_le_bytes(bytes))
    };
    let total = sent.total_len();
    let buffer_size = field(BUFFER_SIZE).unwrap_or(total);
    if buffer_size != total {
        return Ok(buffer_size);
    }
    let message_size = field(MESSAGE_SIZE).unwrap_or(sent.message_len());
    let claimed = message_size.saturating_add(sent.format().header_len() as u64);
    if claimed > buffer_size {
        // A `u64` on a platform where that is longer than an address is more than any buffer has.
        let capacity = usize::try_from(buffer_size).unwrap_or(usize::MAX);
        return Err(Status::ResponseBeyondBuffer { claimed, capacity });
    }
    Ok(claimed)
}

impl fmt::Debug for FirmwareMmExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirmwareMmExecutor").finish_non_exhaustive()
    }
}

/// Component: offers [`MmCommunication`](crate::service::MmCommunication) on a platform whose MM belongs to a driver in C.
///
/// It stands in the place of `MmCommunicator` and `SwMmiManager`, needs no configuration, and allocates the one comm buffer
/// itself, from RuntimeServicesData. It is dispatched once the driver has installed `EFI_MM_COMMUNICATION2_PROTOCOL`, and so
/// are the components that ask for the service.
#[derive(Clone, Copy, Debug)]
pub struct FirmwareMmCommunication {
    id: u8,
    pages: usize,
}

#[component]
impl FirmwareMmCommunication {
    /// Makes the component, with a comm buffer of this identifier and of so many 4096-byte pages.
    #[must_use]
    pub const fn new(id: u8, pages: usize) -> Self {
        Self { id, pages }
    }

    fn entry_point(
        self,
        _driver: Protocol<Communication2>,
        protocols: Service<dyn ProtocolServices>,
        memory: Service<dyn MemoryManager>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let options = AllocationOptions::new().with_memory_type(EfiMemoryType::RuntimeServicesData);
        let allocation = memory
            .allocate_zero_pages(self.pages, options)
            .inspect_err(|error| {
                log::error!(target: "mm_comm", "no {} pages for a comm buffer: {error:?}", self.pages);
            })
            .map_err(EfiError::from)?;
        let len = allocation.byte_length();
        let base = allocation.into_raw_ptr::<u8>().ok_or(EfiError::OutOfResources)?;
        // SAFETY: the pages were just allocated, are never freed, and nobody else has a pointer to them.
        let buffer = unsafe { CommunicateBuffer::from_raw_parts(base, len, self.id) }.map_err(|error| {
            log::error!(target: "mm_comm", "the allocated pages are no comm buffer: {error}");
            EfiError::InvalidParameter
        })?;
        let communicator = MmCommunicator::with_executor(FirmwareMmExecutor::new(protocols));
        communicator.set_comm_buffers([buffer].into())?;
        commands.add_service(communicator);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::communicator::{CallOptions, MmCommunication};
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use alloc::vec;
    use core::cell::{Cell, RefCell};
    use core::pin::Pin;
    use patina::component::service::IntoService;
    use patina::component::service::memory::StdMemoryManager;
    use patina::component::service::uefi_services::protocol::{MockProtocolServices, ProtocolPtr};
    use patina::component::{IntoComponent, Storage};
    use patina::protocol::ProtocolInterface;
    use patina::standard::efi;

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

    /// What the driver returns: its status, and the size that it claims for that of the request.
    type Claim = (efi::Status, fn(usize) -> usize);

    std::thread_local! {
        static ANSWER: RefCell<Claim> = RefCell::new((efi::Status::SUCCESS, |size| size));
    }

    /// A driver that leaves the buffer as it is.
    unsafe extern "efiapi" fn driver(
        _: *const Communication2,
        physical: *mut c_void,
        virtual_: *mut c_void,
        size: *mut usize,
    ) -> efi::Status {
        assert_eq!(physical, virtual_);
        // SAFETY: the executor passes a pointer to its own variable.
        let request = unsafe { size.read() };
        let (status, claim) = ANSWER.with_borrow(|response| *response);
        // SAFETY: as above.
        unsafe { size.write(claim(request)) };
        status
    }

    std::thread_local! {
        /// What the driver writes to BufferSize and to MessageSize; `None` where there is no such driver.
        static SIZES: Cell<Option<[Option<u64>; 2]>> = const { Cell::new(None) };
    }

    /// A driver that changes a v3 header's sizes.
    unsafe extern "efiapi" fn driver3(
        _: *const Communication3,
        _: *mut c_void,
        buffer: *mut c_void,
    ) -> efi::Status {
        for (offset, size) in [16, 48].into_iter().zip(SIZES.get().unwrap_or_default()) {
            if let Some(size) = size {
                // SAFETY: the executor passes a buffer that starts with a v3 header.
                unsafe {
                    buffer
                        .wrapping_byte_add(offset)
                        .cast::<u64>()
                        .write_unaligned(size)
                };
            }
        }
        efi::Status::SUCCESS
    }

    #[test]
    fn a_v3_response_has_the_length_that_the_driver_changed() {
        let v3 = |sizes| {
            SIZES.set(Some(sizes));
            communicate((efi::Status::SUCCESS, |size| size), HeaderFormat::V3)
        };
        let beyond = |claimed, capacity| Err(Status::ResponseBeyondBuffer { claimed, capacity });
        assert_eq!(v3([None, None]), Ok(b"request".to_vec()));
        assert_eq!(v3([Some(59), None]), Ok(b"req".to_vec()));
        assert_eq!(v3([None, Some(3)]), Ok(b"req".to_vec()));
        assert_eq!(v3([Some(59), Some(100)]), Ok(b"req".to_vec()));
        assert_eq!(v3([Some(56), Some(3)]), Ok(vec![]));
        assert_eq!(v3([Some(70), None]).map(|response| response.len()), Ok(14));
        assert_eq!(
            v3([Some(55), Some(3)]),
            Err(Status::ResponseBelowHeader {
                claimed: 55,
                minimum: 56
            })
        );
        assert_eq!(v3([Some(4097), Some(3)]), beyond(4097, 4096));
        assert_eq!(v3([None, Some(8)]), beyond(64, 63));
        assert_eq!(v3([None, Some(u64::MAX)]), beyond(u64::MAX, 63));
    }

    fn communicate(response: Claim, header: HeaderFormat) -> Result<vec::Vec<u8>, Status> {
        static DRIVER: Communication2 = Communication2 { communicate: driver };
        static DRIVER3: Communication3 = Communication3 { communicate: driver3 };
        ANSWER.set(response);
        let mut protocols = MockProtocolServices::new();
        protocols.expect_locate_interface().returning(|guid| {
            let interface = match guid {
                Communication2::PROTOCOL_GUID => (&raw const DRIVER).cast_mut().cast(),
                Communication3::PROTOCOL_GUID if SIZES.get().is_some() => {
                    (&raw const DRIVER3).cast_mut().cast()
                }
                _ => core::ptr::null_mut(),
            };
            ProtocolPtr::from_raw(interface).ok_or(ProtocolError::NotFound)
        });
        let executor = FirmwareMmExecutor::new(Service::mock(Box::new(protocols)));
        let communicator = MmCommunicator::with_executor(executor);
        let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
        let buffer = CommunicateBuffer::new(Pin::new(memory), 0).with_header(header);
        communicator.set_test_comm_buffers(vec![buffer]);
        communicator.communicate(0, b"request", RECIPIENT.as_guid())
    }

    #[test]
    fn what_the_driver_claims_is_checked() {
        const OK: efi::Status = efi::Status::SUCCESS;
        let v1 = |response| communicate(response, HeaderFormat::V1);
        assert_eq!(v1((OK, |size| size)), Ok(b"request".to_vec()));
        assert_eq!(v1((OK, |size| size - 4)), Ok(b"req".to_vec()));
        assert_eq!(v1((OK, |_| 24)), Ok(vec![]));
        assert_eq!(
            v1((OK, |_| 23)),
            Err(Status::ResponseBelowHeader {
                claimed: 23,
                minimum: 24
            })
        );
        assert_eq!(
            v1((OK, |_| 4097)),
            Err(Status::ResponseBeyondBuffer {
                claimed: 4097,
                capacity: 4096
            })
        );
        assert_eq!(
            v1((efi::Status::NOT_FOUND, |size| size)),
            Err(Status::MmReturned(efi::Status::NOT_FOUND))
        );
    }

    /// A service that the SDK only has as a value.
    struct Offered<T: ?Sized + 'static>(&'static T);

    impl<T: ?Sized + 'static> IntoService for Offered<T> {
        fn register(self, storage: &mut Storage) {
            Self::register_service::<T>(storage, Box::leak(Box::new(self.0)));
        }
    }

    #[test]
    fn the_component_offers_the_service_with_memory_of_its_own() {
        let mut storage = Storage::new();
        let mut component = FirmwareMmCommunication::new(3, 2).into_component();
        assert!(component.initialize(&mut storage));
        assert!(!component.run(&mut storage).unwrap(), "it waits for its services");
        static DRIVER: Communication2 = Communication2 { communicate: driver };
        let installed = Rc::new(Cell::new(false));
        let is_installed = Rc::clone(&installed);
        let mut protocols = MockProtocolServices::new();
        protocols.expect_locate_interface().returning_st(move |guid| {
            (is_installed.get() && guid == Communication2::PROTOCOL_GUID)
                .then(|| ProtocolPtr::from_raw((&raw const DRIVER).cast_mut().cast()))
                .flatten()
                .ok_or(ProtocolError::NotFound)
        });
        storage.add_service(Offered::<dyn ProtocolServices>(Box::leak(Box::new(protocols))));
        storage.add_service(Offered::<dyn MemoryManager>(Box::leak(Box::new(
            StdMemoryManager::new(),
        ))));
        assert!(!component.run(&mut storage).unwrap(), "it waits for the driver");
        installed.set(true);
        assert!(component.run(&mut storage).unwrap());
        let mut user = User.into_component();
        assert!(user.initialize(&mut storage));
        assert!(user.run(&mut storage).unwrap(), "there is no service");
    }

    struct User;

    #[component]
    impl User {
        fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
            assert_eq!(mm.message_capacity(3, CallOptions::new()), Ok(8192 - 24));
            ANSWER.set((efi::Status::SUCCESS, |size| size));
            assert_eq!(mm.communicate(3, b"x", RECIPIENT.as_guid()), Ok(b"x".to_vec()));
            Ok(())
        }
    }

    #[test]
    fn a_protocol_that_is_not_there_is_an_error() {
        assert_eq!(
            communicate((efi::Status::SUCCESS, |size| size), HeaderFormat::V3),
            Err(Status::SwMmiServiceNotAvailable)
        );
    }
}
