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

use super::communicator::{CallOptions, ResponseReader, Status};
use crate::config::{CommunicateBuffer, HeaderFormat};
use crate::service::MmCommunication;
use alloc::vec::Vec;
use mm_wire::hob::CommBufferPlace;
use mm_wire::message::supervisor::{
    CommUpdate, GUID, PolicyHeader, REQUEST_COMM_UPDATE, REQUEST_FETCH_POLICY, REQUEST_UNBLOCK_MEMORY,
    REQUEST_VERSION, RequestHeader, SIGNATURE, UnblockMemory, VersionInfo,
};
use mm_wire::{EfiStatus, Guid, PAGE_LEN, guid};
use patina::component::component;
use patina::component::params::Commands;
use patina::component::service::{IntoService, Service};
use patina::error::EfiError;
use patina::standard::efi;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

/// Why the supervisor did not do what it was asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorError {
    /// The message did not get there, or nothing came back.
    #[error(transparent)]
    Communication(#[from] Status),
    /// The supervisor refuses.
    #[error("MM: the supervisor answered request {request} with {result}")]
    Refused {
        /// The request's number.
        request: u32,
        /// What the response says.
        result: EfiStatus,
    },
    /// The response is to something else.
    #[error(
        "MM: the response to supervisor request {sent} is marked {signature:02x?} and to request {found}"
    )]
    NotAResponse {
        /// The number of the request.
        sent: u32,
        /// The number in the response.
        found: u32,
        /// The signature in the response.
        signature: [u8; 4],
    },
    /// The buffers of a move are not the supervisor's and the users', in this order. Nothing was sent.
    #[error(
        "caller: comm buffer {supervisor} was given as the supervisor's and {users} as the users', but the supervisor's is {own}"
    )]
    WrongBuffers {
        /// The identifier that was given as the supervisor's.
        supervisor: u8,
        /// The identifier that was given as the users'.
        users: u8,
        /// The supervisor's.
        own: u8,
    },
    /// The supervisor takes no such buffer for a move. Nothing was sent.
    #[error(
        "caller: comm buffer {id} of {old} bytes cannot move to one of {new} bytes: the supervisor wants the same length, and \
         a mailbox at the start of a page of its own"
    )]
    UnfitBuffer {
        /// The buffer's identifier.
        id: u8,
        /// Bytes of the buffer that is to move.
        old: usize,
        /// Bytes of the new one.
        new: usize,
    },
    /// The supervisor moved its own buffer, then refused the rest: it takes requests in the new buffer with the old mailbox.
    /// There is no way to reach it any more.
    #[error("MM: the supervisor moved its own comm buffer and then refused the rest of the move")]
    MovedInPart,
    /// The policy's own size is not that of the response.
    #[error("MM: the supervisor's policy says that it has {claimed} bytes, {returned} were returned")]
    PolicySize {
        /// What the policy says.
        claimed: u32,
        /// Bytes of the response behind its header.
        returned: usize,
    },
}

impl From<SupervisorError> for EfiError {
    fn from(error: SupervisorError) -> Self {
        match error {
            SupervisorError::Communication(status) => status.into(),
            SupervisorError::Refused { result, .. } => {
                let status =
                    usize::try_from(result.0).map_or(efi::Status::DEVICE_ERROR, efi::Status::from_usize);
                Self::status_to_result(status)
                    .err()
                    .unwrap_or(Self::Unknown(status))
            }
            SupervisorError::WrongBuffers { .. } | SupervisorError::UnfitBuffer { .. } => {
                Self::InvalidParameter
            }
            SupervisorError::MovedInPart => Self::DeviceError,
            SupervisorError::NotAResponse { .. } | SupervisorError::PolicySize { .. } => Self::ProtocolError,
        }
    }
}

/// Requests to the MM supervisor.
#[cfg_attr(any(test, feature = "mockall"), mockall::automock)]
pub trait MmSupervisor {
    /// Asks for the supervisor's version, and for the highest request that it knows.
    ///
    /// # Errors
    ///
    /// [`SupervisorError`].
    fn version(&self) -> Result<VersionInfo, SupervisorError>;

    /// Lets MM reach memory that is not a comm buffer. Only until the platform is locked.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Refused`] with `SECURITY_VIOLATION` where the memory does not start on a page, `ACCESS_DENIED`
    /// after the lock, `INVALID_PARAMETER` without an identifier.
    fn unblock_memory(&self, memory: &UnblockMemory) -> Result<(), SupervisorError>;

    /// Copies the security policy to the start of `out` and returns its length in bytes. The supervisor takes no change of
    /// its rules after this, be the response the policy or a refusal.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Refused`] with `BUFFER_TOO_SMALL` or `OUT_OF_RESOURCES` where `out` has no room for it.
    fn fetch_policy(&self, out: &mut [u8]) -> Result<usize, SupervisorError>;

