//! `InvokeStream`: one call on a stream of its own, its bodies in pieces both ways.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use hyper::body::Incoming;
use stoker_core::call::CHUNK;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_proto::frames::{Decoded, Encoded};
use stoker_proto::v1;
use tonic::Status;

use super::{MESSAGE, failed, misread, refused, timeout};
use crate::auth::Caller;
use crate::call::{Rest, Trailers};
use crate::front::http::{begin, fields};
use crate::front::{Front, stopping, trace};
use crate::observe::{Door, Watch};

/// How long a client that opened a stream may take to say which call it is for, where it sets no deadline.
const FIRST_FRAME: Duration = Duration::from_secs(30);

/// One request of that method, to the head of its answer; the rest of that comes as it is read.
pub(super) async fn invoke_stream(
    front: &Front,
    caller: Caller,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Encoded<impl Stream<Item = Result<v1::InvokeStreamResponse, Status>> + use<>>, Status> {
    let id = CallId::new();
    let mut watch = front.observer.grpc(Door::Stream, id, &trace(headers));
    watch.by(caller);
    let call = Box::pin(streamed(front, id, headers, Decoded::request(body, MESSAGE), &mut watch));
    match front.dispatch.fleet.panics.call(call).await {
        Ok((opening, mut tail)) => {
            tail.watched(watch);
            Ok(Encoded::answer(futures_util::stream::iter(opening).chain(tail)))
        }
        Err(error) => {
            let revision = watch.revision();
            watch.end(Err(&error));
            Err(failed(&error, id, revision))
        }
    }
}

async fn streamed(
    front: &Front,
    id: CallId,
    headers: &HeaderMap,
    mut stream: Decoded<Incoming, v1::InvokeStreamRequest>,
    watch: &mut Watch,
) -> Result<(Vec<Result<v1::InvokeStreamResponse, Status>>, Tail), Error> {
    use v1::invoke_stream_request::Frame as In;
    use v1::invoke_stream_response::Frame as Out;
    let (timeout, opened) = (timeout(headers)?, Instant::now());
    let first = tokio::time::timeout(timeout.unwrap_or(FIRST_FRAME), stream.message());
    // A stream that is not a call yet does not hold up a balancer that stops.
    let first = tokio::select! {
        first = first => first,
        () = front.stopping.cancelled() => return Err(stopping()),
    };
    let first =
        first.map_err(|_| Error::new(Code::DeadlineExceeded, "the `start` frame did not come in time"))?;
    let first = first.map_err(|status| misread(&status))?;
    let Some(In::Start(start)) = first.and_then(|message| message.frame) else {
        return Err(Error::new(Code::InvalidRequest, "the first frame of InvokeStream is `start`"));
    };
    let function = front.named(&start.function)?;
    let behind = fields::is_followed(function.spec.format).then(Trailers::default);
    let timeout = timeout.map(|timeout| timeout.saturating_sub(opened.elapsed()));
    let call = front.admit(id, function, start.head.unwrap_or_default(), timeout, watch)?;
    let revision = call.function.revision;
    let (said, mut ended) = (behind.clone(), false);
    let pieces = stream.filter_map(move |message| {
        std::future::ready(match message.map(|message| message.frame) {
            Ok(Some(_)) if ended => {
                Some(Err(Error::new(Code::InvalidRequest, "a frame behind `trailers`, which is the last")))
            }
            Ok(Some(In::Trailers(all))) => {
                ended = true;
                match fields::said_behind(all.trailers) {
                    Ok(all) => {
                        if let Some(to) = &said {
                            to.came(all);
                        }
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }
            Ok(Some(In::Body(piece))) if piece.len() <= CHUNK => Some(Ok(piece)),
            Ok(Some(In::Body(piece))) => {
                let text =
                    format!("a piece of the body has {} bytes, at most {CHUNK} are allowed", piece.len());
                Some(Err(Error::new(Code::InvalidRequest, text)))
            }
            Ok(Some(In::Start(_))) => Some(Err(Error::new(Code::InvalidRequest, "a second `start` frame"))),
            Ok(None) => None,
            Err(status) => Some(Err(misread(&status))),
        })
    });
    let input = begin(Box::pin(pieces), false).await?.followed_by(behind);
    let answer = front.dispatch.call(call, input, watch).await?;
    let frame = |frame| Ok(v1::InvokeStreamResponse { frame: Some(frame) });
    let head = frame(Out::Answer(v1::CallAnswer { call_id: id.to_string(), head: Some(answer.head) }));
    let mut opening = vec![head];
    if !answer.first.is_empty() {
        opening.push(frame(Out::Body(answer.first)));
    }
    let tail = match answer.rest {
        Some(rest) => Tail::Pieces { rest, id, revision, watch: None },
        None => {
            opening.push(frame(Out::End(v1::CallEnd {
                timings: answer.end.timings,
                runner: answer.end.runner,
                revision,
                trailers: answer.end.trailers,
            })));
            Tail::Done
        }
    };
    Ok((opening, tail))
}

/// The frames after the head.
enum Tail {
    Pieces { rest: Rest, id: CallId, revision: u64, watch: Option<Watch> },
    Done,
}

impl Tail {
    /// The call ends where its answer does.
    fn watched(&mut self, watch: Watch) {
        match self {
            Tail::Pieces { watch: place, .. } => *place = Some(watch),
            Tail::Done => watch.end(Ok(())),
        }
    }
}

impl Stream for Tail {
    type Item = Result<v1::InvokeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use v1::invoke_stream_response::Frame as Out;
        let Tail::Pieces { rest, id, revision, watch } = &mut *self else { return Poll::Ready(None) };
        let next = std::task::ready!(Pin::new(&mut *rest).poll_next(cx));
        let outcome = match &next {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(Err(error)),
            None => Some(Ok(())),
        };
        if let Some(outcome) = outcome
            && let Some(watch) = watch.take()
        {
            watch.end(outcome);
        }
        let (item, done) = match next {
            Some(Ok(piece)) => (Ok(Out::Body(piece)), false),
            Some(Err(error)) => (Err(refused(&error, &id.to_string())), true),
            None => {
                let end = rest.end();
                (
                    Ok(Out::End(v1::CallEnd {
                        timings: end.timings,
                        runner: end.runner,
                        revision: *revision,
                        trailers: end.trailers,
                    })),
                    true,
                )
            }
        };
        if done {
            *self = Tail::Done;
        }
        Poll::Ready(Some(item.map(|frame| v1::InvokeStreamResponse { frame: Some(frame) })))
    }
}
