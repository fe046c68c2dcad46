//! The functions, found by name, by id or by trigger, and which of their revisions takes a call.
//!
//! Built from the registry's snapshot when that has changed, by whichever call notices: a function that was applied is there
//! for the very next call, and what is costly (digest, id, message) is made once per version.

mod gate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use stoker_core::call::RequestHead;
use stoker_core::function::{Digest, FunctionName, FunctionSpec};
use stoker_policy::placement;
use stoker_proto::{convert, v1};
use stoker_registry::Functions;
use stoker_registry::revisions::{Release, Revision, Split};
use stoker_runtime::telemetry::Facts;
use tokio::sync::watch;

pub use self::gate::{Entered, Gate};

/// A revision of a function with all that calls need of it.
#[derive(Clone)]
pub struct Known {
    pub spec: Arc<FunctionSpec>,
    /// Which of the function's revisions it is.
    pub revision: u64,
    pub digest: Digest,
    pub digest_bytes: Bytes,
    /// Its key for placement and queue.
    pub key: u64,
    pub id: String,
    /// What spans say of it.
    pub facts: Facts,
    pub message: v1::Function,
    /// The same function in the format `cloudevent`, if its options ask for that where a request is an event. A version of its
    /// own, made once and not per call.
    as_event: Option<Arc<Known>>,
    /// Where calls go that are addressed to this, if not here.
    routes: Option<Routes>,
    /// The function's, whatever the revision.
    pub gate: Arc<Gate>,
}

/// The revisions of a split.
#[derive(Clone)]
struct Routes {
    split: Split,
    main: Arc<Known>,
    other: Option<Arc<Known>>,
}

impl Known {
    fn new(spec: Arc<FunctionSpec>, revision: u64, gate: Arc<Gate>) -> Arc<Self> {
        let digest = spec.digest();
        let forced = spec.format_options.cloudevents_by_content_type;
        let as_event = forced.then(|| Self::new(Arc::new(spec.in_cloudevents()), revision, gate.clone()));
        Arc::new(Self {
            as_event,
            revision,
            digest,
            digest_bytes: Bytes::copy_from_slice(&digest.0),
            key: placement::key(spec.name.as_str().as_bytes()),
            id: spec.name.id(),
            facts: crate::observe::of_function(&spec, revision),
            message: convert::to_function(&spec),
            spec,
            routes: None,
            gate,
        })
    }

    /// A function of which there is nothing but this spec.
    #[cfg(test)]
    pub fn alone(spec: FunctionSpec) -> Arc<Self> {
        Self::new(Arc::new(spec), 1, Arc::default())
    }

    /// The revision that takes the call of this seed.
    pub fn chosen(self: Arc<Self>, seed: u64) -> Arc<Self> {
        match &self.routes {
            None => self,
            Some(routes) => match &routes.other {
                Some(other) if routes.split.pick(seed) == other.revision => other.clone(),
                _ => routes.main.clone(),
            },
        }
    }

    /// Where calls go that are addressed to this.
    pub fn split(&self) -> Split {
        self.routes.as_ref().map_or(Split::all(self.revision), |routes| routes.split)
    }

    /// The version that takes a call with this head.
    pub fn version_for(self: Arc<Self>, head: &RequestHead) -> Arc<Self> {
        match &self.as_event {
            Some(version) if self.spec.format_options.force_cloudevent(head) => version.clone(),
            _ => self,
        }
    }

    /// All its versions that take calls now, each once.
    pub fn versions(&self) -> Vec<&Self> {
        let routes = self.routes.iter().flat_map(|routes| [Some(&*routes.main), routes.other.as_deref()]);
        let all = std::iter::once(self).chain(routes.flatten());
        let mut versions: Vec<&Self> = Vec::new();
        for version in all.flat_map(|known| std::iter::once(known).chain(known.as_event.as_deref())) {
            if versions.iter().all(|seen| seen.digest != version.digest) {
                versions.push(version);
            }
        }
        versions
    }
}

