//! Function URLs of handlers with AWS's runtime clients: made by the API, called as pages are.

use serde_json::{Value, json};
use stoker_sandbox::select::Choice;
use stoker_tests::calls::Page;
use stoker_tests::fleet::Fleet;

use crate::{fleet, node, python};

/// Asks for a URL; gives its path.
async fn url(fleet: &Fleet, name: &str, mode: &str) -> String {
    let body = json!({ "AuthType": "NONE", "InvokeMode": mode }).to_string();
    let page = fleet.clients.page("POST", &format!("/2021-10-31/functions/{name}/url"), &[], body).await;
    assert_eq!(page.status, 201, "{page:?}");
    let made: Value = serde_json::from_slice(&page.body).unwrap();
    made["FunctionUrl"].as_str().unwrap().strip_prefix("http://stoker.test").unwrap().to_owned()
}

fn cookies(page: &Page) -> Vec<&str> {
    page.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_a_function_url_is_an_event_and_its_answer_a_response() {
    let Some(handler) = python("handler", "kit.http") else { return };
    let fleet = fleet(Choice::Auto, [handler]).await;
    let url = url(&fleet, "handler", "BUFFERED").await;
    assert_eq!(url, "/lambda-url/t.handler/");
    let headers =
        [("Cookie", "c=3; d=4"), ("X-Forwarded-For", "192.0.2.1"), ("Stoker-Source-Ip", "192.0.2.2")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let page = fleet.clients.page("PATCH", &format!("{url}a/b?name=Ada"), &headers, &b"\xff\xfe"[..]).await;
    assert_eq!((page.status, page.header("x-kit")), (201, "python"), "{page:?}");
    assert_eq!((cookies(&page), page.header("content-type")), (vec!["a=1", "b=2"], "application/json"));
    let event: Value = serde_json::from_slice(&page.body).unwrap();
    let expected = json!({
        "version": "2.0", "rawPath": "/a/b", "rawQueryString": "name=Ada", "cookies": ["c=3", "d=4"],
        "queryStringParameters": { "name": "Ada" }, "body": "//4=", "isBase64Encoded": true,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(event[key], *value, "{key}");
    }
    let context = &event["requestContext"];
    assert_eq!((&context["http"]["method"], &context["http"]["path"]), (&json!("PATCH"), &json!("/a/b")));
    assert_eq!(context["requestId"], page.header("x-amzn-requestid"));
    // Nobody is believed who says that it is somebody else.
    assert_eq!(context["http"]["sourceIp"], "127.0.0.1");
    let forwarded = ["for", "proto", "port"].map(|of| &event["headers"][format!("x-forwarded-{of}")]);
    assert_eq!(forwarded, ["192.0.2.1, 127.0.0.1", "http", "80"].map(Value::from).each_ref());
    assert_eq!(event["headers"].get("stoker-source-ip"), None);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_url_gives_a_stream_as_it_is_made_or_as_a_whole() {
    let Some(handler) = node("streams", "kit.page") else { return };
    let whole = node("whole", "kit.page").unwrap();
    let fleet = fleet(Choice::Auto, [handler, whole]).await;
    for (name, mode, length) in [("streams", "RESPONSE_STREAM", None), ("whole", "BUFFERED", Some("6"))] {
        let url = url(&fleet, name, mode).await;
        let page = fleet.clients.page("GET", &format!("{url}x"), &[], "").await;
        assert_eq!((page.status, page.header("x-kit"), &page.body[..]), (203, "node", &b"GET /x"[..]));
        assert_eq!(cookies(&page), ["a=1", "b=2"]);
        let said = page.headers.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(said, length, "{name}: {page:?}");
    }
    fleet.end().await;
}
