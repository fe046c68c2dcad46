//! What a registry of a thousand runners costs: real etcd, each runner's own registration, and several balancers' views in processes of
//! their own. `scale [RUNNERS] [MEMBERS] [VIEWS] [SECONDS]`: 1,000 runners, one member of etcd, three views, 20 s a phase by itself. Prints a table.
//!
//! Runners publish once a second in one phase and every 100 ms, the most that a runner does, in the next. A record says when it was made; a view
//! notes how old it is when it sees it. Then etcd is killed and started again.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stoker_core::Capacity;
use stoker_registry::testing::Etcd;
use stoker_registry::{EtcdRegistry, Fleet, Registration, Registry as _, conformance, etcd};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// When a record was made, in microseconds.
const AT: &str = "at";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64)
}

fn registry(endpoints: &str) -> EtcdRegistry {
    let endpoints = endpoints.split(',').map(str::to_owned).collect();
    EtcdRegistry::connect(etcd::Config::new(endpoints)).expect("the endpoints are right")
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match arguments.first().map(String::as_str) {
        Some("view") => runtime.block_on(view(&arguments[1])),
        _ => runtime.block_on(measure(&arguments)),
    }
}

/// What a balancer knows of the fleet. Each line of its STDIN is answered with what it saw since the last.
async fn view(endpoints: &str) {
    let registry = registry(endpoints);
    let mut fleet = registry.fleet();
    let mut seen: HashMap<String, u64> = HashMap::new();
    let (mut ages, mut snapshots) = (Vec::new(), 0);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(wanted)) = line else { return };
                let wanted: usize = wanted.parse().expect("a number of runners");
                fleet.wait_for(|fleet| fleet.runners.len() == wanted).await.expect("the registry lives");
                ages.sort_unstable();
                let part = |part: usize| ages.get(ages.len() * part / 1000).copied().unwrap_or_default();
                let (cpu, memory) = usage();
                println!("{} {snapshots} {} {} {cpu} {memory}", ages.len(), part(500), part(990));
                (ages, snapshots) = (Vec::new(), 0);
            }
            changed = fleet.changed() => {
                changed.expect("the registry lives");
                snapshots += 1;
                let (now, fleet) = (now(), fleet.borrow_and_update().clone());
                note(&fleet, now, &mut seen, &mut ages);
            }
        }
    }
}

/// How old the records are that are new in a snapshot.
fn note(fleet: &Arc<Fleet>, now: u64, seen: &mut HashMap<String, u64>, ages: &mut Vec<u64>) {
    for (name, record) in &fleet.runners {
        let at = record.labels.get(AT).and_then(|at| at.parse().ok()).unwrap_or(0);
        match seen.get_mut(name.as_str()) {
            Some(last) if *last == at => {}
            Some(last) => {
                *last = at;
                ages.push(now.saturating_sub(at));
            }
            None => drop(seen.insert(name.as_str().to_owned(), at)),
        }
    }
}

/// CPU time so far, in milliseconds, and memory held, in MiB.
fn usage() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    let fields: Vec<i64> = fields.filter_map(|field| field.parse().ok()).collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let rss: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap_or_default();
    // User and system time are the 14th and 15th field, in hundredths of a second; the first that is a number is the 4th.
    ((10 * (fields[10] + fields[11])) as u64, rss >> 10)
}

/// A process with a view.
struct View {
    child: Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
    cpu: u64,
}

/// What one saw: changes, snapshots, the median and the 99th percentile of their age in microseconds, CPU in milliseconds, memory in MiB.
type Saw = [u64; 6];

impl View {
    fn start(endpoints: &str) -> Self {
        let own = std::env::current_exe().expect("this program");
        let mut child = Command::new(own)
            .args(["view", endpoints])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("it is piped")));
        Self { child, lines, cpu: 0 }
    }

    fn ask(&mut self, runners: usize) {
        writeln!(self.child.stdin.as_mut().expect("it is piped"), "{runners}").expect("it lives");
    }

    fn answer(&mut self) -> Saw {
        let line = self.lines.next().expect("it answers").expect("it answers");
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
        let mut saw: Saw = numbers.try_into().expect("six of them");
        (saw[4], self.cpu) = (saw[4] - self.cpu, saw[4]);
        saw
    }
}

/// What all views saw since the last time; waits until each knows so many runners.
async fn saw(views: &mut Vec<View>, runners: usize) -> Vec<Saw> {
    let mut asked = std::mem::take(views);
    let (back, saw) = tokio::task::spawn_blocking(move || {
        asked.iter_mut().for_each(|view| view.ask(runners));
        let saw = asked.iter_mut().map(View::answer).collect();
        (asked, saw)
    })
    .await
    .expect("the views answer");
    *views = back;
    saw
}

/// Puts, CPU in milliseconds and memory in MiB of all members, by their own word.
fn etcd(members: &[Etcd]) -> [u64; 3] {
    let mut sums = [0; 3];
    for member in members {
        let address = member.endpoint().replace("http://", "");
        let mut stream = TcpStream::connect(&address).expect("etcd answers");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("etcd answers");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("etcd answers");
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        // Every member counts every change.
        sums[0] = sums[0].max(value("etcd_debugging_mvcc_put_total") as u64);
        sums[1] += (value("process_cpu_seconds_total") * 1000.0) as u64;
        sums[2] += value("process_resident_memory_bytes") as u64 >> 20;
    }
    sums
}

