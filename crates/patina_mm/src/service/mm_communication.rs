//! The service that components send messages with.

#[cfg(any(test, feature = "mockall"))]
mod mock;

#[cfg(any(test, feature = "mockall"))]
pub use mock::MockMmCommunication;

use super::call_tag::CallTag;
use super::response_reader::ResponseReader;
use super::status::Status;
use crate::config::HeaderFormat;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use patina::Guid;

/// How one call is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallOptions {
    /// The communicate header; `None` for the comm buffer's own, see
    /// [`CommunicateBuffer::with_header`](crate::config::CommunicateBuffer::with_header).
    pub header: Option<HeaderFormat>,
    /// The value of MessageSize in a v3 header: less than the message's length, if the end of the
    /// message is only room for the response. `None` for the message's length. A v1 header does not
    /// have this field.
    pub message_size: Option<u64>,
    /// Whether the message may be empty: some handlers need no more than their GUID. Secure monitor
    /// calls do not carry empty messages, also in edk2's driver for them.
    pub may_be_empty: bool,
}

impl CallOptions {
    /// The defaults: the comm buffer's header, and a message that is not empty.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            header: None,
            message_size: None,
            may_be_empty: false,
        }
    }

    /// Sends the message with this header.
    #[must_use]
    pub const fn with_header(self, header: HeaderFormat) -> Self {
        Self {
            header: Some(header),
            ..self
        }
    }

    /// Writes this value to MessageSize of a v3 header.
    #[must_use]
    pub const fn with_message_size(self, message_size: u64) -> Self {
        Self {
            message_size: Some(message_size),
            ..self
        }
    }

    /// Allows an empty message.
    #[must_use]
    pub const fn with_empty_message(self) -> Self {
        Self {
            may_be_empty: true,
            ..self
        }
    }
}

/// Only this crate can make one, and so call the methods that take it.
pub struct Sealed(());

impl Sealed {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// Sends messages to MM handlers.
///
/// An implementation needs [`Self::communicate`] only; the provided methods copy what that returns.
/// [`MmCommunicator`](crate::component::communicator::MmCommunicator) overrides them with methods
/// that neither copy nor allocate. [`MmCommunicationExt`](super::MmCommunicationExt) adds calls
/// with types as request and response.
pub trait MmCommunication {
    /// Sends `data_buffer` to the handler `recipient` through the comm buffer `id`, and returns
    /// exactly the bytes of the response, which may be shorter or longer than the request.
    ///
    /// If MM is entered through x86 ports and the comm buffer has no status mailbox, the client
    /// cannot detect whether a handler, or MM at all, took the message: then `data_buffer` comes
    /// back, as `Ok`. [`MmCommunicator`](crate::component::communicator::MmCommunicator) warns
    /// about such buffers when it is dispatched. A handler whose response always differs from its
    /// request avoids this.
    ///
    /// # Errors
    ///
    /// Each [`Status`] is one cause, and names the side at fault. No byte of request or response is
    /// left in the comm buffer, also after an error.
    ///
    /// # Example
    ///
    /// ```
    /// use patina::{BinaryGuid, Guid, component::service::Service};
    /// use patina_mm::service::MmCommunication;
    ///
    /// const ECHO: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");
    ///
    /// fn ask(mm: Service<dyn MmCommunication>) -> patina::error::Result<Vec<u8>> {
    ///     Ok(mm.communicate(0, b"hello", Guid::from_ref(&ECHO))?)
    /// }
    /// ```
    fn communicate<'a>(&self, id: u8, data_buffer: &[u8], recipient: Guid<'a>) -> Result<Vec<u8>, Status>;

    /// Like [`Self::communicate`], but copies the response to the start of `out`, and returns its
    /// length in bytes.
    ///
    /// [`MmCommunicator`](crate::component::communicator::MmCommunicator) does not allocate here,
    /// except if it first applies an announced move of a comm buffer.
    ///
    /// # Errors
    ///
    /// Those of [`Self::communicate`], and [`Status::ResponseTooLong`] if `out` is too short. MM
    /// has processed the request then, and the response is lost.
    fn communicate_into(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        out: &mut [u8],
    ) -> Result<usize, Status> {
        let (mut len, mut failed) = (0, None);
        self.communicate_with(
            id,
            message,
            recipient,
            CallOptions::new(),
            &mut |response| match response.read_rest(out) {
                Ok(read) => len = read,
                Err(status) => failed = Some(status),
            },
        )?;
        failed.map_or(Ok(len), Err)
    }

