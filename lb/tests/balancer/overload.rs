//! More calls than room: a bounded queue, fair, woken by room and by nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::stage::*;

#[tokio::test]
async fn a_waiting_call_is_woken_by_capacity() {
    let full_then_free = play(|mut s| async move {
        let offer = s.offer().await.expect("an offer");
        s.refuse(offer.call, wire::RefusalReason::Full).await;
        let warmth = v1::Warmth { digest: offer.digest.clone(), idle: 1, ..Default::default() };
        let total = Some(v1::Resources { memory: 1024 * MIB, cpu_millis: 4000, slots: 8 });
        let functions = vec![warmth];
        let capacity =
            v1::Capacity { runner: "r0".into(), sequence: 9, total, functions, ..Default::default() };
        s.send(Out::Capacity(Box::new(wire::CapacityChanged { capacity: Some(capacity) }))).await;
        let offer = s.offer().await.expect("a second offer");
        s.finish(offer.call, "at last").await;
        s.next().await;
    });
    let stage = stage(config(), vec![full_then_free]).await;
    stage.linked(1).await;
    assert_eq!(stage.invoke("a/f", "hi").await.expect("an answer").body, "at last");
}

#[tokio::test]
async fn nobody_has_room() {
    let stage = stage(
        Config { max_wait: Duration::from_millis(100), ..config() },
        vec![refusing(wire::RefusalReason::Full)],
    )
    .await;
    let (code, error) = reason(&stage.invoke("a/f", "hi").await.expect_err("no room"));
    assert_eq!(code, Code::ResourceExhausted);
    assert!(matches!(error.retry, stoker_core::Retry::After(wait) if !wait.is_zero()), "{error:?}");
}

/// A runner with room for so many calls; the oldest ends whenever the test says so.
struct House {
    play: Play,
    offers: Arc<AtomicUsize>,
    /// Functions, by their digest, of the calls that it took, in this order.
    taken: Arc<Mutex<Vec<Bytes>>>,
    end: mpsc::Sender<()>,
}

fn house(room: usize) -> House {
    let (end, ends) = mpsc::channel(64);
    let ends = Arc::new(tokio::sync::Mutex::new(ends));
    let (offers, taken) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<Bytes>>>::default());
    let play = {
        let (offers, taken) = (offers.clone(), taken.clone());
        play(move |mut s| {
            let (offers, taken, ends) = (offers.clone(), taken.clone(), ends.clone());
            async move {
                let mut ends = ends.lock().await;
                let mut inside = std::collections::VecDeque::new();
                loop {
                    tokio::select! {
                        offer = s.offer() => {
                            let Some(offer) = offer else { return };
                            offers.fetch_add(1, Ordering::SeqCst);
                            if inside.len() < room {
                                taken.lock().expect("no panic").push(offer.digest);
                                inside.push_back(offer.call);
                            } else {
                                s.refuse(offer.call, wire::RefusalReason::Full).await;
                            }
                        }
                        Some(()) = ends.recv(), if !inside.is_empty() => {
                            let call = inside.pop_front().expect("somebody is inside");
                            s.finish(call, "done").await;
                        }
                    }
                }
            }
        })
    };
    House { play, offers, taken, end }
}

impl Stage {
    /// How many calls wait in the balancer.
    async fn waiting(&self) -> usize {
        let mut fleet = FleetServiceClient::new(self.channel().await);
        // The first answer of a watch is the present state; a queue that grows is no change of the fleet.
        let mut watch = fleet.watch_fleet(v1::WatchFleetRequest {}).await.expect("a stream").into_inner();
        watch.message().await.expect("no error").expect("one").queued as usize
    }

    /// Waits until so many do.
    async fn queued(&self, calls: usize) {
        while self.waiting().await != calls {}
    }
}

#[tokio::test]
async fn fifty_callers_and_room_for_four() {
    const ROOM: usize = 4;
    let house = house(ROOM);
    let queue = stoker_lb::Limits { total: 40, per_function: 30, ..Default::default() };
    let stage = Arc::new(stage(Config { queue, ..config() }, vec![house.play]).await);
    let call = |function: &'static str| {
        let stage = stage.clone();
        tokio::spawn(async move { stage.invoke(function, "x").await })
    };
    // 40 callers of a busy function: 4 inside, 30 in its line, 6 refused; then 10 of another.
    let mut busy: Vec<_> = (0..40).map(|_| call("a/f")).collect();
    stage.queued(30).await;
    let mut refused = 0;
    while refused < 6 {
        let (first, at, _) = futures_util::future::select_all(busy.iter_mut()).await;
        busy.remove(at);
        let (code, error) = reason(&first.expect("no panic").expect_err("the line is full"));
        assert_eq!((code, error.may_have_started), (Code::ResourceExhausted, false));
        assert!(matches!(error.retry, stoker_core::Retry::After(wait) if !wait.is_zero()), "{error:?}");
        refused += 1;
    }
    let rare: Vec<_> = (0..10).map(|_| call("a/again")).collect();
    stage.queued(40).await;
    let first_tries = house.offers.load(Ordering::SeqCst);
    assert!(first_tries <= 50, "at most one try each: {first_tries}");
    // Everybody is served, one for each that ends.
    for _ in 0..44 {
        house.end.send(()).await.expect("it is read");
    }
    for answer in futures_util::future::join_all(busy.into_iter().chain(rare)).await {
        assert_eq!(answer.expect("no panic").expect("served").body, "done");
    }
    // Each that ended was one offer, and nothing else was: nobody asked by the clock, nobody was refused again.
    assert_eq!(house.offers.load(Ordering::SeqCst) - first_tries, 40);
    // And the other function had every second place as long as it wanted it.
    let taken = house.taken.lock().expect("no panic");
    let turns: Vec<_> = taken[ROOM..ROOM + 20].iter().map(|digest| *digest == taken[0]).collect();
    assert_eq!(turns.iter().filter(|busy| !**busy).count(), 10, "{turns:?}");
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
}

