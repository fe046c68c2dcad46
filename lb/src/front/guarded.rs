//! Who may ask what of operators' services, and a note of every change: in front of the services and not in them, so that a method that is
//! added to a service is none before it is said here who may use it.

use std::sync::Arc;

use stoker_core::error::Error;
use stoker_core::function::FunctionName;
use stoker_core::ids::is_name;
use stoker_proto::v1::fleet_service_server::FleetService;
use stoker_proto::v1::function_service_server::FunctionService;
use stoker_proto::{status, v1};
use tonic::{Request, Response, Status};

use super::Front;
use crate::auth::{Caller, Permission};

/// Services behind their guard.
pub struct Guarded<S> {
    pub service: Arc<S>,
    pub front: Arc<Front>,
}

type Answer<T> = Result<Response<T>, Status>;

fn fail(error: &Error) -> Status {
    status::to_status(error, "")
}

impl<S> Guarded<S> {
    /// What a text names is of an app, which the caller must be allowed this for.
    fn allow(&self, caller: &Caller, permission: Permission, function: &str) -> Result<(), Status> {
        if self.front.guard.is_open() {
            return Ok(());
        }
        let name = function.split_once(':').map_or(function, |(name, _)| name);
        let app = match FunctionName::parse(name) {
            Some(name) => name.app().to_owned(),
            None => self.front.named(function).map_err(|error| fail(&error))?.spec.name.app().to_owned(),
        };
        self.front.guard.allow(caller, permission, &app).map_err(|error| fail(&error))
    }

    fn allow_fleet(&self, caller: &Caller, permission: Permission) -> Result<(), Status> {
        self.front.guard.allow_fleet(caller, permission).map_err(|error| fail(&error))
    }

    /// A change, and the note of it.
    async fn noted<T>(
        &self,
        caller: &Caller,
        what: &str,
        on: &[String],
        change: impl Future<Output = Answer<T>>,
    ) -> Answer<T> {
        let answer = change.await;
        let failed = answer.as_ref().err().map(status::from_status);
        self.front.guard.note(caller, what, on, failed.as_ref().map_or(Ok(()), Err));
        answer
    }
}

#[tonic::async_trait]
impl<S: FunctionService> FunctionService for Guarded<S> {
    async fn apply_functions(
        &self,
        request: Request<v1::ApplyFunctionsRequest>,
    ) -> Answer<v1::ApplyFunctionsResponse> {
        let caller = Caller::of(request.extensions());
        let functions = &request.get_ref().functions;
        // What has no name that can be one is told so by the service, and is applied to nothing.
        for function in functions.iter().filter(|function| is_name(&function.app)) {
            let allowed = self.front.guard.allow(&caller, Permission::Manage, &function.app);
            allowed.map_err(|error| fail(&error))?;
        }
        let on: Vec<_> =
            functions.iter().map(|function| format!("{}/{}", function.app, function.name)).collect();
        self.noted(&caller, "apply", &on, self.service.apply_functions(request)).await
    }

    async fn get_function(
        &self,
        request: Request<v1::GetFunctionRequest>,
    ) -> Answer<v1::GetFunctionResponse> {
        self.allow(&Caller::of(request.extensions()), Permission::Observe, &request.get_ref().function)?;
        self.service.get_function(request).await
    }

