//! The functions, found by name, by id or by trigger.
//!
//! Built from the registry's snapshot when that has changed, by whichever call notices: a function that was applied is there
//! for the very next call, and what is costly (digest, id, message) is made once per version.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use stoker_core::call::RequestHead;
use stoker_core::function::{Digest, FunctionSpec};
use stoker_policy::placement;
use stoker_proto::{convert, v1};
use stoker_registry::Functions;
use stoker_runtime::telemetry::Facts;
use tokio::sync::watch;

/// A function with all that calls need of it.
pub struct Known {
    pub spec: Arc<FunctionSpec>,
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
}

impl Known {
    pub fn new(spec: Arc<FunctionSpec>) -> Arc<Self> {
        let digest = spec.digest();
        let forced = spec.format_options.cloudevents_by_content_type;
        let as_event = forced.then(|| Self::new(Arc::new(spec.in_cloudevents())));
        Arc::new(Self {
            as_event,
            digest,
            digest_bytes: Bytes::copy_from_slice(&digest.0),
            key: placement::key(spec.name.as_str().as_bytes()),
            id: spec.name.id(),
            facts: crate::observe::of_function(&spec),
            message: convert::to_function(&spec),
            spec,
        })
    }

    /// The version that takes a call with this head.
    pub fn version_for(self: Arc<Self>, head: &RequestHead) -> Arc<Self> {
        match &self.as_event {
            Some(version) if self.spec.format_options.force_cloudevent(head) => version.clone(),
            _ => self,
        }
    }

    /// All its versions that take calls now.
    pub fn versions(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.as_event.as_deref())
    }
}

/// What a name without an app leads to.
pub enum Named {
    One(Arc<Known>),
    None,
    Several,
}

#[derive(Default)]
struct Index {
    source: Option<Arc<Functions>>,
    by_name: HashMap<String, Arc<Known>>,
    /// Within its app; `None` where several apps have one of this name.
    by_short_name: HashMap<String, Option<Arc<Known>>>,
    by_id: HashMap<String, Arc<Known>>,
    by_trigger: HashMap<(String, String), Arc<Known>>,
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

    /// `app/function`, or its id.
    pub fn find(&self, text: &str) -> Option<Arc<Known>> {
        let index = self.current();
        index.by_name.get(text).or_else(|| index.by_id.get(text)).cloned()
    }

    /// `function` where no other app has one of that name, or `app.function`, as AWS Lambda's callers name it; and all that
    /// [`Self::find`] takes.
    pub fn find_called(&self, text: &str) -> Named {
        let index = self.current();
        let whole = || {
            let name = match text.split_once('.') {
                Some((app, function)) => index.by_name.get(&format!("{app}/{function}")),
                None => index.by_name.get(text).or_else(|| index.by_id.get(text)),
            };
            name.map_or(Named::None, |known| Named::One(known.clone()))
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
        let mut all: Vec<_> = index.by_name.values().cloned().collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
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
        for (name, spec) in &wanted.by_name {
            let known = match have.by_name.get(name.as_str()) {
                Some(known) if Arc::ptr_eq(&known.spec, spec) => known.clone(),
                _ => Known::new(spec.clone()),
            };
            for trigger in &spec.triggers {
                index.by_trigger.insert((name.app().to_owned(), trigger.http.clone()), known.clone());
            }
            index
                .by_short_name
                .entry(name.function().to_owned())
                .and_modify(|several| *several = None)
                .or_insert_with(|| Some(known.clone()));
            index.by_id.insert(known.id.clone(), known.clone());
            index.by_name.insert(name.as_str().to_owned(), known);
        }
        let index = Arc::new(index);
        self.index.store(index.clone());
        index
    }
}
