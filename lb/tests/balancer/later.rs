//! Calls for later: taken, kept, made, made again, given up, cancelled, and there after a restart.

use std::path::Path;

use stoker_core::later::{Later, Target};
use stoker_lb::CallQueue;
use stoker_proto::v1::CallState;

use crate::stage::*;

fn with_queue(directory: &Path) -> Config {
    let queue = stoker_queue::disk::Config { reserve: 0, ..stoker_queue::disk::Config::new(directory) };
    Config { later: CallQueue::Disk(queue), ..config() }
}

fn submit(function: &str, body: &str) -> v1::SubmitRequest {
    v1::SubmitRequest {
        function: function.into(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        ..Default::default()
    }
}

async fn submitted(stage: &Stage, request: v1::SubmitRequest) -> String {
    stage.client().await.submit(request).await.expect("it is accepted").into_inner().call_id
}

async fn wait(stage: &Stage, id: &str) -> v1::WaitCallResponse {
    let mut request = Request::new(v1::WaitCallRequest { call_id: id.into() });
    request.set_timeout(Duration::from_secs(60));
    stage.client().await.wait_call(request).await.expect("it ends").into_inner()
}

async fn get(stage: &Stage, id: &str) -> v1::CallDescription {
    let request = v1::GetCallRequest { call_id: id.into() };
    let found = stage.client().await.get_call(request).await.expect("it is known").into_inner();
    found.call.expect("a call")
}

async fn list(stage: &Stage, function: &str) -> Vec<v1::CallDescription> {
    let request = v1::ListCallsRequest { function: function.into(), ..Default::default() };
    stage.client().await.list_calls(request).await.expect("a list").into_inner().calls
}

/// Says no to bodies that ask for it, never answers others that do, and echoes the rest; tells of what is cancelled.
fn moody(cancelled: mpsc::Sender<u64>) -> Play {
    play(move |mut s| {
        let cancelled = cancelled.clone();
        async move {
            while let Some(frame) = s.next().await {
                match frame {
                    In::Offer(offer) if offer.body.starts_with(b"hang") => {
                        s.send(Out::Started(wire::Started { call: offer.call, container: "c".into() })).await;
                    }
                    In::Offer(offer) if offer.body.starts_with(b"fail") => {
                        let error = stoker_core::Error::new(stoker_core::Code::FunctionFailed, "it will not")
                            .may_have_started();
                        s.send(Out::Finished(Box::new(wire::Finished {
                            call: offer.call,
                            error: Some(convert::to_call_error(&error)),
                            ..Default::default()
                        })))
                        .await;
                    }
                    In::Offer(offer) => s.finish(offer.call, offer.body).await,
                    In::Cancel(cancel) => _ = cancelled.try_send(cancel.call).ok(),
                    _ => {}
                }
            }
        }
    })
}

fn mood() -> (Play, mpsc::Receiver<u64>) {
    let (tell, told) = mpsc::channel(64);
    (moody(tell), told)
}

async fn apply(stage: &Stage, name: &str, later: Later) {
    let name = FunctionName::new("a", name).expect("a name");
    let spec = FunctionSpec { later, ..FunctionSpec::new(name, vec!["/bin/true".into()], "/".into()) };
    stage.registry.apply_functions(vec![spec]).await.expect("it is valid");
}

#[tokio::test]
async fn a_call_is_kept_made_and_remembered() {
    let directory = tempfile::tempdir().expect("a directory");
    let stage = stage(with_queue(directory.path()), vec![echo()]).await;
    let keyed = v1::SubmitRequest { idempotency_key: "k".into(), ..submit("a/f", "hello") };
    let id = submitted(&stage, keyed.clone()).await;
    let done = wait(&stage, &id).await;
    let call = done.call.expect("a call");
    assert_eq!((call.state(), done.body.as_ref(), call.attempts.len()), (CallState::Done, &b"hello"[..], 1));
    assert_eq!((call.attempts[0].runner.as_str(), call.attempts[0].revision), ("r0", 1));
    let again = stage.client().await.submit(keyed).await.expect("it is known").into_inner();
    assert!(again.repeated && again.call_id == id, "{again:?}");
    let other = v1::SubmitRequest { idempotency_key: "k".into(), ..submit("a/again", "hello") };
    assert_ne!(submitted(&stage, other).await, id, "the same key of another function");

    let when = Some(v1::submit_request::When::Delay(convert::to_duration(Duration::from_secs(3600))));
    let delayed = submitted(&stage, v1::SubmitRequest { when, ..submit("a/f", "later") }).await;
    assert_eq!(get(&stage, &delayed).await.state(), CallState::Queued);
    let request = v1::CancelCallRequest { call_id: delayed.clone() };
    let cancelled = stage.client().await.cancel_call(request).await.expect("it is known").into_inner();
    assert_eq!(cancelled.call.expect("a call").state(), CallState::Cancelled);
    let states: Vec<_> = list(&stage, "a/f").await.iter().map(v1::CallDescription::state).collect();
    assert_eq!(states, [CallState::Cancelled, CallState::Done]);

    for (id, code) in [("0123", Code::InvalidArgument), ("00000000000000000000000000000000", Code::NotFound)]
    {
        let request = v1::GetCallRequest { call_id: id.into() };
        let refused = stage.client().await.get_call(request).await.expect_err("there is none");
        assert_eq!(refused.code(), code, "{refused}");
    }
    let far = convert::to_duration(Duration::from_secs(8 * 24 * 3600));
    let when = Some(v1::submit_request::When::Delay(far));
    let refused = stage.client().await.submit(v1::SubmitRequest { when, ..submit("a/f", "") }).await;
    assert_eq!(refused.expect_err("too far").code(), Code::InvalidArgument);
    let name = FunctionName::new("a", "narrow").expect("a name");
    let narrow = FunctionSpec::new(name, vec!["/bin/true".into()], "/".into());
    let narrow = FunctionSpec { max_request: 4, ..narrow };
    stage.registry.apply_functions(vec![narrow]).await.expect("it is good");
    let refused = stage.client().await.submit(submit("a/narrow", "12345")).await;
    assert!(refused.expect_err("too long").message().contains("more than 4 bytes"));
    let refused = stage.client().await.submit(submit("a/none", "")).await;
    assert_eq!(refused.expect_err("no such function").code(), Code::NotFound);
    stage.balancer.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_detached_call_is_answered_before_it_is_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let stage = stage(with_queue(directory.path()), vec![echo()]).await;
    let request = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\nfn-invoke-type: detached\r\n\
                   idempotency-key: once\r\ncontent-length: 2\r\n\r\nhi";
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let answer = stage.http(request).await;
        assert!(answer.starts_with("HTTP/1.1 202") && answer.ends_with("\r\n\r\n"), "{answer}");
        let id = answer.lines().find_map(|line| line.strip_prefix("fn-call-id: ")).expect("its id");
        ids.insert(id.to_owned());
    }
    assert_eq!(ids.len(), 1, "the key makes them one call");
    for id in ids {
        assert_eq!(wait(&stage, &id).await.body, "hi");
    }
    // What is empty was forgotten by whoever sends it.
    for wrong in ["stoker-delay: soon", "stoker-delay:", "idempotency-key:"] {
        let answer = stage.http(&request.replace("idempotency-key: once", wrong)).await;
        let name = wrong.split(':').next().unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(&format!("\"{name}: ")), "{answer}");
    }
}

