//! What the doctor pastes compiles. The library's tests compare these files with what it writes.

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

pasted!(hobs, "pasted/hobs.rs");
pasted!(hobs_fixed, "pasted/hobs_fixed.rs");
pasted!(hobs_unchecked, "pasted/hobs_unchecked.rs");
pasted!(protocol, "pasted/protocol.rs");

#[test]
fn each_is_a_platform() {
    for name in [
        hobs::name(),
        hobs_fixed::name(),
        hobs_unchecked::name(),
        protocol::name(),
    ] {
        assert!(name.ends_with("::Board"), "{name}");
    }
}
