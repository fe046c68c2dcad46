use stoker_core::error::Code;

use super::*;
use crate::conformance::{self, call, dead, done, give_up, listed, next};
use crate::testing::Nats;
use crate::{Follow, State};

const LEASE: Duration = Duration::from_millis(1500);

fn config(nats: &Nats) -> Config {
    Config { lease: LEASE, ..Config::new(vec![nats.url()]) }
}

#[tokio::test]
async fn it_conforms() {
    let Some(nats) = Nats::start().await else { return };
    let queue = Arc::new(NatsQueue::open(config(&nats)).await.unwrap());
    conformance::run(queue.clone(), LEASE).await;
    queue.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_end_once() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(Config { lease: conformance::LONG_LEASE, ..config(&nats) }).await.unwrap();
    let queue = Arc::new(queue);
    conformance::many(queue.clone()).await;
    queue.stop().await;
}

#[tokio::test]
async fn balancers_share_it_and_a_killed_server_forgets_nothing() {
    let Some(mut nats) = Nats::start().await else { return };
    let one = NatsQueue::open(config(&nats)).await.unwrap();
    let other = NatsQueue::open(config(&nats)).await.unwrap();
    let (waits, runs, ends) = (call("a/waits", "1"), call("a/runs", "2"), call("a/ends", "3"));
    for made in [&waits, &runs, &ends] {
        assert!(one.submit(made.clone()).await.unwrap());
        assert!(!other.submit(made.clone()).await.unwrap());
    }
    let taken = next(&other, "a/ends").await;
    other.finish(&taken.ticket, done(&taken, "bye")).await.unwrap();
    let lost = next(&other, "a/runs").await;
    nats.kill();
    nats.start_again().await;
    assert_eq!(next(&one, "a/waits").await.call, waits);
    // Its lease ends with nobody to renew it.
    let again = next(&one, "a/runs").await;
    assert!(again.progress.attempts[0].interrupted && again.progress.attempts.len() == 2);
    let late = other.finish(&lost.ticket, done(&lost, "late")).await;
    assert!(matches!(late, Err(Error::Lost)), "{late:?}");
    one.finish(&again.ticket, done(&again, "in time")).await.unwrap();
    let kept = one.get(&ends.id).await.unwrap().unwrap();
    assert_eq!((kept.progress.is(), kept.answer.unwrap().body), (State::Done, "bye".into()));
    let kept = other.get(&runs.id).await.unwrap().unwrap();
    assert_eq!(kept.answer.unwrap().body, "in time");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_is_held_is_begun_by_nobody_else_though_a_killed_server_tells_of_it_again() {
    let Some(mut nats) = Nats::start().await else { return };
    let one = NatsQueue::open(config(&nats)).await.unwrap();
    let other = NatsQueue::open(config(&nats)).await.unwrap();
    one.submit(call("a/runs", "1")).await.unwrap();
    let held = next(&other, "a/runs").await;
    // The server writes seldom what it has given to whom.
    nats.kill();
    let keeps = async {
        loop {
            other.extend(&held.ticket).await.expect("it is held as long as that is said");
            tokio::time::sleep(LEASE / 4).await;
        }
    };
    let told = async {
        nats.start_again().await;
        // Two that have nothing to do, one of them the holder itself.
        let (one, other) = (next(&one, "a/runs"), next(&other, "a/runs"));
        tokio::select! {
            taken = one => panic!("it is held by another: {taken:?}"),
            taken = other => panic!("it is held: {taken:?}"),
            () = tokio::time::sleep(3 * LEASE) => {}
        }
    };
    tokio::select! {
        () = told => {}
        () = keeps => unreachable!("it goes on"),
    }
    other.finish(&held.ticket, done(&held, "in time")).await.unwrap();
    let kept = one.get(&held.call.id).await.unwrap().unwrap();
    assert_eq!((kept.progress.is(), kept.progress.attempts.len()), (State::Done, 1));
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_said_to_be() {
    let queue = NatsQueue::open(Config::new(vec!["nats://127.0.0.1:1".into()])).await.unwrap();
    let refused = queue.submit(call("a/b", "")).await;
    assert!(matches!(&refused, Err(Error::Absent(why)) if why.contains("127.0.0.1:1")), "{refused:?}");
    queue.stop().await;
}

#[tokio::test]
async fn who_asks_a_server_that_says_nothing_is_told_so_and_goes_on_when_it_speaks() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let (before, late) = (call("a/b", "before"), call("a/b", "late"));
    assert!(queue.submit(before.clone()).await.unwrap());
    nats.freeze(true);
    let (refused, unknown) = tokio::join!(queue.submit(late.clone()), queue.get(&before.id));
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(matches!(unknown, Err(Error::Unavailable(_))), "{unknown:?}");
    nats.freeze(false);
    let accepted = async {
        // Each try waits for its answer.
        while queue.submit(late.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), accepted).await.expect("it is accepted");
    for call in [&before, &late] {
        assert!(queue.get(&call.id).await.unwrap().is_some());
    }
    queue.stop().await;
}

#[tokio::test]
async fn what_follows_an_end_is_told_once_whether_a_stream_keeps_it_or_somebody_listens() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let client = async_nats::connect(nats.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    let mut heard = client.subscribe("told.>").await.unwrap();
    client.flush().await.unwrap();
    let mut kept = async_nats::jetstream::stream::Config { name: "letters".into(), ..Default::default() };
    kept.subjects = vec!["told.kept.>".into()];
    let mut stream = jetstream.create_stream(kept).await.unwrap();
    for subject in ["told.heard", "told.kept.here"] {
        let made = call("a/b", subject);
        queue.submit(made.clone()).await.unwrap();
        let taken = next(&queue, "a/b").await;
        let mut end = done(&taken, "bye");
        let (id, body) = (format!("{}-dead", made.id), Bytes::from_static(b"{}"));
        end.then = vec![Follow::Message { subject: subject.into(), id, body }];
        queue.finish(&taken.ticket, end).await.unwrap();
        let ended = queue.get(&made.id).await.unwrap().unwrap();
        assert_eq!(ended.progress.is(), State::Done, "{subject}");
    }
    for subject in ["told.heard", "told.kept.here"] {
        let message = heard.next().await.unwrap();
        assert_eq!((message.subject.as_str(), &message.payload[..]), (subject, &b"{}"[..]));
    }
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
    // Nothing is told twice: what is said now is the next that is heard.
    client.publish("told.last", Bytes::new()).await.unwrap();
    assert_eq!(heard.next().await.unwrap().subject.as_str(), "told.last");
    queue.stop().await;
}

#[tokio::test]
async fn what_is_not_kept_any_more_leaves_nothing_and_its_key_is_free() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let store = queue.0.store().await.unwrap();
    let pieces = || -> Pieces { Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"large"))])) };
    let (now, hour) = (now_ms(), 3_600_000);
    // Two that are over, and one that is kept.
    let mut ids = Vec::new();
    for keep_until_ms in [now, now, now + 10 * hour] {
        let made = call("a/b", "x");
        queue.submit(made.clone()).await.unwrap();
        let taken = next(&queue, "a/b").await;
        queue.put_body(&Call::answer_name(&made.id), pieces()).await.unwrap();
        let mut end = done(&taken, "");
        end.progress.keep_until_ms = keep_until_ms;
        end.answer = Some(crate::Answer { aside: true, body_bytes: 5, ..Default::default() });
        queue.finish(&taken.ticket, end).await.unwrap();
        ids.push(made.id);
    }
    // What was noted is there once the queue has stopped.
    queue.stop().await;
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    assert_eq!(queue.0.forget_hours(now / hour + 1).await.unwrap(), 2);
    for (id, there) in ids.iter().zip([false, false, true]) {
        assert_eq!(queue.0.entry(&store, id).await.unwrap().is_some(), there);
        assert_eq!(queue.body(&Call::answer_name(id)).await.is_ok(), there);
    }
    assert_eq!(queue.0.forget_hours(now / hour + 1).await.unwrap(), 0, "the notes are gone");
    assert_eq!(queue.0.forget_hours(now / hour + 20).await.unwrap(), 0, "what is kept is never forgotten");
    assert!(queue.get(&ids[2]).await.unwrap().is_some());

    // One that is over and still in the table, for want of a note.
    let keyed = Call { key: "k".into(), ..call("a/b", "again") };
    let mut progress = Progress::new(&keyed);
    progress.set_state(State::Done);
    progress.keep_until_ms = now;
    let kept = Kept { call: keyed.clone(), progress, answer: None };
    store.progress.create(&keyed.id, kept.encode_to_vec().into()).await.unwrap();
    assert_eq!(queue.get(&keyed.id).await.unwrap(), None);
    assert!(queue.submit(keyed.clone()).await.unwrap(), "nobody knows it any more");
    assert_eq!(next(&queue, "a/b").await.call, keyed);
    queue.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing_of_it() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let mut bodies = queue.0.store().await.unwrap().jetstream.get_stream("OBJ_stoker-bodies").await.unwrap();
    let large = Bytes::from(vec![7; 300 << 10]);
    let broken = stoker_core::Error::new(Code::Cancelled, "it broke off");
    let half = futures_util::stream::iter([Ok(large.clone()), Err(broken.clone())]);
    assert_eq!(queue.put_body("half", Box::pin(half)).await, Err(broken));
    assert!(queue.body("half").await.is_err());
    // And one whose sender goes while there is more to come.
    let never = futures_util::stream::iter([Ok(large)]).chain(futures_util::stream::pending());
    {
        let puts = queue.put_body("left", Box::pin(never));
        let begun = async {
            while bodies.info().await.unwrap().state.bytes < 100 << 10 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            put = puts => panic!("its end is missing: {put:?}"),
            () = begun => {}
        }
    }
    // Who puts a body ends before the queue does.
    queue.stop().await;
    let bytes = bodies.info().await.unwrap().state.bytes;
    assert!(bytes < 10 << 10, "{bytes} bytes are left");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_for_the_next() {
    let (Some(one), Some(other)) = (Nats::start().await, Nats::start().await) else { return };
    let queue = NatsQueue::open(Config::new(vec![one.url(), other.url()])).await.unwrap();
    assert!(queue.submit(call("a/b", "first")).await.unwrap());
    let at = || queue.0.client.server_info().port;
    let first = at();
    let (left, found) = if first == one.address().port() { (&one, &other) } else { (&other, &one) };
    let mut connected = queue.0.connected.subscribe();
    connected.mark_unchanged();
    left.freeze(true);
    let refused = queue.submit(call("a/b", "second")).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    tokio::time::timeout(Duration::from_secs(60), connected.changed()).await.expect("it connects").unwrap();
    assert_eq!(at(), found.address().port());
    left.freeze(false);
    queue.stop().await;
}

