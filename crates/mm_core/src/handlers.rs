//! Handlers that most platforms have, without an allocator.
//!
//! | handler | GUID | response |
//! |---|---|---|
//! | [`Echo`] | [`Echo::GUID`] | the message |
//! | [`Supervisor`] | [`mm_wire::message::supervisor::GUID`] | the MM supervisor's version |
//! | [`VariableStore`] | [`mm_wire::message::variable::GUID`] | UEFI variables |

mod echo;
mod supervisor;
mod variable;

pub use echo::Echo;
pub use supervisor::Supervisor;
pub use variable::VariableStore;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Handler, Mmi, Request};
    use mm_wire::message::variable::function;
    use mm_wire::{EfiStatus, Guid};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// Hands `message` to `handler` with room for `capacity` bytes. Returns the handler's result
    /// and the response.
    pub(super) fn ask(
        handler: &mut dyn Handler,
        message: &[u8],
        capacity: usize,
    ) -> (Result<(), EfiStatus>, Vec<u8>) {
        let mut memory = vec![0; capacity];
        memory[..message.len()].copy_from_slice(message);
        let mut request = Request::new(Guid::ZERO, Mmi::default(), &mut memory, message.len()).unwrap();
        let result = handler.handle(&mut request);
        (result, request.message().to_vec())
    }

    #[test]
    fn echo_returns_what_it_was_sent() {
        let message = b"any bytes, any length".as_slice();
        assert_eq!(ask(&mut Echo, message, 64), (Ok(()), message.to_vec()));
        assert_eq!(ask(&mut Echo, &[], 0), (Ok(()), vec![]));
    }

    /// Messages whose first fields often make sense, so that tests also reach the code for later
    /// fields.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let size = prop_oneof![0..80u64, Just(u64::MAX), Just(u64::MAX - 35), any::<u64>()];
        let fields = (1..5u64, 0..3u8, size.clone(), size, 0..256u32);
        let tail = prop::collection::vec(prop_oneof![Just(0u8), 0..3u8, any::<u8>()], 0..96);
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..120),
            (fields, tail).prop_map(|((function, vendor, data_size, name_size, attributes), tail)| {
                let (first, second) = match function {
                    function::GET_NEXT_VARIABLE_NAME => (name_size, 0),
                    _ => (data_size, name_size),
                };
                let mut message = Vec::new();
                message.extend(function.to_le_bytes());
                message.extend([0; 8]);
                message.extend([vendor; 16]);
                message.extend(first.to_le_bytes());
                if function != function::GET_NEXT_VARIABLE_NAME {
                    message.extend(second.to_le_bytes());
                    message.extend(attributes.to_le_bytes());
                }
                message.extend(tail);
                message
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_message_makes_a_handler_panic(
            // Miri takes too long for more.
            messages in prop::collection::vec(message(), 1..if cfg!(miri) { 4 } else { 40 }),
            arena in 0..300usize,
        ) {
            let mut memory = vec![0; arena];
            let mut store = VariableStore::new(&mut memory, 128);
            let mut supervisor = Supervisor { version: 1, patch_level: 2 };
            for message in messages {
                let (result, response) = ask(&mut store, &message, message.len());
                prop_assert_eq!(result, Ok(()));
                prop_assert_eq!(response.len(), message.len());
                let (_, response) = ask(&mut supervisor, &message, message.len() + 16);
                prop_assert_eq!(response.len(), message.len());
            }
        }
    }
}
