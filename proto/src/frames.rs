//! Messages of gRPC on a stream of HTTP/2, without a copy of the pieces of bodies in them.
//!
//! The generated services copy every message on either end of a connection: into the buffer in which it is encoded, and out of the
//! frames in which it came. For a piece of a body that is most of what a hop costs. [`Encoded`] sends what is long in a message
//! as it is, in a frame behind the rest of the message, and [`Decoded`] gives out slices of what was received. On the wire nothing is
//! different: where messages are cut into frames means nothing to gRPC.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint,
    key_len,
};
use prost::{DecodeError, Message};
use tonic::Status;

use crate::runner::v1::engage_request::Frame as Ask;
use crate::runner::v1::{EngageRequest, EngageResponse, engage_response::Frame as Tell};
use crate::v1::session_request::Frame as FromClient;
use crate::v1::session_response::Frame as ToClient;
use crate::v1::{
    InvokeRequest, InvokeResponse, InvokeStreamResponse, SessionRequest, SessionResponse,
    invoke_stream_response,
};

/// From this length on a piece is worth a frame of its own, and a slice worth to be held: what holds a slice holds the whole
/// buffer that it was received in, so that small ones are copied out.
const LONG: usize = 16 << 10;

/// Room that is made for messages at once.
const ROOM: usize = 8 << 10;

/// Messages that are there at once go out together, up to about this many bytes.
const ENOUGH: usize = 32 << 10;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Out {
    /// Complete frames.
    frames: VecDeque<Bytes>,
    /// The frame that is being written.
    open: BytesMut,
}

impl Out {
    fn prefix(&mut self, length: usize) {
        // Of what is long nothing is written here. Room for more than one message spares growing step by step.
        let wanted = PREFIX + length.min(LONG);
        if self.open.capacity() - self.open.len() < wanted {
            self.open.reserve(wanted.max(ROOM));
        }
        self.open.put_u8(0);
        // Limits on messages are far below what four bytes hold.
        self.open.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// A message that holds nothing long.
    pub fn whole(&mut self, message: &impl Message) {
        self.prefix(message.encoded_len());
        message.encode_raw(&mut self.open);
    }

    /// A message whose field `field` is `pieces`, one behind the other, besides what else is in `message`.
    pub fn with_pieces(&mut self, message: &impl Message, field: u32, pieces: Vec<Bytes>) {
        let length = pieces.iter().map(Bytes::len).sum();
        self.prefix(message.encoded_len() + bytes_len(field, length));
        message.encode_raw(&mut self.open);
        bytes_key(field, length, &mut self.open);
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    /// A message of which the field `at` is another, `inner`, whose field `field` is `data` besides what else is in both.
    fn with_data(&mut self, message: &impl Message, at: u32, inner: &impl Message, field: u32, data: Bytes) {
        let length = inner.encoded_len() + bytes_len(field, data.len());
        self.prefix(message.encoded_len() + bytes_len(at, length));
        message.encode_raw(&mut self.open);
        bytes_key(at, length, &mut self.open);
        inner.encode_raw(&mut self.open);
        bytes_key(field, data.len(), &mut self.open);
        self.piece(data);
    }

    fn piece(&mut self, data: Bytes) {
        if data.len() < LONG {
            self.open.extend_from_slice(&data);
            return;
        }
        self.close();
        self.frames.push_back(data);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.frames.push_back(self.open.split().freeze());
        }
    }

    /// Everything, in frames.
    #[must_use]
    pub fn finish(mut self) -> VecDeque<Bytes> {
        self.close();
        self.frames
    }

    fn is_enough(&self) -> bool {
        !self.frames.is_empty() || self.open.len() >= ENOUGH
    }
}

fn bytes_len(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

fn bytes_key(field: u32, length: usize, out: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// A message that may hold a piece of a body.
pub trait Carries: Message + Default {
    /// Writes it.
    fn write(self, out: &mut Out);
}

/// The variants that hold one: the number of the variant, its field, and that field's number.
macro_rules! carries {
    ($message:ident, $kind:ident: $($variant:ident = $at:literal . $data:ident = $field:literal),+) => {
        impl Carries for $message {
            fn write(mut self, out: &mut Out) {
                let mut frame = self.frame.take();
                match &mut frame {
                    $(Some($kind::$variant(inner)) if inner.$data.len() >= LONG => {
                        let data = std::mem::take(&mut inner.$data);
                        out.with_data(&self, $at, inner, $field, data);
                    })+
                    _ => {
                        self.frame = frame;
                        out.whole(&self);
                    }
                }
            }
        }
    };
}
carries!(EngageRequest, Ask: Offer = 3 . body = 8, Body = 5 . data = 2);
carries!(EngageResponse, Tell: Body = 7 . data = 2, Finished = 9 . body = 3);
carries!(SessionRequest, FromClient: Start = 2 . body = 3, Body = 3 . data = 1);
carries!(SessionResponse, ToClient: Body = 3 . data = 1, Finished = 5 . body = 3);

impl Carries for InvokeStreamResponse {
    fn write(self, out: &mut Out) {
        match self.frame {
            Some(invoke_stream_response::Frame::Body(data)) if data.len() >= LONG => {
                out.with_pieces(&InvokeStreamResponse::default(), 2, vec![data]);
            }
            _ => out.whole(&self),
        }
    }
}

/// Messages as the body of a request or of an answer.
#[derive(Debug)]
pub struct Encoded<S> {
    messages: S,
    out: Out,
    state: State,
}

#[derive(Debug)]
enum State {
    Open {
        is_answer: bool,
    },
    /// The last words of an answer.
    Ending(HeaderMap),
    /// A request cannot go on.
    Broken(Status),
    Ended,
}

impl<S> Encoded<S> {
    /// The body of a request. An error breaks it off.
    pub fn request(messages: S) -> Self {
        Self { messages, out: Out::default(), state: State::Open { is_answer: false } }
    }

    /// The body of an answer, which ends with the status of an error, or with success.
    pub fn answer(messages: S) -> Self {
        Self { messages, out: Out::default(), state: State::Open { is_answer: true } }
    }
}

/// The trailers of an answer that ends so.
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails on texts that no header can hold, and those are escaped.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, (tonic::Code::Internal as i32).into());
    }
    trailers
}

