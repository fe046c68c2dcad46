//! One attempt of a call for later, and what becomes of the call: it is done, it is made again after a while, or it is given up.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use stoker_core::backoff::{Backoff, split_mix};
use stoker_core::call::TraceContext;
use stoker_core::error::{Blame, Code, Error};
use stoker_core::function::FunctionSpec;
use stoker_core::ids::CallId;
use stoker_core::later::Later as Policy;
use stoker_core::moment::now_ms;
use stoker_core::units::format_duration;
use stoker_proto::convert;
use stoker_proto::v1::CallError;
use stoker_queue::{Answer, Call, End, INLINE, Progress, State, Taken, Ticket};

use super::worker::{Cancel, Maker};
use super::{MAX_ANSWER, input, keep_until, letters};
use crate::auth::Caller;
use crate::observe::{Attempt, Watch};

/// A call that could not be started is tried again after so long, and twice that, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Of each text that is kept of a failure.
const SAID: usize = 1024;

/// What the worker learns of the fleet.
pub struct Feedback {
    pub function: String,
    pub start: Start,
}

/// How a call started.
pub enum Start {
    Made {
        waited: Duration,
        cold: bool,
        /// Outside its function, without what it waited.
        way: Duration,
    },
    NoRoom,
    /// Nothing that says anything of the fleet.
    Unknown,
}

/// How an attempt ended, and where it was made.
enum Outcome {
    Succeeded {
        answer: Answer,
        place: Place,
        took: Duration,
    },
    Failed(Error, Place),
    /// It surely did not start.
    NotStarted(Error),
    /// It can never succeed.
    Hopeless(Error),
    /// The balancer stops: it may have run.
    CutOff,
    /// It is not ours any more.
    Lost,
}

/// Where an attempt was made, as far as that is known.
#[derive(Default)]
struct Place {
    /// The one that ran it, or was asked last.
    runner: String,
    /// Of the function.
    revision: u64,
}

/// Makes one attempt. Whatever comes of it is with the queue when this returns, or the call is not ours any more.
pub async fn run(maker: &Maker, taken: Taken, cancel: Cancel) -> Feedback {
    let function = taken.call.function.clone();
    if taken.progress.attempts.iter().rev().nth(1).is_some_and(|before| before.interrupted) {
        maker.counts.interrupted.add_one();
    }
    let attempt = async {
        let keeps = keep(maker, &taken.ticket);
        let made = maker.front.dispatch.fleet.panics.catch(make(maker, &taken));
        tokio::select! {
            made = made => made.unwrap_or_else(|panic| (Outcome::Failed(panic, Place::default()), None)),
            () = cancel.token.cancelled() => (Outcome::Lost, None),
            () = keeps => (Outcome::Lost, None),
            () = maker.stops.now.cancelled() => (Outcome::CutOff, None),
        }
    };
    let (outcome, spec) = attempt.await;
    let start = match &outcome {
        Outcome::Succeeded { answer, took, .. } => match &answer.timings {
            Some(t) => {
                let waited = Duration::from_micros(t.wait_us);
                let way = took.saturating_sub(waited + Duration::from_micros(t.execution_us));
                Start::Made { waited, cold: t.cold, way }
            }
            None => Start::Unknown,
        },
        Outcome::NotStarted(_) => Start::NoRoom,
        _ => Start::Unknown,
    };
    let ticket = taken.ticket.clone();
    let holds = async {
        keep(maker, &ticket).await;
        // What it is told next the queue refuses, and then this ends.
        std::future::pending::<()>().await;
    };
    // However long the queue is away, the end is here, and the call is not to be made again for want of a sign of life.
    tokio::select! {
        () = settle(maker, taken, outcome, spec.as_deref()) => {}
        () = holds => {}
    }
    Feedback { function, start }
}

/// Says that the call is still worked on; returns when it is not ours any more.
async fn keep(maker: &Maker, ticket: &Ticket) {
    loop {
        tokio::time::sleep(maker.queue.lease() / 3).await;
        match maker.queue.extend(ticket).await {
            Err(stoker_queue::Error::Lost) => return,
            Err(error) => tracing::warn!(%error, "a call for later could not be held"),
            Ok(()) => {}
        }
    }
}

type Spec = std::sync::Arc<FunctionSpec>;

