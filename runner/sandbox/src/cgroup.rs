//! Control groups: limits, freezing, killing and counting, on version 1, version 2 and machines that have both.
//!
//! A [`Base`] is this runner's own directory in every hierarchy it may write to, below the cgroup it was started in where
//! that is possible, so that what limits the runner limits its functions too. A [`Leaf`] is one sandbox's. Version 2 is
//! used for whatever it offers; an empty version 2 tree beside version 1 controllers still freezes and kills. The
//! sticky, machine-wide mount option `favordynmods` is never touched.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};

/// Name in front of every directory that this crate makes.
pub const PREFIX: &str = "stoker.";
/// The period of a CPU quota. Short enough that a function with a small share is not stalled for long.
pub const PERIOD_MICROS: u64 = 100_000;

/// What the hierarchies of this machine offer to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base {
    /// Our directory in the version 2 tree.
    pub v2: Option<PathBuf>,
    /// Version 2 controllers that our leaves have.
    pub v2_controllers: Vec<Controller>,
    /// Our directories in version 1 hierarchies, with the controllers of each.
    pub v1: Vec<(PathBuf, Vec<Controller>)>,
}

/// A controller that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Memory,
    Cpu,
    CpuAccounting,
    Pids,
    Freezer,
}

impl Controller {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "memory" => Self::Memory,
            "cpu" => Self::Cpu,
            "cpuacct" => Self::CpuAccounting,
            "pids" => Self::Pids,
            "freezer" => Self::Freezer,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub memory: u64,
    pub cpu_millis: u32,
    pub pids: u32,
}

/// A hierarchy as it is mounted, and the directory in it that we were started in.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    own: PathBuf,
    /// Empty for version 2.
    controllers: Vec<Controller>,
    v2: bool,
}

/// Reads where hierarchies are mounted (`/proc/self/mountinfo`) and where in them we are (`/proc/self/cgroup`).
fn hierarchies(mounts: &str, membership: &str) -> Vec<Hierarchy> {
    let mut found = Vec::<Hierarchy>::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        let (Some(root), Some(mount), Some(kind), Some(options)) =
            (before.get(3), before.get(4), after.first(), after.get(2))
        else {
            continue;
        };
        let v2 = match *kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let controllers: Vec<_> = options.split(',').filter_map(Controller::parse).collect();
        if !v2 && controllers.is_empty() {
            continue;
        }
        let path = membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = if v2 {
                names.is_empty()
            } else {
                names.split(',').filter_map(Controller::parse).any(|name| controllers.contains(&name))
            };
            ours.then_some(path)
        });
        // Where the mount shows only a part of the tree (a container without a cgroup namespace), paths count from there.
        let own = path
            .and_then(|path| Path::new(path).strip_prefix(root).ok())
            .filter(|path| !path.components().any(|part| part.as_os_str() == ".."))
            .unwrap_or(Path::new(""));
        let mount = PathBuf::from(mount);
        // The same hierarchy may be mounted twice; once is enough.
        let known = |seen: &Hierarchy| seen.v2 == v2 && (v2 || seen.controllers == controllers);
        if !found.iter().any(known) {
            found.push(Hierarchy { own: mount.join(own), mount, controllers, v2 });
        }
    }
    found
}

