//! The service `dyn ProtocolServices` over the boot services of any firmware.
//!
//! A Patina DXE core implements this service against its own protocol database. Here every method
//! is a boot service (UEFI 2.11, 7.3), so that components which need the service run in an
//! application too. This file is an unsafe island (`docs/unsafe.md`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ffi::c_void;
use core::ptr;
use patina::BinaryGuid;
use patina::component::service::IntoService;
use patina::component::service::uefi_services::protocol::{
    Handle, NotifyCallback, NotifyRegistration, OpenAttributes, ProtocolError, ProtocolPtr, ProtocolServices,
    Tpl,
};
use patina::error::EfiError;
use patina::standard::efi;
use patina::uefi::boot_services::protocol_handler::{HandleSearchType, Registration};
use patina::uefi::boot_services::{self, BootServices, StandardBootServices};
use patina::uefi::event::EventType;
use patina::uefi::tpl_mutex::TplMutex;

/// Marks the handles that [`ProtocolServices::register_agent`] makes; it has no interface.
const AGENT_MARKER: BinaryGuid = BinaryGuid::from_string("9e0f2f5a-6c1b-4d5e-8a37-51d0c6f4e2b9");

/// `ProtocolServices` over boot services.
#[derive(IntoService)]
#[service(dyn ProtocolServices)]
pub struct BootProtocols {
    boot: &'static StandardBootServices,
    guids: GuidList,
    /// The registrations that were not cancelled. Invariant: each is the `Box::into_raw` of a live
    /// [`Notification`].
    notifications: TplMutex<Vec<*mut Notification>>,
}

impl BootProtocols {
    /// Makes the service.
    #[must_use]
    pub fn new(boot: &'static StandardBootServices) -> Self {
        Self {
            boot,
            guids: GuidList::default(),
            notifications: TplMutex::new(boot.clone(), boot_services::tpl::Tpl::NOTIFY, Vec::new()),
        }
    }

    fn install(
        &self,
        handle: Option<Handle>,
        protocol: BinaryGuid,
        interface: *mut c_void,
    ) -> Result<Handle, ProtocolError> {
        let handle = handle.map(|handle| handle.as_raw());
        let guid = self.guids.intern(protocol);
        // SAFETY: the interface belongs to the protocol: it is null for a marker, and otherwise a
        // `ProtocolPtr`, whose maker vouches for its type and lifetime. Boot services do not look
        // into it.
        let installed = unsafe {
            self.boot
                .install_protocol_interface_unchecked(handle, guid, interface)
        }
        .map_err(to_protocol_error)?;
        Handle::from_raw(installed).ok_or(ProtocolError::Internal)
    }

    fn uninstall(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        interface: *mut c_void,
    ) -> Result<(), ProtocolError> {
        let guid = self.guids.intern(protocol);
        // SAFETY: boot services compare the interface with what is installed and do not look into
        // it.
        unsafe {
            self.boot
                .uninstall_protocol_interface_unchecked(handle.as_raw(), guid, interface)
        }
        .map_err(to_protocol_error)
    }

    /// Takes a registration off the list; `false` if it is not on it.
    fn forget(&self, notification: *mut Notification) -> bool {
        let mut notifications = self.notifications.lock();
        let before = notifications.len();
        notifications.retain(|known| !ptr::eq(*known, notification));
        notifications.len() < before
    }
}

impl ProtocolServices for BootProtocols {
    fn install_interface(
        &self,
        handle: Option<Handle>,
        protocol: BinaryGuid,
        interface: ProtocolPtr,
    ) -> Result<Handle, ProtocolError> {
        self.install(handle, protocol, interface.as_raw())
    }

