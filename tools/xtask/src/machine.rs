//! The table of machines that can be booted. `docs/testing.md` says how to add a machine.

use crate::image::{self, PATINA_Q35, PATINA_Q35_EXIT, PATINA_Q35_RUNTIME, PATINA_SMM};
use crate::linux::{self, Files, Processor};
use crate::qemu;
use crate::setup::{
    ARM_UEFI, ARM_UEFI_CODE, LINUX, LINUX_ARM, OVMF, OVMF_CODE, OVMF_CODE_WITHOUT_SMM, OVMF_VARS,
    OVMF_WITHOUT_SMM, QEMU_ARM, QEMU_X86, RUST_ARM, RUST_NONE, RUST_UEFI, Tool, ovmf_file,
};
use crate::toolchain::{self, AARCH64_BARE, AARCH64_UEFI, Toolchain, X86_64_UEFI};
use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;
use std::path::{Path, PathBuf};
use std::process::Command;
use xshell::{Cmd, Shell, cmd};

/// What the guest is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Run the tests and report them in the protocol of [`crate::verdict`].
    Test,
    /// Show something to people.
    Demo,
    /// Make very many calls, and say so in the same protocol.
    Soak,
}

impl Mode {
    /// The word that tells a guest its mode.
    const fn word(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Demo => "demo",
            Self::Soak => "soak",
        }
    }
}

/// A machine under QEMU with the firmware and the code that it boots.
pub(crate) struct Machine {
    /// Its name on the command line and in the table.
    pub(crate) name: &'static str,
    /// The tools that must be installed to build and to boot it.
    pub(crate) tools: &'static [&'static Tool],
    /// The ways to boot it, each of which is a separate stage; the demo takes the first.
    pub(crate) variants: &'static [Variant],
    /// Builds the programs that it boots; the result is a file for `command`.
    pub(crate) build: fn(&Shell) -> Result<PathBuf>,
    /// Puts the files of one run into a fresh directory and names QEMU's arguments. The guest's
    /// serial line is QEMU's standard output.
    pub(crate) command: fn(&Shell, &Boot<'_>) -> Result<Command>,
    /// QEMU's exit code after a success.
    pub(crate) exit_code: i32,
    /// The demo shows lines that start with one of these; all lines if this is empty.
    pub(crate) demo_lines: &'static [&'static str],
    /// The demo shows nothing before the first line that starts with this. Empty to show all.
    pub(crate) demo_since: &'static str,
    /// Whether its tests raise SMIs, and who counts how many were taken.
    pub(crate) smis: Smis,
}

