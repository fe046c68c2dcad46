//! Formats whose calls come on STDIN: many calls, one container, and never a byte of one in another.

use std::time::Duration;

use stoker_core::function::{CloudEvents, Format};
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_proto::v1;
use stoker_sandbox::select::Choice;

use crate::kit::{
    self, AMPLE, Answer, Fleet, LIMIT, ON_STDIN, Session, heard, on_both_drivers, shell, speaker, told,
    warmth,
};

on_both_drivers!(
    a_container_takes_one_call_after_the_other,
    whatever_it_says_the_next_call_sees_nothing_of_it,
    what_is_said_between_calls_ends_the_container,
    a_function_that_is_not_ready_says_why,
    bodies_of_any_size_pass,
    a_function_may_answer_before_it_has_read,
    timeouts_and_cancels_end_the_container,
    a_request_that_the_format_cannot_express_is_the_callers,
);

async fn fleet(choice: Choice) -> Fleet {
    // Late output must find its container running.
    kit::frozen_after(choice, 2048, 8, LIMIT).await
}

/// It answers, and in which container.
async fn answers(session: &mut Session, spec: &stoker_core::FunctionSpec, body: &str) -> String {
    let answer = session.tell(spec, "echo", body).await;
    let format = spec.format;
    assert_eq!((answer.code(), heard(format, &answer.body)), ("OK", body.to_owned()), "{format}: {answer:?}");
    answer.container().to_owned()
}

async fn a_container_takes_one_call_after_the_other(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    for format in ON_STDIN {
        let spec = speaker(format, "");
        let first = session.tell(&spec, "pid", "").await;
        let timings = first.finished.timings.unwrap();
        assert!((first.code(), first.waited, timings.cold) == ("OK", true, true), "{format}: {first:?}");
        for n in 0..1000 {
            let text = format!("{n} grüße \"{}\"", "x".repeat(n * 7 % 3000));
            let answer = session.tell(&spec, "echo", &text).await;
            assert_eq!((answer.code(), answer.frames), ("OK", 1), "{format}: {answer:?}");
            assert_eq!(heard(format, &answer.body), text, "{format}");
            assert_eq!(answer.container(), first.container(), "{format}");
        }
        let answer = session.tell(&spec, "log", "").await;
        let head = answer.finished.head.clone().unwrap();
        let kit = head.headers.iter().any(|h| h.name == "X-Kit" && &h.value[..] == b"py");
        let tells = !matches!(format, Format::CloudEvent | Format::Mless);
        assert_eq!((head.status, kit), (200, tells), "{format}: {answer:?}");
        let lines = logged(&fleet, &spec, 1).await;
        assert_eq!(lines[0].text, b"a line of the log"[..], "{format}");
        assert_eq!(lines[0].source(), v1::LogSource::Stderr);
    }
    fleet.end().await;
}

/// So many lines of a function's log, from the last call that wrote such.
async fn logged(fleet: &Fleet, spec: &stoker_core::FunctionSpec, lines: usize) -> Vec<v1::LogLine> {
    let (app, function) = (spec.name.app().to_owned(), spec.name.function().to_owned());
    let request = wire::StreamLogsRequest { app, function, follow: true, ..Default::default() };
    let mut stream = fleet.client().await.stream_logs(request).await.unwrap().into_inner();
    let mut found: Vec<v1::LogLine> = Vec::new();
    loop {
        let wanted = |line: &&v1::LogLine| line.source() == v1::LogSource::Stderr;
        if found.iter().filter(wanted).count() >= lines {
            return found.into_iter().filter(|l| wanted(&l)).collect();
        }
        let message = tokio::time::timeout(LIMIT, stream.message()).await.expect("lines come").unwrap();
        found.extend(message.unwrap().lines);
    }
}

