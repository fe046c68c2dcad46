//! One call on a session, as its two owners have it: the one who reads the answer, and the one who sends the body.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use stoker_core::call::{Deadline, Taken, longest_piece};
use stoker_core::error::Error;
use stoker_core::machine::Machine as _;
use stoker_proto::runner::v1 as wire;
use stoker_proto::v1;

use super::Session;
use super::inbox::{Event, Inbox, wake};
use crate::fleet::InFlight;
use crate::link::state::{CallEvent, CallState};

/// What reader and writer of one call share.
#[derive(Clone)]
struct CallPart {
    session: Arc<Session>,
    number: u64,
    inbox: Arc<Inbox>,
}

/// One call on a session, owned by whoever waits for its answer. Dropping it cancels the call.
pub struct LinkCall {
    part: CallPart,
    deadline: Deadline,
    taken: Taken,
    _in_flight: InFlight,
}

impl LinkCall {
    /// The call of this number, just offered.
    pub(super) fn new(
        session: Arc<Session>,
        number: u64,
        inbox: Arc<Inbox>,
        deadline: Deadline,
        in_flight: InFlight,
    ) -> Self {
        Self {
            part: CallPart { session, number, inbox },
            deadline,
            taken: Taken::default(),
            _in_flight: in_flight,
        }
    }

    /// What happens next.
    #[cfg(test)]
    pub async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What happens next. After `Refused`, `Finished` and `Lost` nothing comes any more.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut slot = self.part.inbox.lock();
        match slot.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => {
                slot.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Gives the permission to start; nothing happens if the call has ended meanwhile.
    pub fn start(&self) {
        let mut slot = self.part.inbox.lock();
        if let Ok(next) = slot.state.on(CallEvent::Start) {
            slot.state = next;
            drop(slot);
            self.part
                .session
                .send(wire::engage_request::Frame::Start(wire::Start { call: self.part.number }));
        }
    }

    /// The reader took bytes of the answer: the runner may send as many more.
    pub fn consumed(&mut self, bytes: usize) {
        let Some(bytes) = self.taken.add(bytes) else { return };
        let mut slot = self.part.inbox.lock();
        if slot.state == CallState::Over {
            return;
        }
        slot.window += u64::from(bytes);
        drop(slot);
        let credit = wire::Credit { call: self.part.number, bytes };
        self.part.session.send(wire::engage_request::Frame::Credit(credit));
    }

    /// It has a better place: nothing of it is wanted here any more.
    pub fn leave(self) {
        self.part.abandon(wire::CancelReason::PlacedElsewhere, None);
    }

    /// The end that sends the rest of the request's body.
    pub fn upload(&self) -> Upload {
        Upload { part: self.part.clone() }
    }

    /// Keeps the deadline of an answer even when its reader does not come for more: what it has not taken then is thrown
    /// away. Ends with the deadline, or with this call.
    pub fn guard(&self) -> impl Future<Output = ()> + Send + use<> {
        let (part, deadline) = (self.part.clone(), self.deadline);
        async move {
            let gone = poll_fn(|cx| {
                let mut slot = part.inbox.lock();
                if slot.abandoned {
                    return Poll::Ready(());
                }
                slot.guard = Some(cx.waker().clone());
                Poll::Pending
            });
            if tokio::time::timeout_at(deadline.0.into(), gone).await.is_err() {
                part.abandon(wire::CancelReason::Deadline, Some(Event::Expired));
            }
        }
    }
}

impl CallPart {
    /// Nothing of this call is wanted any more but, perhaps, a last word.
    fn abandon(&self, reason: wire::CancelReason, last: Option<Event>) {
        let mut slot = self.inbox.lock();
        if !slot.abandoned {
            slot.events.clear();
            slot.events.extend(last);
        }
        slot.abandoned = true;
        let cancel = slot.state != CallState::Over && !std::mem::replace(&mut slot.cancelled, true);
        let wakers = slot.wakers();
        drop(slot);
        wake(wakers);
        if cancel {
            let cancel = wire::Cancel { call: self.number, reason: reason.into() };
            self.session.send(wire::engage_request::Frame::Cancel(cancel));
        }
    }
}

impl Drop for LinkCall {
    fn drop(&mut self) {
        let reason = if self.deadline.remaining().is_zero() {
            wire::CancelReason::Deadline
        } else {
            wire::CancelReason::CallerGone
        };
        self.part.abandon(reason, None);
    }
}

/// Sends the rest of a request's body, as far as credit allows.
pub struct Upload {
    part: CallPart,
}

impl Upload {
    /// Waits until something may be sent, and says how much; `None` once the call is over or nobody waits for it.
    pub async fn credit(&self) -> Option<usize> {
        poll_fn(|cx| {
            let mut slot = self.part.inbox.lock();
            if slot.abandoned || slot.state == CallState::Over {
                Poll::Ready(None)
            } else if slot.upload > 0 {
                Poll::Ready(Some(usize::try_from(slot.upload).unwrap_or(usize::MAX)))
            } else {
                slot.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Resolves once the call is over or nobody waits for it.
    pub async fn over(&self) {
        poll_fn(|cx| {
            let mut slot = self.part.inbox.lock();
            if slot.abandoned || slot.state == CallState::Over {
                return Poll::Ready(());
            }
            slot.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Most bytes of one piece.
    pub fn longest_piece(&self) -> usize {
        longest_piece(stoker_proto::window(self.part.session.version))
    }

    /// Sends a piece, no longer than the [longest](Self::longest_piece) and within the credit.
    pub fn send(&self, data: Bytes) {
        self.push(wire::Body { data, ..wire::Body::default() });
    }

    /// All of the body was sent, and this is what the caller said behind it.
    pub fn end(&self, trailers: Vec<v1::Header>) {
        self.push(wire::Body { last: true, trailers, ..wire::Body::default() });
    }

    fn push(&self, body: wire::Body) {
        let mut slot = self.part.inbox.lock();
        if slot.state == CallState::Over {
            return;
        }
        slot.upload = slot.upload.saturating_sub(body.data.len() as u64);
        drop(slot);
        let body = wire::Body { call: self.part.number, ..body };
        self.part.session.send(wire::engage_request::Frame::Body(body));
    }

    /// The caller's body cannot be read to its end: whoever waits for the answer learns why.
    pub fn failed(&self, error: Error) {
        let mut slot = self.part.inbox.lock();
        slot.push(Event::InputFailed(error));
        let wakers = slot.wakers();
        drop(slot);
        wake(wakers);
    }
}
