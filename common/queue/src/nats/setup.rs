//! The way to NATS, and what must be there: made once the server answers, found again by every other balancer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, kv};
use async_nats::{Client, ConnectOptions, Event, ReconnectToServer};
use futures_util::{StreamExt as _, TryStreamExt as _};
use stoker_core::backoff::Backoff;
use stoker_core::later::MAX_AGE_MS;
use tokio::sync::watch;

use super::index::{INDEXED, Index};
use super::lane::Lane;
use super::{Config, Inner, away, index};
use crate::Error;

/// What is known of calls goes after this without a change: longer than any delay and any age together.
pub const KEPT: Duration = Duration::from_millis(2 * MAX_AGE_MS + 24 * 3_600_000);

/// Within this the server knows messages again by their ids.
const DUPLICATES: Duration = Duration::from_secs(120);

/// Lanes that others made are looked up so often, should their word have been lost.
const LOOK: Duration = Duration::from_secs(60);

/// How long the server may take for one answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// What there is in NATS.
pub struct Store {
    pub jetstream: jetstream::Context,
    pub calls: Stream,
    pub progress: kv::Store,
    pub bodies: ObjectStore,
    pub over: Stream,
    pub indexes: Vec<Index>,
}

/// Begins to connect, and goes on for ever. `connected` ticks with every connection. Each is to the next of the servers, from one that is
/// drawn: who leaves one that does not answer comes to another.
pub async fn connect(config: &Config, connected: watch::Sender<(u64, Instant)>) -> Result<Client, Error> {
    let turn = Arc::new(AtomicUsize::new(uuid::Uuid::now_v7().as_u128() as usize));
    let mut options = ConnectOptions::new()
        .name("stoker")
        .reconnect_to_server_callback(move |servers, _| {
            let next = servers.get(turn.fetch_add(1, Ordering::Relaxed) % servers.len().max(1));
            let next = next.map(|server| ReconnectToServer { addr: server.addr.clone(), delay: None });
            std::future::ready(next)
        })
        .event_callback(move |event| {
            if matches!(event, Event::Connected) {
                connected.send_modify(|now| *now = (now.0 + 1, Instant::now()));
            }
            std::future::ready(())
        })
        .retry_on_initial_connect()
        .connection_timeout(ANSWER)
        .request_timeout(Some(ANSWER));
    if let Some((name, password)) = &config.user {
        options = options.user_and_password(name.clone(), password.clone());
    }
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    let connected = options.connect(config.servers.as_slice()).await;
    connected.map_err(|error| Error::Unsupported(format!("{}: {error}", config.servers.join(", "))))
}

/// Makes what must be there, and then hears what others tell, until the queue stops.
pub async fn run(inner: Arc<Inner>, ready: watch::Sender<Option<Arc<Store>>>) {
    let stop = inner.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(&inner, ready) => {}
    }
}

async fn follow(inner: &Arc<Inner>, ready: watch::Sender<Option<Arc<Store>>>) {
    let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
    let store = loop {
        let connection = inner.connection();
        let made = make(&inner.config, inner.client.clone()).await;
        match inner.heard(connection, made).await {
            Ok(store) => break Arc::new(store),
            Err(error) => {
                let wait = waits.next().unwrap_or(LOOK);
                tracing::warn!(%error, ?wait, "NATS is not there yet");
                tokio::time::sleep(wait).await;
            }
        }
    };
    inner.tasks.spawn(index::run(inner.clone(), store.clone()));
    loop {
        match listen(inner, &store, &ready).await {
            Ok(()) => tracing::warn!("NATS ended what we listen to"),
            Err(error) => tracing::warn!(%error, "what other balancers tell cannot be heard"),
        }
        tokio::time::sleep(waits.next().unwrap_or(LOOK)).await;
    }
}

async fn listen(
    inner: &Arc<Inner>,
    store: &Arc<Store>,
    ready: &watch::Sender<Option<Arc<Store>>>,
) -> Result<(), Error> {
    let prefix = &inner.config.prefix;
    let mut lanes = inner.client.subscribe(format!("{prefix}.lane")).await.map_err(away)?;
    let mut cancelled = inner.client.subscribe(format!("{prefix}.cancelled")).await.map_err(away)?;
    // Who may not hear it waits for as long as a request does.
    let elected = format!("$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{prefix}-calls.*");
    let mut elected = inner.client.subscribe(elected).await.map_err(away)?;
    inner.client.flush().await.map_err(away)?;
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                let connection = inner.connection();
                let looked = look(inner, store).await;
                if let Err(error) = inner.heard(connection, looked).await {
                    tracing::warn!(%error, "the consumers in NATS cannot be listed");
                }
                // From here on nothing that others tell is missed.
                ready.send_if_modified(|now| now.replace(store.clone()).is_none());
            }
            message = lanes.next() => {
                let Some(message) = message else { return Ok(()) };
                let function = String::from_utf8_lossy(&message.payload).into_owned();
                if let Err(error) = open(inner, store, &function).await {
                    tracing::warn!(%error, function, "calls of a function cannot be taken yet");
                }
            }
            message = elected.next() => {
                let Some(message) = message else { return Ok(()) };
                let name = message.subject.rsplit('.').next().unwrap_or_default();
                if let Some(lane) = inner.lanes().values().find(|lane| lane.name == name) {
                    lane.renew();
                }
            }
            message = cancelled.next() => {
                let Some(message) = message else { return Ok(()) };
                // Nobody may be listening.
                inner.cancelled.send(String::from_utf8_lossy(&message.payload).into_owned()).ok();
            }
        }
    }
}

