//! The doors: what clients of each kind send becomes a call, and its outcome what they expect.

pub mod grpc;
mod guarded;
pub mod http;
pub mod later;
pub mod operators;
pub mod session;
mod until;

use std::sync::Arc;
use std::time::Duration;

use stoker_core::call::{Deadline, RequestHead, TraceContext};
use stoker_core::error::{Code, Error, Retry};
use stoker_core::function::FunctionName;
use stoker_core::ids::{CallId, is_name};
use stoker_proto::{convert, v1};
use stoker_registry::Registry;
use stoker_runtime::telemetry::from_xray;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Admitted};
use crate::auth::Guard;
use crate::call::Call;
use crate::directory::{Directory, Known};
use crate::dispatch::Dispatch;
use crate::later::Later;
use crate::observe::{Observer, Watch};

/// The front of a balancer: what every door needs.
pub struct Front {
    pub dispatch: Dispatch,
    pub directory: Directory,
    pub admission: Admission,
    pub observer: Arc<Observer>,
    pub registry: Arc<dyn Registry>,
    /// Who may what.
    pub guard: Guard,
    /// What AWS Lambda's API needs.
    pub lambda: http::Lambda,
    pub later: Later,
    /// How long a client may take nothing of an answer that waits for it.
    pub send_timeout: Duration,
    /// Whether the functions are there that the fleet starts with.
    pub complete: watch::Receiver<bool>,
    /// No new calls any more.
    pub stopping: CancellationToken,
}

/// Time that a call without a deadline gets on top of what its function may take.
const SPARE: Duration = Duration::from_secs(10);

impl Front {
    /// The function that `text` names.
    pub fn find(&self, text: &str) -> Result<Arc<Known>, Error> {
        self.directory.find(text).ok_or_else(|| {
            self.missing(|| {
                let text: String = text.chars().take(520).collect();
                match text.split_once(':') {
                    Some((name, qualifier)) if self.directory.find(name).is_some() => {
                        format!("{name} has no revision and no alias `{qualifier}`")
                    }
                    _ => format!("there is no function `{text}`: name it app/function, or by its id"),
                }
            })
        })
    }

    fn missing(&self, text: impl FnOnce() -> String) -> Error {
        let not_yet = if !self.directory.is_read() {
            "this balancer has not read the functions yet"
        } else if !*self.complete.borrow() {
            "the functions that this fleet starts with are not all there yet"
        } else {
            return Error::new(Code::NotFound, text());
        };
        Error::new(Code::Unavailable, not_yet).retry(Retry::Elsewhere)
    }

    /// The same for a field of a message, where a text that can be no function's name is a mistake of its own.
    pub fn named(&self, text: &str) -> Result<Arc<Known>, Error> {
        self.find(text).map_err(|missing| {
            let (name, qualifier) = text.split_once(':').unwrap_or((text, "1"));
            if (FunctionName::parse(name).is_some() || is_name(name)) && is_name(qualifier) {
                return missing;
            }
            let text =
                "function: write app/function, or the function's id; after a colon a revision or an alias";
            Error::new(Code::InvalidRequest, text)
        })
    }

    /// Lets a call in, with its head checked.
    pub fn admit(
        &self,
        id: CallId,
        function: Arc<Known>,
        head: v1::RequestHead,
        timeout: Option<Duration>,
        watch: &mut Watch,
    ) -> Result<Call, Error> {
        let function = function.chosen(seed(id));
        watch.function(&function);
        let share = self.guard.enter(watch.caller(), function.spec.name.app())?;
        let head = convert::request_head(head)?;
        let admitted = self.admission.enter(watch.caller())?.sharing(share);
        self.call(admitted, id, function, head, timeout)
    }

    /// The same where the call has its place already.
    pub fn admit_to(
        &self,
        admitted: Admitted,
        id: CallId,
        function: Arc<Known>,
        head: v1::RequestHead,
        timeout: Option<Duration>,
        watch: &mut Watch,
    ) -> Result<Call, Error> {
        let function = function.chosen(seed(id));
        watch.function(&function);
        let share = self.guard.enter(watch.caller(), function.spec.name.app())?;
        let head = convert::request_head(head)?;
        self.call(admitted.sharing(share), id, function, head, timeout)
    }

    fn call(
        &self,
        admitted: Admitted,
        id: CallId,
        function: Arc<Known>,
        head: RequestHead,
        timeout: Option<Duration>,
    ) -> Result<Call, Error> {
        let admitted = admitted.of(function.gate.enter()?);
        let function = function.version_for(&head);
        let head = convert::to_request_head(head);
        let timeout = timeout.unwrap_or_else(|| {
            function.spec.timeout() + function.spec.init_timeout() + self.dispatch.max_wait + SPARE
        });
        Ok(Call { id, function, head, deadline: Deadline::after(timeout), patience: None, admitted })
    }
}

/// By what a call chooses among revisions: as good as random, and the same for the same call.
fn seed(id: CallId) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *id.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What is said to those who come too late.
pub fn stopping() -> Error {
    Error::new(Code::Unavailable, "this balancer is stopping").retry(Retry::Elsewhere)
}

/// Most bytes of each half of a trace context. A longer one is none of ours to carry, and no mistake of the call either.
const MAX_TRACE: usize = 512;

/// Trace context as it came.
pub fn carried(parent: String, state: String) -> TraceContext {
    let fit = |text: String| if text.len() <= MAX_TRACE { text } else { String::new() };
    TraceContext { parent: fit(parent), state: fit(state) }
}

/// Trace context out of a request's headers.
pub fn trace(headers: &::http::HeaderMap) -> TraceContext {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    carried(text("traceparent"), text("tracestate"))
}

/// The same out of a request at the HTTP door, whose caller may have said it in AWS's words, or in those of CloudEvents.
pub fn http_trace(headers: &::http::HeaderMap) -> TraceContext {
    let own = trace(headers);
    if !own.parent.is_empty() {
        return own;
    }
    let xray = headers.get("x-amzn-trace-id").and_then(|value| from_xray(value.to_str().ok()?));
    xray.unwrap_or_else(|| event_trace(headers))
}

/// Where an event came to be, by the extension of CloudEvents for that.
pub fn event_trace(headers: &::http::HeaderMap) -> TraceContext {
    let text =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    carried(text("ce-traceparent"), text("ce-tracestate"))
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
        health.not_serving().await;
        health
    }

    /// Says that calls may come.
    pub async fn serving(&self) {
        self.set(tonic_health::ServingStatus::Serving).await;
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
