//! Which programs the rest needs, and how to get them.

use crate::report::Missing;
use crate::toolchain::{AARCH64_BARE, AARCH64_UEFI, Toolchain, X86_64_NONE, X86_64_UEFI};
use crate::{is_ci, process};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xshell::{Shell, cmd};

/// Installs what the tests need.
///
/// On Debian and Ubuntu this says which packages are missing and why, asks, and installs them with apt-get. Elsewhere it
/// only says what is missing.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask setup              say what is missing, ask, install it
  cargo xtask setup --check      only say what is missing
  cargo xtask setup --yes        no question; so does CI=true, which also installs cargo-deny")]
pub(crate) struct Setup {
    /// Install without a question.
    #[arg(long)]
    yes: bool,
    /// Only report; ends with code 1 where something is missing.
    #[arg(long, conflicts_with_all = ["yes", "with_deny"])]
    check: bool,
    /// Also build and install cargo-deny, which takes some minutes.
    #[arg(long)]
    with_deny: bool,
}

/// A program or a set of files that some stage needs.
pub(crate) struct Tool {
    /// What it is.
    pub(crate) name: &'static str,
    /// Which stages need it.
    why: &'static str,
    /// The distribution's packages that are still to be installed.
    missing: fn(&Shell) -> Vec<&'static str>,
}

/// The machine itself.
pub(crate) const QEMU_X86: Tool = Tool {
    name: "qemu-system-x86_64",
    why: "boots machines ovmf-smm and patina-q35",
    missing: |_| {
        if process::find("qemu-system-x86_64").is_some() {
            vec![]
        } else {
            vec!["qemu-system-x86"]
        }
    },
};

/// The machine's firmware.
pub(crate) const OVMF: Tool = Tool {
    name: "OVMF with SMM",
    why: "the firmware of machine ovmf-smm, its MM core included",
    missing: |_| {
        if ovmf_file(OVMF_CODE).is_file() && ovmf_file(OVMF_VARS).is_file() {
            vec![]
        } else {
            vec!["ovmf"]
        }
    },
};

/// The firmware that a Patina DXE core is put into.
pub(crate) const OVMF_WITHOUT_SMM: Tool = Tool {
    name: "OVMF without SMM",
    why: "what the firmware of machine patina-q35 is made of",
    missing: |_| {
        if ovmf_file(OVMF_CODE_WITHOUT_SMM).is_file() && ovmf_file(OVMF_VARS).is_file() {
            vec![]
        } else {
            vec!["ovmf"]
        }
    },
};

/// What compiles applications for it.
pub(crate) const RUST_UEFI: Tool = Tool {
    name: "Rust for x86_64-unknown-uefi",
    why: "compiles what the machines boot, and the stage asm",
    missing: |shell| Toolchain::missing_packages(shell, X86_64_UEFI),
};

/// What compiles the MM core.
pub(crate) const RUST_NONE: Tool = Tool {
    name: "Rust for x86_64-unknown-none",
    why: "compiles the MM core of machine patina-q35",
    missing: |shell| Toolchain::missing_packages(shell, X86_64_NONE),
};

/// The Arm machine.
pub(crate) const QEMU_ARM: Tool = Tool {
    name: "qemu-system-aarch64",
    why: "boots machine aarch64",
    missing: |_| {
        if process::find("qemu-system-aarch64").is_some() {
            vec![]
        } else {
            vec!["qemu-system-arm"]
        }
    },
};

/// A UEFI for it.
pub(crate) const ARM_UEFI: Tool = Tool {
    name: "UEFI for AArch64",
    why: "the firmware of one run of machine aarch64",
    missing: |_| {
        if Path::new(ARM_UEFI_CODE).is_file() {
            vec![]
        } else {
            vec!["qemu-efi-aarch64"]
        }
    },
};

