//! Connections of clients: how many there may be, how long they may take to say something, and what is counted of them.

use stoker_runtime::metrics::Metrics;

use crate::stage::*;

/// As many connections that are one too many are told so at once; others are closed.
const TOLD: usize = 64;

const CALL: &str = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi";

/// A connection that had an answer, and rests.
async fn resting(stage: &Stage) -> TcpStream {
    let mut client = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    client.write_all(CALL.as_bytes()).await.expect("it reads");
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"\r\n\r\nhi") {
        let length = client.read(&mut piece).await.expect("it answers");
        assert!(length > 0, "it ended after {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    client
}

async fn end(mut client: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // One that was reset has ended too.
    client.read_to_end(&mut rest).await.ok();
    rest
}

#[tokio::test]
async fn who_says_nothing_in_time_is_not_waited_for() {
    let metrics = Metrics::default();
    let stage = stage(Config { metrics: metrics.clone(), ..config() }, vec![echo()]).await;
    let (grpc, http) = (stage.balancer.grpc_address(), stage.balancer.http_address());
    let mut slow = Vec::new();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (port, said) in [
        (grpc, &b""[..]),
        (http, b""),
        (grpc, &preface[..23]),
        (http, &preface[..3]),
        (http, &preface[..23]),
        (http, b"P"),
        (http, b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\n"),
    ] {
        let mut client = TcpStream::connect(port).await.expect("it listens");
        client.write_all(said).await.expect("it reads");
        slow.push(client);
    }
    let count = slow.len();
    // It had its answer: that it rests is nobody's fault.
    let rests = resting(&stage).await;
    // It speaks HTTP/2 and says no more, not even that it is there.
    let mut mute = TcpStream::connect(grpc).await.expect("it listens");
    mute.write_all(preface).await.expect("it reads");
    // From here on time passes by itself whenever nobody has anything to do.
    tokio::time::pause();
    for client in slow {
        end(client).await;
    }
    end(rests).await;
    end(mute).await;
    assert_eq!(figure(&metrics, "connections_failed_total{why=\"silent\"}"), count);
    assert_eq!(figure(&metrics, "connections{port=\"http\"}"), 0);
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_is_given_up() {
    let metrics = Metrics::default();
    let send_timeout = Duration::from_secs(1);
    let config = Config { send_timeout, metrics: metrics.clone(), ..config() };
    let stage = stage(config, vec![streaming_echo()]).await;
    let client = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    // What is sent comes back, more of it than the system keeps for somebody who does not read.
    let (_unread, mut ask) = client.into_split();
    let head = format!("POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1 << 30);
    ask.write_all(head.as_bytes()).await.expect("it reads");
    // Ends with the connection, long before all of it is sent.
    while ask.write_all(&[0; 64 << 10]).await.is_ok() {}
    let (deaf, cancelled) =
        (r#"connections_failed_total{why="deaf"}"#, r#"calls_total{door="http",code="CANCELLED"}"#);
    until(|| figure(&metrics, deaf) == 1 && figure(&metrics, cancelled) == 1).await;
}

/// By HTTP/2 its connection is as good as ever: others of its answers come, and it is told of the one that does not.
#[tokio::test]
async fn who_takes_nothing_of_one_answer_loses_that_one() {
    use v1::invoke_stream_request::Frame as Ask;
    let metrics = Metrics::default();
    let stage = stage(Config { metrics: metrics.clone(), ..config() }, vec![streaming_echo()]).await;
    let mut client = stage.client().await;
    let (send, requests) = mpsc::channel(2);
    let ask = |frame| v1::InvokeStreamRequest { frame: Some(frame) };
    let start = Ask::Start(v1::CallStart { function: "a/f".into(), head: None });
    send.send(ask(start)).await.expect("it is read");
    let answer = client.invoke_stream(ReceiverStream::new(requests)).await.expect("an answer");
    let mut unread = answer.into_inner();
    // From here on time passes by itself whenever nothing moves.
    tokio::time::pause();
    // Ends with the call, long before all of it is sent.
    let piece = Bytes::from(vec![9; 64 << 10]);
    while send.send(ask(Ask::Body(piece.clone()))).await.is_ok() {}
    let (deaf, cancelled) =
        (r#"connections_failed_total{why="deaf"}"#, r#"calls_total{door="stream",code="CANCELLED"}"#);
    until(|| figure(&metrics, deaf) == 1 && figure(&metrics, cancelled) == 1).await;
    let ended = loop {
        if let Err(status) = unread.message().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    let request = v1::InvokeRequest { function: "a/f".into(), body: "hi".into(), ..Default::default() };
    assert_eq!(client.invoke(request).await.expect("an answer").into_inner().body, "hi");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let metrics = Metrics::default();
    let stage = set(Config { max_connections: 2, metrics: metrics.clone(), ..config() }, vec![]).await;
    let told = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let (grpc, http) = (stage.balancer.grpc_address(), stage.balancer.http_address());
    // One at each port: they are counted together.
    let first = [grpc, http].map(TcpStream::connect);
    let first = futures_util::future::try_join_all(first).await.expect("it listens");
    // By HTTP: in the words of who is asked, and the connection ends though nobody asked for that.
    for path in
        ["/invoke/a/f", "/t/a/hello/x", "/v2/apps", "/2015-03-31/functions/a:f/invocations", "/invoke"]
    {
        let answer = stage.http(&told.replace("/invoke/a/f", path)).await.to_lowercase();
        // Proxies of mless know 500 alone, and AWS's clients words of their own.
        let (status, text) = match path {
            "/invoke" => ("http/1.1 500", "2 connections of clients"),
            _ if path.starts_with("/2015") => ("http/1.1 429", "toomanyrequestsexception"),
            _ => ("http/1.1 503", "2 connections of clients"),
        };
        assert!(answer.contains("connection: close") && answer.contains(text), "{answer}");
        assert!(answer.starts_with(status), "{path}: {answer}");
    }
    let answer = stage.http(told).await.to_lowercase();
    assert!(answer.contains("\"overloaded\"") && answer.contains("retry-after: 1"), "{answer}");
    // By gRPC, calls and everything beside them.
    let refused = stage.invoke("a/f", "x").await.expect_err("there is no room");
    let (code, error) = reason(&refused);
    assert_eq!((code, error.code), (Code::ResourceExhausted, stoker_core::Code::Overloaded));
    assert!(error.message.contains("2 connections of clients"), "{}", error.message);
    let listed = stage.fleet().await.list_runners(v1::ListRunnersRequest::default()).await;
    assert_eq!(listed.expect_err("there is no room").code(), Code::ResourceExhausted);
    // Some wait to be told; more than those are not heard. From here on no time passes, as long as nobody waits for any.
    tokio::time::pause();
    let open =
        || figure(&metrics, "connections{port=\"grpc\"}") + figure(&metrics, "connections{port=\"http\"}");
    let refused = || figure(&metrics, "connections_failed_total{why=\"full\"}");
    let mut others = Vec::new();
    while open() < 2 + TOLD {
        let before = refused();
        others.push(std::net::TcpStream::connect(http).expect("it listens"));
        until(|| refused() > before).await;
    }
    let before = refused();
    let mut unheard = std::net::TcpStream::connect(http).expect("the system takes it");
    until(|| refused() > before).await;
    assert_eq!(std::io::Read::read(&mut unheard, &mut [0]).ok().unwrap_or_default(), 0);
    assert_eq!(open(), 2 + TOLD);
    drop((others, first));
    until(|| open() == 0).await;
    // Whoever comes when others have left is served.
    let answer = stage.http("GET /v2/apps HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn figure(metrics: &Metrics, series: &str) -> usize {
    let (text, series) = (metrics.text(), format!("stoker_lb_{series} "));
    let line = text.lines().find_map(|line| line.strip_prefix(&series)).expect("the series");
    line.parse().expect("a number")
}

/// Lets others work until it is so.
async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::task::yield_now().await;
    }
}

/// What is answered before its body has come (it is for nobody, say) is no end of its connection, and one of HTTP/1.1 that waits for the word to send its body
/// is, since nobody knows whether that will come.
#[tokio::test]
async fn a_body_that_comes_behind_its_answer_is_read() {
    let stage = stage(config(), vec![echo()]).await;
    let mut client = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let nobody =
        |more: &str| format!("POST /invoke/a/none HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n{more}\r\n");
    for _ in 0..3 {
        client.write_all(nobody("").as_bytes()).await.expect("it reads");
        let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
        while !answer.ends_with(b"}") {
            let length = client.read(&mut piece).await.expect("it answers");
            assert!(length > 0, "it ended after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..length]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
        client.write_all(b"12345").await.expect("it reads");
    }
    client.write_all(nobody("expect: 100-continue\r\n").as_bytes()).await.expect("it reads");
    let last = String::from_utf8_lossy(&end(client).await).into_owned();
    assert!(last.starts_with("HTTP/1.1 404") && !last.contains("100 Continue"), "{last}");
}