impl Base {
    /// Makes directories named `name` in every hierarchy we may write to. What cannot be had is left out: look at
    /// [`Base::has`].
    pub fn create(name: &str, parent: Option<&Path>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut base = Self::default();
        for hierarchy in hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")) {
            if hierarchy.v2 {
                base.create_v2(&hierarchy, name, parent);
            } else {
                let own = hierarchy.own.join(name);
                let made = fs::create_dir(&own).map(|()| own).or_else(|_| {
                    let top = hierarchy.mount.join(name);
                    fs::create_dir(&top).map(|()| top)
                });
                if let Ok(directory) = made {
                    base.v1.push((directory, hierarchy.controllers));
                }
            }
        }
        // A version 1 hierarchy is only used for what version 2 does not give.
        if base.v2.is_some() {
            let v2 = base.v2_controllers.clone();
            base.v1.retain(|(directory, controllers)| {
                let needed = controllers.iter().any(|controller| {
                    *controller != Controller::Freezer
                        && !v2.contains(controller)
                        && !(*controller == Controller::CpuAccounting && v2.contains(&Controller::Cpu))
                });
                if !needed {
                    fs::remove_dir(directory).ok();
                }
                needed
            });
        }
        base
    }

    /// Version 2: below the configured parent, our own cgroup, or the top, whichever gives the most controllers.
    fn create_v2(&mut self, hierarchy: &Hierarchy, name: &str, parent: Option<&Path>) {
        let mut candidates: Vec<PathBuf> = match parent {
            Some(parent) => vec![parent.to_path_buf()],
            None => vec![hierarchy.own.clone(), hierarchy.mount.clone()],
        };
        candidates.dedup();
        let mut best: Option<(PathBuf, Vec<Controller>)> = None;
        for candidate in candidates {
            if enable_controllers(&candidate).is_err() {
                // Controllers can be handed down only by a cgroup without processes of its own. Where we are alone in
                // ours (a service with a delegated tree), we move aside within it.
                if move_aside(&candidate).is_ok() {
                    enable_controllers(&candidate).ok();
                }
            }
            let directory = candidate.join(name);
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            enable_controllers(&directory).ok();
            let controllers = listed(&directory.join("cgroup.subtree_control"));
            if best.as_ref().is_none_or(|(_, had)| had.len() < controllers.len()) {
                if let Some((old, _)) = best.replace((directory, controllers)) {
                    fs::remove_dir(old).ok();
                }
            } else {
                fs::remove_dir(directory).ok();
            }
        }
        if let Some((directory, controllers)) = best {
            self.v2 = Some(directory);
            self.v2_controllers = controllers;
        }
    }

    /// Whether leaves have this controller, in either version.
    pub fn has(&self, controller: Controller) -> bool {
        self.v2_controllers.contains(&controller)
            || self.v1.iter().any(|(_, controllers)| controllers.contains(&controller))
    }

    /// Whether leaves can be frozen.
    pub fn freezes(&self) -> bool {
        self.v2.is_some() || self.has(Controller::Freezer)
    }

    /// Every directory of this base.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.v2.iter().chain(self.v1.iter().map(|(directory, _)| directory)).cloned().collect()
    }

    /// Makes one sandbox's cgroups. Limits come later.
    ///
    /// # Errors
    /// What `mkdir` says; nothing is left behind.
    pub fn leaf(&self, name: &str) -> io::Result<Leaf> {
        let mut leaf =
            Leaf { v2: None, v2_controllers: self.v2_controllers.clone(), v1: Vec::new(), handle: None };
        let made = (|| {
            for (directory, controllers) in &self.v1 {
                let path = directory.join(name);
                fs::create_dir(&path)?;
                leaf.v1.push((path, controllers.clone()));
            }
            if let Some(directory) = &self.v2 {
                let path = directory.join(name);
                fs::create_dir(&path)?;
                let handle = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
                leaf.v2 = Some(path);
                leaf.handle = Some(handle?);
            }
            Ok(())
        })();
        match made {
            Ok(()) => Ok(leaf),
            Err(error) => {
                for directory in leaf.directories() {
                    fs::remove_dir(directory).ok();
                }
                Err(error)
            }
        }
    }
}

/// The cgroups of one sandbox.
#[derive(Debug)]
pub struct Leaf {
    v2: Option<PathBuf>,
    v2_controllers: Vec<Controller>,
    v1: Vec<(PathBuf, Vec<Controller>)>,
    handle: Option<OwnedFd>,
}

