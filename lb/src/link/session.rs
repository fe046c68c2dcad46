//! One `Engage` stream: the calls on it, their states, what came for them and what they may send.
//!
//! The task of the stream ([`crate::link`]) hands every received frame to [`Session::receive`], which never waits: pieces of an
//! answer go into the inbox of their call, within the credit that this call gave, so that a slow reader holds up nobody else.
//! When the stream ends, every call on it learns it exactly once.

mod call;
mod inbox;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stoker_core::call::TraceContext;
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_proto::runner::v1 as wire;
use stoker_proto::{MAX_DEFINED, convert, v1};
use tokio::sync::Notify;

pub use self::call::{LinkCall, Upload};
pub use self::inbox::Event;
use self::inbox::{Inbox, Slot, wake};
use super::outbox::Outbox;
use super::state::{CallEvent, CallState};
use crate::call::{Call, Input};
use crate::directory::Known;
use crate::fleet::InFlight;
use crate::hash::{QuickMap, QuickSet};

#[derive(Default)]
struct Table {
    calls: QuickMap<u64, Arc<Inbox>>,
    /// By all that a runner is told of them: what changes without a new version is told again.
    defined: QuickSet<Digest>,
    last: u64,
    closed: bool,
    /// The runner wants no offers now.
    drains: bool,
    /// The number of the `Draining` that is to be answered once no call is open; 0 where there is none.
    unsettled: u64,
    /// The last offer that the runner has read, where it said so.
    read: Option<u64>,
    /// Of so many definitions it is worn.
    renew_at: usize,
}

/// One stream to a runner.
pub struct Session {
    out: Outbox<wire::EngageRequest>,
    /// Of the protocol.
    version: u32,
    table: Mutex<Table>,
    worn: Notify,
}

/// The runner broke the protocol: what it sent and why that is wrong.
#[derive(Debug)]
pub struct Violation(pub String);

/// How a call is offered.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// It has waited in this balancer.
    pub waited: bool,
    /// It stands in another runner's line, and is wanted here only if somebody is idle.
    pub only_if_idle: bool,
}

impl Session {
    /// A session whose `Welcome` has come, with the version that both speak. It is [worn](Self::worn) after so many definitions.
    pub fn new(out: Outbox<wire::EngageRequest>, version: u32, renew_after: usize) -> Arc<Self> {
        let table = Table { renew_at: renew_after, ..Table::default() };
        Arc::new(Self { out, version, table: Mutex::new(table), worn: Notify::new() })
    }