async fn make(maker: &Maker, taken: &Taken) -> (Outcome, Option<Spec>) {
    let call = &taken.call;
    let name = match call.qualifier.is_empty() {
        true => call.function.clone(),
        false => format!("{}:{}", call.function, call.qualifier),
    };
    let function = match maker.front.find(&name) {
        Ok(function) => function,
        Err(error) if error.code == Code::NotFound => return (Outcome::Hopeless(error), None),
        Err(error) => return (Outcome::NotStarted(error), None),
    };
    let spec = Some(function.spec.clone());
    let policy = &function.spec.later;
    if let Some(over) = too_old(policy, call, &taken.progress, now_ms()) {
        return (Outcome::Hopeless(over), spec);
    }
    let young = Duration::from_millis(last_start(policy, call, &taken.progress).saturating_sub(now_ms()));
    let before = taken.progress.counted().saturating_sub(1);
    if before >= policy.max_attempts {
        // The last of them was cut off, so nobody has said yet that it was the last.
        let text = format!("all of its {before} attempts failed or were interrupted");
        return (Outcome::Hopeless(Error::new(Code::RunnerLost, text).may_have_started()), spec);
    }
    let Some(id) = CallId::parse(&call.id) else {
        return (Outcome::Hopeless(Error::new(Code::Internal, "its id is none")), spec);
    };
    let trace = TraceContext { parent: call.trace_parent.clone(), state: call.trace_state.clone() };
    let clock = call.origin == "schedule";
    let attempt = Attempt { function: &call.function, number: before + 1, clock };
    let mut watch = maker.front.observer.attempt(id, &attempt, &trace);
    watch.by(Caller::platform());
    let answered = answer(maker, call, id, function, young, &mut watch).await;
    let (asked, revision) = (watch.runner(), watch.revision().unwrap_or_default());
    watch.end(answered.as_ref().map(|_| ()));
    let outcome = match answered {
        Ok((answer, runner, took)) => Outcome::Succeeded { answer, place: Place { runner, revision }, took },
        // What a stop of the balancer does to it is no failure of its own.
        Err(error) if maker.stops.now.is_cancelled() && error.blame() == Blame::Platform => Outcome::CutOff,
        Err(error) => sort(error, Place { runner: asked, revision }),
    };
    (outcome, spec)
}

/// What an error means for the call.
fn sort(error: Error, place: Place) -> Outcome {
    if error.may_have_started || error.blame() == Blame::Function && error.code != Code::ResourcesImpossible {
        return Outcome::Failed(error, place);
    }
    match error.code {
        Code::InvalidRequest | Code::NotFound | Code::RequestTooLarge | Code::HeadersTooLarge => {
            Outcome::Hopeless(error)
        }
        Code::MethodNotAllowed | Code::Unsupported => Outcome::Hopeless(error),
        _ => Outcome::NotStarted(error),
    }
}

/// When a call may be started last.
fn last_start(policy: &Policy, call: &Call, progress: &Progress) -> u64 {
    call.due_ms.max(progress.redriven_ms).saturating_add(policy.max_age_ms)
}

fn too_old(policy: &Policy, call: &Call, progress: &Progress, now: u64) -> Option<Error> {
    (now > last_start(policy, call, progress)).then(|| {
        let age = format_duration(Duration::from_millis(policy.max_age_ms));
        let mut text = format!("it has been due for longer than its max_age, {age}");
        if !progress.refusal.is_empty() {
            text.push_str("; last of all ");
            text.push_str(&progress.refusal);
        }
        Error::new(Code::DeadlineExceeded, text)
    })
}

async fn answer(
    maker: &Maker,
    call: &Call,
    id: CallId,
    function: std::sync::Arc<crate::directory::Known>,
    young: Duration,
    watch: &mut Watch,
) -> Result<(Answer, String, Duration), Error> {
    let head = call.head.clone().unwrap_or_default();
    let input = input(&maker.queue, call).await?;
    let _inside = maker.enter();
    let began = Instant::now();
    let mut admitted = maker.front.admit(id, function, head, None, watch)?;
    // Nor is it started behind its age because it waited for room until then.
    admitted.patience = Some(young);
    let mut answer = maker.front.dispatch.call(admitted, input, watch).await?;
    let mut end = answer.end;
    let mut body = BytesMut::from(answer.first.as_ref());
    let mut length = answer.first.len() as u64;
    if let Some(mut rest) = answer.rest.take() {
        while let Some(piece) = rest.next().await {
            let piece = piece?;
            length += piece.len() as u64;
            // The call goes on to its end, whatever is kept of it.
            if length <= MAX_ANSWER as u64 {
                body.extend_from_slice(&piece);
            }
        }
        end = rest.end();
    }
    let took = began.elapsed();
    if answer.head.status >= 400 {
        let said = String::from_utf8_lossy(&body[..body.len().min(SAID)]).into_owned();
        let text = format!("the function answered with status {}", answer.head.status);
        return Err(Error::new(Code::FunctionFailed, text).may_have_started().log_tail(said));
    }
    let dropped = length > MAX_ANSWER as u64;
    let mut kept = Answer {
        head: Some(answer.head),
        body_bytes: length,
        dropped,
        timings: end.timings,
        ..Answer::default()
    };
    if dropped {
        return Ok((kept, end.runner, took));
    }
    let body = body.freeze();
    if body.len() > INLINE {
        let pieces = futures_util::stream::once(std::future::ready(Ok(body)));
        let name = Call::answer_name(&call.id);
        // The function has run: a result that cannot be kept is no reason to run it again.
        kept.aside = maker.queue.put_body(&name, Box::pin(pieces)).await.is_ok();
        kept.dropped = !kept.aside;
    } else {
        kept.body = body;
    }
    Ok((kept, end.runner, took))
}

