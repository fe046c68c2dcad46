//! Links to a runner: connect, engage, receive, and again when it breaks.

pub mod outbox;
pub mod session;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use stoker_core::backoff::Backoff;
use stoker_proto::runner::v1 as wire;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::{MAX_FRAME, OLDEST_SESSION_VERSION, SESSION_VERSION, convert};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use self::session::Session;
use self::state::LinkEvent;
use crate::fleet::{Fleet, HANDSHAKE, Runner};

/// Ping this often, and give up on a peer that does not answer for as long: a frozen machine sends no reset.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// HTTP/2 windows. Credit per call bounds what is under way; these only must not be what limits it.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Keeps all links of a runner until `stop`, or until they have broken and the runner is not listed any more.
pub async fn run(
    runner: Arc<Runner>,
    fleet: Arc<Fleet>,
    stop: CancellationToken,
    gone: mpsc::Sender<Arc<Runner>>,
) {
    let lanes = (0..runner.lanes.len()).map(|lane| keep(&runner, lane, &fleet, &stop));
    futures_util::future::join_all(lanes).await;
    // Fails only when the follower has ended, and then nobody needs it.
    gone.send(runner).await.ok();
}

async fn keep(runner: &Runner, lane: usize, fleet: &Fleet, stop: &CancellationToken) {
    let seed = stoker_policy::placement::key(fleet.name.as_bytes()) ^ lane as u64;
    let fresh = || Backoff::new(Duration::from_millis(50), Duration::from_secs(2), seed);
    let mut waits = fresh();
    let this = &runner.lanes[lane];
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            ended = engage(runner, lane, fleet) => Some(ended),
        };
        let session = this.session.swap(None);
        this.channel.store(None);
        let Some(Ended { reason, welcomed }) = ended else {
            if let Some(session) = session {
                session.lost("this balancer is stopping");
            }
            this.on(LinkEvent::Close, "this balancer is stopping");
            return;
        };
        if let Some(session) = session {
            session.lost(&reason);
        }
        this.on(LinkEvent::Broke, &reason);
        if welcomed {
            tracing::warn!(runner = runner.name, reason, "lost a runner");
            waits = fresh();
        } else {
            tracing::debug!(runner = runner.name, reason, "cannot reach a runner");
        }
        fleet.changed();
        let wait = waits.next().unwrap_or(Duration::from_secs(2));
        tokio::select! {
            () = stop.cancelled() => {}
            () = runner.unlisted.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if stop.is_cancelled() || runner.unlisted.is_cancelled() {
            this.on(LinkEvent::Close, "the runner left the fleet");
            return;
        }
        this.on(LinkEvent::Again, &reason);
    }
}

struct Ended {
    reason: String,
    welcomed: bool,
}

/// One session from connect to its end. Dropping it breaks the stream; the caller tells the calls.
async fn engage(runner: &Runner, lane: usize, fleet: &Fleet) -> Ended {
    let (mut stream, session) = match tokio::time::timeout(HANDSHAKE, open(runner, lane, fleet)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(reason)) => return Ended { reason, welcomed: false },
        Err(_) => {
            let reason = format!("no welcome within {} s", HANDSHAKE.as_secs());
            return Ended { reason, welcomed: false };
        }
    };
    let this = &runner.lanes[lane];
    this.session.store(Some(session.clone()));
    this.on(LinkEvent::Welcomed, "");
    fleet.changed();
    let reason = loop {
        let frame = match stream.message().await {
            Ok(Some(message)) => message.frame,
            Ok(None) => break "the runner ended the session".to_owned(),
            Err(status) => break format!("{}: {}", status.code(), status.message()),
        };
        // A frame of a newer runner that we do not know is none of ours.
        let Some(frame) = frame else { continue };
        observe(runner, lane, fleet, &frame);
        if let Err(violation) = session.receive(frame) {
            tracing::warn!(
                runner = runner.name,
                violation = violation.0,
                "a runner broke the session protocol"
            );
            break format!("it broke the session protocol: {}", violation.0);
        }
    };
    Ended { reason, welcomed: true }
}

async fn open(
    runner: &Runner,
    lane: usize,
    fleet: &Fleet,
) -> Result<(Streaming<wire::EngageResponse>, Arc<Session>), String> {
    let channel = connect(&runner.address).await?;
    let mut client = RunnerServiceClient::new(channel.clone())
        .max_decoding_message_size(MAX_FRAME)
        .max_encoding_message_size(2 * MAX_FRAME);
    let (out, outgoing) = outbox::outbox();
    out.push(wire::EngageRequest {
        frame: Some(wire::engage_request::Frame::Hello(wire::Hello {
            version: SESSION_VERSION,
            oldest_version: OLDEST_SESSION_VERSION,
            balancer: fleet.name.clone(),
        })),
    });
    let text = |status: tonic::Status| format!("{}: {}", status.code(), status.message());
    let mut stream = client.engage(outgoing).await.map_err(text)?.into_inner();
    let first = stream.message().await.map_err(text)?.and_then(|message| message.frame);
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
    runner.lanes[lane].channel.store(Some(Arc::new(channel)));
    Ok((stream, Session::new(out)))
}

async fn connect(address: &str) -> Result<Channel, String> {
    Endpoint::from_shared(address.to_owned())
        .map_err(|_| format!("`{address}` is not an address"))?
        .connect_timeout(Duration::from_secs(3))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await
        .map_err(|error| {
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            format!("cannot connect to {address}{cause}")
        })
}

/// Takes what a frame says about capacity.
fn observe(runner: &Runner, lane: usize, fleet: &Fleet, frame: &wire::engage_response::Frame) {
    use wire::engage_response::Frame as F;
    match frame {
        F::Finished(f) => {
            runner.ended();
            if let Some(warmth) = &f.warmth {
                runner.warmth(warmth);
            }
            fleet.queue.ended();
        }
        F::Refused(f) => {
            if let Some(Ok(record)) = f.capacity.clone().map(convert::capacity) {
                runner.update(record, true);
            }
            if let Some(warmth) = &f.warmth {
                runner.warmth(warmth);
            }
        }
        F::Capacity(f) => match f.capacity.clone().map(convert::capacity) {
            Some(Ok(record)) => {
                runner.update(record, true);
                fleet.changed();
            }
            Some(Err(wrong)) => {
                tracing::warn!(runner = runner.name, %wrong, "a capacity record is not valid")
            }
            None => {}
        },
        F::Draining(f) => {
            runner.lanes[lane].on(LinkEvent::Drain, &f.reason);
            fleet.changed();
        }
        _ => {}
    }
}
