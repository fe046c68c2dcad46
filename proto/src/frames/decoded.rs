//! Messages as they come in.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use http_body::Body;
use prost::Message;
use tonic::Status;

use super::{LONG, PREFIX};

/// What was received and not read yet. A clone is another reader of the same bytes.
#[derive(Debug, Clone, Default)]
pub struct Received {
    frames: VecDeque<Bytes>,
    length: usize,
}

impl Received {
    /// Adds what came.
    pub fn push(&mut self, frame: Bytes) {
        if !frame.is_empty() {
            self.length += frame.len();
            self.frames.push_back(frame);
        }
    }

    /// The next `length` bytes, in the pieces in which they came. There must be so many.
    pub fn pieces(&mut self, mut length: usize) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        while length > 0 {
            let piece = self.next(length);
            length -= piece.len();
            pieces.push(piece);
        }
        pieces
    }

    /// What is next and came in one frame, at most `most` bytes of it. There must be some.
    fn next(&mut self, most: usize) -> Bytes {
        let there = self.frames.front().map_or(most, Bytes::len);
        self.slice(most.min(there))
    }

    /// The beginning of the first frame.
    fn slice(&mut self, length: usize) -> Bytes {
        let Some(front) = self.frames.front_mut() else { return Bytes::new() };
        let piece = if length == front.len() {
            self.frames.pop_front().unwrap_or_default()
        } else {
            front.split_to(length)
        };
        self.length -= piece.len();
        if piece.len() < LONG { Bytes::copy_from_slice(&piece) } else { piece }
    }
}

impl Buf for Received {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| frame)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.length, "nobody reads more than there is");
        self.length -= count;
        while let Some(front) = self.frames.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.frames.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        assert!(length <= self.length, "nobody reads more than there is");
        if self.frames.front().is_some_and(|front| front.len() >= length) {
            return self.slice(length);
        }
        let mut copy = BytesMut::with_capacity(length);
        copy.put(self.take(length));
        copy.freeze()
    }
}

/// Where a message ends, or why there is none.
#[derive(Debug)]
enum Head {
    Missing,
    Known(usize),
}

/// The messages of a body.
#[derive(Debug)]
pub struct Decoded<B, M> {
    body: B,
    received: Received,
    head: Head,
    /// Most bytes of one message.
    limit: usize,
    is_answer: bool,
    over: bool,
    message: PhantomData<fn() -> M>,
}

impl<B, M> Decoded<B, M>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    M: Message + Default,
{
    fn new(body: B, limit: usize, is_answer: bool) -> Self {
        let (received, head) = (Received::default(), Head::Missing);
        Self { body, received, head, limit, is_answer, over: false, message: PhantomData }
    }

    /// Those of a request.
    pub fn request(body: B, limit: usize) -> Self {
        Self::new(body, limit, false)
    }

    /// Those of an answer, which ends with a status.
    pub fn answer(body: B, limit: usize) -> Self {
        Self::new(body, limit, true)
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// Of the connection, of the sender, or the status with which an answer ends. Nothing comes after it.
    pub async fn message(&mut self) -> Result<Option<M>, Status> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await.transpose()
    }

    /// The bytes of the next message, once all of them are there; `None` at the end.
    pub fn poll_received(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(&mut Received, usize)>, Status>> {
        let Some(length) = ready!(self.poll_begun(cx, usize::MAX))? else { return Poll::Ready(Ok(None)) };
        self.head = Head::Missing;
        Poll::Ready(Ok(Some((&mut self.received, length))))
    }

    /// The length of the next message, once `enough` bytes of it are there, or all of them where it has less; `None` at the end. The message stays.
    pub(super) fn poll_begun(
        &mut self,
        cx: &mut Context<'_>,
        enough: usize,
    ) -> Poll<Result<Option<usize>, Status>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            match self.head()? {
                Head::Known(length) if self.received.remaining() >= length.min(enough) => {
                    self.head = Head::Known(length);
                    return Poll::Ready(Ok(Some(length)));
                }
                head => self.head = head,
            }
            if !ready!(self.poll_more(cx))? {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// What is there of the message that has begun, and of what follows it.
    pub(super) fn received(&mut self) -> &mut Received {
        &mut self.received
    }

    /// The next bytes of the message that has begun, at most `most`; they are missed if the sender ends here.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Bytes, Status>> {
        while self.received.frames.is_empty() {
            if !ready!(self.poll_more(cx))? {
                return Poll::Ready(Err(self.cut_short()));
            }
        }
        Poll::Ready(Ok(self.received.next(most)))
    }

    /// Waits for more bytes; `false` at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Status>> {
        if self.over {
            return Poll::Ready(Ok(false));
        }
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.ended(None).map(|()| false)),
                Some(Err(error)) => {
                    self.over = true;
                    return Poll::Ready(Err(Status::from_error(error.into())));
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    self.received.push(data);
                    return Poll::Ready(Ok(true));
                }
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        return Poll::Ready(self.ended(Some(&trailers)).map(|()| false));
                    }
                }
            }
        }
    }

    fn head(&mut self) -> Result<Head, Status> {
        if let Head::Known(length) = self.head {
            return Ok(Head::Known(length));
        }
        if self.received.remaining() < PREFIX {
            return Ok(Head::Missing);
        }
        let compressed = self.received.get_u8();
        let length = self.received.get_u32() as usize;
        let wrong = if compressed != 0 {
            Status::unimplemented("messages are not compressed here: leave grpc-encoding out")
        } else if length > self.limit {
            Status::out_of_range(format!(
                "a message of {length} bytes, at most {} are taken here",
                self.limit
            ))
        } else {
            return Ok(Head::Known(length));
        };
        self.over = true;
        Err(wrong)
    }

    /// How it ended, if that is an error.
    fn ended(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Status> {
        self.over = true;
        if self.is_answer {
            return match trailers.and_then(Status::from_header_map) {
                Some(status) if status.code() == tonic::Code::Ok => self.complete(),
                Some(status) => Err(status),
                None => Err(Status::unknown("the answer ended without a status")),
            };
        }
        self.complete()
    }

    fn complete(&self) -> Result<(), Status> {
        match (self.received.remaining(), &self.head) {
            (0, Head::Missing) => Ok(()),
            _ => Err(self.cut_short()),
        }
    }

    fn cut_short(&self) -> Status {
        self.wrong("the stream ended in the middle of a message")
    }

    /// What the sender did wrong: a client with its request, or we with our answer.
    pub(super) fn wrong(&self, what: impl Into<String>) -> Status {
        let whose = if self.is_answer { tonic::Code::Internal } else { tonic::Code::InvalidArgument };
        Status::new(whose, what)
    }
}

impl<B, M> Stream for Decoded<B, M>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    M: Message + Default,
{
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((received, length)) = ready!(self.poll_received(cx))? else { return Poll::Ready(None) };
        let decoded = match length < LONG {
            // Copied out in one, so that what is in it are slices.
            true => M::decode(received.copy_to_bytes(length)),
            false => M::decode(&mut received.take(length)),
        };
        Poll::Ready(Some(decoded.map_err(|error| {
            self.over = true;
            self.wrong(format!("a message cannot be understood: {error}"))
        })))
    }
}
