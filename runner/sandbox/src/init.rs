//! The first process of a sandbox: builds it from inside, starts the function's process, reaps, and ends with it.
//!
//! It runs in the process that the spawner cloned, without an `exec` of its own, so it shares the spawner's few pages. As
//! the first process of a pid namespace it cannot be killed from within, collects orphans, and takes everything with it
//! when it ends. It gives up every privilege before the function may run. Where there is no pid namespace (plain
//! processes) it keeps the processes together as a subreaper.
//!
//! Order, and why: enter cgroups before the cgroup namespace, so that it shows nothing above them; clone the function's
//! process (into its user namespace, whose maps only a privileged parent may write), which gives up its privileges meanwhile and waits for
//! its root; mount while privileged, with that user namespace to show an image's files by; then drop everything, and only then set the
//! parent's death signal, which a change of user clears.

pub mod contained;
mod launch;
pub mod mounts;
mod process_tree;
pub mod processes;
mod seccomp;
pub mod tunnel;
mod zygote;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use self::process_tree::ProcessTree;
use self::zygote::Zygote;
use crate::User;
use crate::spawner::server::{ALIVE, CONTROL};
use crate::supervisor::server::IGNORED;
use crate::sys::{self, Side};
use crate::wire::{
    self, Begin, Failure, INSIDE, Identity, Inbox, NetworkPlan, Order, Plan, Report, RootPlan, Step,
};

/// Open files that a function locks in memory, at most. Enough for a TLS library that protects its keys.
pub const LOCKED_MEMORY: u64 = 8 << 20;
/// How large a dump of a dead function's memory may be: none is written. And not zero, at which the kernel would still hand the dump to the
/// program of the host's that its `core_pattern` names, as the host's root; at one byte it does not.
pub fn core_size() -> u64 {
    // Whoever may have none already cannot raise that.
    rustix::process::getrlimit(rustix::process::Resource::Core).maximum.unwrap_or(u64::MAX).min(1)
}

/// What a function may allocate over its memory limit where only the runner itself counts: room for what is mapped but not used.
const DATA_SLACK: u64 = 1 << 30;

/// What every init needs and none changes. Done once, in the process that they are copies of.
pub fn ahead() {
    seccomp::filter();
    // Kernels before 6.4 tell it by a file that is closed to an init that hides its memory.
    rustix::param::page_size();
}

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

/// What was made before the function came.
#[derive(Default)]
struct Ahead {
    /// The way out, where there is to be one.
    tunnel: Option<OwnedFd>,
    kernel: Option<mounts::Kernel>,
}

struct Init {
    control: OwnedFd,
    alive: OwnedFd,
    inbox: Inbox,
}

/// The function's process, whose gate was opened for the first time.
struct Cloned {
    child: Pid,
    opener: OwnedFd,
    /// Its user namespace, where it has its own.
    users: Option<OwnedFd>,
    /// The way to it where it is no more than the zygote of the function's processes.
    zygote: Option<OwnedFd>,
}

