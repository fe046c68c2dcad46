//! The file systems that show the kernel: `/dev`, `/proc` and `/sys`, each without what is none of a function's business.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

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

impl Builder<'_> {
    pub(super) fn devices(&self) -> Result<(), Failure> {
        let step = || "make /dev".to_owned();
        let mut options = vec![("mode", "0755"), ("size", "64k"), ("nr_inodes", "64")];
        let shm_size = SHM_SIZE.min(self.plan.tmp_size).to_string();
        let dev = tmpfs(&options, NO_SUID | NO_EXEC)?;
        // A user namespace may not make devices: there the host's are shown.
        let shown = in_a_user_namespace(self.plan);
        let sources = if shown {
            DEVICES
                .iter()
                .filter(|(name, ..)| {
                    fs::metadata(format!("/dev/{name}"))
                        .is_ok_and(|metadata| metadata.file_type().is_char_device())
                })
                .map(|(name, ..)| Ok((*name, detach(Path::new(&format!("/dev/{name}")), NO_SUID | NO_EXEC)?)))
                .collect::<Result<Vec<_>, Failure>>()?
        } else {
            for &(name, major, minor) in DEVICES {
                let mode = Mode::from_raw_mode(0o666);
                let number = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, number)
                    .step(|| format!("make /dev/{name}"))?;
            }
            Vec::new()
        };
        attach(&dev, &self.mount_point("dev")?).step(step)?;
        for (name, tree) in sources {
            attach(&tree, &self.file(&Path::new("dev").join(name))?).step(|| format!("show /dev/{name}"))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            symlinkat(target, &dev, name).step(|| format!("link /dev/{name}"))?;
        }
        symlinkat("pts/ptmx", &dev, "ptmx").step(|| "link /dev/ptmx".to_owned())?;
        let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
        for (key, value) in [("mode", "0620"), ("ptmxmode", "0666")] {
            fsconfig_set_string(&context, key, value).step(step)?;
        }
        fsconfig_create(&context).step(step)?;
        let terminals =
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
        set(&terminals, NO_SUID | NO_EXEC, false).step(step)?;
        attach(&terminals, &self.directory(Path::new("dev/pts"))?).step(|| "mount /dev/pts".to_owned())?;
        let shm_inodes = inodes(self.plan.tmp_size);
        options = vec![("mode", "1777"), ("size", &shm_size), ("nr_inodes", &shm_inodes)];
        let shm = tmpfs(&options, NO_SUID | NO_DEVICES | NO_EXEC)?;
        attach(&shm, &self.directory(Path::new("dev/shm"))?).step(|| "make /dev/shm".to_owned())?;
        set(&dev, READ_ONLY, false).step(step)
    }

    pub(super) fn process_information(&self) -> Result<(), Failure> {
        let step = || "mount /proc".to_owned();
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
        fsconfig_create(&context).step(step)?;
        let proc = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
        set(&proc, NO_SUID | NO_DEVICES | NO_EXEC, false).step(step)?;
        attach(&proc, &self.mount_point("proc")?).step(step)?;
        self.mask(&proc, MASKED)?;
        for name in PROTECTED {
            let Ok(target) = beneath(&proc, name) else { continue };
            let step = || format!("protect /proc/{name}");
            let tree = copy(&target).step(step)?;
            set(&tree, READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, true).step(step)?;
            attach(&tree, &target).step(step)?;
        }
        Ok(())
    }

    /// Hides what has these names in a mounted file system.
    fn mask(&self, tree: &OwnedFd, names: &[&str]) -> Result<(), Failure> {
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
                let null = beneath(&self.root, "dev/null").step(step)?;
                attach(&copy(&null).step(step)?, &target).step(step)?;
            }
        }
        Ok(())
    }

    /// `/sys`, read-only. An image without the place for it has none, and who may not mount one has an empty one: a user namespace
    /// that shares the host's network.
    pub(super) fn system_information(&self) -> Result<(), Failure> {
        let step = || "mount /sys".to_owned();
        if beneath(&self.root, "sys").is_err() {
            return Ok(());
        }
        let target = self.mount_point("sys")?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let made = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|context| {
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        });
        let system = match made {
            Err(rustix::io::Errno::PERM) => return Ok(()),
            made => made.step(step)?,
        };
        attach(&system, &target).step(step)?;
        self.mask(&system, MASKED_SYSTEM)
    }
}
