//! What every driver must do, as one suite that runs against any of them.
//!
//! A case asks the driver's own [`Description`] what it claims, and holds it to that: what is not claimed is left out and
//! said so. The function inside is the guest of the `stoker-spawner` program. Cases wait for states, with a limit, and
//! never for time to pass.

mod again;
mod apart;
pub mod calls;
mod ends;
pub mod escapes;
mod files;
mod limits;
mod network;
mod starting;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use self::again::*;
use self::apart::*;
use self::ends::*;
use self::files::*;
use self::limits::*;
use self::network::*;
use self::starting::*;
use crate::{Description, Driver, Error, Exit, ExitCause, Network, Root, Sandbox, Spec, Stdio, User, sys};

/// Longer than anything here takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What the suite runs against.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub driver: &'a dyn Driver,
    /// The `stoker-spawner` program, at a path without links.
    pub guest: &'a Path,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: Vec<&'static str>,
    /// Not claimed by the driver here, and why it was not tried.
    pub left_out: Vec<(&'static str, String)>,
    pub failed: Vec<(&'static str, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.passed {
            writeln!(formatter, "  passed    {name}")?;
        }
        for (name, why) in &self.left_out {
            writeln!(formatter, "  left out  {name}: {why}")?;
        }
        for (name, why) in &self.failed {
            writeln!(formatter, "  FAILED    {name}: {why}")?;
        }
        Ok(())
    }
}

/// How a case ends that does not pass.
enum Stop {
    LeftOut(String),
    Failed(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

type Outcome = Result<(), Stop>;
type Case<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

fn fail<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(text.into()))
}

fn left_out<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::LeftOut(text.into()))
}

fn expect(condition: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { fail(otherwise()) }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        const CASES: &[(&str, for<'a> fn(Subject<'a>) -> Case<'a>)] =
            &[$((stringify!($name), |subject| Box::pin($name(subject)))),*];
    };
}

cases![
    exit_code_arrives,
    a_signal_arrives,
    the_three_pipes_are_connected,
    stdout_can_be_opened_by_its_path,
    late_environment_is_added_and_wins,
    the_environment_is_only_what_was_given,
    the_work_directory_is_current_and_readable,
    a_work_directory_behind_a_closed_one_is_shown,
    a_missing_work_directory_is_the_functions_fault,
    a_missing_command_is_the_functions_fault,
    a_command_without_permission_is_the_functions_fault,
    a_missing_interpreter_is_named,
    a_command_beside_the_work_directory_is_found,
    starting_twice_is_refused,
    no_descriptor_leaks,
    limits_of_the_process_are_set,
    the_host_is_read_only_and_homes_are_hidden,
    a_directory_is_the_root,
    a_root_that_has_no_place_for_what_is_mounted_is_the_functions_fault,
    a_directory_stands_in_the_place_of_opt,
    a_writable_root_keeps_writes_private,
    a_writable_root_is_sized,
    a_writable_image_gets_its_work_directory,
    a_directory_of_a_writable_image_is_made_anew,
    the_user_of_an_image_is_honoured,
    root_inside_has_no_power,
    names_are_those_of_the_sandbox,
    devices_are_the_few_that_programs_expect,
    terminals_can_be_opened,
    kernel_interfaces_are_closed,
    tmp_is_private_and_sized,
    the_shared_directory_connects_both_ways,
    a_shared_directory_outside_tmp_works,
    a_listener_is_reachable_inside,
    the_network_is_closed,
    the_hosts_network_is_there_when_asked_for,
    a_way_out_does_not_lead_to_the_host,
    memory_beyond_the_limit_ends_the_function,
    a_child_killed_for_memory_is_told,
    too_little_memory_to_begin_with_is_the_functions_fault,
    a_fork_bomb_is_contained,
    cpu_is_limited,
    usage_grows,
    frozen_stands_still_and_thaws,
    a_frozen_one_gives_memory_back,
    a_frozen_one_can_be_killed,
    sigterm_is_honoured,
    sigterm_ignored_is_killed,
    a_daemon_dies_with_its_function,
    dropping_kills,
    an_order_that_meets_the_end_is_told_so,
    no_capabilities_and_no_new_privileges,
    others_are_not_seen,
    the_function_is_not_root,
    one_that_ends_with_its_command_is_not_started_again,
    started_again_it_keeps_all_but_its_processes,
    it_stays_when_its_command_ends,
    a_frozen_one_is_started_again,
    a_listener_outlives_a_start,
    killed_for_memory_it_is_started_again,
    companions_run_beside_the_command,
    the_stop_signal_is_the_one_asked_for,
    who_ends_the_stem_is_told,
    one_killed_while_it_is_parked_has_ended,
    more_processes_than_the_limit_are_the_functions_fault,
    many_at_once,
];

/// How long a case may take. An emulated machine is given several times as much: `STOKER_TEST_PATIENCE` says how many.
fn patience() -> Duration {
    let times = std::env::var("STOKER_TEST_PATIENCE").ok().and_then(|times| times.parse().ok());
    LIMIT * times.unwrap_or(1)
}

/// Runs every case.
pub async fn run(subject: Subject<'_>) -> Report {
    run_all(CASES.iter().map(|(name, case)| (*name, case(subject)))).await
}

async fn run_all<'a>(cases: impl Iterator<Item = (&'static str, Case<'a>)>) -> Report {
    let mut report = Report::default();
    let limit = patience();
    for (name, case) in cases {
        // A run that is cut off says where, and what it had missed by then.
        eprintln!("  {name} …");
        let why = match tokio::time::timeout(limit, case).await {
            Ok(Ok(())) => {
                report.passed.push(name);
                continue;
            }
            Ok(Err(Stop::LeftOut(why))) => {
                report.left_out.push((name, why));
                continue;
            }
            Ok(Err(Stop::Failed(why))) => why,
            Err(_) => format!("not done after {limit:?}"),
        };
        eprintln!("  {name} failed: {why}");
        report.failed.push((name, why));
    }
    report
}

