//! Several balancers before one full runner: each gets its share, whoever came first. Only counts decide here, never times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use stoker_lb::Balancer;
use stoker_runtime::metrics::Metrics;
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::fleet::{Fleet, Plan, balancer_config};
use stoker_tests::functions::probe;

/// Callers that call again as soon as they have their answer.
struct Load {
    done: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(clients: &Clients, callers: usize) -> Self {
        let (done, over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let callers = (0..callers)
            .map(|_| {
                let (clients, done, over) = (clients.clone(), done.clone(), over.clone());
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        clients.call(Door::Session, Call::of("busy").probe("sleep:5")).await.unwrap();
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
