//! One suite for every registry: panics at the first thing that is not as [`crate::Registry`] promises.

use std::collections::BTreeMap;
use std::sync::Arc;

use stoker_core::capacity::{Capacity, RunnerState};
use stoker_core::function::{FunctionName, FunctionSpec, Trigger};
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::resources::Resources;

use crate::apps::{self, App};
use crate::places::ByHolder;
use crate::revisions::{Change, Expect, Proposal, Refusal, Split};
use crate::{Applied, Claim, Claims, Error, Fleet, Places, Registry};

/// A function to test with.
#[must_use]
pub fn function(app: &str, name: &str) -> FunctionSpec {
    let name = FunctionName::new(app, name).expect("tests give names");
    FunctionSpec::new(name, vec!["true".into()], "/tmp".into())
}

/// A runner's record to test with.
#[must_use]
pub fn runner(name: &str) -> Capacity {
    let total = Resources { memory: 1 << 30, cpu_millis: 2000, slots: 16 };
    Capacity {
        runner: RunnerName::new(name).expect("tests give names"),
        incarnation: Incarnation::new(),
        address: "http://127.0.0.1:1".into(),
        zone: String::new(),
        labels: BTreeMap::new(),
        sequence: 0,
        state: RunnerState::Ready,
        total,
        free: total,
        reclaimable: Resources::default(),
        in_flight: 0,
        waiting: 0,
        functions: BTreeMap::new(),
    }
}

/// Runs the suite on an empty registry; leaves it empty.
pub async fn run(registry: &dyn Registry) {
    functions(registry).await;
    revisions(registry).await;
    apps(registry).await;
    places(registry).await;
    fleet(registry).await;
}

/// However they are asked for, all together are never more than the limit, and everybody sees who wants what.
async fn places(registry: &dyn Registry) {
    let name = function("app", "limited").name;
    let (one, other) = (registry.places("one"), registry.places("other"));
    assert_eq!(other.holder(), "other");
    let hold =
        async |who: &Arc<dyn Places>, limit, claim| who.hold(&name, limit, claim).await.expect("it answers");
    let held = async |who, limit, places| hold(who, limit, Claim::of(places)).await;
    assert_eq!(held(&one, 5, 3).await, 3);
    assert_eq!(held(&other, 5, 3).await, 2, "what is left");
    let mut seen = one.claims();
    let mut sees = async |wanted: &[(&str, Claim)]| {
        let wanted: ByHolder = wanted.iter().map(|(who, claim)| ((*who).to_owned(), *claim)).collect();
        let all = |claims: &Arc<Claims>| {
            claims.by_function.get(&name).map_or(wanted.is_empty(), |holders| **holders == wanted)
        };
        seen.wait_for(all).await.expect("the registry lives");
    };
    sees(&[("one", Claim::of(3)), ("other", Claim { wants: 3, ..Claim::of(2) })]).await;
    assert_eq!(held(&other, 5, 1).await, 1, "it gives one back");
    assert_eq!(held(&one, 5, 9).await, 4);
    assert_eq!(held(&one, 3, 9).await, 2, "the limit came down");
    assert_eq!(held(&other, 0, 1).await, 0);
    assert_eq!(held(&one, 5, 5).await, 5);
    let patient = Claim { places: 0, wants: 2, ticket: 7 };
    assert_eq!(hold(&other, 5, patient).await, 0, "it only says what it would have");
    sees(&[("one", Claim::of(5)), ("other", patient)]).await;
    assert_eq!(held(&other, 5, 0).await, 0);
    sees(&[("one", Claim::of(5))]).await;
    let many: Vec<_> = (0..4).map(|n| registry.places(&format!("many{n}"))).collect();
    assert_eq!(held(&one, 5, 0).await, 0);
    sees(&[]).await;
    let taken = futures_util::future::join_all(many.iter().map(|who| held(who, 5, 2))).await;
    assert_eq!(taken.iter().sum::<u32>(), 5, "side by side: {taken:?}");
    for who in &many {
        held(who, 0, 0).await;
    }
    sees(&[]).await;
}

