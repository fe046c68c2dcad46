//! Links to a runner: connect, engage, receive, and again when it breaks.

pub mod dial;
mod keepalive;
pub mod outbox;
pub mod session;
pub mod state;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Fuse, FusedFuture as _, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use stoker_core::backoff::Backoff;
use stoker_core::capacity::RunnerState;
use stoker_core::error::Refusal;
use stoker_proto::frames::{Decoded, Encoded};
use stoker_proto::runner::v1 as wire;
use stoker_proto::{MAX_FRAME, OLDEST_SESSION_VERSION, SESSION_VERSION, convert, v1};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use self::dial::LONGEST;
use self::outbox::Outgoing;
use self::session::Session;
use self::state::LinkEvent;
use crate::fleet::{Fleet, HANDSHAKE, Runner};

/// Why links end when the balancer does.
pub const STOPPING: &str = "this balancer is stopping";

/// What is said of a runner that does not say itself why it drains.
const DRAINED: &str = "it is drained";

/// Keeps all links of a runner until `stop`, or until none stands any more and the registry does not list the runner.
pub async fn run(
    runner: Arc<Runner>,
    fleet: Arc<Fleet>,
    stop: CancellationToken,
    gone: mpsc::Sender<Arc<Runner>>,
) {
    let links = (0..runner.links.len()).map(|at| keep(&runner, at, &fleet, &stop));
    futures_util::future::join_all(links).await;
    // Fails only when the follower has ended, and then nobody needs it.
    gone.send(runner).await.ok();
}

async fn keep(runner: &Arc<Runner>, at: usize, fleet: &Fleet, stop: &CancellationToken) {
    let seed = stoker_policy::placement::key(fleet.name.as_bytes()) ^ at as u64;
    let fresh = || Backoff::new(Duration::from_millis(50), Duration::from_secs(2), seed);
    let mut waits = fresh();
    let this = &runner.links[at];
    // One word for all tries in a row, and for all links.
    let mut told = at > 0;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            ended = fleet.panics.catch(engage(runner, at, fleet)) => Some(ended.unwrap_or_else(|error| {
                Ended { reason: error.message, welcomed: false }
            })),
        };
        let session = this.session.swap(None);
        this.channel.store(None);
        let Some(Ended { reason, welcomed }) = ended else {
            if let Some(session) = session {
                session.lost(STOPPING);
            }
            this.on(LinkEvent::Close, STOPPING);
            return;
        };
        let said_so = session.as_ref().is_some_and(|session| session.said_last_word());
        if let Some(session) = session {
            session.lost(&reason);
        }
        this.on(LinkEvent::Broke, &reason);
        if welcomed {
            // One that is stopped, or becomes its next program, does what it was told.
            match said_so {
                true => tracing::info!(runner = runner.name, reason, "a runner ended its link"),
                false => tracing::warn!(runner = runner.name, reason, "lost a runner"),
            }
            waits = fresh();
            told = at > 0;
        } else if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                runner = runner.name,
                reason,
                "cannot reach a runner: it is tried again and again"
            );
        } else {
            tracing::debug!(runner = runner.name, reason, "cannot reach a runner");
        }
        fleet.relinked();
        let wait = waits.next().unwrap_or(Duration::from_secs(2));
        let over = tokio::select! {
            () = stop.cancelled() => Some(STOPPING),
            () = runner.given_up() => Some("the runner left the fleet"),
            () = tokio::time::sleep(wait) => None,
        };
        if let Some(why) = over {
            this.on(LinkEvent::Close, why);
            return;
        }
        this.on(LinkEvent::Again, &reason);
    }
}

struct Ended {
    reason: String,
    welcomed: bool,
}

