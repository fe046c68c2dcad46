//! When a running process is to read again what it was told: at SIGHUP, and when one of its files changed.
//!
//! Directories are watched and not files, since a file is usually replaced by another of its name; so are the links by which Kubernetes
//! swaps a whole directory of mounted secrets at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::metrics::Metrics;
use crate::tls::Tls;

/// Files that belong together are written one after the other: they are read once it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(200);
/// But after so long whatever is written.
const UNREST: Duration = Duration::from_secs(5);

/// Why it is to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// SIGHUP: everything, settings too.
    Asked,
    /// A file that was named changed.
    Changed,
}

/// See the module.
#[derive(Debug)]
pub struct Reloads {
    hangup: Signal,
    files: BTreeSet<PathBuf>,
    events: Option<Events>,
}

fn watch(files: &BTreeSet<PathBuf>) -> Option<Events> {
    Events::watch(files).unwrap_or_else(|error| {
        tracing::warn!(%error, "files are not watched: they are read again at SIGHUP alone");
        None
    })
}

#[derive(Debug)]
struct Events {
    directories: Directories,
    /// The last parts of the files' names.
    names: BTreeSet<Vec<u8>>,
}

impl Reloads {
    /// From here on SIGHUP does not end the process, and changes of these files are seen.
    ///
    /// # Errors
    /// The signal cannot be listened for. Where the kernel watches no files any more there is still the signal, and the log says so.
    pub fn listen(files: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let files = files.into_iter().collect();
        Ok(Self { hangup, events: watch(&files), files })
    }

    /// Watches these files in place of those before: what was read may name others. Gives whether they are others.
    pub fn watch(&mut self, files: impl IntoIterator<Item = PathBuf>) -> bool {
        let files: BTreeSet<_> = files.into_iter().collect();
        if files == self.files {
            return false;
        }
        self.events = watch(&files);
        self.files = files;
        true
    }

    /// Returns when it is to read again.
    pub async fn next(&mut self) -> Why {
        let changed = async {
            match &self.events {
                Some(events) => events.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = self.hangup.recv() => match signal {
                Some(()) => return Why::Asked,
                // The runtime ends.
                None => std::future::pending::<()>().await,
            },
            () = changed => {}
        }
        Why::Changed
    }
}

/// Reads certificates again, and the access file by `access`, and says in the log what became of that.
pub fn reread(tls: Option<&Tls>, access: impl FnOnce() -> Result<(), String>) {
    let outcomes = [tls.map_or(Ok(()), Tls::reload), access()];
    let wrong: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    for why in &wrong {
        // No error yet: of a pair that is being replaced one file comes before the other.
        tracing::warn!(why, "what is on disk cannot be used, and what was read before stays");
    }
    if wrong.is_empty() {
        tracing::info!("certificates and access file are as they are on disk");
    }
    warn(tls);
}

/// Shows how long our certificate is good, and says in the log if it is not.
pub fn show(tls: Option<&Arc<Tls>>, metrics: &Metrics) {
    if let Some(tls) = tls {
        tls.measure(metrics);
    }
    warn(tls.map(AsRef::as_ref));
}

fn warn(tls: Option<&Tls>) {
    if let Some(why) = tls.and_then(Tls::out_of_time) {
        tracing::error!(why, "nobody can speak to this server");
    }
}

impl Events {
    fn watch(files: &BTreeSet<PathBuf>) -> io::Result<Option<Self>> {
        if files.is_empty() {
            return Ok(None);
        }
        let mut names = BTreeSet::new();
        let mut places = BTreeSet::new();
        for file in files {
            names.extend(file.file_name().map(|name| name.as_bytes().to_vec()));
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            places.insert(directory.unwrap_or(Path::new(".")).to_owned());
        }
        let mut directories = Directories::new()?;
        match directories.watch(places).into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(Some(Self { directories, names })),
        }
    }

    /// Whether what happened to this name is about one of the files.
    fn ours(&self, name: &[u8]) -> bool {
        self.names.contains(name) || name == b"..data"
    }

