//! How to compile for firmware targets with what is installed.
//!
//! In this order: the active toolchain with the target installed; the active toolchain, then
//! Debian's `rustc-web`, with the sources of the standard library, which cargo then builds for the
//! target.

use crate::process::{self, find};
use crate::report::Missing;
use crate::target_dir;
use anyhow::{Result, ensure};
use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use xshell::{Shell, cmd};

/// x86-64 UEFI applications and drivers.
pub(crate) const X86_64_UEFI: &str = "x86_64-unknown-uefi";
/// AArch64 UEFI applications.
pub(crate) const AARCH64_UEFI: &str = "aarch64-unknown-uefi";
/// Bare AArch64, without floating point registers.
pub(crate) const AARCH64_BARE: &str = "aarch64-unknown-none-softfloat";
/// Bare x86-64, for the code in SMRAM.
pub(crate) const X86_64_NONE: &str = "x86_64-unknown-none";

/// Where Debian installs `rustc-web`. Named in full because rustup's `rustc` usually comes first in
/// `PATH`.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// The linter of that compiler.
const DISTRIBUTION_CLIPPY: &str = "/usr/bin/cargo-clippy";
/// Debian's package of that linter.
pub(crate) const CLIPPY_PACKAGE: &str = "rust-web-clippy";

/// Debian's compiler with the sources of its standard library.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];

/// Debian's linkers, for PE images and for ELF.
const LINKER_PACKAGES: &[&str] = &["lld"];

/// The oldest compiler that the workspace accepts, `major.minor`.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// A way to compile for one firmware target.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    target: &'static str,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// The target's libraries are installed.
    Installed,
    /// The target's libraries are built from source.
    BuildStd {
        /// The compiler, if it is not the active one.
        rustc: Option<PathBuf>,
        /// The linker, if the compiler does not find its own.
        linker: Option<PathBuf>,
    },
}