/// What a name without an app leads to.
pub enum Named {
    One(Arc<Known>),
    None,
    Several,
}

/// A function.
struct Entry {
    /// The newest revision, with the way to where calls go that name none.
    known: Arc<Known>,
    release: Arc<Release>,
    aliases: HashMap<String, Arc<Known>>,
    /// Revisions that were asked for, each as itself.
    made: Mutex<HashMap<u64, Arc<Known>>>,
}

impl Entry {
    fn new(functions: &Functions, release: &Arc<Release>, before: Option<&Entry>) -> Self {
        let newest = &release.newest;
        let name = &newest.spec.name;
        let gate = before.map_or_else(Arc::default, |before| before.known.gate.clone());
        gate.limit(release.reserved);
        let mut made = HashMap::new();
        if let Some(before) = before {
            let old = before.made.lock().unwrap_or_else(PoisonError::into_inner);
            let stays = |number: &u64, known: &Known| {
                functions.revision(name, *number).is_some_and(|now| Arc::ptr_eq(&now.spec, &known.spec))
            };
            made.extend(
                old.iter().filter(|(n, known)| stays(n, known)).map(|(n, known)| (*n, known.clone())),
            );
        }
        let mut plain = |revision: &Revision| {
            let make = || Known::new(revision.spec.clone(), revision.number, gate.clone());
            made.entry(revision.number).or_insert_with(make).clone()
        };
        let here = plain(newest);
        let mut address = |split: Split| {
            // What is gone all the same, as only a change by hand can bring about, is served by the newest.
            let mut find =
                |number| functions.revision(name, number).map_or_else(|| here.clone(), |r| plain(r));
            let main = find(split.main);
            let other = split.other.map(|(number, _)| find(number));
            match other {
                None if Arc::ptr_eq(&main, &here) => here.clone(),
                other => {
                    Arc::new(Known { routes: Some(Routes { split, main, other }), ..Known::clone(&here) })
                }
            }
        };
        let known = release.traffic.map_or_else(|| here.clone(), &mut address);
        let aliases =
            release.aliases.iter().map(|(name, alias)| (name.clone(), address(alias.split))).collect();
        Self { known, release: release.clone(), aliases, made: Mutex::new(made) }
    }
}

#[derive(Default)]
struct Index {
    source: Option<Arc<Functions>>,
    by_name: HashMap<String, Arc<Entry>>,
    /// Within its app; `None` where several apps have one of this name.
    by_short_name: HashMap<String, Option<Arc<Known>>>,
    by_id: HashMap<String, Arc<Entry>>,
    by_trigger: HashMap<(String, String), Arc<Known>>,
}

impl Index {
    fn entry(&self, text: &str) -> Option<&Arc<Entry>> {
        self.by_name.get(text).or_else(|| self.by_id.get(text))
    }

    /// The revision or the alias of this name.
    fn qualified(&self, entry: &Entry, qualifier: &str) -> Option<Arc<Known>> {
        if let Some(alias) = entry.aliases.get(qualifier) {
            return Some(alias.clone());
        }
        let number: u64 = qualifier.parse().ok()?;
        let mut made = entry.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&number) {
            return Some(known.clone());
        }
        let revision = self.source.as_ref()?.revision(&entry.known.spec.name, number)?;
        let known = Known::new(revision.spec.clone(), number, entry.known.gate.clone());
        made.insert(number, known.clone());
        Some(known)
    }
}

/// The functions as of now.
pub struct Directory {
    source: watch::Receiver<Arc<Functions>>,
    index: ArcSwap<Index>,
    building: Mutex<()>,
}

impl Directory {
    pub fn new(source: watch::Receiver<Arc<Functions>>) -> Self {
        Self { source, index: ArcSwap::default(), building: Mutex::default() }
    }

    /// Whether the registry's functions have been read: a function that is not here then is nowhere.
    pub fn is_read(&self) -> bool {
        self.source.borrow().known
    }

    /// Waits until they have been.
    pub async fn read(&self) {
        // Fails only when the registry is gone with its process.
        self.source.clone().wait_for(|functions| functions.known).await.ok();
    }

