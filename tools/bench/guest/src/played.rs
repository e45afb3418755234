//! The same calls through this tree's `patina_mm` and the published one, with MM played in the
//! guest: it responds in the mailbox and leaves the request where it is, as in
//! `tools/bench/src/clients.rs`. An unsafe island (`docs/unsafe.md`).

use crate::count::{count, entered, report, report_stack, returned, stack_of};
use alloc::format;
use alloc::vec;
use core::hint::black_box;
use patina::BinaryGuid;
use uefi_app::Firmware;

/// The handler that the messages are for.
const RECIPIENT: BinaryGuid = BinaryGuid::from_string("b3d6d2a1-5c64-4c06-9d3f-35c9a1f5c3de");

/// Pages of a comm buffer, then one for its mailbox.
const PAGES: usize = 17;
const PAGE: usize = 4096;

/// MM in the guest.
#[derive(Clone, Copy)]
struct Played {
    mailbox: Option<*mut u64>,
    size: u64,
}

impl Played {
    /// As edk2's MM core does it: status, size, then valid = 0.
    #[inline(never)]
    fn respond(self) {
        entered();
        if let Some(mailbox) = self.mailbox {
            for (index, value) in [(1, 0), (2, self.size), (0, 0)] {
                // SAFETY: the mailbox is the start of a page that nothing else uses.
                unsafe { mailbox.add(index).write_volatile(value) };
            }
        }
        returned();
    }
}

macro_rules! client {
    ($name:ident, $krate:ident, $more:expr) => {
        mod $name {
            use super::*;
            use ::$krate::component::communicator::{MmCommunication, MmCommunicator, MmExecutor, Status};
            use ::$krate::config::CommunicateBuffer;

            pub(super) struct Executor(Played);

            impl MmExecutor for Executor {
                fn execute_mm(&self, _: &mut CommunicateBuffer) -> Result<(), Status> {
                    self.0.respond();
                    Ok(())
                }
            }

            pub(super) fn run(memory: *mut u8, len: usize, has_mailbox: bool, sizes: &[usize]) {
                let mailbox = has_mailbox.then(|| memory.wrapping_add((PAGES - 1) * PAGE).cast::<u64>());
                let kind = if has_mailbox { "mailbox" } else { "silent" };
                let name = |call: &str| format!("{}/{call}/{}KiB/{kind}", stringify!($name), len / 1024);
                for &size in sizes {
                    let address = mailbox.map(|mailbox| mailbox as u64);
                    // SAFETY: the pages were allocated for this, and one buffer after the other uses them.
                    let buffer =
                        unsafe { CommunicateBuffer::from_firmware_region(memory as u64, len, 0, address) };
                    let played = Played {
                        mailbox,
                        size: size as u64 + 24,
                    };
                    let mm = MmCommunicator::with_executor(Executor(played));
                    mm.set_test_comm_buffers(buffer.into_iter().collect());
                    let message = vec![0x5a_u8; size];
                    let mut call = || {
                        let response = mm.communicate(0, &message, RECIPIENT.as_guid());
                        black_box(response).is_ok_and(|response| response.len() == size)
                    };
                    report(&name("communicate"), size, count(&mut call));
                    if has_mailbox && size == 1024 && len == PAGE {
                        let bytes = stack_of(&mut || {
                            black_box(call());
                        });
                        report_stack(concat!(stringify!($name), "/communicate"), bytes);
                    }
                    $more(&mm, &name, size, &message);
                }
            }
        }
    };
}

client!(ours, patina_mm, super::more);
client!(published, patina_mm_published, |_, _, _, _: &[u8]| {});

/// Counts the functions that the published crate does not have.
fn more(
    mm: &patina_mm::component::communicator::MmCommunicator<ours::Executor>,
    name: &dyn Fn(&str) -> alloc::string::String,
    size: usize,
    message: &[u8],
) {
    use patina_mm::component::communicator::CallOptions;
    use patina_mm::service::MmCommunication;
    let mut out = vec![0; size];
    let mut into = || {
        let len = mm.communicate_into(0, message, RECIPIENT.as_guid(), &mut out);
        black_box(len).is_ok_and(|len| len == size)
    };
    report(&name("into"), size, count(&mut into));
    if size == 1024 && name("").contains("/4KiB/mailbox") {
        let bytes = stack_of(&mut || {
            black_box(into());
        });
        report_stack("ours/into", bytes);
    }
    let mut with = || {
        let mut len = 0;
        let done = mm.communicate_with(
            0,
            message,
            RECIPIENT.as_guid(),
            CallOptions::new(),
            &mut |response| {
                len = response.read(&mut out).len();
            },
        );
        black_box(done).is_ok() && len == size
    };
    report(&name("with"), size, count(&mut with));
}

/// Counts the copies alone: in and out, by the target's `memcpy`.
fn copies(memory: *mut u8, size: usize) {
    let (message, mut out) = (vec![0x5a_u8; size], vec![0_u8; size]);
    let mut copy = || {
        let shared = black_box(memory.wrapping_add(24));
        // SAFETY: each case has a buffer of at least header and message.
        unsafe { core::ptr::copy_nonoverlapping(black_box(message.as_ptr()), shared, size) };
        // SAFETY: each case has a buffer of at least header and message, and `out` has `size`
        // bytes.
        unsafe { core::ptr::copy_nonoverlapping(black_box(shared), out.as_mut_ptr(), size) };
        black_box(&out);
        true
    };
    report("copies", size, count(&mut copy));
}

/// Counts all cases.
pub(crate) fn run(firmware: Firmware) {
    let Ok(memory) = firmware.allocate_runtime_pages(PAGES) else {
        return report("memory", 0, None);
    };
    let mm = Played {
        mailbox: None,
        size: 0,
    };
    report_stack("mm-alone", stack_of(&mut || mm.respond()));
    for (len, sizes) in [
        (PAGE, &[16, 1024, 4072][..]),
        (16 * PAGE, &[16, 1024, 4096, 65512][..]),
    ] {
        for has_mailbox in [true, false] {
            ours::run(memory, len, has_mailbox, sizes);
            published::run(memory, len, has_mailbox, sizes);
        }
    }
    for size in [16, 1024, 4072, 65512] {
        copies(memory, size);
    }
}
