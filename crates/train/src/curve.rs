//! The loss curve as a picture.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::prelude::*;

use crate::TrainError;
use crate::log::LogLine;

/// Steps that a point of the training curve is the mean of.
const SMOOTHED: usize = 10;
const SIZE: (u32, u32) = (900, 520);
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

type Points = Vec<(f64, f64)>;

/// Draws training and validation loss over tokens into an SVG file.
pub(crate) fn draw(title: &str, lines: &[LogLine], path: &Path) -> Result<(), TrainError> {
    let (training, validation) = points(lines);
    let all = || training.iter().chain(validation.values().flatten()).copied();
    let end = all().map(|p| p.0).fold(0.0, f64::max).max(1e-9);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.1), h.max(p.1)));
    if low > high {
        return Ok(());
    }
    let fail = |e: &dyn std::fmt::Display| TrainError::Curve(e.to_string());
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|e| fail(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end, (low - 0.1).max(0.0)..high + 0.1)
        .map_err(|e| fail(&e))?;
    let mesh = &mut chart.configure_mesh();
    mesh.x_desc("million tokens").y_desc("nats per token").draw().map_err(|e| fail(&e))?;
    let named = std::iter::once(("training", &training));
    let named = named.chain(validation.iter().map(|(tier, p)| (tier.as_str(), p)));
    for (i, (name, points)) in named.enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let label = if i == 0 { name.to_owned() } else { format!("validation, {name}") };
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        let drawn = chart.draw_series(line).map_err(|e| fail(&e))?.label(label);
        drawn.legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    let labels = &mut chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw().map_err(|e| fail(&e))?;
    root.present().map_err(|e| fail(&e))
}

/// (million tokens, nats per token): training, and validation of each tier.
fn points(lines: &[LogLine]) -> (Points, BTreeMap<String, Points>) {
    let (mut n_tokens, mut training, mut validation) = (0usize, Vec::new(), BTreeMap::<String, Points>::new());
    let mut window = Vec::new();
    for line in lines {
        let at = |n: usize| n as f64 / 1e6;
        match line {
            LogLine::Step { loss, n_tokens: n, .. } => {
                n_tokens += n;
                window.push(*loss);
                if window.len() == SMOOTHED {
                    training.push((at(n_tokens), window.iter().sum::<f64>() / SMOOTHED as f64));
                    window.clear();
                }
            }
            LogLine::Validation { tiers, .. } => {
                for (tier, v) in tiers {
                    validation.entry(tier.clone()).or_default().push((at(n_tokens), v.nats_per_token));
                }
            }
            LogLine::Checkpoint { .. } => {}
        }
    }
    (training, validation)
}
