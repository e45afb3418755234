//! Tells MM how far the boot has come.

use super::communicator::require_buffer;
use super::supervisor::SUPERVISOR_PROTOCOL_GUID;
use crate::config::HeaderFormat;
use crate::service::{CallOptions, MmCommunication, Status};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::event::{EventError, EventServices};
use patina::component::service::uefi_services::protocol::{ProtocolServices, Tpl};
use patina::error::EfiError;
use patina::management_mode::guid::MM_DXE_READY_TO_LOCK_PROTOCOL_GUID;
use patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID;
use patina::standard::efi;
use patina::uefi::event::{EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, READY_TO_BOOT_EVENT_GROUP_GUID};

/// What is sent: MM reads the GUID alone, but there is no message of no bytes. As edk2's Standalone MM drivers have it.
const MESSAGE: [u8; 1] = [0];

/// Component: sends a message to MM at each of these events, under the GUID that PI (volume 4, 3) and edk2's MM cores know.
///
/// | event | sent to | how often | to the supervisor, too |
/// |---|---|---|---|
/// | end of DXE (event group), ready to lock at the latest | `02ce967a-dd7e-4ffc-9ee7-810cf0470880` | each time | |
/// | ready to lock: the protocol `EFI_DXE_MM_READY_TO_LOCK` is installed, ready to boot at the latest | `60ff8964-e906-41d0-afed-f241e974e08e` | once | yes |
/// | ready to boot (event group) | `7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b` | each time, after ready to lock | |
/// | exit boot services (event group) | `27abf055-b1b8-4c26-8048-748f37baa2df` | each time | yes, once |
///
/// The supervisor is told of exit boot services once: told again, Project Mu's `main` leaves the request announced, and each
/// later MMI without a request of the users refuses it once more (`MmSupervisorCore.c`, `MmEntryPoint`). It is told nothing if
/// Project Mu's own driver does that, which shows by `gMmSupervisorCommunicationProtocolGuid`. What other drivers of the
/// platform tell MM is left out with [`Self::without`].
///
/// MM that locks before the end of DXE is a platform's mistake, which edk2's drivers stop at (`SmmIplReadyToLockEventNotify`
/// in PiSmmIpl.c): MM is told of the end of DXE first, and the log warns.
///
/// An event is not lost if MM could not be told of it. One that came in the middle of a call through the same buffer is
/// told when that call has ended, as often as it came. One that failed otherwise (SMIs are off, MM did not take the message or
/// refused it) is told with the next event, in the order of the table. That MM has no handler for an event is no failure.
///
/// Nothing is allocated when an event comes, unless an announced move of the comm buffer is put into effect with it. The
/// platform closes and locks MMRAM itself.
#[derive(Clone, Copy, Debug)]
pub struct MmEventNotifier {
    buffer: u8,
    supervisor: Option<u8>,
    left_out: u8,
}

/// An event that MM is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MmEvent {
    /// The end of DXE.
    EndOfDxe,
    /// Ready to lock.
    ReadyToLock,
    /// Ready to boot.
    ReadyToBoot,
    /// Exit boot services.
    ExitBootServices,
}

impl MmEvent {
    const fn bit(self) -> u8 {
        match self {
            Self::EndOfDxe => END_OF_DXE,
            Self::ReadyToLock => READY_TO_LOCK,
            Self::ReadyToBoot => READY_TO_BOOT,
            Self::ExitBootServices => EXIT_BOOT_SERVICES,
        }
    }
}

#[component]
impl MmEventNotifier {
    /// Makes the component, which sends through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self {
            buffer,
            supervisor: None,
            left_out: 0,
        }
    }

    /// Leaves out an event that a driver of the platform tells MM's handlers of, such as edk2's `MmCommunicationNotifyDxe`. Each
    /// call adds one. What the supervisor is told does not change.
    #[must_use]
    pub const fn without(self, event: MmEvent) -> Self {
        Self {
            left_out: self.left_out | event.bit(),
            ..self
        }
    }

    /// Tells the MM supervisor as well, through its own comm buffer (0 if the buffers come from HOBs), after the handlers of
    /// the first buffer.
    ///
    /// Project Mu's supervisor has a channel of its own: a message through the users' buffer does not reach it. Without
    /// ready to lock there it goes on to unblock memory, and without exit boot services it goes on to take requests.
    #[must_use]
    pub const fn with_supervisor_buffer(self, buffer: u8) -> Self {
        Self {
            supervisor: Some(buffer),
            ..self
        }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        events: Service<dyn EventServices>,
        protocols: Service<dyn ProtocolServices>,
    ) -> patina::error::Result<()> {
        for buffer in core::iter::once(self.buffer).chain(self.supervisor) {
            require_buffer(*mm, buffer, "MmEventNotifier")?;
        }
        let users = Listener::new("MM", self.buffer, CallOptions::new(), ALL & !self.left_out);
        // The supervisor takes no other header (Project Mu, `MmSupervisorCore.c`).
        let v1 = CallOptions::new().with_header(HeaderFormat::V1);
        let supervisor = self.supervisor.map(|buffer| {
            let wanted = READY_TO_LOCK | EXIT_BOOT_SERVICES;
            Listener {
                once: EXIT_BOOT_SERVICES,
                ..Listener::new("the MM supervisor", buffer, v1, wanted)
            }
        });
        let notifier = Rc::new(Notifier {
            mm,
            listeners: [Some(users), supervisor],
            has_ended: AtomicBool::new(false),
            was_locked: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            has_supervisors_driver: AtomicBool::new(false),
        });
        listen(&notifier, &events, &protocols).inspect_err(
            |error| log::error!(target: "mm_comm", "MM will not be told of the boot's events: {error:?}"),
        )
    }
}

