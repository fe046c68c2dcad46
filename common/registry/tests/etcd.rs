//! The registry on a real etcd: the suite that every registry passes, and the faults that etcd has.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use stoker_core::capacity::{Capacity, RunnerState};
use stoker_core::error::{Blame, Code, Retry};
use stoker_core::function::{FunctionSpec, Trigger};
use stoker_core::ids::Incarnation;
use stoker_registry::etcd::{Config, Tls, User};
use stoker_registry::revisions::{Change, Split};
use stoker_registry::testing::Etcd;
use stoker_registry::{Applied, Claim, Error, EtcdRegistry, Fleet, Functions, Registry as _, conformance};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Ends the test where those with etcd are left out.
macro_rules! etcd {
    () => {
        etcd!(start)
    };
    ($start:ident) => {
        match Etcd::$start().await {
            Some(etcd) => etcd,
            None => return,
        }
    };
}

fn config(etcd: &Etcd) -> Config {
    let mut config = Config::new(vec![etcd.endpoint()]);
    config.lease = Duration::from_secs(2);
    config.deadline = Duration::from_secs(1);
    config.tls = etcd.tls().cloned();
    config
}

fn registry(etcd: &Etcd) -> EtcdRegistry {
    EtcdRegistry::connect(config(etcd)).expect("it is right")
}

async fn fleet(watch: &mut watch::Receiver<Arc<Fleet>>, is: impl FnMut(&Arc<Fleet>) -> bool) -> Arc<Fleet> {
    watch.wait_for(is).await.expect("the registry lives").clone()
}

async fn functions(
    watch: &mut watch::Receiver<Arc<Functions>>,
    is: impl FnMut(&Arc<Functions>) -> bool,
) -> Arc<Functions> {
    watch.wait_for(is).await.expect("the registry lives").clone()
}

fn says(record: &Capacity, in_flight: u32) -> Capacity {
    let mut record = record.clone();
    record.sequence += u64::from(in_flight);
    record.in_flight = in_flight;
    record
}

fn has(fleet: &Fleet, record: &Capacity) -> bool {
    fleet.runners.get(&record.runner).is_some_and(|r| **r == *record)
}

fn with_trigger(app: &str, name: &str, path: &str) -> FunctionSpec {
    let mut spec = conformance::function(app, name);
    spec.triggers.push(Trigger::new(path));
    spec
}

fn assert_is_away<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.expect_err("etcd is away");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let says = stoker_core::Error::from(&error);
    assert_eq!((says.code, says.blame()), (Code::Unavailable, Blame::Platform));
    assert!(matches!(says.retry, Retry::After(_)), "{says:?}");
    assert!(says.message.contains("etcd at http://127.0.0.1"), "{says}");
}

#[tokio::test]
async fn etcd_conforms() {
    let etcd = etcd!();
    conformance::run(&registry(&etcd)).await;
    assert_eq!(etcd.get("/stoker/v1/runners/").await, []);
    assert_eq!(etcd.get("/stoker/v1/functions/").await, []);
}

#[tokio::test]
async fn places_are_lost_with_their_lease_and_given_back_by_who_goes() {
    let etcd = etcd!();
    let (here, there) = (registry(&etcd), registry(&etcd));
    let name = conformance::function("app", "limited").name;
    let (one, other) = (here.places("one"), there.places("other"));
    assert_eq!(one.hold(&name, 3, Claim::of(3)).await.unwrap(), 3);
    assert_eq!(other.hold(&name, 3, Claim::of(1)).await.unwrap(), 0);
    let rows = etcd.get("/stoker/v1/places/").await;
    assert_eq!(
        rows,
        [
            (
                "/stoker/v1/places/app/limited/one".to_owned(),
                r#"{"version":1,"places":3,"wants":3,"ticket":0}"#.to_owned()
            ),
            (
                "/stoker/v1/places/app/limited/other".to_owned(),
                r#"{"version":1,"places":0,"wants":1,"ticket":0}"#.to_owned()
            )
        ]
    );
    // Its holder was not heard of for too long: it is told, and others have them.
    let mut lost = one.lost();
    lost.mark_unchanged();
    etcd.revoke_leases().await;
    lost.changed().await.unwrap();
    assert_eq!(other.hold(&name, 3, Claim::of(2)).await.unwrap(), 2);
    assert_eq!(one.hold(&name, 3, Claim::of(3)).await.unwrap(), 1, "what is left, with another lease");
    // A lease that is gone is noticed by who holds more, too.
    etcd.revoke_leases().await;
    assert_eq!(other.hold(&name, 3, Claim::of(3)).await.unwrap(), 3);
}