/// The SMIs of a machine's tests.
pub(crate) enum Smis {
    /// Its tests raise no SMIs.
    None,
    /// A test in the guest compares the MMIs that it raised with MM's count.
    CountedByTheGuest,
    /// Those in QEMU's log ([`qemu::log_smis`]) since the end of this serial text, with which the
    /// firmware starts our code. Those before are the firmware's own.
    LoggedSince(&'static str),
    /// Those in QEMU's log whose page tables are not the firmware's: the operating system's own,
    /// under which it calls the firmware. The firmware's are those until the end of this serial
    /// text, with which the kernel's EFI stub starts.
    LoggedAfterTakeover(&'static str),
}

/// A way to boot a machine.
pub(crate) struct Variant {
    /// Its name in the table; empty if there is only one.
    pub(crate) name: &'static str,
    /// Whether the conformance suite runs on it: each scenario must then have a line.
    pub(crate) suite: bool,
    /// How many tests pass at least. A machine that has lost an ability skips the tests that need
    /// it, and nothing else would show that.
    pub(crate) least: u64,
    /// Words that a serial line must contain.
    pub(crate) says: Option<&'static str>,
    /// Whether the firmware has to refuse this machine, with those words. There are no tests then.
    pub(crate) refused: bool,
    /// Whether the run fails if an SMI is raised or taken.
    pub(crate) silent: bool,
    /// Whether it can make very many calls ([`Mode::Soak`]).
    pub(crate) soaks: bool,
}

impl Variant {
    const fn new(name: &'static str, suite: bool, least: u64) -> Self {
        Self {
            name,
            suite,
            least,
            says: None,
            refused: false,
            silent: false,
            soaks: false,
        }
    }

    /// What is expected of one that makes very many calls.
    pub(crate) const fn soak(name: &'static str) -> Self {
        /// Each call has its result, and memory is constant.
        const TESTS: u64 = 2;
        Self::new(name, false, TESTS)
    }

    const fn soaking(self) -> Self {
        Self { soaks: true, ..self }
    }

    const fn saying(self, words: &'static str) -> Self {
        Self {
            says: Some(words),
            ..self
        }
    }

    const fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    const fn refused(name: &'static str, says: &'static str) -> Self {
        Self {
            refused: true,
            ..Self::new(name, false, 0).saying(says)
        }
    }
}

/// One boot of a machine.
pub(crate) struct Boot<'a> {
    /// What [`Machine::build`] returned.
    pub(crate) image: &'a Path,
    /// A fresh directory.
    pub(crate) dir: &'a Path,
    /// What the guest is asked to do.
    pub(crate) mode: Mode,
    /// The name of one of [`Machine::variants`].
    pub(crate) variant: &'static str,
    /// The firmware that machine [`OWN`] boots.
    pub(crate) own: Option<&'a Firmware>,
}

/// Firmware that the user names.
#[derive(Clone, Debug)]
pub(crate) struct Firmware {
    /// Its code.
    pub(crate) code: PathBuf,
    /// An empty variable store for it.
    pub(crate) vars: PathBuf,
}

/// Boots the firmware that the user names, edk2's OvmfPkg or another one for Q35, with the
/// application of machine `ovmf-smm`.
pub(crate) const OWN: Machine = Machine {
    name: "own",
    tools: &[&QEMU_X86, &RUST_UEFI],
    // The number of tests that pass depends on the firmware.
    variants: &[Variant::new("", false, 1)],
    build: |shell| build_uefi(shell, OVMF_APP),
    demo_lines: &[],
    demo_since: "",
    command: |shell, boot| {
        let firmware = boot.own.context("no firmware was named")?;
        own(shell, boot, &firmware.code, boot.image)
    },
    exit_code: DEBUG_EXIT_SUCCESS,
    // The firmware's own words differ.
    smis: Smis::LoggedSince("TEST "),
};

/// The same with a Patina DXE core put into a copy of the firmware.
pub(crate) const OWN_WITH_CORE: Machine = Machine {
    name: "own core",
    tools: &[&QEMU_X86, &RUST_UEFI],
    variants: &[Variant::new("", false, 1)],
    build: |shell| build_uefi(shell, SELF_TEST_APP),
    demo_lines: &[],
    demo_since: "",
    command: |shell, boot| {
        let firmware = boot.own.context("no firmware was named")?;
        let image = image::build_into(shell, &firmware.code)?;
        own(shell, boot, &image, boot.image)
    },
    exit_code: DEBUG_EXIT_SUCCESS,
    // If no comm buffer is announced, no SMI is raised.
    smis: Smis::None,
};

/// All machines.
pub(crate) const MACHINES: &[Machine] = &[
    Machine {
        name: OVMF_SMM,
        tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
        variants: &[Variant::new("", true, 91).soaking()],
        build: |shell| build_uefi(shell, OVMF_APP),
        command: ovmf_smm,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &[],
        demo_since: "",
        smis: Smis::LoggedSince("BdsDxe: starting "),
    },
    Machine {
        name: PATINA_Q35.name,
        tools: &[&QEMU_X86, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
        variants: &[
            // The last test makes MM fault: its stack runs into the page below it.
            Variant::new("", true, 250)
                .saying("MM STOPPED by exception 14")
                .soaking(),
            // From 2816 MiB on there is RAM above 4 GiB, which MM cannot access.
            Variant::new("2048-mib", false, 18),
            Variant::new("3072-mib", false, 18),
            Variant::new("4096-mib", false, 18),
            Variant::refused(TWO_SOCKETS, "MM was not launched: processors: 2 present"),
            Variant::refused(
                ROOM_FOR_TWO,
                "MM was not launched: processors: 1 present, room for 2",
            ),
            Variant::refused(
                WITHOUT_VGA,
                "MM was not launched: closed SMRAM can be read from outside",
            ),
        ],
        build: |shell| {
            build_uefi(shell, SELF_TEST_APP)?;
            image::build(shell, &PATINA_Q35, true, None)
        },
        command: patina_q35,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &[],
        demo_since: "",
        // Twice 100,000 calls are too many for QEMU's log.
        smis: Smis::CountedByTheGuest,
    },
    Machine {
        name: PATINA_SMM.name,
        tools: &[&QEMU_X86, &OVMF, &RUST_UEFI],
        variants: &[
            Variant::new(APPLICATION, true, 91).soaking(),
            Variant::new("components", false, 8).soaking(),
        ],
        build: |shell| {
            build_uefi(shell, OVMF_APP)?;
            build_uefi(shell, SELF_TEST_APP)?;
            image::build(shell, &PATINA_SMM, true, None)
        },
        command: patina_smm,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &[],
        demo_since: "",
        smis: Smis::LoggedSince("BdsDxe: starting "),
    },
    Machine {
        name: "aarch64",
        tools: &[&QEMU_ARM, &ARM_UEFI, &RUST_ARM],
        variants: &[
            Variant::new("uefi", true, 100).soaking(),
            Variant::new("uefi-spm-mm", true, 97).soaking(),
            Variant::new("spm-mm", true, 129).soaking(),
            Variant::new("ffa", true, 132).soaking(),
            Variant::new("ffa-without-get-regs", true, 133).soaking(),
            Variant::new("standalone-mm", true, 105).soaking(),
            Variant::new("uefi-standalone-mm", true, 83).soaking(),
            Variant::new("no-mm", true, 22),
            Variant::new("no-el3", true, 20),
        ],
        build: build_aarch64,
        command: aarch64,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &[],
        demo_since: "",
        smis: Smis::None,
    },
    Machine {
        name: "linux",
        tools: &[
            &LINUX,
            &QEMU_X86,
            &OVMF,
            &OVMF_WITHOUT_SMM,
            &RUST_UEFI,
            &RUST_NONE,
        ],
        variants: &[
            Variant::new(LINUX_Q35, false, 15)
                .saying(" will be at 0xffff")
                .soaking(),
            Variant::new(LINUX_WITHOUT_KASLR, false, 15).saying(" will be at 0xffff"),
            // x86's kernel calls SetVirtualAddressMap whatever this option says
            // (`efi_enter_virtual_mode` in arch/x86/platform/efi/efi.c): only stubs that make a
            // device tree look at it (`allocate_new_fdt_and_exit_boot` in
            // drivers/firmware/efi/libstub/fdt.c). Machine exit-boot-services never calls it in its
            // variant `none`.
            Variant::new(LINUX_NOVAMAP, false, 15).saying(" will be at 0xffff"),
            // Our variable driver instead of edk2's.
            Variant::new(LINUX_OUR_DRIVER, false, 15)
                .saying(" will be at 0xffff")
                .soaking(),
            // The kernel then calls no firmware.
            Variant::new(LINUX_WITHOUT_FIRMWARE, false, 1)
                .saying("boot services end")
                .silent(),
            Variant::new(LINUX_SMM, false, 2).soaking(),
        ],
        build: |shell| {
            for program in [VARIABLE_DRIVER, LINUX_LOADER] {
                toolchain::build(shell, X86_64_UEFI, VARIABLE_DRIVER, program, |_| {})?;
            }
            image::build(shell, &PATINA_SMM, false, None)?;
            image::build(shell, &PATINA_Q35_RUNTIME, false, None)
        },
        command: linux,
        // Powered off by the guest.
        exit_code: 0,
        demo_lines: &["DEMO ", "q35_runtime: "],
        // Before that edk2's drivers and the kernel set and read some hundred variables.
        demo_since: "DEMO ",
        smis: Smis::LoggedAfterTakeover("EFI stub: "),
    },
    Machine {
        name: "linux-aarch64",
        tools: &[&LINUX_ARM, &QEMU_ARM, &ARM_UEFI, &RUST_ARM],
        variants: &[
            Variant::new("ffa", false, 15).soaking(),
            Variant::new("spm-mm", false, 15).soaking(),
            // The kernel then never calls SetVirtualAddressMap.
            Variant::new(WITHOUT_ADDRESS_CHANGE, false, 15),
        ],
        build: |shell| build_drivers_aarch64(shell, &[(VARIABLE_DRIVER, LINUX_LOADER)]),
        command: linux_aarch64,
        // The monitor ends a machine that is powered off by PSCI with this code: its own
        // applications end in another way.
        exit_code: DEBUG_EXIT_FAILURE,
        demo_lines: &["DEMO ", "monitor: "],
        // The firmware's own requests come before.
        demo_since: "DEMO ",
        smis: Smis::None,
    },
    Machine {
        name: "exit-boot-services",
        tools: &[&QEMU_X86, &OVMF, &OVMF_WITHOUT_SMM, &RUST_UEFI, &RUST_NONE],
        variants: &[
            // The runtime driver says it, and the addresses are those of the map.
            Variant::new("up", false, 100)
                .saying(" will be at 0xffffa")
                .soaking(),
            Variant::new("shuffled", false, 100).saying(" will be at 0xffffa"),
            Variant::new("buffer-alone", false, 99).saying(" will be at 0xffffa"),
            Variant::new("identity", false, 99).saying(" will be at 0x"),
            Variant::new("none", false, 65).saying("boot services end"),
            Variant::new(OUR_VARIABLE_DRIVER, false, 101).saying(" will be at 0xffffa"),
        ],
        build: |shell| {
            build_uefi(shell, EXIT_APP)?;
            toolchain::build(shell, X86_64_UEFI, VARIABLE_DRIVER, VARIABLE_DRIVER, |_| {})?;
            image::build(shell, &PATINA_Q35_EXIT, false, None)
        },
        command: exit_boot_services,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &["LEAVING ", "TEST ", "DONE "],
        demo_since: "",
        smis: Smis::LoggedAfterTakeover("LEAVING boot services"),
    },
    Machine {
        name: "exit-boot-services-aarch64",
        tools: &[&QEMU_ARM, &ARM_UEFI, &RUST_ARM],
        variants: &[
            Variant::new("up", false, 86).soaking(),
            Variant::new("shuffled", false, 86),
            Variant::new("buffer-alone", false, 85),
            Variant::new("identity", false, 85),
            Variant::new("none", false, 56),
            Variant::new("up-spm-mm", false, 86).soaking(),
        ],
        build: |shell| build_drivers_aarch64(shell, &[(EXIT_APP, EXIT_APP)]),
        command: exit_boot_services_aarch64,
        exit_code: DEBUG_EXIT_SUCCESS,
        demo_lines: &["LEAVING ", "TEST ", "DONE "],
        demo_since: "",
        // The monitor counts requests.
        smis: Smis::CountedByTheGuest,
    },
];

impl Machine {
    /// A stage's name in the table.
    pub(crate) fn stage_name(&self, variant: &Variant) -> String {
        [self.name, variant.name].join(" ").trim_end().to_owned()
    }
}

/// The machine of this name.
pub(crate) fn find(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|machine| machine.name == name)
}

/// The names for the command line: other words, and all machines of the table.
pub(crate) fn names(others: &[&'static str]) -> PossibleValuesParser {
    let all = MACHINES.iter().map(|machine| machine.name);
    PossibleValuesParser::new(others.iter().copied().chain(all))
}

/// What the guest writes to QEMU's `isa-debug-exit` after a success is 0x10; QEMU ends with twice
/// that, plus one.
pub(crate) const DEBUG_EXIT_SUCCESS: i32 = 0x10 << 1 | 1;

/// The same after a failure.
pub(crate) const DEBUG_EXIT_FAILURE: i32 = 0x11 << 1 | 1;

/// The end of the name of a way to boot with so many MiB of RAM. The platform's own tests run, and
/// not the suite.
const MIB: &str = "-mib";

/// The word that tells machine patina-q35 to do that.
const PLATFORM_TESTS: &str = "platform";

/// Ways to boot machine patina-q35 that its launcher must refuse.
const TWO_SOCKETS: &str = "two-sockets";
const ROOM_FOR_TWO: &str = "room-for-two";
const WITHOUT_VGA: &str = "without-vga";

/// Builds the application `machines/NAME` for x86-64 UEFI.
fn build_uefi(shell: &Shell, name: &str) -> Result<PathBuf> {
    toolchain::build(shell, X86_64_UEFI, name, name, |_| {})
}

/// A path as part of an option's value.
fn path(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("QEMU cannot be given the path {}", path.display()))?;
    // QEMU's way to write a comma inside an option's value.
    Ok(text.replace(',', ",,"))
}

/// The application that makes a Patina platform run its tests.
const SELF_TEST_APP: &str = "platform_self_test";

/// The application that runs components by itself, above edk2's SMM core.
const OVMF_APP: &str = "ovmf_smm";
/// The way to boot machine patina-smm that starts it.
const APPLICATION: &str = "application";

/// Debian's OVMF with edk2's own SMM core. The application starts by itself from the
/// removable-media path.
fn ovmf_smm(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    Ok(with_smm(q35(shell, &ovmf_file(OVMF_CODE), boot.image, boot)?, boot).into())
}

/// The same with a Patina DXE core instead of edk2's.
fn patina_smm(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let application = match boot.variant {
        APPLICATION => OVMF_APP,
        _ => SELF_TEST_APP,
    };
    Ok(with_smm(
        q35(shell, boot.image, &uefi_product(shell, application)?, boot)?,
        boot,
    )
    .into())
}

const ONLY_SMM_WRITES_FLASH: [&str; 2] = ["-global", "driver=cfi.pflash01,property=secure,value=on"];

/// Only SMM may write to the flash, as that firmware demands, and each SMI is logged.
fn with_smm<'s>(qemu: Cmd<'s>, boot: &Boot<'_>) -> Cmd<'s> {
    qemu.args(ONLY_SMM_WRITES_FLASH).args(qemu::log_smis(boot.dir))
}

/// Q35 with firmware that the user named.
fn own(shell: &Shell, boot: &Boot<'_>, code: &Path, application: &Path) -> Result<Command> {
    let qemu = with_smm(q35(shell, code, application, boot)?, boot);
    // As much SMRAM as edk2 with Standalone MM needs; others use what they need. The VGA device
    // covers the SMRAM of machine patina-q35, whose image can be named, too.
    let devices = ["-global", "mch.extended-tseg-mbytes=32", "-device", "VGA"];
    Ok(qemu.args(devices).into())
}

/// OVMF without SMM, with a Patina DXE core and a Rust MM core. BDS starts the application, which
/// starts the tests.
fn patina_q35(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let application = uefi_product(shell, SELF_TEST_APP)?;
    // Without a VGA device at its addresses QEMU would leave SMRAM readable for all code.
    let devices: &[&str] = match boot.variant {
        WITHOUT_VGA => &[],
        TWO_SOCKETS => &["-device", "VGA", "-smp", "2,sockets=2"],
        ROOM_FOR_TWO => &["-device", "VGA", "-smp", "1,maxcpus=2"],
        _ => &["-device", "VGA"],
    };
    Ok(q35(shell, boot.image, &application, boot)?.args(devices).into())
}

/// Where the build left an application.
fn uefi_product(shell: &Shell, name: &str) -> Result<PathBuf> {
    let products = Toolchain::find(shell, X86_64_UEFI)?.products();
    Ok(products.join(name).with_extension("efi"))
}

/// The machines that `mm_doctor` looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Doctor {
    /// OVMF with edk2's SMM core.
    OvmfSmm,
    /// OVMF without MM.
    OvmfWithoutMm,
    /// The same with a Patina DXE core and a Rust MM core.
    PatinaQ35,
    /// OVMF with edk2's SMM core and a Patina DXE core.
    PatinaSmm,
    /// UEFI above the monitor, in this variant of machine aarch64.
    Aarch64(&'static str),
    /// UEFI on a processor without EL3.
    Aarch64WithoutEl3,
}

/// A machine that starts this application. Its ESP is the folder `esp` of `dir`.
pub(crate) fn with_application(
    shell: &Shell,
    which: Doctor,
    application: &Path,
    dir: &Path,
) -> Result<Command> {
    let boot = Boot {
        image: application,
        dir,
        mode: Mode::Demo,
        variant: "",
        own: None,
    };
    let command = match which {
        Doctor::OvmfSmm => with_smm(q35(shell, &ovmf_file(OVMF_CODE), application, &boot)?, &boot).into(),
        Doctor::OvmfWithoutMm => q35(shell, &ovmf_file(OVMF_CODE_WITHOUT_SMM), application, &boot)?.into(),
        Doctor::PatinaQ35 => {
            let image = image::build(shell, &PATINA_Q35, false, None)?;
            q35(shell, &image, application, &boot)?
                .args(["-device", "VGA"])
                .into()
        }
        Doctor::PatinaSmm => {
            let image = image::build(shell, &PATINA_SMM, false, None)?;
            with_smm(q35(shell, &image, application, &boot)?, &boot).into()
        }
        Doctor::Aarch64(variant) => {
            let monitor = toolchain::build(shell, AARCH64_BARE, MONITOR, MONITOR, |_| {})?;
            let image = monitor.parent().context("a file is in a directory")?;
            let boot = Boot {
                image,
                variant,
                ..boot
            };
            aarch64_with(shell, &boot, application)?
        }
        Doctor::Aarch64WithoutEl3 => {
            let qemu = virt(shell, "virt").args(["-bios", ARM_UEFI_CODE]);
            with_esp(qemu, &esp_with(shell, dir, application)?)?.into()
        }
    };
    Ok(command)
}

/// The machines that count instructions.
pub(crate) const COUNTING: [&str; 2] = [OVMF_SMM, PATINA_Q35.name];
const OVMF_SMM: &str = "ovmf-smm";

/// One of [`COUNTING`], whose firmware starts an application, and where an instruction is a tick of
/// the counter. On patina-q35 drivers in C call the runtime driver.
pub(crate) fn counting(shell: &Shell, name: &str, application: &Path, dir: &Path) -> Result<Command> {
    let boot = Boot {
        image: application,
        dir,
        mode: Mode::Test,
        variant: "",
        own: None,
    };
    let qemu = if name == OVMF_SMM {
        q35(shell, &ovmf_file(OVMF_CODE), application, &boot)?.args(ONLY_SMM_WRITES_FLASH)
    } else {
        let image = image::build(shell, &PATINA_Q35_RUNTIME, false, None)?;
        q35(shell, &image, application, &boot)?.args(["-device", "VGA"])
    };
    Ok(qemu.args(["-icount", "shift=0,sleep=off"]).into())
}

/// QEMU's Q35 with a flash image, an empty variable store, and an ESP with an application.
fn q35<'s>(shell: &'s Shell, code: &Path, application: &Path, boot: &Boot<'_>) -> Result<Cmd<'s>> {
    let Boot {
        dir,
        mode,
        variant,
        own,
        ..
    } = *boot;
    let (memory, mode) = match variant.strip_suffix(MIB) {
        Some(memory) => (memory, PLATFORM_TESTS),
        None if own.is_some() => ("512", mode.word()),
        None => ("256", mode.word()),
    };
    let empty_vars = own.map_or_else(|| ovmf_file(OVMF_VARS), |own| own.vars.clone());
    let boot = shell.create_dir(dir.join("esp/EFI/BOOT"))?;
    shell.copy_file(application, boot.join("BOOTX64.EFI"))?;
    shell.write_file(boot.join("MODE.TXT"), mode)?;
    let vars = dir.join("vars.fd");
    // Without the file's permissions: QEMU writes to it.
    shell.write_file(&vars, shell.read_binary_file(empty_vars)?)?;

    let esp = format!("format=raw,file=fat:rw:{}", path(&dir.join("esp"))?);
    Ok(q35_with_flash(shell, code, &vars, memory)?
        .args(["-serial", "stdio", "-no-reboot"])
        .args(["-drive", &esp])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]))
}

