//! Offers the communicator to drivers in C. An unsafe island (`docs/unsafe.md`): they call it with
//! their pointers.
//!
//! The rules of a request are those of [`c_request`]: it is copied out before the transaction, and the response copied in after
//! it. Both copies go to memory that was set aside when the protocols were installed. A call may come at `ExitBootServices`, when
//! there is no allocator any more.

use super::{Communication, Communication2, Communication3};
use crate::component::communicator::{CallOptions, Status, raise_to_notify, require_buffer};
use crate::config::HeaderFormat;
use crate::service::MmCommunication;
use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ffi::c_void;
use mm_comm::c_request::{self, Buffer, Longest, Memory, Refused, Reply, Request, RequestError};
use mm_wire::EfiStatus;
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{
    Handle, ProtocolError, ProtocolPtr, ProtocolServices,
};
use patina::component::service::uefi_services::tpl::TplServices;
use patina::error::EfiError;
use patina::protocol::ProtocolInterface;
use patina::standard::efi;

/// Component: installs `EFI_MM_COMMUNICATION_PROTOCOL`, `...2` and `...3` over [`MmCommunication`].
///
/// A C driver that finds them sends and receives as with a driver of edk2, for as long as boot services last. What each
/// parameter may be, and what is written back:
///
/// | call | status | written back |
/// |---|---|---|
/// | the buffer is null; protocol 2 and 3: either address is, or they differ | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is 0 | `BAD_BUFFER_SIZE` | `*CommSize`: the largest buffer with header |
/// | `*CommSize` is less than the header, or than header and message | `INVALID_PARAMETER` | nothing |
/// | `*CommSize` is more than MM takes | `BAD_BUFFER_SIZE` | `*CommSize`, as above |
/// | the message is longer than MM takes (v3: BufferSize counts) | `BAD_BUFFER_SIZE` | MessageLength (v3: MessageSize): the longest message; and `*CommSize` where given |
/// | the message has no bytes, and MM is entered by secure monitor calls | `BAD_BUFFER_SIZE` | the same |
/// | v3: BufferSize is less than header and MessageSize | `INVALID_PARAMETER` | nothing |
/// | protocol 3: the header is not v3 | `INVALID_PARAMETER` | nothing |
/// | the response does not fit into the caller's buffer | `BUFFER_TOO_SMALL` | `*CommSize`: what it would take |
/// | a call that this one interrupted has the comm buffer | `ALREADY_STARTED` | nothing |
/// | no handler, or another refusal of MM's | MM's status if it is an `EFI_ERROR`; a 32-bit core's error as the same one in 64 bits; `NOT_FOUND` for a warning | nothing |
/// | a response | `SUCCESS` | the response; `*CommSize` with the header |
///
/// "Nothing" is true as well where the caller's buffer is the comm buffer: header and message stand there as before. After an
/// response the header does, so that a driver which wrote it once can call again. Only a field that MM itself changed to tell the
/// response's length comes back as MM left it: edk2's MM for Arm writes MessageLength or MessageSize, its MM for x86 neither. So on
/// x86 `*CommSize` alone tells the length, and a caller of protocol 3 has to know it from the message, as with edk2.
///
/// BufferSize and MessageSize of a v3 header reach MM as they are. Its Reserved field is zero on the way to MM.
///
/// # Which comm buffer
///
/// One that is the C drivers' own, where the platform has it. They do not all survive `ALREADY_STARTED`: a variable that is
/// set from a timer's notification is lost, for instance. So calls through this buffer run at `TPL_NOTIFY`, those of
/// components in Rust included, and no notification comes between. Where the SDK's `TplServices` are missing that is not
/// possible; then a warning says so.
///
/// # Memory
///
/// Room for the longest request and the longest response is set aside when the protocols are installed; a call allocates nothing,
/// but where an announced move of the comm buffer is put into effect with it, and the first one through a buffer that is longer
/// than the one before: it makes room for all that the new one can hold.
///
/// The caller's buffer has `*CommSize` bytes or, where that is not given, as many as its header counts (v3: BufferSize).
/// Both header formats are taken by protocols 1 and 2. A `*CommSize` above header and message is room for the response.
///
/// The component fails with [`EfiError::AlreadyStarted`] if one of the protocols is installed already, and with
/// [`EfiError::NotFound`] if the comm buffer does not exist.
#[derive(Clone, Copy, Debug)]
pub struct MmCommunicationProducer {
    buffer: u8,
}

