//! What every driver must do, as one suite that runs against any of them.
//!
//! A case asks the driver's own [`Description`] what it claims, and holds it to that: what is not claimed is left out and
//! said so. The function inside is the guest of the `stoker-spawner` program. Cases wait for states, with a limit, and
//! never for time to pass.

pub mod calls;
pub mod escapes;

use std::fmt;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
    starting_twice_is_refused,
    no_descriptor_leaks,
    limits_of_the_process_are_set,
    the_host_is_read_only_and_homes_are_hidden,
    a_directory_is_the_root,
    a_writable_root_keeps_writes_private,
    a_writable_root_is_sized,
    a_writable_image_gets_its_work_directory,
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
    memory_beyond_the_limit_ends_the_function,
    a_child_killed_for_memory_is_told,
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
    no_capabilities_and_no_new_privileges,
    others_are_not_seen,
    the_function_is_not_root,
    many_at_once,
];

/// Runs every case.
pub async fn run(subject: Subject<'_>) -> Report {
    run_all(CASES.iter().map(|(name, case)| (*name, case(subject)))).await
}

async fn run_all<'a>(cases: impl Iterator<Item = (&'static str, Case<'a>)>) -> Report {
    let mut report = Report::default();
    for (name, case) in cases {
        match tokio::time::timeout(LIMIT, case).await {
            Ok(Ok(())) => report.passed.push(name),
            Ok(Err(Stop::LeftOut(why))) => report.left_out.push((name, why)),
            Ok(Err(Stop::Failed(why))) => report.failed.push((name, why)),
            Err(_) => report.failed.push((name, format!("not done after {LIMIT:?}"))),
        }
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
            workdir: PathBuf::from("/"),
            memory: 256 * MIB,
            cpu_millis: 0,
            pids: 64,
            tmp_size: 16 * MIB,
            open_files: 256,
            network: Network::None,
            shared: None,
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

async fn exit_code_arrives(subject: Subject<'_>) -> Outcome {
    let (exit, ..) = subject.complete(subject.spec("exit", &["exit", "7"])).await?;
    expect(exit == Exit { cause: ExitCause::Code(7), out_of_memory: false }, || format!("{exit:?}"))
}

async fn a_signal_arrives(subject: Subject<'_>) -> Outcome {
    let (exit, ..) = subject.complete(subject.spec("signal", &["signal", "10"])).await?;
    expect(exit.cause == ExitCause::Signal(10), || format!("{exit:?}"))
}

async fn the_three_pipes_are_connected(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("pipes", &["echo"])).await?;
    let stdin = guest.stdin.take().ok_or(Stop::Failed("no stdin".to_owned()))?;
    let mut stdin = std::fs::File::from(stdin);
    stdin.write_all(b"one\ntwo\n")?;
    let (first, second) = (guest.stdout.line().await?, guest.stdout.line().await?);
    drop(stdin);
    let (out, err) = (guest.stdout.rest().await?, guest.stderr.rest().await?);
    expect((first.as_str(), second.as_str(), out.as_str()) == ("one", "two", ""), || {
        format!("stdout {first:?} {second:?} {out:?}")
    })?;
    expect(err == "said to stderr", || format!("stderr {err:?}"))
}

async fn stdout_can_be_opened_by_its_path(subject: Subject<'_>) -> Outcome {
    let out = subject.output("reopen", &["append-stdout"]).await?;
    expect(out == "ok", || format!("errno {out}"))
}

async fn late_environment_is_added_and_wins(subject: Subject<'_>) -> Outcome {
    let mut spec = subject.spec("late", &["env"]);
    spec.env.push(("OVER".to_owned(), "spec".to_owned()));
    let sandbox = subject.driver.create(spec).await?;
    let long = "x".repeat(100_000);
    let late = vec![("OVER".to_owned(), "late".to_owned()), ("LONG".to_owned(), long.clone())];
    let mut guest = start(sandbox, late).await?;
    let out = guest.stdout.rest().await?;
    let lines: Vec<_> = out.lines().collect();
    expect(lines == ["GIVEN=early", &format!("LONG={long}"), "OVER=late"], || {
        format!(
            "{:?}",
            lines.iter().map(|line| line.chars().take(40).collect::<String>()).collect::<Vec<_>>()
        )
    })
}

async fn the_environment_is_only_what_was_given(subject: Subject<'_>) -> Outcome {
    let out = subject.output("env", &["env"]).await?;
    expect(out == "GIVEN=early", || format!("{out:?}"))
}