const END_OF_DXE: u8 = 1 << 0;
const READY_TO_LOCK: u8 = 1 << 1;
const READY_TO_BOOT: u8 = 1 << 2;
const EXIT_BOOT_SERVICES: u8 = 1 << 3;
const ALL: u8 = END_OF_DXE | READY_TO_LOCK | READY_TO_BOOT | EXIT_BOOT_SERVICES;

/// The events in the order in which a boot comes to them.
const EVENTS: [(u8, BinaryGuid); 4] = [
    (END_OF_DXE, END_OF_DXE_EVENT_GROUP_GUID),
    (READY_TO_LOCK, MM_DXE_READY_TO_LOCK_PROTOCOL_GUID),
    (READY_TO_BOOT, READY_TO_BOOT_EVENT_GROUP_GUID),
    (EXIT_BOOT_SERVICES, EXIT_BOOT_SERVICES_EVENT_GROUP_GUID),
];

/// A part of MM that is told of events, and what it was not told yet.
struct Listener {
    name: &'static str,
    buffer: u8,
    options: CallOptions,
    /// The events that it wants to know.
    wanted: u8,
    /// Those of them that it must not be told of a second time.
    once: u8,
    /// How often each of [`EVENTS`] came and was not told yet.
    untold: [AtomicU8; EVENTS.len()],
    /// The events that it was told of and must not be told of again.
    over: AtomicU8,
}

impl Listener {
    const fn new(name: &'static str, buffer: u8, options: CallOptions, wanted: u8) -> Self {
        Self {
            name,
            buffer,
            options,
            wanted,
            once: 0,
            untold: [const { AtomicU8::new(0) }; EVENTS.len()],
            over: AtomicU8::new(0),
        }
    }

    /// Notes that these events came.
    fn add(&self, events: u8) {
        let events = events & self.wanted & !self.over.load(Ordering::Acquire);
        for ((bit, _), untold) in EVENTS.into_iter().zip(&self.untold) {
            if events & bit == 0 {
                continue;
            }
            if self.once & bit != 0 {
                untold.store(1, Ordering::Release);
            } else {
                one_more(untold);
            }
        }
    }

    /// Whether it is still to be told of an event.
    fn waits_for(&self, event: u8) -> bool {
        let mut untold = EVENTS.into_iter().zip(&self.untold);
        untold.any(|((bit, _), untold)| bit == event && untold.load(Ordering::Acquire) > 0)
    }
}

fn one_more(untold: &AtomicU8) {
    let add = |count: u8| Some(count.saturating_add(1));
    // Never fails: there is always a new value.
    let _ = untold.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
}

/// Takes one of the events that are untold; `false` if there is none.
fn one_less(untold: &AtomicU8) -> bool {
    let take = |count: u8| count.checked_sub(1);
    untold
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
        .is_ok()
}

/// What every callback has.
struct Notifier {
    mm: Service<dyn MmCommunication>,
    listeners: [Option<Listener>; 2],
    /// Whether DXE has ended, or MM was told so.
    has_ended: AtomicBool,
    /// Whether it was time to lock already.
    was_locked: AtomicBool,
    /// Whether something is untold because a call is under way.
    is_cut_off: AtomicBool,
    /// Whether the platform has a driver that tells the supervisor.
    has_supervisors_driver: AtomicBool,
}

fn listen(
    notifier: &Rc<Notifier>,
    events: &Service<dyn EventServices>,
    protocols: &Service<dyn ProtocolServices>,
) -> patina::error::Result<()> {
    let at = |group, event: u8| -> Result<(), EventError> {
        let notifier = Rc::clone(notifier);
        let callback = Box::new(move |_event| notifier.signalled(event));
        // The event lives as long as the boot.
        events
            .create_event_for_group(group, Tpl::Callback, callback)
            .map(drop)
    };
    let [_, supervisor] = &notifier.listeners;
    if supervisor.is_some() {
        let of_driver = Rc::clone(notifier);
        protocols
            .register_install_notify(
                SUPERVISOR_PROTOCOL_GUID,
                Tpl::Callback,
                Box::new(move |_handle| of_driver.leave_the_supervisor()),
            )
            .map_err(EfiError::from)?;
    }
    at(END_OF_DXE_EVENT_GROUP_GUID, END_OF_DXE)?;
    at(READY_TO_BOOT_EVENT_GROUP_GUID, READY_TO_BOOT)?;
    at(EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, EXIT_BOOT_SERVICES)?;
    let after_call = Rc::clone(notifier);
    if let Err(status) = notifier
        .mm
        .after_calls(Rc::new(move || after_call.call_has_ended()))
    {
        log::warn!(
            target: "mm_comm",
            "platform: an event in the middle of a call will be told with the next event only: {status}"
        );
    }
    let notifier = Rc::clone(notifier);
    protocols
        .register_install_notify(
            MM_DXE_READY_TO_LOCK_PROTOCOL_GUID,
            Tpl::Callback,
            Box::new(move |_handle| notifier.signalled(READY_TO_LOCK)),
        )
        .map_err(EfiError::from)?;
    Ok(())
}

