//! `bench`: a closed loop of callers on one function, through one of the balancer's doors.

mod doors;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use stoker_proto::v1;

use crate::args::{Bench, Common, Door, Output};
use crate::failure::Failure;
use crate::{client, output};

/// Longest time that the histogram tells apart, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// What was seen so far. The callers share one thread, so that a cell is enough.
struct Tally {
    latencies: Histogram<u64>,
    cold: u64,
    bytes: u64,
    /// Reason → how often, and the first message.
    errors: BTreeMap<String, (u64, String)>,
}

/// What all callers of a run share.
#[derive(Clone)]
struct Load {
    function: String,
    body: bytes::Bytes,
    concurrency: usize,
    until: Instant,
    tally: Rc<RefCell<Tally>>,
}

impl Load {
    fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn success(&self, began: Instant, bytes: usize, timings: Option<&v1::Timings>) {
        let mut tally = self.tally.borrow_mut();
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(LONGEST_US);
        tally.latencies.saturating_record(us);
        tally.bytes += bytes as u64;
        tally.cold += u64::from(timings.is_some_and(|t| t.cold));
    }

    fn failure(&self, reason: &str, message: &str) {
        let mut tally = self.tally.borrow_mut();
        tally.errors.entry(reason.to_owned()).or_insert_with(|| (0, message.to_owned())).0 += 1;
    }

    fn error(&self, error: &stoker_core::Error) {
        self.failure(stoker_proto::status::row(error.code).reason, &error.message);
    }
}

pub async fn run(args: Bench, common: &Common) -> Result<(), Failure> {
    let latencies = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants");
    let tally = Tally { latencies, cold: 0, bytes: 0, errors: BTreeMap::new() };
    let began = Instant::now();
    let load = Load {
        function: args.function.clone(),
        body: vec![b'x'; args.size as usize].into(),
        concurrency: args.concurrency as usize,
        until: began + Duration::from_secs(args.duration),
        tally: Rc::new(RefCell::new(tally)),
    };
    let calls = async {
        match args.door {
            Door::Session => doors::session(client::connect(&common.server).await?, &load).await,
            Door::Invoke => doors::invoke(client::connect(&common.server).await?, &load).await,
            Door::Http => doors::http(&args.http, &load).await,
        }
    };
    tokio::select! {
        result = calls => result?,
        never = progress(&load) => match never {},
    }
    let took = began.elapsed();
    let tally = load.tally.borrow();
    let failed: u64 = tally.errors.values().map(|(count, _)| count).sum();
    match common.output {
        Output::Json => print_json(&args, &tally, took, failed),
        Output::Table => print_table(&args, &tally, took, failed),
    }
    if tally.latencies.is_empty() {
        let first = tally.errors.values().next().map_or("", |(_, message)| message);
        return Err(Failure::usage(format!("no call succeeded: {first}"), "try one with `stoker call`"));
    }
    Ok(())
}

/// Rewrites one line a second while a person looks on; does nothing else, and ends with the run.
async fn progress(load: &Load) -> std::convert::Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut before = 0;
    loop {
        second.tick().await;
        let (count, failed) = {
            let tally = load.tally.borrow();
            (tally.latencies.len(), tally.errors.values().map(|(count, _)| count).sum::<u64>())
        };
        let left = load.until.saturating_duration_since(Instant::now()).as_secs();
        eprint!("\r{count} calls, {}/s, {failed} failed, {left} s left \x1b[K", count - before);
        before = count;
    }
}

const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p75", 75.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

fn door(args: &Bench) -> &'static str {
    match args.door {
        Door::Session => "session",
        Door::Invoke => "invoke",
        Door::Http => "http",
    }
}

fn print_table(args: &Bench, tally: &Tally, took: Duration, failed: u64) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let calls = tally.latencies.len();
    let mut rows = vec![
        vec!["function".to_owned(), args.function.clone()],
        vec!["door".into(), format!("{}, {} at once, {} bytes", door(args), args.concurrency, args.size)],
        vec!["calls".into(), format!("{calls} in {:.1} s, {failed} failed", took.as_secs_f64())],
        vec!["throughput".into(), format!("{:.0} calls/s", calls as f64 / took.as_secs_f64())],
        vec!["answers".into(), format!("{:.1} MB/s", tally.bytes as f64 / 1e6 / took.as_secs_f64())],
    ];
    // The HTTP door does not say whether a call was cold.
    if args.door != Door::Http {
        rows.push(vec!["cold starts".into(), tally.cold.to_string()]);
    }
    for (name, percentile) in PERCENTILES {
        rows.push(vec![name.into(), output::human_us(tally.latencies.value_at_percentile(percentile))]);
    }
    for (reason, (count, message)) in &tally.errors {
        rows.push(vec![reason.clone(), format!("{count} ×, first: {message}")]);
    }
    rows.iter().for_each(|row| output::print(&format!("{:<14} {}\n", row[0], row[1])));
}

fn print_json(args: &Bench, tally: &Tally, took: Duration, failed: u64) {
    let percentiles: serde_json::Map<_, _> = PERCENTILES
        .iter()
        .map(|(name, p)| ((*name).to_owned(), json!(tally.latencies.value_at_percentile(*p))))
        .collect();
    let cold = (args.door != Door::Http).then_some(tally.cold);
    output::print_json(&json!({
        "function": args.function, "door": door(args), "concurrency": args.concurrency, "size": args.size,
        "seconds": took.as_secs_f64(), "calls": tally.latencies.len(), "failed": failed,
        "calls_per_second": tally.latencies.len() as f64 / took.as_secs_f64(),
        "cold_starts": cold, "latency_us": percentiles, "mean_us": tally.latencies.mean(),
        "errors": tally.errors.iter().map(|(r, (n, m))| json!({"reason": r, "count": n, "first": m})).collect::<Vec<_>>(),
    }));
}