async fn the_work_directory_is_current_and_readable(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("workdir")?;
    scratch.file("data", "content", 0o644)?;
    for words in [["read", "data"], ["read", "./data"]] {
        let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &words) };
        let out = subject.output_of(spec).await?;
        expect(out == "content", || format!("{out:?}"))?;
    }
    let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &["cwd"]) };
    let out = subject.output_of(spec).await?;
    expect(Path::new(&out) == scratch.0, || out)?;
    if subject.claims().isolates {
        let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("workdir", &["write", "new"]) };
        let out = subject.output_of(spec).await?;
        expect(out == libc::EROFS.to_string(), || format!("writing answers {out}"))?;
    }
    Ok(())
}

async fn a_work_directory_behind_a_closed_one_is_shown(subject: Subject<'_>) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    subject.isolated()?;
    let scratch = Scratch::new("closed")?;
    let workdir = scratch.0.join("closed/fn");
    std::fs::create_dir_all(&workdir)?;
    std::fs::write(workdir.join("data"), "content")?;
    std::fs::set_permissions(scratch.0.join("closed"), std::fs::Permissions::from_mode(0o700))?;
    let out = subject.output_of(Spec { workdir, ..subject.spec("closed", &["read", "data"]) }).await?;
    expect(out == "content", || format!("{out:?}"))
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

async fn a_missing_work_directory_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let workdir = PathBuf::from("/nowhere/at/all");
    let spec = Spec { workdir, ..subject.spec("no-workdir", &["exit", "0"]) };
    refused(subject, spec, &["/nowhere/at/all", "does not exist"]).await
}

async fn a_missing_command_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let mut spec = subject.spec("no-command", &[]);
    spec.command = vec!["no-such-command".to_owned()];
    spec.env.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
    refused(subject, spec.clone(), &["no-such-command", "not found", "/usr/bin:/bin"]).await?;
    spec.command = vec!["/usr/bin/no-such-command".to_owned()];
    refused(subject, spec, &["/usr/bin/no-such-command", "does not exist"]).await
}

async fn a_command_without_permission_is_the_functions_fault(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("permission")?;
    let program = scratch.file("program", "#!/bin/sh\n", 0o644)?;
    let mut spec = Spec { workdir: scratch.0.clone(), ..subject.spec("permission", &[]) };
    spec.command = vec![program.to_string_lossy().into_owned()];
    refused(subject, spec, &["program", "permission denied"]).await
}

async fn a_missing_interpreter_is_named(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("interpreter")?;
    let program = scratch.file("script", "#!/no/such/interpreter -x\n", 0o755)?;
    let mut spec = Spec { workdir: scratch.0.clone(), ..subject.spec("interpreter", &[]) };
    spec.command = vec![program.to_string_lossy().into_owned()];
    refused(subject, spec, &["script", "/no/such/interpreter"]).await
}

async fn starting_twice_is_refused(subject: Subject<'_>) -> Outcome {
    let sandbox = subject.driver.create(subject.spec("twice", &["wait"])).await?;
    let _stdio = sandbox.start(Vec::new()).await?;
    expect(sandbox.start(Vec::new()).await.is_err(), || "it started twice".to_owned())
}

async fn no_descriptor_leaks(subject: Subject<'_>) -> Outcome {
    let spec =
        Spec { shared: Some(PathBuf::from("/tmp/shared")), ..subject.spec("descriptors", &["descriptors"]) };
    let out = subject.output_of(spec).await?;
    expect(out == "0 1 2", || format!("open: {out}"))
}