/// Whatever the balancer lets others wait for room: behind its age it is not started.
#[tokio::test]
async fn what_waits_for_room_is_given_up_at_the_end_of_its_age() {
    let directory = tempfile::tempdir().expect("a directory");
    let stage = stage(with_queue(directory.path()), vec![refusing(wire::RefusalReason::Full)]).await;
    let name = FunctionName::new("a", "old").expect("a name");
    let mut spec = FunctionSpec::new(name, vec!["/bin/true".into()], "/".into());
    spec.later = Later { max_age_ms: 900, ..Later::default() };
    let name = FunctionName::new("a", "huge").expect("a name");
    let huge = FunctionSpec { name, memory: 1 << 40, ..spec.clone() };
    stage.registry.apply_functions(vec![spec, huge]).await.expect("they are good");
    // Refused at once, it waits for its next turn when its age ends.
    let impossible = submitted(&stage, submit("a/huge", "x")).await;
    let id = submitted(&stage, submit("a/old", "x")).await;
    let dead = wait(&stage, &id).await.call.expect("a call");
    assert_eq!((dead.state(), dead.attempts.len()), (CallState::Dead, 0), "{dead:?}");
    let why = dead.error.expect("a reason").message;
    let waited = why.contains("longer than its max_age, 900ms") && why.contains("no runner had room for 0.");
    assert!(waited, "{why}");
    let why = wait(&stage, &impossible).await.call.expect("a call").error.expect("a reason").message;
    assert!(why.contains("longer than its max_age, 900ms; last of all ") && why.contains("1TiB"), "{why}");
    stage.balancer.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_large_body_and_a_large_answer_are_kept_aside() {
    let directory = tempfile::tempdir().expect("a directory");
    let stage = stage(with_queue(directory.path()), vec![streaming_echo()]).await;
    let body = "0123456789".repeat(100_000);
    let id = submitted(&stage, submit("a/f", &body)).await;
    let done = wait(&stage, &id).await;
    assert!(done.body == body.as_bytes() && !done.body_dropped, "{:?}", done.call);
    let bodies = || std::fs::read_dir(directory.path().join("bodies")).expect("it is there").count();
    assert_eq!(bodies(), 1, "of the two bodies only the answer is still wanted");
}

#[tokio::test]
async fn without_a_queue_it_is_said_what_to_configure() {
    let stage = stage(config(), vec![echo()]).await;
    let (code, error) = reason(&stage.client().await.submit(submit("a/f", "")).await.expect_err("no queue"));
    assert!(code == Code::Unavailable && error.message.contains("--later-queue"), "{error}");
    assert_eq!(error.retry, stoker_core::Retry::Never);
    let request = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\nfn-invoke-type: detached\r\n\
                   content-length: 0\r\n\r\n";
    let answer = stage.http(request).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("--later-queue"), "{answer}");
}