#[tokio::test]
async fn etcd_conforms_with_a_password() {
    let etcd = etcd!();
    etcd.require_password("secret").await;
    let mut config = config(&etcd);
    config.user = Some(User { name: "root".into(), password: "secret".into() });
    assert!(!format!("{config:?}").contains("secret"));
    conformance::run(&EtcdRegistry::connect(config.clone()).unwrap()).await;

    config.user = Some(User { name: "root".into(), password: "wrong".into() });
    let refused = EtcdRegistry::connect(config).unwrap();
    let error = refused.apply_functions(vec![conformance::function("a", "b")]).await.unwrap_err();
    assert!(matches!(error, Error::Store { .. }) && error.to_string().contains("password"), "{error}");
    assert!(!refused.functions().borrow().known);
}

/// A comparison that takes longer than a request may is waited for: etcd goes on with one that was given up, and with everybody's tries after a restart none
/// would ever be let in.
#[tokio::test]
async fn a_password_may_take_longer_than_a_request() {
    let mut etcd = etcd!();
    etcd.compare_slowly().await;
    etcd.require_password("secret").await;
    let mut config = config(&etcd);
    config.user = Some(User { name: "root".into(), password: "secret".into() });
    config.deadline = Duration::from_millis(300);
    let registry = EtcdRegistry::connect(config).unwrap();
    let mut functions = registry.functions();
    let known =
        tokio::time::timeout(Duration::from_secs(60), functions.wait_for(|functions| functions.known)).await;
    assert!(known.expect("it is let in").is_ok());
}

