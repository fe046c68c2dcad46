//! What becomes of a call, row by row of the promises: refused, lost, started, violated, cancelled, late.

use std::sync::atomic::{AtomicBool, Ordering};

use stoker_core::error::{Code as Why, Error, MAX_LOG_TAIL, MAX_REPORT, Report};
use stoker_proto::status::from_status;

use crate::stage::*;

#[tokio::test]
async fn a_small_call_is_one_frame_each_way() {
    let (tell, mut told) = mpsc::channel(8);
    let recording = play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(frame) = s.next().await {
                if let In::Offer(offer) = &frame {
                    s.finish(offer.call, offer.body.clone()).await;
                }
                tell.send(frame).await.expect("the test reads");
            }
        }
    });
    let stage = stage(config(), vec![recording]).await;
    for body in ["one", "two"] {
        let answer = stage.invoke("a/f", body).await.expect("an answer");
        assert_eq!((answer.body.as_ref(), answer.runner.as_str()), (body.as_bytes(), "r0"));
    }
    stage.balancer.stop(Duration::from_secs(5)).await;
    let mut frames = Vec::new();
    while frames.len() < 3 {
        frames.push(told.recv().await.expect("a frame"));
    }
    frames.extend(told.try_recv().ok());
    assert!(
        matches!(&frames[..], [In::Define(_), In::Offer(a), In::Offer(b)] if a.complete && b.complete),
        "{frames:?}"
    );
}

/// Were its frame longer than what is taken on a session, the session would end with every call on it.
#[tokio::test]
async fn a_long_report_of_a_failure_ends_no_other_call() {
    let failing = play(|mut s| async move {
        let mut offers = [s.offer().await.expect("a call"), s.offer().await.expect("another")];
        offers.sort_by_key(|offer| offer.body.clone());
        let [fails, stays] = offers;
        let report = Report {
            kind: "Runtime.Long".into(),
            content_type: "application/json".into(),
            body: vec![b'x'; MAX_REPORT].into(),
        };
        let error = Error::new(Why::FunctionFailed, "m".repeat(4096)).may_have_started();
        let error = error.log_tail("l".repeat(MAX_LOG_TAIL)).report(report);
        let error = Some(convert::to_call_error(&error));
        s.send(Out::Finished(Box::new(wire::Finished { call: fails.call, error, ..Default::default() })))
            .await;
        s.finish(stays.call, "it stayed").await;
        // The stream lasts as long as this.
        s.next().await;
    });
    let stage = stage(config(), vec![failing]).await;
    let (failed, stayed) = tokio::join!(stage.invoke("a/f", "1"), stage.invoke("a/f", "2"));
    assert_eq!(from_status(&failed.expect_err("it failed")).code, Why::FunctionFailed);
    assert_eq!(stayed.expect("an answer").body, "it stayed");
}

#[tokio::test]
async fn a_refused_call_goes_to_another_runner() {
    use wire::RefusalReason as Why;
    for why in [Why::Full, Why::Draining, Why::TooLarge, Why::LaunchFailed] {
        let stage = stage(config(), vec![refusing(why), echo()]).await;
        for _ in 0..4 {
            assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").runner, "r1", "{why:?}");
        }
    }
}

#[tokio::test]
async fn a_call_that_no_runner_can_run_does_not_wait() {
    use wire::RefusalReason as Why;
    for (why, grpc, code) in [
        (Why::TooLarge, Code::FailedPrecondition, stoker_core::Code::ResourcesImpossible),
        (Why::LaunchFailed, Code::Unavailable, stoker_core::Code::Unavailable),
    ] {
        let stage = stage(config(), vec![refusing(why), refusing(why)]).await;
        let (status, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("none can"));
        assert_eq!((status, error.code, error.may_have_started), (grpc, code, false), "{error}");
    }
}

#[tokio::test]
async fn what_a_runner_cannot_run_it_says_why() {
    let unfit = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let detail = "this sandbox has no egress".to_owned();
            let reason = wire::RefusalReason::TooLarge.into();
            s.send(Out::Refused(Box::new(wire::Refused {
                call: offer.call,
                reason,
                detail,
                ..Default::default()
            })))
            .await;
        }
    });
    let stage = stage(config(), vec![unfit]).await;
    let (_, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("it cannot"));
    assert_eq!(error.code, stoker_core::Code::ResourcesImpossible);
    assert_eq!(
        error.message,
        "no runner of this fleet can run a/f; runner r0 says: this sandbox has no egress"
    );
}

