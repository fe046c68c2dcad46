//! What needs no collector: contexts, decisions, bounds. `tests/telemetry.rs` has one.

use std::net::TcpListener;
use std::time::Instant;

use opentelemetry_sdk::trace::SpanData;
use stoker_core::TraceContext;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn given(parent: &str, state: &str) -> TraceContext {
    TraceContext { parent: parent.to_owned(), state: state.to_owned() }
}

fn shared(sampler: Sampler, ratio: f64, limit: usize) -> Arc<Shared> {
    Arc::new(Shared {
        sampling: Sampling::new(sampler, ratio),
        queue: Queue::new(limit),
        scope: InstrumentationScope::builder("test").build(),
    })
}

fn ended(shared: &Shared) -> Vec<SpanData> {
    shared.queue.take()
}

#[test]
fn trace_parents() {
    let span = "b7ad6b7169203331";
    for good in [
        format!("00-{TRACE}-{span}-01"),
        format!("00-{TRACE}-{span}-00"),
        format!("00-{TRACE}-{span}-ff"),
        format!("42-{TRACE}-{span}-01"),
        format!("42-{TRACE}-{span}-01-more"),
    ] {
        let read = context::read(&given(&good, "")).unwrap_or_else(|| panic!("{good}"));
        assert_eq!(
            (read.trace_id().to_string(), read.span_id().to_string()),
            (TRACE.to_owned(), span.to_owned())
        );
        assert_eq!(read.is_sampled(), !good.contains("-00"), "{good}");
        assert!(read.is_remote());
    }
    for bad in [
        String::new(),
        "00".to_owned(),
        format!("00-{TRACE}-{span}"),
        format!("00-{TRACE}-{span}-1"),
        format!("00-{TRACE}-{span}-01-more"),
        format!("42-{TRACE}-{span}-01more"),
        format!("ff-{TRACE}-{span}-01"),
        format!("00-{}-{span}-01", TRACE.to_uppercase()),
        format!("00-{}-{span}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00_{TRACE}-{span}-01"),
        format!("00-{TRACE}-{span}-0g"),
        format!("00-{}é-{span}-01", &TRACE[..30]),
    ] {
        assert!(context::read(&given(&bad, "")).is_none(), "{bad}");
    }
    let with_bad_state = context::read(&given(&format!("00-{TRACE}-{span}-01"), "no state")).unwrap();
    assert_eq!(with_bad_state.trace_state().header(), "");
}

#[test]
fn who_decides() {
    let sampled = given(&format!("00-{TRACE}-b7ad6b7169203331-01"), "a=b");
    let unsampled = given(&format!("00-{TRACE}-b7ad6b7169203331-00"), "a=b");
    let (nobody, garbage) = (given("", ""), given("garbage", "a=b"));
    for (sampler, ratio, expected) in [
        (Sampler::AlwaysOn, 0.0, [true, true, true, true]),
        (Sampler::AlwaysOff, 1.0, [false, false, false, false]),
        (Sampler::Ratio, 1.0, [true, true, true, true]),
        (Sampler::Ratio, 0.0, [false, false, false, false]),
        (Sampler::ParentOrOn, 0.0, [true, false, true, true]),
        (Sampler::ParentOrOff, 1.0, [true, false, false, false]),
        (Sampler::ParentOrRatio, 1.0, [true, false, true, true]),
        (Sampler::ParentOrRatio, 0.0, [true, false, false, false]),
    ] {
        let tracer = Tracer::new(shared(sampler, ratio, 10));
        let recorded = [&sampled, &unsampled, &nobody, &garbage]
            .map(|parent| tracer.start("x", SpanKind::Server, parent).is_recorded());
        assert_eq!(recorded, expected, "{sampler:?} {ratio}");
    }
}

