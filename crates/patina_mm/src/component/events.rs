//! Sends the events of the boot to MM.

mod unsent;

/// What a test replaces.
mod sync {
    pub(super) use core::sync::atomic::{AtomicU8, Ordering};
}

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
use unsent::Unsent;

/// The message. MM reads only the GUID, but a message is not empty; edk2's Standalone MM drivers
/// send one byte, too.
const MESSAGE: [u8; 1] = [0];

/// Component: sends a message to MM at each of these events, with the GUID of PI (volume 4, 3) and
/// edk2's MM cores.
///
/// | event | sent to | how often | to the supervisor, too |
/// |---|---|---|---|
/// | end of DXE (event group), ready to lock at the latest | `02ce967a-dd7e-4ffc-9ee7-810cf0470880` | each time | |
/// | ready to lock: the protocol `EFI_DXE_MM_READY_TO_LOCK` is installed, ready to boot at the latest | `60ff8964-e906-41d0-afed-f241e974e08e` | once | yes |
/// | ready to boot (event group) | `7ce88fb3-4bd7-4679-87a8-a8d8dee50d2b` | each time, after ready to lock | |
/// | exit boot services (event group) | `27abf055-b1b8-4c26-8048-748f37baa2df` | each time | yes, once |
///
/// The supervisor gets exit boot services once: after a second one, Project Mu's `main` leaves the
/// request announced, and each later MMI without a request of the users refuses it again
/// (`MmSupervisorCore.c`, `MmEntryPoint`). The supervisor gets no event if Project Mu's own driver
/// sends them, which the component detects by `gMmSupervisorCommunicationProtocolGuid`.
/// [`Self::without`] leaves events out that other drivers of the platform send.
///
/// If ready to lock comes before the end of DXE, which is the platform's mistake (edk2's driver
/// asserts there: `SmmIplReadyToLockEventNotify` in PiSmmIpl.c), MM gets the end of DXE first, and
/// the log warns.
///
/// No event is lost. One that comes in the middle of a call through the same buffer is sent when
/// that call has ended, as often as it came. One that fails otherwise (SMIs are off, MM did not
/// take the message or refused it) is sent with the next event, in the order of the table. It is
/// not a failure if MM has no handler for an event.
///
/// Nothing is allocated when an event comes, except if an announced move of the comm buffer is
/// applied. The platform closes and locks MMRAM itself.
#[derive(Clone, Copy, Debug)]
pub struct MmEventNotifier {
    buffer: u8,
    supervisor: Option<u8>,
    left_out: u8,
}

/// An event that is sent to MM.
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
    /// Makes the component. It sends through this comm buffer.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self {
            buffer,
            supervisor: None,
            left_out: 0,
        }
    }

    /// Leaves out an event that a driver of the platform sends to MM's handlers, such as edk2's
    /// `MmCommunicationNotifyDxe`. Each call adds one. The supervisor still gets it.
    #[must_use]
    pub const fn without(self, event: MmEvent) -> Self {
        Self {
            left_out: self.left_out | event.bit(),
            ..self
        }
    }

    /// Also sends to the MM supervisor, through its own comm buffer (0 if the buffers come from
    /// HOBs), after the handlers of the first buffer.
    ///
    /// Project Mu's supervisor has its own channel: messages through the users' buffer do not reach
    /// it. Without ready to lock it still unblocks memory, and without exit boot services it still
    /// takes requests.
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
        // The supervisor accepts no other header (Project Mu, `MmSupervisorCore.c`).
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
        listen(&notifier, &events, &protocols).inspect_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "the boot's events will not be sent to MM: {error:?}"
            )
        })
    }
}

const END_OF_DXE: u8 = 1 << 0;
const READY_TO_LOCK: u8 = 1 << 1;
const READY_TO_BOOT: u8 = 1 << 2;
const EXIT_BOOT_SERVICES: u8 = 1 << 3;
const ALL: u8 = END_OF_DXE | READY_TO_LOCK | READY_TO_BOOT | EXIT_BOOT_SERVICES;

