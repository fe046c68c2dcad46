//! A balancer on a stage: runners that play a script, and clients of every door.

pub use std::net::SocketAddr;
pub use std::pin::Pin;
pub use std::sync::{Arc, Mutex};
pub use std::time::Duration;

pub use bytes::Bytes;
pub use futures_util::Stream;
pub use stoker_core::ImageRef;
pub use stoker_core::capacity::{Capacity, RunnerState};
pub use stoker_core::function::{FunctionName, FunctionSpec};
pub use stoker_core::ids::{Incarnation, RunnerName};
pub use stoker_core::resources::Resources;
pub use stoker_lb::{Balancer, Config};
pub use stoker_proto::SESSION_VERSION;
pub use stoker_proto::convert;
pub use stoker_proto::runner::v1 as wire;
pub use stoker_proto::runner::v1::engage_request::Frame as In;
pub use stoker_proto::runner::v1::engage_response::Frame as Out;
pub use stoker_proto::runner::v1::runner_service_server::{RunnerService, RunnerServiceServer};
pub use stoker_proto::v1;
pub use stoker_proto::v1::call_service_client::CallServiceClient;
pub use stoker_proto::v1::fleet_service_client::FleetServiceClient;
pub use stoker_registry::{MemoryRegistry, Registration, Registry};
pub use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
pub use tokio::net::{TcpListener, TcpStream};
pub use tokio::sync::mpsc;
pub use tokio_stream::StreamExt as _;
pub use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
pub use tonic::transport::{Channel, Endpoint};
pub use tonic::{Code, Request, Response, Status, Streaming};

/// What a scripted session can do.
pub struct Script {
    pub stream: Streaming<wire::EngageRequest>,
    pub out: mpsc::Sender<Result<wire::EngageResponse, Status>>,
}

impl Script {
    /// The next frame but for pings, which are answered; `None` when the balancer is gone.
    pub async fn next(&mut self) -> Option<In> {
        loop {
            match self.stream.message().await.ok().flatten()?.frame? {
                In::Ping(ping) => self.send(Out::Pong(wire::Pong { number: ping.number })).await,
                frame => return Some(frame),
            }
        }
    }

    /// The next offer; definitions are passed over.
    pub async fn offer(&mut self) -> Option<wire::Offer> {
        loop {
            match self.next().await? {
                In::Offer(offer) => return Some(offer),
                In::Define(_) => {}
                other => panic!("{other:?} where an offer was due"),
            }
        }
    }

    pub async fn send(&self, frame: Out) {
        // Fails only when the balancer is gone, which the test that did it knows.
        self.out.send(Ok(wire::EngageResponse { frame: Some(frame) })).await.ok();
    }

    pub async fn finish(&self, call: u64, body: impl Into<Bytes>) {
        self.send(Out::Finished(Box::new(wire::Finished {
            call,
            head: ok(),
            body: body.into(),
            ..Default::default()
        })))
        .await;
    }

    pub async fn refuse(&self, call: u64, reason: wire::RefusalReason) {
        self.send(Out::Refused(Box::new(wire::Refused {
            call,
            reason: reason.into(),
            ..Default::default()
        })))
        .await;
    }
}

pub type Play = Arc<dyn Fn(Script) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A runner that speaks a version of the protocol and plays a script on each session.
struct Actor {
    record: Mutex<Capacity>,
    version: u32,
    play: Play,
    /// Those who play, as long as they do.
    sessions: Mutex<Vec<mpsc::WeakSender<Result<wire::EngageResponse, Status>>>>,
}

impl Actor {
    fn record(&self) -> Capacity {
        self.record.lock().expect("nobody panicked").clone()
    }