    async fn list_functions(
        &self,
        request: Request<v1::ListFunctionsRequest>,
    ) -> Answer<v1::ListFunctionsResponse> {
        let caller = Caller::of(request.extensions());
        let mut answer = self.service.list_functions(request).await?;
        let sees = |app: &str| self.front.guard.sees(&caller, app);
        answer
            .get_mut()
            .functions
            .retain(|one| one.function.as_ref().is_some_and(|function| sees(&function.app)));
        Ok(answer)
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Answer<v1::ListRevisionsResponse> {
        self.allow(&Caller::of(request.extensions()), Permission::Observe, &request.get_ref().function)?;
        self.service.list_revisions(request).await
    }

    async fn delete_function(
        &self,
        request: Request<v1::DeleteFunctionRequest>,
    ) -> Answer<v1::DeleteFunctionResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().function.clone());
        self.allow(&caller, Permission::Manage, &on)?;
        self.noted(&caller, "delete", &[on], self.service.delete_function(request)).await
    }

    async fn rollout_function(
        &self,
        request: Request<v1::RolloutFunctionRequest>,
    ) -> Answer<v1::RolloutFunctionResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().function.clone());
        self.allow(&caller, Permission::Manage, &on)?;
        self.noted(&caller, "rollout", &[on], self.service.rollout_function(request)).await
    }

    async fn rollback_function(
        &self,
        request: Request<v1::RollbackFunctionRequest>,
    ) -> Answer<v1::RollbackFunctionResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().function.clone());
        self.allow(&caller, Permission::Manage, &on)?;
        self.noted(&caller, "rollback", &[on], self.service.rollback_function(request)).await
    }

    async fn set_alias(&self, request: Request<v1::SetAliasRequest>) -> Answer<v1::SetAliasResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().function.clone());
        self.allow(&caller, Permission::Manage, &on)?;
        self.noted(&caller, "set_alias", &[on], self.service.set_alias(request)).await
    }

    async fn delete_alias(
        &self,
        request: Request<v1::DeleteAliasRequest>,
    ) -> Answer<v1::DeleteAliasResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().function.clone());
        self.allow(&caller, Permission::Manage, &on)?;
        self.noted(&caller, "delete_alias", &[on], self.service.delete_alias(request)).await
    }
}

#[tonic::async_trait]
impl<S: FleetService> FleetService for Guarded<S> {
    async fn list_runners(
        &self,
        request: Request<v1::ListRunnersRequest>,
    ) -> Answer<v1::ListRunnersResponse> {
        self.allow_fleet(&Caller::of(request.extensions()), Permission::Observe)?;
        self.service.list_runners(request).await
    }

    type WatchFleetStream = S::WatchFleetStream;

    async fn watch_fleet(&self, request: Request<v1::WatchFleetRequest>) -> Answer<Self::WatchFleetStream> {
        self.allow_fleet(&Caller::of(request.extensions()), Permission::Observe)?;
        self.service.watch_fleet(request).await
    }

    type WatchActivityStream = S::WatchActivityStream;

    async fn watch_activity(
        &self,
        request: Request<v1::WatchActivityRequest>,
    ) -> Answer<Self::WatchActivityStream> {
        self.allow_fleet(&Caller::of(request.extensions()), Permission::Observe)?;
        self.service.watch_activity(request).await
    }

    async fn drain_runner(
        &self,
        request: Request<v1::DrainRunnerRequest>,
    ) -> Answer<v1::DrainRunnerResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().runner.clone());
        self.allow_fleet(&caller, Permission::Manage)?;
        self.noted(&caller, "drain", &[on], self.service.drain_runner(request)).await
    }

    async fn uncordon_runner(
        &self,
        request: Request<v1::UncordonRunnerRequest>,
    ) -> Answer<v1::UncordonRunnerResponse> {
        let (caller, on) = (Caller::of(request.extensions()), request.get_ref().runner.clone());
        self.allow_fleet(&caller, Permission::Manage)?;
        self.noted(&caller, "uncordon", &[on], self.service.uncordon_runner(request)).await
    }

    /// Calls are those of an app, which only the answer knows.
    async fn explain_call(
        &self,
        request: Request<v1::ExplainCallRequest>,
    ) -> Answer<v1::ExplainCallResponse> {
        let caller = Caller::of(request.extensions());
        let answer = self.service.explain_call(request).await?;
        match answer.get_ref().story.as_ref().map(|story| story.function.as_str()) {
            Some(function) if !function.is_empty() => self.allow(&caller, Permission::Observe, function)?,
            _ => self.allow_fleet(&caller, Permission::Observe)?,
        }
        Ok(answer)
    }

    type StreamLogsStream = S::StreamLogsStream;

    async fn stream_logs(&self, request: Request<v1::StreamLogsRequest>) -> Answer<Self::StreamLogsStream> {
        self.allow(&Caller::of(request.extensions()), Permission::Observe, &request.get_ref().function)?;
        self.service.stream_logs(request).await
    }
}
