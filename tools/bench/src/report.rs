//! The table, the comparison with the committed figures, the plots.

use crate::measure::{Case, FORMS, Figures, Ours, size};
use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;
use std::process::ExitCode;

/// A ratio that is worse by more than this factor fails the check.
const TOLERANCE: f64 = 1.2;
/// Bytes of text a call at trace at most.
const TEXT: usize = 2048;
/// Nanoseconds a call at most for log lines whose target is off. The only time that is compared: it is a difference within one
/// run, a fraction of this, and what would make it more is a text that is formatted for nothing, which takes hundreds.
const FILTERED_NS: f64 = 10.0;
/// Ratios below this are too small to compare: a tick of the clock is 20 % of them.
const NOISE: f64 = 0.02;

/// Prints all figures, as Markdown tables.
pub fn print(figures: &Figures) {
    println!(
        "| buffer / message | copies, ns | published, ns | `communicate`, ns | `communicate_into`, ns | `communicate_with`, ns \
         | `into` / copies | `into` / copies and wiping |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    );
    for case in &figures.cases {
        let form = |ours: &Ours| {
            let decimals = if ours.to_published < 0.095 { 3 } else { 2 };
            format!("{:.0} ({:.decimals$})", ours.ns, ours.to_published)
        };
        let forms: Vec<_> = case.ours.iter().map(form).collect();
        let into = &case.ours[1];
        println!(
            "| {} | {:.0} | {:.0} | {} | {:.1} | {:.1} |",
            case.name().trim_end_matches(", mailbox"),
            case.floor_ns,
            case.published_ns,
            forms.join(" | "),
            into.to_floor,
            into.to_floor_and_wipe
        );
    }
    println!("\nA message of 16 bytes through a comm buffer of 4 KiB:\n");
    println!(
        "| buffers | ours, ns | published, ns | heap at rest, ours | published |\n|---:|---:|---:|---:|---:|"
    );
    for ((count, ours, published), (_, heap, published_heap)) in
        figures.growth.buffers.iter().zip(&figures.growth.heap)
    {
        println!("| {count} | {ours:.0} | {published:.0} | {heap} bytes | {published_heap} bytes |");
    }
    println!("\n| nested calls | ns |\n|---:|---:|");
    for (depth, ns) in &figures.growth.nesting {
        println!("| {depth} | {ns:.0} |");
    }
    println!("\n| callbacks after calls | ns |\n|---:|---:|");
    for (count, ns) in &figures.growth.callbacks {
        println!("| {count} | {ns:.0} |");
    }
    let logs = &figures.growth.logs;
    println!(
        "\nLog lines of a call: {:.0} ns without a level, {:.0} ns at trace with the target off, {:.1} ns more",
        logs.off_ns, logs.filtered_ns, logs.more_ns
    );
    println!("\n| message | bytes of text at trace |\n|---:|---:|");
    for (len, text) in &logs.text {
        println!("| {len} B | {text} |");
    }
}

/// Writes figures for [`read`].
pub fn write(figures: &Figures, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Reads figures that [`write`] wrote.
pub fn read(file: &Path) -> Result<Figures> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no file of figures", file.display()))
}

/// Compares ratios, allocations and bytes with committed ones; never times.
pub fn check(now: &Figures, committed: &Figures) -> Result<ExitCode> {
    let mut worse = Vec::new();
    let mut compared = 0;
    for case in &now.cases {
        let same = |other: &&Case| {
            (other.buffer, other.message, other.mailbox) == (case.buffer, case.message, case.mailbox)
        };
        let before = committed.cases.iter().find(same);
        let before = before.with_context(|| format!("the committed figures lack {}", case.name()))?;
        for ((form, now), before) in FORMS.iter().zip(&case.ours).zip(&before.ours) {
            compared += 2;
            if now.to_published > before.to_published.max(NOISE) * TOLERANCE {
                worse.push(format!(
                    "{}, {form}: {:.3} × published, was {:.3}",
                    case.name(),
                    now.to_published,
                    before.to_published
                ));
            }
            if now.allocations > before.allocations {
                worse.push(format!(
                    "{}, {form}: {} allocations, was {}",
                    case.name(),
                    now.allocations,
                    before.allocations
                ));
            }
        }
    }
    for ((count, now, _), (_, before, _)) in now.growth.heap.iter().zip(&committed.growth.heap) {
        compared += 1;
        if *now as f64 > *before as f64 * TOLERANCE {
            worse.push(format!(
                "{count} buffers: {now} bytes of heap at rest, was {before}"
            ));
        }
    }
    let logs = &now.growth.logs;
    compared += logs.text.len() + 1;
    for (len, text) in logs.text.iter().filter(|(_, text)| *text > TEXT) {
        worse.push(format!(
            "{text} bytes of text at trace for {len} bytes, at most {TEXT}"
        ));
    }
    if logs.more_ns > FILTERED_NS {
        worse.push(format!(
            "log lines whose target is off take {:.1} ns, at most {FILTERED_NS}",
            logs.more_ns
        ));
    }
    if worse.is_empty() {
        println!("\n{compared} ratios and counts are no worse than the committed ones");
        return Ok(ExitCode::SUCCESS);
    }
    for line in &worse {
        println!("WORSE {line}");
    }
    println!(
        "{} of {compared} are worse. If that is meant, commit new figures (`cargo xtask bench --commit`).",
        worse.len()
    );
    Ok(ExitCode::FAILURE)
}

/// Shapes tell the series apart, so that colours are not needed.
const SHAPES: usize = 4;

/// Draws cost by message and by buffer.
pub fn plot(figures: &Figures, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let lines = |pick: &dyn Fn(&Case) -> bool, x: &dyn Fn(&Case) -> f64| {
        let series = |name: &'static str, y: &dyn Fn(&Case) -> f64| {
            let points = figures.cases.iter().filter(|case| pick(case));
            (name, points.map(|case| (x(case), y(case))).collect::<Vec<_>>())
        };
        [
            series("published, communicate", &|case| case.published_ns),
            series("ours, communicate", &|case| case.ours[0].ns),
            series("ours, communicate_into", &|case| case.ours[1].ns),
            series("copies alone", &|case| case.floor_ns),
        ]
    };
    let by_message = lines(&|case| case.mailbox && case.buffer == 65536, &|case| {
        case.message as f64
    });
    draw(
        &directory.join("by-message.svg"),
        "One call through a comm buffer of 64 KiB, with a mailbox",
        "bytes of the message",
        &by_message,
    )?;
    let by_buffer = lines(&|case| case.mailbox && case.message == 16, &|case| {
        case.buffer as f64
    });
    draw(
        &directory.join("by-buffer.svg"),
        "A message of 16 bytes, with a mailbox",
        "bytes of the comm buffer",
        &by_buffer,
    )
}

