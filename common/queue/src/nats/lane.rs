//! One function's calls: whether there is something to take, and taking it.
//!
//! A server keeps a request for messages until it has some for it. What it sends to a request whose client has left is lost until the lease is over, and
//! servers of 2.9 go back by one then and send a message again that somebody else holds. So nothing that was asked for is given up: one task
//! asks, for one request at a time, and listens at one place from the lane's beginning to its end. What comes late is as good as what comes in time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::jetstream::message::{AckKind, Message};
use async_nats::{StatusCode, Subscriber, jetstream};
use futures_util::StreamExt as _;
use stoker_core::backoff::Backoff;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::setup::{self, Store};
use super::{BOUND, Inner, away};
use crate::Error;

/// How long a request waits at the server before another is made.
const WAIT: Duration = Duration::from_secs(30);

/// So much longer it stays there, so that there is always one.
const OVERLAP: Duration = Duration::from_secs(5);

/// Whoever takes is not held up longer than this by a request of which nothing is heard: another balancer may have had what was there. It goes on
/// waiting at the server.
const QUIET: Duration = Duration::from_millis(500);

/// Who has no room for what came gives it back after this, or after a quarter of the lease: another balancer may have some.
const HOLD: Duration = Duration::from_secs(2);

/// Who may ask at once.
const ASKS: usize = 16;

/// See the module.
pub struct Lane {
    pub function: String,
    /// Its consumer's.
    pub name: String,
    consumer: PullConsumer,
    /// There was something to take when this was last known.
    hot: AtomicBool,
    asks: mpsc::Sender<Ask>,
    /// The request that waits may be lost.
    renewed: Notify,
}

/// A message, and when it came.
pub struct Arrived {
    pub message: Message,
    pub at: Instant,
}

struct Ask {
    most: usize,
    reply: oneshot::Sender<Vec<Arrived>>,
}

impl Lane {
    /// Opens one, and starts the task that waits for its calls; it ends with the queue.
    pub async fn open(inner: &Arc<Inner>, store: &Store, function: &str) -> Result<Arc<Self>, Error> {
        let consumer = setup::consumer(&inner.config, store, function).await?;
        let (asks, asked) = mpsc::channel(ASKS);
        let lane = Arc::new(Self {
            function: function.to_owned(),
            name: setup::consumer_name(function),
            consumer,
            hot: AtomicBool::new(false),
            asks,
            renewed: Notify::new(),
        });
        let inbox = inner.client.new_inbox();
        let heard = inner.client.subscribe(format!("{inbox}.*")).await.map_err(away)?;
        {
            let mut lanes = inner.lanes();
            if let Some(other) = lanes.get(function) {
                return Ok(other.clone());
            }
            lanes.insert(function.to_owned(), lane.clone());
        }
        let asker = Asker {
            inner: inner.clone(),
            lane: lane.clone(),
            jetstream: store.jetstream.clone(),
            inbox,
            heard,
            came: VecDeque::new(),
            request: None,
            requests: 0,
            failures: failures(),
        };
        inner.tasks.spawn(asker.run(asked));
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

    /// What is there, and nothing that would have to be waited for.
    pub async fn take(&self, most: usize) -> Result<Vec<Arrived>, Error> {
        let stopping = || Error::Unavailable("it is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        let answer = async {
            self.asks.send(Ask { most, reply }).await.map_err(|_| stopping())?;
            answer.await.map_err(|_| stopping())
        };
        let late = |_| Error::Unavailable("nothing can be asked of it".to_owned());
        tokio::time::timeout(BOUND, answer).await.map_err(late)?
    }

    /// Calls that have not ended.
    pub async fn open_calls(&self) -> Result<u64, Error> {
        let info = self.consumer.get_info().await.map_err(away)?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }
}

fn failures() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0)
}

/// The task of a lane.
struct Asker {
    inner: Arc<Inner>,
    lane: Arc<Lane>,
    jetstream: jetstream::Context,
    /// Before the number of each request.
    inbox: String,
    heard: Subscriber,
    /// What came and nobody has taken.
    came: VecDeque<Arrived>,
    request: Option<Request>,
    requests: u64,
    failures: Backoff,
}

/// The one that is at the server, as far as is known.
struct Request {
    number: u64,
    /// Messages that it may still bring.
    left: usize,
    /// It is taken for lost from then on.
    until: Instant,
}

