//! The spans of a call that nobody samples, kept until it is known whether the call is worth to be seen: whether it failed, or was slow.
//!
//! Its first span in this process decides, at its end. What ends before waits here, bounded; what ends after goes the same way.

use std::sync::{Mutex, PoisonError};

use super::queue::Queue;

/// Most spans and bytes of one call that wait.
const MAX_SPANS: usize = 64;
const MAX_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct TailBuffer(Mutex<State>);

#[derive(Debug)]
enum State {
    Open {
        /// Spans that ended, each with its length.
        spans: Vec<(usize, usize)>,
        bytes: Vec<u8>,
        /// Spans that had no room.
        lost: u64,
    },
    Sent,
    Forgotten,
}

impl Default for State {
    fn default() -> Self {
        State::Open { spans: Vec::new(), bytes: Vec::new(), lost: 0 }
    }
}

impl TailBuffer {
    /// A span below the first has ended.
    pub fn push(&self, queue: &Queue, span: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Open { spans, bytes, lost } => {
                if spans.len() == MAX_SPANS || bytes.len() + span.len() > MAX_BYTES {
                    *lost += 1;
                } else {
                    spans.push((bytes.len(), span.len()));
                    bytes.extend_from_slice(span);
                }
            }
            State::Sent => {
                drop(state);
                queue.push(span);
            }
            State::Forgotten => {}
        }
    }

    /// The call is over, and is to be seen.
    pub fn send(&self, queue: &Queue, first: &[u8]) {
        let waited = self.decide(State::Sent);
        if let State::Open { spans, bytes, lost } = waited {
            spans.iter().for_each(|(at, length)| queue.push(&bytes[*at..at + length]));
            queue.lost(lost);
        }
        queue.push(first);
    }

    /// The call is over, and nobody wants to see it.
    pub fn forget(&self) {
        self.decide(State::Forgotten);
    }

    fn decide(&self, how: State) -> State {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), how)
    }
}
