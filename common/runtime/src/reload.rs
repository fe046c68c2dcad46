//! When a running process is to read again what it was told: at SIGHUP, and when one of its files changed.
//!
//! Directories are watched and not files, since a file is usually replaced by another of its name; so are the links by which Kubernetes
//! swaps a whole directory of mounted secrets at once.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Files that belong together are written one after the other: they are read once it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(200);

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
    events: Option<Events>,
}

#[derive(Debug)]
struct Events {
    inotify: AsyncFd<OwnedFd>,
    /// The last parts of the files' names.
    names: BTreeSet<Vec<u8>>,
}

impl Reloads {
    /// From here on SIGHUP does not end the process, and changes of these files are seen.
    ///
    /// # Errors
    /// The signal cannot be listened for. Where the kernel watches no files any more there is still the signal, and the log says so.
    pub fn listen<'p>(files: impl IntoIterator<Item = &'p Path>) -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let files: Vec<_> = files.into_iter().collect();
        let events = match Events::watch(&files) {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "files are not watched: they are read again at SIGHUP alone");
                None
            }
        };
        Ok(Self { hangup, events })
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
        if let Some(events) = &self.events {
            while tokio::time::timeout(QUIET, events.changed()).await.is_ok() {}
        }
        Why::Changed
    }
}

impl Events {
    fn watch(files: &[&Path]) -> io::Result<Option<Self>> {
        use std::os::unix::ffi::OsStrExt as _;
        if files.is_empty() {
            return Ok(None);
        }
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut names = BTreeSet::new();
        let mut directories = BTreeSet::<PathBuf>::new();
        for file in files {
            names.extend(file.file_name().map(|name| name.as_bytes().to_vec()));
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            directories.insert(directory.unwrap_or(Path::new(".")).to_owned());
        }
        for directory in directories {
            let told =
                WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
            inotify::add_watch(&inotify, &directory, told)?;
        }
        #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Some(Self { inotify, names }))
    }

    /// Returns when one of the files may be another than before.
    async fn changed(&self) {
        loop {
            let ours = self.inotify.async_io(Interest::READABLE, |fd| {
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut events = inotify::Reader::new(fd, &mut buffer);
                let mut ours = false;
                loop {
                    let event = events.next()?;
                    // Events that did not fit into the kernel's queue may have been of ours.
                    ours |= event.file_name().is_none_or(|name| {
                        self.names.contains(name.to_bytes()) || name.to_bytes() == b"..data"
                    });
                    if events.is_buffer_empty() {
                        return Ok(ours);
                    }
                }
            });
            match ours.await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "files are watched no more: they are read again at SIGHUP alone");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
