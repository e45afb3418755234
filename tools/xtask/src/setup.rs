//! Which programs the rest needs, and how to get them.

use crate::linux::{self, Files, Processor};
use crate::report::Missing;
use crate::toolchain::{AARCH64_BARE, AARCH64_UEFI, CLIPPY_PACKAGE, Toolchain, X86_64_NONE, X86_64_UEFI};
use crate::{coverage, is_ci, process};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// Installs what the tests need.
///
/// On Debian and Ubuntu this says which packages are missing and why, asks, and installs them with
/// apt-get. Elsewhere it only says what is missing. Debian's kernels are downloaded (42 and 36 MB,
/// with package lists) into the build directory, and not installed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask setup              say what is missing, ask, install it
  cargo xtask setup --check      only say what is missing
  cargo xtask setup --yes        no question; so does CI=true, which also builds cargo-deny, mdbook and cargo-llvm-cov")]
pub(crate) struct Setup {
    /// Install without a question.
    #[arg(long)]
    yes: bool,
    /// Only report; ends with code 1 if something is missing.
    #[arg(long, conflicts_with_all = ["yes", "with_tools"])]
    check: bool,
    /// Also build and install cargo-deny, mdbook and cargo-llvm-cov, which takes MINUTES.
    #[arg(long, alias = "with-deny")]
    with_tools: bool,
}

/// A program or a set of files that some stage needs.
pub(crate) struct Tool {
    /// Its name.
    pub(crate) name: &'static str,
    /// Which stages need it.
    why: &'static str,
    /// Fails if it is not installed, with the packages that bring it.
    find: fn(&Shell) -> Result<(), Missing>,
}

/// The operating system of a machine, which is downloaded and not installed.
pub(crate) const LINUX: Tool = Tool {
    name: "Debian's kernel",
    why: "what machine linux boots",
    find: |_| Files::find(Processor::X86).map(drop),
};

/// The same for the Arm machine. Its first file system is packed by the other's shell.
pub(crate) const LINUX_ARM: Tool = Tool {
    name: "Debian's kernel for AArch64",
    why: "what machine linux-aarch64 boots",
    find: |_| {
        Files::find(Processor::X86)?;
        Files::find(Processor::Arm).map(drop)
    },
};

/// The machine itself.
pub(crate) const QEMU_X86: Tool = Tool {
    name: "qemu-system-x86_64",
    why: "boots the x86 machines",
    find: |_| program("qemu-system-x86_64", "qemu-system-x86"),
};

/// The machine's firmware.
pub(crate) const OVMF: Tool = Tool {
    name: "OVMF with SMM",
    why: "the firmware of machines ovmf-smm and patina-smm, its SMM core included",
    find: |_| files(&[ovmf_file(OVMF_CODE), ovmf_file(OVMF_VARS)], "ovmf"),
};

/// The firmware that a Patina DXE core is put into.
pub(crate) const OVMF_WITHOUT_SMM: Tool = Tool {
    name: "OVMF without SMM",
    why: "what the firmware of machine patina-q35 is made of",
    find: |_| files(&[ovmf_file(OVMF_CODE_WITHOUT_SMM), ovmf_file(OVMF_VARS)], "ovmf"),
};

/// The compiler of applications for it.
pub(crate) const RUST_UEFI: Tool = Tool {
    name: "Rust for x86_64-unknown-uefi",
    why: "compiles what the machines boot, and the stage asm",
    find: |shell| Toolchain::find(shell, X86_64_UEFI).map(drop),
};

/// The compiler of the MM core.
pub(crate) const RUST_NONE: Tool = Tool {
    name: "Rust for x86_64-unknown-none",
    why: "compiles the MM core of machine patina-q35",
    find: |shell| Toolchain::find(shell, X86_64_NONE).map(drop),
};

/// The Arm machine.
pub(crate) const QEMU_ARM: Tool = Tool {
    name: "qemu-system-aarch64",
    why: "boots the AArch64 machines",
    find: |_| program("qemu-system-aarch64", "qemu-system-arm"),
};

/// A UEFI for it.
pub(crate) const ARM_UEFI: Tool = Tool {
    name: "UEFI for AArch64",
    why: "the firmware of machines aarch64, linux-aarch64 and exit-boot-services-aarch64",
    find: |_| files(&[PathBuf::from(ARM_UEFI_CODE)], "qemu-efi-aarch64"),
};

/// The compiler for it.
pub(crate) const RUST_ARM: Tool = Tool {
    name: "Rust for AArch64 firmware",
    why: "compiles what machine aarch64 boots",
    find: |shell| {
        [AARCH64_BARE, AARCH64_UEFI]
            .into_iter()
            .try_for_each(|target| Toolchain::find(shell, target).map(drop))
    },
};

