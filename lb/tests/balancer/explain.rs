//! What a balancer tells of a call that it took, and of what its zones should have.

use stoker_runtime::metrics::Metrics;
use v1::{CallChoice, CallStepKind as Kind};

use crate::stage::*;

async fn story(stage: &Stage, call: &str) -> v1::CallStory {
    let ask = v1::ExplainCallRequest { call_id: call.to_owned() };
    stage.fleet().await.explain_call(ask).await.expect("it is known").into_inner().story.expect("a story")
}

fn kinds(story: &v1::CallStory) -> Vec<(Kind, &str)> {
    story.steps.iter().map(|step| (step.kind(), step.runner.as_str())).collect()
}

#[tokio::test]
async fn a_refused_call_tells_who_refused_it() {
    let picky = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let detail = "no slot".to_owned();
            let reason = wire::RefusalReason::Full.into();
            s.send(Out::Refused(Box::new(wire::Refused {
                call: offer.call,
                reason,
                detail,
                ..Default::default()
            })))
            .await;
        }
    });
    let stage = stage(config(), vec![picky.clone(), picky, echo()]).await;
    // One of the two functions has another home than the runner that answers.
    let mut told = Vec::new();
    for function in ["a/f", "a/again"] {
        let answer = stage.invoke(function, "hi").await.expect("an answer");
        told.push(story(&stage, &answer.call_id).await);
    }
    let story = told.into_iter().max_by_key(|story| story.steps.len()).expect("there are two");
    let [.., offered, refused, last] = &kinds(&story)[..] else { panic!("nobody refused it: {story:?}") };
    assert_eq!((offered.0, refused.0, offered.1), (Kind::Offered, Kind::Refused, refused.1));
    assert_eq!((story.steps[1].reason.as_str(), story.steps[1].detail.as_str()), ("full", "no slot"));
    assert!(offered.1 != "r2" && *last == (Kind::Offered, "r2"));
    assert!(story.findings[0].contains("refused it before it was taken"), "{:?}", story.findings);
    assert_eq!((story.door.as_str(), story.error.as_ref()), ("invoke", None));
    assert!(story.began.is_some() && story.took.is_some() && !story.function.is_empty());
}

#[tokio::test]
async fn a_call_in_vain_tells_why() {
    let config = Config { max_wait: Duration::from_millis(50), ..config() };
    let stage = stage(config, vec![refusing(wire::RefusalReason::Full)]).await;
    let status = stage.invoke("a/f", "hi").await.expect_err("nobody has room");
    let details = tonic_types::StatusExt::get_error_details(&status);
    let call = details.error_info().expect("details").metadata["call_id"].clone();
    let story = story(&stage, &call).await;
    assert_eq!(story.error.as_ref().map(v1::CallError::code), Some(v1::ErrorCode::Overloaded));
    let waits = story.steps.iter().find(|step| step.kind() == Kind::Waits).expect("it waited");
    let census = waits.census.expect("it was counted");
    assert_eq!((census.runners, census.open, waits.behind_others), (1, 1, false));
    assert!(
        story.findings[0].contains("1 of 1 runner that could be asked refused it"),
        "{:?}",
        story.findings
    );
}

#[tokio::test]
async fn a_cold_call_and_its_place_in_line() {
    let cold = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let call = offer.call;
            let expected_wait = Some(convert::to_duration(Duration::from_millis(7)));
            s.send(Out::Accepted(wire::Accepted { call, expected_wait })).await;
            s.send(Out::Ready(wire::Ready { call })).await;
            assert!(matches!(s.next().await, Some(In::Start(_))));
            let timings =
                Some(v1::Timings { cold: true, wait_us: 6_000, init_us: 5_000, ..Default::default() });
            s.send(Out::Finished(Box::new(wire::Finished {
                call,
                head: ok(),
                timings,
                ..Default::default()
            })))
            .await;
        }
    });
    let stage = stage(config(), vec![cold]).await;
    let answer = stage.invoke("a/f", "hi").await.expect("an answer");
    let story = story(&stage, &answer.call_id).await;
    assert_eq!(kinds(&story), [(Kind::Offered, "r0"), (Kind::Accepted, "r0"), (Kind::Started, "r0")]);
    assert!(matches!(story.steps[0].choice(), CallChoice::Rank | CallChoice::Young), "nobody was warm");
    assert_eq!(story.steps[1].expected_wait.map(convert::duration), Some(Duration::from_millis(7)));
    assert!(story.findings[0].starts_with("It was cold, 6.0 ms on r0 (init 5.0 ms)"), "{:?}", story.findings);
}

#[tokio::test]
async fn what_nobody_knows_is_not_found() {
    let stage = stage(config(), vec![echo()]).await;
    for (id, code) in [("01977c3e5d8a7b02a9a2c36f1d0e4b57", Code::NotFound), ("x", Code::InvalidArgument)] {
        let ask = v1::ExplainCallRequest { call_id: id.to_owned() };
        let status = stage.fleet().await.explain_call(ask).await.expect_err("nobody knows it");
        assert_eq!(status.code(), code, "{status:?}");
    }
}

#[tokio::test]
async fn a_zone_that_works_wants_runners() {
    let busy = play(|mut s| async move {
        let full = v1::Resources::default();
        let total = Some(v1::Resources { memory: 1024 * MIB, cpu_millis: 4000, slots: 8 });
        let capacity = v1::Capacity {
            runner: "r0".into(),
            zone: "a".into(),
            sequence: 9,
            total,
            free: Some(full),
            reclaimable: Some(full),
            in_flight: 8,
            ..Default::default()
        };
        s.send(Out::Capacity(Box::new(wire::CapacityChanged { capacity: Some(capacity) }))).await;
        while s.next().await.is_some() {}
    });
    let metrics = Metrics::default();
    let stage = stage(Config { metrics: metrics.clone(), ..config() }, vec![busy]).await;
    let mut fleet = stage.fleet().await;
    let mut watch = fleet.watch_fleet(v1::WatchFleetRequest {}).await.expect("a stream").into_inner();
    loop {
        let seen = watch.message().await.expect("no error").expect("more");
        let zone = seen.zones.iter().find(|zone| zone.zone == "a");
        // All of one runner is used, and seven tenths should be.
        if zone.is_some_and(|zone| zone.runners == 1 && zone.desired_runners == 2) {
            break;
        }
    }
    let text = metrics.text();
    for line in ["stoker_lb_zone_runners{zone=\"a\"} 1\n", "stoker_lb_zone_desired_runners{zone=\"a\"} 2\n"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("stoker_lb_zone_unserved_runners{zone=\"a\"}"), "{text}");
    assert!(text.contains("stoker_lb_queue_left_total{why=\"hopeless\"} 0"), "{text}");
}
