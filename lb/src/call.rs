//! A call inside the balancer: what a door makes of a request, and what it gets back.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use stoker_core::call::{CHUNK, Deadline};
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_proto::v1;

use crate::admission::Admitted;
use crate::auth::Meter;
use crate::directory::Known;
use crate::link::session::{Event, LinkCall};
use crate::observe::OfferWatch;

/// A call that a door let in.
pub struct Call {
    pub id: CallId,
    pub function: Arc<Known>,
    /// Checked, and in the form of the wire: it goes out as it is.
    pub head: v1::RequestHead,
    pub deadline: Deadline,
    /// How long it may wait for room, where that is less than the balancer lets any.
    pub patience: Option<Duration>,
    /// Its place in this balancer, held to its end.
    pub admitted: Admitted,
}

/// Pieces of a request's body of any size.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What a caller says behind a body: there once its pieces have ended.
#[derive(Clone, Default)]
pub struct Trailers(Arc<OnceLock<Vec<v1::Header>>>);

impl Trailers {
    /// They have come, once.
    pub fn came(&self, trailers: Vec<v1::Header>) {
        _ = self.0.set(trailers);
    }

    pub fn is_empty(&self) -> bool {
        self.0.get().is_none_or(Vec::is_empty)
    }

    /// All of them.
    pub fn all(&self) -> Vec<v1::Header> {
        self.0.get().cloned().unwrap_or_default()
    }
}

/// A request's body.
pub struct Input {
    /// Rides on the offer; at most `CHUNK` bytes, kept until the call has started.
    pub first: Bytes,
    /// What follows; `None` if `first` is all.
    pub rest: Option<Pieces>,
    /// What may come behind all that.
    pub trailers: Option<Trailers>,
    /// Bytes of all that, where its sender is held to a length.
    pub length: Option<u64>,
    /// Bytes of what follows that are here already.
    here: usize,
}

impl Input {
    /// A body whose first piece is here.
    pub fn begun(first: Bytes, rest: Option<Pieces>) -> Self {
        Self { first, rest, trailers: None, length: None, here: 0 }
    }

    /// With what may come behind all of it.
    pub fn followed_by(mut self, trailers: Option<Trailers>) -> Self {
        if let Some(trailers) = trailers {
            // Those that are here already go where the end of a body in pieces goes.
            if !trailers.is_empty() && self.rest.is_none() {
                self.rest = Some(Box::pin(futures_util::stream::empty()));
            }
            self.trailers = Some(trailers);
        }
        self
    }

    /// With the length that its sender is held to.
    pub fn of_length(self, length: Option<u64>) -> Self {
        Self { length, ..self }
    }

    /// What a call that waits with it keeps in memory.
    pub fn held(&self) -> usize {
        self.first.len() + self.here
    }

    /// Counts what it has, and what comes.
    pub fn count(&mut self, meter: &Meter) {
        meter.passed(self.first.len());
        if let Some(rest) = self.rest.take() {
            let meter = meter.clone();
            let counted = rest.inspect(move |piece| {
                if let Ok(piece) = piece {
                    meter.passed(piece.len());
                }
            });
            self.rest = Some(Box::pin(counted));
        }
    }

    /// A body that is all there.
    pub fn whole(body: Bytes) -> Self {
        Self::pieces(vec![body], None)
    }

    /// The same in pieces, and what is still to come behind them. What fits on the offer goes in one; of more only the first piece, as it is.
    pub fn pieces(mut pieces: Vec<Bytes>, coming: Option<Pieces>) -> Self {
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        if coming.is_none() && length <= CHUNK {
            let first = if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() };
            return Self::begun(first, None);
        }
        let mut first = if pieces.is_empty() { Bytes::new() } else { pieces.remove(0) };
        if first.len() > CHUNK {
            pieces.insert(0, first.split_off(CHUNK));
        }
        let here = length - first.len();
        let length = coming.is_none().then_some(length as u64);
        let there = futures_util::stream::iter(pieces.into_iter().map(Ok));
        let rest: Pieces = match coming {
            Some(coming) => Box::pin(there.chain(coming)),
            None => Box::pin(there),
        };
        Self { first, rest: Some(rest), trailers: None, length, here }
    }
}

/// A function's answer, from its head on.
pub struct Answer {
    pub head: v1::ResponseHead,
    /// The first piece, and all of it where `rest` is `None`.
    pub first: Bytes,
    pub rest: Option<Rest>,
    /// Bytes of all that, where its function is held to a length.
    pub length: Option<u64>,
    pub end: End,
}

