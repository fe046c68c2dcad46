//! A call that waits at a runner, and another runner that has somebody idle: it starts at one of them, and only there.

use crate::stage::*;

/// Two runners that do as the test says, frame by frame.
struct Two {
    stage: Arc<Stage>,
    runners: Vec<Directed>,
}

/// What the balancer says to a runner, and the way back.
struct Directed {
    heard: mpsc::Receiver<In>,
    say: mpsc::Sender<Out>,
}

impl Directed {
    fn new() -> (Self, Play) {
        let (tell, heard) = mpsc::channel(64);
        let (say, said) = mpsc::channel::<Out>(64);
        let said = Arc::new(tokio::sync::Mutex::new(said));
        let play = play(move |mut s| {
            let (tell, said) = (tell.clone(), said.clone());
            async move {
                let mut said = said.lock().await;
                loop {
                    tokio::select! {
                        frame = s.next() => match frame {
                            // The test may be over.
                            Some(frame) => _ = tell.send(frame).await,
                            None => return,
                        },
                        Some(frame) = said.recv() => s.send(frame).await,
                    }
                }
            }
        });
        (Self { heard, say }, play)
    }

    async fn next(&mut self) -> In {
        loop {
            match self.heard.recv().await.expect("the balancer is there") {
                In::Define(_) => {}
                frame => return frame,
            }
        }
    }

    async fn offer(&mut self) -> wire::Offer {
        match self.next().await {
            In::Offer(offer) => offer,
            other => panic!("{other:?} where an offer was due"),
        }
    }

    async fn say(&self, frame: Out) {
        self.say.send(frame).await.expect("it plays");
    }

    async fn accept(&self, call: u64) {
        self.say(Out::Accepted(wire::Accepted { call, expected_wait: None })).await;
    }

    async fn finish(&self, call: u64, body: &'static str, idle: &wire::Offer) {
        let warmth = Some(v1::Warmth { digest: idle.digest.clone(), idle: 1, ..Default::default() });
        let body = Bytes::from_static(body.as_bytes());
        self.say(Out::Finished(Box::new(wire::Finished {
            call,
            head: ok(),
            body,
            warmth,
            ..Default::default()
        })))
        .await;
    }

    /// A container of the offer's function is idle.
    async fn has_idle(&self, n: usize, sequence: u64, offer: &wire::Offer) {
        let warmth = v1::Warmth { digest: offer.digest.clone(), idle: 1, ..Default::default() };
        self.has(n, sequence, vec![warmth]).await;
    }

    /// What it has.
    async fn has(&self, n: usize, sequence: u64, functions: Vec<v1::Warmth>) {
        let total = Some(v1::Resources { memory: 1024 * MIB, cpu_millis: 4000, slots: 8 });
        let capacity =
            v1::Capacity { runner: format!("r{n}"), sequence, total, functions, ..Default::default() };
        self.say(Out::Capacity(Box::new(wire::CapacityChanged { capacity: Some(capacity) }))).await;
    }

    async fn expect_leave(&mut self, call: u64) {
        match self.next().await {
            In::Cancel(cancel) if cancel.call == call => {
                assert_eq!(cancel.reason(), wire::CancelReason::PlacedElsewhere);
            }
            other => panic!("{other:?} where a cancel was due"),
        }
    }

    async fn expect_start(&mut self, call: u64) {
        match self.next().await {
            In::Start(start) => assert_eq!(start.call, call),
            other => panic!("{other:?} where a start was due"),
        }
    }
}

async fn two() -> Two {
    let (runners, plays): (Vec<_>, Vec<_>) = (0..2).map(|_| Directed::new()).unzip();
    Two { stage: Arc::new(stage(config(), plays).await), runners }
}

type Answer = tokio::task::JoinHandle<Result<v1::InvokeResponse, Status>>;

impl Two {
    fn call(&self, function: &'static str) -> Answer {
        let stage = self.stage.clone();
        tokio::spawn(async move { stage.invoke(function, "hi").await })
    }

    /// Waits until the balancer has taken this word of a runner.
    async fn seen(&self, runner: usize, sequence: u64) {
        let name = format!("r{runner}");
        let is = |c: &v1::Capacity| c.runner == name && c.sequence == sequence;
        self.stage.sees(|seen| seen.iter().any(|r| r.capacity.as_ref().is_some_and(is))).await;
    }

    /// A call that waits at the runner that was asked first: that runner, the other, and the offer.
    async fn waiting(&mut self, function: &'static str) -> (Answer, usize, usize, wire::Offer) {
        let answer = self.call(function);
        let [one, two] = &mut self.runners[..] else { unreachable!("there are two") };
        let (first, offer) = tokio::select! {
            offer = one.offer() => (0, offer),
            offer = two.offer() => (1, offer),
        };
        self.runners[first].accept(offer.call).await;
        // What comes behind it on the stream is seen when it has been heard.
        self.runners[first].has(first, 5, Vec::new()).await;
        self.seen(first, 5).await;
        (answer, first, 1 - first, offer)
    }
}

