//! Names the file with the Rust of `mm_doctor`: `cargo xtask doctor --machine NAME` says which one.

fn main() {
    println!("cargo::rerun-if-env-changed=PASTED_RUST");
    let other = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tools/mm_doctor/tests/pasted/hobs.rs"
    );
    let file = std::env::var("PASTED_RUST").unwrap_or_else(|_| other.to_owned());
    println!("cargo::rerun-if-changed={file}");
    println!("cargo::rustc-env=PASTED_RUST={file}");
}
