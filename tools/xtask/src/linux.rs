//! Debian's kernel, and what it starts: the operating system of machine `linux`.
//!
//! Kernel and shell are Debian's packages, downloaded and taken apart, not installed. The rest is
//! `machines/linux/init`.

use crate::report::Missing;
use crate::{process, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
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

/// How long each step of a download may take; the longest took 25 s, on two busy cores.
const DEADLINE: Duration = Duration::from_secs(300);

/// The files of both packages that are kept.
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
    /// The files of a directory.
    fn of(dir: &Path) -> Self {
        Self {
            kernel: dir.join("vmlinuz"),
            efivarfs: dir.join("efivarfs.ko"),
            busybox: dir.join("busybox"),
        }
    }

    /// Finds them, or says how to get them.
    pub(crate) fn find(processor: Processor) -> Result<Self, Missing> {
        let files = Self::of(&folder_of(processor));
        let all = [&files.kernel, &files.efivarfs, &files.busybox];
        if let Some(file) = all.into_iter().find(|file| !file.is_file()) {
            return Err(Missing {
                what: file.display().to_string(),
                packages: Vec::new(),
                remedy: "run `cargo xtask setup`, which downloads Debian's kernels (42 and 36 MB, with package lists)"
                    .to_owned(),
            });
        }
        Ok(files)
    }
}

/// Where the files of a processor are kept.
fn folder_of(processor: Processor) -> PathBuf {
    target_dir().join("linux").join(processor.debian())
}

/// The programs of Debian that download packages and take them apart.
struct Debian {
    apt_get: PathBuf,
    apt_cache: PathBuf,
    dpkg_deb: PathBuf,
    /// How long each step may take.
    deadline: Duration,
}

impl Debian {
    /// Finds the programs, or says what to do without them.
    fn find(find: impl Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let program = |name: &str| {
            find(name).with_context(|| {
                format!(
                    "{name} is missing: this is not Debian. The kernels come from Debian's packages \
                     linux-image-cloud-amd64 and linux-image-cloud-arm64, the shell from {SHELL_PACKAGE}. Without apt put \
                     `vmlinuz`, `efivarfs.ko` and `busybox` of them into {} and the directory arm64 beside it, or do \
                     without machines linux and linux-aarch64",
                    folder_of(Processor::X86).display()
                )
            })
        };
        Ok(Self {
            apt_get: program("apt-get")?,
            apt_cache: program("apt-cache")?,
            dpkg_deb: program("dpkg-deb")?,
            deadline: DEADLINE,
        })
    }

    /// Runs one of them. Returns its lines; a failure has them in its error.
    fn run(&self, program: &Path, options: &[String], arguments: &[&str], dir: &Path) -> Result<Vec<String>> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let label = format!("{name} {}", arguments.join(" "));
        println!("==> {label}");
        let mut command = Command::new(program);
        command.args(options).args(arguments).current_dir(dir);
        let mut lines = Vec::new();
        let status = process::run("download", command, Some(self.deadline), |line| {
            lines.push(line.to_owned());
            None
        })?;
        process::require_success(&label, status).with_context(|| lines.join("\n"))?;
        Ok(lines)
    }
}

/// Downloads the packages and keeps the files that are needed. Nothing is installed, and apt's own
/// lists stay as they are.
pub(crate) fn download(shell: &Shell, processor: Processor) -> Result<()> {
    let debian = Debian::find(process::find)?;
    download_by(shell, &debian, processor, &folder_of(processor)).with_context(|| {
        format!(
            "Debian's kernel for {} was not downloaded; machines linux and linux-aarch64 need it. Run `cargo xtask setup` again",
            processor.debian()
        )
    })
}

