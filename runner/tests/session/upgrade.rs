//! The upgrade in place: a runner becomes the next program, and its idle containers go over warm; or it does not, and nothing has happened.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use stoker_core::function::{Format, FunctionSpec, Network};
use stoker_core::secret::SecretName;
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_proto::v1;
use stoker_registry::testing::Etcd;
use stoker_sandbox::egress;

use crate::daemon::{Daemon, Kind};
use crate::killed::{marked, until};
use crate::kit::{AMPLE, Session, heard, python, shell, speaker, warmth, we_are_root};
use crate::lambda::lambda;
use crate::left::{alive, cgroups};
use crate::process::Program;
use crate::secrets::{sees, swap, until_it_sees};

/// The answer of a program that would take over.
const YES: &str = "stoker-runner would take over";

/// A name that no other test has, for a runner and its functions.
fn name(what: &str) -> String {
    format!("u{}-{what}", std::process::id())
}

/// Functions of which each runner of these tests has a container: on a socket, on STDIN, with an answer to its greeting, one that asks for its calls,
/// and one that serves once.
fn functions(mark: &str) -> [FunctionSpec; 5] {
    let (json, mless) = (speaker(Format::Json, ""), speaker(Format::Mless, ""));
    [python(""), json, mless, lambda(), shell("cat")].map(|spec| marked(spec, mark))
}

/// Those of them that take many calls.
const HOT: std::ops::Range<usize> = 0..4;
const LAMBDA: usize = 3;
const ONCE: usize = 4;

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

async fn containers_go_over(driver: &str, more: &[(&str, &str)]) {
    let Some(etcd) = Etcd::start().await else { return };
    let name = name(driver);
    // Most stand still when they go over.
    let told = [("STOKER_SANDBOX", driver), ("STOKER_NAME", &name), ("STOKER_FREEZE_AFTER", "0s")];
    let told: Vec<_> = told.iter().chain(more).copied().collect();
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
        for (spec, container) in functions[HOT].iter().zip(&before) {
            assert_eq!(answers(&mut session, spec).await, *container, "the same container answers");
        }
        assert_eq!(program.page("/readyz").0, 200);
    }
    let mut session = program.session().await;
    let once = session.tell(&functions[ONCE], "", "x").await;
    assert!(!once.waited && once.body == b"x", "what was prepared serves: {once:?}");
    // What is started again where it was is so by the program that it has now.
    let crashed = session.tell(&functions[LAMBDA], "", "crash").await;
    assert_eq!(crashed.code(), "ERROR_CODE_FUNCTION_CRASHED", "{crashed:?}");
    assert_eq!(answers(&mut session, &functions[LAMBDA]).await, before[LAMBDA]);
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
    containers_go_over("native", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process() {
    containers_go_over("process", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oci() {
    if std::env::var_os("STOKER_WITHOUT_OCI").is_some() || !we_are_root() {
        println!("left out: no containers of an OCI runtime here");
        return;
    }
    containers_go_over("oci", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker() {
    let Some(daemon) = Daemon::start(Kind::Docker, "upgrade") else { return };
    let socket = daemon.socket().to_string_lossy().into_owned();
    containers_go_over("docker", &[("STOKER_DOCKER_SOCKET", &socket)]).await;
    assert_eq!(daemon.containers(), 0, "containers are left");
}

/// A function with a way out goes over with it; while it has connections by that it stays, and is started anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_out() {
    if !std::fs::exists(egress::DEVICE).unwrap() || !we_are_root() {
        println!("left out: no tunnels here, or no port of name servers");
        return;
    }
    let Some(etcd) = Etcd::start().await else { return };
    let name = name("way");
    // A name server of this test's own: the only address of this host that a function reaches.
    let [.., high, low] = std::process::id().to_be_bytes();
    let resolver = std::net::Ipv4Addr::new(127, 77, high, low);
    let listener = TcpListener::bind((resolver, 53)).unwrap();
    // Ends with the tests. It closes what the other end has closed.
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut connection, &mut std::io::sink()));
        }
    });
    let resolver = resolver.to_string();
    let told = [
        ("STOKER_NAME", name.as_str()),
        ("STOKER_SANDBOX", "native"),
        ("STOKER_EGRESS_DENY", "203.0.113.0/24"),
        ("STOKER_EGRESS_RESOLVERS", &resolver),
    ];
    let mut program = Program::start(&etcd.endpoint(), &told).await;
    program.says("\"ready\"").await;
    let spec = FunctionSpec { network: Network::Egress, ..marked(python(""), &name) };
    let mut session = program.session().await;
    let dial = async |session: &mut Session, to: &str| {
        let answer = session.call(&spec, "dial", to.as_bytes()).await;
        assert_eq!(answer.code(), "OK", "{answer:?}");
        (String::from_utf8(answer.body.clone()).unwrap(), answer.container().to_owned())
    };
    let refused = |container: &str| ("ConnectionRefusedError".to_owned(), container.to_owned());
    let (_, container) = dial(&mut session, "203.0.113.1 80").await;
    for _ in 0..2 {
        program.signal(Signal::USR2);
        program.says("took over from the former program").await;
        program.says("\"ready\"").await;
        session = program.session().await;
        assert_eq!(
            dial(&mut session, "203.0.113.1 80").await,
            refused(&container),
            "somebody is there to refuse"
        );
        // One that was open, and is no more, is in nobody's way.
        assert_eq!(dial(&mut session, "resolver 53").await, ("open".to_owned(), container.clone()));
        session.call(&spec, "hang up", b"").await;
    }
    assert_eq!(dial(&mut session, "resolver 53").await, ("open".to_owned(), container.clone()));
    program.signal(Signal::USR2);
    let why = program.says("a container is not handed over").await;
    assert!(why["why"].contains("connections by its way out are open: 1"), "{why:?}");
    program.says("\"ready\"").await;
    let mut session = program.session().await;
    let (_, other) = dial(&mut session, "203.0.113.1 80").await;
    assert_ne!(other, container);
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.0.code(), Some(0));
    nothing_is_left(&name);
}

