//! Large bodies: each an object of NATS, complete before its call is accepted.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _};
use stoker_core::error::{Code, Error};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::away;
use super::setup::Store;
use crate::Pieces;

/// Why the rest of one does not come. Only what is not what was kept stays so; all else is the server's, and the body is there when it is asked for again.
pub fn unread(error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::InvalidData => Code::Internal,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("a body that was kept cannot be read: {error}"))
}

/// Keeps one. To its end in any case: a client of NATS that is left in the middle leaves what it has sent in the stream, under a name that it alone
/// knows. A body that breaks off, or whose sender has `left`, is kept as far as it came, and then removed.
pub async fn put(
    store: Arc<Store>,
    name: String,
    pieces: Pieces,
    left: CancellationToken,
) -> Result<u64, Error> {
    let broken = Arc::new(Mutex::new(None));
    let keep = broken.clone();
    let breaks = move |error| *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    let gone = {
        let breaks = breaks.clone();
        Box::pin(async move {
            left.cancelled().await;
            breaks(Error::new(Code::Cancelled, "who sent the body has left"));
        })
    };
    let pieces = pieces.take_until(gone).take_while(move |piece| {
        let whole = piece.as_ref().map_err(|error| breaks(error.clone())).is_ok();
        std::future::ready(whole)
    });
    let mut reader = StreamReader::new(pieces.map_err(|error| io::Error::other(error.message)));
    let put = store.bodies.put(name.as_str(), &mut reader).await;
    let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
    match broken {
        Some(error) => {
            // What cannot be removed now goes with its age.
            store.bodies.delete(&name).await.ok();
            Err(error)
        }
        None => put.map(|info| info.size as u64).map_err(|error| Error::from(&away(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_breaks_off_may_be_read_later_and_a_wrong_one_never() {
        let broken = unread(&io::Error::other("error from JetStream subscription: missed idle heartbeat"));
        assert_eq!(broken.code, Code::Unavailable);
        assert!(broken.message.ends_with("missed idle heartbeat"), "{broken:?}");
        assert_eq!(unread(&io::Error::new(io::ErrorKind::InvalidData, "wrong digest")).code, Code::Internal);
    }
}
