//! `bench`: a closed loop of callers on one function, through one of the balancer's doors or at the function's own socket.

mod calls;
mod cpu;
mod doors;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use stoker_core::{Code, Error};
use stoker_proto::v1;

use crate::args::{Bench, Common, Door, Output};
use crate::client::{self, Connection};
use crate::failure::Failure;
use crate::output;

/// Longest time that the histogram tells apart, in nanoseconds: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// What was seen so far. The callers share one thread, so that a cell is enough.
struct Tally {
    /// Nanoseconds.
    latencies: Histogram<u64>,
    cold: u64,
    thawed: u64,
    bytes: u64,
    /// Reason → how often, and the first of them.
    errors: BTreeMap<String, (u64, Error)>,
}

impl Tally {
    fn failed(&self) -> u64 {
        self.errors.values().map(|(count, _)| count).sum()
    }

    /// A run is no success if a call of it was none.
    fn outcome(&self) -> Result<(), Failure> {
        let (failed, all) = (self.failed(), self.latencies.len() + self.failed());
        let what = match self.latencies.is_empty() {
            true => "no call succeeded".to_owned(),
            false => format!("{failed} of {all} calls failed, most of them so"),
        };
        let error = match self.errors.values().max_by_key(|(count, _)| *count) {
            Some((_, why)) => Error { message: format!("{what}: {}", why.message), ..why.clone() },
            None if all == 0 => Error::new(Code::Unavailable, "no call was answered"),
            None => return Ok(()),
        };
        Err(Failure::new(error, "try one with `stoker call`"))
    }
}

/// What all callers of a run share.
#[derive(Clone)]
struct Load {
    function: String,
    body: bytes::Bytes,
    concurrency: usize,
    pause: Duration,
    /// No call begins after this, but each caller makes one at least.
    until: Instant,
    tally: Rc<RefCell<Tally>>,
}

impl Load {
    fn new(args: &Bench, function: &str, length: Duration) -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are constants");
        let tally = Tally { latencies, cold: 0, thawed: 0, bytes: 0, errors: BTreeMap::new() };
        Self {
            function: function.to_owned(),
            body: body(args.door, args.size).into(),
            concurrency: args.concurrency as usize,
            pause: args.pause,
            until: Instant::now() + length,
            tally: Rc::new(RefCell::new(tally)),
        }
    }

    fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn success(&self, began: Instant, bytes: usize, timings: Option<&v1::Timings>) {
        let mut tally = self.tally.borrow_mut();
        let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(LONGEST_NS);
        tally.latencies.saturating_record(ns);
        tally.bytes += bytes as u64;
        tally.cold += u64::from(timings.is_some_and(|t| t.cold));
        tally.thawed += u64::from(timings.is_some_and(|t| t.thaw_us > 0));
    }

    fn failure(&self, reason: &str, error: Error) {
        let mut tally = self.tally.borrow_mut();
        tally.errors.entry(reason.to_owned()).or_insert((0, error)).0 += 1;
    }

    fn error(&self, error: Error) {
        self.failure(stoker_proto::status::row(error.code).reason, error);
    }
}

/// Text, and a number to functions that take JSON. Those of AWS Lambda's kits read it, and numbers of a thousand digits are none to them:
/// they get a text.
fn body(door: Door, size: usize) -> Vec<u8> {
    let mut body = vec![b'1'; size];
    if let (Door::Lambda, [first, .., last]) = (door, &mut body[..]) {
        (*first, *last) = (b'"', b'"');
    }
    body
}

/// A way to the function, open.
enum Way {
    Session(Connection),
    Invoke(Connection),
    Http(doors::Target),
    Submit(Connection),
}

impl Way {
    async fn open(args: &Bench, common: &Common) -> Result<Self, Failure> {
        if let Some(path) = socket(args) {
            return Ok(Self::Http(doors::Target::socket(path)));
        }
        Ok(match args.door {
            Door::Session => Self::Session(Connection::open(&common.server).await?),
            Door::Invoke | Door::Submit if args.size > stoker_proto::MAX_MESSAGE => {
                let most = output::human_size(stoker_proto::MAX_MESSAGE as u64);
                return Err(Failure::usage(
                    format!("this door carries at most {most} in one message"),
                    "send less with --size, or take --door session or http, which stream",
                ));
            }
            Door::Invoke => Self::Invoke(Connection::open(&common.server).await?),
            Door::Http | Door::Lambda => {
                Self::Http(doors::Target::balancer(&args.http, args.door, &args.function)?)
            }
            Door::Submit => Self::Submit(Connection::open(&common.server).await?),
        })
    }

