//! The loop of a call: pick, offer, commit. The only place that offers a call twice.
//!
//! A refusal, and the loss of a runner on which the call provably had not started, lead to the next runner with the same first piece
//! of the body; nothing behind that piece is read from the caller before the call has started, so it can always be
//! replayed. A call that may have started is offered again only if its function says that it is idempotent.

mod attempt;
mod offers;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use stoker_core::FunctionSpec;
use stoker_core::error::{Code, Error, Refusal, Retry};
use stoker_policy::waiting::Full;
use stoker_policy::{placement, waiting};
use tokio_util::task::TaskTracker;

use self::attempt::{Attempt, Placed};
use crate::call::{Answer, Call, Input, Pieces, Trailers};
use crate::directory::Known;
use crate::explain::{What, Why};
use crate::fleet::{Fleet, Runner};
use crate::link::session::{LinkCall, Upload};
use crate::observe::Watch;
use crate::queue::{Bound, Left, Place};

/// Places calls on the fleet.
#[derive(Clone)]
pub struct Dispatch {
    pub fleet: Arc<Fleet>,
    pub max_wait: Duration,
    /// Most bytes of a request's body.
    pub max_body: u64,
    /// Holds the tasks that send the bodies that do not fit on an offer; each ends with its call. And those of clients'
    /// sessions, which end with their streams.
    pub tasks: TaskTracker,
}

/// A call on its way to a runner: what is needed to offer it again, and what must be known of it at its deadline.
struct Placing<'a> {
    call: &'a Call,
    watch: &'a mut Watch,
    input: Input,
    progress: &'a mut Progress,
    /// Runners that cannot run this call, however much room they have, and why.
    ruled_out: Vec<(Arc<Runner>, Refusal, String)>,
    /// Nothing behind the first piece of its body has been taken.
    replayable: bool,
}

/// How far a call is.
#[derive(Default)]
struct Progress {
    /// A runner was lost with it, and the function, which is idempotent, may have begun there.
    began: bool,
    /// It may have started where it is now.
    may_have_started: bool,
    waited: bool,
}

impl Dispatch {
    /// One call, to the head of its answer. Dropping the future cancels the call.
    pub async fn call(&self, mut call: Call, mut input: Input, watch: &mut Watch) -> Result<Answer, Error> {
        let late = |text: &str| Error::new(Code::DeadlineExceeded, text);
        if call.deadline.remaining().is_zero() {
            return Err(late("the deadline had passed before the call came in"));
        }
        self.fits(&call.function.spec, input.first.len() as u64)?;
        if let Some(meter) = call.admitted.meter() {
            input.count(meter);
        }
        call.admitted.settle().await?;
        let mut progress = Progress::default();
        let placing = Placing {
            call: &call,
            watch,
            input,
            progress: &mut progress,
            ruled_out: Vec::new(),
            replayable: true,
        };
        let placed = {
            // Where it stays: moved into the timeout it would be copied, and it is large.
            let placing = pin!(self.place(placing));
            tokio::time::timeout_at(call.deadline.0.into(), placing).await
        };
        let error = match placed {
            Ok(Ok(placed)) => return placed.answer(call.admitted).limited(call.function.spec.max_response),
            Ok(Err(error)) => error,
            Err(_) if progress.may_have_started => {
                late("the deadline passed before the function had answered").may_have_started()
            }
            Err(_) if progress.waited => late_in_queue(),
            Err(_) => late("the deadline passed before the call had started"),
        };
        // Whatever it waited for in the end: what says that it may be made again was seen by no function.
        Err(if progress.began { error.may_have_started() } else { error })
    }

    /// Whether a function takes a request's body of this length.
    pub fn fits(&self, spec: &FunctionSpec, len: u64) -> Result<(), Error> {
        self.within(self.most(spec), len)
    }

    /// Most bytes of a request's body for a function.
    pub fn most(&self, spec: &FunctionSpec) -> u64 {
        if spec.max_request == 0 { self.max_body } else { self.max_body.min(spec.max_request) }
    }

    fn within(&self, most: u64, len: u64) -> Result<(), Error> {
        if len <= most {
            return Ok(());
        }
        let whose = if most < self.max_body { "of this function" } else { "here" };
        let text = format!("the request's body has more than {most} bytes, which is the limit {whose}");
        Err(Error::new(Code::RequestTooLarge, text))
    }