/// Tells the queue what became of the call, until it has taken it.
async fn settle(maker: &Maker, taken: Taken, outcome: Outcome, spec: Option<&FunctionSpec>) {
    let Taken { call, progress, ticket } = taken;
    let default = Policy::default();
    let policy = spec.map_or(&default, |spec| &spec.later);
    match outcome {
        Outcome::Lost => {}
        Outcome::Succeeded { answer, place, .. } => {
            maker.counts.succeeded.add_one();
            let mut progress = closed(progress, None, place, false);
            progress.set_state(State::Done);
            progress.ended_ms = now_ms();
            progress.keep_until_ms = spec.map_or(0, |spec| keep_until(spec, &call, Duration::ZERO));
            let end = letters::after_success(&call, progress, answer, policy);
            if finish(maker, &ticket, end).await {
                maker.counts.done.add_one();
            }
        }
        Outcome::Failed(error, place) => {
            maker.counts.failed.add_one();
            let made = progress.counted();
            let mut progress = closed(progress, Some(&error), place, false);
            let due = now_ms().saturating_add(policy.backoff(made + 1, seed(&call)).as_millis() as u64);
            let late = too_old(policy, &call, &progress, due);
            if made >= policy.max_attempts || late.is_some() {
                return give_up(maker, call, progress, &ticket, error, spec).await;
            }
            progress.set_state(State::Queued);
            progress.due_ms = due;
            again(maker, &ticket, progress).await;
        }
        Outcome::NotStarted(error) => {
            maker.counts.not_started.add_one();
            let mut progress = progress;
            progress.attempts.pop();
            progress.waits += 1;
            let step = progress.waits.min(16) as usize - 1;
            let wait = Backoff::new(FIRST_WAIT, LONGEST_WAIT, seed(&call)).nth(step).unwrap_or(LONGEST_WAIT);
            let due = now_ms().saturating_add(wait.as_millis() as u64);
            progress.refusal = noted(&error).message;
            if let Some(over) = too_old(policy, &call, &progress, now_ms()) {
                return give_up(maker, call, progress, &ticket, over, spec).await;
            }
            progress.set_state(State::Queued);
            progress.due_ms = due;
            again(maker, &ticket, progress).await;
        }
        Outcome::Hopeless(error) => {
            // What was begun for it is no attempt.
            let mut progress = progress;
            progress.attempts.pop();
            give_up(maker, call, progress, &ticket, error, spec).await;
        }
        Outcome::CutOff => {
            let mut progress = closed(progress, None, Place::default(), true);
            progress.set_state(State::Queued);
            progress.due_ms = now_ms();
            again(maker, &ticket, progress).await;
        }
    }
}

/// The attempt is over.
fn closed(mut progress: Progress, error: Option<&Error>, place: Place, interrupted: bool) -> Progress {
    progress.refusal.clear();
    if let Some(open) = progress.attempts.last_mut() {
        open.ended_ms = now_ms();
        (open.runner, open.revision) = (place.runner, place.revision);
        open.interrupted = interrupted;
        open.error = error.map(noted);
    }
    progress
}

