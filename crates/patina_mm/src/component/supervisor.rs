//! The client of Project Mu's MM supervisor.
//!
//! ```
//! use patina::component::{component, service::Service};
//! use patina_mm::service::{MmSupervisor, SupervisorVersion};
//!
//! struct ShowVersion;
//!
//! #[component]
//! impl ShowVersion {
//!     fn entry_point(self, supervisor: Service<dyn MmSupervisor>) -> patina::error::Result<()> {
//!         let SupervisorVersion { version, patch_level, .. } = supervisor.version()?;
//!         log::info!("MM supervisor {}, patch level {}", version.get(), patch_level.get());
//!         Ok(())
//!     }
//! }
//! ```

use super::communicator::Client;
use crate::config::{CommunicateBuffer, HeaderFormat};
#[cfg(any(test, feature = "mockall"))]
pub use crate::service::MockMmSupervisor;
use crate::service::{CallOptions, MmCommunication, ResponseReader, Status};
pub use crate::service::{MmSupervisor, SupervisorError, UnblockMemory};
use alloc::vec::Vec;
use mm_wire::hob::CommBufferPlace;
use mm_wire::message::supervisor::{
    CommUpdate, GUID, POLICY_SLACK, PolicyHeader, REQUEST_COMM_UPDATE, REQUEST_FETCH_POLICY,
    REQUEST_UNBLOCK_MEMORY, REQUEST_VERSION, RequestHeader, SIGNATURE, SharedCommUpdate, VersionInfo,
};
use mm_wire::{AddressRange, EfiStatus, PAGE_LEN, guid};
use patina::BinaryGuid;
use patina::component::component;
use patina::component::params::Commands;
use patina::component::service::uefi_services::protocol::{ProtocolError, ProtocolServices};
use patina::component::service::{IntoService, Service};
use zerocopy::{FromZeros, IntoBytes};

/// `gMmSupervisorCommunicationProtocolGuid`, which Project Mu's MmDxeSupport installs.
pub(super) const SUPERVISOR_PROTOCOL_GUID: BinaryGuid =
    BinaryGuid::from_bytes(&mm_wire::protocol::SUPERVISOR_COMMUNICATION.to_bytes());

/// Component and service: requests the supervisor's version, and then offers [`MmSupervisor`].
///
/// It supports Project Mu's supervisors v20.0.0 to v23.0.3, whose comm buffer shares the users'
/// mailbox ([`CommunicateBuffer::with_shared_mailbox`]), and `main` since May 2026.
#[derive(Clone, Copy, IntoService)]
#[service(dyn MmSupervisor)]
pub struct MmSupervisorClient {
    buffer: u8,
    mm: Option<Service<dyn MmCommunication>>,
    protocols: Option<Service<dyn ProtocolServices>>,
}

#[component]
impl MmSupervisorClient {
    /// Makes the component for the supervisor's comm buffer: 0 if the buffers come from HOBs.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self {
            buffer,
            mm: None,
            protocols: None,
        }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        protocols: Option<Service<dyn ProtocolServices>>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let client = Self {
            mm: Some(mm),
            protocols,
            ..self
        };
        let version = client.version().inspect_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "the MM supervisor did not return its version: {error}"
            )
        })?;
        log_line!(
            Info,
            "mm_comm",
            "MM supervisor version {:#x}, patch level {:#x}, requests up to {}",
            version.version.get(),
            version.patch_level.get(),
            version.max_request_level.get()
        );
        commands.add_service(client);
        Ok(())
    }
}

