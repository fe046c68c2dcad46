//! All metrics that the programs define, and the page about them.

use std::fmt::Write as _;

use stoker_runtime::metrics::{About, BOUNDS, Kind};

/// A part of the page.
#[derive(Debug)]
pub struct Section {
    pub title: &'static str,
    pub says: &'static str,
    pub metrics: Vec<&'static About>,
}

/// Every metric there is.
#[must_use]
pub fn sections() -> [Section; 4] {
    let section =
        |title, says, tables: &[&[&'static About]]| Section { title, says, metrics: tables.concat() };
    [
        section("Balancer", "Shown by `stoker-lb`.", &[stoker_lb::METRICS, stoker_runtime::audit::LISTED]),
        section("Runner", "Shown by `stoker-runner`.", &[stoker_runner::METRICS]),
        section("etcd", "Shown by both.", &[stoker_runtime::metrics::etcd::LISTED]),
        section(
            "Process",
            "Shown by both.",
            &[
                stoker_runtime::metrics::LISTED,
                stoker_runtime::telemetry::LISTED,
                stoker_runtime::logs::LISTED,
                stoker_runtime::tls::LISTED,
            ],
        ),
    ]
}

/// The metric of this name.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn about(name: &str) -> &'static About {
    let found = sections().into_iter().flat_map(|section| section.metrics).find(|about| about.name == name);
    found.unwrap_or_else(|| panic!("no program has a metric {name}"))
}

const BEGIN: &str = "\
# Metrics

Made from the programs' own definitions by a test; do not edit. Both servers show them at `/metrics` on their admin port: as OpenMetrics 1.0 with exemplars
where a scraper asks for that, as Prometheus does, else as the older text. [telemetry.md](telemetry.md) has traces and logs, [operations/](operations/README.md) what the
alerts mean.

| setting | what it does |
|---|---|
| `metrics.functions` | so many functions have series of their own: the busy ones, since one that is idle for ten minutes gives its place to another that is called. All others share `function=\"(other)\"`, so that sums stay right |
| `metrics.enabled` | `false`: the page is empty, and what only it shows is not counted |

Names are stable: one that changes is in the changelog. A counter's series have `_total` behind the name, a histogram's `_bucket`, `_sum` and `_count`; queries
on counters are `rate` or `increase`. Times are in seconds, sizes in bytes. No metric has more than 10,000 series. Prometheus adds `job` and `instance`.

**Exemplars.** Each bucket of a histogram of calls has one: the trace of the first recorded call since the last scrape. Prometheus keeps them with
`--enable-feature=exemplar-storage`.

";

/// `docs/metrics.md`.
#[must_use]
pub fn page() -> String {
    let mut page = BEGIN.to_owned();
    let bounds: Vec<_> = BOUNDS.iter().map(|us| (*us as f64 / 1e6).to_string()).collect();
    _ = write!(
        page,
        "**Buckets** of times end at {} seconds: steps of a tenth of a millisecond and less where a warm call is, a minute for what functions may take. A percentile
that Prometheus makes of them is between the two bounds around it; `stoker top` and the page count in slots that are three times as fine. They are buckets and no native
histograms, which Prometheus 3 makes of them by itself where a job says `convert_classic_histograms_to_nhcb: true`: [adr/0037](adr/0037-calls-are-counted-once.md).
",
        bounds.join(", ")
    );
    for section in sections() {
        _ = write!(
            page,
            "\n## {}\n\n{}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n",
            section.title, section.says
        );
        for about in section.metrics {
            _ = writeln!(page, "| `{}` | {} | {} | {} |", about.name, kind(about), labels(about), about.help);
        }
    }
    page
}

fn kind(about: &About) -> String {
    match about.unit() {
        Some(unit) => format!("{}, {unit}", about.kind.as_str()),
        None => about.kind.as_str().to_owned(),
    }
}

fn labels(about: &About) -> String {
    let labels: Vec<String> =
        about.labels.iter().map(|(name, values)| format!("`{name}`: {values}")).collect();
    labels.join("<br>")
}

/// Names of series as queries have them.
#[must_use]
pub fn series() -> Vec<String> {
    sections().iter().flat_map(|section| &section.metrics).flat_map(|about| about.series()).collect()
}

/// Whether a query may use this label of this series.
#[must_use]
pub fn has_label(series: &str, label: &str) -> bool {
    let sections = sections();
    let about = sections
        .iter()
        .flat_map(|section| &section.metrics)
        .find(|about| about.series().iter().any(|name| name == series));
    // What Prometheus adds, and what a bucket has.
    let common = ["job", "instance"].contains(&label);
    common || about.is_some_and(|a| a.has(label) || (a.kind == Kind::Histogram && label == "le"))
}
