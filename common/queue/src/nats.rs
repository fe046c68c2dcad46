//! The queue of a cluster: NATS JetStream, which any number of balancers share.
//!
//! - A stream holds the calls that have not ended, one message each, on a subject of its function and its id. What is published is
//!   accepted; a second message of one id is refused by the server.
//! - A table of keys and values holds how far each call is, from its first start on, and its result after its end. It changes by
//!   compare and swap: whoever lost a call to another cannot say how it ended.
//! - A store of objects holds large bodies.
//!
//! Each function has a consumer of its own, so that none is behind another. Of every function without anything to take, one request
//! waits at the server ([`lane`]); nothing is asked over and over. A call that ended is removed from the stream after its end is in the
//! table: whatever dies between the two, who meets the message next reads the end and removes it.

mod calls;
mod lane;
mod setup;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::message::{AckKind, Acker};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use stoker_core::error::Code;
use tokio::sync::{broadcast, watch};
use tokio_util::io::{ReaderStream, StreamReader};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lane::Lane;
use self::setup::Store;
use crate::record::{Call, Kept, Progress, State};
use crate::{Backlog, End, Error, Filter, Follow, INLINE, LEASE, Pieces, Queue, Taken, Ticket, now_ms};

/// Ids of cancelled calls that a slow listener may be behind.
const NEWS: usize = 1024;

/// Whoever asks while the server is away waits so long for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Calls of one take that are begun at once.
const AT_ONCE: usize = 32;

/// What was said last may take so long to go out.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a queue in NATS behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// nats:// or tls://, each a member of one cluster.
    pub servers: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// The authority that signed the servers' certificates, besides those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Copies of everything, in a cluster.
    pub replicas: usize,
    /// Before the names of streams and subjects: fleets side by side have other ones.
    pub prefix: String,
    /// How long whoever took a call may be silent.
    pub lease: Duration,
}

impl Config {
    /// These servers, with everything else as it should be.
    #[must_use]
    pub fn new(servers: Vec<String>) -> Self {
        Self { servers, user: None, ca: None, replicas: 1, prefix: "stoker".to_owned(), lease: LEASE }
    }
}

/// See the module.
pub struct NatsQueue(Arc<Inner>);

struct Inner {
    config: Config,
    /// There once the server has answered.
    store: watch::Receiver<Option<Arc<Store>>>,
    lanes: Mutex<BTreeMap<String, Arc<Lane>>>,
    held: Mutex<HashMap<u64, Held>>,
    tickets: AtomicU64,
    news: watch::Sender<u64>,
    /// Ticks with every connection to the server.
    connected: watch::Sender<u64>,
    cancelled: broadcast::Sender<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A call that was taken here.
struct Held {
    id: String,
    function: String,
    aside: bool,
    revision: u64,
    until: Instant,
    acker: Arc<Acker>,
}

/// What a client of NATS says is wrong.
fn away(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let full = ["insufficient", "exceeded", "no space", "maximum bytes"];
    match full.iter().any(|sign| text.contains(sign)) {
        true => Error::Full(text),
        false => Error::Unavailable(text),
    }
}

fn read<M: prost::Message + Default>(bytes: Bytes) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::Unavailable(format!("a record in NATS is spoiled: {error}")))
}

impl NatsQueue {
    /// Begins to connect. A server that does not answer is no error: it may come. The tasks end with [`Queue::stop`].
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let connected = watch::Sender::new(0);
        let client = setup::connect(&config, connected.clone()).await?;
        let (ready, store) = watch::channel(None);
        let inner = Arc::new(Inner {
            config,
            store,
            lanes: Mutex::default(),
            held: Mutex::default(),
            tickets: AtomicU64::new(0),
            news: watch::Sender::new(0),
            connected,
            cancelled: broadcast::Sender::new(NEWS),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        inner.tasks.spawn(setup::run(inner.clone(), client, ready));
        Ok(Self(inner))
    }
}

impl Inner {
    fn lanes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    async fn store(&self) -> Result<Arc<Store>, Error> {
        let mut store = self.store.clone();
        let ready = tokio::time::timeout(PATIENCE, store.wait_for(Option::is_some)).await;
        let none =
            || Error::Unavailable(format!("no NATS server answers at {}", self.config.servers.join(", ")));
        match ready {
            Ok(Ok(store)) => store.clone().ok_or_else(none),
            _ => Err(none()),
        }
    }

