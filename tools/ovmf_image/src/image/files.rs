//! Adds files to DXEFV.

use super::{Change, FileId, Image, new_section, only};
use crate::error::ImageError;
use crate::pe;
use patina::BinaryGuid;
use patina::pi::fw_fs::ffs::{file::raw::r#type as file_type, section::raw_type as section_type};
use patina_ffs::file::File;
use patina_ffs::section::SectionHeader;

/// A dependency expression that always holds (PI 1.9, volume 2, 10.7): TRUE, END. Without one a
/// driver would wait for all architectural protocols.
const ALWAYS: [u8; 2] = [0x06, 0x08];

impl Image {
    /// Puts a copy of the file called `name` in another image's DXEFV behind the files of this one.
    ///
    /// # Errors
    ///
    /// [`ImageError::NoFileToTake`] if none or several files of the other image have that name,
    /// [`ImageError::NameTaken`] if one of this image has it.
    pub fn take_file(&mut self, from: &Self, name: BinaryGuid) -> Result<&mut Self, ImageError> {
        let none = ImageError::NoFileToTake { name, found: 0 };
        let at = only(from.dxe.files(), |file| file.name() == name)
            .map_err(|found| ImageError::NoFileToTake { name, found })?;
        let theirs = from.dxe.files().nth(at).ok_or(none)?;
        let mut file = File::new(name, theirs.file_type_raw());
        file.set_data_checksum(theirs.is_data_checksum());
        *file.sections_mut() = theirs.sections().clone();
        let change = Change::Taken {
            file: FileId::of(theirs),
        };
        self.push(file, change)
    }

    /// Puts a runtime driver behind the files of DXEFV. It is dispatched as soon as the core
    /// dispatches drivers.
    ///
    /// # Errors
    ///
    /// [`ImageError::RuntimeDriver`] if `driver` is not a PE32+ runtime driver for x86-64 with
    /// sections on pages; [`ImageError::NameTaken`] if a file has the name.
    pub fn add_runtime_driver(&mut self, name: BinaryGuid, driver: &[u8]) -> Result<&mut Self, ImageError> {
        pe::require_runtime_driver(driver).map_err(ImageError::RuntimeDriver)?;
        let section = |kind, content: Vec<u8>| {
            let header = SectionHeader::Standard(kind, 0);
            new_section("a section of a runtime driver", header, content)
        };
        let mut file = File::new(name, file_type::DRIVER);
        file.sections_mut()
            .push(section(section_type::DXE_DEPEX, ALWAYS.to_vec())?);
        file.sections_mut()
            .push(section(section_type::PE32, driver.to_vec())?);
        let len = driver.len();
        self.push(file, Change::DriverAdded { name, len })
    }

    fn push(&mut self, file: File, change: Change) -> Result<&mut Self, ImageError> {
        if let Some(other) = self.dxe.files().find(|other| other.name() == file.name()) {
            return Err(ImageError::NameTaken {
                file: FileId::of(other),
            });
        }
        self.dxe.files_mut().push(file);
        self.changes.push(change);
        Ok(self)
    }
}