#[tokio::test]
async fn a_turn_that_one_function_cannot_use_goes_to_another() {
    // The first function is refused whatever happens; the second only until the first of its calls has ended.
    let (end, ends) = mpsc::channel::<()>(1);
    let (tell, mut told) = mpsc::channel(1);
    let ends = Arc::new(tokio::sync::Mutex::new(ends));
    let picky = play(move |mut s| {
        let (ends, tell) = (ends.clone(), tell.clone());
        async move {
            let mut ends = ends.lock().await;
            let inside = s.offer().await.expect("the first of the second function");
            tell.send(()).await.expect("the test waits");
            let mut ended = false;
            loop {
                tokio::select! {
                    offer = s.offer() => {
                        let Some(offer) = offer else { return };
                        if ended && offer.digest == inside.digest {
                            s.finish(offer.call, "second").await;
                        } else {
                            s.refuse(offer.call, wire::RefusalReason::Full).await;
                        }
                    }
                    Some(()) = ends.recv() => {
                        ended = true;
                        s.finish(inside.call, "first").await;
                    }
                }
            }
        }
    });
    let stage = Arc::new(stage(config(), vec![picky]).await);
    let call = |function: &'static str| {
        let stage = stage.clone();
        tokio::spawn(async move { stage.invoke(function, "x").await })
    };
    let first = call("a/again");
    told.recv().await.expect("it is inside");
    let stuck = call("a/f");
    stage.queued(1).await;
    let second = call("a/again");
    stage.queued(2).await;
    end.send(()).await.expect("it is read");
    assert_eq!(first.await.expect("no panic").expect("served").body, "first");
    assert_eq!(second.await.expect("no panic").expect("served").body, "second");
    stage.queued(1).await;
    stuck.abort();
    stage.queued(0).await;
}

#[tokio::test]
async fn who_frees_up_is_asked_and_nobody_else() {
    // Twelve runners with room for one each, and one caller more than can be inside.
    let houses: Vec<_> = (0..12).map(|_| house(1)).collect();
    let stage = Arc::new(stage(config(), houses.iter().map(|house| house.play.clone()).collect()).await);
    let mut calls: Vec<_> = (0..13)
        .map(|_| {
            let stage = stage.clone();
            tokio::spawn(async move { stage.invoke("a/f", "x").await })
        })
        .collect();
    let inside = |house: &House| house.taken.lock().expect("no panic").len();
    let mut waiting = stage.waiting().await;
    while houses.iter().map(inside).sum::<usize>() + waiting < 13 {
        waiting = stage.waiting().await;
    }
    let offers = || houses.iter().map(|house| house.offers.load(Ordering::SeqCst)).collect::<Vec<_>>();
    for _ in 0..waiting {
        let at = houses.iter().rposition(|house| inside(house) == 1).expect("somebody is inside");
        let before = offers();
        houses[at].end.send(()).await.expect("it is read");
        let (answer, which, _) = futures_util::future::select_all(calls.iter_mut()).await;
        calls.remove(which);
        assert_eq!(answer.expect("no panic").expect("served").runner, format!("r{at}"));
        while inside(&houses[at]) < 2 {
            stage.waiting().await;
        }
        let asked: Vec<_> = offers().iter().zip(&before).map(|(now, before)| now - before).collect();
        assert_eq!((asked.iter().sum::<usize>(), asked[at]), (1, 1), "{asked:?}");
    }
}

#[tokio::test]
async fn a_runner_whose_line_is_full_is_asked_for_one_function_and_not_for_all() {
    let (end, ends) = mpsc::channel::<()>(1);
    let (tell, mut told) = mpsc::channel(1);
    let (ends, asked) = (Arc::new(tokio::sync::Mutex::new(ends)), Arc::<AtomicUsize>::default());
    let counted = asked.clone();
    let full = play(move |mut s| {
        let (ends, tell, asked) = (ends.clone(), tell.clone(), counted.clone());
        async move {
            let mut ends = ends.lock().await;
            let inside = s.offer().await.expect("the first");
            tell.send(()).await.expect("the test waits");
            loop {
                tokio::select! {
                    offer = s.offer() => {
                        let Some(wire::Offer { call, .. }) = offer else { return };
                        asked.fetch_add(1, Ordering::SeqCst);
                        let reason = wire::RefusalReason::Full.into();
                        let refused = wire::Refused { call, reason, line_full: true, ..Default::default() };
                        s.send(Out::Refused(Box::new(refused))).await;
                    }
                    Some(()) = ends.recv() => s.finish(inside.call, "first").await,
                }
            }
        }
    });
    let stage = Arc::new(stage(config(), vec![full]).await);
    let call = |function: &'static str| {
        let stage = stage.clone();
        tokio::spawn(async move { stage.invoke(function, "x").await })
    };
    let first = call("a/f");
    told.recv().await.expect("it is inside");
    let others = [call("a/f"), call("a/again")];
    stage.queued(2).await;
    let before = asked.load(Ordering::SeqCst);
    end.send(()).await.expect("it is read");
    assert_eq!(first.await.expect("no panic").expect("served").body, "first");
    while asked.load(Ordering::SeqCst) == before {
        stage.waiting().await;
    }
    // It stands in its line again, and in the same moment the turn would have gone on.
    stage.queued(2).await;
    assert_eq!(asked.load(Ordering::SeqCst) - before, 1);
    others.iter().for_each(|call| call.abort());
    stage.queued(0).await;
}
