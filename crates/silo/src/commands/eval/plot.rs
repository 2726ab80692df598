//! Lines over a number, as a picture.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// A line.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A picture.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below and beside it.
    pub axes: [&'a str; 2],
    /// Whether the lower axis is of logarithms.
    pub logarithmic: bool,
}

const SIZE: (u32, u32) = (900, 520);
const COLOURS: [RGBColor; 11] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
    RGBColor(148, 103, 189),
    RGBColor(188, 189, 34),
];

impl Plot<'_> {
    /// Draws it into an SVG file.
    pub fn draw(&self, lines: &[Line], path: &Path) -> Result<()> {
        self.try_draw(lines, path).map_err(|e| anyhow!("{} cannot be drawn: {e}", path.display()))
    }

    fn try_draw(&self, lines: &[Line], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let at = |x: f64| if self.logarithmic { x.max(f64::MIN_POSITIVE).log10() } else { x };
        let all = || lines.iter().flat_map(|line| &line.points);
        let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let (low, high) = all().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            let margin = ((high - low) * 0.05).max(1e-9);
            low - margin..high + margin
        };
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(60)
            .build_cartesian_2d(range(&|p| at(p.0)), range(&|p| p.1))?;
        let label = |x: &f64| if self.logarithmic { format!("{:.3}", 10f64.powf(*x)) } else { format!("{x:.0}") };
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc(self.axes[0]).y_desc(self.axes[1]).x_label_formatter(&label).draw()?;
        for (i, line) in lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()].stroke_width(if i == 0 { 4 } else { 2 });
            let points = line.points.iter().map(|(x, y)| (at(*x), *y));
            let drawn = chart.draw_series(LineSeries::new(points, colour))?.label(&line.name);
            drawn.legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_drawn_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let line = |name: &str, y: f64| Line { name: name.into(), points: vec![(0.01, y), (0.1, y + 1.0), (1.0, y)] };
        let plot = Plot { title: "A plot", axes: ["share of the store", "bits per byte"], logarithmic: true };
        plot.draw(&[line("all", 1.0), line("one", 2.0)], &path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in ["A plot", "share of the store", "bits per byte", "all", "one"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.matches("<polyline").count() >= 2);
    }
}
