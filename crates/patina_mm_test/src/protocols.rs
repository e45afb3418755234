//! A protocol database in memory, for hosts that have no firmware.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use patina::BinaryGuid;
use patina::component::Storage;
use patina::component::service::IntoService;
use patina::component::service::uefi_services::protocol::{
    Handle, NotifyCallback, NotifyRegistration, OpenAttributes, ProtocolError, ProtocolPtr, ProtocolServices,
    Tpl,
};

/// Interfaces by handle and GUID; installing one calls the callbacks that wait for it. Protocols
/// are never opened `BY_DRIVER` here, so usage is not tracked.
#[derive(Default)]
pub struct HostProtocols {
    database: RefCell<Database>,
}

#[derive(Default)]
struct Database {
    /// Handles and registrations are numbers that were never used before.
    numbers: usize,
    /// A marker does not have a pointer.
    interfaces: Vec<(Handle, BinaryGuid, Option<ProtocolPtr>)>,
    waiting: Vec<(NotifyRegistration, BinaryGuid, Option<NotifyCallback>)>,
}

impl Database {
    fn number(&mut self) -> *mut core::ffi::c_void {
        self.numbers += 1;
        core::ptr::without_provenance_mut(self.numbers)
    }

    fn find(&self, handle: Option<Handle>, protocol: BinaryGuid) -> Option<usize> {
        self.interfaces
            .iter()
            .position(|(at, guid, _)| *guid == protocol && handle.is_none_or(|handle| handle == *at))
    }

    fn interface(&self, handle: Option<Handle>, protocol: BinaryGuid) -> Result<ProtocolPtr, ProtocolError> {
        let index = self.find(handle, protocol).ok_or(ProtocolError::NotFound)?;
        self.interfaces
            .get(index)
            .and_then(|(_, _, interface)| *interface)
            .ok_or(ProtocolError::Unsupported)
    }
}

impl HostProtocols {
    fn install(
        &self,
        handle: Option<Handle>,
        protocol: BinaryGuid,
        interface: Option<ProtocolPtr>,
    ) -> Result<Handle, ProtocolError> {
        let mut database = self.database.borrow_mut();
        let handle = match handle {
            Some(handle) => handle,
            None => Handle::from_raw(database.number()).ok_or(ProtocolError::Internal)?,
        };
        if database.find(Some(handle), protocol).is_some() {
            return Err(ProtocolError::InvalidParameter);
        }
        database.interfaces.push((handle, protocol, interface));
        let registrations: Vec<_> = database
            .waiting
            .iter()
            .filter(|(_, guid, _)| *guid == protocol)
            .map(|(id, ..)| *id)
            .collect();
        drop(database);
        registrations
            .into_iter()
            .for_each(|registration| self.notify(registration, handle));
        Ok(handle)
    }

    /// Nothing is borrowed during the callback: it may use the database.
    fn notify(&self, registration: NotifyRegistration, handle: Handle) {
        let callback = |database: &mut Database| {
            database
                .waiting
                .iter_mut()
                .find(|(id, ..)| *id == registration)
                .map(|(.., callback)| callback.take())
        };
        let taken = callback(&mut self.database.borrow_mut()).flatten();
        if let Some(mut taken) = taken {
            taken(handle);
            let mut database = self.database.borrow_mut();
            if let Some((.., callback)) = database.waiting.iter_mut().find(|(id, ..)| *id == registration) {
                *callback = Some(taken);
            }
        }
    }

    fn uninstall(&self, handle: Handle, protocol: BinaryGuid) -> Result<(), ProtocolError> {
        let mut database = self.database.borrow_mut();
        let index = database
            .find(Some(handle), protocol)
            .ok_or(ProtocolError::NotFound)?;
        database.interfaces.swap_remove(index);
        Ok(())
    }
}

impl ProtocolServices for HostProtocols {
    fn install_interface(
        &self,
        handle: Option<Handle>,
        protocol: BinaryGuid,
        interface: ProtocolPtr,
    ) -> Result<Handle, ProtocolError> {
        self.install(handle, protocol, Some(interface))
    }

