//! Tells the linker what kind of UEFI image this is.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "uefi") {
        // The firmware keeps code and data of a runtime driver, and relocates it when the operating system moves it.
        println!("cargo::rustc-link-arg-bins=/subsystem:efi_runtime_driver");
    }
}