#[tokio::test]
async fn etcd_conforms_with_certificates() {
    let etcd = etcd!(start_with_tls);
    conformance::run(&registry(&etcd)).await;

    // Whoever has none is not let in, and learns no more than that.
    let mut config = config(&etcd);
    config.tls.as_mut().expect("it asks for them").identity = None;
    let stranger = EtcdRegistry::connect(config.clone()).expect("it is right in itself");
    assert!(stranger.apply_functions(vec![conformance::function("a", "b")]).await.is_err());
    assert!(!stranger.functions().borrow().known);

    config.tls = None;
    let Err(error) = EtcdRegistry::connect(config.clone()) else { panic!("https without certificates") };
    assert!(error.to_string().contains("authority"), "{error}");
    config.tls = Some(Tls { ca: "/nowhere/ca.pem".into(), identity: None });
    let Err(error) = EtcdRegistry::connect(config) else { panic!("there is no such file") };
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn what_one_writes_all_see_and_people_can_read() {
    let etcd = etcd!();
    let (here, there) = (registry(&etcd), registry(&etcd));
    let record = conformance::runner("r1");
    let registration = here.register(record.clone()).await.unwrap();
    fleet(&mut there.fleet(), |f| f.known && has(f, &record)).await;
    let mut drains = says(&record, 1);
    drains.state = RunnerState::Draining;
    registration.publish(drains.clone()).await.unwrap();
    fleet(&mut there.fleet(), |f| has(f, &drains)).await;

    let spec = conformance::function("app", "hello");
    here.apply_functions(vec![spec.clone()]).await.unwrap();
    functions(&mut there.functions(), |f| f.by_name.get(&spec.name).is_some_and(|s| **s == spec)).await;

    let rows = etcd.get("/stoker/v1/").await;
    let keys: Vec<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        ["/stoker/v1/functions/app/hello", "/stoker/v1/guards/functions", "/stoker/v1/runners/r1"]
    );
    assert!(rows[0].1.starts_with(r#"{"version":1,"function":{"name":"app/hello","#), "{}", rows[0].1);
    assert!(rows[2].1.starts_with(r#"{"version":1,"name":"r1","incarnation":""#), "{}", rows[2].1);
    assert!(rows[2].1.contains(r#""state":"draining""#), "{}", rows[2].1);
    registration.withdraw().await;

    // A second revision, and where calls go.
    let changed = FunctionSpec { memory: spec.memory * 2, ..spec.clone() };
    here.apply_functions(vec![changed]).await.unwrap();
    here.change_function(&spec.name, Change::Rollout(2000)).await.unwrap();
    let traffic = Some(Split { main: 1, other: Some((2, 2000)) });
    functions(&mut there.functions(), |f| f.traffic(&spec.name) == traffic).await;
    let rows = etcd.get("/stoker/v1/functions/").await;
    let keys: Vec<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["/stoker/v1/functions/app/hello", "/stoker/v1/functions/app/hello/1"]);
    assert!(rows[0].1.contains(r#""revision":2,"#), "{}", rows[0].1);
    assert!(rows[0].1.contains(r#""traffic":{"main":1,"other":[2,2000]}"#), "{}", rows[0].1);
    assert!(rows[1].1.contains(r#""revision":1,"#), "{}", rows[1].1);
    // What a build wrote that knows no revisions is one, and what it left behind does no harm.
    let bare = serde_json::json!({"version": 1, "function": spec}).to_string();
    etcd.put([("/stoker/v1/functions/app/hello".to_owned(), bare.into_bytes())]).await;
    functions(&mut there.functions(), |f| f.traffic(&spec.name) == Some(Split::all(1))).await;
    let later = FunctionSpec { memory: spec.memory * 3, ..spec.clone() };
    let outcome = there.apply(vec![later.into()]).await.unwrap();
    assert_eq!(outcome[0].revision, 3, "it goes on behind all that is there");
    assert!(there.delete_function(&spec.name).await.unwrap());
    assert_eq!(etcd.get("/stoker/v1/functions/").await, []);
}

#[tokio::test]
async fn an_etcd_that_is_not_there_yet_is_waited_for() {
    let mut etcd = etcd!();
    etcd.kill();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let record = conformance::runner("early");
    let registration = registry.register(record.clone()).await.expect("the runner need not wait");
    assert_is_away(registry.apply_functions(vec![conformance::function("a", "b")]).await);
    assert_is_away(registry.delete_function(&conformance::function("a", "b").name).await);
    assert!(!runners.borrow().known && !registry.functions().borrow().known);

    let newest = says(&record, 5);
    registration.publish(newest.clone()).await.unwrap();
    etcd.restart().await;
    fleet(&mut runners, |f| f.known && has(f, &newest)).await;
    let applied = registry.apply_functions(vec![conformance::function("a", "b")]).await.unwrap();
    assert_eq!(applied, [Applied::Created]);
}

#[tokio::test]
async fn a_killed_etcd_takes_nothing_with_it() {
    let mut etcd = etcd!();
    let registry = registry(&etcd);
    let (mut runners, mut known) = (registry.fleet(), registry.functions());
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    registry.apply_functions(vec![conformance::function("app", "a")]).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;

    let mut last = record.clone();
    for round in 1..4 {
        etcd.kill();
        assert_is_away(registry.apply_functions(vec![conformance::function("app", "lost")]).await);
        assert!(has(&runners.borrow(), &last), "the last view stays");
        assert!(known.borrow().known && known.borrow().find("app/a").is_some(), "the last view stays");
        // Of what is published meanwhile only the newest matters.
        let newest = says(&record, round * 10);
        for n in 0..10 {
            let publishing = registration.publish(says(&record, n));
            publishing.now_or_never().expect("publishing waits for nothing").unwrap();
        }
        registration.publish(newest.clone()).await.unwrap();
        etcd.restart().await;
        fleet(&mut runners, |f| has(f, &newest)).await;
        let next = conformance::function("app", &format!("after-{round}"));
        registry.apply_functions(vec![next.clone()]).await.unwrap();
        let now = functions(&mut known, |f| f.by_name.contains_key(&next.name)).await;
        assert!(now.find("app/lost").is_none());
        last = newest;
    }
}

#[tokio::test]
async fn a_frozen_etcd_holds_nobody_up() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;

    etcd.freeze();
    let newest = says(&record, 3);
    registration.publish(newest.clone()).now_or_never().expect("publishing waits for nothing").unwrap();
    // These take their deadlines, which together are longer than the lease.
    assert_is_away(registry.apply_functions(vec![conformance::function("app", "a")]).await);
    assert_is_away(registry.delete_function(&conformance::function("app", "a").name).await);
    assert!(has(&runners.borrow(), &record), "the last view stays");
    let late = registry.register(conformance::runner("late")).await.expect("the runner need not wait");
    etcd.thaw();

    fleet(&mut runners, |f| has(f, &newest) && f.runners.len() == 2).await;
    registry.apply_functions(vec![conformance::function("app", "b")]).await.unwrap();
    registration.withdraw().await;
    late.withdraw().await;
    fleet(&mut runners, |f| f.runners.is_empty()).await;
}

#[tokio::test]
async fn withdrawing_from_a_frozen_etcd_ends() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let registration = registry.register(conformance::runner("r1")).await.unwrap();
    fleet(&mut runners, |f| f.runners.len() == 1).await;
    etcd.freeze();
    registration.withdraw().await;
    etcd.thaw();
    // Its lease ends by itself.
    fleet(&mut runners, |f| f.runners.is_empty()).await;
}

#[tokio::test]
async fn a_lost_lease_is_replaced_and_the_incarnation_stays() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;
    for round in 1..4 {
        etcd.revoke_leases().await;
        let newest = says(&record, round);
        registration.publish(newest.clone()).await.unwrap();
        fleet(&mut runners, |f| has(f, &newest)).await;
    }
    // Without anything to publish, the keeper notices. The key is gone when this returns, so one that is listed is a new one.
    etcd.revoke_leases().await;
    fleet(&mut self::registry(&etcd).fleet(), |f| has(f, &says(&record, 3))).await;
    registration.withdraw().await;
    fleet(&mut runners, |f| f.runners.is_empty()).await;
}

#[tokio::test]
async fn a_deleted_key_comes_back_with_the_next_record() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;
    etcd.delete("/stoker/v1/runners/").await;
    fleet(&mut runners, |f| f.runners.is_empty()).await;
    registration.publish(says(&record, 1)).await.unwrap();
    fleet(&mut runners, |f| has(f, &says(&record, 1))).await;
}

#[tokio::test]
async fn an_emptied_etcd_is_believed_and_filled_again() {
    let mut etcd = etcd!();
    let registry = registry(&etcd);
    let (mut runners, mut known) = (registry.fleet(), registry.functions());
    let record = conformance::runner("r1");
    let _registration = registry.register(record.clone()).await.unwrap();
    for n in 0..20 {
        registry.apply_functions(vec![conformance::function("app", &format!("f{n}"))]).await.unwrap();
    }
    etcd.wipe();
    etcd.restart().await;
    // Its revisions begin anew, far below those that were seen.
    functions(&mut known, |f| f.by_name.is_empty()).await;
    registry.apply_functions(vec![conformance::function("app", "new")]).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;
    functions(&mut known, |f| f.by_name.len() == 1).await;
}

#[tokio::test]
async fn compaction_loses_nothing() {
    let mut etcd = etcd!();
    let writer = registry(&etcd);
    let record = conformance::runner("r1");
    let registration = writer.register(record.clone()).await.unwrap();
    let reader = registry(&etcd);
    let mut runners = reader.fleet();
    fleet(&mut runners, |f| has(f, &record)).await;

    // Under a watch that stands, while others begin.
    for n in 1..=30 {
        let newest = says(&record, n);
        registration.publish(newest.clone()).await.unwrap();
        let other = registry(&etcd);
        let mut others = other.fleet();
        etcd.compact().await;
        fleet(&mut others, |f| has(f, &newest)).await;
        fleet(&mut runners, |f| has(f, &newest)).await;
    }
    // While the watch is broken.
    etcd.kill();
    let newest = says(&record, 100);
    registration.publish(newest.clone()).await.unwrap();
    etcd.restart().await;
    etcd.compact().await;
    fleet(&mut runners, |f| has(f, &newest)).await;
    etcd.compact().await;
    registration.withdraw().await;
    fleet(&mut runners, |f| f.runners.is_empty()).await;
}

#[tokio::test]
async fn garbage_is_left_out_and_stops_nobody() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let (mut runners, mut known) = (registry.fleet(), registry.functions());
    let good = conformance::function("app", "good");
    registry.apply_functions(vec![good.clone(), conformance::function("app", "was-good")]).await.unwrap();
    let text = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    etcd.put([
        text("/stoker/v1/runners/", "x"),
        text("/stoker/v1/runners/a/b/c", "{}"),
        text("/stoker/v1/runners/r1", "no JSON"),
        ("/stoker/v1/runners/r2".to_owned(), vec![0xff, 0xfe, 0]),
        text("/stoker/v1/runners/r3", r#"{"version":99,"other":true}"#),
        text("/stoker/v1/runners/r4", r#"{"version":1,"name":"r4"}"#),
        text("/stoker/v1/functions/app/newer", r#"{"version":2}"#),
        text("/stoker/v1/functions/nothing", ""),
        text("/stoker/v1/functions/app/was-good", r#"{"version":1,"function":{}}"#),
    ])
    .await;
    // A view that watched and one that lists agree. A runner may take a name under which nobody lives.
    let record = conformance::runner("r1");
    let _registration = registry.register(record.clone()).await.unwrap();
    let late = self::registry(&etcd);
    for (runners, known) in [(&mut runners, &mut known), (&mut late.fleet(), &mut late.functions())] {
        let seen = fleet(runners, |f| has(f, &record)).await;
        assert_eq!(seen.runners.len(), 1);
        let seen = functions(known, |f| f.known && f.by_name.len() == 1).await;
        assert!(seen.find("app/good").is_some());
    }
    // What is applied takes the place of what could not be read; what is deleted is gone.
    let newer = conformance::function("app", "newer");
    assert_eq!(registry.apply_functions(vec![newer.clone()]).await.unwrap(), [Applied::Created]);
    functions(&mut late.functions(), |f| f.by_name.contains_key(&newer.name)).await;
    assert!(registry.delete_function(&conformance::function("app", "was-good").name).await.unwrap());
}

#[tokio::test]
async fn a_thousand_runners_are_listed_and_followed() {
    let mut etcd = etcd!();
    let registry = registry(&etcd);
    let record = conformance::runner("template");
    let registration = registry.register(record).await.unwrap();
    let text = etcd.get("/stoker/v1/runners/template").await.remove(0).1;
    registration.withdraw().await;
    let row = |n: usize, text: &str| {
        let name = format!("runner-{n:04}");
        (format!("/stoker/v1/runners/{name}"), text.replace("template", &name).into_bytes())
    };
    etcd.put((0..1000).map(|n| row(n, &text))).await;
    let mut runners = registry.fleet();
    let seen = fleet(&mut runners, |f| f.runners.len() == 1000).await;
    assert!(seen.runners.keys().any(|name| name.as_str() == "runner-0999"));
    let busy = text.replace(r#""in_flight":0"#, r#""in_flight":9"#);
    assert_ne!(busy, text);
    etcd.put((0..1000).map(|n| row(n, &busy))).await;
    fleet(&mut runners, |f| f.runners.len() == 1000 && f.runners.values().all(|r| r.in_flight == 9)).await;
    etcd.kill();
    etcd.restart().await;
    etcd.delete("/stoker/v1/runners/runner-09").await;
    fleet(&mut runners, |f| f.runners.len() == 900).await;
}

#[tokio::test]
async fn of_many_who_want_one_path_one_gets_it() {
    let etcd = etcd!();
    let (here, there) = (registry(&etcd), registry(&etcd));
    let applying = (0..20).map(|n| {
        let registry = if n % 2 == 0 { &here } else { &there };
        registry.apply_functions(vec![with_trigger("app", &format!("f{n}"), "/x")])
    });
    let results = join_all(applying).await;
    let won = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(won, 1, "{results:?}");
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(Error::TriggerTaken { .. }))), "{results:?}");
    assert_eq!(functions(&mut there.functions(), |f| f.known).await.by_name.len(), 1);
}

#[tokio::test]
async fn many_functions_are_applied_at_once_or_not_at_all() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let many: Vec<_> = (0..1000).map(|n| conformance::function("app", &format!("f{n}"))).collect();
    let applied = registry.apply_functions(many.clone()).await.unwrap();
    assert_eq!(applied, [Applied::Created; 1000]);
    assert_eq!(registry.functions().borrow().by_name.len(), 1000);
    assert_eq!(registry.apply_functions(many.clone()).await.unwrap(), [Applied::Unchanged; 1000]);

    let large = many.into_iter().map(|mut spec| {
        spec.env.insert("X".into(), "x".repeat(4096));
        spec
    });
    let error = registry.apply_functions(large.collect()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(stoker_core::Error::from(&error).blame(), Blame::Caller);
    assert!(registry.functions().borrow().by_name.values().all(|spec| spec.env.is_empty()));
}

#[tokio::test]
async fn a_runner_that_died_elsewhere_is_waited_out() {
    let etcd = etcd!();
    let registry = registry(&etcd);
    let mut runners = registry.fleet();
    let dead = conformance::runner("r1");
    let registration = registry.register(dead.clone()).await.unwrap();
    let text = etcd.get("/stoker/v1/runners/r1").await.remove(0).1;
    registration.withdraw().await;
    etcd.put_for(Duration::from_secs(2), "/stoker/v1/runners/r1", text).await;
    fleet(&mut runners, |f| has(f, &dead)).await;

    let mut next = dead.clone();
    next.incarnation = Incarnation(dead.incarnation.0 + 1);
    next.address = "http://127.0.0.2:7170".into();
    let registration = registry.register(next.clone()).await.expect("nobody keeps that lease");
    fleet(&mut runners, |f| has(f, &next)).await;
    registration.withdraw().await;
}

#[tokio::test]
async fn another_member_is_asked_when_one_is_gone() {
    let etcd = etcd!();
    let mut gone = etcd!();
    gone.kill();
    let frozen = etcd!();
    frozen.freeze();
    let mut config = config(&etcd);
    config.endpoints = vec![gone.endpoint(), frozen.endpoint(), etcd.endpoint()];
    let registry = EtcdRegistry::connect(config).unwrap();
    for n in 0..3 {
        registry.apply_functions(vec![conformance::function("app", &format!("f{n}"))]).await.unwrap();
    }
    let record = conformance::runner("r1");
    let _registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut registry.fleet(), |f| has(f, &record)).await;
}

#[tokio::test]
async fn a_cluster_loses_members_and_its_quorum() {
    let Some(mut members) = Etcd::start_cluster(3).await else { return };
    let mut config = config(&members[0]);
    config.endpoints = members.iter().map(Etcd::endpoint).collect();
    let registry = EtcdRegistry::connect(config).unwrap();
    let (mut runners, mut known) = (registry.fleet(), registry.functions());
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;

    // Each in turn, so one of them was the leader, and one was asked.
    for n in 0..3 {
        members[n as usize].kill();
        let spec = conformance::function("app", &format!("f{n}"));
        // An election may take longer than a person is kept waiting: whoever is told so asks again.
        while let Err(error) = registry.apply_functions(vec![spec.clone()]).await {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
        functions(&mut known, |f| f.by_name.contains_key(&spec.name)).await;
        let newest = says(&record, n + 1);
        registration.publish(newest.clone()).await.unwrap();
        fleet(&mut runners, |f| has(f, &newest)).await;
        members[n as usize].restart().await;
    }

    members[0].kill();
    members[1].kill();
    assert_is_away(registry.apply_functions(vec![conformance::function("app", "lost")]).await);
    assert!(has(&runners.borrow(), &says(&record, 3)), "the last view stays");
    assert_eq!(known.borrow().by_name.len(), 3, "the last view stays");
    let newest = says(&record, 9);
    registration.publish(newest.clone()).await.unwrap();
    Etcd::restart_all(&mut members[..2]).await;
    fleet(&mut runners, |f| has(f, &newest)).await;
    registration.withdraw().await;
    fleet(&mut runners, |f| f.runners.is_empty()).await;
}

/// A way to etcd that can be cut: the connections there are stay open and carry nothing any more, new ones do.
struct Way {
    address: std::net::SocketAddr,
    cuts: watch::Sender<u32>,
}

impl Way {
    async fn to(etcd: &Etcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a port");
        let address = listener.local_addr().expect("it is bound");
        let cuts = watch::Sender::new(0);
        let (target, cut) = (etcd.endpoint().replace("http://", ""), cuts.clone());
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (target, mut cut) = (target.clone(), cut.subscribe());
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = cut.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, cuts }
    }
}

#[tokio::test]
async fn a_connection_that_carries_nothing_is_left() {
    let etcd = etcd!();
    let way = Way::to(&etcd).await;
    let mut config = config(&etcd);
    config.endpoints = vec![format!("http://{}", way.address)];
    let registry = EtcdRegistry::connect(config).unwrap();
    let (mut runners, mut known) = (registry.fleet(), registry.functions());
    let record = conformance::runner("r1");
    let registration = registry.register(record.clone()).await.unwrap();
    fleet(&mut runners, |f| has(f, &record)).await;
    functions(&mut known, |f| f.known).await;

    way.cuts.send_modify(|cuts| *cuts += 1);
    let newest = says(&record, 1);
    registration.publish(newest.clone()).await.unwrap();
    let spec = conformance::function("app", "a");
    self::registry(&etcd).apply_functions(vec![spec.clone()]).await.unwrap();
    fleet(&mut runners, |f| has(f, &newest)).await;
    functions(&mut known, |f| f.by_name.contains_key(&spec.name)).await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_all_that_is_wrong() {
    let mut config =
        Config::new(vec!["localhost:2379".into(), "http://".into(), "http://me:word@host:1".into()]);
    config.lease = Duration::ZERO;
    let Err(error) = EtcdRegistry::connect(config) else { panic!("it is wrong") };
    let text = error.to_string();
    for part in ["`localhost:2379`", "`http://`", "a user", "lease"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("word"), "{text}");
    assert!(EtcdRegistry::connect(Config::new(Vec::new())).is_err());
}
