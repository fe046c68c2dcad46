//! The cgroups of one sandbox: its limits, what it used, freezing and killing.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hierarchy::hierarchies;
use super::{Controller, Freezer, Limits, PERIOD_MICROS, kill_listed, listed};

/// The cgroups of one sandbox.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Leaf {
    pub(super) v2: Option<PathBuf>,
    pub(super) v2_controllers: Vec<Controller>,
    pub(super) v1: Vec<(PathBuf, Vec<Controller>)>,
    /// What a clone goes into; of no use after it.
    #[serde(skip)]
    pub(super) handle: Option<OwnedFd>,
    /// Files of limits, opened ahead: the first look at one in a new cgroup takes longer than all that is written to them.
    #[serde(skip)]
    pub(super) limits: Mutex<Vec<(PathBuf, fs::File)>>,
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
        let mut leaf = Self::default();
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

    /// The same, for whoever goes on with it.
    pub fn handed_over(&self) -> Self {
        let (v2, v2_controllers, v1) = (self.v2.clone(), self.v2_controllers.clone(), self.v1.clone());
        Self { v2, v2_controllers, v1, ..Self::default() }
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

    /// Opens the files that [`Leaf::limit`] will write to. Those that are not there, or not ours to write, are left to it.
    pub fn open_limits(&self) {
        let files: &[(Controller, &[&str], &[&str])] = &[
            (
                Controller::Memory,
                &["memory.max", "memory.swap.max"],
                &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness"],
            ),
            (Controller::Cpu, &["cpu.max"], &["cpu.cfs_period_us", "cpu.cfs_quota_us"]),
            (Controller::Pids, &["pids.max"], &["pids.max"]),
        ];
        let mut limits = self.limits();
        for (controller, second, first) in files {
            let Some((directory, v2)) = self.of(*controller) else { continue };
            for name in if v2 { *second } else { *first } {
                let path = directory.join(name);
                if let Ok(file) = fs::File::options().write(true).open(&path) {
                    limits.push((path, file));
                }
            }
        }
    }

    fn limits(&self) -> MutexGuard<'_, Vec<(PathBuf, fs::File)>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limits.
    ///
    /// # Errors
    /// Which file refused, and why.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let opened = std::mem::take(&mut *self.limits());
        let write =
            |path: &Path, value: &dyn std::fmt::Display| match opened.iter().find(|(it, _)| it == path) {
                Some((_, file)) => named(path, (&*file).write_all(value.to_string().as_bytes())),
                None => named(path, fs::write(path, value.to_string())),
            };
        let is_there = |path: &Path| {
            let writable = || path.metadata().is_ok_and(|file| file.permissions().mode() & 0o200 != 0);
            opened.iter().any(|(it, _)| it == path) || writable()
        };
        match self.of(Controller::Memory) {
            Some((directory, true)) => {
                write(&directory.join("memory.max"), &limits.memory)?;
                // Absent where the kernel has no swap accounting.
                let swap = directory.join("memory.swap.max");
                if is_there(&swap) {
                    write(&swap, &0)?;
                }
            }
            Some((directory, false)) => {
                write(&directory.join("memory.limit_in_bytes"), &limits.memory)?;
                let with_swap = directory.join("memory.memsw.limit_in_bytes");
                let swappiness = directory.join("memory.swappiness");
                if is_there(&with_swap) {
                    write(&with_swap, &limits.memory)?;
                } else if is_there(&swappiness) {
                    write(&swappiness, &0)?;
                }
            }
            None => {}
        }
        if limits.cpu_millis > 0 {
            // The kernel refuses a quota under one millisecond.
            let quota = (u64::from(limits.cpu_millis) * PERIOD_MICROS / 1000).max(1000);
            match self.of(Controller::Cpu) {
                Some((directory, true)) => {
                    write(&directory.join("cpu.max"), &format_args!("{quota} {PERIOD_MICROS}"))?;
                }
                Some((directory, false)) => {
                    write(&directory.join("cpu.cfs_period_us"), &PERIOD_MICROS)?;
                    write(&directory.join("cpu.cfs_quota_us"), &quota)?;
                }
                None => {}
            }
        }
        if let Some((directory, _)) = self.of(Controller::Pids) {
            write(&directory.join("pids.max"), &limits.pids)?;
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

    /// Memory now and at most, in bytes; zero where it is not counted.
    pub fn memory(&self) -> (u64, u64) {
        match self.of(Controller::Memory) {
            Some((directory, true)) => {
                // Kernels before 5.19 do not count the peak.
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
            Some((directory, true)) => put(&directory.join("memory.reclaim"), self.memory().0.max(1)),
            Some((directory, false)) => put(&directory.join("memory.force_empty"), 0),
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

/// Only where the kernel has the file: of one that it does not have, it would refuse that we make it.
fn put(path: &Path, value: u64) -> io::Result<()> {
    fs::File::options().write(true).open(path)?.write_all(value.to_string().as_bytes())
}

fn named(path: &Path, done: io::Result<()>) -> io::Result<()> {
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
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
            ..Leaf::default()
        };
        leaf.limit(&Limits { memory: 1 << 20, cpu_millis: 250, pids: 7 }).unwrap();
        let read = |file| fs::read_to_string(directory.join(file)).unwrap();
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("pids.max"), "7");
        assert_eq!(leaf.memory_kills(), 2);
        assert_eq!(leaf.cpu(), Duration::from_micros(1500));
        // What older kernels lack is not made up.
        fs::write(directory.join("memory.current"), "4096\n").unwrap();
        assert_eq!(leaf.memory(), (4096, 0));
        assert_eq!(leaf.reclaim().unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert!(!directory.join("memory.reclaim").exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
