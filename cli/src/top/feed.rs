//! News from each balancer: one task each, which comes back when its balancer was away, and ends when nobody listens.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::Blame;
use stoker_core::backoff::Backoff;
use stoker_proto::{convert, v1};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client;
use crate::failure::Failure;

/// Waits before another try.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// A balancer that says nothing for so long beyond its beat is lost, whatever its connection says.
const SILENCE: Duration = Duration::from_secs(10);

/// What came of a balancer: its place among those that were named, and what.
pub type News = (usize, What);

pub enum What {
    Heard(Arc<v1::WatchActivityResponse>),
    /// Why, and when it is asked again; never, where it refused.
    Lost(Failure, Option<Instant>),
}

/// News of all of `servers`, for as long as they are read.
pub fn start(servers: &[String], interval: Duration) -> mpsc::Receiver<News> {
    let (news, heard) = mpsc::channel(servers.len() * 2);
    for (at, server) in servers.iter().cloned().enumerate() {
        let news = news.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = follow(at, &server, interval, &news) => {}
                () = news.closed() => {}
            }
        });
    }
    heard
}

async fn follow(at: usize, server: &str, interval: Duration, news: &mpsc::Sender<News>) {
    let waits = || Backoff::new(FIRST, LONGEST, at as u64);
    let mut wait = waits();
    loop {
        let mut spoke = false;
        let lost = watch(at, server, interval, news, &mut spoke).await;
        if spoke {
            wait = waits();
        }
        // Who was refused will be again.
        let refused = lost.blame() == Blame::Caller;
        let again = (!refused).then(|| Instant::now() + wait.next().unwrap_or(LONGEST));
        if news.send((at, What::Lost(lost, again))).await.is_err() {
            return;
        }
        let Some(again) = again else { return };
        tokio::time::sleep_until(again).await;
    }
}

/// Passes on what the balancer says; returns why it says no more.
async fn watch(
    at: usize,
    server: &str,
    interval: Duration,
    news: &mpsc::Sender<News>,
    spoke: &mut bool,
) -> Failure {
    let gone = |what: &str| Failure::away(format!("the balancer at {server} {what}"), "");
    let limit = interval + SILENCE;
    let opened = async {
        let mut client = client::fleet(server).await?;
        let request =
            v1::WatchActivityRequest { interval: Some(convert::to_duration(interval)), functions: 0 };
        Ok::<_, Failure>(client.watch_activity(request).await?.into_inner())
    };
    let mut stream = match tokio::time::timeout(limit, opened).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(failure)) => return failure,
        Err(_) => return gone("does not answer"),
    };
    loop {
        match tokio::time::timeout(limit, stream.message()).await {
            Ok(Ok(Some(message))) => {
                *spoke = true;
                if news.send((at, What::Heard(Arc::new(message)))).await.is_err() {
                    return gone("is not listened to any more");
                }
            }
            Ok(Ok(None)) => return gone("stopped"),
            Ok(Err(status)) => return status.into(),
            Err(_) => return gone("says nothing any more"),
        }
    }
}