    fn uninstall_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        interface: ProtocolPtr,
    ) -> Result<(), ProtocolError> {
        self.uninstall(handle, protocol, interface.as_raw())
    }

    fn install_marker(&self, handle: Option<Handle>, protocol: BinaryGuid) -> Result<Handle, ProtocolError> {
        self.install(handle, protocol, ptr::null_mut())
    }

    fn uninstall_marker(&self, handle: Handle, protocol: BinaryGuid) -> Result<(), ProtocolError> {
        self.uninstall(handle, protocol, ptr::null_mut())
    }

    fn locate_interface(&self, protocol: BinaryGuid) -> Result<ProtocolPtr, ProtocolError> {
        let guid = self.guids.intern(protocol);
        // SAFETY: a null registration asks for the first interface; the response is handed on as an
        // untyped pointer.
        let interface = unsafe { self.boot.locate_protocol_unchecked(guid, ptr::null_mut()) };
        ProtocolPtr::from_raw(interface.map_err(to_protocol_error)?).ok_or(ProtocolError::NotFound)
    }

    fn locate_handles(&self, protocol: BinaryGuid) -> Result<Vec<Handle>, ProtocolError> {
        let search = HandleSearchType::ByProtocol(self.guids.intern(protocol));
        match self.boot.locate_handle_buffer(search) {
            Ok(handles) => Ok(handles.iter().copied().filter_map(Handle::from_raw).collect()),
            Err(efi::Status::NOT_FOUND) => Ok(Vec::new()),
            Err(status) => Err(to_protocol_error(status)),
        }
    }

    fn interface_on_handle(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
    ) -> Result<ProtocolPtr, ProtocolError> {
        // `HandleProtocol()` would record a usage and, on a handle without the protocol, say
        // UNSUPPORTED.
        let status = |status| match status {
            efi::Status::UNSUPPORTED => ProtocolError::NotFound,
            other => to_protocol_error(other),
        };
        // SAFETY: the response is handed on as an untyped pointer. GET_PROTOCOL needs neither agent
        // nor controller.
        let interface = unsafe {
            self.boot.open_protocol_unchecked(
                handle.as_raw(),
                &protocol,
                ptr::null_mut(),
                ptr::null_mut(),
                efi::OPEN_PROTOCOL_GET_PROTOCOL,
            )
        };
        ProtocolPtr::from_raw(interface.map_err(status)?).ok_or(ProtocolError::NotFound)
    }

    fn open_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        agent: Handle,
        attributes: OpenAttributes,
    ) -> Result<ProtocolPtr, ProtocolError> {
        let controller = raw(attributes.controller(handle));
        // SAFETY: the response is handed on as an untyped pointer; boot services check the handles.
        let interface = unsafe {
            self.boot.open_protocol_unchecked(
                handle.as_raw(),
                &protocol,
                agent.as_raw(),
                controller,
                attributes.bits(),
            )
        };
        ProtocolPtr::from_raw(interface.map_err(to_protocol_error)?).ok_or(ProtocolError::NotFound)
    }

    fn close_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        agent: Handle,
        controller: Option<Handle>,
    ) -> Result<(), ProtocolError> {
        self.boot
            .close_protocol(handle.as_raw(), &protocol, agent.as_raw(), raw(controller))
            .map_err(to_protocol_error)
    }

    fn register_agent(&self) -> Result<Handle, ProtocolError> {
        self.install_marker(None, AGENT_MARKER)
    }

    fn register_install_notify(
        &self,
        protocol: BinaryGuid,
        notify_tpl: Tpl,
        callback: NotifyCallback,
    ) -> Result<NotifyRegistration, ProtocolError> {
        let tpl = match notify_tpl {
            Tpl::Application => boot_services::tpl::Tpl::APPLICATION,
            Tpl::Callback => boot_services::tpl::Tpl::CALLBACK,
            Tpl::Notify => boot_services::tpl::Tpl::NOTIFY,
            Tpl::HighLevel => return Err(ProtocolError::InvalidParameter),
        };
        let notification = Box::into_raw(Box::new(Notification {
            boot: self.boot,
            registration: Cell::new(None),
            callback: RefCell::new(callback),
            running: Cell::new(false),
            cancelled: Cell::new(false),
        }));
        self.notifications.lock().push(notification);
        // SAFETY: the context is a live `Notification`; `cancel_install_notify` closes the event
        // before it frees it.
        let event = unsafe {
            self.boot
                .create_event_unchecked(EventType::NOTIFY_SIGNAL, tpl, Some(on_installed), notification)
        };
        let event = match event {
            Ok(event) => event,
            Err(status) => {
                self.forget(notification);
                // SAFETY: `notification` is from `Box::into_raw` above, off the list, and no event
                // knows it.
                drop(unsafe { Box::from_raw(notification) });
                return Err(to_protocol_error(status));
            }
        };
        let registration = self
            .boot
            .register_protocol_notify(self.guids.intern(protocol), event)
            .inspect(|registration| {
                // SAFETY: nothing frees the notification before its event is closed; only `Cell`s
                // are written.
                unsafe { &*notification }.registration.set(Some(*registration));
            })
            // The handles that have the protocol already are delivered like those that will.
            .and_then(|registration| self.boot.signal_event(event).map(|()| registration));
        let token = |registration| NotifyRegistration::from_raw(event, registration, notification.cast());
        match registration {
            Ok(registration) => Ok(token(registration.as_ptr())),
            Err(status) => {
                self.cancel_install_notify(token(ptr::null_mut()))?;
                Err(to_protocol_error(status))
            }
        }
    }

    fn cancel_install_notify(&self, registration: NotifyRegistration) -> Result<(), ProtocolError> {
        let notification = registration.context().cast::<Notification>();
        if !self.forget(notification) {
            return Err(ProtocolError::InvalidParameter);
        }
        if let Err(status) = self.boot.close_event(registration.event()) {
            self.notifications.lock().push(notification);
            return Err(to_protocol_error(status));
        }
        // SAFETY: it was on the list, so it is live, by the list's invariant.
        let state = unsafe { &*notification };
        state.cancelled.set(true);
        if !state.running.get() {
            // SAFETY: from `Box::into_raw`. Its event is closed, so that it cannot start again, and
            // it is not running, so that `on_installed` holds no reference; this call's own,
            // `state`, is not used again.
            drop(unsafe { Box::from_raw(notification) });
        }
        Ok(())
    }
}

