//! How requests are taken in: in memory as a whole, within AWS's limits, and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::Method;
use hyper::body::Body as _;
use stoker_core::error::{Code, Error};

use super::super::pieces;
use super::super::unread::RequestBody;
use super::Refused;
use crate::call::Pieces;

/// Most bytes of an event, as AWS has it; also of every request without code.
pub const LARGEST_EVENT: usize = 6 << 20;

/// Most bytes of a request with code: 50 MiB of it, in base64, and what is beside it. AWS's number.
pub const LARGEST_CODE: usize = 70_167_211;

/// Bytes of a request beyond the most that are read all the same: kits that are still writing when nobody reads any more do not come to read why.
const THROWN_AWAY: usize = 16 << 20;

/// Who sends none of them for so long is done.
const SILENCE: Duration = Duration::from_millis(500);

/// How long a request may take to come, beside the time of its call.
pub const SLOWEST: Duration = Duration::from_secs(30);

/// The same with code.
pub const SLOWEST_CODE: Duration = Duration::from_secs(300);

/// How a request is taken in.
pub enum Intake {
    /// A call: it needs a place.
    Call,
    /// Code: few at once, and large.
    Code,
    Other,
}

impl Intake {
    pub fn of(method: &Method, segments: &[&str]) -> Self {
        match segments {
            [.., "invocations" | "response-streaming-invocations" | "invoke-async"] => Self::Call,
            ["2015-03-31", "functions"] if method == Method::POST => Self::Code,
            ["2015-03-31", "functions", _, "code"] => Self::Code,
            ["2018-10-31", "layers", _, "versions"] if method == Method::POST => Self::Code,
            _ => Self::Other,
        }
    }
}

/// All of a request's body, in time and within the limit.
pub async fn whole(body: RequestBody, most: usize, time: Duration) -> Result<Bytes, Refused> {
    let fits = |length: usize| match length <= most {
        true => Ok(()),
        false => {
            let operation = if most == LARGEST_EVENT { "InvokeFunction" } else { "CreateFunction" };
            let text = format!("Request must be smaller than {most} bytes for the {operation} operation");
            Err(Refused::from(Error::new(Code::RequestTooLarge, text)))
        }
    };
    let stated = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if stated.saturating_sub(most) > THROWN_AWAY {
        fits(stated)?;
    }
    let read = async {
        let mut pieces: Pieces = pieces(body);
        let (mut whole, mut size) = (BytesMut::new(), 0);
        loop {
            let next = match size.max(stated) <= most {
                true => pieces.next().await,
                false => tokio::time::timeout(SILENCE, pieces.next()).await.unwrap_or_default(),
            };
            let Some(piece) = next else { break };
            let piece = piece?;
            size += piece.len();
            if size.max(stated) <= most {
                whole.extend_from_slice(&piece);
                continue;
            }
            whole = BytesMut::new();
            if size - size.min(most) > THROWN_AWAY {
                break;
            }
        }
        fits(size.max(stated))?;
        Ok(whole.freeze())
    };
    let late = || Refused::from(Error::new(Code::DeadlineExceeded, "the request did not come in time"));
    tokio::time::timeout(time, read).await.unwrap_or_else(|_| Err(late()))
}