    async fn place(&self, mut placing: Placing<'_>) -> Result<Placed, Error> {
        let function = placing.call.function.clone();
        let queue = &self.fleet.queue;
        let looked = queue.look(|| line(&function));
        if looked.is_some() {
            for (runner, why) in self.fleet.plan(&function) {
                match self.attempt(&runner, Why::Planned(why), &mut placing, None).await {
                    Attempt::Answered(placed) => return Ok(placed),
                    Attempt::Failed(error) => return Err(error),
                    Attempt::Refused | Attempt::LineFull | Attempt::Gone => {}
                }
            }
        }
        let mut unheard = looked.unwrap_or_else(|| queue.unheard());
        let until = (Instant::now() + self.longest_wait(placing.call)).min(placing.call.deadline.0);
        let held = placing.input.held() + head_bytes(&placing.call.head);
        let mut place =
            Place::new(line(&function), function.spec.ask(), held, until).bounded(bound(&function));
        let mut refused = None;
        self.hope(&placing)?;
        let census = self.fleet.census(&function);
        placing.watch.note(What::Waits { behind: looked.is_none(), census });
        let mut waiting = placing.watch.waits();
        loop {
            placing.progress.waited = true;
            let turn = queue.wait(&mut place, unheard, refused.take()).await;
            let turn = turn.map_err(|left| self.left(&placing, left))?;
            waiting.called();
            unheard = queue.unheard();
            match self.attempt(&turn.runner, Why::Turn, &mut placing, Some(&place)).await {
                Attempt::Answered(placed) => {
                    turn.spent();
                    return Ok(placed);
                }
                Attempt::Failed(error) => {
                    turn.spent();
                    return Err(error);
                }
                Attempt::Refused => refused = Some(turn),
                // Nobody else would be taken there either, until there is news.
                Attempt::LineFull | Attempt::Gone => turn.spent(),
            }
            waiting.again();
            self.hope(&placing)?;
        }
    }

    /// Sends what is behind the first piece of a body, from now to the end of the call.
    fn upload(
        &self,
        link: &LinkCall,
        spec: &FunctionSpec,
        rest: Pieces,
        first: usize,
        trailers: Option<Trailers>,
    ) {
        let (dispatch, link, most) = (self.clone(), link.upload(), self.most(spec));
        self.tasks.spawn(async move {
            let sent = upload(&dispatch, most, &link, rest, first, trailers);
            if let Err(error) = dispatch.fleet.panics.catch(sent).await {
                // The function waits for the rest, and the caller for the function.
                link.failed(error);
            }
        });
    }

    /// Whether it makes sense to wait.
    fn hope(&self, placing: &Placing<'_>) -> Result<(), Error> {
        let runners = self.fleet.runners();
        let spec = &placing.call.function.spec;
        if runners.is_empty() {
            self.fleet.nobody();
            let error = Error::new(Code::Unavailable, "there is no runner in the fleet: start one");
            return Err(error.retry(Retry::After(Duration::from_secs(1))));
        }
        let large = |runner: &&Arc<Runner>| runner.could_hold(&spec.ask());
        let out =
            |runner: &Arc<Runner>| placing.ruled_out.iter().find(|(other, ..)| Arc::ptr_eq(runner, other));
        let (mut failed, mut unfit) = (None, None);
        for runner in runners.iter().filter(large) {
            match out(runner) {
                None => return Ok(()),
                Some((_, Refusal::TooLarge, detail)) => unfit = Some((runner, detail)),
                Some((_, _, detail)) => failed = Some((runner, detail)),
            }
        }
        Err(match (failed, unfit) {
            (Some((runner, detail)), _) => {
                let text = format!("no runner could start {}; {} says: {detail}", spec.name, runner.name);
                Error::new(Code::Unavailable, text).retry(Retry::After(Duration::from_secs(1)))
            }
            (None, Some((runner, detail))) if !detail.is_empty() => {
                let (function, runner) = (&spec.name, &runner.name);
                let text =
                    format!("no runner of this fleet can run {function}; runner {runner} says: {detail}");
                Error::new(Code::ResourcesImpossible, text)
            }
            (None, _) => impossible(spec),
        })
    }

    /// How long a call may wait for room.
    fn longest_wait(&self, call: &Call) -> Duration {
        call.patience.map_or(self.max_wait, |patience| patience.min(self.max_wait))
    }