/// What compiles for it.
pub(crate) const RUST_ARM: Tool = Tool {
    name: "Rust for AArch64 firmware",
    why: "compiles what machine aarch64 boots",
    missing: |shell| {
        [AARCH64_BARE, AARCH64_UEFI]
            .iter()
            .flat_map(|target| Toolchain::missing_packages(shell, target))
            .collect()
    },
};

const TOOLS: &[&Tool] = &[
    &QEMU_X86,
    &OVMF,
    &OVMF_WITHOUT_SMM,
    &RUST_UEFI,
    &RUST_NONE,
    &QEMU_ARM,
    &ARM_UEFI,
    &RUST_ARM,
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
    /// Fails with [`Missing`] where this is not installed.
    pub(crate) fn require(&self, shell: &Shell) -> Result<(), Missing> {
        let packages = (self.missing)(shell);
        if packages.is_empty() {
            return Ok(());
        }
        Err(Missing {
            what: self.name.to_owned(),
            remedy: format!("run `cargo xtask setup` (package {})", packages.join(", ")),
        })
    }
}

/// Whether cargo-deny can be run.
pub(crate) fn require_deny(shell: &Shell) -> Result<(), Missing> {
    if cmd!(shell, "cargo deny --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok()
    {
        return Ok(());
    }
    Err(Missing {
        what: "cargo-deny".to_owned(),
        remedy: format!("run `cargo {}`", INSTALL_DENY.join(" ")),
    })
}

/// Built from source: 2 min 41 s on two idle cores, 5 min 11 s on two busy ones, which CI can afford.
const INSTALL_DENY: [&str; 3] = ["install", "--locked", "cargo-deny@0.20.2"];

pub(crate) fn run(shell: &Shell, options: &Setup) -> Result<ExitCode> {
    let mut packages = Vec::new();
    for tool in TOOLS {
        let missing = (tool.missing)(shell);
        let state = if missing.is_empty() {
            "installed".to_owned()
        } else {
            format!("needs {}", missing.join(", "))
        };
        println!("{:30} {state} ({})", tool.name, tool.why);
        packages.extend(missing);
    }
    packages.sort_unstable();
    packages.dedup();
    let deny = require_deny(shell);
    let state = if deny.is_ok() {
        "installed"
    } else {
        "not installed"
    };
    println!(
        "{:30} {state} (checks licences and sources of dependencies; optional)",
        "cargo-deny"
    );

    if options.check {
        return Ok(if packages.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    if !packages.is_empty() {
        install(shell, &packages, options.yes || is_ci())?;
        for tool in TOOLS {
            tool.require(shell)
                .with_context(|| format!("installed {}, and yet", packages.join(", ")))?;
        }
    }
    match deny {
        Err(_) if options.with_deny || is_ci() => {
            println!("==> cargo {}", INSTALL_DENY.join(" "));
            // Not the project's switch for unstable features: that is for the project's own crates.
            cmd!(shell, "cargo {INSTALL_DENY...}")
                .env_remove("RUSTC_BOOTSTRAP")
                .quiet()
                .run()?;
        }
        Err(_) => println!("cargo-deny is optional: `cargo xtask setup --with-deny` installs it"),
        Ok(()) => {}
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
        _ => bail!("installing needs root and there is no sudo; run `apt-get install {list}` as root"),
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
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    let known = packages.iter().all(|package| is_known(shell, package));
    if known && apt_get(&install).is_ok() {
        return Ok(());
    }
    // Package lists that are missing or out of date.
    apt_get(&["update"])?;
    apt_get(&install).with_context(|| {
        format!(
            "install {list} by hand, or `rustup target add {X86_64_UEFI}` in place of the compiler's packages"
        )
    })
}

/// Whether apt's lists, as they are, have the package.
fn is_known(shell: &Shell, package: &str) -> bool {
    let policy = cmd!(shell, "apt-cache policy {package}")
        .quiet()
        .ignore_stderr()
        .env("LC_ALL", "C")
        .read();
    policy.is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

fn confirmed(list: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody to ask whether to install {list}; add --yes");
    }
    print!("Install {list} with apt-get? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
