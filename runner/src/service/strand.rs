//! One call's strand of a session: what the balancer said, kept until the call's task takes it, and what the task says.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_core::call::{Headers, PIECE, longest_piece};
use stoker_core::machine::Machine as _;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use super::pieces::Pieces;
use super::state::{Event, State};

/// Towards the balancer; shared by all calls of a session.
pub type Outbox = mpsc::Sender<Result<wire::EngageResponse, Status>>;

/// One call on one session.
pub struct Strand {
    pub number: u64,
    /// Bytes of the answer that may be on their way.
    window: u32,
    out: Outbox,
    inner: Mutex<Inner>,
    body: Notify,
    credit: Notify,
    word: Notify,
}

struct Inner {
    state: State,
    body: Pieces,
    last: bool,
    /// How much of it is still to come, where its length was said.
    missing: Option<u64>,
    /// What follows the body.
    trailers: Headers,
    /// Bytes that the balancer may still send, and that this side may.
    may_receive: u64,
    may_send: u64,
    cancelled: Option<wire::CancelReason>,
    /// The answer stands still for want of credit since then, and how long it did before.
    stands_since: Option<Instant>,
    stood: Duration,
}

/// What the balancer said about the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Start,
    Cancelled(wire::CancelReason),
}

/// The session is over.
#[derive(Debug)]
pub struct Lost;

