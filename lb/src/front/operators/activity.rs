//! What the fleet does, sent at a beat to whoever watches.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use stoker_core::error::{Code, Error};
use stoker_proto::{convert, v1};
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::fail;
use crate::activity::FUNCTIONS;
use crate::front::Front;

/// How often it may be asked for, and how often it comes if nobody says.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(60);
const USUAL: Duration = Duration::from_secs(1);

/// Pictures of everything, as often as was asked for, until who asked goes or the balancer stops.
pub fn stream(
    front: Arc<Front>,
    request: v1::WatchActivityRequest,
) -> Result<impl Stream<Item = Result<v1::WatchActivityResponse, Status>> + Send, Status> {
    let interval = request.interval.map_or(USUAL, convert::duration);
    if !(SHORTEST..=LONGEST).contains(&interval) {
        let text = format!("interval: write {SHORTEST:?} to {LONGEST:?}");
        return Err(fail(&Error::new(Code::InvalidRequest, text)));
    }
    let most = match request.functions as usize {
        0 => FUNCTIONS,
        some => some,
    };
    let mut beat = tokio::time::interval(interval);
    // A watcher that was away gets what is now, not what it missed.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(futures_util::stream::unfold((front, beat), move |(front, mut beat)| async move {
        tokio::select! {
            () = front.stopping.cancelled() => return None,
            _ = beat.tick() => {}
        }
        let mut picture = v1::WatchActivityResponse::clone(&front.observer.activity.now(&front));
        let over = picture.functions.len().saturating_sub(most);
        picture.functions.truncate(most);
        picture.functions_left_out += over as u32;
        Some((Ok(picture), (front, beat)))
    }))
}