#[component]
impl MmCommunicationProducer {
    /// Has the protocols send through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self { buffer }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        protocols: Service<dyn ProtocolServices>,
        tpl: Option<Service<dyn TplServices>>,
    ) -> patina::error::Result<()> {
        let installed = [
            Communication::PROTOCOL_GUID,
            Communication2::PROTOCOL_GUID,
            Communication3::PROTOCOL_GUID,
        ];
        if installed
            .iter()
            .any(|guid| protocols.locate_interface(*guid).is_ok())
        {
            log::error!(target: "mm_comm", "platform: another driver has installed an MM communication protocol");
            return Err(EfiError::AlreadyStarted);
        }
        let bridge = Rc::new(Bridge::new(mm, self.buffer, tpl)?);
        install(&protocols, &bridge).inspect_err(
            |error| log::error!(target: "mm_comm", "the MM communication protocols were not installed: {error:?}"),
        )?;
        bridge.run_at_notify();
        Ok(())
    }
}

/// What stands behind an installed interface.
struct Bridge {
    mm: Service<dyn MmCommunication>,
    buffer: u8,
    /// To run at `TPL_NOTIFY`.
    tpl: Option<Service<dyn TplServices>>,
    /// Borrowed while a call lasts.
    scratch: RefCell<Scratch>,
}

impl Bridge {
    fn new(
        mm: Service<dyn MmCommunication>,
        buffer: u8,
        tpl: Option<Service<dyn TplServices>>,
    ) -> patina::error::Result<Self> {
        require_buffer(*mm, buffer, "the MM communication protocols")?;
        let longest = mm.message_capacity(buffer, V1).unwrap_or_else(|status| {
            log::warn!(target: "mm_comm", "no memory is set aside for messages through comm buffer {buffer}: {status}");
            0
        });
        let mut scratch = Scratch::default();
        scratch.make_room(longest).map_err(|error| {
            log::error!(target: "mm_comm", "no {longest} bytes for messages of the MM communication protocols: {error}");
            EfiError::OutOfResources
        })?;
        Ok(Self {
            mm,
            buffer,
            tpl,
            scratch: RefCell::new(scratch),
        })
    }

    /// Has everybody's calls through the buffer run at `TPL_NOTIFY`. For when the protocols are installed: it cannot be undone.
    fn run_at_notify(&self) {
        let buffer = self.buffer;
        let raised = self
            .tpl
            .ok_or(Status::Unsupported)
            .and_then(|tpl| self.mm.run_at_notify(buffer, tpl));
        if let Err(status) = raised {
            log::warn!(
                target: "mm_comm",
                "platform: a C driver that interrupts a call through comm buffer {buffer} will be refused: {status}"
            );
        }
    }
}

