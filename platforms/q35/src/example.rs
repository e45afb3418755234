//! A component that sends a message to an MM handler, like any other component.
//!
//! It is the second example of the published crate's documentation, with what that needs to compile
//! without a warning, and to be seen at work:
//!
//! | there | here | why |
//! |---|---|---|
//! | `pub` | `pub(crate)` | no crate imports a program |
//! | `8c633b23-1260-4ea6-830f7ddc97382111` | a hyphen more | the usual form; Patina reads both |
//! | `unsafe { mm_comm.communicate(..) }` | without `unsafe` | the method is safe |
//! | `map_err` to `DeviceError`, "Map actual codes" | `?` | the status becomes the `EfiError` that fits |
//! | `let _ =` | `let response =` | a test asks for it |

use patina::component::{component, prelude::Service};
use patina_mm::service::MmCommunication;
use zerocopy::IntoBytes;
use zerocopy_derive::*;

#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable)]
#[repr(C)]
pub(crate) struct DataToSend {
    pub signature: u32,
    pub buffer: [u8; 16],
    pub field1: u32,
    pub field2: u16,
    pub padding: [u8; 2],
}

#[derive(Default)]
pub(crate) struct ExampleComponent;

#[component]
impl ExampleComponent {
    /// Example Entry point that just sends a single message
    pub(crate) fn entry_point(self, mm_comm: Service<dyn MmCommunication>) -> patina::error::Result<()> {
        let data = DataToSend {
            signature: u32::from_le_bytes([b'M', b'S', b'U', b'P']),
            buffer: [
                b'H', b'E', b'L', b'L', b'O', b'\0', 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0,
            ],
            field1: 15,
            field2: 50,
            padding: [0; 2],
        };
        let recipient = patina::Guid::from_string("8c633b23-1260-4ea6-830f-7ddc97382111");

        let response = mm_comm
            .communicate(0, data.as_bytes(), recipient)
            .inspect_err(|status| {
                log::error!("MM Communication failed: {status}");
            })?;
        log::info!("MM's response has {} bytes: {response:02x?}", response.len());
        #[cfg(feature = "conformance")]
        crate::self_test::keep_the_examples_response(response);
        Ok(())
    }
}
