//! Whether the compiler took into account what MM changes behind its back.
//!
//! MM changes memory while an `out` instruction runs. A compiler that does not know this may keep a
//! byte that it loaded before, or delay a store until after; no test on a host notices. The same
//! applies to the vector registers that a secure monitor call may change. So
//! `crates/mm_comm/examples/asm_probe.rs` is compiled for UEFI on x86-64 and on AArch64, and its
//! instructions are read. That is done with link-time optimisation over all crates, which gives the
//! compiler the most freedom.

use crate::process;
use crate::report::{Counts, Failed, Report};
use crate::setup::{RUST_ARM, RUST_UEFI, Tool};
use crate::toolchain::{AARCH64_UEFI, Toolchain, X86_64_UEFI};
use anyhow::{Context as _, Result};
use clap::Args;
use std::process::ExitCode;
use xshell::Shell;

/// Checks in the generated machine code that an MMI's port writes and memory accesses are in order,
/// and that a secure monitor call may change all vector registers.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask asm           compile the probe for both processors and check it
  cargo xtask asm --show    print its instructions, too")]
pub(crate) struct Asm {
    /// Print the instructions of the probe's functions.
    #[arg(long)]
    show: bool,
}

pub(crate) fn run(shell: &Shell, options: &Asm) -> Result<ExitCode> {
    let mut report = Report::default();
    stages(shell, options.show, &mut report);
    Ok(report.conclude())
}

/// Ports as the probe names them, the decimal numbers that the compiler writes.
const DATA_PORT: &str = "$179";
const COMMAND_PORT: &str = "$178";

/// The check of one function.
type Check = fn(&[Instruction<'_>]) -> Result<(), String>;

/// The functions of one target, and how they are compiled.
struct Probes {
    stage: &'static str,
    target: &'static str,
    needs: &'static Tool,
    functions: &'static [(&'static str, Check)],
}

const PROBES: [Probes; 2] = [
    Probes {
        stage: "asm x86-64",
        target: X86_64_UEFI,
        needs: &RUST_UEFI,
        functions: &[
            ("probe_raise_then_load", load_is_repeated),
            ("probe_store_then_raise", store_is_not_put_off),
        ],
    },
    Probes {
        stage: "asm aarch64",
        target: AARCH64_UEFI,
        needs: &RUST_ARM,
        functions: &[("probe_smc", vectors_are_saved)],
    },
];

/// Checks the probe of each target, a stage for each.
pub(crate) fn stages(shell: &Shell, show: bool, report: &mut Report) {
    for probes in &PROBES {
        report.stage(probes.stage, || stage(shell, show, probes));
    }
}

/// Compiles the probe for one target and checks each function.
fn stage(shell: &Shell, show: bool, probes: &Probes) -> Result<Counts> {
    probes.needs.require(shell)?;
    let text = compile(shell, probes.target)?;
    let mut counts = Counts::default();
    let mut failed = Vec::new();
    for (name, check) in probes.functions {
        let code =
            function(&text, name).with_context(|| format!("the compiler's output has no function {name}"))?;
        if show {
            println!("{name}:");
            code.iter()
                .for_each(|instruction| println!("    {}", instruction.0));
        }
        match check(&code) {
            Ok(()) => {
                println!("{name} ok");
                counts.passed = counts.passed.saturating_add(1);
            }
            Err(why) => {
                println!("{name} FAILED: {why}");
                counts.failed = counts.failed.saturating_add(1);
                failed.push(format!("{name}: {why}"));
            }
        }
    }
    if failed.is_empty() {
        return Ok(counts);
    }
    println!("`cargo xtask asm --show` prints the instructions");
    Err(Failed {
        counts,
        reason: failed.join("; "),
    }
    .into())
}

