//! The function's own process between its clone and its `exec`.
//!
//! It takes on limits and identity, gives up its privileges, enters its root, says that it is parked, and waits for the late environment.
//! What it says afterwards is only why `exec` failed; success closes the stream. Its gate is opened twice: when its user namespace is complete,
//! and when its root is, which takes longer. What it does between the two costs a start nothing where there is another CPU.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{
    DATA_SLACK, LOCKED_MEMORY, become_user, c_string, core_size, die_with_parent, seal, shows_host, zygote,
};
use crate::User;
use crate::supervisor::server::IGNORED;
use crate::sys::{self, Limit};
use crate::wire::{self, Failure, Identity, Inbox, Launch, Launched, Plan, Program, Step};

/// Where programs are looked for when the environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit status of a process that could not run its command, as shells have it.
const NOT_RUN: i32 = 127;
/// What the kernel reads of a program to see what it is.
const HEAD: usize = 256;
/// When the whole machine is short of memory, functions go before what serves them.
const OOM_SCORE: &str = "500";

/// Runs as the function's process, or as its zygote where there is a `socket` for one.
pub fn run(
    plan: &Plan,
    isolate: bool,
    pipes: [OwnedFd; 4],
    gate: &OwnedFd,
    socket: Option<OwnedFd>,
    filter: Option<&[libc::sock_filter]>,
) -> ! {
    let prepare = || {
        wait(gate)?;
        become_function(plan, isolate)?;
        match filter {
            Some(filter) => seal(filter)?,
            None => die_with_parent()?,
        }
        wait(gate)?;
        rustix::process::chdir(&plan.workdir).map_err(|error| workdir_failure(plan, error))
    };
    match (prepare(), socket) {
        (Ok(()), None) => {
            // All that our init has not left as it is to be.
            sys::default_signals(IGNORED);
            become_program(&plan.program, pipes)
        }
        (Ok(()), Some(socket)) => zygote::run(plan, &socket, pipes),
        (Err(failure), _) => fail(&pipes[3], failure),
    }
}

/// Runs as a copy of the zygote.
pub fn copied(program: &Program, pipes: [OwnedFd; 4]) -> ! {
    sys::default_actions();
    // The init is the parent as it was the zygote's; the wish for its signal is not copied.
    match die_with_parent() {
        Ok(()) => become_program(program, pipes),
        Err(failure) => fail(&pipes[3], failure),
    }
}

/// Says that it is parked, and waits for the start.
fn become_program(program: &Program, pipes: [OwnedFd; 4]) -> ! {
    let [stdin, stdout, stderr, launch] = pipes;
    if let Err(failure) = connect([stdin, stdout, stderr]) {
        fail(&launch, failure);
    }
    match park(program, &launch) {
        Some(failure) => fail(&launch, failure),
        None => sys::exit(NOT_RUN),
    }
}

fn fail(launch: &OwnedFd, failure: Failure) -> ! {
    // The runner may be gone; then nobody needs to know.
    wire::send_frame(launch.as_fd(), &Launched::Failed(failure), &[]).ok();
    sys::exit(NOT_RUN)
}

/// Opens the gate of a function's process, once of two times.
pub fn open(gate: &OwnedFd) -> Result<(), Failure> {
    match rustix::io::write(gate, b"!") {
        // One that has ended says why itself.
        Err(rustix::io::Errno::PIPE) => Ok(()),
        opened => opened.step(|| "let the function's process go on".to_owned()).map(drop),
    }
}

/// Waits at the gate. Who opens it may end instead.
fn wait(gate: &OwnedFd) -> Result<(), Failure> {
    match rustix::io::read(gate, &mut [0_u8; 1][..]).step(|| "wait for the init".to_owned())? {
        0 => sys::exit(NOT_RUN),
        _ => Ok(()),
    }
}

