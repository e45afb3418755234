//! What `patina_mm` adds to a platform's image, beside the published crate.

use crate::process;
use crate::report::Counts;
use crate::setup::RUST_UEFI;
use crate::toolchain::{Toolchain, X86_64_UEFI};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use object::{Object, ObjectSection};
use std::path::PathBuf;
use std::process::ExitCode;
use xshell::Shell;

const MANIFEST: &str = "tools/bench/size_probe/Cargo.toml";

/// Weighs patina_mm in a platform's image, beside the published crate.
///
/// Links the same minimal platform with this tree's crate, with the published one and with neither,
/// with link-time optimisation, and prints what each crate adds. The platform uses only what the
/// published crate has.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask size            opt-level s and 3, with and without log lines: sixteen links, some minutes
  cargo xtask size --quick    opt-level s with log lines: three links")]
pub(crate) struct Size {
    /// Only opt-level s, with log lines.
    #[arg(long)]
    quick: bool,
}

/// Which crate the platform has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    Neither,
    Published,
    Ours,
    /// Ours, without announced moves.
    Fixed,
}

/// How it is compiled.
#[derive(Clone, Copy)]
struct Way {
    opt_level: &'static str,
    logs: bool,
    /// Ours divided by the published crate's, in percent, as measured when this was committed.
    committed: u64,
    /// The goal for this ratio.
    goal: u64,
}

/// Percent by which a ratio may become worse before the check fails.
const TOLERANCE: u64 = 20;

const WAYS: [Way; 4] = [
    Way {
        opt_level: "s",
        logs: true,
        committed: 157,
        goal: 100,
    },
    Way {
        opt_level: "s",
        logs: false,
        committed: 307,
        goal: 150,
    },
    Way {
        opt_level: "3",
        logs: true,
        committed: 145,
        goal: 150,
    },
    Way {
        opt_level: "3",
        logs: false,
        committed: 281,
        goal: 200,
    },
];