/// One connection from its opening to its end. Dropping it breaks the streams; the caller tells the calls of the current session.
async fn engage(runner: &Arc<Runner>, at: usize, fleet: &Fleet) -> Ended {
    let this = &runner.links[at];
    let opened = async {
        let channel = fleet.dial.connect(&runner.name, &runner.address).await?;
        let asked = Instant::now();
        let (stream, session) = greet(runner, fleet, channel.clone()).await?;
        Ok((channel, stream, session, asked.elapsed()))
    };
    let (channel, mut stream, mut session, greeting) = match in_time(opened).await {
        Ok(opened) => opened,
        Err(reason) => return Ended { reason, welcomed: false },
    };
    this.channel.store(Some(Arc::new(channel.clone())));
    this.session.store(Some(session.clone()));
    this.on(LinkEvent::Welcomed, "");
    if runner.capacity().0.state == RunnerState::Draining {
        this.on(LinkEvent::Drain, DRAINED);
    }
    fleet.relinked();
    fleet.room(runner, true);
    // A session that has defined many functions is followed by a fresh one, and ends when its calls have ended.
    let mut next = pin!(Fuse::terminated());
    let mut retired = FuturesUnordered::new();
    let mut silence = pin!(keepalive::silence(this, greeting));
    let reason = loop {
        tokio::select! {
            reason = receive(&mut stream, &session, runner, at, fleet, false) => break reason,
            silent = &mut silence => break format!("it was silent for {silent:?}"),
            () = session.worn(), if next.is_terminated() => {
                next.set(in_time(greet(runner, fleet, channel.clone())).fuse());
            }
            opened = &mut next, if !next.is_terminated() => match opened {
                Ok((fresh_stream, fresh)) => {
                    let old_stream = std::mem::replace(&mut stream, fresh_stream);
                    let old = std::mem::replace(&mut session, fresh);
                    this.session.store(Some(session.clone()));
                    retired.push(retire(old_stream, old, runner, at, fleet));
                }
                Err(reason) => {
                    tracing::warn!(runner = runner.name, reason, "cannot renew a session");
                    session.renew_later();
                }
            },
            Some(()) = retired.next(), if !retired.is_empty() => {}
        }
    };
    Ended { reason, welcomed: true }
}

async fn in_time<T>(opening: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(HANDSHAKE, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(format!("no welcome within {} s", HANDSHAKE.as_secs())),
    }
}

/// Takes frames until the stream ends and says why, or, if it is `retired`, until no call is on it any more.
async fn receive(
    stream: &mut Incoming,
    session: &Session,
    runner: &Arc<Runner>,
    at: usize,
    fleet: &Fleet,
    retired: bool,
) -> String {
    while !(retired && session.close_if_empty()) {
        let frame = match stream.message().await {
            Ok(Some(message)) => message.frame,
            Ok(None) => return "the runner ended the session".to_owned(),
            Err(status) => {
                let answered = runner.links[at].ponged();
                return why(&status, answered.is_some_and(|(_, at)| at.elapsed() < LONGEST));
            }
        };
        runner.links[at].hear();
        // A frame of a newer runner that we do not know is none of ours.
        let Some(frame) = frame else { continue };
        observe(runner, at, fleet, &frame);
        if let Err(violation) = session.receive(frame) {
            let violation = violation.0;
            tracing::warn!(runner = runner.name, violation, "a runner broke the session protocol");
            return format!("it broke the session protocol: {violation}");
        }
    }
    "its calls have ended".to_owned()
}