async fn limits_of_the_process_are_set(subject: Subject<'_>) -> Outcome {
    let out = subject.output("limits", &["limits"]).await?;
    let limit = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line[name.len().min(line.len())..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    expect(limit("Max open files") == ["256", "256"], || out.clone())?;
    expect(limit("Max core file size") == ["0", "0"], || out.clone())
}

async fn the_host_is_read_only_and_homes_are_hidden(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for path in ["/usr/x", "/etc/x", "/x", "/proc/sys/kernel/domainname", "/dev/x", "/usr/bin/env", "/run/x"]
    {
        let out = subject.output("read-only", &["write", path]).await?;
        let refused = [libc::EROFS, libc::EACCES].map(|errno| errno.to_string()).contains(&out);
        expect(refused, || format!("writing {path} answers {out}"))?;
    }
    for path in ["/root", "/home", "/run", "/mnt", "/boot", "/var/lib", "/srv"] {
        let out = subject.output("hidden", &["list", path]).await?;
        expect(out.is_empty() || out == libc::ENOENT.to_string(), || format!("{path} shows {out}"))?;
    }
    let out = subject.output("kcore", &["read", "/proc/kcore"]).await?;
    expect(out.is_empty() || out.parse::<i32>().is_ok(), || "/proc/kcore can be read".to_owned())?;
    let out = subject.output("shadow", &["read", "/etc/shadow"]).await?;
    expect(out.parse::<i32>().is_ok(), || "/etc/shadow can be read".to_owned())?;
    let out = subject.output("null", &["write", "/dev/null"]).await?;
    expect(out == "ok", || format!("/dev/null: {out}"))
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

async fn a_directory_is_the_root(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for mount_points in [true, false] {
        let scratch = Scratch::new(&format!("root-{mount_points}"))?;
        let root = small_root(&scratch, subject, mount_points)?;
        let spec = |words: &[&str]| {
            let mut spec = Spec { root: root.clone(), ..subject.spec("root", words) };
            spec.command[0] = "/bin/guest".to_owned();
            spec
        };
        let out = subject.output_of(spec(&["read", "/marker"])).await?;
        expect(out == "of the image", || out)?;
        let out = subject.output_of(spec(&["write", "/new"])).await?;
        expect(out == libc::EROFS.to_string(), || format!("writing answers {out}"))?;
        let out = subject.output_of(spec(&["write", "/tmp/new"])).await?;
        expect(out == "ok", || format!("writing to /tmp answers {out}"))?;
        let out = subject.output_of(spec(&["list", "/usr/bin"])).await?;
        expect(out == libc::ENOENT.to_string(), || format!("the host's /usr/bin is there: {out}"))?;
        let workdir = PathBuf::from("/not/in/the/image");
        refused(subject, Spec { workdir, ..spec(&["exit", "0"]) }, &["/not/in/the/image", "image"]).await?;
    }
    Ok(())
}

async fn a_writable_root_keeps_writes_private(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("writable")?;
    let root = small_root(&scratch, subject, true)?;
    let mut spec = Spec { root, writable_root: true, ..subject.spec("writable", &["write", "/new"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec.clone()).await?;
    expect(out == "ok", || format!("writing answers {out}"))?;
    expect(!scratch.0.join("root/new").exists(), || "the image was written to".to_owned())?;
    spec.command[2..].clone_from_slice(&["read".to_owned(), "/new".to_owned()]);
    let out = subject.output_of(spec).await?;
    expect(out == libc::ENOENT.to_string(), || format!("the next one sees it: {out}"))?;
    // The host's directories as well. The guest is not among them, and the programs of the host are.
    let mut spec = Spec { writable_root: true, ..subject.spec("writable-host", &[]) };
    spec.command =
        ["/bin/sh", "-c", "echo mine >/opt/stoker-new && cat /opt/stoker-new"].map(str::to_owned).to_vec();
    if Path::new("/opt").is_dir() {
        let out = subject.output_of(spec).await?;
        expect(out == "mine", || format!("writing to /opt says {out}"))?;
        expect(!Path::new("/opt/stoker-new").exists(), || "the host was written to".to_owned())?;
    }
    Ok(())
}

async fn a_writable_root_is_sized(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().sizes_roots {
        return left_out("the driver claims no bound for what is written to a root");
    }
    let scratch = Scratch::new("writable-sized")?;
    let root = small_root(&scratch, subject, true)?;
    let mut spec = Spec {
        root,
        writable_root: true,
        tmp_size: 4 * MIB,
        user: Some(User { uid: 0, gid: 0 }).filter(|_| subject.claims().chooses_user),
        ..subject.spec("writable-fill", &["fill", "/full"])
    };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec).await?;
    let (written, errno) = out.split_once(' ').unwrap_or_default();
    expect(errno == libc::ENOSPC.to_string(), || out.clone())?;
    let written: u64 = written.parse().unwrap_or(u64::MAX);
    expect(written <= 4 * MIB, || format!("{written} bytes of {}", 4 * MIB))?;
    expect(!scratch.0.join("root/full").exists(), || "the image was written to".to_owned())
}

async fn a_writable_image_gets_its_work_directory(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("writable-workdir")?;
    let root = small_root(&scratch, subject, true)?;
    let workdir = PathBuf::from("/not/in/the/image");
    let mut spec = Spec { root, writable_root: true, workdir, ..subject.spec("workdir", &["cwd"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = subject.output_of(spec).await?;
    expect(out == "/not/in/the/image", || out)
}

/// Files of an image belong to several users, and the function is the one that the image names.
async fn the_user_of_an_image_is_honoured(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().chooses_user {
        return left_out("the driver does not claim to choose a user");
    }
    let scratch = Scratch::new("owners")?;
    let root = small_root(&scratch, subject, true)?;
    let own = |name: &str, owner: u32| {
        let path = scratch.0.join("root").join(name);
        std::fs::write(&path, name)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        match std::os::unix::fs::chown(&path, Some(owner), Some(owner)) {
            // Who is not root has only files of his own.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            done => done.map(|()| true),
        }
    };
    let owned = own("mine", 33)? && own("theirs", 34)? && own("roots", 0)?;
    let run = async |words: &[&str]| {
        let user = Some(User { uid: 33, gid: 44 });
        let mut spec = Spec { root: root.clone(), user, ..subject.spec("user", words) };
        spec.command[0] = "/bin/guest".to_owned();
        subject.output_of(spec).await
    };
    let out = run(&["ids"]).await?;
    expect(out.starts_with("33 44 "), || format!("user and group {out}"))?;
    let out = run(&["read", "/mine"]).await?;
    expect(out == "mine", || format!("its own file reads {out}"))?;
    if !owned {
        return Ok(());
    }
    for name in ["/theirs", "/roots"] {
        let out = run(&["read", name]).await?;
        expect(out == libc::EACCES.to_string(), || format!("{name} reads {out}"))?;
    }
    for (name, owner) in [("/mine", "33 33"), ("/theirs", "34 34"), ("/roots", "0 0")] {
        let out = run(&["owner", name]).await?;
        expect(out == owner, || format!("{name} belongs to {out}"))?;
    }
    Ok(())
}

async fn root_inside_has_no_power(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !subject.claims().chooses_user {
        return left_out("the driver does not claim to choose a user");
    }
    let spec = |words: &[&str]| Spec { user: Some(User { uid: 0, gid: 0 }), ..subject.spec("root", words) };
    let out = subject.output_of(spec(&["ids"])).await?;
    expect(out.starts_with("0 0 "), || format!("user and group {out}"))?;
    let out = subject.output_of(spec(&["status"])).await?;
    expect(out.contains("CapEff:\t0000000000000000"), || out)?;
    for path in ["/etc/new", "/proc/sys/kernel/hostname", "/sys/kernel/new"] {
        let out = subject.output_of(spec(&["write", path])).await?;
        expect(out.parse::<i32>().is_ok(), || format!("writing {path} answers {out}"))?;
    }
    let out = subject.output_of(spec(&["read", "/etc/shadow"])).await?;
    expect(out.parse::<i32>().is_ok(), || "/etc/shadow can be read".to_owned())
}

async fn names_are_those_of_the_sandbox(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("names")?;
    let root = small_root(&scratch, subject, true)?;
    std::fs::create_dir_all(scratch.0.join("root/etc"))?;
    for name in ["hosts", "hostname", "resolv.conf"] {
        std::fs::write(scratch.0.join("root/etc").join(name), "of the image")?;
    }
    for root in [root, Root::Host] {
        let read = async |path: &str| {
            let mut spec = Spec { root: root.clone(), ..subject.spec("names-of-it", &["read", path]) };
            if let Root::Directory(_) = root {
                spec.command[0] = "/bin/guest".to_owned();
            }
            subject.output_of(spec).await
        };
        let out = read("/proc/sys/kernel/hostname").await?;
        expect(out.trim() == "names-of-it", || format!("the host's name is {out:?}"))?;
        let out = read("/etc/hostname").await?;
        expect(out.trim() == "names-of-it", || format!("/etc/hostname says {out:?}"))?;
        let out = read("/etc/hosts").await?;
        let local = |line: &str| line.starts_with("127.0.0.1") && line.contains("localhost");
        expect(out.lines().any(local) && out.contains("names-of-it"), || format!("/etc/hosts says {out:?}"))?;
        let out = read("/etc/resolv.conf").await?;
        expect(!out.contains("of the image") && !out.contains("nameserver"), || {
            format!("/etc/resolv.conf says {out:?}")
        })?;
    }
    Ok(())
}

async fn devices_are_the_few_that_programs_expect(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("dev", &["list", "/dev"]).await?;
    let known = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    let strange: Vec<_> = out.lines().filter(|name| !known.contains(name)).collect();
    expect(strange.is_empty(), || format!("/dev has {strange:?}"))?;
    for name in ["fd", "full", "null", "ptmx", "pts", "random", "shm", "urandom", "zero"] {
        expect(out.lines().any(|line| line == name), || format!("/dev has no {name}: {out}"))?;
    }
    let out = subject.output("zero", &["write", "/dev/full"]).await?;
    expect(out == libc::ENOSPC.to_string(), || format!("/dev/full answers {out}"))?;
    let out = subject.output("shm", &["write", "/dev/shm/x"]).await?;
    expect(out == "ok", || format!("/dev/shm answers {out}"))
}

async fn terminals_can_be_opened(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("terminal", &["terminal"]).await?;
    expect(out == "ok /dev/pts/0", || out)
}

/// What the OCI's default hides or protects of `/proc` and `/sys`.
async fn kernel_interfaces_are_closed(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    for path in ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"]
    {
        let out = subject.output("masked", &["list", path]).await?;
        expect(out.is_empty() || out == libc::ENOENT.to_string(), || format!("{path} shows {out}"))?;
    }
    for path in [
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/timer_list",
    ] {
        let out = subject.output("masked", &["read-some", path]).await?;
        expect(out.is_empty() || out.parse::<i32>().is_ok(), || format!("{path} can be read"))?;
    }
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
    ] {
        let out = subject.output("protected", &["write", path]).await?;
        expect(out.parse::<i32>().is_ok(), || format!("writing {path} answers {out}"))?;
    }
    Ok(())
}

async fn tmp_is_private_and_sized(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("tmp")?;
    let out = subject.output("tmp-list", &["list", "/tmp"]).await?;
    let name = scratch.0.file_name().unwrap_or_default().to_string_lossy();
    expect(!out.contains(&*name), || format!("the host's /tmp is there: {out}"))?;
    let spec = Spec { tmp_size: 4 * MIB, ..subject.spec("tmp-fill", &["fill", "/tmp/full"]) };
    let out = subject.output_of(spec).await?;
    let (written, errno) = out.split_once(' ').unwrap_or_default();
    expect(errno == libc::ENOSPC.to_string(), || out.clone())?;
    let written: u64 = written.parse().unwrap_or(0);
    expect((3 * MIB..=4 * MIB).contains(&written), || format!("{written} bytes of {}", 4 * MIB))?;
    expect(!scratch.0.with_file_name("full").exists(), || "it was written to the host".to_owned())
}

async fn ask(directory: &OwnedFd, name: &str) -> Result<String, Stop> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let talk = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.write_all(b"hello\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, io::Error>(line.trim().to_owned())
    });
    Ok(talk.await.map_err(io::Error::other)??)
}

async fn the_shared_directory_connects_both_ways(subject: Subject<'_>) -> Outcome {
    shared_at(subject, "/tmp/iofs").await
}

async fn a_shared_directory_outside_tmp_works(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    shared_at(subject, "/iofs").await
}

async fn shared_at(subject: Subject<'_>, at: &str) -> Outcome {
    // Where it lies is known only after the creation: the late environment tells, and the guest looks there.
    let spec = Spec { shared: Some(PathBuf::from(at)), ..subject.spec("shared", &["serve", "$AT/socket"]) };
    let sandbox = subject.driver.create(spec.clone()).await?;
    let inside = sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?.inside.clone();
    let late = vec![("AT".to_owned(), inside.to_string_lossy().into_owned())];
    let mut guest = start(sandbox, late).await?;
    guest.ready().await?;
    let shared = guest.sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let answer = ask(&shared.directory, "socket").await?;
    expect(answer == "guest heard hello", || answer)?;
    drop(guest);

    // The other way: the runner listens, the function connects.
    let spec = Spec { shared: Some(PathBuf::from(at)), ..subject.spec("call", &["call", "$AT/socket"]) };
    let sandbox = subject.driver.create(spec).await?;
    let shared = sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let path = format!("/proc/self/fd/{}/socket", shared.directory.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let answering = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"from the runner\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<_, io::Error>(line)
    });
    let inside = shared.inside.to_string_lossy().into_owned();
    let mut guest = start(sandbox, vec![("AT".to_owned(), inside)]).await?;
    let (out, err) = (guest.stdout.rest().await?, guest.stderr.rest().await?);
    expect(out == "from the runner", || format!("{out:?} {err:?}"))?;
    let heard = answering.await.map_err(io::Error::other)??;
    expect(heard == "hello\n", || heard)
}

async fn a_listener_is_reachable_inside(subject: Subject<'_>) -> Outcome {
    let port = if subject.claims().isolates_network { 9001 } else { 0 };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let spec = subject.spec("listener", &["connect", "$ADDRESS"]);
    let first = subject.driver.create(Spec { id: "listener-1".to_owned(), ..spec.clone() }).await?;
    let second = subject.driver.create(Spec { id: "listener-2".to_owned(), ..spec }).await?;
    // Both at once: with networks of their own, neither port clashes.
    let listeners = [first.listen(address).await?, second.listen(address).await?];
    for (number, (sandbox, listener)) in [first, second].into_iter().zip(listeners).enumerate() {
        let late = vec![("ADDRESS".to_owned(), listener.local_addr()?.to_string())];
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut guest = start(sandbox, late).await?;
        let (stream, _) = listener.accept().await?;
        let mut stream = stream.into_std()?;
        stream.write_all(format!("number {number}").as_bytes())?;
        drop(stream);
        let out = guest.stdout.rest().await?;
        expect(out == format!("ok number {number}"), || out)?;
    }
    Ok(())
}

async fn the_network_is_closed(subject: Subject<'_>) -> Outcome {
    if !subject.claims().isolates_network {
        return left_out("the driver claims no network isolation");
    }
    let out = subject.output("interfaces", &["interfaces"]).await?;
    expect(out == "lo", || format!("interfaces: {out}"))?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let out = subject.output("connect", &["connect", &address]).await?;
    expect(out == libc::ECONNREFUSED.to_string(), || format!("the host's loopback answers {out}"))?;
    let out = subject.output("connect", &["connect", "192.0.2.1:80"]).await?;
    expect(out == libc::ENETUNREACH.to_string(), || format!("the world answers {out}"))
}

async fn the_hosts_network_is_there_when_asked_for(subject: Subject<'_>) -> Outcome {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let words = ["connect", &listener.local_addr()?.to_string()];
    let mut guest =
        subject.launch(Spec { network: Network::Host, ..subject.spec("host-network", &words) }).await?;
    let (stream, _) = listener.accept().await?;
    let mut stream = stream.into_std()?;
    stream.write_all(b"the host")?;
    drop(stream);
    let out = guest.stdout.rest().await?;
    expect(out == "ok the host", || out)
}

async fn memory_beyond_the_limit_ends_the_function(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return left_out("the driver claims no memory limit");
    }
    let spec = Spec { memory: 32 * MIB, ..subject.spec("memory", &["hold", "400"]) };
    let mut guest = subject.launch(spec).await?;
    let out = guest.stdout.rest().await?;
    let exit = guest.sandbox.wait().await;
    expect(exit.out_of_memory && exit.cause == ExitCause::Signal(9), || {
        format!("{exit:?}, it said {out:?}")
    })?;
    // What it had at most tells how far over it was.
    let peak = guest.sandbox.usage().await.memory_peak;
    expect(peak >= 24 * MIB, || format!("a peak of {peak} bytes with a limit of 32 MiB"))?;
    let spec = Spec { memory: 64 * MIB, ..subject.spec("memory-fits", &["hold", "16"]) };
    let (exit, out, _) = subject.complete(spec).await?;
    expect(!exit.out_of_memory && out == "held", || format!("{exit:?}, it said {out:?}"))
}

async fn a_child_killed_for_memory_is_told(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_memory {
        return left_out("the driver claims no memory limit");
    }
    let spec = Spec { memory: 32 * MIB, ..subject.spec("memory-child", &["hold-in-child", "400"]) };
    let (exit, ..) = subject.complete(spec).await?;
    expect(exit.out_of_memory, || format!("{exit:?}"))
}

async fn a_fork_bomb_is_contained(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_pids {
        return left_out("the driver claims no limit of processes");
    }
    let spec = Spec { pids: 20, ..subject.spec("bomb", &["fork", "1000"]) };
    let mut guest = subject.launch(spec).await?;
    let made: u32 = guest.stdout.line().await?.parse().unwrap_or(u32::MAX);
    expect((10..=20).contains(&made), || format!("{made} children with a limit of 20"))?;
    // Another sandbox is not touched by it.
    subject.output("bystander", &["say", "fine"]).await.map(drop)
}

async fn cpu_is_limited(subject: Subject<'_>) -> Outcome {
    if !subject.claims().limits_cpu {
        return left_out("the driver claims no CPU limit");
    }
    let spec = Spec { cpu_millis: 100, ..subject.spec("cpu", &["spin"]) };
    let mut guest = subject.launch(spec).await?;
    guest.ready().await?;
    // In a second of wall time it may have a tenth of CPU time; two periods of slack.
    let (begun, before) = (std::time::Instant::now(), guest.sandbox.usage().await.cpu);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (took, used) = (begun.elapsed(), guest.sandbox.usage().await.cpu - before);
    expect(used.as_secs_f64() < took.as_secs_f64() * 0.1 + 0.05, || format!("{used:?} of CPU in {took:?}"))?;
    expect(used > Duration::from_millis(20), || format!("only {used:?} of CPU in {took:?}"))
}

async fn usage_grows(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("usage", &["spin"])).await?;
    guest.ready().await?;
    let first = guest.sandbox.usage().await;
    if first.memory == 0 {
        return left_out("the driver cannot tell");
    }
    until("CPU time grows", async || guest.sandbox.usage().await.cpu > first.cpu).await?;
    expect(first.memory_peak >= first.memory / 2, || format!("{first:?}"))?;
    guest.sandbox.stop(Duration::ZERO).await;
    let last = guest.sandbox.usage().await;
    expect(last.cpu >= first.cpu, || format!("{last:?} after the end"))
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

async fn frozen_stands_still_and_thaws(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return left_out("the driver does not claim to freeze");
    }
    let words = ["count", "$AT/count"];
    let spec = Spec { shared: Some(PathBuf::from("/tmp/shared")), ..subject.spec("freeze", &words) };
    let sandbox = subject.driver.create(spec).await?;
    let inside =
        sandbox.shared().map(|shared| shared.inside.to_string_lossy().into_owned()).unwrap_or_default();
    let mut guest = start(sandbox, vec![("AT".to_owned(), inside)]).await?;
    guest.ready().await?;
    let shared = guest.sandbox.shared().ok_or(Stop::Failed("no shared directory".to_owned()))?;
    let file = std::fs::File::open(format!("/proc/self/fd/{}/count", shared.directory.as_raw_fd()))?;
    let count = || {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).map(|()| u64::from_le_bytes(bytes))
    };
    for _ in 0..5 {
        guest.sandbox.freeze().await?;
        let first = count()?;
        // Long enough for a running one to count thousands.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
        let second = count()?;
        expect(first == second, || format!("it counted from {first} to {second} while frozen"))?;
        guest.sandbox.thaw().await?;
        until("it counts again", async || count().is_ok_and(|now| now > second)).await?;
    }
    Ok(())
}