/// A callback, and how to find the handles for it.
struct Notification {
    boot: &'static StandardBootServices,
    registration: Cell<Option<Registration>>,
    callback: RefCell<NotifyCallback>,
    running: Cell<bool>,
    cancelled: Cell<bool>,
}

impl Notification {
    /// The next handle on which the protocol was installed.
    fn next_handle(&self) -> Option<Handle> {
        let search = HandleSearchType::ByRegisterNotify(self.registration.get()?);
        // One handle a call: UEFI 2.11, 7.3.6.
        let handles = self.boot.locate_handle_buffer(search).ok()?;
        handles.first().copied().and_then(Handle::from_raw)
    }

    fn run(&self) {
        let Ok(mut callback) = self.callback.try_borrow_mut() else {
            // The callback lowered the TPL against the rules; the running call drains the handles.
            return;
        };
        self.running.set(true);
        while !self.cancelled.get()
            && let Some(handle) = self.next_handle()
        {
            callback(handle);
        }
        self.running.set(false);
    }
}

/// The event's notification function.
///
/// # Safety
///
/// `context` is a live [`Notification`] whose event is not closed.
unsafe extern "efiapi" fn on_installed(_event: efi::Event, context: *mut Notification) {
    // SAFETY: live by this function's contract, and it stays so while `running`: cancelling then
    // only marks it.
    let notification = unsafe { &*context };
    notification.run();
    if notification.cancelled.get() && !notification.running.get() {
        // SAFETY: from `Box::into_raw`. It was cancelled while it ran, which left the freeing to
        // this function and closed the event; the reference above is not used again.
        drop(unsafe { Box::from_raw(context) });
    }
}

/// GUIDs for the calls that want a `&'static` one, one for each protocol that was ever named.
#[derive(Default)]
struct GuidList {
    head: Cell<Option<&'static GuidNode>>,
}

struct GuidNode {
    guid: efi::Guid,
    next: Option<&'static GuidNode>,
}

impl GuidList {
    fn intern(&self, guid: BinaryGuid) -> &'static efi::Guid {
        let guid = guid.into_inner();
        let mut at = self.head.get();
        while let Some(node) = at {
            if node.guid == guid {
                return &node.guid;
            }
            at = node.next;
        }
        // A notification that gets in between these two lines at worst makes a second node for its
        // GUID.
        let node = Box::leak(Box::new(GuidNode {
            guid,
            next: self.head.get(),
        }));
        self.head.set(Some(node));
        &node.guid
    }
}

fn raw(handle: Option<Handle>) -> efi::Handle {
    handle.map_or(ptr::null_mut(), |handle| handle.as_raw())
}

fn to_protocol_error(status: efi::Status) -> ProtocolError {
    EfiError::from(status).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_kept_once() {
        const A: BinaryGuid = BinaryGuid::from_string("00000000-0000-0000-0000-00000000000a");
        const B: BinaryGuid = BinaryGuid::from_string("00000000-0000-0000-0000-00000000000b");
        let guids = GuidList::default();
        let first = guids.intern(A);
        assert_eq!(*guids.intern(B), B.into_inner());
        assert!(ptr::eq(guids.intern(A), first));
    }
}