/// QEMU's Q35 with a flash image and a variable store, and this many MiB of memory.
fn q35_with_flash<'s>(shell: &'s Shell, code: &Path, vars: &Path, memory: &str) -> Result<Cmd<'s>> {
    let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={}", path(code)?);
    let vars = format!("if=pflash,format=raw,unit=1,file={}", path(vars)?);
    Ok(cmd!(
        shell,
        "qemu-system-x86_64 -machine q35,smm=on,accel=tcg -m {memory}"
    )
    .args(["-nodefaults", "-display", "none"])
    .args(["-global", "ICH9-LPC.disable_s3=1"])
    .args(["-drive", &code, "-drive", &vars]))
}

/// Ways to boot machine linux: above the Rust MM core; the same with the kernel at its usual
/// address, with `efi=novamap`, with our variable driver instead of edk2's, and without firmware
/// calls; and above edk2's SMM core, whose variables outlive a reset.
const LINUX_Q35: &str = "q35";
const LINUX_WITHOUT_KASLR: &str = "q35-nokaslr";
const LINUX_NOVAMAP: &str = "q35-novamap";
const LINUX_OUR_DRIVER: &str = "q35-own-driver";
const LINUX_WITHOUT_FIRMWARE: &str = "q35-noefi";
const LINUX_SMM: &str = "smm";