impl Strand {
    /// On a session with such a window for answers; with the first piece of the body, whether that is all, and the length of the whole.
    pub fn new(
        number: u64,
        window: u32,
        out: Outbox,
        first: Bytes,
        complete: bool,
        length: Option<u64>,
    ) -> Self {
        let missing = length.map(|length| length.saturating_sub(first.len() as u64));
        let mut body = Pieces::default();
        body.push(first);
        let inner = Inner {
            state: State::Offered,
            body,
            last: complete,
            missing,
            trailers: Headers::default(),
            may_receive: 0,
            may_send: u64::from(window),
            cancelled: None,
            stands_since: None,
            stood: Duration::ZERO,
        };
        Self {
            number,
            window,
            out,
            inner: Mutex::new(inner),
            body: Notify::new(),
            credit: Notify::new(),
            word: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === what the balancer says: a text is a violation ===

    pub fn start(&self) -> Result<(), String> {
        self.inner().step(Event::Start)?;
        self.word.notify_one();
        Ok(())
    }

    pub fn cancel(&self, reason: wire::CancelReason) {
        let mut inner = self.inner();
        // A call that had its outcome is not cancelled any more.
        if inner.step(Event::Cancel).is_ok() {
            inner.cancelled.get_or_insert(reason);
            drop(inner);
            self.word.notify_one();
        }
    }

    pub fn receive(&self, data: Bytes, last: bool, trailers: Headers) -> Result<(), String> {
        if data.len() > PIECE {
            return Err(format!("a piece of {} bytes, at most {PIECE} are allowed", data.len()));
        }
        let mut inner = self.inner();
        if inner.state == State::Closed {
            return Ok(());
        }
        inner.step(Event::Body)?;
        if inner.last {
            return Err("a body goes on after its last piece".to_owned());
        }
        inner.may_receive = inner
            .may_receive
            .checked_sub(data.len() as u64)
            .ok_or_else(|| format!("a piece of {} bytes is more than the credit allows", data.len()))?;
        if let Some(missing) = inner.missing {
            match missing.checked_sub(data.len() as u64) {
                Some(left) if left == 0 || !last => inner.missing = Some(left),
                _ => return Err("the body is not as long as was said".to_owned()),
            }
        }
        inner.body.push(data);
        inner.last = last;
        inner.trailers = trailers;
        drop(inner);
        self.body.notify_one();
        Ok(())
    }

    pub fn credit(&self, bytes: u32) -> Result<(), String> {
        let mut inner = self.inner();
        if inner.state == State::Closed {
            return Ok(());
        }
        inner.step(Event::Credit)?;
        inner.may_send += u64::from(bytes);
        if inner.may_send > u64::from(self.window) {
            return Err(format!("credit for more than the {} bytes of a window", self.window));
        }
        drop(inner);
        self.credit.notify_one();
        Ok(())
    }

    // === what the call's task asks and says ===

    /// Most bytes of one piece of the answer.
    pub fn longest_piece(&self) -> usize {
        longest_piece(self.window)
    }

    /// The next piece of the body, and whether it is the last; waits until there is some, or the end of it.
    pub async fn next_body(&self) -> (Bytes, bool) {
        loop {
            {
                let mut inner = self.inner();
                if !inner.body.is_empty() || inner.last {
                    let piece = inner.body.take(PIECE);
                    return (piece, inner.last && inner.body.is_empty());
                }
            }
            self.body.notified().await;
        }
    }

    /// What follows the body, once all of that is here. Given out once.
    pub fn trailers(&self) -> Headers {
        std::mem::take(&mut self.inner().trailers)
    }

    /// What is there of the body now, and whether that is all.
    pub fn first_body(&self) -> (Bytes, bool) {
        let mut inner = self.inner();
        (inner.body.whole(), inner.last)
    }

    /// How much of `wanted` bytes may be sent; waits until it is something.
    pub async fn take_credit(&self, wanted: usize) -> usize {
        loop {
            {
                let mut inner = self.inner();
                let some = inner.may_send.min(wanted as u64);
                if some > 0 || wanted == 0 {
                    inner.may_send -= some;
                    let stood = inner.stands_since.take().map_or(Duration::ZERO, |since| since.elapsed());
                    inner.stood += stood;
                    return some as usize;
                }
                inner.stands_since.get_or_insert_with(Instant::now);
            }
            self.credit.notified().await;
        }
    }

    /// How long the answer stood still because its reader did.
    pub fn stood(&self) -> Duration {
        let inner = self.inner();
        inner.stood + inner.stands_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// All of `wanted`, or nothing, at once.
    pub fn try_credit(&self, wanted: usize) -> bool {
        let mut inner = self.inner();
        match inner.may_send.checked_sub(wanted as u64) {
            Some(left) => {
                inner.may_send = left;
                true
            }
            None => false,
        }
    }

    /// Until the balancer cancels.
    pub async fn cancelled(&self) -> wire::CancelReason {
        loop {
            if let Some(reason) = self.inner().cancelled {
                return reason;
            }
            self.word.notified().await;
        }
    }

    /// Until the balancer permits the start, or cancels.
    pub async fn word(&self) -> Word {
        loop {
            {
                let inner = self.inner();
                if let Some(reason) = inner.cancelled {
                    return Word::Cancelled(reason);
                }
                if inner.state == State::Permitted {
                    return Word::Start;
                }
            }
            self.word.notified().await;
        }
    }

    /// Makes a move of this side, and says it.
    pub fn say(&self, event: Event, frame: Frame) -> impl Future<Output = Result<(), Lost>> {
        self.step(event);
        self.send(frame)
    }

    /// Makes a move of this side that needs no frame.
    pub fn step(&self, event: Event) {
        if let Err(text) = self.inner().step(event) {
            tracing::error!(call = self.number, text, "this runner broke its own protocol");
        }
    }

    /// Gives the balancer credit for more of the body.
    pub async fn allow(&self, bytes: u32) -> Result<(), Lost> {
        if bytes == 0 {
            return Ok(());
        }
        {
            let mut inner = self.inner();
            if inner.last {
                return Ok(());
            }
            inner.may_receive += u64::from(bytes);
        }
        self.send(Frame::Credit(wire::Credit { call: self.number, bytes })).await
    }

    pub async fn send(&self, frame: Frame) -> Result<(), Lost> {
        let room = self.out.reserve().await.map_err(|_| Lost)?;
        room.send(Ok(wire::EngageResponse { frame: Some(frame) }));
        Ok(())
    }
}

impl Inner {
    fn step(&mut self, event: Event) -> Result<(), String> {
        self.state = self.state.on(event).map_err(|refused| refused.to_string())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::call::LEAST_WINDOW;

    #[tokio::test]
    async fn bodies_need_credit() {
        let (out, mut sent) = mpsc::channel(4);
        let strand = Strand::new(7, LEAST_WINDOW, out, Bytes::from_static(b"first"), false, None);
        assert!(
            strand
                .receive(Bytes::from_static(b"x"), false, Headers::default())
                .unwrap_err()
                .contains("credit")
        );
        strand.step(Event::Begin);
        strand.allow(2).await.unwrap();
        assert!(sent.recv().await.is_some());
        strand.receive(Bytes::from_static(b"ab"), false, Headers::default()).unwrap();
        assert!(strand.receive(Bytes::from_static(b"c"), false, Headers::default()).is_err());
        strand.receive(Bytes::new(), true, Headers::default()).unwrap();
        assert!(strand.receive(Bytes::new(), true, Headers::default()).unwrap_err().contains("last"));
        assert_eq!(strand.next_body().await, (Bytes::from_static(b"firstab"), true));
        assert!(strand.credit(1).unwrap_err().contains("window"));
    }

    #[tokio::test]
    async fn a_body_is_as_long_as_was_said() {
        for (pieces, good) in [(&[3, 2][..], true), (&[3, 1], false), (&[3, 3], false), (&[5, 0], true)] {
            let (out, _sent) = mpsc::channel(4);
            let strand = Strand::new(7, LEAST_WINDOW, out, Bytes::from_static(b"first"), false, Some(10));
            strand.step(Event::Begin);
            strand.allow(100).await.unwrap();
            let said = pieces.iter().enumerate().try_for_each(|(n, length)| {
                strand.receive(Bytes::from(vec![1; *length]), n + 1 == pieces.len(), Headers::default())
            });
            assert_eq!(said.is_ok(), good, "{pieces:?}: {said:?}");
        }
    }
}
