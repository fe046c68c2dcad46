//! From the directories of layers to the one directory that a function sees.
//!
//! Files are hard links to those of the layers, so that images with a layer in common have its files once on disk and once in the
//! page cache. Only directories are made anew. Nothing in a finished root is ever written: what a file is, all roots see.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::marks::Marks;
use crate::tree::{self, join};
use crate::unpack::{Owners, Room};

/// What sandboxes mount over: made here where an image lacks it, so that its root can be used as it is.
const MOUNT_POINTS: [&CStr; 5] = [c"dev", c"etc", c"proc", c"sys", c"tmp"];
/// The same in `/etc`: files.
const MOUNT_FILES: [&CStr; 3] = [c"hosts", c"hostname", c"resolv.conf"];

const BLOCK: u64 = 4096;

/// A layer as it lies in the store.
pub(crate) struct Layer {
    pub directory: OwnedFd,
    pub marks: Marks,
}

/// Puts the layers on top of each other, the lowest first, into an empty directory. Blocking. The bytes that the root takes beyond
/// its layers, about.
pub(crate) fn flatten(
    layers: &[Layer],
    root: &OwnedFd,
    owners: Owners,
    room: &mut dyn Room,
    stop: &CancellationToken,
) -> Result<u64> {
    let mut work = Work { root, owners, marks: &Marks::default(), bytes: 0, room, stop };
    for layer in layers {
        work.marks = &layer.marks;
        work.hide()?;
        let below = rustix::fs::fstat(root).map_err(|error| failed("a directory cannot be seen", error))?;
        work.directory(&layer.directory, root, b"")?;
        if work.marks.implied.contains(&b""[..]) {
            dress(root, root, &below, owners)?;
        }
        work.links()?;
    }
    work.mount_points()?;
    Ok(work.bytes)
}

struct Work<'a> {
    root: &'a OwnedFd,
    owners: Owners,
    marks: &'a Marks,
    bytes: u64,
    room: &'a mut dyn Room,
    stop: &'a CancellationToken,
}

impl Work<'_> {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.bytes += bytes;
        self.room.take(bytes)
    }

    /// Removes what the layer does not want to be seen of those below.
    fn hide(&self) -> Result<()> {
        for path in &self.marks.whiteouts {
            let (directory, name) = tree::split(path);
            if let Some(directory) = self.below(directory)? {
                tree::remove(&directory, &tree::c_name(name)?)
                    .map_err(|error| failed("a file cannot be removed", error))?;
            }
        }
        for path in &self.marks.opaque {
            if let Some(directory) = self.below(path)? {
                tree::clear(&directory).map_err(|error| failed("a directory cannot be emptied", error))?;
            }
        }
        Ok(())
    }

    /// A directory of the layers below. Behind a link or a file there is nothing of them.
    fn below(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        match tree::open(self.root, path, tree::DIRECTORY) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(failed("a directory cannot be opened", error)),
        }
    }

    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &[u8]) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(Error::abandoned());
        }
        let names = tree::names(from).map_err(|error| failed("a directory cannot be read", error))?;
        for (name, kind) in names {
            let kind = match kind {
                FileType::Unknown => FileType::from_raw_mode(stat(from, &name)?.st_mode),
                kind => kind,
            };
            if kind == FileType::Directory {
                self.subdirectory(from, to, &name, path)?;
            } else {
                self.file(from, to, &name)?;
            }
        }
        let source = rustix::fs::fstat(from).map_err(|error| failed("a directory cannot be seen", error))?;
        dress(from, to, &source, self.owners)
    }

    fn subdirectory(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &[u8]) -> Result<()> {
        let below = match rustix::fs::mkdirat(to, name, Mode::RWXU) {
            Ok(()) => None,
            Err(Errno::EXIST) => {
                let there = stat(to, name)?;
                if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                    Some(there)
                } else {
                    tree::remove(to, name).map_err(|error| failed("a file cannot be removed", error))?;
                    rustix::fs::mkdirat(to, name, Mode::RWXU)
                        .map_err(|error| failed("a directory cannot be made", error))?;
                    None
                }
            }
            Err(error) => return Err(failed("a directory cannot be made", error)),
        };
        if below.is_none() {
            self.take(BLOCK)?;
        }
        let open = |at: BorrowedFd<'_>| {
            tree::open(at, name.to_bytes(), tree::DIRECTORY)
                .map_err(|error| failed("a directory cannot be opened", error))
        };
        let (source, made) = (open(from.as_fd())?, open(to.as_fd())?);
        let implied = self.marks.is_implied(path, name.to_bytes());
        self.directory(&source, &made, &join(path, name.to_bytes()))?;
        match below {
            // The layer only says what is in it.
            Some(below) if implied => dress(&made, &made, &below, self.owners),
            _ => Ok(()),
        }
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
        let link = || rustix::fs::linkat(from, name, to, name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) => {
                tree::remove(to, name).map_err(|error| failed("a file cannot be removed", error))?;
                link()
            }
            other => other,
        };
        match linked {
            Ok(()) => Ok(()),
            // As many links as the file system can count, or none at all.
            Err(Errno::MLINK | Errno::PERM | Errno::NOTSUP) => {
                let bytes = copy(from, to, name, self.owners)?;
                self.take(bytes)
            }
            Err(error) => Err(failed("a file cannot be linked", error)),
        }
    }

    /// Nothing else shows that they were made: directories keep their times.
    fn mount_points(&mut self) -> Result<()> {
        let seen = |directory| {
            rustix::fs::fstat(directory).map_err(|error| failed("a directory cannot be seen", error))
        };
        let keep = |directory, before: &Stat| {
            rustix::fs::futimens(directory, &times(before))
                .map_err(|error| failed("a time cannot be set", error))
        };
        let before = seen(self.root)?;
        for name in MOUNT_POINTS {
            match rustix::fs::mkdirat(self.root, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => self.take(BLOCK)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("a mount point cannot be made", error)),
            }
        }
        keep(self.root, &before)?;
        // Where it is a link, it is the image's own business.
        let Some(etc) = self.below(b"etc")? else { return Ok(()) };
        let before = seen(&etc)?;
        for name in MOUNT_FILES {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::openat(&etc, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) => self.take(BLOCK)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("a mount point cannot be made", error)),
            }
        }
        keep(&etc, &before)
    }

    /// Hard links to what is below, which the layer's own directory could not have.
    fn links(&mut self) -> Result<()> {
        for (path, target) in &self.marks.links {
            let missing = || {
                Error::image(format!(
                    "{} is a hard link to {}, which no layer has",
                    tree::shown(path),
                    tree::shown(target)
                ))
            };
            let (from, from_name) = tree::split(target);
            let (to, name) = tree::split(path);
            let (Some(from), Some(to)) = (self.below(from)?, self.below(to)?) else { return Err(missing()) };
            let (from_name, name) = (tree::c_name(from_name)?, tree::c_name(name)?);
            match rustix::fs::statat(&from, &from_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) if FileType::from_raw_mode(there.st_mode) != FileType::Directory => {}
                _ => return Err(missing()),
            }
            tree::remove(&to, &name).map_err(|error| failed("a file cannot be removed", error))?;
            rustix::fs::linkat(&from, &from_name, &to, &name, AtFlags::empty()).map_err(
                |error| match error {
                    Errno::NOENT => missing(),
                    error => failed("a file cannot be linked", error),
                },
            )?;
        }
        Ok(())
    }
}

