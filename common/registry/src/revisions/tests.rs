use super::*;
use crate::conformance;

fn spec(memory: u64) -> FunctionSpec {
    FunctionSpec { memory: memory << 20, ..conformance::function("a", "f") }
}

fn name() -> FunctionName {
    FunctionName::new("a", "f").unwrap()
}

/// A function with revisions 1 to `count`.
fn with(count: u64) -> Functions {
    let mut functions = Functions::default();
    (1..=count).for_each(|n| apply(&mut functions, n));
    functions
}

fn apply(functions: &mut Functions, memory: u64) {
    functions.apply(vec![spec(memory).into()], memory).unwrap();
}

fn numbers(functions: &Functions) -> Vec<u64> {
    functions.revisions(&name()).map(|revision| revision.number).collect()
}

fn refused(functions: &Functions, change: Change) -> Refusal {
    match functions.clone().change(&name(), change) {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn alias(name: &str, split: Split) -> Change {
    Change::SetAlias { name: name.into(), split, description: String::new(), expect: None }
}

#[test]
fn every_change_is_a_revision_and_nothing_else_is() {
    let mut functions = with(3);
    assert_eq!(numbers(&functions), [3, 2, 1]);
    let again = functions.apply(vec![spec(3).into()], 9).unwrap();
    assert_eq!(again, [Outcome { applied: Applied::Unchanged, revision: 3 }]);
    assert_eq!(numbers(&functions), [3, 2, 1]);
    for number in 1..=3 {
        let revision = functions.revision(&name(), number).unwrap();
        assert_eq!((revision.spec.memory >> 20, revision.created_ms), (number, number));
    }
    // The same spec as an earlier one is a revision of its own.
    assert_eq!(functions.apply(vec![spec(1).into()], 9).unwrap()[0].revision, 4);
    // What a door keeps with it is part of what was applied, where the door says so.
    let notes = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let proposal = |notes| Proposal { notes, ..Proposal::from(spec(1)) };
    assert_eq!(functions.apply(vec![proposal(Some(notes.clone()))], 9).unwrap()[0].revision, 5);
    assert_eq!(functions.apply(vec![proposal(None)], 9).unwrap()[0].applied, Applied::Unchanged);
    assert_eq!(functions.revision(&name(), 5).unwrap().notes, notes);
    // A new life begins anew.
    assert!(functions.delete(&name()) && functions.older.is_empty() && functions.releases.is_empty());
    assert_eq!(functions.apply(vec![spec(1).into()], 9).unwrap()[0].revision, 1);
}

#[test]
fn history_is_bounded_and_what_is_held_stays() {
    let mut functions = with(2);
    functions.change(&name(), Change::Publish { number: 2, notes: BTreeMap::new() }).unwrap();
    functions.change(&name(), alias("live", Split { main: 2, other: Some((1, 500)) })).unwrap();
    (3..=40).for_each(|n| apply(&mut functions, n));
    let kept: Vec<u64> = (30..=40).rev().chain([2, 1]).collect();
    assert_eq!(numbers(&functions), kept);
    assert!(functions.revision(&name(), 2).unwrap().published);
    functions.change(&name(), Change::DeleteAlias("live".into())).unwrap();
    assert_eq!(numbers(&functions), (30..=40).rev().chain([2]).collect::<Vec<_>>());
    functions.change(&name(), Change::Remove(2)).unwrap();
    assert_eq!(numbers(&functions).len(), 11);
    assert!(matches!(refused(&functions, Change::Remove(40)), Refusal::InUse(..)));
    functions.change(&name(), Change::Publish { number: 40, notes: BTreeMap::new() }).unwrap();
    functions.change(&name(), Change::Remove(40)).unwrap();
    assert!(!functions.revision(&name(), 40).unwrap().published, "what runs stays");
    assert!(matches!(refused(&functions, Change::Remove(2)), Refusal::NoRevision(..)));
}

#[test]
fn calls_are_rolled_out_and_back() {
    let mut functions = with(1);
    assert!(matches!(refused(&functions, Change::Rollout(2000)), Refusal::NothingBefore(_)));
    apply(&mut functions, 2);
    let traffic = |functions: &Functions| functions.traffic(&name()).unwrap();
    assert_eq!(traffic(&functions), Split::all(2));
    functions.change(&name(), Change::Rollout(2000)).unwrap();
    let split = Split { main: 1, other: Some((2, 2000)) };
    assert_eq!(traffic(&functions), split);
    // What is applied meanwhile gets no call before it is rolled out, from where most calls go.
    apply(&mut functions, 3);
    assert_eq!(traffic(&functions), split);
    functions.change(&name(), Change::Rollout(5000)).unwrap();
    assert_eq!(traffic(&functions), Split { main: 1, other: Some((3, 5000)) });
    // Back, and at once: first to where most go, then to the one before.
    let back = |functions: &mut Functions| {
        let to = functions.before_now(&name()).unwrap();
        functions.change(&name(), Change::Rollback(to)).unwrap();
        to
    };
    assert_eq!(back(&mut functions), 1);
    assert_eq!(traffic(&functions), Split::all(1));
    assert!(functions.before_now(&name()).is_err(), "there is nothing before the first");
    functions.change(&name(), Change::Rollout(WHOLE)).unwrap();
    assert_eq!(traffic(&functions), Split::all(3));
    apply(&mut functions, 4);
    assert_eq!(traffic(&functions), Split::all(4), "the newest is followed again");
    assert_eq!(back(&mut functions), 3);
    apply(&mut functions, 5);
    assert_eq!(traffic(&functions), Split::all(3));
    functions.change(&name(), Change::Rollback(5)).unwrap();
    assert_eq!(functions.releases[&name()].traffic, None, "the newest is no way back");
    functions.change(&name(), Change::Rollout(0)).unwrap();
    assert_eq!(traffic(&functions), Split::all(4));
    assert!(matches!(refused(&functions, Change::Rollout(WHOLE + 1)), Refusal::Wrong(_)));
    // Held back from its first moment.
    let mut functions = with(1);
    functions.apply(vec![Proposal { hold: true, ..Proposal::from(spec(2)) }], 2).unwrap();
    assert_eq!(traffic(&functions), Split::all(1));
    let mut fresh = Functions::default();
    fresh.apply(vec![Proposal { hold: true, ..Proposal::from(spec(1)) }], 2).unwrap();
    assert_eq!(traffic(&fresh), Split::all(1));
}

#[test]
fn a_choice_is_the_same_for_the_same_call_and_fair_over_many() {
    for weight in [0, 1, 500, 2000, 5000, 9999, WHOLE] {
        let split = Split { main: 1, other: Some((2, weight)) };
        // Seeds that differ little, as ids do.
        let picked = (0..100_000u64).filter(|seed| split.pick(*seed) == 2).count() as f64 / 100_000.0;
        let wanted = f64::from(weight) / f64::from(WHOLE);
        assert!((picked - wanted).abs() < 0.01, "{picked} of {wanted}");
        assert!(weight != 0 || picked == 0.0);
        assert!(weight != WHOLE || picked >= 1.0);
        assert_eq!(split.pick(42), split.pick(42));
    }
    assert_eq!(Split::all(7).pick(1), 7);
}

#[test]
fn aliases_are_checked() {
    let mut functions = with(2);
    for wrong in ["", "a b", "12", "$LATEST", &"x".repeat(129)] {
        assert!(matches!(refused(&functions, alias(wrong, Split::all(1))), Refusal::Wrong(_)), "{wrong}");
    }
    assert!(matches!(refused(&functions, alias("x", Split::all(9))), Refusal::NoRevision(_, 9)));
    for other in [(1, 5), (2, WHOLE + 1)] {
        let split = Split { main: 1, other: Some(other) };
        assert!(matches!(refused(&functions, alias("x", split)), Refusal::Wrong(_)));
    }
    let set = |expect| Change::SetAlias {
        name: "x".into(),
        split: Split::all(1),
        description: String::new(),
        expect,
    };
    assert!(matches!(refused(&functions, set(Some(Some(0)))), Refusal::NoAlias(..)));
    functions.change(&name(), set(Some(None))).unwrap();
    assert!(matches!(refused(&functions, set(Some(None))), Refusal::AliasExists(..)));
    functions.change(&name(), set(Some(Some(0)))).unwrap();
    assert!(matches!(refused(&functions, set(Some(Some(0)))), Refusal::Changed(_)));
    assert!(matches!(refused(&functions, Change::Remove(1)), Refusal::InUse(..)));
    assert!(matches!(refused(&functions, Change::DeleteAlias("y".into())), Refusal::NoAlias(..)));
}

#[test]
fn wishes_say_what_they_expect() {
    let mut functions = with(2);
    for (expect, granted) in [
        (Expect::Nothing, false),
        (Expect::Newest(1), false),
        (Expect::Newest(2), true),
        (Expect::Anything, true),
    ] {
        let proposal = Proposal { expect, ..Proposal::from(spec(9)) };
        assert_eq!(functions.clone().apply(vec![proposal], 0).is_ok(), granted, "{expect:?}");
    }
    functions.delete(&name());
    let proposal = Proposal { expect: Expect::Newest(2), ..Proposal::from(spec(9)) };
    assert!(matches!(functions.apply(vec![proposal], 0), Err(Error::Refused(Refusal::NoFunction(_)))));
}

#[test]
fn triggers_of_all_that_takes_calls_are_taken() {
    let triggered = |function: &str, path: &str| {
        let mut spec = conformance::function("a", function);
        spec.triggers.push(stoker_core::function::Trigger::new(path));
        spec
    };
    let mut functions = Functions::default();
    functions.apply(vec![triggered("f", "/old").into()], 0).unwrap();
    let held = Proposal { hold: true, ..Proposal::from(triggered("f", "/new")) };
    functions.apply(vec![held], 0).unwrap();
    assert_eq!(functions.live(&name()).count(), 2);
    for path in ["/old", "/new"] {
        let taken = functions.clone().apply(vec![triggered("g", path).into()], 0);
        assert!(matches!(taken, Err(Error::TriggerTaken { .. })), "{path}");
    }
    functions.change(&name(), Change::Rollout(WHOLE)).unwrap();
    functions.apply(vec![triggered("g", "/old").into()], 0).unwrap();
    let back = functions.change(&name(), Change::Rollback(1));
    assert!(matches!(back, Err(Error::TriggerTaken { .. })), "the path belongs to another by now");
}

#[test]
fn tags_are_bounded() {
    let mut functions = with(1);
    let tags = |count: usize| (0..count).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    let tag =
        |set, unset: &[&str]| Change::Tag { set, unset: unset.iter().map(|k| (*k).to_owned()).collect() };
    assert!(matches!(refused(&functions, tag(tags(MOST_TAGS + 1), &[])), Refusal::Wrong(_)));
    functions.change(&name(), tag(tags(2), &[])).unwrap();
    functions.change(&name(), tag(BTreeMap::new(), &["k0"])).unwrap();
    assert_eq!(functions.releases[&name()].tags.keys().collect::<Vec<_>>(), ["k1"]);
}
