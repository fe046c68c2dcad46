//! Attempts to break out, one for every line of the threat model in `docs/security.md`.
//!
//! Each has the name of its line. Most are one thing that the guest tries (`stoker-spawner guest attack WHAT`) and the answers
//! that count as refused; the rest need somebody else to attack. What succeeds fails the row.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::{
    Case, ExitCause, LIMIT, MIB, Outcome, Report, Scratch, Spec, Stop, Subject, User, expect, left_out,
    small_root,
};

/// Answers that mean no.
const NO: &[i32] =
    &[libc::EPERM, libc::EACCES, libc::EROFS, libc::ENOENT, libc::ENOSYS, libc::ENXIO, libc::ENODEV];

/// Name of the line, and what the guest tries. It prints one line a try: what it was, and the error number or `ok`.
const TRIED: &[(&str, &str)] = &[
    ("mount_something", "mount"),
    ("make_namespaces", "namespaces"),
    ("change_the_root", "root"),
    ("call_the_kernel_for_administration", "calls"),
    ("look_into_the_init", "init"),
    ("trace_a_process", "trace"),
    ("open_raw_sockets", "raw-sockets"),
    ("configure_the_network", "network"),
    ("make_device_nodes", "devices"),
    ("write_to_kernel_settings", "settings"),
    ("read_the_kernels_secrets", "secrets"),
    ("reach_the_keyring", "keyring"),
    ("load_code_into_the_kernel", "kernel-code"),
    ("escape_by_cgroups", "cgroups"),
    ("raise_its_limits", "limits"),
    ("take_huge_pages", "huge-pages"),
    ("type_into_a_terminal", "terminal"),
    ("overwrite_its_program", "program"),
    ("weaken_its_memory_layout", "personality"),
];

macro_rules! staged {
    ($($name:ident),* $(,)?) => {
        const STAGED: &[(&str, for<'a> fn(Subject<'a>) -> Case<'a>)] =
            &[$((stringify!($name), |subject| Box::pin($name(subject)))),*];
    };
}

staged![
    use_another_calling_convention,
    gain_privileges_by_a_program_file,
    see_processes_of_others,
    read_files_of_a_neighbour,
    read_memory_segments_of_the_host,
    signal_others,
    reach_sockets_of_the_host,
    bomb_with_processes,
    bomb_with_memory,
    fill_the_disk,
    keep_the_processor,
    outlive_its_end,
    find_open_descriptors,
];

/// The names of all lines.
pub fn names() -> impl Iterator<Item = &'static str> {
    TRIED.iter().map(|(name, _)| *name).chain(STAGED.iter().map(|(name, _)| *name))
}

/// Tries everything.
pub async fn run(subject: Subject<'_>) -> Report {
    let tried = TRIED.iter().map(|&(name, what)| {
        let case: Case<'_> = Box::pin(refused(subject, what));
        (name, case)
    });
    let staged = STAGED.iter().map(|(name, case)| (*name, case(subject)));
    super::run_all(tried.chain(staged)).await
}

/// What the guest tries, refused one by one.
async fn refused(subject: Subject<'_>, what: &str) -> Outcome {
    subject.isolated()?;
    // As the user that images have by default where that can be chosen: whoever is not root cannot do more.
    let user = Some(User { uid: 0, gid: 0 }).filter(|_| subject.claims().hides_root);
    for user in [None, user] {
        let spec = Spec { user, ..subject.spec("attack", &["attack", what]) };
        let out = subject.output_of(spec).await?;
        expect(!out.is_empty(), || "nothing was tried".to_owned())?;
        for line in out.lines() {
            let answer = line.rsplit(' ').next().unwrap_or_default();
            let no = answer.parse().is_ok_and(|errno| NO.contains(&errno) || allowed(line, errno));
            expect(no, || format!("as {user:?}: {line}"))?;
        }
    }
    Ok(())
}

/// Other answers that mean no to this very try.
fn allowed(line: &str, errno: i32) -> bool {
    match errno {
        libc::EAFNOSUPPORT => line.starts_with("socket"),
        libc::EINVAL => {
            line.starts_with("socket") || line.starts_with("personality") || line.starts_with("sched")
        }
        libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT => line.starts_with("socket"),
        // There is nobody of that number.
        libc::ESRCH => true,
        // Text that runs cannot be written to.
        libc::ETXTBSY => line.starts_with("program"),
        libc::EIO | libc::ENOTTY => line.starts_with("terminal"),
        _ => false,
    }
}

