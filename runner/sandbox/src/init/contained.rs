//! The first process of a container that another engine built: namespaces, root and limits are its work, the rest is ours.
//!
//! It reaches the runner through a socket that is shown in the container, gets the function's pipes over it, and from there on
//! does what every init does: starts the function's process and parks it, looks after it, reaps, and ends with it. So all drivers
//! hand the late environment over in the same way, name the same faults with the same words, and install the same filter of system
//! calls; and a container ends when its runner does, without help from its engine.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;

use super::zygote::{self, Zygote};
use super::{Init, ProcessTree, launch, own_signals, seccomp};
use crate::sys;
use crate::wire::{self, Failure, Inbox, Order, Plan, Report, Step};

/// Runs as the first process of a container. `door` is where the runner listens.
pub fn run(door: &str) -> ! {
    let end = std::panic::catch_unwind(|| {
        let Ok(mut init) = enter(door) else { return };
        if let Err(failure) = init.live_contained() {
            // The runner may be gone; then nobody needs to know.
            wire::send_frame(init.control.as_fd(), &Report::Failed(failure), &[]).ok();
        }
    });
    sys::exit(i32::from(end.is_err()));
}

fn enter(door: &str) -> Result<Init, Failure> {
    own_signals();
    let control = UnixStream::connect(door).step(|| "reach the runner".to_owned())?;
    // Nothing that the engine gave us is the function's business.
    let null = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .step(|| "open /dev/null in the container".to_owned())?;
    for number in 0..3 {
        sys::place(null.as_fd(), number).step(|| "let go of the engine's descriptors".to_owned())?;
    }
    // There is no spawner whose end we would have to hear of: the engine's own processes may come and go.
    let (alive, held) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned())?;
    std::mem::forget(held);
    Ok(Init { control: control.into(), alive, inbox: Inbox::default() })
}

impl Init {
    fn live_contained(&mut self) -> Result<(), Failure> {
        rustix::thread::set_name(c"stoker-init").step(|| "name the init".to_owned())?;
        let Some(Order::Build(plan)) = self.next()? else { return Ok(()) };
        let pipes = self.pipes()?;
        let shared = plan.shared.as_deref().map(share).transpose()?;
        let filter = seccomp::filter();
        let (child, zygote) = fork_function(&plan, pipes, filter)?;
        // Before the filter: a signal that arrives from now on waits for us.
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])
            .step(|| "wait for signals".to_owned())?;
        // The function is the same user to the kernel; its init's memory is still none of its business.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .step(|| "hide the init's memory".to_owned())?;
        // As the function is sealed, but for the death signal: our parent is a process of the engine that may end at any time.
        sys::drop_capabilities().step(|| "drop capabilities".to_owned())?;
        rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
        sys::install_filter(filter).step(|| "install the seccomp filter".to_owned())?;
        let handles: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
        wire::send_frame(self.control.as_fd(), &Report::Built, &handles)
            .step(|| "report to the runner".to_owned())?;
        drop(shared);
        let mut tree = ProcessTree::new(child, zygote, true, signals, &plan)?;
        drop(plan);
        self.look_after(&mut tree)?;
        // The engine may take the cgroup away with us: until the runner has read it, we stay.
        self.next().map(drop)
    }
}

/// The directory that the function shares with the runner: made here, so that it belongs to the function.
fn share(path: &Path) -> Result<OwnedFd, Failure> {
    let step = || format!("make the shared directory {}", path.display());
    fs::create_dir_all(path).step(step)?;
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step(step)
}

fn fork_function(
    plan: &Plan,
    pipes: [OwnedFd; 4],
    filter: &[libc::sock_filter],
) -> Result<(Pid, Option<Zygote>), Failure> {
    let step = || "fork the function's process".to_owned();
    // Nothing is left to be done for it: its gate is open from the start, both times.
    let (gate, opener) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(step)?;
    launch::open(&opener)?;
    launch::open(&opener)?;
    let (ours, theirs) = zygote::sockets(plan).step(step)?.unzip();
    match sys::fork().step(step)? {
        None => {
            drop(ours);
            launch::run(plan, true, pipes, &gate, theirs, Some(filter))
        }
        Some(pid) => Ok((pid, ours.map(|socket| Zygote::new(pid, socket)))),
    }
}