async fn a_frozen_one_gives_memory_back(subject: Subject<'_>) -> Outcome {
    let scratch = Scratch::new("reclaim")?;
    let big = scratch.0.join("big");
    std::fs::write(&big, vec![7; 32 << 20])?;
    let file = std::fs::File::open(&big)?;
    file.sync_all()?;
    // Out of the cache, where it counts as ours: whoever reads it next pays for it.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)?;
    let spec = Spec { workdir: scratch.0.clone(), ..subject.spec("reclaim", &["read-and-wait", "big"]) };
    let mut guest = subject.launch(spec).await?;
    guest.ready().await?;
    let before = guest.sandbox.usage().await.memory;
    if before < 24 * MIB {
        return left_out(format!("its cache of a file of 32 MiB does not count: {before} bytes"));
    }
    if subject.claims().freezes {
        guest.sandbox.freeze().await?;
    }
    let taken = match guest.sandbox.reclaim().await {
        Err(Error::Unsupported(why)) => return left_out(why),
        taken => taken?,
    };
    let after = guest.sandbox.usage().await.memory;
    expect(taken > 16 * MIB && after < before - 16 * MIB, || {
        format!("{taken} bytes taken: {before} before, {after} after")
    })?;
    if subject.claims().freezes {
        guest.sandbox.thaw().await?;
    }
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Signal(15), || format!("{exit:?}"))
}