/// What a function may do wrong, what its caller gets, and whether the container stays.
async fn whatever_it_says_the_next_call_sees_nothing_of_it(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    const INVALID: &str = "ERROR_CODE_FUNCTION_INVALID_RESPONSE";
    const CRASHED: &str = "ERROR_CODE_FUNCTION_CRASHED";
    let table = [
        // Said, code, words of the message, stays.
        ("space", "OK", "", true),
        ("excess", "OK", "", false),
        ("twice", "OK", "", false),
        ("leave", "OK", "", false),
        ("mute", "OK", "", false),
        ("garbage", INVALID, "what?", false),
        ("nothing", INVALID, "", false),
        ("half", CRASHED, "exited with status 0 before it had answered", false),
        ("crash", CRASHED, "exited with status 7", false),
        ("exit", CRASHED, "exited with status 0", false),
        ("kill", CRASHED, "signal 9", false),
    ];
    for format in ON_STDIN {
        let spec = speaker(format, "");
        for (todo, code, words, stays) in table {
            let before = answers(&mut session, &spec, "before").await;
            let answer = session.tell(&spec, todo, "own").await;
            let error = answer.finished.error.clone().unwrap_or_default();
            assert_eq!(answer.code(), code, "{format} {todo}: {answer:?}");
            assert!(error.message.contains(words), "{format} {todo}: {answer:?}");
            assert_eq!(error.may_have_started, code != "OK", "{format} {todo}: {answer:?}");
            assert_eq!(answer.container(), before, "{format} {todo}");
            if code == "OK" {
                assert_eq!(heard(format, &answer.body), "own", "{format} {todo}");
            }
            let after = answers(&mut session, &spec, "after").await;
            assert_eq!(after == before, stays, "{format} {todo}");
        }
        let crash = session.tell(&spec, "crash", "").await;
        assert_eq!(crash.tail().lines().last(), Some("last words"), "{format}: {crash:?}");
    }
    let spec = speaker(Format::Mless, "");
    let answer = session.tell(&spec, "wrong-id", "").await;
    assert_eq!(answer.code(), INVALID, "{answer:?}");
    let text = answer.finished.error.unwrap().message;
    assert!(text.contains("response ID \"another\" does not match request: "), "{text}");
    let before = answers(&mut session, &spec, "after").await;
    let answer = session.tell(&spec, "fail", "").await;
    assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_FAILED", "{answer:?}");
    assert_eq!(answer.finished.error.unwrap().message, "{\"errorMessage\": \"no\"}");
    assert_eq!(answers(&mut session, &spec, "after").await, before);
    let lines: Vec<_> = platform(&fleet, &spec).await;
    assert!(
        lines.iter().any(|l| l.starts_with("REPORT RequestId: ")
            && l.contains(
                " Duration: 1.25 ms Billed Duration: 100 ms Memory Size: 128 MB Max Memory Used: 31 MB"
            )),
        "{lines:?}"
    );
    assert!(lines.iter().any(|l| l == "{\"errorMessage\": \"no\"} (Oops)"), "{lines:?}");
    fleet.end().await;
}

