//! What is not kept any more goes: records of calls that have ended, and the bodies of their answers.
//!
//! All records of a table have one age, longer than anything may be kept, and servers before 2.11 know no other. So whoever ends a call notes until when
//! it is kept: many of them in one message, on a subject for the hour in which all of them are over. Every balancer looks now and then for hours that
//! have passed, removes what they name, and then the note. What a balancer had not noted when it died goes with the age of the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use futures_util::TryStreamExt as _;
use stoker_core::moment::now_ms;
use tokio::sync::mpsc;

use super::setup::Store;
use super::{FAREWELL, Inner, away};
use crate::Error;
use crate::record::{Call, Kept};

const HOUR_MS: u64 = 3_600_000;

/// Ends are gathered for so long, or until there are so many of them.
const GATHER: Duration = Duration::from_secs(2);
const GATHERED: usize = 1000;

/// How often a balancer looks for what is over.
const LOOK: Duration = Duration::from_secs(300);

/// Calls that are forgotten at once.
const AT_ONCE: usize = 8;

/// A call that has ended, and until when it is kept.
pub struct Over {
    pub id: String,
    pub keep_until_ms: u64,
}

fn subject(inner: &Inner, hour: &str) -> String {
    format!("{}.over.{hour}", inner.config.prefix)
}

/// Calls by the hour in which all of its calls are over.
#[derive(Default)]
struct Hours(BTreeMap<u64, Vec<String>>);

impl Hours {
    fn add(&mut self, over: Over) {
        self.0.entry(over.keep_until_ms / HOUR_MS + 1).or_default().push(over.id);
    }

    /// Returns when there are many of them, or some time after the first.
    async fn gather(&mut self, ends: &mut mpsc::Receiver<Over>) {
        let Some(first) = ends.recv().await else { return };
        self.add(first);
        let more = async {
            for _ in 1..GATHERED {
                let Some(over) = ends.recv().await else { return };
                self.add(over);
            }
        };
        tokio::time::timeout(GATHER, more).await.ok();
    }
}

/// Notes what is told, and removes what is over, until the queue stops.
pub async fn run(inner: Arc<Inner>, mut ends: mpsc::Receiver<Over>) {
    let looks = async {
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = look(&inner) => {}
        }
    };
    tokio::join!(note(&inner, &mut ends), looks);
}

async fn note(inner: &Inner, ends: &mut mpsc::Receiver<Over>) {
    while !inner.stop.is_cancelled() {
        let mut hours = Hours::default();
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = hours.gather(ends) => {}
        }
        while let Ok(over) = ends.try_recv() {
            hours.add(over);
        }
        let noted = async {
            for (hour, ids) in hours.0 {
                if let Err(error) = publish(inner, hour, &ids).await {
                    let calls = ids.len();
                    tracing::warn!(%error, calls, "until when calls are kept could not be noted: they go with the age of their table");
                }
            }
        };
        tokio::select! {
            () = noted => {}
            // A server that is away is not waited for at the end.
            () = async { inner.stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => {}
        }
    }
}

async fn publish(inner: &Inner, hour: u64, ids: &[String]) -> Result<(), Error> {
    let store = inner.store().await?;
    let published = store.jetstream.publish(subject(inner, &hour.to_string()), ids.join("\n").into());
    published.await.map_err(away)?.await.map_err(away)?;
    Ok(())
}

async fn look(inner: &Inner) {
    loop {
        match inner.forget_hours(now_ms() / HOUR_MS).await {
            Ok(0) => {}
            Ok(forgotten) => {
                tracing::debug!(forgotten, "calls whose results were kept long enough are forgotten")
            }
            Err(error) => tracing::debug!(%error, "what is not kept any more could not be removed yet"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Inner {
    /// Forgets what was to be kept until this hour or less; how many calls that were.
    pub async fn forget_hours(&self, now: u64) -> Result<usize, Error> {
        let store = self.store().await?;
        let mut subjects = store.over.info_with_subjects(subject(self, "*")).await.map_err(away)?;
        let mut passed = Vec::new();
        while let Some((subject, _)) = subjects.try_next().await.map_err(away)? {
            let hour = subject.rsplit('.').next().and_then(|hour| hour.parse::<u64>().ok());
            passed.extend(hour.filter(|hour| *hour <= now).map(|_| subject));
        }
        let mut forgotten = 0;
        for subject in passed {
            while let Some((sequence, ids)) = first(&store.over, &subject).await? {
                let ids: Vec<&str> = ids.split('\n').collect();
                for some in ids.chunks(AT_ONCE) {
                    let some = some.iter().map(|id| self.forget(&store, id)).collect::<Vec<_>>();
                    let done = futures_util::future::try_join_all(some).await?;
                    forgotten += done.into_iter().filter(|forgotten| *forgotten).count();
                }
                // Another balancer may be at it too.
                if store.over.delete_message(sequence).await.is_err() {
                    break;
                }
            }
        }
        Ok(forgotten)
    }

    /// Forgets a call, if it is over.
    async fn forget(&self, store: &Store, id: &str) -> Result<bool, Error> {
        match self.entry(store, id).await? {
            Some((kept, revision)) if kept.progress.is_over(now_ms()) => {
                self.forget_entry(store, &kept, revision).await?;
                Ok(true)
            }
            // It is gone, or was made again.
            _ => Ok(false),
        }
    }

    /// Removes the record of a call that is over as it was at this revision, and what is kept aside of it.
    pub async fn forget_entry(&self, store: &Store, kept: &Kept, revision: u64) -> Result<(), Error> {
        let (id, table) = (&kept.call.id, &store.progress);
        // A body that is not there any more is no matter.
        if kept.answer.as_ref().is_some_and(|answer| answer.aside) {
            store.bodies.delete(Call::answer_name(id)).await.ok();
        }
        if let Some(body) = kept.call.body_name() {
            store.bodies.delete(body).await.ok();
        }
        let record = format!("{}{id}", table.prefix);
        table.stream.purge().filter(record).sequence(revision + 1).await.map_err(away)?;
        store.strike(kept).await;
        Ok(())
    }
}

/// The first note of an hour, and where it stands.
async fn first(over: &Stream, subject: &str) -> Result<Option<(u64, String)>, Error> {
    match over.get_first_raw_message_by_subject(subject, 1).await {
        Ok(message) => Ok(Some((message.sequence, String::from_utf8_lossy(&message.payload).into_owned()))),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(away(error)),
    }
}
