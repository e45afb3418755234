//! Reads a response in the comm buffer. An unsafe island (`docs/unsafe.md`).

use super::call_tag::CallTag;
use super::status::Status;
use alloc::vec::Vec;
use mm_wire::text::{Bytes, Shown};
use mm_wire::{Guid, HeaderFormat, ResponseLength};
use zerocopy::{FromBytes, IntoBytes};

/// Number of bytes of a message that the log shows at trace.
const LOGGED_BYTES: usize = 64;

/// MM's response, lent to a closure for as long as the closure runs.
///
/// The response is in memory that MM may still write to, so there is no `&[u8]` to it. It is read
/// front to back, and each byte is copied at most once, so that no byte is read again after it was
/// checked. When the closure returns, the response is wiped, also the bytes that were not read.
#[derive(Debug)]
pub struct ResponseReader<'a> {
    source: Source<'a>,
    /// The call, for the log.
    tag: &'a CallTag,
}

#[derive(Debug)]
enum Source<'a> {
    /// In shared memory.
    InPlace(mm_comm::Response<'a>),
    /// In memory of this program: all of it, and the rest that was not read yet.
    Copied(&'a [u8], &'a [u8]),
}

impl<'a> ResponseReader<'a> {
    pub(crate) const fn in_place(response: mm_comm::Response<'a>, tag: &'a CallTag) -> Self {
        Self {
            source: Source::InPlace(response),
            tag,
        }
    }

    pub(crate) const fn copied(response: &'a [u8], tag: &'a CallTag) -> Self {
        Self {
            source: Source::Copied(response, response),
            tag,
        }
    }

    /// What the header that MM left says about the response.
    pub(crate) fn in_header(&self) -> Option<ResponseLength> {
        match &self.source {
            Source::InPlace(response) => response.in_header(),
            Source::Copied(..) => None,
        }
    }

    /// Number of bytes of the response, without the communicate header.
    #[must_use]
    pub const fn len(&self) -> usize {
        match &self.source {
            Source::InPlace(response) => response.len(),
            Source::Copied(all, _) => all.len(),
        }
    }

    /// Whether the response is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes that were not read yet.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        match &self.source {
            Source::InPlace(response) => response.remaining(),
            Source::Copied(_, rest) => rest.len(),
        }
    }

    /// Copies the next bytes, until `out` is full or none are left. Returns the part of `out` that
    /// was filled.
    #[inline]
    pub fn read<'o>(&mut self, out: &'o mut [u8]) -> &'o mut [u8] {
        let is_start = self.remaining() == self.len();
        let filled = match &mut self.source {
            Source::InPlace(response) => response.read(out),
            Source::Copied(_, rest) => {
                let (next, after) = rest.split_at(rest.len().min(out.len()));
                *rest = after;
                let (out, _) = out.split_at_mut(next.len());
                out.copy_from_slice(next);
                out
            }
        };
        if is_start {
            trace_response(self.tag, filled, self.len());
        }
        filled
    }

    /// Copies the rest of the response to the start of `out`. Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// [`Status::ResponseTooLong`], with nothing copied, if `out` is too short.
    pub fn read_rest(&mut self, out: &mut [u8]) -> Result<usize, Status> {
        let (needed, room) = (self.remaining(), out.len());
        if needed > room {
            return Err(Status::ResponseTooLong { needed, room });
        }
        Ok(self.read(out).len())
    }

    /// Copies the next bytes as a value. The response's alignment does not matter.
    ///
    /// # Errors
    ///
    /// [`Status::ResponseSize`], with nothing copied, if fewer bytes are left than the value has.
    pub fn read_value<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Status> {
        let (expected, returned) = (size_of::<T>(), self.remaining());
        if returned < expected {
            return Err(Status::ResponseSize { expected, returned });
        }
        let mut value = T::new_zeroed();
        self.read(value.as_mut_bytes());
        Ok(value)
    }

    /// Copies the rest of the response to an allocation of exactly its size.
    ///
    /// # Errors
    ///
    /// [`Status::OutOfMemory`].
    pub fn read_to_vec(&mut self) -> Result<Vec<u8>, Status> {
        let mut bytes = Vec::new();
        self.read_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Like [`Self::read_to_vec`], but to an empty vector where it is: one that is passed on by value is written field by field
    /// and then copied as a whole, for which the processor waits.
    pub(crate) fn read_to(&mut self, bytes: &mut Vec<u8>) -> Result<(), Status> {
        let needed = self.remaining();
        bytes
            .try_reserve_exact(needed)
            .map_err(|_no_memory| no_memory(needed))?;
        let is_start = needed == self.len();
        match &mut self.source {
            Source::InPlace(response) => {
                let room = bytes.spare_capacity_mut().get_mut(..needed);
                let filled = response.read_uninit(room.unwrap_or_default()).len();
                // SAFETY: so many bytes at the start of the vector's capacity were just written.
                unsafe { bytes.set_len(filled) };
            }
            Source::Copied(_, rest) => bytes.extend_from_slice(core::mem::take(rest)),
        }
        if is_start {
            trace_response(self.tag, bytes, needed);
        }
        Ok(())
    }
}

