//! Half-done work: everything that is written is written here first, and moved to its place in one step when it is whole. What a killed
//! process left here, the next one removes when it starts.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::tree;

/// The directory of half-done work. One process owns it.
#[derive(Debug)]
pub(crate) struct Bench {
    directory: PathBuf,
    next: AtomicU64,
}

impl Bench {
    /// Removes what an earlier process left. Blocking.
    pub fn open(directory: PathBuf) -> Result<Self> {
        let bench = Self { directory, next: AtomicU64::new(0) };
        make(&bench.directory)?;
        let handle = handle(&bench.directory)?;
        tree::clear(&handle)
            .map_err(|error| Error::system("what a killed process left cannot be removed", error))?;
        Ok(bench)
    }

    /// A path that nobody else has. Nothing is made there; what is, goes with it.
    pub fn place(self: &Arc<Self>) -> Scratch {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Scratch { path: self.directory.join(n.to_string()) }
    }

    /// A new directory.
    pub fn directory(self: &Arc<Self>) -> Result<Scratch> {
        let scratch = self.place();
        make(&scratch.path)?;
        Ok(scratch)
    }
}

/// A path of one's own; what is there goes with it.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place, in one step.
    pub fn publish(self, to: &Path) -> Result<()> {
        fs::rename(&self.path, to)
            .map_err(|error| Error::system("a finished directory cannot be moved to its place", error))
    }
}

impl Drop for Scratch {
    /// Blocking where there is something to remove: these are dropped on threads for blocking work.
    fn drop(&mut self) {
        let parent = self.path.parent().map(handle);
        let name = self.path.file_name().map(|name| tree::c_name(name.as_encoded_bytes()));
        if let (Some(Ok(parent)), Some(Ok(name))) = (parent, name)
            && let Err(error) = tree::remove(&parent, &name)
        {
            tracing::warn!(path = %self.path.display(), %error, "half-done work of the image store cannot be removed");
        }
    }
}

/// Makes a directory that only we can look into: images may hold what no user of this machine should find.
pub(crate) fn make(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::system(format_args!("{} cannot be made", path.display()), error)),
    }
}

pub(crate) fn handle(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, tree::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::system(format_args!("{} cannot be opened", path.display()), error))
}

/// Writes a small file as a whole or not at all, as far as processes can be killed; after a crash of the machine it may be empty.
/// Blocking.
pub(crate) fn write_whole(bench: &Arc<Bench>, to: &Path, bytes: &[u8]) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::system(format_args!("{} cannot be written", to.display()), error);
    let scratch = bench.place();
    fs::write(scratch.path(), bytes).map_err(failed)?;
    fs::rename(scratch.path(), to).map_err(failed)
}
