//! Fn's control plane: a client that knows nothing but Fn's HTTP API makes an app, a function and a trigger, calls it both ways, changes and
//! removes it all; Fn's own tables of cases, with their status and texts; and functions of other doors as this one shows them.

use serde_json::{Value, json};

use crate::stage::*;

const IMAGE: &str =
    "registry.example/fn/hello@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A request of this API; its status and its JSON.
async fn ask(stage: &Stage, line: &str, body: &str) -> (u16, Value) {
    let head = format!("{line} HTTP/1.1\r\nhost: fn.example:8080\r\nconnection: close\r\n");
    let answer = stage.http(&format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
    let body = match body.is_empty() {
        true => Value::Null,
        false => serde_json::from_str(body).unwrap_or_else(|error| panic!("{line}: {error}: {body}")),
    };
    (status, body)
}

async fn ok(stage: &Stage, line: &str, body: Value) -> Value {
    let (status, answer) = ask(stage, line, &body.to_string()).await;
    assert_eq!(status, 200, "{line} {body}: {answer}");
    answer
}

fn id(object: &Value) -> &str {
    object["id"].as_str().expect("an id")
}

#[tokio::test]
async fn a_client_of_fns_api_alone_has_all_it_needs() {
    let stage = stage(config(), vec![echo()]).await;
    let made =
        json!({"name": "shop", "config": {"SHARED": "app", "LEVEL": "app"}, "annotations": {"team": "x"}});
    let app = ok(&stage, "POST /v2/apps", made).await;
    assert_eq!((&app["name"], &app["annotations"]["team"]), (&json!("shop"), &json!("x")));
    assert_eq!(app["created_at"], app["updated_at"]);
    let made = json!({"app_id": id(&app), "name": "cart", "image": "registry.example/r0-fine/cart:1", "memory": 64, "timeout": 10,
        "config": {"LEVEL": "fn"}, "annotations": {"k": {"any": [1]}}});
    let function = ok(&stage, "POST /v2/fns", made).await;
    assert_eq!(function["image"], "registry.example/r0-fine/cart:1");
    assert_eq!(
        (&function["memory"], &function["timeout"], &function["idle_timeout"]),
        (&json!(64), &json!(10), &json!(30))
    );
    let endpoint = function["annotations"]["fnproject.io/fn/invokeEndpoint"].as_str().expect("an endpoint");
    assert_eq!(endpoint, format!("http://fn.example:8080/invoke/{}", id(&function)));
    let made =
        json!({"app_id": id(&app), "fn_id": id(&function), "name": "web", "type": "http", "source": "/cart"});
    let trigger = ok(&stage, "POST /v2/triggers", made).await;
    assert_eq!(
        trigger["annotations"]["fnproject.io/trigger/httpEndpoint"],
        "http://fn.example:8080/t/shop/cart"
    );

    // Both ways in, and its variables are the app's with its own over them.
    for line in [format!("POST /invoke/{}", id(&function)), "POST /t/shop/cart".to_owned()] {
        let answer = stage
            .http(&format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{line}: {answer}");
    }
    let spec =
        |stage: &Stage| stage.registry.functions().borrow().find("shop/cart").cloned().expect("it is there");
    let variables = |stage: &Stage| Vec::from_iter(spec(stage).env.clone());
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(variables(&stage), [pair("LEVEL", "fn"), pair("SHARED", "app")]);
    let app_line = format!("/v2/apps/{}", id(&app));
    let changed =
        ok(&stage, &format!("PUT {app_line}"), json!({"config": {"SHARED": "new", "MORE": "1"}})).await;
    assert_eq!(changed["config"], json!({"SHARED": "new", "LEVEL": "app", "MORE": "1"}));
    assert_eq!(variables(&stage), [pair("LEVEL", "fn"), pair("MORE", "1"), pair("SHARED", "new")]);

    // Changes merge; an empty value deletes.
    let line = format!("/v2/fns/{}", id(&function));
    let patch =
        json!({"memory": 256, "config": {"LEVEL": "", "OWN": "1"}, "annotations": {"k": null, "n": 2}});
    let changed = ok(&stage, &format!("PUT {line}"), patch).await;
    assert_eq!((&changed["memory"], &changed["config"]), (&json!(256), &json!({"OWN": "1"})));
    assert_eq!((changed["annotations"].get("k"), &changed["annotations"]["n"]), (None, &json!(2)));
    assert_ne!(changed["created_at"], changed["updated_at"]);
    assert_eq!(variables(&stage)[0], pair("LEVEL", "app"));
    assert_eq!(ok(&stage, &format!("GET {line}"), Value::Null).await, changed);

    // What a trigger asks for besides its path is an annotation of ours, and a pattern a path like any other.
    let rules = json!({"methods": ["GET"], "cors": {"origins": ["*"]}});
    let made = json!({"app_id": id(&app), "fn_id": id(&function), "name": "items", "type": "http", "source": "/cart/{item}",
        "annotations": {"stoker/http": rules, "mine": 1}});
    let special = ok(&stage, "POST /v2/triggers", made.clone()).await;
    assert_eq!(
        (&special["annotations"]["stoker/http"], &special["annotations"]["mine"]),
        (&rules, &json!(1))
    );
    let answer = stage.http("GET /t/shop/cart/7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(ask(&stage, "POST /t/shop/cart/7", "").await.0, 405);
    let line = format!("/v2/triggers/{}", id(&special));
    assert_eq!(ok(&stage, &format!("GET {line}"), Value::Null).await, special);
    let open = ok(&stage, &format!("PUT {line}"), json!({"annotations": {"stoker/http": null}})).await;
    assert_eq!((open["annotations"].get("stoker/http"), &open["annotations"]["mine"]), (None, &json!(1)));
    assert_eq!(ask(&stage, "POST /t/shop/cart/7", "").await.0, 200);
    let mut wrong = made;
    (wrong["name"], wrong["source"]) = (json!("wrong"), json!("/wrong"));
    wrong["annotations"]["stoker/http"] = json!({"method": "GET"});
    let (status, said) = ask(&stage, "POST /v2/triggers", &wrong.to_string()).await;
    assert!(status == 400 && said["message"].to_string().contains("none of methods"), "{said}");

    let line = format!("/v2/triggers/{}", id(&trigger));
    let moved = ok(&stage, &format!("PUT {line}"), json!({"name": "other", "source": "/basket"})).await;
    assert_eq!((id(&moved), &moved["name"]), (id(&trigger), &json!("other")));
    assert_eq!(ok(&stage, &format!("GET {line}"), Value::Null).await, moved);
    assert_eq!(ask(&stage, "POST /t/shop/cart", "").await.0, 404);
    assert_eq!(ask(&stage, &format!("DELETE {line}"), "").await, (204, Value::Null));
    assert_eq!(ask(&stage, &format!("GET {line}"), "").await.0, 404);

    assert_eq!(ask(&stage, &format!("DELETE {app_line}"), "").await.0, 204);
    assert_eq!(ask(&stage, &format!("GET {app_line}"), "").await.1["message"], "App not found");
    assert!(stage.registry.functions().borrow().find("shop/cart").is_none());
}

#[tokio::test]
async fn what_fn_refuses_is_refused_in_its_words() {
    let stage = stage(config(), vec![echo()]).await;
    let app = ok(&stage, "POST /v2/apps", json!({"name": "one"})).await;
    let other = ok(&stage, "POST /v2/apps", json!({"name": "two"})).await;
    let (app, other) = (id(&app), id(&other));
    let function = ok(&stage, "POST /v2/fns", json!({"app_id": app, "name": "f", "image": IMAGE})).await;
    assert_eq!(function["image"], IMAGE, "what comes back can be put again");
    let function = id(&function);
    let trigger = json!({"app_id": app, "fn_id": function, "name": "t", "type": "http", "source": "/s"});
    ok(&stage, "POST /v2/triggers", trigger.clone()).await;
    let with = |more: Value| {
        let mut object = trigger.clone();
        object.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        object
    };
    let of_app = |more: Value| {
        let mut object = json!({"app_id": app});
        object.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        object
    };
    let long = "x".repeat(256);
    let (put_app, put_fn) = (format!("PUT /v2/apps/{app}"), format!("PUT /v2/fns/{function}"));
    for (line, body, status, text) in [
        ("POST /v2/apps", Value::Null, 400, "Invalid JSON"),
        ("POST /v2/apps", json!({}), 400, "Missing Name"),
        ("POST /v2/apps", json!({"name": "a", "id": "x"}), 400, "App ID cannot be supplied on create"),
        ("POST /v2/apps", json!({"name": long}), 400, "App name must be 255 characters or less"),
        ("POST /v2/apps", json!({"name": "&&%@!#"}), 400, "Invalid app name"),
        (
            "POST /v2/apps",
            json!({"name": "a", "annotations": {"": "v"}}),
            400,
            "Invalid annotation key, annotation keys must be",
        ),
        (
            "POST /v2/apps",
            json!({"name": "a", "annotations": {"k": ""}}),
            400,
            "Invalid annotation value, annotation values may",
        ),
        (
            "POST /v2/apps",
            json!({"name": "a", "annotations": {"k": long.repeat(3)}}),
            400,
            "not be larger than 512 bytes",
        ),
        ("POST /v2/apps", json!({"name": "a", "syslog_url": "yo"}), 400, "invalid syslog url: \"yo\""),
        (
            "POST /v2/apps",
            json!({"name": "a", "syslog_url": "yo://x:1"}),
            400,
            "only [tcp, udp, unix, unixgram, tcp+tls]",
        ),
        ("POST /v2/apps", json!({"name": "a", "shape": "ROUND"}), 400, "Invalid app shape"),
        ("POST /v2/apps", json!({"name": "one"}), 409, "App already exists"),
        ("PUT /v2/apps/none", json!({}), 404, "App not found"),
        (&put_app, json!({"name": "other"}), 409, "Could not update - name is immutable"),
        (&put_app, json!({"id": "other"}), 400, "App ID in path does not match ID in body"),
        ("GET /v2/apps/none", Value::Null, 404, "App not found"),
        ("DELETE /v2/apps/none", Value::Null, 404, "App not found"),
        ("PATCH /v2/apps", Value::Null, 405, "Method not allowed"),
        ("POST /v2/fns", json!({}), 400, "Missing AppID on Fn"),
        ("POST /v2/fns", of_app(json!({})), 400, "Missing Fn name"),
        ("POST /v2/fns", of_app(json!({"name": "a"})), 400, "Missing image on Fn"),
        ("POST /v2/fns", of_app(json!({"name": " ", "image": IMAGE})), 400, "name must be a valid string"),
        (
            "POST /v2/fns",
            of_app(json!({"name": "a", "image": IMAGE, "format": "wazzup"})),
            400,
            "Invalid format on Fn",
        ),
        (
            "POST /v2/fns",
            of_app(json!({"name": "a", "image": IMAGE, "timeout": 3601})),
            400,
            "timeout value is out of range",
        ),
        (
            "POST /v2/fns",
            of_app(json!({"name": "a", "image": IMAGE, "idle_timeout": 3601})),
            400,
            "idle_timeout value is out",
        ),
        (
            "POST /v2/fns",
            of_app(json!({"name": "a", "image": IMAGE, "memory": 100_000_000_000_000u64})),
            400,
            "memory value is out",
        ),
        ("POST /v2/fns", of_app(json!({"name": "a", "image": IMAGE, "config": {"A=B": "1"}})), 400, "env"),
        (
            "POST /v2/fns",
            of_app(json!({"name": "f", "image": IMAGE})),
            409,
            "Fn with specified name already exists",
        ),
        ("POST /v2/fns", json!({"app_id": "none", "name": "a", "image": IMAGE}), 404, "App not found"),
        (&put_fn, json!({"id": "other"}), 400, "Fn ID in path does not match that in body"),
        (&put_fn, json!({"format": "wazzup"}), 400, "Invalid format on Fn"),
        (&put_fn, json!({"name": "g"}), 400, "Fn names and IDs cannot be modified"),
        ("PUT /v2/fns/none", json!({}), 404, "Fn not found"),
        ("DELETE /v2/fns/none", Value::Null, 404, "Fn not found"),
        ("GET /v2/fns", Value::Null, 400, "Missing AppID on Fn"),
        ("POST /v2/triggers", json!({}), 404, "App not found"),
        ("POST /v2/triggers", json!({"app_id": app}), 404, "Fn not found"),
        ("POST /v2/triggers", json!({"app_id": app, "fn_id": function}), 400, "Missing name on Trigger"),
        (
            "POST /v2/triggers",
            json!({"app_id": app, "fn_id": function, "name": "n"}),
            400,
            "Trigger Type Not Supported",
        ),
        ("POST /v2/triggers", with(json!({"name": "n", "source": ""})), 400, "Missing Trigger Source"),
        (
            "POST /v2/triggers",
            with(json!({"name": "n", "source": "s"})),
            400,
            "Missing Trigger Source Prefix '/'",
        ),
        ("POST /v2/triggers", with(json!({"name": "&&%@"})), 400, "Invalid name for Trigger"),
        ("POST /v2/triggers", with(json!({"id": "x"})), 400, "ID cannot be provided for Trigger creation"),
        (
            "POST /v2/triggers",
            with(json!({"app_id": other})),
            400,
            "Invalid Fn ID - not owned by specified app",
        ),
        ("POST /v2/triggers", trigger.clone(), 409, "Trigger already exists"),
        (
            "POST /v2/triggers",
            with(json!({"name": "n"})),
            409,
            "Trigger with the same type and source exists on this app",
        ),
        ("PUT /v2/triggers/none", json!({"id": "some"}), 400, "ID in path does not match ID in body"),
        ("PUT /v2/triggers/none", json!({"name": "n"}), 404, "Trigger not found"),
        ("DELETE /v2/triggers/none", Value::Null, 404, "Trigger not found"),
        ("GET /v2/triggers", Value::Null, 400, "Missing App ID on Trigger"),
        ("GET /v2/nothing", Value::Null, 404, "Path not found"),
        ("GET /v1/apps", Value::Null, 410, "gone"),
    ] {
        let text_of = if body.is_null() { String::new() } else { body.to_string() };
        let (is, answer) = ask(&stage, line, &text_of).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(is == status && message.contains(text), "{line} {body} -> {is} {answer}");
        assert_eq!(answer["blame"], "caller");
    }
}

#[tokio::test]
async fn lists_come_in_pages() {
    let stage = stage(config(), vec![echo()]).await;
    for name in ["myapp", "myapp2", "myapp3"] {
        ok(&stage, "POST /v2/apps", json!({"name": name})).await;
    }
    // The stage has an app of its own, `a`, that came by another door.
    let page = async |query: &str| {
        let list = ok(&stage, &format!("GET /v2/apps{query}"), Value::Null).await;
        let names = list["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|app| app["name"].as_str().expect("a name").to_owned());
        (names.collect::<Vec<_>>().join(" "), list["next_cursor"].as_str().expect("a cursor").to_owned())
    };
    assert_eq!(page("").await, ("a myapp myapp2 myapp3".to_owned(), String::new()));
    assert_eq!(page("?per_page").await.1, "");
    let (names, cursor) = page("?per_page=2").await;
    assert_eq!(names, "a myapp");
    let (names, cursor) = page(&format!("?per_page=2&cursor={cursor}")).await;
    assert_eq!(names, "myapp2 myapp3");
    assert_eq!(page(&format!("?per_page=2&cursor={cursor}")).await, (String::new(), String::new()));
    assert_eq!(page("?name=myapp2").await.0, "myapp2");
    assert_eq!(ask(&stage, "GET /v2/apps?cursor=%21", "").await.0, 400);
}

#[tokio::test]
async fn functions_of_other_doors_are_there_and_can_be_changed() {
    let stage = stage(config(), vec![echo()]).await;
    let list = ok(&stage, "GET /v2/apps?name=a", Value::Null).await;
    let app = id(&list["items"][0]);
    let list = ok(&stage, &format!("GET /v2/fns?app_id={app}&name=f"), Value::Null).await;
    let function = &list["items"][0];
    assert_eq!(
        (&function["name"], id(function)),
        (&json!("f"), &*FunctionName::new("a", "f").expect("a name").id())
    );
    let list =
        ok(&stage, &format!("GET /v2/triggers?app_id={app}&fn_id={}", id(function)), Value::Null).await;
    let trigger = &list["items"][0];
    assert_eq!(trigger["fn_id"], function["id"]);
    let before = stage.registry.functions().borrow().find("a/f").cloned().expect("it is there");
    let changed = ok(
        &stage,
        &format!("PUT /v2/fns/{}", id(function)),
        json!({"annotations": {"k": 1}, "config": {"KEY": "1"}}),
    )
    .await;
    assert_eq!(changed["annotations"]["k"], 1);
    let after = stage.registry.functions().borrow().find("a/f").cloned().expect("it is there");
    assert_eq!(
        (&after.command, &after.triggers, after.env.len()),
        (&before.command, &before.triggers, before.env.len() + 1)
    );
    let again = ok(&stage, &format!("GET /v2/triggers/{}", id(trigger)), Value::Null).await;
    assert_eq!(again["source"], trigger["source"]);
    assert_eq!(ok(&stage, "GET /version", Value::Null).await["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(ok(&stage, "GET /", Value::Null).await["hello"], "world!");
}
