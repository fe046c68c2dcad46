//! Offering a call to a runner and following it to the head of its answer; and to a second one, as long as it waits at the first.
//!
//! While a call waits at a runner it stands among those who would rather start [elsewhere](crate::reoffer). When another runner has
//! somebody idle it is offered there too, and it goes wherever it starts first. [`Offers`] sees to it that it never starts twice.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use stoker_core::error::{Code, Error, Refusal};
use stoker_proto::runner::v1::Finished;
use stoker_proto::{convert, v1};

use super::offers::{Act, OfferEvent, OfferState, Offers, Which};
use super::{Dispatch, Placing};
use crate::admission::Admitted;
use crate::call::{Answer, End, Input, Rest};
use crate::explain::{What, Why};
use crate::fleet::{InFlight, Runner};
use crate::link::STOPPING;
use crate::link::session::{Event, How, LinkCall};
use crate::observe::{OfferWatch, Watch};
use crate::queue::Place;
use crate::reoffer::Standing;

/// What came of asking one runner.
pub enum Attempt {
    Answered(Placed),
    Failed(Error),
    /// No byte of it reached the function there.
    Refused,
    /// The same, and so it would go with every other call.
    LineFull,
    /// The runner went away, and the call may go elsewhere.
    Gone,
}

/// Why a runner could not be asked.
enum Unasked {
    /// It cannot run the call, or takes none.
    Refused,
    /// It went away at this moment.
    Gone,
}

/// The call's place at a runner.
struct At {
    runner: Arc<Runner>,
    link: LinkCall,
    offer: OfferWatch,
    /// As long as it is in the line there.
    in_line: Option<InFlight>,
}

/// Its places, and what it waits for beside them.
struct Places {
    offers: Offers,
    at: [Option<At>; 2],
    reoffer: Option<Standing<Runner>>,
    /// What it comes to when nobody has it any more: what became of it where it was offered first.
    fate: Attempt,
}

/// What happens next.
enum Heard {
    Event(Which, Event),
    /// This runner seems to have somebody idle.
    Idle(Arc<Runner>),
}

