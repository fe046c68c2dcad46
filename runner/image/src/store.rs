//! The store: one directory in which images are unpacked once, shared, and evicted when they are not used.
//!
//! ```text
//! lock                  held by the one process that has the store
//! tmp/                  half-done work; emptied at the start
//! layers/HEX/files      a layer's files, by the digest of its tar archive
//! layers/HEX/facts.json sizes, and whether all of it is on disk; roots have the same
//! layers/HEX/marks      what it says about layers below: whiteouts, opaque directories, links
//! roots/HEX/files       an image's root, by the digest of its stack of layers: directories, and hard links to files of layers
//! images/HEX            what a digest in a registry leads to: a root and settings
//! ```
//!
//! Every directory comes to its place by one rename, when all of it is written. So whatever ends the process, what is there is whole, and
//! what is not whole is in `tmp`. What a crash of the machine may have damaged is told by its facts: see [`crate::ledger`].

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures_util::future::try_join_all;
use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, Uid};
use rustix::io::Errno;
use stoker_core::ImageRef;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::document::Settings;
use crate::error::{Error, Fault, Result, through_io};
use crate::flatten::{self, flatten};
use crate::found::{Fingerprint, Found, Layer, Place, open_file};
use crate::ledger::{LayerFacts, LayerHold, Ledger, Record, Reservation, RootFacts, RootHold, Usage};
use crate::limits::Limits;
use crate::local;
use crate::marks::Marks;
use crate::read::{self, Expected};
use crate::registry::{Config as RegistryConfig, Piece, Progress, Registry, Session};
use crate::scratch::{self, Bench, Scratch};
use crate::single_flight::SingleFlight;
use crate::unpack::Owners;

/// How long the registry may take that is asked what a tag leads to: somebody waits for that, and asks another runner after 10 s.
const RESOLVE: Duration = Duration::from_secs(8);

/// Said of a layer that its registry does not have.
const ELSEWHERE: &str = ", and from the other addresses that its image names nothing is fetched: push the image with all of its layers";

/// Pieces of a blob that wait to be unpacked: a network's next few reads.
const PIECES: usize = 16;

/// How a store is made.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory; made where it is missing. Nobody else may have it, and no other file system may be mounted in it.
    pub directory: PathBuf,
    /// Bytes that it may take on disk.
    pub budget: u64,
    /// What one image may take.
    pub limits: Limits,
    /// How long one image may take to be fetched and unpacked, once it is its turn.
    pub pull_timeout: Duration,
    /// Images fetched at once; the others wait for their turn.
    pub pulls: usize,
    /// Layers fetched and unpacked at once, of all images.
    pub layers: usize,
    pub registries: RegistryConfig,
}

impl Config {
    /// A store in this directory, everything else at its default.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            budget: 20 << 30,
            limits: Limits::default(),
            pull_timeout: Duration::from_secs(300),
            pulls: 4,
            layers: 4,
            registries: RegistryConfig::default(),
        }
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A registry. The image is named by its digest: see [`Store::resolve`].
    Registry {
        image: ImageRef,
        /// The name of a file of credentials.
        credentials: Option<String>,
    },
    /// A file: what `docker save` writes, or an OCI layout in a tar archive; compressed or not.
    Archive(PathBuf),
    /// A directory: an OCI image layout.
    OciLayout(PathBuf),
}

/// An image that can be used. It stays in the store for as long as this, or a clone of it, is held.
#[derive(Debug, Clone)]
pub struct Image {
    /// The directory to use as `/`. It is shared: read-only for everybody.
    pub root: PathBuf,
    pub config: Arc<ImageConfig>,
    /// What it took to get it here.
    pub phases: Phases,
    _hold: Arc<RootHold>,
}

/// How long the steps took. All zero for an image that was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Until the manifest and the configuration were read.
    pub resolve: Duration,
    /// Until all layers were here, verified and unpacked: they are unpacked as they arrive.
    pub fetch: Duration,
    /// Until the layers were one root.
    pub flatten: Duration,
    /// Bytes of the blobs that had to be read.
    pub bytes: u64,
}