async fn a_frozen_one_can_be_killed(subject: Subject<'_>) -> Outcome {
    if !subject.claims().freezes {
        return left_out("the driver does not claim to freeze");
    }
    for grace in [Duration::ZERO, Duration::from_secs(30)] {
        let mut guest = subject.launch(subject.spec("frozen", &["wait"])).await?;
        guest.ready().await?;
        guest.sandbox.freeze().await?;
        let exit = guest.sandbox.stop(grace).await;
        let signal = if grace.is_zero() { 9 } else { 15 };
        expect(exit.cause == ExitCause::Signal(signal), || format!("{exit:?} with a grace of {grace:?}"))?;
    }
    Ok(())
}

async fn sigterm_is_honoured(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("term", &["on-term", "42"])).await?;
    guest.ready().await?;
    let exit = guest.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Code(42), || format!("{exit:?}"))?;
    let out = guest.stdout.rest().await?;
    expect(out == "terminated", || out)?;
    // A second stop and any wait say the same.
    let again = guest.sandbox.stop(Duration::ZERO).await;
    expect(again == exit && guest.sandbox.wait().await == exit, || format!("{again:?} then"))
}

async fn sigterm_ignored_is_killed(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("no-term", &["ignore-term"])).await?;
    guest.ready().await?;
    let exit = guest.sandbox.stop(Duration::from_millis(50)).await;
    expect(exit.cause == ExitCause::Signal(9), || format!("{exit:?}"))
}