    /// The lane of a function, made if there is none, and told to the other balancers.
    async fn lane(self: &Arc<Self>, store: &Store, function: &str) -> Result<Arc<Lane>, Error> {
        if let Some(lane) = self.lanes().get(function) {
            return Ok(lane.clone());
        }
        let lane = Lane::open(self, store, function).await?;
        let subject = format!("{}.lane", self.config.prefix);
        store.client.publish(subject, function.to_owned().into()).await.map_err(away)?;
        Ok(lane)
    }
}

/// Names come from ids of our own.
fn named(name: &str) -> Result<(), Error> {
    match !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        true => Ok(()),
        false => Err(Error::Unsupported(format!("{name:?} is no name of a body"))),
    }
}

#[async_trait]
impl Queue for NatsQueue {
    async fn submit(&self, call: Call) -> Result<bool, Error> {
        self.0.submit(call).await
    }

    async fn put_body(&self, name: &str, pieces: Pieces) -> Result<u64, stoker_core::Error> {
        let failed = |error: Error| stoker_core::Error::from(&error);
        named(name).map_err(failed)?;
        let store = self.0.store().await.map_err(failed)?;
        // The client knows only its own errors; why the body broke off is kept beside it.
        let broken = Arc::new(Mutex::new(None));
        let keep = broken.clone();
        let pieces = pieces.map_err(move |error| {
            let text = error.message.clone();
            *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            io::Error::other(text)
        });
        let put = store.bodies.put(name, &mut StreamReader::new(pieces)).await;
        if let Some(error) = broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        put.map(|info| info.size as u64).map_err(|error| failed(away(error)))
    }

    async fn body(&self, name: &str) -> Result<Pieces, Error> {
        named(name)?;
        let object = self.0.store().await?.bodies.get(name).await.map_err(away)?;
        Ok(Box::pin(ReaderStream::with_capacity(object, INLINE / 4).map_err(|error| {
            let text = format!("a body that was kept cannot be read: {error}");
            stoker_core::Error::new(Code::Internal, text)
        })))
    }

    async fn drop_body(&self, name: &str) {
        if let Ok(store) = self.0.store().await {
            // What stays goes with its age.
            store.bodies.delete(name).await.ok();
        }
    }

    async fn take(&self, function: &str, most: usize) -> Result<Vec<Taken>, Error> {
        let lane = self.0.lanes().get(function).cloned();
        let Some(lane) = lane.filter(|_| most > 0) else { return Ok(Vec::new()) };
        let store = self.0.store().await?;
        let messages = lane.take(most).await?;
        if lane.is_hot() {
            self.0.tick();
        }
        let begun =
            futures_util::stream::iter(messages.into_iter().map(|message| self.0.begin(&store, message)));
        Ok(begun.buffered(AT_ONCE).filter_map(std::future::ready).collect().await)
    }

    fn lease(&self) -> Duration {
        self.0.config.lease
    }

    async fn extend(&self, ticket: &Ticket) -> Result<(), Error> {
        self.0.holds(ticket)?;
        let acker = {
            let mut held = self.0.held();
            let mine = held.get_mut(&ticket.number).ok_or(Error::Lost)?;
            mine.until = Instant::now() + self.0.config.lease;
            mine.acker.clone()
        };
        acker.ack_with(AckKind::Progress).await.map_err(away)
    }

    async fn finish(&self, ticket: &Ticket, end: End) -> Result<(), Error> {
        let (_, _, aside) = self.0.holds(ticket)?;
        let store = self.0.store().await?;
        // Before the end is known: a follow-up is sent at least once, under an id that is the same each time.
        for follow in end.then {
            match follow {
                Follow::Call(call) => _ = self.0.submit(call).await?,
                Follow::Message { subject, id, body } => Inner::send(&store, subject, id, body).await?,
            }
        }
        let (progress, answer) = (end.progress, end.answer);
        let dead = progress.is() == State::Dead;
        // Its message goes, and with it the body, without which it could not be made again.
        let message = if dead { self.0.message(&store, &ticket.id).await? } else { None };
        let body = message.map(|message| read::<Call>(message.payload)).transpose()?.map(|call| call.body);
        let ends = |kept: &mut Kept| {
            (kept.progress, kept.answer) = (progress, answer);
            kept.call.body = body.unwrap_or_default();
        };
        self.0.write(&store, ticket, ends).await?;
        let mine = self.0.held().remove(&ticket.number);
        if let Some(mine) = mine {
            // Should it be lost, whoever meets the message reads the end.
            mine.acker.ack().await.ok();
        }
        if aside && !dead {
            store.bodies.delete(&ticket.id).await.ok();
        }
        Ok(())
    }

