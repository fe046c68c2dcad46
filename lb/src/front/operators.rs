//! gRPC for operators: functions and fleet.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use stoker_core::error::{Code, Error};
use stoker_proto::runner::v1 as wire;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::v1::fleet_service_server::FleetService;
use stoker_proto::v1::function_service_server::FunctionService;
use stoker_proto::{convert, status, v1};
use stoker_registry::Applied;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::Door;
use crate::directory::Known;

/// At most so often is the fleet sent to one who watches it.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// `FunctionService` and `FleetService`.
pub struct Operators(pub Arc<Door>);

fn fail(error: &Error) -> Status {
    status::to_status(error, "")
}

fn store(error: &stoker_registry::Error) -> Status {
    match error {
        stoker_registry::Error::TriggerTaken { .. } => {
            fail(&Error::new(Code::InvalidRequest, error.to_string()))
        }
        _ => {
            tracing::error!(%error, "the registry failed");
            fail(&Error::new(Code::Internal, error.to_string()))
        }
    }
}

impl Operators {
    fn describe(&self, known: &Known) -> v1::FunctionDescription {
        let (mut idle, mut busy, mut waiting) = (0u32, 0u32, 0u32);
        for runner in self.0.dispatch.fleet.runners().iter() {
            if let Some(warmth) = runner.capacity().0.functions.get(&known.digest) {
                idle = idle.saturating_add(warmth.idle);
                busy = busy.saturating_add(warmth.busy);
                waiting = waiting.saturating_add(warmth.waiting);
            }
        }
        v1::FunctionDescription {
            function: Some(known.message.clone()),
            id: known.id.clone(),
            digest: known.digest.to_string(),
            idle,
            busy,
            waiting,
        }
    }

    fn find(&self, text: &str) -> Result<Arc<Known>, Status> {
        self.0.find(text).map_err(|error| fail(&error))
    }
}

#[tonic::async_trait]
impl FunctionService for Operators {
    async fn apply_functions(
        &self,
        request: Request<v1::ApplyFunctionsRequest>,
    ) -> Result<Response<v1::ApplyFunctionsResponse>, Status> {
        let mut specs = Vec::new();
        let mut details = ErrorDetails::new();
        let mut wrong = 0;
        for (at, function) in request.into_inner().functions.into_iter().enumerate() {
            match convert::function(function) {
                Ok(spec) => specs.push(spec),
                Err(problems) => {
                    for problem in problems {
                        wrong += 1;
                        details.add_bad_request_violation(
                            format!("functions[{at}].{}", problem.field),
                            problem.text,
                        );
                    }
                }
            }
        }
        let mut names = std::collections::HashSet::new();
        for (at, spec) in specs.iter().enumerate() {
            if !names.insert(&spec.name) {
                wrong += 1;
                details.add_bad_request_violation(
                    format!("functions[{at}].name"),
                    format!("`{}` is there twice", spec.name),
                );
            }
        }
        if wrong > 0 {
            let row = status::row(Code::InvalidRequest);
            details.set_error_info(row.reason, status::DOMAIN, [("blame".to_owned(), "caller".to_owned())]);
            let text = format!("{wrong} mistakes in the functions; nothing was applied");
            return Err(Status::with_error_details(row.grpc, text, details));
        }
        let identities: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        let outcomes = self.0.registry.apply_functions(specs).await.map_err(|error| store(&error))?;
        let functions = identities
            .into_iter()
            .zip(outcomes)
            .map(|(name, outcome)| v1::AppliedFunction {
                app: name.app().to_owned(),
                name: name.function().to_owned(),
                id: name.id(),
                outcome: match outcome {
                    Applied::Created => v1::ApplyOutcome::Created,
                    Applied::Updated => v1::ApplyOutcome::Updated,
                    Applied::Unchanged => v1::ApplyOutcome::Unchanged,
                }
                .into(),
            })
            .collect();
        Ok(Response::new(v1::ApplyFunctionsResponse { functions }))
    }

    async fn get_function(
        &self,
        request: Request<v1::GetFunctionRequest>,
    ) -> Result<Response<v1::GetFunctionResponse>, Status> {
        let known = self.find(&request.into_inner().function)?;
        Ok(Response::new(v1::GetFunctionResponse { function: Some(self.describe(&known)) }))
    }