#[cold]
#[inline(never)]
fn no_memory(needed: usize) -> Status {
    log_line!(Error, "mm_comm", "no memory for a response of {needed} bytes");
    Status::OutOfMemory { needed }
}

/// Shows the start of a request, at trace only.
#[inline]
pub(crate) fn trace_request(tag: &CallTag, recipient: [u8; 16], format: HeaderFormat, message: &[u8]) {
    if log::log_enabled!(target: "mm_comm", log::Level::Trace) {
        log_request(tag, recipient, format, message);
    }
}

#[cold]
#[inline(never)]
fn log_request(tag: &CallTag, recipient: [u8; 16], format: HeaderFormat, message: &[u8]) {
    let recipient = Shown(Guid::from_bytes(recipient));
    let (shown, len) = (start_of(message), message.len());
    log_line!(
        Trace,
        "mm_comm",
        "{tag}: request to {recipient}, {format:?} header, {} of {len} bytes: {}",
        shown.len(),
        Bytes(shown)
    );
}

/// Shows the start of a response of `len` bytes, at trace only.
#[inline]
fn trace_response(tag: &CallTag, read: &[u8], len: usize) {
    if log::log_enabled!(target: "mm_comm", log::Level::Trace) {
        log_response(tag, read, len);
    }
}

#[cold]
#[inline(never)]
fn log_response(tag: &CallTag, read: &[u8], len: usize) {
    let shown = start_of(read);
    log_line!(
        Trace,
        "mm_comm",
        "{tag}: response, {} of {len} bytes: {}",
        shown.len(),
        Bytes(shown)
    );
}

/// The bytes of a message that the log shows.
fn start_of(message: &[u8]) -> &[u8] {
    message.get(..LOGGED_BYTES).unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_empty_by_its_length_and_not_by_what_is_left() {
        let tag = CallTag::of_buffer(0);
        assert!(ResponseReader::copied(&[], &tag).is_empty());
        let mut response = ResponseReader::copied(&[1], &tag);
        assert!(!response.is_empty());
        response.read(&mut [0; 4]);
        assert_eq!((response.is_empty(), response.remaining()), (false, 0));
    }

    #[test]
    fn a_copied_response_is_read_like_one_in_place() {
        let tag = CallTag::of_buffer(0);
        let mut response = ResponseReader::copied(&[1, 0, 0, 0, 2, 3], &tag);
        assert_eq!(response.read_value::<u32>(), Ok(1));
        assert_eq!(
            response.read_value::<u32>(),
            Err(Status::ResponseSize {
                expected: 4,
                returned: 2
            })
        );
        assert_eq!(
            response.read_rest(&mut [0]),
            Err(Status::ResponseTooLong { needed: 2, room: 1 })
        );
        assert_eq!((response.len(), response.remaining()), (6, 2));
        assert_eq!(response.read_to_vec(), Ok(alloc::vec![2, 3]));
        assert_eq!(response.read(&mut [0; 4]), []);
    }
}
