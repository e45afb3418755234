//! The Rust that the doctor writes compiles. The library's tests compare these files with what it
//! writes.

/// The platform of a pasted file.
macro_rules! pasted {
    ($name:ident, $file:literal) => {
        mod $name {
            include!($file);

            pub(crate) fn name() -> &'static str {
                fn of<T: ComponentInfo>() -> &'static str {
                    core::any::type_name::<T>()
                }
                of::<Board>()
            }
        }
    };
}

macro_rules! all {
    ($($name:ident $file:literal,)*) => {
        $(pasted!($name, $file);)*

        #[test]
        fn each_is_a_platform() {
            for name in [$($name::name()),*] {
                assert!(name.ends_with("::Board"), "{name}");
            }
        }

        #[test]
        fn each_file_is_compiled() {
            let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pasted")).unwrap();
            assert_eq!(files.count(), [$($file),*].len());
        }
    };
}

all! {
    hobs "pasted/hobs.rs",
    hobs_fixed "pasted/hobs_fixed.rs",
    hobs_secure_calls "pasted/hobs_secure_calls.rs",
    hobs_smi_cmd "pasted/hobs_smi_cmd.rs",
    hobs_unchecked "pasted/hobs_unchecked.rs",
    protocol "pasted/protocol.rs",
    secure_calls "pasted/secure_calls.rs",
    secure_calls_without_el3 "pasted/secure_calls_without_el3.rs",
}
