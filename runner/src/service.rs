//! The gRPC server that balancers talk to.

pub mod call;
pub mod engage;
pub mod images;
pub mod open;
pub mod pieces;
pub mod session;
pub mod state;
pub mod strand;

use std::pin::Pin;
use std::sync::Arc;

use stoker_core::function::FunctionName;
use stoker_proto::runner::v1::runner_service_server::RunnerService;
use stoker_proto::runner::v1::{self as wire};
use stoker_proto::{convert, v1};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::logs::{Line, Logs, Source};
use crate::observe::Observer;
use crate::pool::Pools;
use crate::report::Report;

/// This software, for people.
pub const SOFTWARE: &str = concat!("stoker-runner ", env!("CARGO_PKG_VERSION"));

/// Lines of one response.
const LINES: usize = 256;

/// What all sessions share.
pub struct Shared {
    pub pools: Arc<Pools>,
    pub report: Arc<Report>,
    pub logs: Arc<Logs>,
    pub sandbox: String,
    pub observer: Observer,
    /// Sessions that may bring calls.
    pub open: open::Open,
    /// Calls, sessions and readers of logs.
    pub tasks: TaskTracker,
    /// Ends them.
    pub over: CancellationToken,
}

impl Shared {
    /// There is no way back from the end.
    fn stays(&self) -> Result<(), Status> {
        match self.pools.gate.is_closed() {
            true => Err(Status::unavailable("the runner is stopping")),
            false => Ok(()),
        }
    }
}

/// The service.
#[derive(Clone)]
pub struct Service(pub Arc<Shared>);

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RunnerService for Service {
    type EngageStream = Out<wire::EngageResponse>;
    type StreamLogsStream = Out<wire::StreamLogsResponse>;

    async fn engage(
        &self,
        _: Request<Streaming<wire::EngageRequest>>,
    ) -> Result<Response<Self::EngageStream>, Status> {
        Err(Status::internal("sessions are served before they come here"))
    }

    async fn get_status(
        &self,
        _request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        Ok(Response::new(wire::GetStatusResponse {
            capacity: Some(convert::to_capacity(&self.0.report.now())),
            sandbox: self.0.sandbox.clone(),
            software: SOFTWARE.to_owned(),
        }))
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        self.0.stays()?;
        tracing::info!(reason = request.into_inner().reason, "drained: takes no new calls");
        self.0.pools.cordon();
        let capacity = Some(convert::to_capacity(&self.0.report.tell()));
        Ok(Response::new(wire::DrainResponse { capacity }))
    }

    async fn uncordon(
        &self,
        _request: Request<wire::UncordonRequest>,
    ) -> Result<Response<wire::UncordonResponse>, Status> {
        self.0.stays()?;
        tracing::info!("uncordoned: takes calls again");
        self.0.pools.uncordon();
        let capacity = Some(convert::to_capacity(&self.0.report.tell()));
        Ok(Response::new(wire::UncordonResponse { capacity }))
    }

    async fn resolve_image(
        &self,
        request: Request<wire::ResolveImageRequest>,
    ) -> Result<Response<wire::ResolveImageResponse>, Status> {
        images::resolve(&self.0.pools.launcher.images, request.into_inner()).await.map(Response::new)
    }

    async fn stream_logs(
        &self,
        request: Request<wire::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let request = request.into_inner();
        let name = FunctionName::new(&request.app, &request.function)
            .ok_or_else(|| Status::invalid_argument("app and function are names"))?;
        let call = match request.call_id.as_str() {
            "" => None,
            text => Some(
                stoker_core::CallId::parse(text)
                    .ok_or_else(|| Status::invalid_argument("call_id is not the id of a call"))?,
            ),
        };
        let (out, responses) = mpsc::channel(16);
        let shared = self.0.clone();
        let over = shared.over.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = send_logs(&shared, &name, call, request.follow, &out) => {}
                () = out.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

async fn send_logs(
    shared: &Shared,
    name: &FunctionName,
    call: Option<stoker_core::CallId>,
    follow: bool,
    out: &mpsc::Sender<Result<wire::StreamLogsResponse, Status>>,
) {
    let (kept, mut coming) = shared.logs.ring(name).read();
    let wanted = |line: &Line| call.is_none() || line.call == call;
    let runner = shared.report.name().as_str();
    for lines in kept.chunks(LINES) {
        let lines: Vec<_> = lines.iter().filter(|l| wanted(l)).map(|l| to_line(l, runner)).collect();
        if !lines.is_empty() && out.send(Ok(wire::StreamLogsResponse { lines, dropped: 0 })).await.is_err() {
            return;
        }
    }
    let mut dropped = 0;
    if !follow {
        return;
    }
    loop {
        match coming.recv().await {
            Ok(line) if wanted(&line) => {
                let lines = vec![to_line(&line, runner)];
                if out
                    .send(Ok(wire::StreamLogsResponse { lines, dropped: std::mem::take(&mut dropped) }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => dropped += missed,
            Err(RecvError::Closed) => return,
        }
    }
}

fn to_line(line: &Line, runner: &str) -> v1::LogLine {
    v1::LogLine {
        time: Some(line.time.into()),
        source: match line.source {
            Source::Stdout => v1::LogSource::Stdout,
            Source::Stderr => v1::LogSource::Stderr,
            Source::Extension => v1::LogSource::Extension,
            Source::Platform => v1::LogSource::Platform,
        }
        .into(),
        text: line.text.clone(),
        call_id: line.call.map(|c| c.to_string()).unwrap_or_default(),
        container: line.container.to_string(),
        runner: runner.to_owned(),
        sequence: line.sequence,
    }
}
