//! What holds for every body, every header and every way to cut them. What is written is read back, and what is to be read is
//! written, by other means than the codecs': `serde_json` and a few lines here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;
use serde_json::{Value, json};
use stoker_core::function::Format;
use stoker_format::{After, Event, Limits};

use crate::kit::{Row, answers, check_answer, check_request, decode, rows};

fn named(format: Format, name: &str) -> Row {
    rows().into_iter().find(|r| r.format == format && r.name == name).unwrap()
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..2000, 0..12)
}

/// What was written for a row, read by someone else: method, URL, headers and body.
fn read_back(row: &Row, text: &[u8]) -> (Vec<(String, Vec<String>)>, Vec<u8>) {
    let headers_of = |value: &Value| {
        let map = value.as_object().unwrap().iter();
        let list = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect();
        map.map(|(k, v)| (k.clone(), list(v))).collect::<Vec<_>>()
    };
    match row.format {
        Format::Json => {
            let call: Value = serde_json::from_slice(text).unwrap();
            let body = call["body"].as_str().unwrap();
            let body =
                if call["body_encoding"] == "base64" { BASE64.decode(body).unwrap() } else { body.into() };
            (headers_of(&call["protocol"]["headers"]), body)
        }
        Format::JsonHttp => {
            let end = text.windows(2).position(|w| w == b"\n\n").unwrap();
            let head: Value = serde_json::from_slice(&text[..end]).unwrap();
            let body = &text[end + 2..];
            let body = if head["chunked"] == true {
                joined(body)
            } else {
                assert_eq!(head["body_length"], body.len());
                body.to_vec()
            };
            (headers_of(&head["headers"]), body)
        }
        Format::Http => {
            let end = text.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(text[..end].to_vec()).unwrap();
            let mut headers: Vec<(String, Vec<String>)> = Vec::new();
            for line in head.split("\r\n").skip(1) {
                let (name, value) = line.split_once(": ").unwrap();
                match headers.iter_mut().find(|(n, _)| n == name) {
                    Some((_, values)) => values.push(value.to_owned()),
                    None => headers.push((name.to_owned(), vec![value.to_owned()])),
                }
            }
            let body = &text[end + 4..];
            let chunked = headers.iter().any(|(n, _)| n == "Transfer-Encoding");
            (headers, if chunked { joined(body) } else { body.to_vec() })
        }
        other => panic!("{other} is read back elsewhere"),
    }
}