async fn answered(answer: Answer) -> v1::InvokeResponse {
    answer.await.expect("no panic").expect("an answer")
}

#[tokio::test]
async fn it_goes_where_somebody_is_idle_first() {
    let mut two = two().await;
    let (answer, first, other, offer) = two.waiting("a/f").await;
    two.runners[other].has_idle(other, 9, &offer).await;
    let second = two.runners[other].offer().await;
    assert_eq!((&second.call_id, &second.body), (&offer.call_id, &offer.body));
    assert!(second.only_if_idle && !offer.only_if_idle, "it would only start there at once");
    two.runners[other].finish(second.call, "there", &offer).await;
    assert_eq!(answered(answer).await.runner, format!("r{other}"));
    two.runners[first].expect_leave(offer.call).await;
}

#[tokio::test]
async fn it_is_not_started_here_while_it_may_start_there() {
    let mut two = two().await;
    let (answer, first, other, offer) = two.waiting("a/f").await;
    two.runners[other].has_idle(other, 9, &offer).await;
    let second = two.runners[other].offer().await;
    // A slot comes free here at the same moment. Until the other has answered nothing is said.
    two.runners[first].say(Out::Ready(wire::Ready { call: offer.call })).await;
    two.runners[first].has_idle(first, 9, &offer).await;
    two.seen(first, 9).await;
    assert!(two.runners[first].heard.try_recv().is_err(), "it was told to start, and may have started there");
    let reason = wire::RefusalReason::NoneIdle.into();
    let refused = wire::Refused { call: second.call, reason, ..Default::default() };
    two.runners[other].say(Out::Refused(Box::new(refused))).await;
    two.runners[first].expect_start(offer.call).await;
    two.runners[first].finish(offer.call, "here", &offer).await;
    assert_eq!(answered(answer).await.runner, format!("r{first}"));
}

#[tokio::test]
async fn it_does_not_stand_in_two_lines() {
    let mut two = two().await;
    let (answer, first, other, offer) = two.waiting("a/f").await;
    two.runners[other].has_idle(other, 9, &offer).await;
    let second = two.runners[other].offer().await;
    // The idle one was gone, and the runner is of a release that takes it into its line all the same: there it would only wait, and have a
    // container started for nothing.
    two.runners[other].accept(second.call).await;
    two.runners[other].expect_leave(second.call).await;
    two.runners[first].say(Out::Ready(wire::Ready { call: offer.call })).await;
    two.runners[first].expect_start(offer.call).await;
    two.runners[first].finish(offer.call, "here", &offer).await;
    assert_eq!(answered(answer).await.runner, format!("r{first}"));
}

#[tokio::test]
async fn a_place_that_is_lost_leaves_the_other() {
    let mut two = two().await;
    let (answer, first, other, offer) = two.waiting("a/f").await;
    two.runners[other].has_idle(other, 9, &offer).await;
    let second = two.runners[other].offer().await;
    let refused =
        wire::Refused { call: offer.call, reason: wire::RefusalReason::Full.into(), ..Default::default() };
    two.runners[first].say(Out::Refused(Box::new(refused))).await;
    two.runners[other].accept(second.call).await;
    two.runners[other].say(Out::Ready(wire::Ready { call: second.call })).await;
    two.runners[other].expect_start(second.call).await;
    two.runners[other].finish(second.call, "there", &offer).await;
    assert_eq!(answered(answer).await.runner, format!("r{other}"));
}

#[tokio::test]
async fn an_answer_elsewhere_frees_one_for_who_waits() {
    let mut two = two().await;
    let (waits, first, other, offer) = two.waiting("a/f").await;
    // Another call runs at the other runner; its end leaves somebody idle, and that is all the news there is.
    let runs = two.call("a/f");
    let [one, another] = &mut two.runners[..] else { unreachable!("there are two") };
    let (at, running) = tokio::select! {
        offer = one.offer() => (0, offer),
        offer = another.offer() => (1, offer),
    };
    if at == first {
        let refused = wire::RefusalReason::Full.into();
        let refused = wire::Refused { call: running.call, reason: refused, ..Default::default() };
        two.runners[first].say(Out::Refused(Box::new(refused))).await;
    }
    let running = if at == first { two.runners[other].offer().await } else { running };
    two.runners[other].finish(running.call, "first", &offer).await;
    assert_eq!(answered(runs).await.body, "first");
    let moved = two.runners[other].offer().await;
    assert_eq!(moved.call_id, offer.call_id);
    two.runners[other].finish(moved.call, "second", &offer).await;
    assert_eq!(answered(waits).await.body, "second");
    two.runners[first].expect_leave(offer.call).await;
}
