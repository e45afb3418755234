//! One call, and the change of addresses. An unsafe island (`docs/unsafe.md`): it is called by C, with C's pointers, and its
//! memory moves.

use crate::protocols::{Communication, Communication2, Communication3};
use crate::{Configuration, Entry, Progress, Sink};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use mm_comm::c_request::{self, Buffer, Longest, Memory, Refused, Reply, Request, RequestError};
use mm_comm::{BeginError, Channel, ChannelError, transaction};
use mm_wire::hob::CommBufferPlace;
use mm_wire::message::variable;
use mm_wire::{EfiStatus, Header, HeaderFormat, ResponseLength};
use r_efi::efi;

/// No call is under way.
const FREE: u8 = 0;
/// One is.
const IN_CALL: u8 = 1;
/// The addresses changed in the middle of a call, so that not all pointers could be converted. For good.
const LOST: u8 = 2;

/// The driver's memory: one block, followed by the room for copies. A caller's `This` points into it, and so leads to all of
/// it, whatever its address is.
#[repr(C)]
pub(crate) struct Driver<E, S> {
    one: Communication,
    two: Communication2,
    three: Communication3,
    state: AtomicU8,
    /// To raise the TPL with; null after `ExitBootServices`.
    boot_services: AtomicPtr<efi::BootServices>,
    /// To convert pointers with; null after that was done.
    runtime_services: AtomicPtr<efi::RuntimeServices>,
    /// Touched only by the caller that set `state` to [`IN_CALL`].
    inner: UnsafeCell<Inner<E, S>>,
}

struct Inner<E, S> {
    /// `None` where the operating system has not mapped it.
    channel: Option<Channel>,
    /// Where the comm buffer is, which is what MM knows.
    place: CommBufferPlace,
    entry: E,
    sink: S,
    completion_polls: u32,
    /// Until the operating system changes addresses.
    one_to_one: bool,
    /// Bytes of each of the two copies behind the driver.
    copy_len: usize,
}

/// The two services that the driver uses later.
pub(crate) struct Services {
    pub(crate) boot: *mut efi::BootServices,
    pub(crate) runtime: *mut efi::RuntimeServices,
}

impl<E: Entry, S: Sink> Driver<E, S> {
    /// Bytes of the block for a comm buffer.
    pub(crate) fn block_len(place: CommBufferPlace) -> Option<usize> {
        let copy = usize::try_from(place.region().len()).ok()?;
        copy.checked_mul(2)?.checked_add(size_of::<Self>())
    }

    /// Makes a driver in its block of [`Self::block_len`] bytes, and wipes the comm buffer.
    ///
    /// # Safety
    ///
    /// `block` is valid, aligned to a page and used by nothing else, for good. So is the comm buffer that `configuration` names, with
    /// its mailbox. Both are mapped one to one. `services` are those of the firmware.
    pub(crate) unsafe fn place(
        block: *mut c_void,
        configuration: &Configuration,
        entry: E,
        sink: S,
        services: &Services,
    ) -> Result<*mut Self, ChannelError> {
        let place = configuration.buffer;
        // SAFETY: the caller's promise about the comm buffer.
        let channel = unsafe { channel(place, Some) }?;
        if let Some(channel) = &channel {
            // What was in the mailbox is not a request any more.
            let _ = channel.take_over();
        }
        let driver = block.cast::<Self>();
        let new = Self {
            one: Communication {
                communicate: communicate1::<E, S>,
            },
            two: Communication2 {
                communicate: communicate2::<E, S>,
            },
            three: Communication3 {
                communicate: communicate3::<E, S>,
            },
            state: AtomicU8::new(FREE),
            boot_services: AtomicPtr::new(services.boot),
            runtime_services: AtomicPtr::new(services.runtime),
            inner: UnsafeCell::new(Inner {
                channel,
                place,
                entry,
                sink,
                completion_polls: configuration.completion_polls,
                one_to_one: true,
                // Does not lose anything: `block_len` was computed from it.
                copy_len: usize::try_from(place.region().len()).unwrap_or(0),
            }),
        };
        // SAFETY: the block is large enough and aligned, by the caller's promise.
        unsafe { driver.write(new) };
        // C passes these addresses back.
        driver.expose_provenance();
        Ok(driver)
    }

