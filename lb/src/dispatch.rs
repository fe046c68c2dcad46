//! The loop of a call: pick, offer, commit. The only place that offers a call twice.
//!
//! A refusal, and the loss of a runner on which the call provably had not started, lead to the next runner with the same first piece
//! of the body; nothing behind that piece is read from the caller before the call has started, so it can always be
//! replayed. A call that may have started is offered again only if its function says that it is idempotent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use stoker_core::call::CHUNK;
use stoker_core::error::{Code, Error, Refusal, Retry};
use stoker_policy::placement;
use stoker_proto::convert;
use stoker_proto::runner::v1::Finished;
use tokio_util::task::TaskTracker;

use crate::call::{Answer, Call, End, Input, Pieces, Rest};
use crate::fleet::{Fleet, Hope, Runner};
use crate::link::session::{Event, Upload};
use crate::queue::Left;

/// Wait before a call asks again by itself where no runner named a time. Changes of capacity wake it sooner; this is for
/// the refusals of which no frame tells that they are over, and it doubles with each try.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Places calls on the fleet.
#[derive(Clone)]
pub struct Dispatch {
    pub fleet: Arc<Fleet>,
    pub max_wait: Duration,
    /// Holds the tasks that send the bodies that do not fit on an offer; each ends with its call.
    pub uploads: TaskTracker,
}

enum Attempt {
    Answered(Answer),
    Failed(Error),
    /// Nothing of it reached a function there.
    Elsewhere {
        refused: Option<(Refusal, Option<Duration>)>,
    },
}

/// What a call's end must know even when it is cut off at its deadline.
#[derive(Default)]
struct Progress {
    may_have_started: bool,
    waited: bool,
}

impl Dispatch {
    /// One call, to the head of its answer. Dropping the future cancels the call.
    pub async fn call(&self, call: Call, input: Input) -> Result<Answer, Error> {
        let mut progress = Progress::default();
        if call.deadline.remaining().is_zero() {
            return Err(Error::new(
                Code::DeadlineExceeded,
                "the deadline had passed before the call came in",
            ));
        }
        let deadline = call.deadline.0.into();
        match tokio::time::timeout_at(deadline, self.place(call, input, &mut progress)).await {
            Ok(result) => result,
            Err(_) if progress.may_have_started => Err(Error::new(
                Code::DeadlineExceeded,
                "the deadline passed before the function had answered",
            )
            .may_have_started()),
            Err(_) if progress.waited => Err(Error::new(
                Code::DeadlineExceeded,
                "the deadline passed while the call waited for a runner with room; it had not started",
            )),
            Err(_) => {
                Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the call had started"))
            }
        }
    }

    async fn place(&self, call: Call, mut input: Input, progress: &mut Progress) -> Result<Answer, Error> {
        let function = call.function.clone();
        let until = Instant::now() + self.max_wait;
        let mut ask_again = ASK_AGAIN;
        let mut waited = false;
        let mut wait_first = self.fleet.queue.is_waited_for(function.key);
        let mut admitted = Some(call);
        loop {
            let epoch = self.fleet.queue.epoch();
            let mut hint = None;
            let mut too_large = 0;
            let mut asked = 0;
            if !std::mem::take(&mut wait_first) {
                let candidates = self.fleet.candidates(&function);
                let seed = self.fleet.calls.fetch_add(1, Ordering::Relaxed);
                for at in placement::plan(function.key, &candidates.facts, seed) {
                    asked += 1;
                    let runner = &candidates.runners[at];
                    match self.attempt(runner, &mut admitted, &mut input, progress).await {
                        Attempt::Answered(answer) => {
                            if waited {
                                self.fleet.queue.placed();
                            }
                            return Ok(answer);
                        }
                        Attempt::Failed(error) => return Err(error),
                        Attempt::Elsewhere { refused: Some((Refusal::TooLarge, _)) } => too_large += 1,
                        Attempt::Elsewhere { refused: Some((_, after)) } => {
                            hint = hint.max(after);
                        }
                        Attempt::Elsewhere { refused: None } => {}
                    }
                }
            }
            if asked > 0 && too_large == asked {
                return Err(impossible(&function.spec));
            }
            match self.fleet.hope(&function) {
                Hope::Some => {}
                Hope::TooSmall => return Err(impossible(&function.spec)),
                Hope::Empty => {
                    let error = Error::new(Code::Unavailable, "there is no runner in the fleet: start one");
                    return Err(error.retry(Retry::After(Duration::from_secs(1))));
                }
            }
            progress.waited = true;
            let retry = Instant::now() + hint.unwrap_or_default().max(ask_again);
            ask_again = (ask_again * 2).min(Duration::from_secs(5));
            match self.fleet.queue.wait(function.key, epoch, waited, until, retry).await {
                Ok(()) => waited = true,
                Err(Left::Full(after)) => {
                    let text = "every runner is full, and so is the queue of this balancer";
                    return Err(Error::new(Code::Overloaded, text).retry(Retry::After(after)));
                }
                Err(Left::TooLong(after)) => {
                    let text = format!("no runner had room for {} s", self.max_wait.as_secs_f64());
                    return Err(Error::new(Code::Overloaded, text).retry(Retry::After(after)));
                }
            }
        }
    }

