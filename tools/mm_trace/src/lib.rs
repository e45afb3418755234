//! Decodes and draws the messages between a boot and its Management Mode (MM).
//!
//! | module | content |
//! |---|---|
//! | [`log`] | the lines that `patina_mm` logs |
//! | [`qemu`] | QEMU's log of interrupts |
//! | [`mod@dump`] | dumps of comm buffers, mailboxes and messages |
//! | [`doctor`] | the file that `mm_doctor` writes |
//! | [`calls`] | which line belongs to which call |
//! | [`decode`] | what the bytes of a message say |
//! | [`guids`] | names of GUIDs, with their sources |
//! | [`transcript`] | all that as text |
//! | [`page`] | all that as one page for a browser |
//! | [`mod@read`] | reads an input, whatever it is |
//!
//! The input is read once, line by line, and only the calls in progress are kept: memory does not
//! grow with the input.

pub mod calls;
pub mod decode;
pub mod doctor;
pub mod dump;
pub mod guids;
pub mod input;
pub mod log;
pub mod page;
pub mod qemu;
pub mod read;
pub mod transcript;
