//! The same calls through this tree's `patina_mm` and through the published one.
//!
//! An executor simulates MM: it leaves the request where it is and, if there is a mailbox, responds
//! there as edk2's MM core does (`StandaloneMmPkg/Core/StandaloneMmCore.c`, `MmEntryPoint`):
//! status, size, then valid = 0. Only the client's own work is measured.

use crate::memory;
use patina::BinaryGuid;
use std::hint::black_box;

/// The handler that the messages are for.
pub const RECIPIENT: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

/// Something that can be timed.
pub trait Client {
    /// Sends a message. The response goes to `out` if the client can write it there; its length is returned.
    fn call(&self, message: &[u8], out: &mut [u8]) -> usize;
}

/// The status mailbox as edk2 writes it: valid, status, size.
#[derive(Clone, Copy)]
struct Mailbox(*mut u64);

impl Mailbox {
    fn answer(self, size: u64) {
        // SAFETY: the mailbox is the start of a page that nothing else uses.
        unsafe { self.0.add(1).write_volatile(0) };
        // SAFETY: the mailbox is the start of a page that nothing else uses.
        unsafe { self.0.add(2).write_volatile(size) };
        // SAFETY: the mailbox is the start of a page that nothing else uses.
        unsafe { self.0.write_volatile(0) };
    }
}

macro_rules! clients {
    ($name:ident, $krate:ident) => {
        /// Clients of one crate.
        pub mod $name {
            use super::*;
            use ::$krate::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
            use ::$krate::config::CommunicateBuffer;

            /// Simulates MM.
            pub struct Echo {
                mailbox: Option<Mailbox>,
                size: u64,
            }

            impl MmExecutor for Echo {
                fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
                    if let Some(mailbox) = self.mailbox {
                        mailbox.answer(self.size);
                    }
                    Ok(())
                }
            }

            /// Makes a comm buffer of `len` bytes.
            pub fn buffer(len: usize, id: u8, mailbox: Option<*mut u64>) -> CommunicateBuffer {
                let (base, mailbox) = (
                    memory::pages(len) as u64,
                    mailbox.map(|mailbox| mailbox as u64),
                );
                // SAFETY: the pages are leaked, and reached through this buffer only.
                let buffer = unsafe { CommunicateBuffer::from_firmware_region(base, len, id, mailbox) };
                buffer.unwrap_or_else(|why| panic!("a comm buffer of {len} bytes: {why:?}"))
            }

            /// Makes a communicator with one comm buffer of `len` bytes, for messages of `message` bytes.
            pub fn communicator(len: usize, message: usize, has_mailbox: bool) -> MmCommunicator<Echo> {
                let mailbox = has_mailbox.then(|| memory::pages(4096).cast::<u64>());
                let communicator = MmCommunicator::with_executor(Echo {
                    mailbox: mailbox.map(Mailbox),
                    size: message as u64 + 24,
                });
                communicator.set_test_comm_buffers(vec![buffer(len, 0, mailbox)]);
                communicator
            }

            /// `communicate`: the response is allocated.
            pub struct Communicate(pub MmCommunicator<Echo>);

            impl Client for Communicate {
                #[inline(never)]
                fn call(&self, message: &[u8], _: &mut [u8]) -> usize {
                    match self.0.communicate(0, message, RECIPIENT.as_guid()) {
                        Ok(response) => black_box(response).len(),
                        Err(status) => panic!("{status:?}"),
                    }
                }
            }
        }
    };
}

clients!(ours, patina_mm);
clients!(published, patina_mm_published);

use patina_mm::component::communicator::{CallOptions, MmCommunication, MmCommunicator};

/// `communicate_into`: the response goes to the caller's memory.
pub struct Into(pub MmCommunicator<ours::Echo>);

impl Client for Into {
    #[inline(never)]
    fn call(&self, message: &[u8], out: &mut [u8]) -> usize {
        self.0
            .communicate_into(0, message, RECIPIENT.as_guid(), out)
            .unwrap_or_else(|status| panic!("{status:?}"))
    }
}

/// `communicate_with`: a closure reads the response.
pub struct With(pub MmCommunicator<ours::Echo>);

impl Client for With {
    #[inline(never)]
    fn call(&self, message: &[u8], out: &mut [u8]) -> usize {
        let mut len = 0;
        self.0
            .communicate_with(
                0,
                message,
                RECIPIENT.as_guid(),
                CallOptions::new(),
                &mut |response| {
                    len = response.read(out).len();
                },
            )
            .unwrap_or_else(|status| panic!("{status:?}"));
        len
    }
}
