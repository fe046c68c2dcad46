//! The answer on its way: what was not sent yet, and what was.

use std::time::{Duration, Instant};

use stoker_core::call::{CHUNK, Headers};
use stoker_core::{Code, Error, ResponseHead};
use stoker_proto::convert;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};

use super::carry::cancelled;
use super::{Lost, Offer, Strand};
use crate::service::pieces::Pieces;

pub struct Answer {
    pub head: Option<ResponseHead>,
    pub length: Option<u64>,
    pub headed: bool,
    pub body: Pieces,
    /// What follows the body.
    pub trailers: Headers,
    /// Of the function's own process, where the call has one.
    pub starting: Duration,
    pub started: Instant,
    pub first_byte: Duration,
    /// The function closed its end.
    pub closed: bool,
}

impl Answer {
    /// Before the function was asked.
    pub fn new() -> Self {
        Self {
            head: None,
            length: None,
            headed: false,
            body: Pieces::default(),
            trailers: Headers::default(),
            starting: Duration::ZERO,
            started: Instant::now(),
            first_byte: Duration::ZERO,
            closed: false,
        }
    }

    /// Makes room for what is left in the last frame. An error, if the caller does not take it.
    pub async fn rest(&mut self, strand: &Strand, offer: &Offer) -> Result<Result<(), Error>, Lost> {
        if self.body.len() <= CHUNK && strand.try_credit(self.body.len()) {
            return Ok(Ok(()));
        }
        // The reader may be slow, or gone.
        tokio::select! {
            flushed = self.flush(strand) => flushed.map(Ok),
            reason = strand.cancelled() => Ok(Err(cancelled(reason))),
            () = tokio::time::sleep_until(offer.deadline.0.into()) => {
                let text = "the caller's deadline passed before all of the answer was taken";
                Ok(Err(Error::new(Code::DeadlineExceeded, text).may_have_started()))
            }
        }
    }

    /// All of it will go into one frame, as far as one can tell.
    pub fn fits(&self) -> bool {
        !self.headed && self.length.is_some_and(|n| n <= CHUNK as u64) && self.body.len() <= CHUNK
    }

    /// Sends what is there, as far as credit allows.
    pub async fn flush(&mut self, strand: &Strand) -> Result<(), Lost> {
        if let Some(head) = self.head.take() {
            self.headed = true;
            let head = Some(convert::to_response_head(head));
            strand.send(Frame::Head(wire::Head { call: strand.number, head, length: self.length })).await?;
        }
        while !self.body.is_empty() {
            let some = strand.take_credit(self.body.front().min(strand.longest_piece())).await;
            let data = self.body.take(some);
            strand
                .send(Frame::Body(wire::Body {
                    call: strand.number,
                    data,
                    last: false,
                    ..Default::default()
                }))
                .await?;
        }
        Ok(())
    }
}