/// A started guest.
struct Guest {
    sandbox: Box<dyn Sandbox>,
    stdin: Option<OwnedFd>,
    stdout: Pipe,
    stderr: Pipe,
}

/// The reading end of a pipe.
struct Pipe {
    descriptor: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Pipe {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: sys::watch(descriptor, Interest::READABLE)?, buffer: Vec::new() })
    }

    async fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let length = self
            .descriptor
            .async_io(Interest::READABLE, |pipe| Ok(rustix::io::read(pipe, &mut buffer[..])?))
            .await?;
        self.buffer.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// The next line, without its end; what is left at the end of the stream.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if !self.fill().await? {
                return Ok(String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned());
            }
        }
    }

    async fn rest(&mut self) -> io::Result<String> {
        while self.fill().await? {}
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).trim_end().to_owned())
    }
}

impl<'a> Subject<'a> {
    fn claims(&self) -> &'a Description {
        self.driver.describe()
    }

    fn spec(&self, id: &str, words: &[&str]) -> Spec {
        let mut command = vec![self.guest.to_string_lossy().into_owned(), "guest".to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        Spec {
            id: id.to_owned(),
            root: Root::Host,
            writable_root: false,
            command,
            env: vec![("GIVEN".to_owned(), "early".to_owned())],
            user: None,
            groups: Vec::new(),
            workdir: PathBuf::from("/"),
            memory: 256 * MIB,
            cpu_millis: 0,
            pids: 64,
            tmp_size: 16 * MIB,
            open_files: 256,
            network: Network::None,
            shared: None,
            opt: None,
            stop_signal: crate::SIGTERM,
            stays: false,
        }
    }

    async fn launch(&self, spec: Spec) -> Result<Guest, Stop> {
        let sandbox = self.driver.create(spec).await?;
        start(sandbox, Vec::new()).await
    }

    /// Runs to the end: exit, standard output, standard error.
    async fn complete(&self, spec: Spec) -> Result<(Exit, String, String), Stop> {
        let mut guest = self.launch(spec).await?;
        drop(guest.stdin.take());
        let (out, err) = tokio::join!(guest.stdout.rest(), guest.stderr.rest());
        Ok((guest.sandbox.wait().await, out?, err?))
    }

    /// Standard output of a guest that must succeed.
    async fn output(&self, id: &str, words: &[&str]) -> Result<String, Stop> {
        self.output_of(self.spec(id, words)).await
    }

    async fn output_of(&self, spec: Spec) -> Result<String, Stop> {
        let (exit, out, err) = self.complete(spec).await?;
        expect(exit.cause == ExitCause::Code(0), || format!("{exit:?}, standard error: {err}"))?;
        Ok(out)
    }

    /// What writing to something that is read-only must answer.
    fn read_only(&self, answer: &str) -> Outcome {
        // Another kernel asks first whose it is.
        let own = self.claims().own_kernel && answer == libc::EACCES.to_string();
        expect(own || answer == libc::EROFS.to_string(), || format!("writing answers {answer}"))
    }

    fn isolated(&self) -> Outcome {
        if self.claims().isolates { Ok(()) } else { left_out("the driver claims no isolation") }
    }
}

async fn start(sandbox: Box<dyn Sandbox>, env: Vec<(String, String)>) -> Result<Guest, Stop> {
    let Stdio { stdin, stdout, stderr } = sandbox.start(env).await?;
    Ok(Guest { sandbox, stdin: Some(stdin), stdout: Pipe::new(stdout)?, stderr: Pipe::new(stderr)? })
}

impl Guest {
    /// Waits until it says so.
    async fn ready(&mut self) -> Outcome {
        let line = self.stdout.line().await?;
        if line == "ready" {
            return Ok(());
        }
        let error = self.stderr.line().await?;
        fail(format!("the guest said {line:?} and {error:?} instead of ready"))
    }
}

/// A directory of the host that goes with the case.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        // Two suites may run beside each other.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("stoker-conformance-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, content: &str, mode: u32) -> io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

async fn refused(subject: Subject<'_>, spec: Spec, words: &[&str]) -> Outcome {
    let error = match subject.driver.create(spec).await {
        Err(error) => error,
        Ok(sandbox) => match sandbox.start(Vec::new()).await {
            Err(error) => error,
            Ok(_) => return fail("it started"),
        },
    };
    let Error::Function(text) = error else { return fail(format!("not the function's fault: {error}")) };
    expect(words.iter().all(|word| text.contains(word)), || format!("{text:?} does not name {words:?}"))
}

/// A root with only the guest and what it is linked to.
fn small_root(scratch: &Scratch, subject: Subject<'_>, mount_points: bool) -> Result<Root, Stop> {
    let root = scratch.0.join("root");
    std::fs::create_dir_all(root.join("bin"))?;
    std::fs::copy(subject.guest, root.join("bin/guest"))?;
    let listing = std::process::Command::new("ldd").arg(subject.guest).output();
    let Ok(listing) = listing else { return left_out("there is no ldd to find the guest's libraries") };
    for word in
        String::from_utf8_lossy(&listing.stdout).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap_or(&root))?;
        std::fs::copy(word, target)?;
    }
    if mount_points {
        for name in ["proc", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(name))?;
        }
    }
    std::fs::write(root.join("marker"), "of the image")?;
    Ok(Root::Directory(root))
}

/// Waits for a state, with the limit of the case.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Outcome {
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..5000 {
        if holds().await {
            return Ok(());
        }
        tick.tick().await;
    }
    fail(format!("never: {what}"))
}