    async fn run(&self, load: &Load) -> Result<(), Failure> {
        match self {
            Self::Session(connection) => doors::session(connection.clone(), load).await,
            Self::Invoke(connection) => doors::invoke(connection.clone(), load).await,
            Self::Http(target) => doors::http(target, load).await,
            Self::Submit(connection) => doors::submit(connection.clone(), load).await,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Session(_) => "session",
            Self::Invoke(_) => "invoke",
            Self::Http(target) => target.name(),
            Self::Submit(_) => "submit",
        }
    }
}

fn socket(args: &Bench) -> Option<PathBuf> {
    args.function.strip_prefix("unix:").map(PathBuf::from)
}

/// What came of a run.
struct Outcome<'a> {
    args: &'a Bench,
    way: &'static str,
    tally: &'a Tally,
    took: Duration,
    /// CPU time of the balancer and its runners, by the name of the thread; nothing where they are not here.
    servers: cpu::Times,
    /// CPU time of this command.
    own: Duration,
}

pub async fn run(args: Bench, common: &Common) -> Result<(), Failure> {
    let way = Way::open(&args, common).await?;
    let servers = servers(&args, common).await;
    if !args.warm_up.is_zero() {
        load(&way, &args, args.warm_up, "warming up").await?;
    }
    let used = || servers.iter().map(|pid| cpu::used(*pid)).collect::<Vec<_>>();
    let own = || cpu::used(std::process::id()).into_values().sum::<Duration>();
    let (used_before, own_before, began) = (used(), own(), Instant::now());
    let load = load(&way, &args, args.duration, "measuring").await?;
    let took = began.elapsed();
    let mut spent = cpu::Times::new();
    for (before, now) in used_before.iter().zip(used()) {
        for (name, time) in cpu::since(before, &now) {
            *spent.entry(name).or_default() += time;
        }
    }
    let tally = load.tally.borrow();
    let outcome = Outcome {
        args: &args,
        way: way.name(),
        tally: &tally,
        took,
        servers: spent,
        own: own().saturating_sub(own_before),
    };
    match common.output {
        Output::Json => outcome.print_json()?,
        Output::Table => outcome.print_table()?,
    }
    tally.outcome()
}

/// Runs the callers for `length`, and shows how it goes.
async fn load(way: &Way, args: &Bench, length: Duration, what: &str) -> Result<Load, Failure> {
    let function = if socket(args).is_some() { "" } else { &args.function };
    let load = Load::new(args, function, length);
    tokio::select! {
        result = way.run(&load) => result?,
        never = progress(&load, what) => match never {},
    }
    if std::io::stderr().is_terminal() {
        output::say("\r\x1b[K");
    }
    Ok(load)
}

