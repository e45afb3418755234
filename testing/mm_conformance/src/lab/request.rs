//! What a scenario asks of a client.

use super::Client;
use alloc::boxed::Box;
use alloc::vec::Vec;
use mm_wire::message::supervisor::UnblockMemory;
use mm_wire::{EfiStatus, HeaderFormat};

/// Where a call wants its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResponseTo {
    /// Memory that the client allocates.
    #[default]
    Allocation,
    /// The caller's own memory, of this many bytes.
    Slice(usize),
    /// A closure, which reads this many bytes at a time.
    Closure(usize),
    /// A type of 16 bytes.
    Type16,
}

/// How a call is made. The default is the plain call of [`Client::communicate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The header; `None` for the comm buffer's own. Needs
    /// [`Abilities::V3_HEADERS`](super::Abilities::V3_HEADERS) if it is v3.
    pub header: Option<HeaderFormat>,
    /// Where the response goes. Allocations and slices only work with the comm buffer's own header.
    pub response: ResponseTo,
}

/// The place of an announced buffer, in an [`Update`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdatePlace {
    /// In memory that the lab sets aside for it, at most 8 pages.
    #[default]
    Fresh,
    /// Exactly where this buffer is now.
    Over(u8),
    /// Exactly where this buffer was when the client came up.
    Former(u8),
}

/// An announcement through the comm-buffer update protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The protocol's version.
    pub version: u64,
    /// Pages of the new buffer.
    pub pages: u64,
    /// Where it is.
    pub place: UpdatePlace,
    /// A mailbox address instead of a fresh one.
    pub mailbox: Option<u64>,
}

impl Update {
    /// A correct announcement of fresh memory.
    #[must_use]
    pub const fn to_pages(pages: u64) -> Self {
        Self {
            version: 1,
            pages,
            place: UpdatePlace::Fresh,
            mailbox: None,
        }
    }
}

/// An event of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootEvent {
    /// The event group of the end of DXE.
    EndOfDxe,
    /// The ready-to-lock protocol is installed.
    ReadyToLock,
    /// The event group of ready to boot.
    ReadyToBoot,
    /// The event group of exit boot services.
    ExitBootServices,
}

/// A request to the MM supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SupervisorCall {
    /// Its version; the response is version, patch level and highest request, 32 bits each.
    Version,
    /// Unblocks memory.
    Unblock(UnblockMemory),
    /// Its policy, into this many bytes.
    Policy(usize),
    /// Moves its own comm buffer and the other one to fresh memory.
    Move(Move),
    /// The same, with the two buffers swapped, to fresh memory of 4 pages each that MM does not
    /// accept.
    MoveMixedUp,
}

/// A move of the MM supervisor's comm buffer and the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Pages of the supervisor's new buffer.
    pub supervisor: usize,
    /// Pages of the other one.
    pub users: usize,
    /// Whether MM learns about the memory first, so that it can serve it. MM then starts again.
    pub is_known_to_mm: bool,
    /// The piece of memory that MM refuses, because it was unblocked before.
    pub refused: Option<Piece>,
    /// Whether the new mailboxes look like a request, instead of being zero.
    pub are_mailboxes_stale: bool,
}

impl Move {
    /// A move that MM accepts, of buffers with 4 pages.
    pub const TAKEN: Self = Self {
        supervisor: 4,
        users: 4,
        is_known_to_mm: true,
        refused: None,
        are_mailboxes_stale: false,
    };
}

/// A piece of the memory that comm buffers move to, in the order in which a supervisor looks at
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The supervisor's buffer.
    Supervisor,
    /// The users' buffer.
    Users,
    /// The users' mailbox.
    UsersMailbox,
}

/// Which of the protocols for C, and the addresses that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CProtocol {
    /// `EFI_MM_COMMUNICATION_PROTOCOL`.
    One,
    /// `EFI_MM_COMMUNICATION2_PROTOCOL`.
    Two,
    /// `EFI_MM_COMMUNICATION3_PROTOCOL`.
    Three,
    /// Protocol 2 with a virtual address 8 bytes behind the physical one.
    TwoApart,
    /// Protocol 3, likewise.
    ThreeApart,
    /// Protocol 2 with this comm buffer as the caller's buffer: the caller's bytes are put at its
    /// start. Without bytes the comm buffer is passed as it is.
    TwoInPlace(u8),
    /// Protocol 3, likewise. The header says how long the buffer is.
    ThreeInPlace(u8),
}

/// A call of one of the protocols for C. The machine passes `bytes` in memory of exactly their
/// length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CCall {
    /// The protocol.
    pub protocol: CProtocol,
    /// The caller's buffer; `None` for a null pointer.
    pub bytes: Option<Vec<u8>>,
    /// What CommSize points to; `None` for a null pointer. Protocol 3 has none.
    pub comm_size: Option<usize>,
}

/// The result of a [`CCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CReply {
    /// The function's result.
    pub status: EfiStatus,
    /// The caller's buffer afterwards.
    pub bytes: Vec<u8>,
    /// What CommSize points to afterwards.
    pub comm_size: Option<usize>,
}

/// Code that runs in the middle of a call.
pub type Callback = Box<dyn FnOnce(&Client)>;
