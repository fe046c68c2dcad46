//! AWS Lambda's Runtime API, as one container sees it: the server that a runtime client asks for its next invocation and
//! answers to.
//!
//! One [`RuntimeApi`] belongs to one container and serves one listener, which is best bound inside the container's network
//! namespace: then nobody else can reach it. The runner hands it invocations one after the other and reads the
//! answers; when a container is started, reused or ended is the runner's to decide, and so is all that concerns the process
//! (its exit, its time, its memory).
//!
//! Beside it are the Extensions API, and the Telemetry and Logs APIs ([`telemetry`]). An invocation is over when the runtime
//! and the extensions that are told of invocations have asked for the next.
//!
//! Contract: the Runtime API of 2018-06-01, the Extensions API of 2020-01-01, the Logs API of 2020-08-15 and the Telemetry API of
//! 2022-07-01, with the states of [`machine`] and the texts of AWS's own emulator, on which runtime clients rely.

mod api;
mod extensions;
pub mod fault;
pub mod function_url;
pub mod machine;
pub mod telemetry;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use stoker_core::machine::Machine as _;
use stoker_format::{epoch_millis, rfc3339_millis};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub use extensions::MOST as MOST_EXTENSIONS;
use extensions::{Extensions, Fatal};
use machine::{Event, State};
use telemetry::{Api, Connect, Telemetry, ms, tracing};

/// Bytes of a payload, in and out, where it is not streamed: AWS's 6 MiB and 100.
pub const MAX_PAYLOAD: usize = 6 * 1024 * 1024 + 100;
/// Bytes of the body of an error that a runtime reports.
pub const MAX_ERROR: usize = 1024 * 1024;
/// Pieces of an answer that wait for their reader.
const PIECES: usize = 4;

/// What the function behind an API is told of itself, and what is known of it.
#[derive(Clone)]
pub struct About {
    pub function: String,
    pub version: String,
    pub handler: String,
    pub account: String,
    pub log_stream: String,
    /// Bytes.
    pub memory: u64,
    /// Extensions that are processes of their own, and are started before the runtime.
    pub external: Vec<String>,
    /// The way to those who subscribe to telemetry.
    pub connect: Connect,
}

/// One invocation, as the runtime shall see it. Empty texts are not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    pub request_id: String,
    /// When the function is stopped, by the wall clock.
    pub deadline: Option<SystemTime>,
    /// The function's ARN as the caller named it.
    pub arn: String,
    /// `Root=…;Parent=…;Sampled=…`.
    pub trace: String,
    /// JSON.
    pub client_context: String,
    /// JSON with `cognitoIdentityId` and `cognitoIdentityPoolId`.
    pub identity: String,
    pub tenant: String,
    /// Empty: `application/json`.
    pub content_type: String,
    /// JSON, at most [`MAX_PAYLOAD`].
    pub payload: Bytes,
}

/// What came of an invocation, in this order: a head, pieces, an end; or a failure at any point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The answer begins.
    Head {
        /// As the runtime said.
        content_type: Option<String>,
        /// It comes as it is made; else it came as a whole.
        streams: bool,
    },
    /// A piece of it.
    Piece(Bytes),
    /// It is complete. Last.
    End,
    /// The function failed, or its runtime broke the contract. Last.
    Failed(Failure),
}

/// An error that the function reported, or that stands for what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class, scrubbed: see [`fault::scrub`].
    pub kind: String,
    /// The body for the caller, byte for byte as the function gave it where it gave one.
    pub payload: Bytes,
    pub content_type: String,
    /// Why, for traces; JSON.
    pub cause: Option<String>,
    /// The runtime did what no runtime may: its container cannot be trusted any more.
    pub broken: bool,
}

impl Failure {
    /// An extension ended the function.
    fn extension(fatal: &Fatal, request_id: &str) -> Self {
        let message = format!("the extension {} failed: {}", fatal.extension, fatal.said);
        let payload = fault::body(fatal.kind, request_id, &message).into();
        let (kind, content_type) = (fatal.kind.to_owned(), "application/json".to_owned());
        Self { kind, payload, content_type, cause: None, broken: true }
    }

