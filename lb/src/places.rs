//! Limits on the calls of a function, over all balancers.
//!
//! A limit is so many places in the registry, of which each balancer holds some: all together never more than there are. A balancer asks for
//! more when calls want them, keeps what was needed within the last half second, and gives the rest back: a function that is busy at one balancer
//! costs the registry nothing, however many calls there are. A call that is refused here may have found a place that another balancer's calls
//! had just left.
//!
//! Where the registry cannot be asked, each balancer takes the limit for its own, as calls go on without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stoker_core::function::FunctionName;
use stoker_registry::Places;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::directory::Gate;
use crate::front::Door;

/// What nobody needed for so long is given back.
const LINGER: Duration = Duration::from_millis(500);

/// Where there was nothing more to be had, nobody asks again before this.
const DENIED: Duration = Duration::from_millis(50);

/// Where the registry did not answer.
const AWAY: Duration = Duration::from_secs(1);

/// Longest that a balancer that stops waits until it has given back what it held.
const BACK: Duration = Duration::from_secs(2);

/// Functions whose places are changed at once.
const AT_ONCE: usize = 16;

/// A function with a limit.
struct Shared {
    gate: Arc<Gate>,
    /// 0 where there is none any more.
    limit: u32,
    held: Held,
    /// When it is looked at again, whatever happens.
    look: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Places(u32),
    /// It is not known: the registry does not answer, or has forgotten, or the limit has changed.
    Unknown,
}

impl Shared {
    /// How many places are to be held, if not those that are.
    fn due(&mut self, now: Instant) -> Option<u32> {
        let needs = self.gate.needs().min(self.limit);
        let overdue = self.look.is_some_and(|look| look <= now);
        match self.held {
            Held::Unknown if self.look.is_none() || overdue => Some(needs),
            Held::Unknown => None,
            Held::Places(held) if needs > held && self.may_ask(overdue) => Some(needs),
            Held::Places(_) if !overdue => None,
            Held::Places(held) => {
                self.gate.may_ask();
                let used = self.gate.peak().min(self.limit);
                self.look = (used > 0).then_some(now + LINGER);
                (used < held).then_some(used)
            }
        }
    }

    /// Whether there may be more than there was.
    fn may_ask(&self, overdue: bool) -> bool {
        overdue || !self.gate.is_denied()
    }

    fn took(&mut self, want: u32, answer: Result<u32, stoker_registry::Error>, now: Instant) {
        match answer {
            Ok(held) => {
                let denied = held < want;
                self.held = Held::Places(held);
                self.look = match (denied, held) {
                    (true, _) => Some(now + DENIED),
                    (false, 0) => None,
                    (false, _) => Some(now + LINGER),
                };
                self.gate.holds(Some(held), denied);
            }
            Err(error) => {
                tracing::debug!(%error, "places could not be held: the limit is this balancer's own for now");
                self.held = Held::Unknown;
                self.look = Some(now + AWAY);
                self.gate.holds(None, false);
            }
        }
    }
}

/// Holds places until it is told to stop.
pub async fn run(door: Arc<Door>, places: Arc<dyn Places>, stop: CancellationToken) {
    let mut all: BTreeMap<FunctionName, Shared> = BTreeMap::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(&door, &*places, &mut all) => {}
    }
    // Others need not wait until it is clear that nobody is here any more.
    all.retain(|_, one| one.held != Held::Places(0));
    let back: Vec<_> = all.keys().map(|name| places.hold(name, 0, 0)).collect();
    let back = futures_util::stream::iter(back).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    if tokio::time::timeout(BACK, back).await.is_err() {
        tracing::warn!("places could not be given back: they come free by themselves");
    }
}

async fn keep(door: &Door, places: &dyn Places, all: &mut BTreeMap<FunctionName, Shared>) {
    let (mut functions, mut lost) = (door.directory.changes(), places.lost());
    functions.mark_changed();
    loop {
        if functions.has_changed().unwrap_or_default() {
            functions.mark_unchanged();
            refresh(all, door);
        }
        let now = Instant::now();
        let mut changes = Vec::new();
        for (name, one) in all.iter_mut() {
            if let Some(want) = one.due(now) {
                changes.push(hold(places, name, one, want));
            }
        }
        futures_util::stream::iter(changes).buffer_unordered(AT_ONCE).collect::<()>().await;
        all.retain(|_, one| one.limit > 0 || one.held != Held::Places(0));
        let next = all.values().filter_map(|one| one.look).min();
        tokio::select! {
            // Fails only when the registry is gone with its process.
            changed = functions.changed() => match changed {
                Ok(()) => functions.mark_changed(),
                Err(_) => return,
            },
            () = door.directory.wanted() => {}
            Ok(()) = lost.changed() => all.values_mut().for_each(|one| (one.held, one.look) = (Held::Unknown, None)),
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

async fn hold(places: &dyn Places, name: &FunctionName, one: &mut Shared, want: u32) {
    let answer = places.hold(name, one.limit, want).await;
    one.took(want, answer, Instant::now());
}

/// Takes in which functions have limits, and which.
fn refresh(all: &mut BTreeMap<FunctionName, Shared>, door: &Door) {
    let mut before: Vec<FunctionName> = all.keys().cloned().collect();
    for (name, gate, limit) in door.directory.limited() {
        before.retain(|other| *other != name);
        let fresh = || Shared { gate: gate.clone(), limit, held: Held::Places(0), look: None };
        let one = all.entry(name).or_insert_with(fresh);
        if !Arc::ptr_eq(&one.gate, &gate) || one.limit != limit {
            (one.gate, one.limit, one.held, one.look) = (gate, limit, Held::Unknown, None);
        }
    }
    for name in before {
        if let Some(one) = all.get_mut(&name).filter(|one| one.limit > 0) {
            (one.limit, one.held, one.look) = (0, Held::Unknown, None);
        }
    }
}