    /// The three interfaces.
    pub(crate) fn interfaces(driver: *mut Self) -> [*mut c_void; 3] {
        [
            offset_of!(Self, one),
            offset_of!(Self, two),
            offset_of!(Self, three),
        ]
        .map(|offset| driver.cast::<c_void>().wrapping_byte_add(offset))
    }

    /// Asks MM's variable service how long a message it takes, as edk2's variable driver does when it finds the first marker.
    ///
    /// # Safety
    ///
    /// `driver` is from [`Self::place`], and memory is still mapped one to one.
    pub(crate) unsafe fn variable_payload_size(driver: *mut Self) -> Result<u64, efi::Status> {
        const HEADER_LEN: usize = HeaderFormat::V1.header_len();
        // Function, ReturnStatus, and the size.
        const MESSAGE_LEN: usize = 24;
        let mut bytes = [0_u8; HEADER_LEN + MESSAGE_LEN];
        let header = Header::new(HeaderFormat::V1, variable::GUID, MESSAGE_LEN as u64);
        let header = header.map(|header| header.encode());
        let function = variable::function::GET_PAYLOAD_SIZE.to_le_bytes();
        let request = header.iter().flat_map(AsRef::as_ref).chain(&function);
        bytes.iter_mut().zip(request).for_each(|(to, from)| *to = *from);
        let [one, ..] = Self::interfaces(driver);
        let buffer = bytes.as_mut_ptr().cast();
        // SAFETY: the driver's interface, and a buffer that is as long as its header says.
        let status = unsafe { communicate1::<E, S>(one.cast_const().cast(), buffer, ptr::null_mut()) };
        let field = |offset| bytes.get(offset..).and_then(<[u8]>::first_chunk);
        let field = |offset| field(offset).map_or(0, |field| u64::from_le_bytes(*field));
        match (status, field(HEADER_LEN + 8)) {
            (efi::Status::SUCCESS, 0) => Ok(field(HEADER_LEN + 16)),
            (efi::Status::SUCCESS, refused) => Err(efi::Status::from_usize(
                usize::try_from(refused).unwrap_or(usize::MAX),
            )),
            (status, _) => Err(status),
        }
    }

    /// Where to say what goes wrong.
    ///
    /// # Safety
    ///
    /// `driver` is from [`Self::place`], and memory is still mapped one to one.
    pub(crate) unsafe fn error(driver: *const Self, line: core::fmt::Arguments<'_>) {
        // SAFETY: shared with nothing but other shared references: the exclusive one is made when addresses change.
        let inner = unsafe { &*Self::inner(driver) };
        inner.sink.error(line);
    }

    /// What only the holder of the claim may touch.
    fn inner(driver: *const Self) -> *mut Inner<E, S> {
        let cell = driver.wrapping_byte_add(offset_of!(Self, inner));
        UnsafeCell::raw_get(cell.cast())
    }

    /// The address of a memory-mapped register that the entry uses.
    ///
    /// # Safety
    ///
    /// `driver` is from [`Self::place`], and its interfaces were not given away yet.
    pub(crate) unsafe fn register(driver: *const Self) -> Option<usize> {
        // SAFETY: the caller's promise: nothing else uses it.
        unsafe { (*Self::inner(driver)).entry.register() }
    }

    /// The function of `EVT_SIGNAL_EXIT_BOOT_SERVICES`, whose context is the driver.
    pub(crate) unsafe extern "efiapi" fn on_exit_boot_services(_: efi::Event, context: *mut c_void) {
        let driver = context.cast_const().cast::<Self>();
        // SAFETY: the event's context is the driver, which is never freed. A field that is only accessed atomically.
        let boot_services = unsafe { &(*driver).boot_services };
        boot_services.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: as in `error`.
        let inner = unsafe { &*Self::inner(driver) };
        inner.sink.note(format_args!("boot services end"));
    }

