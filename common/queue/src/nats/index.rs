//! Indexes of ends that are few among many, what was given up and what was cancelled: a list of those costs what there is of them, and not a look at
//! every call.
//!
//! Whoever ends a call so notes it in a stream, on a subject of its function and its id, before its end is in the table: whatever dies between the two,
//! the index names too much and never too little, and a list looks how each of them stands. A note says when its call ended, so that only the
//! note of that end is struck out, and not that of the next one, when the call is made again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{self, StorageType, Stream};
use futures_util::TryStreamExt as _;
use stoker_core::backoff::Backoff;

use super::setup::{KEPT, Store};
use super::{Config, Inner, LOOKS, away};
use crate::Error;
use crate::record::{Kept, Progress, State};

/// Balancers of earlier releases note nothing, and are replaced one after the other. So whoever starts while an index is younger than this fills it from
/// the table: the last of them notes what all of those ended so.
const YOUNG: Duration = Duration::from_secs(24 * 3600);

/// Ends that have an index, and the names of those.
pub const INDEXED: [(State, &str); 2] = [(State::Dead, "dead"), (State::Cancelled, "cancelled")];

/// Which calls ended in one way.
pub struct Index {
    state: State,
    /// What its subjects begin with.
    root: String,
    stream: Stream,
    jetstream: Context,
    /// Whether all calls that ended so are noted in it.
    filled: AtomicBool,
}

impl Index {
    /// Finds an index, or makes it.
    pub async fn open(config: &Config, jetstream: &Context, state: State, name: &str) -> Result<Self, Error> {
        let Config { prefix, replicas, .. } = config;
        let root = format!("{prefix}.{name}");
        let stream = jetstream
            .get_or_create_stream(stream::Config {
                name: format!("{prefix}-{name}"),
                description: Some(format!("Which calls for later are {name}")),
                subjects: vec![format!("{root}.*.*.*")],
                max_messages_per_subject: 1,
                max_age: KEPT,
                storage: StorageType::File,
                num_replicas: *replicas,
                ..stream::Config::default()
            })
            .await
            .map_err(away)?;
        let jetstream = jetstream.clone();
        Ok(Self { state, root, stream, jetstream, filled: AtomicBool::new(false) })
    }

    /// Whether all calls that ended so are noted in it.
    pub fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    fn subject(&self, function: &str, id: &str) -> String {
        format!("{}.{}.{id}", self.root, super::tokens(function))
    }

    fn is_young(&self) -> bool {
        let made = u64::try_from(self.stream.cached_info().created.unix_timestamp()).unwrap_or(0);
        let now = stoker_core::moment::now_ms() / 1000;
        Duration::from_secs(now.saturating_sub(made)) < YOUNG
    }

    async fn note(&self, function: &str, id: &str, ended_ms: u64) -> Result<(), Error> {
        let note = ended_ms.to_string();
        let noted = self.jetstream.publish(self.subject(function, id), note.into()).await;
        noted.map_err(away)?.await.map_err(away)?;
        Ok(())
    }

    /// Ids of the calls of a function that ended so, or of all where it is empty.
    pub async fn ids(&self, function: &str) -> Result<HashSet<Box<str>>, Error> {
        super::listings::ids_in(&self.stream, self.subject(function, "*")).await
    }
}

impl Store {
    /// The index of calls that ended so, if there is one.
    pub fn index(&self, state: State) -> Option<&Index> {
        self.indexes.iter().find(|index| index.state == state)
    }

    /// Notes how a call ends, as it will stand in the table, where such ends have an index.
    pub async fn note(&self, function: &str, id: &str, ended: &Progress) -> Result<(), Error> {
        match self.index(ended.is()) {
            Some(index) => index.note(function, id, ended.ended_ms).await,
            None => Ok(()),
        }
    }

    /// Strikes out the note of a call that ended so, and is made again or is not kept. One that stays is passed over by those who list, and goes with its
    /// age.
    pub async fn strike(&self, ended: &Kept) {
        let Some(index) = self.index(ended.progress.is()) else { return };
        let subject = index.subject(&ended.call.function, &ended.call.id);
        let Ok(note) = index.stream.get_last_raw_message_by_subject(&subject).await else { return };
        if note.payload == ended.progress.ended_ms.to_string() {
            index.stream.delete_message(note.sequence).await.ok();
        }
    }
}

/// Notes every call that the table says ended in the way of one of these.
async fn fill(inner: &Inner, store: &Store, indexes: &[&Index]) -> Result<(), Error> {
    let keys = store.progress.keys().await.map_err(away)?.map_err(away);
    let note = |id: String| async move {
        match inner.entry(store, &id).await {
            Ok(Some((kept, _))) => match indexes.iter().find(|index| index.state == kept.progress.is()) {
                Some(index) => index.note(&kept.call.function, &id, kept.progress.ended_ms).await,
                None => Ok(()),
            },
            // A list says so of what cannot be read.
            Ok(None) | Err(Error::Spoiled(_)) => Ok(()),
            Err(error) => Err(error),
        }
    };
    keys.try_for_each_concurrent(LOOKS, note).await
}

/// Fills the indexes that are young; until one is filled, lists look at every call that has begun.
pub async fn run(inner: Arc<Inner>, store: Arc<Store>) {
    let fills = async {
        let (young, old): (Vec<_>, Vec<_>) = store.indexes.iter().partition(|index| index.is_young());
        let are_filled = |indexes: &[&Index]| {
            indexes.iter().for_each(|index| index.filled.store(true, Ordering::Release));
        };
        are_filled(&old);
        if young.is_empty() {
            return;
        }
        let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(30), 0);
        while let Err(error) = fill(&inner, &store, &young).await {
            tracing::debug!(%error, "the indexes of calls that ended cannot be filled yet");
            tokio::time::sleep(waits.next().unwrap_or(YOUNG)).await;
        }
        are_filled(&young);
    };
    tokio::select! {
        () = inner.stop.cancelled() => {}
        () = fills => {}
    }
}