impl Leaf {
    /// The cgroups that another engine put a process in, for looking after. What it shares with us, or with everybody, is not its own
    /// and left out.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: rustix::process::Pid) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let ours = hierarchies(&mounts, &fs::read_to_string("/proc/self/cgroup")?);
        let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
        let mut leaf = Self { v2: None, v2_controllers: Vec::new(), v1: Vec::new(), handle: None };
        for theirs in hierarchies(&mounts, &fs::read_to_string(path)?) {
            let shared = ours.iter().any(|ours| ours.own.starts_with(&theirs.own));
            if shared || !theirs.own.is_dir() {
                continue;
            }
            if theirs.v2 {
                leaf.v2_controllers = listed(&theirs.own.join("cgroup.controllers"));
                leaf.v2 = Some(theirs.own);
            } else {
                leaf.v1.push((theirs.own, theirs.controllers));
            }
        }
        Ok(leaf)
    }

    /// The version 2 directory, for a clone straight into it.
    pub fn handle(&self) -> Option<&OwnedFd> {
        self.handle.as_ref()
    }

    /// The files of version 1 by which a process of one thread enters by itself. Not `cgroup.procs`: that locks every process of the
    /// machine in place, which waits for a grace period of 5 to 13 ms; a thread that moves itself needs no such lock.
    pub fn attach(&self) -> Vec<PathBuf> {
        self.v1.iter().map(|(directory, _)| directory.join("tasks")).collect()
    }

    /// Every directory of this leaf.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.v2.iter().chain(self.v1.iter().map(|(directory, _)| directory)).cloned().collect()
    }

    fn of(&self, controller: Controller) -> Option<(&Path, bool)> {
        if self.v2_controllers.contains(&controller) {
            return self.v2.as_deref().map(|directory| (directory, true));
        }
        self.v1
            .iter()
            .find(|(_, controllers)| controllers.contains(&controller))
            .map(|(directory, _)| (directory.as_path(), false))
    }

    /// Sets the limits.
    ///
    /// # Errors
    /// Which file refused, and why.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        match self.of(Controller::Memory) {
            Some((directory, true)) => {
                write(&directory.join("memory.max"), limits.memory)?;
                // Absent where the kernel has no swap accounting.
                write_if_there(&directory.join("memory.swap.max"), 0)?;
            }
            Some((directory, false)) => {
                write(&directory.join("memory.limit_in_bytes"), limits.memory)?;
                let with_swap = directory.join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    write(&with_swap, limits.memory)?;
                } else {
                    write_if_there(&directory.join("memory.swappiness"), 0)?;
                }
            }
            None => {}
        }
        if limits.cpu_millis > 0 {
            // The kernel refuses a quota under one millisecond.
            let quota = (u64::from(limits.cpu_millis) * PERIOD_MICROS / 1000).max(1000);
            match self.of(Controller::Cpu) {
                Some((directory, true)) => {
                    write(&directory.join("cpu.max"), format_args!("{quota} {PERIOD_MICROS}"))?;
                }
                Some((directory, false)) => {
                    write(&directory.join("cpu.cfs_period_us"), PERIOD_MICROS)?;
                    write(&directory.join("cpu.cfs_quota_us"), quota)?;
                }
                None => {}
            }
        }
        if let Some((directory, _)) = self.of(Controller::Pids) {
            write(&directory.join("pids.max"), limits.pids)?;
        }
        Ok(())
    }

    /// Processes that the kernel killed in it for memory.
    pub fn memory_kills(&self) -> u64 {
        match self.of(Controller::Memory) {
            Some((directory, true)) => field(&directory.join("memory.events"), "oom_kill"),
            Some((directory, false)) => field(&directory.join("memory.oom_control"), "oom_kill"),
            None => 0,
        }
    }

    /// Memory now and at most, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        match self.of(Controller::Memory) {
            Some((directory, true)) => {
                (number(&directory.join("memory.current")), number(&directory.join("memory.peak")))
            }
            Some((directory, false)) => (
                number(&directory.join("memory.usage_in_bytes")),
                number(&directory.join("memory.max_usage_in_bytes")),
            ),
            None => (0, 0),
        }
    }

    /// Has the kernel take back what it can of its memory: caches of files, and with swap the rest. Takes as long as it takes.
    ///
    /// # Errors
    /// `Unsupported` without a memory controller that can do it.
    pub fn reclaim(&self) -> io::Result<()> {
        let done = match self.of(Controller::Memory) {
            Some((directory, true)) => {
                fs::write(directory.join("memory.reclaim"), self.memory().0.max(1).to_string())
            }
            Some((directory, false)) => fs::write(directory.join("memory.force_empty"), "0"),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match done {
            // Less than all of it could be taken, as is usual.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::ErrorKind::Unsupported.into()),
            done => done,
        }
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Duration {
        if let Some((directory, false)) = self.of(Controller::CpuAccounting) {
            return Duration::from_nanos(number(&directory.join("cpuacct.usage")));
        }
        // cpu.stat counts time on version 2 even without the controller.
        self.v2.as_ref().map_or(Duration::ZERO, |directory| {
            Duration::from_micros(field(&directory.join("cpu.stat"), "usage_usec"))
        })
    }

    /// How it is frozen, if it can be.
    pub fn freezer(&self) -> Option<Freezer> {
        if let Some(directory) = &self.v2 {
            return Some(Freezer::V2(directory.clone()));
        }
        self.of(Controller::Freezer).map(|(directory, _)| Freezer::V1(directory.to_path_buf()))
    }

    /// Kills every process in it, frozen or not. `false` where there is no way to do it in one stroke.
    pub fn kill(&self) -> bool {
        if let Some(directory) = &self.v2 {
            return fs::write(directory.join("cgroup.kill"), "1").is_ok();
        }
        let Some((directory, _)) = self.of(Controller::Freezer) else { return false };
        // Stopped, nothing in it can fork away from under the list. The signals act on thawing.
        fs::write(directory.join("freezer.state"), "FROZEN").ok();
        kill_listed(directory);
        fs::write(directory.join("freezer.state"), "THAWED").ok();
        true
    }
}

/// Our own place in the tree for another engine to work below: the path by which it is named, and its directories in all
/// hierarchies, those that this crate does not use included.
pub fn place(base: &Base, name: &str) -> (PathBuf, Vec<PathBuf>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let top = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let cgroup = matches!(after.split(' ').next()?, "cgroup" | "cgroup2");
        cgroup.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    };
    let tops: Vec<PathBuf> = mounts.lines().filter_map(top).collect();
    // Limits are what it is for: where memory is limited, it is.
    let limited = base.v1.iter().find(|(_, controllers)| controllers.contains(&Controller::Memory));
    let chosen = limited.map(|(directory, _)| directory).or(base.v2.as_ref());
    let relative = chosen
        .and_then(|chosen| tops.iter().find_map(|top| chosen.strip_prefix(top).ok()))
        .map_or_else(|| PathBuf::from(name), Path::to_path_buf);
    let mut directories = base.directories();
    for directory in tops.iter().map(|top| top.join(&relative)) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    (Path::new("/").join(relative), directories)
}