#[tokio::test]
async fn what_fails_is_made_again_and_then_given_up_with_its_reason() {
    let directory = tempfile::tempdir().expect("a directory");
    let (moody, _told) = mood();
    let stage = stage(with_queue(directory.path()), vec![moody]).await;
    let target = |text: &str| Target::parse(text).ok();
    let later = Later {
        max_attempts: 3,
        backoff_ms: 1,
        dead_letter: target("a/again"),
        on_failure: target("a/f"),
        on_success: target("a/f"),
        ..Later::default()
    };
    apply(&stage, "g", later).await;
    let id = submitted(&stage, submit("a/g", "fail")).await;
    let call = wait(&stage, &id).await.call.expect("a call");
    assert_eq!((call.state(), call.attempts.len()), (CallState::Dead, 3), "{call:?}");
    let failed = |attempt: &v1::CallAttempt| attempt.error.is_some() && !attempt.interrupted;
    assert!(call.attempts.iter().all(|attempt| failed(attempt) && attempt.runner == "r0"), "{call:?}");
    assert_eq!(call.error.expect("why").message, "it will not");
    assert_eq!(call.dead_letter, "a/again");
    // The letter is a call of its own, which asks its function to fail in its turn; the report is JSON.
    let letters = list(&stage, "a/again").await;
    assert!(letters.len() == 1 && letters[0].origin == format!("dead letter of {id}"), "{letters:?}");
    let letter = letters[0].call_id.clone();
    let reports = list(&stage, "a/f").await;
    assert!(reports.len() == 1 && reports[0].origin == format!("report on {id}"), "{reports:?}");
    let report = wait(&stage, &reports[0].call_id).await;
    let report: serde_json::Value = serde_json::from_slice(&report.body).expect("JSON");
    assert_eq!((&report["state"], &report["call_id"]), (&"dead".into(), &id.as_str().into()), "{report}");
    assert_eq!(report["attempts"].as_array().map(Vec::len), Some(3));
    let request = v1::CancelCallRequest { call_id: letter.clone() };
    stage.client().await.cancel_call(request).await.expect("it is known");

    let id = submitted(&stage, submit("a/g", "fine")).await;
    assert_eq!(wait(&stage, &id).await.body, "fine");
    let report = list(&stage, "a/f").await.into_iter().find(|call| call.origin == format!("report on {id}"));
    let report = wait(&stage, &report.expect("a report").call_id).await;
    let report: serde_json::Value = serde_json::from_slice(&report.body).expect("JSON");
    assert_eq!((&report["state"], &report["response"]["body"]), (&"done".into(), &"fine".into()));
}