impl Answer {
    /// Lets a function answer with so many bytes at most; 0: as many as it likes. A longer answer fails, as soon as its length is known.
    pub fn limited(mut self, most: u64) -> Result<Self, Error> {
        if most == 0 {
            return Ok(self);
        }
        let here = self.first.len() as u64;
        if self.length.unwrap_or(here) > most {
            return Err(too_long(most));
        }
        if let Some(rest) = &mut self.rest {
            rest.limit = Some(Limit { most, left: most - here });
        }
        Ok(self)
    }
}

fn too_long(most: u64) -> Error {
    let text = format!("the answer has more than {most} bytes, which is the limit of this function");
    Error::new(Code::ResponseTooLarge, text).may_have_started()
}

/// What is known at the end of a call.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// Present once the call has ended.
    pub timings: Option<v1::Timings>,
    pub runner: String,
    /// What the function said behind the body.
    pub trailers: Vec<v1::Header>,
}

/// The rest of an answer, as its reader takes it. Dropping it cancels the call.
pub struct Rest {
    call: LinkCall,
    done: bool,
    end: End,
    /// There until the end.
    offer: Option<OfferWatch>,
    admitted: Admitted,
    /// Where the function says how much may come.
    limit: Option<Limit>,
}

/// How much may come.
struct Limit {
    most: u64,
    left: u64,
}

impl Rest {
    pub fn new(call: LinkCall, runner: String, offer: OfferWatch, admitted: Admitted) -> Self {
        let end = End { runner, ..End::default() };
        Self { call, done: false, end, offer: Some(offer), admitted, limit: None }
    }

    fn ended(&mut self, outcome: Result<(), &Error>) {
        self.done = true;
        if let Some(offer) = self.offer.take() {
            offer.finished(outcome);
        }
    }

    /// A piece on its way out.
    fn piece(&mut self, piece: Bytes) -> Result<Bytes, Error> {
        if let Some(Limit { most, left }) = &mut self.limit {
            match left.checked_sub(piece.len() as u64) {
                Some(now) => *left = now,
                None => {
                    let error = too_long(*most);
                    self.ended(Err(&error));
                    return Err(error);
                }
            }
        }
        if let Some(meter) = self.admitted.meter() {
            meter.passed(piece.len());
        }
        Ok(piece)
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// What the function said behind the body, once that has ended. Given out once.
    pub fn trailers(&mut self) -> Vec<v1::Header> {
        std::mem::take(&mut self.end.trailers)
    }

    /// What is known at the end.
    pub fn end(&self) -> End {
        self.end.clone()
    }
}

impl Stream for Rest {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        loop {
            let event = std::task::ready!(self.call.poll_next(cx));
            match event {
                Event::Body(piece) => {
                    self.call.consumed(piece.len());
                    return Poll::Ready(Some(self.piece(piece)));
                }
                Event::Finished(mut finished) => {
                    self.end.timings = finished.timings;
                    if let Some(offer) = &mut self.offer {
                        offer.timed(finished.timings);
                    }
                    if let Some(error) = finished.error.take().map(stoker_proto::convert::call_error) {
                        self.ended(Err(&error));
                        return Poll::Ready(Some(Err(error)));
                    }
                    let last = self.piece(finished.body);
                    self.end.trailers = finished.trailers;
                    if last.is_ok() {
                        self.ended(Ok(()));
                    }
                    return Poll::Ready(last.map_or_else(
                        |error| Some(Err(error)),
                        |last| (!last.is_empty()).then_some(Ok(last)),
                    ));
                }
                Event::Lost { reason, .. } => {
                    self.done = true;
                    if let Some(offer) = self.offer.take() {
                        offer.lost(&reason);
                    }
                    let text =
                        format!("runner {} was lost while the answer was coming: {reason}", self.end.runner);
                    return Poll::Ready(Some(Err(Error::new(Code::RunnerLost, text).may_have_started())));
                }
                Event::InputFailed(error) => {
                    let error = error.may_have_started();
                    self.ended(Err(&error));
                    return Poll::Ready(Some(Err(error)));
                }
                Event::Expired => {
                    let error =
                        Error::new(Code::DeadlineExceeded, "the deadline passed while the answer was coming")
                            .may_have_started();
                    self.ended(Err(&error));
                    return Poll::Ready(Some(Err(error)));
                }
                // The table of states lets none of these through once the head has come; a start that was said late is no news.
                Event::Started
                | Event::Ready
                | Event::Accepted { .. }
                | Event::Refused { .. }
                | Event::Head { .. } => {}
            }
        }
    }
}
