//! Pictures of dashboards for the documentation: drawn here from what Prometheus answered, not by Grafana, which shows the same panels at the
//! same places and more of each.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Board, Look, Panel, Source, Unit};
use crate::prometheus::Prometheus;

/// Pixels of one unit of Grafana's grid.
const WIDTH: f64 = 44.0;
const HEIGHT: f64 = 24.0;

/// So much time is drawn.
const SECONDS: u32 = 24;

/// Most series of one panel that are told apart.
const COLOURS: [&str; 8] =
    ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"];

/// How text looks.
const TITLE: &str = "fill=\"#ffffff\" font-size=\"17\"";
const ROW: &str = "fill=\"#ccccdc\" font-weight=\"bold\"";
const TEXT: &str = "fill=\"#ccccdc\"";
const FAINT: &str = "fill=\"#8e8e8e\"";
const VALUE: &str = "fill=\"#73bf69\"";
const BIG: &str = "fill=\"#73bf69\" font-size=\"28\"";

/// A series as it is drawn.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Where something goes, in pixels.
#[derive(Clone, Copy)]
struct Place {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

/// A dashboard as it would look now; `filled` puts in what stands for its variables.
pub async fn board(board: &Board, prometheus: &Prometheus, filled: impl Fn(&str) -> String) -> String {
    let json: Value = serde_json::from_str(&board.json()).unwrap();
    let boxes = json["panels"].as_array().unwrap();
    let place = |panel: &Value| {
        let at = |key: &str| panel["gridPos"][key].as_f64().unwrap();
        Place { x: at("x") * WIDTH, y: at("y") * HEIGHT + 40.0, w: at("w") * WIDTH, h: at("h") * HEIGHT }
    };
    let bottom = boxes.iter().map(place).map(|place| place.y + place.h).fold(0.0, f64::max);
    let mut svg = String::new();
    _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{bottom}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#111217\"/>\n",
        24.0 * WIDTH
    );
    text(&mut svg, 8.0, 25.0, TITLE, board.title);
    let mut panels = board.panels();
    for shown in boxes {
        let place = place(shown);
        if shown["type"] == "row" {
            text(&mut svg, 8.0, place.y + 17.0, ROW, shown["title"].as_str().unwrap());
            continue;
        }
        let panel = panels.next().unwrap();
        _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#181b1f\" stroke=\"#2c3235\"/>",
            place.x + 2.0,
            place.y + 2.0,
            place.w - 4.0,
            place.h - 4.0
        );
        text(&mut svg, place.x + 10.0, place.y + 18.0, TEXT, panel.title);
        if panel.source() != Source::Metrics {
            let whom = if panel.source() == Source::Logs { "Loki" } else { "Tempo" };
            text(
                &mut svg,
                place.x + 10.0,
                place.y + 40.0,
                FAINT,
                &format!("asked of {whom}, which is not here"),
            );
            continue;
        }
        let lines = lines(panel, prometheus, &filled).await;
        match panel.look {
            Look::Number => number(&mut svg, place, panel.unit, &lines),
            Look::Table { .. } => table(&mut svg, place, panel.unit, &lines),
            _ => curves(&mut svg, place, panel, &lines),
        }
    }
    svg.push_str("</svg>\n");
    svg
}

async fn lines(panel: &Panel, prometheus: &Prometheus, filled: &impl Fn(&str) -> String) -> Vec<Line> {
    let mut lines = Vec::new();
    for query in &panel.queries {
        // What is drawn is short: so is the window.
        let text = filled(&query.text).replace("[5m]", "[5s]");
        for (labels, points) in prometheus.range(&text, SECONDS).await {
            let mut name = query.legend.clone();
            for (label, value) in labels.as_object().unwrap() {
                name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap());
            }
            if let Look::Table { label, .. } = panel.look {
                name = format!("{}  {}", labels[label].as_str().unwrap_or_default(), query.legend);
            }
            // A label that is empty is none.
            if let Some((before, _)) = name.split_once("{{") {
                name = before.trim_end_matches([' ', ',']).to_owned();
            }
            let points: Vec<(f64, f64)> = points.into_iter().filter(|(_, value)| value.is_finite()).collect();
            if !points.is_empty() {
                lines.push(Line { name, points });
            }
        }
    }
    // What never was is left out where there is much else.
    if lines.len() > 6 {
        lines.retain(|line| line.points.iter().any(|(_, value)| *value != 0.0));
    }
    lines
}

