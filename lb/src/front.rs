//! The doors: what clients of each kind send becomes a call, and its outcome what they expect.

pub mod grpc;
pub mod http;
pub mod operators;
pub mod session;

use std::sync::Arc;
use std::time::Duration;

use stoker_core::call::{Deadline, TraceContext};
use stoker_core::error::{Code, Error, Retry};
use stoker_core::ids::CallId;
use stoker_proto::{convert, v1};
use stoker_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::call::Call;
use crate::directory::{Directory, Known};
use crate::dispatch::Dispatch;

/// What every door needs.
pub struct Door {
    pub dispatch: Dispatch,
    pub directory: Directory,
    pub admission: Admission,
    pub registry: Arc<dyn Registry>,
    /// No new calls any more.
    pub stopping: CancellationToken,
}

/// Time that a call without a deadline gets on top of what its function may take.
const SPARE: Duration = Duration::from_secs(10);

impl Door {
    /// The function that `text` names.
    pub fn find(&self, text: &str) -> Result<Arc<Known>, Error> {
        self.directory.find(text).ok_or_else(|| {
            let text: String = text.chars().take(520).collect();
            Error::new(
                Code::NotFound,
                format!("there is no function `{text}`: name it app/function, or by its id"),
            )
        })
    }

    /// Lets a call in, with its head checked.
    pub fn admit(
        &self,
        id: CallId,
        function: Arc<Known>,
        head: v1::RequestHead,
        timeout: Option<Duration>,
        trace: TraceContext,
    ) -> Result<Call, Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "this balancer is stopping").retry(Retry::Elsewhere));
        }
        let head = convert::to_request_head(convert::request_head(head)?);
        let admitted = self.admission.enter()?;
        let timeout = timeout.unwrap_or_else(|| {
            function.spec.timeout() + function.spec.init_timeout() + self.dispatch.max_wait + SPARE
        });
        Ok(Call { id, function, head, deadline: Deadline::after(timeout), trace, admitted })
    }
}

/// Trace context out of a request's headers.
pub fn trace(headers: &::http::HeaderMap) -> TraceContext {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if value.len() <= 512 { value.to_owned() } else { String::new() }
    };
    TraceContext { parent: text("traceparent"), state: text("tracestate") }
}

/// The health service and its switch.
pub struct Health {
    reporter: tonic_health::server::HealthReporter,
}

/// The services whose health is reported, besides the whole server's.
const SERVICES: [&str; 4] =
    ["", "stoker.v1.CallService", "stoker.v1.FunctionService", "stoker.v1.FleetService"];

impl Health {
    pub async fn new() -> Self {
        let health = Self { reporter: tonic_health::server::HealthReporter::new() };
        health.set(tonic_health::ServingStatus::Serving).await;
        health
    }

    /// Says that calls should go elsewhere.
    pub async fn not_serving(&self) {
        self.set(tonic_health::ServingStatus::NotServing).await;
    }

    async fn set(&self, status: tonic_health::ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    fn service(&self) -> tonic_health::server::HealthService {
        tonic_health::server::HealthService::from_health_reporter(self.reporter.clone())
    }
}