/// Bytes of name and data of the largest variable (`platforms/q35_mm/src/serve.rs`).
const LARGEST_VARIABLE: u32 = 0x2000;

/// A variable that OVMF writes, as the file that Linux shows, and its text.
const LANGUAGE: &str = "PlatformLang-8be4df61-93ca-11d2-aa0d-00e098032b8c:en-US";

/// Q35 with Debian's kernel, which the firmware's boot manager starts by its EFI stub, or
/// `linux_loader` behind our driver.
fn linux(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let Boot { image, dir, .. } = *boot;
    let above_smm = boot.variant == LINUX_SMM;
    let (mode, more) = match (boot.mode, boot.variant) {
        (Mode::Demo, _) => ("demo", ""),
        (Mode::Soak, _) => ("soak", ""),
        (Mode::Test, LINUX_SMM) => ("reset", ""),
        (Mode::Test, LINUX_WITHOUT_FIRMWARE) => ("noefi", "noefi"),
        (Mode::Test, LINUX_WITHOUT_KASLR) => ("test", "nokaslr"),
        (Mode::Test, LINUX_NOVAMAP) => ("test", "efi=novamap"),
        (Mode::Test, _) => ("test", ""),
    };
    let files = Files::find(Processor::X86)?;
    let line = format!("console=ttyS0 mm.mode={mode} {more}");
    let smm_image = image.with_file_name(format!("{}.fd", PATINA_SMM.name));
    let image = if above_smm { &smm_image } else { image };
    let vars = dir.join("vars.fd");
    shell.copy_file(ovmf_file(OVMF_VARS), &vars)?;
    let qemu = q35_with_flash(shell, image, &vars, "512")?.args(qemu::log_smis(dir));
    let qemu = if boot.variant == LINUX_OUR_DRIVER {
        let esp = shell.create_dir(dir.join("esp"))?;
        let folder = shell.create_dir(esp.join("EFI/BOOT"))?;
        shell.copy_file(uefi_product(shell, LINUX_LOADER)?, folder.join("BOOTX64.EFI"))?;
        shell.copy_file(uefi_product(shell, VARIABLE_DRIVER)?, esp.join("driver2.efi"))?;
        put_kernel(shell, &files, boot, &esp, &line)?;
        qemu.args(["-drive", &format!("format=raw,file=fat:rw:{}", path(&esp)?)])
    } else {
        let initrd = linux::initrd(shell, &files, dir)?;
        let line = kernel_line(LANGUAGE, &line);
        qemu.arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &line])
    };
    let qemu = match above_smm {
        true => qemu.args(ONLY_SMM_WRITES_FLASH),
        false => qemu.args(["-device", "VGA", "-no-reboot"]),
    };
    // The runtime driver's log: in the demo between the guest's lines, in a test in a separate
    // file, where it cannot damage them.
    Ok(match boot.mode {
        Mode::Demo => qemu
            .args([
                "-chardev",
                "stdio,mux=on,signal=off,id=out",
                "-serial",
                "chardev:out",
            ])
            .args(["-device", "isa-debugcon,iobase=0x402,chardev=out"]),
        Mode::Test | Mode::Soak => {
            let console = format!("file:{}", path(&qemu::debug_console(dir))?);
            qemu.args(["-serial", "stdio", "-debugcon", &console])
                .args(["-global", "isa-debugcon.iobase=0x402"])
        }
    }
    .into())
}

