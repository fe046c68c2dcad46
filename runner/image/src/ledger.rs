//! What is in the store, who uses it, how much room it takes, and what goes when there is not enough.
//!
//! Room is taken before it is used, so that the budget holds at every moment: while a layer is unpacked, what nobody uses goes, the
//! least recently used first, and when nothing is left to go, the unpacking fails. A layer is used by the roots that are made of it: its files are theirs,
//! and removing it alone would free nothing. A root is used by whoever has an [`Image`](crate::Image) of it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::document::Settings;
use crate::error::{Error, Result};
use crate::scratch::{self, Bench, Scratch};
use crate::unpack::Room;

/// Room is asked for in pieces of this size, so that it need not be asked for each file; in a small store in smaller ones, as what is
/// reserved and not used yet is missing elsewhere.
const PIECE: u64 = 4 << 20;
const PIECES_OF_BUDGET: u64 = 256;

/// What is written down beside the files of a layer or a root, in the last file of a directory before it comes to its place.
///
/// Nobody waits until files are on disk: that could take longer than to fetch them. Whatever happens to processes, files are what was written.
/// Only a crash of the machine may lose some of them, and so what was written in another boot is thrown away unless the file with these
/// words is read-only: it becomes so once everything is on disk.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    /// The kernel's id of the boot in which it was written.
    boot: String,
    facts: T,
}

/// The name of that file.
const FACTS: &str = "facts.json";

/// What is kept about a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerFacts {
    /// On disk, about.
    pub bytes: u64,
    /// In its files.
    pub content: u64,
    pub entries: u64,
}

/// What is kept about a root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootFacts {
    /// Beyond its layers.
    pub bytes: u64,
    pub layers: Vec<Digest>,
}

/// What is kept about an image of a registry, under the digest that it was asked for by.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub root: Digest,
    pub settings: Settings,
}

#[derive(Debug)]
struct Used<T> {
    facts: T,
    users: usize,
    /// When it was last let go, as a count of such events.
    last: u64,
}

#[derive(Debug, Default)]
struct Books {
    /// Bytes of layers and roots, and those that are reserved.
    used: u64,
    layers: HashMap<Digest, Used<LayerFacts>>,
    roots: HashMap<Digest, Used<RootFacts>>,
    records: HashMap<Digest, Record>,
    now: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    books: Mutex<Books>,
    budget: u64,
    directory: PathBuf,
    boot: String,
    bench: Arc<Bench>,
    /// The store is ours while it is open.
    _lock: fs::File,
}

/// What the store holds, for those who watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes taken, those of images that are being unpacked included.
    pub bytes: u64,
    /// Bytes that may be taken.
    pub budget: u64,
    /// Roots, each of one image or of several that differ in their settings only.
    pub roots: usize,
    /// Of these, the ones in use: they are not evicted.
    pub roots_in_use: usize,
    pub layers: usize,
}