/// What the runner says of a function's calls in its log.
async fn platform(fleet: &Fleet, spec: &stoker_core::FunctionSpec) -> Vec<String> {
    let (app, function) = (spec.name.app().to_owned(), spec.name.function().to_owned());
    let request = wire::StreamLogsRequest { app, function, ..Default::default() };
    let mut stream = fleet.client().await.stream_logs(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(message) = tokio::time::timeout(LIMIT, stream.message()).await.unwrap().unwrap() {
        let ours = message.lines.into_iter().filter(|l| l.source() == v1::LogSource::Platform);
        lines.extend(ours.map(|l| String::from_utf8(l.text.to_vec()).unwrap()));
    }
    lines
}

/// Without a call that asks.
async fn what_is_said_between_calls_ends_the_container(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    for format in ON_STDIN {
        let spec = speaker(format, "");
        for todo in ["late", "later-answer", "leave", "mute"] {
            let answer = session.tell(&spec, todo, "own").await;
            assert_eq!(
                (answer.code(), heard(format, &answer.body)),
                ("OK", "own".to_owned()),
                "{format}: {answer:?}"
            );
            session.learn(fleet.status().await);
            session.until("it is gone", |c| warmth(c, &spec).idle == 0 && c.free == c.total).await;
        }
    }
    fleet.end().await;
}

async fn a_function_that_is_not_ready_says_why(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    const FAILED: &str = "ERROR_CODE_FUNCTION_INIT_FAILED";
    let check = |answer: Answer, code: &str, words: &str, tail: &str| {
        let error = answer.finished.error.clone().unwrap_or_default();
        assert_eq!(answer.code(), code, "{answer:?}");
        assert!(error.message.contains(words) && answer.tail().ends_with(tail), "{answer:?}");
        assert!(!error.may_have_started, "{answer:?}");
    };
    for (mode, words, tail) in [
        ("exit", "exited with status 3", "goodbye\n"),
        ("refuse", "runner initialization failed", "no such handler: speaker.handler\n"),
        ("babble", "hello", ""),
        ("chatty", "more than its startup answer: \"and more", ""),
        ("banner", "Welcome to my function", ""),
    ] {
        let answer = session.tell(&speaker(Format::Mless, mode), "echo", "").await;
        check(answer, FAILED, words, tail);
    }
    let mut hung = speaker(Format::Mless, "hung");
    hung.init_timeout_ms = 1000;
    let answer = session.tell(&hung, "echo", "").await;
    check(answer, "ERROR_CODE_FUNCTION_INIT_TIMEOUT", "did not answer its startup message", "");
    // Those that have no word for ready end, or say what nobody asked, before or after the call has reached them.
    for format in ON_STDIN.into_iter().filter(|f| *f != Format::Mless) {
        let answer = session.tell(&speaker(format, "exit"), "echo", "x").await;
        check(answer, FAILED, "exited with status 3", "goodbye\n");
        let answer = session.tell(&speaker(format, "banner"), "echo", "x").await;
        assert!(
            matches!(answer.code(), FAILED | "ERROR_CODE_FUNCTION_INVALID_RESPONSE"),
            "{format}: {answer:?}"
        );
        let text = answer.finished.error.unwrap().message;
        assert!(text.contains("Welcome to my function"), "{text}");
        // Their first call has the time to come up, which is no call's.
        let mut slow = speaker(format, "slow");
        slow.timeout_ms = 400;
        answers(&mut session, &slow, "x").await;
    }
    fleet.end().await;
}

/// Nobody waits: none comes up again and again.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_by_itself_is_not_started_for_ever() {
    let fleet = fleet(Choice::Auto).await;
    let mut session = fleet.session().await;
    let spec = speaker(Format::Json, "exit");
    session.keep(&[(&spec, 2)]).await;
    let answer = session.tell(&spec, "echo", "x").await;
    assert_ne!(answer.code(), "OK", "{answer:?}");
    session.learn(fleet.status().await);
    session.until("nothing is left of it", |c| c.free == c.total && warmth(c, &spec).idle == 0).await;
    fleet.end().await;
}

/// Sends a body piece by piece as credit comes, and takes the answer; gives its length and its end.
async fn stream(
    session: &mut Session,
    spec: &stoker_core::FunctionSpec,
    todo: &str,
    piece: &[u8],
    total: usize,
) -> (usize, wire::Finished) {
    let call = session.offer(spec, todo, b"", false, AMPLE).await;
    let (mut sent, mut credit, mut got, mut over) = (0, 0, 0, false);
    loop {
        while !over && credit > 0 {
            let n = credit.min(piece.len()).min(total - sent);
            (sent, credit) = (sent + n, credit - n);
            over = sent == total;
            session.body(call, &piece[..n], over).await;
        }
        match session.frame().await {
            res::Frame::Ready(_) => session.start(call).await,
            res::Frame::Credit(more) => credit += more.bytes as usize,
            res::Frame::Body(body) => {
                got += body.data.len();
                session.credit(call, body.data.len()).await;
            }
            res::Frame::Finished(finished) => return (got + finished.body.len(), *finished),
            _ => {}
        }
    }
}

