//! The queue of a cluster: NATS JetStream, which any number of balancers share.
//!
//! - A stream holds the calls that have not ended, one message each, on a subject of its function and its id. What is published is
//!   accepted; a second message of one id is refused by the server.
//! - A table of keys and values holds how far each call is, from its first start on, and its result after its end. It changes by
//!   compare and swap: whoever lost a call to another cannot say how it ended.
//! - A store of objects holds large bodies.
//! - A stream says what is not kept any more, and when ([`forget`]), and two which calls were given up and which cancelled ([`index`]).
//!
//! Each function has a consumer of its own, so that none is behind another. Of every function without anything to take, one request
//! waits at the server ([`lane`]); nothing is asked over and over. A call of which the server tells again is made again only if whoever held it is gone
//! ([`holders`]). A call that ended is removed from the stream after its end is in the
//! table: whatever dies between the two, who meets the message next reads the end and removes it.

mod bodies;
mod calls;
mod forget;
mod holders;
mod index;
mod lane;
mod listings;
mod setup;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State as Connection;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::object_store::GetErrorKind;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use stoker_core::moment::now_ms;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lane::Lane;
use self::listings::{Listings, Place};
use self::setup::Store;
use crate::record::{Call, Kept, Progress};
use crate::{Backlog, End, Error, Filling, Filter, INLINE, LEASE, Page, Pieces, Queue, Taken, Ticket};

/// Ids of cancelled calls that a slow listener may be behind.
const NEWS: usize = 1024;

/// Whoever asks while the server is away waits so long for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What somebody waits for is answered within this, or is said not to be known.
const BOUND: Duration = Duration::from_secs(10);

/// A connection is tried for so long before another server is.
const TRIED: Duration = Duration::from_secs(2);

/// Calls of one take that are begun at once.
const AT_ONCE: usize = 32;

/// Ends that are not noted yet; those beyond go with the age of their table.
const ENDS: usize = 65_536;

/// Calls that are looked up at once for a list.
const LOOKS: usize = 32;

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
    /// By which the others ask this one what it holds.
    name: String,
    client: Client,
    /// There once the server has answered.
    store: watch::Receiver<Option<Arc<Store>>>,
    lanes: Mutex<BTreeMap<String, Arc<Lane>>>,
    held: Mutex<HashMap<u64, Held>>,
    listings: Mutex<Listings>,
    tickets: AtomicU64,
    news: watch::Sender<u64>,
    /// How many connections to the server there were, and since when there is this one.
    connected: watch::Sender<(u64, Instant)>,
    /// The last of them that was left because it did not answer.
    doubted: AtomicU64,
    cancelled: broadcast::Sender<String>,
    /// To whoever notes until when they are kept.
    ends: mpsc::Sender<forget::Over>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A call that was taken here.
struct Held {
    id: String,
    function: String,
    /// Where its body is, if that is kept aside.
    body: Option<String>,
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
    M::decode(bytes).map_err(|error| Error::Spoiled(format!("a record in NATS cannot be read: {error}")))
}