#[tokio::test]
async fn a_call_whose_time_is_over_is_offered_to_nobody_else() {
    let (tell, mut told) = mpsc::channel(8);
    let expired = play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(offer) = s.offer().await {
                tell.send(()).await.expect("the test reads");
                s.send(Out::Accepted(wire::Accepted { call: offer.call, expected_wait: None })).await;
                s.refuse(offer.call, wire::RefusalReason::Expired).await;
            }
        }
    });
    let stage = stage(config(), vec![expired.clone(), expired]).await;
    let (code, error) = reason(&stage.invoke("a/again", "hi").await.expect_err("it is too late"));
    assert_eq!((code, error.may_have_started), (Code::DeadlineExceeded, false), "{error:?}");
    told.recv().await.expect("one offer");
    assert!(told.try_recv().is_err(), "and no more");
}

#[tokio::test]
async fn a_fleet_of_nobody_says_so() {
    let stage = stage(config(), vec![]).await;
    let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("nobody is there"));
    assert_eq!(code, Code::Unavailable);
    assert!(matches!(error.retry, stoker_core::Retry::After(_)));
}

/// Accepts a call, and breaks before it was told to start.
fn accepts_and_dies() -> Play {
    play(|mut s| async move {
        if let Some(offer) = s.offer().await {
            s.send(Out::Accepted(wire::Accepted { call: offer.call, expected_wait: None })).await;
            s.out.send(Err(Status::unavailable("gone"))).await.ok();
        }
    })
}

#[tokio::test]
async fn an_accepted_call_survives_its_runner() {
    let stage = stage(config(), vec![accepts_and_dies(), echo()]).await;
    stage.linked(2).await;
    for _ in 0..4 {
        assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").runner, "r1");
    }
}

/// Breaks with an offer that it has not answered.
fn dies() -> Play {
    play(|mut s| async move {
        s.offer().await;
        s.out.send(Err(Status::unavailable("gone"))).await.ok();
    })
}

#[tokio::test]
async fn a_call_that_may_have_started_is_not_run_again() {
    let stage = stage(config(), vec![dies()]).await;
    let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("it is lost"));
    let expected = (Code::Aborted, stoker_core::Code::RunnerLost, true);
    assert_eq!((code, error.code, error.may_have_started), expected);
}

#[tokio::test]
async fn an_idempotent_one_is() {
    let stage = stage(config(), vec![dies(), echo(), dies()]).await;
    stage.linked(3).await;
    assert_eq!(stage.invoke("a/again", "hi").await.expect("an answer").runner, "r1");
}

#[tokio::test]
async fn an_idempotent_one_that_then_finds_no_room_does_not_say_that_nobody_saw_it() {
    let died = Arc::new(AtomicBool::new(false));
    let dies_once = play(move |mut s| {
        let died = died.clone();
        async move {
            while let Some(offer) = s.offer().await {
                if !died.swap(true, Ordering::Relaxed) {
                    s.out.send(Err(Status::unavailable("gone"))).await.ok();
                    return;
                }
                s.refuse(offer.call, wire::RefusalReason::Full).await;
            }
        }
    });
    let config = Config { max_wait: Duration::from_millis(500), ..config() };
    let stage = stage(config, vec![dies_once]).await;
    let (_, error) = reason(&stage.invoke("a/again", "hi").await.expect_err("there is no room"));
    assert_eq!((error.may_have_started, error.retry), (true, stoker_core::Retry::Never), "{error:?}");
}

#[tokio::test]
async fn a_waiting_call_asks_before_it_starts() {
    let cold = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            s.send(Out::Accepted(wire::Accepted { call: offer.call, expected_wait: None })).await;
            s.send(Out::Ready(wire::Ready { call: offer.call })).await;
            assert!(matches!(s.next().await, Some(In::Start(start)) if start.call == offer.call));
            s.send(Out::Started(wire::Started { call: offer.call, container: "c".into() })).await;
            s.finish(offer.call, "done").await;
        }
    });
    let stage = stage(config(), vec![cold]).await;
    assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").body, "done");
}

