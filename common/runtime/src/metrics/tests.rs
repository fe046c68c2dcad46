//! What a scrape sees. That others can read it is checked with Prometheus' own tools in `tests/metrics.rs`.

use std::time::Duration;

use super::*;
use crate::telemetry::TraceId;

static INSIDE: Def<Gauge> = Def::gauge("inside", "Who is inside");
static TOOK: Def<Histogram> = Def::times("took_seconds", "Times");
static TRIES: Def<Counts> = Def::counts("tries", "Attempts");
static CALLS: Def<Counter> =
    Def::counter("calls", "Calls").labels(&[("function", "whose"), ("outcome", "how it ended")]);
static MANY: Def<Counter> = Def::counter("many", "Many").labels(&[("name", "any")]);
static SENT: Read = Read::counter("sent_bytes", "Bytes that were sent").label(&[("way", "in or out")]);

fn lines(metrics: &Metrics, of: &str) -> Vec<String> {
    metrics.text().lines().filter(|line| line.starts_with(of)).map(str::to_owned).collect()
}

#[test]
fn a_gauge_counts_who_is_inside() {
    let metrics = Metrics::default();
    let gauge = metrics.one(&INSIDE);
    let (first, _second) = (gauge.enter(), gauge.enter());
    assert_eq!(lines(&metrics, "inside"), ["inside 2"]);
    drop(first);
    assert_eq!(lines(&metrics, "inside"), ["inside 1"]);
}

#[test]
fn an_exemplar_stands_at_its_bucket_until_it_was_seen() {
    let metrics = Metrics::default();
    let histogram = metrics.one(&TOOK);
    let trace = |byte| Some(TraceId::from_bytes([byte; 16]));
    histogram.observe_time(Duration::from_micros(3_500), trace(0xab));
    histogram.observe_time(Duration::from_millis(4), trace(0xcd));
    histogram.observe_time(Duration::from_millis(30), None);
    let buckets = lines(&metrics, "took_seconds_bucket");
    let begins =
        "took_seconds_bucket{le=\"0.005\"} 2 # {trace_id=\"abababababababababababababababab\"} 0.0035 ";
    assert!(buckets[11].starts_with(begins), "{buckets:#?}");
    assert_eq!(buckets.iter().filter(|bucket| bucket.contains("trace_id")).count(), 1);
    assert_eq!(buckets.last().map(String::as_str), Some("took_seconds_bucket{le=\"+Inf\"} 3"));
    assert_eq!(lines(&metrics, "took_seconds_count"), ["took_seconds_count 3"]);
    assert_eq!(lines(&metrics, "took_seconds_sum"), ["took_seconds_sum 0.0375"]);
    // That one was seen: the next has its place.
    histogram.observe_time(Duration::from_millis(4), trace(0xef));
    assert!(lines(&metrics, "took_seconds_bucket")[11].contains("efefef"), "{}", metrics.text());
}

#[test]
fn a_value_is_in_the_bucket_whose_bound_it_does_not_pass() {
    let metrics = Metrics::default();
    let tries = metrics.one(&TRIES);
    [1, 2, 5, 400].into_iter().for_each(|count| tries.observe(count));
    let expected = [
        "tries_bucket{le=\"1.0\"} 1",
        "tries_bucket{le=\"2.0\"} 2",
        "tries_bucket{le=\"3.0\"} 2",
        "tries_bucket{le=\"4.0\"} 2",
        "tries_bucket{le=\"6.0\"} 3",
        "tries_bucket{le=\"9.0\"} 3",
        "tries_bucket{le=\"16.0\"} 3",
        "tries_bucket{le=\"+Inf\"} 4",
    ];
    assert_eq!(lines(&metrics, "tries_bucket"), expected);
    assert_eq!(lines(&metrics, "tries_sum"), ["tries_sum 408"]);
}

#[test]
fn the_older_form_has_no_exemplars_and_no_end() {
    let metrics = Metrics::default();
    metrics.read_each(&SENT, [("in", 7.0), ("out", 0.5)].map(|(way, bytes)| (way, move || bytes)));
    metrics.one(&TOOK).observe_time(Duration::from_millis(3), Some(TraceId::from_bytes([1; 16])));
    let (new, old) = (metrics.text(), metrics.text_as(Form::Prometheus));
    assert!(new.starts_with(
        "# HELP sent_bytes Bytes that were sent\n# TYPE sent_bytes counter\n# UNIT sent_bytes bytes\n"
    ));
    assert!(
        old.starts_with("# HELP sent_bytes_total Bytes that were sent\n# TYPE sent_bytes_total counter\n")
    );
    for text in [&new, &old] {
        assert!(
            text.contains("sent_bytes_total{way=\"in\"} 7\nsent_bytes_total{way=\"out\"} 0.5\n"),
            "{text}"
        );
    }
    assert!(new.ends_with("# EOF\n") && !old.contains("EOF") && !old.contains("trace_id"), "{old}");
}