impl Toolchain {
    /// Finds a way to compile for `target`, or a [`Missing`] that says what to install.
    pub(crate) fn find(shell: &Shell, target: &'static str) -> Result<Self, Missing> {
        let libdir = cmd!(shell, "rustc --print target-libdir --target {target}")
            .quiet()
            .ignore_stderr()
            .read();
        if libdir.is_ok_and(|dir| Path::new(&dir).is_dir()) {
            return Ok(Self {
                target,
                kind: Kind::Installed,
            });
        }
        let missing = |what: String, packages: Vec<&'static str>| {
            let mut missing = Missing::from_packages(format!("{what} for target {target}"), packages);
            missing.remedy += &format!(", or `rustup target add {target}`");
            missing
        };
        let mut unfit = Vec::new();
        let fit = [None, Some(PathBuf::from(DISTRIBUTION_RUSTC))]
            .into_iter()
            .find_map(|rustc| match sysroot_with_sources(shell, rustc.as_deref()) {
                Ok(sysroot) => Some((rustc, sysroot)),
                Err(reason) => {
                    unfit.push(reason);
                    None
                }
            });
        let Some((rustc, sysroot)) = fit else {
            let linker = match any_linker(shell, target) {
                Some(_) => &[],
                None => LINKER_PACKAGES,
            };
            return Err(missing(
                format!("a Rust compiler ({})", unfit.join("; ")),
                [COMPILER_PACKAGES, linker].concat(),
            ));
        };
        let linker = match own_linker(shell, &sysroot) {
            Some(_) => None,
            None => Some(
                any_linker(shell, target)
                    .ok_or_else(|| missing("a linker".to_owned(), LINKER_PACKAGES.to_vec()))?,
            ),
        };
        Ok(Self {
            target,
            kind: Kind::BuildStd { rustc, linker },
        })
    }

    /// `cargo clippy` for the target, by the linter that was built with the compiler.
    pub(crate) fn clippy(&self) -> Result<Command, Missing> {
        match &self.kind {
            // A linter cannot read the libraries of another compiler.
            Kind::BuildStd { rustc: Some(_), .. } if Path::new(DISTRIBUTION_CLIPPY).is_file() => {
                Ok(self.command(DISTRIBUTION_CLIPPY.into(), "clippy"))
            }
            Kind::BuildStd { rustc: Some(_), .. } => {
                Err(Missing::from_packages(DISTRIBUTION_CLIPPY, vec![CLIPPY_PACKAGE]))
            }
            _ => Ok(self.cargo("clippy")),
        }
    }

    /// `cargo SUBCOMMAND` in release mode for the target. Its products are in [`Self::products`], a
    /// separate directory, because other flags would make the host's builds start anew.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        self.command(cargo, subcommand)
    }

    /// `cargo SUBCOMMAND`, to which a reader's own options are added: only the environment selects
    /// the toolchain.
    pub(crate) fn cargo_as_written(&self, subcommand: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.arg(subcommand).env("CARGO_TARGET_DIR", firmware_dir());
        if let Kind::BuildStd { .. } = &self.kind {
            command.env("CARGO_UNSTABLE_BUILD_STD", "core,alloc,compiler_builtins");
            command.env("CARGO_UNSTABLE_BUILD_STD_FEATURES", "compiler-builtins-mem");
        }
        self.programs(&mut command);
        command
    }

    fn command(&self, program: OsString, subcommand: &str) -> Command {
        let mut command = Command::new(program);
        command.args([subcommand, "--release", "--target", self.target, "--target-dir"]);
        command.arg(firmware_dir());
        if let Kind::BuildStd { .. } = &self.kind {
            command.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        self.programs(&mut command);
        command
    }

    /// The compiler and the linker.
    fn programs(&self, command: &mut Command) {
        if let Kind::BuildStd { rustc, linker } = &self.kind {
            command.env("RUSTC_BOOTSTRAP", "1");
            if let Some(rustc) = rustc {
                command.env("RUSTC", rustc);
                command.env("RUSTDOC", rustc.with_file_name("rustdoc"));
            }
            if let Some(linker) = linker {
                let target = self.target.to_uppercase().replace('-', "_");
                command.env(format!("CARGO_TARGET_{target}_LINKER"), linker);
            }
        }
    }

    /// Where [`Self::cargo`] leaves what it built.
    pub(crate) fn products(&self) -> PathBuf {
        firmware_dir().join(self.target).join("release")
    }

    /// Describes what was found, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Installed => format!("target {} of the active toolchain", self.target),
            Kind::BuildStd { rustc, .. } => {
                let rustc = rustc.as_deref().unwrap_or(Path::new("rustc"));
                format!("{} with the sources of the standard library", rustc.display())
            }
        }
    }
}

/// Builds the program `name` of PACKAGE for a firmware target; `configure` adds to the command.
pub(crate) fn build(
    shell: &Shell,
    target: &'static str,
    package: &str,
    name: &str,
    configure: impl FnOnce(&mut Command),
) -> Result<PathBuf> {
    let toolchain = Toolchain::find(shell, target)?;
    let mut command = toolchain.cargo("build");
    command
        .args(["--package", package, "--bin", name])
        .current_dir(shell.current_dir());
    configure(&mut command);
    let what = format!("build of {name}");
    println!("  {what}: {}", toolchain.describe());
    process::run_quietly(&what, command)?;
    let extension = if target.ends_with("-uefi") { "efi" } else { "" };
    let program = toolchain.products().join(name).with_extension(extension);
    ensure!(program.is_file(), "the {what} left no {}", program.display());
    Ok(program)
}

fn firmware_dir() -> PathBuf {
    target_dir().join("firmware")
}

