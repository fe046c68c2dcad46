//! Calls for later: taken in at the doors, kept by a [`Queue`], made by whichever balancer has room.
//!
//! The doors' half is here: a call is checked like any other and is accepted once the queue has it on disk. [`worker`] takes calls
//! that are due and makes them beside the synchronous ones: so many at once of one function as its [`window`] says, and of all as the [`background`] limit
//! says while callers wait. [`attempt`] makes one and says what becomes of it, [`letters`] what follows from its end, [`schedule`] submits what
//! functions want by the clock. A balancer keeps nothing of a call that another could not take over.

mod attempt;
mod background;
mod letters;
mod schedule;
mod window;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use stoker_core::call::PIECE;
use stoker_core::error::{Code, Error, Retry};
use stoker_core::function::FunctionSpec;
use stoker_core::ids::CallId;
use stoker_core::later::{MAX_AGE_MS, MAX_KEY};
use stoker_core::moment::now_ms;
use stoker_core::units::format_duration;
use stoker_proto::{convert, v1};
use stoker_queue::{Call, Filter, INLINE, Kept, Page, Pieces, Queue, derived_id};
use stoker_runtime::metrics::{Counter, Metrics};

pub use self::worker::start;
use crate::call::Input;
use crate::directory::Known;
use crate::front::Front;
use crate::metrics::{LATER_ATTEMPTS, LATER_ENDED, LATER_OLDEST, LATER_QUEUED, LATER_RUNNING, LATER_SUBMITS};
use crate::observe::Watch;

/// Most of an answer's body that is kept.
pub const MAX_ANSWER: usize = stoker_proto::MAX_MESSAGE;

/// Most bytes of the body of a call for later, wherever it is kept.
const MAX_BODY: u64 = 256 << 20;

/// A cancelled call is known for so long.
const CANCELLED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What the doors have of it.
pub struct Later {
    queue: Option<Arc<dyn Queue>>,
    counts: Counts,
}

/// What a door was asked to keep for later.
pub struct Submit {
    pub function: Arc<Known>,
    /// The revision or the alias that the caller named.
    pub qualifier: String,
    pub head: v1::RequestHead,
    pub input: Input,
    /// By which a repetition is known; empty: it never is one.
    pub key: String,
    /// How long to wait first; nothing: as the function says.
    pub delay: Option<Duration>,
}

/// A call that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub id: String,
    /// It was here already.
    pub repeated: bool,
}

/// The numbers of calls for later.
#[derive(Clone)]
pub struct Counts {
    submitted: Counter,
    repeated: Counter,
    redriven: Counter,
    done: Counter,
    dead: Counter,
    cancelled: Counter,
    succeeded: Counter,
    failed: Counter,
    interrupted: Counter,
    not_started: Counter,
    figures: Arc<Figures>,
}

