//! A client's view of the port.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::{Outcome, Program};

static LISTEN: Key<SocketAddr> = listen("127.0.0.1:0");
static PROGRAM: Program = Program { name: "p", version: "1", about: "", examples: "", tables: &[&[&LISTEN]] };

async fn start() -> (Admin, Readiness) {
    let Ok(Outcome::Run(settings)) = PROGRAM.load([], []) else { panic!("there are only defaults") };
    let readiness = Readiness::new("no view of the fleet yet");
    let metrics = Metrics::default();
    metrics.counter("calls", "Calls").add_one();
    let pages = Pages::new(readiness.clone(), metrics, &settings);
    (Admin::start(settings.get(&LISTEN), pages, None).await.unwrap(), readiness)
}

async fn ask(address: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages() {
    let (admin, readiness) = start().await;
    let at = admin.address();
    assert!(ask(at, "GET /livez").await.starts_with("HTTP/1.1 200"));
    let not_ready = ask(at, "GET /readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503"), "{not_ready}");
    assert!(not_ready.ends_with("\r\n\r\nnot ready: no view of the fleet yet\n"), "{not_ready}");
    readiness.ready();
    assert!(ask(at, "GET /readyz").await.starts_with("HTTP/1.1 200"));
    readiness.stopping("SIGTERM");
    assert!(ask(at, "GET /readyz").await.contains("not ready: SIGTERM"));
    let metrics = ask(at, "GET /metrics").await;
    assert!(metrics.contains(MEDIA_TYPE) && metrics.contains("calls_total 1"), "{metrics}");
    let config = ask(at, "GET /config?x=y").await;
    let (_, config) = config.split_once("\r\n\r\n").unwrap();
    let config: serde_json::Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["admin_listen"]["value"], "127.0.0.1:0");
    assert!(ask(at, "GET /").await.starts_with("HTTP/1.1 404"));
    assert!(ask(at, "HEAD /livez").await.ends_with("\r\n\r\n"));
    let post = ask(at, "POST /livez").await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    admin.stop(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn clients_that_send_nothing_hold_neither_others_nor_the_end() {
    let (admin, _readiness) = start().await;
    let at = admin.address();
    let mut silent = Vec::new();
    for _ in 1..CONNECTIONS {
        silent.push(TcpStream::connect(at).await.unwrap());
    }
    assert!(ask(at, "GET /livez").await.starts_with("HTTP/1.1 200"));
    let mut half = TcpStream::connect(at).await.unwrap();
    half.write_all(b"GET /livez HT").await.unwrap();
    admin.stop(Duration::ZERO).await;
    for mut stream in silent {
        // Closed or reset: in any case over.
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}