    /// Like [`Self::communicate`], but lends the response to `take`, which is called once, and only
    /// if there is a response.
    ///
    /// [`MmCommunicator`](crate::component::communicator::MmCommunicator) allocates as little as in
    /// [`Self::communicate_into`].
    ///
    /// The response is in the comm buffer while `take` runs: another call through this buffer gets
    /// [`Status::Busy`].
    ///
    /// # Errors
    ///
    /// Those of [`Self::communicate`], and [`Status::Unsupported`] if the implementation does not
    /// have what `options` asks for.
    ///
    /// # Example
    ///
    /// ```
    /// use patina::{BinaryGuid, Guid};
    /// use patina_mm::component::communicator::{CallOptions, Status};
    /// use patina_mm::config::HeaderFormat;
    /// use patina_mm::service::MmCommunication;
    ///
    /// const ECHO: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");
    ///
    /// /// Adds up a response of any length, with 16 bytes of memory.
    /// fn sum(mm: &dyn MmCommunication, message: &[u8]) -> Result<u64, Status> {
    ///     let mut sum = 0;
    ///     let v3 = CallOptions::new().with_header(HeaderFormat::V3);
    ///     mm.communicate_with(0, message, Guid::from_ref(&ECHO), v3, &mut |response| {
    ///         let mut chunk = [0; 16];
    ///         while response.remaining() > 0 {
    ///             sum += response.read(&mut chunk).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    ///         }
    ///     })?;
    ///     Ok(sum)
    /// }
    /// ```
    fn communicate_with(
        &self,
        id: u8,
        message: &[u8],
        recipient: Guid<'_>,
        options: CallOptions,
        take: &mut dyn FnMut(&mut ResponseReader<'_>),
    ) -> Result<(), Status> {
        if options.header.is_some_and(|header| header != HeaderFormat::V1) {
            return Err(Status::Unsupported);
        }
        let response = self.communicate(id, message, recipient)?;
        take(&mut ResponseReader::copied(&response, &CallTag::of_buffer(id)));
        Ok(())
    }

    /// Number of message bytes that fit into the comm buffer `id` behind the header that `options`
    /// asks for.
    ///
    /// # Errors
    ///
    /// [`Status::CommBufferNotFound`], [`Status::CommBufferDisabled`], or [`Status::Unsupported`]
    /// if an implementation does not know it.
    fn message_capacity(&self, id: u8, options: CallOptions) -> Result<usize, Status> {
        let _ = (id, options);
        Err(Status::Unsupported)
    }

    /// Whether success of a call through the comm buffer `id` means that MM took the message. It
    /// does not if MM is entered through x86 ports and the buffer has no status mailbox.
    fn confirms(&self, id: u8) -> bool {
        let _ = id;
        true
    }

    /// Registers `callback` to run after every completed call, when its comm buffer is free again;
    /// calls rejected with [`Status::Busy`] do not count. For callers that got [`Status::Busy`] in
    /// a notification and cannot wait there.
    ///
    /// It runs at the caller's TPL, before the caller has its result. For a driver in C that is
    /// `TPL_NOTIFY`, before the response is written back; a request that the callback sends through
    /// C's protocols is rejected there.
    ///
    /// The callback may send. It does not run again for calls that are made while it runs, unless
    /// another call was rejected with [`Status::Busy`] meanwhile.
    ///
    /// A callback stays registered until the end of the boot, and each one costs every call one
    /// indirect call. Their number is not limited, because components register them once, when they
    /// are dispatched.
    ///
    /// # Errors
    ///
    /// [`Status::Unsupported`] if an implementation does not know when its calls end,
    /// [`Status::OutOfMemory`] without memory for it.
    fn after_calls(&self, callback: Rc<dyn Fn()>) -> Result<(), Status> {
        let _ = callback;
        Err(Status::Unsupported)
    }

    /// The parts that this crate's own components need of
    /// [`MmCommunicator`](crate::component::communicator::MmCommunicator) beyond this trait. They
    /// know the type; a platform without them does not link its methods.
    #[doc(hidden)]
    fn internals(&self, _: Sealed) -> Option<&dyn Any> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implementation_with_calls_alone_supports_nothing_else() {
        struct CallsAlone;
        impl MmCommunication for CallsAlone {
            fn communicate<'a>(&self, _: u8, message: &[u8], _: Guid<'a>) -> Result<Vec<u8>, Status> {
                Ok(message.to_vec())
            }
        }
        assert_eq!(CallsAlone.after_calls(Rc::new(|| {})), Err(Status::Unsupported));
        let capacity = CallsAlone.message_capacity(0, CallOptions::new());
        assert_eq!(capacity, Err(Status::Unsupported));
        assert!(CallsAlone.confirms(0));
    }
}
