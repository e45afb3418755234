//! Sends through the protocol that the firmware has. An unsafe island (`docs/unsafe.md`): it calls
//! a C function.

use super::driver_lock::DriverLock;
use super::{Communication2, Communication3};
use crate::component::communicator::{MmCommunicator, MmExecutor, Status, raise_to_notify};
use crate::config::{CommunicateBuffer, HeaderFormat};
use core::ffi::c_void;
use core::fmt;
#[cfg(doc)]
use mm_wire::Header;
use patina::component::component;
use patina::component::params::Commands;
use patina::component::protocol::Protocol;
use patina::component::service::Service;
use patina::component::service::memory::{AllocationOptions, MemoryManager};
use patina::component::service::uefi_services::protocol::{
    ProtocolError, ProtocolServices, ProtocolServicesExt,
};
use patina::component::service::uefi_services::tpl::TplServices;
use patina::error::EfiError;
use patina::standard::efi;
use patina::uefi::memory::EfiMemoryType;

/// Lets the firmware's own driver enter MM: messages with a v3 header go through
/// `EFI_MM_COMMUNICATION3_PROTOCOL`, all others through `EFI_MM_COMMUNICATION2_PROTOCOL`.
///
/// The protocol is looked up at each call, so that it may be installed at any time before. A comm
/// buffer for this executor is memory that the firmware's MM takes: RuntimeServicesData, as large
/// as the longest response.
///
/// # The response
///
/// | where the length is | length |
/// |---|---|
/// | CommSize, if the driver changed it: edk2's drivers for x86 do | CommSize without the header |
/// | else the header: edk2's driver for Arm leaves CommSize alone | what [`Header::response_length`] says |
///
/// If a driver changes neither, its response has as many bytes as the request. Protocol 3 has no
/// CommSize, and edk2's drivers for x86 leave the header alone: there each response has its
/// request's length.
///
/// Either way a response is no longer than its request: the driver only gets the request's size,
/// and a longer response is its error, `EFI_BUFFER_TOO_SMALL` for instance. A caller that expects a
/// longer response pads its request. Any status but success is an error, with or without the error
/// bit ([`EfiStatus::as_error`](mm_wire::EfiStatus::as_error)).
///
/// # One call at a time
///
/// A driver is not re-entrant: `MmCommunicationDxe` of edk2's StandaloneMmPkg has one shared
/// buffer, and if a second call comes in the middle of the first one, the first one copies the
/// second one's response, as long as that is, over its caller's buffer (tianocore/edk2#12463). So a
/// call that interrupts one through the same driver gets [`Status::Busy`], whatever comm buffer or
/// executor it goes through. With [`Self::with_tpl`] notifications wait until the driver is done.
///
/// A call of ours that interrupts a C driver's own call cannot be detected. Call from a
/// notification at `TPL_NOTIFY` only if the platform's C drivers raise the TPL to that level for
/// their own calls, as edk2's variable driver does.
#[derive(Clone, Copy)]
pub struct FirmwareMmExecutor {
    protocols: Service<dyn ProtocolServices>,
    tpl: Option<Service<dyn TplServices>>,
}

impl FirmwareMmExecutor {
    /// Makes an executor that looks the protocols up here.
    #[must_use]
    pub const fn new(protocols: Service<dyn ProtocolServices>) -> Self {
        Self { protocols, tpl: None }
    }

    /// Calls the driver at `TPL_NOTIFY`, so that no notification interrupts it: neither one that
    /// would make a call of ours, and get [`Status::Busy`], nor one of a driver in C that calls it
    /// directly.
    #[must_use]
    pub const fn with_tpl(self, tpl: Service<dyn TplServices>) -> Self {
        Self {
            tpl: Some(tpl),
            ..self
        }
    }

    /// Locks the driver. One driver has both protocols, so the address of one identifies it.
    fn lock(&self) -> Result<DriverLock, Status> {
        let two = |protocol: &Communication2| core::ptr::from_ref(protocol).addr();
        let three = |protocol: &Communication3| core::ptr::from_ref(protocol).addr();
        let interface = self
            .protocols
            .with_protocol(two)
            .or_else(|_missing| self.protocols.with_protocol(three))
            .map_err(unavailable)?;
        DriverLock::take(interface).ok_or(Status::Busy)
    }