fn last(line: &Line) -> f64 {
    line.points.last().map_or(0.0, |(_, value)| *value)
}

fn number(svg: &mut String, place: Place, unit: Unit, lines: &[Line]) {
    let shown = lines.first().map_or_else(|| "–".to_owned(), |line| with_unit(last(line), unit));
    text(svg, place.x + 12.0, place.y + place.h - 22.0, BIG, &shown);
}

fn table(svg: &mut String, place: Place, unit: Unit, lines: &[Line]) {
    let mut rows: Vec<&Line> = lines.iter().collect();
    rows.sort_by(|a, b| last(b).total_cmp(&last(a)));
    for (row, line) in rows.iter().take(9).enumerate() {
        let y = place.y + 38.0 + 17.0 * row as f64;
        text(svg, place.x + 12.0, y, TEXT, &line.name);
        text(svg, place.x + place.w - 90.0, y, VALUE, &with_unit(last(line), unit));
    }
}

fn curves(svg: &mut String, place: Place, panel: &Panel, lines: &[Line]) {
    let (left, top, right, bottom) =
        (place.x + 56.0, place.y + 28.0, place.x + place.w - 12.0, place.y + place.h - 34.0);
    let times = || lines.iter().flat_map(|line| line.points.iter().map(|(at, _)| *at));
    let (first, end) = (times().fold(f64::INFINITY, f64::min), times().fold(0.0, f64::max));
    let stacked = panel.look == Look::Stacked;
    // Of series that stand one above the other, what is below each at a time.
    let below = |upto: usize, at: f64| -> f64 {
        let under = lines.iter().take(if stacked { upto } else { 0 });
        under.flat_map(|line| line.points.iter().filter(|(t, _)| *t == at).map(|(_, value)| *value)).sum()
    };
    let tops = lines
        .iter()
        .enumerate()
        .flat_map(|(n, line)| line.points.iter().map(move |(at, value)| (n, *at, *value)));
    let highest = tops.map(|(n, at, value)| value + below(n, at)).fold(0.0, f64::max);
    let scale = if highest > 0.0 { highest } else { 1.0 };
    let x = |at: f64| if end > first { left + (at - first) / (end - first) * (right - left) } else { left };
    let y = |value: f64| bottom - value / scale * (bottom - top);
    for part in [0.0, 0.5, 1.0] {
        _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#2c3235\"/>",
            y(part * scale)
        );
        text(svg, place.x + 8.0, y(part * scale) + 4.0, FAINT, &with_unit(part * scale, panel.unit));
    }
    let mut legend = left;
    for (n, line) in lines.iter().enumerate().take(40) {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<String> = line
            .points
            .iter()
            .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(value + below(n, *at))))
            .collect();
        _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            points.join(" ")
        );
        let wide = 14.0 + 6.2 * line.name.chars().count() as f64;
        if legend + wide < right + 20.0 {
            text(svg, legend, place.y + place.h - 12.0, &format!("fill=\"{colour}\""), &line.name);
            legend += wide;
        }
    }
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

fn with_unit(value: f64, unit: Unit) -> String {
    let short = |value: f64| match value {
        0.0 => "0".to_owned(),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value if value.abs() >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    match unit {
        Unit::Share => format!("{} %", short(value * 100.0)),
        Unit::PerSecond => format!("{}/s", short(value)),
        Unit::Seconds if value != 0.0 && value < 1.0 => format!("{} ms", short(value * 1000.0)),
        Unit::Seconds => format!("{} s", short(value)),
        Unit::Bytes => format!("{} MiB", short(value / 1024.0 / 1024.0)),
        Unit::Count | Unit::Cores => short(value),
    }
}
