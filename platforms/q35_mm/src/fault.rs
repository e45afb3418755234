//! What happens when MM itself goes wrong.
//!
//! It is unknown what a handler was doing when it faulted, so the state of MM is unknown, too. MM
//! stops: it says so on the serial line, ends this and each later request with `EFI_ABORTED`, and
//! calls no handler any more. The rest of the machine continues.

use crate::entry::{self, ExceptionFrame};
use crate::hardware::{Outside, Serial};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use mm_core::SystemMemory;
use mm_wire::{EfiStatus, HeaderFormat, MailboxImage};
use zerocopy::IntoBytes;

static STOPPED: AtomicBool = AtomicBool::new(false);

/// The mailboxes for responses, zero for none. They are separate from the rest of MM's state, which
/// is not used any more.
static MAILBOXES: [AtomicU64; MAX_MAILBOXES] = [const { AtomicU64::new(0) }; MAX_MAILBOXES];
const MAX_MAILBOXES: usize = 12;

/// Remembers where to respond to requests after MM has stopped.
pub(crate) fn remember(mailboxes: impl Iterator<Item = u64>) {
    for (slot, mailbox) in MAILBOXES.iter().zip(mailboxes.chain(core::iter::repeat(0))) {
        slot.store(mailbox, Ordering::Relaxed);
    }
}

/// Whether MM has stopped.
pub(crate) fn has_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Ends each pending request with `EFI_ABORTED`.
pub(crate) fn refuse_requests() {
    let mut memory = Outside;
    let len = HeaderFormat::V1.header_len() as u64;
    let image = MailboxImage::answered(EfiStatus::ABORTED, len);
    for mailbox in &MAILBOXES {
        let address = mailbox.load(Ordering::Relaxed);
        let mut valid = [0];
        if address != 0 && memory.read(address, &mut valid) && valid != [0] {
            // A mailbox that cannot be written stays pending, which its owner notices.
            let _ = memory.write(address, image.as_bytes());
        }
    }
}

/// Stops MM; the SMI ends when this returns.
fn stop(why: core::fmt::Arguments<'_>) {
    if STOPPED.swap(true, Ordering::Relaxed) {
        // A fault while another one is being reported.
        return;
    }
    // The line may be lost; the mailboxes show the fault as well.
    let _ = writeln!(Serial, "MM STOPPED {why}");
    refuse_requests();
}

/// Called on the fault stack.
pub(crate) fn exception(frame: ExceptionFrame, cr2: u64) {
    let ExceptionFrame {
        vector,
        error_code,
        rip,
    } = frame;
    stop(format_args!(
        "by exception {vector} (error code {error_code:#x}) at {rip:#x}, CR2 {cr2:#x}"
    ));
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => stop(format_args!("by a panic at {at}")),
        None => stop(format_args!("by a panic")),
    }
    entry::resume()
}
