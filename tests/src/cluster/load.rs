//! Clients under load, and the check of what became of every one of their calls.
//!
//! Each client makes one call after the other, bounded in count and not in time. What it sends is an attempt with a key of its own; one
//! that surely did not start may be made again elsewhere, under another key. In the end every attempt has one outcome here, and
//! what functions recorded must fit to it.

mod check;
mod way;

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_core::error::{Error, Retry};
use stoker_proto::status;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

pub use self::check::{Sums, check, longest_silence};
use self::way::Caller;
pub use self::way::Way;
use crate::calls::{Call, Clients};
use crate::within;

/// No load makes more calls than this, however long its fault takes.
const MOST: usize = 200_000;

/// A call is offered to balancers this often before its client gives up.
const TRIES: usize = 12;

/// Why an attempt has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Stoker says so.
    Said(Error),
    /// The connection says that the request was not processed: it was not made, or it ended with a GOAWAY that left this request out.
    Unsent(String),
    /// The connection ended, and nobody knows what became of the request.
    Broken(String),
    /// The client went away before it had an answer.
    Left,
}

impl Failure {
    /// No function has seen any of it: the call may be made again without a thought.
    #[must_use]
    pub fn surely_not_started(&self) -> bool {
        match self {
            Failure::Said(error) => error.retry != Retry::Never,
            Failure::Unsent(_) => true,
            Failure::Broken(_) | Failure::Left => false,
        }
    }

    fn of(status: &Status) -> Self {
        // A status of a balancer has details; one that the connection made has none.
        if status.details().is_empty() {
            transport(status)
        } else {
            Failure::Said(status::from_status(status))
        }
    }
}

/// What a status of the client's own side tells.
fn transport(status: &Status) -> Failure {
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut unsent = false;
    let mut source = status.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            // A GOAWAY fails those requests only that it left out.
            unsent |= error.is_go_away() && error.is_remote();
            unsent |= error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        // The connection was closed before the request was written to it.
        unsent |= cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let refused = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        unsent |= refused == Some(std::io::ErrorKind::ConnectionRefused);
        source = cause.source();
    }
    if unsent { Failure::Unsent(text) } else { Failure::Broken(text) }
}

/// What a client does with an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing.
    Never,
    /// Makes it again elsewhere if it surely did not start.
    Safely,
    /// Makes it again also if the connection broke and nobody knows: its user says that this is right.
    Knowingly,
}

/// A load to be.
#[derive(Debug, Clone)]
pub struct Work {
    function: String,
    word: String,
    clients: usize,
    again: Again,
    prefix: &'static str,
    ways: Vec<Way>,
    size: usize,
    pause: Duration,
    timeout: Option<Duration>,
}

impl Work {
    /// Calls of this function by 16 clients, half of them through sessions, which may be made again if they did not start.
    #[must_use]
    pub fn of(function: &str) -> Self {
        let (function, word) = (function.to_owned(), "echo".to_owned());
        Self {
            function,
            word,
            clients: 16,
            again: Again::Safely,
            prefix: "",
            ways: vec![Way::Invoke, Way::Session],
            size: 0,
            pause: Duration::ZERO,
            timeout: None,
        }
    }

    /// What the probe is to do.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        word.clone_into(&mut self.word);
        self
    }

    #[must_use]
    pub fn clients(mut self, clients: usize) -> Self {
        self.clients = clients;
        self
    }

    #[must_use]
    pub fn again(mut self, again: Again) -> Self {
        self.again = again;
        self
    }

    /// How its clients call; they are shared out among these.
    #[must_use]
    pub fn ways(mut self, ways: &[Way]) -> Self {
        self.ways = ways.to_vec();
        self
    }

    /// Bodies of so many bytes: the key, an end of the line, and what follows from the key. They must come back as they were sent. A session
    /// carries 64 KiB of one.
    #[must_use]
    pub fn size(mut self, bytes: usize) -> Self {
        self.size = bytes;
        self
    }

    /// What each client does between two calls: nothing, for so long.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The deadline of each call.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    fn body(&self, key: &str) -> Bytes {
        if self.size == 0 {
            return Bytes::from(key.to_owned());
        }
        let line = key.bytes().chain([b'\n']);
        line.chain(key.bytes().cycle()).take(self.size.max(key.len() + 1)).collect()
    }

    /// What tells its keys from those of another load of the same function.
    #[must_use]
    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }
}