async fn open(inner: &Arc<Inner>, store: &Store, function: &str) -> Result<(), Error> {
    let known = inner.lanes().contains_key(function);
    if !known {
        Lane::open(inner, store, function).await?;
    }
    Ok(())
}

/// Finds the lanes that there are.
async fn look(inner: &Arc<Inner>, store: &Store) -> Result<(), Error> {
    let mut consumers = store.calls.consumers();
    while let Some(consumer) = consumers.try_next().await.map_err(away)? {
        if let Some(function) = consumer.config.description {
            open(inner, store, &function).await?;
        }
    }
    Ok(())
}

async fn make(config: &Config, client: Client) -> Result<Store, Error> {
    let jetstream =
        jetstream::context::ContextBuilder::new().timeout(ANSWER).ack_timeout(ANSWER).build(client.clone());
    let (prefix, num_replicas) = (&config.prefix, config.replicas);
    let calls = jetstream
        .get_or_create_stream(stream::Config {
            name: format!("{prefix}-calls"),
            description: Some("Calls for later that have not ended".to_owned()),
            subjects: vec![format!("{prefix}.call.*.*.*")],
            retention: RetentionPolicy::WorkQueue,
            // Full is full: nothing that was accepted makes room for what is new.
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            duplicate_window: DUPLICATES,
            num_replicas,
            ..stream::Config::default()
        })
        .await
        .map_err(away)?;
    // The client would ask for the account first, in a form that servers before 2.10 do not answer in: so the table's stream is made
    // here, as every client makes it.
    let bucket = format!("{prefix}-progress");
    jetstream
        .get_or_create_stream(stream::Config {
            name: format!("KV_{bucket}"),
            description: Some("How far calls for later are, and their results".to_owned()),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            max_age: KEPT,
            duplicate_window: DUPLICATES,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas,
            allow_rollup: true,
            deny_delete: true,
            // Members that follow may answer with what was before.
            allow_direct: num_replicas == 1,
            ..stream::Config::default()
        })
        .await
        .map_err(away)?;
    let progress = jetstream.get_key_value(&bucket).await.map_err(away)?;
    let bucket = format!("{prefix}-bodies");
    let bodies = match jetstream.get_object_store(&bucket).await {
        Ok(bodies) => bodies,
        Err(_) => jetstream
            .create_object_store(object_store::Config {
                bucket,
                description: Some("Large bodies of calls for later".to_owned()),
                max_age: KEPT,
                storage: StorageType::File,
                num_replicas,
                ..object_store::Config::default()
            })
            .await
            .map_err(away)?,
    };
    let over = jetstream
        .get_or_create_stream(stream::Config {
            name: format!("{prefix}-over"),
            description: Some("Until when results of calls for later are kept".to_owned()),
            subjects: vec![format!("{prefix}.over.*")],
            max_age: KEPT,
            storage: StorageType::File,
            num_replicas,
            ..stream::Config::default()
        })
        .await
        .map_err(away)?;
    let mut indexes = Vec::new();
    for (state, name) in INDEXED {
        indexes.push(Index::open(config, &jetstream, state, name).await?);
    }
    Ok(Store { jetstream, calls, progress, bodies, over, indexes })
}

/// The name of a function's consumer.
pub fn consumer_name(function: &str) -> String {
    format!("fn-{}", &crate::derived_id("lane", function, "")[..24])
}

/// The consumer of a function.
pub async fn consumer(config: &Config, store: &Store, function: &str) -> Result<PullConsumer, Error> {
    use async_nats::jetstream::consumer::{AckPolicy, pull};
    let name = consumer_name(function);
    let wanted = pull::Config {
        durable_name: Some(name.clone()),
        // By which others know whose it is.
        description: Some(function.to_owned()),
        filter_subject: format!("{}.call.{}.*", config.prefix, super::tokens(function)),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.lease,
        // Whatever is delayed is pending.
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    store.calls.get_or_create_consumer(&name, wanted).await.map_err(away)
}