    /// `app/function`, or its id; either may be followed by a colon and the revision or the alias that is meant.
    pub fn find(&self, text: &str) -> Option<Arc<Known>> {
        let index = self.current();
        match text.split_once(':') {
            None => index.entry(text).map(|entry| entry.known.clone()),
            Some((text, qualifier)) => index.qualified(index.entry(text)?, qualifier),
        }
    }

    /// The revision or the alias of this name of a function that is here.
    pub fn qualified(&self, name: &FunctionName, qualifier: &str) -> Option<Arc<Known>> {
        let index = self.current();
        index.qualified(index.by_name.get(name.as_str())?, qualifier)
    }

    /// `function` where no other app has one of that name, or `app.function`, as AWS Lambda's callers name it; and all that
    /// [`Self::find`] takes.
    pub fn find_called(&self, text: &str) -> Named {
        let index = self.current();
        let whole = || {
            let entry = match text.split_once('.') {
                Some((app, function)) => index.by_name.get(&format!("{app}/{function}")),
                None => index.entry(text),
            };
            entry.map_or(Named::None, |entry| Named::One(entry.known.clone()))
        };
        match index.by_short_name.get(text) {
            Some(Some(known)) => Named::One(known.clone()),
            Some(None) => Named::Several,
            None => whole(),
        }
    }

    /// The name of such callers for a function that is here.
    pub fn called(&self, known: &Known) -> String {
        let (app, function) = (known.spec.name.app(), known.spec.name.function());
        match self.current().by_short_name.get(function) {
            Some(Some(_)) => function.to_owned(),
            _ => format!("{app}.{function}"),
        }
    }

    /// By app and path.
    pub fn find_trigger(&self, app: &str, path: &str) -> Option<Arc<Known>> {
        self.current().by_trigger.get(&(app.to_owned(), path.to_owned())).cloned()
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Arc<Known>> {
        let index = self.current();
        let mut all: Vec<_> = index.by_name.values().map(|entry| entry.known.clone()).collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    /// All with all their revisions, as the registry has them.
    pub fn functions(&self) -> Arc<Functions> {
        self.source.borrow().clone()
    }

    fn current(&self) -> Arc<Index> {
        let wanted = self.source.borrow().clone();
        let is_current =
            |index: &Index| index.source.as_ref().is_some_and(|source| Arc::ptr_eq(source, &wanted));
        let have = self.index.load();
        if is_current(&have) {
            return Arc::clone(&have);
        }
        let _one = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let have = self.index.load_full();
        if is_current(&have) {
            return have;
        }
        let mut index = Index { source: Some(wanted.clone()), ..Index::default() };
        for (name, release) in &wanted.releases {
            let before = have.by_name.get(name.as_str());
            let entry = match before {
                Some(entry) if Arc::ptr_eq(&entry.release, release) && same_history(&have, &wanted, name) => {
                    entry.clone()
                }
                _ => Arc::new(Entry::new(&wanted, release, before.map(Arc::as_ref))),
            };
            let known = &entry.known;
            for trigger in wanted.live(name).flat_map(|spec| &spec.triggers) {
                index.by_trigger.insert((name.app().to_owned(), trigger.http.clone()), known.clone());
            }
            index
                .by_short_name
                .entry(name.function().to_owned())
                .and_modify(|several| *several = None)
                .or_insert_with(|| Some(known.clone()));
            index.by_id.insert(known.id.clone(), entry.clone());
            index.by_name.insert(name.as_str().to_owned(), entry);
        }
        let index = Arc::new(index);
        self.index.store(index.clone());
        index
    }
}

/// Whether a function has the same revisions before its newest as when the index was built.
fn same_history(have: &Index, wanted: &Functions, name: &FunctionName) -> bool {
    let before = have.source.as_ref().and_then(|source| source.older.get(name));
    match (before, wanted.older.get(name)) {
        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
        (before, now) => before.is_none() && now.is_none(),
    }
}