/// The 32-bit and x32 doors to the kernel have other numbers: a filter for the usual ones must not let them pass.
async fn use_another_calling_convention(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    if !cfg!(target_arch = "x86_64") {
        return left_out("this architecture has one convention only");
    }
    let (exit, out, _) = subject.complete(subject.spec("x32", &["attack", "x32"])).await?;
    let killed = exit.cause == ExitCause::Signal(libc::SIGSYS);
    let absent = [libc::ENOSYS, libc::EPERM].iter().any(|errno| out == format!("x32 {errno}"));
    expect(killed || absent, || format!("x32: {exit:?} {out}"))?;
    let (exit, out, _) = subject.complete(subject.spec("int80", &["attack", "int80"])).await?;
    let killed = matches!(exit.cause, ExitCause::Signal(libc::SIGSYS | libc::SIGSEGV));
    let refused = [libc::ENOSYS, libc::EPERM].iter().any(|errno| out == format!("int80 {errno}"));
    expect(killed || refused, || format!("int 0x80: {exit:?} {out}"))
}

/// Set-user-id programs and file capabilities of an image make nobody more than he is.
async fn gain_privileges_by_a_program_file(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let scratch = Scratch::new("privileges")?;
    let root = small_root(&scratch, subject, true)?;
    let program = scratch.0.join("root/bin/guest");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o6755))?;
    // Every capability, permitted and effective, as `setcap` writes it; only root may.
    let mut capabilities = 0x0200_0001_u32.to_le_bytes().to_vec();
    capabilities.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 1, 0, 0, 0, 0, 0, 0]);
    let file = std::fs::File::open(&program)?;
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::fsetxattr(&file, "security.capability", &capabilities, flags) {
        Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::NOTSUP) => {}
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    let mut spec = Spec { root, ..subject.spec("setuid", &["status"]) };
    spec.command[0] = "/bin/guest".to_owned();
    let out = match subject.output_of(spec).await {
        // Where the file's capabilities are looked at, they are more than the function may have.
        Err(Stop::Failed(why)) if why.contains("not permitted") => return Ok(()),
        out => out?,
    };
    let field = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let ids: Vec<_> = field("Uid:").split_whitespace().skip(1).map(str::to_owned).collect();
    expect(ids.len() == 4 && ids.iter().all(|id| *id == ids[0] && id != "0"), || field("Uid:"))?;
    for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
        expect(field(name).ends_with("0000000000000000"), || field(name))?;
    }
    Ok(())
}

async fn see_processes_of_others(subject: Subject<'_>) -> Outcome {
    super::others_are_not_seen(subject).await
}

/// A neighbour writes a secret wherever it can; its files, arguments and environment are searched for by another.
async fn read_files_of_a_neighbour(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let shared = Some("/tmp/shared".into());
    let mut spec = Spec { shared, ..subject.spec("neighbour", &["keep", "the-secret-of-a-neighbour"]) };
    spec.env.push(("SECRET".to_owned(), "the-secret-of-a-neighbour".to_owned()));
    let mut neighbour = subject.launch(spec.clone()).await?;
    neighbour.ready().await?;
    let spec = Spec { env: Vec::new(), ..subject.spec("thief", &["attack", "neighbour"]) };
    let out = subject.output_of(Spec { shared: Some("/tmp/shared".into()), ..spec }).await?;
    expect(out == "searched", || format!("found in {out}"))
}

/// System V memory belongs to a namespace: what the host has under a key is not there inside.
async fn read_memory_segments_of_the_host(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let key = i32::from_ne_bytes(std::process::id().to_ne_bytes()) | 0x5700_0000;
    let segment = crate::sys::Segment::new(key)?;
    let out = subject.output("segment", &["attack-segment", &key.to_string()]).await?;
    drop(segment);
    expect(out == libc::ENOENT.to_string(), || format!("the host's segment answers {out}"))
}

