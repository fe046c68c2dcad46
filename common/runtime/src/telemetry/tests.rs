//! What needs no collector: contexts, decisions, bounds. `tests/telemetry.rs` has one.

mod collectors;
mod kept;
mod listed;
mod xray;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Instant;

use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span as Sent, status::StatusCode};
use prost::Message as _;
use stoker_core::{CallId, TraceContext};

use super::names::{Attribute, Event, Name};
use super::settings::Signal;
use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn given(parent: &str, state: &str) -> TraceContext {
    TraceContext { parent: parent.to_owned(), state: state.to_owned() }
}

fn shared(sampler: Sampler, ratio: f64, limit: usize) -> Arc<Shared> {
    keeping(Keep::default(), sampler, ratio, limit)
}

fn keeping(keep: Keep, sampler: Sampler, ratio: f64, limit: usize) -> Arc<Shared> {
    Arc::new(Shared {
        sampling: Sampling::new(sampler, ratio),
        keep,
        queue: Arc::new(Queue::new(Bounds { queue: limit, ..Bounds::default() })),
        clock: Clock::new(),
    })
}

/// A span that starts now.
fn start(tracer: &Tracer, name: &'static str, parent: &TraceContext) -> Span {
    tracer.start(Name::of(name), SpanKind::Server, parent, Instant::now())
}

const fn a(name: &'static str) -> Attribute {
    Attribute::of(name)
}

/// What waits, as OpenTelemetry's own messages read it.
fn ended(shared: &Shared) -> Vec<Sent> {
    let batch = shared.queue.take();
    let spans = ScopeSpans::decode(&*batch.bytes).unwrap().spans;
    assert_eq!(spans.len(), batch.items);
    spans
}

fn attributes(span: &Sent) -> BTreeMap<&str, any_value::Value> {
    let value = |value: &opentelemetry_proto::tonic::common::v1::AnyValue| value.value.clone().unwrap();
    span.attributes.iter().map(|fact| (fact.key.as_str(), value(fact.value.as_ref().unwrap()))).collect()
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
        assert_eq!((read.trace.to_string(), read.span.to_string()), (TRACE.to_owned(), span.to_owned()));
        assert_eq!(read.sampled, !good.contains("-00"), "{good}");
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
    let state = |state| context::read(&given(&format!("00-{TRACE}-{span}-01"), state)).unwrap().state;
    assert_eq!(state("no state"), None);
    assert_eq!(state("a=b,c=d").as_deref(), Some("a=b,c=d"));
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
        let recorded =
            [&sampled, &unsampled, &nobody, &garbage].map(|parent| start(&tracer, "x", parent).is_recorded());
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
    let mut off = start(&Tracer::off(), "x", &passed);
    off.set(a("name"), "value");
    assert_eq!(off.child(Name::of("y"), SpanKind::Client, Instant::now()).context(), passed, "untouched");
    assert_eq!((off.trace().map(|t| t.to_string()), off.exemplar()), (Some(TRACE.to_owned()), None));
    assert_eq!(start(&Tracer::off(), "x", &given("", "")).context(), given("", ""));

    let shared = shared(Sampler::AlwaysOff, 0.0, 10);
    let tracer = Tracer::new(shared.clone());
    let decided = start(&tracer, "x", &passed).context();
    assert!(
        decided.parent.starts_with(&format!("00-{TRACE}-")) && decided.parent.ends_with("-00"),
        "{decided:?}"
    );
    assert_eq!(decided.state, "a=b");
    let root = start(&tracer, "x", &given("", ""));
    let told = root.child(Name::of("y"), SpanKind::Client, Instant::now()).context();
    assert!(context::read(&told).is_some_and(|told| !told.sampled), "those behind us do not decide anew");
    drop(root);
    assert!(ended(&shared).is_empty());
}

