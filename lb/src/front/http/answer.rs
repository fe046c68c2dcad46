//! The body of an answer, as a connection takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::TRAILER;
use http_body::{Body, Frame, SizeHint};
use stoker_core::error::Error;
use stoker_proto::v1;

use super::fields;
use super::lambda::direct;
use super::lambda::stream::Events;
use crate::call::Rest;
use crate::observe::Watch;

/// The body of an answer, as it comes. Dropping it cancels the call.
pub struct AnswerBody {
    /// What is there already.
    first: Bytes,
    rest: Option<Rest>,
    /// Bytes that are still to come by `rest`, where that is known.
    coming: Option<u64>,
    /// What the door itself puts at the end.
    last: Bytes,
    /// There until the end of what is streamed.
    watch: Option<Watch>,
    /// Where the pieces go out as events of a stream.
    events: Option<Box<Events>>,
    after: After,
}

/// What comes behind the body.
enum After {
    Nothing,
    /// What the function says there, as far as it is known.
    Said(HeaderMap),
    /// How the answer ended, as far as nothing more happens: AWS's direct invocation.
    Ending(HeaderMap),
}

impl AnswerBody {
    pub fn whole(body: Bytes) -> Self {
        Self::new(body, None)
    }

    pub fn new(first: Bytes, rest: Option<Rest>) -> Self {
        let (coming, last) = (None, Bytes::new());
        Self { first, rest, coming, last, watch: None, events: None, after: After::Nothing }
    }

    /// Tells its reader how long it is, where `length`, of all that the function says, is known.
    pub fn of_length(self, length: Option<u64>) -> Self {
        let coming = length.and_then(|length| length.checked_sub(self.first.len() as u64));
        Self { coming, ..self }
    }

    /// With a last word of the door's own.
    pub fn last(self, last: Bytes) -> Self {
        Self { last, ..self }
    }

    /// As events of a stream.
    pub fn events(self, events: Events) -> Self {
        Self { events: Some(Box::new(events)), ..self }
    }

    /// Lets out what the function says behind the body; `said` is known already. `headers`: those of the answer, which say what will come.
    pub fn with_trailers(&mut self, said: Vec<v1::Header>, headers: &mut HeaderMap) {
        if self.rest.is_none() && said.is_empty() {
            headers.remove(TRAILER);
            return;
        }
        let said = fields::response_trailers(said);
        if !headers.contains_key(TRAILER) {
            said.keys().for_each(|name| fields::announce(headers, name.as_str()));
        }
        self.after = After::Said(said);
    }

    /// Tells at the end how it ended.
    pub fn with_ending(&mut self) {
        self.after = After::Ending(direct::ending(Ok(())));
    }

    fn is_followed(&self) -> bool {
        match &self.after {
            After::Nothing => false,
            After::Said(trailers) => !trailers.is_empty() || self.rest.is_some(),
            After::Ending(_) => true,
        }
    }

    /// The call ends where its answer does.
    pub fn watched(&mut self, watch: Watch) {
        match self.rest {
            Some(_) => self.watch = Some(watch),
            None => watch.end(self.events.as_ref().and_then(|events| events.failed()).map_or(Ok(()), Err)),
        }
    }

    fn ended(&mut self, outcome: Result<(), &Error>) {
        if let Some(watch) = self.watch.take() {
            watch.end(outcome);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(frame) = self.events.as_mut().and_then(|events| events.next()) {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            let this = &mut *self;
            let piece = if !this.first.is_empty() {
                std::mem::take(&mut this.first)
            } else if let Some(rest) = this.rest.as_mut() {
                match std::task::ready!(futures_util::Stream::poll_next(Pin::new(rest), cx)) {
                    Some(Ok(piece)) => {
                        this.coming = this.coming.map(|coming| coming.saturating_sub(piece.len() as u64));
                        piece
                    }
                    Some(Err(error)) => {
                        this.rest = None;
                        this.ended(Err(&error));
                        match (&mut this.events, &mut this.after) {
                            // The stream of events has words for it, and so has such an ending.
                            (Some(events), _) => events.fail(&error),
                            (_, After::Ending(trailers)) => *trailers = direct::ending(Err(&error)),
                            (None, _) => return Poll::Ready(Some(Err(error))),
                        }
                        continue;
                    }
                    None => {
                        if let After::Said(trailers) = &mut this.after {
                            *trailers = fields::response_trailers(rest.trailers());
                        }
                        this.rest = None;
                        this.ended(Ok(()));
                        continue;
                    }
                }
            } else if let Some(events) = &mut this.events {
                match std::task::ready!(events.poll_end(cx)) {
                    true => continue,
                    false => return Poll::Ready(None),
                }
            } else if !this.last.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.last)))));
            } else {
                return Poll::Ready(match std::mem::replace(&mut this.after, After::Nothing) {
                    After::Said(trailers) if trailers.is_empty() => None,
                    After::Said(trailers) | After::Ending(trailers) => Some(Ok(Frame::trailers(trailers))),
                    After::Nothing => None,
                });
            };
            match &mut this.events {
                Some(events) => events.piece(piece),
                None => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let said = self.first.is_empty() && self.rest.is_none() && self.last.is_empty();
        said && self.events.is_none() && !self.is_followed()
    }

    fn size_hint(&self) -> SizeHint {
        let coming = if self.rest.is_some() { self.coming } else { Some(0) };
        match coming {
            Some(coming) if self.events.is_none() && !self.is_followed() => {
                SizeHint::with_exact(coming.saturating_add((self.first.len() + self.last.len()) as u64))
            }
            _ => SizeHint::default(),
        }
    }
}