const MONITOR: &str = "aarch64_monitor";
const PAYLOAD: &str = "aarch64_payload";
const APP: &str = "aarch64_app";

/// Builds the monitor, the bare payload and the UEFI application. Returns the directory of the
/// first two; the third's is beside it.
fn build_aarch64(shell: &Shell) -> Result<PathBuf> {
    let monitor = toolchain::build(shell, AARCH64_BARE, MONITOR, MONITOR, |_| {})?;
    toolchain::build(shell, AARCH64_BARE, PAYLOAD, PAYLOAD, |_| {})?;
    toolchain::build(shell, AARCH64_UEFI, PAYLOAD, APP, |_| {})?;
    let products = monitor.parent().context("a file is in a directory")?;
    Ok(products.to_owned())
}

/// The way to boot machine linux-aarch64 with addresses as they are at boot.
const WITHOUT_ADDRESS_CHANGE: &str = "ffa-novamap";

/// A variable that `linux_loader` writes, as the file that Linux shows, and its text.
const WRITTEN_BY_LOADER: &str = "BeforeLinux-cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0:loader";

/// The programs of `machines/variable_driver`.
const VARIABLE_DRIVER: &str = "variable_driver";
const LINUX_LOADER: &str = "linux_loader";
const ARM_MM_DRIVER: &str = "arm_mm_driver";