/// A way to freeze one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freezer {
    V2(PathBuf),
    V1(PathBuf),
}

impl Freezer {
    /// Asks for it. It is done when [`Freezer::is_frozen`].
    ///
    /// # Errors
    /// What the write says.
    pub fn set(&self, frozen: bool) -> io::Result<()> {
        match self {
            Self::V2(directory) => fs::write(directory.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            Self::V1(directory) => {
                fs::write(directory.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
            }
        }
    }

    /// Whether everything in it stands still.
    ///
    /// # Errors
    /// What the read says.
    pub fn is_frozen(&self) -> io::Result<bool> {
        match self {
            Self::V2(directory) => {
                Ok(fs::read_to_string(directory.join("cgroup.events"))?.contains("frozen 1"))
            }
            Self::V1(directory) => {
                Ok(fs::read_to_string(directory.join("freezer.state"))?.trim() == "FROZEN")
            }
        }
    }

    /// The file that tells of a change by becoming readable with priority; version 1 has none.
    pub fn events(&self) -> Option<PathBuf> {
        match self {
            Self::V2(directory) => Some(directory.join("cgroup.events")),
            Self::V1(_) => None,
        }
    }
}

/// Kills every process in `directory` and below it, thawing what is frozen. For trees that nobody looks after any more.
pub fn kill_all(directory: &Path) {
    if fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for child in children(directory) {
        kill_all(&child);
    }
    fs::write(directory.join("freezer.state"), "FROZEN").ok();
    kill_listed(directory);
    fs::write(directory.join("freezer.state"), "THAWED").ok();
}

fn kill_listed(directory: &Path) {
    for line in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        // 0 stands for a process of another pid namespace: not ours to see, not ours to kill.
        if let Some(pid) = line.parse().ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

/// Removes an emptied tree of cgroups, deepest first. One that is not there any more is removed.
///
/// # Errors
/// What `rmdir` says: `ResourceBusy` while something lives in it.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    // Processes count until the scheduler has let go of them, an instant after their parent saw them end.
    for _ in 0..10_000 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                if !procs.is_empty() {
                    kill_all(directory);
                }
                rustix::thread::sched_yield();
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
    }
    fs::remove_dir(directory)
}

/// Cgroups below `directory`.
pub fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Hands memory, cpu and pids down to the children of `directory`, as far as it has them.
fn enable_controllers(directory: &Path) -> io::Result<()> {
    let enabled = listed(&directory.join("cgroup.subtree_control"));
    let mut refused = Ok(());
    for controller in listed(&directory.join("cgroup.controllers")) {
        if !enabled.contains(&controller) {
            let wanted = format!("+{}", controller.name());
            if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), wanted) {
                refused = Err(error);
            }
        }
    }
    refused
}

