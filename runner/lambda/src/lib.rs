//! AWS Lambda's Runtime API, as one container sees it: the server that a runtime client asks for its next invocation and
//! answers to.
//!
//! One [`RuntimeApi`] belongs to one start of one container and serves one listener, which is best bound inside the container's network
//! namespace: then nobody else can reach it. The runner hands it invocations, one after the other or as many at once as the
//! function takes, and reads the answers; when a container is started, reused or ended is the runner's to decide, and so is all that
//! concerns processes (their exit, their time, their memory).
//!
//! Beside it are the Extensions API, and the Telemetry and Logs APIs ([`telemetry`]). An invocation is over when the runtime
//! and the extensions that are told of invocations have asked for the next.
//!
//! Contract: the Runtime API of 2018-06-01, the Extensions API of 2020-01-01, the Logs API of 2020-08-15 and the Telemetry API of
//! 2022-07-01, with the states of [`machine`] and the texts of AWS's own emulator, on which runtime clients rely.

mod api;
mod direct;
mod extensions;
pub mod fault;
pub mod function_url;
mod handover;
mod invocation;
pub mod machine;
mod restore;
mod shape;
mod shared;
pub mod telemetry;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use direct::Direct;
pub use extensions::MOST as MOST_EXTENSIONS;
pub use handover::{Asks, Handed, Known};
pub use invocation::{Answer, Failure, Invocation, Over, Refused, Said, is_request_id};
use invocation::{headers_of, invoke_event, shutdown_event};
use machine::State;
pub use restore::Credentials;
pub use shape::Bandwidth;
use shared::{Shared, Work};
use telemetry::{Connect, Telemetry};

/// Bytes of a payload, in and out, where it is not streamed: AWS's 6 MiB and 100.
pub const MAX_PAYLOAD: usize = 6 * 1024 * 1024 + 100;
/// Bytes of the body of an error that a runtime reports.
pub const MAX_ERROR: usize = stoker_core::error::MAX_REPORT;
/// Pieces of an answer that wait for their reader.
const PIECES: usize = 4;

/// Why a container was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// A call needed it.
    #[default]
    OnDemand,
    /// It was to be there before one comes.
    Provisioned,
    /// As from a snapshot: the runtime waits to be told that it was restored.
    SnapStart,
}

impl Kind {
    /// As environment and events name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::OnDemand => "on-demand",
            Kind::Provisioned => "provisioned-concurrency",
            Kind::SnapStart => "snap-start",
        }
    }
}

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
    pub kind: Kind,
    /// An earlier start of it failed: this one is a part of the invocation.
    pub again: bool,
    /// Invocations that it takes at once.
    pub concurrency: u32,
    /// Extensions that are processes of their own, and are started before the runtime.
    pub external: Vec<String>,
    /// There are no extensions, of no kind.
    pub no_extensions: bool,
    /// What a runtime that starts as from a snapshot may ask for.
    pub credentials: Option<Credentials>,
    /// The way to those who subscribe to telemetry.
    pub connect: Connect,
}

impl About {
    fn phase(&self) -> &'static str {
        if self.again { "invoke" } else { "init" }
    }
}

