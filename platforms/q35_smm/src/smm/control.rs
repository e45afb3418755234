//! Keeps interrupts out of SMM. An unsafe island (`docs/unsafe.md`).

use core::arch::asm;
use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::service::Service;
use patina::component::service::uefi_services::event::{EventServices, EventServicesExt};
use patina::component::service::uefi_services::protocol::{ProtocolServices, ProtocolServicesExt, Tpl};
use patina::error::Result;
use patina::protocol::ProtocolInterface;
use patina::standard::efi;
use patina::uefi::event::EXIT_BOOT_SERVICES_EVENT_GROUP_GUID;

/// `Trigger()` of `EFI_SMM_CONTROL2_PROTOCOL` (PI 1.9, volume 4, 6.3.2).
type Trigger = unsafe extern "efiapi" fn(
    this: *const SmmControl2,
    command: *mut u8,
    data: *mut u8,
    periodic: efi::Boolean,
    interval: usize,
) -> efi::Status;

/// `EFI_SMM_CONTROL2_PROTOCOL` as far as it is needed.
#[repr(C)]
struct SmmControl2 {
    /// A [`Trigger`].
    trigger: AtomicPtr<c_void>,
}

// SAFETY: PI 1.9, volume 4, 6.3.2 has this GUID, and the function as the first field of the interface.
unsafe impl ProtocolInterface for SmmControl2 {
    const PROTOCOL_GUID: BinaryGuid = BinaryGuid::from_bytes(&mm_wire::protocol::CONTROL.to_bytes());
}

/// The driver's own function while [`quiet_trigger`] replaces it; null before.
static DRIVERS: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// Component: makes the firmware raise SMIs with external interrupts held back.
///
/// Before the end of DXE, SMM drivers call boot services. Patina's switch interrupts on when they
/// lower the TPL, also in SMM, but nothing can handle one there: SMM's interrupt table has exceptions
/// only. The task priority of the processor holds them back until SMM is left.
pub(crate) struct QuietSmis;

#[component]
impl QuietSmis {
    fn entry_point(
        self,
        protocols: Service<dyn ProtocolServices>,
        events: Service<dyn EventServices>,
    ) -> Result<()> {
        protocols.on_protocol_installed::<SmmControl2>(Tpl::Notify, move |handle| {
            let replaced = protocols.with_protocol_on::<SmmControl2, _>(handle, |control| {
                let quiet = quiet_trigger as Trigger as *mut c_void;
                let own = control.trigger.load(Ordering::Acquire);
                // An interface that is installed anew has this function already.
                if own != quiet {
                    DRIVERS.store(own, Ordering::Release);
                    control.trigger.store(quiet, Ordering::Release);
                }
            });
            if let Err(error) = replaced {
                log::error!("SMIs are raised with interrupts on: {error:?}");
            }
        })?;
        // The driver is a runtime driver; this core is gone by then.
        events.on_event_group(EXIT_BOOT_SERVICES_EVENT_GROUP_GUID, Tpl::Notify, move || {
            let own = DRIVERS.load(Ordering::Acquire);
            let given_back = protocols.with_protocol(|control: &SmmControl2| {
                control.trigger.store(own, Ordering::Release);
            });
            if let Err(error) = given_back {
                log::error!("SmmControl2 stays as it is: {error:?}");
            }
        })?;
        Ok(())
    }
}

/// Calls the driver's function with a task priority that holds every external interrupt back.
///
/// # Safety
///
/// That of the driver's function.
unsafe extern "efiapi" fn quiet_trigger(
    this: *const SmmControl2,
    command: *mut u8,
    data: *mut u8,
    periodic: efi::Boolean,
    interval: usize,
) -> efi::Status {
    const ALL: u64 = 15;
    let drivers = DRIVERS.load(Ordering::Acquire);
    // SAFETY: only `QuietSmis` writes `DRIVERS`, with the function that the interface had, and
    // before other code finds this function there.
    let trigger = unsafe { core::mem::transmute::<*mut c_void, Trigger>(drivers) };
    let before: u64;
    // SAFETY: a DXE core runs in ring 0. Reading CR8 changes nothing.
    unsafe { asm!("mov {}, cr8", out(reg) before, options(nomem, nostack, preserves_flags)) };
    // SAFETY: a DXE core runs in ring 0. It only delays interrupts.
    unsafe { asm!("mov cr8, {}", in(reg) ALL, options(nostack, preserves_flags)) };
    // SAFETY: the caller's promise, passed on.
    let status = unsafe { trigger(this, command, data, periodic, interval) };
    // SAFETY: a DXE core runs in ring 0; the SMI was taken when the function returned, at the latest.
    unsafe { asm!("mov cr8, {}", in(reg) before, options(nostack, preserves_flags)) };
    status
}