impl Places {
    async fn next(&mut self) -> Heard {
        poll_fn(|cx| {
            for which in Which::BOTH {
                if let Some(at) = &mut self.at[which as usize]
                    && let Poll::Ready(event) = at.link.poll_next(cx)
                {
                    return Poll::Ready(Heard::Event(which, event));
                }
            }
            if let Some(standing) = &mut self.reoffer
                && let Poll::Ready(told) = Pin::new(standing).poll(cx)
            {
                self.reoffer = None;
                if let Some(runner) = told {
                    return Poll::Ready(Heard::Idle(runner));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// One of them is over.
    fn take(&mut self, which: Which) -> Option<At> {
        self.offers.on(which, OfferEvent::Over);
        self.at[which as usize].take()
    }

    /// A runner does not take the call; what that comes to, if the call is over by it.
    fn refused(
        &mut self,
        which: Which,
        placing: &mut Placing<'_>,
        reason: Refusal,
        detail: String,
        line_full: bool,
    ) -> Option<Attempt> {
        let At { runner, offer, .. } = self.take(which)?;
        tracing::debug!(
            call_id = %placing.watch.id(), trace_id = placing.watch.trace(), runner = runner.name, ?reason, detail,
            "refused"
        );
        offer.refused(reason, &detail);
        let told = detail.clone();
        placing.watch.note(What::Refused { runner: runner.clone(), reason, detail: told });
        if reason == Refusal::Expired {
            // Its deadline passed there a moment before it does here: nobody can start it in time.
            let text = format!("runner {} had not started the call in time: {detail}", runner.name);
            return Some(Attempt::Failed(Error::new(Code::DeadlineExceeded, text)));
        }
        if matches!(reason, Refusal::TooLarge | Refusal::LaunchFailed) {
            placing.ruled_out.push((runner, reason, detail));
        }
        if which == Which::First {
            self.fate = if line_full { Attempt::LineFull } else { Attempt::Refused };
        }
        None
    }

    /// A runner is gone with the call; what that comes to, if the call may not be made elsewhere.
    fn lost(
        &mut self,
        which: Which,
        placing: &mut Placing<'_>,
        reason: String,
        may_have_started: bool,
    ) -> Option<Attempt> {
        let At { runner, offer, .. } = self.take(which)?;
        tracing::debug!(
            call_id = %placing.watch.id(), trace_id = placing.watch.trace(), runner = runner.name, reason,
            may_have_started, "lost"
        );
        offer.lost(&reason);
        let told = reason.clone();
        placing.watch.note(What::Lost { runner: runner.clone(), reason: told, may_have_started });
        if may_have_started && !(placing.call.function.spec.idempotent && placing.replayable) {
            let name = &runner.name;
            let text = match reason == STOPPING {
                true => format!("this balancer stopped, and the call may have started at runner {name}"),
                false => format!("runner {name} was lost, and the call may have started there: {reason}"),
            };
            return Some(Attempt::Failed(Error::new(Code::RunnerLost, text).may_have_started()));
        }
        placing.progress.began |= may_have_started;
        if which == Which::First {
            self.fate = Attempt::Gone;
        }
        None
    }
}

impl Dispatch {
    /// Offers the call to one runner and follows it to the head of its answer, wherever that is. It keeps its `place` in the queue,
    /// if it has one, until it starts.
    pub(super) async fn attempt(
        &self,
        runner: &Arc<Runner>,
        why: Why,
        placing: &mut Placing<'_>,
        place: Option<&Place<Arc<Runner>>>,
    ) -> Attempt {
        let at = match self.offer(runner, why, placing) {
            Ok(at) => at,
            Err(Unasked::Refused) => return Attempt::Refused,
            Err(Unasked::Gone) => return Attempt::Gone,
        };
        let mut places =
            Places { offers: Offers::default(), at: [Some(at), None], reoffer: None, fate: Attempt::Refused };
        places.offers.on(Which::First, OfferEvent::Offer);
        placing.progress.may_have_started = true;
        loop {
            let done = match places.next().await {
                Heard::Event(which, event) => self.hear(&mut places, which, event, placing),
                Heard::Idle(runner) => {
                    if let Ok(at) = self.offer(&runner, Why::Idle, placing) {
                        places.at[Which::Second as usize] = Some(at);
                        places.offers.on(Which::Second, OfferEvent::Offer);
                    }
                    None
                }
            };
            while let Some(act) = places.offers.act() {
                self.act(&mut places, act, placing.watch);
            }
            placing.progress.may_have_started = places.offers.may_have_started();
            if let Some(place) = place
                && places.offers.started()
            {
                place.started();
            }
            if let Some(done) = done {
                return done;
            }
            if places.offers.over() {
                return places.fate;
            }
            match (&places.at[Which::First as usize], places.offers.may_ask_second()) {
                (Some(at), true) if places.reoffer.is_none() => {
                    let function = &placing.call.function;
                    let works = function.spec.ask().working().cpu_millis;
                    let standing = self.fleet.reoffers.stand(function.digest, works, at.runner.clone());
                    places.reoffer = Some(standing);
                }
                (_, true) => {}
                (_, false) => places.reoffer = None,
            }
        }
    }

    fn offer(&self, runner: &Arc<Runner>, why: Why, placing: &mut Placing<'_>) -> Result<At, Unasked> {
        let Placing { call, watch, input, ruled_out, progress, .. } = placing;
        let function = &call.function;
        if !runner.may_take(function) || ruled_out.iter().any(|(out, ..)| Arc::ptr_eq(out, runner)) {
            return Err(Unasked::Refused);
        }
        let how = How { waited: progress.waited, only_if_idle: why == Why::Idle };
        let offer = watch.offer(runner, function, why);
        let place = || {
            let trace = watch.context(&offer);
            runner.session()?.offer(call, input, how, trace, runner.enter())
        };
        // A session that has just ended may have been followed by another.
        let Some(link) = place().or_else(place) else {
            let reason = "the session had just ended";
            watch.note(What::Lost { runner: runner.clone(), reason: reason.into(), may_have_started: false });
            offer.lost(reason);
            return Err(Unasked::Gone);
        };
        runner.used(&function.digest);
        Ok(At { runner: runner.clone(), link, offer, in_line: None })
    }

    /// Does what the table of places says.
    fn act(&self, places: &mut Places, act: Act, watch: &mut Watch) {
        match act {
            Act::Start(which) => {
                let Some(at) = &mut places.at[which as usize] else { return };
                at.link.start();
                at.in_line = None;
                // What waits here may stand in the line there now.
                self.fleet.queue.left_line(&at.runner);
                watch.note(What::Started { runner: at.runner.clone() });
            }
            Act::Leave(which) => {
                let Some(At { runner, link, offer, in_line }) = places.at[which as usize].take() else {
                    return;
                };
                link.leave();
                offer.moved();
                drop(in_line);
                self.fleet.queue.left_line(&runner);
                watch.note(What::Left { runner });
            }
        }
    }

    /// Takes an event of one place; gives what the whole attempt has come to, if it is over.
    fn hear(
        &self,
        places: &mut Places,
        which: Which,
        event: Event,
        placing: &mut Placing<'_>,
    ) -> Option<Attempt> {
        let at = places.at[which as usize].as_mut()?;
        let runner = at.runner.clone();
        match event {
            Event::Refused { reason, detail, line_full } => {
                places.refused(which, placing, reason, detail, line_full)
            }
            Event::Accepted { expected } => {
                places.offers.on(which, OfferEvent::Accepted);
                at.in_line = Some(runner.stand());
                at.offer.accepted(expected);
                let census = self.fleet.census(&placing.call.function);
                placing.watch.note(What::Accepted { runner, expected, census });
                None
            }
            Event::Ready => {
                places.offers.on(which, OfferEvent::Ready);
                None
            }
            Event::Started => {
                places.offers.on(which, OfferEvent::Started);
                self.upload_rest(places, which, placing);
                None
            }
            Event::Head { head, length } => {
                places.offers.on(which, OfferEvent::Started);
                // A function that answers before it has read: its input goes on all the same.
                self.upload_rest(places, which, placing);
                let At { link, mut offer, .. } = places.at[which as usize].take()?;
                self.tasks.spawn(link.guard());
                placing.watch.answers(&mut offer);
                let runner = runner.name.clone();
                Some(Attempt::Answered(Placed::Answering { head, length, link, runner, offer }))
            }
            // The table of states lets no body through before its head, and nobody guards the deadline but `call`.
            Event::Body(_) | Event::Expired => None,
            Event::Finished(finished) => self.finished(places, which, finished, placing.watch),
            Event::Lost { reason, may_have_started } => places.lost(which, placing, reason, may_have_started),
            Event::InputFailed(error) => {
                let At { offer, .. } = places.take(which)?;
                let error = error.may_have_started();
                offer.finished(Err(&error));
                Some(Attempt::Failed(error))
            }
        }
    }

    fn finished(
        &self,
        places: &mut Places,
        which: Which,
        mut finished: Box<Finished>,
        watch: &mut Watch,
    ) -> Option<Attempt> {
        let ran = matches!(places.offers.at(which), OfferState::Asked | OfferState::Going);
        if ran {
            places.offers.on(which, OfferEvent::Started);
        }
        let At { runner, offer, .. } = places.at[which as usize].take()?;
        watch.timed(finished.timings);
        let Some(error) = finished.error.take().map(convert::call_error) else {
            offer.finished(Ok(()));
            let runner = runner.name.clone();
            return Some(Attempt::Answered(Placed::Done { finished, runner }));
        };
        offer.finished(Err(&error));
        if ran {
            return Some(Attempt::Failed(error));
        }
        // It failed before it had begun: what starts it elsewhere at this moment has the word, and only then this has.
        places.offers.on(which, OfferEvent::Over);
        places.fate = Attempt::Failed(error);
        None
    }

    /// What is behind the first piece of the body goes where the call has started.
    fn upload_rest(&self, places: &Places, which: Which, placing: &mut Placing<'_>) {
        if let Some(at) = &places.at[which as usize]
            && let Some(rest) = placing.input.rest.take()
        {
            placing.replayable = false;
            let Input { first, trailers, .. } = &mut placing.input;
            self.upload(&at.link, &placing.call.function.spec, rest, first.len(), trailers.take());
        }
    }
}

/// An answer whose call still holds its place.
pub enum Placed {
    Answering {
        head: v1::ResponseHead,
        length: Option<u64>,
        link: LinkCall,
        runner: String,
        offer: OfferWatch,
    },
    Done {
        finished: Box<Finished>,
        runner: String,
    },
}

impl Placed {
    pub fn answer(self, admitted: Admitted) -> Answer {
        match self {
            Placed::Answering { head, length, link, runner, offer } => {
                let rest = Rest::new(link, runner.clone(), offer, admitted);
                let end = End { runner, ..End::default() };
                Answer { head, first: Bytes::new(), rest: Some(rest), length, end }
            }
            Placed::Done { finished, runner } => {
                let head = finished.head.unwrap_or(v1::ResponseHead { status: 200, headers: Vec::new() });
                let end = End { timings: finished.timings, runner, trailers: finished.trailers };
                if let Some(meter) = admitted.meter() {
                    meter.passed(finished.body.len());
                }
                let length = Some(finished.body.len() as u64);
                Answer { head, first: finished.body, rest: None, length, end }
            }
        }
    }
}
