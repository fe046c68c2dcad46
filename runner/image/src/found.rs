//! An image that was found, wherever it lies: what its documents come to.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};

use crate::digest::{self, Digest};
use crate::document::{Configuration, Settings};
use crate::error::{Error, Result};
use crate::limits;
use crate::scratch::Scratch;

/// An image, ready to be unpacked.
#[derive(Debug)]
pub(crate) struct Found {
    pub settings: Settings,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Digest of the tar archive.
    pub content: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the blob, where it is known.
    pub digest: Option<Digest>,
    pub place: Place,
}

/// Where a blob is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the registry that the image came from.
    Registry {
        /// The image names other places for it, where nothing is fetched from: many such layers are in no registry.
        elsewhere: bool,
    },
    /// In a file of this machine, from this offset.
    File(Arc<Path>, u64),
    /// In a file of the store's own, which goes when nobody needs it any more.
    Scratch(Arc<Scratch>, u64),
}

impl Found {
    /// Puts a configuration and the blobs of a manifest together.
    pub fn new(configuration: Configuration, blobs: Vec<(Option<Digest>, u64, Place)>) -> Result<Self> {
        let contents = configuration.rootfs.diff_ids;
        if contents.len() != blobs.len() {
            return Err(Error::image(format!(
                "its configuration speaks of {} layers, its manifest of {}",
                contents.len(),
                blobs.len()
            )));
        }
        let layers = contents
            .into_iter()
            .zip(blobs)
            .map(|(content, (digest, size, place))| Layer { content, size, digest, place })
            .collect();
        Ok(Self { settings: configuration.config, layers })
    }

    /// The name of its root.
    pub fn chain(&self) -> Digest {
        digest::chain(&self.layers.iter().map(|layer| layer.content).collect::<Vec<_>>())
    }
}

/// Opens a file that somebody named, if it is a plain one: a pipe would keep us waiting.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let failed =
        |error: rustix::io::Errno| Error::image(format!("{} cannot be opened: {error}", path.display()));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let there = rustix::fs::fstat(&file).map_err(failed)?;
    match FileType::from_raw_mode(there.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(Error::image(format!("{} is not a file", path.display()))),
    }
}

/// A document of at most [`limits::DOCUMENT`] bytes.
pub(crate) fn read_document(file: &mut File, offset: u64, size: u64, what: &str) -> Result<Vec<u8>> {
    if size > limits::DOCUMENT {
        return Err(Error::image(format!("its {what} is larger than 4 MiB")));
    }
    let failed = |error: std::io::Error| Error::image(format!("its {what} cannot be read: {error}"));
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(size).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 != size {
        return Err(Error::image(format!("its {what} is cut off")));
    }
    Ok(bytes)
}

/// What a file is known by while nobody changes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Fingerprint {
    pub fn of(path: &Path) -> Result<Self> {
        let there = rustix::fs::stat(path)
            .map_err(|error| Error::image(format!("{} cannot be opened: {error}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            device: there.st_dev,
            inode: there.st_ino,
            size: there.st_size as u64,
            modified: (there.st_mtime as i64, there.st_mtime_nsec as u64),
            changed: (there.st_ctime as i64, there.st_ctime_nsec as u64),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