    /// It in one line: its class, and the message in its body where that is what runtimes write.
    #[must_use]
    pub fn told(&self) -> String {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            error_message: String,
            #[serde(default)]
            error_type: String,
        }
        match serde_json::from_slice::<Body>(&self.payload) {
            Ok(body) if !body.error_message.is_empty() => {
                let kind = if body.error_type.is_empty() { &self.kind } else { &body.error_type };
                let most = body.error_message.floor_char_boundary(1024);
                format!("{kind}: {}", &body.error_message[..most])
            }
            _ => self.kind.clone(),
        }
    }
}

/// The end of an invocation, as its caller's side saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Over {
    /// The class of the error, and what AWS's callers are told, where there is one.
    pub error: Option<(String, String)>,
    /// It did not end in its time.
    pub timeout: bool,
    pub duration: Duration,
    /// MiB.
    pub memory_used: u64,
    /// How long the container took to initialise, where this was its first invocation.
    pub init: Option<Duration>,
}

/// Why an invocation cannot be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// One is already there. The runner's mistake.
    Busy,
    /// The runtime said that it cannot start.
    NotReady,
    /// This field holds what no HTTP header can carry.
    Header(&'static str),
    /// The payload is over [`MAX_PAYLOAD`].
    TooLarge,
    /// The payload is not JSON: some runtime clients end themselves over one that is not.
    NotJson,
}

/// The API of one container. Dropping it closes its listener and all connections.
#[derive(Debug)]
pub struct RuntimeApi {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl RuntimeApi {
    /// Serves a listener that does not block. In a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot take the listener.
    pub fn serve(listener: std::net::TcpListener, about: About) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let telemetry = Arc::new(Telemetry::new(about.connect.clone(), stop.clone()));
        let shared = Arc::new(Shared::new(about, telemetry));
        shared.init_start();
        tokio::spawn(api::serve(listener, shared.clone(), stop.clone()));
        Ok(Self { shared, stop })
    }

    /// Waits until the runtime has asked for its first invocation, and every extension for its first event. Whoever registers or
    /// subscribes after that comes too late.
    ///
    /// # Errors
    /// What one of them said of its start instead. A process that ends says nothing: the caller watches that, and the time.
    pub async fn ready(&self) -> Result<(), Failure> {
        let ready = self
            .shared
            .until(|inner| match (&inner.init_error, &inner.extensions.fatal) {
                (Some(failure), _) => Some(Err(failure.clone())),
                (None, Some(fatal)) => Some(Err(Failure::extension(fatal, ""))),
                (None, None) if inner.state != State::Started && inner.extensions.settled() => {
                    inner.extensions.close();
                    Some(Ok(()))
                }
                (None, None) => None,
            })
            .await;
        self.shared.init_done(ready.as_ref().err());
        ready
    }

    /// Waits until the runtime and the extensions are done with what they had and ask for more. Until then they may still be at work,
    /// though the runtime has answered.
    ///
    /// # Errors
    /// An extension said that it cannot go on: there is no more for this container.
    pub async fn idle(&self) -> Result<(), Failure> {
        self.shared
            .until(|inner| match &inner.extensions.fatal {
                Some(fatal) => Some(Err(Failure::extension(fatal, ""))),
                None => (inner.state == State::Ready && inner.pending.is_none() && inner.extensions.done())
                    .then_some(Ok(())),
            })
            .await
    }

