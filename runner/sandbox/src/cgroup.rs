//! Control groups: limits, freezing, killing and counting, on version 1, version 2 and machines that have both.
//!
//! A [`Base`] is this runner's own directory in every hierarchy it may write to, below the cgroup it was started in where
//! that is possible, so that what limits the runner limits its functions too. A [`Leaf`] is one sandbox's. Version 2 is
//! used for whatever it offers; an empty version 2 tree beside version 1 controllers still freezes and kills. The
//! sticky, machine-wide mount option `favordynmods` is never touched.

mod hierarchy;
mod leaf;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

use self::hierarchy::{Hierarchy, hierarchies};
pub use self::leaf::Leaf;

/// Name in front of every directory that this crate makes for sandboxes.
pub const PREFIX: &str = "stoker.";
/// Where we go ourselves, and who else is in our cgroup, to make room for others in it.
const ASIDE: &str = "stoker-runner";
/// The period of a CPU quota. Short enough that a function with a small share is not stalled for long.
pub const PERIOD_MICROS: u64 = 100_000;

/// What the hierarchies of this machine offer to us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Our directory in the version 2 tree.
    pub v2: Option<PathBuf>,
    /// Version 2 controllers that our leaves have.
    pub v2_controllers: Vec<Controller>,
    /// Our directories in version 1 hierarchies, with the controllers of each.
    pub v1: Vec<(PathBuf, Vec<Controller>)>,
}

/// A controller that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

impl Base {
    /// Every directory that [`Base::create`] may make, to be written down before it does.
    pub fn places(name: &str, parent: Option<&Path>) -> Vec<PathBuf> {
        let hierarchies = hierarchies_here();
        hierarchies
            .iter()
            .flat_map(|hierarchy| above(hierarchy, parent))
            .map(|above| above.join(name))
            .collect()
    }