/// Each runner has a connection, and all of them are in this process, as their other ends are in etcd.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("it is not raised further");
}

async fn measure(arguments: &[String]) {
    allow_files();
    let number = |at: usize, default: usize| -> usize {
        arguments.get(at).map_or(default, |word| word.parse().expect("a number"))
    };
    let (runners, members, views) = (number(0, 1000), number(1, 1), number(2, 3));
    let length = Duration::from_secs(number(3, 20) as u64);
    let mut members = Etcd::start_cluster(members).await.expect("etcd is not left out");
    let endpoints: Vec<_> = members.iter().map(Etcd::endpoint).collect();
    let endpoints = endpoints.join(",");
    let mut views: Vec<View> = (0..views).map(|_| View::start(&endpoints)).collect();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{runners} runners, {} members, {} views; load of the machine {}",
        members.len(),
        views.len(),
        load.trim()
    );

    // The runners share a process, and nothing else: each has a registration, with its connections, of its own.
    let began = Instant::now();
    let registering = (0..runners).map(|n| {
        let (registry, record) = (registry(&endpoints), conformance::runner(&format!("runner-{n:04}")));
        async move { registry.register(record).await }
    });
    let registrations = futures_util::future::join_all(registering).await;
    let registrations: Vec<Box<dyn Registration>> =
        registrations.into_iter().collect::<Result<_, _>>().expect("they can be registered");
    saw(&mut views, runners).await;
    println!("all registered and seen by every view: {} ms", began.elapsed().as_millis());
    println!(
        "| phase | puts/s | etcd CPU | etcd MiB | runners' CPU, each | changes seen/s by a view | snapshots/s | age p50 / p99 ms | a view's CPU | a view's MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (every, changes) = watch::channel(Duration::MAX);
    let registrations: Arc<[Box<dyn Registration>]> = registrations.into();
    let publishing: Vec<_> = (0..runners)
        .map(|n| tokio::spawn(publish(registrations.clone(), n, runners, changes.clone())))
        .collect();
    let phases = [
        ("still", Duration::MAX),
        ("once a second", Duration::from_secs(1)),
        ("every 100 ms", Duration::from_millis(100)),
    ];
    for (name, pause) in phases {
        every.send_replace(pause);
        saw(&mut views, runners).await;
        let (before, own, began) = (etcd(&members), usage().0, Instant::now());
        tokio::time::sleep(length).await;
        let (after, took) = (etcd(&members), began.elapsed().as_secs_f64());
        let own = (usage().0 - own) as f64;
        let saw = saw(&mut views, runners).await;
        let mean = |at: usize| saw.iter().map(|saw| saw[at] as f64).sum::<f64>() / saw.len() as f64;
        println!(
            "| {name} | {:.0} | {:.0} % | {} | {:.3} % | {:.0} | {:.0} | {:.1} / {:.1} | {:.1} % | {:.0} |",
            (after[0] - before[0]) as f64 / took,
            (after[1] - before[1]) as f64 / took / 10.0,
            after[2],
            own / took / 10.0 / runners as f64,
            mean(0) / took,
            mean(1) / took,
            mean(2) / 1000.0,
            mean(3) / 1000.0,
            mean(4) / took / 10.0,
            mean(5),
        );
    }
    every.send_replace(Duration::from_secs(1));
    members.iter_mut().for_each(Etcd::kill);
    Etcd::restart_all(&mut members).await;
    let back = Instant::now();
    saw(&mut views, runners).await;
    // Every runner writes again: what every view sees then is newer than the restart.
    let since = now();
    let here = registry(&endpoints);
    let mut fleet = here.fleet();
    let fresh = |record: &Arc<Capacity>| {
        record.labels.get(AT).and_then(|at| at.parse::<u64>().ok()).is_some_and(|at| at > since)
    };
    fleet
        .wait_for(|fleet| fleet.runners.len() == runners && fleet.runners.values().all(fresh))
        .await
        .expect("the registry lives");
    println!(
        "etcd killed and started again: every runner was written and seen anew after {} ms",
        back.elapsed().as_millis()
    );
    publishing.iter().for_each(tokio::task::JoinHandle::abort);
    for task in publishing {
        // It was told to end; that is all there is to know.
        _ = task.await;
    }
    for view in &mut views {
        drop(view.child.stdin.take());
        view.child.wait().expect("it ends");
    }
}

/// Publishes as often as it is told, each runner at a moment of its own.
async fn publish(
    all: Arc<[Box<dyn Registration>]>,
    n: usize,
    runners: usize,
    mut every: watch::Receiver<Duration>,
) {
    let mut record = conformance::runner(&format!("runner-{n:04}"));
    loop {
        let pause = *every.borrow_and_update();
        if pause == Duration::MAX {
            if every.changed().await.is_err() {
                return;
            }
            continue;
        }
        let first = tokio::time::Instant::now() + pause.mul_f64(n as f64 / runners as f64);
        let mut ticks = tokio::time::interval_at(first, pause);
        // A runner that could not publish in time publishes its newest record only.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !every.has_changed().unwrap_or(true) {
            ticks.tick().await;
            record.sequence += 1;
            record.in_flight = (record.sequence % 16) as u32;
            record.labels.insert(AT.to_owned(), now().to_string());
            all[n].publish(record.clone()).await.expect("a record is taken");
        }
    }
}