async fn a_daemon_dies_with_its_function(subject: Subject<'_>) -> Outcome {
    for then in ["exit", "wait"] {
        let mut guest = subject.launch(subject.spec("daemon", &["daemon", then])).await?;
        let line = guest.stdout.line().await?;
        // Where the function has ended already, the daemon may not even have come to speak.
        expect(line == "daemon" || (line.is_empty() && then == "exit"), || line)?;
        if then == "wait" {
            guest.sandbox.stop(Duration::ZERO).await;
        } else {
            guest.sandbox.wait().await;
        }
        // The daemon holds the pipe: its end is the daemon's.
        guest.stdout.rest().await?;
    }
    Ok(())
}

async fn dropping_kills(subject: Subject<'_>) -> Outcome {
    let mut guest = subject.launch(subject.spec("drop", &["daemon", "wait"])).await?;
    guest.stdout.line().await?;
    drop(guest.sandbox);
    guest.stdout.rest().await?;
    // One that was never started goes as well, and its id is free again.
    drop(subject.driver.create(subject.spec("drop", &["wait"])).await?);
    subject.output("drop", &["say", "again"]).await.map(drop)
}

async fn no_capabilities_and_no_new_privileges(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("status", &["status"]).await?;
    let field = |name: &str| {
        out.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_start_matches(':').trim().to_owned())
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect(field(name).as_deref() == Some("0000000000000000"), || {
            format!("{name} is {:?}", field(name))
        })?;
    }
    expect(field("NoNewPrivs").as_deref() == Some("1"), || "no_new_privs is not set".to_owned())?;
    expect(field("Seccomp").as_deref() == Some("2"), || "there is no seccomp filter".to_owned())
}