    async fn again(&self, ticket: &Ticket, progress: Progress) -> Result<(), Error> {
        let store = self.0.store().await?;
        let wait = Duration::from_millis(progress.due_ms.saturating_sub(now_ms()));
        self.0.write(&store, ticket, |kept| kept.progress = progress).await?;
        let mine = self.0.held().remove(&ticket.number);
        if let Some(mine) = mine {
            // Should it be lost, the message comes again when the lease is over.
            mine.acker.ack_with(AckKind::Nak((!wait.is_zero()).then_some(wait))).await.ok();
        }
        Ok(())
    }

    async fn cancel(&self, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error> {
        let store = self.0.store().await?;
        self.0.cancel(&store, id, keep_until_ms).await
    }

    async fn redrive(&self, id: &str) -> Result<Option<(Kept, bool)>, Error> {
        let store = self.0.store().await?;
        self.0.redrive(&store, id).await
    }

    async fn get(&self, id: &str) -> Result<Option<Kept>, Error> {
        let store = self.0.store().await?;
        self.0.get(&store, id).await
    }

    async fn wait(&self, id: &str) -> Result<Option<Kept>, Error> {
        let store = self.0.store().await?;
        let mut changes = store.progress.watch(id).await.map_err(away)?;
        loop {
            match self.0.get(&store, id).await? {
                Some(kept) if !kept.progress.is().is_end() => {}
                found => return Ok(found),
            }
            match changes.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(away(error)),
                None => return Err(Error::Unavailable("it is stopping".to_owned())),
            }
        }
    }

    async fn list(&self, filter: Filter) -> Result<(Vec<Kept>, bool), Error> {
        let store = self.0.store().await?;
        let of = match filter.function.is_empty() {
            true => "*.*".to_owned(),
            false => filter.function.replace('/', "."),
        };
        let mut ids = HashSet::new();
        let subjects = format!("{}.call.{of}.*", self.0.config.prefix);
        let mut open = store.calls.info_with_subjects(subjects).await.map_err(away)?;
        while let Some((subject, _)) = open.try_next().await.map_err(away)? {
            ids.extend(subject.rsplit('.').next().map(str::to_owned));
        }
        let mut keys = store.progress.keys().await.map_err(away)?;
        while let Some(id) = keys.try_next().await.map_err(away)? {
            ids.insert(id);
        }
        // Most ids begin with their time.
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let mut found = Vec::new();
        let mut more = false;
        for id in ids {
            let Some(mut kept) = self.0.get(&store, &id).await? else { continue };
            if !filter.function.is_empty() && kept.call.function != filter.function
                || filter.state.is_some_and(|state| state != kept.progress.is())
            {
                continue;
            }
            if found.len() == filter.limit {
                more = true;
                break;
            }
            kept.answer = None;
            found.push(kept);
        }
        found.sort_by_key(|kept| std::cmp::Reverse(kept.call.submitted_ms));
        Ok((found, more))
    }

    fn lanes(&self) -> Vec<String> {
        let lanes = self.0.lanes();
        lanes.iter().filter(|(_, lane)| lane.is_hot()).map(|(function, _)| function.clone()).collect()
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    fn cancelled(&self) -> broadcast::Receiver<String> {
        self.0.cancelled.subscribe()
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        let store = self.0.store().await?;
        let lanes: Vec<_> = self.0.lanes().values().cloned().collect();
        let mut all = Vec::new();
        for lane in lanes {
            let running = self.0.held().values().filter(|held| held.function == lane.function).count() as u64;
            let open = lane.open_calls().await?;
            if open == 0 && running == 0 {
                continue;
            }
            let queued = open.saturating_sub(running);
            let subject = self.0.subject(&lane.function, "*");
            let oldest = match queued {
                0 => None,
                _ => store.calls.get_first_raw_message_by_subject(subject, 1).await.ok(),
            };
            let oldest = oldest.and_then(|message| Call::decode(message.payload).ok());
            let oldest_due_ms = oldest.map(|call| call.due_ms).filter(|due| *due <= now_ms());
            all.push(Backlog { function: lane.function.clone(), queued, running, oldest_due_ms });
        }
        Ok(all)
    }

    async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        let store = self.0.store.borrow().clone();
        if let Some(store) = store {
            // What was said last goes out; a server that is away hears nothing anyway.
            tokio::time::timeout(FAREWELL, store.client.flush()).await.ok();
        }
    }
}

#[cfg(test)]
mod tests;
