//! The conversation with a function: input goes in and the answer comes out, both at once, over whatever carries them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use stoker_core::call::{CHUNK, Taken};
use stoker_core::{Code, Error};
use stoker_format::{After, Event as Said, Exchange, Fault, Request};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::answer::Answer;
use super::carry::cancelled;
use super::{Lost, Offer, Strand};
use crate::container::channel::Widen;

/// An answer without a length is held back this long: the exit status of a process of one call may still make an error of it.
const LINGER: Duration = Duration::from_millis(20);

/// A function's timeout that was put off for a reader that stood still is looked at again no sooner.
const GRAIN: Duration = Duration::from_millis(100);

/// Pieces of a body from this size on are written from where they are, instead of being copied behind their head.
const WORTH: usize = 8 * 1024;

/// What is to be written at once.
#[derive(Default)]
pub struct Load {
    before: BytesMut,
    piece: Bytes,
    after: BytesMut,
    /// All that ever was in it.
    encoded: usize,
}

impl Load {
    /// Encodes a piece of the body, and with the last what stands behind it.
    pub fn body(&mut self, exchange: &mut Exchange, piece: Bytes, last: bool) {
        let left = self.left();
        let Self { before, piece: own, after, .. } = self;
        let whole = piece.len() >= WORTH && exchange.frame(piece.len(), before, after);
        if whole {
            *own = piece;
        } else {
            exchange.encode_body(&piece, before);
        }
        if last {
            exchange.encode_end(if whole { after } else { before });
        }
        self.encoded += self.left() - left;
    }

    /// Encodes what stands before the body.
    pub fn head(&mut self, exchange: &mut Exchange, request: &Request<'_>) {
        exchange.encode_head(request, &mut self.before);
        self.encoded += self.before.len();
    }

    fn left(&self) -> usize {
        self.before.len() + self.piece.len() + self.after.len()
    }

    /// How much of it was written.
    pub fn written(&self) -> usize {
        self.encoded - self.left()
    }

    /// Writes and forgets it.
    async fn write(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        if self.piece.is_empty() {
            out.write_all_buf(&mut self.before).await?;
        } else {
            let mut all = (&mut self.before).chain(&mut self.piece).chain(&mut self.after);
            out.write_all_buf(&mut all).await?;
        }
        Ok(())
    }
}

/// The call as its conversation needs it.
pub struct Talk<'a> {
    pub strand: &'a Strand,
    pub offer: &'a Offer,
    pub exchange: Mutex<Exchange>,
    /// How long the function may take.
    pub timeout: Duration,
    /// All of the body is in the first load.
    pub complete: bool,
    pub clock: Mutex<Clock>,
}

/// The function's time. It passes while the function has its input, or does not take what is there of it; not while the client's
/// is awaited, and not while the reader of the answer stands still.
#[derive(Default)]
pub struct Clock {
    /// Since when it runs, and how long the reader had stood still by then.
    running: Option<(Instant, Duration)>,
    /// What passed before.
    spent: Duration,
}

impl Clock {
    fn run(&mut self, stood: Duration) {
        self.running.get_or_insert((Instant::now(), stood));
    }

    fn pause(&mut self, stood: Duration) {
        if let Some((since, before)) = self.running.take() {
            self.spent += since.elapsed().saturating_sub(stood.saturating_sub(before));
        }
    }

    /// When `timeout` is over at the soonest, and whether that is sure.
    fn due(&self, timeout: Duration, stood: Duration) -> (Instant, bool) {
        let left = timeout.saturating_sub(self.spent);
        match self.running {
            Some((since, before)) => (since + left + stood.saturating_sub(before), true),
            None => (Instant::now() + left, false),
        }
    }
}

/// How a conversation with a function ended.
pub enum End {
    Answered(After),
    Failed { error: Error, after: After },
}

impl End {
    /// Whatever was meant to be next on this channel, half a request is there.
    fn unfinished(self) -> Self {
        let less = |after| if after == After::Reuse { After::Reconnect } else { after };
        match self {
            End::Answered(after) => End::Answered(less(after)),
            End::Failed { error, after } => End::Failed { error, after: less(after) },
        }
    }
}

/// What became of the request.
enum Fed {
    Whole,
    /// The function does not want the rest of it, and closed its end: that is its right.
    Closed,
    /// It cannot be written in this format, as the rest of it showed.
    Broken(Fault),
}

