//! One function's calls: whether there is something to take, found out by a request that waits at the server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::{AckKind, Message};
use futures_util::StreamExt as _;
use stoker_core::backoff::Backoff;
use tokio::sync::Notify;

use super::setup::{self, Store};
use super::{Inner, away};
use crate::Error;

/// How long a request waits at the server before it is made anew.
const WAIT: Duration = Duration::from_secs(30);

/// Who has no room for what came gives it back after this: another balancer may have some.
const HOLD: Duration = Duration::from_secs(2);

/// See the module.
pub struct Lane {
    pub function: String,
    /// Its consumer's.
    pub name: String,
    consumer: PullConsumer,
    /// There was something to take when this was last known.
    hot: AtomicBool,
    /// What came first.
    first: Mutex<Option<Message>>,
    /// Something was taken, or there is nothing left.
    taken: Notify,
    /// The request that waits for it may be lost.
    renewed: Notify,
}

impl Lane {
    /// Opens one, and starts the task that waits for its calls; it ends with the queue.
    pub async fn open(inner: &Arc<Inner>, store: &Store, function: &str) -> Result<Arc<Self>, Error> {
        let consumer = setup::consumer(&inner.config, store, function).await?;
        let lane = Arc::new(Self {
            function: function.to_owned(),
            name: setup::consumer_name(function),
            consumer,
            hot: AtomicBool::new(false),
            first: Mutex::default(),
            taken: Notify::new(),
            renewed: Notify::new(),
        });
        {
            let mut lanes = inner.lanes();
            if let Some(other) = lanes.get(function) {
                return Ok(other.clone());
            }
            lanes.insert(function.to_owned(), lane.clone());
        }
        inner.tasks.spawn(run(inner.clone(), lane.clone()));
        Ok(lane)
    }

    /// There may be something to take.
    pub fn is_hot(&self) -> bool {
        self.hot.load(Ordering::Acquire)
    }

    /// Another member of the cluster leads: what waited at the one before waits at none now.
    pub fn renew(&self) {
        self.renewed.notify_one();
    }

    fn first(&self) -> Option<Message> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What is there, and nothing that would have to be waited for.
    pub async fn take(&self, most: usize) -> Result<Vec<Message>, Error> {
        let mut messages = Vec::from_iter(self.first());
        if messages.len() < most {
            let more = self.consumer.fetch().max_messages(most - messages.len()).messages().await;
            let mut more = more.map_err(away)?;
            // A server that goes away says neither what there is nor that there is nothing.
            while let Ok(Some(message)) = tokio::time::timeout(setup::ANSWER, more.next()).await {
                match message {
                    Ok(message) => messages.push(message),
                    Err(error) => {
                        tracing::debug!(%error, "a fetch ended early");
                        break;
                    }
                }
            }
        }
        self.hot.store(messages.len() >= most, Ordering::Release);
        self.taken.notify_one();
        Ok(messages)
    }

    /// Calls that have not ended.
    pub async fn open_calls(&self) -> Result<u64, Error> {
        let info = self.consumer.get_info().await.map_err(away)?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }
}

async fn run(inner: Arc<Inner>, lane: Arc<Lane>) {
    let stop = inner.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch(&inner, &lane) => {}
    }
    if let Some(message) = lane.first() {
        // For the others.
        message.ack_with(AckKind::Nak(None)).await.ok();
    }
}

async fn watch(inner: &Inner, lane: &Lane) {
    let failing = || Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
    let mut failures = failing();
    let mut connected = inner.connected.subscribe();
    loop {
        while lane.is_hot() {
            lane.taken.notified().await;
        }
        connected.mark_unchanged();
        let first = async {
            let mut batch =
                lane.consumer.batch().max_messages(1).expires(WAIT).messages().await.map_err(away)?;
            batch.next().await.transpose().map_err(away)
        };
        let first = tokio::select! {
            biased;
            first = first => first,
            // The request may wait at nobody any more: it is made anew. The sender lives as long as the queue.
            _ = connected.changed() => continue,
            () = lane.renewed.notified() => continue,
        };
        match first {
            Ok(None) => failures = failing(),
            Ok(Some(message)) => {
                failures = failing();
                *lane.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
                lane.hot.store(true, Ordering::Release);
                inner.tick();
                let taken = tokio::time::timeout(HOLD, lane.taken.notified()).await;
                if taken.is_err()
                    && let Some(message) = lane.first()
                {
                    message.ack_with(AckKind::Nak(None)).await.ok();
                }
            }
            Err(error) => {
                let wait = failures.next().unwrap_or(WAIT);
                tracing::debug!(%error, ?wait, function = lane.function, "calls cannot be waited for");
                tokio::time::sleep(wait).await;
            }
        }
    }
}