/// Reads the rest of a response, behind its header.
type TakeBody<'t> = &'t mut dyn FnMut(&mut ResponseReader<'_>) -> Result<(), SupervisorError>;

impl MmSupervisorClient {
    /// Sends a request with `body` behind its header and `room` bytes for the response. `take`
    /// reads the response behind its header.
    fn request(
        &self,
        request: u32,
        body: &[u8],
        room: usize,
        take: TakeBody<'_>,
    ) -> Result<(), SupervisorError> {
        let mm = self.mm.as_ref().ok_or(Status::SwMmiServiceNotAvailable)?;
        let needed = size_of::<RequestHeader>().saturating_add(room.max(body.len()));
        let mut message = Vec::new();
        if message.try_reserve_exact(needed).is_err() {
            return Err(Status::OutOfMemory { needed }.into());
        }
        message.extend_from_slice(header(request).as_bytes());
        message.extend_from_slice(body);
        message.resize(needed, 0);

        let mut result = Err(SupervisorError::NotTaken { request });
        let sent = mm.communicate_with(self.buffer, &message, RECIPIENT.as_guid(), V1, &mut |response| {
            result = response
                .read_value()
                .map_err(SupervisorError::from)
                .and_then(|header| check(request, &header))
                .and_then(|()| take(response));
        });
        if let Err(status) = sent {
            self.look_for_the_platforms_driver(status);
            return Err(status.into());
        }
        result
    }

    /// Whether the platform has Project Mu's MmDxeSupport.
    fn has_driver(&self) -> bool {
        let is_installed = |protocols: &Service<dyn ProtocolServices>| {
            protocols.locate_interface(SUPERVISOR_PROTOCOL_GUID) != Err(ProtocolError::NotFound)
        };
        self.protocols.as_ref().is_some_and(is_installed)
    }

    /// Logs an error if the platform's driver may be the reason why a request did not reach the
    /// supervisor.
    fn look_for_the_platforms_driver(&self, status: Status) {
        let could_be = matches!(
            status,
            // The driver's own move request may still be in the mailbox that it no longer uses.
            Status::MailboxInUse | Status::NotProcessed | Status::MmReturned(_) | Status::CommBufferDisabled
        );
        if could_be && self.has_driver() {
            log_line!(
                Error,
                "mm_comm",
                "platform: gMmSupervisorCommunicationProtocolGuid is installed: its driver (MmDxeSupport) moves the \
                 supervisor's comm buffer without announcing it, and closes its channel at ExitBootServices, so that comm \
                 buffer {} may not be the supervisor's any more. Send through that protocol, or leave that driver out",
                self.buffer
            );
        }
    }
}

/// The supervisor accepts no other header, also if the buffer's own is v3 (Project Mu,
/// `MmSupervisorCore.c`).
const V1: CallOptions = CallOptions::new().with_header(HeaderFormat::V1);

const RECIPIENT: BinaryGuid = BinaryGuid::from_bytes(&GUID.to_bytes());

/// The header of a request, with [`NO_RESULT`].
fn header(request: u32) -> RequestHeader {
    RequestHeader {
        result: NO_RESULT.0.into(),
        ..RequestHeader::new(request)
    }
}

fn check(sent: u32, header: &RequestHeader) -> Result<(), SupervisorError> {
    let (signature, found) = (header.signature, header.request.get());
    if signature != SIGNATURE || found != sent {
        return Err(SupervisorError::NotAResponse {
            sent,
            found,
            signature,
        });
    }
    match EfiStatus(header.result.get()) {
        EfiStatus::SUCCESS => Ok(()),
        NO_RESULT => Err(SupervisorError::NotTaken { request: sent }),
        result => Err(SupervisorError::Refused {
            request: sent,
            result,
        }),
    }
}

impl MmSupervisor for MmSupervisorClient {
    fn version(&self) -> Result<VersionInfo, SupervisorError> {
        let expected = size_of::<VersionInfo>();
        let mut version = VersionInfo::new_zeroed();
        self.request(REQUEST_VERSION, &[], expected, &mut |response| {
            let returned = response.remaining();
            if returned < expected {
                return Err(Status::ResponseSize { expected, returned }.into());
            }
            response.read_rest(version.as_mut_bytes())?;
            Ok(())
        })?;
        match version.max_request_level.get() {
            claimed if claimed < u64::from(REQUEST_VERSION) => Err(SupervisorError::RequestLevel { claimed }),
            _ => Ok(version),
        }
    }

    fn unblock_memory(&self, memory: &UnblockMemory) -> Result<(), SupervisorError> {
        let (address, pages) = (memory.physical_start(), memory.pages());
        let len = pages.checked_mul(PAGE_LEN as u64);
        // There is no empty range.
        len.and_then(|len| AddressRange::new(address, len))
            .filter(|range| range.start().is_multiple_of(PAGE_LEN as u64))
            .ok_or(SupervisorError::NoWholePages { address, pages })?;
        self.request(
            REQUEST_UNBLOCK_MEMORY,
            memory.0.as_bytes(),
            0,
            &mut |_echo| Ok(()),
        )
    }

    fn fetch_policy(&self, out: &mut [u8]) -> Result<usize, SupervisorError> {
        let mm = self.mm.as_ref().ok_or(Status::SwMmiServiceNotAvailable)?;
        let expected = size_of::<PolicyHeader>();
        let wanted = out.len().saturating_add(POLICY_SLACK);
        // The comm buffer may be smaller; then the supervisor decides whether the policy fits.
        let room = mm
            .message_capacity(self.buffer, V1)
            .map_or(wanted, |capacity| {
                capacity.saturating_sub(size_of::<RequestHeader>())
            })
            .min(wanted);
        let mut len = 0;
        self.request(REQUEST_FETCH_POLICY, &[], room, &mut |response| {
            let returned = response.remaining();
            let header: PolicyHeader = response.read_value()?;
            // Without a mailbox the policy's length is only in the policy.
            let claimed = header.size.get();
            let is_whole = |len: &usize| (expected..=returned).contains(len);
            let needed = usize::try_from(claimed)
                .ok()
                .filter(is_whole)
                .ok_or(SupervisorError::PolicySize { claimed, returned })?;
            let room = out.len();
            let policy = out
                .get_mut(..needed)
                .ok_or(Status::ResponseTooLong { needed, room })?;
            for (to, from) in policy.iter_mut().zip(header.as_bytes()) {
                *to = *from;
            }
            response.read(policy.get_mut(expected..).unwrap_or_default());
            len = needed;
            Ok(())
        })?;
        Ok(len)
    }

    fn move_comm_buffers(
        &self,
        supervisor: CommunicateBuffer,
        users: CommunicateBuffer,
    ) -> Result<(), SupervisorError> {
        let mm = self.mm.as_ref().ok_or(Status::SwMmiServiceNotAvailable)?;
        let (own, theirs) = (supervisor.id(), users.id());
        // The supervisor distinguishes the two by their position in the request, and moves them
        // only once: a mistake could not be corrected.
        if own != self.buffer || theirs == self.buffer {
            let error = SupervisorError::WrongBuffers {
                supervisor: own,
                users: theirs,
                own: self.buffer,
            };
            log_line!(Error, "mm_comm", "the comm buffers did not move: {error}");
            return Err(error);
        }
        if self.has_driver() {
            log_line!(
                Error,
                "mm_comm",
                "the comm buffers did not move: {}",
                SupervisorError::HasDriver
            );
            return Err(SupervisorError::HasDriver);
        }
        let (to_own, to_theirs) = (place(**mm, &supervisor)?, place(**mm, &users)?);
        let mut message = Vec::from(header(REQUEST_COMM_UPDATE).as_bytes());
        if supervisor.has_shared_mailbox() {
            let update = SharedCommUpdate::to(to_own, to_theirs, IDENTIFIER);
            message.extend_from_slice(update.ok_or_else(|| unfit(**mm, &supervisor))?.as_bytes());
        } else {
            let update = CommUpdate::to(to_own, to_theirs, IDENTIFIER);
            message.extend_from_slice(update.ok_or_else(|| unfit(**mm, &supervisor))?.as_bytes());
        }

        let mut result = Ok(());
        let to = [supervisor, users];
        let mut take = |response: &mut ResponseReader<'_>| {
            result = response
                .read_value()
                .map_err(SupervisorError::from)
                .and_then(|header| check(REQUEST_COMM_UPDATE, &header));
            result.is_ok()
        };
        let client = Client::of(&***mm).ok_or(Status::Unsupported)?;
        client
            .communicate_and_move(self.buffer, &message, RECIPIENT.as_guid(), &to, &mut take)
            .inspect_err(|status| self.look_for_the_platforms_driver(*status))?;
        let [supervisor, users] = &to;
        let is_at = |place| client.is_at(place);
        if let Err(SupervisorError::Refused { result: refusal, .. }) = result
            && is_at(supervisor)
        {
            result = Err(SupervisorError::MovedInPart {
                result: refusal,
                users_moved: is_at(users),
            });
        }
        result.inspect_err(|error| {
            log_line!(
                Error,
                "mm_comm",
                "the comm buffers did not move as asked: {error}"
            )
        })
    }
}

