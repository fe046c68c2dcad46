//! One call, in its one task: from the offer to its one outcome.
//!
//! The task holds what a warm call needs. What few calls meet (a wait, a refusal, a process of its own) is held behind a pointer: every call
//! pays for the size of its task.

mod answer;
mod carry;
mod converse;
mod invoke;
mod serve;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_core::call::{RequestHead, Timings, TraceContext};
use stoker_core::function::{Digest, Format, FunctionSpec};
use stoker_core::{CallId, Deadline, Error, Refusal};
use stoker_proto::convert;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use stoker_runtime::telemetry::{SpanKind, names};

use super::Shared;
use super::state::Event;
use super::strand::{Lost, Strand, Word};
use crate::container::LaunchError;
use crate::observe::Trace;
use crate::pool::{Acquired, Asker, Lease, Refused, Ticket};
use serve::Gone;

/// A wait that is over so soon is not told: the balancer could do nothing with it, and each of many calls at once would pay three frames
/// and a way there and back.
const UNTOLD: Duration = Duration::from_millis(5);

/// What the balancer offered, checked.
pub struct Offer {
    pub id: CallId,
    pub digest: Digest,
    pub spec: Arc<FunctionSpec>,
    /// Which of its function's revisions that is, where that is known.
    pub revision: Option<Arc<str>>,
    pub asker: Asker,
    pub head: RequestHead,
    pub trace: TraceContext,
    pub deadline: Deadline,
    /// Bytes of its body, where all of it is to follow.
    pub length: Option<u64>,
    pub arrived: Instant,
}

/// What a call is handled with.
struct Call<'a> {
    strand: &'a Strand,
    offer: &'a Offer,
    shared: &'a Shared,
    /// Its span here.
    trace: Trace,
    /// It waited, and the balancer said that it may start: that is not asked again.
    permitted: bool,
    /// A container had it.
    begun: bool,
    /// It is refused since nobody is let into the line any more.
    line_full: bool,
    /// What was there of the body when it first reached a container, and whether that is all.
    first: Option<(Bytes, bool)>,
}

/// Runs it. Ends when the call has its outcome, or the session is lost and the container is taken care of.
pub async fn run(strand: Arc<Strand>, offer: Offer, shared: Arc<Shared>) {
    let mut trace = shared.observer.call(&offer.trace, offer.arrived);
    trace.note(|span| {
        span.set(names::FAAS_NAME, offer.spec.name.as_str());
    });
    let mut call = Call {
        strand: &strand,
        offer: &offer,
        shared: &shared,
        trace,
        permitted: false,
        begun: false,
        line_full: false,
        first: None,
    };
    if let Err(Lost) = call.drive().await {
        call.trace.note(|span| span.fail("the session ended before the call"));
        tracing::debug!(call_id = %offer.id, "the session ended before the call");
    }
}