impl NatsQueue {
    /// Begins to connect. A server that does not answer is no error: it may come. The tasks end with [`Queue::stop`].
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let connected = watch::Sender::new((0, Instant::now()));
        let client = setup::connect(&config, connected.clone()).await?;
        let (ready, store) = watch::channel(None);
        let (ends, ended) = mpsc::channel(ENDS);
        let inner = Arc::new(Inner {
            config,
            name: uuid::Uuid::now_v7().as_simple().to_string(),
            client,
            store,
            lanes: Mutex::default(),
            held: Mutex::default(),
            listings: Mutex::default(),
            tickets: AtomicU64::new(0),
            news: watch::Sender::new(0),
            connected,
            doubted: AtomicU64::new(0),
            cancelled: broadcast::Sender::new(NEWS),
            ends,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let asked = holders::listen(&inner).await?;
        inner.tasks.spawn(holders::answer(inner.clone(), asked));
        inner.tasks.spawn(forget::run(inner.clone(), ended));
        inner.tasks.spawn(setup::run(inner.clone(), ready));
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

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// The number of the connection that there is.
    fn connection(&self) -> u64 {
        self.connected.borrow().0
    }

    /// What was asked by this connection was not answered, or by somebody who cannot. The member of the cluster at its end may be cut off from the
    /// others, so the next one is asked from now on. Once a connection, and none that is new: where nobody leads all of them say so at once,
    /// and going round among them would only keep them busy.
    async fn doubt(&self, connection: u64) {
        let (newest, since) = *self.connected.borrow();
        let connected = self.client.connection_state() == Connection::Connected;
        let tried = connected && newest == connection && since.elapsed() >= TRIED;
        if tried && self.doubted.fetch_max(connection, Ordering::Relaxed) < connection {
            tracing::warn!("the NATS server does not answer what it is asked: the next one is");
            // It is being ended.
            self.client.force_reconnect().await.ok();
        }
    }

    /// What came of something that was asked by this connection.
    async fn heard<T>(&self, connection: u64, what: Result<T, Error>) -> Result<T, Error> {
        if matches!(what, Err(Error::Unavailable(_))) {
            self.doubt(connection).await;
        }
        what
    }

    /// Something that somebody waits for.
    async fn bounded<T>(&self, what: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (connection, made) = (self.connection(), self.store.borrow().is_some());
        let late = |_| Error::Unavailable(format!("nothing was heard of it within {} s", BOUND.as_secs()));
        let what = tokio::time::timeout(BOUND, what).await.unwrap_or_else(|elapsed| Err(late(elapsed)));
        // Until then nothing but what is made is asked.
        if made { self.heard(connection, what).await } else { what }
    }

    /// A call has ended.
    fn ended(&self, id: &str, progress: &Progress) {
        let over = forget::Over { id: id.to_owned(), keep_until_ms: progress.keep_until_ms };
        // Without room it goes with its table.
        self.ends.try_send(over).ok();
    }

    async fn store(&self) -> Result<Arc<Store>, Error> {
        let mut store = self.store.clone();
        let ready = tokio::time::timeout(PATIENCE, store.wait_for(Option::is_some)).await;
        let none = || Error::Absent(format!("no NATS server answers at {}", self.config.servers.join(", ")));
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
        self.client.publish(subject, function.to_owned().into()).await.map_err(away)?;
        Ok(lane)
    }
}

/// The part of a subject that is a function's, or that of any where it is empty.
fn tokens(function: &str) -> String {
    match function.is_empty() {
        true => "*.*".to_owned(),
        false => function.replace('/', "."),
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
        self.0.bounded(self.0.submit(call)).await
    }

    async fn put_body(&self, name: &str, pieces: Pieces) -> Result<u64, stoker_core::Error> {
        let failed = |error: Error| stoker_core::Error::from(&error);
        named(name).map_err(failed)?;
        let store = self.0.store().await.map_err(failed)?;
        // Whoever sends it may leave in the middle; what is there of it then is removed.
        let left = self.0.stop.child_token();
        let _leaves = left.clone().drop_guard();
        let put = bodies::put(store, name.to_owned(), pieces, left);
        let done = self.0.tasks.spawn(put).await;
        done.unwrap_or_else(|error| {
            Err(failed(Error::Unavailable(format!("what keeps a body broke off: {error}"))))
        })
    }

    async fn body(&self, name: &str) -> Result<Pieces, Error> {
        named(name)?;
        let found = self.0.store().await?.bodies.get(name).await;
        let object = found.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => crate::no_such_body(),
            _ => away(error),
        })?;
        Ok(Box::pin(ReaderStream::with_capacity(object, INLINE / 4).map_err(|error| bodies::unread(&error))))
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
        self.0.bounded(self.0.extend(ticket)).await
    }

    async fn finish(&self, ticket: &Ticket, end: End) -> Result<(), Error> {
        self.0.bounded(self.0.finish(ticket, end)).await
    }

    async fn again(&self, ticket: &Ticket, progress: Progress) -> Result<(), Error> {
        self.0.bounded(self.0.again(ticket, progress)).await
    }

    async fn cancel(&self, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error> {
        let inner = &self.0;
        inner.bounded(async { inner.cancel(&*inner.store().await?, id, keep_until_ms).await }).await
    }

    async fn redrive(&self, id: &str) -> Result<Option<(Kept, bool)>, Error> {
        let inner = &self.0;
        inner.bounded(async { inner.redrive(&*inner.store().await?, id).await }).await
    }

    async fn get(&self, id: &str) -> Result<Option<Kept>, Error> {
        let inner = &self.0;
        inner.bounded(async { inner.get(&*inner.store().await?, id).await }).await
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

    async fn list(&self, filter: Filter) -> Result<Page, Error> {
        let place = Place::read(&filter.after)?;
        let store = self.0.store().await?;
        let (inner, store) = (&self.0, &*store);
        let ids = listings::ids(inner, store, &filter, place).await?;
        let behind = ids.behind(place);
        let calls = (0..behind.len()).map(|at| async move { inner.get(store, &behind[at]).await });
        let mut calls = pin!(futures_util::stream::iter(calls).buffered(LOOKS));
        let mut filling = Filling::new(filter);
        for id in behind {
            let Some(found) = calls.next().await else { break };
            if !filling.look(found?, ids.place(id)) {
                break;
            }
        }
        let mut page = filling.page;
        match page.next {
            Some(_) => inner.listings().keep(&ids),
            None => inner.listings().over(&ids),
        }
        page.calls.sort_by_key(|kept| std::cmp::Reverse(kept.call.submitted_ms));
        Ok(page)
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
        self.0.listings().forget();
        let store = self.0.store().await?;
        let lanes: Vec<_> = self.0.lanes().values().cloned().collect();
        let mut all = Vec::new();
        for lane in lanes {
            let running = self.0.held().values().filter(|held| held.function == lane.function).count() as u64;
            let open = self.0.bounded(lane.open_calls()).await?;
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
        let used = self.0.store.borrow().is_some();
        if used {
            // What was said last goes out; a server that is away hears nothing anyway.
            tokio::time::timeout(FAREWELL, self.0.client.flush()).await.ok();
        }
    }
}

#[cfg(test)]
mod tests;
