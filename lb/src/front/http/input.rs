//! The body of a request, as the call that it makes takes it.

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::BodyStream;
use stoker_core::call::CHUNK;
use stoker_core::error::{Code, Error};

use super::fields;
use super::unread::RequestBody;
use crate::call::{Input, Pieces, Trailers};

/// The body in pieces.
pub fn pieces(body: RequestBody) -> Pieces {
    followed(body, None)
}

/// The same, and what is said behind it goes into `trailers`.
pub fn followed(body: RequestBody, trailers: Option<Trailers>) -> Pieces {
    Box::pin(BodyStream::new(body).filter_map(move |frame| {
        let piece = frame.map_err(|error| broken(&error)).map(|frame| frame.into_data());
        std::future::ready(match piece {
            Ok(Ok(data)) => Some(Ok(data)),
            Ok(Err(other)) => match (&trailers, other.trailers_ref().map(fields::request_trailers)) {
                (Some(to), Some(Ok(came))) => {
                    to.came(came);
                    None
                }
                (Some(_), Some(Err(error))) => Some(Err(error)),
                _ => None,
            },
            Err(error) => Some(Err(error)),
        })
    }))
}

/// Why a request's body cannot be read to its end.
fn broken(error: &hyper::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let mut causes =
        std::iter::successors(std::error::Error::source(error), |cause| std::error::Error::source(*cause));
    match causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(cause) if matches!(cause.kind(), InvalidInput | InvalidData) => {
            Error::new(Code::InvalidRequest, format!("the request's body is not valid HTTP: {cause}"))
        }
        _ => Error::new(Code::Cancelled, "the request's body broke off: the client went away"),
    }
}

/// The beginning of a body for the offer. A body that is known to be small is read whole; of another only what is there
/// already is taken, since a function may answer before its input has come.
pub async fn begin(mut pieces: Pieces, small: bool) -> Result<Input, Error> {
    let mut first = BytesMut::new();
    let mut single: Option<Bytes> = None;
    loop {
        let next = if small {
            pieces.next().await
        } else {
            match pieces.next().now_or_never() {
                Some(next) => next,
                None => break,
            }
        };
        let mut piece = match next {
            Some(piece) => piece?,
            None => {
                let first = single.unwrap_or_else(|| first.freeze());
                return Ok(Input::begun(first, None));
            }
        };
        // One piece that fits is passed on as it is, uncopied.
        if single.is_none() && first.is_empty() && piece.len() <= CHUNK {
            single = Some(piece);
            continue;
        }
        if let Some(single) = single.take() {
            first.extend_from_slice(&single);
        }
        let fits = piece.split_to(piece.len().min(CHUNK - first.len()));
        first.extend_from_slice(&fits);
        if !piece.is_empty() || first.len() == CHUNK {
            let left = futures_util::stream::iter((!piece.is_empty()).then_some(Ok(piece)));
            return Ok(Input::begun(first.freeze(), Some(Box::pin(left.chain(pieces)))));
        }
    }
    Ok(Input::begun(single.unwrap_or_else(|| first.freeze()), Some(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_begins_with_what_is_there() {
        let all =
            |parts: Vec<Bytes>| -> Pieces { Box::pin(futures_util::stream::iter(parts.into_iter().map(Ok))) };
        let input = begin(all(vec![Bytes::from_static(b"ab")]), true).await.expect("a body");
        assert!(input.first == "ab" && input.rest.is_none());
        let input = begin(all(vec![Bytes::from(vec![1; CHUNK + 5]), Bytes::from(vec![2; 9])]), false)
            .await
            .expect("a body");
        assert_eq!(input.first.len(), CHUNK);
        let rest: Vec<_> =
            input.rest.expect("more").map(|piece| piece.expect("a piece").len()).collect().await;
        assert_eq!(rest, [5, 9]);
        let input = begin(Box::pin(futures_util::stream::pending()), false).await.expect("a body");
        assert!(input.first.is_empty() && input.rest.is_some());
    }
}
