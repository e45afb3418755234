//! A request in MMRAM, and the handlers that serve it.

use crate::Mmi;
use mm_wire::{EfiStatus, Guid};
use thiserror::Error;

/// Serves the requests for one GUID.
///
/// Closures of the same signature are handlers.
pub trait Handler {
    /// Reads the request's message and replaces it with the response.
    ///
    /// # Errors
    ///
    /// A failed handler's status stays in MM: the client gets `EFI_NOT_FOUND`, and the message as
    /// the handler left it. A handler that reports more puts its status into the message and
    /// returns `Ok`.
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus>;
}

impl<F: FnMut(&mut Request<'_>) -> Result<(), EfiStatus>> Handler for F {
    fn handle(&mut self, request: &mut Request<'_>) -> Result<(), EfiStatus> {
        self(request)
    }
}

/// A handler and the GUID that it is called for.
pub type Registration<'h> = (Guid, &'h mut dyn Handler);

/// Is called on each MMI, after the comm buffers: for MMIs that are not a message.
///
/// Closures of the same signature are root handlers.
pub trait RootHandler {
    /// Checks what raised the MMI, and serves it.
    fn handle(&mut self, mmi: Mmi);
}

impl<F: FnMut(Mmi)> RootHandler for F {
    fn handle(&mut self, mmi: Mmi) {
        self(mmi);
    }
}

/// A response that the comm buffer cannot take.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("MM handler: a response of {len} bytes, the comm buffer has room for {capacity}")]
pub struct NoRoom {
    /// Bytes of the response.
    pub len: usize,
    /// Bytes that the comm buffer can hold behind the header.
    pub capacity: usize,
}

/// A message that was copied into MMRAM, so that nothing outside MM can change it.
///
/// Its memory is wiped when it is dropped.
#[derive(Debug)]
pub struct Request<'a> {
    recipient: Guid,
    mmi: Mmi,
    memory: &'a mut [u8],
    len: usize,
    /// The largest length that the message ever had: so many bytes must be wiped.
    used: usize,
}

impl<'a> Request<'a> {
    /// Makes a request of the message in the first `len` bytes of `memory`; the rest is room for a
    /// longer response.
    ///
    /// [`crate::MmCore`] does this for requests in comm buffers. Call it for other transports, and
    /// to test a handler.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if `memory` is shorter than `len`.
    pub fn new(recipient: Guid, mmi: Mmi, memory: &'a mut [u8], len: usize) -> Result<Self, NoRoom> {
        if len > memory.len() {
            return Err(NoRoom {
                len,
                capacity: memory.len(),
            });
        }
        Ok(Self {
            recipient,
            mmi,
            memory,
            len,
            used: len,
        })
    }

    /// The GUID that the request is for.
    #[must_use]
    pub const fn recipient(&self) -> Guid {
        self.recipient
    }

    /// What was written to the ports to raise the MMI.
    #[must_use]
    pub const fn mmi(&self) -> Mmi {
        self.mmi
    }

    /// The message, without the communicate header.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }

    /// The message, to be changed in place.
    #[must_use]
    pub fn message_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.len).unwrap_or_default()
    }

    /// The most bytes that a response may have.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Makes the message longer, by zeroes, or shorter.
    ///
    /// # Errors
    ///
    /// [`NoRoom`], with the message as it was.
    pub fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        let capacity = self.capacity();
        if len > capacity {
            return Err(NoRoom { len, capacity });
        }
        self.memory.get_mut(self.len..len).unwrap_or_default().fill(0);
        self.len = len;
        self.used = self.used.max(len);
        Ok(())
    }

    /// Replaces the message with `response`.
    ///
    /// # Errors
    ///
    /// [`NoRoom`], with the message as it was.
    pub fn respond(&mut self, response: &[u8]) -> Result<(), NoRoom> {
        self.set_len(response.len())?;
        let message = self.message_mut().iter_mut();
        message.zip(response).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.memory.get_mut(..self.used).unwrap_or_default().fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_grows_by_zeroes_shrinks_and_leaves_nothing_behind() {
        let mut memory = [0xee; 16];
        memory[..4].copy_from_slice(b"abcd");
        let mut request = Request::new(Guid::ZERO, Mmi::default(), &mut memory, 4).unwrap();
        request.set_len(6).unwrap();
        assert_eq!(request.message(), b"abcd\0\0");
        request.set_len(2).unwrap();
        request.set_len(3).unwrap();
        assert_eq!(request.message(), b"ab\0");
        let too_long = NoRoom {
            len: 17,
            capacity: 16,
        };
        assert_eq!(request.respond(&[1; 17]), Err(too_long));
        assert_eq!(request.message(), b"ab\0");
        request.respond(&[2; 16]).unwrap();
        assert_eq!(request.message(), [2; 16]);
        request.set_len(0).unwrap();
        drop(request);
        assert_eq!(memory, [0; 16]);

        memory.fill(0xee);
        let mut request = Request::new(Guid::ZERO, Mmi::default(), &mut memory, 4).unwrap();
        request.respond(b"longer than it was").unwrap_err();
        request.respond(b"0123456789").unwrap();
        request.set_len(1).unwrap();
        drop(request);
        assert_eq!(memory[..10], [0; 10]);
        assert_eq!(memory[10..], [0xee; 6]);
    }

    #[test]
    fn memory_shorter_than_the_message_is_refused() {
        let refused = Request::new(Guid::ZERO, Mmi::default(), &mut [0; 3], 4).unwrap_err();
        assert_eq!(refused, NoRoom { len: 4, capacity: 3 });
    }
}
