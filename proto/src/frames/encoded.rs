//! Messages on their way out.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;

use super::{LONG, PREFIX};
use crate::runner::v1::engage_request::Frame as Ask;
use crate::runner::v1::{EngageRequest, EngageResponse, engage_response::Frame as Tell};
use crate::v1::session_request::Frame as FromClient;
use crate::v1::session_response::Frame as ToClient;
use crate::v1::{
    ApplyFunctionsResponse, CancelCallResponse, DeleteAliasResponse, DeleteFunctionResponse,
    DrainRunnerResponse, ExplainCallResponse, GetCallResponse, GetFunctionResponse, InvokeStreamResponse,
    ListCallsResponse, ListFunctionsResponse, ListRevisionsResponse, ListRunnersResponse,
    RedriveCallResponse, RollbackFunctionResponse, RolloutFunctionResponse, SessionRequest, SessionResponse,
    SetAliasResponse, StreamLogsResponse, SubmitResponse, UncordonRunnerResponse, WaitCallResponse,
    WatchActivityResponse, WatchFleetResponse, invoke_stream_response,
};

/// Room that is made for messages at once.
const ROOM: usize = 8 << 10;

/// Most bytes of a length.
const LONGEST_VARINT: usize = 10;

/// Messages that are there at once go out together, up to about this many bytes.
const ENOUGH: usize = 32 << 10;

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
    fn whole(&mut self, message: &impl Message) {
        self.prefix(message.encoded_len());
        message.encode_raw(&mut self.open);
    }

    /// One message and no other, whose field `field` is `pieces`, one behind the other, besides what else is in `message`. Room is made for what is
    /// written and not for more: a call has as much of it as is touched, and 64 of them stay in the caches.
    pub fn only(message: &impl Message, field: u32, pieces: Vec<Bytes>) -> VecDeque<Bytes> {
        let short: usize = pieces.iter().map(Bytes::len).filter(|length| *length < LONG).sum();
        let around = PREFIX + message.encoded_len() + bytes_len(field, 0) + LONGEST_VARINT;
        let mut out = Self { open: BytesMut::with_capacity(around + short), ..Self::default() };
        out.with_pieces(message, field, pieces);
        out.close();
        out.frames
    }

    /// A message whose field `field` is `pieces`, one behind the other, besides what else is in `message`.
    fn with_pieces(&mut self, message: &impl Message, field: u32, pieces: Vec<Bytes>) {
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

/// Answers about calls for later, with the field of those that have a body, and answers to operators.
macro_rules! answers {
    ($($message:ident $(. $data:ident = $field:literal)?),+) => {
        $(impl Carries for $message {
            fn write(self, out: &mut Out) {
                $(if self.$data.len() >= LONG {
                    let mut around = self;
                    let data = std::mem::take(&mut around.$data);
                    return out.with_pieces(&around, $field, vec![data]);
                })?
                out.whole(&self);
            }
        })+
    };
}
answers!(
    SubmitResponse,
    GetCallResponse.body = 3,
    WaitCallResponse.body = 3,
    CancelCallResponse,
    RedriveCallResponse,
    ListCallsResponse,
    ApplyFunctionsResponse,
    GetFunctionResponse,
    ListFunctionsResponse,
    DeleteFunctionResponse,
    ListRevisionsResponse,
    RolloutFunctionResponse,
    RollbackFunctionResponse,
    SetAliasResponse,
    DeleteAliasResponse,
    ListRunnersResponse,
    WatchFleetResponse,
    WatchActivityResponse,
    StreamLogsResponse,
    DrainRunnerResponse,
    UncordonRunnerResponse,
    ExplainCallResponse
);

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

/// The trailers of an answer that is a success.
pub fn success() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
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
                    this.state = State::Ending(success());
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
