use super::*;
use crate::conformance::{self, call, dead, done, give_up, next};
use crate::{Follow, State};

const LEASE: Duration = Duration::from_millis(800);

fn config(directory: &Path) -> Config {
    Config { lease: LEASE, reserve: 0, ..Config::new(directory) }
}

#[tokio::test]
async fn it_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let queue = Arc::new(DiskQueue::open(config(directory.path())).await.unwrap());
    conformance::run(queue.clone(), LEASE).await;
    queue.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_end_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { lease: conformance::LONG_LEASE, ..config(directory.path()) };
    let queue = Arc::new(DiskQueue::open(config).await.unwrap());
    conformance::many(queue.clone()).await;
    queue.stop().await;
}

#[tokio::test]
async fn what_was_accepted_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    let (waits, runs, ends) = (call("a/waits", "1"), call("a/runs", "2"), call("a/ends", "3"));
    for made in [&waits, &runs, &ends] {
        queue.submit(made.clone()).await.unwrap();
    }
    let stray = Box::pin(futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"x"))]));
    queue.put_body("00000000000000000000000000000000", stray).await.unwrap();
    let taken = next(&queue, "a/ends").await;
    queue.finish(&taken.ticket, done(&taken, "bye")).await.unwrap();
    next(&queue, "a/runs").await;
    let second = DiskQueue::open(config(directory.path())).await.err().unwrap();
    assert!(second.to_string().contains("another process"), "{second}");
    queue.stop().await;
    assert!(queue.submit(call("a/late", "")).await.is_err());

    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    assert_eq!(queue.lanes(), ["a/runs", "a/waits"]);
    assert_eq!(next(&queue, "a/waits").await.call, waits);
    let again = next(&queue, "a/runs").await;
    assert!(again.progress.attempts[0].interrupted && again.progress.attempts.len() == 2);
    let kept = queue.get(&ends.id).await.unwrap().unwrap();
    assert_eq!((kept.progress.is(), kept.answer.unwrap().body), (State::Done, "bye".into()));
    assert!(queue.body("00000000000000000000000000000000").await.is_err(), "a body of no call is removed");
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_takes_nothing_new_and_ends_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    queue.submit(call("a/b", "1")).await.unwrap();
    queue.stop().await;
    drop(queue);
    let full = Config { reserve: u64::MAX / 2, ..config(directory.path()) };
    let queue = DiskQueue::open(full).await.unwrap();
    let refused = queue.submit(call("a/b", "2")).await;
    assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
    let body = Box::pin(futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"x"))]));
    let refused = queue.put_body("a", body).await.unwrap_err();
    assert_eq!(refused.code, stoker_core::Code::Overloaded);
    let taken = next(&queue, "a/b").await;
    queue.finish(&taken.ticket, done(&taken, "")).await.unwrap();
    assert_eq!(queue.get(&taken.call.id).await.unwrap().unwrap().progress.is(), State::Done);
}

#[tokio::test]
async fn what_is_not_kept_any_more_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    queue.submit(call("a/b", "1")).await.unwrap();
    let taken = next(&queue, "a/b").await;
    let mut end = done(&taken, "");
    end.progress.keep_until_ms = now_ms();
    queue.finish(&taken.ticket, end).await.unwrap();
    // The writer forgets with the next thing that it writes, at the latest.
    let made = queue.submit(taken.call.clone());
    assert!(made.await.is_ok());
    queue.submit(call("a/c", "1")).await.unwrap();
    assert!(queue.submit(call("a/d", "1")).await.unwrap());
    let listed = queue.list(Filter { function: "a/b".into(), limit: 9, ..Filter::default() }).await.unwrap();
    assert!(listed.calls.iter().all(|kept| kept.progress.is() == State::Queued), "{listed:?}");
}

#[tokio::test]
async fn a_page_fits_into_a_message_whatever_failed() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let made = call("a/b", "1");
        queue.submit(made.clone()).await.unwrap();
        let taken = next(&queue, "a/b").await;
        let mut end = done(&taken, "");
        let message = "x".repeat(crate::PAGE_BYTES);
        end.progress.attempts[0].error = Some(stoker_proto::v1::CallError { message, ..Default::default() });
        queue.finish(&taken.ticket, end).await.unwrap();
        ids.push(made.id);
    }
    let (mut listed, mut after) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = queue.list(Filter { limit: 9, after, ..Filter::default() }).await.unwrap();
        assert_eq!(page.calls.len(), 1);
        listed.extend(page.calls.into_iter().map(|kept| kept.call.id));
        after = page.next.unwrap_or_default();
    }
    ids.reverse();
    assert_eq!((listed, after.as_str()), (ids, ""));
}

#[tokio::test]
async fn whoever_leaves_in_the_middle_of_a_body_leaves_nothing_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    let files = || std::fs::read_dir(directory.path().join(bodies::FOLDER)).unwrap().count();
    let (tell, told) = mpsc::channel(1);
    let begun = arriving(told);
    tell.send(Ok(bytes::Bytes::from_static(b"begins"))).await.unwrap();
    let puts = queue.put_body("a", begun);
    tokio::select! {
        put = puts => panic!("its end is missing: {put:?}"),
        () = until(|| files() == 1 && tell.capacity() == 1) => {}
    }
    assert_eq!(files(), 0);
}

fn arriving(from: mpsc::Receiver<Result<bytes::Bytes, stoker_core::Error>>) -> Pieces {
    Box::pin(futures_util::stream::unfold(from, async |mut from| Some((from.recv().await?, from))))
}

/// Returns when it is so.
async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn there_are_no_subjects_on_a_disk() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    queue.submit(call("a/b", "1")).await.unwrap();
    let taken = next(&queue, "a/b").await;
    let mut end = done(&taken, "");
    end.then = vec![Follow::Message { subject: "x".into(), id: "1".into(), body: bytes::Bytes::new() }];
    let refused = queue.finish(&taken.ticket, end).await;
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    queue.finish(&taken.ticket, done(&taken, "")).await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_release_before_tells_what_was_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    let made = call("a/b", "1");
    give_up(&queue, std::slice::from_ref(&made)).await;
    queue.stop().await;
    let db = redb::Database::open(directory.path().join("calls.redb")).unwrap();
    let write = db.begin_write().unwrap();
    let index = redb::TableDefinition::<(u64, &str), ()>::new("dead");
    assert!(write.delete_table(index).unwrap());
    write.commit().unwrap();
    drop(db);
    let queue = DiskQueue::open(config(directory.path())).await.unwrap();
    assert_eq!(dead(&queue, "").await, [made.id]);
    queue.stop().await;
}
