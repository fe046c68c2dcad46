//! Bodies in pieces: both ways, replayed, slow, broken off.

use crate::stage::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways() {
    use v1::invoke_stream_request::Frame as Ask;
    use v1::invoke_stream_response::Frame as Say;
    const PIECES: usize = 256;
    let stage = stage(config(), vec![streaming_echo()]).await;
    let (send, requests) = mpsc::channel(2);
    let ask = |frame| v1::InvokeStreamRequest { frame: Some(frame) };
    tokio::spawn(async move {
        let start = v1::CallStart { function: "a/f".into(), head: None };
        send.send(ask(Ask::Start(start))).await.expect("it is read");
        for n in 0..PIECES {
            send.send(ask(Ask::Body(Bytes::from(vec![n as u8; 64 * 1024])))).await.expect("it is read");
        }
    });
    let requests = ReceiverStream::new(requests);
    let mut answer = stage.client().await.invoke_stream(requests).await.expect("an answer").into_inner();
    let (mut bytes, mut ended) = (0, false);
    while let Some(message) = answer.message().await.expect("no error") {
        match message.frame.expect("a frame") {
            Say::Answer(_) => assert_eq!(bytes, 0),
            Say::Body(piece) => {
                assert!(piece.iter().enumerate().all(|(at, byte)| *byte == ((bytes + at) >> 16) as u8));
                bytes += piece.len();
            }
            Say::End(_) => ended = true,
        }
    }
    assert_eq!((bytes, ended), (PIECES * 64 * 1024, true));
}

/// A call whose body is larger than an offer: where it was not started, another runner gets the same bytes.
#[tokio::test]
async fn a_large_body_is_replayed_from_its_beginning() {
    use v1::invoke_stream_request::Frame as Ask;
    let (tell, mut told) = mpsc::channel(4);
    let accepts_and_dies = {
        let tell = tell.clone();
        play(move |mut s| {
            let tell = tell.clone();
            async move {
                let Some(offer) = s.offer().await else { return };
                s.send(Out::Accepted(wire::Accepted { call: offer.call, expected_wait: None })).await;
                tell.send(offer.body).await.expect("the test reads");
                s.out.send(Err(Status::unavailable("gone"))).await.ok();
            }
        })
    };
    let reads_all = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let Some(offer) = s.offer().await else { return };
            let call = offer.call;
            s.send(Out::Started(wire::Started { call, container: "c".into() })).await;
            s.send(Out::Credit(wire::Credit { call, bytes: 256 * 1024 })).await;
            let mut all = offer.body.to_vec();
            loop {
                let Some(In::Body(body)) = s.next().await else { panic!("a body was due") };
                all.extend_from_slice(&body.data);
                if body.last {
                    break;
                }
            }
            tell.send(all.into()).await.expect("the test reads");
            s.finish(call, "done").await;
            s.next().await;
        }
    });
    let data: Bytes = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut saw_a_loss = false;
    // Whichever runner is asked first; two of three lose it.
    let plays = vec![accepts_and_dies.clone(), reads_all, accepts_and_dies];
    let stage = stage(config(), plays).await;
    let ask = |frame| v1::InvokeStreamRequest { frame: Some(frame) };
    let mut frames = vec![ask(Ask::Start(v1::CallStart { function: "a/f".into(), head: None }))];
    frames.extend(data.chunks(64 * 1024).map(|piece| ask(Ask::Body(data.slice_ref(piece)))));
    let answer = stage.client().await.invoke_stream(tokio_stream::iter(frames)).await.expect("an answer");
    let mut answer = answer.into_inner();
    while answer.message().await.expect("no error").is_some() {}
    while let Ok(seen) = told.try_recv() {
        if seen.len() < data.len() {
            assert!(data.starts_with(&seen) && seen.len() <= 64 * 1024);
            saw_a_loss = true;
        } else {
            assert_eq!(seen, data);
        }
    }
    // With this function's name the order begins with one that dies; if that changes, the test must be given another.
    assert!(saw_a_loss, "no runner was lost: nothing was replayed");
}