#[derive(Default)]
struct Figures {
    queued: AtomicU64,
    running: AtomicU64,
    oldest_due_ms: AtomicU64,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let (submits, attempts) = (metrics.labelled(&LATER_SUBMITS), metrics.labelled(&LATER_ATTEMPTS));
        let ended = metrics.labelled(&LATER_ENDED);
        let figures = Arc::<Figures>::default();
        let shown = figures.clone();
        metrics.read(&LATER_QUEUED, move || shown.queued.load(Ordering::Relaxed) as f64);
        let shown = figures.clone();
        metrics.read(&LATER_RUNNING, move || shown.running.load(Ordering::Relaxed) as f64);
        let shown = figures.clone();
        metrics.read(&LATER_OLDEST, move || match shown.oldest_due_ms.load(Ordering::Relaxed) {
            0 => 0.0,
            due => now_ms().saturating_sub(due) as f64 / 1000.0,
        });
        Self {
            submitted: submits.with(&["new"]),
            repeated: submits.with(&["repeated"]),
            redriven: submits.with(&["redriven"]),
            done: ended.with(&["done"]),
            dead: ended.with(&["dead"]),
            cancelled: ended.with(&["cancelled"]),
            succeeded: attempts.with(&["succeeded"]),
            failed: attempts.with(&["failed"]),
            interrupted: attempts.with(&["interrupted"]),
            not_started: attempts.with(&["not_started"]),
            figures,
        }
    }

    /// What there is now.
    async fn measure(&self, queue: &dyn Queue) -> Result<(), stoker_queue::Error> {
        let backlog = queue.backlog().await?;
        let sum = |of: fn(&stoker_queue::Backlog) -> u64| backlog.iter().map(of).sum::<u64>();
        self.figures.queued.store(sum(|b| b.queued), Ordering::Relaxed);
        self.figures.running.store(sum(|b| b.running), Ordering::Relaxed);
        let oldest = backlog.iter().filter_map(|b| b.oldest_due_ms).min();
        self.figures.oldest_due_ms.store(oldest.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}

impl Later {
    /// For those who watch: what there is, as the queue told last, and what was done here.
    pub fn activity(&self) -> Option<v1::LaterActivity> {
        self.queue.as_ref()?;
        let Counts { submitted, done, dead, cancelled, figures, .. } = &self.counts;
        let oldest = match figures.oldest_due_ms.load(Ordering::Relaxed) {
            0 => None,
            due => Some(convert::to_duration(Duration::from_millis(now_ms().saturating_sub(due)))),
        };
        Some(v1::LaterActivity {
            queued: figures.queued.load(Ordering::Relaxed),
            running: figures.running.load(Ordering::Relaxed),
            oldest,
            submitted: submitted.get(),
            ended: done.get() + dead.get() + cancelled.get(),
            dead: dead.get(),
        })
    }

    /// With the queue that this balancer has, if it has one.
    pub fn new(queue: Option<Arc<dyn Queue>>, metrics: &Metrics) -> Self {
        Self { queue, counts: Counts::new(metrics) }
    }

    fn queue(&self) -> Result<&Arc<dyn Queue>, Error> {
        self.queue.as_ref().ok_or_else(|| {
            let text = "this balancer keeps no calls for later: start it with --later-queue, a directory or the URL \
                        of a NATS server; or leave out what makes the call asynchronous";
            Error::new(Code::Unavailable, text)
        })
    }

    /// Keeps a call. Once this returns it will be made. `id` becomes its id, unless its key is known.
    pub async fn submit(
        &self,
        front: &Front,
        id: CallId,
        submit: Submit,
        watch: &mut Watch,
    ) -> Result<Accepted, Error> {
        let queue = self.queue()?;
        let Submit { function, qualifier, head, mut input, key, delay } = submit;
        let spec = &function.spec;
        watch.function(&function);
        // Both are given back when the call is kept: what it costs later is not its caller's any more.
        let share = front.guard.enter(watch.caller(), spec.name.app())?;
        let admitted = front.admission.enter(watch.caller())?.sharing(share);
        if let Some(meter) = admitted.meter() {
            input.count(meter);
        }
        let head = convert::to_request_head(convert::request_head(head)?);
        if key.len() > MAX_KEY {
            let text = format!("the idempotency key has {} bytes, at most {MAX_KEY} are allowed", key.len());
            return Err(Error::new(Code::InvalidRequest, text));
        }
        let delay = delay.unwrap_or(Duration::from_millis(spec.later.delay_ms));
        if delay > Duration::from_millis(MAX_AGE_MS) {
            let most = format_duration(Duration::from_millis(MAX_AGE_MS));
            return Err(Error::new(Code::InvalidRequest, format!("a call is delayed by {most} at most")));
        }
        let id = match key.is_empty() {
            true => id.to_string(),
            false => derived_id("key", spec.name.as_str(), &key),
        };
        let failed = |error: stoker_queue::Error| Error::from(&error);
        if !key.is_empty() && queue.get(&id).await.map_err(failed)?.is_some() {
            self.counts.repeated.add_one();
            return Ok(Accepted { id, repeated: true });
        }
        // Of two submits with one key neither may have the body of the other.
        let own = !key.is_empty();
        let name = if own { Call::new_body_name(&id) } else { id.clone() };
        let body = keep(queue, &name, input, MAX_BODY.min(front.dispatch.most(spec))).await?;
        let now = now_ms();
        let mut sending = watch.sends(spec.name.as_str(), &id);
        let trace = sending.context();
        let call = Call {
            id: id.clone(),
            function: spec.name.as_str().to_owned(),
            qualifier,
            head: Some(head),
            body: body.inline,
            body_bytes: body.bytes,
            aside: body.aside,
            body_name: if own && body.aside { name.clone() } else { String::new() },
            submitted_ms: now,
            due_ms: now.saturating_add(delay.as_millis() as u64),
            key,
            trace_parent: trace.parent,
            trace_state: trace.state,
            caller: watch.caller().name().to_owned(),
            ..Call::default()
        };
        let submitted = queue.submit(call).await;
        // Whether it was accepted is not known where there was no answer.
        let refused = matches!(submitted, Err(stoker_queue::Error::Full(_)));
        if body.aside && (refused || own && matches!(submitted, Ok(false))) {
            queue.drop_body(&name).await;
        }
        let repeated = match submitted {
            Ok(true) => {
                self.counts.submitted.add_one();
                false
            }
            Ok(false) => {
                self.counts.repeated.add_one();
                true
            }
            Err(error) => {
                sending.fail(error.to_string());
                let mut told = failed(error.clone());
                if matches!(error, stoker_queue::Error::Unavailable(_)) {
                    told.message.push_str("; whether it has the call is not known: submit it again with the same idempotency key");
                    told.retry = Retry::Never;
                }
                return Err(told);
            }
        };
        Ok(Accepted { id, repeated })
    }

    fn known(&self, front: &Front, watch: &Watch, id: &str, kept: Option<Kept>) -> Result<Kept, Error> {
        let none = || {
            let text = format!(
                "there is no call `{id}`: it never was for later, or its result is not kept any more"
            );
            Error::new(Code::NotFound, text)
        };
        let kept = kept.ok_or_else(none)?;
        let app = kept.call.function.split('/').next().unwrap_or_default();
        front.guard.allow(watch.caller(), stoker_runtime::auth::Permission::Invoke, app)?;
        Ok(kept)
    }

    /// A call.
    pub async fn get(&self, front: &Front, watch: &Watch, id: &str) -> Result<Kept, Error> {
        let id = parsed(id)?;
        let kept = self.queue()?.get(&id).await.map_err(|error| Error::from(&error))?;
        self.known(front, watch, &id, kept)
    }

    /// A call, once it has ended.
    pub async fn wait(&self, front: &Front, watch: &Watch, id: &str) -> Result<Kept, Error> {
        let id = parsed(id)?;
        // First whether it is one that may be waited for.
        self.get(front, watch, &id).await?;
        let kept = tokio::select! {
            kept = self.queue()?.wait(&id) => kept.map_err(|error| Error::from(&error))?,
            () = front.stopping.cancelled() => return Err(crate::front::stopping()),
        };
        self.known(front, watch, &id, kept)
    }

    /// Cancels a call that has not ended.
    pub async fn cancel(&self, front: &Front, watch: &Watch, id: &str) -> Result<Kept, Error> {
        let id = parsed(id)?;
        let before = self.get(front, watch, &id).await?;
        let keep = now_ms().saturating_add(CANCELLED_KEPT.as_millis() as u64);
        let kept = self.queue()?.cancel(&id, keep).await.map_err(|error| Error::from(&error))?;
        let kept = self.known(front, watch, &id, kept)?;
        if !before.progress.is().is_end() && kept.progress.is() == stoker_queue::State::Cancelled {
            self.counts.cancelled.add_one();
        }
        Ok(kept)
    }

    /// Has a call wait again that was given up; whether that was done.
    pub async fn redrive(&self, front: &Front, watch: &Watch, id: &str) -> Result<(Kept, bool), Error> {
        let id = parsed(id)?;
        self.get(front, watch, &id).await?;
        let done = self.queue()?.redrive(&id).await.map_err(|error| Error::from(&error))?;
        let redriven = done.as_ref().is_some_and(|(_, redriven)| *redriven);
        let kept = self.known(front, watch, &id, done.map(|(kept, _)| kept))?;
        if redriven {
            self.counts.redriven.add_one();
        }
        Ok((kept, redriven))
    }

    /// Calls, the newest first.
    pub async fn list(&self, filter: Filter) -> Result<Page, Error> {
        self.queue()?.list(filter).await.map_err(|error| Error::from(&error))
    }

    /// The body of an answer, wherever it is kept.
    pub async fn answer(&self, kept: &Kept) -> Result<Bytes, Error> {
        let Some(answer) = &kept.answer else { return Ok(Bytes::new()) };
        if !answer.aside {
            return Ok(answer.body.clone());
        }
        let name = Call::answer_name(&kept.call.id);
        let mut pieces = self.queue()?.body(&name).await.map_err(|error| Error::from(&error))?;
        let mut body = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece?);
        }
        Ok(body.freeze())
    }

    /// Ends the queue, once nothing uses it any more.
    pub async fn stop(&self) {
        if let Some(queue) = &self.queue {
            queue.stop().await;
        }
    }
}