impl<M: Carries, S: Stream<Item = Result<M, Status>> + Unpin> Body for Encoded<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while let State::Open { is_answer } = this.state
            && !this.out.is_enough()
        {
            match Pin::new(&mut this.messages).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => message.write(&mut this.out),
                Poll::Ready(Some(Err(status))) if is_answer => this.state = State::Ending(trailers(&status)),
                Poll::Ready(Some(Err(status))) => this.state = State::Broken(status),
                Poll::Ready(None) if is_answer => {
                    this.state = State::Ending(trailers(&Status::new(tonic::Code::Ok, "")));
                }
                Poll::Ready(None) => this.state = State::Ended,
                Poll::Pending if this.out.open.is_empty() => return Poll::Pending,
                // What is there goes out now.
                Poll::Pending => break,
            }
        }
        if this.out.frames.is_empty() {
            this.out.close();
        }
        if let Some(frame) = this.out.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        Poll::Ready(match std::mem::replace(&mut this.state, State::Ended) {
            State::Ending(trailers) => Some(Ok(Frame::trailers(trailers))),
            State::Broken(status) => Some(Err(status)),
            State::Open { .. } | State::Ended => None,
        })
    }
}

/// What was received and not read yet.
#[derive(Debug, Default)]
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
            let most = self.frames.front().map_or(length, Bytes::len);
            let piece = self.slice(length.min(most));
            length -= piece.len();
            pieces.push(piece);
        }
        pieces
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
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            match self.head()? {
                Head::Known(length) if self.received.remaining() >= length => {
                    self.head = Head::Missing;
                    return Poll::Ready(Ok(Some((&mut self.received, length))));
                }
                head => self.head = head,
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.ended(None).map(|()| None)),
                Some(Err(error)) => {
                    self.over = true;
                    return Poll::Ready(Err(Status::from_error(error.into())));
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => self.received.push(data),
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        return Poll::Ready(self.ended(Some(&trailers)).map(|()| None));
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
            _ => Err(Status::internal("the stream ended in the middle of a message")),
        }
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
            Status::internal(format!("a message cannot be understood: {error}"))
        })))
    }
}

/// The one message of an `Invoke`, and its body in the pieces in which it came: a body of megabytes is joined for nobody.
///
/// # Errors
/// Of the connection, or of the client.
pub async fn invoke_request<B>(body: B, limit: usize) -> Result<(InvokeRequest, Vec<Bytes>), Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut decoded = Decoded::<B, InvokeRequest>::request(body, limit);
    std::future::poll_fn(|cx| {
        Poll::Ready(match ready!(decoded.poll_received(cx))? {
            Some((received, length)) => {
                let read = match length < LONG {
                    true => InvokeRequest::decode(received.copy_to_bytes(length)).map(|mut request| {
                        let body = std::mem::take(&mut request.body);
                        (request, vec![body])
                    }),
                    false => in_pieces(received.take(length)),
                };
                read.map_err(|error| {
                    Status::invalid_argument(format!("the message cannot be understood: {error}"))
                })
            }
            None => Err(Status::invalid_argument("there is no message")),
        })
    })
    .await
}