fn compile(shell: &Shell, target: &'static str) -> Result<String> {
    let toolchain = Toolchain::find(shell, target)?;
    let output = toolchain.products().join("asm_probe.s");
    let mut command = toolchain.cargo("rustc");
    command
        .args([
            "--package",
            "mm_comm",
            "--example",
            "asm_probe",
            "--crate-type",
            "staticlib",
        ])
        .args([
            "--config",
            "profile.release.lto='fat'",
            "--config",
            "profile.release.codegen-units=1",
        ])
        .arg("--")
        .arg(format!("--emit=asm={}", output.display()))
        .current_dir(shell.current_dir());
    process::run_quietly("build of asm_probe", command)?;
    shell.read_file(&output).with_context(|| {
        format!(
            "the build left no {0}; `cargo clean` makes it start anew",
            output.display()
        )
    })
}

/// One instruction, on x86 in AT&T syntax, without directives, labels and prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction<'a>(&'a str);

impl<'a> Instruction<'a> {
    fn mnemonic(self) -> &'a str {
        self.0.split_whitespace().next().unwrap_or_default()
    }

    /// First and last operand: source and destination.
    fn operands(self) -> Option<(&'a str, &'a str)> {
        let operands = self.0.strip_prefix(self.mnemonic())?.trim();
        // A comma inside an address is not a separator.
        let mut depth = 0_u32;
        let comma = operands.char_indices().find(|(_, c)| {
            match c {
                '(' => depth = depth.saturating_add(1),
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            *c == ',' && depth == 0
        });
        let (source, destination) = operands.split_at(comma?.0);
        Some((source.trim(), destination.trim_start_matches(',').trim()))
    }

    /// Whether a register is among the operands.
    fn names(self, register: &str) -> bool {
        let operands = self.0.strip_prefix(self.mnemonic()).unwrap_or_default();
        operands.split(',').any(|operand| operand.trim() == register)
    }

    fn is_out(self) -> bool {
        self.mnemonic().starts_with("out")
    }

    fn is_call(self) -> bool {
        self.mnemonic().starts_with("call")
    }

    /// Whether one byte is moved or compared.
    fn is_byte(self) -> bool {
        let mnemonic = self.mnemonic();
        mnemonic.starts_with("movzb") || mnemonic.starts_with("movsb") || mnemonic.ends_with('b')
    }

    /// Whether it only compares its operands.
    fn is_comparison(self) -> bool {
        self.mnemonic().starts_with("cmp") || self.mnemonic().starts_with("test")
    }

    /// Whether a byte is loaded through a pointer.
    fn loads_byte(self) -> bool {
        self.is_byte()
            && self.operands().is_some_and(|(source, destination)| {
                is_pointed_to(source) || self.is_comparison() && is_pointed_to(destination)
            })
    }

    /// Whether a byte is stored through a pointer.
    fn stores_byte(self) -> bool {
        self.is_byte()
            && !self.is_comparison()
            && self
                .operands()
                .is_some_and(|(_, destination)| is_pointed_to(destination))
    }

    /// The value that the register `dx`, which names the port of an `out`, is set to.
    fn sets_dx(self) -> Option<&'a str> {
        let (source, destination) = self.operands()?;
        (self.mnemonic().starts_with("mov") && ["%dx", "%edx", "%rdx"].contains(&destination))
            .then_some(source)
    }
}

/// Whether an operand is memory behind a pointer: not the stack, and not a constant of the program.
fn is_pointed_to(operand: &str) -> bool {
    let own = ["(%rsp", "(%rbp", "(%rip"];
    operand.contains('(') && !own.iter().any(|base| operand.contains(base))
}

/// The instructions of one function.
fn function<'a>(text: &'a str, name: &str) -> Option<Vec<Instruction<'a>>> {
    let mut lines = text.lines();
    lines.find(|line| line.strip_suffix(':') == Some(name))?;
    let body = lines.take_while(|line| !line.starts_with(".Lfunc_end"));
    let instructions = body.filter_map(|line| {
        let line = line.trim();
        let is_comment = line.starts_with(['.', '#']) || line.starts_with("//");
        let is_code = !line.is_empty() && !is_comment && !line.ends_with(':');
        is_code.then(|| Instruction(line.strip_prefix("lock").unwrap_or(line).trim()))
    });
    Some(instructions.collect())
}

