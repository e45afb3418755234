//! Makes the linker write the bare payload as a flat image that starts at its first byte.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=payload.ld");
    if var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{folder}/payload.ld");
        println!("cargo::rustc-link-arg-bins=--oformat=binary");
    }
}