/// Answers `a/f` with more than any window holds, and everything else at once.
fn flood() -> Play {
    play(|mut s| async move {
        let mut floods = std::collections::HashMap::new();
        let piece = Bytes::from(vec![7; 64 * 1024]);
        while let Some(frame) = s.next().await {
            match frame {
                In::Offer(offer) if offer.body.is_empty() => {
                    s.send(Out::Head(wire::Head { call: offer.call, head: ok(), length: None })).await;
                    floods.insert(offer.call, 256 * 1024);
                }
                In::Offer(offer) => s.finish(offer.call, offer.body).await,
                In::Credit(credit) => {
                    *floods.get_mut(&credit.call).expect("it floods") += credit.bytes as usize;
                }
                In::Cancel(cancel) => {
                    floods.remove(&cancel.call);
                    s.finish(cancel.call, "").await;
                }
                _ => {}
            }
            for (call, window) in &mut floods {
                while *window >= piece.len() {
                    *window -= piece.len();
                    s.send(Out::Body(wire::Body {
                        call: *call,
                        data: piece.clone(),
                        last: false,
                        ..Default::default()
                    }))
                    .await;
                }
            }
        }
    })
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody() {
    let stage = stage(config(), vec![flood()]).await;
    // A client that reads the head and then nothing.
    let mut slow = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let post = b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    slow.write_all(post).await.expect("it reads");
    let mut first = [0; 12];
    slow.read_exact(&mut first).await.expect("a head");
    assert_eq!(&first, b"HTTP/1.1 200");
    for _ in 0..200 {
        assert_eq!(stage.invoke("a/f", "quick").await.expect("an answer").body, "quick");
    }
    // And it can still go on.
    let mut more = vec![0; 4 << 20];
    slow.read_exact(&mut more).await.expect("the flood goes on");
}

#[tokio::test]
async fn an_upload_that_breaks_off_ends_its_call() {
    let (tell, mut told) = mpsc::channel(4);
    let reads = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let Some(offer) = s.offer().await else { return };
            s.send(Out::Started(wire::Started { call: offer.call, container: "c".into() })).await;
            s.send(Out::Credit(wire::Credit { call: offer.call, bytes: 256 * 1024 })).await;
            tell.send(None).await.expect("the test waits");
            while let Some(frame) = s.next().await {
                match frame {
                    In::Body(body) => assert!(!body.last, "half a body is not a whole one"),
                    In::Cancel(cancel) => {
                        tell.send(Some(cancel.reason())).await.expect("the test waits");
                        s.finish(cancel.call, "").await;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    let stage = stage(config(), vec![reads]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let post = b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n";
    socket.write_all(post).await.expect("it reads");
    assert_eq!(told.recv().await, Some(None));
    socket.write_all(b"2\r\nc").await.expect("it reads");
    drop(socket);
    assert_eq!(told.recv().await, Some(Some(wire::CancelReason::CallerGone)));
}

#[tokio::test]
async fn a_client_is_told_how_long_an_answer_in_pieces_is() {
    let says = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let call = offer.call;
            let length = match &offer.body[..] {
                b"unsaid" => None,
                _ => Some(6),
            };
            s.send(Out::Head(wire::Head { call, head: ok(), length })).await;
            let data = Bytes::from_static(b"one");
            s.send(Out::Body(wire::Body { call, data, last: false, ..Default::default() })).await;
            let rest: &[u8] = if &offer.body[..] == b"short" { b"" } else { b"two" };
            s.finish(call, Bytes::copy_from_slice(rest)).await;
        }
    });
    let stage = stage(config(), vec![says]).await;
    let ask = async |body: &str| {
        let length = body.len();
        let head = format!(
            "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let answer = stage.http(&head).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (head.to_lowercase(), body.to_owned())
    };
    let (head, body) = ask("said").await;
    assert!(head.contains("content-length: 6") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(body, "onetwo");
    let (head, body) = ask("unsaid").await;
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert!(body.starts_with("3\r\none\r\n") && body.ends_with("0\r\n\r\n"), "{body}");
    // One that ends before is broken off, with its head or without, and is not taken for a shorter one.
    let (head, body) = ask("short").await;
    assert!(head.is_empty() || head.contains("content-length: 6"), "{head}");
    assert!("one".starts_with(&body), "{body}");
}

#[tokio::test]
async fn a_runner_lost_in_the_middle_of_an_answer_breaks_it_off() {
    let breaks = play(|mut s| async move {
        let Some(offer) = s.offer().await else { return };
        s.send(Out::Head(wire::Head { call: offer.call, head: ok(), length: None })).await;
        let data = Bytes::from_static(b"half");
        s.send(Out::Body(wire::Body { call: offer.call, data, last: false, ..Default::default() })).await;
        s.out.send(Err(Status::unavailable("gone"))).await.ok();
    });
    let stage = stage(config(), vec![breaks.clone(), breaks]).await;
    let answer = stage.http("POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    // What was sent was sent, if anything was; that there is no last chunk says that it is not all.
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    let (code, error) = reason(&stage.invoke("a/f", "x").await.expect_err("it breaks off"));
    assert_eq!((code, error.may_have_started), (Code::Aborted, true));
}

#[tokio::test]
async fn a_reader_that_stands_still_is_given_up_at_the_deadline() {
    use v1::invoke_stream_request::Frame as Ask;
    let (tell, mut told) = mpsc::channel(1);
    let endless = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let Some(offer) = s.offer().await else { return };
            s.send(Out::Head(wire::Head { call: offer.call, head: ok(), length: None })).await;
            let mut window = 256 * 1024;
            loop {
                while window >= 64 * 1024 {
                    window -= 64 * 1024;
                    let data = Bytes::from(vec![7; 64 * 1024]);
                    s.send(Out::Body(wire::Body {
                        call: offer.call,
                        data,
                        last: false,
                        ..Default::default()
                    }))
                    .await;
                }
                match s.next().await {
                    Some(In::Credit(credit)) => window += credit.bytes as usize,
                    Some(In::Cancel(cancel)) => {
                        tell.send(cancel.reason()).await.expect("the test waits");
                        s.finish(offer.call, "").await;
                    }
                    Some(_) => {}
                    None => return,
                }
            }
        }
    });
    let stage = stage(config(), vec![endless]).await;
    let start = Ask::Start(v1::CallStart { function: "a/f".into(), head: None });
    let start = tokio_stream::once(v1::InvokeStreamRequest { frame: Some(start) });
    let mut ask = Request::new(start);
    ask.metadata_mut().insert("grpc-timeout", "400m".parse().expect("a value"));
    // Held, and not read.
    let mut answer = stage.client().await.invoke_stream(ask).await.expect("an answer").into_inner();
    assert_eq!(told.recv().await, Some(wire::CancelReason::Deadline));
    let status = loop {
        match answer.message().await {
            Ok(message) => assert!(message.is_some(), "it has no good end"),
            Err(status) => break status,
        }
    };
    let (code, error) = reason(&status);
    assert_eq!((code, error.may_have_started), (Code::DeadlineExceeded, true));
}

/// A client that hears nothing at all may take its request for one that never came, and send it again.
#[tokio::test]
async fn what_came_of_an_answer_before_it_broke_off_is_heard() {
    let breaks = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let call = offer.call;
            s.send(Out::Started(wire::Started { call, container: "c".into() })).await;
            s.send(Out::Head(wire::Head { call, head: ok(), length: None })).await;
            let data = Bytes::from_static(b"half");
            s.send(Out::Body(wire::Body { call, data, last: false, ..Default::default() })).await;
            let error = v1::CallError { code: v1::ErrorCode::FunctionTimeout.into(), ..Default::default() };
            let finished = wire::Finished { call, error: Some(error), ..Default::default() };
            s.send(Out::Finished(Box::new(finished))).await;
        }
    });
    let stage = stage(config(), vec![breaks]).await;
    for _ in 0..20 {
        let answer = stage.http("POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nb").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("4\r\nhalf\r\n"), "{answer:?}");
    }
}