    /// Sends through protocol 2. Returns CommSize.
    fn send2(&self, buffer: *mut c_void, len: usize) -> Result<usize, Status> {
        let mut comm_size = len;
        let status = self
            .protocols
            .with_protocol(|protocol: &Communication2| {
                let this = core::ptr::from_ref(&protocol.0);
                // SAFETY: `this` is the interface that the function belongs to. A comm buffer is
                // memory for MM without references into it, by its own contract, and mapped one to
                // one until the operating system takes over.
                unsafe { (protocol.0.communicate)(this, buffer, buffer, &raw mut comm_size) }
            })
            .map_err(unavailable)?;
        succeeded(status)?;
        Ok(comm_size)
    }

    /// Sends through protocol 3.
    fn send3(&self, buffer: *mut c_void) -> Result<(), Status> {
        let status = self
            .protocols
            .with_protocol(|protocol: &Communication3| {
                let this = core::ptr::from_ref(&protocol.0);
                // SAFETY: `this` is the interface that the function belongs to. A comm buffer is
                // memory for MM without references into it, by its own contract, and mapped one to
                // one until the operating system takes over.
                unsafe { (protocol.0.communicate)(this, buffer, buffer) }
            })
            .map_err(unavailable)?;
        succeeded(status)
    }
}

/// Checks a driver's status, which is its MM core's. Only success comes with a response.
fn succeeded(status: efi::Status) -> Result<(), Status> {
    if status == efi::Status::SUCCESS {
        return Ok(());
    }
    Err(Status::MmReturned(status))
}

/// The protocol is not installed.
fn unavailable(_: ProtocolError) -> Status {
    Status::SwMmiServiceNotAvailable
}

fn unusable<E: fmt::Display>(error: E) -> Status {
    log_line!(Error, "mm_comm", "{error}");
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
        let told = usize::try_from(sent.total_len()).unwrap_or(capacity);
        let raised = self.tpl.and_then(raise_to_notify);
        let lock = self.lock()?;
        let comm_size = match sent.format() {
            HeaderFormat::V1 => self.send2(buffer, told)?,
            HeaderFormat::V3 => {
                self.send3(buffer)?;
                told
            }
        };
        drop(lock);
        drop(raised);

        let (claimed, room) = if comm_size == told {
            let left = comm_buffer.response_in_header().map_err(unusable)?;
            let claimed = left.len.saturating_add(minimum as u64);
            // If a v1 header claims more than was sent, it counts bytes that did not come from MM:
            // edk2's MM for Arm copies back only as much as was sent.
            let room = match sent.format() {
                HeaderFormat::V1 => told,
                HeaderFormat::V3 => capacity,
            };
            (claimed, room)
        } else {
            (comm_size as u64, capacity)
        };
        let total = usize::try_from(claimed)
            .ok()
            .filter(|total| *total <= room)
            .ok_or(Status::ResponseBeyondBuffer {
                claimed,
                capacity: room,
            })?;
        let len = total
            .checked_sub(minimum)
            .ok_or(Status::ResponseBelowHeader { claimed, minimum })?;
        comm_buffer.accept_in_place(len).map_err(unusable)
    }

    fn explain(&self, status: Status, _: &CommunicateBuffer, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match status {
            Status::Busy => f.write_str(
                "caller: the firmware's MM communication driver is in use by a call that this one interrupted",
            ),
            Status::SwMmiServiceNotAvailable => f.write_str(
                "platform: the firmware has no EFI_MM_COMMUNICATION2_PROTOCOL or, for a v3 header, no \
                 EFI_MM_COMMUNICATION3_PROTOCOL",
            ),
            Status::MmReturned(_) => write!(f, "{status}, through the firmware's MM communication driver"),
            status => write!(f, "{status}"),
        }
    }
}

impl fmt::Debug for FirmwareMmExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirmwareMmExecutor").finish_non_exhaustive()
    }
}

