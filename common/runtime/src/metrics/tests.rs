//! What a scrape sees. That others can read it is checked with Prometheus' own tools in `tests/metrics.rs`.

use super::*;

fn lines(metrics: &Metrics, of: &str) -> Vec<String> {
    metrics.text().lines().filter(|line| line.starts_with(of)).map(str::to_owned).collect()
}

#[test]
fn a_gauge_counts_who_is_inside() {
    let metrics = Metrics::default();
    let gauge = metrics.gauge("inside", "Who is inside");
    let (first, _second) = (gauge.enter(), gauge.enter());
    assert_eq!(lines(&metrics, "inside"), ["inside 2"]);
    drop(first);
    assert_eq!(lines(&metrics, "inside"), ["inside 1"]);
}

#[test]
fn an_exemplar_stands_at_its_bucket() {
    let metrics = Metrics::default();
    let histogram = metrics.histogram("took_seconds", "Times", Histogram::times);
    histogram.observe_time(Duration::from_millis(3), Some(TraceId::from_bytes([0xab; 16])));
    histogram.observe_time(Duration::from_millis(30), None);
    let buckets = lines(&metrics, "took_seconds_bucket");
    assert!(
        buckets[5].starts_with("took_seconds_bucket{le=\"0.005\"} 1 # {trace_id=\"abababab"),
        "{buckets:#?}"
    );
    assert_eq!(buckets.iter().filter(|bucket| bucket.contains("trace_id")).count(), 1);
    assert_eq!(lines(&metrics, "took_seconds_count"), ["took_seconds_count 2"]);
}

#[test]
fn names_beyond_the_bound_share_one_series() {
    let metrics = Metrics::default();
    let calls = metrics.labelled("calls", "Calls", &["function", "outcome"], Counter::default);
    let functions = Bounded::new(2, move |name| (calls.with(&[name, "ok"]), calls.with(&[name, "error"])));
    for name in ["demo/a", "demo/b", "demo/c", "demo/d", "demo/a"] {
        functions.get(name).0.add_one();
    }
    functions.get("demo/d").1.add(5);
    let expected = [
        "calls_total{function=\"(other)\",outcome=\"error\"} 5",
        "calls_total{function=\"(other)\",outcome=\"ok\"} 2",
        "calls_total{function=\"demo/a\",outcome=\"error\"} 0",
        "calls_total{function=\"demo/a\",outcome=\"ok\"} 2",
        "calls_total{function=\"demo/b\",outcome=\"error\"} 0",
        "calls_total{function=\"demo/b\",outcome=\"ok\"} 1",
    ];
    assert_eq!(lines(&metrics, "calls_total"), expected);
}

#[test]
fn series_are_bounded_whatever_their_labels() {
    let metrics = Metrics::default();
    let labelled = metrics.labelled("many", "Many", &["name"], Counter::default);
    (0..MOST_SERIES + 7).for_each(|number| labelled.with(&[&number.to_string()]).add_one());
    assert_eq!(lines(&metrics, "many_total").len(), MOST_SERIES + 1);
    assert_eq!(lines(&metrics, "many_total{name=\"(other)\"}"), ["many_total{name=\"(other)\"} 7"]);
}

#[test]
#[should_panic(expected = "two metrics are called same")]
fn a_name_is_declared_once() {
    let metrics = Metrics::default();
    let _counters = (metrics.counter("same", "One"), metrics.counter("same", "Two"));
}