    /// Returns when one of the files may be another than before, and nothing has happened to them for a moment.
    async fn changed(&self) {
        if let Err(error) = self.directories.changed(|name| self.ours(name)).await {
            tracing::warn!(%error, "files are watched no more: they are read again at SIGHUP alone");
            std::future::pending::<()>().await;
        }
        // What cannot be told any more is said at the next.
        _ = self.directories.quiet(|name| self.ours(name)).await;
    }
}

/// Directories in which the kernel tells what comes or is written.
#[derive(Debug)]
pub struct Directories {
    inotify: AsyncFd<OwnedFd>,
    /// By the kernel's numbers; one may be reached by several paths.
    watched: BTreeMap<i32, Vec<PathBuf>>,
}

/// Where something changed.
#[derive(Debug, Default)]
pub struct Changed {
    directories: BTreeSet<PathBuf>,
    /// More happened than the kernel keeps.
    lost: bool,
}

impl Changed {
    /// Whether something in this directory may have changed.
    #[must_use]
    pub fn is_in(&self, directory: &Path) -> bool {
        self.lost || self.directories.contains(directory)
    }

    /// Both.
    pub fn extend(&mut self, more: Self) {
        self.directories.extend(more.directories);
        self.lost |= more.lost;
    }

    fn is_empty(&self) -> bool {
        self.directories.is_empty() && !self.lost
    }
}

impl Directories {
    /// None yet.
    ///
    /// # Errors
    /// The kernel watches nothing more for this user.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { inotify, watched: BTreeMap::new() })
    }

    /// Watches these and no others any more, each as it is now: one that another has taken the place of is to be named again. Gives those that are not
    /// watched, and why.
    pub fn watch(&mut self, wanted: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, io::Error)> {
        let told = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
        let (mut watched, mut not) = (BTreeMap::<i32, Vec<PathBuf>>::new(), Vec::new());
        for directory in wanted {
            match inotify::add_watch(&self.inotify, &directory, told) {
                Ok(number) => watched.entry(number).or_default().push(directory),
                Err(error) => not.push((directory, error.into())),
            }
        }
        for former in self.watched.keys().filter(|former| !watched.contains_key(former)) {
            // One that was removed is not watched by itself.
            _ = inotify::remove_watch(&self.inotify, *former);
        }
        self.watched = watched;
        not
    }

    /// Returns when something that is `ours` came or was written, or a directory went.
    ///
    /// # Errors
    /// The kernel tells nothing any more.
    pub async fn changed(&self, ours: impl Fn(&[u8]) -> bool) -> io::Result<Changed> {
        loop {
            let changed = self.inotify.async_io(Interest::READABLE, |fd| {
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut events = inotify::Reader::new(fd, &mut buffer);
                let mut changed = Changed::default();
                loop {
                    let event = events.next()?;
                    changed.lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    // Of those that are not watched any more something may still be told.
                    if let Some(directories) = self.watched.get(&event.wd())
                        && event.file_name().is_none_or(|name| ours(name.to_bytes()))
                    {
                        changed.directories.extend(directories.iter().cloned());
                    }
                    if events.is_buffer_empty() {
                        return Ok(changed);
                    }
                }
            });
            let changed = changed.await?;
            if !changed.is_empty() {
                return Ok(changed);
            }
        }
    }

    /// Returns when nothing that is `ours` has changed for a moment, with what did: files that belong together are written one after the other. Who
    /// writes all the time does not hold it up for long.
    ///
    /// # Errors
    /// As [`changed`](Self::changed).
    pub async fn quiet(&self, ours: impl Fn(&[u8]) -> bool) -> io::Result<Changed> {
        let (mut all, begun) = (Changed::default(), Instant::now());
        while begun.elapsed() < UNREST
            && let Ok(more) = tokio::time::timeout(QUIET, self.changed(&ours)).await
        {
            all.extend(more?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_that_are_named_later_are_watched_too() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (here.path().join("access.yaml"), there.path().join("sdk.secret"));
        let mut reloads = Reloads::listen([first.clone()]).unwrap();
        assert!(!reloads.watch([first.clone()]), "they are the same");
        assert!(reloads.watch([second.clone(), first.clone()]), "there is one more");
        for file in [&second, &first] {
            std::fs::write(file, "changed").unwrap();
            assert_eq!(reloads.next().await, Why::Changed);
        }
    }
}
