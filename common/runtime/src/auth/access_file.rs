//! The access file of a running process: as it was read last, with the keys of its issuers kept up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use super::{Access, Identity, Keeper, Unknown};
use crate::tls::Peer;

/// How long a request waits for the keys of an issuer that were not read yet.
const KEYS_PATIENCE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub struct AccessFile {
    path: PathBuf,
    now: ArcSwap<Generation>,
    count: AtomicU64,
    /// Those that read the keys of issuers.
    tasks: TaskTracker,
}

/// The file as it was read one time.
#[derive(Debug)]
pub struct Generation {
    /// Grows each time.
    pub number: u64,
    pub access: Access,
    _keeper: Keeper,
}

impl AccessFile {
    /// Reads it, and begins to read the keys of its issuers, in tasks of the current runtime.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let tasks = TaskTracker::new();
        let access = Access::read(path)?;
        let keeper = Keeper::start(access.issuers(), &tasks);
        let now = ArcSwap::from_pointee(Generation { number: 0, access, _keeper: keeper });
        Ok(Self { path: path.to_owned(), now, count: AtomicU64::new(0), tasks })
    }

    /// Reads it again. One with a mistake changes nothing.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn reload(&self) -> Result<(), String> {
        let access = Access::read(&self.path)?;
        access.take_over(&self.now.load().access);
        let keeper = Keeper::start(access.issuers(), &self.tasks);
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.now.store(Arc::new(Generation { number, access, _keeper: keeper }));
        Ok(())
    }

    /// It, and the files that it names, for those who watch them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let now = self.now.load();
        [&self.path].into_iter().chain(now.access.files()).cloned().collect()
    }

    /// As it is now.
    pub fn now(&self) -> arc_swap::Guard<Arc<Generation>> {
        self.now.load()
    }

    /// Who it is that shows this, and by which reading of the file. Where a token's key was not read yet, its issuer is asked.
    ///
    /// # Errors
    /// Why nobody is known by it.
    pub async fn identify(
        &self,
        token: Option<&[u8]>,
        peer: Option<&Peer>,
    ) -> (Arc<Generation>, Result<Arc<Identity>, Unknown>) {
        let now = self.now.load_full();
        let found = now.access.identify(token, peer, SystemTime::now());
        if found.as_ref().err() != Some(&Unknown::KeyNotRead) {
            return (now, found);
        }
        for issuer in now.access.issuers() {
            issuer.refresh(KEYS_PATIENCE).await;
        }
        let now = self.now.load_full();
        let found = now.access.identify(token, peer, SystemTime::now());
        (now, found)
    }
}

/// The token of `Bearer TOKEN`.
#[must_use]
pub fn bearer(value: &[u8]) -> Option<&[u8]> {
    after("bearer ", value)
}

/// The password of `Basic NAME:PASSWORD`, which browsers ask people for.
pub fn password(value: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.decode(after("basic ", value)?).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

fn after<'v>(scheme: &str, value: &'v [u8]) -> Option<&'v [u8]> {
    let (given, rest) = value.split_at_checked(scheme.len())?;
    given.eq_ignore_ascii_case(scheme.as_bytes()).then(|| rest.trim_ascii())
}