    /// Says on every session that it drains, or that it does not any more.
    async fn turn(&self, state: RunnerState) -> Option<v1::Capacity> {
        let capacity = {
            let mut record = self.record.lock().expect("nobody panicked");
            record.state = state;
            record.sequence += 1;
            convert::to_capacity(&record)
        };
        let sessions: Vec<_> = self
            .sessions
            .lock()
            .expect("nobody panicked")
            .iter()
            .filter_map(mpsc::WeakSender::upgrade)
            .collect();
        for out in sessions {
            let said = if state == RunnerState::Draining {
                Out::Draining(wire::Draining { reason: "told to".into(), ..Default::default() })
            } else {
                Out::Capacity(Box::new(wire::CapacityChanged { capacity: Some(capacity.clone()) }))
            };
            out.send(Ok(wire::EngageResponse { frame: Some(said) })).await.ok();
        }
        Some(capacity)
    }
}

#[tonic::async_trait]
impl RunnerService for Actor {
    type EngageStream = ReceiverStream<Result<wire::EngageResponse, Status>>;
    type StreamLogsStream = Pin<Box<dyn Stream<Item = Result<wire::StreamLogsResponse, Status>> + Send>>;

    async fn engage(
        &self,
        request: Request<Streaming<wire::EngageRequest>>,
    ) -> Result<Response<Self::EngageStream>, Status> {
        let (out, frames) = mpsc::channel(64);
        self.sessions.lock().expect("nobody panicked").push(out.downgrade());
        let mut script = Script { stream: request.into_inner(), out };
        let (play, record, version) = (self.play.clone(), self.record(), self.version);
        tokio::spawn(async move {
            assert!(
                matches!(script.next().await, Some(In::Hello(hello)) if hello.version == SESSION_VERSION)
            );
            let capacity = Some(convert::to_capacity(&record));
            script
                .send(Out::Welcome(Box::new(wire::Welcome { version, capacity, software: "script".into() })))
                .await;
            play(script).await;
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn get_status(
        &self,
        _: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        Ok(Response::new(wire::GetStatusResponse::default()))
    }

    async fn drain(&self, ask: Request<wire::DrainRequest>) -> Result<Response<wire::DrainResponse>, Status> {
        assert!(ask.into_inner().reason.contains("balancer"));
        Ok(Response::new(wire::DrainResponse { capacity: self.turn(RunnerState::Draining).await }))
    }

    async fn uncordon(
        &self,
        _: Request<wire::UncordonRequest>,
    ) -> Result<Response<wire::UncordonResponse>, Status> {
        Ok(Response::new(wire::UncordonResponse { capacity: self.turn(RunnerState::Ready).await }))
    }

    async fn resolve_image(
        &self,
        ask: Request<wire::ResolveImageRequest>,
    ) -> Result<Response<wire::ResolveImageResponse>, Status> {
        resolve(self.record().runner.as_str(), &ask.into_inner())
    }

    async fn stream_logs(
        &self,
        ask: Request<wire::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let text = Bytes::from(format!("line of {}", ask.into_inner().function));
        let line = v1::LogLine { text, runner: self.record().runner.to_string(), ..Default::default() };
        let message = wire::StreamLogsResponse { lines: vec![line], dropped: 0 };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(message)))))
    }
}

/// The image says what becomes of it where: `registry.example/r0-none/r1-fine:1` is none to `r0`, and `r1` knows it.
fn resolve(
    runner: &str,
    ask: &wire::ResolveImageRequest,
) -> Result<Response<wire::ResolveImageResponse>, Status> {
    let image = ImageRef::parse(&ask.reference).expect("the balancer checked it");
    assert!(!image.is_pinned(), "what is known is not asked: {image}");
    let told = image.repository().split('/').find_map(|part| part.strip_prefix(runner)?.strip_prefix('-'));
    let pinned = match told.unwrap_or_default() {
        "fine" => image.pin(&format!("sha256:{}", "1".repeat(64))).expect("a digest").to_string(),
        "secret" if ask.credentials == "team" => {
            image.pin(&format!("sha256:{}", "2".repeat(64))).expect("a digest").to_string()
        }
        "secret" => return Err(Status::permission_denied("pull access denied")),
        "none" => return Err(Status::not_found("manifest unknown")),
        "away" => return Err(Status::unavailable("registry.example: connection refused")),
        "unpinned" => image.to_string(),
        "other" => format!("registry.example/other:1@sha256:{}", "1".repeat(64)),
        _ => return Err(Status::unimplemented("this runner has no images")),
    };
    Ok(Response::new(wire::ResolveImageResponse { pinned }))
}

