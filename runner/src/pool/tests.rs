//! Whatever callers, launches and deaths do in whatever order: nobody waits for ever, no container holds more calls than it
//! may or is used while it stands still, and in the end everything was given back.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use proptest::prelude::*;
use stoker_core::Refusal;
use stoker_core::function::{Format, FunctionName};
use stoker_runtime::reload::Changed;
use stoker_sandbox::{Description, Driver, Error, Exit, ExitCause, Sandbox, Shared, Spec, Stdio, Usage};
use tokio::sync::watch;

use super::*;
use crate::images::Images;
use crate::logs::Logs;
use crate::secrets::Secrets;

/// Longer than any run takes; a call that waits this long was forgotten.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// A driver whose sandboxes are no processes, so that their fates can be dictated: of every `fails` creations one fails.
struct Puppets {
    description: Description,
    fails: u32,
    made: AtomicU32,
    state: Arc<Mutex<HashMap<String, Arc<Puppet>>>>,
    alive: Arc<AtomicUsize>,
}

struct Puppet {
    frozen: AtomicBool,
    users: AtomicU32,
    exit: watch::Sender<Option<Exit>>,
}

struct Held {
    id: String,
    puppet: Arc<Puppet>,
    directory: tempfile::TempDir,
    shared: Shared,
    listener: Mutex<Option<UnixListener>>,
    ends: Mutex<Option<[std::os::fd::OwnedFd; 3]>>,
    state: Arc<Mutex<HashMap<String, Arc<Puppet>>>>,
    alive: Arc<AtomicUsize>,
}

impl Puppet {
    fn end(&self) {
        let exit = Exit { cause: ExitCause::Signal(9), out_of_memory: false };
        self.exit.send_if_modified(|now| now.replace(exit).is_none());
    }
}

#[async_trait]
impl Driver for Puppets {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        tokio::task::yield_now().await;
        let n = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fails > 0 && n.is_multiple_of(self.fails) {
            return Err(match n % 2 {
                0 => Error::Function("it is not there".to_owned()),
                _ => Error::Platform { step: "make it".to_owned(), source: io::ErrorKind::Other.into() },
            });
        }
        let puppet = Arc::new(Puppet {
            frozen: AtomicBool::new(false),
            users: AtomicU32::new(0),
            exit: watch::Sender::new(None),
        });
        let directory = tempfile::tempdir().unwrap();
        let handle = rustix::fs::open(
            directory.path(),
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let shared = Shared { directory: handle.unwrap(), inside: PathBuf::from("/tmp") };
        self.state.lock().unwrap().insert(spec.id.clone(), puppet.clone());
        self.alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Held {
            id: spec.id,
            puppet,
            directory,
            shared,
            listener: Mutex::default(),
            ends: Mutex::default(),
            state: self.state.clone(),
            alive: self.alive.clone(),
        }))
    }

    async fn collect_leftovers(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn close(&self) {}
}

#[async_trait]
impl Sandbox for Held {
    fn id(&self) -> &str {
        &self.id
    }

    fn shared(&self) -> Option<&Shared> {
        Some(&self.shared)
    }

    async fn start(&self, _env: Vec<(String, String)>) -> Result<Stdio, Error> {
        let path = self.directory.path().join(crate::container::endpoint::NAME);
        *self.listener.lock().unwrap() = Some(UnixListener::bind(path).unwrap());
        let pipe = || {
            let (read, write) = io::pipe().unwrap();
            let (read, write) = (std::os::fd::OwnedFd::from(read), std::os::fd::OwnedFd::from(write));
            rustix::io::ioctl_fionbio(&read, true).unwrap();
            (read, write)
        };
        let ((inside, stdin), (stdout, out), (stderr, err)) = (pipe(), pipe(), pipe());
        *self.ends.lock().unwrap() = Some([inside, out, err]);
        Ok(Stdio { stdin, stdout, stderr })
    }

    async fn freeze(&self) -> Result<(), Error> {
        assert!(!self.puppet.frozen.swap(true, Ordering::SeqCst), "frozen twice");
        assert_eq!(self.puppet.users.load(Ordering::SeqCst), 0, "frozen in use");
        Ok(())
    }

    async fn thaw(&self) -> Result<(), Error> {
        assert!(self.puppet.frozen.swap(false, Ordering::SeqCst), "thawed twice");
        Ok(())
    }