impl Talk<'_> {
    /// Until the answer is complete or there is none to expect. What came and was not taken stays in `input`.
    pub async fn run<R: AsyncRead + Widen + Unpin, W: AsyncWrite + Widen + Unpin>(
        &self,
        answer: &mut Answer,
        load: &mut Load,
        input: &mut BytesMut,
        mut read: R,
        write: W,
    ) -> Result<End, Lost> {
        let (strand, offer) = (self.strand, self.offer);
        let feed = self.feed(load, write);
        tokio::pin!(feed);
        let output = self.answer(answer, input, &mut read);
        tokio::pin!(output);
        let cancel = strand.cancelled();
        tokio::pin!(cancel);
        let (mut fed, mut whole) = (false, false);
        let mut limit = offer.deadline.0.min(Instant::now() + self.timeout);
        let timer = tokio::time::sleep_until(limit.into());
        tokio::pin!(timer);
        loop {
            tokio::select! {
                // In this order: nothing can be read before it was asked for, and an answer that is complete counts, however
                // late it is.
                biased;
                how = &mut feed, if !fed => {
                    fed = true;
                    match how? {
                        Fed::Whole => whole = true,
                        Fed::Closed => {}
                        Fed::Broken(fault) => {
                            let error = Error::new(fault.code, fault.message).may_have_started();
                            return Ok(End::Failed { error, after: After::Destroy });
                        }
                    }
                }
                end = &mut output => return end.map(|end| if whole { end } else { end.unfinished() }),
                reason = &mut cancel => {
                    return Ok(End::Failed { error: cancelled(reason), after: After::Destroy });
                }
                () = &mut timer => {
                    let error = if limit >= offer.deadline.0 {
                        Error::new(Code::DeadlineExceeded, "the caller's deadline passed while the function ran")
                    } else {
                        let (due, sure) = self.clock().due(self.timeout, strand.stood());
                        if !sure || due > limit {
                            // Something held it up: it is looked at again, but not at shorter and shorter steps.
                            limit = offer.deadline.0.min(due.max(Instant::now() + GRAIN));
                            timer.as_mut().reset(limit.into());
                            continue;
                        }
                        Error::new(Code::FunctionTimeout, self.too_long(fed))
                    };
                    return Ok(End::Failed { error: error.may_have_started(), after: After::Destroy });
                }
            }
        }
    }

    fn too_long(&self, fed: bool) -> String {
        let timeout = self.offer.spec.timeout();
        let mut text = format!("the function took longer than its timeout of {timeout:?}");
        if self.timeout > timeout {
            let init = self.timeout - timeout;
            text.push_str(&format!(" and, since it had to come up first, its init_timeout of {init:?}"));
        }
        if !fed {
            text.push_str("; it has not taken all of its input");
        }
        text
    }

    /// Both directions encode and decode with the one exchange, but never at the same time, and never across an await.
    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the request.
    async fn feed<W: AsyncWrite + Widen + Unpin>(&self, load: &mut Load, mut write: W) -> Result<Fed, Lost> {
        self.clock().run(self.strand.stood());
        if load.write(&mut write).await.is_err() {
            return Ok(Fed::Closed);
        }
        let mut complete = self.complete;
        if !complete {
            write.widen();
        }
        let mut taken = Taken::default();
        while !complete {
            self.clock().pause(self.strand.stood());
            let (piece, last) = self.strand.next_body().await;
            self.clock().run(self.strand.stood());
            let due = taken.add(piece.len());
            {
                let mut exchange = self.exchange();
                if last {
                    exchange.trailers(self.strand.trailers());
                }
                load.body(&mut exchange, piece, last);
                if let Some(fault) = exchange.fault() {
                    return Ok(Fed::Broken(fault.clone()));
                }
            }
            complete = last;
            if load.write(&mut write).await.is_err() {
                return Ok(Fed::Closed);
            }
            if let Some(due) = due {
                self.strand.allow(due).await?;
            }
        }
        Ok(Fed::Whole)
    }

    /// Reads the answer and passes it on.
    async fn answer<R: AsyncRead + Widen + Unpin>(
        &self,
        answer: &mut Answer,
        input: &mut BytesMut,
        read: &mut R,
    ) -> Result<End, Lost> {
        let once = !self.offer.spec.is_hot();
        let mut held_since: Option<Instant> = None;
        let mut eof = false;
        // Grows with what comes at once: a small answer needs little, a long one should not cost a system call every few KiB.
        let mut room = 8 * 1024;
        // Of a body whose length is known no read goes beyond the end of a piece, so that credit and windows, which are so many pieces, cut none in two.
        let (mut got, mut long) = (0, false);
        let longest = self.strand.longest_piece();
        loop {
            loop {
                let said = self.exchange().decode(input, eof);
                match said {
                    None => break,
                    Some(Said::Head { head, length }) => {
                        answer.first_byte = answer.started.elapsed();
                        answer.head = Some(head);
                        answer.length = length;
                        held_since = Some(Instant::now());
                        long = length.is_some_and(|length| length > CHUNK as u64);
                        if long {
                            room = longest;
                            read.widen();
                        }
                    }
                    Some(Said::Body(piece)) => {
                        got += piece.len();
                        answer.body.push(piece);
                        if answer.body.len() > longest {
                            answer.flush(self.strand).await?;
                        }
                    }
                    Some(Said::Trailers(trailers)) => answer.trailers = trailers,
                    Some(Said::End(after)) => return Ok(End::Answered(after)),
                    Some(Said::Failed { code, message, after }) => {
                        let error = Error::new(code, message).may_have_started();
                        return Ok(End::Failed { error, after });
                    }
                }
            }
            if eof {
                let error = Error::new(Code::Internal, "the answer ended without an end").may_have_started();
                return Ok(End::Failed { error, after: After::Destroy });
            }
            input.reserve(room);
            let spare = input.capacity() - input.len();
            let most = if long { spare.min(longest - got % longest) } else { spare };
            let mut space = (&mut *input).limit(most);
            let pending = answer.head.is_some() || !answer.body.is_empty();
            let hold = answer.fits() || !pending;
            let count = if hold {
                read.read_buf(&mut space).await
            } else if once && !answer.headed {
                let until = held_since.unwrap_or_else(Instant::now) + LINGER;
                match tokio::time::timeout_at(until.into(), read.read_buf(&mut space)).await {
                    Ok(count) => count,
                    Err(_) => {
                        answer.flush(self.strand).await?;
                        continue;
                    }
                }
            } else {
                // What is there goes out unless more is there already.
                tokio::select! {
                    biased;
                    count = read.read_buf(&mut space) => count,
                    () = std::future::ready(()) => {
                        answer.flush(self.strand).await?;
                        continue;
                    }
                }
            };
            if matches!(count, Ok(n) if n == spare) && room < longest {
                room = longest.min(2 * room);
                if room == longest {
                    read.widen();
                }
            }
            // A connection that breaks ends like one that is closed.
            eof = !matches!(count, Ok(n) if n > 0);
            answer.closed = eof;
        }
    }
}