/// An id in the form in which it is kept.
fn parsed(id: &str) -> Result<String, Error> {
    let parsed = CallId::parse(id).map(|id| id.to_string());
    parsed.ok_or_else(|| {
        let shown: String = id.chars().take(64).collect();
        Error::new(Code::InvalidRequest, format!("call_id: {shown:?} is none: it has 32 hexadecimal digits"))
    })
}

struct Body {
    inline: Bytes,
    bytes: u64,
    aside: bool,
}

/// Reads a request's body: what is small stays with its call, what is large goes through to where such bodies are kept.
async fn keep(queue: &Arc<dyn Queue>, name: &str, input: Input, most: u64) -> Result<Body, Error> {
    let too_large = move || {
        let text =
            format!("the body of a call for later has more than {most} bytes, which is the limit here");
        Error::new(Code::RequestTooLarge, text)
    };
    let Input { first, rest, .. } = input;
    let Some(mut rest) = rest else {
        let bytes = first.len() as u64;
        return if bytes > most { Err(too_large()) } else { Ok(Body { inline: first, bytes, aside: false }) };
    };
    let mut begun = BytesMut::from(first.as_ref());
    while begun.len() <= INLINE {
        match rest.next().await {
            Some(piece) => begun.extend_from_slice(&piece?),
            None => {
                let bytes = begun.len() as u64;
                return if bytes > most {
                    Err(too_large())
                } else {
                    Ok(Body { inline: begun.freeze(), bytes, aside: false })
                };
            }
        }
    }
    let mut length = 0u64;
    let begun = futures_util::stream::once(std::future::ready(Ok(begun.freeze())));
    let pieces: Pieces = Box::pin(begun.chain(rest).map(move |piece| {
        let piece = piece?;
        length += piece.len() as u64;
        if length > most { Err(too_large()) } else { Ok(piece) }
    }));
    let bytes = queue.put_body(name, pieces).await?;
    Ok(Body { inline: Bytes::new(), bytes, aside: true })
}

/// A body that was kept, as a call's input.
async fn input(queue: &Arc<dyn Queue>, call: &Call) -> Result<Input, Error> {
    let Some(name) = call.body_name() else {
        return Ok(Input::pieces(split(call.body.clone()), None));
    };
    let pieces = queue.body(name).await.map_err(|error| Error::from(&error))?;
    crate::front::http::begin(pieces, false).await
}

/// In pieces of the size in which bodies travel.
fn split(mut body: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(body.len() / PIECE + 1);
    while body.len() > PIECE {
        pieces.push(body.split_to(PIECE));
    }
    pieces.push(body);
    pieces
}

/// Until when a call is kept that ended now.
fn keep_until(spec: &FunctionSpec, call: &Call, at_least: Duration) -> u64 {
    let told = Duration::from_millis(spec.later.result_ttl_ms);
    let for_key = if call.key.is_empty() { Duration::ZERO } else { stoker_queue::KEY_KEPT };
    now_ms().saturating_add(told.max(for_key).max(at_least).as_millis() as u64)
}
