//! `min_containers`: tells runners what to keep ready before anybody calls.
//!
//! Where a function's containers stand is [`stoker_policy::min_containers`]'s rule, which every balancer comes to by itself; here the facts are
//! gathered and runners are told. What a balancer says to a runner is all that it wants there, holds for a minute and is said again every twenty
//! seconds, so that what is not wanted any more is forgotten, whoever wanted it. A runner keeps the most of what its balancers want.
//!
//! Everything is looked at again when a function or the fleet has changed, though never all the time: the pause between two looks is many
//! times what a look takes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use stoker_core::capacity::Warmth;
use stoker_core::function::{Digest, FunctionSpec};
use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::Seat;
use stoker_policy::min_containers::{Candidate, PATIENCE, Shares, part, room};
use stoker_proto::MAX_KEPT;
use stoker_registry::revisions::WHOLE;
use tokio_util::sync::CancellationToken;

use crate::directory::{Directory, Known};
use crate::fleet::{Fleet, Link, Runner};
use crate::front::Front;
use crate::link::session::Session;

/// What was said holds for so long: a balancer that starts again is back by then, and one that is gone for good is not obeyed for much longer.
const HOLDS: Duration = Duration::from_secs(60);

/// It is said again so often.
const RENEW: Duration = Duration::from_secs(20);

/// The shortest pause between two looks, and how many times the last one's length a pause is.
const PAUSE: (Duration, u32) = (Duration::from_millis(100), 20);

/// So many functions are placed before others have their turn on this thread: a function whose order has to be made anew takes some 20 µs among a
/// thousand runners.
const AT_ONCE: usize = 32;

/// A version of a function, and how many of it there shall be.
struct Target {
    function: Arc<Known>,
    containers: u32,
    /// Most on one runner.
    most: u32,
    shares: Shares<Seat>,
}

/// What a runner was told last.
struct Told {
    on: Weak<Session>,
    kept: Vec<(Digest, u32)>,
    at: Instant,
}

/// What is wanted, and who knows of it.
#[derive(Default)]
struct Keeper {
    targets: Vec<Target>,
    told: HashMap<Seat, Told>,
}

type Lists = HashMap<Seat, Vec<(Arc<Known>, u32)>>;

