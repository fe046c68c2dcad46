//! One `Engage` stream: the calls on it, their states, what came for them and what they may send.
//!
//! The task of the stream ([`crate::link`]) hands every received frame to [`Session::receive`], which never waits: pieces of an
//! answer go into the inbox of their call, within the credit that this call gave, so that a slow reader holds up nobody else.
//! When the stream ends, every call on it learns it exactly once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stoker_core::call::{CHUNK, Deadline, WINDOW};
use stoker_core::error::{Error, Refusal};
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_proto::runner::v1 as wire;
use stoker_proto::{convert, v1};

use super::outbox::Outbox;
use super::state::{CallEvent, CallState};
use crate::call::Call;
use crate::fleet::InFlight;

/// What a call learns.
#[derive(Debug)]
pub enum Event {
    /// No byte reached the function.
    Refused {
        reason: Refusal,
        detail: String,
        retry_after: Option<Duration>,
    },
    /// It waits there.
    Accepted,
    /// A slot is held.
    Ready,
    /// Input reaches the function.
    Started,
    Head(v1::ResponseHead),
    Body(Bytes),
    Finished(Box<wire::Finished>),
    /// The runner is gone.
    Lost {
        may_have_started: bool,
        reason: String,
    },
    /// The caller's body cannot be read.
    InputFailed(Error),
}

struct Slot {
    state: CallState,
    events: VecDeque<Event>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Bytes of the request's body that may be sent.
    upload: u64,
    /// Bytes of the answer's body that the runner may send.
    window: u64,
    /// Its owner is gone: what comes is thrown away.
    abandoned: bool,
}

/// What came for one call.
struct Inbox(Mutex<Slot>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn push(&mut self, event: Event) {
        if self.abandoned {
            return;
        }
        // Tiny pieces are joined: a window of single bytes must not become a quarter of a million entries.
        if let (Some(Event::Body(last)), Event::Body(more)) = (self.events.back_mut(), &event)
            && last.len() + more.len() <= 4096
        {
            let mut joined = BytesMut::with_capacity(4096);
            joined.extend_from_slice(last);
            joined.extend_from_slice(more);
            *last = joined.freeze();
            return;
        }
        self.events.push_back(event);
    }

    fn wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }
}

