//! What stock OVMF needs and does not say.
//!
//! OVMF was built for edk2's DXE core, which maps all of memory writable and executable. Patina maps what it was told
//! about, and protects it. Each difference is one component here; the others are features in `Cargo.toml`, and files
//! that `cargo xtask image patina-q35` drops.

pub(crate) mod comm_buffer_hobs;
mod dxe_services;
mod flash;
mod images;

pub(crate) use dxe_services::dxe_services;
pub(crate) use flash::FlashMapping;
pub(crate) use images::WritableImages;