/// A store of images. Cheap to clone; the directory is given back when the last clone and the last [`Image`] are gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    ledger: Arc<Ledger>,
    bench: Arc<Bench>,
    registry: Arc<Registry>,
    owners: Owners,
    images: SingleFlight<Key, Arc<Built>>,
    roots: SingleFlight<Digest, Arc<RootHold>>,
    layers: SingleFlight<Digest, Arc<LayerHold>>,
    ready: Mutex<HashMap<Key, Ready>>,
    /// Images that are being fetched, and how far that is.
    under_way: Mutex<HashMap<Source, Weak<Progress>>>,
    pull_turns: Semaphore,
    layer_turns: Semaphore,
}

/// What a source is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The digest of a manifest or an index.
    Document(Digest),
    /// An archive, or the index of a layout, as it is now.
    File(Fingerprint),
}

/// An image that was used in this process: nothing needs to be read to use it again.
struct Ready {
    root: Digest,
    config: Arc<ImageConfig>,
}

/// An image that was just made ready.
struct Built {
    hold: Arc<RootHold>,
    config: Arc<ImageConfig>,
    phases: Phases,
}

impl Store {
    /// Opens or makes a store, and removes what an earlier process left half-done. Blocking.
    ///
    /// # Errors
    /// Another process has it, or the directory cannot be used.
    pub fn open(config: Config) -> Result<Self> {
        let directory = &config.directory;
        fs::create_dir_all(directory)
            .map_err(|error| Error::system(format_args!("{} cannot be made", directory.display()), error))?;
        let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"));
        let lock = lock
            .map_err(|error| Error::system(format_args!("{} cannot be used", directory.display()), error))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::store(format!(
                "the image store {} belongs to another process: give each runner a state directory of its own",
                directory.display()
            ))
        })?;
        let bench = Arc::new(Bench::open(directory.join("tmp"))?);
        let owners = owners(&bench)?;
        let registry = Arc::new(Registry::new(config.registries.clone())?);
        let ledger = Ledger::open(directory, config.budget, Arc::clone(&bench), lock)?;
        Ok(Self {
            inner: Arc::new(Inner {
                pull_turns: Semaphore::new(config.pulls.max(1)),
                layer_turns: Semaphore::new(config.layers.max(1)),
                config,
                ledger,
                bench,
                registry,
                owners,
                images: SingleFlight::default(),
                roots: SingleFlight::default(),
                layers: SingleFlight::default(),
                ready: Mutex::default(),
                under_way: Mutex::default(),
            }),
        })
    }

    /// The name of what an image's tag leads to now. Asks the registry each time, for at most 8 s.
    ///
    /// # Errors
    /// See [`Error::fault`]; which image it is about, whoever asks knows.
    pub async fn resolve(&self, image: &ImageRef, credentials: Option<&str>) -> Result<ImageRef> {
        let progress = Arc::default();
        let ask = async {
            let session = self.inner.registry.session(image, credentials, &progress).await?.hurried();
            let digest = session.resolve(image.digest().or(image.tag()).unwrap_or("latest")).await?;
            image.pin(&digest.to_string()).map_err(Error::registry)
        };
        let limit = self.inner.config.pull_timeout.min(RESOLVE);
        tokio::time::timeout(limit, ask).await.unwrap_or_else(|_| {
            let (seconds, so_far) = (limit.as_secs_f64(), progress.so_far());
            Err(Error::registry(format!("what it leads to was not known within {seconds} s{so_far}")))
        })
    }

    /// An image's root and configuration: at once where it is here, else when it is fetched and unpacked. Those who ask for the same image
    /// at the same time share the work; it ends when nobody waits for it any more.
    ///
    /// # Errors
    /// See [`Error::fault`].
    pub async fn prepare(&self, source: &Source) -> Result<Image> {
        let key = self.key(source).await?;
        if let Some(image) = self.inner.ready(&key) {
            return Ok(image);
        }
        let built = self
            .inner
            .images
            .join(key.clone(), &origin(source), |stop| {
                let (inner, source, key) = (Arc::clone(&self.inner), source.clone(), key.clone());
                async move { inner.build(&source, key, stop).await }
            })
            .await
            .map_err(|error| error.about(source))?;
        Ok(Image {
            root: built.hold.files(),
            config: Arc::clone(&built.config),
            phases: built.phases,
            _hold: Arc::clone(&built.hold),
        })
    }

    /// Whether an image of a registry was used here before and is still there: to be asked often, and costs nothing. An image that
    /// is there all the same only takes [preparing](Self::prepare) to be known.
    #[must_use]
    pub fn has(&self, image: &ImageRef) -> bool {
        let Some(digest) = image.digest().and_then(Digest::parse) else { return false };
        let ready = self.inner.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.get(&Key::Document(digest)).is_some_and(|there| self.inner.ledger.has_root(&there.root))
    }

    /// How the fetching of an image stands that is under way, as the end of a sentence: what holds it up, and how much of it has come.
    /// Empty where nothing is known of it.
    #[must_use]
    pub fn so_far(&self, source: &Source) -> String {
        let under_way = self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match under_way.get(&source.without_credentials()).and_then(Weak::upgrade) {
            Some(progress) => progress.so_far(),
            None => String::new(),
        }
    }

    async fn key(&self, source: &Source) -> Result<Key> {
        let file = match source {
            Source::Registry { image, .. } => {
                let digest = image.digest().and_then(Digest::parse).ok_or_else(|| {
                    Error::image(format!(
                        "the image {image} has no digest, and its tag may lead somewhere else tomorrow"
                    ))
                })?;
                return Ok(Key::Document(digest));
            }
            Source::Archive(path) => path.clone(),
            Source::OciLayout(path) => path.join(local::INDEX),
        };
        let of_layout = matches!(source, Source::OciLayout(_));
        // The file may be on another machine.
        let found = blocking(move || match Fingerprint::of(&file) {
            Err(_) if of_layout && !file.exists() => Err(local::no_layout()),
            found => found,
        });
        found.await.map(Key::File).map_err(|error| error.about(source))
    }

    /// What the store holds.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.inner.ledger.usage()
    }
}

