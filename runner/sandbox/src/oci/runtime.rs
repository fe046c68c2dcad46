//! The runtime's own side: how its commands are run, and what it takes to clear a life away. Done by the monitor.
//!
//! Where the host has both versions of cgroups and the controllers are in version 1, commands see that version alone: crun refuses a
//! mixture. Private layers over a root are mounted in the command's own mount namespace, from which the container's is made; so nothing
//! that we mount is ever seen on the host, and nothing has to be unmounted, whenever anybody dies.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chownat, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_change,
    mount_remount, move_mount, unmount,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::init::mounts::inside;
use crate::sys::{self, Side};

/// Where a life keeps what the next one needs to clear it away.
const RECORD: &str = "engine.json";
const CONTAINERS: &str = "containers";
const RUNTIME: &str = "runtime";
/// Exit status of a process that could not run its command, as shells have it.
const NOT_RUN: i32 = 127;

/// One command of the runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// After the program and its `--root`.
    pub arguments: Vec<String>,
    /// Where what it and the container's init say goes.
    pub output: PathBuf,
    pub layers: Option<Layers>,
}

/// Mounts that a command sees, and the container that it makes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layers {
    /// Where the layers' own file system is mounted while overlays are made over it.
    pub directory: PathBuf,
    pub size: u64,
    /// Who may write at the top of them; nobody if absent.
    pub owner: Option<u32>,
    /// A directory to be made in the first, for the owner, if it is not there.
    pub workdir: Option<PathBuf>,
    /// A directory, and where it is mounted with its layer.
    pub overlays: Vec<(PathBuf, PathBuf)>,
    /// A directory, and where it is mounted as it is, read-only: privileges that files of it give, and devices in it, mean nothing there.
    pub shown: Option<(PathBuf, PathBuf)>,
    /// Where the mount goes that was handed over with the command.
    #[serde(default)]
    pub handed: Option<PathBuf>,
}

/// What a life has that its runtime must remove.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub runtime: PathBuf,
    pub cgroups: Vec<PathBuf>,
    /// Of the runtime: it gives each container a kernel of its own.
    #[serde(default)]
    pub own_kernel: bool,
}

impl Record {
    /// Writes it down, and makes the places for the runtime's own state and for containers.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, life: &Path) -> io::Result<()> {
        for name in [CONTAINERS, RUNTIME] {
            fs::create_dir(life.join(name))?;
        }
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        fs::write(life.join(RECORD), bytes)
    }

    /// What a life has written down.
    pub fn read(life: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(life.join(RECORD)).ok()?).ok()
    }
}

/// The directory of one container.
pub fn bundle(life: &Path, name: &str) -> PathBuf {
    life.join(CONTAINERS).join(name)
}

/// What a runtime has written down as the number of a process.
pub fn number(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

/// The runtime, for one life.
pub struct Runtime {
    life: PathBuf,
    record: Record,
    hidden: Vec<PathBuf>,
}

impl Runtime {
    /// The one that a life wrote down; nothing if it did not come to that.
    pub fn of(life: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let record = Record::read(life)?;
        Some(Self { life: life.to_path_buf(), record, hidden: unified_beside_v1(&mounts) })
    }

    /// Starts a command, with a mount for its layers where one was handed over. What stops it from running is said in its output.
    ///
    /// # Errors
    /// What the system says before there is a process.
    pub fn start(&self, command: &Command, handed: Option<&OwnedFd>) -> io::Result<Pid> {
        let root = self.life.join(RUNTIME);
        let mut arguments = vec![text(&self.record.runtime)?, c"--root".to_owned(), text(&root)?];
        for argument in &command.arguments {
            arguments.push(CString::new(argument.as_str())?);
        }
        let path = concat!("PATH=", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let environment = [CString::new(path)?];
        let output = File::options().create(true).append(true).open(&command.output)?;
        match sys::clone(0, None)? {
            Side::Parent { pid, .. } => Ok(pid),
            Side::Child => {
                let error = self
                    .prepare(command, &output, handed)
                    .err()
                    .unwrap_or_else(|| sys::execve(&arguments[0], &arguments, &environment));
                let line = format!("{}: {error}\n", self.record.runtime.display());
                rustix::io::write(&output, line.as_bytes()).ok();
                sys::exit(NOT_RUN)
            }
        }
    }

    /// In the child.
    fn prepare(&self, command: &Command, output: &File, handed: Option<&OwnedFd>) -> io::Result<()> {
        sys::place(output.as_fd(), 1)?;
        sys::place(output.as_fd(), 2)?;
        sys::close_from_on_exec(3);
        sys::default_actions();
        sys::unblock_signals();
        if self.hidden.is_empty() && command.layers.is_none() {
            return Ok(());
        }
        sys::unshare(libc::CLONE_NEWNS)?;
        // What the host unmounts from now on shall not be held by us; what we mount, it shall not see.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        for directory in &self.hidden {
            unmount(directory, UnmountFlags::DETACH)?;
        }
        command.layers.as_ref().map_or(Ok(()), |layers| layers.mount(handed))
    }

    /// Kills and removes every container of this life, and hands on which other processes have `ended` meanwhile: the runtime may wait for
    /// their reaping. Says how many it could not remove.
    pub fn clear(&self, mut ended: impl FnMut(Pid, WaitStatus)) -> i32 {
        for directory in &self.record.cgroups {
            cgroup::kill_all(directory);
        }
        let entries = fs::read_dir(self.life.join(CONTAINERS)).into_iter().flatten().flatten();
        let mut left = 0;
        for name in entries.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            let command = Command {
                arguments: vec!["delete".to_owned(), "--force".to_owned(), name.clone()],
                output: bundle(&self.life, &name).join("removal"),
                layers: None,
            };
            let removed = self.start(&command, None).is_ok_and(|pid| {
                loop {
                    match wait(WaitOptions::empty()) {
                        Ok(Some((done, status))) if done == pid => break status.exit_status() == Some(0),
                        Ok(Some((other, status))) => ended(other, status),
                        Ok(None) | Err(rustix::io::Errno::INTR) => {}
                        Err(_) => break false,
                    }
                }
            });
            // One that the runtime does not know of was removed before, or never came to be.
            left += i32::from(!removed && self.life.join(RUNTIME).join(&name).exists());
        }
        left
    }

    /// Removes the cgroups, once everything is cleared.
    pub fn remove_cgroups(&self) {
        for directory in &self.record.cgroups {
            if let Err(error) = cgroup::remove_tree(directory) {
                eprintln!("sandbox monitor: remove {}: {error}", directory.display());
            }
        }
    }
}