/// The events in the order of a boot.
const EVENTS: [(u8, BinaryGuid); 4] = [
    (END_OF_DXE, END_OF_DXE_EVENT_GROUP_GUID),
    (READY_TO_LOCK, MM_DXE_READY_TO_LOCK_PROTOCOL_GUID),
    (READY_TO_BOOT, READY_TO_BOOT_EVENT_GROUP_GUID),
    (EXIT_BOOT_SERVICES, EXIT_BOOT_SERVICES_EVENT_GROUP_GUID),
];

/// A part of MM that gets events, and the events that were not sent to it yet.
struct Listener {
    name: &'static str,
    buffer: u8,
    options: CallOptions,
    /// The events that it gets.
    wanted: u8,
    /// The events that it must not get twice.
    once: u8,
    /// How often each of [`EVENTS`] came and was not sent yet.
    unsent: [Unsent; EVENTS.len()],
    /// The events that were sent and must not be sent again.
    over: AtomicU8,
}

impl Listener {
    fn new(name: &'static str, buffer: u8, options: CallOptions, wanted: u8) -> Self {
        Self {
            name,
            buffer,
            options,
            wanted,
            once: 0,
            unsent: Default::default(),
            over: AtomicU8::new(0),
        }
    }

    /// Notes that these events came.
    fn add(&self, events: u8) {
        let events = events & self.wanted & !self.over.load(Ordering::Acquire);
        for ((bit, _), unsent) in EVENTS.into_iter().zip(&self.unsent) {
            if events & bit == 0 {
                continue;
            }
            if self.once & bit != 0 {
                unsent.add_once();
            } else {
                unsent.add();
            }
        }
    }

    /// Whether an event is still to be sent.
    fn waits_for(&self, event: u8) -> bool {
        let mut unsent = EVENTS.into_iter().zip(&self.unsent);
        unsent.any(|((bit, _), unsent)| bit == event && unsent.is_waiting())
    }
}

