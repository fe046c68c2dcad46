//! An API that goes over to another program, here to another API: on connections that never learn of it.

use serde_json::json;
use stoker_lambda::{About, Handed, RuntimeApi, Said};

use crate::{Runtime, about, all, api_of, head, invocation};

const NEXT: &str = "/2018-06-01/runtime/invocation/next";
const EVENT: &str = "/2020-01-01/extension/event/next";
const ID: &str = "lambda-extension-identifier";

/// What is known goes as text, as between programs.
fn over(api: &RuntimeApi, about: About) -> RuntimeApi {
    let Handed { listener, connections, known } = api.hand_over().unwrap();
    let known = serde_json::from_str(&serde_json::to_string(&known).unwrap()).unwrap();
    RuntimeApi::take_up(Handed { listener, connections, known }, about).unwrap()
}

async fn registered(connection: &mut Runtime, name: &str, events: serde_json::Value) -> String {
    let (path, body) = ("/2020-01-01/extension/register", json!({ "events": events }).to_string());
    let reply = connection.call("POST", path, &[("Lambda-Extension-Name", name)], body.as_bytes()).await;
    reply.header(ID).unwrap().to_owned()
}

/// What a runtime and its extensions wait for comes from whoever has the API now; so do the answers to what they ask next, and to whoever comes.
#[tokio::test]
async fn requests_that_stand_are_answered_by_the_next() {
    let (mut api, address) = api_of(about(&[]));
    let mut runtime = Runtime::new(address).await;
    let (mut told, mut silent) = (Runtime::new(address).await, Runtime::new(address).await);
    let told_id = registered(&mut told, "told", json!(["INVOKE"])).await;
    let silent_id = registered(&mut silent, "silent", json!([])).await;
    runtime.send("GET", NEXT, &[("user-agent", "kit/1")], b"").await;
    told.send("GET", EVENT, &[(ID, &told_id)], b"").await;
    silent.send("GET", EVENT, &[(ID, &silent_id)], b"").await;
    api.ready().await.unwrap();
    // And one that asks nothing.
    let mut quiet = Runtime::new(address).await;
    assert_eq!(quiet.call("GET", "/2018-06-01/ping", &[], b"").await.text(), "pong");
    for round in 0..3 {
        let former = api;
        api = over(&former, about(&[]));
        drop(former);
        api.idle().await.unwrap();
        assert_eq!(api.release().as_deref(), Some("kit/1"));
        let id = format!("id-{round}");
        let answer = api.invoke(invocation(&id)).unwrap();
        assert_eq!(runtime.read().await.header("lambda-runtime-aws-request-id"), Some(&*id));
        assert!(told.read().await.text().contains(&id));
        assert_eq!(runtime.answer(&id, b"1").await.status, 202);
        assert_eq!(all(answer).await, [head(None, false), Said::Piece("1".into()), Said::End]);
        runtime.send("GET", NEXT, &[], b"").await;
        told.send("GET", EVENT, &[(ID, &told_id)], b"").await;
        api.idle().await.unwrap();
        let mut other = Runtime::new(address).await;
        for connection in [&mut quiet, &mut other] {
            assert_eq!(connection.call("GET", "/2018-06-01/ping", &[], b"").await.text(), "pong");
        }
        let body = br#"{"events":[]}"#;
        let late =
            other.call("POST", "/2020-01-01/extension/register", &[("lambda-extension-name", "x")], body);
        late.await.is(403, "Extension.RegistrationClosed");
    }
}

#[tokio::test]
async fn several_at_once_go_over_when_none_is_under_way() {
    let several = || About { concurrency: 2, ..about(&[]) };
    let (api, address) = api_of(several());
    let (mut one, mut other) = (Runtime::new(address).await, Runtime::new(address).await);
    one.send("GET", NEXT, &[], b"").await;
    api.ready().await.unwrap();
    let answer = api.invoke(invocation("id")).unwrap();
    one.read().await;
    assert!(api.hand_over().is_err(), "one is under way");
    assert_eq!(one.answer("id", b"1").await.status, 202);
    assert_eq!(all(answer).await.len(), 3);
    api.over("id", &stoker_lambda::Over::default());
    one.send("GET", NEXT, &[], b"").await;
    other.send("GET", NEXT, &[], b"").await;
    assert_eq!(Runtime::new(address).await.call("GET", "/2018-06-01/ping", &[], b"").await.text(), "pong");
    let api = over(&api, several());
    api.idle().await.unwrap();
    let answers = ["a", "b"].map(|id| api.invoke(invocation(id)).unwrap());
    let (first, second) = (one.read().await, other.read().await);
    for (connection, event) in [(&mut one, first), (&mut other, second)] {
        let id = event.header("lambda-runtime-aws-request-id").unwrap().to_owned();
        assert_eq!(connection.answer(&id, b"1").await.status, 202);
    }
    for answer in answers {
        assert_eq!(all(answer).await.last(), Some(&Said::End));
    }
}

/// What has more to it than requests that stand stays, and goes on as if nobody had asked.
#[tokio::test]
async fn what_cannot_go_over_says_why() {
    let (api, address) = api_of(about(&[]));
    let mut runtime = Runtime::new(address).await;
    let does_not_wait = "it does not wait for its next invocation";
    assert_eq!(api.hand_over().unwrap_err(), does_not_wait);
    runtime.send("GET", NEXT, &[], b"").await;
    api.ready().await.unwrap();
    let answer = api.invoke(invocation("id")).unwrap();
    runtime.read().await;
    assert_eq!(api.hand_over().unwrap_err(), does_not_wait);
    assert_eq!(runtime.answer("id", b"1").await.status, 202);
    assert_eq!(api.hand_over().unwrap_err(), does_not_wait, "it has not asked for another");
    drop(answer);
    runtime.send("GET", NEXT, &[], b"").await;
    api.idle().await.unwrap();
    // A runtime that waited, and went.
    drop(runtime);
    api.left_alone().await;
    assert_eq!(api.hand_over().unwrap_err(), does_not_wait);
}
