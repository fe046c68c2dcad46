//! The services of operators. They are served by hand as that of calls is, so that garbage is the fault of whoever sends it, at each method alike, and a
//! panic ends one request: the generated services would say `INTERNAL`, in words of their own.

use std::pin::pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use http::Request;
use hyper::body::Incoming;
use prost::Message;
use stoker_proto::MAX_FRAME;
use stoker_proto::frames::{Carries, Encoded};
use stoker_proto::v1::fleet_service_server::FleetService as _;
use stoker_proto::v1::function_service_server::FunctionService as _;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};

use super::{MESSAGE, message, refused};
use crate::front::Front;
use crate::front::guarded::Guarded;
use crate::front::operators::Operators;
use crate::panics::Panics;

/// The paths of their methods.
pub const FUNCTIONS: &str = "/stoker.v1.FunctionService/";
pub const FLEET: &str = "/stoker.v1.FleetService/";

/// Both services, behind their guard.
pub struct Operated {
    service: Guarded<Operators>,
    panics: Panics,
}

impl Operated {
    pub fn new(front: Arc<Front>) -> Self {
        let panics = front.dispatch.fleet.panics.clone();
        Self { service: Guarded { service: Arc::new(Operators(front.clone())), front }, panics }
    }

    /// One request for a method of either.
    ///
    /// # Errors
    /// What the client is told in place of an answer.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Body, Status> {
        let path = request.uri().path().to_owned();
        match path.strip_prefix(FUNCTIONS) {
            Some(method) => self.functions(method, request).await,
            None => self.fleet(path.strip_prefix(FLEET).unwrap_or_default(), request).await,
        }
    }

    async fn functions(&self, method: &str, request: Request<Incoming>) -> Result<Body, Status> {
        let service = &self.service;
        match method {
            "ApplyFunctions" => self.one(request, MESSAGE, |ask| service.apply_functions(ask)).await,
            "GetFunction" => self.one(request, MESSAGE, |ask| service.get_function(ask)).await,
            "ListFunctions" => self.one(request, MESSAGE, |ask| service.list_functions(ask)).await,
            "DeleteFunction" => self.one(request, MESSAGE, |ask| service.delete_function(ask)).await,
            "ListRevisions" => self.one(request, MESSAGE, |ask| service.list_revisions(ask)).await,
            "RolloutFunction" => self.one(request, MESSAGE, |ask| service.rollout_function(ask)).await,
            "RollbackFunction" => self.one(request, MESSAGE, |ask| service.rollback_function(ask)).await,
            "SetAlias" => self.one(request, MESSAGE, |ask| service.set_alias(ask)).await,
            "DeleteAlias" => self.one(request, MESSAGE, |ask| service.delete_alias(ask)).await,
            _ => Err(super::no_method(FUNCTIONS, method)),
        }
    }

    async fn fleet(&self, method: &str, request: Request<Incoming>) -> Result<Body, Status> {
        let service = &self.service;
        match method {
            "ListRunners" => self.one(request, MAX_FRAME, |ask| service.list_runners(ask)).await,
            "WatchFleet" => self.many(request, |ask| service.watch_fleet(ask)).await,
            "WatchActivity" => self.many(request, |ask| service.watch_activity(ask)).await,
            "StreamLogs" => self.many(request, |ask| service.stream_logs(ask)).await,
            "DrainRunner" => self.one(request, MAX_FRAME, |ask| service.drain_runner(ask)).await,
            "UncordonRunner" => self.one(request, MAX_FRAME, |ask| service.uncordon_runner(ask)).await,
            "ExplainCall" => self.one(request, MAX_FRAME, |ask| service.explain_call(ask)).await,
            _ => Err(super::no_method(FLEET, method)),
        }
    }

    /// A method that answers once.
    async fn one<Q, A, F>(
        &self,
        request: Request<Incoming>,
        most: usize,
        work: impl FnOnce(tonic::Request<Q>) -> F,
    ) -> Result<Body, Status>
    where
        Q: Message + Default,
        A: Carries + Send + 'static,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let answer = self.answered(request, most, work).await?;
        Ok(Body::new(Encoded::answer(stream::iter([Ok(answer)]))))
    }

    /// A method that goes on answering.
    async fn many<Q, A, S, F>(
        &self,
        request: Request<Incoming>,
        work: impl FnOnce(tonic::Request<Q>) -> F,
    ) -> Result<Body, Status>
    where
        Q: Message + Default,
        A: Carries + Send + 'static,
        S: Stream<Item = Result<A, Status>> + Send + Unpin + 'static,
        F: Future<Output = Result<Response<S>, Status>>,
    {
        let answers = self.answered(request, MAX_FRAME, work).await?;
        Ok(Body::new(Encoded::answer(answers)))
    }

    async fn answered<Q, T, F>(
        &self,
        request: Request<Incoming>,
        most: usize,
        work: impl FnOnce(tonic::Request<Q>) -> F,
    ) -> Result<T, Status>
    where
        Q: Message + Default,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (parts, body) = request.into_parts();
        let message = message(body, most).await.map_err(|error| refused(&error, ""))?;
        let asked =
            tonic::Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, message);
        let answered = self.panics.catch(pin!(work(asked))).await;
        Ok(answered.map_err(|error| refused(&error, ""))??.into_inner())
    }
}