    /// Has the supervisor use these comm buffers from now on: its own, and the users'. Each replaces the one with its
    /// identifier, and is as long; its mailbox is at the start of a zeroed page of its own. Once only, and only until the
    /// platform is locked.
    ///
    /// The response is waited for in the new place. So a refusal costs one MMI more, and all of
    /// [`completion_polls`](crate::config::MmCommunicationOptions::completion_polls).
    ///
    /// The communicator that this client sends through follows at once. Whoever else knows of the old buffers (a driver in
    /// C, another communicator) learns it through the comm-buffer update protocol, which is the caller's to install. Best
    /// called before others use the users' buffer: a call that comes while the supervisor moves it is not processed.
    ///
    /// # Errors
    ///
    /// With nothing sent: [`SupervisorError::WrongBuffers`], [`SupervisorError::UnfitBuffer`],
    /// [`Status::CommBufferDisabled`] where a buffer, old or new, is disabled, and [`Status::Busy`] where one is in use.
    /// [`SupervisorError::Refused`] with `SECURITY_VIOLATION` where the memory is not what the supervisor wants,
    /// `ACCESS_DENIED` after the lock, or where they were moved before: everything is as it was.
    /// [`SupervisorError::MovedInPart`].
    fn move_comm_buffers(
        &self,
        supervisor: CommunicateBuffer,
        users: CommunicateBuffer,
    ) -> Result<(), SupervisorError>;
}

/// Component and service: asks the supervisor for its version, and then offers [`MmSupervisor`].
#[derive(Clone, Copy, IntoService)]
#[service(dyn MmSupervisor)]
pub struct MmSupervisorClient {
    buffer: u8,
    mm: Option<Service<dyn MmCommunication>>,
}

#[component]
impl MmSupervisorClient {
    /// Makes the component for the supervisor's comm buffer: 0 where the buffers come from region HOBs.
    #[must_use]
    pub const fn new(buffer: u8) -> Self {
        Self { buffer, mm: None }
    }

    fn entry_point(
        self,
        mm: Service<dyn MmCommunication>,
        mut commands: Commands,
    ) -> patina::error::Result<()> {
        let client = Self { mm: Some(mm), ..self };
        let version = client.version().inspect_err(
            |error| log::error!(target: "mm_comm", "the MM supervisor did not tell its version: {error}"),
        )?;
        log::info!(
            target: "mm_comm",
            "MM supervisor version {:#x}, patch level {:#x}, requests up to {}",
            version.version.get(),
            version.patch_level.get(),
            version.max_request_level.get()
        );
        commands.add_service(client);
        Ok(())
    }
}

impl MmSupervisorClient {
    /// Sends a request with `body` behind its header, and with as much room as `out` has. Returns what the response has
    /// behind its own header, at the start of `out`.
    fn request<'o>(
        &self,
        request: u32,
        body: &[u8],
        out: &'o mut [u8],
    ) -> Result<&'o mut [u8], SupervisorError> {
        let mm = self.mm.as_ref().ok_or(Status::SwMmiServiceNotAvailable)?;
        let needed = size_of::<RequestHeader>().saturating_add(out.len().max(body.len()));
        let mut message = Vec::new();
        if message.try_reserve_exact(needed).is_err() {
            return Err(Status::OutOfMemory { needed }.into());
        }
        message.extend_from_slice(RequestHeader::new(request).as_bytes());
        message.extend_from_slice(body);
        message.resize(needed, 0);

        let mut result = Ok(0);
        let recipient = patina::Guid::from_bytes(&GUID.to_bytes());
        mm.communicate_with(
            self.buffer,
            &message,
            recipient,
            // Whatever the buffer's own header is: the supervisor takes no other (Project Mu, `MmSupervisorCore.c`).
            CallOptions::new().with_header(HeaderFormat::V1),
            &mut |response| {
                result = response
                    .read_value()
                    .map_err(SupervisorError::from)
                    .and_then(|header| check(request, &header))
                    .and_then(|()| Ok(response.read_rest(out)?));
            },
        )?;
        let len = result?;
        Ok(out.get_mut(..len).unwrap_or_default())
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
        result => Err(SupervisorError::Refused {
            request: sent,
            result,
        }),
    }
}

impl MmSupervisor for MmSupervisorClient {
    fn version(&self) -> Result<VersionInfo, SupervisorError> {
        let mut info = [0; size_of::<VersionInfo>()];
        let response = self.request(REQUEST_VERSION, &[], &mut info)?;
        let (expected, returned) = (size_of::<VersionInfo>(), response.len());
        VersionInfo::read_from_bytes(response)
            .map_err(|_size| Status::ResponseSize { expected, returned }.into())
    }

    fn unblock_memory(&self, memory: &UnblockMemory) -> Result<(), SupervisorError> {
        let mut echo = [0; size_of::<UnblockMemory>()];
        self.request(REQUEST_UNBLOCK_MEMORY, memory.as_bytes(), &mut echo)
            .map(drop)
    }

