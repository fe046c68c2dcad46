//! The first process of a sandbox: builds it from inside, starts the function's process, reaps, and ends with it.
//!
//! It runs in the process that the spawner cloned, without an `exec` of its own, so it shares the spawner's few pages. As
//! the first process of a pid namespace it cannot be killed from within, collects orphans, and takes everything with it
//! when it ends. It gives up every privilege before the function may run. Where there is no pid namespace (plain
//! processes) it keeps the family together as a subreaper.
//!
//! Order, and why: enter cgroups before the cgroup namespace, so that it shows nothing above them; mount while
//! privileged; clone the function's process (into its user namespace, whose maps only a privileged parent may write);
//! then drop everything, and only then set the parent's death signal, which a change of user clears.

mod launch;
mod mounts;
pub mod processes;
mod seccomp;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use crate::spawner::server::{ALIVE, CONTROL};
use crate::sys::{self, Side};
use crate::wire::{self, Begin, Failure, INSIDE, Identity, Inbox, Order, Plan, Report, RootPlan, Step};

/// Open files that a function locks in memory, at most. Enough for a TLS library that protects its keys.
const LOCKED_MEMORY: u64 = 8 << 20;
/// What a function may allocate over its memory limit where only [`Watch`] counts: room for what is mapped but not used.
const DATA_SLACK: u64 = 1 << 30;

/// Runs as the init of a sandbox. In the cloned child, descriptors in place.
pub fn run() -> ! {
    let end = std::panic::catch_unwind(|| {
        let (control, alive) = (sys::adopt(CONTROL), sys::adopt(ALIVE));
        let mut init = Init { control, alive, inbox: Inbox::default() };
        if let Err(failure) = init.live() {
            // The runner may be gone; then nobody needs to know.
            wire::send_frame(init.control.as_fd(), &Report::Failed(failure), &[]).ok();
        }
    });
    sys::exit(i32::from(end.is_err()));
}

struct Init {
    control: OwnedFd,
    alive: OwnedFd,
    inbox: Inbox,
}

/// A built sandbox with its function's process.
struct Family {
    child: Pid,
    isolate: bool,
    signals: OwnedFd,
    watch: Option<Watch>,
    stopped: bool,
    out_of_memory: bool,
}

