//! How fast a queue takes calls and gives them out again, and what it needs for that:
//!
//! `cargo run --release -p stoker-queue --features nats --example drain -- DIR|nats://HOST:4222 [CALLS] [AT_ONCE]`
//!
//! Submits as many calls with that many submitters, then takes and ends all of them, as a balancer does with a function that needs no time, and lists
//! a hundred of what is kept in each state. Prints rates, the time from a submit to its start when nothing else is there, memory, and what a list took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use stoker_queue::conformance::{call, done, next};
use stoker_queue::{DiskQueue, Filter, Queue, State, disk};

type Failed = Box<dyn std::error::Error>;

/// Resident memory in MiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 10
}

async fn open(place: &str) -> Result<Arc<dyn Queue>, Failed> {
    if place.contains("://") {
        #[cfg(feature = "nats")]
        return Ok(Arc::new(
            stoker_queue::NatsQueue::open(stoker_queue::nats::Config::new(vec![place.to_owned()])).await?,
        ));
        #[cfg(not(feature = "nats"))]
        return Err("built without the feature nats".into());
    }
    Ok(Arc::new(DiskQueue::open(disk::Config::new(place)).await?))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let mut words = std::env::args().skip(1);
    let place = words.next().ok_or("name a directory, or the URL of a NATS server")?;
    let calls: usize = words.next().as_deref().unwrap_or("100000").parse()?;
    let at_once: usize = words.next().as_deref().unwrap_or("64").parse()?;
    let queue = open(&place).await?;
    let body = "x".repeat(1024);

    let mut starts = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        queue.submit(call("bench/one", &body)).await?;
        let taken = next(&*queue, "bench/one").await;
        starts.push(began.elapsed());
        queue.finish(&taken.ticket, done(&taken, "")).await?;
    }
    starts.sort_unstable();
    println!("submit to start, one at a time: p50 {:?}, p99 {:?}", starts[100], starts[197]);

    let before = memory();
    let began = Instant::now();
    let submits = (0..calls).map(|_| queue.submit(call("bench/many", &body)));
    let failed = futures_util::stream::iter(submits)
        .buffer_unordered(at_once)
        .filter(|submitted| std::future::ready(submitted.is_err()))
        .count()
        .await;
    rate("submits", calls - failed, began.elapsed());
    println!("memory: {before} MiB before, {} MiB with a backlog of {calls}", memory());

    let began = Instant::now();
    let (mut ended, mut most) = (0, 0);
    while ended < calls - failed {
        let taken = queue.take("bench/many", at_once).await?;
        let ends = taken.into_iter().map(|taken| {
            let queue = queue.clone();
            async move { queue.finish(&taken.ticket, done(&taken, "")).await }
        });
        for end in futures_util::future::join_all(ends).await {
            end?;
            ended += 1;
        }
        most = most.max(memory());
    }
    rate("drained", ended, began.elapsed());
    println!("memory: at most {most} MiB while it drained; {failed} submits were refused");
    for _ in 0..10 {
        let made = call("bench/cancelled", &body);
        queue.submit(made.clone()).await?;
        queue.cancel(&made.id, made.due_ms + 3_600_000).await?;
    }
    let states = [State::Queued, State::Running, State::Done, State::Dead, State::Cancelled].map(Some);
    for state in [None].into_iter().chain(states) {
        lists(&*queue, state).await?;
    }
    queue.stop().await;
    Ok(())
}

/// A hundred of them, or all that there are.
async fn lists(queue: &dyn Queue, state: Option<State>) -> Result<(), Failed> {
    let mut filter = Filter { state, limit: 100, ..Filter::default() };
    let (began, mut pages, mut listed) = (Instant::now(), 0, 0);
    loop {
        let page = queue.list(filter.clone()).await?;
        (pages, listed) = (pages + 1, listed + page.calls.len());
        match page.next {
            Some(next) if listed < filter.limit => filter.after = next,
            _ => break,
        }
    }
    let which = state.map_or_else(|| "any state".to_owned(), |state| format!("{state:?}"));
    println!("list, {which}: {listed} calls on {pages} pages in {:.1?}", began.elapsed());
    Ok(())
}

fn rate(what: &str, calls: usize, time: Duration) {
    println!("{what}: {calls} in {time:.1?}, {:.0} a second", calls as f64 / time.as_secs_f64());
}