/// Owner, mode, time and extended attributes of one directory or file for another.
fn dress(from: &OwnedFd, to: &OwnedFd, source: &Stat, owners: Owners) -> Result<()> {
    copy_xattrs(from, to)?;
    if owners == Owners::Kept {
        let (uid, gid) = (Some(Uid::from_raw(source.st_uid)), Some(Gid::from_raw(source.st_gid)));
        rustix::fs::fchown(to, uid, gid).map_err(|error| failed("an owner cannot be set", error))?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(source.st_mode & 0o7777))
        .map_err(|error| failed("a mode cannot be set", error))?;
    rustix::fs::futimens(to, &times(source)).map_err(|error| failed("a time cannot be set", error))
}

fn times(source: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: source.st_mtime as _, tv_nsec: source.st_mtime_nsec as _ };
    Timestamps { last_access: time, last_modification: time }
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(failed("extended attributes cannot be read", error)),
    };
    let user = |name: &&[u8]| name.starts_with(b"user.");
    for name in names[..length].split(|b| *b == 0).filter(user) {
        let name = tree::c_name(name)?;
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(from, &name, &mut value[..])
            .map_err(|error| failed("an extended attribute cannot be read", error))?;
        match rustix::fs::fsetxattr(to, &name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::NOSPC | Errno::PERM) => {}
            Err(error) => return Err(failed("an extended attribute cannot be set", error)),
        }
    }
    Ok(())
}

/// The same file once more, and the bytes that it takes.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &CStr, owners: Owners) -> Result<u64> {
    let there = stat(from, name)?;
    match FileType::from_raw_mode(there.st_mode) {
        FileType::RegularFile => {
            let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from, name, open, Mode::empty())
                .map_err(|error| failed("a file cannot be opened", error))?;
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, name, create, Mode::RUSR | Mode::WUSR)
                .map_err(|error| failed("a file cannot be made", error))?;
            let (mut reader, mut writer) = (std::fs::File::from(source), std::fs::File::from(made));
            std::io::copy(&mut reader, &mut writer)
                .map_err(|error| Error::system("a file cannot be copied", error))?;
            dress(&reader.into(), &writer.into(), &there, owners)?;
            Ok((there.st_size as u64).next_multiple_of(BLOCK))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())
                .map_err(|error| failed("a link cannot be read", error))?;
            rustix::fs::symlinkat(&target, to, name)
                .map_err(|error| failed("a link cannot be made", error))?;
            dress_name(to, name, &there, owners)
        }
        _ => {
            let mode = Mode::from_raw_mode(there.st_mode & 0o777);
            rustix::fs::mknodat(to, name, FileType::Fifo, mode, 0)
                .map_err(|error| failed("a pipe cannot be made", error))?;
            dress_name(to, name, &there, owners)
        }
    }
}

fn dress_name(to: &OwnedFd, name: &CStr, source: &Stat, owners: Owners) -> Result<u64> {
    if owners == Owners::Kept {
        let (uid, gid) = (Some(Uid::from_raw(source.st_uid)), Some(Gid::from_raw(source.st_gid)));
        rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("an owner cannot be set", error))?;
    }
    rustix::fs::utimensat(to, name, &times(source), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("a time cannot be set", error))?;
    Ok(BLOCK)
}

fn stat(directory: &OwnedFd, name: &CStr) -> Result<Stat> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("a file cannot be seen", error))
}

fn failed(step: &str, error: Errno) -> Error {
    Error::system(step, error)
}