/// The linter of code that only firmware targets compile.
pub(crate) const CLIPPY: Tool = Tool {
    name: "Clippy for firmware targets",
    why: "the stage firmware lints",
    find: |shell| match Toolchain::find(shell, X86_64_UEFI) {
        Ok(toolchain) => toolchain.clippy().map(drop),
        Err(mut missing) => {
            missing.packages.push(CLIPPY_PACKAGE);
            Err(missing)
        }
    },
};

/// A browser.
pub(crate) const CHROMIUM: Tool = Tool {
    name: "chromium",
    why: "looks at the page that mm_trace writes",
    find: |_| program("chromium", "chromium"),
};

/// The compiler of libFuzzer.
pub(crate) const CXX: Tool = Tool {
    name: "a C++ compiler",
    why: "compiles libFuzzer, for cargo xtask fuzz",
    find: |_| program("c++", "g++"),
};

/// The program that counts instructions by function.
pub(crate) const VALGRIND: Tool = Tool {
    name: "valgrind",
    why: "cargo xtask bench --profile",
    find: |_| program("valgrind", "valgrind"),
};

/// The program that makes a book of docs/.
pub(crate) const MDBOOK: Tool = Tool {
    name: "mdbook",
    why: "builds the book of docs/",
    find: |shell| installed(shell, "mdbook", &INSTALL_MDBOOK, &["mdbook", "--version"]),
};

/// The programs that read the counters of coverage.
pub(crate) const LLVM: Tool = Tool {
    name: "llvm-cov",
    why: "reads how often lines were run; of the compiler's version of LLVM",
    find: coverage::require_llvm,
};

const TOOLS: &[&Tool] = &[
    &LINUX,
    &LINUX_ARM,
    &QEMU_X86,
    &OVMF,
    &OVMF_WITHOUT_SMM,
    &RUST_UEFI,
    &RUST_NONE,
    &QEMU_ARM,
    &ARM_UEFI,
    &RUST_ARM,
    &CLIPPY,
    &CHROMIUM,
    &CXX,
    &VALGRIND,
    &LLVM,
];

/// The image of the distribution's package `qemu-efi-aarch64` that runs from RAM.
pub(crate) const ARM_UEFI_CODE: &str = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd";

/// Firmware that runs SMM and keeps its variables out of the guest's reach.
pub(crate) const OVMF_CODE: &str = "OVMF_CODE_4M.secboot.fd";
/// Firmware without SMM, whose SMRAM is still open.
pub(crate) const OVMF_CODE_WITHOUT_SMM: &str = "OVMF_CODE_4M.fd";
/// An empty variable store: secure boot is off with it.
pub(crate) const OVMF_VARS: &str = "OVMF_VARS_4M.fd";

/// A file of the distribution's package `ovmf`.
pub(crate) fn ovmf_file(name: &str) -> PathBuf {
    Path::new("/usr/share/OVMF").join(name)
}

impl Tool {
    /// Fails with [`Missing`] if this is not installed.
    pub(crate) fn require(&self, shell: &Shell) -> Result<(), Missing> {
        (self.find)(shell)
    }
}

/// Fails if there is no such program, which `package` brings.
fn program(name: &str, package: &'static str) -> Result<(), Missing> {
    match process::find(name) {
        Some(_) => Ok(()),
        None => Err(Missing::from_packages(name, vec![package])),
    }
}

/// Fails if one of the files is missing; `package` brings them all.
fn files(files: &[PathBuf], package: &'static str) -> Result<(), Missing> {
    match files.iter().find(|file| !file.is_file()) {
        None => Ok(()),
        Some(file) => Err(Missing::from_packages(file.display().to_string(), vec![package])),
    }
}

/// The program that checks the licences and sources of dependencies.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    why: "checks licences and sources of dependencies",
    find: |shell| {
        installed(
            shell,
            "cargo-deny",
            &INSTALL_DENY,
            &["cargo", "deny", "--version"],
        )
    },
};

/// The program that runs tests with counters.
pub(crate) const LLVM_COV: Tool = Tool {
    name: "cargo-llvm-cov",
    why: "counts the lines that tests run",
    find: |shell| {
        installed(
            shell,
            "cargo-llvm-cov",
            &INSTALL_LLVM_COV,
            &["cargo", "llvm-cov", "--version"],
        )
    },
};

/// Fails if a program that cargo builds from source cannot be run.
fn installed(shell: &Shell, name: &str, install: &[&str], run: &[&str]) -> Result<(), Missing> {
    let found = run.split_first().is_some_and(|(program, rest)| {
        cmd!(shell, "{program} {rest...}")
            .quiet()
            .ignore_stderr()
            .read()
            .is_ok()
    });
    if found {
        return Ok(());
    }
    Err(Missing {
        what: name.to_owned(),
        packages: Vec::new(),
        remedy: format!("run `cargo {}`", install.join(" ")),
    })
}

