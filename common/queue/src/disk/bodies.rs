//! Large bodies: a file each, complete and on disk before its call is accepted.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use stoker_core::error::{Code, Error as CallError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::blocking;
use crate::{Error, Pieces};

/// Below the queue's directory.
pub const FOLDER: &str = "bodies";

/// Of a file that is not complete.
const PART: &str = ".part";

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// The folder.
#[derive(Clone)]
pub struct Bodies {
    folder: PathBuf,
    reserve: u64,
}

/// What a failure of the disk means.
pub fn failed(what: &str, error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Full(what.to_owned()),
        _ => Error::Unavailable(format!("{what}: {error}")),
    }
}

/// A file that is not complete. It goes with whoever writes it, though that be left in the middle; what stays is removed at the next opening.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // One that is complete has another name by now.
        std::fs::remove_file(&self.0).ok();
    }
}

impl Bodies {
    pub fn new(directory: &Path, reserve: u64) -> Self {
        Self { folder: directory.join(FOLDER), reserve }
    }

    /// Whether there is room for what is new.
    pub fn room(&self, more: u64) -> Result<(), Error> {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= self.reserve.saturating_add(more) {
            return Ok(());
        }
        let text = format!("{} KiB are free there, and {} KiB stay free", free >> 10, self.reserve >> 10);
        Err(Error::Full(text))
    }

    /// Names come from ids of our own; what does not look like one is nobody's file.
    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::Unsupported(format!("{name:?} is no name of a body")));
        }
        Ok(self.folder.join(name))
    }

    pub async fn put(&self, name: &str, mut pieces: Pieces) -> Result<u64, CallError> {
        let path = self.path(name).map_err(|error| CallError::from(&error))?;
        let part = Part(path.with_extension(format!("{}{PART}", uuid::Uuid::now_v7().as_simple())));
        let written = async {
            let fail = |error: io::Error| CallError::from(&failed("a body cannot be kept", &error));
            let mut file = tokio::fs::File::create(&part.0).await.map_err(fail)?;
            let (mut length, mut checked) = (0u64, 0u64);
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                if length >= checked {
                    checked = length + (1 << 20);
                    self.room(1 << 20).map_err(|error| CallError::from(&error))?;
                }
                length += piece.len() as u64;
                file.write_all(&piece).await.map_err(fail)?;
            }
            file.flush().await.map_err(fail)?;
            file.sync_all().await.map_err(fail)?;
            tokio::fs::rename(&part.0, &path).await.map_err(fail)?;
            let folder = self.folder.clone();
            blocking(move || {
                let synced = File::open(&folder).and_then(|folder| folder.sync_all());
                synced.map_err(|error| failed("a body cannot be kept", &error))
            })
            .await
            .map_err(|error| CallError::from(&error))?;
            Ok(length)
        };
        written.await
    }

    pub async fn get(&self, name: &str) -> Result<Pieces, Error> {
        let path = self.path(name)?;
        let file = tokio::fs::File::open(&path).await;
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::NotFound => crate::no_such_body(),
            _ => failed("a body that was kept cannot be read", &error),
        })?;
        Ok(Box::pin(futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            match file.read_buf(&mut piece).await {
                Ok(0) => Ok(None),
                Ok(_) => Ok(Some((piece.freeze(), file))),
                Err(error) => {
                    let text = format!("a body that was kept cannot be read: {error}");
                    Err(CallError::new(Code::Internal, text))
                }
            }
        })))
    }

    /// Removes one; that there is none is no matter.
    pub fn remove(&self, name: &str) {
        if let Ok(path) = self.path(name) {
            std::fs::remove_file(path).ok();
        }
    }

    /// Removes what no call is for.
    pub fn clean(&self, wanted: impl Fn(&str) -> bool) {
        let Ok(files) = std::fs::read_dir(&self.folder) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let wanted = name.to_str().is_some_and(|name| !name.ends_with(PART) && wanted(name));
            if !wanted {
                std::fs::remove_file(file.path()).ok();
            }
        }
    }
}
