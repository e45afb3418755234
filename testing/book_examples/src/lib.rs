//! The examples of the repository's README and of the pages in docs/, compiled and run as
//! documentation tests.
//!
//! `cargo xtask guide` compiles the same blocks as firmware.
#![no_std]

#[cfg(doctest)]
mod pages {
    macro_rules! pages {
        ($($page:ident = $path:literal;)*) => {$(
            #[doc = include_str!(concat!("../../../", $path))]
            struct $page;
        )*};
    }

    pages! {
        Readme = "README.md";
        Component = "docs/component.md";
        Configuration = "docs/configuration.md";
        Platform = "docs/platform.md";
        PlatformArm = "docs/platform-arm.md";
        Protocols = "docs/protocols.md";
        Testing = "docs/testing.md";
    }
}
