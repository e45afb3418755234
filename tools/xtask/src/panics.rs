//! Checks whether the shipped crates can panic.
//!
//! Each shipped crate is compiled for firmware, and its assembly is read. Two rules:
//!
//! | crates | rule |
//! |---|---|
//! | below `patina_mm`, and the programs that instantiate what is generic in them | no function refers to a function of `core` or `alloc` that panics |
//! | `patina_mm` | no source line of ours panics: a panic, and each function of `core` that panics for its caller, gets the caller's file and line, and none of these files is ours |
//!
//! The second rule is for what the SDK's types and macros compile into the crate: `Service`, for
//! instance, panics if it does not hold its type. Log lines have file and line, too, so the crate
//! is compiled without them. What allocates may end in `handle_alloc_error`, which has no line: in
//! a constructor or an entry point, when the platform has no memory left.
//!
//! Dependencies are not read. `arm-ffa` panics on some inputs, which `mm_comm` does not pass
//! (`smc/ffa.rs`).

use crate::process;
use crate::report::{Counts, Failed, Report};
use crate::setup::{RUST_ARM, RUST_UEFI, Tool};
use crate::toolchain::{AARCH64_UEFI, Toolchain, X86_64_UEFI};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use xshell::Shell;

/// Checks in the generated machine code that the shipped crates do not panic.
///
/// Compiles each for UEFI on x86-64 and on AArch64, with what is generic in them, and reads the
/// assembly.
#[derive(Args, Debug)]
pub(crate) struct Panics {}

pub(crate) fn run(shell: &Shell, _: &Panics) -> Result<ExitCode> {
    let mut report = Report::default();
    stages(shell, &mut report);
    Ok(report.conclude())
}

/// The rule for a crate.
#[derive(Clone, Copy)]
enum Rule {
    /// No function refers to one that panics.
    NoPanic,
    /// No source line of ours panics.
    NoLineOfOurs,
}

/// A crate, or a program, that is compiled alone.
struct Subject {
    package: &'static str,
    /// Cargo's options for the part to compile.
    part: &'static [&'static str],
    rule: Rule,
}

const fn lib(package: &'static str) -> Subject {
    Subject {
        package,
        part: &["--lib"],
        rule: Rule::NoPanic,
    }
}

/// `patina_mm` without its log lines.
const COMPONENTS: Subject = Subject {
    package: "patina_mm",
    part: &["--lib", "--features", "log/release_max_level_off"],
    rule: Rule::NoLineOfOurs,
};

/// The subjects of one target.
struct Target {
    stage: &'static str,
    name: &'static str,
    needs: &'static Tool,
    subjects: &'static [Subject],
}

const TARGETS: [Target; 2] = [
    Target {
        stage: "panics x86-64",
        name: X86_64_UEFI,
        needs: &RUST_UEFI,
        subjects: &[
            lib("mm_wire"),
            lib("mm_comm"),
            lib("mm_core"),
            lib("mm_runtime"),
            // The runtime driver over ports.
            Subject {
                package: "q35_runtime",
                part: &["--bin", "q35_runtime"],
                rule: Rule::NoPanic,
            },
            COMPONENTS,
        ],
    },
    Target {
        stage: "panics aarch64",
        name: AARCH64_UEFI,
        needs: &RUST_ARM,
        subjects: &[
            lib("mm_comm"),
            // The runtime driver over secure monitor calls.
            Subject {
                package: "variable_driver",
                part: &["--bin", "arm_mm_driver"],
                rule: Rule::NoPanic,
            },
            COMPONENTS,
        ],
    },
];

/// Checks the crates for each target, a stage for each.
pub(crate) fn stages(shell: &Shell, report: &mut Report) {
    for target in &TARGETS {
        report.stage(target.stage, || stage(shell, target));
    }
}

