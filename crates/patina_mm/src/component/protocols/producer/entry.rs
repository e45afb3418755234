//! Installs the protocols. An unsafe island (`docs/unsafe.md`): it gives addresses away to C.

use alloc::boxed::Box;
use mm_comm::c_request::{Driver, Interfaces};
use patina::BinaryGuid;
use patina::component::service::Service;
use patina::component::service::uefi_services::protocol::{ProtocolError, ProtocolPtr, ProtocolServices};

/// Installs protocols 1 and 2, and on request protocol 3, on one handle; if one fails, none.
/// `driver` serves them.
pub(super) fn install<D: Driver>(
    protocols: &Service<dyn ProtocolServices>,
    driver: D,
    with_protocol3: bool,
) -> Result<&'static D, ProtocolError> {
    let block = Box::into_raw(Box::new(Interfaces::new(driver)));
    // SAFETY: the block is freed below only if the database refused the first address.
    let interfaces = unsafe { Interfaces::to_install(block) };
    let count = if with_protocol3 { 3 } else { 2 };
    let mut handle = None;
    let mut installed = alloc::vec::Vec::with_capacity(count);
    for (guid, address) in interfaces.into_iter().take(count) {
        let guid = BinaryGuid::from_bytes(&guid.to_bytes());
        let result = ProtocolPtr::from_raw(address)
            .ok_or(ProtocolError::Internal)
            .and_then(|pointer| Ok((protocols.install_interface(handle, guid, pointer)?, pointer)));
        match (result, handle) {
            (Ok((on, pointer)), _) => {
                handle = Some(on);
                installed.push((guid, pointer));
            }
            (Err(error), Some(handle)) => {
                for (guid, pointer) in installed.into_iter().rev() {
                    if let Err(error) = protocols.uninstall_interface(handle, guid, pointer) {
                        log_line!(Error, "mm_comm", "protocol {guid} stays installed: {error:?}");
                    }
                }
                // The block stays: a caller may have located an interface meanwhile.
                return Err(error);
            }
            (Err(error), None) => {
                // SAFETY: it came from `Box::into_raw`, and no other code has one of its addresses.
                drop(unsafe { Box::from_raw(block) });
                return Err(error);
            }
        }
    }
    // SAFETY: never freed, as a caller may keep an interface for as long as it likes. Nothing
    // changes it.
    let block: &'static Interfaces<D> = unsafe { &*block };
    Ok(block.driver())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use core::ffi::c_void;
    use core::ptr::null_mut;
    use mm_comm::c_request::{Call, Communication};
    use patina::component::service::uefi_services::protocol::{Handle, MockProtocolServices};
    use patina::standard::efi;

    /// A driver that serves nothing and is counted.
    struct Counted(#[expect(dead_code, reason = "only counts")] Rc<()>);

    impl Driver for Counted {
        fn serve(&self, _: Call<'_>) -> efi::Status {
            efi::Status::SUCCESS
        }
    }

    fn handle() -> Handle {
        Handle::from_raw(core::ptr::dangling_mut()).unwrap()
    }

    #[test]
    fn all_wanted_protocols_are_installed_or_none() {
        for (wanted, failing) in [(3, 0), (3, 1), (3, 2), (3, 3), (2, 0), (2, 1), (2, 2)] {
            let mut protocols = MockProtocolServices::new();
            let mut installed = 0;
            protocols
                .expect_install_interface()
                .times(wanted.min(failing + 1))
                .returning_st(move |at, _, _| {
                    assert_eq!(at, (installed > 0).then(handle));
                    installed += 1;
                    (installed - 1 != failing)
                        .then(handle)
                        .ok_or(ProtocolError::OutOfResources)
                });
            let taken_back = if failing == wanted { 0 } else { failing };
            protocols
                .expect_uninstall_interface()
                .times(taken_back)
                .returning(|_, _, _| Ok(()));
            let protocols: Box<dyn ProtocolServices> = Box::new(protocols);
            let count = Rc::new(());
            let driver = Counted(Rc::clone(&count));
            let installed = install(&Service::mock(protocols), driver, wanted == 3);
            assert_eq!(installed.is_ok(), failing == wanted);
            // An interface that was installed and uninstalled may still be called, so its block
            // stays. A refused one is freed.
            assert_eq!(Rc::strong_count(&count), 1 + usize::from(failing > 0));
        }
    }

    #[test]
    fn null_this_is_refused() {
        let block = Box::into_raw(Box::new(Interfaces::new(Counted(Rc::default()))));
        // SAFETY: never freed.
        let [(_, first), ..] = unsafe { Interfaces::to_install(block) };
        // SAFETY: the first interface.
        let first = unsafe { first.cast::<Communication>().read() };
        let mut bytes = [0_u8; 32];
        let buffer = (&raw mut bytes).cast::<c_void>();
        let this = core::ptr::null();
        // SAFETY: the buffer is valid; a null `This` is what the function has to notice.
        let status = unsafe { (first.communicate)(this, buffer, null_mut()) };
        assert_eq!(status, efi::Status::INVALID_PARAMETER);
    }
}
