//! Functions that are called by the clock: each time of a schedule is submitted as a call for later, by every balancer, under one id.
//!
//! The id is derived from function, schedule and time, so the queue takes it once, however many balancers submit it and however
//! often. Nothing has to be agreed upon, and any balancer may be missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stoker_core::FunctionSpec;
use stoker_core::backoff::Backoff;
use stoker_core::later::{Schedule, Times};
use stoker_core::moment::now_ms;
use stoker_proto::v1;
use stoker_queue::{Call, Queue, derived_id};
use tokio_util::sync::CancellationToken;

use crate::front::Front;

/// A balancer that starts makes up for what came so shortly before: perhaps it was the only one.
const LOOK_BACK: Duration = Duration::from_secs(60);

/// The machine's clock may be set while we sleep.
const LOOK: Duration = Duration::from_secs(30);

/// One schedule of one function: its function's name, what it says, and the first time that was not submitted yet.
type Next = BTreeMap<(String, String, String), u64>;

/// Submits what is due until `stop`.
pub async fn run(front: Arc<Front>, queue: Arc<dyn Queue>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = submit(&front, &*queue) => {}
    }
}

async fn submit(front: &Front, queue: &dyn Queue) {
    let mut functions = front.registry.functions();
    // Fails only when the registry is gone with its process.
    functions.wait_for(|functions| functions.known).await.ok();
    let mut next = Next::new();
    let mut since = now_ms().saturating_sub(LOOK_BACK.as_millis() as u64);
    let mut failures = failing();
    loop {
        let specs: Vec<_> = functions.borrow_and_update().by_name.values().cloned().collect();
        plan(&mut next, &specs, since);
        let mut wait = LOOK;
        match fire(queue, &mut next).await {
            Ok(()) => failures = failing(),
            Err(error) => {
                wait = failures.next().unwrap_or(LOOK);
                tracing::warn!(%error, "a scheduled call could not be submitted yet");
            }
        }
        let now = now_ms();
        // Whatever is applied from here on begins with its first time from here on.
        since = now;
        if let Some(first) = next.values().min() {
            wait = wait.min(Duration::from_millis(first.saturating_sub(now).max(1)));
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = functions.changed() => if changed.is_err() { return },
        }
    }
}

fn failing() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10), 0)
}

/// Keeps the schedules that there are, and adds those that are new, from their first time after `since`.
fn plan(next: &mut Next, specs: &[Arc<FunctionSpec>], since: u64) {
    let mut there = Next::new();
    for spec in specs {
        for Schedule { cron, body } in &spec.schedules {
            let key = (spec.name.as_str().to_owned(), cron.clone(), body.clone());
            let known = next.get(&key).copied();
            let first = Times::parse(cron).ok().and_then(|times| times.after(since));
            // What is known may lie far ahead, where the clock had gone wrong and was set back. A time that was submitted already is known by its id.
            if let Some(at) = known.into_iter().chain(first).min() {
                there.insert(key, at);
            }
        }
    }
    *next = there;
}

/// Submits what is due.
async fn fire(queue: &dyn Queue, next: &mut Next) -> Result<(), stoker_queue::Error> {
    for ((function, cron, body), at) in next {
        while *at <= now_ms() {
            queue.submit(call(function, cron, body, *at)).await?;
            // After a long sleep only the last time counts.
            let Ok(times) = Times::parse(cron) else { break };
            let recent = now_ms().saturating_sub(LOOK_BACK.as_millis() as u64);
            *at = times.after((*at).max(recent)).unwrap_or(u64::MAX);
        }
    }
    Ok(())
}

fn call(function: &str, cron: &str, body: &str, at: u64) -> Call {
    let key = format!("{cron}\n{at}\n{body}");
    let header = |name: &str, value: String| v1::Header { name: name.to_owned(), value: Bytes::from(value) };
    let headers =
        vec![header("stoker-schedule", cron.to_owned()), header("stoker-schedule-time-ms", at.to_string())];
    Call {
        id: derived_id("schedule", function, &key),
        function: function.to_owned(),
        head: Some(v1::RequestHead { method: "POST".into(), headers, ..Default::default() }),
        body: Bytes::copy_from_slice(body.as_bytes()),
        body_bytes: body.len() as u64,
        submitted_ms: now_ms(),
        due_ms: at,
        // With a key it is known for a while after its end, so that a balancer that is late makes no second one.
        key: format!("{cron} at {at}"),
        origin: "schedule".to_owned(),
        ..Call::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::FunctionName;

    fn spec(name: &str, crons: &[&str]) -> Arc<FunctionSpec> {
        let name = FunctionName::new("a", name).expect("it is a name");
        let mut spec = FunctionSpec::new(name, vec!["true".into()], "/".into());
        spec.schedules =
            crons.iter().map(|cron| Schedule { cron: (*cron).to_owned(), body: "b".to_owned() }).collect();
        Arc::new(spec)
    }

    #[test]
    fn schedules_come_and_go_with_their_functions() {
        let mut next = Next::new();
        plan(&mut next, &[spec("one", &["* * * * *", "0 * * * *"])], 0);
        assert_eq!(next.values().copied().collect::<Vec<_>>(), [60_000, 3_600_000]);
        // What is known goes on where it is; what is new begins from now.
        plan(&mut next, &[spec("one", &["* * * * *"]), spec("two", &["* * * * *"])], 600_000);
        assert_eq!(next.values().copied().collect::<Vec<_>>(), [60_000, 660_000]);
        // A clock that had gone wrong is set back.
        plan(&mut next, &[spec("one", &["* * * * *"])], 30_000_000);
        next.values_mut().for_each(|at| *at = 90_000_000_000);
        plan(&mut next, &[spec("one", &["* * * * *"])], 660_000);
        assert_eq!(next.values().copied().collect::<Vec<_>>(), [720_000]);
        plan(&mut next, &[], 0);
        assert!(next.is_empty());
    }

    #[tokio::test]
    async fn each_time_is_one_call_however_many_submit_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let queue = stoker_queue::DiskQueue::open(stoker_queue::disk::Config {
            reserve: 0,
            ..stoker_queue::disk::Config::new(directory.path())
        })
        .await
        .expect("it opens");
        let minute = 60_000;
        let at = now_ms() / minute * minute;
        for _ in 0..3 {
            let mut next = Next::new();
            plan(&mut next, &[spec("one", &["* * * * *"])], at - 1);
            fire(&queue, &mut next).await.expect("it is accepted");
            assert!(next.values().all(|next| *next > now_ms()));
        }
        let page =
            queue.list(stoker_queue::Filter { limit: 9, ..Default::default() }).await.expect("it answers");
        let times: std::collections::BTreeSet<_> = page.calls.iter().map(|kept| kept.call.due_ms).collect();
        // The minute may turn meanwhile; each time stands once.
        assert!(times.contains(&at) && times.len() == page.calls.len(), "{page:?}");
    }
}
