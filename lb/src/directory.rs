//! The functions, found by name, by id or by trigger, and which of their revisions takes a call.
//!
//! Built from the registry's snapshot when that has changed, by whichever call notices: a function that was applied is there
//! for the very next call, and what is costly (digest, id, message) is made once per version.

mod gate;
mod triggers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use stoker_core::call::RequestHead;
use stoker_core::function::{Cors, Digest, Format, FunctionName, FunctionSpec};
use stoker_policy::placement;
use stoker_proto::{convert, v1};
use stoker_registry::Functions;
use stoker_registry::revisions::{Alias, Release, Revision, Split, WHOLE};
use stoker_runtime::telemetry::Facts;
use tokio::sync::{Notify, watch};

pub use self::gate::{Entered, Gate, Outlook};

/// The note of a revision that names the version or the alias for which containers are kept.
pub const PROVISIONED: &str = "aws.provisioned";
use self::triggers::Triggers;
pub use self::triggers::{Asked, Found, Triggered};

/// A revision of a function with all that calls need of it.
#[derive(Clone)]
pub struct Known {
    pub spec: Arc<FunctionSpec>,
    /// Which of the function's revisions it is.
    pub revision: u64,
    pub digest: Digest,
    pub digest_bytes: Bytes,
    /// Of all that a runner is told of it, with what may change without a new version.
    pub whole_digest: Digest,
    /// Its key for placement and queue.
    pub key: u64,
    pub id: String,
    /// What spans say of it.
    pub facts: Facts,
    pub message: v1::Function,
    /// The same function in the format `cloudevent`, if its options ask for that where a request is an event. A version of its
    /// own, made once and not per call.
    as_event: Option<Arc<Known>>,
    /// The same without the number of its version, for runners of a release that does not know such numbers.
    pub unnumbered: Option<Arc<Known>>,
    /// Where calls go that are addressed to this, if not here.
    routes: Option<Routes>,
    /// The function's, whatever the revision.
    pub gate: Arc<Gate>,
    /// Which pages may call it.
    pub cors: Option<Arc<Cors>>,
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
        let unnumbered = (spec.format_options.version > 0).then(|| {
            let mut spec = FunctionSpec::clone(&spec);
            spec.format_options.version = 0;
            Self::new(Arc::new(spec), revision, gate.clone())
        });
        Arc::new(Self {
            as_event,
            unnumbered,
            revision,
            digest,
            digest_bytes: Bytes::copy_from_slice(&digest.0),
            whole_digest: spec.for_runners().whole_digest(),
            key: placement::key(spec.name.as_str().as_bytes()),
            id: spec.name.id(),
            facts: crate::observe::of_function(&spec, revision),
            message: convert::to_function(&spec),
            cors: spec.cors.clone().map(Arc::new),
            spec,
            routes: None,
            gate,
        })
    }

    /// A revision for those who ask for it by its number or by an alias. A function of AWS Lambda finds that number as its version, which
    /// it can only in containers of its own. The numbers of containers are those of today where the newest runs the same.
    fn named(revision: &Revision, newest: &Revision, gate: Arc<Gate>) -> Arc<Self> {
        if revision.spec.format != Format::Lambda {
            return Self::new(revision.spec.clone(), revision.number, gate);
        }
        let mut spec = FunctionSpec::clone(&revision.spec);
        if spec.digest() == newest.spec.digest() {
            (spec.min_containers, spec.max_containers) =
                (newest.spec.min_containers, newest.spec.max_containers);
        }
        spec.format_options.version = revision.number;
        Self::new(Arc::new(spec), revision.number, gate)
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

    /// The revisions to which calls go that are addressed to this, and of how many of [`WHOLE`].
    pub fn serving(self: Arc<Self>) -> Vec<(Arc<Known>, u32)> {
        let Some(Routes { split, main, other }) = &self.routes else { return vec![(self, WHOLE)] };
        let weight = split.other.map_or(0, |(_, weight)| weight.min(WHOLE));
        let other = other.clone().map(|other| (other, weight));
        std::iter::once((main.clone(), WHOLE - weight)).chain(other).collect()
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
    /// Revisions to which calls go that ask for none, each as itself.
    made: HashMap<u64, Arc<Known>>,
    /// Revisions that were asked for.
    named: Mutex<HashMap<u64, Arc<Known>>>,
}

impl Entry {
    fn new(
        functions: &Functions,
        release: &Arc<Release>,
        before: Option<&Entry>,
        shared: Option<&Arc<Notify>>,
    ) -> Self {
        let newest = &release.newest;
        let name = &newest.spec.name;
        let gate = before.map_or_else(Arc::default, |before| before.known.gate.clone());
        gate.limit(release.reserved, shared);
        let mut made = HashMap::new();
        if let Some(before) = before {
            let stays = |number: &u64, known: &Known| {
                functions.revision(name, *number).is_some_and(|now| Arc::ptr_eq(&now.spec, &known.spec))
            };
            let stay = before.made.iter().filter(|(number, known)| stays(number, known));
            made.extend(stay.map(|(number, known)| (*number, known.clone())));
        }
        let mut plain = |revision: &Revision| {
            let make = || Known::new(revision.spec.clone(), revision.number, gate.clone());
            made.entry(revision.number).or_insert_with(make).clone()
        };
        let here = plain(newest);
        // What is gone all the same, as only a change by hand can bring about, is served by the newest.
        let find = |number| functions.revision(name, number).unwrap_or(newest);
        let known = release.traffic.map_or_else(|| here.clone(), |t| address(&here, t, |n| plain(find(n))));
        let mut named = HashMap::new();
        let mut by_name = |number| {
            let revision = find(number);
            let make = || Known::named(revision, newest, gate.clone());
            named.entry(revision.number).or_insert_with(make).clone()
        };
        let alias =
            |(name, alias): (&String, &Alias)| (name.clone(), address(&here, alias.split, &mut by_name));
        let aliases = release.aliases.iter().map(alias).collect();
        Self { known, release: release.clone(), aliases, made, named: Mutex::new(named) }
    }
}

/// What leads to the revisions of a split, as its newest revision but for that.
fn address(newest: &Arc<Known>, split: Split, mut find: impl FnMut(u64) -> Arc<Known>) -> Arc<Known> {
    let main = find(split.main);
    let other = split.other.map(|(number, _)| find(number));
    match other {
        None if Arc::ptr_eq(&main, newest) => main,
        other => Arc::new(Known { routes: Some(Routes { split, main, other }), ..Known::clone(newest) }),
    }
}

#[derive(Default)]
struct Index {
    source: Option<Arc<Functions>>,
    by_name: HashMap<String, Arc<Entry>>,
    /// Within its app; `None` where several apps have one of this name, and none of them is the app `default`.
    by_short_name: HashMap<String, Option<Arc<Known>>>,
    by_id: HashMap<String, Arc<Entry>>,
    /// By app.
    triggers: HashMap<String, Triggers>,
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
        let mut named = entry.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = named.get(&number) {
            return Some(known.clone());
        }
        let revision = self.source.as_ref()?.revision(&entry.known.spec.name, number)?;
        let known = Known::named(revision, &entry.release.newest, entry.known.gate.clone());
        named.insert(number, known.clone());
        Some(known)
    }
}