async fn bodies_of_any_size_pass(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    let piece = vec![b'x'; 64 << 10];
    for format in ON_STDIN {
        let mut spec = speaker(format, "");
        spec.memory = 1 << 30;
        let first = answers(&mut session, &spec, "x").await;
        let streams = matches!(format, Format::Http | Format::JsonHttp);
        if streams {
            let size = if choice == Choice::Auto { 64 << 20 } else { 4 << 20 };
            let (got, finished) = stream(&mut session, &spec, "echo", &piece, size).await;
            assert!(finished.error.is_none() && got == size, "{format}: {got} {finished:?}");
            assert_eq!(finished.container, first);
        } else {
            let large = session.tell(&spec, "give", &(5 << 20).to_string()).await;
            assert_eq!((large.code(), heard(format, &large.body).len()), ("OK", 5 << 20), "{format}");
            assert_eq!(large.container(), first);
            let large = session.tell(&spec, "give", &(7 << 20).to_string()).await;
            assert_eq!(large.code(), "ERROR_CODE_RESPONSE_TOO_LARGE", "{format}");
            assert!(
                large.finished.error.as_ref().unwrap().message.contains("6291456 bytes"),
                "{format}: {large:?}"
            );
            assert_ne!(answers(&mut session, &spec, "x").await, first);
        }
    }
    // What is no text passes where bodies are bytes, or the function asked for them.
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut base64 = speaker(Format::Json, "");
    base64.format_options.base64_bodies = true;
    for spec in [speaker(Format::Http, ""), speaker(Format::JsonHttp, ""), base64] {
        let call = session.offer(&spec, "echo", &all[..60_000], false, AMPLE).await;
        session.started(call).await;
        assert!(matches!(session.frame().await, res::Frame::Credit(_)));
        session.body(call, &all[60_000..], true).await;
        assert!(session.outcome(call).await.body == all, "{}", spec.format);
    }
    fleet.end().await;
}

/// The answer is complete, but half a request stands in the container's STDIN.
async fn a_function_may_answer_before_it_has_read(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    for format in [Format::Http, Format::JsonHttp] {
        let spec = speaker(format, "");
        for todo in ["early", "deaf"] {
            let first = answers(&mut session, &spec, "x").await;
            let call = session.offer(&spec, todo, b"x", false, AMPLE).await;
            let answer = session.outcome(call).await;
            assert_eq!(
                (answer.code(), answer.body, answer.finished.container),
                ("OK", todo.into(), first.clone())
            );
            assert_ne!(answers(&mut session, &spec, "x").await, first, "{format}");
        }
        // All of it was written, none of it read: what is left there is the next call's beginning.
        let first = answers(&mut session, &spec, "x").await;
        let call = session.offer(&spec, "deaf", b"x", true, AMPLE).await;
        assert_eq!(session.outcome(call).await.body, b"deaf");
        assert_ne!(answers(&mut session, &spec, "x").await, first, "{format}");
    }
    fleet.end().await;
}

async fn timeouts_and_cancels_end_the_container(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    for format in ON_STDIN {
        let mut spec = speaker(format, "");
        let mut last = answers(&mut session, &spec, "x").await;
        for todo in ["sleep", "stuck"] {
            let body = told(format, todo, "1000");
            let call = session.offer(&spec, todo, &body, true, 1000).await;
            let answer = session.outcome(call).await;
            assert_eq!(
                (answer.code(), answer.container()),
                ("ERROR_CODE_DEADLINE_EXCEEDED", &last[..]),
                "{format}"
            );
            let next = answers(&mut session, &spec, "x").await;
            assert_ne!(std::mem::replace(&mut last, next), last, "{format}");
        }
        // In the middle of its body, and in the middle of its work.
        for complete in [false, true] {
            let body = told(format, "sleep", "1000");
            let cut = if complete { body.len() } else { 1 };
            let call = session.offer(&spec, "sleep", &body[..cut], complete, AMPLE).await;
            if !complete {
                session.started(call).await;
            }
            session.cancel(call, wire::CancelReason::CallerGone).await;
            let answer = session.outcome(call).await;
            assert!(
                answer.code() == "ERROR_CODE_CANCELLED" || answer.refused.is_some(),
                "{format}: {answer:?}"
            );
            let next = answers(&mut session, &spec, "x").await;
            assert_ne!(std::mem::replace(&mut last, next), last, "{format}");
        }
        spec.timeout_ms = 400;
        answers(&mut session, &spec, "x").await;
        let late = session.tell(&spec, "sleep", "1000").await;
        assert_eq!(late.code(), "ERROR_CODE_FUNCTION_TIMEOUT", "{format}: {late:?}");
        let text = late.finished.error.unwrap().message;
        assert!(text.ends_with("timeout of 400ms"), "{text}");
    }
    fleet.end().await;
}