fn stage(shell: &Shell, target: &Target) -> Result<Counts> {
    target.needs.require(shell)?;
    let mut counts = Counts::default();
    let mut failed = Vec::new();
    for subject in target.subjects {
        let text = compile(shell, target.name, subject)?;
        let (functions, panics) = match subject.rule {
            Rule::NoPanic => references(&text),
            Rule::NoLineOfOurs => (functions(&text).count(), lines_of_ours(&text)),
        };
        // If a compiler writes something else, the check must not pass.
        ensure!(
            functions > 0,
            "the assembly of {} has no function",
            subject.package
        );
        if panics.is_empty() {
            println!("{}: {functions} functions, none panics", subject.package);
            counts.passed = counts.passed.saturating_add(1);
            continue;
        }
        for panic in &panics {
            println!("{} FAILED: {panic}", subject.package);
        }
        counts.failed = counts.failed.saturating_add(1);
        failed.push(format!("{} has {} panics", subject.package, panics.len()));
    }
    if failed.is_empty() {
        return Ok(counts);
    }
    Err(Failed {
        counts,
        reason: failed.join("; "),
    }
    .into())
}

/// Compiles a subject, and returns its assembly.
fn compile(shell: &Shell, target: &'static str, subject: &Subject) -> Result<String> {
    let toolchain = Toolchain::find(shell, target)?;
    let output = toolchain.products().join(format!("panics_{}.s", subject.package));
    let mut command = toolchain.cargo("rustc");
    command
        .args(["--package", subject.package])
        .args(subject.part)
        .arg("--")
        .arg(format!("--emit=asm={}", output.display()))
        // One file has all functions.
        .arg("-Ccodegen-units=1")
        .current_dir(shell.current_dir());
    process::run_quietly(&format!("build of {}", subject.package), command)?;
    shell.read_file(&output).with_context(|| {
        format!(
            "the build left no {0}; `cargo clean` makes it start anew",
            output.display()
        )
    })
}

/// The label that a line of assembly starts, if it does.
fn label(line: &str) -> Option<&str> {
    let name = line.strip_suffix(':')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.$\"".contains(c);
    name.chars().all(is_name).then(|| name.trim_matches('"'))
}

/// The label of a function: not one of the compiler's own, inside of a function or of data.
fn is_function(label: &str) -> bool {
    !label.starts_with(['.', 'L']) && !label.starts_with("anon.") && !label.contains('$')
}

fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(label).filter(|label| is_function(label))
}

/// Whether a function of the standard library panics, by its demangled name.
fn panics(name: &str) -> bool {
    let is_standard = name.starts_with("core::") || name.starts_with("alloc::");
    let last = name.rsplit("::").next().unwrap_or_default();
    let ends = ["_fail", "_failed", "_error", "_overflow"];
    is_standard
        && (name.contains("::panicking::")
            || ends.iter().any(|end| last.ends_with(end))
            || last == "handle_error")
}

