//! Trees of mounts before they are in their place, and paths in roots that nobody trusts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::sys::{self, MountAttributes};
use crate::wire::{Failure, Step};

pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;
pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

pub fn path_only(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(|| format!("open {path}"))
}

/// A path in a root, links resolved as if that were `/`.
pub fn inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A path in a root, without any link on the way.
pub fn beneath(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// What a handle refers to.
pub fn kind(handle: &OwnedFd) -> rustix::io::Result<FileType> {
    rustix::fs::fstat(handle).map(|found| FileType::from_raw_mode(found.st_mode))
}

pub fn give(directory: &OwnedFd, path: &str, owner: u32) -> Result<(), Failure> {
    let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
    chownat(directory, path, Some(user), Some(group), AtFlags::EMPTY_PATH)
        .step(|| "give the function its directory".to_owned())?;
    Ok(())
}

/// A detached copy of a host path and of what is mounted below it, with `attributes` on all of it.
pub fn detach(path: &Path, attributes: u64) -> Result<OwnedFd, Failure> {
    let step = || format!("open {} for the sandbox", path.display());
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags).step(step)?;
    set(&tree, attributes, true).step(step)?;
    Ok(tree)
}

/// Another mount of what `mounted` (in our namespace) refers to.
pub fn copy(mounted: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(mounted, "", flags)?)
}

pub fn set(tree: &OwnedFd, attributes: u64, recursive: bool) -> io::Result<()> {
    sys::mount_setattr(
        tree.as_fd(),
        MountAttributes { set: attributes, recursive, ..Default::default() },
        None,
    )
}

pub fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Mounts on top of `/`. What runs with the old root goes on seeing the old one.
pub fn stack(tree: &OwnedFd) -> Result<(), Failure> {
    move_mount(tree, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| "stack the new root".to_owned())
}

pub fn tmpfs(options: &[(&str, &str)], attributes: u64) -> Result<OwnedFd, Failure> {
    let step = || "make a tmpfs".to_owned();
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value).step(step)?;
    }
    fsconfig_create(&context).step(step)?;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
    set(&tree, attributes, false).step(step)?;
    Ok(tree)
}

/// Whether something is mounted below a directory, as `/proc/self/mountinfo` has it.
pub fn holds_mounts(mounts: &str, directory: &Path) -> bool {
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    points.any(|point| point != directory && point.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_directory_are_seen() {
        let mounts = "24 1 254:0 / / rw - ext4 /dev/vda rw\n30 24 0:26 / /usr rw - ext4 /dev/vdb rw\n31 30 0:27 / /usr/lib/x rw - tmpfs t rw";
        let holds = |path: &str| holds_mounts(mounts, Path::new(path));
        assert!(holds("/") && holds("/usr") && holds("/usr/lib"));
        assert!(!holds("/usr/lib/x") && !holds("/usr/li") && !holds("/opt"));
    }
}
