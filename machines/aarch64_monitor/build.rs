//! Makes the linker write a flat image: code at the start of flash, data in secure RAM.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=monitor.ld");
    if var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{folder}/monitor.ld");
        println!("cargo::rustc-link-arg-bins=--oformat=binary");
    }
}