impl Layers {
    fn mount(&self, handed: Option<&OwnedFd>) -> io::Result<()> {
        if let (Some(at), Some(mount)) = (&self.handed, handed) {
            move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        if let Some((directory, at)) = &self.shown {
            mount_bind_recursive(directory, at)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(at, flags, c"")?;
        }
        if self.overlays.is_empty() {
            return Ok(());
        }
        let layers = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&layers, "mode", "0755")?;
        fsconfig_set_string(&layers, "size", self.size.max(1).to_string())?;
        attach(layers, &self.directory)?;
        for (number, (lower, at)) in self.overlays.iter().enumerate() {
            let (upper, work) =
                (self.directory.join(number.to_string()), self.directory.join(format!("{number}.work")));
            fs::create_dir(&upper)?;
            fs::create_dir(&work)?;
            chown(&upper, self.owner, self.owner)?;
            let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            // The separator of lower directories is a colon, and the escape a backslash.
            let escaped = lower.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
            fsconfig_set_string(&overlay, "lowerdir", escaped.as_str())?;
            fsconfig_set_string(&overlay, "upperdir", upper.as_path())?;
            fsconfig_set_string(&overlay, "workdir", work.as_path())?;
            let root = attach(overlay, at)?;
            if let (Some(workdir), 0) = (&self.workdir, number) {
                self.make(&root, workdir)?;
            }
        }
        Ok(())
    }

    /// Makes a directory in a root, and what is missing on the way to it. Links of the root lead nowhere else.
    fn make(&self, root: &OwnedFd, directory: &Path) -> io::Result<()> {
        let mut so_far = PathBuf::from("/");
        let mut at = inside(root, &so_far)?;
        let mut made = false;
        for name in directory.strip_prefix("/").unwrap_or(directory) {
            so_far.push(name);
            at = match inside(root, &so_far) {
                Err(rustix::io::Errno::NOENT) => {
                    mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                    made = true;
                    inside(root, &so_far)?
                }
                found => found?,
            };
        }
        if let (true, Some(owner)) = (made, self.owner) {
            let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
            chownat(&at, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }
}

fn attach(context: OwnedFd, at: &Path) -> io::Result<OwnedFd> {
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(mount)
}

fn text(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Where version 2 of cgroups is mounted beside version 1 with controllers.
fn unified_beside_v1(mounts: &str) -> Vec<PathBuf> {
    let of = |kind: &str| -> BTreeSet<PathBuf> {
        let line = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let found = after.split(' ').next()? == kind;
            found.then(|| before.split(' ').nth(4).map(PathBuf::from))?
        };
        mounts.lines().filter_map(line).collect()
    };
    if of("cgroup").is_empty() { Vec::new() } else { of("cgroup2").into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_cgroup_versions_is_seen() {
        let v1 = "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        let v2 = "33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(unified_beside_v1(&format!("{v1}\n{v2}")), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert!(unified_beside_v1(v1).is_empty());
        assert!(unified_beside_v1(v2).is_empty());
    }
}
