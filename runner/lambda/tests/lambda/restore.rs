//! Starts as from a snapshot.

use std::time::Duration;

use serde_json::Value;
use stoker_lambda::machine::State;
use stoker_lambda::{About, Credentials, Kind};

use crate::{Runtime, about, api, api_of, invocation};

const NEXT: &str = "/2018-06-01/runtime/restore/next";
const ERROR: &str = "/2018-06-01/runtime/restore/error";
const KEYS: &str = "/2021-04-23/credentials";

fn snapshot() -> About {
    let credentials =
        Credentials::new("key".into(), "secret".into(), "session".into(), "2030-01-01T00:00:00.000Z".into());
    About { kind: Kind::SnapStart, credentials: Some(credentials), ..about(&[]) }
}

#[tokio::test]
async fn a_runtime_waits_for_its_restore_and_then_for_work() {
    let (api, address) = api_of(snapshot());
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", NEXT, &[], b"").await;
    api.ready().await.unwrap();
    assert_eq!(api.state(), State::RestoreReady);
    // Nothing else is allowed meanwhile.
    let mut other = Runtime::new(address).await;
    other.next().await.is(403, "InvalidStateTransition");
    other.call("GET", NEXT, &[], b"").await.is(403, "InvalidStateTransition");
    other.call("POST", ERROR, &[], b"{}").await.is(403, "InvalidStateTransition");
    let restored = api.restore(Duration::from_secs(60));
    let hooks = async {
        let reply = runtime.read().await;
        assert_eq!((reply.status, reply.text()), (200, ""));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    };
    let (restored, ()) = tokio::join!(restored, hooks);
    restored.unwrap();
    let _answer = api.invoke(invocation("id-1")).unwrap();
    assert_eq!(runtime.read().await.header("lambda-runtime-aws-request-id"), Some("id-1"));
    runtime.call("GET", NEXT, &[], b"").await.is(403, "InvalidStateTransition");
}

#[tokio::test]
async fn a_runtime_without_hooks_needs_no_restore() {
    let (api, address) = api_of(snapshot());
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    api.ready().await.unwrap();
    api.restore(Duration::ZERO).await.unwrap();
    assert_eq!(api.state(), State::Ready);
}

#[tokio::test]
async fn a_hook_that_fails_says_why() {
    for path in [ERROR, "/2018-06-01/runtime/init/error"] {
        let (api, address) = api_of(snapshot());
        let mut runtime = Runtime::new(address).await;
        runtime.send("GET", NEXT, &[], b"").await;
        api.ready().await.unwrap();
        let hooks = async {
            assert_eq!(runtime.read().await.status, 200);
            let kind = [("lambda-runtime-function-error-type", "Runtime.HookFailed")];
            assert_eq!(runtime.call("POST", path, &kind, b"{\"errorMessage\":\"m\"}").await.status, 202);
        };
        let (restored, ()) = tokio::join!(api.restore(Duration::from_secs(60)), hooks);
        let failure = restored.unwrap_err();
        assert_eq!(
            (&*failure.kind, &failure.payload[..]),
            ("Runtime.HookFailed", &b"{\"errorMessage\":\"m\"}"[..])
        );
        assert_eq!(api.state(), State::RestoreError);
        runtime.next().await.is(403, "InvalidStateTransition");
        assert_eq!(api.invoke(invocation("x")).unwrap_err(), stoker_lambda::Refused::NotReady);
    }
}

#[tokio::test]
async fn hooks_have_a_time() {
    let (api, address) = api_of(snapshot());
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", NEXT, &[], b"").await;
    api.ready().await.unwrap();
    let failure = api.restore(Duration::from_millis(1)).await.unwrap_err();
    assert_eq!((&*failure.kind, failure.broken), ("Runtime.RestoreHookUserTimeout", true));
}

#[tokio::test]
async fn keys_are_given_to_who_knows_the_word() {
    let about = snapshot();
    let word = about.credentials.as_ref().unwrap().token().to_owned();
    assert!(!format!("{:?}", about.credentials).contains(&word), "it is in no log");
    let (_api, address) = api_of(about);
    let mut runtime = Runtime::new(address).await;
    for headers in [&[][..], &[("authorization", "no")][..]] {
        let reply = runtime.call("GET", KEYS, headers, b"").await;
        assert_eq!((reply.status, reply.text()), (404, "cannot get credentials for the provided token\n"));
    }
    let reply = runtime.call("GET", KEYS, &[("authorization", &word)], b"").await;
    let keys: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        (reply.status, &keys["AccessKeyId"], &keys["SecretAccessKey"]),
        (200, &"key".into(), &"secret".into())
    );
    assert_eq!(
        (&keys["Token"], &keys["Expiration"]),
        (&"session".into(), &"2030-01-01T00:00:00.000Z".into())
    );
}

#[tokio::test]
async fn without_snapshots_there_is_nothing_of_it() {
    let (_api, address) = api();
    let mut runtime = Runtime::new(address).await;
    for (method, path) in [("GET", NEXT), ("POST", ERROR), ("GET", KEYS)] {
        assert_eq!(runtime.call(method, path, &[], b"").await.status, 404, "{path}");
    }
}
