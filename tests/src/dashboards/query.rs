//! Queries in PromQL, of metrics that exist with labels that they have.

use stoker_runtime::metrics::Kind;

use super::metrics::{about, has_label};

/// The window of rates: what Grafana thinks right for the scrape interval and the width of the panel.
pub const WINDOW: &str = "$__rate_interval";

/// A series with what it must match, like `code="OK"`.
fn selected(name: &str, suffix: &str, only: &str) -> String {
    let series = format!("{name}{suffix}");
    for part in only.split(',').filter(|part| !part.is_empty()) {
        let label = part.split(['=', '!']).next().unwrap_or_default().trim();
        assert!(has_label(&series, label), "{series} has no label {label}");
    }
    if only.is_empty() { series } else { format!("{series}{{{only}}}") }
}

fn grouped(function: &str, by: &[&str], series: &str, name: &str) -> String {
    let kind = about(name).kind;
    for label in by {
        assert!(
            about(name).has(label) || ["job", "instance", "le"].contains(label),
            "{name} has no label {label}"
        );
    }
    let by = if by.is_empty() { String::new() } else { format!(" by ({})", by.join(", ")) };
    match kind {
        Kind::Gauge => format!("{function}{by}({series})"),
        Kind::Counter | Kind::Histogram => format!("{function}{by}(rate({series}[{WINDOW}]))"),
    }
}

/// A counter's growth a second; of a histogram, how many values a second.
#[must_use]
pub fn rate(name: &str, by: &[&str], only: &str) -> String {
    let suffix = match about(name).kind {
        Kind::Counter => "_total",
        Kind::Histogram => "_count",
        Kind::Gauge => panic!("{name} is no counter"),
    };
    grouped("sum", by, &selected(name, suffix, only), name)
}

/// A gauge, added up.
#[must_use]
pub fn sum(name: &str, by: &[&str], only: &str) -> String {
    assert_eq!(about(name).kind, Kind::Gauge, "{name}");
    grouped("sum", by, &selected(name, "", only), name)
}

/// A gauge, the highest of it.
#[must_use]
pub fn max(name: &str, by: &[&str], only: &str) -> String {
    assert_eq!(about(name).kind, Kind::Gauge, "{name}");
    grouped("max", by, &selected(name, "", only), name)
}

/// So much of a histogram's values lies below this; `share` is of 1.
#[must_use]
pub fn quantile(share: f64, name: &str, by: &[&str], only: &str) -> String {
    let with_bound: Vec<&str> = ["le"].into_iter().chain(by.iter().copied()).collect();
    let buckets = grouped("sum", &with_bound, &selected(name, "_bucket", only), name);
    format!("histogram_quantile({share}, {buckets})")
}

/// Values a second in each bucket.
#[must_use]
pub fn buckets(name: &str, only: &str) -> String {
    grouped("sum", &["le"], &selected(name, "_bucket", only), name)
}

/// One part of another.
#[must_use]
pub fn share(part: &str, whole: &str) -> String {
    format!("{part} / {whole}")
}

/// One part of another that may be nothing.
#[must_use]
pub fn share_or_none(part: &str, whole: &str) -> String {
    format!("({part} or vector(0)) / {whole}")
}

/// The highest so many.
#[must_use]
pub fn top(most: u32, query: &str) -> String {
    format!("topk({most}, {query})")
}