    fn uninstall_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        interface: ProtocolPtr,
    ) -> Result<(), ProtocolError> {
        if self.interface_on_handle(handle, protocol)? != interface {
            return Err(ProtocolError::NotFound);
        }
        self.uninstall(handle, protocol)
    }

    fn install_marker(&self, handle: Option<Handle>, protocol: BinaryGuid) -> Result<Handle, ProtocolError> {
        self.install(handle, protocol, None)
    }

    fn uninstall_marker(&self, handle: Handle, protocol: BinaryGuid) -> Result<(), ProtocolError> {
        self.uninstall(handle, protocol)
    }

    fn locate_interface(&self, protocol: BinaryGuid) -> Result<ProtocolPtr, ProtocolError> {
        self.database.borrow().interface(None, protocol)
    }

    fn locate_handles(&self, protocol: BinaryGuid) -> Result<Vec<Handle>, ProtocolError> {
        let database = self.database.borrow();
        let handles: Vec<_> = database
            .interfaces
            .iter()
            .filter(|(_, guid, _)| *guid == protocol)
            .map(|(handle, ..)| *handle)
            .collect();
        if handles.is_empty() {
            Err(ProtocolError::NotFound)
        } else {
            Ok(handles)
        }
    }

    fn interface_on_handle(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
    ) -> Result<ProtocolPtr, ProtocolError> {
        self.database.borrow().interface(Some(handle), protocol)
    }

    fn open_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        _agent: Handle,
        _attributes: OpenAttributes,
    ) -> Result<ProtocolPtr, ProtocolError> {
        self.interface_on_handle(handle, protocol)
    }

    fn close_interface(
        &self,
        handle: Handle,
        protocol: BinaryGuid,
        _agent: Handle,
        _controller: Option<Handle>,
    ) -> Result<(), ProtocolError> {
        self.interface_on_handle(handle, protocol).map(drop)
    }

    fn register_agent(&self) -> Result<Handle, ProtocolError> {
        Handle::from_raw(self.database.borrow_mut().number()).ok_or(ProtocolError::Internal)
    }

    fn register_install_notify(
        &self,
        protocol: BinaryGuid,
        _notify_tpl: Tpl,
        callback: NotifyCallback,
    ) -> Result<NotifyRegistration, ProtocolError> {
        let mut database = self.database.borrow_mut();
        let (event, context) = (database.number(), database.number());
        let registration = NotifyRegistration::from_raw(event, event, context);
        database.waiting.push((registration, protocol, Some(callback)));
        drop(database);
        // Like a DXE core, this reports interfaces that are installed already, too.
        let present = self.locate_handles(protocol).unwrap_or_default();
        present
            .into_iter()
            .for_each(|handle| self.notify(registration, handle));
        Ok(registration)
    }

    fn cancel_install_notify(&self, registration: NotifyRegistration) -> Result<(), ProtocolError> {
        let mut database = self.database.borrow_mut();
        let before = database.waiting.len();
        database.waiting.retain(|(id, ..)| *id != registration);
        if database.waiting.len() < before {
            Ok(())
        } else {
            Err(ProtocolError::NotFound)
        }
    }
}

/// Registers a protocol database that several storages share.
pub struct SharedProtocols(pub &'static dyn ProtocolServices);

impl IntoService for SharedProtocols {
    fn register(self, storage: &mut Storage) {
        Self::register_service::<dyn ProtocolServices>(storage, Box::leak(Box::new(self.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use core::cell::Cell;

    const GUID: BinaryGuid = BinaryGuid::from_string("2a22e38f-9d1c-49d0-bdce-7ddac16da45d");

    #[test]
    fn waiting_callback_may_look_the_interface_up() {
        static VALUE: u32 = 5;
        let protocols: &'static HostProtocols = Box::leak(Box::default());
        let seen = Rc::new(Cell::new(None));
        let found = Rc::clone(&seen);
        let registration = protocols
            .register_install_notify(
                GUID,
                Tpl::Callback,
                Box::new(move |handle| found.set(protocols.interface_on_handle(handle, GUID).ok())),
            )
            .unwrap();
        let interface = ProtocolPtr::from_raw((&raw const VALUE).cast_mut().cast()).unwrap();
        let handle = protocols.install_interface(None, GUID, interface).unwrap();
        assert_eq!(seen.take(), Some(interface));
        assert_eq!(protocols.locate_handles(GUID), Ok(Vec::from([handle])));

        let found: Rc<Cell<Option<Handle>>> = Rc::default();
        let first = Rc::clone(&found);
        let late = protocols
            .register_install_notify(GUID, Tpl::Callback, Box::new(move |at| first.set(Some(at))))
            .unwrap();
        assert_eq!(found.get(), Some(handle));
        protocols.cancel_install_notify(late).unwrap();

        protocols.cancel_install_notify(registration).unwrap();
        protocols.uninstall_interface(handle, GUID, interface).unwrap();
        protocols.install_interface(None, GUID, interface).unwrap();
        assert_eq!(seen.take(), None);
    }

    #[test]
    fn interfaces_and_markers_come_and_go() {
        static VALUE: u32 = 5;
        let protocols = HostProtocols::default();
        let interface = ProtocolPtr::from_raw((&raw const VALUE).cast_mut().cast()).unwrap();
        let handle = protocols.install_interface(None, GUID, interface).unwrap();
        let agent = protocols.register_agent().unwrap();
        assert_eq!(
            protocols.open_interface(handle, GUID, agent, OpenAttributes::Shared),
            Ok(interface)
        );
        assert_eq!(protocols.close_interface(handle, GUID, agent, None), Ok(()));
        let twice = protocols.install_interface(Some(handle), GUID, interface);
        assert_eq!(twice, Err(ProtocolError::InvalidParameter));
        static OTHER: u32 = 6;
        let other = ProtocolPtr::from_raw((&raw const OTHER).cast_mut().cast()).unwrap();
        assert_eq!(
            protocols.uninstall_interface(handle, GUID, other),
            Err(ProtocolError::NotFound)
        );
        assert_eq!(protocols.uninstall_interface(handle, GUID, interface), Ok(()));
        assert_eq!(
            protocols.uninstall_marker(handle, GUID),
            Err(ProtocolError::NotFound)
        );

        let marker = protocols.install_marker(None, GUID).unwrap();
        assert_eq!(protocols.locate_interface(GUID), Err(ProtocolError::Unsupported));
        assert_eq!(protocols.uninstall_marker(marker, GUID), Ok(()));
        let registration = protocols
            .register_install_notify(GUID, Tpl::Callback, Box::new(|_| {}))
            .unwrap();
        assert_eq!(protocols.cancel_install_notify(registration), Ok(()));
        assert_eq!(
            protocols.cancel_install_notify(registration),
            Err(ProtocolError::NotFound)
        );
    }
}