/// Copies of what a call moves.
#[derive(Default)]
struct Scratch {
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Scratch {
    /// Has room for a request and a response of this length each. Between calls, when they hold nothing.
    fn make_room(&mut self, longest: usize) -> Result<(), TryReserveError> {
        self.request.try_reserve_exact(longest)?;
        self.response.try_reserve_exact(longest)
    }

    /// Leaves no byte of a message behind.
    fn wipe(&mut self) {
        for memory in [&mut self.request, &mut self.response] {
            memory.fill(0);
            memory.clear();
        }
    }
}

/// Makes `memory` hold `len` bytes; `false` where it has no room for them and there is none to be had.
fn hold(memory: &mut Vec<u8>, len: usize) -> bool {
    memory.clear();
    let has_room = memory.try_reserve_exact(len).is_ok();
    if has_room {
        memory.resize(len, 0);
    }
    has_room
}

const V1: CallOptions = CallOptions::new().with_header(HeaderFormat::V1);

/// An interface as it is installed. The caller's `This` points to the first field, and so to all of it.
#[repr(C)]
struct Produced<P> {
    interface: P,
    bridge: Rc<Bridge>,
}

/// Installs the three protocols on one handle, or none.
fn install(protocols: &Service<dyn ProtocolServices>, bridge: &Rc<Bridge>) -> Result<(), ProtocolError> {
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
    install_one(protocols, Some(handle), third, bridge).inspect_err(|_| {
        uninstall(protocols, handle, Communication2::PROTOCOL_GUID, installed2);
        uninstall(protocols, handle, Communication::PROTOCOL_GUID, installed1);
    })?;
    Ok(())
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
            // SAFETY: from `Box::into_raw` above, and nobody was given it.
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

/// Serves a call, with `memory` to reach as many bytes of the caller's buffer as it is asked for.
fn answer(
    bridge: &Bridge,
    comm_size: Option<usize>,
    only: Option<HeaderFormat>,
    memory: &Memory<'_>,
) -> Reply {
    let _raised = bridge.tpl.and_then(raise_to_notify);
    let Ok(mut scratch) = bridge.scratch.try_borrow_mut() else {
        return Reply::status(failed(bridge, Status::Busy));
    };
    let reply = send(bridge, comm_size, only, memory, &mut scratch);
    scratch.wipe();
    reply.unwrap_or_else(|refused| {
        log::error!(target: "mm_comm", "{}", refused.error);
        refused.reply
    })
}

/// The status of a call that did not get its response. The communicator's log has the numbers.
fn failed(bridge: &Bridge, status: Status) -> EfiStatus {
    log::error!(target: "mm_comm", "a C driver's call through comm buffer {}: {status}", bridge.buffer);
    EfiStatus(efi::Status::from(EfiError::from(status)).as_usize() as u64)
}

/// Checks a request, sends its message, and writes the response into the caller's buffer.
fn send(
    bridge: &Bridge,
    comm_size: Option<usize>,
    only: Option<HeaderFormat>,
    memory: &Memory<'_>,
    scratch: &mut Scratch,
) -> Result<Reply, Refused> {
    let capacity = |format| {
        let options = CallOptions::new().with_header(format);
        bridge.mm.message_capacity(bridge.buffer, options)
    };
    let longest = match (capacity(HeaderFormat::V1), capacity(HeaderFormat::V3)) {
        (Ok(v1), Ok(v3)) => Longest { v1, v3 },
        (Err(status), _) | (_, Err(status)) => return Ok(Reply::status(failed(bridge, status))),
    };
    // Now, if the comm buffer has grown: a later call may come when there is no allocator any more.
    if let Err(error) = scratch.make_room(longest.v1) {
        log::warn!(
            target: "mm_comm",
            "no {} bytes for messages of the MM communication protocols: {error}", longest.v1
        );
    }
    let request = Request::check(comm_size, only, longest, memory)?;
    let Scratch {
        request: message,
        response,
    } = scratch;
    let needed = request.message_len();
    if !hold(message, needed) {
        return Ok(Reply::status(failed(bridge, Status::OutOfMemory { needed })));
    }
    request.copy_message(message)?;

    let header = request.header();
    let recipient = patina::Guid::from_bytes(&header.recipient().to_bytes());
    let options = CallOptions::new()
        .with_header(header.format())
        .with_message_size(header.message_size())
        .with_empty_message();
    let room = request.room();
    let mut taken = Ok(());
    let mut in_header = None;
    let sent = bridge
        .mm
        .communicate_with(bridge.buffer, message, recipient, options, &mut |reader| {
            let needed = reader.remaining();
            in_header = reader.in_header();
            taken = if needed > room {
                Err(Status::ResponseTooLong { needed, room })
            } else if hold(response, needed) {
                reader.read_rest(response).map(drop)
            } else {
                Err(Status::OutOfMemory { needed })
            };
        });
    Ok(match sent.and(taken) {
        Ok(()) => request.answer(response, in_header),
        Err(status) => {
            let reported = failed(bridge, status);
            match status {
                Status::ResponseTooLong { needed, .. } => request.refuse_for_want_of_room(message, needed),
                Status::InvalidDataBuffer if header.message_size() == 0 => {
                    request.refuse_empty(message, longest)
                }
                _ => request.refuse(message, reported),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::communicator::MockMmCommunication;
    use core::cell::Cell;
    use mm_comm::SharedRegion;
    use patina::component::service::uefi_services::protocol::MockProtocolServices;
    use patina::component::service::uefi_services::tpl::{MockTplServices, PreviousTpl};

    fn producer(protocols: MockProtocolServices) -> patina::error::Result<()> {
        let mm: Box<dyn MmCommunication> = Box::new(MockMmCommunication::new());
        let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
        let protocols = Service::mock(protocols);
        MmCommunicationProducer::new(0).entry_point(Service::mock(mm), protocols, None)
    }

    fn handle() -> Handle {
        Handle::from_raw(core::ptr::dangling_mut()).unwrap()
    }

    #[test]
    fn protocols_of_another_driver_are_left_alone() {
        let mut protocols = MockProtocolServices::new();
        protocols.expect_locate_interface().returning(|guid| {
            (guid == Communication3::PROTOCOL_GUID)
                .then(|| ProtocolPtr::from_raw(core::ptr::dangling_mut()))
                .flatten()
                .ok_or(ProtocolError::NotFound)
        });
        assert_eq!(producer(protocols), Err(EfiError::AlreadyStarted));
    }

    #[test]
    fn all_three_are_installed_or_none() {
        for failing in 0..=3 {
            let mut protocols = MockProtocolServices::new();
            protocols
                .expect_locate_interface()
                .returning(|_| Err(ProtocolError::NotFound));
            let mut installed = 0;
            protocols
                .expect_install_interface()
                .returning_st(move |at, _, _| {
                    assert_eq!(at, (installed > 0).then(handle));
                    installed += 1;
                    (installed - 1 != failing)
                        .then(handle)
                        .ok_or(ProtocolError::OutOfResources)
                });
            let taken_back = if failing == 3 { 0 } else { failing };
            protocols
                .expect_uninstall_interface()
                .times(taken_back)
                .returning(|_, _, _| Ok(()));
            let mm: Box<dyn MmCommunication> = Box::new(MockMmCommunication::new());
            let bridge = Rc::new(Bridge::new(Service::mock(mm), 0, None).unwrap());
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let installed = install(&Service::mock(protocols), &bridge);
            assert_eq!(installed.is_ok(), failing == 3);
            // Whoever located an interface that was taken back may still call it; one that was refused is gone.
            assert_eq!(Rc::strong_count(&bridge), 1 + failing);
        }
    }

    /// Answers nothing, through a comm buffer whose size changes.
    struct Growing {
        longest: Rc<Cell<usize>>,
        at_notify: Rc<Cell<Option<u8>>>,
    }

    impl MmCommunication for Growing {
        fn communicate<'a>(&self, _: u8, _: &[u8], _: patina::Guid<'a>) -> Result<Vec<u8>, Status> {
            Err(Status::NotProcessed)
        }

        fn message_capacity(&self, _: u8, _: CallOptions) -> Result<usize, Status> {
            Ok(self.longest.get())
        }

        fn run_at_notify(&self, id: u8, _: Service<dyn TplServices>) -> Result<(), Status> {
            self.at_notify.set(Some(id));
            Ok(())
        }
    }

    fn tpl() -> Service<dyn TplServices> {
        let mut tpl = MockTplServices::new();
        tpl.expect_raise_tpl()
            .returning(|_| PreviousTpl::from_raw(efi::TPL_APPLICATION));
        tpl.expect_restore_tpl().returning(drop);
        let tpl: Box<dyn TplServices> = Box::new(tpl);
        Service::mock(tpl)
    }

    #[test]
    fn the_first_call_through_a_longer_buffer_makes_room_for_all_of_it() {
        let longest = Rc::new(Cell::new(100));
        let mm: Box<dyn MmCommunication> = Box::new(Growing {
            longest: Rc::clone(&longest),
            at_notify: Rc::default(),
        });
        let bridge = Bridge::new(Service::mock(mm), 0, None).unwrap();
        let room = || {
            let scratch = bridge.scratch.borrow();
            (scratch.request.capacity(), scratch.response.capacity())
        };
        assert_eq!(room(), (100, 100));
        longest.set(4000);
        let bytes: &'static mut [u8] = Box::leak(Box::new([1; 64]));
        let start = bytes.as_mut_ptr();
        // SAFETY: the memory is leaked, and reached through this only.
        let memory = |len: usize| (len <= 64).then(|| unsafe { SharedRegion::new(start, len) }.unwrap());
        let reply = answer(&bridge, Some(25), None, &memory);
        assert_eq!(reply.status, EfiStatus::BAD_BUFFER_SIZE);
        assert_eq!(room(), (4000, 4000));
    }

    #[test]
    fn calls_run_at_notify_only_where_the_protocols_are_installed() {
        for is_installed in [false, true] {
            let mut protocols = MockProtocolServices::new();
            protocols
                .expect_locate_interface()
                .returning(|_| Err(ProtocolError::NotFound));
            protocols
                .expect_install_interface()
                .returning_st(move |_, _, _| is_installed.then(handle).ok_or(ProtocolError::OutOfResources));
            let at_notify = Rc::new(Cell::new(None));
            let mm: Box<dyn MmCommunication> = Box::new(Growing {
                longest: Rc::new(Cell::new(100)),
                at_notify: Rc::clone(&at_notify),
            });
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let result = MmCommunicationProducer::new(7).entry_point(
                Service::mock(mm),
                Service::mock(protocols),
                Some(tpl()),
            );
            assert_eq!(result.is_ok(), is_installed);
            assert_eq!(at_notify.get(), is_installed.then_some(7));
        }
    }

    #[test]
    fn a_null_this_is_refused() {
        let mut bytes = [0_u8; 32];
        let buffer = (&raw mut bytes).cast();
        // SAFETY: the buffer is valid; a null `This` is what the function has to notice.
        let status = unsafe { communicate1(core::ptr::null(), buffer, core::ptr::null_mut()) };
        assert_eq!(status, efi::Status::INVALID_PARAMETER);
    }
}
