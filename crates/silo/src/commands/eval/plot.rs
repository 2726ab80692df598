//! Figures over a number or over names, as a picture.

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use resvg::{tiny_skia, usvg};

/// A line, or the points of one over names.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// What the lower axis is of.
pub enum Axis {
    /// Numbers.
    Linear,
    /// Numbers, by their logarithms.
    Logarithmic,
    /// Names: a point's x is the place of its name.
    Names(Vec<String>),
    /// The same, one name below the other beside the picture, and what is measured below it: for long names.
    Rows(Vec<String>),
}

impl Line {
    /// What can be drawn.
    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite())
    }

    /// Of what each name has, in their order.
    pub fn of(name: &str, values: impl Iterator<Item = f64>) -> Self {
        Self { name: name.to_owned(), points: values.enumerate().map(|(i, value)| (i as f64, value)).collect() }
    }
}

/// A picture.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below and beside it.
    pub labels: [&'a str; 2],
    /// Its lower axis.
    pub axis: Axis,
}

const SIZE: (u32, u32) = (1200, 560);
/// Of the names of lines, beside the picture.
const LEGEND_WIDTH: u32 = 280;
/// Of the names of rows.
const ROWS_WIDTH: u32 = 230;
const LEGEND_LINE: i32 = 22;
const COLOURS: [RGBColor; 14] = [
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
    RGBColor(23, 190, 207),
    RGBColor(214, 39, 40),
    RGBColor(85, 107, 47),
];

impl<'a> Plot<'a> {
    /// Names one below the other, and what is measured of them.
    pub fn rows(title: &'a str, measured: &'a str, names: impl Iterator<Item = String>) -> Self {
        Self { title, labels: ["", measured], axis: Axis::Rows(names.collect()) }
    }

    /// The picture as SVG.
    pub fn svg(&self, lines: &[Line]) -> Result<String> {
        let mut svg = String::new();
        self.draw(lines, &mut svg).map_err(|e| anyhow!("'{}' cannot be drawn: {e}", self.title))?;
        Ok(svg)
    }

    /// The same picture as PNG, in the letters of DejaVu Sans.
    pub fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let mut options = usvg::Options::default();
        let fonts = options.fontdb_mut();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        let tree = usvg::Tree::from_str(svg, &options).context("an SVG picture")?;
        let mut pixels = tiny_skia::Pixmap::new(SIZE.0, SIZE.1).context("a picture has pixels")?;
        resvg::render(&tree, tiny_skia::Transform::default(), &mut pixels.as_mut());
        pixels.encode_png().context("a PNG picture")
    }

    fn draw(&self, lines: &[Line], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (picture, legend) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
        match &self.axis {
            Axis::Rows(names) => self.draw_rows(names, lines, &picture)?,
            _ => self.draw_columns(lines, &picture)?,
        }
        for (i, line) in lines.iter().enumerate() {
            let y = 60 + LEGEND_LINE * i as i32;
            legend.draw(&PathElement::new([(0, y), (20, y)], style(i)))?;
            legend.draw(&Text::new(line.name.clone(), (28, y - 6), ("sans-serif", 13)))?;
        }
        root.present()?;
        Ok(())
    }

    fn draw_rows(
        &self,
        names: &[String],
        lines: &[Line],
        picture: &Area<'_>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let values = range(lines.iter().flat_map(|line| &line.points).map(|p| p.1));
        // The first name stands above.
        let rows = names.len() as f64;
        let mut chart = ChartBuilder::on(picture)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(ROWS_WIDTH)
            .build_cartesian_2d(values, -rows + 0.5..0.5)?;
        let name = |y: &f64| name_at(names, -y);
        let mesh = &mut chart.configure_mesh();
        mesh.max_light_lines(0).y_labels(2 * names.len().max(1)).disable_y_mesh();
        mesh.x_desc(self.labels[1]).y_label_formatter(&name).draw()?;
        for (i, line) in lines.iter().enumerate() {
            let points = line.finite().map(|(place, value)| (value, -place));
            chart.draw_series(points.map(|p| Circle::new(p, 5, style(i).filled())))?;
        }
        Ok(())
    }

    fn draw_columns(&self, lines: &[Line], picture: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let logarithmic = matches!(self.axis, Axis::Logarithmic);
        let at = |x: f64| if logarithmic { x.max(f64::MIN_POSITIVE).log10() } else { x };
        let all = || lines.iter().flat_map(|line| &line.points);
        let mut chart = ChartBuilder::on(picture)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(60)
            .build_cartesian_2d(range(all().map(|p| at(p.0))), range(all().map(|p| p.1)))?;
        let label = |x: &f64| self.label(*x);
        let mesh = &mut chart.configure_mesh();
        mesh.max_light_lines(0);
        if let Axis::Names(names) = &self.axis {
            // Twice as many marks as names, so that one of two falls on each.
            mesh.x_labels(2 * names.len()).disable_x_mesh();
        }
        mesh.x_desc(self.labels[0]).y_desc(self.labels[1]).x_label_formatter(&label).draw()?;
        for (i, line) in lines.iter().enumerate() {
            let colour = style(i);
            let points = line.finite().map(|(x, y)| (at(x), y));
            match &self.axis {
                Axis::Names(_) => chart.draw_series(points.map(|p| Circle::new(p, 5, colour.filled())))?,
                _ => chart.draw_series(LineSeries::new(points, colour))?,
            };
        }
        Ok(())
    }

    fn label(&self, x: f64) -> String {
        match &self.axis {
            Axis::Linear => format!("{x:.0}"),
            Axis::Logarithmic => format!("{:.3}", 10f64.powf(x)),
            Axis::Names(names) | Axis::Rows(names) => name_at(names, x),
        }
    }
}