/// The app of functions that are made without naming one, and so the one that is meant first where none is named.
pub const DEFAULT_APP: &str = "default";

/// The functions as of now.
pub struct Directory {
    source: watch::Receiver<Arc<Functions>>,
    index: ArcSwap<Index>,
    building: Mutex<()>,
    /// Where gates say that they want places that balancers share, if they share them.
    shared: Option<Arc<Notify>>,
}

impl Directory {
    pub fn new(source: watch::Receiver<Arc<Functions>>) -> Self {
        Self { source, index: ArcSwap::default(), building: Mutex::default(), shared: None }
    }

    /// The same, whose functions' limits are shared with other balancers: somebody must see to their places.
    pub fn sharing(source: watch::Receiver<Arc<Functions>>) -> Self {
        Self { shared: Some(Arc::default()), ..Self::new(source) }
    }

    /// Returns when a function wants places.
    pub async fn wanted(&self) {
        match &self.shared {
            Some(shared) => shared.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Every function with a limit: its gate, and the limit.
    pub fn limited(&self) -> Vec<(FunctionName, Arc<Gate>, u32)> {
        let index = self.current();
        let limited = index.by_name.values().filter_map(|entry| {
            Some((entry.known.spec.name.clone(), entry.known.gate.clone(), entry.release.reserved?))
        });
        limited.collect()
    }

    /// Whether the registry's functions have been read: a function that is not here then is nowhere.
    pub fn is_read(&self) -> bool {
        self.source.borrow().known
    }

    /// Ticks when they change.
    pub fn changes(&self) -> watch::Receiver<Arc<Functions>> {
        self.source.clone()
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

    /// As what the containers of a function are kept that it shall have at least: its version or alias for which a caller of AWS asked for
    /// them, else itself.
    pub fn kept(&self, known: &Arc<Known>) -> Arc<Known> {
        let index = self.current();
        let asked = index.by_name.get(known.spec.name.as_str()).and_then(|entry| {
            let qualifier = entry.release.newest.notes.get(PROVISIONED)?;
            index.qualified(entry, qualifier)
        });
        asked.map_or_else(|| known.clone(), |known| known.chosen(0))
    }

    /// `function` where no other app has one of that name or its app is `default`, else `app.function`, as AWS Lambda's callers
    /// name it; and all that [`Self::find`] takes.
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
            Some(Some(found)) if found.spec.name.app() == app => function.to_owned(),
            _ => format!("{app}.{function}"),
        }
    }

    /// By one of an app's triggers.
    pub fn find_trigger(&self, app: &str, asked: &Asked<'_>) -> Triggered {
        self.current().triggers.get(app).map_or(Triggered::None, |triggers| triggers.find(asked))
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
                _ => Arc::new(Entry::new(&wanted, release, before.map(Arc::as_ref), self.shared.as_ref())),
            };
            let known = &entry.known;
            for trigger in wanted.live(name).flat_map(|spec| &spec.triggers) {
                index.triggers.entry(name.app().to_owned()).or_default().add(trigger, known);
            }
            let first = |found: &Arc<Known>| found.spec.name.app() == DEFAULT_APP;
            index
                .by_short_name
                .entry(name.function().to_owned())
                .and_modify(|found| {
                    if !found.as_ref().is_some_and(first) {
                        *found = first(known).then(|| known.clone());
                    }
                })
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