impl Init {
    fn live(&mut self) -> Result<(), Failure> {
        rustix::thread::set_name(c"stoker-init").step(|| "name the init".to_owned())?;
        let Some(Order::Begin(begin)) = self.next()? else { return Ok(()) };
        let Ahead { tunnel, mut kernel } = begin_ahead(&begin)?;
        let Some(Order::Build(plan)) = self.next()? else { return Ok(()) };
        let pipes = self.pipes()?;
        if begin.isolate {
            mounts::cut_off()?;
        }
        let filter = begin.isolate.then(seccomp::filter);
        let Cloned { child, opener, users, zygote } =
            self.clone_function(&begin, &plan, pipes, filter, &mut kernel)?;
        // Before the drop: a signal that arrives from now on waits for us.
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])
            .step(|| "wait for signals".to_owned())?;
        let mut built = mounts::Built::default();
        if begin.isolate {
            built = mounts::build(&plan, users.as_ref(), kernel)?;
            rustix::system::sethostname(plan.id.as_bytes()).step(|| "set the host name".to_owned())?;
        }
        drop(users);
        launch::open(&opener)?;
        drop(opener);
        // The function may be the same user to the kernel; its init's memory is still none of its business. Not earlier:
        // it closes /proc/self to us, too.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .step(|| "hide the init's memory".to_owned())?;
        if let Some(filter) = filter {
            drop_privileges(plan.identity, filter)?;
        }
        if let Some(tunnel) = tunnel {
            wire::send_frame(self.control.as_fd(), &Report::Tunnel, &[tunnel.as_fd()])
                .step(|| "report to the runner".to_owned())?;
        }
        // What was spent is let go of with us.
        let mounts::Built { shared, spent: _spent } = built;
        let descriptors: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
        wire::send_frame(self.control.as_fd(), &Report::Built, &descriptors)
            .step(|| "report to the runner".to_owned())?;
        drop(shared);
        let zygote = zygote.map(|socket| Zygote::new(child, socket));
        let mut tree = ProcessTree::new(child, zygote, begin.isolate, signals, &plan)?;
        drop(plan);
        self.look_after(&mut tree)
    }

    /// The pipes of a process to be, and the stream by which it is started.
    fn pipes(&mut self) -> Result<[OwnedFd; 4], Failure> {
        let mut descriptor = || {
            self.inbox.descriptor().ok_or(Failure {
                function: false,
                step: "receive the function's pipes".to_owned(),
                errno: libc::EBADMSG,
            })
        };
        Ok([descriptor()?, descriptor()?, descriptor()?, descriptor()?])
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
            Err(error) if wire::is_gone(&error) => Ok(false),
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

    /// Clones the function's process and, where it has one, writes its user namespace's maps. It shares our mount namespace, and
    /// moves to the new root with us.
    fn clone_function(
        &self,
        begin: &Begin,
        plan: &Plan,
        pipes: [OwnedFd; 4],
        filter: Option<&[libc::sock_filter]>,
        kernel: &mut Option<mounts::Kernel>,
    ) -> Result<Cloned, Failure> {
        let step = || "clone the function's process".to_owned();
        let (gate, opener) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(step)?;
        let (ours, theirs) = zygote::sockets(plan).step(step)?.unzip();
        let maps = plan.identity.maps(plan.user);
        let namespaces = if maps.is_some() { libc::CLONE_NEWUSER } else { 0 };
        match sys::clone(namespaces, None).step(step)? {
            Side::Child => {
                drop((opener, ours, kernel.take()));
                launch::run(plan, begin.isolate, pipes, &gate, theirs, filter)
            }
            Side::Parent { pid, pidfd } => {
                drop((gate, theirs));
                let users = maps.map(|maps| user_namespace(&pidfd, &maps)).transpose()?;
                launch::open(&opener)?;
                Ok(Cloned { child: pid, opener, users, zygote: ours })
            }
        }
    }

    /// Until the runner or the spawner ends, or the function where the sandbox does not stay.
    fn look_after(&mut self, tree: &mut ProcessTree) -> Result<(), Failure> {
        let mut wait = Duration::ZERO;
        loop {
            let limit = tree.watches().then_some(wait);
            let (control, alive, signal) = self.ready(Some(tree.signals()), limit)?;
            if !alive || (control && !self.fill()?) {
                if !alive {
                    // The runner may be gone, too.
                    wire::send_frame(self.control.as_fd(), &Report::Orphaned, &[]).ok();
                }
                tree.kill();
                return Ok(());
            }
            if signal {
                for report in tree.hear() {
                    let last = matches!(report, Report::Ended(_));
                    wire::send_frame(self.control.as_fd(), &report, &[])
                        .step(|| "report an end".to_owned())?;
                    if last {
                        return Ok(());
                    }
                }
            }
            while let Some(order) = self.inbox.take().step(|| "understand the runner".to_owned())? {
                self.obey(order, tree)?;
            }
            if tree.is_over() {
                return Ok(());
            }
            if tree.watches() {
                wait = tree.look();
            }
        }
    }

    fn obey(&mut self, order: Order, tree: &mut ProcessTree) -> Result<(), Failure> {
        let mut listener = None;
        let report = match order {
            Order::Terminate => {
                tree.terminate();
                return Ok(());
            }
            Order::KillCommand => {
                tree.kill_command();
                return Ok(());
            }
            Order::Kill => {
                tree.end();
                return Ok(());
            }
            Order::Again => made(tree.again(self.pipes()?)),
            Order::Spawn { number, program } => made(tree.spawn(number, program, self.pipes()?)),
            Order::Stop => {
                tree.stop();
                Report::Stopped
            }
            Order::Continue => {
                tree.proceed();
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

fn made(done: Result<(), Failure>) -> Report {
    match done {
        Ok(()) => Report::Made,
        Err(failure) => Report::Refused(failure),
    }
}

/// Writes the maps of a cloned process's user namespace, and opens it. Our `/proc` is still the host's and knows the process by
/// another number than we do; its pidfd tells which.
fn user_namespace(process: &OwnedFd, maps: &[String; 2]) -> Result<OwnedFd, Failure> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text = fs::read_to_string(&path).step(|| format!("read {path}"))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap_or_default().trim();
    for (file, map) in ["uid_map", "gid_map"].into_iter().zip(maps) {
        let path = format!("/proc/{number}/{file}");
        fs::write(&path, map).step(|| format!("write {path}"))?;
    }
    let path = format!("/proc/{number}/ns/user");
    let users = fs::File::open(&path).step(|| format!("open {path}"))?;
    Ok(users.into())
}

/// What can be done before anything is known about the function.
fn begin_ahead(begin: &Begin) -> Result<Ahead, Failure> {
    own_signals();
    for procs in &begin.attach {
        fs::write(procs, "0").step(|| format!("enter the cgroup {}", procs.display()))?;
    }
    if !begin.isolate {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .step(|| "become the reaper of the function's processes".to_owned())?;
        return Ok(Ahead::default());
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
    if begin.network != NetworkPlan::Host {
        namespaces |= libc::CLONE_NEWNET;
    }
    sys::unshare(namespaces).step(|| "unshare the ipc, uts, cgroup and network namespaces".to_owned())?;
    // No capability comes back from here on: those that we have are given up at the end.
    sys::close_capabilities();
    // An ordinary user does not get out of a mount namespace again.
    let kernel = if begin.rootless.is_none() { mounts::ahead()? } else { None };
    if begin.network == NetworkPlan::Host {
        return Ok(Ahead { tunnel: None, kernel });
    }
    sys::interface_up(c"lo").step(|| "set the loopback interface up".to_owned())?;
    // Any port is free to a function that has the whole interface to itself. Not having it harms few.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").ok();
    // Nothing leaves the machine from in here, and pacing between two processes of it costs more than all else (`docs/adr/0052`).
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").ok();
    let tunnel = match begin.network {
        NetworkPlan::Tunnel { six } => Some(tunnel::make(six)?),
        NetworkPlan::Host | NetworkPlan::Own => None,
    };
    Ok(Ahead { tunnel, kernel })
}

/// A program is to be started with the default action of every signal: so that there is little to be changed then, we have it for most.
fn own_signals() {
    sys::default_actions();
    sys::ignore_signals(IGNORED);
}

fn die_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step(|| "ask for a death signal".to_owned())
}

/// Becomes as powerless as the function.
fn drop_privileges(identity: Identity, filter: &[libc::sock_filter]) -> Result<(), Failure> {
    // Paths that were open for the build must not stay reachable.
    sys::close_from_on_exec(ALIVE as u32 + 1);
    match identity {
        Identity::Mapped { user, .. } | Identity::Plain(user) => {
            become_user(User { uid: user, gid: user }, &[])?;
        }
        Identity::Inside | Identity::Renamed | Identity::Same => {}
    }
    seal(filter)
}

/// Changes user and groups for good.
fn become_user(user: User, groups: &[u32]) -> Result<(), Failure> {
    use rustix::process::{Gid, Uid};
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).step(|| "change the supplementary groups".to_owned())?;
    let (user, group) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
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
