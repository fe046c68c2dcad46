//! A fleet under mixed load for a long time, with a fault every few seconds, every call of which is accounted for in the end: two
//! balancers, three runners and three members of etcd, each server on a host of its own. `soak [SECONDS] [SEED]`, as root; half an hour by
//! itself. Prints what happened and ends with a failure where a promise was broken or anything was left behind.

mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::error::Code;
use stoker_core::function::{Format, FunctionSpec};
use stoker_tests::cluster::load::{Failure, Load, Sums, Way, Work, longest_silence};
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::{Change as _, function, probe, shell};
use stoker_tests::net::{self, Net};

use crate::faults::Faults;

const BALANCERS: usize = 2;
const RUNNERS: usize = 3;
const MEMBERS: usize = 3;

/// Of every call: one that a bad link holds up for longer ends with that, wherever it is.
const DEADLINE: Duration = Duration::from_secs(15);

/// Nothing that a function does takes long, but for want of CPU: then a call ends by its own deadline, and nobody blames the function.
const STARVED: Duration = Duration::from_secs(120);

/// A function in Python, and where it lies in the directory of all functions.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/functions/recorder.py");
const RECORDER: &str = "recorder.py";

/// Other work on the machine may leave the fleet without CPU for a while: what is judged is what becomes of calls, and not how soon.
const PATIENCE: u32 = 20;

/// How often it says how far it is.
const REPORT: Duration = Duration::from_secs(60);

/// The functions: hot and cold, quick and slow, in four formats.
fn functions() -> Vec<FunctionSpec> {
    let python = |name: &str, format: Format, word: &str| {
        let mut spec = function(name, &["python3", RECORDER, word]);
        spec.format = format;
        spec
    };
    let script = r#"IFS= read -r key; echo "start $key $$-0 -" >"$PROBE_RECORD"; echo "$key"; exec cat"#;
    [
        probe("hot"),
        probe("large"),
        probe("rare").with_idle_timeout(Duration::from_millis(300)),
        probe("left"),
        probe("slow"),
        probe("again").idempotent(),
        shell("script", script),
        python("json", Format::Json, "json"),
        python("http", Format::Http, "http"),
    ]
    .map(|function| function.with_timeout(STARVED).with_init_timeout(STARVED))
    .into()
}

/// What is called, how often, with bodies of which size, and by which doors.
fn works() -> Vec<Work> {
    let work = |name: &str, clients: usize, pause_ms: u64| {
        Work::of(name).clients(clients).pause(Duration::from_millis(pause_ms)).timeout(DEADLINE)
    };
    let all = [Way::Invoke, Way::Session, Way::Stream];
    vec![
        work("hot", 6, 150).size(100).ways(&all),
        work("large", 2, 400).size(400_000).ways(&[Way::Invoke, Way::Stream]),
        work("rare", 3, 900).size(1_000).ways(&all),
        work("left", 4, 150).word("sleep:5").ways(&[Way::Leave]),
        work("slow", 4, 100).word("sleep:1500"),
        work("again", 3, 150).word("sleep:20"),
        work("script", 3, 500).size(2_000).ways(&all),
        work("json", 3, 200).size(3_000).ways(&all),
        work("http", 3, 200).size(30_000).ways(&all),
    ]
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>().expect("a number"));
    let length = Duration::from_secs(arguments.next().unwrap_or(1800));
    stoker_tests::be_patient(PATIENCE);
    let seed = arguments.next().unwrap_or(1);
    println!("{} s, seed {seed}", length.as_secs());
    net::run(move |net| soak(net, length, seed));
}

async fn soak(net: Arc<Net>, length: Duration, seed: u64) {
    let plan = Plan::new(BALANCERS, RUNNERS).members(MEMBERS).room(24).on(&net);
    let plan = plan.set("MAX_WAIT", "10s").set("DRAIN_GRACE", "8s");
    let mut cluster = plan.start([]).await.expect("etcd is not left out");
    std::fs::copy(SOURCE, cluster.starts.pipe().directory().join(RECORDER)).expect("it can be copied");
    for function in functions() {
        cluster.apply(function).await;
    }
    let names = ["hot", "large", "rare", "left", "slow", "again", "script", "json", "http"];
    let mut loads: Vec<(&str, Load)> = Vec::new();
    for (name, work) in names.into_iter().zip(works()) {
        loads.push((name, cluster.load_apart(work).await));
    }
    for (_, load) in &loads {
        load.more(5).await;
    }
    let began = Instant::now();
    let before = memory(&cluster);
    let mut faults = Faults::new(seed);
    let mut reported = began;
    while began.elapsed() < length {
        tokio::time::sleep(faults.pause()).await;
        faults.next(&mut cluster, &net, began.elapsed()).await;
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let calls: Vec<_> = loads.iter().map(|(name, load)| format!("{name} {}", load.done())).collect();
            println!(
                "{:>5} s: {} faults; calls: {}",
                began.elapsed().as_secs(),
                faults.count(),
                calls.join(", ")
            );
        }
    }
    faults.end_all(&mut cluster, &net).await;
    cluster.until_all_ready().await;
    for (_, load) in &loads {
        load.more(5).await;
    }
    let after = memory(&cluster);
    println!("faults: {:?}; packets lost: {}", faults.kinds(), net.lost());
    println!("| load | calls | answered | made again | went away | failed | longest silence |");
    println!("|---|---|---|---|---|---|---|");
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (name, load) in loads {
        let attempts = load.end().await;
        let sums = match name {
            "again" => cluster.check_idempotent(&attempts).await,
            _ => cluster.check(&attempts).await,
        };
        let went = sums.failed.iter().filter(|attempt| attempt.outcome == Err(Failure::Left)).count();
        account(&sums, &mut kinds);
        println!(
            "| {name} | {} | {} | {} | {went} | {} | {} ms |",
            sums.calls,
            sums.answered,
            sums.repeated,
            sums.failed.len() - went,
            longest_silence(&attempts, began).as_millis(),
        );
    }
    println!("why calls failed: {kinds:?}");
    println!("resident memory in MiB, and files: before {before:?}, after {after:?}");
    cluster.end().await;
    println!("nothing is left behind");
}

/// Why calls failed. What may fail is a call that a fault hit, and it says so.
fn account(sums: &Sums, kinds: &mut BTreeMap<String, usize>) {
    for attempt in &sums.failed {
        let kind = match &attempt.outcome {
            Err(Failure::Said(error)) => {
                let expected = matches!(
                    error.code,
                    Code::RunnerLost | Code::Unavailable | Code::Overloaded | Code::DeadlineExceeded
                );
                assert!(expected, "{attempt:?}");
                format!("{:?}", error.code)
            }
            Err(Failure::Broken(why)) if why.contains("Timeout expired") => {
                "the deadline passed at the client first".to_owned()
            }
            Err(Failure::Broken(_)) => "the connection to a balancer broke".to_owned(),
            Err(Failure::Unsent(_)) => "no balancer could be reached".to_owned(),
            Err(Failure::Left) | Ok(_) => continue,
        };
        *kinds.entry(kind).or_default() += 1;
    }
}

/// Of every server: what it holds in memory, in MiB, and how many files.
fn memory(cluster: &Cluster) -> BTreeMap<String, (u64, usize)> {
    let servers = cluster.balancers.iter().map(|balancer| &balancer.server);
    let servers = servers.chain(cluster.runners.iter().map(|runner| &runner.server));
    let of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or_default();
        (kib >> 10, std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count))
    };
    servers
        .map(|server| (server.name.rsplit('-').next().unwrap_or_default().to_owned(), of(server.pid())))
        .collect()
}
