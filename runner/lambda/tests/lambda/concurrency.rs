//! Several invocations at once in one container.

use std::time::Duration;

use stoker_lambda::machine::State;
use stoker_lambda::{About, Invocation, Over, Refused, RuntimeApi, Said};

use crate::{Runtime, about, all, api_of, failed, head, invocation};

fn several() -> (RuntimeApi, std::net::SocketAddr) {
    api_of(About { concurrency: 3, ..about(&[]) })
}

fn named(id: &str) -> Invocation {
    Invocation { payload: format!("\"{id}\"").into(), ..invocation(id) }
}

fn late() -> Over {
    let error = Some(("Sandbox.Timedout".to_owned(), "late".to_owned()));
    Over { error, timeout: true, duration: Duration::from_secs(1), ..Over::default() }
}

#[tokio::test]
async fn invocations_are_handed_over_beside_each_other_and_answered_in_any_order() {
    let (api, address) = several();
    let mut runtimes = Vec::new();
    for _ in 0..3 {
        let mut runtime = Runtime::new(address).await;
        runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
        runtimes.push(runtime);
    }
    api.ready().await.unwrap();
    for round in 0..3 {
        let ids: Vec<_> = (0..3).map(|n| format!("id-{round}-{n}")).collect();
        let answers: Vec<_> = ids.iter().map(|id| api.invoke(named(id)).unwrap()).collect();
        assert_eq!(api.invoke(named("one-more")).unwrap_err(), Refused::Busy);
        let mut got = Vec::new();
        for runtime in &mut runtimes {
            let event = runtime.read().await;
            let id = event.header("lambda-runtime-aws-request-id").unwrap().to_owned();
            assert_eq!(event.text(), format!("\"{id}\""), "each has its own");
            got.push(id);
        }
        let mut sorted = got.clone();
        sorted.sort();
        assert_eq!(sorted, ids);
        // The last one that was given out is answered first.
        for (runtime, id) in runtimes.iter_mut().zip(&got).rev() {
            assert_eq!(runtime.answer(id, id.as_bytes()).await.status, 202);
            runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
        }
        for (id, answer) in ids.iter().zip(answers) {
            let said = all(answer).await;
            assert_eq!(said, [head(None, false), Said::Piece(id.clone().into()), Said::End]);
            assert!(api.over(id, &Over::default()));
        }
        api.idle().await.unwrap();
        assert_eq!(api.state(), State::Ready);
    }
}

#[tokio::test]
async fn answers_that_do_not_belong_are_refused_with_their_reasons() {
    let (api, address) = several();
    let mut runtime = Runtime::new(address).await;
    let first = api.invoke(named("a")).unwrap();
    assert_eq!(api.invoke(named("a")).unwrap_err(), Refused::Twice);
    runtime.next().await;
    runtime.answer("nobody", b"").await.is(400, "InvalidRequestID");
    assert_eq!(runtime.answer("a", b"1").await.status, 202);
    runtime.answer("a", b"2").await.is(400, "Runtime.InvokeResponseWasSent");
    runtime.fail("a", &[], b"{}").await.is(400, "Runtime.InvokeResponseWasSent");
    assert_eq!(all(first).await[1], Said::Piece("1".into()));
    api.over("a", &Over::default());
    runtime.answer("a", b"3").await.is(400, "InvalidRequestID");
    // One that ran out of time is told so, and the rest goes on.
    let slow = api.invoke(named("slow")).unwrap();
    runtime.next().await;
    let other = api.invoke(named("other")).unwrap();
    let mut beside = Runtime::new(address).await;
    beside.next().await;
    assert!(api.over("slow", &late()));
    drop(slow);
    runtime.answer("slow", b"").await.is(410, "InvokeTimeout");
    runtime.fail("slow", &[], b"{}").await.is(410, "InvokeTimeout");
    assert_eq!(beside.fail("other", &[], b"{}").await.status, 202);
    assert_eq!(failed(all(other).await).kind, "Runtime.Unknown");
    // One that nobody was given is no longer given to anybody.
    let waits = api.invoke(named("waits")).unwrap();
    assert!(!api.over("waits", &late()));
    drop(waits);
    let _next = api.invoke(named("next")).unwrap();
    assert_eq!(runtime.next().await.header("lambda-runtime-aws-request-id"), Some("next"));
}

#[tokio::test]
async fn a_thousand_that_came_late_are_remembered() {
    let (api, address) = several();
    let mut runtime = Runtime::new(address).await;
    for n in 0..=1000 {
        let id = format!("id-{n}");
        let _answer = api.invoke(named(&id)).unwrap();
        runtime.next().await;
        api.over(&id, &late());
    }
    runtime.answer("id-0", b"").await.is(400, "InvalidRequestID");
    runtime.answer("id-1", b"").await.is(410, "InvokeTimeout");
    runtime.answer("id-1000", b"").await.is(410, "InvokeTimeout");
}

#[tokio::test]
async fn extensions_are_not_told_of_invocations() {
    let (_api, address) = api_of(About { concurrency: 2, ..about(&["outside"]) });
    let mut extension = Runtime::new(address).await;
    let name = ("lambda-extension-name", "outside");
    let path = "/2020-01-01/extension/register";
    extension
        .call("POST", path, &[name], br#"{"events":["INVOKE"]}"#)
        .await
        .is(403, "Extension.InvalidEventType");
    assert_eq!(extension.call("POST", path, &[name], br#"{"events":["SHUTDOWN"]}"#).await.status, 200);
}