impl Notifier {
    /// Tells the listeners of an event, and of those before it that are untold.
    fn signalled(&self, event: u8) {
        let mut events = event;
        if event == READY_TO_BOOT {
            events |= READY_TO_LOCK;
        }
        if events & READY_TO_LOCK != 0 && self.was_locked.swap(true, Ordering::AcqRel) {
            events &= !READY_TO_LOCK;
        } else if event == READY_TO_BOOT {
            log::warn!(target: "mm_comm", "platform: ready to boot came before ready to lock");
        }
        if events & END_OF_DXE != 0 {
            self.has_ended.store(true, Ordering::Release);
        } else if events & READY_TO_LOCK != 0 && !self.has_ended.swap(true, Ordering::AcqRel) {
            log::warn!(target: "mm_comm", "platform: ready to lock came before the end of DXE, which MM is told of first");
            events |= END_OF_DXE;
        }
        for listener in self.told() {
            // An end of DXE that comes only now is the one that MM is about to be told of.
            let is_late =
                event == END_OF_DXE && listener.waits_for(READY_TO_LOCK) && listener.waits_for(END_OF_DXE);
            listener.add(if is_late { events & !END_OF_DXE } else { events });
        }
        self.tell();
    }

    /// The platform's driver tells the supervisor from now on.
    fn leave_the_supervisor(&self) {
        if !self.has_supervisors_driver.swap(true, Ordering::AcqRel) {
            log::info!(
                target: "mm_comm",
                "gMmSupervisorCommunicationProtocolGuid is installed: its driver tells the MM supervisor of the boot's events"
            );
        }
    }

    /// Who is told of events now.
    fn told(&self) -> impl Iterator<Item = &Listener> {
        let [users, supervisor] = &self.listeners;
        let is_left = self.has_supervisors_driver.load(Ordering::Acquire);
        users.iter().chain(supervisor.iter().filter(move |_| !is_left))
    }

    /// A call that an event may have interrupted has ended.
    fn call_has_ended(&self) {
        if self.is_cut_off.swap(false, Ordering::AcqRel) {
            self.tell();
        }
    }

    /// Sends what is untold, to one listener after the other. Where a call is under way this stops, so that the order stays.
    fn tell(&self) {
        for listener in self.told() {
            for ((bit, event), untold) in EVENTS.into_iter().zip(&listener.untold) {
                // Taken before it is sent: what interrupts the sending does not send it again.
                while one_less(untold) {
                    match self.tell_one(listener, bit, event) {
                        Ok(()) => {}
                        Err(Status::Busy) => {
                            one_more(untold);
                            self.is_cut_off.store(true, Ordering::Release);
                            return;
                        }
                        Err(_) => {
                            one_more(untold);
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Tells one listener of an event. An event that it has no handler for is told.
    fn tell_one(&self, listener: &Listener, bit: u8, event: BinaryGuid) -> Result<(), Status> {
        let name = listener.name;
        match self.send(listener, event) {
            Ok(()) if self.mm.confirms(listener.buffer) => {
                log::info!(target: "mm_comm", "{name} was told of {event}");
            }
            Ok(()) => log::info!(
                target: "mm_comm",
                "{event} was sent to {name}; comm buffer {} has no status mailbox, so nothing shows that it arrived",
                listener.buffer
            ),
            Err(Status::MmReturned(efi::Status::NOT_FOUND)) => {
                log::info!(target: "mm_comm", "{name} was told of {event} and has no handler for it");
            }
            Err(Status::Busy) => {
                log::debug!(target: "mm_comm", "{name} will be told of {event} after the call under way");
                return Err(Status::Busy);
            }
            Err(status) => {
                log::error!(
                    target: "mm_comm",
                    "{name} was not told of {event}, and will be with the next event: {status}"
                );
                return Err(status);
            }
        }
        listener.over.fetch_or(listener.once & bit, Ordering::AcqRel);
        Ok(())
    }

    fn send(&self, listener: &Listener, event: BinaryGuid) -> Result<(), Status> {
        self.mm.communicate_with(
            listener.buffer,
            &MESSAGE,
            event.as_guid(),
            listener.options,
            &mut |_response| {},
        )
    }
}
