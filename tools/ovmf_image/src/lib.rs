//! Puts a Patina DXE core into a stock OVMF flash image.
//!
//! OVMF's code image (`OVMF_CODE_4M.fd` on Debian, built from edk2 `OvmfPkg/OvmfPkgX64.fdf`) is
//!
//! ```text
//! FVMAIN_COMPACT   one file, one LZMA section:  RAW, PEIFV, RAW, DXEFV
//! SECFV            reset vector and SEC, at the end of the flash; kept as it is
//! ```
//!
//! [`Image`] opens such an image, edits the files of DXEFV, and writes an image of the same length.
//! It refuses images that it does not understand: every volume that could be written must first
//! serialise to exactly the bytes it was read from.
//!
//! ```no_run
//! use ovmf_image::{Image, guids};
//!
//! let mut image = Image::open(&std::fs::read("OVMF_CODE_4M.fd")?)?;
//! image.replace_dxe_core(&std::fs::read("q35.efi")?, guids::PATINA_DXE_CORE)?;
//! image.drop_files(|file| file.guid == guids::CPU_DXE);
//! image.flatten_drivers()?;
//! for change in image.changes() {
//!     println!("{change}");
//! }
//! std::fs::write("q35.fd", image.finish()?)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod error;
pub mod guids;
mod image;
mod lzma;
pub mod pe;
mod volume;

pub use error::{ImageError, PeError};
pub use image::{Change, FileId, Image};
pub use patina::BinaryGuid;