async fn apps(registry: &dyn Registry) {
    let mut watch = registry.apps();
    let mut app = App { shape: "GENERIC_X86".into(), created_ms: 1, ..App::default() };
    app.config.insert("KEY".into(), "value".into());
    app.annotations.insert("note".into(), serde_json::json!({"any": [1, "thing"]}));
    registry.put_app("one", app.clone()).await.expect("there is none");
    watch.wait_for(|apps| apps.known && apps.by_name.len() == 1).await.expect("the registry lives");
    let twice = registry.put_app("one", app.clone()).await;
    assert!(matches!(twice, Err(Error::App(apps::Refusal::Exists(_)))), "{twice:?}");
    let read = App::clone(&registry.apps().borrow().by_name["one"]);
    assert_eq!(read, App { changes: 1, ..app });
    // Two who have read the same do not both write.
    let changed = App { updated_ms: 2, ..read };
    registry.put_app("one", changed.clone()).await.expect("nobody was faster");
    let late = registry.put_app("one", changed).await;
    assert!(matches!(late, Err(Error::App(apps::Refusal::Changed(_)))), "{late:?}");
    assert_eq!(registry.apps().borrow().by_name["one"].updated_ms, 2);
    assert!(registry.delete_app("one").await.expect("it can be deleted"));
    assert!(!registry.delete_app("one").await.expect("deleting nothing is no error"));
    assert!(registry.apps().borrow().by_name.is_empty());
}

async fn functions(registry: &dyn Registry) {
    let mut watch = registry.functions();
    let (mut a, b) = (function("app", "a"), function("app", "b"));
    a.triggers.push(Trigger::new("/x"));

    let applied = registry.apply_functions(vec![a.clone(), b.clone()]).await.expect("both are new");
    assert_eq!(applied, [Applied::Created, Applied::Created]);
    watch.wait_for(|f| f.known && f.by_name.len() == 2).await.expect("the registry lives");
    assert!(registry.functions().borrow().find("app/a").is_some());
    assert!(registry.functions().borrow().find(&a.name.id()).is_some());
    assert!(registry.functions().borrow().find("app/c").is_none());

    a.memory *= 2;
    let applied = registry.apply_functions(vec![a.clone(), b.clone()]).await.expect("both are there");
    assert_eq!(applied, [Applied::Updated, Applied::Unchanged]);
    watch.wait_for(|f| f.by_name.get(&a.name).is_some_and(|s| **s == a)).await.expect("the registry lives");

    // All or none: the second takes a path that is taken, so the first is not there either.
    let (c, mut d) = (function("app", "c"), function("app", "d"));
    d.triggers.push(Trigger::new("/x"));
    let refused = registry.apply_functions(vec![c, d.clone()]).await;
    assert!(matches!(refused, Err(Error::TriggerTaken { .. })), "{refused:?}");
    assert_eq!(registry.functions().borrow().by_name.len(), 2);

    // The same path in another app is another path.
    d.name = FunctionName::new("other", "d").expect("it is a name");
    registry.apply_functions(vec![d.clone()]).await.expect("no one has it");

    for name in [&a.name, &b.name, &d.name] {
        assert!(registry.delete_function(name).await.expect("it can be deleted"));
        assert!(!registry.delete_function(name).await.expect("deleting nothing is no error"));
    }
    watch.wait_for(|f| f.by_name.is_empty()).await.expect("the registry lives");
}