#[test]
fn who_does_not_name_the_newer_form_gets_the_older_one() {
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Form::accepted(prometheus), Form::OpenMetrics);
    for other in ["", "*/*", "text/plain;version=0.0.4;q=1,*/*;q=0.1", "text/html,*/*;q=0.8"] {
        assert_eq!(Form::accepted(other), Form::Prometheus, "{other}");
    }
}

/// Counters of functions, of which so many have their own.
fn functions(metrics: &Metrics, most: usize) -> Bounded<[Counter; 2]> {
    let calls = metrics.labelled(&CALLS);
    let forgotten = calls.clone();
    let make = move |name: &str| ["ok", "error"].map(|outcome| calls.with(&[name, outcome]));
    Bounded::new(most, make, move |name| forgotten.forget(name))
}

#[test]
fn names_beyond_the_bound_share_one_series() {
    let metrics = Metrics::default();
    let functions = functions(&metrics, 2);
    for name in ["demo/a", "demo/b", "demo/c", "demo/d", "demo/a"] {
        functions.with(name, |calls| calls[0].add_one());
    }
    functions.with("demo/d", |calls| calls[1].add(5));
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
fn who_is_idle_gives_its_place_to_who_is_called() {
    let metrics = Metrics::default();
    let functions = functions(&metrics, 2).idle(Duration::ZERO);
    let call = |name| functions.with(name, |calls| calls[0].add_one());
    call("demo/idle");
    call("demo/busy");
    // Both were used since they came.
    call("demo/new");
    assert_eq!(lines(&metrics, "calls_total{function=\"(other)\",outcome=\"ok\"}").len(), 1);
    call("demo/busy");
    call("demo/new");
    let ok = |name: &str| lines(&metrics, &format!("calls_total{{function=\"{name}\",outcome=\"ok\"}}"));
    assert_eq!(ok("demo/idle"), Vec::<String>::new());
    assert_eq!(ok("demo/busy"), ["calls_total{function=\"demo/busy\",outcome=\"ok\"} 2"]);
    assert_eq!(ok("demo/new"), ["calls_total{function=\"demo/new\",outcome=\"ok\"} 1"]);
}

#[test]
fn no_call_is_lost_while_names_come_and_go() {
    let metrics = Metrics::default();
    // Long enough that nobody's numbers are given up.
    let functions = functions(&metrics, 3);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let functions = &functions;
            scope.spawn(move || {
                for call in 0..1000 {
                    functions.with(&format!("demo/{}", (call + thread) % 7), |calls| calls[0].add_one());
                }
            });
        }
    });
    let ok = lines(&metrics, "calls_total").into_iter().filter(|line| line.contains("\"ok\""));
    let sum: u64 = ok.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 4000);
}

#[test]
fn series_are_bounded_whatever_their_labels() {
    let metrics = Metrics::default();
    let labelled = metrics.labelled(&MANY);
    (0..MOST_SERIES + 7).for_each(|number| labelled.with(&[&number.to_string()]).add_one());
    assert_eq!(lines(&metrics, "many_total").len(), MOST_SERIES + 1);
    assert_eq!(lines(&metrics, "many_total{name=\"(other)\"}"), ["many_total{name=\"(other)\"} 7"]);
}

#[test]
fn what_is_counted_elsewhere_is_told_whole() {
    static ALL: Observable = Observable::counter("all", "All").labels(&[("of", "what")]);
    static LONG: Observable = Observable::times("long_seconds", "How long").labels(&[("of", "what")]);
    let (metrics, times) = (Metrics::default(), Arc::new(Times::default()));
    let told = times.clone();
    metrics.observe([&ALL, &LONG], move |scrape| {
        scrape.of(&ALL).counter(&["a"], 7);
        scrape.of(&LONG).times(&["a"], &told.so_far(), Some(&told));
    });
    times.note(Duration::from_micros(150), Some(TraceId::from_bytes([7; 16])));
    let text = metrics.text();
    assert!(text.contains("# TYPE all counter\nall_total{of=\"a\"} 7\n# HELP long_seconds"), "{text}");
    assert!(text.contains("long_seconds_bucket{of=\"a\",le=\"0.0001\"} 0\n"), "{text}");
    assert!(text.contains("long_seconds_bucket{of=\"a\",le=\"0.00015\"} 1 # {trace_id=\"0707"), "{text}");
    assert!(text.contains("long_seconds_sum{of=\"a\"} 0.00015\n"), "{text}");
}

#[test]
fn what_is_off_counts_nothing() {
    let metrics = Metrics { all: None, functions: 200 };
    let (counter, histogram) = (metrics.labelled(&MANY).with(&["a"]), metrics.one(&TOOK));
    counter.add_one();
    histogram.observe_time(Duration::from_millis(1), None);
    let _inside = metrics.one(&INSIDE).enter();
    assert_eq!((counter.get(), metrics.text().as_str()), (0, "# EOF\n"));
}

#[test]
#[should_panic(expected = "two metrics are called many")]
fn a_metric_is_declared_once() {
    let metrics = Metrics::default();
    let _counters = (metrics.labelled(&MANY), metrics.labelled(&MANY));
}