    /// Makes directories named `name` in every hierarchy we may write to. What cannot be had is left out: look at
    /// [`Base::has`].
    pub fn create(name: &str, parent: Option<&Path>) -> Self {
        let mut base = Self::default();
        for hierarchy in hierarchies_here() {
            let above = above(&hierarchy, parent);
            if hierarchy.v2 {
                base.create_v2(&hierarchy, name, &above);
                continue;
            }
            let mut directories = above.iter().map(|above| above.join(name));
            if let Some(directory) = directories.find(|directory| fs::create_dir(directory).is_ok()) {
                base.v1.push((directory, hierarchy.controllers));
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

    /// Version 2: in whichever of these gives the most controllers.
    fn create_v2(&mut self, hierarchy: &Hierarchy, name: &str, candidates: &[&Path]) {
        let mut best: Option<(PathBuf, Vec<Controller>)> = None;
        for candidate in candidates.iter().copied() {
            // Controllers can be handed down only by a cgroup without processes of its own: we go to another within it where it is ours.
            if enable_controllers(candidate).is_err()
                && move_aside(candidate, candidate == hierarchy.mount).is_ok()
            {
                enable_controllers(candidate).ok();
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

    /// The cgroups of this name that another engine has made below ours, for looking after.
    pub fn lent(&self, name: &str) -> Leaf {
        let v1 = self.v1.iter().map(|(directory, controllers)| (directory.join(name), controllers.clone()));
        Leaf {
            v2: self.v2.as_ref().map(|directory| directory.join(name)),
            v2_controllers: self.v2_controllers.clone(),
            v1: v1.collect(),
            ..Leaf::default()
        }
    }

    /// Makes our directories again, should somebody have removed them. What was in them has ended with them.
    ///
    /// # Errors
    /// What `mkdir` says, or which controllers cannot be had any more.
    pub fn restore(&self) -> io::Result<()> {
        for directory in self.directories() {
            match make_directory(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            tracing::warn!(directory = %directory.display(), "somebody has removed the cgroup of all sandboxes: it was made again");
        }
        let Some(directory) = &self.v2 else { return Ok(()) };
        enable_controllers(directory).ok();
        let given = listed(&directory.join("cgroup.subtree_control"));
        let missing: Vec<_> = self.v2_controllers.iter().filter(|had| !given.contains(had)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missing.iter().map(|controller| controller.name()).collect();
        Err(io::Error::other(format!("{} has no longer: {}", directory.display(), names.join(", "))))
    }

    /// Makes one sandbox's cgroups. Limits come later.
    ///
    /// # Errors
    /// What `mkdir` says of which directory; nothing is left behind.
    pub fn leaf(&self, name: &str) -> io::Result<Leaf> {
        let mut leaf = Leaf { v2_controllers: self.v2_controllers.clone(), ..Leaf::default() };
        let made = (|| {
            for (directory, controllers) in &self.v1 {
                let path = directory.join(name);
                make_directory(&path)?;
                leaf.v1.push((path, controllers.clone()));
            }
            if let Some(directory) = &self.v2 {
                let path = directory.join(name);
                make_directory(&path)?;
                let handle = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
                leaf.v2 = Some(path);
                leaf.handle = Some(handle?);
            }
            Ok(())
        })();
        match made {
            Ok(()) => {
                leaf.open_limits();
                Ok(leaf)
            }
            Err(error) => {
                for directory in leaf.directories() {
                    fs::remove_dir(directory).ok();
                }
                Err(error)
            }
        }
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// The hierarchies of this machine.
fn hierarchies_here() -> Vec<Hierarchy> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// Where our directory in a hierarchy may be: below the configured parent (in version 2), our own cgroup, or the top.
fn above<'a>(hierarchy: &'a Hierarchy, parent: Option<&'a Path>) -> Vec<&'a Path> {
    if let Some(parent) = parent.filter(|_| hierarchy.v2) {
        return vec![parent];
    }
    // Where we have moved aside before, ours is the one around.
    let own = match hierarchy.own.parent() {
        Some(around) if hierarchy.v2 && hierarchy.own.ends_with(ASIDE) => around,
        _ => hierarchy.own.as_path(),
    };
    let mut above = vec![own, hierarchy.mount.as_path()];
    above.dedup();
    above
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

    /// Asks again for what is under way: in version 1 a process that came to stand in its debugger's hands meanwhile is only frozen by another write.
    ///
    /// # Errors
    /// What the system says.
    pub fn insist(&self) -> io::Result<()> {
        match self {
            Self::V1(directory)
                if fs::read_to_string(directory.join("freezer.state"))?.trim() == "FREEZING" =>
            {
                self.set(true)
            }
            _ => Ok(()),
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
    let mut missing = listed(&directory.join("cgroup.controllers"));
    missing.retain(|controller| !enabled.contains(controller));
    // With processes in it (but at the machine's own top), those for CPU and processes would be handed down all the same, to children that
    // no process may enter any more, but threads of these.
    let inner = !missing.is_empty() && directory.join("cgroup.type").exists();
    if inner && !fs::read_to_string(directory.join("cgroup.procs"))?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "processes live in it"));
    }
    let mut refused = Ok(());
    for controller in missing {
        let wanted = format!("+{}", controller.name());
        if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), wanted) {
            refused = Err(error);
        }
    }
    refused
}

/// Moves what lives in `directory` to a child of it: this process where it is the only one, as in a service with a delegated tree. At
/// the `top` of what we see everybody: there it is a container's, whose first process may be another.
fn move_aside(directory: &Path, top: bool) -> io::Result<()> {
    // The machine's own top, which alone has no such file, needs none of it, and is everybody's.
    let whole = top && directory.join("cgroup.type").exists();
    let own = std::process::id().to_string();
    let aside = directory.join(ASIDE);
    // Who starts another process meanwhile leaves it behind.
    for _ in 0..100 {
        let processes = fs::read_to_string(directory.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        if !whole && processes.trim() != own {
            break;
        }
        match fs::create_dir(&aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for process in processes.lines() {
            match fs::write(aside.join("cgroup.procs"), process) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other processes live in it"))
}

fn listed(path: &Path) -> Vec<Controller> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(Controller::parse)
        .filter(|controller| matches!(controller, Controller::Memory | Controller::Cpu | Controller::Pids))
        .collect()
}
