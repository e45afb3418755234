//! Tells the linker what kinds of UEFI images these are.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "uefi") {
        for driver in ["variable_driver", "arm_mm_driver"] {
            println!("cargo::rustc-link-arg-bin={driver}=/subsystem:efi_runtime_driver");
            if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "aarch64") {
                // Operating systems may map runtime memory in pages of 64 KiB (UEFI 2.11, 2.3.6).
                // edk2 takes what is aligned to less for data, and Linux then does not execute it.
                println!("cargo::rustc-link-arg-bin={driver}=/align:65536");
            }
        }
    }
}
