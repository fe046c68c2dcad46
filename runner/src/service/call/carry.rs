//! What carries a conversation with a function: a socket, pipes, or a process of its own. And what its end means for the call and for the container.

use std::time::Instant;

use bytes::BytesMut;
use stoker_core::call::WINDOW;
use stoker_core::{CallId, Code, Error};
use stoker_format::After;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use stoker_sandbox::ExitCause;
use tokio::net::UnixStream;

use super::answer::Answer;
use super::converse::{End, Load, Talk};
use super::{Lost, Offer, Strand};
use crate::container::channel::{Pipes, Unfit};
use crate::container::{Container, LaunchError, Phase};

/// How a call that reached a container ended.
pub struct Ended {
    pub result: Result<(), Error>,
    /// What carries the next call, if the container takes one.
    pub keep: Option<Kept>,
}

/// What came of a call in a container.
pub enum Turn {
    Ended(Ended),
    /// Nothing of it was taken: whatever the container said was not said about this call.
    Untaken(Unfit),
    /// The process that the call was to have cannot be started, for no fault of the function.
    Unstarted(LaunchError),
}

/// What is left of a channel in a container that takes another call.
pub enum Kept {
    Connection(UnixStream),
    Pipes(Pipes),
    /// Only the container.
    Nothing,
    /// The container, once its function was started again, for this reason.
    Again(&'static str),
}

/// Over a connection to the function's socket.
pub async fn by_socket(
    container: &Container,
    talk: &Talk<'_>,
    answer: &mut Answer,
    mut load: Load,
    mut stream: UnixStream,
) -> Result<Turn, Lost> {
    begin(talk, container).await?;
    answer.started = Instant::now();
    let mut input = BytesMut::new();
    let (read, write) = stream.split();
    let end = talk.run(answer, &mut load, &mut input, read, write).await?;
    let (result, after) = settle(talk.offer.id, container, answer, end).await;
    let keep = match after {
        After::Reuse => Some(Kept::Connection(stream)),
        After::Reconnect => Some(Kept::Nothing),
        After::Destroy => None,
    };
    Ok(Turn::Ended(Ended { result, keep }))
}

/// Over STDIN and STDOUT of a process that takes one call after the other.
pub async fn by_pipes(
    container: &Container,
    talk: &Talk<'_>,
    answer: &mut Answer,
    mut load: Load,
    mut pipes: Pipes,
) -> Result<Turn, Lost> {
    begin(talk, container).await?;
    answer.started = Instant::now();
    let Pipes { stdin, stdout, input, .. } = &mut pipes;
    let end = talk.run(answer, &mut load, input, stdout, stdin).await?;
    // Who has read nothing of a call does not answer it: it is late output of another, or an end that has nothing to do with it.
    if talk.complete && !answer.headed && pipes.unread() >= load.written() as u64 {
        let unfit = match &end {
            End::Answered(_) => Some(Unfit::Noise("an answer".to_owned())),
            End::Failed { error, .. } if error.code == Code::FunctionInvalidResponse => {
                let silent = answer.closed && answer.head.is_none() && pipes.input.is_empty();
                Some(if silent { Unfit::Closed("STDOUT") } else { Unfit::Noise(error.message.clone()) })
            }
            End::Failed { .. } => None,
        };
        if let Some(unfit) = unfit {
            return Ok(Turn::Untaken(unfit));
        }
    }
    pipes.awake = true;
    let (result, after) = settle(talk.offer.id, container, answer, end).await;
    // There is no other way in than this one.
    let keep = (after == After::Reuse).then_some(Kept::Pipes(pipes));
    Ok(Turn::Ended(Ended { result, keep }))
}

/// Over STDIN and STDOUT of a process of the call's own, which is started for it.
pub async fn by_process(
    container: &Container,
    talk: &Talk<'_>,
    answer: &mut Answer,
    mut load: Load,
    env: Vec<(String, String)>,
) -> Result<Turn, Lost> {
    let began = Instant::now();
    let (stdin, stdout) = match container.start(env).await {
        Ok(pipes) => pipes,
        Err(LaunchError::Function(error)) => {
            return Ok(Turn::Ended(Ended { result: Err(error), keep: None }));
        }
        Err(error) => return Ok(Turn::Unstarted(error)),
    };
    answer.starting = began.elapsed();
    begin(talk, container).await?;
    answer.started = Instant::now();
    let mut input = BytesMut::new();
    let result = match talk.run(answer, &mut load, &mut input, stdout, stdin).await? {
        End::Answered(_) => judge(talk.strand, talk.offer, container).await,
        end => settle(talk.offer.id, container, answer, end).await.0,
    };
    Ok(Turn::Ended(Ended { result, keep: None }))
}

/// Says that input reaches the function now, and asks for the rest of it. An offer that was complete needs neither.
async fn begin(talk: &Talk<'_>, container: &Container) -> Result<(), Lost> {
    if talk.complete {
        return Ok(());
    }
    let strand = talk.strand;
    let started = wire::Started { call: strand.number, container: container.id.as_str().to_owned() };
    strand.send(Frame::Started(started)).await?;
    strand.allow(WINDOW).await
}

/// The end of a conversation, with what the container knows about it.
async fn settle(
    call: CallId,
    container: &Container,
    answer: &Answer,
    end: End,
) -> (Result<(), Error>, After) {
    match end {
        End::Answered(after) => (Ok(()), after),
        End::Failed { error, after } => {
            (Err(explain(call, container, error, after, answer.closed).await), after)
        }
    }
}

/// Adds what the container knows. A channel that was closed early usually means that the process ended, which says more.
async fn explain(call: CallId, container: &Container, error: Error, after: After, closed: bool) -> Error {
    match error.code {
        Code::FunctionInvalidResponse if closed && after == After::Destroy => {
            match container.exit_soon().await {
                Some(exit) => container.exited(exit, Phase::Call(call)).await.may_have_started(),
                None => error.log_tail(container.log.tail(Some(call))),
            }
        }
        Code::FunctionInvalidResponse | Code::FunctionFailed | Code::FunctionTimeout => {
            error.log_tail(container.log.tail(Some(call)))
        }
        _ => error,
    }
}

/// The error of a call that its balancer cancelled while it ran.
pub fn cancelled(reason: wire::CancelReason) -> Error {
    match reason {
        wire::CancelReason::Deadline => Error::new(Code::DeadlineExceeded, "the caller's deadline passed"),
        _ => Error::new(Code::Cancelled, "the caller went away"),
    }
    .may_have_started()
}

/// What the end of a process that has one call means.
async fn judge(strand: &Strand, offer: &Offer, container: &Container) -> Result<(), Error> {
    let limit = offer.deadline.0.min(Instant::now() + offer.spec.timeout());
    let exit = tokio::select! {
        exit = container.wait() => exit,
        reason = strand.cancelled() => return Err(cancelled(reason)),
        () = tokio::time::sleep_until(limit.into()) => {
            let error = match limit >= offer.deadline.0 {
                true => Error::new(Code::DeadlineExceeded, "the caller's deadline passed before the function ended"),
                false => Error::new(Code::FunctionTimeout, "the function closed its STDOUT but did not end in time"),
            };
            return Err(error.may_have_started().log_tail(container.log.tail(Some(offer.id))));
        }
    };
    match exit.cause {
        ExitCause::Code(0) if !exit.out_of_memory => Ok(()),
        ExitCause::Code(code) if !exit.out_of_memory => {
            let exited = container.exited(exit, Phase::Call(offer.id)).await;
            let text = format!("the function exited with status {code}");
            Err(Error::new(Code::FunctionFailed, text).may_have_started().log_tail(exited.log_tail))
        }
        _ => Err(container.exited(exit, Phase::Call(offer.id)).await.may_have_started()),
    }
}