/// Builds the monitor, the two runtime drivers and what starts them (package and program). Returns
/// the monitor's directory.
fn build_drivers_aarch64(shell: &Shell, others: &[(&str, &str)]) -> Result<PathBuf> {
    let drivers = [
        (VARIABLE_DRIVER, VARIABLE_DRIVER),
        (VARIABLE_DRIVER, ARM_MM_DRIVER),
    ];
    for (package, program) in drivers.iter().chain(others) {
        toolchain::build(shell, AARCH64_UEFI, package, program, |_| {})?;
    }
    let monitor = toolchain::build(shell, AARCH64_BARE, MONITOR, MONITOR, |_| {})?;
    Ok(monitor.parent().context("a file is in a directory")?.to_owned())
}

/// QEMU's `virt` with the monitor at EL3 and Debian's UEFI above it, which starts `program` from a
/// volume with both runtime drivers. Returns the volume's directory, too.
fn virt_with_drivers<'s>(shell: &'s Shell, boot: &Boot<'_>, program: &str) -> Result<(Cmd<'s>, PathBuf)> {
    let interface = if boot.variant.ends_with("spm-mm") { 1 } else { 2 };
    let word = format!(
        "loader,addr={MODE_WORD:#x},data={},data-len=4",
        interface | UEFI_BIT | mode_bit(boot.mode)
    );
    let programs = Toolchain::find(shell, AARCH64_UEFI)?.products();
    let file = |name: &str| programs.join(name).with_extension("efi");
    let esp = esp_with(shell, boot.dir, &file(program))?;
    shell.copy_file(file(ARM_MM_DRIVER), esp.join("driver1.efi"))?;
    shell.copy_file(file(VARIABLE_DRIVER), esp.join("driver2.efi"))?;
    let qemu = with_esp(virt(shell, "virt,secure=on,virtualization=on"), &esp)?
        .args(["-device", &uefi_above_monitor()])
        .arg("-bios")
        .arg(boot.image.join(MONITOR))
        .args(["-device", &word]);
    Ok((qemu, esp))
}

