//! Balancers that share a limit: their own tasks, a registry in memory, and callers who come again; the clock is a paused one.

use std::sync::atomic::{AtomicU32, Ordering};

use stoker_core::function::FunctionSpec;
use stoker_registry::revisions::Change;
use stoker_registry::{MemoryRegistry, Registry as _};
use tokio::task::JoinSet;

use super::*;

const WORK: Duration = Duration::from_millis(20);

struct Fleet {
    registry: MemoryRegistry,
    name: FunctionName,
    limit: u32,
    inside: Arc<AtomicU32>,
    tasks: JoinSet<()>,
}

/// A balancer's part: its gate, and what its callers got.
struct Balancer {
    directory: Arc<Directory>,
    answered: Arc<AtomicU32>,
    callers: JoinSet<()>,
}

/// A call inside, of whatever balancer, as long as it lives.
struct Inside(Arc<AtomicU32>);

impl Inside {
    fn new(count: &Arc<AtomicU32>, limit: u32) -> Self {
        assert!(count.fetch_add(1, Ordering::Relaxed) < limit, "one more than are reserved");
        Self(count.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fleet {
    async fn new(limit: u32) -> Self {
        let (registry, name) = (MemoryRegistry::default(), FunctionName::new("b", "f").unwrap());
        let spec = FunctionSpec::new(name.clone(), vec!["/bin/true".into()], "/".into());
        registry.apply_functions(vec![spec]).await.unwrap();
        registry.change_function(&name, Change::Reserve(Some(limit))).await.unwrap();
        Self { registry, name, limit, inside: Arc::default(), tasks: JoinSet::new() }
    }

    fn balancer(&mut self, name: &str) -> Balancer {
        let directory = Arc::new(Directory::sharing(self.registry.functions()));
        let places = self.registry.places(name);
        let this = directory.clone();
        self.tasks.spawn(async move { keep(&this, &*places, &mut BTreeMap::new()).await });
        Balancer { directory, answered: Arc::default(), callers: JoinSet::new() }
    }

    /// Callers who call again when they are answered, after a second when they were refused, and after `pause`.
    fn call(&self, balancer: &mut Balancer, callers: u32, pause: Duration) {
        for _ in 0..callers {
            let (directory, answered) = (balancer.directory.clone(), balancer.answered.clone());
            let (name, limit, inside) = (self.name.clone(), self.limit, self.inside.clone());
            balancer.callers.spawn(async move {
                loop {
                    let gate = directory.limited().into_iter().find(|(of, ..)| *of == name).unwrap().1;
                    let mut entered = gate.enter();
                    let settled = match &mut entered {
                        Ok(entered) => entered.settle().await.is_ok(),
                        Err(_) => false,
                    };
                    if settled {
                        let _inside = Inside::new(&inside, limit);
                        tokio::time::sleep(WORK).await;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    drop(entered);
                    tokio::time::sleep(if settled { pause } else { Duration::from_secs(1) }).await;
                }
            });
        }
    }
}

impl Balancer {
    fn answered(&self) -> u32 {
        self.answered.swap(0, Ordering::Relaxed)
    }

    /// Its callers go away, and no call of theirs found anything wrong.
    async fn leave(&mut self) {
        self.callers.abort_all();
        while let Some(ended) = self.callers.join_next().await {
            assert!(ended.is_err_and(|ended| ended.is_cancelled()), "a caller found something wrong");
        }
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// What a place that is always in use answers in that time.
fn whole(limit: u32, seconds: u32) -> u32 {
    limit * seconds * 1_000 / WORK.as_millis() as u32
}

#[tokio::test(start_paused = true)]
async fn who_has_all_places_under_constant_demand_shares_them() {
    for limit in [1, 2, 3, 7] {
        let mut fleet = Fleet::new(limit).await;
        let (mut one, mut other) = (fleet.balancer("one"), fleet.balancer("other"));
        fleet.call(&mut one, 3 * limit, Duration::ZERO);
        seconds(10).await;
        let alone = one.answered();
        assert!(alone > whole(limit, 9), "{limit}: alone it has all: {alone}");
        fleet.call(&mut other, 3 * limit, Duration::ZERO);
        seconds(3).await;
        assert!(other.answered() > 0, "{limit}: within a second or two it has a place");
        one.answered();
        seconds(20).await;
        let (one_has, other_has) = (one.answered(), other.answered());
        let all = one_has + other_has;
        assert!(all > whole(limit, 20) * 3 / 4, "{limit}: places are in use: {one_has} and {other_has}");
        assert!(one_has * 5 > all * 2 && other_has * 5 > all * 2, "{limit}: {one_has} and {other_has}");
        one.leave().await;
        seconds(5).await;
        other.answered();
        seconds(10).await;
        let alone = other.answered();
        assert!(alone > whole(limit, 9), "{limit}: who is left has all: {alone}");
        other.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn fewer_places_than_balancers_go_round() {
    let mut fleet = Fleet::new(2).await;
    let mut balancers: Vec<_> = (0..5).map(|n| fleet.balancer(&format!("balancer-{n}"))).collect();
    for balancer in &mut balancers {
        fleet.call(balancer, 4, Duration::ZERO);
    }
    seconds(10).await;
    balancers.iter().for_each(|balancer| _ = balancer.answered());
    seconds(50).await;
    let answered: Vec<_> = balancers.iter().map(Balancer::answered).collect();
    let all: u32 = answered.iter().sum();
    assert!(all > whole(2, 50) / 2, "{answered:?}");
    assert!(answered.iter().all(|one| one * 5 * 2 > all), "each has half of its part at least: {answered:?}");
    for balancer in &mut balancers {
        balancer.leave().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_little_has_it_beside_who_wants_all() {
    let mut fleet = Fleet::new(4).await;
    let (mut greedy, mut modest) = (fleet.balancer("greedy"), fleet.balancer("modest"));
    fleet.call(&mut greedy, 12, Duration::ZERO);
    seconds(5).await;
    // One caller, ten times a second.
    fleet.call(&mut modest, 1, Duration::from_millis(80));
    seconds(5).await;
    greedy.answered();
    modest.answered();
    seconds(20).await;
    let (answered, of_modest) = (greedy.answered(), modest.answered());
    assert!(of_modest > 180, "it is never refused: {of_modest} of 200");
    assert!(answered > whole(3, 19), "the other has the rest: {answered}");
    greedy.leave().await;
    modest.leave().await;
}

/// A caller that goes from balancer to balancer finds the only place, wherever it was used last.
#[tokio::test(start_paused = true)]
async fn a_place_follows_its_only_caller() {
    let mut fleet = Fleet::new(1).await;
    let balancers = [fleet.balancer("one"), fleet.balancer("other")];
    // Both have read what there is.
    tokio::task::yield_now().await;
    for turn in 0..20 {
        let directory = &balancers[turn % 2].directory;
        let gate = directory.limited().remove(0).1;
        let mut entered = gate.enter().unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        entered.settle().await.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        tokio::time::sleep(WORK).await;
    }
}
