//! One call, and the change of addresses. An unsafe island (`docs/unsafe.md`): its memory moves.

use crate::claim::{FREE, State};
use crate::sync::AtomicU8;
use crate::{Configuration, Entry, Progress, Sink};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use mm_comm::c_request::{self, Call, Given, Interfaces, Longest, NoResponse, Refused, Reply, Request};
use mm_comm::{BeginError, Channel, ChannelError, transaction};
use mm_wire::hob::CommBufferPlace;
use mm_wire::message::variable::{self, PayloadSizeMessage};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, ResponseLength};
use r_efi::efi;
use zerocopy::{FromBytes, IntoBytes};

/// The driver's memory: the interfaces, the driver, and behind them room for two copies. A caller's
/// `This` points into it, so it is found at any address.
pub(crate) type Block<E, S> = Interfaces<Driver<E, S>>;

/// Bytes of the block for a comm buffer.
pub(crate) fn block_len<E, S>(place: CommBufferPlace) -> Option<usize> {
    let copy = usize::try_from(place.region().len()).ok()?;
    copy.checked_mul(2)?.checked_add(size_of::<Block<E, S>>())
}

/// What serves the calls.
pub(crate) struct Driver<E, S> {
    state: State,
    /// Raise the TPL; null after `ExitBootServices`.
    boot_services: AtomicPtr<efi::BootServices>,
    /// Convert pointers; null after that was done.
    runtime_services: AtomicPtr<efi::RuntimeServices>,
    /// Changed only by the event that changes addresses, while it has the claim of `state`.
    inner: UnsafeCell<Inner<E, S>>,
}

struct Inner<E, S> {
    /// `None` if the operating system has not mapped it.
    channel: Option<Channel>,
    /// Where the comm buffer is, as MM knows it.
    place: CommBufferPlace,
    entry: E,
    sink: S,
    completion_polls: u32,
    /// Whether all memory is mapped one to one, as it is until the operating system changes
    /// addresses.
    one_to_one: bool,
    /// Bytes of each of the two copies behind the driver.
    copy_len: usize,
}

/// The two services that the driver uses later.
pub(crate) struct Services {
    pub(crate) boot: *mut efi::BootServices,
    pub(crate) runtime: *mut efi::RuntimeServices,
}

/// A driver in its block.
pub(crate) struct Placed<E, S> {
    pub(crate) block: *mut Block<E, S>,
    /// What to install: GUID and address of each interface.
    pub(crate) interfaces: [(Guid, *mut c_void); 3],
}

impl<E: Entry, S: Sink> Driver<E, S> {
    /// Makes a driver in its block of [`block_len`] bytes, and wipes the comm buffer.
    ///
    /// # Safety
    ///
    /// 1. `block` is valid, aligned to a page and used by nothing else, for good.
    /// 2. So is the comm buffer that `configuration` names, with its mailbox.
    /// 3. Both are mapped one to one.
    /// 4. `services` are those of the firmware.
    pub(crate) unsafe fn place(
        block: *mut c_void,
        configuration: &Configuration,
        entry: E,
        sink: S,
        services: &Services,
    ) -> Result<Placed<E, S>, ChannelError> {
        let place = configuration.buffer;
        // SAFETY: premises 2 and 3.
        let channel = unsafe { channel(place, Some) }?;
        if let Some(channel) = &channel {
            // A request of an earlier boot phase in the mailbox is dropped.
            let _ = channel.take_over();
        }
        let block = block.cast::<Block<E, S>>();
        let new = Interfaces::new(Self {
            state: State::of(AtomicU8::new(FREE)),
            boot_services: AtomicPtr::new(services.boot),
            runtime_services: AtomicPtr::new(services.runtime),
            inner: UnsafeCell::new(Inner {
                channel,
                place,
                entry,
                sink,
                completion_polls: configuration.completion_polls,
                one_to_one: true,
                // The conversion cannot fail: `block_len` was computed from the same number.
                copy_len: usize::try_from(place.region().len()).unwrap_or(0),
            }),
        });
        // SAFETY: the block is large enough and aligned (premise 1).
        unsafe { block.write(new) };
        // SAFETY: the block is valid for good (premise 1).
        let interfaces = unsafe { Interfaces::to_install(block) };
        Ok(Placed { block, interfaces })
    }

