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

mod lane;
mod setup;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{CreateErrorKind, UpdateErrorKind};
use async_nats::jetstream::message::{AckKind, Acker, Message, PublishMessage, StreamMessage};
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

/// A call that could not be begun comes again after this.
const PAUSE: Duration = Duration::from_secs(1);

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
        let client = setup::connect(&config).await?;
        let (ready, store) = watch::channel(None);
        let inner = Arc::new(Inner {
            config,
            store,
            lanes: Mutex::default(),
            held: Mutex::default(),
            tickets: AtomicU64::new(0),
            news: watch::Sender::new(0),
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

    fn subject(&self, function: &str, id: &str) -> String {
        format!("{}.call.{}.{id}", self.config.prefix, function.replace('/', "."))
    }

    async fn submit(self: &Arc<Self>, call: Call) -> Result<bool, Error> {
        let store = self.store().await?;
        // First the lane: a call whose lane nobody knows would wait until somebody looks.
        self.lane(&store, &call.function).await?;
        if !call.key.is_empty() && self.entry(&store, &call.id).await?.is_some() {
            return Ok(false);
        }
        let message = PublishMessage::build()
            .payload(call.encode_to_vec().into())
            .message_id(&call.id)
            .expected_last_subject_sequence(0);
        let sent = store.jetstream.send_publish(self.subject(&call.function, &call.id), message).await;
        match sent.map_err(away)?.await {
            // A repetition within the server's window of duplicates.
            Ok(ack) => Ok(!ack.duplicate),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(away(error)),
        }
    }

    async fn entry(&self, store: &Store, id: &str) -> Result<Option<(Kept, u64)>, Error> {
        match store.progress.entry(id).await.map_err(away)? {
            Some(entry) if !entry.value.is_empty() => Ok(Some((read(entry.value)?, entry.revision))),
            _ => Ok(None),
        }
    }

    /// The message of a call that has not ended.
    async fn message(&self, store: &Store, id: &str) -> Result<Option<StreamMessage>, Error> {
        use async_nats::jetstream::stream::LastRawMessageErrorKind as Kind;
        let subject = format!("{}.call.*.*.{id}", self.config.prefix);
        match store.calls.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == Kind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    /// A call whose message was delivered: begun, or `None` where it is not to be made now.
    async fn begin(&self, store: &Store, message: Message) -> Option<Taken> {
        let (message, acker) = message.split();
        match self.try_begin(store, &message.payload, &acker).await {
            Ok(Some((call, progress, revision))) => {
                let number = self.tickets.fetch_add(1, Ordering::Relaxed);
                let ticket = Ticket { id: call.id.clone(), number };
                let until = Instant::now() + self.config.lease;
                let (id, function, aside) = (call.id.clone(), call.function.clone(), call.aside);
                let acker = Arc::new(acker);
                self.held().insert(number, Held { id, function, aside, revision, until, acker });
                Some(Taken { call, progress, ticket })
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a call for later could not be begun");
                acker.ack_with(AckKind::Nak(Some(PAUSE))).await.ok();
                None
            }
        }
    }

    async fn try_begin(
        &self,
        store: &Store,
        payload: &Bytes,
        acker: &Acker,
    ) -> Result<Option<(Call, Progress, u64)>, Error> {
        let call: Call = read(payload.clone())?;
        loop {
            let entry = self.entry(store, &call.id).await?;
            let (mut kept, revision) = match entry {
                Some((kept, revision)) => (kept, Some(revision)),
                None => {
                    let progress = Progress::new(&call);
                    (Kept { call: without_body(&call), progress, answer: None }, None)
                }
            };
            let now = now_ms();
            if kept.progress.is() == State::Dead && call.redrives > kept.progress.redrives {
                kept.progress.redrive(now, call.redrives);
            }
            if kept.progress.is().is_end() {
                // Its end was written, and whoever wrote it was gone before the message was.
                acker.ack().await.map_err(away)?;
                return Ok(None);
            }
            if kept.progress.is() == State::Queued && kept.progress.due_ms > now {
                let wait = Duration::from_millis(kept.progress.due_ms - now);
                acker.ack_with(AckKind::Nak(Some(wait))).await.map_err(away)?;
                return Ok(None);
            }
            kept.progress.begin(now);
            // What is made again has its body in its message, like any other.
            kept.call = without_body(&call);
            let value = Bytes::from(kept.encode_to_vec());
            match revision {
                None => match store.progress.create(&call.id, value).await {
                    Ok(revision) => return Ok(Some((call, kept.progress, revision))),
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                    Err(error) => return Err(away(error)),
                },
                Some(revision) => match store.progress.update(&call.id, value, revision).await {
                    Ok(revision) => return Ok(Some((call, kept.progress, revision))),
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                    Err(error) => return Err(away(error)),
                },
            }
        }
    }

    /// Whether a ticket is good, and what it is good for.
    fn holds(&self, ticket: &Ticket) -> Result<(u64, String, bool), Error> {
        let mut held = self.held();
        match held.get(&ticket.number) {
            Some(mine) if mine.id == ticket.id && mine.until > Instant::now() => {
                Ok((mine.revision, mine.function.clone(), mine.aside))
            }
            _ => {
                held.remove(&ticket.number);
                Err(Error::Lost)
            }
        }
    }

    /// Writes how far a call is, by whoever holds it.
    async fn write(
        &self,
        store: &Store,
        ticket: &Ticket,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), Error> {
        let (revision, ..) = self.holds(ticket)?;
        let Some((mut kept, now)) = self.entry(store, &ticket.id).await? else { return Err(Error::Lost) };
        let before = kept.progress.clone();
        change(&mut kept);
        if now != revision {
            // Perhaps it was ourselves, and only the answer was lost.
            return if before == kept.progress { Ok(()) } else { self.lose(ticket) };
        }
        match store.progress.update(&ticket.id, kept.encode_to_vec().into(), revision).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => self.lose(ticket),
            Err(error) => Err(away(error)),
        }
    }

    fn lose(&self, ticket: &Ticket) -> Result<(), Error> {
        self.held().remove(&ticket.number);
        Err(Error::Lost)
    }

    async fn get(&self, store: &Store, id: &str) -> Result<Option<Kept>, Error> {
        for _ in 0..2 {
            if let Some((mut kept, _)) = self.entry(store, id).await? {
                kept.call.body.clear();
                return Ok((!kept.progress.is_over(now_ms())).then_some(kept));
            }
            if let Some(message) = self.message(store, id).await? {
                let call: Call = read(message.payload)?;
                let progress = Progress::new(&call);
                return Ok(Some(Kept { call: without_body(&call), progress, answer: None }));
            }
            // It may have been begun and ended between the two looks.
        }
        Ok(None)
    }

    async fn cancel(&self, store: &Store, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error> {
        loop {
            let message = self.message(store, id).await?;
            let (mut kept, revision) = match (self.entry(store, id).await?, &message) {
                (Some((kept, _)), _) if kept.progress.is_over(now_ms()) => return Ok(None),
                (Some((kept, revision)), _) => (kept, Some(revision)),
                (None, Some(message)) => {
                    let call: Call = read(message.payload.clone())?;
                    let progress = Progress::new(&call);
                    (Kept { call: without_body(&call), progress, answer: None }, None)
                }
                (None, None) => return Ok(None),
            };
            if kept.progress.is().is_end() {
                (kept.answer, kept.call.body) = (None, Bytes::new());
                return Ok(Some(kept));
            }
            let ran = kept.progress.is() == State::Running;
            kept.progress.cancel(now_ms(), keep_until_ms);
            let value = Bytes::from(kept.encode_to_vec());
            let raced = match revision {
                None => match store.progress.create(id, value).await {
                    Ok(_) => false,
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => true,
                    Err(error) => return Err(away(error)),
                },
                Some(revision) => match store.progress.update(id, value, revision).await {
                    Ok(_) => false,
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => true,
                    Err(error) => return Err(away(error)),
                },
            };
            if raced {
                continue;
            }
            if let Some(message) = message {
                // What stays is met by whoever takes it next, who reads that it has ended.
                store.calls.delete_message(message.sequence).await.ok();
            }
            if ran {
                let subject = format!("{}.cancelled", self.config.prefix);
                store.client.publish(subject, id.to_owned().into()).await.map_err(away)?;
            }
            if kept.call.aside {
                store.bodies.delete(id).await.ok();
            }
            return Ok(Some(kept));
        }
    }

    /// The message alone makes it again: whoever meets it in place of what was given up begins anew. That the table says so already is for
    /// those who look.
    async fn redrive(self: &Arc<Self>, store: &Store, id: &str) -> Result<Option<(Kept, bool)>, Error> {
        let seen = |kept: Option<Kept>| kept.map(|kept| (kept, false));
        let Some((mut kept, revision)) = self.entry(store, id).await? else {
            return Ok(seen(self.get(store, id).await?));
        };
        if kept.progress.is() != State::Dead || kept.progress.is_over(now_ms()) {
            return Ok(seen(self.get(store, id).await?));
        }
        if !kept.call.aside && kept.call.body_bytes > 0 && kept.call.body.is_empty() {
            return Err(crate::no_body());
        }
        let times = kept.progress.redrives + 1;
        let call = Call { redrives: times, ..kept.call.clone() };
        self.lane(store, &call.function).await?;
        // That of its last attempt may still be there, if its end was not heard by the server.
        if let Some(left) = self.message(store, id).await?
            && read::<Call>(left.payload)?.redrives < times
        {
            store.calls.delete_message(left.sequence).await.map_err(away)?;
        }
        let message = PublishMessage::build()
            .payload(call.encode_to_vec().into())
            .message_id(format!("{id}-{times}"))
            .expected_last_subject_sequence(0);
        let sent = store.jetstream.send_publish(self.subject(&call.function, id), message).await;
        let first = match sent.map_err(away)?.await {
            Ok(ack) => !ack.duplicate,
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => false,
            Err(error) => return Err(away(error)),
        };
        kept.progress.redrive(now_ms(), times);
        kept.call = without_body(&call);
        // Who has begun it meanwhile has written so.
        store.progress.update(id, kept.encode_to_vec().into(), revision).await.ok();
        Ok(self.get(store, id).await?.map(|kept| (kept, first)))
    }

    async fn send(store: &Store, subject: String, id: String, body: Bytes) -> Result<(), Error> {
        let message = PublishMessage::build().payload(body.clone()).message_id(&id);
        let sent = store.jetstream.send_publish(subject.clone(), message).await.map_err(away)?;
        match sent.await {
            Ok(_) => Ok(()),
            // No stream keeps it: whoever listens now hears it.
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                store.client.publish(subject, body).await.map_err(away)
            }
            Err(error) => Err(away(error)),
        }
    }
}

fn without_body(call: &Call) -> Call {
    Call { body: Bytes::new(), ..call.clone() }
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
            tokio::time::timeout(PAUSE, store.client.flush()).await.ok();
        }
    }
}

#[cfg(test)]
mod tests;