#[test]
fn the_same_share_of_traces_everywhere() {
    let sampling = Sampling::new(Sampler::ParentOrRatio, 0.25);
    let trace = |number: u64| {
        let mut bytes = [1; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        TraceId::from_bytes(bytes)
    };
    assert!(sampling.takes(None, trace(0)) && sampling.takes(None, trace((1 << 62) - 1)));
    assert!(!sampling.takes(None, trace(1 << 62)) && !sampling.takes(None, trace(u64::MAX)));
}

#[test]
fn what_is_not_recorded_is_still_handed_on() {
    let passed = given(&format!("00-{TRACE}-b7ad6b7169203331-01"), "a=b");
    let mut off = Tracer::off().start("x", SpanKind::Server, &passed);
    off.set("name", "value");
    assert_eq!(off.child("y", SpanKind::Client).context(), passed, "untouched");
    assert_eq!((off.trace().map(|t| t.to_string()), off.exemplar()), (Some(TRACE.to_owned()), None));
    assert_eq!(Tracer::off().start("x", SpanKind::Server, &given("", "")).context(), given("", ""));

    let shared = shared(Sampler::AlwaysOff, 0.0, 10);
    let tracer = Tracer::new(shared.clone());
    let decided = tracer.start("x", SpanKind::Server, &passed).context();
    assert!(
        decided.parent.starts_with(&format!("00-{TRACE}-")) && decided.parent.ends_with("-00"),
        "{decided:?}"
    );
    assert_eq!(decided.state, "a=b");
    let root = tracer.start("x", SpanKind::Server, &given("", ""));
    let told = root.child("y", SpanKind::Client).context();
    assert!(
        context::read(&told).is_some_and(|told| !told.is_sampled()),
        "those behind us do not decide anew"
    );
    drop(root);
    assert!(ended(&shared).is_empty());
}

#[test]
fn a_span_is_bounded_and_ends_once() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 10);
    let mut span = Tracer::new(shared.clone()).start("x", SpanKind::Internal, &given("", ""));
    for _ in 0..100 {
        span.set("a", 1_i64);
        span.event(Instant::now(), "e", []);
        span.link(&given(&format!("00-{TRACE}-b7ad6b7169203331-01"), ""));
    }
    span.set("text", "é".repeat(1000));
    span.fail("é".repeat(1000));
    // Before it began: it ends where it began.
    span.end_at(Instant::now() - Duration::from_secs(5));
    let spans = ended(&shared);
    assert_eq!(spans.len(), 1);
    let span = &spans[0];
    assert_eq!((span.attributes.len(), span.dropped_attributes_count), (64, 37));
    assert_eq!((span.events.len(), span.events.dropped_count), (64, 36));
    assert_eq!((span.links.len(), span.links.dropped_count), (64, 36));
    assert_eq!(span.start_time, span.end_time);
    assert_eq!(span.status, opentelemetry::trace::Status::error("é".repeat(512)));
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_them() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 3);
    let tracer = Tracer::new(shared.clone());
    for name in ["a", "b", "c", "d", "e"] {
        drop(tracer.start(name, SpanKind::Internal, &given("", "")));
    }
    assert_eq!(ended(&shared).iter().map(|span| &*span.name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(shared.queue.count("dropped"), 2);
    drop(tracer.start("f", SpanKind::Internal, &given("", "")));
    assert_eq!(ended(&shared).len(), 1, "there is room again");
}

fn silent_collector() -> (TcpListener, Config) {
    // Accepts by way of the kernel's backlog, and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer x".to_owned())]),
        timeout: Duration::from_secs(3600),
        queue: 2000,
        sampler: Sampler::AlwaysOn,
        ratio: 1.0,
        resource: BTreeMap::new(),
    };
    (listener, config)
}

#[tokio::test]
async fn a_silent_collector_stops_nobody_and_every_span_is_counted() {
    let (_listener, config) = silent_collector();
    let telemetry = Telemetry::start(&config).unwrap();
    let (tracer, metrics) = (telemetry.tracer(), Metrics::default());
    telemetry.measure(&metrics);
    const MANY: u64 = 10_000;
    for _ in 0..MANY {
        drop(tracer.start("call", SpanKind::Server, &given("", "")));
    }
    assert!(!telemetry.stop(Duration::from_millis(10)).await, "it cannot have been sent");
    drop(tracer.start("late", SpanKind::Server, &given("", "")));
    let shared = tracer.shared().unwrap().clone();
    let count = |outcome| shared.queue.count(outcome);
    assert_eq!(count("sent") + count("dropped") + count("failed"), MANY + 1);
    assert_eq!(count("sent"), 0);
    assert!(count("failed") <= 1024, "one batch was under way");
    assert!(
        metrics.text().contains("stoker_telemetry_spans_total{outcome=\"dropped\"}"),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start() {
    let (_listener, mut config) = silent_collector();
    config.headers.insert("not a header".to_owned(), "x".to_owned());
    let error = Telemetry::start(&config).unwrap_err().to_string();
    assert_eq!(error, "`not a header` is not a header that can be sent");
    assert!(Telemetry::off().stop(Duration::ZERO).await);
}

#[test]
fn standard_variables_are_known() {
    use crate::config::{Outcome, Program};
    static PROGRAM: Program = Program { name: "p", version: "1", about: "", examples: "", tables: &[KEYS] };
    let load = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        match PROGRAM.load([], variables.collect::<Vec<_>>()) {
            Ok(Outcome::Run(settings)) => {
                let identity =
                    Identity { service: "stoker-lb", version: "1.2.3", instance: "lb-1".to_owned() };
                Config::new(&settings, &identity)
            }
            other => panic!("{other:?}"),
        }
    };
    let plain = load(&[]);
    assert_eq!((plain.endpoint, plain.sampler, plain.ratio), (None, Sampler::ParentOrRatio, 1.0));
    assert_eq!(plain.resource["service.name"], "stoker-lb");
    assert_eq!(plain.resource["service.instance.id"], "lb-1");
    let told = load(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
        ("OTEL_SERVICE_NAME", "edge"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,deployment.environment.name=test"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.05"),
    ]);
    assert_eq!(told.endpoint.as_deref(), Some("http://collector:4317"));
    assert_eq!(told.headers["authorization"], "Bearer x");
    assert_eq!((told.sampler, told.ratio), (Sampler::Ratio, 0.05));
    assert_eq!(told.resource["service.name"], "edge");
    assert_eq!(told.resource["deployment.environment.name"], "test");
}
