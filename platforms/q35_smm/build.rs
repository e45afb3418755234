//! Tells the linker what kind of UEFI image this is.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "uefi") {
        // The linker's default is an application; OVMF's PEI phase starts the DXE core as a driver.
        println!("cargo::rustc-link-arg-bins=/subsystem:efi_boot_service_driver");
    }
}
