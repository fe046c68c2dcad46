//! `Engage` as it is served: by hand, without the copies that the generated service makes of every piece of a body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use stoker_proto::MAX_FRAME;
use stoker_proto::frames::{Decoded, Encoded};
use stoker_proto::runner::v1::runner_service_server::RunnerServiceServer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::NamedService;

use super::{Service, Shared, session};

/// Frames that wait for the stream of one session.
const OUTBOX: usize = 256;

/// `RunnerService`: its sessions, and the generated service for the rest of its methods.
#[derive(Clone)]
pub struct Served {
    shared: Arc<Shared>,
    rest: RunnerServiceServer<Service>,
}

impl Served {
    pub fn new(shared: Arc<Shared>) -> Self {
        let rest = RunnerServiceServer::new(Service(shared.clone()))
            .max_decoding_message_size(MAX_FRAME)
            .max_encoding_message_size(MAX_FRAME);
        Self { shared, rest }
    }

    fn engage(&self, request: Request<Body>) -> Response<Body> {
        let (out, frames) = mpsc::channel(OUTBOX);
        let received = Decoded::request(request.into_body(), MAX_FRAME);
        self.shared.tasks.spawn(session::run(self.shared.clone(), received, out));
        let mut response = Response::new(Body::new(Encoded::answer(ReceiverStream::new(frames))));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl NamedService for Served {
    const NAME: &'static str = <RunnerServiceServer<Service> as NamedService>::NAME;
}

impl tower::Service<Request<Body>> for Served {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path().ends_with("/Engage") {
            let response = self.engage(request);
            return Box::pin(std::future::ready(Ok(response)));
        }
        self.rest.call(request)
    }
}
