//! The table and the plots.

use crate::measure::{Case, Figures, Ours, size};
use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

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