/// How many functions there are, and which refer to one that panics.
fn references(text: &str) -> (usize, BTreeSet<String>) {
    let mut count: usize = 0;
    let mut found = BTreeSet::new();
    let mut function = "";
    for line in text.lines() {
        if let Some(label) = label(line).filter(|label| is_function(label)) {
            count = count.saturating_add(1);
            function = label;
            continue;
        }
        let code = line.trim_start();
        if code.starts_with(['.', '#']) || code.starts_with("//") {
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_$".contains(c);
        for word in code.split(|c| !is_name(c)) {
            let name = demangled(word);
            if panics(&name) {
                found.insert(format!("{} refers to {name}", demangled(function)));
            }
        }
    }
    (count, found)
}

fn demangled(name: &str) -> String {
    // The name without the hash.
    format!("{:#}", rustc_demangle::demangle(name))
}

/// The source lines of this repository that a panic would name.
fn lines_of_ours(text: &str) -> BTreeSet<String> {
    // A string is `.asciz "text"` or `.ascii "text"` behind its label. A `Location` is a pointer to
    // the file's name, then its length, line and column in one string.
    let string = |line: &str| -> Option<Vec<u8>> {
        let line = line.trim_start();
        let quoted = line
            .strip_prefix(".asciz")
            .or_else(|| line.strip_prefix(".ascii"))?;
        let quoted = quoted.trim().strip_prefix('"')?.strip_suffix('"')?;
        Some(unescaped(quoted))
    };
    let mut files = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(label) = label(line) {
            current = Some(label);
        } else if let Some(bytes) = string(line)
            && bytes.starts_with(b"crates/")
            && bytes.ends_with(b".rs")
            && let Some(label) = current
        {
            files.insert(label, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    let mut lines: BTreeSet<String> = files.values().cloned().collect();
    let mut file = None;
    for line in text.lines() {
        let pointer = line
            .trim_start()
            .strip_prefix(".quad")
            .or_else(|| line.trim_start().strip_prefix(".xword"));
        if let Some(pointer) = pointer {
            file = files.get(pointer.trim());
        } else if let (Some(name), Some(numbers)) = (file.take(), string(line)) {
            let number = numbers.get(8..12).and_then(<[u8]>::first_chunk);
            if let Some(number) = number {
                lines.remove(name);
                lines.insert(format!("{name}:{}", u32::from_le_bytes(*number)));
            }
        }
    }
    lines
}

/// The bytes of a string in assembly, whose escapes are a backslash and three octal digits, or one
/// character.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    loop {
        rest = match *rest {
            [] => return bytes,
            [
                b'\\',
                a @ b'0'..=b'7',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                ref after @ ..,
            ] => {
                let digit = |digit: u8| u32::from(digit & 7);
                let value = digit(a) << 6 | digit(b) << 3 | digit(c);
                bytes.push(u8::try_from(value & 0xff).unwrap_or_default());
                after
            }
            [b'\\', escaped, ref after @ ..] => {
                bytes.push(match escaped {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'f' => 0xc,
                    b'b' => 8,
                    other => other,
                });
                after
            }
            [byte, ref after @ ..] => {
                bytes.push(byte);
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEXING: &str = "
	.def	_RNvCs1_7mm_comm4last;
	.section	.text,\"xr\",one_only,_RNvCs1_7mm_comm4last
_RNvCs1_7mm_comm4last:
.seh_proc _RNvCs1_7mm_comm4last
	testq	%rdx, %rdx
	je	.LBB0_1
	retq
.LBB0_1:
	leaq	anon.0(%rip), %r8
	callq	_RNvNtCs2_4core9panicking18panic_bounds_check
	int3
_RNvCs1_7mm_comm4none:
	jmp	_RNvCs1_7mm_comm10unexpected
	.section	.rdata,\"dr\"
anon.1:
	.asciz	\"crates/mm_comm/src/lib.rs\"
anon.0:
	.quad	anon.1
	.asciz	\"\\031\\000\\000\\000\\000\\000\\000\\000\\337\\001\\000\\000\\t\\000\\000\"
	.cv_file	1 \"crates/mm_comm/src/ports.rs\"
";

    #[test]
    fn reference_to_a_panic_is_found_with_its_function() {
        let (functions, found) = references(INDEXING);
        assert_eq!(functions, 2);
        let expected = "mm_comm::last refers to core::panicking::panic_bounds_check";
        assert_eq!(found, BTreeSet::from([expected.to_owned()]));
    }

    #[test]
    fn legacy_names_are_understood() {
        let call = "_ZN7mm_comm4last17h0123456789abcdefE:\n\tbl\t_ZN4core6option13unwrap_failed17h0123456789abcdefE\n";
        let (_, found) = references(call);
        let expected = "mm_comm::last refers to core::option::unwrap_failed";
        assert_eq!(found, BTreeSet::from([expected.to_owned()]));
    }

    #[test]
    fn source_line_of_a_panic_is_read_from_its_location() {
        let expected = "crates/mm_comm/src/lib.rs:479";
        assert_eq!(lines_of_ours(INDEXING), BTreeSet::from([expected.to_owned()]));
        // Other people's lines, and names in debug information.
        let others = INDEXING.replace("\"crates/mm_comm/src/lib", "\"/registry/patina/src/lib");
        assert_eq!(lines_of_ours(&others), BTreeSet::new());
    }

    #[test]
    fn only_functions_of_the_standard_library_that_panic_are_named() {
        for (name, expected) in [
            ("core::slice::index::slice_index_fail", true),
            ("core::slice::copy_from_slice_impl::len_mismatch_fail", true),
            ("alloc::alloc::handle_alloc_error", true),
            ("alloc::raw_vec::handle_error", true),
            ("alloc::raw_vec::capacity_overflow", true),
            ("core::fmt::write", false),
            ("mm_comm::smc::ffa::unexpected", false),
            ("patina_mm::component::protocols::producer::bridge::failed", false),
        ] {
            assert_eq!(panics(name), expected, "{name}");
        }
    }
}
