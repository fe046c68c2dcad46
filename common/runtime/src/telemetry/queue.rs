//! Spans and log records that wait to be sent: bounded, and never waited for by those who put them in.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::export::Exporter;
use super::wire;

/// Most bytes of one message to the collector: a gRPC server takes 4 MiB unless it was told otherwise.
const BATCH_BYTES: usize = 2 << 20;

/// Most bytes that wait, however few they belong to.
const BYTES: usize = 32 << 20;

/// What can become of a span or a record.
pub(super) const OUTCOMES: [&str; 3] = ["sent", "dropped", "failed"];

/// How much waits, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most of them that wait; those beyond are dropped.
    pub queue: usize,
    /// Most of them in one message.
    pub batch: usize,
    /// How long one waits for others to fill its batch. The sender is woken once for the first of a batch, not for each.
    pub delay: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { queue: 8192, batch: 2048, delay: Duration::from_secs(1) }
    }
}

/// Of spans, or of log records.
#[derive(Debug)]
pub(super) struct Queue {
    bounds: Bounds,
    waiting: Mutex<Waiting>,
    /// There is a first one, or a whole batch.
    ripe: Notify,
    /// In the order of [`OUTCOMES`].
    counts: [AtomicU64; 3],
}

/// Some of them as they travel, one after the other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub items: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole batches, oldest first.
    whole: VecDeque<Batch>,
    open: Batch,
    /// In all of them.
    items: usize,
    bytes: usize,
    /// Room for a batch that was sent: memory that is known is written faster than new.
    spare: Vec<u8>,
    /// Nobody sends any more.
    closed: bool,
}

impl Queue {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, waiting: Mutex::default(), ripe: Notify::new(), counts: Default::default() }
    }

    /// Puts one in, or drops it if there is no room.
    pub fn push(&self, item: &[u8]) {
        /// The field of a message that holds the spans; that which holds the records of a log has the same number.
        const ITEM: u8 = 2 << 3 | 2;
        let mut waiting = self.waiting();
        if waiting.closed || waiting.items >= self.bounds.queue || waiting.bytes + item.len() > BYTES {
            drop(waiting);
            self.add("dropped", 1);
            return;
        }
        let mut ripe = waiting.open.bytes.len() + item.len() > BATCH_BYTES;
        if ripe {
            waiting.seal();
        }
        let before = waiting.open.bytes.len();
        wire::bytes(&mut waiting.open.bytes, ITEM, item);
        waiting.bytes += waiting.open.bytes.len() - before;
        waiting.open.items += 1;
        waiting.items += 1;
        if waiting.open.items == self.bounds.batch {
            waiting.seal();
            ripe = true;
        }
        let first = waiting.items == 1;
        ripe |= waiting.items == self.bounds.queue;
        drop(waiting);
        if first || ripe {
            self.ripe.notify_one();
        }
    }

    /// Some had no room on their way here.
    pub fn lost(&self, items: u64) {
        self.add("dropped", items as usize);
    }

    /// How many had this outcome.
    pub fn count(&self, outcome: &str) -> u64 {
        let place = OUTCOMES.iter().position(|known| *known == outcome);
        place.map_or(0, |place| self.counts[place].load(Ordering::Relaxed))
    }

    fn add(&self, outcome: &str, items: usize) {
        if let Some(place) = OUTCOMES.iter().position(|known| *known == outcome) {
            self.counts[place].fetch_add(items as u64, Ordering::Relaxed);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Whole ones are put in and taken out, whenever the lock is free.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest batch, whole or not.
    pub fn take(&self) -> Batch {
        let mut waiting = self.waiting();
        if waiting.whole.is_empty() {
            waiting.seal();
        }
        let batch = waiting.whole.pop_front().unwrap_or_default();
        waiting.items -= batch.items;
        waiting.bytes -= batch.bytes.len();
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

    /// Waits for a whole batch, or for the time that it may take to fill after its first.
    async fn due(&self) {
        self.until(|waiting| waiting.items > 0).await;
        // Less than a batch is due after that time.
        let whole = self.until(|waiting| !waiting.whole.is_empty() || waiting.items >= self.bounds.queue);
        tokio::time::timeout(self.bounds.delay, whole).await.ok();
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
        waiting.closed = waiting.items == 0;
        waiting.closed
    }

    /// Takes no more and drops what waits.
    fn close(&self) {
        let left = std::mem::replace(&mut *self.waiting(), Waiting { closed: true, ..Waiting::default() });
        self.add("dropped", left.items);
    }
}

impl Waiting {
    /// Nothing more goes into the open batch.
    fn seal(&mut self) {
        let next = std::mem::take(&mut self.spare);
        self.whole.push_back(std::mem::replace(&mut self.open, Batch { bytes: next, items: 0 }));
    }
}

/// Sends until `calm` is cancelled and the queue is empty, or until `now` is.
pub(super) async fn send(
    queue: Arc<Queue>,
    mut exporter: Exporter,
    calm: CancellationToken,
    now: CancellationToken,
) {
    let (queue, what, to) = (&*queue, exporter.signal().what(), exporter.to().to_owned());
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
            let mut in_flight = InFlight { queue, failed: batch.items, sent: 0 };
            let items = Arc::new(batch.bytes);
            match exporter.export(&items).await {
                Ok(refused) => {
                    in_flight.sent = in_flight.failed.saturating_sub(refused);
                    in_flight.failed -= in_flight.sent;
                    if !std::mem::replace(&mut works, true) {
                        tracing::info!(%to, "{what} are sent again");
                    }
                }
                // Said once, not for each batch.
                Err(error) => {
                    if std::mem::replace(&mut works, false) {
                        tracing::warn!(%to, error = error.why, "{what} cannot be sent; until they can they are lost, and counted");
                    }
                }
            }
            if let Some(room) = Arc::into_inner(items) {
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

/// A batch on its way: counted when that is over, also if it is cut off.
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
