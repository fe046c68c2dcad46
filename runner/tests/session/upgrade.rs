//! The upgrade in place: a runner becomes the next program, and its idle containers go over warm; or it does not, and nothing has happened.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use stoker_core::function::{Format, FunctionSpec};
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_proto::v1;
use stoker_registry::testing::Etcd;

use crate::killed::{alive, cgroups, marked, until};
use crate::kit::{AMPLE, Session, heard, python, shell, speaker, warmth};
use crate::process::Program;

/// The answer of a program that would take over.
const YES: &str = "stoker-runner would take over";

/// A name that no other test has, for a runner and its functions.
fn name(what: &str) -> String {
    format!("u{}-{what}", std::process::id())
}

/// Functions of which each runner of these tests has a container: on a socket, on STDIN, with an answer to its greeting, and one that serves once.
fn functions(mark: &str) -> [FunctionSpec; 4] {
    let (json, mless) = (speaker(Format::Json, ""), speaker(Format::Mless, ""));
    [python(""), json, mless, shell("cat")].map(|spec| marked(spec, mark))
}

/// Has it answer, and says in which container.
async fn answers(session: &mut Session, spec: &FunctionSpec) -> String {
    let answer = session.tell(spec, "echo", "x").await;
    assert_eq!((answer.code(), heard(spec.format, &answer.body).as_str()), ("OK", "x"), "{answer:?}");
    answer.container().to_owned()
}

/// Each function answers, and the next container of the one that serves once is prepared. Their containers.
async fn warm_up(session: &mut Session, functions: &[FunctionSpec]) -> Vec<String> {
    let mut containers = Vec::new();
    for spec in functions {
        containers.push(answers(session, spec).await);
    }
    let idle = |c: &v1::Capacity| functions.iter().all(|spec| warmth(c, spec).idle > 0);
    session.until("all are idle", idle).await;
    containers
}

/// A copy of the runner's program, which a test may replace.
struct Replaced(tempfile::TempDir);

impl Replaced {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::copy(env!("CARGO_BIN_EXE_stoker-runner"), place.path()).unwrap();
        place
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("stoker-runner")
    }

    /// The file of its name is another from now on.
    fn by(&self, script: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

/// Nothing of these functions and of this runner is left.
fn nothing_is_left(name: &str) {
    until("processes are gone", || alive(name) == 0);
    until("cgroups are gone", || cgroups(name).is_empty());
}

async fn containers_go_over(driver: &str) {
    let Some(etcd) = Etcd::start().await else { return };
    let name = name(driver);
    // Most stand still when they go over.
    let told = [("STOKER_SANDBOX", driver), ("STOKER_NAME", &name), ("STOKER_FREEZE_AFTER", "0s")];
    let mut program = Program::start(&etcd.endpoint(), &told).await;
    program.says("\"ready\"").await;
    let functions = functions(&name);
    let mut session = program.session().await;
    let before = warm_up(&mut session, &functions).await;
    let address = session.capacity.address.clone();
    let incarnation = session.capacity.incarnation;
    // Twice: what was taken up goes over like the rest.
    for _ in 0..2 {
        program.signal(Signal::USR2);
        program.says("took over from the former program").await;
        program.says("\"ready\"").await;
        let mut session = program.session().await;
        assert_eq!(session.capacity.address, address);
        assert_ne!(session.capacity.incarnation, incarnation, "it is another life");
        for spec in &functions {
            assert_eq!(warmth(&session.capacity, spec).idle, 1, "{}", spec.name);
        }
        let free = session.capacity.free.unwrap();
        assert_eq!(free.memory, (512 << 20) - functions.iter().map(|spec| spec.memory).sum::<u64>());
        for (spec, container) in functions[..3].iter().zip(&before) {
            assert_eq!(answers(&mut session, spec).await, *container, "the same container answers");
        }
        assert_eq!(program.page("/readyz").0, 200);
    }
    let mut session = program.session().await;
    let once = session.tell(&functions[3], "", "x").await;
    assert!(!once.waited && once.body == b"x", "what was prepared serves: {once:?}");
    // What a function says goes to the log of the program that it has now.
    session.tell(&functions[1], "log", "").await;
    let request =
        wire::StreamLogsRequest { app: "test".into(), function: "json".into(), ..Default::default() };
    let mut lines = program.client().await.stream_logs(request).await.unwrap().into_inner();
    until_line(&mut lines).await;
    program.signal(Signal::TERM);
    let (status, left) = program.ended().await;
    assert_eq!((status.code(), left), (Some(0), 0), "{status}");
    nothing_is_left(&name);
}

async fn until_line(lines: &mut tonic::Streaming<wire::StreamLogsResponse>) {
    while let Some(said) = lines.message().await.unwrap() {
        if said.lines.iter().any(|line| &line.text[..] == b"a line of the log") {
            return;
        }
    }
    panic!("the line never comes");
}

#[tokio::test(flavor = "multi_thread")]
async fn native() {
    containers_go_over("native").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process() {
    containers_go_over("process").await;
}

/// Whatever is in the way, calls go on as if nobody had asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_changes_nothing() {
    let Some(etcd) = Etcd::start().await else { return };
    let (place, name) = (Replaced::new(), name("stays"));
    let told = [("STOKER_NAME", name.as_str()), ("STOKER_DRAIN_GRACE", "200ms")];
    let mut program = Program::start_as(&place.path(), &etcd.endpoint(), &told).await;
    program.says("\"ready\"").await;
    let mut session = program.session().await;
    let spec = marked(python(""), &name);
    let container = answers(&mut session, &spec).await;
    // A call that does not end in time.
    let long = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(long).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    program.signal(Signal::USR2);
    let why = program.says("no other program takes over").await;
    assert!(why["error"].contains("1 calls have not ended in 200ms"), "{why:?}");
    session.until("it takes calls again", |c| c.state() == v1::RunnerState::Ready).await;
    session.body(long, b" and half", true).await;
    assert_eq!(session.outcome(long).await.body, b"half and half");
    // Programs that would not, that say nothing, and that are none.
    for (script, says) in [
        ("echo no such thing >&2; exit 3", "would not: no such thing"),
        ("exit 0", "does not say that it would"),
        ("while :; do echo never mind; done", "does not say that it would"),
    ] {
        place.by(script);
        program.signal(Signal::USR2);
        let why = program.says("no other program takes over").await;
        assert!(why["error"].contains(says), "{why:?}");
    }
    std::fs::remove_file(place.path()).unwrap();
    program.signal(Signal::USR2);
    let why = program.says("no other program takes over").await;
    assert!(why["error"].contains("cannot be asked: No such file"), "{why:?}");
    assert_eq!(
        answers(&mut session, &spec).await,
        container,
        "on the session that it had, in the container that it had"
    );
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.0.code(), Some(0));
    nothing_is_left(&name);
}