pub struct Stage {
    pub balancer: Balancer,
    pub registry: Arc<MemoryRegistry>,
    pub registrations: Vec<Box<dyn Registration>>,
}

pub const MIB: u64 = 1 << 20;

/// A balancer and one runner for each play, and the functions `a/f` and, idempotent, `a/again`.
pub async fn stage(config: Config, plays: Vec<Play>) -> Stage {
    let stage = set(config, plays.into_iter().map(|play| (SESSION_VERSION, play)).collect()).await;
    stage.linked(stage.registrations.len()).await;
    stage
}

/// The same with the version of the protocol that each runner speaks; does not wait for their sessions.
pub async fn set(config: Config, plays: Vec<(u32, Play)>) -> Stage {
    let registry = Arc::new(MemoryRegistry::default());
    let spec = |name: &str| {
        FunctionSpec::new(FunctionName::new("a", name).expect("a name"), vec!["/bin/true".into()], "/".into())
    };
    let mut first = spec("f");
    first.triggers.push(stoker_core::function::Trigger::new("/hello/x"));
    let again = FunctionSpec { idempotent: true, ..spec("again") };
    let large = FunctionSpec { memory: 1 << 39, ..spec("large") };
    registry.apply_functions(vec![first, again, large]).await.expect("the functions are valid");
    let mut registrations = Vec::new();
    for (n, (version, play)) in plays.into_iter().enumerate() {
        registrations.push(runner(&registry, n, version, play).await);
    }
    let balancer = Balancer::start(config, registry.clone()).await.expect("it starts");
    balancer.ready().await;
    Stage { balancer, registry, registrations }
}

/// A runner that is served and registered.
pub async fn runner(registry: &MemoryRegistry, n: usize, version: u32, play: Play) -> Box<dyn Registration> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let record = record(n, address);
    serve(listener, record.clone(), version, play);
    registry.register(record).await.expect("the name is free")
}

/// What runner `rN` says of itself.
pub fn record(n: usize, address: SocketAddr) -> Capacity {
    let total = Resources { memory: 1024 * MIB, cpu_millis: 4000, slots: 8 };
    Capacity {
        runner: RunnerName::new(&format!("r{n}")).expect("a name"),
        incarnation: Incarnation::new(),
        address: format!("http://{address}"),
        zone: String::new(),
        labels: Default::default(),
        sequence: 1,
        state: RunnerState::Ready,
        total,
        free: total,
        reclaimable: Resources::default(),
        in_flight: 0,
        waiting: 0,
        functions: Default::default(),
    }
}

/// Plays a runner at `listener`.
pub fn serve(listener: TcpListener, record: Capacity, version: u32, play: Play) {
    let actor = Actor { record: Mutex::new(record), version, play, sessions: Mutex::default() };
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(RunnerServiceServer::new(actor))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
}

pub fn config() -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { grpc: any, http: any, ..Config::default() }
}

pub fn play<F>(script: impl Fn(Script) -> F + Send + Sync + 'static) -> Play
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |s| Box::pin(script(s)))
}

/// Refuses everything.
pub fn refusing(reason: wire::RefusalReason) -> Play {
    play(move |mut s| async move {
        while let Some(offer) = s.offer().await {
            s.refuse(offer.call, reason).await;
        }
    })
}

/// A function that answered well.
pub fn ok() -> Option<v1::ResponseHead> {
    Some(v1::ResponseHead { status: 200, headers: Vec::new() })
}

/// Answers each offer with its body.
pub fn echo() -> Play {
    play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            s.finish(offer.call, offer.body).await;
        }
    })
}

