//! A component that sends a message to an MM handler, like any other component.
//!
//! It sends the bytes that the second example of the published crate's documentation sends, to the
//! same recipient: code that was written after that example works here.

use patina::component::{component, prelude::Service};
use patina_mm::service::MmCommunication;
use zerocopy::IntoBytes;
use zerocopy_derive::*;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Greeting {
    magic: [u8; 4],
    text: [u8; 16],
    number: u32,
    short_number: u16,
    /// A type that is sent has no padding of its own.
    unused: [u8; 2],
}

#[derive(Default)]
pub(crate) struct ExampleComponent;

#[component]
impl ExampleComponent {
    pub(crate) fn entry_point(self, mm_comm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        let mut greeting = Greeting {
            magic: *b"MSUP",
            text: [0; 16],
            number: 15,
            short_number: 50,
            unused: [0; 2],
        };
        greeting
            .text
            .iter_mut()
            .zip(b"HELLO")
            .for_each(|(to, from)| *to = *from);
        let recipient = patina::Guid::from_string("8c633b23-1260-4ea6-830f-7ddc97382111");

        let response = mm_comm
            .communicate(0, greeting.as_bytes(), recipient)
            .inspect_err(|status| {
                log::error!("MM Communication failed: {status}");
            })?;
        log::info!("MM's response has {} bytes: {response:02x?}", response.len());
        #[cfg(feature = "conformance")]
        crate::self_test::keep_the_examples_response(response);
        Ok(())
    }
}