/// The name whose place that is; nothing between two.
fn name_at(names: &[String], x: f64) -> String {
    let place = x.round();
    let name = (place > -0.5 && (x - place).abs() < 1e-6).then(|| names.get(place as usize));
    name.flatten().cloned().unwrap_or_default()
}

/// From the least to the greatest, with a margin; from 0 to 1 if there is nothing to draw.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let margin = ((high - low) * 0.05).max(1e-9);
    low - margin..high + margin
}

/// Of a line: the first one is thick.
fn style(i: usize) -> ShapeStyle {
    COLOURS[i % COLOURS.len()].stroke_width(if i == 0 { 4 } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> [Line; 2] {
        let line = |name: &str, y: f64| Line { name: name.into(), points: vec![(1.0, y), (2.0, y + 1.0), (3.0, y)] };
        [line("all", 1.0), line("one", 2.0)]
    }

    #[test]
    fn lines_are_drawn_with_their_names() {
        let plot = Plot { title: "A plot", labels: ["share of the store", "bits per byte"], axis: Axis::Logarithmic };
        let svg = plot.svg(&lines()).unwrap();
        for text in ["A plot", "share of the store", "bits per byte", "all", "one"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.matches("<polyline").count() >= 2);
    }

    #[test]
    fn names_stand_below_their_points() {
        let names = ["zero", "first", "second", "third"].map(str::to_owned).to_vec();
        let plot = Plot { title: "Names", labels: ["domain", "bits per byte"], axis: Axis::Names(names) };
        let svg = plot.svg(&lines()).unwrap();
        for text in ["first", "second", "third"] {
            assert_eq!(svg.matches(text).count(), 1, "{text}: {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn rows_stand_one_below_the_other() {
        let names = ["zero", "first", "second", "third"].map(str::to_owned).to_vec();
        let plot = Plot::rows("Rows", "bits per byte", names.into_iter());
        let svg = plot.svg(&lines()).unwrap();
        let height = |name: &str| {
            let before = &svg[..svg.find(&format!("\n{name}\n")).unwrap()];
            let y = &before[before.rfind(" y=\"").unwrap() + 4..];
            y[..y.find('"').unwrap()].parse::<i32>().unwrap()
        };
        assert!(height("zero") < height("first") && height("first") < height("third"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(svg.contains("bits per byte"));
    }

    #[test]
    fn nothing_to_draw_is_drawn() {
        for points in [Vec::new(), vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)]] {
            let lines = || [Line { name: "nothing".into(), points: points.clone() }];
            let axis = Axis::Names(vec!["a name".to_owned()]);
            let plot = Plot { title: "Empty", labels: ["x", "y"], axis };
            assert_eq!(plot.svg(&lines()).unwrap().matches("<circle").count(), 0);
            let plot = Plot { title: "Empty", labels: ["x", "y"], axis: Axis::Linear };
            assert!(plot.svg(&lines()).unwrap().contains("nothing"));
            let plot = Plot::rows("Empty", "y", ["a name".to_owned()].into_iter());
            assert_eq!(plot.svg(&lines()).unwrap().matches("<circle").count(), 0);
        }
    }

    /// Letters too: a picture without a font has fewer dark pixels.
    #[test]
    fn the_png_has_letters() {
        let dark = |title: &str| {
            let plot = Plot { title, labels: ["x", "y"], axis: Axis::Linear };
            let png = plot.png(&plot.svg(&lines()).unwrap()).unwrap();
            let pixels = tiny_skia::Pixmap::decode_png(&png).unwrap();
            assert_eq!((pixels.width(), pixels.height()), SIZE);
            pixels.pixels().iter().filter(|p| p.red() < 100 && p.green() < 100 && p.blue() < 100).count()
        };
        assert!(dark("WWWWWWWWWW") > dark("") + 200);
    }
}