impl Ledger {
    /// Takes stock. What is not whole is removed. Blocking.
    pub fn open(directory: &Path, budget: u64, bench: Arc<Bench>, lock: fs::File) -> Result<Arc<Self>> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| Error::system("/proc/sys/kernel/random/boot_id cannot be read", error))?;
        let (books, directory) = (Mutex::default(), directory.to_owned());
        let ledger = Self { books, budget, directory, boot, bench, _lock: lock };
        for part in ["layers", "roots", "images"] {
            scratch::make(&ledger.directory.join(part))?;
        }
        {
            let mut books = ledger.lock();
            for (digest, _, facts) in ledger.found::<LayerFacts>("layers")? {
                books.used += facts.bytes;
                books.layers.insert(digest, Used { facts, users: 0, last: 0 });
            }
            let mut roots = ledger.found::<RootFacts>("roots")?;
            roots.sort_by_key(|(_, time, _)| *time);
            for (digest, _, facts) in roots {
                if !facts.layers.iter().all(|layer| books.layers.contains_key(layer)) {
                    ledger.discard("roots", &digest)?;
                    continue;
                }
                books.used += facts.bytes;
                books.now += 1;
                let last = books.now;
                books.hold(&facts.layers);
                books.roots.insert(digest, Used { facts, users: 0, last });
            }
            for (digest, path) in ledger.entries("images")? {
                let record =
                    fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
                match record.filter(|record| books.roots.contains_key(&record.root)) {
                    Some(record) => drop(books.records.insert(digest, record)),
                    None => fs::remove_file(&path).map_err(|error| {
                        Error::system("what is known of an image cannot be removed", error)
                    })?,
                }
            }
        }
        let ledger = Arc::new(ledger);
        // The budget may have been larger.
        match ledger.make_room(0) {
            Err(error) if error.fault != crate::Fault::Full => Err(error),
            _ => Ok(ledger),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self, part: &str, digest: &Digest) -> PathBuf {
        self.directory.join(part).join(digest.hex())
    }

    fn entries(&self, part: &str) -> Result<Vec<(Digest, PathBuf)>> {
        let failed = |error: std::io::Error| Error::system(format_args!("`{part}` cannot be read"), error);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.directory.join(part)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(digest) = entry.file_name().to_str().and_then(Digest::from_hex) {
                found.push((digest, entry.path()));
            }
        }
        Ok(found)
    }

    fn found<T: for<'de> Deserialize<'de>>(&self, part: &str) -> Result<Vec<(Digest, SystemTime, T)>> {
        let mut whole = Vec::new();
        for (digest, path) in self.entries(part)? {
            let read = || {
                let kept: Kept<T> = serde_json::from_slice(&fs::read(path.join(FACTS)).ok()?).ok()?;
                let safe = fs::symlink_metadata(path.join(FACTS)).ok()?.permissions().readonly();
                let time = fs::symlink_metadata(&path).and_then(|there| there.modified()).ok()?;
                (safe || kept.boot == self.boot).then_some((digest, time, kept.facts))
            };
            match read() {
                Some(found) => whole.push(found),
                None => self.discard(part, &digest)?,
            }
        }
        Ok(whole)
    }

    fn write_facts(&self, made: &Scratch, facts: &impl Serialize) -> Result<()> {
        let path = made.path().join(FACTS);
        fs::write(&path, text(&Kept { boot: self.boot.clone(), facts }))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .map_err(|error| Error::system("what is known of a directory cannot be written", error))
    }

    /// Brings a root and its layers to disk, on a thread of its own, and then says so in their facts. It ends when that is done; nothing
    /// of the store is held by it, so that what it is about may be evicted.
    pub fn save(&self, root: &RootHold, layers: &[Arc<LayerHold>]) {
        let facts = |part, digest| fs::File::open(self.path(part, digest).join(FACTS));
        let files: std::io::Result<Vec<_>> = layers
            .iter()
            .map(|layer| facts("layers", &layer.digest))
            .chain([facts("roots", &root.digest)])
            .collect();
        tokio::task::spawn_blocking(move || {
            let save = || {
                let files = files?;
                files.iter().take(1).try_for_each(rustix::fs::syncfs)?;
                files.iter().try_for_each(|file| file.set_permissions(fs::Permissions::from_mode(0o400)))
            };
            if let Err(error) = save() {
                tracing::warn!(%error, "an image was not brought to disk: a crash of this machine would lose it");
            }
        });
    }

    /// Takes a directory out of the store in one step, and then apart.
    fn discard(&self, part: &str, digest: &Digest) -> Result<()> {
        drop(self.take_out(part, digest)?);
        Ok(())
    }

    fn take_out(&self, part: &str, digest: &Digest) -> Result<Scratch> {
        let scratch = self.bench.place();
        fs::rename(self.path(part, digest), scratch.path()).map_err(|error| {
            Error::system(format_args!("{digest} cannot be removed from `{part}`"), error)
        })?;
        Ok(scratch)
    }

    /// Reserves bytes. Evicts what nobody uses when it must. Blocking.
    fn make_room(&self, bytes: u64) -> Result<()> {
        loop {
            let evicted = {
                let mut books = self.lock();
                if books.used.saturating_add(bytes) <= self.budget {
                    books.used += bytes;
                    return Ok(());
                }
                self.evict(&mut books)?
            };
            match evicted {
                // Here, without the lock, it is taken apart.
                Some(evicted) => drop(evicted),
                None => {
                    return Err(Error::full(format!(
                        "the image store has no room: its budget of {} is taken by images in use",
                        stoker_core::units::format_size(self.budget)
                    )));
                }
            }
        }
    }

    /// Frees what it can of a disk that is full before the budget is: layers that no root has, else the root that was not used for the longest time with
    /// its layers; but none of `kept`, of which the image is made that wants the room. `false` if there is nothing. Blocking.
    pub fn relieve(&self, kept: &[Digest]) -> Result<bool> {
        let gone = {
            let mut books = self.lock();
            let mut gone = self.evict_layers(&mut books, kept)?;
            if gone.is_empty()
                && let Some(root) = self.evict_root(&mut books)?
            {
                gone = self.evict_layers(&mut books, kept)?;
                gone.push(root);
            }
            gone
        };
        // Without the lock they are taken apart.
        Ok(!gone.is_empty())
    }

    fn evict_layers(&self, books: &mut Books, kept: &[Digest]) -> Result<Vec<Scratch>> {
        let unused = books.layers.iter().filter(|(digest, layer)| layer.users == 0 && !kept.contains(digest));
        let unused: Vec<_> = unused.map(|(digest, _)| *digest).collect();
        unused.into_iter().map(|digest| self.evict_layer(books, &digest)).collect()
    }

    /// Takes out what was not used for the longest time.
    fn evict(&self, books: &mut Books) -> Result<Option<Scratch>> {
        let oldest =
            books.layers.iter().filter(|(_, layer)| layer.users == 0).min_by_key(|(_, layer)| layer.last);
        match oldest.map(|(digest, _)| *digest) {
            Some(digest) => self.evict_layer(books, &digest).map(Some),
            None => self.evict_root(books),
        }
    }

    fn evict_layer(&self, books: &mut Books, digest: &Digest) -> Result<Scratch> {
        let scratch = self.take_out("layers", digest)?;
        if let Some(layer) = books.layers.remove(digest) {
            books.used = books.used.saturating_sub(layer.facts.bytes);
        }
        tracing::debug!(layer = %digest, "evicted from the image store");
        Ok(scratch)
    }

    fn evict_root(&self, books: &mut Books) -> Result<Option<Scratch>> {
        let oldest = books.roots.iter().filter(|(_, root)| root.users == 0).min_by_key(|(_, root)| root.last);
        let Some(digest) = oldest.map(|(digest, _)| *digest) else { return Ok(None) };
        let gone: Vec<_> = books.records.iter().filter(|(_, r)| r.root == digest).map(|(d, _)| *d).collect();
        for record in gone {
            match fs::remove_file(self.path("images", &record)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::system("what is known of an image cannot be removed", error));
                }
                _ => drop(books.records.remove(&record)),
            }
        }
        let scratch = self.take_out("roots", &digest)?;
        if let Some(root) = books.roots.remove(&digest) {
            books.used = books.used.saturating_sub(root.facts.bytes);
            books.release(&root.facts.layers);
        }
        tracing::info!(root = %digest, "evicted from the image store");
        Ok(Some(scratch))
    }

    /// Room for what is to be made.
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { ledger: Arc::clone(self), held: 0, used: 0 }
    }

    /// Holds a layer that is there.
    pub fn layer(self: &Arc<Self>, digest: &Digest) -> Option<LayerHold> {
        let mut books = self.lock();
        let layer = books.layers.get_mut(digest)?;
        layer.users += 1;
        Some(LayerHold { ledger: Arc::clone(self), digest: *digest, facts: layer.facts.clone() })
    }

    pub fn has_layer(&self, digest: &Digest) -> bool {
        self.lock().layers.contains_key(digest)
    }

    /// Puts a finished layer in its place. Blocking.
    pub fn add_layer(
        self: &Arc<Self>,
        digest: Digest,
        facts: LayerFacts,
        made: Scratch,
        mut room: Reservation,
    ) -> Result<LayerHold> {
        self.write_facts(&made, &facts)?;
        let mut books = self.lock();
        // It may be there: by somebody who was given up, and did not know it yet.
        if !books.layers.contains_key(&digest) {
            made.publish(&self.path("layers", &digest))?;
            books.settle(&mut room, facts.bytes);
            let last = books.now;
            books.layers.insert(digest, Used { facts: facts.clone(), users: 0, last });
        }
        books.layers.get_mut(&digest).into_iter().for_each(|layer| layer.users += 1);
        Ok(LayerHold { ledger: Arc::clone(self), digest, facts })
    }

    /// Holds a root that is there.
    pub fn root(self: &Arc<Self>, digest: &Digest) -> Option<RootHold> {
        let mut books = self.lock();
        books.roots.get_mut(digest)?.users += 1;
        Some(RootHold { ledger: Arc::clone(self), digest: *digest })
    }

    pub fn has_root(&self, digest: &Digest) -> bool {
        self.lock().roots.contains_key(digest)
    }

    /// Puts a finished root in its place. Blocking.
    pub fn add_root(
        self: &Arc<Self>,
        digest: Digest,
        facts: RootFacts,
        made: Scratch,
        mut room: Reservation,
    ) -> Result<RootHold> {
        self.write_facts(&made, &facts)?;
        let mut books = self.lock();
        if !books.roots.contains_key(&digest) {
            made.publish(&self.path("roots", &digest))?;
            books.settle(&mut room, facts.bytes);
            books.hold(&facts.layers);
            books.roots.insert(digest, Used { facts, users: 0, last: 0 });
        }
        books.roots.get_mut(&digest).into_iter().for_each(|root| root.users += 1);
        Ok(RootHold { ledger: Arc::clone(self), digest })
    }

    /// What is known of an image by its digest.
    pub fn record(&self, digest: &Digest) -> Option<Record> {
        self.lock().records.get(digest).cloned()
    }

    /// Remembers what a digest leads to, for as long as the root is there. Blocking.
    pub fn remember(&self, digest: Digest, record: Record, _held: &RootHold) -> Result<()> {
        scratch::write_whole(&self.bench, &self.path("images", &digest), &text(&record))?;
        self.lock().records.insert(digest, record);
        Ok(())
    }

    pub fn usage(&self) -> Usage {
        let books = self.lock();
        Usage {
            bytes: books.used,
            budget: self.budget,
            roots: books.roots.len(),
            roots_in_use: books.roots.values().filter(|root| root.users > 0).count(),
            layers: books.layers.len(),
        }
    }
}

