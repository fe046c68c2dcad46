//! Spans that have ended and wait to be sent: bounded, and never waited for by those who put them in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::span::Shared;

/// Spans of one message to the collector: some hundred KiB, far below what a gRPC server takes.
const BATCH: usize = 1024;

/// How long a span waits for others to fill its batch. The sender is woken once for the first span of a batch, not for each.
const FILL: Duration = Duration::from_millis(1000);

/// What can become of a span.
pub(super) const OUTCOMES: [&str; 3] = ["sent", "dropped", "failed"];

#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    waiting: Mutex<Waiting>,
    /// There is a first span, or a whole batch.
    ripe: Notify,
    /// In the order of [`OUTCOMES`].
    counts: [AtomicU64; 3],
}

#[derive(Debug, Default)]
struct Waiting {
    #[expect(clippy::vec_box, reason = "a short list is quickly grown, so that the lock is short too")]
    spans: Vec<Box<SpanData>>,
    /// Nobody sends any more.
    closed: bool,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self { limit, waiting: Mutex::default(), ripe: Notify::new(), counts: Default::default() }
    }

    /// Puts a span in, or drops it if there is no room.
    pub fn push(&self, span: Box<SpanData>) {
        let mut waiting = self.waiting();
        if waiting.closed || waiting.spans.len() >= self.limit {
            drop(waiting);
            self.add("dropped", 1);
            return;
        }
        waiting.spans.push(span);
        let now = waiting.spans.len();
        drop(waiting);
        if now == 1 || now == BATCH.min(self.limit) {
            self.ripe.notify_one();
        }
    }

    /// How many spans had this outcome.
    pub fn count(&self, outcome: &str) -> u64 {
        let place = OUTCOMES.iter().position(|known| *known == outcome);
        place.map_or(0, |place| self.counts[place].load(Ordering::Relaxed))
    }

    fn add(&self, outcome: &str, spans: usize) {
        if let Some(place) = OUTCOMES.iter().position(|known| *known == outcome) {
            self.counts[place].fetch_add(spans as u64, Ordering::Relaxed);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A list of spans is whole whenever the lock is free.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At most a batch, oldest first.
    pub fn take(&self) -> Vec<SpanData> {
        let mut waiting = self.waiting();
        let batch = waiting.spans.len().min(BATCH);
        let taken: Vec<_> = waiting.spans.drain(..batch).collect();
        drop(waiting);
        taken.into_iter().map(|span| *span).collect()
    }

    /// Waits for a whole batch, or for [`FILL`] after the first span.
    async fn due(&self) {
        self.holds(1).await;
        // Less than a batch is due after that time.
        tokio::time::timeout(FILL, self.holds(BATCH.min(self.limit))).await.ok();
    }

    async fn holds(&self, spans: usize) {
        loop {
            let ripe = self.ripe.notified();
            if self.waiting().spans.len() >= spans {
                return;
            }
            ripe.await;
        }
    }

    /// Takes no more; true if nothing waits. What came in meanwhile must be sent first.
    fn close_if_empty(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.closed = waiting.spans.is_empty();
        waiting.closed
    }

    /// Takes no more and drops what waits.
    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        let left = std::mem::take(&mut waiting.spans);
        drop(waiting);
        self.add("dropped", left.len());
    }
}

/// Sends until `calm` is cancelled and the queue is empty, or until `now` is.
pub(super) async fn send(
    shared: Arc<Shared>,
    exporter: impl SpanExporter,
    to: String,
    calm: CancellationToken,
    now: CancellationToken,
) {
    let queue = &shared.queue;
    let work = async {
        let mut works = true;
        loop {
            tokio::select! {
                () = queue.due() => {}
                () = calm.cancelled() => {
                    if queue.close_if_empty() {
                        return;
                    }
                }
            }
            let batch = queue.take();
            let mut in_flight = InFlight { queue, spans: batch.len(), outcome: "failed" };
            match exporter.export(batch).await {
                Ok(()) => {
                    in_flight.outcome = "sent";
                    if !std::mem::replace(&mut works, true) {
                        tracing::info!(%to, "spans are sent again");
                    }
                }
                // Said once, not for each batch.
                Err(error) => {
                    if std::mem::replace(&mut works, false) {
                        tracing::warn!(%to, %error, "spans cannot be sent; until they can they are lost, and counted");
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = now.cancelled() => {}
    }
    queue.close();
}

/// Spans on their way: counted when that is over, also if it is cut off.
struct InFlight<'q> {
    queue: &'q Queue,
    spans: usize,
    outcome: &'static str,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.queue.add(self.outcome, self.spans);
    }
}
