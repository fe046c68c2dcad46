//! Directory trees that are ours but whose names and links are a stranger's: every path is opened beneath a directory handle, and no
//! symbolic link is ever followed by the kernel.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

pub(crate) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::RDONLY);

/// No link, no way out, no other file system.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens a path of plain directories; empty is the root itself.
pub(crate) fn open(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), STRICT)
}

/// Splits a path that [`join`] made into the directory and the last part.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `directory/name`; an empty directory is the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// The names in a directory, without `.` and `..`.
pub(crate) fn names(directory: impl AsFd) -> rustix::io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

/// Removes whatever has this name. Nothing there is fine.
pub(crate) fn remove(directory: impl AsFd, name: &CStr) -> rustix::io::Result<()> {
    let directory = directory.as_fd();
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // What Linux says of a directory, and what POSIX does.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    clear(open(directory, name.to_bytes(), DIRECTORY)?)?;
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}

/// Removes all that is in a directory.
pub(crate) fn clear(directory: impl AsFd) -> rustix::io::Result<()> {
    let directory = directory.as_fd();
    for (name, _) in names(directory)? {
        remove(directory, &name)?;
    }
    Ok(())
}

/// A name for the kernel.
pub(crate) fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::image("a path has a NUL character in it"))
}

/// A path for people.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() > 100 {
        format!("`/{}…`", text.chars().take(100).collect::<String>().escape_debug())
    } else {
        format!("`/{}`", text.escape_debug())
    }
}
