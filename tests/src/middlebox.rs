//! Something between two peers that speak gRPC, through which each looks to the other like a peer of another release.
//!
//! Every message of every method passes through a [`Lens`]. To a peer that looks newer it happens besides that frames come which nobody knows, and
//! that a session is opened with a newer version of its protocol; or with none that both speak.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use stoker_proto::runner::v1::{EngageRequest, engage_request};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::schema::{Lens, Schema};

const ENGAGE: &str = "/stoker.runner.v1.RunnerService/Engage";

/// Larger than anything that passes.
const LARGEST: usize = 32 << 20;

/// What the peers are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// Each takes the other for one of release 0.1.0.
    Older,
    /// Each takes the other for one of a release that knows more, and speaks this protocol still.
    Newer,
    /// The one that opens a session speaks newer versions of its protocol only.
    Apart,
}

/// Accepts until it is dropped.
pub struct Middlebox {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Middlebox {
    /// In front of a server, which need not be there yet.
    pub async fn to(server: SocketAddr, skew: Skew) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let descriptors = match skew {
            Skew::Older => crate::schema::RELEASED,
            Skew::Newer | Skew::Apart => stoker_proto::DESCRIPTORS,
        };
        let schema = Arc::new(Schema::read(descriptors));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A connection of each client's own, so that the end of one is the end of the other.
                let upstream = Endpoint::from_shared(format!("http://{server}")).unwrap().connect_lazy();
                let forward = Forward { upstream, schema: schema.clone(), skew };
                tokio::spawn(serve(client, forward));
            }
        });
        Self { address, accepting }
    }
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, until it ends.
async fn serve(client: tokio::net::TcpStream, forward: Forward) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let forward = forward.clone();
        async move {
            let path = request.uri().path().to_owned();
            let mut server = tonic::server::Grpc::new(Raw)
                .max_decoding_message_size(LARGEST)
                .max_encoding_message_size(LARGEST);
            Ok::<_, std::convert::Infallible>(server.streaming(Method { forward, path }, request).await)
        }
    });
    // Its end concerns its two ends, which see it.
    _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(client), service)
        .await;
}

#[derive(Clone)]
struct Forward {
    upstream: Channel,
    schema: Arc<Schema>,
    skew: Skew,
}

/// A call of one method. A unary one is a stream of one message.
struct Method {
    forward: Forward,
    path: String,
}

impl tonic::server::StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (forward, path) = (self.forward.clone(), self.path.clone());
        Box::pin(async move { forward.pass(&path, request).await })
    }
}

impl Forward {
    async fn pass(
        self,
        path: &str,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<BoxStream<'static, Result<Bytes, Status>>>, Status> {
        let Some((takes, gives)) = self.schema.method(path).cloned() else {
            return Err(Status::unimplemented(format!("{path} is of another release")));
        };
        let mut client = tonic::client::Grpc::new(self.upstream.clone())
            .max_decoding_message_size(LARGEST)
            .max_encoding_message_size(LARGEST);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (metadata, extensions, messages) = request.into_parts();
        let there = self.clone();
        let engage = path == ENGAGE;
        let messages = messages.take_while(|message| std::future::ready(message.is_ok()));
        let messages = messages.flat_map(move |message| {
            let message = message.unwrap_or_default();
            let message = if engage { there.versions(message) } else { message };
            futures_util::stream::iter(there.through(&takes, &message, engage))
        });
        let request = Request::from_parts(metadata, extensions, messages);
        let answer = client.streaming(request, PathAndQuery::try_from(path).unwrap(), Raw).await?;
        let (metadata, messages, extensions) = answer.into_parts();
        let answers = messages.flat_map(move |message| {
            let messages = match message {
                Ok(message) => self.through(&gives, &message, engage).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            };
            futures_util::stream::iter(messages)
        });
        Ok(Response::from_parts(metadata, answers.boxed(), extensions))
    }

    /// The version of the protocol that a session is opened with.
    fn versions(&self, message: Bytes) -> Bytes {
        let Ok(mut decoded) = EngageRequest::decode(message.clone()) else { return message };
        let Some(engage_request::Frame::Hello(hello)) = &mut decoded.frame else { return message };
        match self.skew {
            Skew::Older => (hello.version, hello.oldest_version) = (1, 1),
            Skew::Newer => hello.version += 1,
            Skew::Apart => (hello.version, hello.oldest_version) = (hello.version + 2, hello.version + 1),
        }
        decoded.encode_to_vec().into()
    }

    /// A message, and before it one that nobody knows, where the peer is to look newer and frames may come that are not known.
    fn through(&self, name: &str, message: &[u8], frames: bool) -> Vec<Bytes> {
        let lens = if self.skew == Skew::Older { Lens::Older } else { Lens::Newer };
        let seen = lens.through(&self.schema, name, message);
        let hello = EngageRequest::decode(message)
            .is_ok_and(|decoded| matches!(decoded.frame, Some(engage_request::Frame::Hello(_))));
        if lens == Lens::Newer && frames && !hello {
            return vec![seen, lens.through(&self.schema, name, &[])];
        }
        vec![seen]
    }
}

/// Messages as they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
