//! Tells the linker where in SMRAM the image goes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=smram.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let directory = env!("CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{directory}/smram.ld");
        // SMRAM has a fixed address: nothing relocates the image.
        println!("cargo::rustc-link-arg-bins=--no-pie");
        println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    }
}
