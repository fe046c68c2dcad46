//! `CallService` as the callers of a bench use it: without the copies that the generated client makes of every body. What is measured is
//! the fleet, and the client that is measured with it does what one for HTTP does.

use std::future::poll_fn;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{Method, Request, Uri, Version};
use stoker_proto::frames::{Decoded, Encoded, Whole, invoke_response};
use stoker_proto::v1;
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;

use crate::client::{Connection, MAX_ANSWER};

type Answer = <Connection as GrpcService<Body>>::ResponseBody;

/// A connection, with the addresses of the two methods on it.
#[derive(Clone)]
pub struct Calls {
    connection: Connection,
    invoke: Uri,
    session: Uri,
}

impl Calls {
    pub fn new(connection: Connection) -> Self {
        let at = |method: &str| {
            let mut parts = connection.origin().into_parts();
            let path = format!("/stoker.v1.CallService/{method}");
            parts.path_and_query = Some(path.parse().expect("a method's name is part of a path"));
            Uri::from_parts(parts).expect("an origin has all that a path needs")
        };
        let (invoke, session) = (at("Invoke"), at("Session"));
        Self { connection, invoke, session }
    }

    /// One call in one message: the answer, and its body in the pieces in which it came.
    pub async fn invoke(
        &mut self,
        call: v1::InvokeRequest,
        body: Bytes,
    ) -> Result<(v1::InvokeResponse, Vec<Bytes>), Status> {
        let body = Body::new(Whole::request(call, vec![body]));
        invoke_response(self.open(self.invoke.clone(), body).await?, MAX_ANSWER).await
    }

    /// A stream of many calls.
    pub async fn session(
        &mut self,
        frames: impl Stream<Item = v1::SessionRequest> + Send + Unpin + 'static,
    ) -> Result<Decoded<Answer, v1::SessionResponse>, Status> {
        let body = Body::new(Encoded::request(frames.map(Ok)));
        Ok(Decoded::answer(self.open(self.session.clone(), body).await?, MAX_ANSWER))
    }

    async fn open(&mut self, uri: Uri, body: Body) -> Result<Answer, Status> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri;
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        poll_fn(|cx| self.connection.poll_ready(cx)).await?;
        let answer = self.connection.call(request).await?;
        match Status::from_header_map(answer.headers()) {
            Some(refused) => Err(refused),
            None => Ok(answer.into_body()),
        }
    }
}