#[test]
fn a_span_says_what_it_was_told() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 10);
    let tracer = Tracer::new(shared.clone());
    let parent = given(&format!("00-{TRACE}-b7ad6b7169203331-01"), "a=b");
    let began = Instant::now();
    let call = CallId::new();
    let mut span = tracer.start(Name::of("one"), SpanKind::Server, &parent, began);
    span.add(&Facts::default().with(a("first"), "shared").with(a("second"), 2_i64));
    span.set(a("text"), "é");
    span.set(a("empty"), "");
    for (name, number) in [
        ("least", i64::MIN),
        ("minus", -1),
        ("none", 0),
        ("seven bits", 127),
        ("more", 128),
        ("most", i64::MAX),
    ] {
        span.set(a(name), number);
    }
    span.set(a("yes"), true);
    span.set(a("no"), false);
    span.set(a("call"), call);
    span.event(
        began + Duration::from_secs(1),
        Event::of("it happened"),
        &[(a("how"), Value::Text("so")), (a("often"), Value::Number(300))],
    );
    span.link(&given("00-00000000000000000000000000000001-0000000000000002-00", "c=d"));
    let mut child = span.child(Name::of("two"), SpanKind::Client, began + Duration::from_millis(1));
    child.fail("no");
    child.end_at(began + Duration::from_millis(2));
    span.end_at(began + Duration::from_millis(3));
    span.set(a("late"), "lost");
    drop((child, span));
    let spans = ended(&shared);
    assert_eq!(spans.len(), 2);
    let (child, span) = (&spans[0], &spans[1]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (span, name, kind) in [(child, "two", 3), (span, "one", 2)] {
        assert_eq!((span.name.as_str(), span.kind, hex(&span.trace_id)), (name, kind, TRACE.to_owned()));
        assert_eq!((span.trace_state.as_str(), span.span_id.len()), ("a=b", 8));
        assert_eq!(
            (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
            (0, 0, 0)
        );
    }
    assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
    assert_eq!(child.parent_span_id, span.span_id);
    // Sampled; whether the parent is in another process is known, and so it is for one of them.
    assert_eq!((span.flags, child.flags), (0x301, 0x101));
    let millis = |nanos: u64| nanos / 1_000_000;
    assert_eq!(millis(span.end_time_unix_nano - span.start_time_unix_nano), 3);
    assert_eq!(millis(child.start_time_unix_nano - span.start_time_unix_nano), 1);
    assert_eq!(millis(child.end_time_unix_nano - span.start_time_unix_nano), 2);
    use any_value::Value::{BoolValue, IntValue, StringValue};
    let text = |text: &str| StringValue(text.to_owned());
    let expected = BTreeMap::from([
        ("first", text("shared")),
        ("second", IntValue(2)),
        ("text", text("é")),
        ("empty", text("")),
        ("least", IntValue(i64::MIN)),
        ("minus", IntValue(-1)),
        ("none", IntValue(0)),
        ("seven bits", IntValue(127)),
        ("more", IntValue(128)),
        ("most", IntValue(i64::MAX)),
        ("yes", BoolValue(true)),
        ("no", BoolValue(false)),
        ("call", text(&call.to_string())),
    ]);
    assert_eq!(attributes(span), expected);
    assert_eq!(span.status.as_ref().map(|status| status.code()), Some(StatusCode::Unset));
    let [event] = &span.events[..] else { panic!("{:?}", span.events) };
    assert_eq!(
        (event.name.as_str(), event.time_unix_nano),
        ("it happened", span.start_time_unix_nano + 1_000_000_000)
    );
    let facts: Vec<_> = event
        .attributes
        .iter()
        .map(|fact| (fact.key.as_str(), fact.value.clone().unwrap().value.unwrap()))
        .collect();
    assert_eq!(facts, [("how", text("so")), ("often", IntValue(300))]);
    let [link] = &span.links[..] else { panic!("{:?}", span.links) };
    assert_eq!((hex(&link.trace_id), hex(&link.span_id)), (format!("{:032x}", 1), format!("{:016x}", 2)));
    assert_eq!((link.trace_state.as_str(), link.flags), ("c=d", 0x300));
    let status = child.status.as_ref().unwrap();
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "no"));
}