#[tokio::test]
async fn a_deadline_is_kept_and_cancels() {
    let (tell, mut told) = mpsc::channel(1);
    let silent = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let offer = s.offer().await.expect("an offer");
            assert!(offer.remaining_ms <= 200);
            let Some(In::Cancel(cancel)) = s.next().await else { panic!("no cancel") };
            tell.send(cancel.reason()).await.expect("the test waits");
            s.finish(offer.call, "late").await;
            s.next().await;
        }
    });
    let stage = stage(config(), vec![silent]).await;
    stage.linked(1).await;
    let mut request = Request::new(v1::InvokeRequest { function: "a/f".into(), ..Default::default() });
    request.metadata_mut().insert("grpc-timeout", "200m".parse().expect("a value"));
    let (code, error) = reason(&stage.client().await.invoke(request).await.expect_err("it is late"));
    assert_eq!((code, error.may_have_started), (Code::DeadlineExceeded, true));
    assert_eq!(told.recv().await, Some(wire::CancelReason::Deadline));
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let (tell, mut told) = mpsc::channel(4);
    let silent = play(move |mut s| {
        let tell = tell.clone();
        async move {
            s.offer().await.expect("an offer");
            tell.send(None).await.expect("the test waits");
            let Some(In::Cancel(cancel)) = s.next().await else { panic!("no cancel") };
            tell.send(Some(cancel.reason())).await.expect("the test waits");
        }
    });
    let stage = stage(config(), vec![silent]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let request = b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    socket.write_all(request).await.expect("it reads");
    assert_eq!(told.recv().await, Some(None));
    drop(socket);
    assert_eq!(told.recv().await, Some(Some(wire::CancelReason::CallerGone)));
}

#[tokio::test]
async fn a_violation_ends_the_session_and_each_call_once() {
    let wrong = play(|mut s| async move {
        let offer = s.offer().await.expect("an offer");
        let data = Bytes::from_static(b"x");
        s.send(Out::Body(wire::Body { call: offer.call, data, last: false, ..Default::default() })).await;
        assert!(s.next().await.is_none(), "the session is over");
    });
    let stage = stage(config(), vec![wrong]).await;
    let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("it is lost"));
    assert_eq!(code, Code::Aborted);
    assert!(error.message.contains("broke the session protocol"), "{error}");
}

#[tokio::test]
async fn a_call_that_was_told_to_start_is_not_run_again() {
    let dies_permitted = play(|mut s| async move {
        let offer = s.offer().await.expect("an offer");
        s.send(Out::Accepted(wire::Accepted { call: offer.call, expected_wait: None })).await;
        s.send(Out::Ready(wire::Ready { call: offer.call })).await;
        assert!(matches!(s.next().await, Some(In::Start(_))));
        s.out.send(Err(Status::unavailable("gone"))).await.ok();
    });
    let stage = stage(config(), vec![dies_permitted]).await;
    let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("it is lost"));
    assert_eq!((code, error.may_have_started), (Code::Aborted, true));
}

#[tokio::test]
async fn each_call_of_a_lost_session_gets_its_own_outcome() {
    // The first has begun, the second waits: only the second may go elsewhere.
    let (tell, mut told) = mpsc::channel(4);
    let again = Arc::<AtomicBool>::default();
    let dies_with_two = play(move |mut s| {
        let (tell, again) = (tell.clone(), again.swap(true, Ordering::SeqCst));
        async move {
            if again {
                while let Some(offer) = s.offer().await {
                    s.refuse(offer.call, wire::RefusalReason::Full).await;
                }
                return;
            }
            let first = s.offer().await.expect("an offer");
            s.send(Out::Started(wire::Started { call: first.call, container: "c".into() })).await;
            tell.send(()).await.expect("the test waits");
            let second = s.offer().await.expect("an offer");
            s.send(Out::Accepted(wire::Accepted { call: second.call, expected_wait: None })).await;
            s.out.send(Err(Status::unavailable("gone"))).await.ok();
        }
    });
    let stage = stage(config(), vec![dies_with_two]).await;
    let first = stage.invoke("a/f", "one");
    let second = async {
        told.recv().await.expect("the first began");
        let mut client = stage.client().await;
        let mut request = Request::new(v1::InvokeRequest { function: "a/f".into(), ..Default::default() });
        request.set_timeout(Duration::from_millis(300));
        client.invoke(request).await
    };
    let (first, second) = tokio::join!(first, second);
    let (code, error) = reason(&first.expect_err("it is lost"));
    assert_eq!((code, error.may_have_started), (Code::Aborted, true));
    // Nobody else has room, so that it waits to its deadline; and it says that it never started.
    let (code, error) = reason(&second.expect_err("nobody else is there"));
    assert_eq!((code, error.may_have_started), (Code::DeadlineExceeded, false), "{error}");
}

#[tokio::test]
async fn a_foreign_version_is_refused_with_both_named() {
    let stage = set(config(), vec![(99, echo()), (1, echo())]).await;
    stage.linked(1).await;
    for _ in 0..4 {
        assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").runner, "r1");
    }
    let mut fleet = FleetServiceClient::new(stage.channel().await);
    let mut watch = fleet.watch_fleet(v1::WatchFleetRequest {}).await.expect("a stream").into_inner();
    loop {
        let seen = watch.message().await.expect("no error").expect("more").runners;
        if seen[0].reason.contains("version 99")
            && seen[0].reason.contains(&format!("we speak {SESSION_VERSION}"))
        {
            break;
        }
    }
}

