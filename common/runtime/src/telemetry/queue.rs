//! Spans that have ended and wait to be sent: bounded, and never waited for by those who put them in.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::export::Exporter;
use super::span::Shared;
use super::wire;

/// Most spans of one message to the collector.
pub(super) const BATCH: usize = 2048;

/// Most bytes of one: a gRPC server takes 4 MiB unless it was told otherwise.
const BATCH_BYTES: usize = 2 << 20;

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

/// Spans as they travel, one after the other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub spans: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole batches, oldest first.
    whole: VecDeque<Batch>,
    open: Batch,
    /// In all of them.
    spans: usize,
    /// Room for a batch that was sent: memory that is known is written faster than new.
    spare: Vec<u8>,
    /// Nobody sends any more.
    closed: bool,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self { limit, waiting: Mutex::default(), ripe: Notify::new(), counts: Default::default() }
    }

    /// Puts a span in, or drops it if there is no room.
    pub fn push(&self, span: &[u8]) {
        /// The field of a message that holds the spans.
        const SPAN: u8 = 2 << 3 | 2;
        let mut waiting = self.waiting();
        if waiting.closed || waiting.spans >= self.limit {
            drop(waiting);
            self.add("dropped", 1);
            return;
        }
        let mut ripe = waiting.open.bytes.len() + span.len() > BATCH_BYTES;
        if ripe {
            waiting.seal();
        }
        wire::bytes(&mut waiting.open.bytes, SPAN, span);
        waiting.open.spans += 1;
        waiting.spans += 1;
        if waiting.open.spans == BATCH {
            waiting.seal();
            ripe = true;
        }
        let first = waiting.spans == 1;
        ripe |= waiting.spans == self.limit;
        drop(waiting);
        if first || ripe {
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
        // Whole spans are put in and taken out, whenever the lock is free.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest batch, whole or not.
    pub fn take(&self) -> Batch {
        let mut waiting = self.waiting();
        if waiting.whole.is_empty() {
            waiting.seal();
        }
        let batch = waiting.whole.pop_front().unwrap_or_default();
        waiting.spans -= batch.spans;
        batch
    }

    /// The room of a batch that was sent.
    pub fn give_back(&self, mut room: Vec<u8>) {
        room.clear();
        let old = {
            let mut waiting = self.waiting();
            // Of two the larger one.
            if waiting.spare.capacity() < room.capacity() {
                std::mem::replace(&mut waiting.spare, room)
            } else {
                room
            }
        };
        drop(old);
    }

    /// Waits for a whole batch, or for [`FILL`] after the first span.
    async fn due(&self) {
        self.until(|waiting| waiting.spans > 0).await;
        // Less than a batch is due after that time.
        let whole = self.until(|waiting| !waiting.whole.is_empty() || waiting.spans >= self.limit);
        tokio::time::timeout(FILL, whole).await.ok();
    }

    async fn until(&self, reached: impl Fn(&Waiting) -> bool) {
        loop {
            let ripe = self.ripe.notified();
            if reached(&self.waiting()) {
                return;
            }
            ripe.await;
        }
    }

    /// Takes no more; true if nothing waits. What came in meanwhile must be sent first.
    fn close_if_empty(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.closed = waiting.spans == 0;
        waiting.closed
    }

    /// Takes no more and drops what waits.
    fn close(&self) {
        let left = std::mem::replace(&mut *self.waiting(), Waiting { closed: true, ..Waiting::default() });
        self.add("dropped", left.spans);
    }
}

impl Waiting {
    /// Nothing more goes into the open batch.
    fn seal(&mut self) {
        let next = std::mem::take(&mut self.spare);
        self.whole.push_back(std::mem::replace(&mut self.open, Batch { bytes: next, spans: 0 }));
    }
}

/// Sends until `calm` is cancelled and the queue is empty, or until `now` is.
pub(super) async fn send(
    shared: Arc<Shared>,
    mut exporter: Exporter,
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
            let mut in_flight = InFlight { queue, failed: batch.spans, sent: 0 };
            let spans = Arc::new(batch.bytes);
            match exporter.export(&spans).await {
                Ok(refused) => {
                    in_flight.sent = in_flight.failed.saturating_sub(refused);
                    in_flight.failed -= in_flight.sent;
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
            if let Some(room) = Arc::into_inner(spans) {
                queue.give_back(room);
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
    failed: usize,
    sent: usize,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.queue.add("sent", self.sent);
        self.queue.add("failed", self.failed);
    }
}
