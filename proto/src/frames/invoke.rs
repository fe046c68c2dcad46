//! `Invoke`: a call in one message and its answer in another, each with a body of megabytes that is joined for nobody.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint};
use prost::{DecodeError, Message};
use tonic::{Code, Status};

use super::{Decoded, LONG, Out, Received, trailers};
use crate::v1::{InvokeRequest, InvokeResponse};

/// The number of the field `body` in both messages.
const BODY: u32 = 3;

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

/// The message of a call, and its body in the pieces in which it came.
///
/// # Errors
/// Of the connection, or of the client.
pub async fn invoke_request<B>(body: B, limit: usize) -> Result<(InvokeRequest, Vec<Bytes>), Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let message = one(&mut Decoded::request(body, limit), Code::InvalidArgument).await?;
    message.ok_or_else(|| Status::invalid_argument("there is no message"))
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
    let answer = one(&mut decoded, Code::Internal).await?;
    let answer = answer.ok_or_else(|| Status::internal("the answer has no message"))?;
    match decoded.message().await? {
        None => Ok(answer),
        Some(_) => Err(Status::internal("the answer has a second message")),
    }
}

/// The next message. One that cannot be understood is an error of this code.
async fn one<B, M>(decoded: &mut Decoded<B, M>, wrong: Code) -> Result<Option<(M, Vec<Bytes>)>, Status>
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
        let read = read.map(Some);
        Poll::Ready(
            read.map_err(|error| Status::new(wrong, format!("the message cannot be understood: {error}"))),
        )
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
        let mut out = Out::default();
        out.with_pieces(&InvokeRequest { body: Bytes::new(), ..call }, BODY, body);
        Self { frames: out.finish(), trailers: None }
    }

    /// An answer, and success; with `body` in place of what `answer` has as its own.
    #[must_use]
    pub fn answer(answer: InvokeResponse, body: Vec<Bytes>) -> Self {
        let mut out = Out::default();
        out.with_pieces(&InvokeResponse { body: Bytes::new(), ..answer }, BODY, body);
        Self { frames: out.finish(), trailers: Some(trailers(&Status::new(Code::Ok, ""))) }
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