    /// Offers the call to one runner and follows it to the head of its answer.
    async fn attempt(
        &self,
        runner: &Arc<Runner>,
        call: &mut Option<Call>,
        input: &mut Input,
        progress: &mut Progress,
    ) -> Attempt {
        let nowhere = Attempt::Elsewhere { refused: None };
        let Some(offered) = call.as_ref() else { return nowhere };
        let Some(session) = runner.session() else { return nowhere };
        let complete = input.rest.is_none();
        let Some(mut link) = session.offer(offered, &input.first, complete, runner.enter()) else {
            return nowhere;
        };
        let function = offered.function.clone();
        let deadline = offered.deadline;
        runner.used(&function.digest);
        progress.may_have_started = true;
        let mut replayable = true;
        loop {
            match link.next().await {
                Event::Refused { reason, detail, retry_after } => {
                    progress.may_have_started = false;
                    runner.refused(&function.digest);
                    tracing::debug!(runner = runner.name, ?reason, detail, "refused");
                    return Attempt::Elsewhere { refused: Some((reason, retry_after)) };
                }
                Event::Accepted => progress.may_have_started = false,
                Event::Ready => {
                    progress.may_have_started = true;
                    link.start();
                }
                Event::Started => {
                    progress.may_have_started = true;
                    if let Some(rest) = input.rest.take() {
                        replayable = false;
                        self.uploads.spawn(upload(link.upload(), rest));
                    }
                }
                Event::Head(head) => {
                    // A function that answers before it has read: its input goes on all the same.
                    if let Some(rest) = input.rest.take() {
                        self.uploads.spawn(upload(link.upload(), rest));
                    }
                    let Some(call) = call.take() else { return nowhere };
                    let settle = Box::new(|_: &Finished| {});
                    let rest = Rest::new(link, deadline, runner.name.clone(), settle, call.admitted);
                    let end = rest.end();
                    return Attempt::Answered(Answer { head, first: Bytes::new(), rest: Some(rest), end });
                }
                Event::Body(_) => {}
                Event::Finished(finished) => return finish(*finished, runner),
                Event::Lost { may_have_started: false, reason } => {
                    progress.may_have_started = false;
                    tracing::debug!(runner = runner.name, reason, "lost before the start");
                    return nowhere;
                }
                Event::Lost { reason, .. } => {
                    if function.spec.idempotent && replayable {
                        return nowhere;
                    }
                    let text = format!(
                        "runner {} was lost, and the call may have started there: {reason}",
                        runner.name
                    );
                    return Attempt::Failed(Error::new(Code::RunnerLost, text).may_have_started());
                }
                Event::InputFailed(error) => return Attempt::Failed(error.may_have_started()),
            }
        }
    }
}

fn finish(finished: Finished, runner: &Runner) -> Attempt {
    if let Some(error) = finished.error {
        return Attempt::Failed(convert::call_error(error));
    }
    let end = End { timings: finished.timings, runner: runner.name.clone() };
    let head = finished.head.unwrap_or(stoker_proto::v1::ResponseHead { status: 200, headers: Vec::new() });
    Attempt::Answered(Answer { head, first: finished.body, rest: None, end })
}

fn impossible(spec: &stoker_core::FunctionSpec) -> Error {
    let text = format!(
        "no runner of this fleet is large enough for {}, which needs {} of memory and {} of CPU",
        spec.name,
        stoker_core::units::format_size(spec.memory),
        stoker_core::units::format_cpu(spec.cpu_millis),
    );
    Error::new(Code::ResourcesImpossible, text)
}

/// Sends the rest of a body. Ends with the body, or as soon as the call is over or its owner gone.
async fn upload(upload: Upload, mut pieces: Pieces) {
    loop {
        let next = tokio::select! {
            // The end of the call first: a piece that nobody wants any more is not worth reading.
            biased;
            () = upload.over() => return,
            next = pieces.next() => next,
        };
        match next {
            Some(Ok(mut piece)) => {
                while !piece.is_empty() {
                    let Some(credit) = upload.credit().await else { return };
                    let part = piece.split_to(piece.len().min(CHUNK).min(credit));
                    upload.send(part, false);
                }
            }
            Some(Err(error)) => return upload.failed(error),
            None => return upload.send(Bytes::new(), true),
        }
    }
}