    /// Asks MM's variable service how long a message it takes, as edk2's variable driver does when
    /// it finds the first marker.
    pub(crate) fn variable_payload_size(&self) -> Result<u64, EfiStatus> {
        let message = PayloadSizeMessage::request();
        let header = Header::new(HeaderFormat::V1, variable::GUID, size_of_val(&message) as u64);
        self.with_claim(|inner, _| {
            let (Some(channel), Some(header)) = (&inner.channel, header) else {
                return Err(EfiStatus::NOT_READY);
            };
            let mut response = [0; size_of::<PayloadSizeMessage>()];
            let (response, _) = inner.exchange(channel, &header, message.as_bytes(), &mut response)?;
            match PayloadSizeMessage::read_from_bytes(response) {
                Ok(response) => response.size(),
                // It ends before the size does.
                Err(_) => Err(EfiStatus::PROTOCOL_ERROR),
            }
        })
        .unwrap_or_else(Err)
    }

    /// The log, while boot services last.
    pub(crate) fn sink(&self) -> &S {
        &self.shared().sink
    }

    /// The address of a memory-mapped register that the entry uses.
    pub(crate) fn register(&self) -> Option<usize> {
        self.shared().entry.register()
    }

    /// Its state that moves, until addresses change.
    fn shared(&self) -> &Inner<E, S> {
        // SAFETY: all references to it are shared ones, until addresses change.
        unsafe { &*self.inner.get() }
    }

    /// Runs `serve` as the only call, at `TPL_NOTIFY` while boot services last. The bytes are room
    /// for two copies.
    ///
    /// # Errors
    ///
    /// The status for a call that comes in the middle of another one, or after a change of
    /// addresses in the middle of one.
    fn with_claim<T>(&self, serve: impl FnOnce(&Inner<E, S>, &mut [u8]) -> T) -> Result<T, EfiStatus> {
        let _raised = Raised::to_notify(&self.boot_services);
        let Some(_claim) = self.state.claim() else {
            return Err(match self.state.is_lost() {
                true => EfiStatus::NOT_READY,
                false => EfiStatus::ALREADY_STARTED,
            });
        };
        // SAFETY: with the claim, addresses do not change. So all references are shared ones.
        let inner = unsafe { &*self.inner.get() };
        let copies = ptr::from_ref(self).addr().saturating_add(size_of::<Self>());
        let copies = ptr::with_exposed_provenance_mut::<u8>(copies);
        // SAFETY:
        // 1. The driver is the last field of its block, which has twice `copy_len` bytes behind
        //    itself (`block_len`).
        // 2. Only the holder of the claim accesses them.
        // 3. `to_install` exposed the block's provenance; after a change of addresses there is no
        //    other memory under the new ones.
        let copies = unsafe { core::slice::from_raw_parts_mut(copies, inner.copy_len.saturating_mul(2)) };
        Ok(serve(inner, copies))
    }

    /// The function of `EVT_SIGNAL_EXIT_BOOT_SERVICES`, whose context is the block.
    pub(crate) unsafe extern "efiapi" fn on_exit_boot_services(_: efi::Event, context: *mut c_void) {
        // SAFETY: the context is the block, which is never freed.
        let block = unsafe { &*context.cast_const().cast::<Block<E, S>>() };
        let driver = block.driver();
        driver.boot_services.store(ptr::null_mut(), Ordering::Release);
        driver.sink().note(format_args!("boot services end"));
    }

    /// The function of `EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE`, whose context is the block. Memory is
    /// still mapped one to one; the new addresses must not be used yet (UEFI 2.11, 8.4).
    pub(crate) unsafe extern "efiapi" fn on_address_change(_: efi::Event, context: *mut c_void) {
        let block = context.cast::<Block<E, S>>();
        // SAFETY: the context is the block, which is never freed.
        let driver = unsafe { &*block.cast_const() }.driver();
        let services = driver.runtime_services.swap(ptr::null_mut(), Ordering::AcqRel);
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
        match driver.state.claim() {
            Some(_claim) => {
                // SAFETY: the claim excludes calls, and boot services, whose code uses `shared`,
                // have ended.
                let inner = unsafe { &mut *driver.inner.get() };
                inner.convert(&mut convert);
            }
            // This interrupted a call, or another processor is in one. It must not continue with
            // the old addresses.
            None => driver.state.lose(),
        }
        // SAFETY:
        // 1. The block is valid, and `driver` is a reference to another part of it.
        // 2. C finds the functions under what ConvertPointer returns.
        unsafe { Interfaces::convert(block, &mut convert) };
    }
}

