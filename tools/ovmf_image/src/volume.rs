//! Firmware volumes that can be written back exactly.

use crate::error::ImageError;
use patina::pi::fw_fs::fv::file::raw::attribute;
use patina_ffs::{
    file::File,
    volume::{Volume, VolumeRef},
};

/// A firmware volume that serialised to exactly the bytes it was read from.
pub(crate) struct ExactVolume {
    volume: Volume,
    name: &'static str,
    /// Bytes of the volume, which do not change.
    len: usize,
}

impl ExactVolume {
    /// Reads the volume that starts `bytes`, which may go on behind it.
    pub(crate) fn open(bytes: &[u8], name: &'static str) -> Result<Self, ImageError> {
        let failed = |cause| ImageError::Volume { volume: name, cause };
        let claimed = VolumeRef::new(bytes).map_err(failed)?.size();
        let own = usize::try_from(claimed).ok().and_then(|len| bytes.get(..len));
        let own = own.ok_or(ImageError::Length {
            what: name,
            claimed,
            available: bytes.len(),
        })?;
        let parsed = VolumeRef::new(own).map_err(failed)?;
        require_aligned(&parsed, own, name)?;
        let volume = Volume::try_from(&parsed).map_err(failed)?;
        let written = volume.serialize().map_err(failed)?;
        require_same(name, own, &written)?;
        Ok(Self {
            volume,
            name,
            len: own.len(),
        })
    }

    /// The length of the volume in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.volume.files()
    }

    pub(crate) fn files_mut(&mut self) -> &mut Vec<File> {
        self.volume.files_mut()
    }

    /// Writes the volume at its own length. `Volume::serialize` alone grows when its content does.
    pub(crate) fn serialize(&self) -> Result<Vec<u8>, ImageError> {
        let bytes = self.volume.serialize().map_err(|cause| ImageError::Volume {
            volume: self.name,
            cause,
        })?;
        if bytes.len() == self.len {
            Ok(bytes)
        } else {
            Err(ImageError::TooLarge {
                volume: self.name,
                capacity: self.len,
                needed: bytes.len(),
            })
        }
    }
}

/// Checks that each file's content is aligned like its header says. Else padding would be written in
/// front of it, up to 8 MiB for each of very many small files.
fn require_aligned(volume: &VolumeRef<'_>, bytes: &[u8], what: &'static str) -> Result<(), ImageError> {
    for file in volume.files() {
        let file = file.map_err(|cause| ImageError::Volume { volume: what, cause })?;
        let offset = file.data().as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
        let content = u64::try_from(offset.saturating_add(file.content_offset())).unwrap_or(u64::MAX);
        let alignment = 1_u64.checked_shl(file.fv_attributes() & attribute::ALIGNMENT);
        if !alignment.is_some_and(|alignment| content.is_multiple_of(alignment)) {
            return Err(ImageError::NotExact {
                what,
                offset,
                len: bytes.len(),
            });
        }
    }
    Ok(())
}

/// Checks that content which was read and written unchanged is the same.
pub(crate) fn require_same(what: &'static str, read: &[u8], written: &[u8]) -> Result<(), ImageError> {
    if read == written {
        return Ok(());
    }
    let same = read
        .iter()
        .zip(written)
        .take_while(|(read, written)| read == written)
        .count();
    Err(ImageError::NotExact {
        what,
        offset: same,
        len: read.len(),
    })
}