/// The body of chunks.
fn joined(mut text: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = text.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&text[..line]).unwrap(), 16).unwrap();
        let data = &text[line + 2..];
        assert_eq!(&data[size..size + 2], b"\r\n");
        if size == 0 {
            assert_eq!(data.len(), 2);
            return body;
        }
        body.extend_from_slice(&data[..size]);
        text = &data[size + 2..];
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 30, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn bodies_and_headers_reach_the_function(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        text in any::<String>(),
        header in "[ -~]{0,30}",
        whole in any::<bool>(),
        cuts in cuts(),
    ) {
        for (format, name, is_text) in
            [(Format::Http, "plain", false), (Format::JsonHttp, "plain", false), (Format::Json, "base64", false), (Format::Json, "plain", true)]
        {
            let mut row = named(format, name);
            row.body = if is_text { text.clone().into_bytes() } else { bytes.clone() };
            row.whole = whole;
            row.head.headers.push("x-any", header.clone());
            row.head.headers.push("X-Any", "2");
            let (exchange, out) = row.encode(&row.codec(), &cuts);
            prop_assert_eq!(exchange.fault(), None);
            let (headers, body) = read_back(&row, &out);
            prop_assert_eq!(&body, &row.body, "{}", format);
            let any = headers.iter().find(|(n, _)| n == "X-Any").unwrap();
            prop_assert_eq!(&any.1, &[header.clone(), "2".to_owned()]);
            prop_assert_eq!(check_request(&row, &cuts), Ok(None));
        }
    }

    #[test]
    fn events_reach_the_function(value in values(), text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..200), whole in any::<bool>(), cuts in cuts()) {
        for (name, kind, body, key) in [
            ("0.1-json", "text/plain", serde_json::to_vec_pretty(&value).unwrap(), "data"),
            ("1.0-json", "application/vnd.x+json", serde_json::to_vec_pretty(&value).unwrap(), "data"),
            ("1.0-text", "text/html", text.clone().into_bytes(), "data"),
            ("1.0-bytes", "text/plain; charset=latin1", bytes.clone(), "data_base64"),
        ] {
            let mut row = named(Format::CloudEvent, name);
            row.head.headers.0.retain(|h| h.name != "content-type");
            row.head.headers.push("content-type", kind);
            (row.body, row.whole) = (body, whole);
            let (exchange, out) = row.encode(&row.codec(), &cuts);
            prop_assert_eq!(exchange.fault(), None);
            let event: Value = serde_json::from_slice(&out).unwrap();
            let expected = match name {
                "1.0-text" => Value::from(text.clone()),
                "1.0-bytes" => Value::from(BASE64.encode(&bytes)),
                _ => value.clone(),
            };
            if row.body.is_empty() {
                prop_assert_eq!(event.get(key), None);
            } else {
                prop_assert_eq!(&event[key], &expected);
            }
            prop_assert_eq!(check_request(&row, &cuts), Ok(None));
        }
        let mut row = named(Format::Mless, "plain");
        row.body = serde_json::to_vec_pretty(&value).unwrap();
        let (_, out) = row.encode(&row.codec(), &cuts);
        prop_assert_eq!(&serde_json::from_slice::<Value>(&out).unwrap()["event"], &value);
        prop_assert_eq!(check_request(&row, &cuts), Ok(None));
    }

    /// Attributes of an event pass through untouched, and ours are added once.
    #[test]
    fn events_keep_their_identity(id in ".{1,20}", data in values(), ext in "[a-z0-9]{1,12}", cuts in cuts()) {
        let ext = format!("x{ext}");
        let mut row = named(Format::CloudEvent, "1.0-event");
        let event = json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": data, ext.clone(): 7, "fnheaders": "forged"});
        row.body = serde_json::to_vec_pretty(&event).unwrap();
        let (exchange, out) = row.encode(&row.codec(), &cuts);
        prop_assert_eq!(exchange.fault(), None);
        let told: Value = serde_json::from_slice(&out).unwrap();
        for key in ["specversion", "id", "source", "type", "data", ext.as_str()] {
            prop_assert_eq!(&told[key], &event[key]);
        }
        prop_assert_eq!(&told["fncallid"], "0190163d8694739baea5966c26f8ad91");
        prop_assert_ne!(&told["fnheaders"], "forged");
        prop_assert_eq!(String::from_utf8_lossy(&out).matches("\"fnheaders\":").count(), 1);
    }

    #[test]
    fn answers_reach_the_caller(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        text in any::<String>(),
        value in values(),
        status in 200u16..600,
        header in "[!-~]{0,30}",
        chunk in 1usize..60,
        pretty in any::<bool>(),
        cuts in cuts(),
    ) {
        let to_json = |v: &Value| if pretty { serde_json::to_vec_pretty(v) } else { serde_json::to_vec(v) }.unwrap();
        let chunks = |body: &[u8]| {
            let mut out = Vec::new();
            for piece in body.chunks(chunk) {
                out.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
            out
        };
        let protocol = json!({"status_code": status, "headers": {"X-A": [header.clone(), "2"]}});
        let http = |framing: &str| format!("HTTP/1.1 {status} x\r\nX-A: {header}\r\nX-A: 2\r\n{framing}\r\n\r\n").into_bytes();
        let head = |framing: (&str, Value)| {
            let mut head = protocol.clone();
            head[framing.0] = framing.1;
            [to_json(&head), b"\r\n\n".to_vec()].concat()
        };
        let json_value = serde_json::to_vec(&value).unwrap();
        let attributes = |key: &str, data: Value, kind: &str| json!({
            "specversion": "1.0", "id": "1", "source": "/", "type": "t", "datacontenttype": kind, key: data,
            "fnstatuscode": status, "fnheaders": json!({"X-A": [header.clone(), "2"]}).to_string(),
        });
        for (format, name, answer, body) in [
            (Format::Http, "plain", [http(&format!("Content-Length: {}", bytes.len())), bytes.clone()].concat(), bytes.clone()),
            (Format::Http, "chunked", [http("Transfer-Encoding: chunked"), chunks(&bytes)].concat(), bytes.clone()),
            (Format::JsonHttp, "plain", [head(("body_length", bytes.len().into())), bytes.clone()].concat(), bytes.clone()),
            (Format::JsonHttp, "chunked", [head(("chunked", true.into())), chunks(&bytes)].concat(), bytes.clone()),
            (Format::Json, "plain", to_json(&json!({"body": text, "protocol": protocol})), text.clone().into_bytes()),
            (Format::Json, "base64", to_json(&json!({"body_encoding": "base64", "body": BASE64.encode(&bytes), "protocol": protocol})), bytes.clone()),
            (
                Format::CloudEvent,
                "0.1-json",
                serde_json::to_vec(&json!({"contentType": "application/json", "data": value, "extensions": {"protocol": protocol}})).unwrap(),
                json_value.clone(),
            ),
            (Format::CloudEvent, "0.1-json", to_json(&json!({"contentType": "text/x", "data": text, "extensions": {"protocol": protocol}})), text.clone().into_bytes()),
            (Format::CloudEvent, "1.0-json", serde_json::to_vec(&attributes("data", value.clone(), "application/json")).unwrap(), json_value),
            (Format::CloudEvent, "1.0-json", to_json(&attributes("data", text.clone().into(), "text/x")), text.clone().into_bytes()),
            (Format::CloudEvent, "1.0-json", to_json(&attributes("data_base64", BASE64.encode(&bytes).into(), "a/b")), bytes.clone()),
        ] {
            let row = named(format, name);
            // These never have a body.
            let body = if format == Format::Http && (status == 204 || status == 304) { continue } else { body };
            let events = decode(&mut row.encode(&row.codec(), &[]).0, &answer, &cuts, false);
            let Some(Event::Head { head, .. }) = events.first() else {
                return Err(TestCaseError::fail(format!("{format} {name}: {events:?}\n{}", answer.escape_ascii())));
            };
            prop_assert_eq!(head.status, status);
            let told: Vec<_> = head.headers.0.iter().filter(|h| h.name == "X-A").map(|h| h.value.clone()).collect();
            prop_assert_eq!(told, [header.clone().into_bytes(), b"2".to_vec()]);
            let got = events.iter().find_map(|e| if let Event::Body(b) = e { Some(b.to_vec()) } else { None });
            prop_assert_eq!(got.unwrap_or_default(), body, "{} {}", format, name);
            prop_assert_eq!(events.last(), Some(&Event::End(After::Reuse)));
            prop_assert!(check_answer(&row, Limits::default(), &answer, &cuts).is_ok());
        }
    }

    /// Whatever a function writes, and however it is cut, the rule holds.
    #[test]
    fn whatever_comes_is_judged_once(garbage in prop::collection::vec(any::<u8>(), 0..200), pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), cuts in cuts()) {
        for row in rows().iter().filter(|r| !r.file("fault").exists()) {
            let answers = answers(row);
            let mut answer = if answers.is_empty() { Vec::new() } else { answers[pick.index(answers.len())].1.clone() };
            let at = at.index(answer.len() + 1);
            answer.splice(at..at, garbage.iter().copied());
            let limits = Limits { message: 300, body: 300 };
            prop_assert!(check_answer(row, limits, &answer, &cuts).is_ok(), "{:?}", check_answer(row, limits, &answer, &cuts));
        }
    }

    #[test]
    fn whatever_is_asked_is_judged_once(body in prop::collection::vec(any::<u8>(), 0..200), cuts in cuts()) {
        for mut row in rows() {
            row.body = body.clone();
            prop_assert!(check_request(&row, &cuts).is_ok(), "{:?}", check_request(&row, &cuts));
        }
    }
}