impl Inner {
    fn ready(&self, key: &Key) -> Option<Image> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let there = ready.get(key)?;
        let Some(hold) = self.ledger.root(&there.root) else {
            // Evicted since.
            ready.remove(key);
            return None;
        };
        Some(Image {
            root: hold.files(),
            config: Arc::clone(&there.config),
            phases: Phases::default(),
            _hold: Arc::new(hold),
        })
    }

    async fn build(
        self: Arc<Self>,
        source: &Source,
        key: Key,
        stop: CancellationToken,
    ) -> Result<Arc<Built>> {
        let mut phases = Phases::default();
        let (hold, settings) = match self.remembered(&key) {
            Some(there) => there,
            None => {
                let progress = self.begin(source);
                let others = format!("the {} images that are fetched at once", self.config.pulls.max(1));
                let turn = progress.behind(others, self.pull_turns.acquire()).await;
                let turn = turn.map_err(|_| Error::abandoned())?;
                let limit = self.config.pull_timeout;
                let make = self.make(source, &key, &mut phases, &progress, &stop);
                let made = tokio::time::timeout(limit, make).await;
                drop(turn);
                made.unwrap_or_else(|_| {
                    let (seconds, so_far) = (limit.as_secs_f64(), progress.so_far());
                    Err(Error::registry(format!("it was not here within {seconds} s{so_far}")))
                })?
            }
        };
        let root = hold.digest;
        let files = hold.files();
        let config =
            blocking(move || ImageConfig::new(&settings, &scratch::handle(&files)?)).await.map(Arc::new)?;
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|other, there| {
            // A file that was changed is another one, and what it was before is of no use to anybody.
            let same_file = matches!((other, &key), (Key::File(a), Key::File(b)) if a.path() == b.path());
            !same_file && self.ledger.has_root(&there.root)
        });
        ready.insert(key, Ready { root, config: Arc::clone(&config) });
        Ok(Arc::new(Built { hold, config, phases }))
    }

    /// From here on it can be asked how far the fetching of this image is.
    fn begin(&self, source: &Source) -> Arc<Progress> {
        let progress = Arc::<Progress>::default();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, progress| progress.strong_count() > 0);
        under_way.insert(source.without_credentials(), Arc::downgrade(&progress));
        progress
    }

    /// What an earlier process fetched.
    fn remembered(self: &Arc<Self>, key: &Key) -> Option<(Arc<RootHold>, Settings)> {
        let Key::Document(digest) = key else { return None };
        let record = self.ledger.record(digest)?;
        Some((Arc::new(self.ledger.root(&record.root)?), record.settings))
    }

    async fn make(
        self: &Arc<Self>,
        source: &Source,
        key: &Key,
        phases: &mut Phases,
        progress: &Arc<Progress>,
        stop: &CancellationToken,
    ) -> Result<(Arc<RootHold>, Settings)> {
        let began = Instant::now();
        let (found, from) = self.find(source, progress).await?;
        phases.resolve = began.elapsed();
        let root = found.chain();
        let hold = match self.ledger.root(&root) {
            Some(hold) => Arc::new(hold),
            None => self.make_root_with_relief(&found, &from, root, phases, stop).await?,
        };
        if let Key::Document(digest) = key {
            let (ledger, digest, held) = (Arc::clone(&self.ledger), *digest, Arc::clone(&hold));
            let record = Record { root, settings: found.settings.clone() };
            blocking(move || ledger.remember(digest, record, &held)).await?;
        }
        Ok((hold, found.settings))
    }

    /// The documents of an image, and whence its layers come.
    async fn find(self: &Arc<Self>, source: &Source, progress: &Arc<Progress>) -> Result<(Found, From)> {
        if let Source::Registry { image, credentials } = source {
            let session = self.registry.session(image, credentials.as_deref(), progress).await?;
            let digest =
                image.digest().and_then(Digest::parse).ok_or_else(|| Error::image("it has no digest"))?;
            let found = session.find(digest).await?;
            let name = origin(source);
            let (session, progress) = (Some(Arc::new(session)), Arc::clone(progress));
            return Ok((found, From { name, session, progress, _room: None }));
        }
        let (inner, source, mut room) = (Arc::clone(self), source.clone(), self.ledger.reservation());
        let progress = Arc::clone(progress);
        blocking(move || {
            let found = match &source {
                Source::OciLayout(path) => local::layout(path),
                Source::Archive(path) => local::archive(path, &inner.bench, &inner.config.limits, &mut room),
                Source::Registry { .. } => Err(Error::store("a registry is no file")),
            }?;
            Ok((found, From { name: origin(&source), session: None, progress, _room: Some(room) }))
        })
        .await
    }

    /// Where the disk is full before the budget is, what nobody uses makes room, too. Each time something goes that is no part of this image, so that there
    /// is an end to it.
    async fn make_root_with_relief(
        self: &Arc<Self>,
        found: &Found,
        from: &From,
        root: Digest,
        phases: &mut Phases,
        stop: &CancellationToken,
    ) -> Result<Arc<RootHold>> {
        loop {
            let error = match self.make_root(found, from, root, phases, stop).await {
                Err(error) if error.fault == Fault::Full => error,
                made => return made,
            };
            let kept: Vec<_> = found.layers.iter().map(|layer| layer.content).collect();
            let ledger = Arc::clone(&self.ledger);
            if !blocking(move || ledger.relieve(&kept)).await? {
                return Err(error);
            }
            tracing::warn!(%error, "there is less room than the store's budget: images that nobody uses go; a smaller budget avoids this");
        }
    }

    async fn make_root(
        self: &Arc<Self>,
        found: &Found,
        from: &From,
        root: Digest,
        phases: &mut Phases,
        stop: &CancellationToken,
    ) -> Result<Arc<RootHold>> {
        let missing = found.layers.iter().filter(|layer| !self.ledger.has_layer(&layer.content));
        from.progress.expects(missing.map(|layer| layer.size).fold(0, u64::saturating_add));
        let began = Instant::now();
        let layers = try_join_all(found.layers.iter().map(|layer| self.layer(layer, from))).await?;
        phases.fetch = began.elapsed();
        phases.bytes = layers.iter().map(|(_, bytes)| bytes).sum();
        let layers: Vec<_> = layers.into_iter().map(|(layer, _)| layer).collect();
        let limits = &self.config.limits;
        let sum = |of: fn(&LayerFacts) -> u64| {
            layers.iter().map(|layer| of(&layer.facts)).fold(0, u64::saturating_add)
        };
        if sum(|facts| facts.entries) > limits.entries || sum(|facts| facts.content) > limits.bytes {
            return Err(Error::image(format!(
                "it has more than {} files, or more than {} bytes in them",
                limits.entries, limits.bytes
            )));
        }
        let began = Instant::now();
        let hold = self
            .roots
            .join(root, "", |stop| {
                let (inner, layers) = (Arc::clone(self), layers.clone());
                async move { blocking(move || inner.flatten(root, &layers, &stop).map(Arc::new)).await }
            })
            .await?;
        phases.flatten = began.elapsed();
        if stop.is_cancelled() { Err(Error::abandoned()) } else { Ok(hold) }
    }

    /// A layer's files, and the bytes that were read for them.
    async fn layer(self: &Arc<Self>, layer: &Layer, from: &From) -> Result<(Arc<LayerHold>, u64)> {
        if let Some(there) = self.ledger.layer(&layer.content) {
            return Ok((Arc::new(there), 0));
        }
        let hold = self
            .layers
            .join(layer.content, &from.name, |stop| {
                let (inner, layer, session) = (Arc::clone(self), layer.clone(), from.session.clone());
                let progress = Arc::clone(&from.progress);
                async move { inner.make_layer(&layer, session, progress, stop).await.map(Arc::new) }
            })
            .await
            .map_err(|error| match error.fault {
                Fault::Image | Fault::Missing | Fault::Denied => {
                    error.about(format_args!("the layer {}", layer.digest.unwrap_or(layer.content)))
                }
                _ => error,
            })?;
        Ok((hold, layer.size))
    }

    async fn make_layer(
        self: &Arc<Self>,
        layer: &Layer,
        session: Option<Arc<Session>>,
        progress: Arc<Progress>,
        stop: CancellationToken,
    ) -> Result<LayerHold> {
        let _turn = self.layer_turns.acquire().await.map_err(|_| Error::abandoned())?;
        let inner = Arc::clone(self);
        let work = layer.clone();
        let (path, offset) = match &layer.place {
            Place::File(path, offset) => (Arc::clone(path), *offset),
            Place::Scratch(scratch, offset) => (scratch.path().into(), *offset),
            &Place::Registry { elsewhere } => {
                let (Some(session), Some(digest)) = (session, layer.digest) else {
                    return Err(Error::store("a layer of a registry has no digest"));
                };
                // Dropped with this, the pieces end, and so does the unpacking.
                let (to, pieces) = mpsc::channel(PIECES);
                let unpacking =
                    blocking(move || inner.unpack(&work, Pieces { pieces, now: Bytes::new(), ended: false }));
                let (fetched, unpacked) = tokio::join!(session.blob(digest, layer.size, to), unpacking);
                return match (fetched, unpacked) {
                    // It was the lack of pieces that ended the unpacking.
                    (Err(mut error), Err(_)) => {
                        if elsewhere && error.fault == Fault::Missing {
                            error.message.push_str(ELSEWHERE);
                        }
                        Err(error)
                    }
                    (_, unpacked) => unpacked,
                };
            }
        };
        blocking(move || {
            let mut file = open_file(&path)?;
            file.seek(SeekFrom::Start(offset))
                .map_err(|error| Error::system("an archive cannot be read", error))?;
            inner.unpack(&work, Stoppable { inner: file.take(work.size), progress, stop })
        })
        .await
    }

    /// Blocking.
    fn unpack(&self, layer: &Layer, blob: impl Read) -> Result<LayerHold> {
        let mut room = self.ledger.reservation();
        let made = self.bench.directory()?;
        let files = made_files(&made)?;
        let expected = Expected { blob: layer.digest, size: layer.size, content: layer.content };
        let unpacked = read::layer(blob, &expected, &files, self.owners, &self.config.limits, &mut room)?;
        if unpacked.devices > 0 {
            tracing::debug!(layer = %layer.content, devices = unpacked.devices, "device nodes of a layer are left out");
        }
        fs::write(made.path().join("marks"), unpacked.marks.write())
            .map_err(|error| Error::system("the marks of a layer cannot be written", error))?;
        let facts =
            LayerFacts { bytes: unpacked.bytes, content: unpacked.content, entries: unpacked.entries };
        self.ledger.add_layer(layer.content, facts, made, room)
    }

    /// Blocking.
    fn flatten(&self, root: Digest, holds: &[Arc<LayerHold>], stop: &CancellationToken) -> Result<RootHold> {
        if let Some(there) = self.ledger.root(&root) {
            return Ok(there);
        }
        let layers = holds.iter().map(|hold| {
            let path = self.ledger.path("layers", &hold.digest);
            let marks = fs::read(path.join("marks"))
                .map_err(|error| Error::system("the marks of a layer cannot be read", error))?;
            Ok(flatten::Layer {
                directory: scratch::handle(&path.join("files"))?,
                marks: Marks::read(&marks)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let mut room = self.ledger.reservation();
        let made = self.bench.directory()?;
        let files = made_files(&made)?;
        let bytes = flatten(&layers, &files, self.owners, &mut room, stop)?;
        let facts = RootFacts { bytes, layers: holds.iter().map(|hold| hold.digest).collect() };
        let hold = self.ledger.add_root(root, facts, made, room)?;
        self.ledger.save(&hold, holds);
        Ok(hold)
    }
}

/// Where files of an image go: open to every user, who only gets there by a sandbox.
fn made_files(made: &Scratch) -> Result<OwnedFd> {
    let path = made.path().join("files");
    scratch::make(&path)?;
    let files = scratch::handle(&path)?;
    rustix::fs::fchmod(&files, Mode::from_raw_mode(0o755))
        .map_err(|error| Error::system("a mode cannot be set", error))?;
    Ok(files)
}

/// Whether files here can belong to other users: root may not, in a user namespace that knows only itself.
fn owners(bench: &Arc<Bench>) -> Result<Owners> {
    let probe = bench.directory()?;
    let other = if rustix::process::geteuid().as_raw() == 1 { 2 } else { 1 };
    match rustix::fs::chownat(
        rustix::fs::CWD,
        probe.path(),
        Some(Uid::from_raw(other)),
        Some(Gid::from_raw(other)),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(()) => Ok(Owners::Kept),
        Err(Errno::PERM | Errno::INVAL) => Ok(Owners::Noted),
        Err(error) => Err(Error::system("an owner cannot be set", error)),
    }
}

/// Runs what blocks on a thread for that. It runs to its end even if nobody waits for it: what it does looks at its token.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::store(format!("the image store: work on an image ended badly: {error}")))
    })
}

