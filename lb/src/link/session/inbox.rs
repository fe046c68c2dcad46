//! What came for one call on a session, until whoever waits for it takes it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stoker_core::call::PIECE;
use stoker_core::error::{Error, Refusal};
use stoker_proto::runner::v1 as wire;
use stoker_proto::v1;

use crate::link::state::CallState;

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
    Head {
        head: v1::ResponseHead,
        /// Of the whole body, where that is known.
        length: Option<u64>,
    },
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

/// Where a call stands, and what came for it and was not read.
pub struct Slot {
    pub state: CallState,
    pub events: VecDeque<Event>,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    pub guard: Option<Waker>,
    /// Bytes of the request's body that may be sent.
    pub upload: u64,
    /// Bytes of the answer's body that the runner may send.
    pub window: u64,
    /// Its owner is gone, or its deadline: what comes is thrown away.
    pub abandoned: bool,
    /// The runner was told that it is not wanted any more.
    pub cancelled: bool,
}

/// What came for one call.
pub struct Inbox(Mutex<Slot>);

impl Inbox {
    /// Of a call that was offered, and of whose answer so many bytes may come.
    pub fn new(window: u32) -> Self {
        Self(Mutex::new(Slot {
            state: CallState::Offered,
            events: VecDeque::new(),
            reader: None,
            writer: None,
            guard: None,
            upload: 0,
            window: window.into(),
            abandoned: false,
            cancelled: false,
        }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Slot> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub fn push(&mut self, event: Event) {
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
    pub fn take(&mut self, len: usize) -> Result<(), String> {
        if len > PIECE {
            return Err(format!("a piece of {len} bytes, at most {PIECE} are allowed"));
        }
        let left = self.window.checked_sub(len as u64);
        self.window =
            left.ok_or_else(|| format!("a piece of {len} bytes, {} are allowed now", self.window))?;
        Ok(())
    }

    /// Whom to wake, once this is unlocked.
    pub fn wakers(&mut self) -> [Option<Waker>; 3] {
        let guard = if self.abandoned { self.guard.take() } else { None };
        [self.reader.take(), self.writer.take(), guard]
    }
}

pub fn wake(wakers: [Option<Waker>; 3]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}
