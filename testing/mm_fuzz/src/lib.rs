//! Fuzz targets, and the reference models that judge them.
//!
//! A target takes bytes, makes a case of them (typed, by `arbitrary`), runs the code, and compares
//! the result with that of a model, which shares no code with it. It panics if they differ. No
//! crash is not enough: a target also fails if shared memory keeps bytes, a buffer stays in use, a
//! byte outside is written, or a wait is not bounded.
//!
//! `fuzz/` runs the targets under libFuzzer with AddressSanitizer (`cargo xtask fuzz`).
//! `tests/targets.rs` runs the committed corpus and a fixed number of generated cases through them
//! as an ordinary test.
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    reason = "a panic is a finding, and in a model the fault of the model"
)]

pub mod c_calls;
pub mod device_tree;
pub mod entry;
pub mod header;
pub mod image;
#[allow(unsafe_code, reason = "listed in docs/unsafe.md")]
pub mod memory;
pub mod monitor;
pub mod moves;
pub mod pe;
pub mod places;
pub mod random;
pub mod runtime_hobs;
pub mod smc;
pub mod soak;
pub mod supervisor;
pub mod transaction;
pub mod wire;
pub mod with_patina;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the program in `fuzz/` and of the folder of its corpus.
    pub name: &'static str,
    /// The code that gets arbitrary input.
    pub about: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// The longest input that makes sense, in bytes.
    pub max_len: usize,
}

/// Makes the list of targets: module, the longest input, and what the target is about.
macro_rules! targets {
    ($($name:ident, $max_len:literal, $about:literal;)+) => {
        /// All targets.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            about: $about,
            run: $name::run,
            max_len: $max_len,
        }),+];
    };
}

targets! {
    wire, 512, "headers, HOBs, mailbox and payloads of mm_wire, against separate readers";
    transaction, 512, "whole transactions of mm_comm, against an arbitrary MM";
    entry, 1024, "mm_core, against an arbitrary caller";
    places, 256, "HOBs that announce comm buffers, against rules for memory that is taken over";
    moves, 512, "announcements that a comm buffer moves, between and in calls, against a model of its place";
    runtime_hobs, 512, "HOB lists that mm_runtime looks for its comm buffer in, against a separate reader";
    c_calls, 512, "callers in C of PI's protocols, against the rules for their parameters";
    supervisor, 512, "the client of the MM supervisor, against arbitrary responses";
    smc, 1024, "the client of secure monitor calls, against arbitrary registers, descriptors and RX pages";
    monitor, 1024, "the secure world of machine aarch64, against arbitrary calls";
    image, 256, "flash images that ovmf_image edits or refuses";
    pe, 4096, "PE files that ovmf_image flattens or refuses";
    device_tree, 2048, "device trees that the monitor changes or refuses";
}
