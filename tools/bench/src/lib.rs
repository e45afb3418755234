//! The same calls through this project's `patina_mm` and through the published one, each behind the same small trait.
//!
//! MM is played by an executor that leaves the request in the buffer, so that both crates return it as the response, and
//! only the client's own work is measured.

use std::pin::Pin;

/// The handler that the messages are for.
const RECIPIENT: patina::BinaryGuid = patina::BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

/// A page.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// Memory for a comm buffer of `len` bytes, a multiple of 4096, that lives as long as the process.
fn memory(len: usize) -> Pin<&'static mut [u8]> {
    let pages: &'static mut [Page] = Box::leak(vec![Page([0; 4096]); len / 4096].into_boxed_slice());
    // SAFETY: pages are bytes without padding between them, and the only reference to them is given up here.
    Pin::new(unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) })
}

/// A client with one comm buffer.
pub trait Client {
    /// Sends a message; returns the response's length.
    fn call(&self, message: &[u8]) -> usize;
}

macro_rules! clients {
    ($name:ident, $krate:ident) => {
        /// Clients of one crate.
        pub mod $name {
            use super::{Client, RECIPIENT, memory};
            use $krate::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
            use $krate::config::CommunicateBuffer;

            struct Echo;

            impl MmExecutor for Echo {
                fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
                    Ok(())
                }
            }

            /// A client of this crate.
            pub struct Vector(MmCommunicator<Echo>);

            /// Makes a client with a comm buffer of `len` bytes.
            pub fn client(len: usize) -> Vector {
                let communicator = MmCommunicator::with_executor(Echo);
                communicator.set_test_comm_buffers(vec![CommunicateBuffer::new(memory(len), 0)]);
                Vector(communicator)
            }

            impl Client for Vector {
                fn call(&self, message: &[u8]) -> usize {
                    let response = self.0.communicate(0, message, RECIPIENT.as_guid());
                    response.map_or(0, |response| response.len())
                }
            }

            /// The sizes of the types that a platform holds, in bytes.
            pub fn sizes() -> [(&'static str, usize); 3] {
                [
                    ("CommunicateBuffer", size_of::<CommunicateBuffer>()),
                    ("MmCommunicator", size_of::<MmCommunicator>()),
                    ("Status", size_of::<Status>()),
                ]
            }
        }
    };
}

clients!(ours, patina_mm);
clients!(theirs, published);

/// This project's client, with the response in the caller's memory.
pub struct Into<'a> {
    mm: patina_mm::component::communicator::MmCommunicator<Echo>,
    out: std::cell::RefCell<&'a mut [u8]>,
}

/// Plays MM.
pub struct Echo;

impl patina_mm::component::communicator::MmExecutor for Echo {
    fn execute_mm(
        &self,
        _: &mut patina_mm::config::CommunicateBuffer,
    ) -> Result<(), patina_mm::component::communicator::Status> {
        Ok(())
    }
}

impl<'a> Into<'a> {
    /// Makes a client with a comm buffer of `len` bytes, whose answers go to `out`.
    pub fn new(len: usize, out: &'a mut [u8]) -> Self {
        let mm = patina_mm::component::communicator::MmCommunicator::with_executor(Echo);
        mm.set_test_comm_buffers(vec![patina_mm::config::CommunicateBuffer::new(memory(len), 0)]);
        let out = std::cell::RefCell::new(out);
        Self { mm, out }
    }
}

impl Client for Into<'_> {
    fn call(&self, message: &[u8]) -> usize {
        use patina_mm::service::MmCommunication;
        let mut out = self.out.borrow_mut();
        let response = self
            .mm
            .communicate_into(0, message, RECIPIENT.as_guid(), &mut out);
        response.unwrap_or(0)
    }
}
