//! Several balancers before one full runner, and several apps on it: each gets its share, whoever came first. Only counts decide here, never times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_lb::Balancer;
use stoker_runtime::metrics::Metrics;
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::fleet::{Fleet, Plan, balancer_config};
use stoker_tests::functions::probe;
use stoker_tests::left;

/// Callers that call again as soon as they have their answer.
struct Load {
    done: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(clients: &Clients, callers: usize) -> Self {
        Self::of(clients, callers, "busy", "sleep:5")
    }

    fn of(clients: &Clients, callers: usize, function: &str, word: &str) -> Self {
        let (done, over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let callers = (0..callers)
            .map(|_| {
                let (clients, done, over) = (clients.clone(), done.clone(), over.clone());
                let call = Call::of(function).probe(word);
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        clients.call(Door::Session, call.clone()).await.unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { done, over, callers }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
    }
}

/// Another balancer of a fleet.
async fn another(fleet: &Fleet) -> (Balancer, Clients, Metrics) {
    let metrics = Metrics::default();
    let config = stoker_lb::Config { metrics: metrics.clone(), ..balancer_config() };
    let balancer = Balancer::start(config, Arc::new(fleet.registry.clone())).await.unwrap();
    balancer.ready().await;
    let clients = Clients::connect(balancer.grpc_address(), balancer.http_address()).await;
    (balancer, clients, metrics)
}

/// The offers that a balancer made, and how many of them were refused.
fn offers(metrics: &Metrics) -> (usize, usize) {
    let (mut all, mut refused) = (0, 0);
    for line in metrics.text().lines().filter(|line| line.starts_with("stoker_lb_offers_total")) {
        let count: usize = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        all += count;
        refused += if line.contains("refused_full") { count } else { 0 };
    }
    (all, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_balancers_share_one_full_runner() {
    const CALLS: usize = 150;
    let fleet = Plan::default().room(4).start([probe("busy")]).await;
    let first = Load::start(&fleet.clients, 40);
    fleet.until_heard("a queue", |heard| heard.queued >= 10).await;
    // The others come when it is full, and want less.
    let (second_balancer, second_clients, second_metrics) = another(&fleet).await;
    let (third_balancer, third_clients, _) = another(&fleet).await;
    let (second, third) = (Load::start(&second_clients, 12), Load::start(&third_clients, 12));
    let before = first.done();
    while second.done() < CALLS || third.done() < CALLS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shares = [first.done() - before, second.done(), third.done()];
    second.end().await;
    third.end().await;
    first.end().await;
    let (offers, refused) = offers(&second_metrics);
    println!("calls of the three balancers: {shares:?}; {offers} offers of the second, {refused} refused");
    let (most, least) = (shares.iter().max().unwrap(), shares.iter().min().unwrap());
    // Without turns in the runner's line the first has nearly all, for as long as it wants.
    assert!(*most <= 3 * least, "{shares:?}");
    // A slot that frees up is one offer of one of them, and now and then one that comes too late.
    assert!(offers <= 3 * shares[1], "{offers} offers for {} calls", shares[1]);
    second_balancer.stop(Duration::from_secs(10)).await;
    third_balancer.stop(Duration::from_secs(10)).await;
    fleet.end().await;
}

/// A function of an app whose idle containers go soon.
fn of_app(app: &str, name: &str) -> FunctionSpec {
    FunctionSpec { name: FunctionName::new(app, name).unwrap(), idle_timeout_ms: 500, ..probe(name) }
}

/// The containers that each of these has.
fn containers(fleet: &Fleet, functions: &[FunctionSpec]) -> Vec<u32> {
    functions.iter().map(|function| fleet.warmth(function)).map(|(idle, busy, _)| idle + busy).collect()
}

/// Waits until the runner says of the containers of these functions that this is so.
async fn until_containers(
    fleet: &Fleet,
    functions: &[FunctionSpec],
    what: &str,
    holds: impl Fn(&[u32]) -> bool,
) {
    fleet.until(what, |_| holds(&containers(fleet, functions))).await;
}

/// The processes of its functions.
fn running(fleet: &Fleet) -> Vec<i32> {
    let mut pids: Vec<i32> =
        left::processes(&fleet.mark).iter().filter(|p| p.function).map(|p| p.pid).collect();
    pids.sort_unstable();
    pids
}

/// An app with three functions has a runner of eight slots to itself, all of them in use without a pause. Then another comes with one function.
async fn two_apps(word: &str, calls: usize, second_balancer: bool) {
    let fleet = Plan::default().start([]).await;
    let functions =
        [of_app("many", "one"), of_app("many", "two"), of_app("many", "three"), of_app("few", "only")];
    for function in &functions {
        fleet.apply(function.clone()).await;
    }
    let other = if second_balancer { Some(another(&fleet).await) } else { None };
    let clients = other.as_ref().map_or(&fleet.clients, |(_, clients, _)| clients);
    let many: Vec<Load> = ["many/one", "many/two", "many/three"]
        .map(|function| Load::of(&fleet.clients, 10, function, word))
        .into();
    let done = |loads: &[Load]| loads.iter().map(Load::done).collect::<Vec<_>>();
    until_containers(&fleet, &functions, "an app alone has all", |held| held[..3].iter().sum::<u32>() == 8)
        .await;
    let few = Load::of(clients, 10, "few/only", word);
    let shared = |held: &[u32]| held[3] == 4 && held[..3].iter().all(|held| (1..=2).contains(held));
    until_containers(&fleet, &functions, "half of it is the other's", shared).await;
    let (before, first, pids) = (done(&many), few.done(), running(&fleet));
    while few.done() < first + calls {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shares: Vec<usize> = done(&many).iter().zip(before).map(|(now, then)| now - then).collect();
    let (all, only) = (shares.iter().sum::<usize>(), few.done() - first);
    let held = containers(&fleet, &functions);
    let begun = running(&fleet).iter().filter(|pid| !pids.contains(pid)).count();
    println!("{word}: calls {shares:?} and {only}, containers {held:?}, {begun} of them begun meanwhile");
    assert!(all * 2 <= only * 3 && only * 2 <= all * 3, "{shares:?} and {only}");
    // One here or there may be on its way.
    assert!((3..=5).contains(&held[3]), "{held:?}");
    // Those who took each other's containers in turns launched one for every four calls.
    assert!(begun * 50 <= all + only, "{begun} containers were launched for {} calls", all + only);
    few.end().await;
    until_containers(&fleet, &functions, "all of it again", |held| held[..3].iter().sum::<u32>() == 8).await;
    for load in many {
        load.end().await;
    }
    if let Some((balancer, ..)) = other {
        balancer.stop(Duration::from_secs(10)).await;
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_apps_with_short_calls_share_a_full_runner() {
    two_apps("sleep:5", 300, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_apps_with_long_calls_share_a_full_runner() {
    two_apps("sleep:250", 60, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_apps_behind_two_balancers_share_a_full_runner() {
    two_apps("sleep:20", 200, true).await;
}
