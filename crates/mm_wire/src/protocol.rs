//! GUIDs of the protocols that have to do with MM, in the firmware's protocol database.
//!
//! The markers of the variable service are in [`crate::message::variable`], the protocol that
//! announces a moved comm buffer in [`crate::hob`].

use uguid::{Guid, guid};

/// `EFI_MM_COMMUNICATION_PROTOCOL` (PI 1.9, volume 4, 5.7.1). ACPI's UEFI table for MM
/// communication has the same GUID (UEFI 2.11, appendix O).
pub const COMMUNICATION: Guid = guid!("c68ed8e2-9dc6-4cbd-9d94-db65acc5c332");

/// `EFI_MM_COMMUNICATION2_PROTOCOL` (PI 1.9, volume 4, 5.7.4). FF-A partitions that serve MM
/// requests name their service by the same GUID (PI 1.9, volume 4, 5.7.6).
pub const COMMUNICATION2: Guid = guid!("378daedc-f06b-4446-8314-40ab933c87a3");

/// `EFI_MM_COMMUNICATION3_PROTOCOL` (PI 1.9, volume 4, 5.7.5).
pub const COMMUNICATION3: Guid = guid!("f7234a14-0df2-46c0-ad28-90e6b883a72f");

/// `EFI_MM_CONTROL_PROTOCOL`, which raises SMIs; `EFI_SMM_CONTROL2_PROTOCOL` by its older name.
pub const CONTROL: Guid = guid!("843dc720-ab1e-42cb-9357-8a0078f3561b");

/// `EFI_MM_ACCESS_PROTOCOL`, which opens, closes and locks SMRAM.
pub const ACCESS: Guid = guid!("c2702b74-800c-4131-8746-8fb5b89ce4ac");

/// `EFI_MM_BASE_PROTOCOL`, which tells whether the caller runs in MM.
pub const BASE: Guid = guid!("f4ccbfb7-f6e0-47fd-9dd4-10a8f150c191");

/// `EFI_DXE_MM_READY_TO_LOCK_PROTOCOL`, without an interface: firmware is about to lock SMRAM.
/// Messages that tell MM handlers about it have the same GUID.
pub const READY_TO_LOCK: Guid = guid!("60ff8964-e906-41d0-afed-f241e974e08e");

/// The protocol by which Project Mu's driver passes requests to the MM supervisor,
/// `gMmSupervisorCommunicationProtocolGuid`.
pub const SUPERVISOR_COMMUNICATION: Guid = guid!("495b267c-fc7f-4f03-ad1f-d86769e325b5");