fn wake(wakers: [Option<Waker>; 2]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

#[derive(Default)]
struct Table {
    calls: HashMap<u64, Arc<Inbox>>,
    defined: HashSet<Digest>,
    last: u64,
    closed: bool,
}

/// One stream to a runner.
pub struct Session {
    out: Outbox<wire::EngageRequest>,
    table: Mutex<Table>,
}

/// The runner broke the protocol: what it sent and why that is wrong.
#[derive(Debug)]
pub struct Violation(pub String);

impl Session {
    /// A session whose `Welcome` has come.
    pub fn new(out: Outbox<wire::EngageRequest>) -> Arc<Self> {
        Arc::new(Self { out, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a call; `None` if the session is over.
    pub fn offer(
        self: &Arc<Self>,
        call: &Call,
        first: &Bytes,
        complete: bool,
        in_flight: InFlight,
    ) -> Option<LinkCall> {
        let function = &call.function;
        let inbox = Arc::new(Inbox(Mutex::new(Slot {
            state: CallState::Offered,
            events: VecDeque::new(),
            reader: None,
            writer: None,
            upload: 0,
            window: WINDOW.into(),
            abandoned: false,
        })));
        let mut table = self.table();
        if table.closed {
            return None;
        }
        table.last += 1;
        let number = table.last;
        table.calls.insert(number, inbox.clone());
        // Still under the lock: numbers grow in the order of the frames, and a definition precedes its first use.
        if table.defined.insert(function.digest) {
            self.send(wire::engage_request::Frame::Define(wire::Define {
                digest: function.digest_bytes.clone(),
                function: Some(function.message.clone()),
            }));
        }
        self.send(wire::engage_request::Frame::Offer(wire::Offer {
            call: number,
            call_id: Bytes::copy_from_slice(call.id.as_bytes()),
            digest: function.digest_bytes.clone(),
            head: Some(call.head.clone()),
            remaining_ms: u64::try_from(call.deadline.remaining().as_millis()).unwrap_or(u64::MAX),
            traceparent: call.trace.parent.clone(),
            tracestate: call.trace.state.clone(),
            body: first.clone(),
            complete,
        }));
        drop(table);
        Some(LinkCall {
            part: CallPart { session: self.clone(), number, inbox },
            deadline: call.deadline,
            consumed: 0,
            _in_flight: in_flight,
        })
    }

    fn send(&self, frame: wire::engage_request::Frame) {
        self.out.push(wire::EngageRequest { frame: Some(frame) });
    }

    /// Takes a frame that is about one call.
    pub fn receive(&self, frame: wire::engage_response::Frame) -> Result<(), Violation> {
        use wire::engage_response::Frame as F;
        match frame {
            F::Refused(f) => {
                let event = Event::Refused {
                    reason: convert::refusal(f.reason),
                    detail: f.detail,
                    retry_after: f.retry_after.map(convert::duration),
                };
                self.apply(f.call, CallEvent::Refused, |slot| slot.push(event))
            }
            F::Accepted(f) => self.apply(f.call, CallEvent::Accepted, |slot| slot.push(Event::Accepted)),
            F::Ready(f) => self.apply(f.call, CallEvent::Ready, |slot| slot.push(Event::Ready)),
            F::Started(f) => self.apply(f.call, CallEvent::Started, |slot| slot.push(Event::Started)),
            F::Credit(f) => self.apply(f.call, CallEvent::Credit, |slot| {
                if slot.upload == 0 {
                    slot.push(Event::Started);
                }
                slot.upload = slot.upload.saturating_add(f.bytes.into());
            }),
            F::Head(f) => {
                let head = f.head.unwrap_or_default();
                self.apply(f.call, CallEvent::Head, |slot| slot.push(Event::Head(head)))
            }
            F::Body(f) => {
                let len = f.data.len() as u64;
                if f.data.len() > CHUNK {
                    return Err(Violation(format!(
                        "call {}: a piece of {len} bytes, at most {CHUNK} are allowed",
                        f.call
                    )));
                }
                let mut over = false;
                self.apply(f.call, CallEvent::Body, |slot| match slot.window.checked_sub(len) {
                    Some(rest) => {
                        slot.window = rest;
                        if len > 0 {
                            slot.push(Event::Body(f.data));
                        }
                    }
                    None => over = true,
                })?;
                if over { Err(Violation(format!("call {}: a body over its credit", f.call))) } else { Ok(()) }
            }
            F::Finished(f) => {
                let number = f.call;
                self.apply(number, CallEvent::Finished, |slot| slot.push(Event::Finished(Box::new(f))))
            }
            F::Welcome(_) => Err(Violation("a second Welcome".to_owned())),
            F::Capacity(_) | F::Draining(_) => Ok(()),
        }
    }

    fn apply(&self, number: u64, event: CallEvent, act: impl FnOnce(&mut Slot)) -> Result<(), Violation> {
        let mut table = self.table();
        let Some(inbox) = table.calls.get(&number).cloned() else {
            return Err(Violation(format!("{event:?} for call {number}, which does not run here")));
        };
        let mut slot = inbox.lock();
        slot.state = slot.state.on(event).map_err(|wrong| Violation(format!("call {number}: {wrong}")))?;
        if slot.state == CallState::Over {
            table.calls.remove(&number);
        }
        drop(table);
        act(&mut slot);
        let wakers = slot.wakers();
        drop(slot);
        wake(wakers);
        Ok(())
    }

    /// The stream is over: each call on it learns so, once.
    pub fn lost(&self, reason: &str) {
        let calls = {
            let mut table = self.table();
            table.closed = true;
            std::mem::take(&mut table.calls)
        };
        self.out.close();
        for inbox in calls.into_values() {
            let mut slot = inbox.lock();
            let may_have_started = slot.state.may_have_started();
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
    consumed: u32,
    _in_flight: InFlight,
}

impl LinkCall {
    /// What happens next. After `Refused`, `Finished` and `Lost` nothing comes any more.
    pub async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The same for a hand-written stream.
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
        self.consumed += bytes as u32;
        if self.consumed < WINDOW / 4 {
            return;
        }
        let bytes = std::mem::take(&mut self.consumed);
        let mut slot = self.part.inbox.lock();
        if slot.state == CallState::Over {
            return;
        }
        slot.window += u64::from(bytes);
        drop(slot);
        let credit = wire::Credit { call: self.part.number, bytes };
        self.part.session.send(wire::engage_request::Frame::Credit(credit));
    }

    /// The end that sends the rest of the request's body.
    pub fn upload(&self) -> Upload {
        Upload { part: self.part.clone() }
    }

    /// Nothing more of this call's answer may be read: it has ended.
    fn is_over(&self) -> bool {
        self.part.inbox.lock().state == CallState::Over
    }
}

impl Drop for LinkCall {
    fn drop(&mut self) {
        let over = self.is_over();
        let mut slot = self.part.inbox.lock();
        slot.abandoned = true;
        slot.events.clear();
        let wakers = slot.wakers();
        drop(slot);
        wake(wakers);
        if !over {
            let reason = if self.deadline.remaining().is_zero() {
                wire::CancelReason::Deadline
            } else {
                wire::CancelReason::CallerGone
            };
            let cancel = wire::Cancel { call: self.part.number, reason: reason.into() };
            self.part.session.send(wire::engage_request::Frame::Cancel(cancel));
        }
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

    /// Sends a piece, at most [`CHUNK`] bytes and within the credit.
    pub fn send(&self, data: Bytes, last: bool) {
        let mut slot = self.part.inbox.lock();
        if slot.state == CallState::Over {
            return;
        }
        slot.upload = slot.upload.saturating_sub(data.len() as u64);
        drop(slot);
        let body = wire::Body { call: self.part.number, data, last };
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