#[tokio::test]
async fn what_a_newer_runner_says_and_what_comes_late_is_passed_over() {
    let talkative = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            s.out.send(Ok(wire::EngageResponse { frame: None })).await.ok();
            s.finish(offer.call, "done").await;
            s.send(Out::Credit(wire::Credit { call: offer.call, bytes: 9 })).await;
            s.send(Out::Started(wire::Started { call: offer.call, container: "c".into() })).await;
        }
    });
    let stage = stage(config(), vec![talkative]).await;
    for _ in 0..3 {
        assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").body, "done");
    }
}

#[tokio::test]
async fn every_violation_is_named_and_ends_the_session() {
    let large = Bytes::from(vec![0; 130_049]);
    let head = Out::Head(wire::Head { call: 1, head: ok(), length: None });
    let body = |data: Bytes| Out::Body(wire::Body { call: 1, data, last: false, ..Default::default() });
    for (frames, text) in [
        (vec![Out::Welcome(Box::default())], "a second Welcome"),
        (vec![Out::Ready(wire::Ready { call: 1 })], "Ready is not allowed in state Offered"),
        (vec![Out::Started(wire::Started { call: 7, container: String::new() })], "never offered"),
        (vec![head.clone(), head.clone()], "Head is not allowed in state Answering"),
        (vec![body(Bytes::from_static(b"x"))], "Body is not allowed"),
        (vec![head.clone(), body(large.clone())], "a piece of 130049 bytes"),
        (
            vec![Out::Finished(Box::new(wire::Finished { call: 1, body: large, ..Default::default() }))],
            "130049",
        ),
    ] {
        let wrong = play(move |mut s| {
            let frames = frames.clone();
            async move {
                let Some(_) = s.offer().await else { return };
                for frame in frames {
                    s.send(frame).await;
                }
                // Nothing more comes but what was under way; then the balancer is gone.
                while s.next().await.is_some() {}
            }
        });
        let stage = stage(config(), vec![wrong]).await;
        let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("it is lost"));
        assert_eq!((code, error.may_have_started), (Code::Aborted, true));
        assert!(error.message.contains(text), "`{text}` in `{error}`");
    }
}

#[tokio::test]
async fn an_error_of_the_function_stays_one() {
    let failing = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let error = Error::new(Why::FunctionCrashed, "exit code 3").log_tail("Traceback".into());
            let error = Some(convert::to_call_error(&error));
            s.send(Out::Finished(Box::new(wire::Finished { call: offer.call, error, ..Default::default() })))
                .await;
        }
    });
    let stage = stage(config(), vec![failing]).await;
    let status = stage.invoke("a/f", "hi").await.expect_err("it crashed");
    let (code, error) = reason(&status);
    assert_eq!((code, error.blame()), (Code::Unknown, stoker_core::Blame::Function));
    assert_eq!(error.log_tail, "Traceback");
    let details = tonic_types::StatusExt::get_error_details(&status);
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("FUNCTION_CRASHED", "stoker"));
    assert!(info.metadata.contains_key("call_id") && info.metadata["blame"] == "function");
}

#[tokio::test]
async fn stopping_lets_calls_finish_and_takes_no_more() {
    let (tell, mut told) = mpsc::channel(1);
    let go = Arc::new(tokio::sync::Notify::new());
    let slow = {
        let go = go.clone();
        play(move |mut s| {
            let (tell, go) = (tell.clone(), go.clone());
            async move {
                let Some(offer) = s.offer().await else { return };
                tell.send(()).await.expect("the test waits");
                go.notified().await;
                s.finish(offer.call, "in time").await;
                s.next().await;
            }
        })
    };
    let stage = stage(config(), vec![slow]).await;
    let mut client = stage.client().await;
    let call = tokio::spawn(async move {
        client.invoke(v1::InvokeRequest { function: "a/f".into(), ..Default::default() }).await
    });
    told.recv().await.expect("it runs");
    let Stage { balancer, registrations, .. } = stage;
    let (http, grpc) = (balancer.http_address(), balancer.grpc_address());
    let stopped = tokio::spawn(balancer.stop(Duration::from_secs(20)));
    go.notify_one();
    assert_eq!(call.await.expect("no panic").expect("an answer").into_inner().body, "in time");
    stopped.await.expect("no panic");
    for address in [http, grpc] {
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
    drop(registrations);
}
