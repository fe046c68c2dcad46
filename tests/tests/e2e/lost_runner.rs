//! SIGKILL of a runner: each call that was there gets its one outcome, and the balancer knows which of them may have started.
//! After the next start nothing of the killed one is left.

use std::path::Path;

use stoker_core::RunnerName;
use stoker_core::error::{Blame, Code, Retry};
use stoker_registry::Registry as _;
use stoker_tests::calls::{Call, Door, rest_of};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{Change as _, Gate, probe, probe_that};
use stoker_tests::left::{self, Ending};
use stoker_tests::member::Member;
use stoker_tests::proxy::Proxy;
use stoker_tests::within;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_is_killed_loses_only_what_may_have_started() {
    let gate = Gate::new();
    let gated = |name: &str| {
        probe_that(name, "gate").with_env("PROBE_GATE", gate.path()).with_workdir(gate.directory())
    };
    let functions =
        [probe("runs"), gated("accepted-0"), gated("accepted-1"), probe("offered"), probe("later")];
    let fleet = Plan::default().runners(0).start(functions).await;
    fleet.apply(probe("again").idempotent()).await;
    let name = format!("{}-killed", fleet.mark);
    let resources = Plan::default().resources;
    let mut runner = Member::runner(&fleet.mark, &name, &fleet.state(), resources);
    let mut proxy =
        Proxy::start(runner.record().address.trim_start_matches("http://").parse().unwrap()).await;
    let mut record = runner.record();
    record.address = format!("http://{}", proxy.address);
    let registration = fleet.registry.register(record).await.unwrap();
    fleet.until_linked(&name).await;
    // Another one that is known but cannot be reached: while there is hope, calls that did not start wait.
    let mut record = runner.record();
    (record.runner, record.address) = (RunnerName::new("away").unwrap(), "http://127.0.0.1:1".to_owned());
    let away = fleet.registry.register(record).await.unwrap();

    // One that runs: its answer has begun.
    let (body, answers) = fleet.clients.open(&Call::of("runs").probe("early"));
    let mut running = within("the answer of a call that runs", answers).await.unwrap();
    // Some that wait there for containers that are not ready yet.
    let waiting: Vec<_> = [Door::Invoke, Door::Session]
        .into_iter()
        .enumerate()
        .map(|(n, door)| {
            let clients = fleet.clients.clone();
            let call = Call::of(&format!("accepted-{n}")).body(format!("waited {n}"));
            tokio::spawn(async move { clients.call(door, call).await })
        })
        .collect();
    fleet.until_heard("calls that wait on the runner", |seen| seen.running == 1 && seen.waiting == 2).await;
    // Some that were offered, and the runner did not answer.
    proxy.hold();
    let mut offered = Vec::new();
    for (function, door) in [
        ("offered", Door::Invoke),
        ("offered", Door::Http),
        ("offered", Door::Session),
        ("again", Door::Stream),
    ] {
        let clients = fleet.clients.clone();
        let marker = format!("offered {function} by {door:?}");
        let call = Call::of(function).body(marker.clone());
        offered.push((function, tokio::spawn(async move { clients.call(door, call).await })));
        proxy.held(marker.as_bytes()).await;
    }

    let before = left::processes(&fleet.mark);
    assert!(before.iter().any(|process| process.function), "no function runs: {before:#?}");
    let cgroups = left::cgroups(std::slice::from_ref(&name));
    let ending = Ending::of_processes(&before);
    runner.kill();
    drop(proxy);

    // What ran is lost, and says so.
    let error = within("the outcome of the call that ran", rest_of(&mut running)).await.unwrap_err();
    assert_eq!((error.code, error.blame(), error.retry), (Code::RunnerLost, Blame::Platform, Retry::Never));
    assert!(error.may_have_started, "{error:?}");
    drop(body);
    // So is what may have started.
    let mut again = Vec::new();
    for (function, call) in offered {
        if function == "again" {
            again.push(call);
            continue;
        }
        let error = within("the outcome of an offered call", call).await.unwrap().unwrap_err();
        assert_eq!((error.code, error.retry), (Code::RunnerLost, Retry::Never), "{error:?}");
        assert!(error.may_have_started, "an offer that was not answered may have started: {error:?}");
        assert!(error.message.contains(&name), "{error:?}");
    }
    // The functions go with their runner, without anybody's help.
    ending.wait().await;

    // The next life of the same name: what did not start runs there, and what may be run twice does.
    let mut next = Member::runner(&fleet.mark, &name, &fleet.state(), resources);
    registration.withdraw().await;
    let registration = fleet.registry.register(next.record()).await.unwrap();
    gate.open(waiting.len());
    for (n, call) in waiting.into_iter().enumerate() {
        let answer = within("a call that was accepted and not started", call).await.unwrap().unwrap();
        assert_eq!(answer.text(), format!("waited {n}"));
    }
    for call in again {
        let answer = within("a call that may be run twice", call).await.unwrap().unwrap();
        assert_eq!(answer.text(), "offered again by Stream");
    }
    assert_eq!(fleet.clients.probe("later", "echo").await.status, 200);
    let old: Vec<_> = cgroups.iter().filter(|path| Path::exists(path)).collect();
    assert!(old.is_empty(), "cgroups of the killed life: {old:?}");
    let lives = lives(&fleet.state());
    assert!(lives <= 1, "{lives} lives of one runner");

    next.kill();
    registration.withdraw().await;
    away.withdraw().await;
    gone_after_next_start(&fleet, &name).await;
    fleet.end().await;
}