pub(crate) fn run(shell: &Shell, options: &Size) -> Result<ExitCode> {
    let ways = if options.quick { &WAYS[..1] } else { &WAYS };
    let mut within = true;
    println!(
        "| opt-level | logs | ours, bytes | published, bytes | ratio | goal | ours without announced moves |\n\
         |---|---|---:|---:|---:|---:|---:|"
    );
    let mut largest = Vec::new();
    for way in ways {
        let (row, symbols, fits) = weigh(shell, *way)?;
        let fixed = match options.quick {
            true => String::new(),
            false => weigh_fixed(shell, *way)?.to_string(),
        };
        println!("{row} {fixed} |");
        within &= fits;
        largest.push((way, symbols));
    }
    for (way, symbols) in largest {
        println!(
            "\nLargest symbols of the crate's platform, opt-level {}, logs {}:",
            way.opt_level,
            word(way.logs)
        );
        for (size, name) in symbols {
            println!("  {size:>6} {name}");
        }
    }
    Ok(if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The quick form, as a stage of the tests.
pub(crate) fn stage(shell: &Shell) -> Result<Counts> {
    RUST_UEFI.require(shell)?;
    let (row, _, fits) = weigh(shell, WAYS[0])?;
    println!("  {row}");
    ensure!(
        fits,
        "patina_mm adds much more to an image than when `tools/xtask/src/size.rs` was committed: {row}"
    );
    Ok(Counts::ONE)
}

const fn word(logs: bool) -> &'static str {
    if logs { "in" } else { "out" }
}

type Symbols = Vec<(u64, String)>;

fn weigh(shell: &Shell, way: Way) -> Result<(String, Symbols, bool)> {
    let (neither, _) = link(shell, way, Contents::Neither)?;
    let (published, _) = link(shell, way, Contents::Published)?;
    let (ours, symbols) = link(shell, way, Contents::Ours)?;
    let (ours, published) = (added(ours, neither)?, added(published, neither)?);
    let percent = ours.saturating_mul(100) / published.max(1);
    let row = format!(
        "| {} | {} | {ours} | {published} | {}.{:02} | {}.{:02} |",
        way.opt_level,
        word(way.logs),
        percent / 100,
        percent % 100,
        way.goal / 100,
        way.goal % 100,
    );
    Ok((
        row,
        symbols,
        percent <= way.committed.saturating_mul(100 + TOLERANCE) / 100,
    ))
}

/// What this tree's crate adds to a platform without announced moves.
fn weigh_fixed(shell: &Shell, way: Way) -> Result<u64> {
    let (neither, _) = link(shell, way, Contents::Neither)?;
    let (fixed, _) = link(shell, way, Contents::Fixed)?;
    added(fixed, neither)
}

fn added(with: u64, without: u64) -> Result<u64> {
    with.checked_sub(without)
        .context("a platform with patina_mm is smaller than one without")
}

/// Links the probe. Returns bytes of text, rdata and data, and the ten largest symbols.
fn link(shell: &Shell, way: Way, contents: Contents) -> Result<(u64, Symbols)> {
    let toolchain = Toolchain::find(shell, X86_64_UEFI)?;
    let map = toolchain.products().join("size_probe.map");
    let mut command = toolchain.cargo("rustc");
    command.args(["--manifest-path", MANIFEST, "--bin", "size_probe"]);
    let mut features = match contents {
        Contents::Neither => vec![],
        Contents::Published => vec!["published"],
        Contents::Ours => vec!["ours"],
        Contents::Fixed => vec!["fixed"],
    };
    if !way.logs {
        features.push("without-logs");
    }
    command
        .args(["--features", &features.join(",")])
        .args([
            "--config",
            &format!("profile.release.opt-level={}", quoted(way.opt_level)),
        ])
        .args(["--", &format!("-Clink-arg=/map:{}", map.display())])
        .current_dir(shell.current_dir());
    process::run_quietly("link of size_probe", command)?;
    let image = toolchain.products().join("size_probe.efi");
    let sections = sections(&image)?;
    let text = shell.read_file(&map)?;
    Ok((sections, largest(&text)))
}

/// An opt-level as TOML: a number, or a string.
fn quoted(level: &str) -> String {
    match level.parse::<u8>() {
        Ok(number) => number.to_string(),
        Err(_word) => format!("'{level}'"),
    }
}

fn sections(image: &PathBuf) -> Result<u64> {
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no PE image", image.display()))?;
    let sizes = file
        .sections()
        .filter(|section| matches!(section.name(), Ok(".text" | ".rdata" | ".data")))
        .map(|section| section.size());
    match sizes.sum() {
        0 => bail!("{} has no section .text, .rdata or .data", image.display()),
        sum => Ok(sum),
    }
}

/// The ten largest symbols in a linker's map: the distance to the next one in the same section is a
/// symbol's size.
fn largest(map: &str) -> Symbols {
    let mut symbols: Vec<(u64, u64, String)> = map.lines().filter_map(parse_symbol).collect();
    symbols.sort();
    symbols.dedup_by_key(|(section, offset, _)| (*section, *offset));
    let mut sizes: Symbols = symbols
        .windows(2)
        .filter_map(|pair| {
            let [(section, offset, name), (next_section, next, _)] = pair else {
                return None;
            };
            (section == next_section).then(|| (next.saturating_sub(*offset), name.clone()))
        })
        .collect();
    sizes.sort_by(|a, b| b.cmp(a));
    sizes.truncate(10);
    sizes
}

/// ` 0001:00000010       _ZN4core...  0000000140001010     object`: section, offset, name.
fn parse_symbol(line: &str) -> Option<(u64, u64, String)> {
    let mut words = line.split_whitespace();
    let (section, offset) = words.next()?.split_once(':')?;
    let name = words.next()?;
    // The table of sections above has a length there.
    let _address = u64::from_str_radix(words.next()?, 16).ok()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let name = format!("{:#}", rustc_demangle::demangle(name));
    Some((number(section)?, number(offset)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_as_large_as_the_distance_to_the_next() {
        let map = "
 Start         Length     Name                   Class
 0001:00000000 00000030H .text                   CODE
  Address         Publics by Value              Rva+Base               Lib:Object
 0001:00000000       small                      0000000140001000     a.o
 0001:00000004       large                      0000000140001004     a.o
 0001:00000030       end                        0000000140001030     a.o
 0002:00000000       elsewhere                  0000000140002000     a.o
";
        assert_eq!(
            largest(map),
            [(0x2c, "large".to_owned()), (4, "small".to_owned())]
        );
    }

    #[test]
    fn opt_levels_are_toml() {
        assert_eq!(quoted("s"), "'s'");
        assert_eq!(quoted("3"), "3");
    }
}
