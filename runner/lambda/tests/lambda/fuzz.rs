//! Whatever is sent, the server answers with a status of its contract, or closes; it never ends, and never hands over what was not asked
//! for.

use proptest::prelude::*;
use stoker_lambda::{About, Kind};
use tokio::io::AsyncReadExt as _;

use crate::{Runtime, about, api_of, invocation};

const PATHS: [&str; 15] = [
    "/2018-06-01/ping",
    "/2018-06-01/runtime/init/error",
    "/2018-06-01/runtime/restore/error",
    "/2018-06-01/runtime/invocation/id-1/response",
    "/2018-06-01/runtime/invocation/id-1/error",
    "/2018-06-01/runtime/invocation/other/response",
    "/2018-06-01/runtime/invocation//error",
    "/2020-01-01/extension/register",
    "/2020-01-01/extension/init/error",
    "/2020-01-01/extension/exit/error",
    "/2022-07-01/telemetry",
    "/2020-08-15/logs",
    "/2021-04-23/credentials",
    "/2018-06-01",
    "/",
];

const NAMES: [&str; 9] = [
    "Lambda-Runtime-Function-Error-Type",
    "Lambda-Runtime-Function-Response-Mode",
    "Lambda-Runtime-Function-XRay-Error-Cause",
    "Lambda-Extension-Name",
    "Lambda-Extension-Identifier",
    "Lambda-Extension-Function-Error-Type",
    "Authorization",
    "Content-Type",
    "User-Agent",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,40}",
        Just("streaming".to_owned()),
        Just("Runtime.Any".to_owned()),
        Just(uuid::Uuid::nil().to_string())
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "\\PC{0,80}".prop_map(String::into_bytes),
        Just(br#"{"events":["INVOKE","SHUTDOWN"]}"#.to_vec()),
        Just(br#"{"types":["platform"],"destination":{"protocol":"TCP","port":1}}"#.to_vec()),
        Just(br#"{"errorMessage":"m","errorType":"T"}"#.to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_request_is_answered(
        requests in prop::collection::vec(
            (prop::sample::select(vec!["GET", "POST", "PUT"]), prop::sample::select(&PATHS[..]),
             prop::collection::vec((prop::sample::select(&NAMES[..]), value()), 0..4), body()),
            1..12,
        ),
        concurrency in 1u32..3, works in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (api, address) = api_of(About { concurrency, kind: Kind::SnapStart, ..about(&["outside"]) });
            // What is said about it is read, so that nothing waits for it.
            let mut reads = None;
            if works {
                let mut answer = api.invoke(invocation("id-1")).unwrap();
                Runtime::new(address).await.next().await;
                reads = Some(tokio::spawn(async move { while answer.next().await.is_some() {} }));
            }
            for (method, path, headers, body) in requests {
                let headers: Vec<_> = headers.iter().map(|(key, value)| (*key, &**value)).collect();
                let mut connection = Runtime::new(address).await;
                connection.send(method, path, &headers, &body).await;
                let mut reply = Vec::new();
                while !reply.windows(4).any(|w| w == b"\r\n\r\n") && connection.0.read_buf(&mut reply).await.unwrap() > 0 {}
                let text = String::from_utf8_lossy(&reply).into_owned();
                let status: u16 = text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or_default();
                assert!([200, 202, 400, 403, 404, 405, 413].contains(&status), "{method} {path} {headers:?}: {text}");
            }
            let pong = Runtime::new(address).await.call("GET", "/2018-06-01/ping", &[], b"").await;
            assert_eq!(pong.text(), "pong");
            drop(api);
            if let Some(reads) = reads {
                reads.abort();
            }
        });
    }
}