impl<E: Entry, S: Sink> c_request::Driver for Driver<E, S> {
    fn serve(&self, call: Call<'_>) -> efi::Status {
        let served = self.with_claim(|inner, copies| {
            call.serve(
                inner.one_to_one,
                |given| inner.serve(given, copies),
                |error| inner.sink.error(format_args!("{error}")),
            )
        });
        served.unwrap_or_else(c_request::status_for_c)
    }
}

/// The comm buffer behind converted addresses; `None` if one of them cannot be converted. It is not
/// accessed.
///
/// # Safety
///
/// What `convert` returns for the place's addresses is valid memory for as long as the channel is
/// used.
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
    unsafe { Channel::new(base, len, mailbox) }.map(Some)
}

/// `TPL_NOTIFY` while boot services last, unless the TPL is higher already. Restores the TPL when
/// dropped.
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
        // The current TPL can only be read by raising to `TPL_HIGH_LEVEL`; lowering it through
        // `RaiseTPL` is fatal.
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
    // SAFETY: a function of the boot services, which have not ended.
    unsafe { raise_tpl(tpl) }
}

fn restore(services: *mut efi::BootServices, tpl: efi::Tpl) {
    // SAFETY: the firmware's table, until `ExitBootServices`, when the driver forgets it.
    let restore_tpl = unsafe { (*services).restore_tpl };
    // SAFETY: a function of the boot services, which have not ended.
    unsafe { restore_tpl(tpl) };
}

impl<E: Entry, S: Sink> Inner<E, S> {
    /// Serves a call, and leaves no byte of a message in `copies`.
    fn serve(&self, given: &Given<'_>, copies: &mut [u8]) -> Result<Reply, Refused> {
        let Some(channel) = &self.channel else {
            self.sink.error(format_args!(
                "platform: the operating system has not mapped the comm buffer"
            ));
            return Ok(Reply::status(EfiStatus::NOT_READY));
        };
        let longest = Longest {
            v1: channel.capacity(HeaderFormat::V1),
            v3: channel.capacity(HeaderFormat::V3),
        };
        let request = Request::check(given, longest)?;
        self.send(channel, longest, &request, copies)
    }

    fn send(
        &self,
        channel: &Channel,
        longest: Longest,
        request: &Request,
        copies: &mut [u8],
    ) -> Result<Reply, Refused> {
        let (message, response) = copies.split_at_mut(self.copy_len.min(copies.len()));
        // Never the default: a message fits into the comm buffer.
        let message = message.get_mut(..request.message_len()).unwrap_or_default();
        request.copy_message(message)?;
        let result = if !E::TAKES_EMPTY_MESSAGES && request.header().message_size() == 0 {
            self.sink.error(format_args!("caller: the message is empty"));
            Err(NoResponse::Empty)
        } else {
            self.exchange(channel, request.header(), message, response)
                .map_err(NoResponse::Status)
        };
        let reply = request.reply(message, longest, result);
        let response_len = result.map_or(0, |(response, _)| response.len());
        response.get_mut(..response_len).unwrap_or_default().fill(0);
        message.fill(0);
        reply
    }

    /// Sends a message, and copies the response; one that is longer than `response` is an error. When
    /// this returns, neither is left in shared memory.
    fn exchange<'r>(
        &self,
        channel: &Channel,
        header: &Header,
        message: &[u8],
        response: &'r mut [u8],
    ) -> Result<(&'r [u8], Option<ResponseLength>), EfiStatus> {
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
            // The entry has logged an error. The mailbox shows whether MM took the request.
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
        // Never `None` for callers in C, whose `response` is as long as the comm buffer.
        let response = shared.copy_to(response).ok_or(EfiStatus::BUFFER_TOO_SMALL)?;
        Ok((&*response, in_header))
    }

    /// Converts every address that is kept. MM still gets the physical one.
    fn convert(&mut self, convert: &mut dyn FnMut(usize) -> Option<usize>) {
        self.one_to_one = false;
        // SAFETY: the operating system maps RuntimeServicesData under the addresses that it
        // announced, until the next reset.
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