impl Init {
    fn live(&mut self) -> Result<(), Failure> {
        rustix::thread::set_name(c"stoker-init").step(|| "name the init".to_owned())?;
        let Some(Order::Begin(begin)) = self.next()? else { return Ok(()) };
        begin_ahead(&begin)?;
        let Some(Order::Build(plan)) = self.next()? else { return Ok(()) };
        let mut descriptors = || {
            self.inbox.descriptor().ok_or(Failure {
                function: false,
                step: "receive the function's pipes".to_owned(),
                errno: libc::EBADMSG,
            })
        };
        let stdio = [descriptors()?, descriptors()?, descriptors()?];
        let launch = descriptors()?;

        let mut shared = None;
        if begin.isolate {
            shared = mounts::build(&plan)?;
            rustix::system::sethostname(plan.id.as_bytes()).step(|| "set the host name".to_owned())?;
        }
        let filter = begin.isolate.then(seccomp::filter);
        let child = self.clone_function(&begin, &plan, stdio, launch, filter.as_deref())?;
        // Before the drop: a signal that arrives from now on waits for us.
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])
            .step(|| "wait for signals".to_owned())?;
        // The function may be the same user to the kernel; its init's memory is still none of its business. Not earlier:
        // it closes /proc/self to us, too.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .step(|| "hide the init's memory".to_owned())?;
        if let Some(filter) = &filter {
            drop_privileges(plan.identity, filter)?;
        }
        let descriptors: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
        wire::send_frame(self.control.as_fd(), &Report::Built, &descriptors)
            .step(|| "report to the runner".to_owned())?;
        drop(shared);
        let mut family = Family {
            child,
            isolate: begin.isolate,
            signals,
            watch: plan.watch_memory.map(Watch::new),
            stopped: false,
            out_of_memory: false,
        };
        drop(plan);
        self.look_after(&mut family)
    }

    /// The next order, or nothing when runner or spawner are gone.
    fn next(&mut self) -> Result<Option<Order>, Failure> {
        loop {
            if let Some(order) = self.inbox.take().step(|| "understand the runner".to_owned())? {
                return Ok(Some(order));
            }
            let (control, alive, _) = self.ready(None, None)?;
            if !alive || (control && !self.fill()?) {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> Result<bool, Failure> {
        match self.inbox.fill(self.control.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            result => result.step(|| "hear the runner".to_owned()),
        }
    }

    /// Waits for: an order, the end of the spawner (as `false`), a signal.
    fn ready(
        &self,
        signals: Option<&OwnedFd>,
        limit: Option<Duration>,
    ) -> Result<(bool, bool, bool), Failure> {
        let mut ready = [
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::new(&self.alive, PollFlags::IN),
            PollFd::new(signals.unwrap_or(&self.control), PollFlags::IN),
        ];
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            result => return result.step(|| "wait for orders".to_owned()).map(|_| (false, true, false)),
        }
        let any = |index: usize| !ready[index].revents().is_empty();
        Ok((any(0), !any(1), signals.is_some() && any(2)))
    }

    /// Clones the function's process and, where it has one, writes its user namespace's maps.
    fn clone_function(
        &self,
        begin: &Begin,
        plan: &Plan,
        stdio: [OwnedFd; 3],
        launch: OwnedFd,
        filter: Option<&[libc::sock_filter]>,
    ) -> Result<Pid, Failure> {
        let step = || "clone the function's process".to_owned();
        let (gate, opener) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(step)?;
        let mut namespaces = 0;
        if let Identity::Mapped(user) = plan.identity {
            namespaces |= libc::CLONE_NEWUSER;
            // Its ends of the pipes would else be the runner's user's, and /dev/stdout closed to it.
            own(&stdio, user)?;
        }
        if let Identity::Plain(user) = plan.identity {
            own(&stdio, user)?;
        }
        match sys::clone(namespaces, None).step(step)? {
            Side::Child => {
                drop(opener);
                launch::run(plan, begin.isolate, stdio, &launch, &gate, filter)
            }
            Side::Parent { pid, .. } => {
                drop(gate);
                if let Identity::Mapped(user) = plan.identity {
                    let map = format!("{INSIDE} {user} 1");
                    let write = |file: &str| {
                        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
                        fs::write(&path, &map).step(|| format!("write {path}"))
                    };
                    write("gid_map")?;
                    write("uid_map")?;
                }
                rustix::io::write(&opener, b"!").step(step)?;
                Ok(pid)
            }
        }
    }

    /// Until the function, the runner or the spawner ends.
    fn look_after(&mut self, family: &mut Family) -> Result<(), Failure> {
        let mut wait = Duration::ZERO;
        loop {
            let limit = family.watch.as_ref().filter(|_| !family.stopped).map(|_| wait);
            let (control, alive, signal) = self.ready(Some(&family.signals), limit)?;
            if !alive || (control && !self.fill()?) {
                if !alive {
                    // The runner may be gone, too.
                    wire::send_frame(self.control.as_fd(), &Report::Orphaned, &[]).ok();
                }
                family.kill();
                return Ok(());
            }
            if signal {
                while let Some(signal) = sys::next_signal(family.signals.as_fd()) {
                    if signal != libc::SIGCHLD {
                        family.terminate();
                    }
                }
                if let Some(status) = family.reap() {
                    family.finish();
                    let ended = Report::Ended {
                        code: status.exit_status(),
                        signal: status.terminating_signal(),
                        out_of_memory: family.out_of_memory,
                    };
                    return wire::send_frame(self.control.as_fd(), &ended, &[])
                        .step(|| "report the end".to_owned());
                }
            }
            while let Some(order) = self.inbox.take().step(|| "understand the runner".to_owned())? {
                self.obey(order, family)?;
            }
            if let Some(watch) = family.watch.as_mut().filter(|_| !family.stopped) {
                wait = watch.look(family.isolate);
                if wait.is_zero() {
                    family.out_of_memory = true;
                    family.kill();
                    wait = Duration::from_secs(1);
                }
            }
        }
    }

    fn obey(&self, order: Order, family: &mut Family) -> Result<(), Failure> {
        let mut listener = None;
        let report = match order {
            Order::Terminate => {
                family.terminate();
                return Ok(());
            }
            Order::Kill => {
                family.kill();
                return Ok(());
            }
            Order::Stop => {
                family.stop();
                Report::Stopped
            }
            Order::Continue => {
                family.proceed();
                Report::Continued
            }
            Order::Listen(address) => match std::net::TcpListener::bind(address) {
                Ok(bound) => {
                    listener = Some(bound);
                    Report::Listening
                }
                Err(error) => Report::NotListening { errno: error.raw_os_error().unwrap_or(libc::EIO) },
            },
            Order::Begin(_) | Order::Build(_) => {
                return Err(Failure {
                    function: false,
                    step: "an order came twice".to_owned(),
                    errno: libc::EPROTO,
                });
            }
        };
        let descriptors: Vec<_> = listener.iter().map(AsFd::as_fd).collect();
        wire::send_frame(self.control.as_fd(), &report, &descriptors)
            .step(|| "report to the runner".to_owned())
    }
}

impl Family {
    fn terminate(&self) {
        // Gone already is as good.
        kill_process(self.child, Signal::TERM).ok();
    }

    fn kill(&self) {
        if self.isolate {
            sys::kill_all(libc::SIGKILL).ok();
            return;
        }
        for process in processes::descendants() {
            if let Some(pid) = Pid::from_raw(process.pid) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }

    /// Reaps everything that ended; the function's status if it is among it.
    fn reap(&self) -> Option<WaitStatus> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.child {
                ended = Some(status);
            }
        }
        ended
    }

    /// After the function: the kernel ends a pid namespace with its init; plain processes are hunted down, each round
    /// moving the orphans of the last one up to us.
    fn finish(&self) {
        if self.isolate {
            return;
        }
        loop {
            self.kill();
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Stops everything and returns once it stands still. Without a cgroup: by signal, repeated until no process is left
    /// that runs, since a fork may be under way.
    fn stop(&mut self) {
        self.stopped = true;
        loop {
            let running: Vec<_> =
                processes::members(self.isolate).into_iter().filter(processes::Process::runs).collect();
            if running.is_empty() {
                return;
            }
            if self.isolate {
                sys::kill_all(libc::SIGSTOP).ok();
            } else {
                for process in running {
                    if let Some(pid) = Pid::from_raw(process.pid) {
                        kill_process(pid, Signal::STOP).ok();
                    }
                }
            }
            // A process in the kernel stops when it comes back from there: look again in a moment.
            let moment = Timespec { tv_sec: 0, tv_nsec: 100_000 };
            poll(&mut [], Some(&moment)).ok();
        }
    }

    fn proceed(&mut self) {
        self.stopped = false;
        if self.isolate {
            sys::kill_all(libc::SIGCONT).ok();
            return;
        }
        for process in processes::descendants() {
            if let Some(pid) = Pid::from_raw(process.pid) {
                kill_process(pid, Signal::CONT).ok();
            }
        }
    }
}

/// Counts memory where no cgroup does, often enough that a fast allocation cannot get far.
struct Watch {
    limit: u64,
    last: Instant,
}

impl Watch {
    /// A process may touch about this much new memory in a second.
    const RATE: u64 = 2 << 30;
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(500);

    fn new(limit: u64) -> Self {
        Self { limit, last: Instant::now() }
    }

    /// When to look again; zero when the limit is passed.
    fn look(&mut self, isolate: bool) -> Duration {
        self.last = Instant::now();
        let used: u64 =
            processes::members(isolate).iter().map(|process| processes::private_memory(process.pid)).sum();
        let Some(left) = self.limit.checked_sub(used) else { return Duration::ZERO };
        Duration::from_millis(left * 1000 / Self::RATE).clamp(Self::SHORTEST, Self::LONGEST)
    }
}

/// What can be done before anything is known about the function.
fn begin_ahead(begin: &Begin) -> Result<(), Failure> {
    for procs in &begin.attach {
        fs::write(procs, "0").step(|| format!("enter the cgroup {}", procs.display()))?;
    }
    if !begin.isolate {
        return rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .step(|| "become the reaper of the function's processes".to_owned());
    }
    if let Some((user, group)) = begin.rootless {
        fs::write("/proc/self/setgroups", "deny").step(|| "write setgroups".to_owned())?;
        fs::write("/proc/self/uid_map", format!("{INSIDE} {user} 1"))
            .step(|| "write the user namespace's uid_map".to_owned())?;
        fs::write("/proc/self/gid_map", format!("{INSIDE} {group} 1"))
            .step(|| "write the user namespace's gid_map".to_owned())?;
    }
    // Ourselves, against a spawner that dies from here on; again after the change of user.
    die_with_parent()?;
    let mut namespaces = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    if begin.network {
        namespaces |= libc::CLONE_NEWNET;
    }
    sys::unshare(namespaces).step(|| "unshare the ipc, uts, cgroup and network namespaces".to_owned())?;
    if begin.network {
        sys::interface_up(c"lo").step(|| "set the loopback interface up".to_owned())?;
        // Any port is free to a function that has the whole interface to itself. Not having it harms few.
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").ok();
    }
    Ok(())
}

fn die_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step(|| "ask for a death signal".to_owned())
}

fn own(stdio: &[OwnedFd; 3], user: u32) -> Result<(), Failure> {
    for pipe in stdio {
        rustix::fs::fchown(
            pipe,
            Some(rustix::fs::Uid::from_raw(user)),
            Some(rustix::fs::Gid::from_raw(user)),
        )
        .step(|| "give the function its pipes".to_owned())?;
    }
    Ok(())
}

/// Becomes as powerless as the function.
fn drop_privileges(identity: Identity, filter: &[libc::sock_filter]) -> Result<(), Failure> {
    // Paths that were open for the build must not stay reachable.
    sys::close_from_on_exec(ALIVE as u32 + 1);
    sys::close_capabilities();
    match identity {
        Identity::Mapped(user) | Identity::Plain(user) => become_user(user)?,
        Identity::Inside | Identity::Same => {}
    }
    seal(filter)
}

/// Changes user and groups for good.
fn become_user(user: u32) -> Result<(), Failure> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_groups(&[]).step(|| "drop supplementary groups".to_owned())?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_res_gid(group, group, group).step(|| "change the group".to_owned())?;
    rustix::thread::set_thread_res_uid(user, user, user).step(|| "change the user".to_owned())
}

/// No capabilities, no new privileges, dead with the parent, and only harmless system calls. In this order: each needs
/// what the next takes away.
fn seal(filter: &[libc::sock_filter]) -> Result<(), Failure> {
    sys::drop_capabilities().step(|| "drop capabilities".to_owned())?;
    rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
    die_with_parent()?;
    sys::install_filter(filter).step(|| "install the seccomp filter".to_owned())
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::function(format!("{text:?} contains a zero byte")))
}

/// Whether the host's files are the function's root, all or some.
fn shows_host(plan: &Plan) -> bool {
    !matches!(plan.root, RootPlan::Directory(_))
}
