//! One suite for every queue: panics at the first thing that is not as [`crate::Queue`] promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use stoker_core::backoff::split_mix;
use stoker_core::ids::CallId;
use stoker_core::moment::now_ms;
use stoker_proto::v1;
use tokio::sync::Mutex;

use crate::{Answer, Call, End, Error, Filter, Follow, Page, Pieces, Progress, Queue, State, Taken};

/// Longer than anything here takes on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call to test with, due now.
#[must_use]
pub fn call(function: &str, body: &str) -> Call {
    let now = now_ms();
    Call {
        id: CallId::new().to_string(),
        function: function.to_owned(),
        head: Some(v1::RequestHead { method: "POST".into(), ..Default::default() }),
        body: Bytes::copy_from_slice(body.as_bytes()),
        body_bytes: body.len() as u64,
        submitted_ms: now,
        due_ms: now,
        ..Call::default()
    }
}

/// The end of a call that succeeded.
#[must_use]
pub fn done(taken: &Taken, body: &str) -> End {
    let mut progress = ended(taken.progress.clone());
    progress.set_state(State::Done);
    let answer = Answer {
        head: Some(v1::ResponseHead { status: 200, headers: Vec::new() }),
        body: Bytes::copy_from_slice(body.as_bytes()),
        body_bytes: body.len() as u64,
        ..Answer::default()
    };
    End { progress, answer: Some(answer), then: Vec::new() }
}

fn ended(mut progress: Progress) -> Progress {
    let now = now_ms();
    if let Some(open) = progress.attempts.last_mut() {
        open.ended_ms = now;
    }
    (progress.ended_ms, progress.keep_until_ms) = (now, now + 600_000);
    progress
}

/// Put back after an attempt that failed, to be made again at `due`.
fn put_back(taken: &Taken, due: u64) -> Progress {
    let mut progress = taken.progress.clone();
    if let Some(open) = progress.attempts.last_mut() {
        open.ended_ms = now_ms();
        open.error = Some(v1::CallError { message: "on purpose".into(), ..Default::default() });
    }
    progress.set_state(State::Queued);
    progress.due_ms = due;
    progress
}

