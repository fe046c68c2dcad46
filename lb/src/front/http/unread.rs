//! The body of a request, which is not left unread.
//!
//! Who answers before a request has come whole (it may not, it is too much, its function does not care) stops the stream of an HTTP/2 client by that.
//! The standard has clients read the answer all the same, and some that are everywhere report a broken stream instead, curl among them: nobody would
//! learn what was wrong. The connection of an HTTP/1.1 client would be closed without a word, and its next request break on it: there it is enough that the
//! body comes in a packet of its own, and one that looks for no answer before it has sent all would meet a broken pipe instead of the reason. So what nobody reads
//! is read on and thrown away as long as it comes, within bounds.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// What is thrown away of one request at most, how long that may take, and how long is waited for the next piece.
const MOST: usize = 256 << 20;
const LONGEST: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct RequestBody {
    /// There until its end, or until this is dropped.
    body: Option<Incoming>,
    lingers: bool,
}

impl RequestBody {
    /// The body of a request of this version, with these headers. A client of HTTP/1.1 that waits for the word to send one may never send it once it has its
    /// answer: that connection is closed, unless the body was asked for and the client so told to send it.
    pub fn new(body: Incoming, version: Version, headers: &HeaderMap) -> Self {
        let lingers = version == Version::HTTP_2 || !headers.contains_key(header::EXPECT);
        Self { body: Some(body), lingers }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        self.lingers = true;
        let frame = ready!(polled);
        if !matches!(frame, Some(Ok(_))) {
            // All of it was read, or nothing more can be. One in chunks does not say so by itself, and would be read for nothing.
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| self.lingers && !body.is_end_stream())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Ends by itself, and with its connection.
            runtime.spawn(tokio::time::timeout(LONGEST, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut read = 0;
    while read < MOST
        && let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}