    async fn stop(&self, _grace: Duration) -> Exit {
        tokio::task::yield_now().await;
        self.puppet.end();
        self.wait().await
    }

    async fn wait(&self) -> Exit {
        self.puppet.exit.subscribe().wait_for(Option::is_some).await.unwrap().unwrap()
    }

    async fn usage(&self) -> Usage {
        Usage::default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.lock().unwrap().remove(&self.id);
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a caller does.
#[derive(Debug, Clone, Copy)]
struct Caller {
    function: usize,
    /// Yields before it comes.
    comes: u8,
    /// Leaves the line after so many yields.
    leaves: Option<u8>,
    /// Yields that its call takes.
    takes: u8,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Kept,
    Destroyed,
    /// Given back before the function saw anything.
    Untouched,
    /// Dropped while the function worked on it.
    Lost,
    /// The container dies under it.
    Dies,
}

fn any_caller() -> impl Strategy<Value = Caller> {
    let end = prop_oneof![
        6 => Just(End::Kept),
        1 => Just(End::Destroyed),
        1 => Just(End::Untouched),
        1 => Just(End::Lost),
        1 => Just(End::Dies),
    ];
    (0usize..4, 0u8..60, prop::option::weighted(0.2, 0u8..20), 0u8..20, end)
        .prop_map(|(function, comes, leaves, takes, end)| Caller { function, comes, leaves, takes, end })
}

fn specs() -> [Arc<FunctionSpec>; 4] {
    let spec = |name: &str| {
        let name = FunctionName::new("test", name).unwrap();
        let mut spec = FunctionSpec::new(name, vec!["x".into()], "/".into());
        (spec.memory, spec.format, spec.idle_timeout_ms) = (64 << 20, Format::HttpStream, 3);
        spec
    };
    let (mut shared, mut once, mut large, mut kept) =
        (spec("shared"), spec("once"), spec("large"), spec("kept"));
    (shared.concurrency, shared.max_containers) = (3, 2);
    once.format = Format::Default;
    (large.memory, large.cpu_millis) = (192 << 20, 700);
    kept.cpu_millis = 400;
    [shared, once, large, kept].map(Arc::new)
}

async fn yields(n: u8) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

fn puppets(fails: u32) -> Puppets {
    let description = Description {
        name: "puppets",
        why: String::new(),
        isolates: true,
        freezes: true,
        limits_memory: true,
        limits_cpu: true,
        limits_pids: true,
        isolates_network: true,
        reaches_out: false,
        chooses_user: false,
        hides_root: false,
        sizes_roots: false,
        own_kernel: false,
    };
    let (state, alive) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    Puppets { description, fails, made: AtomicU32::new(0), state, alive }
}

fn pools_of(driver: Puppets, total: Resources, freeze: Duration) -> (Arc<Ledger>, Arc<Pools>) {
    pools_with(Secrets::default(), driver, total, freeze)
}

fn pools_with(
    secrets: Secrets,
    driver: Puppets,
    total: Resources,
    freeze: Duration,
) -> (Arc<Ledger>, Arc<Pools>) {
    let (ledger, logs) = (Ledger::new(total), Arc::new(Logs::default()));
    let images = Arc::new(Images::new(stoker_image::Config::new("/nowhere".into())));
    let life = Incarnation(7);
    (
        ledger.clone(),
        Pools::new(
            ledger,
            Launcher { driver: Arc::new(driver), images, secrets, logs },
            life,
            freeze,
            Observer::default(),
        ),
    )
}

#[tokio::test]
async fn balancers_take_turns_and_none_is_kept_out() {
    let total = Resources { memory: 64 << 20, cpu_millis: 1000, slots: 1 };
    let (_, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
    let spec = specs()[0].clone();
    let spec = Arc::new(FunctionSpec { concurrency: 1, max_containers: 1, ..(*spec).clone() });
    let acquire = |balancer, waited| {
        let asker = Asker { balancer, waited, ..Asker::default() };
        pools.acquire(spec.digest(), &spec, CallId::new(), asker, Duration::from_secs(3600))
    };
    let Acquired::Wait { ticket, .. } = acquire(1, false) else { panic!("there is no container yet") };
    let Ok(mut running) = ticket.wait().await else { panic!("it starts") };
    // The first balancer takes all places that there are.
    let mut line = Vec::new();
    loop {
        match acquire(1, true) {
            Acquired::Wait { ticket, .. } => line.push((1, ticket)),
            Acquired::Refused(Refused { reason, detail, .. }) => {
                assert_eq!(reason, Refusal::Full);
                // There is room neither for another container nor by what the function says.
                assert!(detail.starts_with("its max_containers (1) are here"), "{detail}");
                break;
            }
            Acquired::Now(_) => panic!("it is full"),
        }
    }
    assert!((1..64).contains(&line.len()), "{}", line.len());
    // One of another that has waited stands in the line all the same; one that has not looks elsewhere first.
    assert!(matches!(acquire(2, false), Acquired::Refused(_)));
    let Acquired::Wait { ticket, .. } = acquire(2, true) else { panic!("it was kept out") };
    line.push((2, ticket));
    assert!(matches!(acquire(2, true), Acquired::Refused(_)), "one, not two");
    // Nor is one let in that is to start at once, and it claims nothing: its place in another line goes on.
    let asker = Asker { balancer: 3, waited: true, only_if_idle: true };
    let once = || pools.acquire(spec.digest(), &spec, CallId::new(), asker, Duration::from_secs(3600));
    let Acquired::Refused(Refused { reason: Refusal::NoneIdle, line_full: false, .. }) = once() else {
        panic!("nobody is idle")
    };
    let mut waits = tokio::task::JoinSet::new();
    for (balancer, ticket) in line {
        waits.spawn(async move { (balancer, ticket.wait().await) });
    }
    let mut order = Vec::new();
    while !waits.is_empty() {
        running.finish(true, None);
        let (balancer, given) = waits.join_next().await.expect("there are more").unwrap();
        order.push(balancer);
        let Ok(lease) = given else { panic!("it is served") };
        running = lease;
    }
    assert!(order[..2].contains(&2), "{order:?}");
    running.finish(true, None);
    let Acquired::Now(lease) = once() else { panic!("one is idle now") };
    lease.finish(true, None);
    pools.stop_all().await;
}

/// Calls that share containers, so that none is ever idle, or containers of which one alone would not do: a function of another app comes in all the same,
/// though they have calls without a pause.
#[tokio::test]
async fn who_never_comes_free_gives_way_all_the_same() {
    let total = Resources { memory: 256 << 20, cpu_millis: 4000, slots: 8 };
    let spec = |app: &str, memory: u64, concurrency| {
        let name = FunctionName::new(app, "f").unwrap();
        let (memory, max_containers, idle_timeout_ms) = (memory << 20, 4, 3_600_000);
        let mut spec = FunctionSpec { name, memory, concurrency, max_containers, ..(*specs()[0]).clone() };
        spec.idle_timeout_ms = idle_timeout_ms;
        Arc::new(spec)
    };
    let asker = Asker { balancer: 1, waited: true, ..Asker::default() };
    for (busy, other) in [(spec("a", 64, 2), spec("b", 64, 1)), (spec("a", 64, 1), spec("b", 192, 1))] {
        let (ledger, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
        let acquire = |spec: &Arc<FunctionSpec>| {
            pools.acquire(spec.digest(), spec, CallId::new(), asker, Duration::from_secs(3600))
        };
        let mut running = Vec::new();
        for _ in 0..4 * busy.concurrency {
            running.push(match acquire(&busy) {
                Acquired::Now(lease) => lease,
                Acquired::Wait { ticket, .. } => {
                    ticket.wait().await.unwrap_or_else(|error| panic!("it starts: {error}"))
                }
                Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
            });
        }
        assert_eq!(ledger.free().memory, 0);
        let Acquired::Wait { ticket, .. } = acquire(&other) else { panic!("there is none") };
        let given = tokio::spawn(ticket.wait());
        let mut line = tokio::task::JoinSet::new();
        let begun = Instant::now();
        while !given.is_finished() {
            assert!(begun.elapsed() < FORGOTTEN, "{}: it was kept out", busy.concurrency);
            // Whoever comes next stands there before one ends.
            match acquire(&busy) {
                Acquired::Now(lease) => running.push(lease),
                Acquired::Wait { ticket, .. } => _ = line.spawn(ticket.wait()),
                Acquired::Refused(_) => {}
            }
            if !running.is_empty() {
                running.remove(0).finish(true, None);
            }
            yields(3).await;
            while let Some(given) = line.try_join_next() {
                running.extend(given.unwrap().ok());
            }
        }
        let Ok(lease) = given.await.unwrap() else { panic!("it starts") };
        lease.finish(true, None);
        line.abort_all();
        while let Some(given) = line.join_next().await {
            running.extend(given.ok().and_then(Result::ok));
        }
        running.drain(..).for_each(|lease| _ = lease.finish(true, None));
        pools.stop_all().await;
        assert_eq!(ledger.free(), total);
    }
}

/// Nobody waits for it: what is to be kept and cannot be launched is tried once, and again after a while or for a call.
#[tokio::test]
async fn what_cannot_be_kept_is_not_tried_all_the_time() {
    let total = Resources { memory: 640 << 20, cpu_millis: 4000, slots: 8 };
    let (_, pools) = pools_of(puppets(1), total, Duration::from_secs(60));
    let spec = specs()[3].clone();
    let failures = || pools.inner().versions[&spec.digest()].failures;
    for _ in 0..3 {
        pools.keep(1, vec![(spec.digest(), spec.clone(), 1)], Duration::from_secs(3600));
        while failures() == 0 {
            pools.changed.notified().await;
        }
        assert_eq!(failures(), 1);
        assert_eq!(pools.inner().launching, 0);
    }
    let asker = Asker { balancer: 1, ..Asker::default() };
    let called = pools.acquire(spec.digest(), &spec, CallId::new(), asker, Duration::from_secs(60));
    let Acquired::Wait { ticket, .. } = called else { panic!("there is room") };
    assert!(ticket.wait().await.is_err());
    pools.stop_all().await;
}

/// Nothing but a value that is another ends anything, whatever changed and whenever: idle containers at once, others with their last call.
#[tokio::test]
async fn containers_with_former_secrets_go_and_no_call_with_them() {
    let total = Resources { memory: 640 << 20, cpu_millis: 4000, slots: 8 };
    let directory = tempfile::tempdir().unwrap();
    let mut spec = (*specs()[0]).clone();
    (spec.concurrency, spec.max_containers, spec.idle_timeout_ms) = (2, 8, 3_600_000);
    spec.secrets.insert("KEY".to_owned(), stoker_core::secret::SecretName::parse("key").unwrap());
    let spec = Arc::new(spec);
    let app = directory.path().join(spec.name.app());
    std::fs::create_dir(&app).unwrap();
    let write = |text: &str| std::fs::write(app.join("key"), text).unwrap();
    write("first");
    let secrets = Secrets::new(Some(directory.path().to_owned()));
    let mut watch = secrets.watch().unwrap();
    let (ledger, pools) = pools_with(secrets, puppets(0), total, Duration::from_secs(60));
    let acquire = async || {
        let asker = Asker { balancer: 1, ..Asker::default() };
        match pools.acquire(spec.digest(), &spec, CallId::new(), asker, Duration::from_secs(3600)) {
            Acquired::Now(lease) => (lease, false),
            Acquired::Wait { ticket, .. } => {
                (ticket.wait().await.unwrap_or_else(|_| panic!("it starts")), true)
            }
            Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
        }
    };
    let told = async |watch: &mut crate::secrets::Watch| {
        let mut changed = tokio::time::timeout(FORGOTTEN, watch.changed()).await.expect("it is told");
        changed.extend(watch.quiet().await);
        pools.compare(watch, &changed).await;
    };
    let there = || pools.inner().versions[&spec.digest()].members.len();
    let idle = || pools.warmth(&spec.digest()).idle;
    // One more call fits into it, but it was launched before anybody watched.
    let (first, _) = acquire().await;
    write("second");
    assert_eq!((there(), idle()), (1, 1));
    pools.compare(&mut watch, &Changed::default()).await;
    assert_eq!((there(), idle()), (1, 0), "it takes no more calls, and keeps the one that it has");
    let (second, waited) = acquire().await;
    assert!(waited && second.container.id != first.container.id);
    pools.compare(&mut watch, &Changed::default()).await;
    assert_eq!((there(), idle()), (2, 1));
    first.finish(true, None);
    while there() > 1 {
        pools.changed.notified().await;
    }
    assert_eq!(pools.inner().versions[&spec.digest()].left, Some(Ended::Drained));
    // What is the same, or cannot be used, or is of another, ends nothing.
    for (file, text) in [("key", "second"), ("key", "no\0text"), ("other", "third")] {
        std::fs::write(app.join(file), text).unwrap();
        told(&mut watch).await;
        assert_eq!((there(), idle()), (1, 1), "{file}");
    }
    std::fs::remove_file(app.join("key")).unwrap();
    write("second");
    told(&mut watch).await;
    second.finish(true, None);
    assert_eq!((there(), idle()), (1, 2));
    // Idle, it goes at once; what is to be kept is there again.
    pools.keep(1, vec![(spec.digest(), spec.clone(), 1)], Duration::from_secs(3600));
    write("third");
    told(&mut watch).await;
    let (third, _) = acquire().await;
    pools.compare(&mut watch, &Changed::default()).await;
    while there() > 1 {
        pools.changed.notified().await;
    }
    assert_eq!(idle(), 1);
    third.finish(true, None);
    pools.stop_all().await;
    assert_eq!(ledger.free(), total);
}

/// One that goes makes room for the next: whoever comes meanwhile waits for that, also where a function may have no other beside it and nothing
/// else has room.
#[tokio::test]
async fn calls_wait_for_the_place_of_one_that_goes() {
    let total = Resources { memory: 64 << 20, cpu_millis: 1000, slots: 1 };
    let (_, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
    let spec = FunctionSpec { concurrency: 1, max_containers: 1, ..(*specs()[0]).clone() };
    let spec = Arc::new(FunctionSpec { idle_timeout_ms: 3_600_000, ..spec });
    let digest = spec.digest();
    let acquire = || {
        let asker = Asker { balancer: 1, ..Asker::default() };
        pools.acquire(digest, &spec, CallId::new(), asker, Duration::from_secs(3600))
    };
    let Acquired::Wait { ticket, .. } = acquire() else { panic!("there is no container yet") };
    let Ok(first) = ticket.wait().await else { panic!("it starts") };
    let (gone, seq) = (first.container.id.clone(), first.seq);
    let mut actions = Vec::new();
    // Busy, it goes with its call; idle, at once.
    assert_eq!(pools.inner().let_go(digest, [seq], rotate::DRAINED, &mut actions), 1);
    let Acquired::Wait { ticket: early, .. } = acquire() else { panic!("it will have room") };
    first.finish(true, None);
    let mut waits = tokio::task::JoinSet::new();
    let mut line = vec![early];
    for _ in 0..3 {
        line.push(match acquire() {
            Acquired::Wait { ticket, .. } => ticket,
            Acquired::Now(_) => panic!("it takes no call"),
            Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
        });
    }
    line.into_iter().for_each(|ticket| _ = waits.spawn(ticket.wait()));
    while let Some(given) = waits.join_next().await {
        let Ok(Ok(lease)) = given else { panic!("it is served") };
        assert_ne!(lease.container.id, gone);
        lease.finish(true, None);
    }
    pools.stop_all().await;
}

/// Each of its calls is served long before a container would have started, and yet somebody always waits: one container at a time, where there is
/// room at nobody's cost.
#[tokio::test]
async fn a_line_that_does_not_end_gets_a_container() {
    for (slots, expected) in [(2, 1), (3, 2)] {
        let total = Resources { memory: u64::from(slots) * (64 << 20), cpu_millis: 4000, slots };
        let (_, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
        let [line, .., other] = specs().map(|spec| {
            Arc::new(FunctionSpec {
                concurrency: 1,
                max_containers: 8,
                idle_timeout_ms: 3_600_000,
                ..(*spec).clone()
            })
        });
        let acquire = |spec: &Arc<FunctionSpec>| {
            let asker = Asker { balancer: 1, ..Asker::default() };
            match pools.acquire(spec.digest(), spec, CallId::new(), asker, Duration::from_secs(3600)) {
                Acquired::Wait { ticket, .. } => ticket,
                Acquired::Now(_) => panic!("all are busy"),
                Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
            }
        };
        let there = |spec: &FunctionSpec| pools.inner().versions[&spec.digest()].members.len();
        // One that could be evicted.
        acquire(&other).wait().await.unwrap_or_else(|_| panic!("it starts")).finish(true, None);
        let busy = acquire(&line).wait().await.unwrap_or_else(|_| panic!("it starts"));
        {
            let mut inner = pools.inner();
            let version = inner.versions.get_mut(&line.digest()).unwrap();
            (version.cold, version.run) = Default::default();
            version.cold.add(Duration::from_secs(10));
            version.run.add(Duration::from_millis(1));
        }
        let mut tickets = vec![acquire(&line), acquire(&line)];
        assert_eq!(there(&line), 1, "it has just begun");
        let long_ago = Instant::now().checked_sub(Duration::from_secs(31)).unwrap();
        pools.inner().versions.get_mut(&line.digest()).unwrap().standing = long_ago;
        for _ in 0..2 {
            tickets.push(acquire(&line));
            assert_eq!((there(&line), there(&other)), (expected, 1), "{slots} slots");
        }
        drop(tickets);
        busy.finish(true, None);
        pools.stop_all().await;
    }
}

/// Where all wait for CPU, who has a container takes none of those that others wait for, however long it has waited itself.
#[tokio::test]
async fn what_a_call_waits_for_is_not_ended_for_another() {
    let total = Resources { memory: 3 * (64 << 20), cpu_millis: 2000, slots: 3 };
    let (_, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
    let [one, two, three] = ["one", "two", "three"].map(|name| {
        let name = FunctionName::new("test", name).unwrap();
        let mut spec = (*specs()[3]).clone();
        (spec.name, spec.cpu_millis, spec.max_containers, spec.idle_timeout_ms) = (name, 1000, 8, 3_600_000);
        Arc::new(spec)
    });
    let acquire = |spec: &Arc<FunctionSpec>| {
        let asker = Asker { balancer: 1, waited: true, ..Asker::default() };
        pools.acquire(spec.digest(), spec, CallId::new(), asker, Duration::from_secs(3600))
    };
    let wait = |spec| match acquire(spec) {
        Acquired::Wait { ticket, .. } => ticket,
        Acquired::Now(_) => panic!("there is no CPU"),
        Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
    };
    let there = |spec: &FunctionSpec| {
        pools.inner().versions[&spec.digest()].members.values().filter(|m| m.serves()).count()
    };
    for spec in [&one, &two, &three] {
        wait(spec).wait().await.unwrap_or_else(|_| panic!("it starts")).finish(true, None);
    }
    let (Acquired::Now(busy), Acquired::Now(ending)) = (acquire(&one), acquire(&three)) else {
        panic!("they are idle");
    };
    let first = wait(&one);
    pools.inner().versions.get_mut(&one.digest()).unwrap().waiters[0].overdue = true;
    let (second, third) = (wait(&two), wait(&three));
    // There is CPU for one of them, and the first in turn has no container that is free.
    ending.finish(true, None);
    assert_eq!([&one, &two, &three].map(|spec| there(spec)), [1, 1, 1]);
    second.wait().await.unwrap_or_else(|_| panic!("it has its container")).finish(true, None);
    third.wait().await.unwrap_or_else(|_| panic!("it has its container")).finish(true, None);
    busy.finish(true, None);
    first.wait().await.unwrap_or_else(|_| panic!("its container is free")).finish(true, None);
    pools.stop_all().await;
}

/// Calls in a rhythm slower than the idle timeout find a container after a few beats, though each had gone before the next call came.
/// The pause is the rhythm, and nothing waits for it; on a busy machine it takes some beats more.
#[tokio::test]
async fn a_rhythm_is_met_with_a_container() {
    let total = Resources { memory: 64 << 20, cpu_millis: 1000, slots: 1 };
    let (_, pools) = pools_of(puppets(0), total, Duration::from_secs(60));
    let mut spec = (*specs()[0]).clone();
    (spec.concurrency, spec.idle_timeout_ms) = (1, 800);
    let spec = Arc::new(spec);
    let asker = Asker { balancer: 1, ..Asker::default() };
    for beat in 0.. {
        assert!(beat < 30, "no call of the rhythm was expected");
        let mut lease =
            match pools.acquire(spec.digest(), &spec, CallId::new(), asker, Duration::from_secs(60)) {
                Acquired::Now(lease) => {
                    assert!(lease.fresh && !lease.cold, "the container of the last beat was kept");
                    lease.finish(true, None);
                    break;
                }
                Acquired::Wait { ticket, .. } => ticket.wait().await.unwrap_or_else(|_| panic!("it starts")),
                Acquired::Refused(Refused { detail, .. }) => panic!("{detail}"),
            };
        lease.touch();
        lease.finish(true, None);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    pools.stop_all().await;
}

async fn run(pools: Arc<Pools>, state: Arc<Mutex<HashMap<String, Arc<Puppet>>>>, caller: Caller) {
    let spec = specs()[caller.function].clone();
    yields(caller.comes).await;
    let (balancer, waited) = (u64::from(caller.comes % 3), caller.comes.is_multiple_of(2));
    let asker = Asker { balancer, waited, ..Asker::default() };
    let hour = Duration::from_secs(3600);
    let mut lease = match pools.acquire(spec.digest(), &spec, CallId::new(), asker, hour) {
        Acquired::Now(lease) => lease,
        Acquired::Refused(Refused { reason, .. }) => {
            assert_eq!(reason, Refusal::Full);
            return;
        }
        Acquired::Wait { ticket, .. } => {
            let given = match caller.leaves {
                Some(n) => tokio::select! {
                    biased;
                    () = yields(n) => return,
                    given = ticket.wait() => given,
                },
                None => tokio::time::timeout(FORGOTTEN, ticket.wait()).await.expect("it waits for ever"),
            };
            match given {
                Ok(lease) => lease,
                Err(_) => return,
            }
        }
    };
    let puppet = state.lock().unwrap().get(lease.container.id.as_str()).cloned().expect("it is there");
    if lease.container.thaw().await.is_err() {
        return;
    }
    let before = puppet.users.fetch_add(1, Ordering::SeqCst);
    assert!(before < spec.concurrency, "{before} others are in it");
    if !matches!(caller.end, End::Untouched) {
        lease.touch();
    }
    for _ in 0..caller.takes {
        assert!(!puppet.frozen.load(Ordering::SeqCst), "it stands still under a call");
        tokio::task::yield_now().await;
    }
    if matches!(caller.end, End::Dies) {
        puppet.end();
    }
    puppet.users.fetch_sub(1, Ordering::SeqCst);
    match caller.end {
        End::Kept => _ = lease.finish(spec.is_hot(), None),
        End::Destroyed | End::Dies => _ = lease.finish(false, None),
        End::Untouched | End::Lost => drop(lease),
    }
}

proptest! {
    // Threads make each run another: a smaller case need not fail again.
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn everyone_is_served_and_everything_comes_back(
        callers in prop::collection::vec(any_caller(), 1..120), fails in prop_oneof![Just(0u32), 3u32..9], slots in 1u32..9,
        freeze_us in prop_oneof![Just(0u64), Just(500u64)], cordons in prop::collection::vec(0u8..40, 0..6),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let driver = puppets(fails);
            let (state, alive) = (driver.state.clone(), driver.alive.clone());
            let total = Resources { memory: 320 << 20, cpu_millis: 1000, slots };
            let (ledger, pools) = pools_of(driver, total, Duration::from_micros(freeze_us));
            // Two balancers want some of them to be kept, one of them not for long.
            let kept = specs()[3].clone();
            for (balancer, containers, holds) in [(1, 2, 3_600_000), (2, 3, 1)] {
                let targets = vec![(kept.digest(), kept.clone(), containers)];
                pools.keep(balancer, targets, Duration::from_millis(holds));
            }
            let tasks: Vec<_> =
                callers.into_iter().map(|caller| tokio::spawn(run(pools.clone(), state.clone(), caller))).collect();
            // An operator who cannot decide; calls that are inside do not mind.
            for (n, pause) in cordons.into_iter().enumerate() {
                yields(pause).await;
                if n.is_multiple_of(2) { pools.cordon() } else { pools.uncordon() }
            }
            for task in tasks {
                task.await.unwrap();
            }
            let survey = pools.survey();
            assert_eq!((survey.in_flight, survey.waiting), (0, 0));
            tokio::time::timeout(FORGOTTEN, pools.stop_all()).await.expect("it stops");
            assert_eq!(ledger.free(), total);
            assert_eq!(alive.load(Ordering::SeqCst), 0, "sandboxes that nobody ended");
            let inner = pools.inner();
            assert!(inner.launching == 0 && inner.waiting == 0);
            assert!(inner.versions.values().all(|v| {
                v.members.is_empty() && v.ready.is_empty() && v.waiters.is_empty() && v.launching == 0 && v.busy == 0
            }));
        });
    }
}
