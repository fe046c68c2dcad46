//! From the tar stream of one layer to a directory.
//!
//! The stream is a stranger's. Nothing of it reaches beyond the directory: names are cut into their parts, links are followed here
//! and not by the kernel, and each directory is opened beneath the layer's own. A layer is unpacked by itself, whatever lies below it,
//! so that all images that have it share one copy; what it says about lower layers becomes [`Marks`].
//!
//! What a function may never use does not come along: device nodes; the set-user-id and set-group-id bits and the capabilities of
//! files (functions run with no-new-privileges, and a set-user-id program of a stranger has no place on a host's disk); extended attributes other than
//! those of users (those of security modules and of overlays speak to the host's kernel).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, from_read};
use crate::limits::{self, Limits};
use crate::marks::{self, Marks};
use crate::metered::Metered;
use crate::tree::{self, join, shown};

/// What becomes of the owners that an archive names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// Files get them: the store is root's.
    Kept,
    /// Files belong to the store's user, who is root in a rootless sandbox. Owner and mode as they were are noted in [`OWNER`], and
    /// the store's user can always read and change what it has.
    Noted,
}

/// The extended attribute that says `uid:gid:mode` where files cannot have their owners.
pub(crate) const OWNER: &str = "user.stoker.owner";

/// The file system's unit, for what a tree takes on disk.
const BLOCK: u64 = 4096;

/// Bytes read and written at once.
const PIECE: usize = 128 << 10;

/// What one layer turned out to be.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub marks: Marks,
    /// On disk, about.
    pub bytes: u64,
    /// In its files.
    pub content: u64,
    pub entries: u64,
    /// Device nodes that were left out.
    pub devices: u64,
}

/// Room for what is unpacked: asked before it is taken.
pub(crate) trait Room {
    fn take(&mut self, bytes: u64) -> Result<()>;
}

/// Unpacks a layer into an empty directory. Blocking. On an error the directory holds a part of it.
pub(crate) fn unpack(
    tar: impl Read,
    into: &OwnedFd,
    owners: Owners,
    limits: &Limits,
    room: &mut dyn Room,
) -> Result<Unpacked> {
    let allowance = Rc::new(Cell::new(0));
    let mut archive = tar::Archive::new(Metered::new(tar, Rc::clone(&allowance)));
    let mut layer = Layer {
        root: into,
        owners,
        limits: *limits,
        room,
        marks: Marks::default(),
        directories: BTreeMap::new(),
        last: None,
        bytes: 0,
        content: 0,
        entries: 0,
        names: 0,
        devices: 0,
        piece: vec![0; PIECE],
    };
    let mut entries = archive.entries().map_err(|error| from_read("the layer's archive", error))?;
    loop {
        allowance.set(limits::ENTRY_HEADERS);
        let Some(entry) = entries.next() else { break };
        let what = match layer.entries {
            0 => "the layer is no tar archive, or is damaged",
            _ => "the layer's archive cannot be read",
        };
        let mut entry = entry.map_err(|error| from_read(what, error))?;
        // Its content may be read, and then the padding behind it.
        allowance.set(entry.size().saturating_add(limits::ENTRY_HEADERS));
        layer.entry(&mut entry)?;
        // The archive's reader passes over what was not wanted by itself, but then it counts as headers of the next entry.
        io::copy(&mut entry, &mut io::sink()).map_err(|error| from_read("the layer's archive", error))?;
    }
    layer.finish()
}

/// Owner, mode, time and extended attributes of an entry.
#[derive(Debug, Clone)]
struct Facts {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: i64,
    xattrs: Vec<(CString, Vec<u8>)>,
}

struct Layer<'a> {
    root: &'a OwnedFd,
    owners: Owners,
    limits: Limits,
    room: &'a mut dyn Room,
    marks: Marks,
    /// What directories get at the end: before, their modes would be in the way and their times would change.
    directories: BTreeMap<Vec<u8>, Facts>,
    /// The directory of the entry before, as it was asked for and as it is.
    last: Option<(Vec<u8>, Rc<OwnedFd>, Vec<u8>)>,
    bytes: u64,
    content: u64,
    entries: u64,
    /// Bytes of names and attributes.
    names: u64,
    devices: u64,
    piece: Vec<u8>,
}

