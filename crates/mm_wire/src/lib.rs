//! The bytes that both sides of a Management Mode (MM) exchange agree on.
//!
//! This crate turns bytes into checked values and back. It does not own memory, raise interrupts,
//! allocate, or depend on Patina, so the non-secure client (`mm_comm`) and the MM side (`mm_core`)
//! share it. All integers are little-endian; offsets and sizes are bytes.
//!
//! | module | content | source |
//! |---|---|---|
//! | [`header`] | communicate headers v1 (24 bytes) and v3 (56 bytes) | PI 1.9, volume 4, 5.7 |
//! | [`mailbox`] | the 24-byte status mailbox | edk2 `MdePkg/Include/Guid/MmCommBuffer.h` |
//! | [`status`] | `EFI_STATUS` as a 64-bit value | UEFI 2.11, appendix D |
//! | [`hob`] | where comm buffers are: HOBs, update protocol | edk2, Project Mu |
//! | [`protocol`] | GUIDs of protocols | PI 1.9, volume 4 |
//! | [`address`] | checked ranges of physical addresses, the checks of comm buffers and mailboxes | |
//! | [`text`] | GUIDs and bytes for lines of text | |
//! | [`message`] | payloads of handlers that every platform has | edk2, Project Mu |
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod address;
pub mod header;
pub mod hob;
pub mod mailbox;
pub mod message;
pub mod protocol;
pub mod status;
pub mod text;

pub use address::{AddressError, AddressRange};
pub use header::{Header, HeaderError, HeaderFormat, ResponseLength};
pub use mailbox::MailboxImage;
pub use status::EfiStatus;
pub use uguid::{Guid, guid};

/// The size and alignment of a UEFI page, in bytes.
pub const PAGE_LEN: usize = 4096;