/// Once it has left there is no way back: a program that ends then takes the functions along.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_fails_takes_the_functions_along() {
    let Some(etcd) = Etcd::start().await else { return };
    for driver in ["native", "process"] {
        let (place, name) = (Replaced::new(), name(&format!("fails-{driver}")));
        let told = [("STOKER_NAME", name.as_str()), ("STOKER_SANDBOX", driver)];
        let mut program = Program::start_as(&place.path(), &etcd.endpoint(), &told).await;
        program.says("\"ready\"").await;
        let mut session = program.session().await;
        warm_up(&mut session, &functions(&name)).await;
        // What is prepared is no program yet.
        assert!(alive(&name) >= 3);
        place.by(&format!("[ -z \"$STOKER_HANDOVER_QUESTION\" ] || {{ echo '{YES}'; exit; }}\nexit 7"));
        program.signal(Signal::USR2);
        assert_eq!(program.ended().await.0.code(), Some(7));
        nothing_is_left(&name);
    }
}

/// A killed runner takes its functions along, also those that it took up; and so does its spawner, which is still the first one.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_up_dies_with_its_runner_and_with_its_spawner() {
    let Some(etcd) = Etcd::start().await else { return };
    for driver in ["native", "process"] {
        let name = name(&format!("dies-{driver}"));
        let told = [("STOKER_NAME", name.as_str()), ("STOKER_SANDBOX", driver)];
        let mut program = Program::start(&etcd.endpoint(), &told).await;
        program.says("\"ready\"").await;
        let functions = functions(&name);
        let before = warm_up(&mut program.session().await, &functions).await;
        let spawner = program.spawner();
        program.signal(Signal::USR2);
        program.says("took over from the former program").await;
        program.says("\"ready\"").await;
        assert_eq!(program.spawner(), spawner, "it lives on");
        kill_process(spawner, Signal::KILL).unwrap();
        until("its functions are gone", || alive(&name) == 0);
        let mut session = program.session().await;
        let gone = |c: &v1::Capacity| functions[..3].iter().all(|spec| warmth(c, spec).idle == 0);
        session.until("its containers are gone", gone).await;
        assert_ne!(answers(&mut session, &functions[0]).await, before[0]);
        program.signal(Signal::KILL);
        program.ended().await;
        nothing_is_left(&name);
    }
}
