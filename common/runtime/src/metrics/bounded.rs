//! Names that come from outside, such as functions: so many have series of their own.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::OTHER;

/// A name that was not used for so long, up to twice, gives its place to another that wants one.
const IDLE: Duration = Duration::from_secs(600);

/// The handles of each of a bounded number of names; those beyond share the ones of [`OTHER`]. Who has a place keeps it as long as it is
/// used, so that these are the busy ones. Finding the handles of a name takes no lock.
pub struct Bounded<T> {
    most: usize,
    idle: Duration,
    make: Box<dyn Fn(&str) -> T + Send + Sync>,
    forget: Box<dyn Fn(&str) + Send + Sync>,
    known: ArcSwap<HashMap<Box<str>, Arc<Entry<T>>>>,
    other: OnceLock<T>,
    /// Held by whoever changes `known`.
    changing: Mutex<()>,
    since: Instant,
    /// When places may be taken away next, in milliseconds from `since`.
    next: AtomicU64,
}

struct Entry<T> {
    handles: T,
    /// Since places were taken away last.
    used: AtomicBool,
}

impl<T> Bounded<T> {
    /// Handles for `most` names: `make` gets those of a name, `forget` gives them up.
    pub(super) fn new(
        most: usize,
        make: impl Fn(&str) -> T + Send + Sync + 'static,
        forget: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            most,
            idle: IDLE,
            make: Box::new(make),
            forget: Box::new(forget),
            known: ArcSwap::default(),
            other: OnceLock::new(),
            changing: Mutex::new(()),
            since: Instant::now(),
            next: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Does something with the handles of a name.
    pub fn with<R>(&self, name: &str, act: impl FnOnce(&T) -> R) -> R {
        let known = self.known.load();
        if let Some(entry) = known.get(name) {
            // Read first: what is written seldom is read cheaply by many.
            if !entry.used.load(Ordering::Relaxed) {
                entry.used.store(true, Ordering::Relaxed);
            }
            return act(&entry.handles);
        }
        match self.place(name, known.len() >= self.most) {
            Some(entry) => act(&entry.handles),
            None => act(self.other.get_or_init(|| (self.make)(OTHER))),
        }
    }

    /// A place for a name that has none, if there is one.
    fn place(&self, name: &str, full: bool) -> Option<Arc<Entry<T>>> {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = || now >= self.next.load(Ordering::Relaxed);
        if full && !due() {
            return None;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = HashMap::clone(&self.known.load());
        if let Some(entry) = known.get(name) {
            return Some(entry.clone());
        }
        // Asked again: whoever had the lock may just have taken places away, and the rest has had no time to be used since.
        if known.len() >= self.most && due() {
            known.retain(|name, entry| {
                let used = entry.used.swap(false, Ordering::Relaxed);
                if !used {
                    (self.forget)(name);
                }
                used
            });
            let idle = u64::try_from(self.idle.as_millis()).unwrap_or(u64::MAX);
            self.next.store(now.saturating_add(idle), Ordering::Relaxed);
        }
        let entry = (known.len() < self.most).then(|| {
            let entry = Arc::new(Entry { handles: (self.make)(name), used: AtomicBool::new(true) });
            known.insert(name.into(), entry.clone());
            entry
        });
        self.known.store(Arc::new(known));
        entry
    }
}

impl<T> fmt::Debug for Bounded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("most", &self.most).finish_non_exhaustive()
    }
}
