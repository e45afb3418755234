//! Messages from a timer, from early in the boot on, while the comm buffer moves.

use super::Services;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::Cell;
use core::ffi::c_void;
use core::time::Duration;
use mm_conformance::mm::ECHO;
use mm_core::CommBuffer;
use mm_wire::PAGE_LEN;
use patina::Guid;
use patina::component::service::uefi_services::event::{Event, EventServicesExt};
use patina::component::service::uefi_services::protocol::{ProtocolPtr, Tpl};
use patina::component::service::uefi_services::timer_event::{TimerEventServicesExt, TimerType};
use patina::error::{EfiError, Result};
use patina::management_mode::protocol::mm_comm_buffer_update::{
    MmCommBuffer, MmCommBufferUpdateProtocol, PROTOCOL_GUID,
};
use patina::pi::event::END_OF_DXE_EVENT_GROUP_GUID;
use patina_mm::component::communicator::Status;
use patina_mm::service::MmCommunication;

/// One message each.
const INTERVAL: Duration = Duration::from_millis(5);

/// Numbered messages through comm buffer 0, which moves at the end of DXE.
pub(super) struct Traffic {
    counts: Rc<Counts>,
    services: Services,
    timer: Event,
    /// The interface of the update protocol.
    pub(super) update: *const c_void,
}

/// The results of the messages.
#[derive(Default)]
pub(super) struct Counts {
    /// MM responded with what was sent.
    pub(super) served: Cell<u32>,
    /// Messages that MM served after the announcement.
    pub(super) after_the_move: Cell<u32>,
    /// No response, although no interrupted call had the buffer: lost.
    pub(super) lost: Cell<u32>,
    announced: Cell<bool>,
}

fn increment(counter: &Cell<u32>) {
    counter.set(counter.get().saturating_add(1));
}

impl Counts {
    fn send(&self, mm: &dyn MmCommunication) {
        let message = self.served.get().to_le_bytes();
        match mm.communicate(0, &message, Guid::from_bytes(&ECHO.to_bytes())) {
            Ok(response) if response == message => {
                increment(&self.served);
                if self.announced.get() {
                    increment(&self.after_the_move);
                }
            }
            // The next tick sends it.
            Err(Status::Busy) => {}
            other => {
                log::error!("message {} is lost: {other:?}", self.served.get());
                increment(&self.lost);
            }
        }
    }
}

impl Traffic {
    /// Starts to send, and announces the new place of comm buffer 0 at the end of DXE.
    pub(super) fn start(services: Services, to_come: CommBuffer) -> Result<Self> {
        let counts = Rc::new(Counts::default());
        let sending = Rc::clone(&counts);
        let timer = services
            .timers
            .on_timer_event(Tpl::Callback, move || sending.send(services.mm))?;
        services.timers.set_timer(timer, TimerType::Periodic(INTERVAL))?;

        let pages = to_come.region.len().div_ceil(PAGE_LEN as u64);
        let update = Box::into_raw(Box::new(MmCommBufferUpdateProtocol {
            version: 1,
            updated_comm_buffer: MmCommBuffer {
                physical_start: to_come.region.start(),
                number_of_pages: pages,
                status: to_come.mailbox.ok_or(EfiError::InvalidParameter)?,
            },
        }))
        .cast::<c_void>();
        let interface = ProtocolPtr::from_raw(update).ok_or(EfiError::OutOfResources)?;
        let announcing = Rc::clone(&counts);
        services
            .events
            .on_event_group(END_OF_DXE_EVENT_GROUP_GUID, Tpl::Callback, move || match services
                .protocols
                .install_interface(None, PROTOCOL_GUID, interface)
            {
                Ok(_) => announcing.announced.set(true),
                Err(error) => log::error!("the new comm buffer could not be announced: {error:?}"),
            })?;
        Ok(Self {
            counts,
            services,
            timer,
            update: update.cast_const(),
        })
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        if let Err(error) = self.services.timers.set_timer(self.timer, TimerType::Cancel) {
            log::error!("the traffic's timer goes on: {error:?}");
        }
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }
}