/// Splits a function at its port writes, which must be the data port's and then the command port's:
/// the instructions before and those after. They are split by position in the text, which in
/// functions without a call is the order of every path.
fn around_mmi<'a, 'b>(code: &'b [Instruction<'a>]) -> Result<[&'b [Instruction<'a>]; 2], String> {
    if let Some(call) = code.iter().find(|instruction| instruction.is_call()) {
        return Err(format!("`{}`: a call hides what happens", call.0));
    }
    let mut parts = code.split(|instruction| instruction.is_out());
    let (Some(before), Some(between), Some(after), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        let outs = code.iter().filter(|instruction| instruction.is_out()).count();
        return Err(format!("there are {outs} OUT instructions, not 2"));
    };
    for (which, part, port) in [("first", before, DATA_PORT), ("second", between, COMMAND_PORT)] {
        let found = part.iter().rev().find_map(|instruction| instruction.sets_dx());
        if found != Some(port) {
            let found = found.unwrap_or("unknown").trim_start_matches('$');
            return Err(format!(
                "the {which} OUT goes to port {found}, not {}",
                port.trim_start_matches('$')
            ));
        }
    }
    Ok([before, after])
}

fn load_is_repeated(code: &[Instruction<'_>]) -> Result<(), String> {
    let [before, after] = around_mmi(code)?;
    if !before.iter().any(|instruction| instruction.loads_byte()) {
        return Err(
            "the mailbox is not loaded before the MMI, so the load after it proves nothing".to_owned(),
        );
    }
    if !after.iter().any(|instruction| instruction.loads_byte()) {
        return Err("the mailbox is not loaded after the MMI".to_owned());
    }
    Ok(())
}

fn store_is_not_put_off(code: &[Instruction<'_>]) -> Result<(), String> {
    let [before, after] = around_mmi(code)?;
    if !before.iter().any(|instruction| instruction.stores_byte()) {
        return Err("the message is not stored before the MMI".to_owned());
    }
    if !after.iter().any(|instruction| instruction.stores_byte()) {
        return Err("the message is not overwritten after the MMI".to_owned());
    }
    Ok(())
}

/// The registers that a function must save before it changes them, as the procedure call standard
/// has it: the lower halves of v8 to v15. A function that saves them all expects its `smc` to
/// change them.
fn vectors_are_saved(code: &[Instruction<'_>]) -> Result<(), String> {
    let mut parts = code.split(|instruction| instruction.mnemonic() == "smc");
    let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err("there is not exactly one SMC instruction".to_owned());
    };
    for (part, prefix, what) in [(before, "st", "saved before"), (after, "ld", "restored after")] {
        let is_moved = |register: &String| {
            part.iter()
                .filter(|instruction| instruction.mnemonic().starts_with(prefix))
                .any(|instruction| instruction.names(register))
        };
        let left: Vec<_> = (8..=15)
            .map(|number| format!("d{number}"))
            .filter(|register| !is_moved(register))
            .collect();
        if !left.is_empty() {
            return Err(format!("not {what} the SMC: {}", left.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function as a compiler writes it, from parts that a test may leave out or move.
    fn code(parts: &[&str]) -> String {
        let body = parts.concat();
        format!(
            "other:\n\toutb\t%al, %dx\n.Lfunc_end0:\nf:\n.Lfunc_begin1:\n\t.cv_loc\t1 2\n{body}\tretq\n.Lfunc_end1:\n"
        )
    }

    fn check(parts: &[&str], check: Check) -> Result<(), String> {
        let text = code(parts);
        check(&function(&text, "f").unwrap())
    }

    const DATA: &str =
        "\tmovw\t$179, %dx\n\tmovb\t$90, %al\n\t#APP\n\n\toutb\t%al, %dx\n\n\t#NO_APP\n.Ltmp1:\n";
    const COMMAND: &str = "\tmovw\t$178, %dx\n\tmovb\t$-1, %al\n\t#APP\n\n\toutb\t%al, %dx\n\n\t#NO_APP\n";
    const FENCE: &str = "\tlock\t\torl\t$0, (%rsp)\n";
    const LOAD: &str = "\tmovzbl\t(%rcx,%rax), %eax\n";
    const LOOK: &str = "\tcmpb\t$0, (%rcx)\n";
    const KEPT: &str = "\tmovzbl\t7(%rsp), %eax\n\tmovq\t(%rdx), %rcx\n\ttestb\t%r9b, %r9b\n";
    const STORE: &str = "\tmovb\t%r11b, (%r8,%rax)\n";
    const STORE_ON_STACK: &str = "\tmovb\t$0, 6(%rsp)\n";

    #[test]
    fn a_load_must_follow_the_second_out() {
        assert_eq!(
            check(&[LOAD, FENCE, DATA, COMMAND, LOAD], load_is_repeated),
            Ok(())
        );
        assert_eq!(check(&[LOOK, DATA, COMMAND, LOOK], load_is_repeated), Ok(()));
        for moved in [
            &[LOAD, LOAD, DATA, COMMAND] as &[_],
            &[LOAD, DATA, COMMAND, KEPT],
            &[LOAD, DATA, LOAD, COMMAND],
            &[LOAD, DATA, COMMAND, STORE],
            &[DATA, COMMAND, LOAD],
        ] {
            let error = check(moved, load_is_repeated).unwrap_err();
            assert!(error.contains("not loaded"), "{error}");
        }
    }

    #[test]
    fn a_store_must_precede_the_first_out() {
        assert_eq!(
            check(&[STORE, FENCE, DATA, COMMAND, STORE], store_is_not_put_off),
            Ok(())
        );
        for moved in [
            &[DATA, COMMAND, STORE, STORE] as &[_],
            &[STORE_ON_STACK, DATA, COMMAND, STORE],
            &[STORE, DATA, COMMAND, STORE_ON_STACK],
            &[LOOK, DATA, COMMAND, STORE],
        ] {
            assert!(check(moved, store_is_not_put_off).is_err(), "{moved:?}");
        }
    }

    #[test]
    fn data_goes_first_and_each_port_is_written_once() {
        for wrong in [
            &[LOAD, COMMAND, DATA, LOAD] as &[_],
            &[LOAD, DATA, LOAD],
            &[LOAD, DATA, COMMAND, COMMAND, LOAD],
            &[LOAD, DATA, "\tmovq\t%r8, %rdx\n\toutb\t%al, %dx\n", LOAD],
        ] {
            let error = check(wrong, load_is_repeated).unwrap_err();
            assert!(error.contains("OUT"), "{error}");
        }
        let call = "\tcallq\t*24(%rdx)\n";
        assert!(
            check(&[LOAD, call, DATA, COMMAND, LOAD], load_is_repeated)
                .unwrap_err()
                .contains("call")
        );
        assert_eq!(function(&code(&[]), "g"), None);
    }

    #[test]
    fn the_registers_that_an_smc_may_change_are_saved_around_it() {
        let pairs = |mnemonic: &str| -> String {
            [(15, 14), (13, 12), (11, 10), (9, 8)]
                .map(|(a, b)| format!("\t{mnemonic}\td{a}, d{b}, [sp, #{a}]\n"))
                .concat()
        };
        let (saved, restored) = (pairs("stp"), pairs("ldp"));
        let (saved, restored) = (saved.as_str(), restored.as_str());
        let smc = "\tmov\tx1, xzr\n\t//APP\n\tsmc\t#0\n\t//NO_APP\n";
        assert_eq!(check(&[saved, smc, restored], vectors_are_saved), Ok(()));
        for (wrong, why) in [
            (&[smc] as &[_], "saved before"),
            (&[smc, saved, restored], "saved before"),
            (&[&saved.replace("d11, ", ""), smc, restored], "SMC: d11"),
            (&[saved, smc], "restored after"),
            (&[saved, restored, smc], "restored after"),
            (&[saved, restored], "exactly one"),
            (&[saved, smc, smc, restored], "exactly one"),
        ] {
            let error = check(wrong, vectors_are_saved).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