/// Takes on what is the same for every process of the function.
fn become_function(plan: &Plan, isolate: bool) -> Result<(), Failure> {
    // The last moment at which it is allowed to lower its standing: /proc/self is closed to another user.
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).ok();
    if isolate {
        sys::close_capabilities();
    }
    match plan.identity {
        Identity::Mapped { .. } => become_user(plan.user, &plan.groups)?,
        Identity::Plain(user) => become_user(User { uid: user, gid: user }, &[])?,
        Identity::Inside | Identity::Renamed | Identity::Same => {}
    }
    let limit = |what, value| sys::limit(what, value).step(|| "set a resource limit".to_owned());
    limit(Limit::OpenFiles, plan.open_files.into())?;
    limit(Limit::Core, core_size())?;
    if isolate {
        limit(Limit::LockedMemory, LOCKED_MEMORY)?;
    }
    if let Some(processes) = plan.processes {
        // More for the init and the zygote, which are the same user.
        limit(Limit::Processes, u64::from(processes) + 1 + u64::from(plan.stays))?;
    }
    if let Some(memory) = plan.watch_memory {
        limit(Limit::Data, memory + DATA_SLACK)?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Takes on what is one process's own.
fn connect(stdio: [OwnedFd; 3]) -> Result<(), Failure> {
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    for (number, pipe) in (0..).zip(&stdio) {
        sys::place(pipe.as_fd(), number).step(|| "put the function's pipes in place".to_owned())?;
    }
    drop(stdio);
    sys::close_from_on_exec(3);
    sys::unblock_signals();
    Ok(())
}

fn workdir_failure(plan: &Plan, error: rustix::io::Errno) -> Failure {
    let directory = plan.workdir.display();
    Failure::function(match error {
        rustix::io::Errno::NOENT if shows_host(plan) => {
            format!("the work directory {directory} does not exist")
        }
        rustix::io::Errno::NOENT => format!("the work directory {directory} does not exist in the image"),
        rustix::io::Errno::NOTDIR => format!("the work directory {directory} is not a directory"),
        rustix::io::Errno::ACCESS => format!(
            "the work directory {directory} is closed to the function's user: give others read and search permission"
        ),
        error => format!("the work directory {directory}: {}", io::Error::from(error)),
    })
}

/// Waits for the late environment, then runs the command. Returns only if that fails; `None` if the runner is gone.
fn park(program: &Program, launch: &OwnedFd) -> Option<Failure> {
    wire::send_frame(launch.as_fd(), &Launched::Parked, &[]).ok()?;
    let Launch { env } = Inbox::default().wait(launch).ok()??;
    Some(match execute(program, &env) {
        Ok(failure) | Err(failure) => failure,
    })
}

fn execute(program: &Program, late: &[(String, String)]) -> Result<Failure, Failure> {
    let Program { command, env } = program;
    let mut variables: Vec<(&str, &str)> = Vec::with_capacity(env.len() + late.len());
    for (name, value) in env.iter().chain(late) {
        if name.is_empty() || name.contains('=') {
            return Err(Failure::function(format!("{name:?} cannot be the name of an environment variable")));
        }
        variables.retain(|(known, _)| known != name);
        variables.push((name, value));
    }
    let path = variables.iter().find(|(name, _)| *name == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    let program = command.first().map_or("", String::as_str);
    let environment: Vec<CString> = variables
        .iter()
        .map(|(name, value)| c_string(&format!("{name}={value}")))
        .collect::<Result<_, _>>()?;
    let arguments: Vec<CString> =
        command.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?;
    if program.is_empty() {
        return Err(Failure::function("the command is empty"));
    }
    if program.contains('/') {
        let error = sys::execve(&c_string(program)?, &arguments, &environment);
        return Ok(explain(Path::new(program), &error));
    }
    let mut best = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = PathBuf::from(directory).join(program);
        let error = sys::execve(&c_string(&candidate.to_string_lossy())?, &arguments, &environment);
        let there = candidate.symlink_metadata().is_ok();
        if there && best.is_none() {
            best = Some(explain(&candidate, &error));
        }
        // Something found that cannot be run must not hide one further on that can.
    }
    Ok(best.unwrap_or_else(|| Failure::function(format!("command {program:?} not found in PATH {path}"))))
}

/// Why a program did not run, in words its author can use.
fn explain(program: &Path, error: &io::Error) -> Failure {
    let name = program.display();
    let text = match error.raw_os_error() {
        Some(libc::ENOENT) => match (program.symlink_metadata(), program.metadata()) {
            (Err(_), _) => format!("command {name} does not exist in what the function sees"),
            (Ok(_), Err(_)) => {
                format!("command {name} is a symbolic link to something that does not exist here")
            }
            (Ok(_), Ok(_)) => match interpreter(program) {
                Some(interpreter) if interpreter.ends_with('\r') => format!(
                    "command {name} is a script for {interpreter:?}, which does not exist here: its lines end with CR LF, write it with LF alone"
                ),
                Some(interpreter) => {
                    format!("command {name} is a script for {interpreter}, which does not exist here")
                }
                None => format!("command {name} needs a program loader that does not exist here"),
            },
        },
        Some(libc::EACCES) => match program.metadata() {
            Ok(metadata) if metadata.is_dir() => format!("command {name} is a directory"),
            Ok(metadata) if !metadata.is_file() => format!("command {name} is not a plain file"),
            Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
                format!("command {name} is not executable: permission denied")
            }
            Ok(_) => match interpreter(program) {
                Some(interpreter) => {
                    format!(
                        "command {name} or its interpreter {interpreter}: permission denied to the function's user"
                    )
                }
                None => format!("command {name}: permission denied to the function's user"),
            },
            Err(_) => format!(
                "command {name} is in a directory that is closed to the function's user: permission denied"
            ),
        },
        // Other kernels answer so for a pipe or a socket.
        Some(libc::EPERM) if program.metadata().is_ok_and(|metadata| !metadata.is_file()) => {
            format!("command {name} is not a plain file")
        }
        // A name that reaches to the end of what the kernel reads may be longer.
        Some(libc::ENOEXEC) if interpreter(program).is_some_and(|name| name.len() > HEAD - 8) => {
            format!(
                "command {name} is a script whose #! line is longer than the {HEAD} bytes that the kernel reads of it"
            )
        }
        Some(libc::ENOEXEC) => {
            format!("command {name} is neither a program for this machine nor a script with a #! line")
        }
        Some(libc::E2BIG) => "the arguments and the environment are too large for the kernel".to_owned(),
        Some(libc::ENOTDIR) => format!("command {name}: a part of the path is not a directory"),
        Some(libc::ELOOP) => {
            format!("command {name}: too many symbolic links, or interpreters of interpreters")
        }
        _ => format!("command {name} cannot be run: {error}"),
    };
    Failure::function(text)
}

/// The program named by a script's first line. Of a plain file alone: a pipe would keep us waiting.
pub fn interpreter(script: &Path) -> Option<String> {
    let mut head = [0; HEAD];
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let script = File::from(rustix::fs::open(script, flags, Mode::empty()).ok()?);
    if !script.metadata().ok()?.is_file() {
        return None;
    }
    let length = (&script).read(&mut head).ok()?;
    let line = head.get(..length)?.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(line).ok()?;
    // As the kernel does, to which a carriage return is a part of the name.
    text.split([' ', '\t']).find(|word| !word.is_empty()).map(str::to_owned)
}
