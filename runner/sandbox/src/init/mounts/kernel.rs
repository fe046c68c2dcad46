//! The file systems that show the kernel: `/dev`, `/proc` and `/sys`, each without what is none of a function's business.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::tree::*;
use super::{Builder, SHM_SIZE, in_a_user_namespace, inodes};
use crate::wire::{Failure, Step};

/// Paths below `/proc` that tell of the host's kernel or let it be driven; hidden. The same as other engines hide, and where the kernel's
/// functions lie, which some settings show to everybody.
pub const MASKED: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kallsyms",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// Paths below `/proc` that may be read only.
pub const PROTECTED: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// The same below `/sys`.
pub const MASKED_SYSTEM: &[&str] = &["firmware", "devices/virtual/powercap"];
/// Devices that every program may expect, with their numbers.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// What is shared lies here, below `/dev`.
const SHM: &str = "shm";

/// `/dev`, `/proc` and `/sys` as detached trees, in which all is hidden that is to be: what no function changes.
pub struct Kernel {
    dev: OwnedFd,
    proc: OwnedFd,
    /// None where its namespaces do not let it be mounted.
    sys: Option<OwnedFd>,
}

/// Makes them before anything is known of the function, in a mount namespace that is left again: what the host mounts and unmounts until the
/// function comes is seen by it, and is not kept busy by us. None without the capabilities to come back.
///
/// # Errors
/// Which step failed. Then the process may be in the wrong namespace, and must end.
pub fn ahead() -> Result<Option<Kernel>, Failure> {
    let step = || "look at our capabilities".to_owned();
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_CHROOT;
    if !rustix::thread::capabilities(None).step(step)?.effective.contains(needed) {
        return Ok(None);
    }
    let step = || "open the host's mount namespace".to_owned();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let host = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty()).step(step)?;
    let root = path_only("/")?;
    super::cut_off()?;
    rustix::process::umask(Mode::empty());
    let bench = tmpfs(&[("mode", "0755"), ("size", "64k"), ("nr_inodes", "8")], NO_SUID | NO_DEVICES)?;
    stack(&bench)?;
    let place = |name: &str| make_beneath(&bench, name);
    let dev = devices(&place("dev")?, false)?;
    processes(&place("proc")?, &dev)?;
    let there = system(&place("sys")?, &dev)?;
    let take = |name: &str| {
        let step = || format!("take /{name} along");
        copy(&beneath(&bench, name).step(step)?).step(step)
    };
    let kernel =
        Kernel { dev: take("dev")?, proc: take("proc")?, sys: there.then(|| take("sys")).transpose()? };
    let step = || "go back to the host's mount namespace".to_owned();
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount)).step(step)?;
    // Which put us at the top of it, and our own root may be further down.
    rustix::process::fchdir(&root).step(step)?;
    rustix::process::chroot(".").step(step)?;
    Ok(Some(kernel))
}

impl Builder<'_> {
    /// Gives what was made for nothing.
    pub(super) fn kernel(&self, ahead: Option<Kernel>) -> Result<Option<OwnedFd>, Failure> {
        let mut spent = None;
        let (dev, proc) = (self.mount_point("dev")?, self.mount_point("proc")?);
        // An image without the place for it has none.
        let sys = beneath(&self.root, "sys").is_ok().then(|| self.mount_point("sys")).transpose()?;
        let dev = match ahead {
            Some(kernel) => {
                attach(&kernel.dev, &dev).step(|| "show /dev".to_owned())?;
                attach(&kernel.proc, &proc).step(|| "show /proc".to_owned())?;
                match (kernel.sys, sys) {
                    (Some(tree), Some(target)) => {
                        attach(&tree, &target).step(|| "show /sys".to_owned())?;
                    }
                    (tree, _) => spent = tree,
                }
                kernel.dev
            }
            None => {
                let dev = devices(&dev, in_a_user_namespace(self.plan))?;
                processes(&proc, &dev)?;
                if let Some(target) = sys {
                    system(&target, &dev)?;
                }
                dev
            }
        };
        let size = SHM_SIZE.min(self.plan.tmp_size).to_string();
        let files = inodes(self.plan.tmp_size);
        let options = [("mode", "1777"), ("size", &*size), ("nr_inodes", &*files)];
        let shm = tmpfs(&options, NO_SUID | NO_DEVICES | NO_EXEC)?;
        let step = || "make /dev/shm".to_owned();
        attach(&shm, &beneath(&dev, SHM).step(step)?).step(step)?;
        Ok(spent)
    }
}

