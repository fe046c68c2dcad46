//! Calls that are sent though nobody samples them.

use super::*;

const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// What became of a call that took so long, at a door that keeps what failed or took longer than a second.
fn kept(failed: bool, took: Duration) -> (Vec<Sent>, Option<String>) {
    let keep = Keep { failed: true, slow: Some(Duration::from_secs(1)) };
    let shared = keeping(keep, Sampler::ParentOrRatio, 1.0, 100);
    let tracer = Tracer::new(shared.clone());
    let began = Instant::now();
    let mut call = tracer.start(Name::of("call"), SpanKind::Server, &given(UNSAMPLED, "a=b"), began);
    let mut early = call.child(Name::of("early"), SpanKind::Client, began);
    let mut late = call.child(Name::of("late"), SpanKind::Internal, began);
    let told = early.context();
    let told = context::read(&told).unwrap();
    assert!(!told.sampled && told.trace.to_string() == TRACE, "those behind us are told what was decided");
    assert_eq!(told.state.as_deref(), Some("a=b"));
    early.fail("refused there, and taken elsewhere: the call has not failed");
    early.end_at(began);
    assert_eq!(call.exemplar(), None, "nobody knows yet");
    assert!(shared.queue.take().items == 0, "nothing goes before the call is over");
    if failed {
        call.fail("no");
    }
    call.end_at(began + took);
    late.end_at(began + took);
    let exemplar = call.exemplar().map(|trace| trace.to_string());
    (ended(&shared), exemplar)
}

#[test]
fn a_call_that_failed_or_was_slow_is_sent_though_nobody_sampled_it() {
    assert_eq!(kept(false, Duration::from_millis(1000)), (vec![], None));
    for (failed, took, why) in
        [(true, Duration::ZERO, "failed"), (false, Duration::from_millis(1001), "slow")]
    {
        let (spans, exemplar) = kept(failed, took);
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["early", "call", "late"]);
        assert!(spans.iter().all(|span| span.flags & 1 == 0), "they are not sampled");
        assert!(spans.iter().all(|span| span.trace_state == "a=b"));
        assert_eq!(spans[0].parent_span_id, spans[1].span_id);
        assert_eq!(attributes(&spans[1])["stoker.kept"], any_value::Value::StringValue(why.to_owned()));
        assert!(attributes(&spans[0]).is_empty());
        assert_eq!(exemplar.as_deref(), Some(TRACE));
    }
}

#[test]
fn what_waits_for_the_end_of_a_call_is_bounded_and_counted() {
    let keep = Keep { failed: true, slow: None };
    let shared = keeping(keep, Sampler::Ratio, 0.0, 1000);
    let tracer = Tracer::new(shared.clone());
    for failed in [false, true] {
        let mut call = start(&tracer, "call", &given("", ""));
        (0..100).for_each(|_| drop(call.child(Name::of("offer"), SpanKind::Client, Instant::now())));
        if failed {
            call.fail("no");
        }
    }
    assert_eq!(ended(&shared).len(), 65);
    assert_eq!(shared.queue.count("dropped"), 36);
}

#[test]
fn who_wants_no_traces_gets_none() {
    let (_listener, mut config) = silent_collector();
    config.keep = Keep { failed: true, slow: Some(Duration::ZERO) };
    config.sampler = Sampler::AlwaysOff;
    let telemetry = Telemetry::start(&config).unwrap();
    assert!(!start(&telemetry.tracer(), "x", &given("", "")).is_recorded());
    config.sampler = Sampler::ParentOrOff;
    let telemetry = Telemetry::start(&config).unwrap();
    assert!(start(&telemetry.tracer(), "x", &given("", "")).is_recorded(), "it may still fail");
}
