//! Who holds a call, asked of the holder itself.
//!
//! A server that was restarted, or a member of a cluster that has just begun to lead, may tell again of a call that is held and is being made. Whoever is
//! told asks first: only a call whose holder is gone, or has let its lease pass, was cut off and is made anew. No clock is shared for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{Inner, away};
use crate::Error;
use crate::record::{Progress, State};

/// A holder that says nothing for so long cannot be reached, and neither can it say that it still works on the call.
const ASK: Duration = Duration::from_secs(2);

fn subject(inner: &Inner, holder: &str) -> String {
    format!("{}.holder.{holder}", inner.config.prefix)
}

/// Begins to listen to those who ask.
pub async fn listen(inner: &Inner) -> Result<Subscriber, Error> {
    inner.client.subscribe(subject(inner, &inner.name)).await.map_err(away)
}

/// Answers them, until the queue stops.
pub async fn answer(inner: Arc<Inner>, mut asked: Subscriber) {
    let answers = async {
        while let Some(message) = asked.next().await {
            let Some(reply) = message.reply else { continue };
            let held = std::str::from_utf8(&message.payload).ok().and_then(|id| inner.has(id));
            // In milliseconds; nothing: it is not held. Who hears nothing asks again.
            let says = held.map(|left| Bytes::from(left.as_millis().to_string())).unwrap_or_default();
            inner.client.publish(reply, says).await.ok();
        }
    };
    tokio::select! {
        () = inner.stop.cancelled() => {}
        () = answers => {}
    }
}

impl Inner {
    /// For how long a call is held here, unless that is extended.
    fn has(&self, id: &str) -> Option<Duration> {
        let held = self.held().values().filter(|held| held.id == id).map(|held| held.until).max()?;
        let left = held.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// How long to leave a call alone of which the server tells: nothing, unless its open attempt is still being made.
    pub async fn still_made(&self, id: &str, progress: &Progress) -> Option<Duration> {
        let open = progress.attempts.last().filter(|open| open.ended_ms == 0 && !open.holder.is_empty());
        let open = open.filter(|_| progress.is() == State::Running)?;
        if open.holder == self.name {
            return self.has(id);
        }
        let asked = self.client.request(subject(self, &open.holder), id.to_owned().into());
        if let Ok(Ok(answer)) = tokio::time::timeout(ASK, asked).await {
            let left = std::str::from_utf8(&answer.payload).ok().and_then(|left| left.parse().ok());
            return left.map(Duration::from_millis);
        }
        // It is not there. Where the server has just come back, it may only not be there again.
        let connected = self.connected.borrow().1.elapsed();
        self.config.lease.checked_sub(connected)
    }
}