impl Asker {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let stop = self.inner.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.go_on(&mut asked) => {}
        }
        // For the others.
        self.give_back(Instant::now(), Duration::ZERO).await;
    }

    /// Ends with the client of NATS.
    async fn go_on(&mut self, asked: &mut mpsc::Receiver<Ask>) {
        let lane = self.lane.clone();
        let hold = HOLD.min(self.inner.config.lease / 4);
        let mut connected = self.inner.connected.subscribe();
        connected.mark_unchanged();
        // Who takes, and until when nothing may be heard.
        let mut asks: Option<(Ask, Instant)> = None;
        loop {
            let now = Instant::now();
            asks = match asks {
                Some((ask, quiet)) if self.waits() && self.came.len() < ask.most && now < quiet => {
                    Some((ask, quiet))
                }
                Some((ask, _)) => {
                    self.answer(ask);
                    None
                }
                None => None,
            };
            if asks.is_none() {
                self.give_back(now, hold).await;
                if self.request.is_none() && !lane.is_hot() {
                    self.wait().await;
                }
            }
            let held = self.came.front().filter(|_| asks.is_none()).map(|first| first.at + hold);
            let lost = self.request.as_ref().map(|request| request.until);
            let quiet = asks.as_ref().map(|(_, quiet)| *quiet);
            let next = [held, lost, quiet].into_iter().flatten().min();
            tokio::select! {
                message = self.heard.next() => match message {
                    Some(message) => {
                        if self.hear(message) && let Some((_, quiet)) = &mut asks {
                            *quiet = Instant::now() + QUIET;
                        }
                    }
                    None => return,
                },
                ask = asked.recv(), if asks.is_none() => {
                    // The lane has the other end.
                    let Some(ask) = ask else { return };
                    let mut quiet = now;
                    // What waits at the server would have been told of what is there.
                    if self.request.is_none() && self.came.len() < ask.most {
                        self.fetch(ask.most - self.came.len()).await;
                        quiet = Instant::now() + QUIET;
                    }
                    asks = Some((ask, quiet));
                }
                // The request may wait at nobody any more. The sender lives as long as the queue.
                _ = connected.changed() => self.request = None,
                () = lane.renewed.notified() => self.request = None,
                () = async { if let Some(at) = next { tokio::time::sleep_until(at).await } }, if next.is_some() => {
                    if self.request.as_ref().is_some_and(|request| request.until <= Instant::now()) {
                        self.request = None;
                    }
                }
            }
        }
    }

    /// Whether something may still come of what was asked.
    fn waits(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.left > 0)
    }

    fn answer(&mut self, ask: Ask) {
        let messages: Vec<_> = self.came.drain(..ask.most.min(self.came.len())).collect();
        let full = messages.len() >= ask.most;
        // The server says with each how many of them nobody has got.
        let more = messages.last().and_then(|last| last.message.info().ok().map(|info| info.pending > 0));
        self.lane.hot.store(!self.came.is_empty() || full && more == Some(true), Ordering::Release);
        if let Err(messages) = ask.reply.send(messages) {
            // Whoever asked has gone.
            self.keep(messages);
        }
    }

    fn keep(&mut self, messages: Vec<Arrived>) {
        if messages.is_empty() {
            return;
        }
        messages.into_iter().rev().for_each(|message| self.came.push_front(message));
        self.lane.hot.store(true, Ordering::Release);
        self.inner.tick();
    }

    /// Gives back what nobody has taken for so long.
    async fn give_back(&mut self, now: Instant, hold: Duration) {
        while let Some(first) = self.came.pop_front_if(|first| first.at + hold <= now) {
            first.message.ack_with(AckKind::Nak(None)).await.ok();
        }
    }

    /// Asks for what is there. The server answers at once.
    async fn fetch(&mut self, most: usize) {
        self.send(BatchConfig { batch: most, no_wait: true, ..BatchConfig::default() }, WAIT).await;
    }

    /// Asks for the next one that there is.
    async fn wait(&mut self) {
        let expires = Some(WAIT + OVERLAP);
        self.send(BatchConfig { batch: 1, expires, ..BatchConfig::default() }, WAIT).await;
    }

    async fn send(&mut self, batch: BatchConfig, lost: Duration) {
        self.requests += 1;
        let (number, left) = (self.requests, batch.batch);
        let sent = self.lane.consumer.request_batch(batch, format!("{}.{number}", self.inbox).into()).await;
        self.request = Some(Request { number, left, until: Instant::now() + lost });
        if let Err(error) = sent {
            self.failed(&error.to_string());
        }
    }

    /// Takes what the server says; whether that was a message.
    fn hear(&mut self, message: async_nats::Message) -> bool {
        let status = message.status.unwrap_or(StatusCode::OK);
        if status == StatusCode::OK {
            self.failures = failures();
            let message = Message { message, context: self.jetstream.clone() };
            self.came.push_back(Arrived { message, at: Instant::now() });
            if let Some(request) = &mut self.request {
                request.left = request.left.saturating_sub(1);
                if request.left == 0 {
                    self.request = None;
                }
            }
            if !self.lane.hot.swap(true, Ordering::AcqRel) {
                self.inner.tick();
            }
            return true;
        }
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        if number.is_none() || number != self.request.as_ref().map(|request| request.number) {
            return false;
        }
        match status {
            // There is nothing, no more, or what there is goes to another.
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                self.failures = failures();
                self.request = None;
            }
            _ => self.failed(message.description.as_deref().unwrap_or("nobody has this consumer")),
        }
        false
    }

    /// The request came to nothing: after a while there is another.
    fn failed(&mut self, why: &str) {
        let wait = self.failures.next().unwrap_or(WAIT);
        tracing::debug!(why, ?wait, function = self.lane.function, "calls cannot be waited for");
        self.request = Some(Request { number: self.requests, left: 0, until: Instant::now() + wait });
    }
}