fn in_pieces(
    mut message: bytes::buf::Take<&mut Received>,
) -> Result<(InvokeRequest, Vec<Bytes>), DecodeError> {
    let (mut request, mut pieces) = (InvokeRequest::default(), Vec::new());
    while message.has_remaining() {
        let (field, kind) = decode_key(&mut message)?;
        if (field, kind) != (INVOKE_BODY, WireType::LengthDelimited) {
            request.merge_field(field, kind, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let Some(left) = message.remaining().checked_sub(length) else {
            // What the generated code says of a field that is longer than its message.
            return InvokeRequest::decode(&[(INVOKE_BODY << 3 | 2) as u8, 1][..])
                .map(|request| (request, pieces));
        };
        pieces = message.get_mut().pieces(length);
        message.set_limit(left);
    }
    Ok((request, pieces))
}

/// The number of the field `body` of `InvokeRequest` and `InvokeResponse`.
const INVOKE_BODY: u32 = 3;

/// The answer to an `Invoke`: one message and success.
#[derive(Debug)]
pub struct Whole {
    frames: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Whole {
    /// `body` in place of what `answer` has as its own.
    #[must_use]
    pub fn new(answer: InvokeResponse, body: Vec<Bytes>) -> Self {
        let mut out = Out::default();
        out.with_pieces(&InvokeResponse { body: Bytes::new(), ..answer }, INVOKE_BODY, body);
        Self { frames: out.finish(), trailers: Some(trailers(&Status::new(tonic::Code::Ok, ""))) }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let data = self.frames.pop_front().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::v1 as wire;
    use crate::v1;
    use futures_util::{FutureExt as _, StreamExt as _};
    use proptest::prelude::*;

    /// A body in given frames.
    struct Cut(VecDeque<Frame<Bytes>>);

    impl Body for Cut {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn frames<M: Carries>(messages: Vec<Result<M, Status>>, answer: bool) -> (Vec<Bytes>, Option<HeaderMap>) {
        let messages = futures_util::stream::iter(messages);
        let mut body = if answer { Encoded::answer(messages) } else { Encoded::request(messages) };
        let (mut data, mut trailers) = (Vec::new(), None);
        while let Some(frame) =
            std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never().expect("it is there")
        {
            match frame.expect("no error").into_data() {
                Ok(frame) => data.push(frame),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        (data, trailers)
    }

    /// The same bytes, cut every `every` bytes.
    fn cut(frames: &[Bytes], every: usize, trailers: Option<HeaderMap>) -> Cut {
        let all: Bytes = frames.concat().into();
        let cuts = (0..all.len().div_ceil(every))
            .map(|n| Frame::data(all.slice(n * every..all.len().min((n + 1) * every))));
        Cut(cuts.chain(trailers.map(Frame::trailers)).collect())
    }

    fn read<M: Carries>(body: Cut, answer: bool) -> Vec<Result<M, Status>> {
        let decoded = if answer { Decoded::answer(body, 1 << 20) } else { Decoded::request(body, 1 << 20) };
        decoded.collect::<Vec<_>>().now_or_never().expect("all is there")
    }

    fn data() -> impl Strategy<Value = Bytes> {
        let length = prop_oneof![0usize..50, LONG - 2..LONG + 2, Just(64 << 10)];
        (any::<u8>(), length).prop_map(|(byte, length)| Bytes::from(vec![byte; length]))
    }

    /// Whatever is sent comes out, however it is cut; and the generated decoder reads it as well.
    fn round<M: Carries + Clone + PartialEq>(messages: Vec<M>, every: usize) {
        for answer in [false, true] {
            let (sent, trailers) = frames(messages.iter().cloned().map(Ok).collect(), answer);
            assert_eq!(trailers.is_some(), answer);
            for body in [
                cut(&sent, every, trailers.clone()),
                Cut(sent
                    .iter()
                    .cloned()
                    .map(Frame::data)
                    .chain(trailers.clone().map(Frame::trailers))
                    .collect()),
            ] {
                let got: Vec<M> = read(body, answer).into_iter().map(|m| m.expect("a message")).collect();
                assert!(got == messages);
            }
            let all = sent.concat();
            let mut rest = &all[..];
            for message in &messages {
                assert_eq!(rest.get_u8(), 0);
                let length = rest.get_u32() as usize;
                assert!(M::decode(&rest[..length]).expect("a message") == *message);
                rest.advance(length);
            }
            assert!(rest.is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_survive_the_way(data in prop::collection::vec(data(), 0..6), every in 1usize..100_000, call in any::<u64>()) {
            let every = every.max(7);
            let text = || "text".to_owned();
            round(data.iter().flat_map(|data| [
                EngageRequest { frame: Some(Ask::Body(wire::Body { call, data: data.clone(), last: true })) },
                EngageRequest { frame: Some(Ask::Offer(wire::Offer { call, body: data.clone(), complete: true, traceparent: text(), ..Default::default() })) },
                EngageRequest { frame: Some(Ask::Credit(wire::Credit { call, bytes: 1 })) },
            ]).collect(), every);
            round(data.iter().flat_map(|data| [
                EngageResponse { frame: Some(Tell::Body(wire::Body { call, data: data.clone(), last: false })) },
                EngageResponse { frame: Some(Tell::Finished(Box::new(wire::Finished { call, body: data.clone(), container: text(), ..Default::default() }))) },
                EngageResponse { frame: None },
            ]).collect(), every);
            round(data.iter().flat_map(|data| [
                SessionRequest { call, frame: Some(FromClient::Start(v1::SessionStart { function: text(), body: data.clone(), timeout_ms: 7, ..Default::default() })) },
                SessionRequest { call, frame: Some(FromClient::Body(v1::SessionBody { data: data.clone(), last: true })) },
            ]).collect(), every);
            round(data.iter().flat_map(|data| [
                SessionResponse { call, frame: Some(ToClient::Body(v1::SessionBody { data: data.clone(), last: true })) },
                SessionResponse { call, frame: Some(ToClient::Finished(Box::new(v1::SessionFinished { runner: text(), body: data.clone(), ..Default::default() }))) },
            ]).collect(), every);
            round(data.iter().map(|data| InvokeStreamResponse {
                frame: Some(invoke_stream_response::Frame::Body(data.clone())),
            }).collect(), every);
        }

        /// Whatever comes ends in messages, in an error, or in the end; and nothing after that.
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..400), every in 1usize..50) {
            for answer in [false, true] {
                let got = read::<SessionRequest>(cut(&[bytes.clone().into()], every, None), answer);
                let failed = got.iter().position(Result::is_err);
                prop_assert!(failed.is_none_or(|at| at + 1 == got.len()));
                prop_assert!(!answer || failed.is_some(), "an answer without a status is not complete");
            }
        }
    }

    #[test]
    fn what_is_long_is_neither_copied_when_sent_nor_when_received() {
        let data = Bytes::from(vec![7; 64 << 10]);
        let message = |data: &Bytes| EngageRequest {
            frame: Some(Ask::Body(wire::Body { call: 1, data: data.clone(), last: true })),
        };
        let (sent, _) = frames(vec![Ok(message(&data))], false);
        assert_eq!(sent.len(), 2);
        assert_eq!(sent[1].as_ptr(), data.as_ptr());
        let body = Cut(sent.into_iter().map(Frame::data).collect());
        let Some(Ask::Body(got)) = read::<EngageRequest>(body, false).remove(0).expect("a message").frame
        else {
            panic!("another frame")
        };
        assert_eq!(got.data.as_ptr(), data.as_ptr());
        // A short one does not hold on to what it came in.
        let short = Bytes::from(vec![7; 100]);
        let (sent, _) = frames(vec![Ok(message(&short)), Ok(message(&short))], false);
        assert_eq!(sent.len(), 1, "those that are there go out together");
        let whole = sent[0].clone();
        let got = read::<EngageRequest>(Cut([Frame::data(whole.clone())].into()), false);
        assert!(got.len() == 2 && sent.len() == 1);
        drop(sent);
        assert!(whole.is_unique());
    }

    #[test]
    fn an_answer_ends_as_it_was_ended() {
        let one = SessionResponse { call: 1, frame: None };
        let (sent, trailers) = frames(vec![Ok(one), Err(Status::aborted("a \u{e9}"))], true);
        let got = read::<SessionResponse>(cut(&sent, 3, trailers), true);
        let error = got[1].as_ref().expect_err("it was aborted");
        assert_eq!((got.len(), error.code(), error.message()), (2, tonic::Code::Aborted, "a \u{e9}"));
        // Cut off in the middle, compressed, too large.
        let whole =
            frames::<SessionResponse>(vec![Ok(SessionResponse { call: 300, frame: None })], false).0.concat();
        for (bytes, code) in [
            (&whole[..whole.len() - 1], tonic::Code::Internal),
            (&whole[..3], tonic::Code::Internal),
            (&[1, 0, 0, 0, 0], tonic::Code::Unimplemented),
            (&[0, 1, 0, 0, 0], tonic::Code::OutOfRange),
            (&[0, 0, 0, 0, 2, 0xff, 0xff], tonic::Code::Internal),
        ] {
            let body = cut(&[Bytes::copy_from_slice(bytes)], 2, None);
            let got = read::<SessionRequest>(body, false);
            assert_eq!(got[0].as_ref().expect_err("not whole").code(), code, "{bytes:?}");
        }
    }

    #[test]
    fn a_message_may_have_its_body_in_pieces() {
        let pieces = vec![Bytes::from(vec![1; LONG]), Bytes::from(vec![2; 5]), Bytes::from(vec![3; LONG])];
        let message = InvokeResponse { call_id: "id".into(), runner: "r".into(), ..Default::default() };
        let sent = Vec::from(Whole::new(message.clone(), pieces.clone()).frames);
        assert_eq!(sent[1].as_ptr(), pieces[0].as_ptr());
        let expected = InvokeResponse { body: pieces.concat().into(), ..message };
        assert_eq!(InvokeResponse::decode(&sent.concat()[PREFIX..]), Ok(expected));
        let mut received = Received::default();
        sent.iter().cloned().for_each(|frame| received.push(frame));
        received.advance(sent[0].len());
        let got = received.pieces(LONG + 3);
        assert_eq!((got.len(), got[0].as_ptr(), &got[1][..]), (2, pieces[0].as_ptr(), &[2u8, 2, 2][..]));
        assert_eq!(received.remaining(), LONG + 2);
        assert_eq!(received.copy_to_bytes(3), [2u8, 2, 3][..]);
    }
    #[test]
    fn an_invocation_is_read_in_the_pieces_in_which_it_came() {
        let head = v1::RequestHead { method: "PUT".into(), ..Default::default() };
        let body = Bytes::from((0..200_000u32).map(|n| n as u8).collect::<Vec<_>>());
        let message = InvokeRequest { function: "a/f".into(), head: Some(head), body };
        let mut bytes = vec![0];
        bytes.put_u32(message.encoded_len() as u32);
        message.encode(&mut bytes).expect("a vector grows");
        let bytes = Bytes::from(bytes);
        let read = |bytes: &[u8], every| {
            let body = cut(&[Bytes::copy_from_slice(bytes)], every, None);
            invoke_request(body, 1 << 20).now_or_never().expect("all is there")
        };
        for every in [1, 100, 16 << 10, 128 << 10, 1 << 20] {
            let (got, pieces) = read(&bytes, every).expect("a message");
            assert!(pieces.concat() == message.body && pieces.len() <= 200_000usize.div_ceil(every) + 1);
            assert_eq!(got, InvokeRequest { body: Bytes::new(), ..message.clone() });
        }
        for (bytes, code) in [
            (&bytes[..0], tonic::Code::InvalidArgument),
            (&bytes[..100], tonic::Code::Internal),
            // The body is longer than the message, or there are fields of another kind in its place.
            (&[0, 0, 0, 0, 3, 0x1a, 9, 1], tonic::Code::InvalidArgument),
            (&[0, 0, 0, 0, 2, 0x18, 9], tonic::Code::InvalidArgument),
            (&[0, 0, 0, 0, 3, 0x0a, 9, 1], tonic::Code::InvalidArgument),
        ] {
            assert_eq!(read(bytes, 1).expect_err("wrong").code(), code, "{bytes:?}");
        }
        // Unknown fields are passed over, and of several bodies the last counts, in short messages and in long ones.
        for text in [0, 20_000] {
            let message = |end: &[u8]| {
                let function = InvokeRequest { function: "f".repeat(text), ..Default::default() };
                let mut bytes = vec![0];
                bytes.put_u32((function.encoded_len() + end.len()) as u32);
                function.encode(&mut bytes).expect("a vector grows");
                bytes.extend_from_slice(end);
                bytes
            };
            let odd = message(&[0x1a, 1, 1, 0x1a, 1, 2, 0x78, 1]);
            let (request, body) = read(&odd, 1000).expect("a message");
            assert_eq!((body, request.function.len()), (vec![Bytes::from_static(&[2])], text));
            let long = read(&message(&[0x1a, 9, 1]), 1000).expect_err("the body ends behind its message");
            assert_eq!(long.code(), tonic::Code::InvalidArgument);
        }
    }
}