/// What is kept of an error: a call may have a hundred of them.
fn noted(error: &Error) -> CallError {
    let mut error = convert::to_call_error(error);
    error.report = None;
    for text in [&mut error.message, &mut error.log_tail] {
        let end = (0..=SAID.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    error
}

fn seed(call: &Call) -> u64 {
    let mut seed = call.id.bytes().fold(now_ms(), |sum, byte| sum.rotate_left(7) ^ u64::from(byte));
    split_mix(&mut seed)
}

async fn give_up(
    maker: &Maker,
    call: Call,
    mut progress: Progress,
    ticket: &Ticket,
    error: Error,
    spec: Option<&FunctionSpec>,
) {
    progress.set_state(State::Dead);
    progress.ended_ms = now_ms();
    progress.keep_until_ms = match spec {
        Some(spec) if spec.later.dead_letter.is_some() => keep_until(spec, &call, Duration::ZERO),
        Some(spec) => keep_until(spec, &call, letters::DEAD_KEPT),
        None => letters::dead_until(),
    };
    progress.error = Some(noted(&error));
    tracing::warn!(call_id = call.id, function = call.function, %error, "a call for later was given up");
    let default = Policy::default();
    let policy = spec.map_or(&default, |spec| &spec.later);
    let mut waits = outcome_waits();
    let end = loop {
        match letters::after_failure(maker, &call, progress.clone(), policy).await {
            Ok(end) => break end,
            // Made again after the next start, it is given up again, with its letter.
            Err(error) => {
                if !pause(maker, &mut waits, &error).await {
                    return;
                }
            }
        }
    };
    if finish(maker, ticket, end).await {
        maker.counts.dead.add_one();
    }
}

/// Whether the queue took it; else the call is not ours any more.
async fn finish(maker: &Maker, ticket: &Ticket, mut end: End) -> bool {
    let mut waits = outcome_waits();
    loop {
        match maker.queue.finish(ticket, end.clone()).await {
            Ok(()) => return true,
            Err(stoker_queue::Error::Lost) => return false,
            Err(stoker_queue::Error::Unsupported(why)) => {
                tracing::error!(why, "what should follow from the end of a call for later cannot be done");
                end.then.retain(|follow| matches!(follow, stoker_queue::Follow::Call(_)));
                letters::unsent(&mut end.progress, &why);
            }
            Err(error) => {
                if !pause(maker, &mut waits, &error).await {
                    return false;
                }
            }
        }
    }
}

async fn again(maker: &Maker, ticket: &Ticket, progress: Progress) {
    let mut waits = outcome_waits();
    while let Err(error) = maker.queue.again(ticket, progress.clone()).await {
        if matches!(error, stoker_queue::Error::Lost) || !pause(maker, &mut waits, &error).await {
            return;
        }
    }
}

/// The outcome is known and only here: it is told as long as this process lives. `false` when it stops; then the call is made again.
async fn pause(maker: &Maker, waits: &mut Backoff, error: &impl std::fmt::Display) -> bool {
    let wait = waits.next().unwrap_or_default();
    tracing::warn!(%error, ?wait, "the queue does not take the outcome of a call for later");
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = maker.stops.now.cancelled() => false,
    }
}

/// Between the times at which the queue is told of an outcome.
fn outcome_waits() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(5), now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_they_mean_for_the_call() {
        let kind = |outcome| match outcome {
            Outcome::Failed(..) => "failed",
            Outcome::NotStarted(_) => "not started",
            Outcome::Hopeless(_) => "hopeless",
            _ => "other",
        };
        for (code, started, expected) in [
            (Code::Overloaded, false, "not started"),
            (Code::Unavailable, false, "not started"),
            (Code::RunnerLost, false, "not started"),
            (Code::RunnerLost, true, "failed"),
            (Code::DeadlineExceeded, false, "not started"),
            (Code::DeadlineExceeded, true, "failed"),
            (Code::ResourcesImpossible, false, "not started"),
            (Code::FunctionTimeout, true, "failed"),
            (Code::FunctionInitFailed, false, "failed"),
            (Code::NotFound, false, "hopeless"),
            (Code::RequestTooLarge, false, "hopeless"),
        ] {
            let error = Error::new(code, "");
            let error = if started { error.may_have_started() } else { error };
            assert_eq!(kind(sort(error, Place::default())), expected, "{code:?}");
        }
    }

    #[test]
    fn age_counts_from_when_a_call_was_due() {
        let call = Call { submitted_ms: 0, due_ms: 1_000_000, ..Call::default() };
        let policy = Policy { max_age_ms: 5_000, ..Policy::default() };
        let mut progress = Progress::new(&call);
        assert!(too_old(&policy, &call, &progress, 1_005_000).is_none());
        let over = too_old(&policy, &call, &progress, 1_005_001);
        assert!(over.is_some_and(|error| error.message.ends_with("max_age, 5s")));
        progress.refusal = "no runner has 1TiB".into();
        let over = too_old(&policy, &call, &progress, 1_005_001);
        assert!(
            over.is_some_and(|error| error.message.ends_with("max_age, 5s; last of all no runner has 1TiB"))
        );
        progress.redrive(2_000_000, 1);
        assert!(too_old(&policy, &call, &progress, 2_005_000).is_none());
    }
}