/// The same by these programs, into a directory: all files, or none.
fn download_by(shell: &Shell, debian: &Debian, processor: Processor, into: &Path) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("patina-mm-linux-").tempdir()?;
    let folder = |name: &str| shell.create_dir(dir.path().join(name));
    folder("lists/partial")?;
    folder("cache/archives/partial")?;
    let architecture = processor.debian();
    // With separate package lists: those of the system may be old, or for another architecture.
    let options = [
        "Acquire::http::Timeout=60".to_owned(),
        "Acquire::Retries=2".to_owned(),
        // apt's own user may not write to our folder.
        "APT::Sandbox::User=root".to_owned(),
        format!("APT::Architecture={architecture}"),
        format!("APT::Architectures={architecture}"),
        format!("Dir::State::Lists={}", dir.path().join("lists").display()),
        format!("Dir::Cache={}", dir.path().join("cache").display()),
    ]
    .map(|option| ["-o".to_owned(), option])
    .concat();
    let packages = folder("packages")?;
    let run = |program, arguments: &[&str]| debian.run(program, &options, arguments, &packages);

    run(&debian.apt_get, &["update"])?;
    let newest = format!("linux-image-cloud-{architecture}");
    let depends = run(&debian.apt_cache, &["depends", &newest])
        .with_context(|| format!("the package lists have no {newest}: they are not Debian's"))?;
    let kernel = depends
        .iter()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{newest} depends on no kernel"))?;
    let version = kernel
        .strip_prefix("linux-image-")
        .with_context(|| format!("{newest} depends on {kernel}, which is not a kernel"))?;
    run(&debian.apt_get, &["download", kernel, SHELL_PACKAGE])?;

    let contents = folder("contents")?;
    for package in shell.read_dir(&packages)? {
        let (Some(from), Some(to)) = (package.to_str(), contents.to_str()) else {
            bail!("{} is not text", package.display());
        };
        debian
            .run(&debian.dpkg_deb, &[], &["--extract", from, to], &packages)
            .with_context(|| format!("{from} is damaged"))?;
    }
    let complete = folder("complete")?;
    let files = Files::of(&complete);
    for (from, to) in [
        (format!("boot/vmlinuz-{version}"), &files.kernel),
        (
            format!("lib/modules/{version}/kernel/fs/efivarfs/efivarfs.ko"),
            &files.efivarfs,
        ),
        ("bin/busybox".to_owned(), &files.busybox),
    ] {
        let found = contents.join(&from);
        ensure!(
            found.is_file(),
            "packages {kernel} and {SHELL_PACKAGE} have no {from}"
        );
        shell.copy_file(&found, to)?;
    }
    // Copied beside their place first, which may be on another file system, and then renamed, so
    // that they appear all at once.
    let partial = into.with_extension("partial");
    shell.remove_path(&partial)?;
    shell.create_dir(&partial)?;
    for file in shell.read_dir(&complete)? {
        shell.copy_file(&file, &partial)?;
    }
    shell.remove_path(into)?;
    std::fs::rename(&partial, into).with_context(|| format!("{} cannot be renamed", partial.display()))?;
    println!("  {}: {kernel}", into.display());
    Ok(())
}

/// Packs the first file system: the shell, the module and `machines/linux/init`. Returns its file
/// in `dir`.
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
    // The host's shell packs for either processor.
    let busybox = Files::of(&folder_of(Processor::X86)).busybox;
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Programs that behave like Debian's during a download: `apt-get download` leaves "packages",
    /// and `dpkg-deb` unpacks one if its text is whole.
    const APT_GET: &str = r#"#!/bin/sh
for word in "$@"; do last=$word; done
case "$*" in
*update*) ;;
*download*) echo whole > linux.deb; echo whole > "$last.deb" ;;
esac
"#;
    const APT_CACHE: &str = "#!/bin/sh\necho '  Depends: linux-image-6.1.0-1-cloud-amd64'\n";
    const DPKG_DEB: &str = r#"#!/bin/sh
