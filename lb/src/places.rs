//! Limits on the calls of a function, over all balancers.
//!
//! A limit is so many places in the registry, of which each balancer holds some: all together never more than there are. A balancer claims
//! what its calls want, and keeps what was wanted within the last two seconds if nobody else wants it: a function that is busy at one balancer
//! costs the registry nothing, however many calls there are. Where balancers want more than there is, they share it evenly and take turns
//! ([`stoker_policy::sharing`]): who has more than its share lets no more calls in, and gives up a place for each call that ends.
//!
//! Where the registry cannot be asked, each balancer takes the limit for its own, as calls go on without it.

mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use stoker_core::function::FunctionName;
use stoker_policy::sharing::Demand;
use stoker_registry::{Claim, Claims, Places};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::shared::{Others, Shared};
use crate::directory::Directory;
use crate::front::Front;

/// Longest that a balancer that stops waits until it has given back what it held: what is not given back comes free with its lease, and a stop should
/// not wait for that.
const BACK: Duration = Duration::from_secs(2);

/// Functions whose places are changed at once: a store answers so many together about as fast as one, and others want it too.
const AT_ONCE: usize = 16;

/// Holds places until it is told to stop.
pub async fn run(front: Arc<Front>, places: Arc<dyn Places>, stop: CancellationToken) {
    let mut all: BTreeMap<FunctionName, Shared> = BTreeMap::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(&front.directory, &*places, &mut all) => {}
    }
    // Others need not wait until it is clear that nobody is here any more.
    all.retain(|_, one| !one.holds_nothing());
    let back: Vec<_> = all.keys().map(|name| places.hold(name, 0, Claim::default())).collect();
    let back = futures_util::stream::iter(back).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    if tokio::time::timeout(BACK, back).await.is_err() {
        tracing::warn!("places could not be given back: they come free by themselves");
    }
}

async fn keep(directory: &Directory, places: &dyn Places, all: &mut BTreeMap<FunctionName, Shared>) {
    let (mut functions, mut lost, mut claims) = (directory.changes(), places.lost(), places.claims());
    functions.mark_changed();
    loop {
        if functions.has_changed().unwrap_or_default() {
            functions.mark_unchanged();
            refresh(all, directory);
        }
        let now = Instant::now();
        let news = claims.has_changed().unwrap_or_default();
        let seen = claims.borrow_and_update().clone();
        let mut changes = Vec::new();
        for (name, one) in all.iter_mut() {
            let others = others(&seen, name, places.holder(), news);
            if let Some(claim) = one.step(now, places.holder(), &others) {
                changes.push(hold(places, name, one, claim));
            }
        }
        futures_util::stream::iter(changes).buffer_unordered(AT_ONCE).collect::<()>().await;
        all.retain(|_, one| !one.is_over());
        let next = all.values().filter_map(Shared::next).min();
        tokio::select! {
            // Fails only when the registry is gone with its process.
            changed = functions.changed() => match changed {
                Ok(()) => functions.mark_changed(),
                Err(_) => return,
            },
            () = directory.wanted() => {}
            Ok(()) = claims.changed() => claims.mark_changed(),
            Ok(()) = lost.changed() => all.values_mut().for_each(Shared::forget),
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

async fn hold(places: &dyn Places, name: &FunctionName, one: &mut Shared, claim: Claim) {
    let answer = places.hold(name, one.limit, claim).await;
    one.took(claim, answer, Instant::now());
}

/// What everybody else claims.
fn others<'a>(claims: &'a Claims, name: &FunctionName, me: &str, news: bool) -> Others<'a> {
    let holders = claims.by_function.get(name).into_iter().flat_map(|holders| holders.iter());
    let mut others = Others { news, ..Others::default() };
    for (holder, claim) in holders.filter(|(holder, _)| *holder != me) {
        others.places = others.places.saturating_add(claim.places);
        others.demands.push(Demand { wants: claim.wants, ticket: claim.ticket, holder });
    }
    others
}

/// Takes in which functions have limits, and which.
fn refresh(all: &mut BTreeMap<FunctionName, Shared>, directory: &Directory) {
    let mut before: Vec<FunctionName> = all.keys().cloned().collect();
    for (name, gate, limit) in directory.limited() {
        before.retain(|other| *other != name);
        let one = all.entry(name).or_insert_with(|| Shared::new(gate.clone(), limit, Instant::now()));
        if !Arc::ptr_eq(&one.gate, &gate) || one.limit != limit {
            (one.gate, one.limit) = (gate, limit);
            one.forget();
        }
    }
    for name in before {
        if let Some(one) = all.get_mut(&name).filter(|one| one.limit > 0) {
            one.limit = 0;
            one.forget();
        }
    }
}
