//! Clients under load, and the check of what became of every one of their calls.
//!
//! Each client makes one call after the other, bounded in count and not in time. What it sends is an attempt with a key of its own; one
//! that surely did not start may be made again elsewhere, under another key. In the end every attempt has one outcome here, and
//! what functions recorded must fit to it.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::error::{Code, Error, Retry};
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_proto::{convert, status, v1};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::starts::Start;
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
}

impl Failure {
    /// No function has seen any of it: the call may be made again without a thought.
    #[must_use]
    pub fn surely_not_started(&self) -> bool {
        match self {
            Failure::Said(error) => error.retry != Retry::Never,
            Failure::Unsent(_) => true,
            Failure::Broken(_) => false,
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

/// Through which door a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Invoke,
    Session,
}

/// A load to be.
#[derive(Debug, Clone)]
pub struct Work {
    function: String,
    word: String,
    clients: usize,
    again: Again,
    prefix: &'static str,
}

impl Work {
    /// Calls of this function by 16 clients, half of them through sessions, which may be made again if they did not start.
    #[must_use]
    pub fn of(function: &str) -> Self {
        let (function, word) = (function.to_owned(), "echo".to_owned());
        Self { function, word, clients: 16, again: Again::Safely, prefix: "" }
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
    /// The answer's body and the runner that gave it.
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
            let way = if n % 2 == 0 { Way::Invoke } else { Way::Session };
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
    let mut lines: Vec<Option<Line>> = shared.balancers.iter().map(|_| None).collect();
    while !shared.stop.load(Ordering::Relaxed) {
        let call = shared.next.fetch_add(1, Ordering::Relaxed);
        if call >= MOST {
            return;
        }
        for attempt in 0..TRIES {
            let balancer = (call + attempt) % shared.balancers.len();
            let key = format!("{}{}.{call}.{attempt}", work.prefix, work.function);
            let request = Call::of(&work.function).probe(&work.word).header("Record", &key).body(key.clone());
            let clients = &shared.balancers[balancer];
            let outcome = match way {
                Way::Invoke => within(&key, invoke(clients, &request)).await,
                Way::Session => within(&key, Line::call(&mut lines[balancer], clients, &request)).await,
            };
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
    }
}

async fn invoke(clients: &Clients, call: &Call) -> Result<(String, String), Failure> {
    let message = v1::InvokeRequest {
        function: call.function.clone(),
        head: Some(call.head()),
        body: call.body.clone(),
    };
    let answer =
        clients.calls().invoke(Request::new(message)).await.map_err(|status| Failure::of(&status))?;
    let answer = answer.into_inner();
    Ok((String::from_utf8_lossy(&answer.body).into_owned(), answer.runner))
}

/// A session of one client, with one call after the other.
struct Line {
    send: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    last: u64,
}

impl Line {
    async fn call(
        line: &mut Option<Self>,
        clients: &Clients,
        call: &Call,
    ) -> Result<(String, String), Failure> {
        let mut open = match line.take() {
            Some(line) => line,
            None => {
                let (send, frames) = mpsc::channel(4);
                let answers = clients.calls().session(ReceiverStream::new(frames)).await;
                let answers = answers.map_err(|status| Failure::of(&status))?.into_inner();
                Self { send, answers, last: 0 }
            }
        };
        let outcome = open.next(call).await;
        // One that has ended is not used again.
        if !matches!(outcome, Err((_, true))) {
            *line = Some(open);
        }
        outcome.map_err(|(failure, _)| failure)
    }

    /// One call. A failure says whether the session is over.
    async fn next(&mut self, call: &Call) -> Result<(String, String), (Failure, bool)> {
        self.last += 1;
        let start = v1::SessionStart {
            function: call.function.clone(),
            head: Some(call.head()),
            body: call.body.clone(),
            complete: true,
            ..Default::default()
        };
        let request = v1::SessionRequest { call: self.last, frame: Some(In::Start(start)) };
        // A session that has ended takes nothing; its end says why.
        let sent = self.send.send(request).await.is_ok();
        let mut body = Vec::new();
        loop {
            let answer = match self.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) if !sent => return Err((Failure::Unsent("the session was over".to_owned()), true)),
                Ok(None) => return Err((Failure::Broken("the session ended".to_owned()), true)),
                Err(status) => return Err((Failure::of(&status), true)),
            };
            assert_eq!(
                answer.call, self.last,
                "a second outcome, or one of a call that nobody made: {answer:?}"
            );
            match answer.frame {
                Some(Out::Body(piece)) => body.extend_from_slice(&piece.data),
                Some(Out::Finished(end)) => {
                    if let Some(error) = end.error {
                        return Err((Failure::Said(convert::call_error(error)), false));
                    }
                    body.extend_from_slice(&end.body);
                    return Ok((String::from_utf8_lossy(&body).into_owned(), end.runner));
                }
                Some(Out::Head(_) | Out::Credit(_)) | None => {}
            }
        }
    }
}

/// What a check found, for those who want to know more.
#[derive(Debug, Default)]
pub struct Sums {
    pub calls: usize,
    pub answered: usize,
    /// Attempts that were made again.
    pub repeated: usize,
    /// Calls whose last attempt failed.
    pub failed: Vec<Attempt>,
    /// Attempts that reached a function more than once: of idempotent ones this is no mistake.
    pub twice: usize,
}

/// Holds the outcomes of all attempts against what functions recorded: the promises of one outcome, of no second start, and of errors
/// that say whether the call may have started.
///
/// # Panics
/// When a promise is broken.
#[must_use]
pub fn check(attempts: &[Attempt], starts: &HashMap<String, Vec<Start>>, idempotent: bool) -> Sums {
    let mut sums = Sums::default();
    let mut keys = HashSet::new();
    let mut last: HashMap<usize, &Attempt> = HashMap::new();
    for attempt in attempts {
        let Attempt { key, .. } = attempt;
        assert!(keys.insert(key), "{key} has two outcomes");
        let started = starts.get(key).map_or(0, Vec::len);
        assert!(started <= 1 || idempotent, "{key} was started {started} times: {:?}", starts[key]);
        sums.twice += usize::from(started > 1);
        match &attempt.outcome {
            Ok(_) => assert!(started > 0, "{key} was answered by nobody: {attempt:?}"),
            Err(Failure::Said(error)) => {
                let safe = error.retry != Retry::Never;
                assert!(
                    !(safe && error.may_have_started),
                    "{key}: safe, though it may have started: {error:?}"
                );
                let silent = matches!(error.code, Code::RunnerLost | Code::Unavailable | Code::Overloaded);
                if safe || (silent && !error.may_have_started) {
                    assert_eq!(
                        started, 0,
                        "{key} was started, though its error says that it was not: {error:?}"
                    );
                }
            }
            Err(Failure::Unsent(why)) => assert_eq!(started, 0, "{key} was started, though {why}"),
            Err(Failure::Broken(_)) => {}
        }
        let newest = last.entry(attempt.call).or_insert(attempt);
        if attempt.attempt > newest.attempt {
            *newest = attempt;
        }
        sums.repeated += usize::from(attempt.attempt > 0);
    }
    sums.calls = last.len();
    let (answered, failed): (Vec<&Attempt>, Vec<&Attempt>) =
        last.into_values().partition(|attempt| attempt.outcome.is_ok());
    sums.answered = answered.len();
    sums.failed = failed.into_iter().cloned().collect();
    sums
}

/// The longest time between two answers that began after `since`: how long nobody was served.
#[must_use]
pub fn longest_silence(attempts: &[Attempt], since: Instant) -> Duration {
    let mut times: Vec<_> =
        attempts.iter().filter(|a| a.outcome.is_ok() && a.at >= since).map(|a| a.at).collect();
    times.push(since);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(key: &str, outcome: Result<(String, String), Failure>) -> Attempt {
        let key = key.to_owned();
        Attempt { key, call: 0, attempt: 0, balancer: 0, outcome, at: Instant::now() }
    }

    fn started(times: usize) -> HashMap<String, Vec<Start>> {
        let start = Start { key: "k".to_owned(), by: "1-1".to_owned(), version: "-".to_owned() };
        if times == 0 { HashMap::new() } else { HashMap::from([("k".to_owned(), vec![start; times])]) }
    }

    fn answered() -> Result<(String, String), Failure> {
        Ok((String::new(), String::new()))
    }

    fn said(error: Error) -> Result<(String, String), Failure> {
        Err(Failure::Said(error))
    }

    fn lost() -> Error {
        Error::new(Code::RunnerLost, "lost")
    }

    #[test]
    fn what_fits_is_taken() {
        for (outcome, starts) in [
            (answered(), 1),
            (said(lost().may_have_started()), 1),
            (said(lost().may_have_started()), 0),
            (said(Error::new(Code::Unavailable, "stops").retry(Retry::Elsewhere)), 0),
            (Err(Failure::Unsent(String::new())), 0),
            (Err(Failure::Broken(String::new())), 1),
        ] {
            let failed = usize::from(outcome.is_err());
            let sums = check(&[attempt("k", outcome)], &started(starts), false);
            assert_eq!((sums.calls, sums.failed.len()), (1, failed));
        }
        assert_eq!(check(&[attempt("k", answered())], &started(2), true).twice, 1);
    }

    #[test]
    fn every_broken_promise_is_seen() {
        for (outcomes, starts) in [
            (vec![answered()], 0),
            (vec![answered()], 2),
            (vec![answered(), said(lost().may_have_started())], 1),
            (vec![said(Error::new(Code::Unavailable, "stops").retry(Retry::Elsewhere))], 1),
            (vec![said(Error::new(Code::Overloaded, "full").retry(Retry::After(Duration::ZERO)))], 1),
            (vec![said(lost())], 1),
            (vec![said(lost().may_have_started().retry(Retry::Elsewhere))], 0),
            (vec![Err(Failure::Unsent(String::new()))], 1),
        ] {
            let what = format!("{outcomes:?}, {starts} starts");
            let attempts: Vec<_> = outcomes.into_iter().map(|outcome| attempt("k", outcome)).collect();
            let seen = std::panic::catch_unwind(|| check(&attempts, &started(starts), false));
            assert!(seen.is_err(), "nobody minds {what}");
        }
    }
}
