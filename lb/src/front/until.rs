//! The gRPC services that are not ours, such as health. Their streams end when the balancer stops, however long their clients would stay, and a request
//! that cannot be read is the fault of whoever sent it: their library would say `INTERNAL`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use stoker_core::error::{Code, Error};
use stoker_proto::status::to_status;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

/// A service whose answers end with `stop`.
#[derive(Clone)]
pub struct Until<S> {
    pub service: S,
    pub stop: CancellationToken,
}

impl<S: NamedService> NamedService for Until<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<Request<Body>> for Until<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (answer, stop) = (self.service.call(request), self.stop.clone());
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(unread) = Status::from_header_map(answer.headers()).and_then(|status| unread(&status))
            {
                return Ok(to_status(&unread, "").into_http());
            }
            let stopped = Box::pin(stop.cancelled_owned());
            Ok(answer.map(|body| Body::new(Ending { body, stopped, over: false })))
        })
    }
}

/// Why a request could not be read, where this was said before any answer: nothing that these services do ends so.
fn unread(status: &Status) -> Option<Error> {
    let code = match status.code() {
        tonic::Code::Internal => Code::InvalidRequest,
        tonic::Code::OutOfRange => Code::RequestTooLarge,
        _ => return None,
    };
    Some(Error::new(code, format!("the request cannot be read: {}", status.message())))
}

/// A body that ends with its service.
struct Ending {
    body: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        // What is said already goes out first.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.stopped.as_mut().poll(cx));
        self.over = true;
        let unavailable = HeaderValue::from(tonic::Code::Unavailable as i32);
        let end = HeaderMap::from_iter([
            (Status::GRPC_STATUS, unavailable),
            (Status::GRPC_MESSAGE, HeaderValue::from_static("this%20balancer%20is%20stopping")),
        ]);
        Poll::Ready(Some(Ok(Frame::trailers(end))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }
}