/// Debian's kernel above both runtime drivers.
fn linux_aarch64(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let files = Files::find(Processor::Arm)?;
    let (qemu, esp) = virt_with_drivers(shell, boot, LINUX_LOADER)?;
    let more = if boot.variant == WITHOUT_ADDRESS_CHANGE {
        "efi=novamap"
    } else {
        ""
    };
    let mode = boot.mode.word();
    put_kernel(
        shell,
        &files,
        boot,
        &esp,
        &format!("console=ttyAMA0 mm.mode={mode} {more}"),
    )?;
    Ok(qemu.into())
}

/// The kernel's command line, for the shell that finds this variable of before.
fn kernel_line(before: &str, line: &str) -> String {
    format!("quiet panic=-1 mm.largest={LARGEST_VARIABLE} mm.before={before} {line}")
}

/// Puts the kernel, what it starts, and its command line where `linux_loader` looks for them.
fn put_kernel(shell: &Shell, files: &Files, boot: &Boot<'_>, esp: &Path, line: &str) -> Result<()> {
    shell.copy_file(&files.kernel, esp.join("vmlinuz"))?;
    shell.copy_file(linux::initrd(shell, files, boot.dir)?, esp.join("initrd"))?;
    let line = kernel_line(WRITTEN_BY_LOADER, &format!("initrd=\\initrd {line}\0"));
    let line: Vec<u8> = line.encode_utf16().flat_map(u16::to_le_bytes).collect();
    shell.write_file(esp.join("cmdline"), line)?;
    Ok(())
}

/// The application that leaves boot services, and the file that tells it its map.
const EXIT_APP: &str = "exit_boot_services";
const MAP_FILE: &str = "map";

/// The way to boot machine exit-boot-services with our variable driver instead of edk2's.
const OUR_VARIABLE_DRIVER: &str = "up-own-driver";

/// The word for a map, which is the variant without what follows it, and one for many calls.
fn map_of(boot: &Boot<'_>) -> String {
    let map = boot
        .variant
        .trim_end_matches("-own-driver")
        .trim_end_matches("-spm-mm");
    let more = match boot.mode {
        Mode::Soak => " soak",
        Mode::Test | Mode::Demo => "",
    };
    format!("{map}{more}")
}

