//! The parts of Project Mu's platforms around a supervisor that are not the client under test: comm
//! buffers that share a mailbox, and MmDxeSupport, its driver in C.

use super::bring_up::{SUPERVISOR_PROTOCOL_GUID, install_marker, install_update, tell_mm};
use super::observed::Observed;
use super::{Client, SetupFailure, Site};
use crate::mm::{self, Release};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use mm_comm::mailbox::Mailbox;
use mm_wire::hob::CommBufferPlace;
use mm_wire::message::supervisor::{self, CommUpdate, RequestHeader, SharedCommUpdate};
use mm_wire::{EfiStatus, Guid, Header, HeaderFormat, MailboxImage, PAGE_LEN};
use patina::BinaryGuid;
use patina::component::service::uefi_services::tpl::Tpl;
use patina::management_mode::guid::MM_DXE_READY_TO_LOCK_PROTOCOL_GUID;
use patina::management_mode::protocol::mm_comm_buffer_update::MmCommBuffer;
use patina::uefi::event::EXIT_BOOT_SERVICES_EVENT_GROUP_GUID;
use patina_mm::config::MmCommunicationOptions;
use zerocopy::IntoBytes;

const HEADER_LEN: usize = HeaderFormat::V1.header_len();

/// Gives a supervisor's comm buffer the mailbox of its users.
pub(super) fn share_mailbox(
    site: &dyn Site,
    supervisor: Observed,
    users: &Observed,
) -> Result<Observed, SetupFailure> {
    let (base, mailbox_in_mm) = supervisor.place();
    let (_, mailbox) = users.place();
    let header = supervisor.handle.header();
    let shared = Observed::new(site, supervisor.id, base, supervisor.region.len(), mailbox)?;
    Ok(Observed {
        mailbox_in_mm,
        handle: shared.handle.with_shared_mailbox().with_header(header),
        ..shared
    })
}

/// Makes the MM side serve like a supervisor of Project Mu, by a message through the users' comm
/// buffer.
pub(super) fn serve_like(
    site: &dyn Site,
    release: Release,
    buffers: &[Observed],
) -> Result<(), SetupFailure> {
    let message = release.request();
    let users = buffers.iter().find(|buffer| buffer.id == 1);
    let status = users.and_then(|users| {
        let image = send(site, users, &MailboxImage::armed(), mm::PROJECT_MU, &message)?;
        users.mailbox.as_ref()?.write(&MailboxImage::default());
        users.region.wipe(0, HEADER_LEN + message.len()).then_some(image)
    });
    match status {
        Some(EfiStatus::SUCCESS) => Ok(()),
        _ => Err(SetupFailure::Impossible(
            "the MM side does not serve like Project Mu's supervisor",
        )),
    }
}

/// Sends a message without the client, like a driver in C: message and response stay in the comm
/// buffer. Returns the status in the mailbox; `None` if MM did not take the message.
fn send(
    site: &dyn Site,
    buffer: &Observed,
    armed: &MailboxImage,
    recipient: Guid,
    message: &[u8],
) -> Option<EfiStatus> {
    let mailbox = buffer.mailbox.as_ref()?;
    let header = Header::new(HeaderFormat::V1, recipient, message.len() as u64)?;
    let is_written =
        buffer.region.write(0, header.encode().as_ref()) && buffer.region.write(HEADER_LEN, message);
    mailbox.write(armed);
    let (ports, (command, data)) = (site.ports(), site.mmi_ports());
    ports.write_u8(data, 0);
    ports.write_u8(command, MmCommunicationOptions::DEFAULT.command_value);
    let mut looks = 0..1000;
    let is_taken = looks.any(|_| {
        ports.pause();
        !mailbox.is_pending()
    });
    (is_written && is_taken).then(|| mailbox.read().return_status())
}

/// MmDxeSupport after it was started (`MmSupervisorPkg/Drivers/MmPeiLaunchers/MmDxeSupport.c`).
struct Driver {
    client: Client,
    release: Release,
    /// The supervisor's comm buffer, in its new place.
    supervisor: Observed,
}

impl Driver {
    /// `SupvCommunicationCommunicate`.
    fn ask(&self, recipient: Guid, message: &[u8]) -> Option<EfiStatus> {
        let armed = armed(self.release);
        send(&*self.client.0.site, &self.supervisor, &armed, recipient, message)
    }