/// A container that went over has the secrets that it was launched with: what was replaced since then, after its start, while nobody watched
/// or by the program that has it now, ends it.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_are_replaced_reach_what_went_over() {
    let Some(etcd) = Etcd::start().await else { return };
    let (place, name, secrets) = (Replaced::new(), name("secrets"), tempfile::tempdir().unwrap());
    let secret = secrets.path().join("test/db");
    swap(&secret, "..1", "first");
    std::os::unix::fs::symlink("..data/password", secret.join("password")).unwrap();
    let directory = secrets.path().to_string_lossy().into_owned();
    let told = [("STOKER_NAME", name.as_str()), ("STOKER_SECRETS", &directory)];
    let mut program = Program::start_as(&place.path(), &etcd.endpoint(), &told).await;
    program.says("\"ready\"").await;
    let mut spec = marked(python(""), &name);
    spec.secrets.insert("PASSWORD".into(), SecretName::parse("db/password").unwrap());
    let mut session = program.session().await;
    let (seen, first) = sees(&mut session, &spec).await;
    assert_eq!(seen, "first");
    let become_next = async |program: &mut Program| {
        program.signal(Signal::USR2);
        program.says("took over from the former program").await;
        program.says("\"ready\"").await;
        program.session().await
    };
    // Nothing was replaced: it serves on. Then by the program that has it now.
    let mut session = become_next(&mut program).await;
    assert_eq!(sees(&mut session, &spec).await, ("first".to_owned(), first.clone()));
    swap(&secret, "..2", "second");
    let second = until_it_sees(&mut session, &spec, "first", "second").await;
    assert_ne!(second, first);
    // Between the two programs, when nobody looks.
    std::fs::create_dir(secret.join("..3")).unwrap();
    std::fs::write(secret.join("..3/password"), "third").unwrap();
    let directory = secret.display();
    let runner = env!("CARGO_BIN_EXE_stoker-runner");
    place.by(&format!(
        "[ -n \"$STOKER_HANDOVER_QUESTION\" ] || {{ ln -s ..3 '{directory}/..tmp' && mv -T '{directory}/..tmp' '{directory}/..data'; }}\n\
         exec '{runner}' \"$@\""
    ));
    let mut session = become_next(&mut program).await;
    let third = until_it_sees(&mut session, &spec, "second", "third").await;
    assert_ne!(third, second);
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.0.code(), Some(0));
    nothing_is_left(&name);
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
        assert!(alive(&name) >= HOT.len());
        place.by(&format!("[ -z \"$STOKER_HANDOVER_QUESTION\" ] || {{ echo '{YES}'; exit; }}\nexit 7"));
        program.signal(Signal::USR2);
        assert_eq!(program.ended().await.0.code(), Some(7));
        nothing_is_left(&name);
    }
}

/// Who is told to stop while it becomes the next program stops, one way or the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_not_lost_on_the_way() {
    let Some(etcd) = Etcd::start().await else { return };
    // Nobody takes what is sent there: the last spans hold up the program that goes.
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let name = name("stops");
    let told = [("STOKER_NAME", name.as_str()), ("STOKER_TELEMETRY_ENDPOINT", &endpoint)];
    let mut program = Program::start(&etcd.endpoint(), &told).await;
    program.says("\"ready\"").await;
    warm_up(&mut program.session().await, &functions(&name)).await;
    program.signal(Signal::USR2);
    program.says("becoming the next program").await;
    program.signal(Signal::TERM);
    let (status, _) = program.ended().await;
    assert!(status.success() || status.signal() == Some(Signal::TERM.as_raw()), "{status}");
    nothing_is_left(&name);
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
        let gone = |c: &v1::Capacity| functions[HOT].iter().all(|spec| warmth(c, spec).idle == 0);
        session.until("its containers are gone", gone).await;
        assert_ne!(answers(&mut session, &functions[0]).await, before[0]);
        program.signal(Signal::KILL);
        program.ended().await;
        nothing_is_left(&name);
    }
}