impl Call<'_> {
    async fn drive(&mut self) -> Result<(), Lost> {
        let (strand, offer, pools) = (self.strand, self.offer, &self.shared.pools);
        // Left when the outcome has been said: a drain waits for that.
        let Some(_pass) = pools.gate.enter() else {
            return Box::pin(self.refuse(Refusal::Draining, "the runner is stopping".to_owned(), None)).await;
        };
        if pools.is_cordoned() {
            return Box::pin(self.refuse(Refusal::Draining, "the runner was drained".to_owned(), None)).await;
        }
        let remaining = offer.deadline.remaining();
        if remaining.is_zero() {
            return Box::pin(self.refuse(
                Refusal::Expired,
                "the deadline had passed when it came".to_owned(),
                None,
            ))
            .await;
        }
        let mut timings = Timings::default();
        // Containers that turn out to be spoiled go, and the call takes another: nothing of it has reached one.
        let mut blamed = false;
        loop {
            let Some(lease) = self.place(&mut timings).await? else { return Ok(()) };
            let gone = match self.open(lease, &mut timings, blamed).await {
                Err(gone) => gone,
                Ok((lease, channel)) => {
                    // Whatever the balancer said of its start, it has started now.
                    if !std::mem::replace(&mut self.begun, true) {
                        strand.step(Event::Begin);
                    }
                    match self.serve(lease, channel, timings, blamed).await? {
                        None => return Ok(()),
                        Some(gone) => gone,
                    }
                }
            };
            match gone {
                Gone::Spoiled { fresh } => blamed |= fresh,
                Gone::Failed(error) => return Box::pin(self.launch_failed(error)).await,
            }
        }
    }

    /// A container. `None` if the call had its outcome.
    async fn place(&mut self, timings: &mut Timings) -> Result<Option<Lease>, Lost> {
        let (offer, pools) = (self.offer, &self.shared.pools);
        match pools.acquire(offer.digest, &offer.spec, offer.id, offer.asker, offer.deadline.remaining()) {
            Acquired::Now(lease) => Ok(Some(lease)),
            Acquired::Refused(Refused { reason, detail, retry_after, line_full }) => {
                self.line_full = line_full;
                Box::pin(self.refuse(reason, detail, retry_after)).await?;
                Ok(None)
            }
            Acquired::Wait { ticket, expected } => {
                let lease = Box::pin(self.wait(ticket, expected)).await?;
                timings.wait = offer.arrived.elapsed();
                if let (Some(_), Some(meters)) = (&lease, &self.shared.observer.meters) {
                    meters.waited(timings.wait, self.trace.exemplar());
                }
                Ok(lease)
            }
        }
    }

    /// In the line, and then for the balancer's permission. `None` if the call had its outcome.
    async fn wait(&mut self, ticket: Ticket, expected: Duration) -> Result<Option<Lease>, Lost> {
        let (strand, offer) = (self.strand, self.offer);
        let mut wait = self.trace.child(names::WAIT, SpanKind::Internal);
        let asks = !self.permitted && !self.begun;
        let mut told = false;
        let mut quiet = pin!(tokio::time::sleep(UNTOLD));
        let given = {
            let mut given = pin!(ticket.wait());
            let mut late = pin!(tokio::time::sleep_until(offer.deadline.0.into()));
            loop {
                if asks && !told && (expected > UNTOLD || quiet.is_elapsed()) {
                    told = true;
                    let expected_wait = Some(convert::to_duration(expected));
                    let accepted = wire::Accepted { call: strand.number, expected_wait };
                    strand.say(Event::Accept, Frame::Accepted(accepted)).await?;
                }
                tokio::select! {
                    biased;
                    given = &mut given => break Ok(given),
                    () = &mut quiet, if asks && !told => {}
                    _ = strand.cancelled() => break Err("cancelled while it waited"),
                    () = &mut late => break Err("the deadline passed while it waited"),
                }
            }
        };
        let given = match given {
            Ok(given) => given,
            Err(why) => {
                self.refuse(Refusal::Expired, why.to_owned(), None).await?;
                return Ok(None);
            }
        };
        let lease = match given {
            Ok(lease) => lease,
            Err(error) => {
                wait.launch_failed(&error);
                drop(wait);
                self.launch_failed(error).await?;
                return Ok(None);
            }
        };
        if lease.cold {
            wait.launch(&lease.container.launched, &lease.container.seen);
        }
        drop(wait);
        if !told {
            return Ok(Some(lease));
        }
        strand.say(Event::Ready, Frame::Ready(wire::Ready { call: strand.number })).await?;
        let why = tokio::select! {
            word = strand.word() => match word {
                Word::Start => {
                    self.permitted = true;
                    return Ok(Some(lease));
                }
                Word::Cancelled(_) => "cancelled while it waited",
            },
            () = tokio::time::sleep_until(offer.deadline.0.into()) => "the deadline passed while it waited",
        };
        drop(lease);
        self.refuse(Refusal::Expired, why.to_owned(), None).await?;
        Ok(None)
    }

    /// A promise: nothing of it reached the function.
    async fn refuse(
        &mut self,
        reason: Refusal,
        detail: String,
        retry_after: Option<Duration>,
    ) -> Result<(), Lost> {
        let Shared { pools, report, observer, .. } = self.shared;
        if let Some(meters) = &observer.meters {
            meters.refused(reason);
        }
        self.trace.note(|span| {
            span.set(names::REFUSED, format!("{reason:?}"));
            if reason == Refusal::LaunchFailed {
                span.fail(detail.clone());
            }
        });
        let refused = wire::Refused {
            call: self.strand.number,
            reason: convert::to_refusal(reason).into(),
            detail,
            retry_after: retry_after.map(convert::to_duration),
            warmth: Some(convert::to_warmth(&self.offer.digest, pools.warmth(&self.offer.digest))),
            capacity: Some(convert::to_capacity(&report.now())),
            line_full: self.line_full,
        };
        self.strand.say(Event::Refuse, Frame::Refused(Box::new(refused))).await
    }

    async fn launch_failed(&mut self, error: LaunchError) -> Result<(), Lost> {
        match error {
            LaunchError::Function(error) => {
                let error = match self.offer.spec.format {
                    Format::Lambda => invoke::start_failed(error, self.offer),
                    _ => error,
                };
                let warmth = self.shared.pools.warmth(&self.offer.digest);
                let finished = wire::Finished {
                    call: self.strand.number,
                    error: Some(convert::to_call_error(&error)),
                    timings: Some(convert::to_timings(&Timings {
                        wait: self.offer.arrived.elapsed(),
                        ..Default::default()
                    })),
                    warmth: Some(convert::to_warmth(&self.offer.digest, warmth)),
                    ..Default::default()
                };
                self.finish(finished, Some(&error)).await
            }
            LaunchError::Platform(detail) => self.refuse(Refusal::LaunchFailed, detail, None).await,
            LaunchError::Impossible(detail) => self.refuse(Refusal::TooLarge, detail, None).await,
            LaunchError::Full { retry_after } => {
                self.refuse(Refusal::Full, error.to_string(), Some(retry_after)).await
            }
            LaunchError::Late(detail) => self.refuse(Refusal::Expired, detail, None).await,
            LaunchError::Stopping => self.refuse(Refusal::Draining, error.to_string(), None).await,
        }
    }

    /// The one outcome of a call that was not refused.
    async fn finish(&mut self, finished: wire::Finished, error: Option<&Error>) -> Result<(), Lost> {
        if let Some(meters) = &self.shared.observer.meters {
            meters.finished(&self.offer.spec.name, error.map(|error| error.code));
        }
        if let Some(error) = error {
            self.trace.failed(error.code, &error.message, true);
        }
        self.strand.say(Event::Finish, Frame::Finished(Box::new(finished))).await
    }
}