/// What the callbacks share.
struct Notifier {
    mm: Service<dyn MmCommunication>,
    listeners: [Option<Listener>; 2],
    /// Whether DXE has ended, or MM got the end of DXE already.
    has_ended: AtomicBool,
    /// Whether ready to lock came already.
    was_locked: AtomicBool,
    /// Whether an event waits for the end of a call.
    is_cut_off: AtomicBool,
    /// Whether the platform has a driver that sends the events to the supervisor.
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
        log_line!(
            Warn,
            "mm_comm",
            "platform: an event in the middle of a call will be sent with the next event only: {status}"
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
    /// Sends an event to the listeners, and those before it that were not sent.
    fn signalled(&self, event: u8) {
        let mut events = event;
        if event == READY_TO_BOOT {
            events |= READY_TO_LOCK;
        }
        if events & READY_TO_LOCK != 0 && self.was_locked.swap(true, Ordering::AcqRel) {
            events &= !READY_TO_LOCK;
        } else if event == READY_TO_BOOT {
            log_line!(
                Warn,
                "mm_comm",
                "platform: ready to boot came before ready to lock"
            );
        }
        if events & END_OF_DXE != 0 {
            self.has_ended.store(true, Ordering::Release);
        } else if events & READY_TO_LOCK != 0 && !self.has_ended.swap(true, Ordering::AcqRel) {
            log_line!(
                Warn,
                "mm_comm",
                "platform: ready to lock came before the end of DXE, which MM gets first"
            );
            events |= END_OF_DXE;
        }
        for listener in self.active() {
            // An end of DXE after ready to lock is the one that already waits to be sent.
            let is_late =
                event == END_OF_DXE && listener.waits_for(READY_TO_LOCK) && listener.waits_for(END_OF_DXE);
            listener.add(if is_late { events & !END_OF_DXE } else { events });
        }
        self.send_all();
    }

    /// Leaves the events for the supervisor to the platform's driver from now on.
    fn leave_the_supervisor(&self) {
        if !self.has_supervisors_driver.swap(true, Ordering::AcqRel) {
            log_line!(
                Info,
                "mm_comm",
                "gMmSupervisorCommunicationProtocolGuid is installed: its driver sends the boot's events to the MM supervisor"
            );
        }
    }

    /// The listeners that get events now.
    fn active(&self) -> impl Iterator<Item = &Listener> {
        let [users, supervisor] = &self.listeners;
        let is_left = self.has_supervisors_driver.load(Ordering::Acquire);
        users.iter().chain(supervisor.iter().filter(move |_| !is_left))
    }

    /// A call that an event may have interrupted has ended.
    fn call_has_ended(&self) {
        if self.is_cut_off.swap(false, Ordering::AcqRel) {
            self.send_all();
        }
    }

    /// Sends the events that were not sent, to one listener after the other. It stops if a call is
    /// in progress, to keep the order.
    fn send_all(&self) {
        for listener in self.active() {
            for ((bit, event), unsent) in EVENTS.into_iter().zip(&listener.unsent) {
                // Taken before it is sent, so that code that interrupts this does not send it
                // again.
                while unsent.take() {
                    match self.send_one(listener, bit, event) {
                        Ok(()) => {}
                        Err(Status::Busy) => {
                            unsent.add();
                            self.is_cut_off.store(true, Ordering::Release);
                            return;
                        }
                        Err(_) => {
                            unsent.add();
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Sends an event to a listener. If it has no handler for the event, that counts as success.
    fn send_one(&self, listener: &Listener, bit: u8, event: BinaryGuid) -> Result<(), Status> {
        let name = listener.name;
        match self.send(listener, event) {
            Ok(()) if self.mm.confirms(listener.buffer) => {
                log_line!(Info, "mm_comm", "{name} processed {event}");
            }
            Ok(()) => log_line!(
                Info,
                "mm_comm",
                "{event} was sent to {name}; comm buffer {} has no status mailbox, so nothing shows that it arrived",
                listener.buffer
            ),
            Err(Status::MmReturned(efi::Status::NOT_FOUND)) => {
                log_line!(Info, "mm_comm", "{name} has no handler for {event}");
            }
            Err(Status::Busy) => {
                log_line!(
                    Debug,
                    "mm_comm",
                    "{event} will be sent to {name} after the call that is under way"
                );
                return Err(Status::Busy);
            }
            Err(status) => {
                log_line!(
                    Error,
                    "mm_comm",
                    "{name} did not process {event}, which will be sent again with the next event: {status}"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_a_bit_of_its_own() {
        let bits = EVENTS.map(|(bit, _)| bit);
        assert!(bits.iter().all(|bit| bit.count_ones() == 1));
        assert_eq!(bits.iter().fold(0, |all, bit| all | bit), ALL);
        assert_eq!(ALL.count_ones(), 4);
    }

    #[test]
    fn event_that_is_left_out_twice_is_left_out() {
        let once = MmEventNotifier::new(7)
            .without(MmEvent::EndOfDxe)
            .without(MmEvent::ReadyToBoot);
        assert_eq!(once.left_out, END_OF_DXE | READY_TO_BOOT);
        assert_eq!(once.without(MmEvent::EndOfDxe).left_out, once.left_out);
    }

    #[test]
    fn listener_waits_for_the_events_that_came_and_were_not_sent() {
        let wanted = READY_TO_LOCK | READY_TO_BOOT | EXIT_BOOT_SERVICES;
        let listener = Listener {
            once: EXIT_BOOT_SERVICES,
            ..Listener::new("MM", 0, CallOptions::new(), wanted)
        };
        let waits_for = || {
            let waiting = EVENTS.iter().filter(|(bit, _)| listener.waits_for(*bit));
            waiting.fold(0, |all, (bit, _)| all | bit)
        };
        assert_eq!(waits_for(), 0);
        listener.add(READY_TO_LOCK | END_OF_DXE);
        assert_eq!(waits_for(), READY_TO_LOCK);
        listener.add(EXIT_BOOT_SERVICES);
        listener.add(EXIT_BOOT_SERVICES);
        assert_eq!(waits_for(), READY_TO_LOCK | EXIT_BOOT_SERVICES);
        let [_, ready_to_lock, ready_to_boot, exit_boot_services] = &listener.unsent;
        assert!(exit_boot_services.take() && !exit_boot_services.take());
        assert_eq!(waits_for(), READY_TO_LOCK);
        listener.add(READY_TO_LOCK);
        assert!(ready_to_lock.take() && ready_to_lock.take() && !ready_to_lock.take());
        assert!(!ready_to_boot.take());
        listener.over.store(EXIT_BOOT_SERVICES, Ordering::Release);
        listener.add(READY_TO_BOOT | EXIT_BOOT_SERVICES);
        assert_eq!(waits_for(), READY_TO_BOOT);
    }
}