/// The sysroot of a compiler (`None`: the active one) that is recent enough and comes with the
/// sources of the standard library; as an error, what is wrong with that compiler.
fn sysroot_with_sources(shell: &Shell, rustc: Option<&Path>) -> Result<PathBuf, String> {
    let program = rustc.unwrap_or(Path::new("rustc"));
    let ask = |question: &[&str]| {
        cmd!(shell, "{program} {question...}")
            .quiet()
            .ignore_stderr()
            .read()
            .map_err(|error| format!("{} cannot be run: {error}", program.display()))
    };
    let version = ask(&["--version"])?;
    if !is_recent(&version) {
        let number = version.split_whitespace().nth(1).unwrap_or(&version);
        return Err(format!("{} is {number}, older than {OLDEST}", program.display()));
    }
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
    {
        return Err(format!(
            "{} has no sources of the standard library",
            program.display()
        ));
    }
    Ok(sysroot)
}

/// Whether `rustc 1.96.0 (…)` is at least [`OLDEST`].
fn is_recent(version: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let found = version.split_whitespace().nth(1).and_then(numbers);
    found
        .zip(numbers(OLDEST))
        .is_some_and(|(found, oldest)| found >= oldest)
}

/// The `rust-lld` that the compiler of this sysroot uses by itself.
fn own_linker(shell: &Shell, sysroot: &Path) -> Option<PathBuf> {
    let rustlib = sysroot.join("lib/rustlib");
    let hosts = shell.read_dir(rustlib).ok()?;
    hosts
        .into_iter()
        .map(|host| host.join("bin").join(format!("rust-lld{EXE_SUFFIX}")))
        .find(|file| file.is_file())
}

/// The `rust-lld` of any toolchain of rustup, or Debian's linker. Linkers do not depend on the
/// compiler's version.
fn any_linker(shell: &Shell, target: &str) -> Option<PathBuf> {
    let distribution = if target.ends_with("-uefi") {
        "lld-link"
    } else {
        "ld.lld"
    };
    let active = cmd!(shell, "rustc --print sysroot")
        .quiet()
        .ignore_stderr()
        .read()
        .ok()
        .map(PathBuf::from);
    let rustup_home = cmd!(shell, "rustup show home").quiet().ignore_stderr().read();
    let installed = rustup_home.and_then(|home| shell.read_dir(Path::new(&home).join("toolchains")));
    active
        .into_iter()
        .chain(installed.unwrap_or_default())
        .find_map(|sysroot| own_linker(shell, &sysroot))
        .or_else(|| find(&format!("{distribution}{EXE_SUFFIX}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_must_be_as_recent_as_the_workspace_says() {
        assert!(is_recent(&format!("rustc {OLDEST}.0 (59807616e 2026-04-14)")));
        assert!(is_recent("rustc 2.0.0"));
        assert!(!is_recent("rustc 1.9.0 (b2 2016-05-26)"));
        assert!(!is_recent("rustc 1.63.0"));
        assert!(!is_recent("something else"));
    }

    #[test]
    fn a_build_from_source_names_compiler_and_linker() {
        let toolchain = Toolchain {
            target: X86_64_UEFI,
            kind: Kind::BuildStd {
                rustc: Some("bin/rustc".into()),
                linker: Some("lld-1".into()),
            },
        };
        let command = toolchain.cargo("build");
        let value = |key: &str| {
            command
                .get_envs()
                .find(|(k, _)| *k == key)
                .and_then(|(_, value)| value)
        };
        assert_eq!(value("RUSTC").unwrap(), "bin/rustc");
        assert_eq!(value("RUSTDOC").unwrap(), "bin/rustdoc");
        assert_eq!(value("CARGO_TARGET_X86_64_UNKNOWN_UEFI_LINKER").unwrap(), "lld-1");
        assert!(
            command
                .get_args()
                .any(|arg| arg == "-Zbuild-std=core,alloc,compiler_builtins")
        );

        let installed = Toolchain {
            target: X86_64_UEFI,
            kind: Kind::Installed,
        };
        assert!(
            !installed
                .cargo("build")
                .get_args()
                .any(|arg| arg.to_string_lossy().starts_with("-Z"))
        );
    }
}