/// A source that ends when nobody wants it any more.
struct Stoppable<R> {
    inner: R,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(through_io(Error::abandoned()));
        }
        self.inner.read(buffer).inspect(|read| self.progress.came(*read))
    }
}

/// The bytes of a blob as they come from a registry.
struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    now: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.now = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(through_io(Error::abandoned())),
            }
        }
        (&mut self.now).reader().read(buffer)
    }
}

/// Whence the layers of an image come.
struct From {
    name: String,
    session: Option<Arc<Session>>,
    progress: Arc<Progress>,
    /// An archive had to be decompressed.
    _room: Option<Reservation>,
}

/// For whom something is fetched: what fails for one may succeed for another.
fn origin(source: &Source) -> String {
    match source {
        Source::Registry { image, credentials } => {
            format!(
                "{}/{} {}",
                image.registry(),
                image.repository(),
                credentials.as_deref().unwrap_or_default()
            )
        }
        Source::Archive(path) | Source::OciLayout(path) => path.display().to_string(),
    }
}

impl Source {
    /// What is fetched, whoever asks for it.
    fn without_credentials(&self) -> Self {
        match self {
            Self::Registry { image, .. } => Self::Registry { image: image.clone(), credentials: None },
            Self::Archive(_) | Self::OciLayout(_) => self.clone(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Registry { image, .. } => write!(f, "the image {image}"),
            Source::Archive(path) => write!(f, "the image in {}", path.display()),
            Source::OciLayout(path) => write!(f, "the image in {}", path.display()),
        }
    }
}
