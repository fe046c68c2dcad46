//! Answers of one connection by HTTP/2, of which its client may take some and leave others: what it leaves for too long is given up.
//!
//! Windows are each stream's own, so that the connection says nothing of them. Nor does the body: it is not asked for more while what it gave last waits, and
//! so whoever drives it looks.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::MapOk;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::Service;
use stoker_runtime::metrics::Counter;
use tokio::time::{Instant, Sleep};

use super::heard::Heard;

thread_local! {
    /// Whether the body that was asked last gave something, which waits until it is asked again. `None` where none was asked.
    static GAVE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// A body that tells whoever drives it whether it waits for its reader.
pub struct Offered<B>(B);

impl<B: Body<Data = Bytes> + Unpin> Body for Offered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        GAVE.set(Some(matches!(frame, Poll::Ready(Some(Ok(_))))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A service whose answers are [`Offered`].
pub struct Offering<S>(pub S);

impl<S, B> Service<Request<Incoming>> for Offering<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<Offered<B>>;
    type Error = Infallible;
    type Future = MapOk<S::Future, fn(Response<B>) -> Response<Offered<B>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.0.call(request).map_ok(|answer| answer.map(Offered))
    }
}

/// Drives the answers of one connection, each as a task.
#[derive(Clone)]
pub struct Answers {
    heard: Arc<Heard>,
    patience: Duration,
    left: Counter,
}

impl Answers {
    /// To this client, which may leave what there is for it for as long as this; counts those that it left longer.
    pub fn new(heard: Arc<Heard>, patience: Duration, left: Counter) -> Self {
        Self { heard, patience, left }
    }

    /// Ends with the answer, or drops it when its client has left it for too long.
    async fn drive(self, answer: impl Future) {
        let mut answer = pin!(answer);
        let mut waits: Option<Instant> = None;
        // From the first time on, and set anew only when it is over: what is large waits for a moment many times.
        let mut look: Option<Pin<Box<Sleep>>> = None;
        let ended = std::future::poll_fn(|cx| {
            GAVE.set(None);
            if answer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            if let Some(gave) = GAVE.take() {
                waits = gave.then(Instant::now);
            }
            let Some(since) = waits else { return Poll::Pending };
            // While nothing can be written the whole connection waits, and the system looks after that.
            let until = || since.max(self.heard.takes_since()) + self.patience;
            let look = look.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
            while look.as_mut().poll(cx).is_ready() {
                let until = until();
                if Instant::now() >= until {
                    return Poll::Ready(false);
                }
                look.as_mut().reset(until);
            }
            Poll::Pending
        });
        if !ended.await {
            self.left.add_one();
        }
    }
}

impl<F> Executor<F> for Answers
where
    F: Future + Send + 'static,
{
    fn execute(&self, answer: F) {
        tokio::spawn(self.clone().drive(answer));
    }
}