grep -q whole "$2" || { echo "dpkg-deb: unexpected end of file"; exit 2; }
mkdir -p "$3/boot" "$3/bin" "$3/lib/modules/6.1.0-1-cloud-amd64/kernel/fs/efivarfs"
echo kernel > "$3/boot/vmlinuz-6.1.0-1-cloud-amd64"
echo module > "$3/lib/modules/6.1.0-1-cloud-amd64/kernel/fs/efivarfs/efivarfs.ko"
echo shell > "$3/bin/busybox"
"#;

    struct Attempt {
        dir: tempfile::TempDir,
        debian: Debian,
    }

    #[expect(clippy::unwrap_used, reason = "only tests call these")]
    impl Attempt {
        /// Those programs, one of which is another one.
        fn with(name: &str, other: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (program, text) in [
                ("apt-get", APT_GET),
                ("apt-cache", APT_CACHE),
                ("dpkg-deb", DPKG_DEB),
            ] {
                let (file, made) = (dir.path().join(program), dir.path().join("text"));
                std::fs::write(&made, if program == name { other } else { text }).unwrap();
                // Another process writes the program: a command that another test starts at this moment would
                // inherit our open file, and a file that is open for writing cannot be started.
                let mut install = Command::new("install");
                install.args(["-m", "755"]).args([&made, &file]);
                assert!(install.status().unwrap().success());
            }
            let find = |program: &str| Some(dir.path().join(program));
            let debian = Debian {
                deadline: Duration::from_secs(20),
                ..Debian::find(find).unwrap()
            };
            Self { dir, debian }
        }

        fn place(&self) -> PathBuf {
            self.dir.path().join("linux/amd64")
        }

        fn run(&self) -> Result<()> {
            download_by(
                &Shell::new().unwrap(),
                &self.debian,
                Processor::X86,
                &self.place(),
            )
        }

        /// It fails with these words, and leaves nothing that looks like a kernel.
        fn fails_with(&self, words: &[&str]) {
            let error = format!("{:#}", self.run().unwrap_err());
            for word in words {
                assert!(error.contains(word), "{error:?} does not have {word:?}");
            }
            assert!(!self.place().exists());
        }
    }

    #[test]
    fn packages_are_downloaded_and_taken_apart() {
        let attempt = Attempt::with("", "");
        attempt.run().unwrap();
        let files = Files::of(&attempt.place());
        for (file, text) in [
            (&files.kernel, "kernel\n"),
            (&files.efivarfs, "module\n"),
            (&files.busybox, "shell\n"),
        ] {
            assert_eq!(std::fs::read_to_string(file).unwrap(), text);
        }
        // Again, over the existing files.
        attempt.run().unwrap();
        assert!(!attempt.place().with_extension("partial").exists());
    }

    #[test]
    fn without_apt_the_error_says_what_to_do() {
        for missing in ["apt-get", "apt-cache", "dpkg-deb"] {
            let find = |name: &str| (name != missing).then(|| PathBuf::from(name));
            let error = Debian::find(find).err().unwrap().to_string();
            for word in [missing, "linux-image-cloud-amd64", "vmlinuz", "linux/amd64"] {
                assert!(error.contains(word), "{error:?} does not have {word:?}");
            }
        }
    }

    #[test]
    fn package_lists_without_the_kernel_are_not_debians() {
        let unknown = "#!/bin/sh\necho 'E: No packages found'\nexit 100\n";
        Attempt::with("apt-cache", unknown)
            .fails_with(&["have no linux-image-cloud-amd64", "E: No packages found"]);
        let other = "#!/bin/sh\necho '  Depends: base-files'\n";
        Attempt::with("apt-cache", other).fails_with(&["depends on base-files, which is not a kernel"]);
        Attempt::with("apt-cache", "#!/bin/sh\n").fails_with(&["depends on no kernel"]);
    }

    #[test]
    fn failed_or_endless_download_is_an_error() {
        let offline = "#!/bin/sh\necho 'Could not resolve host'\nexit 100\n";
        Attempt::with("apt-get", offline).fails_with(&["Could not resolve host", "apt-get update"]);
        let mut endless = Attempt::with("apt-get", "#!/bin/sh\nsleep 60\n");
        endless.debian.deadline = Duration::from_millis(300);
        endless.fails_with(&["did not end within its deadline"]);
    }

    #[test]
    fn cut_or_wrong_package_leaves_nothing() {
        let cut = APT_GET.replace("echo whole > linux.deb", "echo wh > linux.deb");
        Attempt::with("apt-get", &cut).fails_with(&["linux.deb is damaged", "unexpected end of file"]);
        let without_module = DPKG_DEB.replace("echo module >", "true");
        Attempt::with("dpkg-deb", &without_module).fails_with(&["have no lib/modules", "efivarfs.ko"]);
    }
}