/// One request that a client sent, and its one outcome.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub key: String,
    /// Which call it belongs to, and which attempt of it this is.
    pub call: usize,
    pub attempt: usize,
    /// The balancer that was asked.
    pub balancer: usize,
    /// How the answer's body begins, up to the length of a key, and the runner that gave it.
    pub outcome: Result<(String, String), Failure>,
    pub at: Instant,
}

/// A load that runs.
pub struct Load {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
    done: watch::Receiver<usize>,
}

struct Shared {
    work: Work,
    balancers: Vec<Clients>,
    next: AtomicUsize,
    stop: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
    done: watch::Sender<usize>,
}

impl Load {
    /// Starts it, on these balancers.
    #[must_use]
    pub fn start(work: Work, balancers: Vec<Clients>) -> Self {
        let (done, seen) = watch::channel(0);
        let shared = Arc::new(Shared {
            balancers,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            attempts: Mutex::default(),
            done,
            work,
        });
        let mut clients = JoinSet::new();
        for n in 0..shared.work.clients {
            let way = shared.work.ways[n % shared.work.ways.len()];
            clients.spawn(client(shared.clone(), way));
        }
        Self { clients, shared, done: seen }
    }

    /// The runner that served most of its calls so far: the one whose fault it feels most.
    #[must_use]
    pub fn favourite(&self) -> String {
        let mut served: HashMap<String, usize> = HashMap::new();
        let attempts = self.shared.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, runner) in attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().ok()) {
            *served.entry(runner.clone()).or_default() += 1;
        }
        served.into_iter().max_by_key(|(_, calls)| *calls).expect("calls were served").0
    }

    /// How many of its calls are over.
    #[must_use]
    pub fn done(&self) -> usize {
        *self.done.borrow()
    }

    /// Waits until so many more of its calls are over.
    pub async fn more(&self, calls: usize) {
        let mut done = self.done.clone();
        let until = *done.borrow() + calls;
        let what = format!("{calls} more calls of {}", self.shared.work.function);
        // Its sender is in `shared`.
        drop(within(&what, done.wait_for(|done| *done >= until)).await.unwrap());
    }

    /// Waits for an attempt of which this is so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Attempt) -> bool) {
        let mut done = self.done.clone();
        let any = done.wait_for(|_| {
            let attempts = self.shared.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            attempts.iter().any(&holds)
        });
        drop(within(what, any).await.unwrap());
    }

    /// Lets the calls that run end, and no other begin. Every attempt.
    pub async fn end(mut self) -> Vec<Attempt> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let all = async {
            while let Some(ended) = self.clients.join_next().await {
                ended.expect("a client ends when it was told to");
            }
        };
        within("the last calls of a load", all).await;
        let attempts = self.shared.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(attempts.len() < MOST, "a load without end");
        attempts.clone()
    }
}

async fn client(shared: Arc<Shared>, way: Way) {
    let work = &shared.work;
    let mut callers: Vec<Caller> = shared.balancers.iter().map(|_| Caller::default()).collect();
    while !shared.stop.load(Ordering::Relaxed) {
        let call = shared.next.fetch_add(1, Ordering::Relaxed);
        if call >= MOST {
            return;
        }
        for attempt in 0..TRIES {
            let balancer = (call + attempt) % shared.balancers.len();
            let key = format!("{}{}.{call}.{attempt}", work.prefix, work.function);
            let body = work.body(&key);
            let request = Call::of(&work.function).probe(&work.word).header("Record", &key);
            let request = Call { timeout: work.timeout, ..request.body(body.clone()) };
            let clients = &shared.balancers[balancer];
            let answer = within(&key, callers[balancer].call(way, clients, &request)).await;
            let outcome = answer.map(|(answer, runner)| {
                assert!(work.size == 0 || answer == body, "the body of {key} changed on its way");
                (String::from_utf8_lossy(&answer[..answer.len().min(key.len())]).into_owned(), runner)
            });
            let again = match (&outcome, work.again) {
                (Ok(_), _) | (_, Again::Never) => false,
                (Err(failure), Again::Safely) => failure.surely_not_started(),
                (Err(failure), Again::Knowingly) => {
                    failure.surely_not_started() || matches!(failure, Failure::Broken(_))
                }
            };
            let at = Instant::now();
            let attempt = Attempt { key, call, attempt, balancer, outcome, at };
            shared.attempts.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
            if !again {
                break;
            }
        }
        shared.done.send_modify(|done| *done += 1);
        if !work.pause.is_zero() {
            tokio::time::sleep(work.pause).await;
        }
    }
}