#[tokio::test]
async fn what_was_given_up_is_made_again_when_somebody_asks() {
    let directory = tempfile::tempdir().expect("a directory");
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let moody = fails.clone();
    let moody = play(move |mut s| {
        let fails = moody.clone();
        async move {
            while let Some(offer) = s.offer().await {
                let fails = fails.load(std::sync::atomic::Ordering::Relaxed);
                let error =
                    stoker_core::Error::new(stoker_core::Code::FunctionFailed, "not yet").may_have_started();
                let error = fails.then(|| convert::to_call_error(&error));
                let head = if fails { None } else { ok() };
                let body = if fails { Bytes::new() } else { offer.body };
                s.send(Out::Finished(Box::new(wire::Finished {
                    call: offer.call,
                    head,
                    body,
                    error,
                    ..Default::default()
                })))
                .await;
            }
        }
    });
    let stage = stage(with_queue(directory.path()), vec![moody]).await;
    apply(&stage, "g", Later { max_attempts: 2, backoff_ms: 1, ..Later::default() }).await;
    let redrive = async |id: &str| {
        let request = v1::RedriveCallRequest { call_id: id.into() };
        stage.client().await.redrive_call(request).await.expect("it is known").into_inner()
    };
    // One body with its call, one aside.
    for body in ["small".to_owned(), "large ".repeat(60_000)] {
        fails.store(true, std::sync::atomic::Ordering::Relaxed);
        let id = submitted(&stage, submit("a/g", &body)).await;
        let call = wait(&stage, &id).await.call.expect("a call");
        assert_eq!((call.state(), call.attempts.len(), call.redrives), (CallState::Dead, 2, 0));
        // As often as it may, and then it is given up again.
        assert!(redrive(&id).await.redriven);
        let call = wait(&stage, &id).await.call.expect("a call");
        assert_eq!((call.state(), call.attempts.len(), call.redrives), (CallState::Dead, 4, 1));
        fails.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(redrive(&id).await.redriven);
        let done = wait(&stage, &id).await;
        let call = done.call.expect("a call");
        assert_eq!((call.state(), call.attempts.len(), call.redrives), (CallState::Done, 5, 2));
        // Of a large one the script answers with what came with the offer, which may be nothing; without it there were no offer.
        match body.as_str() {
            "small" => assert_eq!(done.body, "small"),
            large => assert!(large.as_bytes().starts_with(&done.body)),
        }
        assert!(!redrive(&id).await.redriven, "what is done stays done");
    }
}

#[tokio::test]
async fn calls_that_never_end_hold_up_no_other_function_and_can_be_cancelled() {
    let directory = tempfile::tempdir().expect("a directory");
    let (moody, mut told) = mood();
    let stage = stage(with_queue(directory.path()), vec![moody]).await;
    let mut hanging = Vec::new();
    for _ in 0..30 {
        hanging.push(submitted(&stage, submit("a/f", "hang")).await);
    }
    for n in 0..10 {
        let id = submitted(&stage, submit("a/again", "fine")).await;
        assert_eq!(wait(&stage, &id).await.body, "fine", "call {n}");
    }
    let running: Vec<_> =
        list(&stage, "a/f").await.into_iter().filter(|call| call.state() == CallState::Running).collect();
    assert!(!running.is_empty());
    for id in &hanging {
        let request = v1::CancelCallRequest { call_id: id.clone() };
        let call = stage.client().await.cancel_call(request).await.expect("it is known").into_inner();
        assert_eq!(call.call.expect("a call").state(), CallState::Cancelled);
    }
    told.recv().await.expect("who runs one is told");
    assert!(list(&stage, "a/f").await.iter().all(|call| call.state() == CallState::Cancelled));
    stage.balancer.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_was_accepted_is_made_by_the_next_balancer() {
    let directory = tempfile::tempdir().expect("a directory");
    let (moody, _told) = mood();
    let mut stage = stage(with_queue(directory.path()), vec![moody]).await;
    let runs = submitted(&stage, submit("a/f", "hang, or do not")).await;
    while get(&stage, &runs).await.state() != CallState::Running {
        tokio::task::yield_now().await;
    }
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(submitted(&stage, submit("a/again", &format!("fine {n}"))).await);
    }
    let next = Balancer::start(config(), stage.registry.clone()).await.expect("it starts");
    std::mem::replace(&mut stage.balancer, next).stop(Duration::ZERO).await;
    stage.registrations = vec![runner(&stage.registry, 1, 1, echo()).await];
    let next =
        Balancer::start(with_queue(directory.path()), stage.registry.clone()).await.expect("it starts");
    std::mem::replace(&mut stage.balancer, next).stop(Duration::ZERO).await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(wait(&stage, id).await.body, format!("fine {n}"));
    }
    let done = wait(&stage, &runs).await;
    let call = done.call.expect("a call");
    assert_eq!((call.state(), done.body.as_ref()), (CallState::Done, &b"hang, or do not"[..]));
    assert!(call.attempts.len() == 2 && call.attempts[0].interrupted, "{call:?}");
    assert!(list(&stage, "").await.iter().all(|call| call.state() == CallState::Done));
}
