//! Triggers: which function takes a request and what it is told of it, what pages of other sites may do, and how large bodies may be.

use std::collections::BTreeMap;

use stoker_core::function::{Cors, Trigger};

use crate::stage::*;

/// Answers with the function's name, and with what it was told in headers of our own.
fn telling() -> Play {
    play(|mut s| async move {
        let mut names = BTreeMap::new();
        while let Some(frame) = s.next().await {
            match frame {
                In::Define(define) => {
                    let function = define.function.expect("a function");
                    names.insert(define.digest, function.name);
                }
                In::Offer(offer) => {
                    let head = offer.head.expect("a head");
                    let told = head.headers.iter().filter(|header| header.name.starts_with("stoker-"));
                    let mut told: Vec<_> =
                        told.map(|h| format!("{}={}", h.name, String::from_utf8_lossy(&h.value))).collect();
                    told.sort();
                    let body = format!("{} {}", names[&offer.digest], told.join(" "));
                    let answer = v1::Header {
                        name: "access-control-allow-origin".into(),
                        value: "https://the.function".into(),
                    };
                    let head = Some(v1::ResponseHead { status: 200, headers: vec![answer] });
                    let body = body.trim_end().to_owned().into();
                    s.send(Out::Finished(Box::new(wire::Finished {
                        call: offer.call,
                        head,
                        body,
                        ..Default::default()
                    })))
                    .await;
                }
                _ => {}
            }
        }
    })
}

/// A function `a/NAME` with these triggers.
fn spec(name: &str, triggers: &[Trigger]) -> FunctionSpec {
    let name = FunctionName::new("a", name).expect("a name");
    let command = vec!["/bin/true".into(), name.function().to_owned()];
    FunctionSpec { triggers: triggers.to_vec(), ..FunctionSpec::new(name, command, "/".into()) }
}

fn by(methods: &[&str], path: &str) -> Trigger {
    Trigger { methods: methods.iter().map(|m| (*m).to_owned()).collect(), ..Trigger::new(path) }
}

fn at(host: &str, path: &str) -> Trigger {
    Trigger { hosts: vec![host.to_owned()], ..Trigger::new(path) }
}

async fn apply(stage: &Stage, specs: Vec<FunctionSpec>) {
    for spec in &specs {
        assert_eq!(spec.check(), Ok(()));
    }
    stage.registry.apply_functions(specs).await.expect("they do not conflict");
}

