//! One session: reads the balancer's frames and hands each to its call. Ends with the stream, with a violation, or when the
//! runner stops; whatever ends it, every call on it is cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::call::{CHUNK, TraceContext};
use stoker_core::function::{Digest, FunctionSpec};
use stoker_core::{CallId, Deadline, Refusal, RunnerState};
use stoker_policy::placement;
use stoker_proto::frames::Decoded;
use stoker_proto::runner::v1::{self as wire, engage_request::Frame, engage_response};
use stoker_proto::{MAX_DEFINED, MAX_KEPT, OLDEST_SESSION_VERSION, SESSION_VERSION, convert};
use tokio::sync::Notify;
use tonic::Status;
use tonic::body::Body;

use super::Shared;
use super::call::{self, Offer};
use super::open::Place;
use super::state::Event;
use super::strand::{Outbox, Strand};
use crate::pool::Asker;

/// What a balancer wants to be kept ready holds no longer than this without being said again.
const KEPT_FOR: Duration = Duration::from_secs(3600);

/// What the balancer sends.
pub type Frames = Decoded<Body, wire::EngageRequest>;

/// For calls that are refused while the runner goes to say so, before their session ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The calls of one session.
#[derive(Default)]
struct Calls {
    open: Mutex<Strands>,
    /// The last one has ended, where somebody waits for that.
    none: Notify,
}

#[derive(Default)]
struct Strands {
    by_number: HashMap<u64, Arc<Strand>>,
    awaited: bool,
}

impl Calls {
    fn strands(&self) -> MutexGuard<'_, Strands> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, call: u64) {
        let mut strands = self.strands();
        strands.by_number.remove(&call);
        if strands.awaited && strands.by_number.is_empty() {
            self.none.notify_one();
        }
    }

    /// Waits until all have ended. No other may come meanwhile.
    async fn end(&self) {
        let open = {
            let mut strands = self.strands();
            strands.awaited = true;
            !strands.by_number.is_empty()
        };
        if open {
            self.none.notified().await;
        }
    }
}

/// A function's version with its revision, or why this runner cannot run it: a balancer of a later release may say more than it understands, and the calls of other
/// functions go on all the same.
type Defined = Result<(Arc<FunctionSpec>, Option<Arc<str>>), Arc<str>>;

struct Session {
    shared: Arc<Shared>,
    out: Outbox,
    calls: Arc<Calls>,
    defined: HashMap<Digest, Defined>,
    newest: Option<u64>,
    /// Who is at the other end; the same on all its sessions.
    balancer: u64,
    /// Bytes of each answer that may be on their way there.
    window: u32,
    /// Whether it may bring a call still.
    place: Option<Place>,
    /// How often it was told that the runner drains, and whether that holds.
    drainings: u64,
    drains: bool,
}

/// Serves a session to its end.
pub async fn run(shared: Arc<Shared>, mut frames: Frames, out: Outbox) {
    let mut session = Session {
        shared: shared.clone(),
        out: out.clone(),
        calls: Arc::default(),
        defined: HashMap::new(),
        newest: None,
        balancer: 0,
        window: 0,
        place: None,
        drainings: 0,
        drains: false,
    };
    let ended = tokio::select! {
        ended = session.serve(&mut frames) => ended,
        () = shared.over.cancelled() => {
            session.close().await;
            Err(Status::unavailable("the runner stopped"))
        }
    };
    if let Err(status) = ended {
        let (code, reason) = (status.code(), status.message());
        tracing::info!(?code, reason, "a session ended with an error");
        // A balancer that does not read learns it from the end of the stream.
        _ = out.try_send(Err(status));
    }
    let left: Vec<_> = session.calls.strands().by_number.drain().map(|(_, strand)| strand).collect();
    for strand in left {
        strand.cancel(wire::CancelReason::CallerGone);
    }
}

