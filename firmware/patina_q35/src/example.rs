//! A component that sends a message to an MM handler, as any other component does.

use patina::component::component;
use patina::component::prelude::Service;
use patina_mm::service::MmCommunication;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// No padding between the fields, so that it is the same as its bytes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct DataToSend {
    signature: u32,
    buffer: [u8; 16],
    field1: u32,
    field2: u16,
    padding: [u8; 2],
}

/// Component: sends one message.
#[derive(Default)]
pub(crate) struct ExampleComponent;

#[component]
impl ExampleComponent {
    fn entry_point(self, mm_comm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        let data = DataToSend {
            signature: u32::from_le_bytes(*b"MSUP"),
            buffer: *b"HELLO\0\0\0\0\0\0\0\0\0\0\0",
            field1: 15,
            field2: 50,
            padding: [0; 2],
        };
        // The MM supervisor, which does not know this request and says so in its answer.
        let recipient = patina::Guid::from_string("8c633b23-1260-4ea6-830f-7ddc97382111");
        let answer = mm_comm
            .communicate(0, data.as_bytes(), recipient)
            .inspect_err(|status| {
                log::error!("MM communication failed: {status}");
            })?;
        log::info!("MM answered {} bytes: {answer:02x?}", answer.len());
        Ok(())
    }
}