/// The API of one container. Dropping it closes its listener and all connections.
#[derive(Debug)]
pub struct RuntimeApi {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
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
        let listener = Arc::new(TcpListener::from_std(listener)?);
        let stop = CancellationToken::new();
        let telemetry = Arc::new(Telemetry::new(about.connect.clone(), stop.clone()));
        let shared = Arc::new(Shared::new(about, telemetry));
        shared.init_start();
        tokio::spawn(api::serve(listener.clone(), shared.clone(), stop.clone(), Vec::new()));
        Ok(Self { shared, listener, stop })
    }

    /// Waits until every extension that is a process of its own has registered.
    ///
    /// # Errors
    /// One of them cannot start.
    pub async fn registered(&self) -> Result<(), Failure> {
        self.shared
            .until(|inner| match &inner.extensions.fatal {
                Some(fatal) => Some(Err(Failure::extension(fatal, ""))),
                None => inner.extensions.registered().then_some(Ok(())),
            })
            .await
    }

    /// Waits until the runtime has asked for its first invocation, or waits for its [restore](Self::restore), and every extension has asked for
    /// its first event. Whoever registers or subscribes after that comes too late.
    ///
    /// # Errors
    /// What one of them said of its start instead. The end of the runtime's process says nothing: the caller watches that, and the time.
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

    /// Waits until the runtime and the extensions are done with all that they had and ask for more. Until then they may still be at work,
    /// though the runtime has answered.
    ///
    /// # Errors
    /// An extension said that it cannot go on: there is no more for this container.
    pub async fn idle(&self) -> Result<(), Failure> {
        let several = self.shared.several();
        self.shared
            .until(|inner| match &inner.extensions.fatal {
                Some(fatal) => Some(Err(Failure::extension(fatal, ""))),
                None => {
                    let asks = inner.state == State::Ready && (!several || inner.current.is_empty());
                    (asks && inner.pending.is_empty() && inner.extensions.done()).then_some(Ok(()))
                }
            })
            .await
    }

    /// Waits until it can be handed another invocation. One that takes several is handed them before it asks.
    ///
    /// # Errors
    /// As [`Self::idle`].
    pub async fn takes_more(&self) -> Result<(), Failure> {
        if !self.shared.several() {
            return self.idle().await;
        }
        match &self.shared.lock().extensions.fatal {
            Some(fatal) => Err(Failure::extension(fatal, "")),
            None => Ok(()),
        }
    }

    /// Hands over an invocation. It waits for the runtime to ask for it.
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
        if matches!(inner.state, State::InitError | State::RestoreError) || inner.extensions.fatal.is_some() {
            return Err(Refused::NotReady);
        }
        let busy = match self.shared.several() {
            true => inner.pending.len() + inner.current.len() >= self.shared.about.concurrency as usize,
            false => {
                let works = matches!(
                    inner.state,
                    State::Running | State::InvocationResponse | State::InvocationErrorResponse
                );
                works || !inner.pending.is_empty()
            }
        };
        if busy {
            return Err(Refused::Busy);
        }
        let same = |work: &Work| work.id == invocation.request_id;
        if self.shared.several() && (inner.pending.iter().any(same) || inner.current.iter().any(same)) {
            return Err(Refused::Twice);
        }
        if !inner.extensions.all().is_empty() {
            let event = invoke_event(&invocation);
            inner.extensions.invoke(&event);
        }
        let Invocation { request_id: id, payload, trace, tenant, bandwidth, .. } = invocation;
        let (handed, told, state, measured) = (None, false, State::Running, None);
        inner.pending.push_back(Work {
            id,
            headers,
            payload,
            say,
            trace,
            tenant,
            handed,
            told,
            state,
            measured,
        });
        drop(inner);
        self.shared.changed.notify_waiters();
        Ok(Answer::new(said, bandwidth))
    }

    /// Waits until the runtime is not connected: of a process that has ended, everything was read.
    pub async fn left_alone(&self) {
        self.shared.until(|inner| (inner.connections == 0).then_some(())).await;
    }

    /// An invocation is over, as far as its caller is concerned. Tells those who subscribed. `true` if the runtime was given it.
    pub fn over(&self, request_id: &str, over: &Over) -> bool {
        let seen = self.shared.over(request_id, over);
        self.shared.changed.notify_waiters();
        seen
    }

    /// The process of an extension that has its own ended, as `how` says: the end of the function, unless it was told to.
    pub async fn extension_ended(&self, name: &str, how: &str) {
        self.shared.lock().extensions.exited(name, how);
        self.shared.fall().await;
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

    /// Delivers what is left of telemetry, within this time. No more is delivered then.
    pub async fn flush(&self, within: Duration) {
        self.shared.telemetry.finish(within).await;
    }

    /// Tells the extensions that asked for it that the end comes, and waits until they are done, all within this time.
    pub async fn shut_down(&self, reason: &str, within: Duration) {
        let deadline = SystemTime::now() + within;
        let all = async {
            self.shared.lock().extensions.shut_down(&shutdown_event(deadline, reason));
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