    /// Hands over the next invocation. It waits for the runtime to ask for it.
    ///
    /// # Errors
    /// See [`Refused`]: the runtime has seen nothing of it.
    pub fn invoke(&self, invocation: Invocation) -> Result<Answer, Refused> {
        let headers = headers_of(&invocation).map_err(Refused::Header)?;
        if invocation.payload.len() > MAX_PAYLOAD {
            return Err(Refused::TooLarge);
        }
        let json = std::str::from_utf8(&invocation.payload)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
        if !json {
            return Err(Refused::NotJson);
        }
        let (say, said) = mpsc::channel(PIECES);
        let mut inner = self.shared.lock();
        if inner.state == State::InitError || inner.extensions.fatal.is_some() {
            return Err(Refused::NotReady);
        }
        if inner.pending.is_some()
            || matches!(
                inner.state,
                State::Running | State::InvocationResponse | State::InvocationErrorResponse
            )
        {
            return Err(Refused::Busy);
        }
        if !inner.extensions.all().is_empty() {
            let event = invoke_event(&invocation);
            inner.extensions.invoke(&event);
        }
        let Invocation { request_id: id, payload, trace, tenant, .. } = invocation;
        inner.pending = Some(Work { id, headers, payload, say, trace, tenant, handed: None, told: false });
        drop(inner);
        self.shared.changed.notify_waiters();
        Ok(Answer { said, ended: false })
    }

    /// Waits until nobody is connected: of a process that has ended, everything was read.
    pub async fn left_alone(&self) {
        self.shared.until(|inner| (inner.connections == 0).then_some(())).await;
    }

    /// The invocation is over, as far as its caller is concerned. Tells those who subscribed.
    pub fn over(&self, over: &Over) {
        self.shared.over(over);
    }

    /// Where the lines that the function writes are to be told.
    #[must_use]
    pub fn telemetry(&self) -> Arc<Telemetry> {
        self.shared.telemetry.clone()
    }

    /// Somebody inside has something to do before the end.
    #[must_use]
    pub fn waits_for_the_end(&self) -> bool {
        self.shared.telemetry.has_subscribers() || self.shared.lock().extensions.waits_for_the_end()
    }

    /// Delivers what is left of telemetry, tells the extensions that asked for it that the end comes, and waits until they are done,
    /// all within this time.
    pub async fn shut_down(&self, reason: &str, within: Duration) {
        let deadline = SystemTime::now() + within;
        let all = async {
            self.shared.telemetry.finish(within / 2).await;
            let event = json!({
                "eventType": "SHUTDOWN", "deadlineMs": epoch_millis(deadline), "shutdownReason": reason
            });
            self.shared.lock().extensions.shut_down(&event.to_string().into());
            self.shared.changed.notify_waiters();
            self.shared.until(|inner| inner.extensions.all_down().then_some(())).await;
        };
        // Who is not done by then is ended all the same.
        _ = tokio::time::timeout(within, all).await;
    }

    /// What the runtime calls itself, once it has said so: the first word of its `User-Agent`, and its features. At most 128
    /// bytes.
    #[must_use]
    pub fn release(&self) -> Option<String> {
        self.shared.lock().release.clone()
    }

    /// Where the runtime is.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.lock().state
    }
}

/// What comes of one invocation.
#[derive(Debug)]
pub struct Answer {
    said: mpsc::Receiver<Said>,
    ended: bool,
}

impl Answer {
    /// The next of it; `None` after the last, or when the API is gone. The function is held back while nobody reads.
    pub async fn next(&mut self) -> Option<Said> {
        if self.ended {
            return None;
        }
        let said = self.said.recv().await;
        self.ended = !matches!(said, Some(Said::Head { .. } | Said::Piece(_)));
        said
    }
}

/// What extensions are told of an invocation.
fn invoke_event(invocation: &Invocation) -> Bytes {
    let mut event = json!({
        "eventType": "INVOKE",
        "deadlineMs": invocation.deadline.map_or(0, epoch_millis),
        "requestId": invocation.request_id,
        "invokedFunctionArn": invocation.arn,
    });
    if !invocation.trace.is_empty() {
        event["tracing"] = tracing(&invocation.trace);
    }
    event.to_string().into()
}