    /// `SmmIplReadyToLockEventNotify` and `SmmIplExitBootServicesEventNotify`.
    fn tell(&self, event: BinaryGuid) {
        let status = self.ask(Guid::from_bytes(*event.as_bytes()), &[0]);
        if status != Some(EfiStatus::SUCCESS) {
            log::error!("the supervisor's response to Project Mu's driver is {status:?}");
        }
    }
}

/// The mailbox with a request to the supervisor.
fn armed(release: Release) -> MailboxImage {
    match release {
        Release::V20ToV23 => MailboxImage::armed_for_supervisor(),
        Release::Main => MailboxImage::armed(),
    }
}

/// `MmDxeSupportEntry`: asks for the version, moves both comm buffers, announces the users',
/// installs its protocol, and waits for the events that it sends to the supervisor. It zeroes the
/// new mailboxes, which the real one leaves as they are.
pub(super) fn start_driver(client: &Client) -> Option<()> {
    let (site, release) = (&*client.0.site, client.0.serves_like?);
    let pages = |id| client.with_buffer(id, |buffer| buffer.region.len() / PAGE_LEN);
    let (mut supervisor, users) = (client.fresh(0, pages(0)?)?, client.fresh(1, pages(1)?)?);
    if release == Release::V20ToV23 {
        supervisor = share_mailbox(site, supervisor, &users).ok()?;
    }
    let arriving: Vec<_> = [&supervisor, &users]
        .into_iter()
        .filter_map(Observed::comm_buffer)
        .collect();
    tell_mm(site, Some(release), &client.0.buffers.borrow(), &arriving).ok()?;

    let version = supervisor::version_request();
    let request = update(release, &supervisor, &users)?;
    let in_old_place = |message: &[u8]| {
        client.with_buffer(0, |old| {
            send(site, old, &armed(release), supervisor::GUID, message)
        })
    };
    in_old_place(&version)??;
    // The response is in the new place, and the old mailbox stays as it is.
    let _ = in_old_place(&request)?;
    let mut header = RequestHeader::new(0);
    supervisor
        .region
        .read(HEADER_LEN, header.as_mut_bytes())
        .then_some(())?;
    (header.result.get() == EfiStatus::SUCCESS.0).then_some(())?;

    let place = MmCommBuffer {
        physical_start: users.region.range()?.start(),
        number_of_pages: (users.region.len() / PAGE_LEN) as u64,
        status: users.mailbox.as_ref()?.region().range()?.start(),
    };
    let driver = Driver {
        client: client.clone(),
        release,
        supervisor,
    };
    (driver.ask(supervisor::GUID, &version)? == EfiStatus::SUCCESS).then_some(())?;
    let mut buffers = client.0.buffers.borrow_mut();
    *buffers.iter_mut().find(|buffer| buffer.id == 1)? = users;
    drop(buffers);
    install_update(site, 1, place).ok()?;
    install_marker(site, SUPERVISOR_PROTOCOL_GUID);

    let driver = Rc::new(driver);
    let of_lock = Rc::clone(&driver);
    let lock = Box::new(move |_handle| of_lock.tell(MM_DXE_READY_TO_LOCK_PROTOCOL_GUID));
    site.protocols()
        .register_install_notify(MM_DXE_READY_TO_LOCK_PROTOCOL_GUID, Tpl::Callback, lock)
        .ok()?;
    if release == Release::Main {
        let group = EXIT_BOOT_SERVICES_EVENT_GROUP_GUID;
        let exit = Box::new(move |_event| driver.tell(group));
        site.events()?
            .create_event_for_group(group, Tpl::Callback, exit)
            .ok()?;
    }
    Some(())
}

/// The request of `UpdateDxeCommunicateBuffer`.
fn update(release: Release, supervisor: &Observed, users: &Observed) -> Option<Vec<u8>> {
    let place = |buffer: &Observed| {
        let pages = (buffer.region.len() / PAGE_LEN) as u64;
        let mailbox = buffer.mailbox.as_ref().map(Mailbox::region)?.range()?.start();
        CommBufferPlace::new(buffer.region.range()?.start(), pages, Some(mailbox)).ok()
    };
    let (supervisor, users) = (place(supervisor)?, place(users)?);
    let mut message = RequestHeader::new(supervisor::REQUEST_COMM_UPDATE)
        .as_bytes()
        .to_vec();
    match release {
        Release::Main => {
            message.extend_from_slice(CommUpdate::to(supervisor, users, supervisor::GUID)?.as_bytes())
        }
        Release::V20ToV23 => {
            message.extend_from_slice(SharedCommUpdate::to(supervisor, users, supervisor::GUID)?.as_bytes());
        }
    }
    Some(message)
}