/// Time passes for a function that does not take its input, and not for one whose caller is slow.
#[tokio::test(flavor = "multi_thread")]
async fn a_functions_time_is_its_own() {
    let fleet = fleet(Choice::Auto).await;
    let mut session = fleet.session().await;
    for format in ON_STDIN {
        let mut spec = speaker(format, "stone");
        (spec.timeout_ms, spec.init_timeout_ms) = (200, 200);
        if format == Format::Mless {
            // It is awake, and falls asleep in its first call.
            spec = speaker(format, "");
            spec.timeout_ms = 200;
            answers(&mut session, &spec, "x").await;
            let answer = session.tell(&spec, "sleep", "1000").await;
            assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_TIMEOUT", "{answer:?}");
            continue;
        }
        let call = session.offer(&spec, "echo", b"\"", false, AMPLE).await;
        let (mut credit, piece) = (0, vec![b'x'; 32 << 10]);
        let finished = loop {
            match session.frame().await {
                res::Frame::Ready(_) => session.start(call).await,
                res::Frame::Credit(more) => credit += more.bytes as usize,
                res::Frame::Finished(finished) => break finished,
                _ => {}
            }
            while credit >= piece.len() {
                credit -= piece.len();
                session.body(call, &piece, false).await;
            }
        };
        let error = finished.error.unwrap();
        assert_eq!(error.code(), v1::ErrorCode::FunctionTimeout, "{format}: {error:?}");
        assert!(
            error.message.ends_with("init_timeout of 200ms; it has not taken all of its input"),
            "{error:?}"
        );
    }
    let mut spec = speaker(Format::Http, "");
    spec.timeout_ms = 400;
    answers(&mut session, &spec, "x").await;
    let call = session.offer(&spec, "echo", b"slowly ", false, AMPLE).await;
    session.started(call).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    // As long as another call takes, which is longer than the timeout.
    assert_eq!(session.call(&kit::python(""), "sleep", b"0.8").await.code(), "OK");
    session.body(call, b"said", true).await;
    let answer = session.outcome(call).await;
    assert_eq!((answer.code(), &answer.body[..]), ("OK", &b"slowly said"[..]), "{answer:?}");
    fleet.end().await;
}

/// When all of it is there, the container has seen nothing, and takes the next call. When it streams, half of it was seen.
async fn a_request_that_the_format_cannot_express_is_the_callers(choice: Choice) {
    let fleet = fleet(choice).await;
    let mut session = fleet.session().await;
    for (format, body) in [
        (Format::Json, &b"no text: \xff"[..]),
        (Format::CloudEvent, b"{\"not\": JSON}"),
        (Format::Mless, b"[1, 2"),
    ] {
        let spec = speaker(format, "");
        let first = answers(&mut session, &spec, "x").await;
        for complete in [true, false] {
            let cut = if complete { body.len() } else { 2 };
            let call = session.offer(&spec, "echo", &body[..cut], complete, AMPLE).await;
            if !complete {
                session.started(call).await;
                assert!(matches!(session.frame().await, res::Frame::Credit(_)));
                session.body(call, &body[cut..], true).await;
            }
            let answer = session.outcome(call).await;
            assert_eq!(answer.code(), "ERROR_CODE_INVALID_REQUEST", "{format}: {answer:?}");
            assert_eq!(
                answer.finished.error.as_ref().unwrap().may_have_started,
                !complete,
                "{format}: {answer:?}"
            );
            assert_eq!(answers(&mut session, &spec, "x").await == first, complete, "{format} {complete}");
        }
    }
    fleet.end().await;
}