impl Layer<'_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::image(format!("it has more than {} files", self.limits.entries)));
        }
        let raw = entry.path_bytes().into_owned();
        self.named(entry, kind, &raw).map_err(|error| error.about(shown(&raw)))
    }

    fn named<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: tar::EntryType,
        raw: &[u8],
    ) -> Result<()> {
        let path = clean(raw)?;
        self.keep(path.len())?;
        let (directory, name) = tree::split(&path);
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(directory, hidden);
        }
        let directories = kind.is_dir() || (kind.is_file() && raw.ends_with(b"/"));
        if name.is_empty() && !directories {
            return Err(Error::image("the root of an image is a directory"));
        }
        let facts = facts(entry)?;
        self.keep(facts.xattrs.iter().map(|(name, value)| name.as_bytes().len() + value.len()).sum())?;
        if directories {
            return self.directory(directory, name, facts);
        }
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                self.file(directory, name, &facts, entry)
            }
            tar::EntryType::Link => self.link(directory, name, &target(entry)?),
            tar::EntryType::Symlink => self.symlink(directory, name, &target(entry)?, &facts),
            tar::EntryType::Fifo => self.fifo(directory, name, &facts),
            tar::EntryType::Char | tar::EntryType::Block => {
                self.devices += 1;
                Ok(())
            }
            other => {
                Err(Error::image(format!("is of a kind ({:?}) that layers do not have", other.as_byte())))
            }
        }
    }

    fn whiteout(&mut self, directory: &[u8], hidden: &[u8]) -> Result<()> {
        let directory = self.real(directory, Missing::Keep)?;
        if hidden == b".wh..opq" {
            self.marks.opaque.insert(directory);
            return Ok(());
        }
        // Bookkeeping of an old file system, which no image means.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::image("removes nothing that could be there"));
        }
        self.marks.whiteouts.insert(join(&directory, hidden));
        Ok(())
    }

    fn directory(&mut self, directory: &[u8], name: &[u8], facts: Facts) -> Result<()> {
        let path = if name.is_empty() {
            Vec::new()
        } else {
            let (parent, real) = self.parent(directory)?;
            let path = join(&real, name);
            let name = tree::c_name(name)?;
            match rustix::fs::mkdirat(&*parent, &name, Mode::RWXU) {
                Ok(()) => self.take(BLOCK)?,
                Err(Errno::EXIST) => {
                    let there = stat(&parent, &name)?;
                    if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                        self.replace(&parent, &name, &path)?;
                        rustix::fs::mkdirat(&*parent, &name, Mode::RWXU)
                            .map_err(|error| Error::system("a directory cannot be made", error))?;
                    }
                }
                Err(error) => return Err(unnameable("a directory cannot be made", error)),
            }
            path
        };
        self.marks.implied.remove(&path);
        self.marks.links.remove(&path);
        self.directories.insert(path, facts);
        Ok(())
    }

    fn file<R: Read>(&mut self, directory: &[u8], name: &[u8], facts: &Facts, content: &mut R) -> Result<()> {
        let (parent, real) = self.parent(directory)?;
        let path = join(&real, name);
        let name = tree::c_name(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&*parent, &name, flags, Mode::RUSR | Mode::WUSR);
        let file = match create() {
            Err(Errno::EXIST) => {
                self.replace(&parent, &name, &path)?;
                create()
            }
            other => other,
        };
        let file = file.map_err(|error| unnameable("a file cannot be made", error))?;
        self.marks.links.remove(&path);
        self.take(BLOCK)?;
        let mut kept = 0u64;
        loop {
            let n = content.read(&mut self.piece).map_err(|error| from_read("its content", error))?;
            if n == 0 {
                break;
            }
            self.content = self.content.saturating_add(n as u64);
            if self.content > self.limits.bytes {
                return Err(Error::image(format!(
                    "the files of the layer have more than {} bytes",
                    self.limits.bytes
                )));
            }
            // What starts a block takes one: the first was taken with the file itself.
            let blocks = (kept + n as u64).div_ceil(BLOCK).max(1) - kept.div_ceil(BLOCK).max(1);
            kept += n as u64;
            self.take(blocks * BLOCK)?;
            write_all(&file, &self.piece[..n])?;
        }
        self.dress(&file, facts, facts.mode & 0o1777)
    }

    fn link(&mut self, directory: &[u8], name: &[u8], target: &[u8]) -> Result<()> {
        let target = clean(target)?;
        let (target_directory, target_name) = tree::split(&target);
        let target_directory = self.real(target_directory, Missing::Keep)?;
        let target = join(&target_directory, target_name);
        let (parent, real) = self.parent(directory)?;
        let path = join(&real, name);
        if path == target {
            return Ok(());
        }
        let name = tree::c_name(name)?;
        let from = tree::open(self.root, &target_directory, OFlags::PATH | OFlags::DIRECTORY);
        let target_name = tree::c_name(target_name)?;
        let there = match &from {
            Ok(from) => match rustix::fs::statat(from, &target_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) => Some(there),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(unnameable("a link's target", error)),
            },
            Err(_) => None,
        };
        if there.is_some_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Directory) {
            return Err(Error::image("is a hard link to a directory"));
        }
        self.take(0)?;
        self.replace(&parent, &name, &path)?;
        match (from, there) {
            (Ok(from), Some(_)) => rustix::fs::linkat(from, &target_name, &*parent, &name, AtFlags::empty())
                .map_err(|error| match error {
                    Errno::NOENT => Error::image("is a hard link to what it replaces"),
                    error => unnameable("a link cannot be made", error),
                }),
            _ => {
                let target = self.marks.links.get(&target).cloned().unwrap_or(target);
                self.marks.links.insert(path, target);
                Ok(())
            }
        }
    }

    fn symlink(&mut self, directory: &[u8], name: &[u8], target: &[u8], facts: &Facts) -> Result<()> {
        if target.is_empty() || target.len() > limits::PATH {
            return Err(Error::image("is a symbolic link to nowhere, or too far"));
        }
        let target = tree::c_name(target)?;
        let (parent, real) = self.parent(directory)?;
        let name_text = tree::c_name(name)?;
        self.replace(&parent, &name_text, &join(&real, name))?;
        rustix::fs::symlinkat(&target, &*parent, &name_text)
            .map_err(|error| unnameable("a link cannot be made", error))?;
        self.take(BLOCK)?;
        self.own_name(&parent, &name_text, facts)
    }

    fn fifo(&mut self, directory: &[u8], name: &[u8], facts: &Facts) -> Result<()> {
        let (parent, real) = self.parent(directory)?;
        let name_text = tree::c_name(name)?;
        self.replace(&parent, &name_text, &join(&real, name))?;
        let mode = Mode::from_raw_mode(facts.mode & 0o777);
        rustix::fs::mknodat(&*parent, &name_text, FileType::Fifo, mode, 0)
            .map_err(|error| unnameable("a pipe cannot be made", error))?;
        self.take(BLOCK)?;
        self.own_name(&parent, &name_text, facts)
    }

    /// Owner and time of what cannot be opened.
    fn own_name(&self, parent: &OwnedFd, name: &CString, facts: &Facts) -> Result<()> {
        if self.owners == Owners::Kept {
            let (uid, gid) = (Some(Uid::from_raw(facts.uid)), Some(Gid::from_raw(facts.gid)));
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Error::system("an owner cannot be set", error))?;
        }
        rustix::fs::utimensat(parent, name, &times(facts.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::system("a time cannot be set", error))
    }

    /// Makes a file or directory what its entry says. The owner first: changing it clears bits of the mode.
    fn dress(&self, file: &OwnedFd, facts: &Facts, mode: u32) -> Result<()> {
        let system = |step: &'static str| move |error: Errno| Error::system(step, error);
        for (name, value) in &facts.xattrs {
            match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                // What the file system has no room or word for is not worth an image.
                Ok(()) | Err(Errno::NOTSUP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::PERM) => {}
                Err(error) => return Err(Error::system("an extended attribute cannot be set", error)),
            }
        }
        if self.owners == Owners::Kept {
            let (uid, gid) = (Some(Uid::from_raw(facts.uid)), Some(Gid::from_raw(facts.gid)));
            rustix::fs::fchown(file, uid, gid).map_err(system("an owner cannot be set"))?;
        } else if (facts.uid, facts.gid) != (0, 0) || mode != facts.mode & 0o7777 {
            let note = format!("{}:{}:{:o}", facts.uid, facts.gid, facts.mode & 0o7777);
            match rustix::fs::fsetxattr(file, OWNER, note.as_bytes(), XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP | Errno::NOSPC) => {}
                Err(error) => return Err(Error::system("an owner cannot be noted", error)),
            }
        }
        let floor = if self.owners == Owners::Kept { 0 } else { 0o400 };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode | floor))
            .map_err(system("a mode cannot be set"))?;
        rustix::fs::futimens(file, &times(facts.mtime)).map_err(system("a time cannot be set"))
    }

    /// Removes what has the name of something new. Later entries win, as with every tar.
    fn replace(&mut self, parent: &OwnedFd, name: &CString, path: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                // A link to a file from below may have this name.
                self.marks.forget(path);
                return Ok(());
            }
            Err(_) => {
                tree::remove(parent, name).map_err(|error| unnameable("what was there before", error))?
            }
        }
        self.last = None;
        self.marks.forget(path);
        marks::forget_in(&mut self.directories, path);
        Ok(())
    }

    /// The directory that an entry is to be in: made where it is missing. And its path without links.
    fn parent(&mut self, asked: &[u8]) -> Result<(Rc<OwnedFd>, Vec<u8>)> {
        if let Some((before, directory, real)) = &self.last
            && before == asked
        {
            return Ok((Rc::clone(directory), real.clone()));
        }
        let real = match tree::open(self.root, asked, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(directory) => {
                let directory = Rc::new(directory);
                self.last = Some((asked.to_vec(), Rc::clone(&directory), asked.to_vec()));
                return Ok((directory, asked.to_vec()));
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.real(asked, Missing::Make)?,
            Err(error) => return Err(unnameable("a directory cannot be opened", error)),
        };
        let directory = tree::open(self.root, &real, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|error| unnameable("a directory cannot be opened", error))?;
        let directory = Rc::new(directory);
        self.last = Some((asked.to_vec(), Rc::clone(&directory), real.clone()));
        Ok((directory, real))
    }

    /// Follows the links of a path as a process with this root would, and never out of it.
    fn real(&mut self, asked: &[u8], missing: Missing) -> Result<Vec<u8>> {
        let mut real: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = parts(asked).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                real = tree::split(&real).0.to_vec();
                continue;
            }
            let next = join(&real, &part);
            if next.len() > limits::PATH || parts(&next).count() > limits::DEPTH {
                return Err(Error::image("lies deeper than any program looks"));
            }
            // All before the last part are directories, as was just seen: no link is on the way.
            match rustix::fs::statat(self.root, &*next, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    if missing == Missing::Make {
                        rustix::fs::mkdirat(self.root, &*next, Mode::RWXU)
                            .map_err(|error| unnameable("a directory cannot be made", error))?;
                        self.marks.links.remove(&next);
                        self.marks.implied.insert(next.clone());
                        self.entries += 1;
                        self.take(BLOCK)?;
                    }
                    real = next;
                }
                Err(error) => return Err(unnameable("a directory cannot be opened", error)),
                Ok(there) => match FileType::from_raw_mode(there.st_mode) {
                    FileType::Directory => real = next,
                    FileType::Symlink => {
                        links += 1;
                        if links > limits::LINKS {
                            return Err(Error::image("lies behind symbolic links that lead in a circle"));
                        }
                        let target = rustix::fs::readlinkat(self.root, &*next, Vec::new())
                            .map_err(|error| Error::system("a link cannot be read", error))?;
                        let target = target.to_bytes();
                        if target.starts_with(b"/") {
                            real.clear();
                        }
                        todo.extend(parts(target).rev().map(<[u8]>::to_vec));
                    }
                    _ if missing == Missing::Keep => real = next,
                    _ => return Err(Error::image(format!("{} is not a directory", shown(&next)))),
                },
            }
        }
        Ok(real)
    }

    fn keep(&mut self, bytes: usize) -> Result<()> {
        self.names += bytes as u64;
        if self.names > limits::NAMES {
            return Err(Error::image(format!(
                "the names of its files have more than {} bytes",
                limits::NAMES
            )));
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        if self.entries > self.limits.entries {
            return Err(Error::image(format!("it has more than {} files", self.limits.entries)));
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.room.take(bytes)
    }

    fn finish(mut self) -> Result<Unpacked> {
        if !self.directories.contains_key(&b""[..]) {
            self.marks.implied.insert(Vec::new());
        }
        // The deepest first: a mode that closes a directory must not close it to what comes after.
        for (path, facts) in std::mem::take(&mut self.directories).iter().rev() {
            let directory = match tree::open(self.root, path, tree::DIRECTORY) {
                Ok(directory) => directory,
                Err(error) => return Err(Error::system("a directory cannot be opened", error)),
            };
            let floor = if self.owners == Owners::Kept { 0 } else { 0o700 };
            self.dress(&directory, facts, (facts.mode & 0o3777) | floor)?;
        }
        for path in &self.marks.implied {
            let directory = tree::open(self.root, path, tree::DIRECTORY)
                .map_err(|error| Error::system("a directory cannot be opened", error))?;
            rustix::fs::fchmod(directory, Mode::from_raw_mode(0o755))
                .map_err(|error| Error::system("a mode cannot be set", error))?;
        }
        Ok(Unpacked {
            marks: self.marks,
            bytes: self.bytes,
            content: self.content,
            entries: self.entries,
            devices: self.devices,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Directories that are missing are made.
    Make,
    /// What is missing is taken to be a directory: it may be one of a lower layer.
    Keep,
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// A name of an archive as a path without `.`, without a slash in front. Empty is the root.
fn clean(raw: &[u8]) -> Result<Vec<u8>> {
    let mut path = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for part in parts(raw) {
        if part == b".." {
            return Err(Error::image("leads out of the image"));
        }
        if part.contains(&0) {
            return Err(Error::image("has a NUL character in its name"));
        }
        depth += 1;
        if part.len() > limits::NAME || depth > limits::DEPTH {
            return Err(Error::image(format!(
                "has a name of more than {} bytes, or of more than {} parts",
                limits::NAME,
                limits::DEPTH
            )));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > limits::PATH {
        return Err(Error::image(format!("has a path of more than {} bytes", limits::PATH)));
    }
    Ok(path)
}

fn target<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Vec<u8>> {
    entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| Error::image("is a link to nothing"))
}

fn facts<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Facts> {
    let bad = |what: &'static str| move |_| Error::image(format!("has {what} that is no number"));
    let header = entry.header();
    // Other readers take a field that is left empty for a zero, and some writers count on it.
    let blank = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
    let old = header.as_old();
    let id = |field: &[u8], read: io::Result<u64>, what| {
        let id = if blank(field) { 0 } else { read.map_err(bad(what))? };
        let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| Error::image("has an owner that no system has"))
    };
    let mut facts = Facts {
        uid: id(&old.uid, header.uid(), "an owner")?,
        gid: id(&old.gid, header.gid(), "a group")?,
        mode: if blank(&old.mode) { 0 } else { header.mode().map_err(bad("a mode"))? },
        mtime: header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0),
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(|error| from_read("its headers", error))? else {
        return Ok(facts);
    };
    for extension in extensions {
        let extension = extension.map_err(|error| from_read("its headers", error))?;
        let key = extension.key_bytes();
        if key.starts_with(b"GNU.sparse.") {
            return Err(Error::image(
                "is sparse in a way that is not understood: write the layer without --sparse",
            ));
        }
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
        let users = name.starts_with(b"user.")
            && !name.starts_with(b"user.stoker.")
            && !name.starts_with(b"user.overlay.");
        let value = extension.value_bytes();
        if users && name.len() <= limits::NAME && value.len() <= limits::XATTR {
            if facts.xattrs.len() == limits::XATTRS {
                return Err(Error::image(format!("has more than {} extended attributes", limits::XATTRS)));
            }
            facts.xattrs.push((tree::c_name(name)?, value.to_vec()));
        }
    }
    Ok(facts)
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn stat(parent: &OwnedFd, name: &CString) -> Result<rustix::fs::Stat> {
    rustix::fs::statat(parent.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| unnameable("what was there before", error))
}

/// Names that this file system does not take are the image's fault, all else is the machine's.
fn unnameable(step: &str, error: Errno) -> Error {
    match error {
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ | Errno::LOOP | Errno::MLINK => {
            Error::image(format!("{step}: {error}"))
        }
        error => Error::system(step, error),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))
            .map_err(|error| Error::system("a file cannot be written", error))?;
        bytes = &bytes[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Endless;

    impl Room for Endless {
        fn take(&mut self, _: u64) -> Result<()> {
            Ok(())
        }
    }

    /// The same bytes again and again.
    struct Again<'a>(&'a [u8], usize);

    impl Read for Again<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = (&self.0[self.1..]).read(buffer)?;
            self.1 = (self.1 + n) % self.0.len();
            Ok(n)
        }
    }

    #[test]
    fn what_is_remembered_until_the_end_is_bounded() {
        let value = vec![b'x'; 60_000];
        let mut tar = tar::Builder::new(Vec::new());
        let names: Vec<_> = (0..16).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
        tar.append_pax_extensions(names.iter().map(|name| (name.as_str(), &value[..]))).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("directory/").unwrap();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        let whole = tar.into_inner().unwrap();
        // Without the end of the archive.
        let entry = &whole[..whole.len() - 1024];
        let directory = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(directory.path(), tree::DIRECTORY, Mode::empty()).unwrap();
        let error =
            unpack(Again(entry, 0), &root, Owners::Noted, &Limits::default(), &mut Endless).unwrap_err();
        assert!(error.message.contains("names of its files"), "{error}");
    }
}
