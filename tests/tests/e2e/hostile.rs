//! Bytes that no honest client sends, at every door: the server answers or closes, never dies, and serves the next client as if
//! nothing had been. What is random comes from a seed, so that a failure can be repeated.

use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::raw::{Raw, Reply};

/// A small generator of numbers (xorshift64*): repeatable, and nothing more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

async fn still_serves(fleet: &Fleet, after: &str) {
    for door in Door::ALL {
        let answer = fleet.clients.call(door, Call::of("good").body("fine")).await;
        assert_eq!(answer.unwrap_or_else(|error| panic!("{door:?} after {after}: {error:?}")).text(), "fine");
    }
}

const REQUEST: &str =
    "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello again";

fn fine(reply: &[u8]) -> bool {
    reply.starts_with(b"HTTP/1.1 200") && reply.ends_with(b"hello again")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_split_anywhere_is_the_same_request() {
    let fleet = Plan::default().start([probe("good")]).await;
    for at in 1..REQUEST.len() {
        let mut raw = Raw::connect(fleet.clients.http).await;
        raw.0.set_nodelay(true).unwrap();
        let (first, second) = REQUEST.as_bytes().split_at(at);
        raw.write(first).await.unwrap();
        // The server takes what there is before the rest is sent, or both together: either is a split.
        tokio::task::yield_now().await;
        raw.write(second).await.unwrap();
        let reply = raw.to_the_end().await;
        assert!(fine(&reply), "split at {at}: {}", String::from_utf8_lossy(&reply));
    }
    let mut raw = Raw::connect(fleet.clients.http).await;
    raw.0.set_nodelay(true).unwrap();
    for byte in REQUEST.bytes() {
        raw.write(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(fine(&raw.to_the_end().await));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_a_row_are_answered_in_a_row() {
    let fleet = Plan::default().start([probe("good")]).await;
    let mut raw = Raw::connect(fleet.clients.http).await;
    let all: String = (0..20)
        .map(|n| format!("POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{n:02}"))
        .collect();
    raw.write(all.as_bytes()).await.unwrap();
    for n in 0..20 {
        let reply = raw.reply().await.expect("an answer");
        assert_eq!((reply.status, &reply.body[..]), (200, format!("{n:02}").as_bytes()));
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_answered_or_closed() {
    let fleet = Plan::default().start([probe("good").with_trigger("/hook")]).await;
    let long = "a".repeat(200_000);
    let requests: Vec<(&str, String, &[u16])> = vec![
        ("no HTTP", "hello\r\n\r\n".into(), &[400]),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n".into(), &[400]),
        ("a version of the future", "POST /invoke/t/good HTTP/9.9\r\nHost: x\r\n\r\n".into(), &[400, 505]),
        ("no path", "POST  HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
        ("a path that is none", "POST invoke HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), &[400, 404]),
        ("a path that climbs", "POST /invoke/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), &[404]),
        ("a long path", format!("POST /{long} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), &[404, 414, 431]),
        ("a long header", format!("POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nX: {long}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), &[431]),
        ("a long header without end", format!("POST /invoke/t/good HTTP/1.1\r\nX: {}", long.repeat(10)), &[400, 431]),
        ("a header name with a space", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n".into(), &[400]),
        ("a header without a name", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\n: 1\r\n\r\n".into(), &[400]),
        ("a header with a NUL", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n".into(), &[400]),
        ("a length that is none", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\nhi".into(), &[400]),
        ("a negative length", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nhi".into(), &[400]),
        ("two lengths", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!".into(), &[400]),
        ("a length too large for any number", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nhi".into(), &[400]),
        ("a coding that nobody knows", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: rot13\r\n\r\nhi".into(), &[400, 501]),
        ("a chunk whose size is none", "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nhi\r\n0\r\n\r\n".into(), &[400, 499]),
        ("CONNECT", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nConnection: close\r\n\r\n".into(), &[400, 404, 405]),
        ("OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), &[200, 204, 400, 404]),
        ("TRACE", "TRACE /invoke/t/good HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), &[404, 405]),
        ("a method of its own", "BREW /invoke/t/good HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), &[404, 405]),
        ("an upgrade", "GET /t/t/none HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n".into(), &[404]),
    ];
    for (what, request, statuses) in requests {
        let mut raw = Raw::connect(fleet.clients.http).await;
        // The server may close while we write.
        _ = raw.write(request.as_bytes()).await;
        match raw.reply().await {
            Some(Reply { status, head, .. }) => {
                assert!(statuses.contains(&status), "{what}: {head}");
            }
            // Closed without a word: allowed only where there was no request to answer.
            None => assert!(!statuses.contains(&404), "{what}: no answer"),
        }
        drop(raw);
    }
    still_serves(&fleet, "wrong requests").await;
    fleet.end().await;
}

/// Both lengths at once is how requests are smuggled past a proxy: the chunked one counts, or neither does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_cannot_be_smuggled_inside_another() {
    let fleet = Plan::default().start([probe("good")]).await;
    let smuggled = "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nsmuggled";
    let mut raw = Raw::connect(fleet.clients.http).await;
    let request = format!(
        "POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5,
    );
    _ = raw.write(request.as_bytes()).await;
    let all = raw.to_the_end().await;
    let answers = all.windows(8).filter(|part| part == b"HTTP/1.1").count();
    assert!(answers <= 1, "{}", String::from_utf8_lossy(&all));
    assert!(!all.windows(8).any(|part| part == b"smuggled"), "{}", String::from_utf8_lossy(&all));
    still_serves(&fleet, "a smuggled request").await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_never_end_the_server() {
    let fleet = Plan::default().start([probe("good")]).await;
    let mut random = Random(0x5707_E12C_0FFE_E000);
    for round in 0..300 {
        let bytes = match round % 4 {
            // Anything at all.
            0 => {
                let length = random.below(2000);
                random.bytes(length)
            }
            // A good request with some bytes changed, ...
            1 => {
                let mut bytes = REQUEST.as_bytes().to_vec();
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len());
                    bytes[at] = random.next() as u8;
                }
                bytes
            }
            // ... left out, ...
            2 => {
                let mut bytes = REQUEST.as_bytes().to_vec();
                for _ in 0..=random.below(4) {
                    bytes.remove(random.below(bytes.len()));
                }
                bytes
            }
            // ... or put in.
            _ => {
                let mut bytes = REQUEST.as_bytes().to_vec();
                let (at, length) = (random.below(bytes.len()), random.below(20));
                bytes.splice(at..at, random.bytes(length));
                bytes
            }
        };
        for address in [fleet.clients.http, fleet.clients.grpc] {
            let mut raw = Raw::connect(address).await;
            let at = random.below(bytes.len());
            // Either half may find the connection closed.
            _ = raw.write(&bytes[..at]).await;
            _ = raw.write(&bytes[at..]).await;
            rustix::net::shutdown(&raw.0, rustix::net::Shutdown::Write).ok();
            raw.to_the_end().await;
        }
        if round % 50 == 0 {
            still_serves(&fleet, &format!("round {round}")).await;
        }
    }
    still_serves(&fleet, "random bytes").await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_frames_of_http2_never_end_the_server() {
    let fleet = Plan::default().start([probe("good")]).await;
    let mut random = Random(0xF2A3_E500_1234_5678);
    for round in 0..200 {
        for address in [fleet.clients.http, fleet.clients.grpc] {
            let mut raw = Raw::connect(address).await;
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
            for _ in 0..random.below(10) {
                let length = random.below(64);
                bytes.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
                // Known kinds of frames mostly, any flags, a few streams.
                bytes.extend_from_slice(&[random.below(11) as u8, random.next() as u8]);
                bytes.extend_from_slice(&(random.below(8) as u32).to_be_bytes());
                bytes.extend_from_slice(&random.bytes(length));
            }
            _ = raw.write(&bytes).await;
            rustix::net::shutdown(&raw.0, rustix::net::Shutdown::Write).ok();
            raw.to_the_end().await;
        }
        if round % 50 == 0 {
            still_serves(&fleet, &format!("round {round}")).await;
        }
    }
    still_serves(&fleet, "random frames").await;
    fleet.end().await;
}

/// Clients that are everywhere take the end of a stream that they still write to for a failure, and show nothing of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_a_request_is_read_by_curl() {
    let fleet = Plan::default().start([probe("good")]).await;
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    std::fs::write(&body, vec![b'x'; 2_000_000]).unwrap();
    let http = fleet.clients.http;
    for path in [
        "/invoke/t/none",
        "/t/t/none",
        "/ce/t/none",
        "/v2/apps/none",
        "/2015-03-31/functions/none/invocations",
    ] {
        let output = tokio::process::Command::new("curl")
            .args([
                "-sS",
                "--http2-prior-knowledge",
                "--max-time",
                "60",
                "-w",
                "\n%{http_code}",
                "-X",
                "POST",
            ])
            .arg("--data-binary")
            .arg(format!("@{}", body.display()))
            .arg(format!("http://{http}{path}"))
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{path}: {output:?}");
        let (answer, status) = said.rsplit_once('\n').unwrap();
        assert!(["404", "405", "413"].contains(&status) && answer.starts_with('{'), "{path}: {said}");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_continue_is_answered_before_the_body() {
    let fleet = Plan::default().start([probe("good")]).await;
    let mut raw = Raw::connect(fleet.clients.http).await;
    raw.write(
        b"POST /invoke/t/good HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    )
    .await
    .unwrap();
    assert_eq!(raw.reply().await.expect("a word before the body").status, 100);
    raw.write(b"body").await.unwrap();
    let reply = raw.reply().await.expect("an answer");
    assert_eq!((reply.status, &reply.body[..]), (200, &b"body"[..]));
    // Of what leads nowhere no body is asked for.
    let mut raw = Raw::connect(fleet.clients.http).await;
    raw.write(
        b"POST /invoke/t/none HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    )
    .await
    .unwrap();
    assert_eq!(raw.reply().await.expect("an answer").status, 404);
    fleet.end().await;
}