    fn fetch_policy(&self, out: &mut [u8]) -> Result<usize, SupervisorError> {
        let policy = self.request(REQUEST_FETCH_POLICY, &[], out)?;
        let (expected, returned) = (size_of::<PolicyHeader>(), policy.len());
        let (header, _) = PolicyHeader::read_from_prefix(policy)
            .map_err(|_too_short| Status::ResponseSize { expected, returned })?;
        let claimed = header.size.get();
        if usize::try_from(claimed) != Ok(returned) {
            return Err(SupervisorError::PolicySize { claimed, returned });
        }
        Ok(returned)
    }

    fn move_comm_buffers(
        &self,
        supervisor: CommunicateBuffer,
        users: CommunicateBuffer,
    ) -> Result<(), SupervisorError> {
        let mm = self.mm.as_ref().ok_or(Status::SwMmiServiceNotAvailable)?;
        let (own, theirs) = (supervisor.id(), users.id());
        // The supervisor goes by the places of the two in its request, and moves them once: what is mixed up here stays so.
        if own != self.buffer || theirs == self.buffer {
            let error = SupervisorError::WrongBuffers {
                supervisor: own,
                users: theirs,
                own: self.buffer,
            };
            log::error!(target: "mm_comm", "the comm buffers did not move: {error}");
            return Err(error);
        }
        let update = CommUpdate::to(place(**mm, &supervisor)?, place(**mm, &users)?, IDENTIFIER)
            .ok_or_else(|| unfit(**mm, &supervisor))?;
        let header = RequestHeader {
            result: NO_RESULT.0.into(),
            ..RequestHeader::new(REQUEST_COMM_UPDATE)
        };
        let mut message = [0; size_of::<RequestHeader>() + size_of::<CommUpdate>()];
        header
            .as_bytes()
            .iter()
            .chain(update.as_bytes())
            .zip(&mut message)
            .for_each(|(from, to)| *to = *from);

        let mut result = Ok(());
        let to = [supervisor, users];
        let mut take = |response: &mut ResponseReader<'_>| {
            result = response
                .read_value()
                .map_err(SupervisorError::from)
                .and_then(|header| check(REQUEST_COMM_UPDATE, &header));
            if let Err(SupervisorError::Refused {
                result: NO_RESULT, ..
            }) = result
            {
                result = Err(SupervisorError::MovedInPart);
            }
            result.is_ok()
        };
        let recipient = patina::Guid::from_bytes(&GUID.to_bytes());
        mm.communicate_and_move(self.buffer, &message, recipient, &to, &mut take)?;
        result.inspect_err(|error| log::error!(target: "mm_comm", "the comm buffers did not move: {error}"))
    }
}

/// In whose name memory is unblocked for a move.
const IDENTIFIER: Guid = guid!("e83ce27d-8d8d-4434-99f9-b811944b0371");

/// The result that a request to move has until it is answered: where the supervisor moved its buffer and not its mailbox, the
/// response is not where the status is.
const NO_RESULT: EfiStatus = EfiStatus(u64::MAX);

/// Where a new comm buffer is, if the supervisor takes it in the place of the one with its identifier.
fn place(mm: &dyn MmCommunication, new: &CommunicateBuffer) -> Result<CommBufferPlace, SupervisorError> {
    let v1 = CallOptions::new().with_header(HeaderFormat::V1);
    let old = mm.message_capacity(new.id(), v1)?;
    let [region, mailbox] = new.ranges();
    let pages = (new.len() / PAGE_LEN) as u64;
    region
        .filter(|_| new.len() == old.saturating_add(HeaderFormat::V1.header_len()))
        .zip(mailbox)
        .and_then(|(region, mailbox)| CommBufferPlace::new(region.start(), pages, Some(mailbox.start())).ok())
        .ok_or_else(|| unfit(mm, new))
}

fn unfit(mm: &dyn MmCommunication, new: &CommunicateBuffer) -> SupervisorError {
    let v1 = CallOptions::new().with_header(HeaderFormat::V1);
    let old = mm.message_capacity(new.id(), v1).unwrap_or(0);
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

    fn client(response: Vec<u8>) -> MmSupervisorClient {
        let mut mm = MockMmCommunication::new();
        mm.expect_communicate().return_once(move |_, _, _| Ok(response));
        let mm: Box<dyn MmCommunication> = Box::new(mm);
        MmSupervisorClient {
            buffer: 0,
            mm: Some(Service::mock(mm)),
        }
    }

    fn answer(request: u32, body: &[u8]) -> Vec<u8> {
        let mut response = RequestHeader::new(request).as_bytes().to_vec();
        response.extend_from_slice(body);
        response
    }

    #[test]
    fn a_response_to_something_else_is_none() {
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

    #[test]
    fn a_refusal_has_its_efi_error() {
        let refused = SupervisorError::Refused {
            request: 1,
            result: EfiStatus::SECURITY_VIOLATION,
        };
        assert_eq!(EfiError::from(refused), EfiError::SecurityViolation);
        assert_eq!(
            EfiError::from(SupervisorError::from(Status::Busy)),
            EfiError::AlreadyStarted
        );
    }
}