/// Component: offers [`MmCommunication`](crate::service::MmCommunication) on a platform whose MM
/// belongs to a driver in C.
///
/// It replaces `MmCommunicator` and `SwMmiManager`, needs no configuration, and allocates the one
/// comm buffer itself, from RuntimeServicesData. It sends through a [`FirmwareMmExecutor`]. If the
/// SDK's `TplServices` are there, all of a call runs at `TPL_NOTIFY`, so that a notification is
/// served after it instead of being rejected in the middle of it. It is dispatched once the driver
/// has installed `EFI_MM_COMMUNICATION2_PROTOCOL`, and so are the components that ask for the
/// service.
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
        tpl: Option<Service<dyn TplServices>>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let options = AllocationOptions::new().with_memory_type(EfiMemoryType::RuntimeServicesData);
        let allocation = memory
            .allocate_zero_pages(self.pages, options)
            .inspect_err(|error| {
                log_line!(
                    Error,
                    "mm_comm",
                    "no {} pages for a comm buffer: {error:?}",
                    self.pages
                );
            })
            .map_err(EfiError::from)?;
        let len = allocation.byte_length();
        let base = allocation.into_raw_ptr::<u8>().ok_or(EfiError::OutOfResources)?;
        // SAFETY: the pages were just allocated, are never freed, and this is the only pointer to
        // them.
        let buffer = unsafe { CommunicateBuffer::from_raw_parts(base, len, self.id) }.map_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "the allocated pages cannot be a comm buffer: {error}"
            );
            EfiError::InvalidParameter
        })?;
        let communicator = MmCommunicator::with_executor(FirmwareMmExecutor::new(protocols));
        communicator.set_comm_buffers([buffer].into())?;
        // The whole call, not only the driver's part: a notification that comes before the response
        // is read would find the only comm buffer in use.
        match tpl {
            Some(tpl) => communicator.run_at_notify(self.id, tpl),
            None => log_line!(
                Warn,
                "mm_comm",
                "platform: there are no TplServices, so that calls through comm buffer {} do not run at TPL_NOTIFY: one from a \
                 notification gets Busy in the middle of another one, and a driver in C enters the firmware's MM communication \
                 driver there",
                self.id
            ),
        }
        commands.add_service(communicator);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::communicator::CallOptions;
    use crate::service::MmCommunication;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use alloc::vec;
    use core::cell::{Cell, RefCell};
    use core::pin::Pin;
    use mm_comm::c_request;
    use patina::component::service::IntoService;
    use patina::component::service::memory::StdMemoryManager;
    use patina::component::service::uefi_services::protocol::{MockProtocolServices, ProtocolPtr};
    use patina::component::{IntoComponent, Storage};
    use patina::protocol::ProtocolInterface;

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

    /// What the driver returns: its status, and the CommSize that it writes for that of the
    /// request.
    type Claim = (efi::Status, fn(usize) -> usize);

    const OK: efi::Status = efi::Status::SUCCESS;

    std::thread_local! {
        static CLAIM: Cell<Claim> = const { Cell::new((OK, |size| size)) };
        /// Code that runs in the middle of the next call of a driver.
        static HOOK: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
        /// What a driver writes to a header at 16 (MessageLength or BufferSize) and at 48
        /// (MessageSize); `None` if it has no protocol 3 and writes nothing.
        static FIELDS: Cell<Option<[Option<u64>; 2]>> = const { Cell::new(None) };
    }

    /// Writes the test's fields to the header in the comm buffer.
    fn write_fields(buffer: *mut c_void) {
        for (offset, value) in [16, 48].into_iter().zip(FIELDS.get().unwrap_or_default()) {
            if let Some(value) = value {
                let field = buffer.wrapping_byte_add(offset).cast::<u64>();
                // SAFETY: the executor passes a comm buffer, which is longer than any header.
                unsafe { field.write_unaligned(value) };
            }
        }
    }

    /// A driver that leaves all but those fields as it is.
    unsafe extern "efiapi" fn driver(
        _: *const c_request::Communication2,
        physical: *mut c_void,
        virtual_: *mut c_void,
        size: *mut usize,
    ) -> efi::Status {
        assert_eq!(physical, virtual_);
        // SAFETY: the executor passes a pointer to its own variable.
        let request = unsafe { size.read() };
        if let Some(hook) = HOOK.take() {
            hook();
        }
        let (status, claim) = CLAIM.get();
        write_fields(virtual_);
        // SAFETY: the executor passes a pointer to its own variable.
        unsafe { size.write(claim(request)) };
        status
    }

    /// The same driver's protocol 3.
    unsafe extern "efiapi" fn driver3(
        _: *const c_request::Communication3,
        _: *mut c_void,
        buffer: *mut c_void,
    ) -> efi::Status {
        write_fields(buffer);
        CLAIM.get().0
    }

    const DRIVER: Communication2 = Communication2(c_request::Communication2 { communicate: driver });
    const DRIVER3: Communication3 = Communication3(c_request::Communication3 { communicate: driver3 });

    #[test]
    fn v3_response_has_the_length_that_the_driver_changed() {
        let v3 = |fields| {
            FIELDS.set(Some(fields));
            communicate((OK, |size| size), HeaderFormat::V3)
        };
        assert_eq!(v3([None, None]), Ok(b"request".to_vec()));
        assert_eq!(v3([Some(59), None]), Ok(b"req".to_vec()));
        assert_eq!(v3([None, Some(3)]), Ok(b"req".to_vec()));
        assert_eq!(v3([Some(59), Some(100)]), Ok(b"req".to_vec()));
        assert_eq!(v3([Some(56), Some(3)]), Ok(vec![]));
        assert_eq!(v3([Some(70), None]).map(|response| response.len()), Ok(14));
        assert_eq!(
            v3([Some(4097), Some(3)]),
            Err(Status::ResponseBeyondBuffer {
                claimed: 4097,
                capacity: 4096
            })
        );
        for impossible in [[Some(55), Some(3)], [None, Some(8)], [None, Some(u64::MAX)]] {
            assert_eq!(v3(impossible), Err(Status::InvalidResponse));
        }
    }

    /// `MmCommunicationCommon` in edk2's ArmPkg/Drivers/MmCommunicationDxe gives its caller the
    /// header that MM left, and does not write CommSize.
    #[test]
    fn v1_response_has_the_length_in_the_header_if_comm_size_is_unchanged() {
        let arm = |message_length| {
            FIELDS.set(Some([Some(message_length), None]));
            communicate((OK, |size| size), HeaderFormat::V1)
        };
        assert_eq!(arm(7), Ok(b"request".to_vec()));
        assert_eq!(arm(3), Ok(b"req".to_vec()));
        assert_eq!(arm(0), Ok(vec![]));
        assert_eq!(
            arm(8),
            Err(Status::ResponseBeyondBuffer {
                claimed: 32,
                capacity: 31
            })
        );
        assert_eq!(arm(u64::MAX), Err(Status::InvalidResponse));
        // If the driver writes CommSize as well, CommSize counts.
        FIELDS.set(Some([Some(5), None]));
        assert_eq!(
            communicate((OK, |size| size - 4), HeaderFormat::V1),
            Ok(b"req".to_vec())
        );
    }

    /// An executor over a new driver.
    fn executor() -> FirmwareMmExecutor {
        let two: &'static Communication2 = Box::leak(Box::new(DRIVER));
        let three: &'static Communication3 = Box::leak(Box::new(DRIVER3));
        let mut protocols = MockProtocolServices::new();
        protocols.expect_locate_interface().returning(move |guid| {
            let interface = match guid {
                Communication2::PROTOCOL_GUID => core::ptr::from_ref(two).cast_mut().cast(),
                Communication3::PROTOCOL_GUID if FIELDS.get().is_some() => {
                    core::ptr::from_ref(three).cast_mut().cast()
                }
                _ => core::ptr::null_mut(),
            };
            ProtocolPtr::from_raw(interface).ok_or(ProtocolError::NotFound)
        });
        FirmwareMmExecutor::new(Service::mock(Box::new(protocols)))
    }

    /// A communicator with one comm buffer.
    fn communicator(
        executor: FirmwareMmExecutor,
        header: HeaderFormat,
    ) -> MmCommunicator<FirmwareMmExecutor> {
        let communicator = MmCommunicator::with_executor(executor);
        let memory: &'static mut [u8] = Box::leak(vec![0; 4096].into_boxed_slice());
        let buffer = CommunicateBuffer::new(Pin::new(memory), 0).with_header(header);
        communicator.set_test_comm_buffers(vec![buffer]);
        communicator
    }

    fn communicate(claim: Claim, header: HeaderFormat) -> Result<vec::Vec<u8>, Status> {
        CLAIM.set(claim);
        communicator(executor(), header).communicate(0, b"request", RECIPIENT.as_guid())
    }

    /// Makes a call through `outer`, and one through `inner` in the middle of it. Returns both
    /// results.
    fn nested(
        outer: FirmwareMmExecutor,
        inner: FirmwareMmExecutor,
        header: HeaderFormat,
    ) -> [Result<vec::Vec<u8>, Status>; 2] {
        CLAIM.set((OK, |size| size));
        FIELDS.set(Some([None, None]));
        let seen = Rc::new(RefCell::new(Err(Status::NoCommBuffer)));
        let (called, inner) = (Rc::clone(&seen), communicator(inner, header));
        HOOK.set(Some(Box::new(move || {
            *called.borrow_mut() = inner.communicate(0, b"inner", RECIPIENT.as_guid());
        })));
        let outer = communicator(outer, HeaderFormat::V1).communicate(0, b"outer", RECIPIENT.as_guid());
        [outer, seen.replace(Err(Status::NoCommBuffer))]
    }

    #[test]
    fn driver_is_entered_once_at_a_time_through_any_executor_and_protocol() {
        for header in [HeaderFormat::V1, HeaderFormat::V3] {
            let first = executor();
            let same_driver = FirmwareMmExecutor::new(first.protocols);
            assert_eq!(
                nested(first, same_driver, header),
                [Ok(b"outer".to_vec()), Err(Status::Busy)]
            );
            // The driver is free again, and a call through another driver can be nested.
            assert_eq!(
                nested(first, executor(), header),
                [Ok(b"outer".to_vec()), Ok(b"inner".to_vec())]
            );
        }
    }

    /// TPL services, and the level that they are at.
    fn tpl() -> (Box<dyn TplServices>, Rc<Cell<usize>>) {
        use patina::component::service::uefi_services::tpl::{MockTplServices, PreviousTpl, Tpl};
        let level = Rc::new(Cell::new(efi::TPL_APPLICATION));
        let mut tpl = MockTplServices::new();
        let raised = Rc::clone(&level);
        tpl.expect_raise_tpl().returning_st(move |to| {
            let to = if to == Tpl::Notify {
                efi::TPL_NOTIFY
            } else {
                efi::TPL_HIGH_LEVEL
            };
            PreviousTpl::from_raw(raised.replace(to))
        });
        let restored = Rc::clone(&level);
        tpl.expect_restore_tpl()
            .returning_st(move |previous| restored.set(previous.as_raw()));
        (Box::new(tpl), level)
    }

    /// Makes a call. Returns the level at which the driver worked, at which the response was read,
    /// and afterwards.
    fn levels_of_a_call(mm: &dyn MmCommunication, id: u8, level: &Rc<Cell<usize>>) -> [usize; 3] {
        let (in_driver, now) = (Rc::new(Cell::new(0)), Rc::clone(level));
        let seen = Rc::clone(&in_driver);
        HOOK.set(Some(Box::new(move || seen.set(now.get()))));
        CLAIM.set((OK, |size| size));
        let mut reading = 0;
        let (recipient, options) = (RECIPIENT.as_guid(), CallOptions::new());
        mm.communicate_with(id, b"request", recipient, options, &mut |_| reading = level.get())
            .unwrap();
        [in_driver.get(), reading, level.get()]
    }

    #[test]
    fn executor_with_tpl_calls_the_driver_at_notify() {
        let (tpl, level) = tpl();
        let mm = communicator(executor().with_tpl(Service::mock(tpl)), HeaderFormat::V1);
        assert_eq!(
            levels_of_a_call(&mm, 0, &level),
            [efi::TPL_NOTIFY, efi::TPL_APPLICATION, efi::TPL_APPLICATION]
        );
    }

    #[test]
    fn lengths_of_the_driver_are_checked() {
        let v1 = |claim| communicate(claim, HeaderFormat::V1);
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
    }

    #[test]
    fn any_status_but_success_is_an_error() {
        FIELDS.set(Some([None, None]));
        for value in [1, 5, 1 << 61, 1 << 62 | 1, 0x8000_000e, 1 << 63 | 14, usize::MAX] {
            let status = efi::Status::from_usize(value);
            for header in [HeaderFormat::V1, HeaderFormat::V3] {
                assert_eq!(
                    communicate((status, |size| size), header),
                    Err(Status::MmReturned(status))
                );
            }
        }
    }

    /// A service that the SDK only has as a value.
    struct Offered<T: ?Sized + 'static>(&'static T);

    impl<T: ?Sized + 'static> IntoService for Offered<T> {
        fn register(self, storage: &mut Storage) {
            Self::register_service::<T>(storage, Box::leak(Box::new(self.0)));
        }
    }

    #[test]
    fn component_offers_the_service_with_memory_of_its_own() {
        static INSTALLED: Communication2 = DRIVER;
        for (services, at) in [(None, efi::TPL_APPLICATION), (Some(tpl()), efi::TPL_NOTIFY)] {
            let mut storage = Storage::new();
            let mut component = FirmwareMmCommunication::new(3, 2).into_component();
            assert!(component.initialize(&mut storage));
            assert!(!component.run(&mut storage).unwrap(), "it waits for its services");
            let installed = Rc::new(Cell::new(false));
            let is_installed = Rc::clone(&installed);
            let mut protocols = MockProtocolServices::new();
            protocols.expect_locate_interface().returning_st(move |guid| {
                (is_installed.get() && guid == Communication2::PROTOCOL_GUID)
                    .then(|| ProtocolPtr::from_raw((&raw const INSTALLED).cast_mut().cast()))
                    .flatten()
                    .ok_or(ProtocolError::NotFound)
            });
            storage.add_service(Offered::<dyn ProtocolServices>(Box::leak(Box::new(protocols))));
            let memory = Box::leak(Box::new(StdMemoryManager::new()));
            storage.add_service(Offered::<dyn MemoryManager>(memory));
            let level = services.map_or_else(
                || Rc::new(Cell::new(at)),
                |(tpl, level)| {
                    storage.add_service(Offered::<dyn TplServices>(Box::leak(tpl)));
                    level
                },
            );
            assert!(!component.run(&mut storage).unwrap(), "it waits for the driver");
            installed.set(true);
            assert!(component.run(&mut storage).unwrap());
            // The whole call is at TPL_NOTIFY if there are TplServices.
            let levels = Rc::new(Cell::new([0; 3]));
            let mut user = User(Rc::clone(&level), Rc::clone(&levels)).into_component();
            assert!(user.initialize(&mut storage));
            assert!(user.run(&mut storage).unwrap(), "there is no service");
            assert_eq!(levels.get(), [at, at, efi::TPL_APPLICATION]);
        }
    }

    struct User(Rc<Cell<usize>>, Rc<Cell<[usize; 3]>>);

    #[component]
    impl User {
        fn entry_point(self, mm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
            assert_eq!(mm.message_capacity(3, CallOptions::new()), Ok(8192 - 24));
            self.1.set(levels_of_a_call(*mm, 3, &self.0));
            assert_eq!(mm.communicate(3, b"x", RECIPIENT.as_guid()), Ok(b"x".to_vec()));
            Ok(())
        }
    }

    #[test]
    fn missing_protocol_is_an_error() {
        assert_eq!(
            communicate((efi::Status::SUCCESS, |size| size), HeaderFormat::V3),
            Err(Status::SwMmiServiceNotAvailable)
        );
    }
}