/// An invocation that is to be handed over, or was.
#[derive(Debug)]
struct Work {
    id: String,
    headers: HeaderMap,
    payload: Bytes,
    say: mpsc::Sender<Said>,
    trace: String,
    tenant: String,
    handed: Option<Instant>,
    /// Its end was told to those who subscribed.
    told: bool,
}

/// How an answer came.
#[derive(Debug, Clone, Copy)]
struct Measured {
    first: Instant,
    bytes: usize,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Waits for `next`.
    pending: Option<Work>,
    /// Was handed over; stays until the runtime asks for the next one, so that a second answer is told from one to an
    /// invocation that never was.
    current: Option<Work>,
    init_error: Option<Failure>,
    release: Option<String>,
    extensions: Extensions,
    connections: usize,
}

struct Shared {
    about: About,
    born: Instant,
    telemetry: Arc<Telemetry>,
    inner: Mutex<Inner>,
    /// State, or work that waits, changed.
    changed: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Shared {
    fn new(about: About, telemetry: Arc<Telemetry>) -> Self {
        let inner = Inner {
            state: State::Started,
            pending: None,
            current: None,
            init_error: None,
            release: None,
            extensions: Extensions::new(about.external.clone()),
            connections: 0,
        };
        let (born, inner, changed) = (Instant::now(), Mutex::new(inner), Notify::new());
        Self { about, born, telemetry, inner, changed }
    }

    fn init_start(&self) {
        self.telemetry.platform(Some(Api::Telemetry), "platform.initStart", || {
            json!({
                "initializationType": "on-demand",
                "phase": "init",
                "functionName": self.about.function,
                "functionVersion": self.about.version,
                "instanceId": self.about.log_stream,
                "instanceMaxMemory": self.about.memory,
            })
        });
    }

    fn init_done(&self, failure: Option<&Failure>) {
        for extension in self.lock().extensions.all() {
            self.telemetry.platform(None, "platform.extension", || {
                json!({
                    "name": extension.name, "state": extension.state.name(), "events": extension.events()
                })
            });
        }
        let status = if failure.is_none() { "success" } else { "error" };
        self.telemetry.platform(Some(Api::Telemetry), "platform.initRuntimeDone", || {
            let mut record = json!({ "initializationType": "on-demand", "phase": "init", "status": status });
            if let Some(failure) = failure {
                record["errorType"] = json!(failure.kind);
            }
            record
        });
        self.telemetry.platform(Some(Api::Telemetry), "platform.initReport", || {
            let metrics = json!({ "durationMs": ms(self.born.elapsed()) });
            json!({ "initializationType": "on-demand", "phase": "init", "metrics": metrics })
        });
        self.telemetry.close();
    }

    /// The current invocation was handed over.
    fn handed(&self) {
        let inner = self.lock();
        let Some(work) = &inner.current else { return };
        self.telemetry
            .platform(None, "platform.start", || work.record(json!({ "version": self.about.version })));
    }

    /// The runtime has said its last word on the current invocation.
    fn runtime_done(&self, last: &Said, measured: Option<Measured>) {
        let (status, kind) = match last {
            Said::Failed(failure) if failure.broken => ("failure", Some(failure.kind.as_str())),
            Said::Failed(failure) => ("error", Some(failure.kind.as_str())),
            _ => ("success", None),
        };
        if let Some(work) = &mut self.lock().current {
            work.tell_done(&self.telemetry, status, kind, measured);
        }
    }

    fn over(&self, over: &Over) {
        let mut inner = self.lock();
        let Inner { pending, current, .. } = &mut *inner;
        let Some(work) = pending.as_mut().or(current.as_mut()) else { return };
        let kind = over.error.as_ref().map(|(kind, _)| kind.as_str());
        let status = match (over.timeout, kind) {
            (true, _) => "timeout",
            (false, None) => "success",
            (false, Some(kind)) if kind.starts_with("Runtime.Unknown") || kind.starts_with("Function.") => {
                "error"
            }
            (false, Some(_)) => "failure",
        };
        work.tell_done(&self.telemetry, status, kind, None);
        if let Some((kind, message)) = &over.error
            && status != "error"
        {
            self.telemetry.platform(Some(Api::Logs), "platform.fault", || {
                json!(format!("RequestId: {} Error: {message}\n{kind}\n", work.id))
            });
        }
        self.telemetry.platform(Some(Api::Logs), "platform.end", || json!({ "requestId": work.id }));
        self.telemetry.platform(None, "platform.report", || {
            let billed = u64::try_from(over.duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            let mut metrics = json!({
                "durationMs": ms(over.duration),
                "billedDurationMs": billed,
                "memorySizeMB": self.about.memory >> 20,
                "maxMemoryUsedMB": over.memory_used,
            });
            if let Some(init) = over.init {
                metrics["initDurationMs"] = ms(init);
            }
            let mut record = json!({ "status": status, "metrics": metrics });
            if let Some(kind) = kind {
                record["errorType"] = json!(kind);
            }
            work.record(record)
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something. It is asked after every change.
    async fn until<T>(&self, mut look: impl FnMut(&mut Inner) -> Option<T>) -> T {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        loop {
            // Enlisted before the look, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }

    fn on(&self, event: Event) -> Result<(), (State, Event)> {
        let mut inner = self.lock();
        let to = inner.state.on(event).map_err(|_| (inner.state, event))?;
        inner.state = to;
        drop(inner);
        self.changed.notify_waiters();
        Ok(())
    }
}

impl Work {
    /// A record about it, with what every one of them has.
    fn record(&self, mut record: Value) -> Value {
        record["requestId"] = json!(self.id);
        if !self.tenant.is_empty() {
            record["tenantId"] = json!(self.tenant);
        }
        if !self.trace.is_empty() {
            record["tracing"] = tracing(&self.trace);
        }
        record
    }

    /// Tells that the runtime is done with it, once.
    fn tell_done(
        &mut self,
        telemetry: &Telemetry,
        status: &str,
        kind: Option<&str>,
        measured: Option<Measured>,
    ) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let handed = self.handed;
        telemetry.platform(None, "platform.runtimeDone", || {
            let mut record = json!({ "status": status });
            if let Some(kind) = kind {
                record["errorType"] = json!(kind);
            }
            if let (Some(handed), Some(Measured { first, bytes })) = (handed, measured) {
                let span = |name: &str, from: Instant, took: Duration| {
                    let start = rfc3339_millis(SystemTime::now() - from.elapsed());
                    json!({ "name": name, "start": start, "durationMs": ms(took) })
                };
                record["metrics"] = json!({ "durationMs": ms(handed.elapsed()), "producedBytes": bytes });
                record["spans"] = json!([
                    span("responseLatency", handed, first - handed),
                    span("responseDuration", first, first.elapsed()),
                ]);
            }
            self.record(record)
        });
    }
}

fn headers_of(invocation: &Invocation) -> Result<HeaderMap, &'static str> {
    let deadline = invocation.deadline.map(|at| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        since.as_millis().to_string()
    });
    let kind = match invocation.content_type.as_str() {
        "" => "application/json",
        kind => kind,
    };
    let all = [
        ("lambda-runtime-aws-request-id", invocation.request_id.as_str()),
        ("lambda-runtime-deadline-ms", deadline.as_deref().unwrap_or_default()),
        ("lambda-runtime-invoked-function-arn", &invocation.arn),
        ("lambda-runtime-trace-id", &invocation.trace),
        ("lambda-runtime-client-context", &invocation.client_context),
        ("lambda-runtime-cognito-identity", &invocation.identity),
        ("lambda-runtime-aws-tenant-id", &invocation.tenant),
        ("content-type", kind),
    ];
    let mut headers = HeaderMap::with_capacity(all.len());
    for (name, value) in all {
        if !value.is_empty() {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| name)?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(headers)
}
