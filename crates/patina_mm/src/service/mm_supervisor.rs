//! The service that sends requests to Project Mu's MM supervisor.

use super::efi::error_of;
use super::status::Status;
use crate::config::CommunicateBuffer;
use mm_wire::EfiStatus;
use mm_wire::message::supervisor::{self, REQUEST_VERSION, VersionInfo};
use patina::Guid;
use patina::error::EfiError;
use thiserror::Error;

/// Why the supervisor did not serve a request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisorError {
    /// The message did not reach the supervisor, or has no response.
    #[error(transparent)]
    Communication(#[from] Status),
    /// The supervisor refused the request.
    #[error("MM: the supervisor refused request {request}: {result}")]
    Refused {
        /// The request's number.
        request: u32,
        /// The result in the response.
        result: EfiStatus,
    },
    /// The response belongs to another request, or is not one.
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
    /// The buffers of a move are not the supervisor's and the users', in this order. Nothing was
    /// sent.
    #[error(
        "caller: comm buffer {supervisor} was given as the supervisor's and {users} as the users', but the supervisor's is {own}"
    )]
    WrongBuffers {
        /// The identifier that was given as the supervisor's.
        supervisor: u8,
        /// The identifier that was given as the users'.
        users: u8,
        /// The identifier of the supervisor's comm buffer.
        own: u8,
    },
    /// The supervisor would refuse to move a comm buffer to this memory. Nothing was sent.
    #[error(
        "caller: comm buffer {id} of {old} bytes cannot move to one of {new} bytes: the supervisor requires the same length, \
         and a mailbox at the start of a page of its own"
    )]
    UnfitBuffer {
        /// The buffer's identifier.
        id: u8,
        /// Bytes of the old buffer.
        old: usize,
        /// Bytes of the new one.
        new: usize,
    },
    /// The platform has a driver that moves the buffers, and would continue to use the old ones.
    /// Nothing was sent.
    #[error(
        "platform: gMmSupervisorCommunicationProtocolGuid is installed: its driver (MmDxeSupport) cannot follow a move; let it make \
         the move, or remove it"
    )]
    HasDriver,
    /// The supervisor moved its own buffer, then refused the rest. The communicator follows: it
    /// uses the supervisor's new buffer with the old mailbox, and the users' buffer in the place
    /// that `users_moved` says, with the old mailbox. Both work.
    #[error(
        "MM: the supervisor refused half of the move with {result}: its own comm buffer moved, the users' {}, the mailboxes stay; \
         they are used in this way from now on",
        match .users_moved { true => "moved too", false => "did not" }
    )]
    MovedInPart {
        /// Why it refused the rest.
        result: EfiStatus,
        /// Whether the users' buffer moved too.
        users_moved: bool,
    },
    /// The response is the request as it was sent: MM was not entered, or no supervisor took the
    /// request. This happens only with a comm buffer without a status mailbox.
    #[error(
        "MM: request {request} came back as it was sent: no supervisor took it, or MM was never entered (the comm buffer does not \
         have a status mailbox that would show it)"
    )]
    NotTaken {
        /// The request's number.
        request: u32,
    },
    /// The response to the version request says that the supervisor does not know that request.
    #[error(
        "MM: the supervisor's response to request {REQUEST_VERSION} says that it knows requests up to {claimed}"
    )]
    RequestLevel {
        /// The highest request, according to the response.
        claimed: u64,
    },
    /// The memory to unblock is not whole pages. Nothing was sent: a supervisor built as RELEASE
    /// reports success for such memory and maps nothing; one built as DEBUG halts.
    #[error(
        "caller: {pages} pages at {address:#x} cannot be unblocked: memory starts on a page of 4096 bytes, has at least one, and \
         ends inside the address space"
    )]
    NoWholePages {
        /// The memory's address.
        address: u64,
        /// Its pages.
        pages: u64,
    },
    /// The policy's length is beyond the response, or below its header.
    #[error("MM: the supervisor's policy says that it has {claimed} bytes, of {returned} that were returned")]
    PolicySize {
        /// The length in the policy.
        claimed: u32,
        /// Bytes of the response behind its header.
        returned: usize,
    },
}

impl From<SupervisorError> for EfiError {
    fn from(error: SupervisorError) -> Self {
        match error {
            SupervisorError::Communication(status) => status.into(),
            SupervisorError::Refused { result, .. } => error_of(result),
            SupervisorError::WrongBuffers { .. }
            | SupervisorError::UnfitBuffer { .. }
            | SupervisorError::NoWholePages { .. } => Self::InvalidParameter,
            SupervisorError::HasDriver => Self::AccessDenied,
            SupervisorError::MovedInPart { .. } => Self::DeviceError,
            SupervisorError::NotTaken { .. } => Self::NoResponse,
            SupervisorError::NotAResponse { .. }
            | SupervisorError::RequestLevel { .. }
            | SupervisorError::PolicySize { .. } => Self::ProtocolError,
        }
    }
}

