//! How a client makes one call: through which door, and whether it waits for the answer.

use std::time::Duration;

use bytes::Bytes;
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_proto::{convert, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Failure;
use crate::calls::{Call, Clients};

/// How a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Invoke,
    Session,
    /// By a stream of its own, in pieces.
    Stream,
    /// As `Invoke`, and goes away before the answer is there, or soon after.
    Leave,
}

/// The longest that those who leave stay, in microseconds.
const PATIENCE: u64 = 20_000;

/// A piece of a body that is streamed.
const PIECE: usize = 16 << 10;

/// A body, and the runner that it came from where the door tells.
pub type Answer = Result<(Bytes, String), Failure>;

/// A client of one balancer.
#[derive(Default)]
pub struct Caller {
    line: Option<Line>,
}

impl Caller {
    /// One call, which has one outcome.
    pub async fn call(&mut self, way: Way, clients: &Clients, call: &Call) -> Answer {
        match way {
            Way::Invoke => invoke(clients, call).await,
            Way::Session => Line::call(&mut self.line, clients, call).await,
            Way::Stream => stream(clients, call).await,
            Way::Leave => {
                // Different for each call: from before it is sent until after it is answered.
                let patience = call.body.iter().map(|byte| u64::from(*byte) * 977).sum::<u64>() % PATIENCE;
                let patience = Duration::from_micros(patience);
                match tokio::time::timeout(patience, invoke(clients, call)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(Failure::Left),
                }
            }
        }
    }
}

async fn invoke(clients: &Clients, call: &Call) -> Answer {
    let message = v1::InvokeRequest {
        function: call.function.clone(),
        head: Some(call.head()),
        body: call.body.clone(),
        ..Default::default()
    };
    let answer =
        clients.calls().invoke(call.with_timeout(message)).await.map_err(|status| Failure::of(&status))?;
    let answer = answer.into_inner();
    Ok((answer.body, answer.runner))
}

async fn stream(clients: &Clients, call: &Call) -> Answer {
    use v1::invoke_stream_response::Frame;
    let (send, opened) = clients.open(call);
    let feed = async {
        let mut left = call.body.clone();
        while !left.is_empty() {
            let piece = left.split_to(left.len().min(PIECE));
            let frame = v1::invoke_stream_request::Frame::Body(piece);
            // A call that has ended takes no more of its body; its answer says why.
            if send.send(v1::InvokeStreamRequest { frame: Some(frame) }).await.is_err() {
                break;
            }
        }
        drop(send);
    };
    let read = async {
        let mut answers = opened.await.map_err(|status| Failure::of(&status))?;
        let mut body = Vec::new();
        loop {
            let answer = answers.message().await.map_err(|status| Failure::of(&status))?;
            match answer.map(|answer| answer.frame) {
                Some(Some(Frame::Body(piece))) => body.extend_from_slice(&piece),
                Some(Some(Frame::End(end))) => return Ok((body.into(), end.runner)),
                Some(Some(Frame::Answer(_)) | None) => {}
                None => {
                    return Err(Failure::Broken("the stream ended without the end of its call".to_owned()));
                }
            }
        }
    };
    tokio::join!(feed, read).1
}

/// A session of one client, with one call after the other.
struct Line {
    send: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    last: u64,
}

impl Line {
    async fn call(line: &mut Option<Self>, clients: &Clients, call: &Call) -> Answer {
        let mut open = match line.take() {
            Some(line) => line,
            None => {
                let (send, frames) = mpsc::channel(4);
                let answers = clients.calls().session(ReceiverStream::new(frames)).await;
                let answers = answers.map_err(|status| Failure::of(&status))?.into_inner();
                Self { send, answers, last: 0 }
            }
        };
        let outcome = open.next(call).await;
        // One that has ended is not used again.
        if !matches!(outcome, Err((_, true))) {
            *line = Some(open);
        }
        outcome.map_err(|(failure, _)| failure)
    }

    /// One call. A failure says whether the session is over.
    async fn next(&mut self, call: &Call) -> Result<(Bytes, String), (Failure, bool)> {
        self.last += 1;
        let start = v1::SessionStart {
            function: call.function.clone(),
            head: Some(call.head()),
            body: call.body.clone(),
            complete: true,
            timeout_ms: call.timeout.map_or(0, |timeout| timeout.as_millis() as u64),
            ..Default::default()
        };
        let request = v1::SessionRequest { call: self.last, frame: Some(In::Start(start)) };
        // A session that has ended takes nothing; its end says why.
        let sent = self.send.send(request).await.is_ok();
        let mut body = Vec::new();
        loop {
            let answer = match self.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) if !sent => return Err((Failure::Unsent("the session was over".to_owned()), true)),
                Ok(None) => return Err((Failure::Broken("the session ended".to_owned()), true)),
                Err(status) => return Err((Failure::of(&status), true)),
            };
            assert_eq!(
                answer.call, self.last,
                "a second outcome, or one of a call that nobody made: {answer:?}"
            );
            match answer.frame {
                Some(Out::Body(piece)) => body.extend_from_slice(&piece.data),
                Some(Out::Finished(end)) => {
                    if let Some(error) = end.error {
                        return Err((Failure::Said(convert::call_error(error)), false));
                    }
                    body.extend_from_slice(&end.body);
                    return Ok((body.into(), end.runner));
                }
                Some(Out::Head(_) | Out::Credit(_)) | None => {}
            }
        }
    }
}