/// The next call of a function, when there is one.
pub async fn next(queue: &dyn Queue, function: &str) -> Taken {
    let mut news = queue.news();
    let taken = async {
        loop {
            news.mark_unchanged();
            if let Some(taken) = queue.take(function, 1).await.expect("the queue answers").pop() {
                return taken;
            }
            news.changed().await.expect("the queue lives");
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap_or_else(|_| panic!("no call of {function} came"))
}

/// A lease that is not over while somebody is busy, whatever else the machine does.
pub const LONG_LEASE: Duration = Duration::from_secs(120);

/// Runs the suite on an empty queue, whose lease is `lease`; but for [`many`].
pub async fn run(queue: Arc<dyn Queue>, lease: Duration) {
    one_call(&*queue).await;
    order_and_limits(&*queue).await;
    again(&*queue).await;
    cancelling(&*queue).await;
    states(&*queue).await;
    follows(&*queue).await;
    redriving(&*queue).await;
    bodies(&*queue).await;
    forgotten(&*queue).await;
    leases(&*queue, lease).await;
}

async fn one_call(queue: &dyn Queue) {
    let mut made = call("one/call", "hello");
    made.key = "k".into();
    assert!(queue.submit(made.clone()).await.expect("it is new"));
    let repeated = Call { body: "other".into(), ..made.clone() };
    assert!(!queue.submit(repeated).await.expect("it is there"), "the same id is the same call");
    let kept = queue.get(&made.id).await.expect("the queue answers").expect("it was accepted");
    assert_eq!((kept.progress.is(), kept.progress.attempts.len()), (State::Queued, 0));
    assert!(kept.call.body.is_empty() && kept.call.key == "k", "{:?}", kept.call);
    assert_eq!(queue.get(&CallId::new().to_string()).await.expect("the queue answers"), None);

    let taken = next(queue, "one/call").await;
    assert_eq!(taken.call, made);
    assert_eq!((taken.progress.is(), taken.progress.attempts.len()), (State::Running, 1));
    assert!(queue.take("one/call", 10).await.expect("the queue answers").is_empty(), "it is held");
    let kept = queue.get(&made.id).await.expect("the queue answers").expect("it is there");
    assert_eq!(kept.progress.is(), State::Running, "its start is known before it starts");
    assert!(!queue.submit(made.clone()).await.expect("it is there"), "a repetition of what runs");

    let waits = queue.wait(&made.id);
    let finishes = async {
        queue.extend(&taken.ticket).await.expect("it is held");
        queue.finish(&taken.ticket, done(&taken, "bye")).await.expect("it is held");
    };
    let (waited, ()) = tokio::join!(waits, finishes);
    let waited = waited.expect("the queue answers").expect("it is there");
    assert_eq!(waited.progress.is(), State::Done);
    let kept = queue.get(&made.id).await.expect("the queue answers").expect("its result is kept");
    assert_eq!(kept.answer.expect("it has an answer").body, "bye");
    let twice = queue.finish(&taken.ticket, done(&taken, "again")).await;
    assert!(matches!(twice, Err(Error::Lost)), "{twice:?}");
    assert!(matches!(queue.extend(&taken.ticket).await, Err(Error::Lost)));
    assert!(queue.wait(&made.id).await.expect("the queue answers").is_some(), "the past is there at once");
    assert!(queue.wait(&CallId::new().to_string()).await.expect("the queue answers").is_none());

    // A repetition after the end is the call that was, and makes nothing new.
    let fresh = queue.submit(made.clone()).await.expect("the queue answers");
    assert!(!fresh, "a repetition after the end");
    assert!(queue.take("one/call", 10).await.expect("the queue answers").is_empty());
}

async fn order_and_limits(queue: &dyn Queue) {
    let now = now_ms();
    for (body, due) in [("second", now - 10), ("first", now - 20), ("far", now + 3_600_000)] {
        let made = Call { due_ms: due, ..call("order/a", body) };
        assert!(queue.submit(made).await.expect("it is new"));
    }
    assert!(queue.submit(call("order/b", "other")).await.expect("it is new"));
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let taken = next(queue, "order/a").await;
        bodies.push(taken.call.body.clone());
        queue.finish(&taken.ticket, done(&taken, "")).await.expect("it is held");
    }
    bodies.sort();
    assert_eq!(bodies, ["first", "second"]);
    assert!(queue.take("order/a", 10).await.expect("the queue answers").is_empty(), "the third is not due");
    let backlog = queue.backlog().await.expect("the queue answers");
    let of = |function: &str| backlog.iter().find(|b| b.function == function).cloned().unwrap_or_default();
    assert_eq!((of("order/a").queued, of("order/a").running), (1, 0), "{backlog:?}");
    assert_eq!(of("order/b").queued, 1, "{backlog:?}");

    let all = Filter { limit: 100, ..Filter::default() };
    let listed = queue.list(all.clone()).await.expect("the queue answers");
    assert!(listed.calls.len() == 5 && listed.next.is_none(), "{listed:?}");
    let ids = |page: &Page| page.calls.iter().map(|kept| kept.call.id.clone()).collect::<Vec<_>>();
    let (mut paged, mut after) = (Vec::new(), String::new());
    for most in [2, 2, 1] {
        let page = queue.list(Filter { limit: 2, after: after.clone(), ..all.clone() }).await;
        let page = page.expect("the queue answers");
        assert_eq!(page.calls.len(), most);
        paged.extend(ids(&page));
        // What comes meanwhile is in front of the first page.
        if after.is_empty() {
            let newer = Call { due_ms: now + 3_600_000, ..call("order/c", "newer") };
            queue.submit(newer.clone()).await.expect("it is new");
            queue.cancel(&newer.id, now_ms()).await.expect("the queue answers");
        }
        after = page.next.unwrap_or_default();
    }
    let (mut all_ids, mut paged_ids) = (ids(&listed), paged);
    all_ids.sort();
    paged_ids.sort();
    assert_eq!((all_ids, after.as_str()), (paged_ids, ""), "page after page tells of each once");
    let lost = queue.list(Filter { after: "an ../odd one".into(), ..all.clone() }).await;
    assert!(matches!(lost, Err(Error::Unsupported(_))), "{lost:?}");
    let only = Filter { function: "order/a".into(), state: Some(State::Queued), ..all };
    let only = queue.list(only).await.expect("the queue answers").calls;
    assert_eq!(only.len(), 1, "{only:?}");
    queue.cancel(&only[0].call.id, now + 600_000).await.expect("the queue answers").expect("it is there");
    let taken = next(queue, "order/b").await;
    queue.finish(&taken.ticket, done(&taken, "")).await.expect("it is held");
}

async fn again(queue: &dyn Queue) {
    let made = call("again/a", "x");
    queue.submit(made.clone()).await.expect("it is new");
    let taken = next(queue, "again/a").await;
    let due = now_ms() + 400;
    queue.again(&taken.ticket, put_back(&taken, due)).await.expect("it is held");
    let kept = queue.get(&made.id).await.expect("the queue answers").expect("it is there");
    assert_eq!((kept.progress.is(), kept.progress.due_ms), (State::Queued, due));
    assert!(matches!(queue.extend(&taken.ticket).await, Err(Error::Lost)));
    let second = next(queue, "again/a").await;
    assert!(now_ms() >= due, "it came before its time");
    assert_eq!((second.progress.attempts.len(), second.call.body.clone()), (2, made.body));
    assert!(second.progress.attempts[0].error.is_some() && !second.progress.attempts[0].interrupted);
    queue.finish(&second.ticket, done(&second, "")).await.expect("it is held");
}

async fn cancelling(queue: &dyn Queue) {
    let keep = now_ms() + 600_000;
    let waits = call("cancel/a", "x");
    queue.submit(waits.clone()).await.expect("it is new");
    let kept = queue.cancel(&waits.id, keep).await.expect("the queue answers").expect("it is there");
    assert_eq!(kept.progress.is(), State::Cancelled);
    assert!(queue.take("cancel/a", 10).await.expect("the queue answers").is_empty());
    assert_eq!(queue.cancel(&CallId::new().to_string(), keep).await.expect("the queue answers"), None);

    let mut heard = queue.cancelled();
    let runs = call("cancel/a", "y");
    queue.submit(runs.clone()).await.expect("it is new");
    let taken = next(queue, "cancel/a").await;
    queue.cancel(&runs.id, keep).await.expect("the queue answers").expect("it is there");
    let id = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("who runs it is told");
    assert_eq!(id.as_deref(), Ok(runs.id.as_str()));
    let late = queue.finish(&taken.ticket, done(&taken, "")).await;
    assert!(matches!(late, Err(Error::Lost)), "{late:?}");
    let kept = queue.wait(&runs.id).await.expect("the queue answers").expect("it is there");
    assert_eq!(kept.progress.is(), State::Cancelled);

    let ends = call("cancel/a", "z");
    queue.submit(ends.clone()).await.expect("it is new");
    let taken = next(queue, "cancel/a").await;
    queue.finish(&taken.ticket, done(&taken, "")).await.expect("it is held");
    let kept = queue.cancel(&ends.id, keep).await.expect("the queue answers").expect("it is there");
    assert_eq!(kept.progress.is(), State::Done, "the end stays the end");
}

/// A call in every state, and one that waits after an attempt: each is listed where it belongs.
async fn states(queue: &dyn Queue) {
    let far = now_ms() + 3_600_000;
    let waits = Call { due_ms: far, ..call("state/a", "waits") };
    queue.submit(waits.clone()).await.expect("it is new");
    let begin = async |body| {
        queue.submit(call("state/a", body)).await.expect("it is new");
        next(queue, "state/a").await
    };
    let again = begin("waits again").await;
    queue.again(&again.ticket, put_back(&again, far)).await.expect("it is held");
    let succeeds = begin("is done").await;
    queue.finish(&succeeds.ticket, done(&succeeds, "")).await.expect("it is held");
    let fails = begin("is given up").await;
    queue.finish(&fails.ticket, dies(&fails)).await.expect("it is held");
    let cancelled = begin("is cancelled").await;
    queue.cancel(&cancelled.call.id, far).await.expect("the queue answers").expect("it is there");
    let runs = begin("runs").await;
    let all =
        [&waits.id, &again.call.id, &runs.call.id, &succeeds.call.id, &fails.call.id, &cancelled.call.id];
    for (state, ids) in [
        (Some(State::Queued), &all[..2]),
        (Some(State::Running), &all[2..3]),
        (Some(State::Done), &all[3..4]),
        (Some(State::Dead), &all[4..5]),
        (Some(State::Cancelled), &all[5..]),
        (None, &all[..]),
    ] {
        let mut ids: Vec<_> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        assert_eq!(listed(queue, "state/a", state).await, ids, "{state:?}");
    }
    for id in &all[..3] {
        queue.cancel(id, now_ms()).await.expect("the queue answers").expect("it is there");
    }
}

async fn follows(queue: &dyn Queue) {
    queue.submit(call("follow/a", "x")).await.expect("it is new");
    let taken = next(queue, "follow/a").await;
    let letter = call("follow/b", "letter");
    let mut end = done(&taken, "");
    end.progress.set_state(State::Dead);
    end.then = vec![Follow::Call(letter.clone()), Follow::Call(letter.clone())];
    queue.finish(&taken.ticket, end).await.expect("it is held");
    let follows = next(queue, "follow/b").await;
    assert_eq!(follows.call.id, letter.id);
    assert!(queue.take("follow/b", 10).await.expect("the queue answers").is_empty(), "once");
    queue.finish(&follows.ticket, done(&follows, "")).await.expect("it is held");
}

async fn redriving(queue: &dyn Queue) {
    let aside: Vec<_> = (0..8u8).map(|n| Bytes::from(vec![n; 50_000])).collect();
    let large = Call { aside: true, body_bytes: 400_000, ..call("redrive/a", "") };
    queue.put_body(&large.id, pieces(aside.clone())).await.expect("it can be kept");
    for made in [call("redrive/a", "its body"), large] {
        queue.submit(made.clone()).await.expect("it is new");
        let redriven = queue.redrive(&made.id).await.expect("the queue answers").expect("it is there");
        assert!(!redriven.1 && redriven.0.progress.is() == State::Queued, "it is not dead: {redriven:?}");
        for times in 1..=2 {
            let taken = next(queue, "redrive/a").await;
            assert_eq!((taken.call.body.clone(), taken.progress.counted()), (made.body.clone(), 1));
            if made.aside {
                assert!(queue.body(&made.id).await.is_ok(), "the body of what is made again");
            }
            queue.finish(&taken.ticket, dies(&taken)).await.expect("it is held");
            let kept = queue.get(&made.id).await.expect("the queue answers").expect("it is kept");
            assert!(kept.progress.is() == State::Dead && kept.call.body.is_empty(), "{kept:?}");
            assert_eq!(dead(queue, "redrive/a").await, std::slice::from_ref(&made.id), "it is listed");
            let (one, other) = tokio::join!(queue.redrive(&made.id), queue.redrive(&made.id));
            let redriven = [one, other].map(|done| done.expect("the queue answers").expect("it is there"));
            assert_eq!(redriven.iter().filter(|(_, first)| *first).count(), 1, "once: {redriven:?}");
            let progress = &redriven[0].0.progress;
            assert_eq!(
                (progress.is(), progress.redrives, progress.error.clone()),
                (State::Queued, times, None)
            );
            assert!(dead(queue, "redrive/a").await.is_empty(), "it waits again");
        }
        let taken = next(queue, "redrive/a").await;
        assert_eq!((taken.progress.attempts.len(), taken.progress.spent), (3, 2));
        queue.finish(&taken.ticket, done(&taken, "at last")).await.expect("it is held");
        let kept = queue.redrive(&made.id).await.expect("the queue answers").expect("it is there");
        assert!(!kept.1 && kept.0.progress.is() == State::Done, "what is done stays done: {kept:?}");
    }
    assert_eq!(queue.redrive(&CallId::new().to_string()).await.expect("the queue answers"), None);
    assert!(queue.take("redrive/a", 10).await.expect("the queue answers").is_empty());
}

/// Ids of the calls of a function, or of all where it is empty, that are listed as given up: sorted.
pub async fn dead(queue: &dyn Queue, function: &str) -> Vec<String> {
    listed(queue, function, Some(State::Dead)).await
}

/// Ids of the calls of a function, or of all where it is empty, that are listed in a state, or in any: page after page, sorted.
pub async fn listed(queue: &dyn Queue, function: &str, state: Option<State>) -> Vec<String> {
    let mut filter = Filter { function: function.to_owned(), state, limit: 2, after: String::new() };
    let mut ids = Vec::new();
    loop {
        let page = queue.list(filter.clone()).await.expect("the queue answers");
        assert!(
            page.calls.iter().all(|kept| state.is_none_or(|state| kept.progress.is() == state)),
            "{page:?}"
        );
        ids.extend(page.calls.into_iter().map(|kept| kept.call.id));
        match page.next {
            Some(next) => filter.after = next,
            None => break,
        }
    }
    ids.sort();
    ids
}

/// The end of a call that is given up.
#[must_use]
pub fn dies(taken: &Taken) -> End {
    let mut end = done(taken, "");
    end.progress.set_state(State::Dead);
    (end.answer, end.progress.error) = (None, Some(v1::CallError::default()));
    end
}

/// Has these calls given up.
pub async fn give_up(queue: &dyn Queue, calls: &[Call]) {
    for made in calls {
        queue.submit(made.clone()).await.expect("it is new");
        let taken = next(queue, &made.function).await;
        queue.finish(&taken.ticket, dies(&taken)).await.expect("it is held");
    }
}

fn pieces(parts: Vec<Bytes>) -> Pieces {
    Box::pin(futures_util::stream::iter(parts.into_iter().map(Ok)))
}

async fn bodies(queue: &dyn Queue) {
    let parts: Vec<_> = (0..40u8).map(|n| Bytes::from(vec![n; 50_000])).collect();
    let made = Call { aside: true, body_bytes: 2_000_000, ..call("body/a", "") };
    assert_eq!(queue.put_body(&made.id, pieces(parts.clone())).await, Ok(2_000_000));
    queue.submit(made.clone()).await.expect("it is new");
    let taken = next(queue, "body/a").await;
    assert!(taken.call.aside);
    let mut body = queue.body(&made.id).await.expect("it is kept");
    let mut read = Vec::new();
    while let Some(piece) = body.next().await {
        read.extend_from_slice(&piece.expect("it can be read"));
    }
    assert!(read == parts.concat());
    let name = Call::answer_name(&made.id);
    queue.put_body(&name, pieces(vec!["answer".into()])).await.expect("it can be kept");
    let mut end = done(&taken, "");
    end.answer = Some(Answer { aside: true, body_bytes: 6, ..Answer::default() });
    queue.finish(&taken.ticket, end).await.expect("it is held");
    let mut answer = queue.body(&name).await.expect("it is kept");
    assert_eq!(answer.next().await, Some(Ok("answer".into())));
    // One that breaks off is none.
    let broken = stoker_core::Error::new(stoker_core::Code::Cancelled, "it broke off");
    let half = futures_util::stream::iter([Ok("half".into()), Err(broken.clone())]);
    assert_eq!(queue.put_body("never", Box::pin(half)).await, Err(broken));
    assert!(queue.body("never").await.is_err());
    assert!(queue.body("../calls.redb").await.is_err());
}

async fn forgotten(queue: &dyn Queue) {
    let made = call("forget/a", "x");
    queue.submit(made.clone()).await.expect("it is new");
    let taken = next(queue, "forget/a").await;
    let mut end = done(&taken, "");
    end.progress.keep_until_ms = now_ms();
    queue.finish(&taken.ticket, end).await.expect("it is held");
    assert_eq!(queue.get(&made.id).await.expect("the queue answers"), None, "it was to be kept until now");
    let all: Vec<_> = (0..5).map(|n| call(["dead/a", "dead/b"][n % 2], "x")).collect();
    give_up(queue, &all).await;
    let of = |function: &str| {
        let of = all.iter().filter(|call| function.is_empty() || call.function == function);
        let mut ids: Vec<_> = of.map(|call| call.id.clone()).collect();
        ids.sort();
        ids
    };
    for function in ["dead/a", "dead/b"] {
        assert_eq!(dead(queue, function).await, of(function));
    }
    assert!(dead(queue, "").await.iter().filter(|id| of("").contains(id)).count() == 5);
    let made = call("dead/c", "x");
    queue.submit(made.clone()).await.expect("it is new");
    let taken = next(queue, "dead/c").await;
    let mut end = dies(&taken);
    end.progress.keep_until_ms = now_ms();
    queue.finish(&taken.ticket, end).await.expect("it is held");
    assert!(dead(queue, "dead/c").await.is_empty(), "it was to be kept until now");
}

async fn leases(queue: &dyn Queue, lease: Duration) {
    queue.submit(call("lease/left", "x")).await.expect("it is new");
    queue.submit(call("lease/held", "x")).await.expect("it is new");
    let (left, held) = (next(queue, "lease/left").await, next(queue, "lease/held").await);
    let keeps = async {
        loop {
            queue.extend(&held.ticket).await.expect("it is held as long as that is said");
            tokio::time::sleep(lease / 4).await;
        }
    };
    let taken = tokio::select! {
        taken = next(queue, "lease/left") => taken,
        () = keeps => unreachable!("it goes on"),
    };
    assert_eq!((taken.call.id.clone(), taken.progress.attempts.len()), (left.call.id.clone(), 2));
    assert!(taken.progress.attempts[0].interrupted, "{:?}", taken.progress);
    let late = queue.finish(&left.ticket, done(&left, "late")).await;
    assert!(matches!(late, Err(Error::Lost)), "who was silent has lost it: {late:?}");
    queue.finish(&taken.ticket, done(&taken, "")).await.expect("it is held");
    queue.finish(&held.ticket, done(&held, "")).await.expect("it is held");
}

/// Whatever is done with many calls at once, each ends once and in one way, and nobody loses what was taken. On an empty queue, whose lease is
/// [`LONG_LEASE`].
pub async fn many(queue: Arc<dyn Queue>) {
    const CALLS: usize = 240;
    let ends = Arc::new(Mutex::new(BTreeMap::new()));
    let submits = async {
        let all = (0..CALLS).map(|n| {
            let queue = queue.clone();
            async move { queue.submit(call(&format!("many/f{}", n % 3), "x")).await.expect("it is new") }
        });
        futures_util::stream::iter(all).buffer_unordered(32).count().await
    };
    let workers = (0..6u64).map(|worker| {
        let (queue, ends) = (queue.clone(), ends.clone());
        async move {
            let mut seed = worker;
            let function = format!("many/f{}", worker % 3);
            while ends.lock().await.len() < CALLS {
                let mut news = queue.news();
                let all = queue.take(&function, 7).await.expect("the queue answers");
                if all.is_empty() {
                    // The others may end the last of them meanwhile.
                    tokio::time::timeout(Duration::from_millis(50), news.changed()).await.ok();
                }
                for taken in all {
                    match split_mix(&mut seed) % 3 {
                        0 => {
                            let back = put_back(&taken, now_ms());
                            queue.again(&taken.ticket, back).await.expect("it is held");
                        }
                        _ => {
                            queue.finish(&taken.ticket, done(&taken, "")).await.expect("it is held");
                            let twice = ends.lock().await.insert(taken.call.id, taken.progress.attempts);
                            assert_eq!(twice, None, "a call ended twice");
                        }
                    }
                }
            }
        }
    });
    let work = futures_util::future::join_all(workers);
    let (submitted, _) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(submits, work) }).await.expect("all of them end");
    assert_eq!(submitted, CALLS);
    assert!(ends.lock().await.values().flatten().all(|attempt| !attempt.interrupted));
    let backlog = queue.backlog().await.expect("the queue answers");
    let left: u64 = backlog.iter().map(|b| b.queued + b.running).sum();
    assert_eq!(left, 0, "{backlog:?}");
}
