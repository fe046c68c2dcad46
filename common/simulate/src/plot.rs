//! Charts of lines as SVG, which every browser shows. Just enough of it: axes with round steps, a line a series, a legend.

use std::fmt::Write as _;

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x: String,
    /// The horizontal axis counts nines: 1 is the 90th percentile, 2 the 99th.
    pub nines: bool,
    /// Beside the vertical one.
    pub y: String,
    /// The vertical axis counts powers of ten.
    pub logarithmic: bool,
    /// Each with its name.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

const SIZE: (f64, f64) = (900.0, 420.0);
/// Left, top, right, bottom.
const EDGE: (f64, f64, f64, f64) = (70.0, 40.0, 230.0, 50.0);
/// Told apart by people who see few colours.
const COLOURS: [&str; 9] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#a05a2c"];

impl Chart {
    /// As a file.
    #[must_use]
    pub fn svg(&self) -> String {
        let height = |value: f64| if self.logarithmic { value.max(1e-3).log10() } else { value };
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let (left, right) = bounds(points().map(|point| point.0));
        let (mut low, mut high) = bounds(points().map(|point| height(point.1)));
        if self.logarithmic {
            (low, high) = (low.floor(), high.ceil());
        } else {
            low = low.min(0.0);
        }
        let (width, tall) = (SIZE.0 - EDGE.0 - EDGE.2, SIZE.1 - EDGE.1 - EDGE.3);
        let at_x = |x: f64| EDGE.0 + (x - left) / (right - left).max(1e-9) * width;
        let at_y = |y: f64| EDGE.1 + tall - (y - low) / (high - low).max(1e-9) * tall;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            SIZE.0, SIZE.1
        );
        text(&mut out, EDGE.0, 22.0, "start", &self.title);
        text(&mut out, EDGE.0 + width / 2.0, SIZE.1 - 12.0, "middle", &self.x);
        text(&mut out, EDGE.0 - 55.0, EDGE.1 - 8.0, "start", &self.y);
        let step_y = if self.logarithmic { 1.0 } else { step(high - low) };
        for nth in 0..=((high - low) / step_y).floor() as usize {
            let value = low + nth as f64 * step_y;
            let y = at_y(value);
            let label = if self.logarithmic { 10f64.powf(value) } else { value };
            line(&mut out, (EDGE.0, y), (EDGE.0 + width, y));
            text(&mut out, EDGE.0 - 6.0, y + 4.0, "end", &short(label));
        }
        let step_x = if self.nines { 1.0 } else { step(right - left) };
        let first = (left / step_x).ceil() * step_x;
        for nth in 0..=((right - first) / step_x).floor().max(0.0) as usize {
            let value = first + nth as f64 * step_x;
            let x = at_x(value);
            line(&mut out, (x, EDGE.1 + tall), (x, EDGE.1 + tall + 4.0));
            let label = if self.nines { percentile(value) } else { short(value) };
            text(&mut out, x, EDGE.1 + tall + 18.0, "middle", &label);
        }
        for ((nth, (name, points)), colour) in self.series.iter().enumerate().zip(COLOURS.iter().cycle()) {
            let mut path = String::new();
            for (x, y) in points {
                write!(path, "{:.1},{:.1} ", at_x(*x), at_y(height(*y))).ok();
            }
            let path = path.trim_end();
            writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{path}\"/>"
            )
            .ok();
            let y = EDGE.1 + 14.0 + nth as f64 * 18.0;
            let x = EDGE.0 + width + 12.0;
            writeln!(out, "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"3\" fill=\"{colour}\"/>", y - 5.0)
                .ok();
            text(&mut out, x + 20.0, y, "start", name);
        }
        out + "</svg>\n"
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low < high {
        (low, high)
    } else if low.is_finite() {
        (low, low + 1.0)
    } else {
        (0.0, 1.0)
    }
}

/// A round step, so that there are some five of them.
fn step(span: f64) -> f64 {
    let rough = span.max(1e-9) / 5.0;
    let ten = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| ten * times >= rough);
    ten * times.unwrap_or(10.0)
}

fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// With so many nines.
fn percentile(nines: f64) -> String {
    let digits = (nines - 2.0).max(0.0) as usize;
    format!("{:.digits$} %", 100.0 * (1.0 - 10f64.powf(-nines)))
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>").ok();
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_line_a_series_inside_its_frame() {
        let series = vec![
            ("a < b".to_owned(), vec![(0.0, 1.0), (1.0, 100.0), (2.0, 0.0)]),
            ("none".to_owned(), Vec::new()),
            ("flat".to_owned(), vec![(0.0, 7.0), (2.0, 7.0)]),
        ];
        for logarithmic in [false, true] {
            let (title, x, y) = ("t".to_owned(), "x".to_owned(), "y".to_owned());
            let svg = Chart { title, x, nines: false, y, logarithmic, series: series.clone() }.svg();
            assert_eq!(svg.matches("<polyline").count(), 3);
            assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
            let points =
                svg.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
            for point in points.flat_map(str::split_whitespace) {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((EDGE.0..=SIZE.0 - EDGE.2).contains(&x) && (EDGE.1..=SIZE.1 - EDGE.3).contains(&y));
            }
        }
        let empty = Chart {
            title: String::new(),
            x: String::new(),
            nines: false,
            y: String::new(),
            logarithmic: false,
            series: vec![],
        };
        assert!(empty.svg().contains("</svg>"));
    }

    #[test]
    fn steps_are_round_and_nines_are_percentiles() {
        let labels = |nines, to| {
            let series = vec![("a".to_owned(), vec![(0.046, 1.0), (to, 2.0)])];
            let (title, x, y) = (String::new(), String::new(), String::new());
            let svg = Chart { title, x, nines, y, logarithmic: false, series }.svg();
            let below = format!("y=\"{:.1}\" text-anchor=\"middle\">", SIZE.1 - EDGE.3 + 18.0);
            let texts = svg.split(&below).skip(1).filter_map(|rest| rest.split('<').next());
            texts.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(labels(true, 4.0), ["90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(labels(false, 115.0), ["50", "100"]);
    }
}