    /// The function of `EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE`, whose context is the driver. Memory is still mapped one to one; the
    /// new addresses must not be used yet (UEFI 2.11, 8.4).
    pub(crate) unsafe extern "efiapi" fn on_address_change(_: efi::Event, context: *mut c_void) {
        let driver = context.cast::<Self>();
        // SAFETY: as above.
        let state = unsafe { &(*driver).state };
        // SAFETY: as above.
        let services = unsafe { &(*driver).runtime_services }.swap(ptr::null_mut(), Ordering::AcqRel);
        if services.is_null() {
            return;
        }
        let mut convert = |address: usize| {
            let mut pointer = ptr::with_exposed_provenance_mut::<c_void>(address);
            // SAFETY: the firmware's table; its address has not changed yet.
            let convert_pointer = unsafe { (*services).convert_pointer };
            // SAFETY: within the event of the address change (UEFI 2.11, 8.4.2).
            let status = unsafe { convert_pointer(0, &raw mut pointer) };
            (status == efi::Status::SUCCESS).then_some(pointer.addr())
        };
        match Claim::of(state) {
            Some(_claim) => {
                // SAFETY: the claim makes this the only access.
                let inner = unsafe { &mut *Self::inner(driver) };
                inner.convert(&mut convert);
            }
            // A call is under way, in which MM or another processor is. It must not go on with the old addresses.
            None => state.store(LOST, Ordering::SeqCst),
        }
        for interface in Self::interfaces(driver) {
            // All three have nothing but a pointer to their function.
            let function = interface.cast::<usize>();
            // SAFETY: a field of the driver; no reference to it exists, only C's pointer.
            let address = unsafe { function.read() };
            if let Some(converted) = convert(address) {
                // SAFETY: as above.
                unsafe { function.write(converted) };
            }
        }
    }
}

/// The comm buffer behind converted addresses; `None` where one of them cannot be converted. It is not touched.
///
/// # Safety
///
/// What `convert` gives for the place's addresses is valid memory for as long as the channel is used.
unsafe fn channel(
    place: CommBufferPlace,
    mut convert: impl FnMut(usize) -> Option<usize>,
) -> Result<Option<Channel>, ChannelError> {
    let mut pointer = |address: u64| {
        let address = usize::try_from(address).ok()?;
        convert(address).map(ptr::with_exposed_provenance_mut::<u8>)
    };
    let region = place.region();
    let (Some(base), Ok(len)) = (pointer(region.start()), usize::try_from(region.len())) else {
        return Ok(None);
    };
    let mailbox = match place.mailbox() {
        None => None,
        Some(address) => match pointer(address) {
            None => return Ok(None),
            converted => converted,
        },
    };
    // SAFETY: the caller's promise.
    unsafe { Channel::at_untouched_region(base, len, mailbox) }.map(Some)
}

/// The right to touch what the driver keeps; ends when dropped.
struct Claim<'a>(&'a AtomicU8);