impl Books {
    /// What was reserved is there now, and takes this much.
    fn settle(&mut self, room: &mut Reservation, bytes: u64) {
        self.used = self.used.saturating_sub(std::mem::take(&mut room.held)) + bytes;
    }

    fn hold(&mut self, layers: &[Digest]) {
        for layer in layers {
            self.layers.get_mut(layer).into_iter().for_each(|layer| layer.users += 1);
        }
    }

    fn release(&mut self, layers: &[Digest]) {
        self.now += 1;
        for layer in layers {
            if let Some(layer) = self.layers.get_mut(layer) {
                layer.users = layer.users.saturating_sub(1);
                layer.last = self.now;
            }
        }
    }
}

fn text(facts: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(facts).expect("facts have only string keys")
}

/// Room that was taken for something that is not there yet. Dropping it gives the room back.
#[derive(Debug)]
pub(crate) struct Reservation {
    ledger: Arc<Ledger>,
    held: u64,
    used: u64,
}

impl Room for Reservation {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.used += bytes;
        if self.used > self.held {
            let missing = self.used - self.held;
            let piece = missing.max(PIECE.min(self.ledger.budget / PIECES_OF_BUDGET));
            let got = match self.ledger.make_room(piece) {
                Err(error) if error.fault == crate::Fault::Full && missing < piece => {
                    self.ledger.make_room(missing)?;
                    missing
                }
                other => other.map(|()| piece)?,
            };
            self.held += got;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.held > 0 {
            let mut books = self.ledger.lock();
            books.used = books.used.saturating_sub(self.held);
        }
    }
}

/// A layer that stays while this is held.
#[derive(Debug)]
pub(crate) struct LayerHold {
    ledger: Arc<Ledger>,
    pub digest: Digest,
    pub facts: LayerFacts,
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        self.ledger.lock().release(&[self.digest]);
    }
}

/// A root that stays while this is held.
#[derive(Debug)]
pub(crate) struct RootHold {
    ledger: Arc<Ledger>,
    pub digest: Digest,
}

impl RootHold {
    /// Where its files are.
    pub fn files(&self) -> PathBuf {
        self.ledger.path("roots", &self.digest).join("files")
    }
}

impl Drop for RootHold {
    fn drop(&mut self) {
        let idle = {
            let mut books = self.ledger.lock();
            books.now += 1;
            let now = books.now;
            books.roots.get_mut(&self.digest).is_some_and(|root| {
                root.users = root.users.saturating_sub(1);
                root.last = now;
                root.users == 0
            })
        };
        if idle {
            // So that the next process knows the order too. Not worth an error: it would only evict in another order.
            let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
            let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
            let path = self.ledger.path("roots", &self.digest);
            if let Err(error) =
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            {
                tracing::debug!(%error, "the last use of an image cannot be noted");
            }
        }
    }
}