const INSTALL_DENY: [&str; 3] = ["install", "--locked", "cargo-deny@0.20.2"];

/// Without its web server.
const INSTALL_MDBOOK: [&str; 6] = [
    "install",
    "--locked",
    "--no-default-features",
    "--features",
    "search",
    "mdbook@0.5.4",
];

const INSTALL_LLVM_COV: [&str; 3] = ["install", "--locked", "cargo-llvm-cov@0.9.1"];

/// The tools that cargo builds from source. CI needs them; for a person they are optional.
const BUILT: [(&Tool, &[&str]); 3] = [
    (&DENY, &INSTALL_DENY),
    (&MDBOOK, &INSTALL_MDBOOK),
    (&LLVM_COV, &INSTALL_LLVM_COV),
];

pub(crate) fn run(shell: &Shell, options: &Setup) -> Result<ExitCode> {
    let mut packages = Vec::new();
    let downloads: Vec<Processor> = [Processor::X86, Processor::Arm]
        .into_iter()
        .filter(|processor| Files::find(*processor).is_err())
        .collect();
    for tool in TOOLS {
        let state = match tool.require(shell) {
            Ok(()) => "installed".to_owned(),
            Err(missing) if missing.packages.is_empty() => "needs a download".to_owned(),
            Err(missing) => {
                let needs = format!("needs {}", missing.packages.join(", "));
                packages.extend(missing.packages);
                needs
            }
        };
        println!("{:30} {state} ({})", tool.name, tool.why);
    }
    packages.sort_unstable();
    packages.dedup();
    for (tool, _) in BUILT {
        let state = match tool.require(shell) {
            Ok(()) => "installed",
            Err(_missing) => "not installed",
        };
        println!("{:30} {state} ({}; optional)", tool.name, tool.why);
    }

    if options.check {
        return Ok(if packages.is_empty() && downloads.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    if !packages.is_empty() {
        install(shell, &packages, options.yes || is_ci())?;
    }
    for processor in downloads {
        linux::download(shell, processor)?;
    }
    if !packages.is_empty() {
        for tool in TOOLS {
            if let Err(Missing { what, .. }) = tool.require(shell) {
                bail!(
                    "installed {}, and yet {} is not there: {what}",
                    packages.join(", "),
                    tool.name
                );
            }
        }
    }
    for (tool, install) in BUILT {
        if tool.require(shell).is_ok() {
            continue;
        }
        if !(options.with_tools || is_ci()) {
            println!(
                "{} is optional: `cargo xtask setup --with-tools` installs it",
                tool.name
            );
            continue;
        }
        println!("==> cargo {}", install.join(" "));
        // Compiled without optimization, which takes a quarter of the time, and they have little to
        // do. Without the project's switch for unstable features, which is for its own crates.
        cmd!(shell, "cargo {install...} --debug")
            .env_remove("RUSTC_BOOTSTRAP")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .quiet()
            .run()?;
    }
    println!("ready: `cargo xtask test`");
    Ok(ExitCode::SUCCESS)
}

fn install(shell: &Shell, packages: &[&str], without_question: bool) -> Result<()> {
    let list = packages.join(" ");
    if process::find("apt-get").is_none() {
        bail!(
            "this is neither Debian nor Ubuntu; install what their packages {list} contain, \
             and see `rustup target add {X86_64_UEFI}` for the compiler"
        );
    }
    let sudo: &[&str] = match cmd!(shell, "id -u").quiet().read()?.as_str() {
        "0" => &[],
        _ if process::find("sudo").is_some() => &["sudo"],
        _ => bail!("installing needs root and sudo is not installed; run `apt-get install {list}` as root"),
    };
    if !without_question && !confirmed(&list)? {
        bail!("nothing was installed; the tests skip what is missing");
    }
    let apt_get = |arguments: &[&str]| {
        let command = [
            sudo,
            &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"],
            arguments,
        ]
        .concat();
        println!("==> {}", command.join(" "));
        let (program, rest) = command.split_first().context("the command has a program")?;
        Ok::<_, anyhow::Error>(cmd!(shell, "{program} {rest...}").quiet().run()?)
    };
    // First, because with lists of some months ago apt installs a compiler that is too old, without
    // a message.
    if let Err(error) = apt_get(&["update"]) {
        println!("  going on with the package lists at hand: {error:#}");
    }
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages].concat()).with_context(|| {
        format!(
            "install {list} by hand, or `rustup target add {X86_64_UEFI}` in place of the compiler's packages"
        )
    })
}

fn confirmed(list: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("no terminal to ask whether to install {list}; add --yes");
    }
    print!("Install {list} with apt-get? [y/N] ");
    std::io::stdout().flush()?;
    let mut response = String::new();
    std::io::stdin().read_line(&mut response)?;
    Ok(matches!(response.trim(), "y" | "Y" | "yes"))
}