#[test]
fn a_span_is_bounded_and_ends_once() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 10);
    let mut span = start(&Tracer::new(shared.clone()), "x", &given("", ""));
    for _ in 0..100 {
        span.set(a("a"), 1_i64);
        span.event(Instant::now(), Event::of("e"), &[]);
        span.link(&given(&format!("00-{TRACE}-b7ad6b7169203331-01"), ""));
    }
    span.set(a("text"), "é".repeat(1000));
    span.fail("é".repeat(1000));
    // Before it began: it ends where it began.
    span.end_at(Instant::now() - Duration::from_secs(5));
    drop(span);
    let spans = ended(&shared);
    assert_eq!(spans.len(), 1);
    let span = &spans[0];
    assert_eq!((span.attributes.len(), span.dropped_attributes_count), (64, 37));
    assert_eq!((span.events.len(), span.dropped_events_count), (64, 36));
    assert_eq!((span.links.len(), span.dropped_links_count), (64, 36));
    assert_eq!(span.start_time_unix_nano, span.end_time_unix_nano);
    assert_eq!(span.status.as_ref().unwrap().message, "é".repeat(512));
}

#[test]
fn long_texts_are_cut_and_a_long_span_takes_no_more() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 10);
    let mut span = start(&Tracer::new(shared.clone()), "x", &given("", ""));
    span.set(a("text"), "é".repeat(1000));
    let text = "x".repeat(1024);
    let facts = [(a("fact"), Value::Text(&text)); 64];
    span.event(Instant::now(), Event::of("long"), &facts);
    span.set(a("dropped"), "it is full");
    span.event(Instant::now(), Event::of("dropped"), &[]);
    drop(span);
    let spans = ended(&shared);
    assert_eq!(attributes(&spans[0])["text"], any_value::Value::StringValue("é".repeat(512)));
    assert_eq!((spans[0].dropped_attributes_count, spans[0].dropped_events_count), (1, 1));
}

#[test]
fn a_batch_is_bounded_in_bytes() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 1000);
    let tracer = Tracer::new(shared.clone());
    let text = "x".repeat(1024);
    for _ in 0..100 {
        let mut span = start(&tracer, "x", &given("", ""));
        for _ in 0..60 {
            span.set(a("long"), text.as_str());
        }
    }
    let mut batches = Vec::new();
    while batches.iter().map(|(spans, _)| spans).sum::<usize>() < 100 {
        let batch = shared.queue.take();
        batches.push((batch.items, batch.bytes.len()));
    }
    // Some 62 KB each, and far less than 4 MiB in what a collector gets at once.
    assert!(batches.len() == 4 && batches.iter().all(|(_, bytes)| *bytes < 3 << 20), "{batches:?}");
}

#[test]
fn names_are_used_once() {
    let some = || (0..10_000).map(|_| (clock::trace(), clock::span())).collect::<Vec<_>>();
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(some)).collect();
    let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let traces: std::collections::HashSet<_> = all.iter().map(|(trace, _)| trace).collect();
    let spans: std::collections::HashSet<_> = all.iter().map(|(_, span)| span).collect();
    assert_eq!((traces.len(), spans.len()), (40_000, 40_000));
    // A share of traces is a share of the calls.
    let sampling = Sampling::new(Sampler::Ratio, 0.25);
    let taken = all.iter().filter(|(trace, _)| sampling.takes(None, *trace)).count();
    assert!((9_000..11_000).contains(&taken), "{taken} of 40,000");
}