    /// Why a call leaves the queue without a turn.
    fn left(&self, placing: &Placing<'_>, left: Left) -> Error {
        let may_take = |runner: &Arc<Runner>| runner.may_take(&placing.call.function);
        let (after, text) = match left {
            Left::Full { limit, after } => (after, no_place(&placing.call.function.spec, limit)),
            Left::PushedOut(after) => {
                let text = "every runner is full, and so is the queue of this balancer: the place went to a call of another \
                            function, which has less of it";
                (after, text.to_owned())
            }
            Left::Hopeless { wait, after } => {
                let wait =
                    stoker_core::units::format_duration(Duration::from_millis(wait.as_millis() as u64));
                let text = format!(
                    "every runner is full, and a place in the queue would take some {wait}, longer than this call may wait"
                );
                (after, text)
            }
            Left::Closed => {
                let text =
                    "this balancer is stopping, and no runner had room in time; the call had not started";
                return Error::new(Code::Unavailable, text).retry(Retry::Elsewhere);
            }
            // Its deadline and the end of its wait are one moment, and the deadline is what its caller knows.
            Left::TooLong(_) if placing.call.deadline.remaining().is_zero() => return late_in_queue(),
            Left::TooLong(after) if self.fleet.runners().iter().any(may_take) => {
                (after, format!("no runner had room for {} s", self.longest_wait(placing.call).as_secs_f64()))
            }
            Left::TooLong(after) => {
                let wait = self.longest_wait(placing.call);
                let text = format!("no runner could be reached for {} s", wait.as_secs_f64());
                return Error::new(Code::Unavailable, text).retry(Retry::After(after));
            }
        };
        Error::new(Code::Overloaded, text).retry(Retry::After(after))
    }
}

/// Where a call waits: fairly between apps, then between the functions of each.
fn line(function: &Known) -> waiting::Place {
    waiting::Place { tenant: placement::key(function.spec.name.app().as_bytes()), line: function.key }
}

/// How many calls of a function one runner runs.
fn bound(function: &Known) -> Bound {
    let calls = function.spec.max_containers.saturating_mul(function.spec.concurrency);
    Bound { function: function.digest, calls }
}

/// About what a head holds.
fn head_bytes(head: &stoker_proto::v1::RequestHead) -> usize {
    head.url.len() + head.headers.iter().map(|header| header.name.len() + header.value.len()).sum::<usize>()
}

/// Every runner is full, and so is what may wait here: of its function, or of all.
fn no_place(spec: &FunctionSpec, limit: Full) -> String {
    let (name, size) = (&spec.name, |bytes: usize| stoker_core::units::format_size(bytes as u64));
    match limit {
        Full::OfFunction(most) => format!(
            "every runner is full, and {most} calls of {name} wait already, the most of one function at this balancer \
             (queue.per_function)"
        ),
        Full::BytesOfFunction(most) => format!(
            "every runner is full, and with this one the calls of {name} that wait would hold more than {}, the most of one \
             function at this balancer (queue.bytes_per_function)",
            size(most)
        ),
        Full::Total(most) => format!(
            "every runner is full, and so is the queue of this balancer: {most} calls wait already (queue.total)"
        ),
        Full::Bytes(most) => format!(
            "every runner is full, and so is the queue of this balancer: with this call those that wait would hold more than {} \
             (queue.bytes)",
            size(most)
        ),
    }
}

fn late_in_queue() -> Error {
    let text = "the deadline passed while the call waited for a runner with room; it had not started";
    Error::new(Code::DeadlineExceeded, text)
}

fn impossible(spec: &FunctionSpec) -> Error {
    let cpu = match spec.cpu_millis {
        0 => String::new(),
        millis => format!(" and {} of CPU", stoker_core::units::format_cpu(millis)),
    };
    let memory = stoker_core::units::format_size(spec.memory);
    let text = format!(
        "no runner of this fleet is large enough for {}, which needs {memory} of memory{cpu}",
        spec.name
    );
    Error::new(Code::ResourcesImpossible, text)
}

/// Sends the rest of a body. Ends with the body, or as soon as the call is over or its owner gone.
async fn upload(
    dispatch: &Dispatch,
    most: u64,
    upload: &Upload,
    mut pieces: Pieces,
    first: usize,
    trailers: Option<Trailers>,
) {
    let (mut sent, longest) = (first as u64, upload.longest_piece());
    loop {
        let next = tokio::select! {
            // The end of the call first: a piece that nobody wants any more is not worth reading.
            biased;
            () = upload.over() => return,
            next = pieces.next() => next,
        };
        let next = next.map(|piece| {
            let piece = piece?;
            sent += piece.len() as u64;
            dispatch.within(most, sent)?;
            Ok(piece)
        });
        match next {
            Some(Ok(mut piece)) => {
                while !piece.is_empty() {
                    let Some(credit) = upload.credit().await else { return };
                    let part = piece.split_to(piece.len().min(longest).min(credit));
                    upload.send(part);
                }
            }
            Some(Err(error)) => return upload.failed(error),
            None => return upload.end(trailers.map(|trailers| trailers.all()).unwrap_or_default()),
        }
    }
}