/// Mounts `/dev`, with a place for what is shared; `shown`: a user namespace may not make devices, there the host's are shown.
fn devices(at: &OwnedFd, shown: bool) -> Result<OwnedFd, Failure> {
    let step = || "make /dev".to_owned();
    let dev = tmpfs(&[("mode", "0755"), ("size", "64k"), ("nr_inodes", "64")], NO_SUID | NO_EXEC)?;
    attach(&dev, at).step(step)?;
    for &(name, major, minor) in DEVICES {
        let step = || format!("make /dev/{name}");
        let mode = Mode::from_raw_mode(0o666);
        if !shown {
            let number = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, number).step(step)?;
            continue;
        }
        let host = format!("/dev/{name}");
        if fs::metadata(&host).is_ok_and(|metadata| metadata.file_type().is_char_device()) {
            let tree = detach(Path::new(&host), NO_SUID | NO_EXEC)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
            drop(rustix::fs::openat(&dev, name, flags, Mode::from_raw_mode(0o644)).step(step)?);
            attach(&tree, &beneath(&dev, name).step(step)?).step(step)?;
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlinkat(target, &dev, name).step(|| format!("link /dev/{name}"))?;
    }
    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    for (key, value) in [("mode", "0620"), ("ptmxmode", "0666")] {
        fsconfig_set_string(&context, key, value).step(step)?;
    }
    fsconfig_create(&context).step(step)?;
    let terminals = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
    set(&terminals, NO_SUID | NO_EXEC, false).step(step)?;
    attach(&terminals, &make_beneath(&dev, "pts")?).step(|| "mount /dev/pts".to_owned())?;
    make_beneath(&dev, SHM)?;
    set(&dev, READ_ONLY, false).step(step)?;
    Ok(dev)
}

/// Mounts `/proc`, with what `dev` has in the place of files that are hidden.
fn processes(at: &OwnedFd, dev: &OwnedFd) -> Result<(), Failure> {
    let step = || "mount /proc".to_owned();
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    fsconfig_create(&context).step(step)?;
    let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
    set(&proc, NO_SUID | NO_DEVICES | NO_EXEC, false).step(step)?;
    attach(&proc, at).step(step)?;
    mask(&proc, MASKED, dev)?;
    for name in PROTECTED {
        let Ok(target) = beneath(&proc, name) else { continue };
        let step = || format!("protect /proc/{name}");
        let tree = copy(&target).step(step)?;
        set(&tree, READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, true).step(step)?;
        attach(&tree, &target).step(step)?;
    }
    Ok(())
}

/// Mounts `/sys`, read-only. Whether it is there: who may not mount one has an empty one, as a user namespace that shares the host's network.
fn system(at: &OwnedFd, dev: &OwnedFd) -> Result<bool, Failure> {
    let step = || "mount /sys".to_owned();
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let made = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    let system = match made {
        Err(rustix::io::Errno::PERM) => return Ok(false),
        made => made.step(step)?,
    };
    attach(&system, at).step(step)?;
    mask(&system, MASKED_SYSTEM, dev)?;
    Ok(true)
}

/// Hides what has these names in a mounted file system.
fn mask(tree: &OwnedFd, names: &[&str], dev: &OwnedFd) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for name in names {
        let Ok(target) = beneath(tree, name) else { continue };
        let step = || format!("mask {name}");
        if kind(&target).step(step)? == FileType::Directory {
            let cover = match &empty {
                Some(first) => copy(first).step(step)?,
                None => tmpfs(&[("size", "0"), ("mode", "0755")], READ_ONLY | NO_SUID | NO_DEVICES)?,
            };
            attach(&cover, &target).step(step)?;
            empty.get_or_insert(cover);
        } else {
            let null = beneath(dev, "null").step(step)?;
            attach(&copy(&null).step(step)?, &target).step(step)?;
        }
    }
    Ok(())
}

/// Makes a directory in a file system of our own.
fn make_beneath(tree: &OwnedFd, name: &str) -> Result<OwnedFd, Failure> {
    let step = || format!("make {name}");
    rustix::fs::mkdirat(tree, name, Mode::from_raw_mode(0o755)).step(step)?;
    beneath(tree, name).step(step)
}