#[test]
fn times_are_those_of_the_wall() {
    let clock = Clock::new();
    let (before, now) = (std::time::SystemTime::now(), Instant::now());
    let wall = clock.wall(clock.anchor(now), now);
    let after = std::time::SystemTime::now();
    let [before, after] =
        [before, after].map(|time| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos());
    // Two clocks are read one after the other, which may take a moment.
    let slack = after - before;
    assert!((before - slack..=after + slack).contains(&u128::from(wall)), "{before} {wall} {after}");
    // Before the clock was made.
    let earlier = clock.wall(clock.anchor(now), now - Duration::from_secs(3));
    assert_eq!(wall - earlier, 3_000_000_000);
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_them() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 3);
    let tracer = Tracer::new(shared.clone());
    for name in ["a", "b", "c", "d", "e"] {
        drop(start(&tracer, name, &given("", "")));
    }
    let names: Vec<_> = ended(&shared).into_iter().map(|span| span.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(shared.queue.count("dropped"), 2);
    drop(start(&tracer, "f", &given("", "")));
    assert_eq!(ended(&shared).len(), 1, "there is room again");
}

fn silent_collector() -> (TcpListener, Config) {
    // Accepts by way of the kernel's backlog, and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer x".to_owned())]),
        timeout: Duration::from_secs(3600),
        bounds: Bounds { queue: 3000, ..Bounds::default() },
        sampler: Sampler::AlwaysOn,
        ..Config::default()
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
        drop(start(&tracer, "call", &given("", "")));
    }
    assert!(!telemetry.stop(Duration::from_millis(10)).await, "it cannot have been sent");
    drop(start(&tracer, "late", &given("", "")));
    let shared = tracer.shared().unwrap().clone();
    let count = |outcome| shared.queue.count(outcome);
    assert_eq!(count("sent") + count("dropped") + count("failed"), MANY + 1);
    assert_eq!(count("sent"), 0);
    assert!(count("failed") <= Bounds::default().batch as u64, "one batch was under way");
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
    config.headers.clear();
    config.endpoint = Some("https://collector:4317".to_owned());
    config.trust.ca = Some("/nowhere/ca.pem".into());
    let error = Telemetry::start(&config).unwrap_err().to_string();
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
    config.trust = Trust { certificate: Some("/nowhere/own.pem".into()), ..Trust::default() };
    let error = Telemetry::start(&config).unwrap_err().to_string();
    assert!(error.contains("`telemetry.key`"), "{error}");
    assert!(Telemetry::off().stop(Duration::ZERO).await);
}