/// One request: its answer's head in lower case, and the body.
async fn ask(stage: &Stage, line: &str, headers: &str) -> (String, String) {
    let host = if headers.contains("host: ") { "" } else { "host: x\r\n" };
    let answer = stage.http(&format!("{line} HTTP/1.1\r\nconnection: close\r\n{host}{headers}\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn the_most_special_trigger_takes_a_request() {
    let stage = stage(config(), vec![telling()]).await;
    let with = |path: &str, headers: &[(&str, &str)], query: &[(&str, &str)]| {
        let pairs =
            |all: &[(&str, &str)]| all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Trigger { headers: pairs(headers), query: pairs(query), ..Trigger::new(path) }
    };
    apply(
        &stage,
        vec![
            spec("list", &[Trigger::new("/users")]),
            spec("me", &[Trigger::new("/users/me")]),
            spec("one", &[by(&["GET", "PUT"], "/users/{id}")]),
            spec("gone", &[by(&["DELETE"], "/users/{id}")]),
            spec("posts", &[Trigger::new("/users/{id}/posts/{post}")]),
            spec("files", &[Trigger::new("/static/{path...}")]),
            spec("logo", &[Trigger::new("/static/logo.png")]),
            spec("all", &[Trigger::new("/*")]),
            spec("shop", &[at("shop.example", "/users/{id}"), at("*.example", "/only")]),
            spec("new", &[with("/versions", &[("x-version", "2")], &[])]),
            spec("newer", &[with("/versions", &[("x-version", "2")], &[("beta", "a b")])]),
        ],
    )
    .await;
    for (line, headers, is) in [
        ("GET /t/a/users", "", "list"),
        ("GET /t/a/users/me", "", "me"),
        ("GET /t/a/users/7", "", "one stoker-path-id=7 stoker-trigger=/users/{id}"),
        ("DELETE /t/a/users/7", "", "gone stoker-path-id=7 stoker-trigger=/users/{id}"),
        ("GET /t/a/users/a%20b%2525", "", "one stoker-path-id=a%20b%2525 stoker-trigger=/users/{id}"),
        // An escaped slash parts no segments; a path without parameters is compared whole.
        ("GET /t/a/users/a%2Fb", "", "one stoker-path-id=a/b stoker-trigger=/users/{id}"),
        ("GET /t/a/users%2fme", "", "me"),
        (
            "POST /t/a/users/7/posts/9",
            "",
            "posts stoker-path-id=7 stoker-path-post=9 stoker-trigger=/users/{id}/posts/{post}",
        ),
        ("GET /t/a/static/logo.png", "", "logo"),
        ("GET /t/a/static/a/b.css", "", "files stoker-path-path=a/b.css stoker-trigger=/static/{path...}"),
        ("GET /t/a/static/", "", "files stoker-path-path= stoker-trigger=/static/{path...}"),
        // A parameter is something; the rest of a path may be nothing.
        ("GET /t/a/users/", "", "all stoker-trigger=/*"),
        ("GET /t/a/users/7/more", "", "all stoker-trigger=/*"),
        ("GET /t/a", "", "all stoker-trigger=/*"),
        // Another method than the special one takes goes to the less special one.
        ("PATCH /t/a/users/7", "", "all stoker-trigger=/*"),
        (
            "GET /t/a/users/7",
            "host: Shop.Example:8080\r\n",
            "shop stoker-path-id=7 stoker-trigger=/users/{id}",
        ),
        ("GET /t/a/users/7", "host: other.example\r\n", "one stoker-path-id=7 stoker-trigger=/users/{id}"),
        ("GET /t/a/only", "host: a.b.example\r\n", "shop"),
        ("GET /t/a/only", "host: a.b.example.:80\r\n", "shop"),
        ("GET /t/a/only", "host: example\r\n", "all stoker-trigger=/*"),
        ("GET /t/a/versions", "x-version: 2\r\n", "new"),
        ("GET /t/a/versions?c=1&beta=a+b", "x-version: 2\r\n", "newer"),
        ("GET /t/a/versions?beta=a", "x-version: 1\r\n", "all stoker-trigger=/*"),
        // What a client says of these is not believed.
        (
            "GET /t/a/users/me",
            "stoker-path-id: 1\r\nStoker-Trigger: x\r\nstoker-other: 1\r\n",
            "me stoker-other=1",
        ),
    ] {
        let (head, body) = ask(&stage, line, headers).await;
        assert!(head.starts_with("http/1.1 200"), "{line}: {head}");
        assert_eq!(body, is, "{line} {headers}");
    }
}

#[tokio::test]
async fn other_methods_are_told_which_there_are_and_conflicts_are_refused() {
    let stage = stage(config(), vec![telling()]).await;
    apply(
        &stage,
        vec![spec("one", &[by(&["GET", "PUT"], "/u/{id}")]), spec("two", &[by(&["DELETE"], "/u/{n}")])],
    )
    .await;
    let (head, body) = ask(&stage, "POST /t/a/u/7", "").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("\nallow: delete, get, put\r"), "{head}");
    assert!(body.contains("this path takes DELETE, GET, PUT"), "{body}");
    assert!(ask(&stage, "GET /t/a/none", "").await.0.starts_with("http/1.1 404"));
    let (head, _) = ask(&stage, "CONNECT /t/a/u/7", "").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("\nallow: get, head, post"), "{head}");
    for trigger in [by(&["PUT"], "/u/{other}"), by(&["DELETE", "X"], "/u/{n}")] {
        let spec = spec("three", &[trigger]);
        let refused = stage.registry.apply_functions(vec![spec]).await.expect_err("it is taken");
        assert!(refused.to_string().contains("belongs to a/"), "{refused}");
        assert_eq!(stoker_core::Error::from(&refused).blame(), stoker_core::Blame::Caller);
    }
    apply(&stage, vec![spec("three", &[Trigger::new("/u/{id}")])]).await;
    assert_eq!(ask(&stage, "POST /t/a/u/7", "").await.1, "three stoker-path-id=7 stoker-trigger=/u/{id}");
}

fn cors(origins: &[&str]) -> Cors {
    Cors { origins: origins.iter().map(|origin| (*origin).to_owned()).collect(), ..Cors::default() }
}