/// Moves this process, if it is the only one in `directory`, to a child of it.
fn move_aside(directory: &Path) -> io::Result<()> {
    let own = std::process::id().to_string();
    let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
    if procs.trim() != own {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "other processes live in it"));
    }
    let aside = directory.join("stoker-runner");
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(aside.join("cgroup.procs"), own)
}

fn listed(path: &Path) -> Vec<Controller> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(Controller::parse)
        .filter(|controller| matches!(controller, Controller::Memory | Controller::Cpu | Controller::Pids))
        .collect()
}

fn write(path: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    fs::write(path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn write_if_there(path: &Path, value: u64) -> io::Result<()> {
    match path.metadata() {
        Ok(metadata) if metadata.permissions().mode() & 0o200 != 0 => write(path, value),
        _ => Ok(()),
    }
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 20 0:30 / /home rw - ext4 /dev/vda rw";

    #[test]
    fn hierarchies_are_found_with_our_place_in_them() {
        let found = hierarchies(HYBRID, "4:memory:/a/b\n3:cpu,cpuacct:/\n0::/svc\n");
        let own: Vec<_> = found.iter().map(|hierarchy| hierarchy.own.to_str().unwrap()).collect();
        assert_eq!(
            own,
            ["/sys/fs/cgroup/cpu,cpuacct/", "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/unified/svc"]
        );
        assert_eq!(found[0].controllers, [Controller::Cpu, Controller::CpuAccounting]);
        assert!(found[2].v2);
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_tree_counts_from_there() {
        let mounts = "31 20 0:27 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let found = hierarchies(mounts, "4:memory:/docker/x\n");
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/memory/"));
        let outside = hierarchies(mounts, "4:memory:/../elsewhere\n");
        assert_eq!(outside[0].own, Path::new("/sys/fs/cgroup/memory/"));
    }

    /// A directory of plain files stands in for a kernel with version 2 controllers.
    #[test]
    fn limits_reach_the_files_of_version_2() {
        let directory = std::env::temp_dir().join(format!("stoker-cgroup-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for file in ["memory.max", "memory.swap.max", "cpu.max", "pids.max"] {
            fs::write(directory.join(file), "max").unwrap();
        }
        fs::write(directory.join("memory.events"), "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n").unwrap();
        fs::write(directory.join("cpu.stat"), "usage_usec 1500\nuser_usec 1000\n").unwrap();
        let leaf = Leaf {
            v2: Some(directory.clone()),
            v2_controllers: vec![Controller::Memory, Controller::Cpu, Controller::Pids],
            v1: Vec::new(),
            handle: None,
        };
        leaf.limit(&Limits { memory: 1 << 20, cpu_millis: 250, pids: 7 }).unwrap();
        let read = |file| fs::read_to_string(directory.join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("pids.max"), "7");
        assert_eq!(leaf.memory_kills(), 2);
        assert_eq!(leaf.cpu(), Duration::from_micros(1500));
        fs::remove_dir_all(directory).unwrap();
    }
}