async fn revisions(registry: &dyn Registry) {
    let watch = registry.functions();
    let now = || watch.borrow().clone();
    let first = function("app", "f");
    let name = &first.name;
    let missing = registry.change_function(name, Change::Rollout(1)).await;
    assert!(matches!(missing, Err(Error::Refused(Refusal::NoFunction(_)))), "{missing:?}");
    let mut spec = first.clone();
    for number in 1..=4 {
        spec.memory += 1 << 20;
        let outcomes = registry.apply(vec![spec.clone().into()]).await.expect("it is valid");
        assert_eq!(outcomes[0].revision, number);
    }
    assert_eq!(now().revisions(name).map(|revision| revision.number).collect::<Vec<_>>(), [4, 3, 2, 1]);
    registry.change_function(name, Change::Rollout(2500)).await.expect("there is one before");
    assert_eq!(now().traffic(name), Some(Split { main: 3, other: Some((4, 2500)) }));
    let live = Change::SetAlias {
        name: "live".into(),
        split: Split::all(2),
        description: "what is live".into(),
        expect: Some(None),
    };
    registry.change_function(name, live.clone()).await.expect("there is none");
    let twice = registry.change_function(name, live).await;
    assert!(matches!(twice, Err(Error::Refused(Refusal::AliasExists(..)))), "{twice:?}");
    registry.change_function(name, Change::Remove(1)).await.expect("nobody holds it");
    let held = registry.change_function(name, Change::Remove(2)).await;
    assert!(matches!(held, Err(Error::Refused(Refusal::InUse(..)))), "{held:?}");
    let seen = now();
    assert_eq!(seen.revisions(name).map(|revision| revision.number).collect::<Vec<_>>(), [4, 3, 2]);
    assert_eq!(seen.releases[name].aliases["live"].split, Split::all(2));
    // Two who have read the same do not both write.
    let expect = Expect::Newest(4);
    spec.memory += 1 << 20;
    let proposal = Proposal { expect, ..Proposal::from(spec) };
    registry.apply(vec![proposal.clone()]).await.expect("nobody was faster");
    let late = Proposal { spec: FunctionSpec { memory: 1 << 30, ..proposal.spec.clone() }, ..proposal };
    let late = registry.apply(vec![late]).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::Changed(_)))), "{late:?}");
    // A new life has no history.
    assert!(registry.delete_function(name).await.expect("it can be deleted"));
    assert!(now().older.is_empty() && now().releases.is_empty());
    assert_eq!(registry.apply(vec![first.clone().into()]).await.expect("it is valid")[0].revision, 1);
    assert!(registry.delete_function(name).await.expect("it can be deleted"));
}

async fn fleet(registry: &dyn Registry) {
    let mut watch = registry.fleet();
    let one = runner("one");
    let registration = registry.register(one.clone()).await.expect("the name is free");
    watch.wait_for(|f| f.known && f.runners.len() == 1).await.expect("the registry lives");

    let mut other = one.clone();
    other.incarnation = Incarnation(one.incarnation.0.wrapping_add(1));
    other.address = "http://127.0.0.1:2".into();
    let refused = registry.register(other).await.map(|_| ());
    // Who has it, and where.
    let Err(Error::RunnerNameTaken { name, address }) = refused else { panic!("{refused:?}") };
    assert_eq!((name, address), (one.runner.clone(), one.address.clone()));

    let mut changed = one.clone();
    changed.sequence = 1;
    changed.in_flight = 7;
    registration.publish(changed).await.expect("it can be published");
    watch.wait_for(|f| f.runners.values().all(|r| r.in_flight == 7)).await.expect("the registry lives");

    registration.withdraw().await;
    watch.wait_for(|f| f.runners.is_empty()).await.expect("the registry lives");

    drop(registry.register(one.clone()).await.expect("the name is free again"));
    watch.wait_for(|f| f.runners.is_empty()).await.expect("the registry lives");

    // A life that ended without a word, and the next one at its address.
    let before = registry.register(one.clone()).await.expect("the name is free again");
    let mut after = one.clone();
    after.incarnation = Incarnation(one.incarnation.0.wrapping_add(1));
    let registration = registry.register(after.clone()).await.expect("it takes the place of the one before");
    let is_after = |f: &Arc<Fleet>| f.runners.values().any(|r| r.incarnation == after.incarnation);
    watch.wait_for(is_after).await.expect("the registry lives");
    before.publish(one.clone()).await.expect("nothing is wrong with it");
    before.withdraw().await;
    assert!(is_after(&registry.fleet().borrow()), "the earlier life changes nothing any more");
    registration.withdraw().await;
    watch.wait_for(|f| f.runners.is_empty()).await.expect("the registry lives");
}