/// Why a stream ended, of a runner that `lived` within what a ping is waited for. Of a broken connection the deepest cause says it; what is around that only
/// says that something broke.
fn why(status: &Status, lived: bool) -> String {
    let causes = std::iter::successors(std::error::Error::source(status), |cause| cause.source());
    match causes.last().map(ToString::to_string) {
        // The transport has no other word for a connection that did not answer its ping.
        Some(cause) if cause.ends_with("broken pipe") && !lived => {
            format!("the connection broke, or was silent for {LONGEST:?}")
        }
        Some(cause) => format!("the connection broke: {cause}"),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

/// Follows a session that takes no new calls. However it ends, its calls learn it.
async fn retire(mut stream: Incoming, session: Arc<Session>, runner: &Arc<Runner>, at: usize, fleet: &Fleet) {
    let retired = Retired(session);
    let reason = receive(&mut stream, &retired.0, runner, at, fleet, true).await;
    retired.0.lost(&reason);
}

struct Retired(Arc<Session>);

impl Drop for Retired {
    fn drop(&mut self) {
        self.0.lost("the connection to the runner is closed");
    }
}

/// A new session on a connection.
async fn greet(runner: &Runner, fleet: &Fleet, channel: Channel) -> Result<(Incoming, Arc<Session>), String> {
    let (out, outgoing) = outbox::outbox();
    out.push(wire::EngageRequest {
        frame: Some(wire::engage_request::Frame::Hello(wire::Hello {
            version: SESSION_VERSION,
            oldest_version: OLDEST_SESSION_VERSION,
            balancer: fleet.name.clone(),
            instance: fleet.instance,
        })),
    });
    let mut stream = open(channel, outgoing).await.map_err(|status| why(&status, true))?;
    let first =
        stream.message().await.map_err(|status| why(&status, true))?.and_then(|message| message.frame);
    let Some(wire::engage_response::Frame::Welcome(welcome)) = first else {
        return Err("it did not begin with Welcome".to_owned());
    };
    if !(OLDEST_SESSION_VERSION..=SESSION_VERSION).contains(&welcome.version) {
        return Err(format!(
            "it speaks version {} of the session protocol, we speak {SESSION_VERSION}",
            welcome.version
        ));
    }
    let record = welcome.capacity.ok_or("its Welcome has no capacity")?;
    let record = convert::capacity(record).map_err(|wrong| format!("its capacity: {wrong}"))?;
    if record.runner.as_str() != runner.name {
        return Err(format!("at {} answers {}, not {}", runner.address, record.runner, runner.name));
    }
    runner.update(record, true);
    Ok((stream, Session::new(out, welcome.version, fleet.renew_after)))
}

/// Calls `Engage` with frames that are not copied on their way, which the generated client would do.
async fn open(channel: Channel, outgoing: Outgoing<wire::EngageRequest>) -> Result<Incoming, Status> {
    let body = tonic::body::Body::new(Encoded::request(outgoing.map(Ok)));
    let mut request = http::Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_static("/stoker.runner.v1.RunnerService/Engage");
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let answer = channel.oneshot(request).await.map_err(|error| Status::from_error(error.into()))?;
    match Status::from_header_map(answer.headers()) {
        Some(status) => Err(status),
        None if answer.status() != StatusCode::OK => {
            Err(Status::unknown(format!("what answers is no runner: HTTP status {}", answer.status())))
        }
        None => Ok(Decoded::answer(answer.into_body(), MAX_FRAME)),
    }
}

/// The frames of a runner.
type Incoming = Decoded<tonic::body::Body, wire::EngageResponse>;

/// Takes what a frame says about capacity, before the call that it is about learns of it.
fn observe(runner: &Arc<Runner>, at: usize, fleet: &Fleet, frame: &wire::engage_response::Frame) {
    use wire::engage_response::Frame as F;
    let update = |record: &Option<v1::Capacity>| match record.clone().map(convert::capacity) {
        Some(Ok(record)) => runner.update(record, true),
        Some(Err(wrong)) => {
            tracing::warn!(runner = runner.name, %wrong, "a capacity record is not valid");
        }
        None => {}
    };
    match frame {
        F::Finished(f) => {
            runner.ended(f.warmth.as_ref());
            let warmth = f.warmth.as_ref().and_then(|warmth| convert::warmth(warmth).ok());
            let idle = warmth.map_or(0, |(_, warmth)| warmth.idle);
            // One that does not say how long it was there may have been there all the time.
            let mut there = Duration::MAX;
            if let Some(v1::Timings { wait_us, execution_us, .. }) = f.timings {
                there = Duration::from_micros(wait_us.saturating_add(execution_us));
                if execution_us > 0 {
                    fleet.ran(execution_us);
                }
            }
            // Where one of ours stands in the line and nobody is idle, the line has taken what came free, and another would be refused.
            if !fleet.queue.ended(runner, idle > 0 || !runner.has_ours(), there)
                && let Some((function, _)) = warmth
            {
                // What it worked with is free with it.
                fleet.reoffers.idle(&function, runner, idle.min(1), u32::MAX);
            }
        }
        F::Refused(f) => {
            update(&f.capacity);
            runner.refused(convert::refusal(f.reason) == Refusal::Full, f.warmth.as_ref());
        }
        F::Capacity(f) => {
            update(&f.capacity);
            // Its word of how it stands holds on this stream whether or not the record is news: frames come in their order here.
            let this = &runner.links[at];
            let turned = match f.capacity.as_ref().map(v1::Capacity::state) {
                Some(v1::RunnerState::Ready) if !this.is_open() => Some((LinkEvent::Resume, "")),
                Some(v1::RunnerState::Draining) if this.is_open() => Some((LinkEvent::Drain, DRAINED)),
                _ => None,
            };
            if let Some((event, reason)) = turned {
                this.on(event, reason);
                fleet.relinked();
            } else {
                fleet.changed();
            }
            // One of ours that stands in its line is woken by what it gets there.
            if !fleet.room(runner, !runner.has_ours()) {
                let record = runner.capacity();
                let mut cpu = record.0.free.cpu_millis;
                for function in fleet.reoffers.functions() {
                    let idle = record.0.functions.get(&function).map_or(0, |warmth| warmth.idle);
                    cpu = fleet.reoffers.idle(&function, runner, idle, cpu);
                }
            }
        }
        F::Draining(f) => {
            runner.links[at].on(LinkEvent::Drain, &f.reason);
            fleet.relinked();
        }
        F::Pong(f) => runner.links[at].pong(f.number),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who was killed a moment after it had answered was not silent for half a minute.
    #[test]
    fn a_broken_connection_is_no_silence() {
        let broken = std::io::Error::new(std::io::ErrorKind::BrokenPipe, "broken pipe");
        let status = Status::from_error(Box::new(broken));
        assert_eq!(why(&status, true), "the connection broke: broken pipe");
        assert_eq!(why(&status, false), "the connection broke, or was silent for 30s");
    }
}