#[tokio::test]
async fn a_page_that_may_is_told_so_and_a_preflight_costs_no_call() {
    // Nobody runs anything: what is answered here is answered by the balancer.
    let stage = stage(config(), vec![play(|mut s| async move { while s.next().await.is_some() {} })]).await;
    let open = Trigger {
        cors: Some(Cors { max_age: 60, credentials: true, ..cors(&["https://*.shop.example"]) }),
        ..by(&["PUT"], "/put")
    };
    let mut invoked = spec("invoked", &[open, Trigger::new("/own")]);
    invoked.cors = Some(cors(&["*"]));
    apply(&stage, vec![invoked, spec("closed", &[by(&["POST"], "/closed")])]).await;
    let preflight = |origin: &str, method: &str| {
        format!("host: x\r\norigin: {origin}\r\naccess-control-request-method: {method}\r\n")
    };
    let (head, body) = ask(&stage, "OPTIONS /t/a/put", &preflight("https://a.shop.example", "PUT")).await;
    assert!(head.starts_with("http/1.1 204") && body.is_empty(), "{head}");
    for line in [
        "access-control-allow-origin: https://a.shop.example",
        "access-control-allow-methods: put",
        "access-control-allow-headers: content-type",
        "access-control-allow-credentials: true",
        "access-control-max-age: 60",
        "vary: origin",
        "fn-call-id: ",
    ] {
        assert!(head.contains(line), "{line} in {head}");
    }
    let (head, body) = ask(&stage, "OPTIONS /t/a/put", &preflight("https://evil.example", "PUT")).await;
    assert!(head.starts_with("http/1.1 403") && !head.contains("access-control-allow-origin"), "{head}");
    assert!(body.contains("https://evil.example"), "{body}");
    // The function's own counts where its trigger says nothing, and at its name.
    for path in ["/t/a/own", "/invoke/a/invoked"] {
        let (head, _) =
            ask(&stage, &format!("OPTIONS {path}"), &preflight("https://any.example", "POST")).await;
        assert!(
            head.starts_with("http/1.1 204") && head.contains("access-control-allow-origin: *"),
            "{head}"
        );
        assert!(!head.contains("vary: origin\r"), "it is the same for all: {head}");
    }
    // Errors can be read by the page as well.
    let (head, _) = ask(&stage, "GET /invoke/a/invoked", "host: x\r\norigin: https://any.example\r\n").await;
    assert!(head.starts_with("http/1.1 405") && head.contains("access-control-allow-origin: *"), "{head}");
    // Nobody has said who may: all of it is the function's business, if it takes the method.
    let (head, _) = ask(&stage, "OPTIONS /t/a/closed", &preflight("https://any.example", "POST")).await;
    assert!(head.starts_with("http/1.1 405") && !head.contains("access-control"), "{head}");
}

#[tokio::test]
async fn what_a_function_says_of_pages_is_replaced_where_its_owner_has() {
    let stage = stage(config(), vec![telling()]).await;
    let named = Trigger { cors: Some(cors(&["https://a.example"])), ..Trigger::new("/named") };
    apply(&stage, vec![spec("f2", &[named, Trigger::new("/own")])]).await;
    let own = "access-control-allow-origin: https://the.function";
    for (path, origin, wanted, not) in [
        ("/t/a/named", "https://a.example", "access-control-allow-origin: https://a.example", own),
        ("/t/a/named", "https://b.example", "vary: origin", "access-control-allow-origin"),
        ("/t/a/own", "https://b.example", own, "vary"),
    ] {
        let (head, body) =
            ask(&stage, &format!("GET {path}"), &format!("host: x\r\norigin: {origin}\r\n")).await;
        assert!(head.contains(wanted) && !head.contains(not) && body == "f2", "{head}");
    }
    let (head, _) = ask(&stage, "GET /t/a/named", "host: x\r\n").await;
    assert!(head.contains("vary: origin"), "a cache must not give it to a page: {head}");
}

#[tokio::test]
async fn a_function_may_say_how_large_bodies_are() {
    let stage = stage(config(), vec![echo()]).await;
    let mut small = spec("small", &[]);
    (small.max_request, small.max_response) = (10, 5);
    apply(&stage, vec![small]).await;
    let ask = async |body: &str| {
        let head = "POST /invoke/a/small HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        stage.http(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await
    };
    assert!(ask("12345").await.ends_with("\r\n\r\n12345"));
    let answer = ask("123456").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("RESPONSE_TOO_LARGE"), "{answer}");
    assert!(answer.contains("\"blame\":\"function\"") && answer.contains("may_have_started"), "{answer}");
    let answer = ask("12345678901").await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("more than 10 bytes"), "{answer}");
    // Of a body whose length nobody says the bytes are counted.
    let head =
        "POST /invoke/a/small HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = stage.http(&format!("{head}b\r\n12345678901\r\n0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let refused = stage.invoke("a/small", "12345678901").await.expect_err("too large at every door");
    assert_eq!(reason(&refused).1.code, stoker_core::Code::RequestTooLarge);
}
