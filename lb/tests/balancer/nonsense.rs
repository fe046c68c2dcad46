//! Peers that send anything at all, seeded: no call loses its outcome, none gets two, and the next peer is served.

use stoker_core::backoff::split_mix;

use crate::stage::*;

fn below(seed: &mut u64, n: u64) -> u64 {
    split_mix(seed) % n
}

/// A frame of a runner, for calls around those that run.
fn any_frame(seed: &mut u64, newest: u64) -> Option<Out> {
    let call = below(seed, newest + 2);
    let data = Bytes::from(vec![1; below(seed, 100) as usize]);
    Some(match below(seed, 12) {
        0 => Out::Refused(Box::new(wire::Refused {
            call,
            reason: below(seed, 9) as i32,
            ..Default::default()
        })),
        1 => Out::Accepted(wire::Accepted { call, expected_wait: None }),
        2 => Out::Ready(wire::Ready { call }),
        3 => Out::Started(wire::Started { call, container: "c".into() }),
        4 => Out::Head(wire::Head {
            call,
            head: Some(v1::ResponseHead { status: below(seed, 1200) as u32, headers: Vec::new() }),
            length: (below(seed, 2) == 0).then(|| split_mix(seed)),
        }),
        5 => Out::Body(wire::Body { call, data, last: below(seed, 2) == 0, ..Default::default() }),
        6 => Out::Credit(wire::Credit { call, bytes: split_mix(seed) as u32 }),
        7 => Out::Finished(Box::new(wire::Finished { call, body: data, ..Default::default() })),
        8 => Out::Finished(Box::new(wire::Finished {
            call,
            error: Some(v1::CallError { code: below(seed, 99) as i32, ..Default::default() }),
            ..Default::default()
        })),
        9 => Out::Capacity(Box::new(wire::CapacityChanged {
            capacity: Some(v1::Capacity { runner: "r0".into(), ..Default::default() }),
        })),
        10 => Out::Capacity(Box::default()),
        _ => return None,
    })
}

#[tokio::test]
async fn a_runner_that_says_anything_takes_no_outcome_away() {
    for round in 0..24u64 {
        let wild = play(move |mut s| async move {
            let mut seed = round;
            // Talks as long as there are offers to talk about, then breaks off.
            while let Some(offer) = s.offer().await {
                let newest = offer.call;
                for _ in 0..below(&mut seed, 6) {
                    let frame = any_frame(&mut seed, newest);
                    s.out.send(Ok(wire::EngageResponse { frame })).await.ok();
                }
                if below(&mut seed, 4) == 0 {
                    s.out.send(Err(Status::unavailable("gone"))).await.ok();
                    return;
                }
                // From here on it would have to read other frames than offers.
                if below(&mut seed, 3) == 0 {
                    while let Some(frame) = s.next().await {
                        let frame = match frame {
                            In::Cancel(_) => return,
                            _ => any_frame(&mut seed, newest),
                        };
                        s.out.send(Ok(wire::EngageResponse { frame })).await.ok();
                    }
                    return;
                }
            }
        });
        let lenient = play(move |s| {
            let wild = wild.clone();
            async move {
                // A panic of the script (it met another frame than an offer) is a runner that breaks off.
                tokio::spawn(wild(s)).await.ok();
            }
        });
        let stage = stage(Config { max_wait: Duration::from_millis(100), ..config() }, vec![lenient]).await;
        let client = stage.client().await;
        let calls = (0..8).map(|n| {
            let mut client = client.clone();
            let function = if n % 2 == 0 { "a/f" } else { "a/again" };
            let mut ask = Request::new(v1::InvokeRequest { function: function.into(), ..Default::default() });
            ask.metadata_mut().insert("grpc-timeout", "100m".parse().expect("a value"));
            async move { client.invoke(ask).await }
        });
        // One outcome each: an answer, or an error that is one of ours.
        for outcome in futures_util::future::join_all(calls).await {
            if let Err(status) = outcome {
                let details = tonic_types::StatusExt::get_error_details(&status);
                assert!(details.error_info().is_some(), "round {round}: {status:?}");
            }
        }
        stage.balancer.stop(Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn a_client_that_says_anything_gets_one_end_for_each_call() {
    use v1::session_request::Frame as Ask;
    use v1::session_response::Frame as Say;
    let stage = stage(config(), vec![echo()]).await;
    for round in 0..60u64 {
        let mut seed = round.wrapping_mul(0x9e37_79b9);
        let mut frames = Vec::new();
        for _ in 0..30 {
            let call = below(&mut seed, 4);
            let data = Bytes::from(vec![1; below(&mut seed, 50) as usize]);
            let frame = match below(&mut seed, 8) {
                0..=2 => Some(Ask::Start(v1::SessionStart {
                    function: ["a/f", "a/none", ""][below(&mut seed, 3) as usize].into(),
                    body: data,
                    complete: below(&mut seed, 3) > 0,
                    timeout_ms: below(&mut seed, 3) * 50,
                    ..Default::default()
                })),
                3 => Some(Ask::Body(v1::SessionBody { data, last: below(&mut seed, 2) == 0 })),
                4 => Some(Ask::Credit(v1::SessionCredit { bytes: split_mix(&mut seed) as u32 })),
                5 | 6 => Some(Ask::Cancel(v1::SessionCancel {})),
                _ => None,
            };
            frames.push(v1::SessionRequest { call, frame });
        }
        let starts = |frames: &[v1::SessionRequest]| {
            frames.iter().filter(|frame| matches!(frame.frame, Some(Ask::Start(_)))).count()
        };
        let most = starts(&frames);
        let sent = tokio_stream::iter(frames);
        let mut answers = stage.client().await.session(sent).await.expect("a session").into_inner();
        let mut ends = 0;
        let ended = loop {
            match answers.message().await {
                Ok(Some(message)) => {
                    if let Some(Say::Finished(_)) = message.frame {
                        ends += 1;
                    }
                }
                Ok(None) => break true,
                Err(status) => {
                    assert_eq!(status.code(), Code::InvalidArgument, "round {round}: {status:?}");
                    break false;
                }
            }
        };
        assert!(ends <= most && (!ended || ends == most), "round {round}: {ends} of {most}, {ended}");
    }
    assert_eq!(stage.invoke("a/f", "x").await.expect("still served").body, "x");
}