impl Stage {
    /// A connection to the gRPC port.
    pub async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.balancer.grpc_address());
        Endpoint::from_shared(address).expect("an address").connect().await.expect("it listens")
    }

    /// A client of the calls. Not through [`Stage::channel`], which would time calls out by itself.
    pub async fn client(&self) -> CallServiceClient<Raw> {
        let socket = TcpStream::connect(self.balancer.grpc_address()).await.expect("it listens");
        socket.set_nodelay(true).expect("a socket");
        let (send, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(socket),
        )
        .await
        .expect("it speaks HTTP/2");
        tokio::spawn(connection);
        CallServiceClient::with_origin(Raw(send), http::Uri::from_static("http://balancer"))
            .max_decoding_message_size(8 << 20)
    }

    pub async fn invoke(&self, function: &str, body: &'static str) -> Result<v1::InvokeResponse, Status> {
        let body = Bytes::from_static(body.as_bytes());
        let request = v1::InvokeRequest { function: function.into(), body, ..Default::default() };
        self.client().await.invoke(request).await.map(Response::into_inner)
    }

    /// Waits until the balancer has a session with every runner.
    pub async fn linked(&self, runners: usize) {
        let ready = |r: &&v1::RunnerDescription| r.link() == v1::LinkState::Ready;
        self.sees(|seen| seen.iter().filter(ready).count() == runners).await;
    }

    /// A client of the fleet.
    pub async fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel().await)
    }

    /// Waits until the balancer sees the fleet like this.
    pub async fn sees(&self, wanted: impl Fn(&[v1::RunnerDescription]) -> bool) {
        let watch = self.fleet().await.watch_fleet(v1::WatchFleetRequest {}).await;
        let mut watch = watch.expect("a stream").into_inner();
        while !wanted(&watch.message().await.expect("no error").expect("more").runners) {}
    }

    /// One HTTP/1.1 exchange, to the end of the connection.
    pub async fn http(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.balancer.http_address()).await.expect("it listens");
        socket.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A connection with no mind of its own.
#[derive(Clone)]
pub struct Raw(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl tower::Service<http::Request<tonic::body::Body>> for Raw {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What a failed call says.
pub fn reason(status: &Status) -> (Code, stoker_core::Error) {
    (status.code(), stoker_proto::status::from_status(status))
}

/// Streams the body back as it comes, within credit both ways; that of the first call, and of the next ones as a whole.
pub fn streaming_echo() -> Play {
    play(|mut s| async move {
        let offer = s.offer().await.expect("an offer");
        assert!(!offer.complete);
        let call = offer.call;
        s.send(Out::Started(wire::Started { call, container: "c".into() })).await;
        s.send(Out::Credit(wire::Credit { call, bytes: 256 * 1024 })).await;
        let head = Some(v1::ResponseHead { status: 200, headers: vec![] });
        s.send(Out::Head(wire::Head { call, head, length: None })).await;
        let mut window = 256 * 1024;
        let mut held: std::collections::VecDeque<Bytes> = [offer.body].into();
        let mut last = false;
        loop {
            while held.front().is_some_and(|piece| piece.len() <= window) {
                let data = held.pop_front().expect("there is one");
                window -= data.len();
                let bytes = data.len() as u32;
                s.send(Out::Body(wire::Body { call, data, last: false, ..Default::default() })).await;
                s.send(Out::Credit(wire::Credit { call, bytes })).await;
            }
            if last && held.is_empty() {
                break;
            }
            match s.next().await {
                Some(In::Body(body)) => {
                    last |= body.last;
                    held.push_back(body.data);
                }
                Some(In::Credit(credit)) => window += credit.bytes as usize,
                Some(In::Cancel(_)) => break,
                _ => return,
            }
        }
        s.send(Out::Finished(Box::new(wire::Finished { call, ..Default::default() }))).await;
        while let Some(frame) = s.next().await {
            // What else comes is about the first, and late.
            if let In::Offer(offer) = frame {
                s.finish(offer.call, offer.body).await;
            }
        }
    })
}