impl<'a> Claim<'a> {
    fn of(state: &'a AtomicU8) -> Option<Self> {
        let taken = state.compare_exchange(FREE, IN_CALL, Ordering::SeqCst, Ordering::SeqCst);
        taken.is_ok().then_some(Self(state))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Fails where the driver was lost meanwhile, and then stays so.
        let _ = self
            .0
            .compare_exchange(IN_CALL, FREE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// The TPL while boot services last: `TPL_NOTIFY`, unless it is higher already. Goes back when dropped.
struct Raised {
    services: *mut efi::BootServices,
    previous: efi::Tpl,
}

impl Raised {
    fn to_notify(services: &AtomicPtr<efi::BootServices>) -> Option<Self> {
        let services = services.load(Ordering::Acquire);
        if services.is_null() {
            return None;
        }
        // The current TPL can only be read by raising to `TPL_HIGH_LEVEL`; lowering it through `RaiseTPL` is fatal.
        let current = raise(services, efi::TPL_HIGH_LEVEL);
        restore(services, current);
        (current <= efi::TPL_NOTIFY).then(|| Self {
            services,
            previous: raise(services, efi::TPL_NOTIFY),
        })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        restore(self.services, self.previous);
    }
}

fn raise(services: *mut efi::BootServices, tpl: efi::Tpl) -> efi::Tpl {
    // SAFETY: the firmware's table, until `ExitBootServices`, when the driver forgets it.
    let raise_tpl = unsafe { (*services).raise_tpl };
    // SAFETY: as above.
    unsafe { raise_tpl(tpl) }
}

fn restore(services: *mut efi::BootServices, tpl: efi::Tpl) {
    // SAFETY: as above.
    let restore_tpl = unsafe { (*services).restore_tpl };
    // SAFETY: as above.
    unsafe { restore_tpl(tpl) };
}

/// The driver that an interface belongs to. By address: a caller may have come here from a reference to the interface, and no
/// further.
fn driver_of<E, S, P>(this: *const P, offset: usize) -> Option<*mut Driver<E, S>> {
    let address = this.addr().checked_sub(offset).filter(|address| *address != 0)?;
    (!this.is_null()).then(|| ptr::with_exposed_provenance_mut(address))
}

unsafe extern "efiapi" fn communicate1<E: Entry, S: Sink>(
    this: *const Communication,
    comm_buffer: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    let driver = driver_of::<E, S, _>(this, offset_of!(Driver<E, S>, one));
    let buffer = Buffer {
        physical: None,
        virt: comm_buffer,
    };
    // SAFETY: `This` is the interface that the function was found in (UEFI 2.11, 2.5.1), and the caller passes a buffer and its
    // size, as PI 1.9 describes them.
    unsafe { serve(driver, buffer, comm_size, None) }
}

unsafe extern "efiapi" fn communicate2<E: Entry, S: Sink>(
    this: *const Communication2,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
    comm_size: *mut usize,
) -> efi::Status {
    let driver = driver_of::<E, S, _>(this, offset_of!(Driver<E, S>, two));
    let buffer = Buffer {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
    };
    // SAFETY: as in `communicate1`.
    unsafe { serve(driver, buffer, comm_size, None) }
}

unsafe extern "efiapi" fn communicate3<E: Entry, S: Sink>(
    this: *const Communication3,
    comm_buffer_physical: *mut c_void,
    comm_buffer_virtual: *mut c_void,
) -> efi::Status {
    let driver = driver_of::<E, S, _>(this, offset_of!(Driver<E, S>, three));
    let buffer = Buffer {
        physical: Some(comm_buffer_physical),
        virt: comm_buffer_virtual,
    };
    // SAFETY: as in `communicate1`. A null size is not used.
    unsafe { serve(driver, buffer, ptr::null_mut(), Some(HeaderFormat::V3)) }
}

/// Serves a call of any of the three protocols.
///
/// # Safety
///
/// `driver` is one from [`Driver::place`]; for the rest that of [`c_request::serve`].
unsafe fn serve<E: Entry, S: Sink>(
    driver: Option<*mut Driver<E, S>>,
    buffer: Buffer,
    comm_size: *mut usize,
    only: Option<HeaderFormat>,
) -> efi::Status {
    let Some(driver) = driver else {
        return efi::Status::INVALID_PARAMETER;
    };
    // SAFETY: the driver is never freed. A field that is only accessed atomically.
    let boot_services = unsafe { &(*driver).boot_services };
    let _raised = Raised::to_notify(boot_services);
    // SAFETY: as above.
    let state = unsafe { &(*driver).state };
    let Some(_claim) = Claim::of(state) else {
        return match state.load(Ordering::SeqCst) {
            LOST => efi::Status::NOT_READY,
            _ => efi::Status::ALREADY_STARTED,
        };
    };
    // SAFETY: the claim makes this the only access.
    let inner = unsafe { &*Driver::inner(driver) };
    let copies = driver.cast::<u8>().wrapping_add(size_of::<Driver<E, S>>());
    // SAFETY: the block has twice `copy_len` bytes behind the driver, which only the holder of the claim touches.
    let copies = unsafe { core::slice::from_raw_parts_mut(copies, inner.copy_len.saturating_mul(2)) };
    let serve = |given: Result<(Option<usize>, &Memory<'_>), RequestError>| match given {
        Ok((comm_size, memory)) => inner.serve(comm_size, only, memory, copies),
        Err(error) => {
            inner.sink.error(format_args!("{error}"));
            Reply::status(EfiStatus::INVALID_PARAMETER)
        }
    };
    let one_to_one = inner.one_to_one;
    // SAFETY: the caller's promise.
    let status = unsafe { c_request::serve(buffer, comm_size, one_to_one, serve) };
    usize::try_from(status.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize)
}

impl<E: Entry, S: Sink> Inner<E, S> {
    /// Serves a call, and leaves no byte of a message in `copies`.
    fn serve(
        &self,
        comm_size: Option<usize>,
        only: Option<HeaderFormat>,
        memory: &Memory<'_>,
        copies: &mut [u8],
    ) -> Reply {
        let Some(channel) = &self.channel else {
            self.sink.error(format_args!(
                "the operating system has not mapped the comm buffer"
            ));
            return Reply::status(EfiStatus::NOT_READY);
        };
        let longest = Longest {
            v1: channel.capacity(HeaderFormat::V1),
            v3: channel.capacity(HeaderFormat::V3),
        };
        match Request::check(comm_size, only, longest, memory) {
            Ok(request) => self
                .send(channel, longest, &request, copies)
                .unwrap_or_else(|refused| self.refuse(&refused)),
            Err(refused) => self.refuse(&refused),
        }
    }

    fn refuse(&self, refused: &Refused) -> Reply {
        self.sink.error(format_args!("{}", refused.error));
        refused.reply
    }

    fn send(
        &self,
        channel: &Channel,
        longest: Longest,
        request: &Request,
        copies: &mut [u8],
    ) -> Result<Reply, Refused> {
        let (message, response) = copies.split_at_mut(self.copy_len.min(copies.len()));
        // Never empty-handed: a message is no longer than the comm buffer, nor is a response.
        let message = message.get_mut(..request.message_len()).unwrap_or_default();
        request.copy_message(message)?;
        if !E::TAKES_EMPTY_MESSAGES && request.header().message_size() == 0 {
            self.sink.error(format_args!("caller: the message is empty"));
            return Ok(request.refuse_empty(message, longest));
        }
        let reply = match self.exchange(channel, request, message, response) {
            Ok((response, in_header)) if response.len() <= request.room() => {
                let reply = request.answer(response, in_header);
                response.fill(0);
                reply
            }
            Ok((response, _)) => {
                response.fill(0);
                let (needed, room) = (response.len(), request.room());
                self.sink.error(format_args!(
                    "caller: the response has {needed} bytes, there was room for {room}"
                ));
                request.refuse_for_want_of_room(message, needed)
            }
            Err(status) => request.refuse(message, status),
        };
        message.fill(0);
        Ok(reply)
    }

    /// Sends a message, and copies the response. When this returns, shared memory has nothing of either.
    fn exchange<'r>(
        &self,
        channel: &Channel,
        request: &Request,
        message: &[u8],
        response: &'r mut [u8],
    ) -> Result<(&'r mut [u8], Option<ResponseLength>), EfiStatus> {
        let header = request.header();
        let size = Some(header.message_size());
        let not_sent = |error: BeginError| {
            self.sink.error(format_args!("{error}"));
            error.status()
        };
        let staged = channel
            .begin_sized(header.format(), header.recipient(), message, size)
            .map_err(not_sent)?;
        staged.check().map_err(not_sent)?;
        let address = self.place.region().start();
        self.sink.trace(format_args!(
            "{} bytes for {} in the comm buffer at {:p}; MM finds it at {address:#x}",
            message.len(),
            header.recipient(),
            channel.region().as_ptr()
        ));
        if self.entry.enter(address, &self.sink)? == Progress::Raised {
            // What went wrong was told; the mailbox has the last word.
            let again = || {
                let _ = self.entry.enter(address, &self.sink);
            };
            transaction::wait_and_raise_again(channel, self.completion_polls, again, || self.entry.pause());
        }
        let shared = staged.finish().map_err(|error| {
            self.sink.error(format_args!("{error}"));
            error.status()
        })?;
        self.sink
            .trace(format_args!("MM returned {} bytes", shared.len()));
        let in_header = shared.in_header();
        // Never `None`: `finish` proved that it is no longer than the comm buffer, as `response` is.
        let response = shared.copy_to(response).ok_or(EfiStatus::DEVICE_ERROR)?;
        Ok((response, in_header))
    }

    /// Converts every address that is kept. MM is told the physical one all the same.
    fn convert(&mut self, convert: &mut dyn FnMut(usize) -> Option<usize>) {
        self.one_to_one = false;
        // SAFETY: the operating system maps what it was told to be RuntimeServicesData under the addresses that it announced,
        // until the next reset.
        let moved = unsafe { channel(self.place, &mut *convert) };
        self.channel = moved.ok().flatten();
        let physical = self.place.region();
        match &self.channel {
            Some(channel) => self.sink.note(format_args!(
                "addresses change: the comm buffer {physical} will be at {:p}",
                channel.region().as_ptr()
            )),
            None => self.sink.error(format_args!(
                "the operating system does not map the comm buffer {physical}"
            )),
        }
        if !self.entry.convert(convert) {
            self.sink.error(format_args!(
                "the operating system does not map SMI_EN; it is not checked any more"
            ));
        }
    }
}
