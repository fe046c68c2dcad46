//! One `Engage` stream: the calls on it, their states, what came for them and what they may send.
//!
//! The task of the stream ([`crate::link`]) hands every received frame to [`Session::receive`], which never waits: pieces of an
//! answer go into the inbox of their call, within the credit that this call gave, so that a slow reader holds up nobody else.
//! When the stream ends, every call on it learns it exactly once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stoker_core::call::{CHUNK, Deadline, TraceContext, WINDOW};
use stoker_core::error::{Error, Refusal};
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_proto::runner::v1 as wire;
use stoker_proto::{MAX_DEFINED, convert, v1};
use tokio::sync::Notify;

use super::outbox::Outbox;
use super::state::{CallEvent, CallState};
use crate::call::Call;
use crate::directory::Known;
use crate::fleet::InFlight;
use crate::hash::{QuickMap, QuickSet};

/// What a call learns.
#[derive(Debug)]
pub enum Event {
    /// No byte reached the function.
    Refused {
        reason: Refusal,
        detail: String,
        /// Nor would a call of any other function be taken into the line there.
        line_full: bool,
    },
    /// It waits there, by the runner's guess so long.
    Accepted {
        expected: Option<Duration>,
    },
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
    /// The deadline passed while the answer was coming.
    Expired,
}

struct Slot {
    state: CallState,
    events: VecDeque<Event>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    guard: Option<Waker>,
    /// Bytes of the request's body that may be sent.
    upload: u64,
    /// Bytes of the answer's body that the runner may send.
    window: u64,
    /// Its owner is gone, or its deadline: what comes is thrown away.
    abandoned: bool,
    /// The runner was told that it is not wanted any more.
    cancelled: bool,
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

    /// A piece of the answer, within its size and the credit.
    fn take(&mut self, len: usize) -> Result<(), String> {
        if len > CHUNK {
            return Err(format!("a piece of {len} bytes, at most {CHUNK} are allowed"));
        }
        let left = self.window.checked_sub(len as u64);
        self.window =
            left.ok_or_else(|| format!("a piece of {len} bytes, {} are allowed now", self.window))?;
        Ok(())
    }

    fn wakers(&mut self) -> [Option<Waker>; 3] {
        let guard = if self.abandoned { self.guard.take() } else { None };
        [self.reader.take(), self.writer.take(), guard]
    }
}