/// The firmware of machine linux, with an application instead of Linux.
fn exit_boot_services(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let application = uefi_product(shell, EXIT_APP)?;
    let qemu = q35(shell, boot.image, &application, boot)?;
    let esp = boot.dir.join("esp");
    shell.write_file(esp.join(MAP_FILE), map_of(boot))?;
    if boot.variant == OUR_VARIABLE_DRIVER {
        shell.copy_file(uefi_product(shell, VARIABLE_DRIVER)?, esp.join("driver2.efi"))?;
    }
    let console = format!("file:{}", path(&qemu::debug_console(boot.dir))?);
    Ok(qemu
        .args(qemu::log_smis(boot.dir))
        .args(["-device", "VGA", "-debugcon", &console])
        .args(["-global", "isa-debugcon.iobase=0x402"])
        .into())
}

/// The same above the monitor, with both runtime drivers from the volume.
fn exit_boot_services_aarch64(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let (qemu, esp) = virt_with_drivers(shell, boot, EXIT_APP)?;
    shell.write_file(esp.join(MAP_FILE), map_of(boot))?;
    Ok(qemu.into())
}

/// What a word in RAM tells the monitor and the payload (`machines/aarch64_monitor/src/layout.rs`).
const MODE_WORD: u32 = 0x5fff_f000;
const UEFI_BIT: u32 = 1 << 8;

const fn mode_bit(mode: Mode) -> u32 {
    match mode {
        Mode::Test => 0,
        Mode::Demo => 1 << 9,
        Mode::Soak => 1 << 10,
    }
}

/// QEMU's `virt` with the monitor at EL3, and above it the bare payload, or Debian's UEFI with the
/// application. In the variant without EL3 there is the payload alone.
fn aarch64(shell: &Shell, boot: &Boot<'_>) -> Result<Command> {
    let products = Toolchain::find(shell, AARCH64_UEFI)?.products();
    aarch64_with(shell, boot, &products.join(APP).with_extension("efi"))
}

/// The same with another application.
fn aarch64_with(shell: &Shell, boot: &Boot<'_>, application: &Path) -> Result<Command> {
    const NO_EL3: u32 = 5;
    let interface = match boot.variant {
        "spm-mm" | "uefi-spm-mm" => 1,
        "ffa" | "uefi" => 2,
        "ffa-without-get-regs" | "uefi-ffa-without-get-regs" => 3,
        "no-mm" | "uefi-no-mm" => 4,
        "no-el3" => NO_EL3,
        "standalone-mm" | "uefi-standalone-mm" => 6,
        other => bail!("machine aarch64 has no variant {other}"),
    };
    let uefi = boot.variant.starts_with("uefi");
    let word = interface | if uefi { UEFI_BIT } else { 0 } | mode_bit(boot.mode);
    let word = format!("loader,addr={MODE_WORD:#x},data={word},data-len=4");

    let monitor = boot.image.join(MONITOR);
    let payload = path(&boot.image.join(PAYLOAD))?;
    let payload = format!("loader,file={payload},addr=0x60000000,force-raw=on");
    let machine = match (interface, uefi) {
        (NO_EL3, _) => "virt",
        (_, true) => "virt,secure=on,virtualization=on",
        (_, false) => "virt,secure=on",
    };
    let mut qemu = virt(shell, machine);
    if uefi {
        let esp = esp_with(shell, boot.dir, application)?;
        qemu = with_esp(qemu, &esp)?.args(["-device", &uefi_above_monitor()]);
    } else {
        qemu = qemu.args(["-device", &payload]);
    }
    qemu = match interface {
        NO_EL3 => qemu.args(["-device", "loader,addr=0x60000000,cpu-num=0"]),
        _ => qemu.arg("-bios").arg(monitor),
    };
    Ok(qemu.args(["-device", &word]).into())
}

/// Loads Debian's UEFI to the address at which the monitor starts it.
fn uefi_above_monitor() -> String {
    format!("loader,file={ARM_UEFI_CODE},addr=0x7c000000,force-raw=on")
}

/// An ESP in the directory of a run, from which UEFI for AArch64 starts the application.
fn esp_with(shell: &Shell, dir: &Path, application: &Path) -> Result<PathBuf> {
    let esp = dir.join("esp");
    let folder = shell.create_dir(esp.join("EFI/BOOT"))?;
    shell.copy_file(application, folder.join("BOOTAA64.EFI"))?;
    Ok(esp)
}

/// A disk with this ESP.
fn with_esp<'s>(qemu: Cmd<'s>, esp: &Path) -> Result<Cmd<'s>> {
    let drive = format!("if=none,id=esp,format=raw,file=fat:rw:{}", path(esp)?);
    Ok(qemu
        .args(["-drive", &drive])
        .args(["-device", "virtio-blk-pci,drive=esp"]))
}

/// QEMU's `virt` with a serial line, and with semihosting to end it.
fn virt<'s>(shell: &'s Shell, machine: &str) -> Cmd<'s> {
    cmd!(
        shell,
        "qemu-system-aarch64 -machine {machine} -cpu cortex-a57 -m 1024"
    )
    .args([
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ])
    .args(["-semihosting-config", "enable=on,target=native"])
}
