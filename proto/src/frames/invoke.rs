//! `Invoke`: a call in one message and its answer in another, each with a body of megabytes that is joined for nobody.
//!
//! The message of a call ends with its body, as every encoder of protobuf writes it, and so a long one is a call before all of it is there: what is
//! still to come of its body is passed on as it comes. An answer is whole before it leaves: how long its message is has to be said in front of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint};
use prost::{DecodeError, Message};
use stoker_core::call::CHUNK;
use tonic::Status;

use super::{Decoded, LONG, Out, Received, encoded::success};
use crate::v1::{InvokeRequest, InvokeResponse};

/// The number of the field `body` in both messages.
const BODY: u32 = 3;

/// A longer message is looked into when so much of it is there: a body that fits on an offer comes in one, and so does any usual head.
const BEGUN: usize = 2 * CHUNK;

/// Either of the messages.
trait Invocation: Message + Default {
    /// Takes the body out.
    fn take_body(&mut self) -> Bytes;
}

impl Invocation for InvokeRequest {
    fn take_body(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }
}

impl Invocation for InvokeResponse {
    fn take_body(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }
}

/// A call, as much of its message as has to be there.
#[derive(Debug)]
pub struct Invoked<B> {
    /// Without its body.
    pub call: InvokeRequest,
    /// Of the whole body.
    pub length: usize,
    /// What is there of it, in the pieces in which it came.
    pub begun: Vec<Bytes>,
    /// What is still to come of it, if anything.
    pub rest: Option<Rest<B>>,
}

/// What is still to come of a body, as it comes.
#[derive(Debug)]
pub struct Rest<B> {
    decoded: Decoded<B, InvokeRequest>,
    left: usize,
}

impl<B> Stream for Rest<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let left = self.left;
        if left == 0 {
            return Poll::Ready(None);
        }
        let piece = ready!(self.decoded.poll_piece(cx, left));
        // Nothing comes after an error.
        self.left = piece.as_ref().map_or(0, |piece| left - piece.len());
        Poll::Ready(Some(piece))
    }
}

/// The message of a call: all of it, or of a long one as much as makes it a call.
///
/// # Errors
/// Of the connection, or of the client.
pub async fn invoke_request<B>(body: B, limit: usize) -> Result<Invoked<B>, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut decoded = Decoded::request(body, limit);
    let message = std::future::poll_fn(|cx| decoded.poll_begun(cx, BEGUN)).await?;
    let begins = message.filter(|length| *length > BEGUN);
    if let Some((call, at, length)) = begins.and_then(|length| before_body(decoded.received(), length)) {
        let received = decoded.received();
        received.advance(at);
        let there = received.remaining().min(length);
        let (begun, left) = (received.pieces(there), length - there);
        let rest = (left > 0).then_some(Rest { decoded, left });
        return Ok(Invoked { call, length, begun, rest });
    }
    let message = one(&mut decoded).await?;
    let (call, begun) = message.ok_or_else(|| decoded.wrong("there is no message"))?;
    Ok(Invoked { call, length: begun.iter().map(Bytes::len).sum(), begun, rest: None })
}

/// All of a message of this length but its body, where the body begins in what is there and is the last that the message has; with where it begins and
/// how long it is. Looked for once, whatever is still to come: who sends its head in crumbs has it read twice and no more.
fn before_body(received: &Received, length: usize) -> Option<(InvokeRequest, usize, usize)> {
    let mut read = InvokeRequest::default();
    let there = received.remaining().min(length);
    let mut message = received.clone().take(there);
    loop {
        let (field, kind) = decode_key(&mut message).ok()?;
        if (field, kind) == (BODY, WireType::LengthDelimited) {
            let body = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            let at = there - message.remaining();
            return (length - at == body).then_some((read, at, body));
        }
        read.merge_field(field, kind, &mut message, DecodeContext::default()).ok()?;
    }
}

/// The message of an answer, and its body in the pieces in which it came.
///
/// # Errors
/// Of the connection, of the balancer, or the status that is the answer.
pub async fn invoke_response<B>(body: B, limit: usize) -> Result<(InvokeResponse, Vec<Bytes>), Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut decoded = Decoded::answer(body, limit);
    let answer = one(&mut decoded).await?;
    let answer = answer.ok_or_else(|| decoded.wrong("the answer has no message"))?;
    match decoded.message().await? {
        None => Ok(answer),
        Some(_) => Err(decoded.wrong("the answer has a second message")),
    }
}

/// The next message.
async fn one<B, M>(decoded: &mut Decoded<B, M>) -> Result<Option<(M, Vec<Bytes>)>, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    M: Invocation,
{
    std::future::poll_fn(|cx| {
        let Some((received, length)) = ready!(decoded.poll_received(cx))? else {
            return Poll::Ready(Ok(None));
        };
        let read = match length < LONG {
            true => M::decode(received.copy_to_bytes(length)).map(|mut message| {
                let body = message.take_body();
                (message, vec![body])
            }),
            false => in_pieces(received.take(length)),
        };
        let unclear = |error| decoded.wrong(format!("the message cannot be understood: {error}"));
        Poll::Ready(read.map(Some).map_err(unclear))
    })
    .await
}

fn in_pieces<M: Invocation>(
    mut message: bytes::buf::Take<&mut Received>,
) -> Result<(M, Vec<Bytes>), DecodeError> {
    let (mut read, mut pieces) = (M::default(), Vec::new());
    while message.has_remaining() {
        let (field, kind) = decode_key(&mut message)?;
        if (field, kind) != (BODY, WireType::LengthDelimited) {
            read.merge_field(field, kind, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let Some(left) = message.remaining().checked_sub(length) else {
            // What the generated code says of a field that is longer than its message.
            return M::decode(&[(BODY << 3 | 2) as u8, 1][..]).map(|read| (read, pieces));
        };
        pieces = message.get_mut().pieces(length);
        message.set_limit(left);
    }
    Ok((read, pieces))
}

/// One message, which is all there is in its direction.
#[derive(Debug)]
pub struct Whole {
    frames: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Whole {
    /// A call, with `body` in place of what `call` has as its own.
    #[must_use]
    pub fn request(call: InvokeRequest, body: Vec<Bytes>) -> Self {
        Self { frames: Out::only(&InvokeRequest { body: Bytes::new(), ..call }, BODY, body), trailers: None }
    }

    /// An answer, and success; with `body` in place of what `answer` has as its own.
    #[must_use]
    pub fn answer(answer: InvokeResponse, body: Vec<Bytes>) -> Self {
        let frames = Out::only(&InvokeResponse { body: Bytes::new(), ..answer }, BODY, body);
        Self { frames, trailers: Some(success()) }
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

    /// Said with the last bytes of a request, it spares an empty frame that says only that.
    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.trailers.is_none()
    }
}