/// The variables of a process that has one call, and of one that has many.
#[tokio::test(flavor = "multi_thread")]
async fn functions_find_their_environment() {
    let fleet = fleet(Choice::Auto).await;
    let mut session = fleet.session().await;
    let text = |answer: &Answer| String::from_utf8(answer.body.clone()).unwrap();
    let mut open = shell("env");
    open.format_options.open_function_variables = true;
    let answer = session.call(&open, "it", b"").await;
    let found = text(&answer);
    for line in
        ["METHOD=", "ROUTE=", "REQUEST_URL=", "HEADER_X_DO=it", "FN_HEADER_X_DO=it", "FN_FORMAT=default"]
    {
        assert!(found.lines().any(|l| l.starts_with(line)), "{line}: {found}");
    }
    assert!(!text(&session.call(&shell("env"), "it", b"").await).contains("\nHEADER_X_DO="));
    let mut cold = shell("cat; echo; echo $FN_FORMAT $FN_HEADER_X_DO");
    (cold.format, cold.format_options.cold) = (Format::JsonHttp, true);
    let answer = session.call(&cold, "it", b"the body").await;
    let (head, rest) = text(&answer).split_once("\n\n").map(|(h, r)| (h.to_owned(), r.to_owned())).unwrap();
    assert_eq!(rest, "the body\njson-http it\n", "{answer:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&head).unwrap()["body_length"], 8);
    let first = answer.container().to_owned();
    assert_ne!(session.call(&cold, "it", b"the body").await.container(), first);
    for format in ON_STDIN {
        let answer = session.tell(&speaker(format, ""), "env", "").await;
        let env: serde_json::Value = serde_json::from_str(&heard(format, &answer.body)).unwrap();
        assert_eq!(env["FN_FORMAT"], format.as_str(), "{answer:?}");
        assert!(env.get("FN_LISTENER").is_none() && env.get("FN_CALL_ID").is_none(), "{env}");
    }
    fleet.end().await;
}

/// The other version of events, in containers of its own.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_events_reach_a_function_of_another_format() {
    let fleet = fleet(Choice::Auto).await;
    let mut session = fleet.session().await;
    let mut spec = speaker(Format::Json, "");
    spec.format_options.cloudevents_by_content_type = true;
    let forced = spec.in_cloudevents();
    assert_eq!(forced.format_options.cloudevents, CloudEvents::V0_1);
    let own = answers(&mut session, &spec, "x").await;
    let other = answers(&mut session, &forced, "x").await;
    assert_ne!(own, other);
    assert_eq!(answers(&mut session, &spec, "x").await, own);
    assert_eq!(answers(&mut session, &forced, "x").await, other);
    fleet.end().await;
}

/// Frozen between calls, thawed for the next.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_container_freezes_and_answers_again() {
    let fleet = kit::frozen_after(Choice::Auto, 512, 8, Duration::from_millis(1)).await;
    if !fleet.runner.describe().contains("native") {
        println!("left out: {}", fleet.runner.describe());
        return;
    }
    let mut session = fleet.session().await;
    for format in ON_STDIN {
        let spec = speaker(format, "");
        let first = answers(&mut session, &spec, "x").await;
        // Sooner or later a call finds it frozen.
        loop {
            let answer = session.tell(&spec, "echo", "again").await;
            assert_eq!((answer.code(), answer.container()), ("OK", &first[..]), "{answer:?}");
            if answer.finished.timings.unwrap().thaw_us > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    fleet.end().await;
}
