//! A call in a container: the way in, whom it asks there and what is told of that, and the way back of the container.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use stoker_core::call::{Intent, Timings};
use stoker_core::capacity::Warmth;
use stoker_core::{Code, Error};
use stoker_format::{Codec, Request};
use stoker_proto::convert;
use stoker_proto::runner::v1 as wire;
use stoker_runtime::telemetry::{SpanKind, Spot, names};

use super::answer::Answer;
use super::carry::{Ended, Kept, Turn, by_pipes, by_process, by_socket};
use super::converse::{Load, Talk};
use super::invoke::{self, Invoke};
use super::{Call, Lost};
use crate::container::LaunchError;
use crate::container::channel::{Channel, Unfit};
use crate::observe::{self, Trace};
use crate::pool::Lease;

/// What goes in.
struct In {
    /// What was there of the body when the call first reached a container, and whether that is all.
    first: Bytes,
    complete: bool,
    /// What the function may take, once it has the input.
    timeout: Duration,
}

/// Why a container does not serve the call, which is as before.
pub enum Gone {
    /// It is gone; another may do.
    Spoiled {
        /// No call ran in it: what spoiled it was no call's doing.
        fresh: bool,
    },
    Failed(LaunchError),
}

impl Call<'_> {
    /// Wakes the container of a lease and proves that it takes a call. `blamed`: one like it was spoiled before its first call already.
    pub async fn open(
        &self,
        mut lease: Lease,
        timings: &mut Timings,
        blamed: bool,
    ) -> Result<(Lease, Channel), Gone> {
        let container = lease.container.clone();
        match container.thaw().await {
            Ok(took) => timings.thaw = took,
            Err(error) => {
                _ = lease.finish(false, None);
                return Err(Gone::Failed(LaunchError::Platform(format!("thaw a container: {error}"))));
            }
        }
        match container.open(lease.connection.take()).await {
            Ok(channel) => Ok((lease, channel)),
            Err(unfit) => Err(Box::pin(self.spoiled(lease, unfit, blamed)).await),
        }
    }

    /// Ends a container that is of no use to the call.
    async fn spoiled(&self, lease: Lease, unfit: Unfit, blamed: bool) -> Gone {
        let container = lease.container.clone();
        tracing::info!(container = %container.id, ?unfit, "a container takes no call, and goes");
        let (fresh, cold) = (lease.fresh, lease.cold);
        let failed = match unfit {
            Unfit::System(why) => Some(LaunchError::Platform(why)),
            // What we ended ourselves is no crash.
            _ if self.shared.pools.stopping() => Some(LaunchError::Stopping),
            // One that nobody had used yet, and that was launched just now: so will be the next.
            Unfit::Noise(what) if fresh && (cold || blamed) => {
                let text = format!("the function wrote before it was called: {what}");
                let error = Error::new(Code::FunctionInitFailed, text);
                Some(LaunchError::Function(error.log_tail(container.log.tail(None))))
            }
            Unfit::Closed(what) if fresh && (cold || blamed) => Some(match container.exit_soon().await {
                Some(exit) => container.ended_early(exit).await,
                None => {
                    let text = format!("the function closed its {what} before it was called");
                    let error = Error::new(Code::FunctionInitFailed, text);
                    LaunchError::Function(error.log_tail(container.log.tail(None)))
                }
            }),
            Unfit::Noise(_) | Unfit::Closed(_) => None,
        };
        _ = lease.finish(false, None);
        failed.map_or(Gone::Spoiled { fresh }, Gone::Failed)
    }

    /// The span of the execution, whose context the function is told.
    fn execution(&self, lease: &Lease) -> Trace {
        let (offer, mut trace) = (self.offer, self.trace.child(names::EXECUTION, SpanKind::Client));
        trace.note(|span| {
            span.add(lease.container.seen.of_execution());
            span.set(names::FAAS_INVOCATION, offer.id);
            let by_http = matches!(offer.head.intent, Intent::HttpRequest);
            span.add(observe::started(lease.cold, by_http));
            if lease.cold {
                span.set(names::COLD_CAUSE, lease.why.label());
            }
            if let Some(revision) = &offer.revision {
                span.set(names::FAAS_VERSION, &**revision);
            }
        });
        trace
    }

    /// What the way to the container cost.
    fn arrived(&mut self, lease: &Lease, timings: &mut Timings) {
        let meters = self.shared.observer.meters.as_ref();
        // Of a launch for another call, which had found a container before it was over.
        self.shared.observer.launched(false, &lease.container.launched, &lease.container.seen);
        if lease.cold {
            let launched = lease.container.launched;
            (timings.cold, timings.image, timings.create, timings.start, timings.init) =
                (Some(lease.why), launched.image, launched.create, launched.start, launched.init);
            if let Some(meters) = meters {
                meters.cold_start(&self.offer.spec.name, lease.why);
            }
        }
        if !timings.thaw.is_zero() {
            self.trace.thawed(timings.thaw, &lease.container.seen);
            if let Some(meters) = meters {
                meters.thaws.add_one();
            }
        }
    }

    /// Runs the call in a container that takes it. Gives what came of the container where the call is as before.
    pub async fn serve(
        &mut self,
        mut lease: Lease,
        channel: Channel,
        mut timings: Timings,
        blamed: bool,
    ) -> Result<Option<Gone>, Lost> {
        let (strand, offer) = (self.strand, self.offer);
        let container = lease.container.clone();
        self.arrived(&lease, &mut timings);
        let mut execution = self.execution(&lease);
        let mut answer = Answer::new();
        let turn = self.ask(&mut lease, channel, &execution, &mut answer).await?;
        let Ended { result, keep } = match turn {
            Turn::Ended(ended) => ended,
            Turn::Untaken(unfit) => {
                execution.note(|span| span.fail("the container took nothing of the call"));
                return Ok(Some(Box::pin(self.spoiled(lease, unfit, blamed)).await));
            }
            Turn::Unstarted(error) => {
                drop(lease);
                Box::pin(self.launch_failed(error)).await?;
                return Ok(None);
            }
        };
        let result = self.executed(result, &answer, &mut timings, &mut execution);
        if matches!(keep, None | Some(Kept::Again(_))) {
            // The last word on it; one that lives on is looked at by its keeper, since a look costs as much as a small call.
            container.look().await;
        }
        let usage = container.used().map(|used| wire::Usage {
            memory_peak: used.memory_peak,
            cpu_us: u64::try_from(used.cpu.as_micros()).unwrap_or(u64::MAX),
        });
        let (again, warmth) = self.give_back(lease, keep);
        let mut finished = wire::Finished {
            call: strand.number,
            usage,
            timings: Some(convert::to_timings(&timings)),
            container: container.id.as_str().to_owned(),
            warmth: Some(convert::to_warmth(&offer.digest, warmth)),
            ..Default::default()
        };
        let result = match result {
            Ok(()) => answer.rest(strand, offer).await?,
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => {
                finished.head = answer.head.take().map(convert::to_response_head);
                finished.body = answer.body.whole();
                finished.trailers = convert::to_trailers(answer.trailers);
            }
            Err(error) => finished.error = Some(convert::to_call_error(error)),
        }
        self.finish(finished, result.err().as_ref()).await?;
        if let Some((lease, reason)) = again {
            let ready = !self.shared.pools.drains() && container.start_again(reason).await;
            _ = lease.finish(ready, None);
        }
        Ok(None)
    }

    /// Asks the function, by whatever leads to it. `execution`: the span of that.
    async fn ask(
        &mut self,
        lease: &mut Lease,
        channel: Channel,
        execution: &Trace,
        answer: &mut Answer,
    ) -> Result<Turn, Lost> {
        let (strand, offer) = (self.strand, self.offer);
        let container = lease.container.clone();
        let spot = || execution.spot().or_else(|| self.trace.spot()).or_else(|| Spot::of(&offer.trace));
        container.log.traced(offer.id, spot);
        let told = execution.context().or_else(|| self.trace.context());
        let trace = told.as_ref().unwrap_or(&offer.trace);
        let (first, complete) = self.first.get_or_insert_with(|| strand.first_body()).clone();
        let Some(codec) = &container.codec else {
            lease.touch();
            let invoke = Invoke { strand, offer, trace, first, complete, cold: lease.cold };
            let (result, after) = Box::pin(invoke.run(&container, answer)).await?;
            let keep = match after {
                invoke::After::Keep => Some(Kept::Nothing),
                invoke::After::Again(reason) => Some(Kept::Again(reason)),
                invoke::After::End => None,
            };
            return Ok(Turn::Ended(Ended { result, keep }));
        };
        // One that has not shown yet that it has come up may still have to.
        let grace = match &channel {
            Channel::Pipes(pipes) if !pipes.awake => offer.spec.init_timeout(),
            _ => Duration::ZERO,
        };
        let timeout = offer.spec.timeout() + grace;
        let deadline = SystemTime::now() + timeout.min(offer.deadline.remaining());
        let length = if complete { Some(first.len() as u64) } else { offer.length };
        let request = Request { call: offer.id, head: &offer.head, deadline, trace, length };
        let input = In { first, complete, timeout };
        self.talk(codec, &request, input, lease, channel, answer).await
    }

    /// Notes how the function did; gives its result.
    fn executed(
        &self,
        result: Result<(), Error>,
        answer: &Answer,
        timings: &mut Timings,
        execution: &mut Trace,
    ) -> Result<(), Error> {
        timings.start += answer.starting;
        timings.first_byte = answer.first_byte;
        timings.execution = answer.started.elapsed();
        if let Some(meters) = &self.shared.observer.meters {
            meters.executed(&self.offer.spec.name, timings.execution, execution.exemplar());
        }
        // What we ended ourselves is no crash.
        let result = result.map_err(|error| {
            let ended = matches!(error.code, Code::FunctionCrashed | Code::FunctionInvalidResponse);
            match ended && self.shared.pools.stopping() {
                true => Error::new(Code::RunnerLost, "the runner stopped while the function ran")
                    .may_have_started(),
                false => error,
            }
        });
        if let Err(error) = &result {
            execution.exception(error);
            execution.failed(error.code, &error.message, false);
        }
        execution.note(|span| {
            span.since(answer.started);
            span.end_at(answer.started + timings.execution);
        });
        result
    }

    /// Gives the container back, or keeps it where its function is to be started again, for the reason that is with it; and how warm its version is then.
    fn give_back(&self, lease: Lease, keep: Option<Kept>) -> (Option<(Lease, &'static str)>, Warmth) {
        let (stays, connection) = match keep {
            // Its call need not wait for that.
            Some(Kept::Again(reason)) => {
                return (Some((lease, reason)), self.shared.pools.warmth(&self.offer.digest));
            }
            None => (false, None),
            Some(Kept::Nothing) => (true, None),
            Some(Kept::Connection(stream)) => (true, Some(stream)),
            Some(Kept::Pipes(pipes)) => {
                lease.container.give_back(pipes);
                (true, None)
            }
        };
        (None, lease.finish(stays, connection))
    }

    /// The call as a conversation in the format of its function.
    async fn talk(
        &self,
        codec: &Codec,
        request: &Request<'_>,
        input: In,
        lease: &mut Lease,
        channel: Channel,
        answer: &mut Answer,
    ) -> Result<Turn, Lost> {
        let (strand, offer, container) = (self.strand, self.offer, lease.container.clone());
        let In { first, complete, timeout } = input;
        let mut exchange = codec.begin(request);
        let mut load = Load::default();
        load.head(&mut exchange, request);
        load.body(&mut exchange, first, complete);
        if let Some(fault) = exchange.fault() {
            // The container has seen nothing of it, and takes the next.
            let keep = match channel {
                Channel::Process | Channel::Api => Kept::Nothing,
                Channel::Socket(stream) => Kept::Connection(stream),
                Channel::Pipes(pipes) => Kept::Pipes(pipes),
            };
            let result = Err(Error::new(fault.code, fault.message.clone()));
            return Ok(Turn::Ended(Ended { result, keep: Some(keep) }));
        }
        // A session that is lost from here on drops the lease, which ends the container: it runs what nobody wants.
        lease.touch();
        let talk =
            Talk { strand, offer, exchange: exchange.into(), timeout, complete, clock: Mutex::default() };
        let turn = match channel {
            Channel::Socket(stream) => by_socket(&container, &talk, answer, load, stream).await?,
            Channel::Pipes(pipes) => by_pipes(&container, &talk, answer, load, pipes).await?,
            Channel::Process | Channel::Api => {
                let env = codec.environment(request);
                Box::pin(by_process(&container, &talk, answer, load, env)).await?
            }
        };
        let exchange = talk.exchange.into_inner().unwrap_or_else(PoisonError::into_inner);
        let lines = exchange.report().map(|report| report.lines()).unwrap_or_default();
        lines.into_iter().for_each(|text| container.log.note(offer.id, text));
        Ok(turn)
    }
}
