//! What functions write on all runners, as one stream: each runner at its own pace, and the loss of one ends only its own part.
//!
//! Who follows gets a runner back that was away: it is asked again, and says again what it keeps; lines are counted, so that none comes twice
//! and those that were thrown away meanwhile are told as such.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::SelectAll;
use futures_util::{Stream, StreamExt as _};
use stoker_core::error::{Code, Error};
use stoker_core::ids::{CallId, Incarnation};
use stoker_proto::runner::v1 as wire;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::fail;
use crate::directory::Known;
use crate::front::Front;

/// A runner whose logs broke off is asked again after this, if it can be reached then; else once it can.
const AGAIN: Duration = Duration::from_secs(1);

/// Everything of this request.
pub fn stream(
    front: Arc<Front>,
    known: &Known,
    request: v1::StreamLogsRequest,
) -> Result<impl Stream<Item = Result<v1::StreamLogsResponse, Status>> + Send + use<>, Status> {
    if !request.call_id.is_empty() && CallId::parse(&request.call_id).is_none() {
        return Err(fail(&Error::new(
            Code::InvalidRequest,
            "call_id: that is not the id of a call: those have 32 hexadecimal digits",
        )));
    }
    let mut logs = Logs {
        ask: wire::StreamLogsRequest {
            app: known.spec.name.app().to_owned(),
            function: known.spec.name.function().to_owned(),
            call_id: request.call_id,
            follow: request.follow,
        },
        since: request.since.map(moment),
        sources: request.sources,
        changes: front.dispatch.fleet.changes(),
        asked: HashMap::new(),
        open: SelectAll::new(),
        again: None,
        front,
    };
    logs.listen();
    Ok(futures_util::stream::unfold(logs, |mut logs| async move {
        let next = logs.next().await?;
        Some((Ok(next), logs))
    }))
}

/// In the order of time.
fn moment(time: prost_types::Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

/// A life of a runner.
type Life = (String, Incarnation);

/// What it said, or that it says no more.
type Part = (Life, Option<wire::StreamLogsResponse>);

/// One that was asked.
#[derive(Default)]
struct Asked {
    /// It still speaks.
    open: bool,
    /// The number of its last line.
    last: u64,
    /// Nothing has come since it was asked again.
    resumed: bool,
}

struct Logs {
    ask: wire::StreamLogsRequest,
    since: Option<(i64, i32)>,
    sources: Vec<i32>,
    changes: watch::Receiver<u64>,
    asked: HashMap<Life, Asked>,
    open: SelectAll<Pin<Box<dyn Stream<Item = Part> + Send>>>,
    /// When those are to be asked again that broke off.
    again: Option<Instant>,
    front: Arc<Front>,
}

impl Logs {
    /// Asks those that were not asked yet, and those again that broke off some time ago.
    fn listen(&mut self) {
        let runners = self.front.dispatch.fleet.runners();
        let lives: Vec<_> = runners
            .iter()
            .map(|runner| (runner, (runner.name.clone(), runner.capacity().0.incarnation)))
            .collect();
        self.asked.retain(|life, asked| asked.open || lives.iter().any(|(_, other)| other == life));
        for (runner, life) in lives {
            let Some(channel) = runner.channel() else { continue };
            let before = self.asked.get(&life).map(|asked| (asked.open, asked.last));
            if before.is_some_and(|(open, _)| open || self.again.is_some()) {
                continue;
            }
            let last = before.map_or(0, |(_, last)| last);
            self.asked.insert(life.clone(), Asked { open: true, last, resumed: before.is_some() });
            self.open.push(Box::pin(runner_logs(life, channel, self.ask.clone())));
        }
    }

    /// The next lines; one who follows waits for them, and for runners that come.
    async fn next(&mut self) -> Option<v1::StreamLogsResponse> {
        while self.ask.follow || !self.open.is_empty() {
            tokio::select! {
                () = self.front.stopping.cancelled() => return None,
                part = self.open.next(), if !self.open.is_empty() => {
                    if let Some(response) = part.and_then(|part| self.take(part)) {
                        return Some(response);
                    }
                }
                changed = self.changes.changed(), if self.ask.follow => {
                    changed.ok()?;
                    self.listen();
                }
                () = until(self.again), if self.again.is_some() => {
                    self.again = None;
                    self.listen();
                }
            }
        }
        None
    }

    /// What of it is new and wanted.
    fn take(&mut self, (life, said): Part) -> Option<v1::StreamLogsResponse> {
        let asked = self.asked.get_mut(&life)?;
        let Some(wire::StreamLogsResponse { mut lines, mut dropped }) = said else {
            asked.open = false;
            if self.ask.follow {
                self.again.get_or_insert_with(|| Instant::now() + AGAIN);
            }
            return None;
        };
        // One that does not count its lines says 0.
        lines.retain(|line| line.sequence == 0 || line.sequence > asked.last);
        if let (Some(first), Some(end)) = (lines.first(), lines.last()) {
            // Between its lines there may be some of other calls.
            if std::mem::take(&mut asked.resumed) && self.ask.call_id.is_empty() && asked.last > 0 {
                dropped += first.sequence.saturating_sub(asked.last + 1);
            }
            asked.last = asked.last.max(end.sequence);
        }
        let early = |line: &v1::LogLine| line.time.map(moment) < self.since;
        let wanted = |line: &v1::LogLine| self.sources.is_empty() || self.sources.contains(&line.source);
        lines.retain(|line| wanted(line) && !early(line));
        (!lines.is_empty() || dropped > 0).then_some(v1::StreamLogsResponse { lines, dropped })
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn runner_logs(
    life: Life,
    channel: Channel,
    ask: wire::StreamLogsRequest,
) -> impl Stream<Item = Part> + Send {
    let opened = async move {
        match RunnerServiceClient::new(channel).stream_logs(ask).await {
            Ok(response) => response.into_inner().left_stream(),
            Err(status) => futures_util::stream::iter([Err(status)]).right_stream(),
        }
    };
    let runner = life.0.clone();
    let over = (life.clone(), None);
    futures_util::stream::once(opened)
        .flatten()
        .filter_map(move |message| {
            let said = message.map(|said| (life.clone(), Some(said)));
            std::future::ready(
                said.map_err(|status| tracing::warn!(runner, %status, "the logs of a runner broke off")).ok(),
            )
        })
        .chain(futures_util::stream::iter([over]))
}