/// The identifier under which memory is unblocked for a move.
const IDENTIFIER: mm_wire::Guid = guid!("e83ce27d-8d8d-4434-99f9-b811944b0371");

/// The result in a request. The supervisor overwrites it in each request that it takes
/// (`MmSupervisorPkg/Core/Request/RequestDispatcher.c`): a message that still has it is not a
/// response.
const NO_RESULT: EfiStatus = EfiStatus(u64::MAX);

/// The addresses of a new comm buffer, if the supervisor accepts it instead of the one with its
/// identifier.
fn place(mm: &dyn MmCommunication, new: &CommunicateBuffer) -> Result<CommBufferPlace, SupervisorError> {
    let old = mm.message_capacity(new.id(), V1)?;
    let [region, mailbox] = new.ranges();
    let pages = (new.len() / PAGE_LEN) as u64;
    region
        .filter(|_| new.len() == old.saturating_add(HeaderFormat::V1.header_len()))
        .zip(mailbox)
        .and_then(|(region, mailbox)| CommBufferPlace::new(region.start(), pages, Some(mailbox.start())).ok())
        .ok_or_else(|| unfit(mm, new))
}

fn unfit(mm: &dyn MmCommunication, new: &CommunicateBuffer) -> SupervisorError {
    let old = mm.message_capacity(new.id(), V1).unwrap_or(0);
    SupervisorError::UnfitBuffer {
        id: new.id(),
        old: old.saturating_add(HeaderFormat::V1.header_len()),
        new: new.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::communicator::MockMmCommunication;
    use super::*;
    use alloc::boxed::Box;
    use alloc::string::ToString;
    use patina::error::EfiError;

    fn client(response: Vec<u8>) -> MmSupervisorClient {
        let mut mm = MockMmCommunication::new();
        mm.expect_communicate().return_once(move |_, _, _| Ok(response));
        let mm: Box<dyn MmCommunication> = Box::new(mm);
        MmSupervisorClient {
            mm: Some(Service::mock(mm)),
            ..MmSupervisorClient::new(0)
        }
    }

    fn answer(request: u32, body: &[u8]) -> Vec<u8> {
        let mut response = RequestHeader::new(request).as_bytes().to_vec();
        response.extend_from_slice(body);
        response
    }

    #[test]
    fn response_to_another_request_is_an_error() {
        assert_eq!(
            client(answer(4, &[0; 16])).version(),
            Err(SupervisorError::NotAResponse {
                sent: 3,
                found: 4,
                signature: *b"MSUP"
            })
        );
    }

    #[test]
    fn sizes_are_checked_with_their_numbers() {
        let short = |expected, returned| Err(Status::ResponseSize { expected, returned }.into());
        assert_eq!(client(answer(3, &[0; 15])).version(), short(16, 15));
        assert_eq!(client(alloc::vec![0; 23]).version(), short(24, 23));
        assert_eq!(
            client(answer(3, &[0; 17])).version(),
            Err(Status::ResponseTooLong { needed: 17, room: 16 }.into())
        );
        assert_eq!(
            client(answer(2, &[0, 0, 1, 0, 9, 0, 0, 0])).fetch_policy(&mut [0; 100]),
            Err(SupervisorError::PolicySize {
                claimed: 9,
                returned: 8
            })
        );
    }

    /// A client whose MM does nothing: through a comm buffer without a mailbox that looks like
    /// success.
    fn without_mm() -> MmSupervisorClient {
        let mut mm = MockMmCommunication::new();
        mm.expect_communicate()
            .returning(|_, message, _| Ok(message.to_vec()));
        let mm: Box<dyn MmCommunication> = Box::new(mm);
        MmSupervisorClient {
            mm: Some(Service::mock(mm)),
            ..MmSupervisorClient::new(0)
        }
    }

    const WHO: BinaryGuid = BinaryGuid::from_string("5f1c1d0e-33a5-4f7e-9d1b-6b0c2f2a7f10");

    #[test]
    fn request_that_comes_back_as_it_was_sent_is_not_a_success() {
        let not_taken = |request| SupervisorError::NotTaken { request };
        assert_eq!(without_mm().version(), Err(not_taken(3)));
        let memory = UnblockMemory::runtime_data(0x7e00_0000, 4, WHO);
        assert_eq!(without_mm().unblock_memory(&memory), Err(not_taken(1)));
        assert_eq!(without_mm().fetch_policy(&mut [0; 64]), Err(not_taken(2)));
        assert_eq!(EfiError::from(not_taken(1)), EfiError::NoResponse);
    }

    #[test]
    fn a_supervisor_without_the_version_request_is_refused() {
        for claimed in [0, 1, 2] {
            let mut body = [0; 16];
            body[8] = claimed;
            let claimed = claimed.into();
            assert_eq!(
                client(answer(3, &body)).version(),
                Err(SupervisorError::RequestLevel { claimed })
            );
        }
    }

    #[test]
    fn a_supervisor_whose_last_request_is_the_version_is_accepted() {
        let mut body = [0; 16];
        body[8] = 3;
        let version = client(answer(3, &body)).version().unwrap();
        assert_eq!(version.max_request_level.get(), 3);
    }

    #[test]
    fn move_with_either_buffer_in_the_wrong_place_is_refused() {
        let buffer = |id| {
            let memory = Box::leak(alloc::vec![0_u8; 64].into_boxed_slice());
            CommunicateBuffer::new(core::pin::Pin::new(memory), id)
        };
        for (supervisor, users) in [(1, 0), (1, 2), (0, 0)] {
            let error = SupervisorError::WrongBuffers {
                supervisor,
                users,
                own: 0,
            };
            let moved = client(Vec::new()).move_comm_buffers(buffer(supervisor), buffer(users));
            assert_eq!(moved, Err(error));
        }
    }

    #[test]
    fn without_a_mailbox_the_policy_has_its_length() {
        let mut body = alloc::vec![0; 100];
        body[..16].copy_from_slice(&[0, 0, 1, 0, 16, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut out = [0xee; 20];
        assert_eq!(client(answer(2, &body)).fetch_policy(&mut out), Ok(16));
        assert_eq!(out[..16], body[..16]);
        assert_eq!(out[16..], [0xee; 4]);
        assert_eq!(
            client(answer(2, &body)).fetch_policy(&mut [0; 15]),
            Err(Status::ResponseTooLong { needed: 16, room: 15 }.into())
        );
        // Less than the policy's header.
        body[4] = 7;
        assert_eq!(
            client(answer(2, &body)).fetch_policy(&mut out),
            Err(SupervisorError::PolicySize {
                claimed: 7,
                returned: 100
            })
        );
    }

    #[test]
    fn memory_that_is_not_whole_pages_is_not_sent() {
        let mut mm = MockMmCommunication::new();
        mm.expect_communicate().never();
        let mm: Box<dyn MmCommunication> = Box::new(mm);
        let client = MmSupervisorClient {
            mm: Some(Service::mock(mm)),
            ..MmSupervisorClient::new(0)
        };
        for (address, pages) in [
            (0x7e00_0800, 1),
            (0x7e00_0001, 4),
            (0x7e00_0000, 0),
            (0x7e00_0000, 1 << 52),
            (u64::MAX - 0xfff, 2),
        ] {
            let error = SupervisorError::NoWholePages { address, pages };
            let memory = UnblockMemory::runtime_data(address, pages, WHO);
            assert_eq!(client.unblock_memory(&memory), Err(error));
            assert_eq!(EfiError::from(error), EfiError::InvalidParameter);
        }
    }

    #[test]
    fn each_of_the_sdks_guids_names_the_unblocking_component() {
        let owned: patina::OwnedGuid = WHO.into();
        let all = [
            UnblockMemory::runtime_data(0x1000, 1, WHO),
            UnblockMemory::runtime_data(0x1000, 1, WHO),
            UnblockMemory::runtime_data(0x1000, 1, WHO.as_guid()),
            UnblockMemory::runtime_data(0x1000, 1, owned),
        ];
        for memory in all {
            assert_eq!(memory.0.identifier, *WHO.as_bytes());
        }
        assert_eq!(all[0].with_attributes(0x4_0000).0.attributes.get(), 0x4_0000);
    }

    #[test]
    fn the_guid_of_the_platforms_driver_is_project_mus() {
        assert_eq!(
            SUPERVISOR_PROTOCOL_GUID.to_string(),
            "495B267C-FC7F-4F03-AD1F-D86769E325B5"
        );
    }

    #[test]
    fn half_a_move_is_an_error_with_its_reason() {
        let error = SupervisorError::MovedInPart {
            result: EfiStatus::SECURITY_VIOLATION,
            users_moved: false,
        };
        let text = error.to_string();
        assert!(text.contains("EFI_SECURITY_VIOLATION"), "{text}");
        assert!(text.contains("the users' did not"), "{text}");
    }

    #[test]
    fn a_refusal_has_its_efi_error() {
        let refused = SupervisorError::Refused {
            request: 1,
            result: EfiStatus::SECURITY_VIOLATION,
        };
        assert_eq!(EfiError::from(refused), EfiError::SecurityViolation);
        // A result without the error bit is not success either.
        let warned = SupervisorError::Refused {
            request: 1,
            result: EfiStatus(5),
        };
        assert_eq!(EfiError::from(warned), EfiError::NotFound);
        assert_eq!(
            EfiError::from(SupervisorError::from(Status::Busy)),
            EfiError::AlreadyStarted
        );
    }
}