    /// What this runner is told of a function: one of version 1 does not know the numbers of versions, and has them all as it always had.
    fn told<'a>(&self, function: &'a Known) -> &'a Known {
        match &function.unnumbered {
            Some(unnumbered) if self.version < 2 => unnumbered,
            _ => function,
        }
    }

    /// Returns when so much is defined on this session that another should follow.
    pub async fn worn(&self) {
        loop {
            let worn = self.worn.notified();
            {
                let table = self.table();
                if table.defined.len() >= table.renew_at {
                    return;
                }
            }
            worn.await;
        }
    }

    /// No other could follow now: worn again after some more definitions.
    pub fn renew_later(&self) {
        let mut table = self.table();
        table.renew_at = table.defined.len() + MAX_DEFINED / 64;
    }

    /// Whether the runner ends it in order: it has said which offer was the last that it has read.
    pub fn said_last_word(&self) -> bool {
        self.table().read.is_some()
    }

    /// Takes no more calls if none is on it; says so.
    pub fn close_if_empty(&self) -> bool {
        let mut table = self.table();
        table.closed |= table.calls.is_empty();
        table.closed
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a call; `None` if the session is over, or the runner wants none.
    pub fn offer(
        self: &Arc<Self>,
        call: &Call,
        input: &Input,
        how: How,
        trace: TraceContext,
        in_flight: InFlight,
    ) -> Option<LinkCall> {
        let function = self.told(&call.function);
        let inbox = Arc::new(Inbox::new(stoker_proto::window(self.version)));
        let mut table = self.table();
        // Under the lock: numbers grow in the order of the frames, a definition precedes its first use, and no offer follows `Settled`.
        if table.closed || table.drains || !self.define(&mut table, function) {
            return None;
        }
        table.last += 1;
        let number = table.last;
        table.calls.insert(number, inbox.clone());
        self.send(wire::engage_request::Frame::Offer(wire::Offer {
            call: number,
            call_id: Bytes::copy_from_slice(call.id.as_bytes()),
            digest: function.digest_bytes.clone(),
            head: Some(call.head.clone()),
            remaining_ms: u64::try_from(call.deadline.remaining().as_millis()).unwrap_or(u64::MAX),
            traceparent: trace.parent,
            tracestate: trace.state,
            body: input.first.clone(),
            complete: input.rest.is_none(),
            // What is said behind a body has no place behind one whose length was said.
            length: input.length.filter(|_| input.rest.is_some() && input.trailers.is_none()),
            waited: how.waited,
            only_if_idle: how.only_if_idle,
        }));
        drop(table);
        Some(LinkCall::new(self.clone(), number, inbox, call.deadline, in_flight))
    }

    /// Defines a function's version unless it is already; `false` where no more can be.
    fn define(&self, table: &mut Table, function: &Known) -> bool {
        if table.defined.contains(&function.whole_digest) {
            return true;
        }
        if table.defined.len() >= MAX_DEFINED {
            return false;
        }
        table.defined.insert(function.whole_digest);
        if table.defined.len() >= table.renew_at {
            self.worn.notify_one();
        }
        self.send(wire::engage_request::Frame::Define(Box::new(wire::Define {
            digest: function.digest_bytes.clone(),
            function: Some(convert::to_function(&function.spec.for_runners())),
            revision: function.revision,
        })));
        true
    }

    /// Says all that is to be kept ready there; `false` if the session is over. What cannot be defined any more is left out: a session
    /// with so much on it is followed by another.
    pub fn keep(&self, wanted: &[(Arc<Known>, u32)], holds: Duration) -> bool {
        let mut table = self.table();
        if table.closed {
            return false;
        }
        let mut kept = Vec::with_capacity(wanted.len());
        for (function, containers) in wanted {
            let function = self.told(function);
            if self.define(&mut table, function) {
                kept.push(wire::Kept { digest: function.digest_bytes.clone(), containers: *containers });
            }
        }
        let holds = Some(convert::to_duration(holds));
        self.send(wire::engage_request::Frame::Keep(wire::Keep { kept, holds }));
        true
    }

    fn send(&self, frame: wire::engage_request::Frame) {
        self.out.push(wire::EngageRequest { frame: Some(frame) });
    }

    /// Asks a question that a runner of version 1 does not know; whether it was asked.
    pub fn ask(&self, question: wire::engage_request::Frame) -> bool {
        if self.version >= 2 {
            self.send(question);
        }
        self.version >= 2
    }

    /// Takes a frame that is about one call.
    pub fn receive(&self, frame: wire::engage_response::Frame) -> Result<(), Violation> {
        use wire::engage_response::Frame as F;
        match frame {
            F::Refused(f) => {
                let (reason, line_full) = (convert::refusal(f.reason), f.line_full);
                let event = Event::Refused { reason, detail: f.detail, line_full };
                self.apply(f.call, CallEvent::Refused, |slot| {
                    slot.push(event);
                    Ok(())
                })
            }
            F::Accepted(f) => self.apply(f.call, CallEvent::Accepted, |slot| {
                slot.push(Event::Accepted { expected: f.expected_wait.map(convert::duration) });
                Ok(())
            }),
            F::Ready(f) => self.apply(f.call, CallEvent::Ready, |slot| {
                slot.push(Event::Ready);
                Ok(())
            }),
            F::Started(f) => self.apply(f.call, CallEvent::Started, |slot| {
                slot.push(Event::Started);
                Ok(())
            }),
            F::Credit(f) => self.apply(f.call, CallEvent::Credit, |slot| {
                if slot.upload == 0 {
                    slot.push(Event::Started);
                }
                slot.upload = slot.upload.saturating_add(f.bytes.into());
                Ok(())
            }),
            F::Head(f) => {
                let head = f.head.unwrap_or_default();
                self.apply(f.call, CallEvent::Head, |slot| {
                    slot.push(Event::Head { head, length: f.length });
                    Ok(())
                })
            }
            F::Body(f) => self.apply(f.call, CallEvent::Body, |slot| {
                slot.take(f.data.len())?;
                if !f.data.is_empty() {
                    slot.push(Event::Body(f.data));
                }
                Ok(())
            }),
            F::Finished(f) => self.apply(f.call, CallEvent::Finished, |slot| {
                slot.take(f.body.len())?;
                slot.push(Event::Finished(f));
                Ok(())
            }),
            F::Welcome(_) => Err(Violation("a second Welcome".to_owned())),
            // That it came says all.
            F::Pong(_) => Ok(()),
            F::Capacity(f) => {
                match f.capacity.as_ref().map(v1::Capacity::state) {
                    Some(v1::RunnerState::Draining) => self.table().drains = true,
                    Some(v1::RunnerState::Ready) => {
                        let mut table = self.table();
                        (table.drains, table.unsettled) = (false, 0);
                    }
                    _ => {}
                }
                Ok(())
            }
            F::Draining(f) => {
                let mut table = self.table();
                (table.drains, table.unsettled) = (true, f.number);
                self.settle(&mut table);
                Ok(())
            }
            F::Closing(f) => {
                let mut table = self.table();
                (table.drains, table.read) = (true, Some(f.last_offer));
                Ok(())
            }
        }
    }

    /// Tells a runner that drains that nothing of this session is open any more, once that is so: then it may go.
    fn settle(&self, table: &mut Table) {
        if table.unsettled != 0 && table.calls.is_empty() {
            let draining = std::mem::take(&mut table.unsettled);
            self.send(wire::engage_request::Frame::Settled(wire::Settled { draining }));
        }
    }

    fn apply(
        &self,
        number: u64,
        event: CallEvent,
        act: impl FnOnce(&mut Slot) -> Result<(), String>,
    ) -> Result<(), Violation> {
        let violation = |text: String| Violation(format!("call {number}: {text}"));
        let mut table = self.table();
        let Some(inbox) = table.calls.get(&number).cloned() else {
            if number <= table.last {
                // It has ended: this frame is late, not wrong.
                return Ok(());
            }
            return Err(violation(format!("{event:?}, and it was never offered")));
        };
        let mut slot = inbox.lock();
        let next = slot.state.on(event).map_err(|wrong| violation(wrong.to_string()))?;
        act(&mut slot).map_err(violation)?;
        slot.state = next;
        if next == CallState::Over {
            table.calls.remove(&number);
            self.settle(&mut table);
        }
        drop(table);
        let wakers = slot.wakers();
        drop(slot);
        wake(wakers);
        Ok(())
    }

    /// The stream is over: each call on it learns so, once.
    pub fn lost(&self, reason: &str) {
        let (calls, read) = {
            let mut table = self.table();
            table.closed = true;
            (std::mem::take(&mut table.calls), table.read.unwrap_or(u64::MAX))
        };
        self.out.close();
        for (number, inbox) in calls {
            let mut slot = inbox.lock();
            let may_have_started = number <= read && slot.state.may_have_started();
            if let Ok(over) = slot.state.on(CallEvent::Lost) {
                slot.state = over;
                slot.push(Event::Lost { may_have_started, reason: reason.to_owned() });
            }
            let wakers = slot.wakers();
            drop(slot);
            wake(wakers);
        }
    }
}

#[cfg(test)]
mod tests;
