//! Calls with types as request and response.

use super::mm_communication::{CallOptions, MmCommunication};
use super::status::Status;
use patina::Guid;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Typed calls of every [`MmCommunication`].
pub trait MmCommunicationExt: MmCommunication {
    /// Sends a value to the handler `recipient` through the comm buffer `id`, and returns the
    /// response as a value.
    ///
    /// It allocates as little as [`MmCommunication::communicate_into`]. The response is copied, so
    /// its alignment in the comm buffer does not matter.
    ///
    /// # Errors
    ///
    /// Those of [`MmCommunication::communicate`], and [`Status::ResponseSize`] if the response does
    /// not have the size of `Resp`.
    ///
    /// # Example
    ///
    /// ```
    /// use patina::{BinaryGuid, Guid, component::service::Service};
    /// use patina_mm::service::{MmCommunication, MmCommunicationExt};
    /// use zerocopy::{FromBytes, Immutable, IntoBytes};
    ///
    /// /// edk2's variable service: function 11 asks for the length of the longest message.
    /// #[derive(FromBytes, Immutable, IntoBytes)]
    /// #[repr(C)]
    /// struct PayloadSize {
    ///     function: u64,
    ///     return_status: u64,
    ///     size: u64,
    /// }
    ///
    /// const VARIABLES: BinaryGuid = BinaryGuid::from_string("ed32d533-99e6-4209-9cc0-2d72cdd998a7");
    ///
    /// fn payload_size(mm: Service<dyn MmCommunication>) -> patina::error::Result<u64> {
    ///     let request = PayloadSize { function: 11, return_status: 0, size: 0 };
    ///     let response: PayloadSize = mm.request(0, &request, Guid::from_ref(&VARIABLES))?;
    ///     Ok(response.size)
    /// }
    /// ```
    fn request<Req, Resp>(&self, id: u8, request: &Req, recipient: Guid<'_>) -> Result<Resp, Status>
    where
        Req: IntoBytes + Immutable + ?Sized,
        Resp: FromBytes + IntoBytes,
    {
        self.request_with(id, request, recipient, CallOptions::new())
    }

    /// Like [`Self::request`], with options.
    ///
    /// # Errors
    ///
    /// Those of [`Self::request`].
    fn request_with<Req, Resp>(
        &self,
        id: u8,
        request: &Req,
        recipient: Guid<'_>,
        options: CallOptions,
    ) -> Result<Resp, Status>
    where
        Req: IntoBytes + Immutable + ?Sized,
        Resp: FromBytes + IntoBytes,
    {
        let expected = size_of::<Resp>();
        let mut result = Err(Status::ResponseSize {
            expected,
            returned: 0,
        });
        self.communicate_with(id, request.as_bytes(), recipient, options, &mut |response| {
            result = match response.len() {
                returned if returned == expected => response.read_value(),
                returned => Err(Status::ResponseSize { expected, returned }),
            };
        })?;
        result
    }
}

impl<T: MmCommunication + ?Sized> MmCommunicationExt for T {}

#[cfg(test)]
mod tests {
    use super::super::MockMmCommunication;
    use super::*;

    const RECIPIENT: patina::BinaryGuid =
        patina::BinaryGuid::from_string("0b9e2f4c-62d9-4a8e-9d57-3f5b5a0d6c11");

    fn responding(response: &'static [u8]) -> MockMmCommunication {
        let mut mm = MockMmCommunication::new();
        mm.expect_communicate()
            .withf(|id, message, _| *id == 3 && message == [7, 0])
            .returning(|_, _, _| Ok(response.to_vec()));
        mm
    }

    fn ask(mm: &dyn MmCommunication) -> Result<u32, Status> {
        mm.request(3, &7_u16, RECIPIENT.as_guid())
    }

    #[test]
    fn a_mock_that_expects_bytes_serves_typed_requests() {
        assert_eq!(ask(&responding(&[1, 2, 0, 0])), Ok(0x201));
    }

    #[test]
    fn a_response_of_another_size_is_an_error_with_both_sizes() {
        for returned in [0, 3, 5] {
            let response = &[0; 5][..returned];
            assert_eq!(
                ask(&responding(response)),
                Err(Status::ResponseSize {
                    expected: 4,
                    returned
                })
            );
        }
    }
}