#[test]
fn standard_variables_are_known() {
    use crate::config::{Outcome, Program};
    use std::path::Path;
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
    // One endpoint for all, by HTTP with a path for each.
    let told = load(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318/otlp/"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4318/here"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/own.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/own.key"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]);
    assert_eq!(told.protocol, Protocol::HttpProtobuf);
    assert_eq!(told.to(Signal::Traces).as_deref(), Some("https://collector:4318/otlp/v1/traces"));
    assert_eq!(told.to(Signal::Logs).as_deref(), Some("http://logs:4318/here"));
    assert_eq!(told.timeout, Duration::from_millis(2500));
    assert_eq!(told.bounds, Bounds { queue: 100, batch: 10, delay: Duration::from_millis(50) });
    let Trust { ca, certificate, key } = &told.trust;
    let paths = [ca, certificate, key].map(|path| path.as_deref().and_then(Path::to_str));
    assert_eq!(paths, [Some("/ca.pem"), Some("/own.pem"), Some("/own.key")]);
    assert_eq!(told.keep, Keep { failed: true, slow: None });
    // Ours stand above, and a signal can be left out.
    let told = load(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://theirs:4317"),
        ("STOKER_TELEMETRY_ENDPOINT", "http://ours:4317"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("STOKER_TELEMETRY_KEEP_FAILED", "false"),
        ("STOKER_TELEMETRY_KEEP_SLOW", "200ms"),
        ("STOKER_TELEMETRY_TIMEOUT", "3s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
    ]);
    assert_eq!((told.to(Signal::Traces), told.sends_traces()), (None, false));
    assert_eq!(told.to(Signal::Logs).as_deref(), Some("http://ours:4317"));
    assert_eq!(told.keep, Keep { failed: false, slow: Some(Duration::from_millis(200)) });
    assert_eq!(told.timeout, Duration::from_secs(3));
}

#[test]
fn facts_may_point_to_a_span() {
    let shared = shared(Sampler::AlwaysOn, 1.0, 10);
    let launch = given("00-00000000000000000000000000000001-0000000000000002-01", "");
    let facts = Facts::default().with(a("x"), true).linked(&launch).linked(&given("", ""));
    let mut span = start(&Tracer::new(shared.clone()), "x", &given("", ""));
    span.add(&facts);
    drop(span);
    let spans = ended(&shared);
    assert_eq!((spans[0].attributes.len(), spans[0].links.len()), (1, 1));
    assert_eq!(spans[0].links[0].span_id, 2_u64.to_be_bytes());
}

#[test]
fn lines_of_logs_are_what_they_were_told() {
    use opentelemetry_proto::tonic::logs::v1::ScopeLogs;
    let queue = Arc::new(Queue::new(Bounds::default()));
    let recorder = Recorder::new(queue.clone());
    let at = std::time::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    let spot = Spot::of(&given(&format!("00-{TRACE}-b7ad6b7169203331-01"), ""));
    let labels = Labels::default().with(a("faas.name"), "a/f");
    let own = Labels::default().with(a("faas.invocation_id"), CallId::new()).field("odd name", 7_i64);
    recorder.put(&Record { at, severity: Severity::Warn, text: "é", spot }, &[&labels, &own]);
    let long = "é".repeat(10_000);
    recorder.put(&Record { at, severity: Severity::Unknown, text: &long, spot: Spot::in_trace(TRACE) }, &[]);
    recorder.put(&Record { at, severity: Severity::Info, text: "", spot: Spot::in_trace("no") }, &[]);
    Recorder::off().put(&Record { at, severity: Severity::Info, text: "", spot }, &[]);
    let records = ScopeLogs::decode(&*queue.take().bytes).unwrap().log_records;
    let [first, second, third] = &records[..] else { panic!("{records:?}") };
    let text = |record: &opentelemetry_proto::tonic::logs::v1::LogRecord| match &record.body {
        Some(body) => body.value.clone(),
        None => None,
    };
    assert_eq!(first.time_unix_nano, 1_700_000_000_123_456_789);
    assert!(first.observed_time_unix_nano > first.time_unix_nano);
    assert_eq!((first.severity_number, first.severity_text.as_str()), (13, "WARN"));
    assert_eq!(text(first), Some(any_value::Value::StringValue("é".to_owned())));
    let names: Vec<_> = first.attributes.iter().map(|fact| fact.key.as_str()).collect();
    assert_eq!(names, ["faas.name", "faas.invocation_id", "stoker.log.odd name"]);
    assert_eq!((first.trace_id.len(), first.span_id.len(), first.flags), (16, 8, 1));
    assert_eq!(text(second), Some(any_value::Value::StringValue("é".repeat(8192))));
    assert_eq!((second.severity_number, second.trace_id.len(), second.span_id.len()), (0, 16, 0));
    assert!(third.trace_id.is_empty());
}

#[test]
fn a_full_queue_of_bytes_takes_no_more() {
    let queue = Queue::new(Bounds { queue: usize::MAX, ..Bounds::default() });
    let large = vec![0_u8; 1 << 20];
    (0..40).for_each(|_| queue.push(&large));
    assert!((30..33).contains(&(40 - queue.count("dropped"))), "{}", queue.count("dropped"));
    let mut taken = 0;
    while queue.take().items > 0 {
        taken += 1;
    }
    assert!(taken > 10);
    queue.push(&large);
    assert_eq!(queue.take().items, 1, "there is room again");
}
