//! Debian's kernel, and what it starts: the operating system of machine `linux`.
//!
//! Kernel and shell are Debian's packages, downloaded and taken apart, not installed. The rest is `machines/linux/init`.

use crate::report::Missing;
use crate::{process, root, target_dir};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xshell::{Shell, cmd};

/// A processor that the kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    X86,
    Arm,
}

impl Processor {
    /// Debian's name for it.
    const fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }
}

/// Debian's package of a shell with all that a script needs, in one program.
const SHELL_PACKAGE: &str = "busybox-static";

/// How long each step of a download may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// What is kept of both packages.
#[derive(Debug)]
pub(crate) struct Files {
    /// The kernel, which has an EFI stub.
    pub(crate) kernel: PathBuf,
    /// The module for variables.
    efivarfs: PathBuf,
    /// The shell.
    busybox: PathBuf,
}

impl Files {
    fn places(processor: Processor) -> Self {
        let dir = target_dir().join("linux").join(processor.debian());
        Self {
            kernel: dir.join("vmlinuz"),
            efivarfs: dir.join("efivarfs.ko"),
            busybox: dir.join("busybox"),
        }
    }

    /// Finds them, or says how to get them.
    pub(crate) fn find(processor: Processor) -> Result<Self, Missing> {
        let files = Self::places(processor);
        let all = [&files.kernel, &files.efivarfs, &files.busybox];
        if let Some(file) = all.into_iter().find(|file| !file.is_file()) {
            return Err(Missing {
                what: file.display().to_string(),
                packages: Vec::new(),
                remedy: "run `cargo xtask setup`, which downloads Debian's kernels (29 and 36 MB)".to_owned(),
            });
        }
        Ok(files)
    }
}

/// Downloads the packages and keeps what is needed of them. Nothing is installed, and apt's own lists stay as they are.
pub(crate) fn download(shell: &Shell, processor: Processor) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("patina-mm-linux-").tempdir()?;
    let folder = |name: &str| shell.create_dir(dir.path().join(name));
    let mut options = vec![
        "Acquire::http::Timeout=60".to_owned(),
        // apt's own user may not write to our folder.
        "APT::Sandbox::User=root".to_owned(),
    ];
    if processor != Processor::X86 {
        // Another architecture's packages, from lists of their own.
        let architecture = processor.debian();
        folder("lists/partial")?;
        folder("cache/archives/partial")?;
        options.extend([
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            format!("Dir::State::Lists={}", dir.path().join("lists").display()),
            format!("Dir::Cache={}", dir.path().join("cache").display()),
        ]);
    }
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    let packages = folder("packages")?;
    let apt_get = |arguments: &[&str]| {
        let label = format!("apt-get {} for {}", arguments.join(" "), processor.debian());
        println!("==> {label}");
        let mut command = Command::new("apt-get");
        command.args(&options).args(arguments).current_dir(&packages);
        let mut lines = Vec::new();
        let status = process::run("download", command, Some(DEADLINE), |line| {
            lines.push(line.to_owned());
            None
        })?;
        process::require_success(&label, status)
            .inspect_err(|_| lines.iter().for_each(|line| println!("{line}")))
    };
    if processor != Processor::X86 {
        apt_get(&["update"])?;
    }
    let newest = format!("linux-image-cloud-{}", processor.debian());
    let query = options.clone();
    let depends = cmd!(shell, "apt-cache {query...} depends {newest}")
        .quiet()
        .read()
        .with_context(|| format!("the package lists have no {newest}; is this Debian?"))?;
    let kernel = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{newest} depends on no kernel"))?;
    apt_get(&["download", kernel, SHELL_PACKAGE])?;
    let contents = folder("contents")?;
    for package in shell.read_dir(&packages)? {
        cmd!(shell, "dpkg-deb --extract {package} {contents}")
            .quiet()
            .run()?;
    }
    let files = Files::places(processor);
    let version = kernel.trim_start_matches("linux-image-");
    for (from, to) in [
        (format!("boot/vmlinuz-{version}"), &files.kernel),
        (
            format!("lib/modules/{version}/kernel/fs/efivarfs/efivarfs.ko"),
            &files.efivarfs,
        ),
        ("bin/busybox".to_owned(), &files.busybox),
    ] {
        let from = contents.join(&from);
        ensure!(from.is_file(), "{kernel} has no {}", from.display());
        let folder = to.parent().context("a file is in a directory")?;
        shell.create_dir(folder)?;
        shell.copy_file(&from, to)?;
        println!("  {}", to.display());
    }
    Ok(())
}

/// Packs the first file system: the shell, the module and `machines/linux/init`. Returns its file in `dir`.
pub(crate) fn initrd(shell: &Shell, files: &Files, dir: &Path) -> Result<PathBuf> {
    let tree = shell.create_dir(dir.join("initrd"))?;
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        shell.create_dir(tree.join(folder))?;
    }
    shell.copy_file(&files.busybox, tree.join("bin/busybox"))?;
    shell.copy_file(&files.efivarfs, tree.join("efivarfs.ko"))?;
    shell.copy_file(root().join("machines/linux/init"), tree.join("init"))?;
    let names = [
        "bin",
        "bin/busybox",
        "dev",
        "efivarfs.ko",
        "init",
        "proc",
        "sys",
        "tmp",
    ];
    // The host's own: it packs for either processor.
    let busybox = &Files::places(Processor::X86).busybox;
    let _in_tree = shell.push_dir(&tree);
    let packed = cmd!(shell, "{busybox} cpio -o -H newc")
        .quiet()
        .ignore_stderr()
        .stdin(names.join("\n"))
        .output()
        .context("the first file system cannot be packed")?;
    let initrd = dir.join("initrd.cpio");
    shell.write_file(&initrd, packed.stdout)?;
    Ok(initrd)
}
