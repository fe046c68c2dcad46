//! What is said of servers that are not there, are something else, or go away.

use hyper_util::rt::TokioExecutor;
use stoker_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::client;

#[test]
fn addresses() {
    for good in [
        "http://127.0.0.1:7070",
        "127.0.0.1:7070",
        "localhost:7070",
        "http://[::1]:7070/",
        "http://h",
        "https://h:7070",
    ] {
        assert!(origin(good, "like this").is_ok(), "{good}");
    }
    for (bad, says) in [
        ("ftp://h", "is not an address"),
        ("http://", "is not an address"),
        ("http://h:7070/path", "is not an address"),
        ("a b", "is not an address"),
        ("", "is not an address"),
        ("http://me:hunter2@h", "has a user or a password in it"),
        ("me:hunter2@h:x", "has a user or a password in it"),
    ] {
        let failure = origin(bad, "like this").unwrap_err();
        assert!(
            failure.what().contains(says) && !failure.what().contains("hunter2"),
            "{bad}: {}",
            failure.what()
        );
    }
}

#[tokio::test]
async fn a_balancer_that_is_away_is_told_in_words() {
    let failure = Connection::open("http://127.0.0.1:1").await.err().unwrap();
    let what = failure.what();
    assert!(what.starts_with("no balancer answers at http://127.0.0.1:1: Connection refused"), "{what}");
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    (listener, server)
}

/// The error of a call there.
async fn called(server: &str) -> Error {
    let connection = Connection::open(server).await.map_err(|failure| failure.what().to_owned()).unwrap();
    let request = v1::InvokeRequest { function: "a/b".to_owned(), ..Default::default() };
    let status = client::calls(connection).invoke(request).await.unwrap_err();
    stoker_proto::status::from_status(&status)
}

#[tokio::test]
async fn a_balancer_with_tls_is_called_that() {
    let (listener, server) = listen().await;
    // Ends with the test's runtime.
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // The alert with which TLS answers what is none, behind a read, so that closing does not throw it away.
        stream.read_buf(&mut Vec::with_capacity(1024)).await.unwrap();
        stream.write_all(&[0x15, 3, 3, 0, 2, 2, 10, 0, 0]).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let error = called(&server).await;
    assert!(error.code == Code::InvalidRequest && error.message.contains("https://"), "{error:?}");
    assert!(!error.may_have_started, "{error:?}");
}

#[tokio::test]
async fn an_http_address_is_called_that() {
    let (listener, server) = listen().await;
    // Ends with the test's runtime.
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let pages = hyper::service::service_fn(async |_| {
            let page = http::Response::builder().status(404).header(CONTENT_TYPE, "application/json");
            Ok::<_, std::convert::Infallible>(page.body("{}".to_owned()).unwrap())
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(stream), pages).await.ok();
    });
    let error = called(&server).await;
    assert_eq!(error.code, Code::InvalidRequest, "{error}");
    assert!(error.message.contains("is it the balancer's HTTP address?"), "{error}");
}

#[tokio::test]
async fn a_balancer_that_goes_away_may_have_started_the_call() {
    let (listener, server) = listen().await;
    let gone = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Its settings, then nothing: an end while the call waits.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(3).any(|three| three == b"a/b") {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
    });
    let error = called(&server).await;
    gone.await.unwrap();
    assert_eq!((error.code, error.may_have_started), (Code::Unavailable, true), "{error}");
    assert!(error.message.contains("went away before it had answered"), "{error}");
}

#[tokio::test]
async fn what_speaks_no_http2_is_no_mistake_of_ours() {
    let (listener, server) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        // Until the client has seen it and leaves.
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let error = called(&server).await;
    assert!(error.code == Code::InvalidRequest && error.message.contains("speaks no HTTP/2"), "{error:?}");
}