/// The processes of balancer and runners, where they are on this machine and can be seen. A convenience: whatever cannot be
/// found out is left out.
async fn servers(args: &Bench, common: &Common) -> Vec<u32> {
    let process = |url: &str| {
        let uri = client::origin(url, "").ok()?;
        let address = (uri.host()?, uri.port_u16()?).to_socket_addrs().ok()?.next()?;
        cpu::listener(address)
    };
    if socket(args).is_some() {
        return Vec::new();
    }
    let by_http = matches!(args.door, Door::Http | Door::Lambda);
    let balancer = process(if by_http { &args.http } else { &common.server });
    let Some(balancer) = balancer else { return Vec::new() };
    let mut all = vec![balancer];
    // The two addresses may lead to different fleets.
    if process(&common.server) == Some(balancer)
        && let Ok(mut fleet) = client::fleet(&common.server).await
        && let Ok(runners) = fleet.list_runners(v1::ListRunnersRequest {}).await
    {
        let addresses =
            runners.into_inner().runners.into_iter().filter_map(|r| r.capacity).map(|c| c.address);
        all.extend(addresses.filter_map(|address| process(&address)));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Rewrites one line a second while a person looks on; does nothing else, and ends with the run.
async fn progress(load: &Load, what: &str) -> std::convert::Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut before = 0;
    loop {
        second.tick().await;
        let (count, failed) = {
            let tally = load.tally.borrow();
            (tally.latencies.len(), tally.failed())
        };
        let left = load.until.saturating_duration_since(Instant::now()).as_secs();
        let rate = count - before;
        output::say(&format!("\r{what}: {count} calls, {rate}/s, {failed} failed, {left} s left \x1b[K"));
        before = count;
    }
}

const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p75", 75.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];

impl Outcome<'_> {
    fn per_second(&self) -> f64 {
        self.tally.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The doors that tell say for each call whether it was cold, and whether it had to be thawed.
    fn tells_starts(&self) -> bool {
        matches!(self.way, "session" | "invoke")
    }

    /// CPU seconds for a thousand calls; those that failed had their price too.
    fn per_thousand(&self, time: Duration) -> f64 {
        let calls = self.tally.latencies.len() + self.tally.failed();
        time.as_secs_f64() * 1000.0 / calls.max(1) as f64
    }

    fn print_table(&self) -> Result<(), Failure> {
        let Self { args, tally, took, .. } = self;
        let calls = tally.latencies.len();
        let size = output::human_size(args.size as u64);
        let mut rows = vec![
            vec!["function".to_owned(), args.function.clone()],
            vec!["door".into(), format!("{}, {} at once, {size} each", self.way, args.concurrency)],
            vec![
                "calls".into(),
                format!("{calls} in {:.1} s, {} failed", took.as_secs_f64(), tally.failed()),
            ],
            vec!["throughput".into(), format!("{:.0} calls/s", self.per_second())],
            vec!["answers".into(), format!("{:.1} MB/s", tally.bytes as f64 / 1e6 / took.as_secs_f64())],
        ];
        if self.tells_starts() {
            rows.push(vec!["cold starts".into(), format!("{}, thawed {}", tally.cold, tally.thawed)]);
        }
        for (name, percentile) in PERCENTILES {
            let us = tally.latencies.value_at_percentile(percentile).div_ceil(1000);
            rows.push(vec![name.into(), output::human_us(us)]);
        }
        if !self.servers.is_empty() {
            let total = self.per_thousand(self.servers.values().sum());
            let threads: Vec<_> = self
                .servers
                .iter()
                .map(|(name, time)| (name, self.per_thousand(*time)))
                .filter(|(_, time)| *time >= 0.0005)
                .map(|(name, time)| format!("{name} {time:.3}"))
                .collect();
            let text = format!("{total:.3} s per 1,000 calls ({})", threads.join(", "));
            rows.push(vec!["fleet's CPU".into(), text]);
        }
        let own = 100.0 * self.own.as_secs_f64() / took.as_secs_f64();
        rows.push(vec!["our CPU".into(), format!("{own:.0} % of a core for making the calls")]);
        for (reason, (count, first)) in &tally.errors {
            rows.push(vec![reason.clone(), format!("{count} ×, first: {}", first.message)]);
        }
        output::print(&rows.iter().map(|row| format!("{:<14} {}\n", row[0], row[1])).collect::<String>())
    }

    fn print_json(&self) -> Result<(), Failure> {
        let Self { args, tally, took, .. } = self;
        let us = |ns: u64| ns as f64 / 1e3;
        let percentiles: serde_json::Map<_, _> = PERCENTILES
            .iter()
            .map(|(name, p)| ((*name).to_owned(), json!(us(tally.latencies.value_at_percentile(*p)))))
            .collect();
        let starts = |count: u64| self.tells_starts().then_some(count);
        let servers = (!self.servers.is_empty()).then(|| {
            let threads: serde_json::Map<_, _> =
                self.servers.iter().map(|(name, time)| (name.clone(), json!(time.as_secs_f64()))).collect();
            json!({
                "seconds": self.servers.values().sum::<Duration>().as_secs_f64(),
                "per_1000_calls": self.per_thousand(self.servers.values().sum()),
                "threads": threads,
            })
        });
        let errors = tally.errors.iter();
        let errors: Vec<_> =
            errors.map(|(r, (n, first))| json!({"reason": r, "count": n, "first": first.message})).collect();
        output::print_json(&json!({
            "function": args.function, "door": self.way, "concurrency": args.concurrency, "size": args.size,
            "seconds": took.as_secs_f64(), "calls": tally.latencies.len(), "failed": tally.failed(),
            "calls_per_second": self.per_second(), "answer_bytes": tally.bytes,
            "cold_starts": starts(tally.cold), "thawed": starts(tally.thawed),
            "latency_us": percentiles, "mean_us": tally.latencies.mean() / 1e3,
            "fleet_cpu": servers, "own_cpu_seconds": self.own.as_secs_f64(), "errors": errors,
        }))
    }
}
