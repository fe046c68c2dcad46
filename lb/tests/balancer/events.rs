//! CloudEvents over HTTP: each mode as a function gets it, and what becomes of its answer.

use serde_json::{Value, json};

use crate::stage::*;

/// Answers an event with one that has its attributes, and anything else with itself.
fn answering() -> Play {
    play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let asked = offer.head.expect("a head").headers;
            let status = if offer.body == "fail" { 500 } else { 200 };
            let mut headers: Vec<_> =
                asked.into_iter().filter(|header| header.name.starts_with("ce-")).collect();
            headers.push(v1::Header { name: "content-type".into(), value: "application/json".into() });
            let body = json!(String::from_utf8_lossy(&offer.body)).to_string().into();
            let head = Some(v1::ResponseHead { status, headers });
            s.send(Out::Finished(Box::new(wire::Finished {
                call: offer.call,
                head,
                body,
                ..Default::default()
            })))
            .await;
        }
    })
}

async fn send(stage: &Stage, headers: &str, body: &str) -> (String, String) {
    let head = format!("POST /ce/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}");
    let answer = stage.http(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

fn event(id: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "subject": "a b", "datacontenttype": "text/plain", "data": data})
}

const STRUCTURED: &str = "content-type: application/cloudevents+json; charset=utf-8\r\n";

#[tokio::test]
async fn every_mode_reaches_a_function_as_headers_and_a_body() {
    let stage = stage(config(), vec![answering()]).await;
    let binary = "ce-specversion: 1.0\r\nce-id: 7\r\nce-source: /s\r\nce-type: t\r\nce-subject: a%20b\r\ncontent-type: text/plain\r\n";
    for (headers, body) in [(binary, "hi".to_owned()), (STRUCTURED, event("7", json!("hi")).to_string())] {
        let (head, body) = send(&stage, headers, &body).await;
        assert!(head.starts_with("http/1.1 200") && body == "\"hi\"", "{head}\n{body}");
        for wanted in ["ce-id: 7", "ce-specversion: 1.0", "ce-subject: a%20b", "fn-call-id: "] {
            assert!(head.contains(wanted), "{wanted} in {head}");
        }
    }
}

#[tokio::test]
async fn a_batch_is_as_many_calls_and_says_of_each_what_became_of_it() {
    let stage = stage(config(), vec![answering()]).await;
    let batch = "content-type: application/cloudevents-batch+json\r\n";
    let events = json!([event("1", json!("one")), event("2", json!("two"))]);
    let (head, body) = send(&stage, batch, &events.to_string()).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let results: Value = serde_json::from_str(&body).expect("JSON");
    for (at, data) in ["one", "two"].into_iter().enumerate() {
        let result = &results[at];
        assert_eq!((&result["id"], &result["status"]), (&json!((at + 1).to_string()), &json!(200)));
        assert_eq!((&result["event"]["data"], &result["event"]["subject"]), (&json!(data), &json!("a b")));
    }
    assert_ne!(results[0]["call_id"], results[1]["call_id"]);
    let events = json!([event("1", json!("one")), event("2", json!("fail"))]);
    let (head, body) = send(&stage, batch, &events.to_string()).await;
    let results: Value = serde_json::from_str(&body).expect("JSON");
    assert!(head.starts_with("http/1.1 207") && results[1]["status"] == 500, "{head}\n{body}");
    let (head, body) = send(&stage, batch, "[]").await;
    assert!(head.starts_with("http/1.1 200") && body == "[]", "{head}\n{body}");
}

#[tokio::test]
async fn a_call_of_a_batch_that_fails_behind_a_part_of_its_answer_is_told_by_its_own_end() {
    let failing = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let call = offer.call;
            s.send(Out::Head(wire::Head { call, head: ok(), length: None })).await;
            s.send(Out::Body(wire::Body { call, data: "part".into(), last: false, ..Default::default() }))
                .await;
            let error =
                stoker_core::Error::new(stoker_core::Code::FunctionFailed, "it says no").may_have_started();
            let error = Some(convert::to_call_error(&error));
            s.send(Out::Finished(Box::new(wire::Finished { call, error, ..Default::default() }))).await;
        }
    });
    let stage = stage(config(), vec![failing]).await;
    let events = json!([event("1", json!("one")), event("2", json!("two"))]).to_string();
    let (head, body) = send(&stage, "content-type: application/cloudevents-batch+json\r\n", &events).await;
    let results: Value = serde_json::from_str(&body).expect("JSON");
    assert!(head.starts_with("http/1.1 207"), "{head}");
    for result in results.as_array().expect("a list") {
        assert_eq!(
            (&result["code"], &result["message"]),
            (&json!("FUNCTION_FAILED"), &json!("it says no")),
            "{results}"
        );
    }
}

#[tokio::test]
async fn what_is_no_event_is_the_callers_mistake() {
    let stage = stage(config(), vec![answering()]).await;
    let mut old = event("1", json!("x"));
    old["specversion"] = json!("0.3");
    for (headers, body, says) in [
        ("content-type: text/plain\r\n", "hi".to_owned(), "ce-specversion is missing"),
        (STRUCTURED, "hi".to_owned(), "not a valid CloudEvent"),
        (STRUCTURED, old.to_string(), "1.0 is what is taken"),
        (
            "content-type: application/cloudevents-batch+json\r\n",
            json!([event("1", json!(1)), 7]).to_string(),
            "event 1: ",
        ),
        ("content-type: application/cloudevents+avro\r\n", String::new(), "read as JSON"),
    ] {
        let (head, body) = send(&stage, headers, &body).await;
        assert!(
            head.starts_with("http/1.1 400") && body.contains(says) && body.contains("\"blame\":\"caller\""),
            "{head}\n{body}"
        );
    }
    let get = stage.http("GET /ce/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(get.starts_with("HTTP/1.1 405"), "{get}");
    let none = "POST /ce/a/none HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert!(stage.http(none).await.starts_with("HTTP/1.1 404"));
}