    async fn list_functions(
        &self,
        request: Request<v1::ListFunctionsRequest>,
    ) -> Result<Response<v1::ListFunctionsResponse>, Status> {
        let app = request.into_inner().app;
        let all = self.0.directory.all();
        let functions = all
            .iter()
            .filter(|known| app.is_empty() || known.spec.name.app() == app)
            .map(|known| self.describe(known))
            .collect();
        Ok(Response::new(v1::ListFunctionsResponse { functions }))
    }

    async fn delete_function(
        &self,
        request: Request<v1::DeleteFunctionRequest>,
    ) -> Result<Response<v1::DeleteFunctionResponse>, Status> {
        let known = self.find(&request.into_inner().function)?;
        self.0.registry.delete_function(&known.spec.name).await.map_err(|error| store(&error))?;
        Ok(Response::new(v1::DeleteFunctionResponse {}))
    }
}

#[tonic::async_trait]
impl FleetService for Operators {
    async fn list_runners(
        &self,
        _: Request<v1::ListRunnersRequest>,
    ) -> Result<Response<v1::ListRunnersResponse>, Status> {
        let runners = self.0.dispatch.fleet.runners().iter().map(|runner| runner.describe()).collect();
        Ok(Response::new(v1::ListRunnersResponse { runners }))
    }

    type WatchFleetStream = Pin<Box<dyn Stream<Item = Result<v1::WatchFleetResponse, Status>> + Send>>;

    async fn watch_fleet(
        &self,
        _: Request<v1::WatchFleetRequest>,
    ) -> Result<Response<Self::WatchFleetStream>, Status> {
        let door = self.0.clone();
        let changes = door.dispatch.fleet.changes();
        let first = true;
        let stream =
            futures_util::stream::unfold((door, changes, first), |(door, mut changes, first)| async move {
                if !first {
                    // The pause bounds how often it is sent; what changes meanwhile is in the next.
                    tokio::time::sleep(WATCH_PAUSE).await;
                    tokio::select! {
                        () = door.stopping.cancelled() => return None,
                        changed = changes.changed() => changed.ok()?,
                    }
                }
                changes.mark_unchanged();
                let fleet = &door.dispatch.fleet;
                let runners = fleet.runners().iter().map(|runner| runner.describe()).collect();
                let queued = u32::try_from(fleet.queue.len()).unwrap_or(u32::MAX);
                Some((Ok(v1::WatchFleetResponse { runners, queued }), (door, changes, false)))
            });
        Ok(Response::new(Box::pin(stream)))
    }

    type StreamLogsStream = Pin<Box<dyn Stream<Item = Result<v1::StreamLogsResponse, Status>> + Send>>;

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let request = request.into_inner();
        let known = self.find(&request.function)?;
        let runners = self.0.dispatch.fleet.runners();
        let streams = runners.iter().filter_map(|runner| {
            let channel = runner.lanes.iter().find_map(|lane| lane.channel.load_full())?;
            let ask = wire::StreamLogsRequest {
                app: known.spec.name.app().to_owned(),
                function: known.spec.name.function().to_owned(),
                call_id: request.call_id.clone(),
                follow: request.follow,
            };
            Some(runner_logs(runner.name.clone(), (*channel).clone(), ask))
        });
        // Each runner at its own pace; the end of one, or its loss, ends only its own part.
        let merged = futures_util::stream::select_all(streams.map(Box::pin));
        let stopping = self.0.stopping.clone().cancelled_owned();
        Ok(Response::new(Box::pin(merged.take_until(stopping))))
    }
}

fn runner_logs(
    runner: String,
    channel: tonic::transport::Channel,
    ask: wire::StreamLogsRequest,
) -> impl Stream<Item = Result<v1::StreamLogsResponse, Status>> + Send {
    let opened = async move {
        match RunnerServiceClient::new(channel).stream_logs(ask).await {
            Ok(response) => response.into_inner().left_stream(),
            Err(status) => futures_util::stream::iter([Err(status)]).right_stream(),
        }
    };
    futures_util::stream::once(opened).flatten().filter_map(move |message| {
        let kept = match message {
            Ok(message) => {
                Some(Ok(v1::StreamLogsResponse { lines: message.lines, dropped: message.dropped }))
            }
            Err(status) => {
                tracing::warn!(runner, %status, "the logs of a runner broke off");
                None
            }
        };
        std::future::ready(kept)
    })
}