/// Requests to the MM supervisor.
#[cfg_attr(any(test, feature = "mockall"), mockall::automock)]
pub trait MmSupervisor {
    /// Returns the supervisor's version, and the highest request that it knows.
    ///
    /// # Errors
    ///
    /// [`SupervisorError`].
    fn version(&self) -> Result<VersionInfo, SupervisorError>;

    /// Lets MM access memory that is not a comm buffer. Possible only until ready to lock.
    ///
    /// # Errors
    ///
    /// With nothing sent: [`SupervisorError::NoWholePages`]. [`SupervisorError::Refused`] with
    /// `ACCESS_DENIED` after the lock, `INVALID_PARAMETER` without an identifier,
    /// `SECURITY_VIOLATION` for memory of MM, of a comm buffer or mailbox, or that overlaps what
    /// was unblocked before, `NO_MAPPING` for memory around such memory.
    fn unblock_memory(&self, memory: &UnblockMemory) -> Result<(), SupervisorError>;

    /// Copies the security policy to the start of `out`, and returns its length in bytes. After
    /// this the supervisor does not accept changes of its rules, also if it refuses the request.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Refused`] with `BUFFER_TOO_SMALL` or `OUT_OF_RESOURCES` if `out` or the
    /// comm buffer is too small. The supervisor requires 24 bytes more than the policy has: the
    /// comm buffer has to have them, `out` does not.
    fn fetch_policy(&self, out: &mut [u8]) -> Result<usize, SupervisorError>;

    /// Makes the supervisor use these comm buffers from now on: its own, and the users'. Each
    /// replaces the one with its identifier and has the same length; its mailbox is alone on a
    /// page, at the start. Possible once, and only until ready to lock.
    ///
    /// The releases v20.0.0 to v23.0.3 have one mailbox for both: the supervisor's buffer then has
    /// the users' mailbox ([`CommunicateBuffer::with_shared_mailbox`]), in the new place and in the
    /// old one.
    ///
    /// The call waits for the response in the new place, so a refusal costs one more MMI and the
    /// whole timeout,
    /// [`completion_polls`](crate::config::MmCommunicationOptions::completion_polls).
    ///
    /// The communicator that this client sends through uses the new buffers when this returns.
    /// Drivers in C and other communicators learn of the move through the comm-buffer update
    /// protocol, which the caller installs. A call of this communicator that comes while the
    /// supervisor moves the buffers gets [`Status::Busy`].
    ///
    /// # Errors
    ///
    /// With nothing sent: [`SupervisorError::WrongBuffers`], [`SupervisorError::UnfitBuffer`],
    /// [`SupervisorError::HasDriver`], [`Status::CommBufferDisabled`] if a buffer, old or new, is
    /// disabled, and [`Status::Busy`] if one is in use. [`SupervisorError::Refused`] with
    /// `SECURITY_VIOLATION` if the supervisor does not accept the memory, with `ACCESS_DENIED`
    /// after the lock or after an earlier move: nothing has changed then.
    /// [`SupervisorError::MovedInPart`] if it moved its own buffer and refuses the rest.
    fn move_comm_buffers(
        &self,
        supervisor: CommunicateBuffer,
        users: CommunicateBuffer,
    ) -> Result<(), SupervisorError>;
}

/// Memory to unblock, and the identifier of the component that asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnblockMemory(pub(crate) supervisor::UnblockMemory);

impl UnblockMemory {
    /// Describes memory of the type `EfiRuntimeServicesData`, for `identifier`: a [`Guid`], a
    /// [`BinaryGuid`](patina::BinaryGuid), or a reference to one.
    #[must_use]
    pub fn runtime_data<'g>(physical_start: u64, pages: u64, identifier: impl Into<Guid<'g>>) -> Self {
        let identifier = mm_wire::Guid::from_bytes(identifier.into().as_bytes());
        Self(supervisor::UnblockMemory::runtime_data(
            physical_start,
            pages,
            identifier,
        ))
    }

    /// Describes the memory with these `EFI_MEMORY_...` attributes. The supervisor uses
    /// `EFI_MEMORY_SP` only, which makes the memory the supervisor's instead of its users'.
    #[must_use]
    pub fn with_attributes(self, attributes: u64) -> Self {
        Self(supervisor::UnblockMemory {
            attributes: attributes.into(),
            ..self.0
        })
    }

    /// The memory's address.
    #[must_use]
    pub fn physical_start(&self) -> u64 {
        self.0.physical_start.get()
    }

    /// Its length in pages of 4096 bytes.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.pages.get()
    }
}

impl From<supervisor::UnblockMemory> for UnblockMemory {
    fn from(memory: supervisor::UnblockMemory) -> Self {
        Self(memory)
    }
}
