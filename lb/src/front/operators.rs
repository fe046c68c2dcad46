//! gRPC for operators: functions and fleet.

mod activity;
pub mod images;
mod logs;
mod revisions;

use std::collections::{BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_core::ids::{CallId, is_name};
use stoker_proto::runner::v1 as wire;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::v1::fleet_service_server::FleetService;
use stoker_proto::v1::function_service_server::FunctionService;
use stoker_proto::{convert, status, v1};
use stoker_registry::Applied;
use stoker_registry::revisions::Proposal;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use self::images::Unpinned;
use super::Front;
use crate::directory::Known;
use crate::fleet::{HANDSHAKE, Runner};
use crate::scaling;

/// At most so often is the fleet sent to one who watches it.
const WATCH_PAUSE: Duration = Duration::from_millis(100);

/// `FunctionService` and `FleetService`.
pub struct Operators(pub Arc<Front>);

fn fail(error: &Error) -> Status {
    status::to_status(error, "")
}

fn store(error: &stoker_registry::Error) -> Status {
    let told = Error::from(error);
    if told.blame() == Blame::Platform {
        tracing::error!(%error, "the registry failed");
    }
    fail(&told)
}

/// What is wrong with functions, all of it at once.
fn mistakes(count: usize, mut details: ErrorDetails) -> Status {
    let row = status::row(Code::InvalidRequest);
    details.set_error_info(row.reason, status::DOMAIN, [("blame".to_owned(), "caller".to_owned())]);
    let what = if count == 1 { "a mistake".to_owned() } else { format!("{count} mistakes") };
    Status::with_error_details(row.grpc, format!("{what} in the functions; nothing was applied"), details)
}

impl Operators {
    fn describe(&self, known: &Known) -> v1::FunctionDescription {
        let (mut idle, mut busy, mut waiting) = (0u32, 0u32, 0u32);
        for runner in self.0.dispatch.fleet.runners().iter() {
            let capacity = runner.capacity();
            let versions = known.versions();
            for warmth in versions.iter().filter_map(|version| capacity.0.functions.get(&version.digest)) {
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
            revision: known.revision,
            traffic: Some(revisions::split(known.split())),
        }
    }

    /// A connection to the runner of this name, to ask it for something.
    fn runner(&self, name: &str) -> Result<(Arc<Runner>, RunnerServiceClient<Channel>), Error> {
        if !is_name(name) {
            return Err(Error::new(
                Code::InvalidRequest,
                "runner: the name of a runner, 1 to 255 of [a-zA-Z0-9_-]",
            ));
        }
        let all = self.0.dispatch.fleet.runners();
        // One that has come back at another address stands beside what is left of its earlier life.
        let mut named: Vec<_> = all.iter().filter(|runner| runner.name == name).collect();
        named.sort_by_key(|runner| !runner.is_listed());
        if let Some((runner, channel)) = named.iter().find_map(|runner| Some((runner, runner.channel()?))) {
            return Ok((Arc::clone(runner), RunnerServiceClient::new(channel)));
        }
        let Some(runner) = named.first() else {
            let names: BTreeSet<_> = all.iter().map(|runner| runner.name.as_str()).collect();
            let known = match names.len() {
                0 => "there is none in the fleet".to_owned(),
                _ => format!("there are {}", Vec::from_iter(names).join(", ")),
            };
            return Err(Error::new(Code::NotFound, format!("there is no runner `{name}`: {known}")));
        };
        let (_, why) = runner.link();
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let text = format!("this balancer is not connected to runner {name}{why}");
        Err(Error::new(Code::Unavailable, text).retry(Retry::After(Duration::from_secs(1))))
    }

    /// What a runner answered to a wish: its record, which is known here from now on.
    async fn wish(
        &self,
        runner: &Runner,
        answer: impl Future<Output = Result<Option<v1::Capacity>, Status>>,
    ) -> Result<Option<v1::Capacity>, Status> {
        let unavailable = |text: String| {
            fail(&Error::new(Code::Unavailable, text).retry(Retry::After(Duration::from_secs(1))))
        };
        let answer = tokio::time::timeout(HANDSHAKE, answer).await;
        let answer = answer.map_err(|_| {
            unavailable(format!("runner {} did not answer within {HANDSHAKE:?}", runner.name))
        })?;
        let record = answer.map_err(|status| match status.code() {
            tonic::Code::Unimplemented => {
                let text = format!("runner {} is too old for this: {}", runner.name, status.message());
                fail(&Error::new(Code::InvalidRequest, text))
            }
            _ => unavailable(format!("runner {}: {}", runner.name, status.message())),
        })?;
        match record.clone().map(convert::capacity) {
            Some(Ok(known)) => runner.update(known, false),
            Some(Err(wrong)) => {
                tracing::warn!(runner = runner.name, %wrong, "a capacity record is not valid")
            }
            None => {}
        }
        self.0.dispatch.fleet.changed();
        Ok(record)
    }

    fn find(&self, text: &str) -> Result<Arc<Known>, Status> {
        self.0.named(text).map_err(|error| fail(&error))
    }
}

#[tonic::async_trait]
impl FunctionService for Operators {
    async fn apply_functions(
        &self,
        request: Request<v1::ApplyFunctionsRequest>,
    ) -> Result<Response<v1::ApplyFunctionsResponse>, Status> {
        let mut specs = Vec::new();
        let mut names = HashSet::new();
        let mut details = ErrorDetails::new();
        let mut wrong = 0;
        let request = request.into_inner();
        for (at, function) in request.functions.into_iter().enumerate() {
            match convert::function(function) {
                Ok(spec) => {
                    if !names.insert(spec.name.clone()) {
                        wrong += 1;
                        details.add_bad_request_violation(
                            format!("functions[{at}].name"),
                            format!("`{}` is there twice", spec.name),
                        );
                    }
                    if spec.format_options.version > 0 {
                        wrong += 1;
                        let text = "version is what a revision gets, and is not applied";
                        details.add_bad_request_violation(format!("functions[{at}].format_options"), text);
                    }
                    specs.push(spec);
                }
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
        if wrong > 0 {
            return Err(mistakes(wrong, details));
        }
        match images::pin(&self.0.dispatch.fleet, &mut specs).await {
            Ok(()) => {}
            Err(Unpinned::Unanswered(error) | Unpinned::Unasked(error)) => return Err(fail(&error)),
            Err(Unpinned::Wrong(images)) => {
                for (at, text) in &images {
                    details.add_bad_request_violation(format!("functions[{at}].image"), text);
                }
                return Err(mistakes(images.len(), details));
            }
        }
        let identities: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        let proposals =
            specs.into_iter().map(|spec| Proposal { hold: request.hold, ..Proposal::from(spec) }).collect();
        let outcomes = self.0.registry.apply(proposals).await.map_err(|error| store(&error))?;
        let now = self.0.directory.functions();
        let functions = identities
            .into_iter()
            .zip(outcomes)
            .map(|(name, outcome)| v1::AppliedFunction {
                app: name.app().to_owned(),
                name: name.function().to_owned(),
                id: name.id(),
                revision: outcome.revision,
                traffic: revisions::traffic(&now, &name),
                outcome: match outcome.applied {
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
        if !app.is_empty() && !is_name(&app) {
            return Err(fail(&Error::new(
                Code::InvalidRequest,
                "app: 1 to 255 of [a-zA-Z0-9_-], or empty for all",
            )));
        }
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
        let name = self.name(&request.into_inner().function)?;
        self.0.registry.delete_function(&name).await.map_err(|error| store(&error))?;
        Ok(Response::new(v1::DeleteFunctionResponse {}))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        self.revisions(&request.into_inner().function).map(Response::new)
    }

    async fn rollout_function(
        &self,
        request: Request<v1::RolloutFunctionRequest>,
    ) -> Result<Response<v1::RolloutFunctionResponse>, Status> {
        self.rollout(request.into_inner()).await.map(Response::new)
    }

    async fn rollback_function(
        &self,
        request: Request<v1::RollbackFunctionRequest>,
    ) -> Result<Response<v1::RollbackFunctionResponse>, Status> {
        self.rollback(request.into_inner()).await.map(Response::new)
    }

    async fn set_alias(
        &self,
        request: Request<v1::SetAliasRequest>,
    ) -> Result<Response<v1::SetAliasResponse>, Status> {
        self.set_alias_of(request.into_inner()).await?;
        Ok(Response::new(v1::SetAliasResponse {}))
    }

    async fn delete_alias(
        &self,
        request: Request<v1::DeleteAliasRequest>,
    ) -> Result<Response<v1::DeleteAliasResponse>, Status> {
        self.delete_alias_of(request.into_inner()).await?;
        Ok(Response::new(v1::DeleteAliasResponse {}))
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
        let front = self.0.clone();
        let (changes, queued) = (front.dispatch.fleet.changes(), front.dispatch.fleet.queue.length());
        let first = true;
        let stream = futures_util::stream::unfold(
            (front, changes, queued, first),
            |(front, mut changes, mut queued, first)| async move {
                if !first {
                    // The pause bounds how often it is sent; what changes meanwhile is in the next.
                    tokio::time::sleep(WATCH_PAUSE).await;
                    tokio::select! {
                        () = front.stopping.cancelled() => return None,
                        changed = changes.changed() => changed.ok()?,
                        changed = queued.changed() => changed.ok()?,
                    }
                }
                changes.mark_unchanged();
                let fleet = &front.dispatch.fleet;
                let runners = fleet.runners().iter().map(|runner| runner.describe()).collect();
                let waiting = u32::try_from(*queued.borrow_and_update()).unwrap_or(u32::MAX);
                let zones = scaling::describe(&fleet.wanted.load());
                let seen = v1::WatchFleetResponse { runners, queued: waiting, zones };
                Some((Ok(seen), (front, changes, queued, false)))
            },
        );
        Ok(Response::new(Box::pin(stream)))
    }

    type WatchActivityStream = Pin<Box<dyn Stream<Item = Result<v1::WatchActivityResponse, Status>> + Send>>;

    async fn watch_activity(
        &self,
        request: Request<v1::WatchActivityRequest>,
    ) -> Result<Response<Self::WatchActivityStream>, Status> {
        Ok(Response::new(Box::pin(activity::stream(self.0.clone(), request.into_inner())?)))
    }

    async fn drain_runner(
        &self,
        request: Request<v1::DrainRunnerRequest>,
    ) -> Result<Response<v1::DrainRunnerResponse>, Status> {
        let (runner, mut client) = self.runner(&request.into_inner().runner).map_err(|error| fail(&error))?;
        let reason = format!("an operator drained it through balancer {}", self.0.dispatch.fleet.name);
        let answer = async { Ok(client.drain(wire::DrainRequest { reason }).await?.into_inner().capacity) };
        let capacity = self.wish(&runner, answer).await?;
        tracing::info!(runner = runner.name, "drained a runner");
        Ok(Response::new(v1::DrainRunnerResponse { capacity }))
    }

    async fn uncordon_runner(
        &self,
        request: Request<v1::UncordonRunnerRequest>,
    ) -> Result<Response<v1::UncordonRunnerResponse>, Status> {
        let (runner, mut client) = self.runner(&request.into_inner().runner).map_err(|error| fail(&error))?;
        let answer = async { Ok(client.uncordon(wire::UncordonRequest {}).await?.into_inner().capacity) };
        let capacity = self.wish(&runner, answer).await?;
        tracing::info!(runner = runner.name, "uncordoned a runner");
        Ok(Response::new(v1::UncordonRunnerResponse { capacity }))
    }

    async fn explain_call(
        &self,
        request: Request<v1::ExplainCallRequest>,
    ) -> Result<Response<v1::ExplainCallResponse>, Status> {
        let text = request.into_inner().call_id;
        let Some(id) = CallId::parse(&text) else {
            return Err(fail(&Error::new(
                Code::InvalidRequest,
                "call_id: that is not the id of a call: those have 32 hexadecimal digits",
            )));
        };
        let stories = &self.0.observer.stories;
        let story = stories.tell(id).ok_or_else(|| {
            let text = format!(
                "balancer {} has no story of call {id}: it came in through another, or is not among the last {} of its kind",
                self.0.dispatch.fleet.name,
                stories.most()
            );
            fail(&Error::new(Code::NotFound, text))
        })?;
        Ok(Response::new(v1::ExplainCallResponse { story: Some(story) }))
    }

    type StreamLogsStream = Pin<Box<dyn Stream<Item = Result<v1::StreamLogsResponse, Status>> + Send>>;

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let request = request.into_inner();
        let known = self.find(&request.function)?;
        Ok(Response::new(Box::pin(logs::stream(self.0.clone(), &known, request)?)))
    }
}
