//! The Telemetry API and the Logs API: who of the extensions subscribed to what, the events, and their delivery to listeners inside
//! the sandbox.
//!
//! Whoever has something to tell never waits: each subscriber has a queue that is bounded in records and in bytes, what finds no
//! place is counted, and the count is delivered as `platform.logsDropped`. Each subscriber has a task, which ends with the
//! [`RuntimeApi`](crate::RuntimeApi), or with its last batch when that [shuts down](crate::RuntimeApi::shut_down).

mod deliver;
mod subscribe;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use stoker_core::moment::rfc3339_millis;
use subscribe::Subscription;
pub use subscribe::{Api, Refused};

/// What happened before anybody could subscribe is kept up to this much.
const EARLY: usize = 1000;
const EARLY_BYTES: usize = 256 * 1024;
/// Of its buffer, this many times over may wait for a subscriber.
const BUFFERS: usize = 2;

/// Connects to a port on the loopback device of the sandbox.
pub type Connect =
    Arc<dyn Fn(u16) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

/// What an event is about, which is what subscribers choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Platform,
    Function,
    Extension,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Platform => "platform",
            Kind::Function => "function",
            Kind::Extension => "extension",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "platform" => Kind::Platform,
            "function" => Kind::Function,
            "extension" => Kind::Extension,
            _ => return None,
        })
    }
}

#[derive(Debug)]
struct Event {
    kind: Kind,
    /// For subscribers of this API only.
    only: Option<Api>,
    json: Bytes,
}

impl Event {
    fn new(kind: Kind, only: Option<Api>, name: &str, record: &Value) -> Arc<Self> {
        let json = json!({ "time": rfc3339_millis(SystemTime::now()), "type": name, "record": record });
        Arc::new(Self { kind, only, json: json.to_string().into() })
    }
}

/// Who wants to know.
pub struct Telemetry {
    connect: Connect,
    /// Somebody does, or still may.
    wanted: AtomicBool,
    inner: Mutex<Inner>,
    stop: CancellationToken,
    /// No more comes: what waits is delivered now.
    last: CancellationToken,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    /// While extensions may subscribe: what they have missed.
    early: Option<Early>,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug, Default)]
struct Early {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

#[derive(Debug)]
struct Subscriber {
    extension: String,
    api: Api,
    kinds: Vec<Kind>,
    queue: mpsc::Sender<Arc<Event>>,
    waiting: Arc<Waiting>,
    /// Ends its task when another takes its place.
    over: CancellationToken,
}

/// What waits for one subscriber, and what found no place.
#[derive(Debug, Default)]
struct Waiting {
    bytes: AtomicUsize,
    most: usize,
    lost: AtomicU64,
    lost_bytes: AtomicU64,
}

impl Waiting {
    fn lose(&self, bytes: usize) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.lost_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Subscriber {
    fn tell(&self, event: &Arc<Event>) {
        if event.only.is_some_and(|api| api != self.api) || !self.kinds.contains(&event.kind) {
            return;
        }
        let size = event.json.len();
        let before = self.waiting.bytes.fetch_add(size, Ordering::Relaxed);
        if before + size > self.waiting.most || self.queue.try_send(event.clone()).is_err() {
            self.waiting.bytes.fetch_sub(size, Ordering::Relaxed);
            self.waiting.lose(size);
        }
    }
}

impl Telemetry {
    pub(crate) fn new(connect: Connect, stop: CancellationToken) -> Self {
        let inner = Mutex::new(Inner { early: Some(Early::default()), subscribers: Vec::new() });
        let last = stop.child_token();
        Self { connect, wanted: AtomicBool::new(true), inner, stop, last }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that the function or an extension wrote, as `kind` says.
    pub fn line(&self, kind: Kind, text: &[u8]) {
        if self.wanted.load(Ordering::Relaxed) {
            let text = String::from_utf8_lossy(text);
            self.publish(&Event::new(kind, None, kind.as_str(), &json!(text)));
        }
    }

    /// What the platform has to say, and to whom.
    pub(crate) fn platform(&self, only: Option<Api>, name: &str, record: impl FnOnce() -> Value) {
        if self.wanted.load(Ordering::Relaxed) {
            self.publish(&Event::new(Kind::Platform, only, name, &record()));
        }
    }

    fn publish(&self, event: &Arc<Event>) {
        let mut inner = self.inner();
        if let Some(early) = &mut inner.early {
            early.bytes += event.json.len();
            early.events.push_back(event.clone());
            while early.events.len() > EARLY || early.bytes > EARLY_BYTES {
                let Some(old) = early.events.pop_front() else { break };
                early.bytes -= old.json.len();
            }
        }
        inner.subscribers.iter().for_each(|subscriber| subscriber.tell(event));
    }

    /// An extension subscribes. It is told what it has missed.
    pub(crate) fn subscribe(&self, extension: &str, api: Api, body: &[u8]) -> Result<(), Refused> {
        let subscription = Subscription::read(api, body)?;
        let mut inner = self.inner();
        if inner.early.is_none() {
            return Err(Refused::Closed(api));
        }
        let (queue, events) = mpsc::channel(subscription.items);
        let waiting = Arc::new(Waiting { most: subscription.bytes * BUFFERS, ..Waiting::default() });
        // The newest word of an extension counts.
        inner.subscribers.retain(|old| {
            let stays = old.extension != extension || old.api != api;
            if !stays {
                old.over.cancel();
            }
            stays
        });
        let subscriber = Subscriber {
            extension: extension.to_owned(),
            api,
            kinds: subscription.kinds.clone(),
            queue,
            waiting: waiting.clone(),
            over: self.stop.child_token(),
        };
        inner.early.iter().flat_map(|early| &early.events).for_each(|event| subscriber.tell(event));
        let delivery = deliver::Delivery {
            connect: self.connect.clone(),
            subscription,
            events,
            waiting,
            over: subscriber.over.clone(),
            last: self.last.clone(),
        };
        inner.subscribers.push(subscriber);
        drop(inner);
        // Ends when it is over, or with its last batch.
        tokio::spawn(delivery.run());
        let types =
            serde_json::from_slice::<Value>(body).map(|body| body["types"].clone()).unwrap_or_default();
        self.platform(
            Some(api),
            api.subscribed(),
            || json!({ "name": extension, "state": "Subscribed", "types": types }),
        );
        Ok(())
    }

    pub(crate) fn has_subscribers(&self) -> bool {
        !self.inner().subscribers.is_empty()
    }

    /// Nobody subscribes any more.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        inner.early = None;
        self.wanted.store(!inner.subscribers.is_empty(), Ordering::Relaxed);
    }

    /// Delivers what waits, within the time.
    pub(crate) async fn finish(&self, within: Duration) {
        self.last.cancel();
        let queues: Vec<_> = self.inner().subscribers.iter().map(|s| s.queue.clone()).collect();
        let all = async {
            for queue in queues {
                queue.closed().await;
            }
        };
        // Who does not take them in time misses them.
        _ = tokio::time::timeout(within, all).await;
    }
}

/// Milliseconds with three decimals, as AWS counts.
pub(crate) fn ms(time: Duration) -> Value {
    let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    json!(f64::from(micros) / 1e3)
}

/// The trace of an invocation as an event names it.
pub(crate) fn tracing(trace: &str) -> Value {
    json!({ "type": "X-Amzn-Trace-Id", "value": trace })
}
