//! An invocation while it runs: what its runtime says of it, on its way to the caller.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stoker_core::call::{CHUNK, Intent};
use stoker_core::{Code, Error, ResponseHead};
use stoker_lambda::{Direct, RuntimeApi, Said, function_url};
use stoker_sandbox::Exit;

use super::outcome::{failed, no_response, oversized};
use super::{Answer, Lost, Offer, Strand, cancelled};
use crate::container::{Container, Phase, lambda};

/// What was seen of an invocation up to its end.
pub(super) struct Heard {
    pub result: Result<(), Error>,
    /// The function's process ended.
    pub exited: bool,
    /// More of an answer that was given up is still on its way.
    pub answers_on: bool,
    /// How long a streamed answer was held back, where that may be.
    pub throttled: Option<Duration>,
}

/// What is to be done when something was heard.
enum Step {
    /// There is more to come before anything is sent.
    Wait,
    /// What is there goes to the caller.
    Send,
    /// It was the last.
    Over(Result<(), Error>),
}

/// What an answer is for its caller.
enum Shape {
    /// Itself.
    Plain,
    /// A response in JSON, said to have this type.
    Whole(Option<String>, BytesMut),
    /// A stream whose head is still to come.
    Headed(BytesMut),
}

/// Listens to the runtime that has an invocation.
pub(super) struct Follow<'a> {
    strand: &'a Strand,
    offer: &'a Offer,
    container: &'a Container,
    api: &'a RuntimeApi,
    said: stoker_lambda::Answer,
    direct: Option<&'a Direct>,
    /// By what name the runtime knows it.
    id: &'a str,
    shape: Shape,
    /// The answer comes as it is made.
    streams: bool,
    /// Bytes of it.
    size: usize,
    exit: Option<Exit>,
    answers_on: bool,
}

impl<'a> Follow<'a> {
    pub fn new(
        strand: &'a Strand,
        offer: &'a Offer,
        container: &'a Container,
        api: &'a RuntimeApi,
        said: stoker_lambda::Answer,
        direct: Option<&'a Direct>,
        id: &'a str,
    ) -> Self {
        let (shape, streams, size, exit, answers_on) = (Shape::Plain, false, 0, None, false);
        Self { strand, offer, container, api, said, direct, id, shape, streams, size, exit, answers_on }
    }

    /// Follows it until the function is done, its time is over, or nobody wants it any more.
    pub async fn until_over(mut self, answer: &mut Answer, limit: Duration) -> Result<Heard, Lost> {
        let timeout = tokio::time::sleep_until((answer.started + limit).into());
        tokio::pin!(timeout);
        let cancel = self.strand.cancelled();
        tokio::pin!(cancel);
        let result = loop {
            let next = tokio::select! {
                // An answer that is complete counts, however late it is.
                biased;
                next = self.said.next() => next,
                reason = &mut cancel => break Err(cancelled(reason)),
                () = &mut timeout => break Err(self.too_late()),
                // What the process had said by then is read to its end before it counts as unsaid.
                ended = self.container.wait(), if self.exit.is_none() => {
                    self.exit = Some(ended);
                    continue;
                }
                () = self.api.left_alone(), if self.exit.is_some() => None,
            };
            let step = match next {
                Some(said) => self.hear(said, answer),
                None => Step::Over(Err(self.unsaid().await)),
            };
            match step {
                Step::Wait => continue,
                Step::Send => {}
                Step::Over(result) => break result,
            }
            tokio::select! {
                biased;
                sent = answer.flush(self.strand) => sent?,
                // The caller may be slow to take it, or gone.
                reason = &mut cancel => break Err(cancelled(reason)),
                () = &mut timeout => break Err(self.too_late()),
            }
        };
        let Self { exit, answers_on, said, .. } = self;
        Ok(Heard { result, exited: exit.is_some(), answers_on, throttled: said.throttled() })
    }

    /// Takes in what the runtime said. Nothing of it is sent yet.
    fn hear(&mut self, said: Said, answer: &mut Answer) -> Step {
        let heard = match said {
            Said::Head { content_type, streams } => {
                answer.first_byte = answer.started.elapsed();
                self.streams = streams;
                self.begin(content_type, answer);
                Ok(())
            }
            Said::Piece(piece) => self.piece(piece, answer),
            Said::End => return Step::Over(self.complete(answer)),
            Said::Failed(failure) => Err(failed(failure)),
        };
        match heard {
            Err(error) => Step::Over(Err(error)),
            Ok(()) if self.waits(answer) => Step::Wait,
            Ok(()) => Step::Send,
        }
    }