impl Session {
    async fn serve(&mut self, frames: &mut Frames) -> Result<(), Status> {
        self.balancer = self.greet(frames).await?;
        let mut capacity = self.shared.report.watch();
        capacity.mark_changed();
        // What is said as soon as it fits; older news that has not is stale.
        let (mut news, out) = (None, self.out.clone());
        loop {
            tokio::select! {
                frame = frames.message() => match frame? {
                    None => return Ok(()),
                    Some(wire::EngageRequest { frame: Some(frame) }) => self.on(frame)?,
                    // Of a newer balancer.
                    Some(wire::EngageRequest { frame: None }) => {}
                },
                changed = capacity.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    news = Some(capacity.borrow_and_update().clone());
                }
                permits = out.reserve_many(2), if news.is_some() => {
                    let Ok(mut permits) = permits else { return Ok(()) };
                    let (Some(record), Some(permit)) = (news.take(), permits.next()) else { continue };
                    let draining = record.state == RunnerState::Draining;
                    if let Some(place) = self.place.as_mut().filter(|_| !draining) {
                        place.settle(false);
                    }
                    let changed = wire::CapacityChanged { capacity: Some(convert::to_capacity(&record)) };
                    permit.send(frame(engage_response::Frame::Capacity(Box::new(changed))));
                    if let Some(permit) = permits.next().filter(|_| draining && !self.drains) {
                        self.drainings += 1;
                        let (reason, number) = ("the runner takes no new calls".to_owned(), self.drainings);
                        permit.send(frame(engage_response::Frame::Draining(wire::Draining { reason, number })));
                    }
                    self.drains = draining;
                }
            }
        }
    }

    /// Nothing is read any more, and nothing starts. Says which offer was the last that was read, once those that were have had their outcome.
    async fn close(&self) {
        tokio::time::timeout(LAST_WORDS, self.calls.end()).await.ok();
        let closing = wire::Closing { last_offer: self.newest.unwrap_or_default() };
        // A balancer that does not read counts what it has offered since as lost.
        _ = self.out.try_send(frame(engage_response::Frame::Closing(closing)));
    }

    /// The balancer has nothing open on this session.
    fn settled(&mut self, settled: wire::Settled) -> Result<(), Status> {
        let invalid = |text: &str| Status::invalid_argument(format!("Settled: {text}"));
        if settled.draining == 0 || settled.draining > self.drainings {
            return Err(invalid("no such Draining was said"));
        }
        // Of one that was taken back it is late.
        if settled.draining == self.drainings
            && self.drains
            && let Some(place) = &mut self.place
        {
            place.settle(true);
        }
        Ok(())
    }

    /// Gives the balancer's number.
    async fn greet(&mut self, frames: &mut Frames) -> Result<u64, Status> {
        let first = tokio::time::timeout(Duration::from_secs(10), frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(wire::EngageRequest { frame: Some(Frame::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first frame of a session is Hello"));
        };
        let version = hello.version.min(SESSION_VERSION);
        if version < OLDEST_SESSION_VERSION || version < hello.oldest_version {
            return Err(Status::failed_precondition(format!(
                "no common version of the session protocol: the balancer speaks {} to {}, this runner {} to {}",
                hello.oldest_version, hello.version, OLDEST_SESSION_VERSION, SESSION_VERSION
            )));
        }
        let welcome = wire::Welcome {
            version,
            capacity: Some(convert::to_capacity(&self.shared.report.now())),
            software: super::SOFTWARE.to_owned(),
        };
        self.place = Some(self.shared.open.enter(version >= 2));
        self.window = stoker_proto::window(version);
        let sent = self.out.send(frame(engage_response::Frame::Welcome(Box::new(welcome)))).await;
        sent.map_err(|_| Status::cancelled("the balancer left"))?;
        // One of an earlier release has only its name.
        Ok(if hello.instance == 0 { placement::key(hello.balancer.as_bytes()) } else { hello.instance })
    }

    fn on(&mut self, frame: Frame) -> Result<(), Status> {
        match frame {
            Frame::Hello(_) => Err(Status::invalid_argument("a second Hello")),
            Frame::Define(define) => self.define(*define),
            Frame::Offer(offer) => self.offer(offer),
            Frame::Start(start) => self.with(start.call, |strand| strand.start()),
            Frame::Body(body) => self.with(body.call, |strand| {
                strand.receive(body.data, body.last, convert::trailers(body.trailers)?)
            }),
            Frame::Credit(credit) => self.with(credit.call, |strand| strand.credit(credit.bytes)),
            Frame::Cancel(cancel) => self.with(cancel.call, |strand| {
                strand.cancel(cancel.reason());
                Ok(())
            }),
            Frame::Keep(keep) => self.keep(keep),
            Frame::Settled(settled) => self.settled(settled),
            Frame::Ping(ping) => {
                self.pong(ping.number);
                Ok(())
            }
        }
    }

    fn pong(&self, number: u64) {
        // Where there is no room, what fills it is a sign of life.
        _ = self.out.try_send(frame(engage_response::Frame::Pong(wire::Pong { number })));
    }

    fn keep(&self, keep: wire::Keep) -> Result<(), Status> {
        let invalid = |text: &str| Status::invalid_argument(format!("Keep: {text}"));
        if keep.kept.len() > MAX_KEPT {
            return Err(invalid("it names too many functions"));
        }
        let mut targets = Vec::with_capacity(keep.kept.len());
        for kept in keep.kept {
            let digest = Digest::from_slice(&kept.digest).ok_or_else(|| invalid("a digest is 32 bytes"))?;
            let defined = self.defined.get(&digest).ok_or_else(|| invalid("a function was not defined"))?;
            if let Ok((spec, _)) = defined {
                targets.push((digest, spec.clone(), kept.containers));
            }
        }
        let holds = keep.holds.map(convert::duration).unwrap_or_default().min(KEPT_FOR);
        self.shared.pools.keep(self.balancer, targets, holds);
        Ok(())
    }

    /// Frames for calls that are over are late, not wrong.
    fn with(&self, call: u64, run: impl FnOnce(&Strand) -> Result<(), String>) -> Result<(), Status> {
        let strand = self.calls.strands().by_number.get(&call).cloned();
        match strand {
            Some(strand) => {
                run(&strand).map_err(|text| Status::invalid_argument(format!("call {call}: {text}")))
            }
            None if self.newest.is_some_and(|newest| call <= newest) => Ok(()),
            None => Err(Status::invalid_argument(format!("call {call} was never offered"))),
        }
    }

    fn define(&mut self, define: wire::Define) -> Result<(), Status> {
        let invalid = |text: String| Status::invalid_argument(format!("Define: {text}"));
        let digest =
            Digest::from_slice(&define.digest).ok_or_else(|| invalid("a digest is 32 bytes".to_owned()))?;
        let function = define.function.ok_or_else(|| invalid("the function is missing".to_owned()))?;
        // The balancer has checked it: what is wrong with it here is new.
        let understood = match convert::function(function) {
            Ok(spec) if spec.digest() == digest => {
                let revision = (define.revision > 0).then(|| define.revision.to_string().into());
                Ok((Arc::new(spec), revision))
            }
            Ok(_) => Err("it has what this release does not know".to_owned()),
            Err(problems) => {
                let all: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.field, p.text)).collect();
                Err(all.join("; "))
            }
        };
        let defined = understood.map_err(|why| {
            Arc::from(format!(
                "the function is not understood by {}, which is to be upgraded: {why}",
                super::SOFTWARE
            ))
        });
        if self.defined.len() >= MAX_DEFINED && !self.defined.contains_key(&digest) {
            return Err(Status::resource_exhausted(format!(
                "a session defines at most {MAX_DEFINED} functions"
            )));
        }
        self.defined.insert(digest, defined);
        Ok(())
    }

    fn offer(&mut self, offer: wire::Offer) -> Result<(), Status> {
        let arrived = Instant::now();
        let number = offer.call;
        let invalid = |text: &str| Status::invalid_argument(format!("call {number}: {text}"));
        if self.newest.is_some_and(|newest| number <= newest) {
            return Err(invalid("its number was used before; numbers grow"));
        }
        if self.place.as_ref().is_some_and(Place::is_settled) {
            return Err(invalid("it was offered after Settled"));
        }
        let id = CallId::from_slice(&offer.call_id).ok_or_else(|| invalid("a call id is 16 bytes"))?;
        let digest = Digest::from_slice(&offer.digest).ok_or_else(|| invalid("a digest is 32 bytes"))?;
        let defined = self.defined.get(&digest).cloned();
        let defined = defined.ok_or_else(|| invalid("its function was not defined"))?;
        if offer.body.len() > CHUNK {
            return Err(invalid("the first piece of its body is too large"));
        }
        self.newest = Some(number);
        let strand =
            Strand::new(number, self.window, self.out.clone(), offer.body, offer.complete, offer.length);
        let strand = Arc::new(strand);
        let (spec, revision) = match defined {
            Ok(understood) => understood,
            Err(why) => {
                let refused = wire::Refused {
                    call: number,
                    reason: convert::to_refusal(Refusal::TooLarge).into(),
                    detail: why.to_string(),
                    ..Default::default()
                };
                self.shared.tasks.spawn(async move {
                    _ = strand.say(Event::Refuse, engage_response::Frame::Refused(Box::new(refused))).await;
                });
                return Ok(());
            }
        };
        let head = match convert::request_head(offer.head.unwrap_or_default()) {
            Ok(head) => head,
            Err(error) => {
                // The caller's mistake, not the balancer's: the call ends, the session goes on.
                let finished = wire::Finished {
                    call: number,
                    error: Some(convert::to_call_error(&error)),
                    ..Default::default()
                };
                self.shared.tasks.spawn(async move {
                    _ = strand.say(Event::Finish, engage_response::Frame::Finished(Box::new(finished))).await;
                });
                return Ok(());
            }
        };
        self.calls.strands().by_number.insert(number, strand.clone());
        let offer = Offer {
            id,
            digest,
            spec,
            revision,
            asker: Asker { balancer: self.balancer, waited: offer.waited, only_if_idle: offer.only_if_idle },
            head,
            trace: TraceContext { parent: offer.traceparent, state: offer.tracestate },
            deadline: Deadline::after(Duration::from_millis(offer.remaining_ms)),
            length: offer.length,
            arrived,
        };
        let (shared, calls) = (self.shared.clone(), self.calls.clone());
        // Behind a pointer: on its way into a task what is spawned is copied several times, and this is large.
        self.shared.tasks.spawn(Box::pin(async move {
            call::run(strand, offer, shared).await;
            calls.ended(number);
        }));
        Ok(())
    }
}

fn frame(frame: engage_response::Frame) -> Result<wire::EngageResponse, Status> {
    Ok(wire::EngageResponse { frame: Some(frame) })
}