async fn others_are_not_seen(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let mut other = subject.launch(subject.spec("other", &["wait"])).await?;
    other.ready().await?;
    let out = subject.output("processes", &["processes"]).await?;
    let seen: Vec<_> = out.lines().filter(|line| !line.starts_with("1 ")).collect();
    expect(seen.len() == 1 && seen[0].contains("processes"), || format!("it sees {out:?}"))?;
    // Nor can it read what its init has in memory.
    let out = subject.output("init-memory", &["read", "/proc/1/environ"]).await?;
    expect(out.parse::<i32>().is_ok(), || format!("/proc/1/environ shows {out:?}"))
}

async fn the_function_is_not_root(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let out = subject.output("ids", &["ids"]).await?;
    expect(!out.starts_with("0 ") && !out.contains(" 0 "), || format!("user and group {out}"))?;
    let mut guest = subject.launch(subject.spec("owner", &["wait"])).await?;
    guest.ready().await?;
    Ok(())
}

async fn many_at_once(subject: Subject<'_>) -> Outcome {
    let specs = (0..100).map(|number| subject.spec(&format!("many-{number}"), &["say", &number.to_string()]));
    let runs: Vec<_> = specs.map(|spec| subject.output_of(spec)).collect();
    let results = join(runs).await;
    for (number, result) in results.into_iter().enumerate() {
        let out = result?;
        expect(out == number.to_string(), || format!("number {number} says {out:?}"))?;
    }
    Ok(())
}

/// Runs all of them at once, on this task.
async fn join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, result) in &mut waiting {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, result)| result).collect()
}