    /// How the answer is to be read: those to HTTP requests say what their response shall be.
    fn begin(&mut self, content_type: Option<String>, answer: &mut Answer) {
        self.shape = match (self.offer.head.intent, self.streams, content_type) {
            (Intent::HttpRequest, false, content_type) => Shape::Whole(content_type, BytesMut::new()),
            (Intent::HttpRequest, true, Some(said)) if said == function_url::WITH_HEAD => {
                Shape::Headed(BytesMut::new())
            }
            (_, _, content_type) => {
                answer.head = Some(self.head(content_type));
                Shape::Plain
            }
        };
    }

    fn piece(&mut self, piece: Bytes, answer: &mut Answer) -> Result<(), Error> {
        self.size += piece.len();
        if let Some(most) = self.direct.and_then(|direct| direct.most)
            && self.size > most
        {
            return Err(oversized(most));
        }
        match &mut self.shape {
            Shape::Plain => answer.body.push(piece),
            Shape::Whole(_, whole) => whole.extend_from_slice(&piece),
            Shape::Headed(input) => {
                input.extend_from_slice(&piece);
                let Some(head) = function_url::streamed_head(input) else { return Ok(()) };
                // The rest of one that is none is still on its way.
                self.answers_on = head.is_err();
                answer.head = Some(head.map_err(|why| no_response(&why))?);
                answer.body.push(input.split().freeze());
                self.shape = Shape::Plain;
            }
        }
        Ok(())
    }

    /// Whether more is to come before anything is sent.
    fn waits(&self, answer: &Answer) -> bool {
        let plain = matches!(self.shape, Shape::Plain);
        // What is wanted as a whole, and what came as one and fits, goes as that.
        let whole = self.direct.is_some_and(|direct| !direct.streams)
            || (!self.streams && answer.body.len() <= CHUNK);
        !plain || whole
    }

    /// All of the answer is there.
    fn complete(&mut self, answer: &mut Answer) -> Result<(), Error> {
        match std::mem::replace(&mut self.shape, Shape::Plain) {
            Shape::Plain => Ok(()),
            Shape::Whole(content_type, whole) => {
                let response = function_url::response(content_type.as_deref(), whole.freeze());
                let (head, body) = response.map_err(|why| no_response(&why))?;
                answer.head = Some(head);
                answer.body.push(body);
                Ok(())
            }
            Shape::Headed(_) => Err(no_response("it ended within its head")),
        }
    }

    /// The head of an answer that is itself. A direct invoke is told what it was.
    fn head(&self, content_type: Option<String>) -> ResponseHead {
        let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
        head.headers.push("content-type", content_type.unwrap_or_else(|| "application/json".to_owned()));
        if self.direct.is_some() {
            head.headers.push("invoked-function-version", lambda::version(&self.offer.spec));
            head.headers.push("invoke-id", self.id.to_owned());
            head.headers.push("reservation-token", self.offer.id.to_string());
            let tenant = self.offer.head.headers.get("lambda-runtime-aws-tenant-id").unwrap_or_default();
            if !tenant.is_empty() {
                head.headers.push("tenant-id", tenant.to_owned());
            }
        }
        head
    }

    /// Why nothing more comes.
    async fn unsaid(&self) -> Error {
        match self.exit {
            Some(exit) => {
                let error = self.container.exited(exit, Phase::Call(self.offer.id)).await.may_have_started();
                error.report(lambda::exited(exit))
            }
            None => Error::new(Code::Internal, "the Runtime API went away").may_have_started(),
        }
    }

    fn too_late(&self) -> Error {
        let timeout = self.offer.spec.timeout();
        let error = match self.offer.deadline.remaining().is_zero() {
            true => Error::new(Code::DeadlineExceeded, "the caller's deadline passed while the function ran"),
            false => {
                let text = format!("the function took longer than its timeout of {timeout:?}");
                Error::new(Code::FunctionTimeout, text)
            }
        };
        error.may_have_started()
    }
}