/// Signals to everybody hurt nobody outside: not the init, not the runner, not a neighbour.
async fn signal_others(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let mut neighbour = subject.launch(subject.spec("bystander", &["wait"])).await?;
    neighbour.ready().await?;
    let own = std::process::id().to_string();
    let mut guest = subject.launch(subject.spec("killer", &["attack-signals", &own])).await?;
    let out = guest.stdout.line().await?;
    expect(out == "still here", || out)?;
    expect(guest.sandbox.stop(Duration::ZERO).await.cause == ExitCause::Signal(9), || {
        "it ended before".to_owned()
    })?;
    let exit = neighbour.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Signal(libc::SIGTERM), || format!("the neighbour: {exit:?}"))
}

/// Abstract sockets and loopback ports of the host.
async fn reach_sockets_of_the_host(subject: Subject<'_>) -> Outcome {
    if !subject.claims().isolates_network {
        return left_out("the driver claims no network isolation");
    }
    // The suites of several drivers may run side by side, in one process.
    let name = format!("stoker-escape-{}-{:?}", std::process::id(), std::thread::current().id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    let out = subject.output("abstract", &["attack-abstract", &name]).await?;
    expect(out == libc::ECONNREFUSED.to_string(), || format!("the host's abstract socket answers {out}"))?;
    super::the_network_is_closed(subject).await
}

async fn bomb_with_processes(subject: Subject<'_>) -> Outcome {
    super::a_fork_bomb_is_contained(subject).await
}

/// By allocation, by files in memory, and by shared memory: all count, and the neighbour lives.
async fn bomb_with_memory(subject: Subject<'_>) -> Outcome {
    super::memory_beyond_the_limit_ends_the_function(subject).await?;
    let mut neighbour = subject.launch(subject.spec("bystander", &["wait"])).await?;
    neighbour.ready().await?;
    if subject.claims().isolates {
        let spec =
            Spec { memory: 32 * MIB, tmp_size: 400 * MIB, ..subject.spec("tmp", &["fill", "/tmp/full"]) };
        let (exit, out, _) = subject.complete(spec).await?;
        // Ended for it, or refused by the size of the file system.
        expect(exit.out_of_memory || out.ends_with(&format!(" {}", libc::ENOSPC)), || {
            format!("{exit:?} {out}")
        })?;
    }
    let exit = neighbour.sandbox.stop(LIMIT).await;
    expect(exit.cause == ExitCause::Signal(libc::SIGTERM), || format!("the neighbour: {exit:?}"))
}

/// Every place that can be written to has an end, for bytes and for the number of files.
async fn fill_the_disk(subject: Subject<'_>) -> Outcome {
    subject.isolated()?;
    let shared = Some(std::path::PathBuf::from("/shared"));
    let spec =
        |words: &[&str]| Spec { tmp_size: 2 * MIB, shared: shared.clone(), ..subject.spec("fill", words) };
    for place in ["/tmp", "/dev/shm", "/shared"] {
        let out = subject.output_of(spec(&["fill", &format!("{place}/full")])).await?;
        let (written, errno) = out.split_once(' ').unwrap_or_default();
        let written: u64 = written.parse().unwrap_or(u64::MAX);
        expect(errno == libc::ENOSPC.to_string() && written <= 4 * MIB, || format!("{place}: {out}"))?;
        let (exit, out, _) = subject.complete(spec(&["fill-files", place])).await?;
        let (made, errno) = out.split_once(' ').unwrap_or_default();
        let made: u64 = made.parse().unwrap_or(u64::MAX);
        let full = errno == libc::ENOSPC.to_string() && made <= 2048;
        // Empty files are memory of the kernel's: where that counts as the function's, it may end by that.
        expect(full || exit.out_of_memory, || format!("files in {place}: {exit:?} {out}"))?;
    }
    super::a_writable_root_is_sized(subject).await
}

async fn keep_the_processor(subject: Subject<'_>) -> Outcome {
    super::cpu_is_limited(subject).await
}

async fn outlive_its_end(subject: Subject<'_>) -> Outcome {
    super::a_daemon_dies_with_its_function(subject).await?;
    super::dropping_kills(subject).await
}

async fn find_open_descriptors(subject: Subject<'_>) -> Outcome {
    super::no_descriptor_leaks(subject).await
}
