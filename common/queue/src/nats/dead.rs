//! An index of what was given up: a list of it costs what there is of it, and not a look at every call.
//!
//! Whoever gives a call up notes it in a stream, on a subject of its function and its id, before its end is in the table: whatever dies between the two,
//! the index names too much and never too little, and a list looks how each of them stands. A note says when its call ended, so that only the
//! note of that end is struck out, and not that of the next one, when the call is made again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use stoker_core::backoff::Backoff;

use super::setup::Store;
use super::{Inner, LOOKS, away};
use crate::Error;
use crate::record::{Kept, State};

/// Balancers of earlier releases note nothing, and are replaced one after the other. So whoever starts while the index is younger than this fills it from
/// the table: the last of them notes what all of those gave up.
const YOUNG: Duration = Duration::from_secs(24 * 3600);

impl Inner {
    fn dead_subject(&self, function: &str, id: &str) -> String {
        format!("{}.dead.{}.{id}", self.config.prefix, super::tokens(function))
    }

    /// Notes that a call is given up, as it will stand in the table.
    pub async fn note_dead(
        &self,
        store: &Store,
        function: &str,
        id: &str,
        ended_ms: u64,
    ) -> Result<(), Error> {
        let note = ended_ms.to_string();
        let noted = store.jetstream.publish(self.dead_subject(function, id), note.into()).await;
        noted.map_err(away)?.await.map_err(away)?;
        Ok(())
    }

    /// Strikes out the note of a call that was given up like this, and is not dead any more or not kept. One that stays is passed over by those who list,
    /// and goes with its age.
    pub async fn strike_dead(&self, store: &Store, dead: &Kept) {
        let subject = self.dead_subject(&dead.call.function, &dead.call.id);
        let Ok(note) = store.dead.get_last_raw_message_by_subject(&subject).await else { return };
        if note.payload == dead.progress.ended_ms.to_string() {
            store.dead.delete_message(note.sequence).await.ok();
        }
    }

    /// Ids of what was given up of a function, or of all where it is empty.
    pub async fn dead_ids(&self, store: &Store, function: &str) -> Result<HashSet<Box<str>>, Error> {
        let mut ids = HashSet::new();
        let mut notes =
            store.dead.info_with_subjects(self.dead_subject(function, "*")).await.map_err(away)?;
        while let Some((subject, _)) = notes.try_next().await.map_err(away)? {
            ids.extend(subject.rsplit('.').next().map(Box::from));
        }
        Ok(ids)
    }

    /// Notes every call that the table says is dead.
    async fn fill(&self, store: &Store) -> Result<(), Error> {
        let keys = store.progress.keys().await.map_err(away)?.map_err(away);
        let note = |id: String| async move {
            match self.entry(store, &id).await {
                Ok(Some((kept, _))) if kept.progress.is() == State::Dead => {
                    self.note_dead(store, &kept.call.function, &id, kept.progress.ended_ms).await
                }
                // A list says so of what cannot be read.
                Ok(_) | Err(Error::Spoiled(_)) => Ok(()),
                Err(error) => Err(error),
            }
        };
        keys.try_for_each_concurrent(LOOKS, note).await
    }
}

/// Fills the index while it is young; until it is filled, lists look at every call.
pub async fn run(inner: Arc<Inner>, store: Arc<Store>) {
    let fills = async {
        let made = store.dead.cached_info().created.unix_timestamp();
        let now = stoker_core::moment::now_ms() / 1000;
        let age = Duration::from_secs(now.saturating_sub(u64::try_from(made).unwrap_or(0)));
        let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(30), 0);
        if age < YOUNG {
            while let Err(error) = inner.fill(&store).await {
                tracing::debug!(%error, "the index of calls that were given up cannot be filled yet");
                tokio::time::sleep(waits.next().unwrap_or(YOUNG)).await;
            }
        }
        store.dead_filled.store(true, Ordering::Release);
    };
    tokio::select! {
        () = inner.stop.cancelled() => {}
        () = fills => {}
    }
}