#[tokio::test]
async fn what_was_given_up_or_cancelled_is_found_without_a_look_at_all_others() {
    let Some(nats) = Nats::start().await else { return };
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let store = queue.0.store().await.unwrap();
    let filled = async |store: &Store| {
        while !store.indexes.iter().all(index::Index::is_filled) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), filled(&store)).await.expect("the indexes are filled");
    let noted = async |store: &Store, state: State, function: &str| {
        store.index(state).expect("it has an index").ids(function).await.unwrap().len()
    };
    let (gone, kept) = (call("a/b", "gone"), call("a/b", "kept"));
    give_up(&queue, &[gone.clone(), kept.clone()]).await;
    let done_too = call("a/b", "done");
    queue.submit(done_too).await.unwrap();
    let taken = next(&queue, "a/b").await;
    queue.finish(&taken.ticket, done(&taken, "")).await.unwrap();
    let cancelled = call("a/c", "cancelled");
    queue.submit(cancelled.clone()).await.unwrap();
    queue.cancel(&cancelled.id, now_ms() + 600_000).await.unwrap();
    assert_eq!(noted(&store, State::Dead, "").await, 2, "what is done is not in it");
    assert_eq!(noted(&store, State::Cancelled, "").await, 1, "and has no index");
    let ids =
        async |state| listings::now(&queue.0, &store, &listings::Of { function: String::new(), state }).await;
    let waits = Call { due_ms: now_ms() + 600_000, ..call("a/d", "waits") };
    queue.submit(waits).await.unwrap();
    queue.submit(call("a/e", "runs")).await.unwrap();
    let runs = next(&queue, "a/e").await;
    for (state, looks) in
        [(Some(State::Running), 1), (Some(State::Queued), 2), (Some(State::Done), 5), (None, 6)]
    {
        assert_eq!(ids(state).await.unwrap().len(), looks, "{state:?}");
    }
    queue.finish(&runs.ticket, done(&runs, "")).await.unwrap();
    // What is forgotten is struck out.
    let (entry, revision) = queue.0.entry(&store, &gone.id).await.unwrap().unwrap();
    queue.0.forget_entry(&store, &entry, revision).await.unwrap();
    assert_eq!(noted(&store, State::Dead, "a/b").await, 1);
    // The note of another end is not.
    let mut before = queue.get(&kept.id).await.unwrap().unwrap();
    before.progress.ended_ms -= 1;
    store.strike(&before).await;
    assert_eq!(dead(&queue, "a/b").await, std::slice::from_ref(&kept.id));
    queue.stop().await;
    // A release before noted nothing.
    for (_, name) in index::INDEXED {
        store.jetstream.delete_stream(format!("stoker-{name}")).await.unwrap();
    }
    let queue = NatsQueue::open(config(&nats)).await.unwrap();
    let store = queue.0.store().await.unwrap();
    assert_eq!(
        dead(&queue, "").await,
        std::slice::from_ref(&kept.id),
        "found whether it is filled yet or not"
    );
    tokio::time::timeout(Duration::from_secs(60), filled(&store)).await.expect("the indexes are filled");
    for state in [State::Dead, State::Cancelled] {
        assert_eq!(noted(&store, state, "").await, 1, "{state:?}");
    }
    assert_eq!(dead(&queue, "").await, [kept.id]);
    assert_eq!(listed(&queue, "", Some(State::Cancelled)).await, [cancelled.id]);
    queue.stop().await;
}