fn wake(wakers: [Option<Waker>; 3]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

#[derive(Default)]
struct Table {
    calls: QuickMap<u64, Arc<Inbox>>,
    /// By all that a runner is told of them: what changes without a new version is told again.
    defined: QuickSet<Digest>,
    last: u64,
    closed: bool,
    /// Of so many definitions it is worn.
    renew_at: usize,
}

/// One stream to a runner.
pub struct Session {
    out: Outbox<wire::EngageRequest>,
    table: Mutex<Table>,
    worn: Notify,
}

/// The runner broke the protocol: what it sent and why that is wrong.
#[derive(Debug)]
pub struct Violation(pub String);

impl Session {
    /// A session whose `Welcome` has come. It is [worn](Self::worn) after so many definitions.
    pub fn new(out: Outbox<wire::EngageRequest>, renew_after: usize) -> Arc<Self> {
        let table = Table { renew_at: renew_after, ..Table::default() };
        Arc::new(Self { out, table: Mutex::new(table), worn: Notify::new() })
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

    /// Takes no more calls if none is on it; says so.
    pub fn close_if_empty(&self) -> bool {
        let mut table = self.table();
        table.closed |= table.calls.is_empty();
        table.closed
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
        waited: bool,
        trace: TraceContext,
        in_flight: InFlight,
    ) -> Option<LinkCall> {
        let function = &call.function;
        let inbox = Arc::new(Inbox(Mutex::new(Slot {
            state: CallState::Offered,
            events: VecDeque::new(),
            reader: None,
            writer: None,
            guard: None,
            upload: 0,
            window: WINDOW.into(),
            abandoned: false,
            cancelled: false,
        })));
        let mut table = self.table();
        // Under the lock: numbers grow in the order of the frames, and a definition precedes its first use.
        if table.closed || !self.define(&mut table, function) {
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
            body: first.clone(),
            complete,
            waited,
        }));
        drop(table);
        Some(LinkCall {
            part: CallPart { session: self.clone(), number, inbox },
            deadline: call.deadline,
            consumed: 0,
            _in_flight: in_flight,
        })
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
            function: Some(function.message.clone()),
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
                    slot.push(Event::Head(head));
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
            F::Capacity(_) | F::Draining(_) => Ok(()),
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
        }
        drop(table);
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use stoker_core::function::{FunctionName, FunctionSpec};
    use stoker_core::ids::CallId;
    use wire::engage_response::Frame as F;

    use crate::admission::Admission;
    use crate::link::outbox::outbox;

    fn call() -> Call {
        let name = FunctionName::new("a", "f").expect("a name");
        let spec = FunctionSpec::new(name, vec!["/bin/true".into()], "/".into());
        Call {
            id: CallId::new(),
            function: Known::alone(spec),
            head: v1::RequestHead::default(),
            deadline: Deadline::after(Duration::from_secs(60)),
            admitted: Admission::new(1).enter().unwrap_or_else(|error| panic!("{error}")),
        }
    }

    fn offered(session: &Arc<Session>) -> LinkCall {
        let body = Bytes::from_static(b"x");
        let trace = TraceContext::default();
        session.offer(&call(), &body, true, false, trace, InFlight::default()).expect("the session stands")
    }

    fn any_frame() -> impl Strategy<Value = F> {
        let size = prop_oneof![Just(0usize), 1usize..100, Just(CHUNK), Just(CHUNK + 1)];
        (0u8..8, 0u64..6, size).prop_map(|(kind, call, size)| {
            let data = Bytes::from(vec![0; size]);
            match kind {
                0 => F::Refused(Box::new(wire::Refused { call, ..Default::default() })),
                1 => F::Accepted(wire::Accepted { call, expected_wait: None }),
                2 => F::Ready(wire::Ready { call }),
                3 => F::Started(wire::Started { call, container: String::new() }),
                4 => F::Head(wire::Head { call, head: None }),
                5 => F::Body(wire::Body { call, data, last: false }),
                6 => F::Credit(wire::Credit { call, bytes: u32::MAX }),
                _ => F::Finished(Box::new(wire::Finished { call, body: data, ..Default::default() })),
            }
        })
    }

    proptest! {
        /// Whatever a runner sends, each call has exactly one end, which comes last, and no body beyond its window.
        #[test]
        fn one_end_for_every_call(
            frames in prop::collection::vec(any_frame(), 0..60), dropped in 0usize..5, starts in any::<bool>(),
        ) {
            let (out, _outgoing) = outbox();
            let session = Session::new(out, MAX_DEFINED);
            let mut calls: Vec<_> = (0..4).map(|_| Some(offered(&session))).collect();
            if let Some(call) = calls.get_mut(dropped) {
                *call = None;
            }
            for frame in frames {
                if session.receive(frame).is_err() {
                    break;
                }
                if starts {
                    calls.iter().flatten().for_each(LinkCall::start);
                }
            }
            session.lost("over");
            for mut call in calls.into_iter().flatten() {
                let (mut ends, mut bytes) = (0, 0);
                while let Some(event) = call.next().now_or_never() {
                    prop_assert_eq!(ends, 0, "{:?} after the end", event);
                    match event {
                        Event::Refused { .. } | Event::Lost { .. } => ends += 1,
                        Event::Finished(finished) => {
                            ends += 1;
                            bytes += finished.body.len();
                        }
                        Event::Body(piece) => bytes += piece.len(),
                        _ => {}
                    }
                }
                prop_assert_eq!(ends, 1);
                prop_assert!(bytes <= WINDOW as usize);
            }
            prop_assert!(session.table().calls.is_empty());
            let trace = TraceContext::default();
            prop_assert!(session.offer(&call(), &Bytes::new(), true, false, trace, InFlight::default()).is_none());
        }
    }

    #[test]
    fn a_loss_says_who_may_have_started() {
        let (out, _outgoing) = outbox();
        let session = Session::new(out, MAX_DEFINED);
        let mut calls: Vec<_> = (0..4).map(|_| offered(&session)).collect();
        let say = |frame| session.receive(frame).unwrap_or_else(|violation| panic!("{}", violation.0));
        for call in 2..=4 {
            say(F::Accepted(wire::Accepted { call, expected_wait: None }));
        }
        (3..=4).for_each(|call| say(F::Ready(wire::Ready { call })));
        calls[3].start();
        session.lost("gone");
        // Offered and silent, waiting, held, told to start.
        for (call, expected) in calls.iter_mut().zip([true, false, false, true]) {
            let last = std::iter::from_fn(|| call.next().now_or_never()).last();
            let Some(Event::Lost { may_have_started, .. }) = last else { panic!("{last:?}") };
            assert_eq!(may_have_started, expected);
        }
    }

    #[test]
    fn an_answer_keeps_to_its_window() {
        let (out, _outgoing) = outbox();
        let session = Session::new(out, MAX_DEFINED);
        let mut call = offered(&session);
        let body = || F::Body(wire::Body { call: 1, data: Bytes::from(vec![0; CHUNK]), last: false });
        assert!(session.receive(F::Head(wire::Head { call: 1, head: None })).is_ok());
        for _ in 0..WINDOW as usize / CHUNK {
            assert!(session.receive(body()).is_ok());
        }
        call.consumed(CHUNK);
        assert!(session.receive(body()).is_ok(), "what was read was given back");
        let violation = session.receive(body()).expect_err("over the window");
        assert!(violation.0.contains("0 are allowed"), "{}", violation.0);
    }
}