/// Keeps runners told until `stop`.
pub async fn run(front: Arc<Front>, stop: CancellationToken) {
    let (directory, fleet) = (&front.directory, &front.dispatch.fleet);
    let (mut functions, mut changes) = (directory.changes(), fleet.changes());
    let mut known = fleet.known();
    let read = async {
        directory.read().await;
        // Its sender lives as long as the fleet.
        known.wait_for(|known| *known).await.ok();
    };
    tokio::select! {
        () = stop.cancelled() => return,
        () = read => functions.mark_changed(),
    }
    let mut keeper = Keeper::default();
    loop {
        let began = Instant::now();
        if functions.has_changed().unwrap_or(false) {
            functions.mark_unchanged();
            keeper.set_targets(directory);
        }
        changes.mark_unchanged();
        let lists = keeper.place(fleet).await;
        let again = keeper.tell(fleet, lists);
        let rest = began + PAUSE.0.max(began.elapsed() * PAUSE.1);
        let renewal = async {
            match again {
                Some(again) => tokio::time::sleep_until(again.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = functions.changed() => match changed {
                Ok(()) => functions.mark_changed(),
                // The registry is gone with its process.
                Err(_) => return,
            },
            // Its sender lives as long as the fleet.
            _ = changes.changed(), if !keeper.targets.is_empty() => {}
            () = renewal => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(rest.into()) => {}
        }
    }
}

impl Keeper {
    /// Takes up what functions want now.
    fn set_targets(&mut self, directory: &Directory) {
        let mut before: HashMap<Digest, Shares<Seat>> =
            self.targets.drain(..).map(|target| (target.function.digest, target.shares)).collect();
        for function in directory.all() {
            let spec = function.spec.clone();
            if spec.min_containers == 0 {
                continue;
            }
            for (version, calls) in directory.kept(&function).serving() {
                let containers = part(spec.min_containers, calls, WHOLE);
                // Two revisions may be the same version.
                if let Some(same) =
                    self.targets.iter_mut().rev().take(2).find(|w| w.function.digest == version.digest)
                {
                    same.containers = same.containers.saturating_add(containers);
                } else if containers > 0 {
                    let shares = before.remove(&version.digest).unwrap_or_default();
                    self.targets.push(Target {
                        function: version,
                        containers,
                        most: spec.max_containers,
                        shares,
                    });
                }
            }
        }
    }

    /// Decides who keeps what.
    async fn place(&mut self, fleet: &Fleet) -> Lists {
        let (now, mut ranked, mut lists) = (Instant::now(), Vec::new(), Lists::new());
        // What is left of each runner's room by those before.
        let mut free: HashMap<Seat, Resources> = HashMap::new();
        for (n, target) in self.targets.iter_mut().enumerate() {
            if n % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let (spec, digest) = (&target.function.spec, &target.function.digest);
            let ask = spec.ask();
            fleet.ranking(&target.function, &mut ranked);
            let open = |runner: &&Arc<Runner>| {
                runner.may_keep() && lists.get(&runner.seat).is_none_or(|list| list.len() < MAX_KEPT)
            };
            let candidates: Vec<_> = ranked
                .iter()
                .filter(open)
                .map(|runner| {
                    let record = &runner.capacity().0;
                    let free = free.entry(runner.seat).or_insert(record.free);
                    let has = record.functions.get(digest).map_or(0, |warmth| containers(*warmth, spec));
                    Candidate { runner: runner.seat, has, room: room(free, &ask) }
                })
                .collect();
            target.shares.place(target.containers, target.most, &candidates, now);
            for share in target.shares.iter() {
                lists.entry(share.runner).or_default().push((target.function.clone(), share.containers));
                let has = candidates.iter().find(|c| c.runner == share.runner).map_or(0, |c| c.has);
                if let Some(free) = free.get_mut(&share.runner) {
                    take(free, &ask, share.containers.saturating_sub(has));
                }
            }
        }
        lists
    }

    /// Tells runners what they do not know yet, or have not been told for a while; gives the time for another look.
    fn tell(&mut self, fleet: &Fleet, mut lists: Lists) -> Option<Instant> {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.told);
        for runner in fleet.runners().iter() {
            let list = lists.remove(&runner.seat).unwrap_or_default();
            let mut open = runner.links.iter().filter(|link| Link::is_open(link));
            let Some(session) = open.find_map(|link| link.session.load_full()) else { continue };
            let kept: Vec<_> = list.iter().map(|(function, n)| (function.digest, *n)).collect();
            let told = before.remove(&runner.seat);
            let fresh = |told: &Told| {
                told.on.as_ptr() == Arc::as_ptr(&session)
                    && told.kept == kept
                    && (kept.is_empty() || now < told.at + RENEW)
            };
            match told {
                Some(told) if fresh(&told) => _ = self.told.insert(runner.seat, told),
                None if kept.is_empty() => {}
                _ if session.keep(&list, HOLDS) => {
                    let on = Arc::downgrade(&session);
                    self.told.insert(runner.seat, Told { on, kept, at: now });
                }
                // The session has ended at this moment, which is a change of the fleet.
                _ => {}
            }
        }
        let renewals = self.told.values().filter(|told| !told.kept.is_empty()).map(|told| told.at + RENEW);
        let late = self.targets.iter().any(|target| target.shares.short()).then(|| now + PATIENCE);
        renewals.chain(late).min()
    }
}

/// Containers of a function by what a runner says of it. Those that serve once count as long as they wait for their call.
fn containers(warmth: Warmth, spec: &FunctionSpec) -> u32 {
    match spec.is_hot() {
        true => warmth.idle.saturating_add(warmth.busy).div_ceil(spec.concurrency.max(1)),
        false => warmth.idle,
    }
}

/// Takes what so many containers hold.
fn take(free: &mut Resources, ask: &Ask, containers: u32) {
    let standing = ask.standing();
    free.memory = free.memory.saturating_sub(standing.memory.saturating_mul(containers.into()));
    free.slots = free.slots.saturating_sub(containers);
}