type Series = (&'static str, Vec<(f64, f64)>);

fn draw(file: &Path, title: &str, x_label: &str, series: &[Series; SHAPES]) -> Result<()> {
    let area = SVGBackend::new(file, (760, 440)).into_drawing_area();
    draw_on(&area, title, x_label, series).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    println!("drawn: {}", file.display());
    Ok(())
}

fn draw_on(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    x_label: &str,
    series: &[Series; SHAPES],
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let points = || series.iter().flat_map(|(_, points)| points);
    let bounds = |pick: fn(&(f64, f64)) -> f64| {
        let low = points().map(pick).fold(f64::MAX, f64::min);
        let high = points().map(pick).fold(0.0, f64::max);
        (low / 1.5)..(high * 1.5)
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            bounds(|point| point.0).log_scale(),
            bounds(|point| point.1).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(x_label)
        .y_desc("ns per call")
        .x_label_formatter(&|bytes| size(*bytes as usize))
        .y_label_formatter(&|ns| format!("{ns:.0}"))
        .draw()?;
    for (index, (name, points)) in series.iter().enumerate() {
        let style = BLACK
            .mix(1.0 - 0.15 * index as f64)
            .stroke_width(if index == 1 { 3 } else { 1 });
        let mark = move |at: (f64, f64)| {
            let shape: DynElement<'_, SVGBackend<'_>, (i32, i32)> = match index {
                0 => Cross::new((0, 0), 5, style).into_dyn(),
                1 => Circle::new((0, 0), 5, BLACK.filled()).into_dyn(),
                2 => TriangleMarker::new((0, 0), 6, style).into_dyn(),
                _ => Circle::new((0, 0), 5, style).into_dyn(),
            };
            EmptyElement::at(at) + shape
        };
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        chart.draw_series(points.iter().map(|at| mark(*at)))?;
        if let Some((x, y)) = points.get(index % 3) {
            let text = Text::new(name.to_string(), (8, -14), ("sans-serif", 13));
            chart.draw_series([EmptyElement::at((*x, *y)) + text])?;
        }
    }
    area.present()?;
    Ok(())
}
