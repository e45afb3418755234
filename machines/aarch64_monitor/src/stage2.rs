//! The second stage of translation that shows UEFI its image at address 0. An unsafe island
//! (`docs/unsafe.md`).
//!
//! `virt` with `secure=on` has secure flash at 0, where Debian's image has to be. Addresses below
//! 32 MiB lead to the loader's copy, all others to themselves.

use aarch64_monitor::layout::{RAM, UEFI};
use core::arch::asm;
use mm_comm::SharedRegion;

/// Where the tables are: RAM that UEFI does not know about. Walks are non-secure, so they cannot be in
/// secure RAM. Two tables of the first level, concatenated, then one of the second.
const TABLES: u64 = 0x7f00_0000;
const LEVEL_1_LEN: u64 = 0x2000;
const LEVEL_2: u64 = TABLES + LEVEL_1_LEN;

/// A block: accessed, inner shareable, readable and writable, write-back. The first stage makes
/// devices of devices.
const BLOCK: u64 = 0x7fd;
const TABLE: u64 = 0x3;

const GIB: u64 = 1 << 30;
const BLOCK_2M: u64 = 1 << 21;

/// 40 bits of address in and out, walks from the first level, inner shareable and write-back.
const VTCR: u64 = 1 << 31 | 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 24;
/// EL1 runs AArch64 code behind the second stage.
const HCR: u64 = 1 << 31 | 1;

/// Writes the tables and makes EL2 use them.
pub(crate) fn enable(ram: &SharedRegion) {
    for gib in 0..LEVEL_1_LEN / 8 {
        let descriptor = if gib == 0 {
            LEVEL_2 | TABLE
        } else {
            (gib * GIB) | BLOCK
        };
        put(ram, TABLES + gib * 8, descriptor);
    }
    for block in 0..512 {
        let address = block * BLOCK_2M;
        let target = if address < UEFI.len() {
            UEFI.start() + address
        } else {
            address
        };
        put(ram, LEVEL_2 + block * 8, target | BLOCK);
    }
    // SAFETY: registers of EL2, which does not run a program: they act on EL1 alone, which does not
    // run yet. The tables are written.
    unsafe {
        asm!(
            "dsb sy",
            "msr vtcr_el2, {vtcr}",
            "msr vttbr_el2, {tables}",
            "mrs {scratch}, midr_el1",
            "msr vpidr_el2, {scratch}",
            "mrs {scratch}, mpidr_el1",
            "msr vmpidr_el2, {scratch}",
            "mov {scratch}, #3",
            "msr cnthctl_el2, {scratch}",
            "msr cntvoff_el2, xzr",
            "mov {scratch}, #0x33ff",
            "msr cptr_el2, {scratch}",
            "msr hcr_el2, {hcr}",
            "isb",
            "tlbi alle1",
            "dsb sy",
            "isb",
            vtcr = in(reg) VTCR,
            tables = in(reg) TABLES,
            hcr = in(reg) HCR,
            scratch = out(reg) _,
            options(nostack),
        );
    }
}

fn put(ram: &SharedRegion, address: u64, descriptor: u64) {
    let offset = usize::try_from(address - RAM.start()).unwrap_or(usize::MAX);
    let written = ram.write(offset, &descriptor.to_le_bytes());
    assert!(written, "the tables are in RAM");
}