/// The runner and its spawner at once, as a machine out of memory may do it: then nobody is left to clean up but the next life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_with_its_spawner_leaves_nothing_after_its_next_start() {
    let mut fleet = Plan::default().runners(0).start([probe("runs")]).await;
    let n = fleet.add_process(None).await;
    let name = fleet.member(n).record().runner.to_string();
    let (_body, answers) = fleet.clients.open(&Call::of("runs").probe("early"));
    let mut running = within("the answer of a call that runs", answers).await.unwrap();
    let processes = left::processes(&fleet.mark);
    let runner = fleet.member(n).pid() as i32;
    let children: Vec<_> = processes.iter().filter(|process| parent(process.pid) == Some(runner)).collect();
    assert!(!children.is_empty(), "a runner without a spawner: {processes:#?}");
    let functions: Vec<_> = processes.iter().filter(|process| process.function).cloned().collect();
    assert!(!functions.is_empty());
    // The spawner stands still, so that it can do nothing between the two deaths.
    for signal in [libc::SIGSTOP, libc::SIGKILL] {
        for child in &children {
            send(child.pid, signal);
        }
        if signal == libc::SIGSTOP {
            fleet.member(n).kill();
        }
    }
    let error = within("the outcome of the call that ran", rest_of(&mut running)).await.unwrap_err();
    assert_eq!(error.code, Code::RunnerLost);
    let killed = fleet.remove_member(n);
    drop(killed);
    gone_after_next_start(&fleet, &name).await;
    fleet.end().await;
}

/// Starts a runner of this name once more, and stops it: then nothing of any life of it is there.
async fn gone_after_next_start(fleet: &Fleet, name: &str) {
    let before = Ending::of(&fleet.mark);
    let last = Member::runner(&fleet.mark, name, &fleet.state(), Plan::default().resources);
    // Of the life before this one nothing runs once the next is ready.
    before.wait().await;
    let ending = Ending::of(&fleet.mark);
    last.stop().await;
    ending.wait().await;
    let left = left::behind(&fleet.mark, &[name.to_owned()], &fleet.state());
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn lives(state: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let named = entry.file_name().to_string_lossy().starts_with("life-");
            count += if named { 1 } else { lives(&entry.path()) };
        }
    }
    count
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn send(pid: i32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
