//! What is kept of a call, in the form in which it is kept: Protocol Buffers, whose fields may become more and never mean
//! something else.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stoker_proto::v1;

/// A call as it was accepted. Never changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Call {
    /// As `CallId` writes it: 32 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `app/function`.
    #[prost(string, tag = "2")]
    pub function: String,
    #[prost(message, optional, tag = "3")]
    pub head: Option<v1::RequestHead>,
    #[prost(bytes = "bytes", tag = "4")]
    pub body: Bytes,
    /// Of the whole body, wherever it is.
    #[prost(uint64, tag = "5")]
    pub body_bytes: u64,
    /// The body is kept aside, under its [name](Call::body_name).
    #[prost(bool, tag = "6")]
    pub aside: bool,
    #[prost(uint64, tag = "7")]
    pub submitted_ms: u64,
    /// When it may first start.
    #[prost(uint64, tag = "8")]
    pub due_ms: u64,
    #[prost(string, tag = "9")]
    pub key: String,
    /// What made it, where that was no caller.
    #[prost(string, tag = "10")]
    pub origin: String,
    #[prost(string, tag = "11")]
    pub trace_parent: String,
    #[prost(string, tag = "12")]
    pub trace_state: String,
    /// How many reports and dead letters lie before it, so that they do not go in circles for ever.
    #[prost(uint32, tag = "13")]
    pub hops: u32,
    /// The revision or the alias that was named; empty: as the function's traffic is shared out when it starts.
    #[prost(string, tag = "14")]
    pub qualifier: String,
    /// Who submitted it, where callers are known.
    #[prost(string, tag = "15")]
    pub caller: String,
    /// How often it had been made again when it was put here; see [`Progress::redrive`].
    #[prost(uint32, tag = "16")]
    pub redrives: u32,
    /// Under which its body is kept aside; empty: under its id.
    #[prost(string, tag = "17")]
    pub body_name: String,
}

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    Queued = 0,
    Running = 1,
    Done = 2,
    Dead = 3,
    Cancelled = 4,
}

impl State {
    /// It will not change any more.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, State::Done | State::Dead | State::Cancelled)
    }
}

/// One start of a call.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attempt {
    #[prost(uint64, tag = "1")]
    pub started_ms: u64,
    /// 0 while it runs.
    #[prost(uint64, tag = "2")]
    pub ended_ms: u64,
    #[prost(string, tag = "3")]
    pub runner: String,
    #[prost(message, optional, tag = "4")]
    pub error: Option<v1::CallError>,
    /// Whoever made it was gone before its end was known.
    #[prost(bool, tag = "5")]
    pub interrupted: bool,
    /// Who makes it, where there may be several: as they know each other.
    #[prost(string, tag = "6")]
    pub holder: String,
    /// Of the function; 0 where none is known to have run it.
    #[prost(uint64, tag = "7")]
    pub revision: u64,
}

/// How far a call is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    #[prost(enumeration = "State", tag = "1")]
    pub state: i32,
    /// When it may start, or start again.
    #[prost(uint64, tag = "2")]
    pub due_ms: u64,
    #[prost(message, repeated, tag = "3")]
    pub attempts: Vec<Attempt>,
    /// How often it was put back without an attempt.
    #[prost(uint32, tag = "4")]
    pub waits: u32,
    #[prost(uint64, tag = "5")]
    pub ended_ms: u64,
    #[prost(uint64, tag = "6")]
    pub keep_until_ms: u64,
    /// Why it is dead.
    #[prost(message, optional, tag = "7")]
    pub error: Option<v1::CallError>,
    /// Where it went as a dead letter.
    #[prost(string, tag = "8")]
    pub dead_letter: String,
    /// How often it was made again after it had been given up, and when it was last.
    #[prost(uint32, tag = "9")]
    pub redrives: u32,
    #[prost(uint64, tag = "10")]
    pub redriven_ms: u64,
    /// Of its attempts so many were made before that, and do not count any more.
    #[prost(uint32, tag = "11")]
    pub spent: u32,
    /// Why it could not be started when that was tried last, in a sentence; empty where nothing stood in its way.
    #[prost(string, tag = "12")]
    pub refusal: String,
}

/// Attempts that a call which is made again keeps of those before.
const REMEMBERED: usize = 100;

impl Progress {
    /// Of a call that was just accepted.
    #[must_use]
    pub fn new(call: &Call) -> Self {
        Self { due_ms: call.due_ms, ..Self::default() }
    }

    /// Its state.
    #[must_use]
    pub fn is(&self) -> State {
        self.state()
    }

    /// An attempt begins. One that is still open was interrupted.
    pub fn begin(&mut self, now_ms: u64) {
        self.interrupt(now_ms);
        self.set_state(State::Running);
        self.attempts.push(Attempt { started_ms: now_ms, ..Attempt::default() });
    }

    /// Whoever made the open attempt, if there is one, is gone. Says whether there was one.
    pub fn interrupt(&mut self, now_ms: u64) -> bool {
        match self.attempts.last_mut() {
            Some(open) if open.ended_ms == 0 => {
                (open.ended_ms, open.interrupted) = (now_ms.max(1), true);
                true
            }
            _ => false,
        }
    }

    /// It has ended, and was to be kept until now at most.
    #[must_use]
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.is().is_end() && self.keep_until_ms <= now_ms
    }

    /// It was given up, and is made again: with all its attempts and its whole age before it. The `times`th time.
    pub fn redrive(&mut self, now_ms: u64, times: u32) {
        let old = self.attempts.len().saturating_sub(REMEMBERED);
        self.attempts.drain(..old);
        *self = Self {
            due_ms: now_ms,
            spent: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            attempts: std::mem::take(&mut self.attempts),
            redrives: times,
            redriven_ms: now_ms,
            ..Self::default()
        };
    }

    /// Attempts that count, with one that has begun.
    #[must_use]
    pub fn counted(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_sub(self.spent)
    }

    /// It is cancelled.
    pub fn cancel(&mut self, now_ms: u64, keep_until_ms: u64) {
        if let Some(open) = self.attempts.last_mut().filter(|attempt| attempt.ended_ms == 0) {
            open.ended_ms = now_ms.max(1);
        }
        self.set_state(State::Cancelled);
        (self.ended_ms, self.keep_until_ms) = (now_ms, keep_until_ms);
    }
}

/// What a function answered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Answer {
    #[prost(message, optional, tag = "1")]
    pub head: Option<v1::ResponseHead>,
    #[prost(bytes = "bytes", tag = "2")]
    pub body: Bytes,
    /// Of the whole body, wherever it is.
    #[prost(uint64, tag = "3")]
    pub body_bytes: u64,
    /// It is kept aside, under [`Call::answer_name`].
    #[prost(bool, tag = "4")]
    pub aside: bool,
    /// It was too large to be kept.
    #[prost(bool, tag = "5")]
    pub dropped: bool,
    #[prost(message, optional, tag = "6")]
    pub timings: Option<v1::Timings>,
}

/// A call with all that is known of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Kept {
    /// Without its body, as far as anybody sees it.
    #[prost(message, required, tag = "1")]
    pub call: Call,
    #[prost(message, required, tag = "2")]
    pub progress: Progress,
    #[prost(message, optional, tag = "3")]
    pub answer: Option<Answer>,
}

impl Call {
    /// A name for the body of a call whose id may be there already: another each time, so that what is submitted again spoils nothing that is there.
    #[must_use]
    pub fn new_body_name(id: &str) -> String {
        format!("{id}-{}", uuid::Uuid::now_v7().as_simple())
    }

    /// Under which its body is kept aside, if it is.
    #[must_use]
    pub fn body_name(&self) -> Option<&str> {
        let name = if self.body_name.is_empty() { &self.id } else { &self.body_name };
        self.aside.then_some(name)
    }

    /// Under which its answer's body is kept aside.
    #[must_use]
    pub fn answer_name(id: &str) -> String {
        format!("{id}-answer")
    }
}

/// The id of the call that a caller's key, or whatever else is unique, means: the same each time and on every machine.
#[must_use]
pub fn derived_id(kind: &str, function: &str, key: &str) -> String {
    let mut hash = Sha256::new();
    for part in [kind, function, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().as_simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_ids_and_tell_their_parts_apart() {
        let id = derived_id("key", "a/b", "c");
        assert!(stoker_core::CallId::parse(&id).is_some_and(|read| read.to_string() == id));
        assert_eq!(id, derived_id("key", "a/b", "c"));
        assert_ne!(id, derived_id("key", "a/bc", ""));
        assert_ne!(id, derived_id("keya", "/b", "c"));
    }

    #[test]
    fn an_attempt_that_nobody_ended_was_interrupted() {
        let mut progress = Progress::new(&Call { due_ms: 5, ..Call::default() });
        progress.begin(10);
        assert_eq!((progress.is(), progress.attempts.len()), (State::Running, 1));
        progress.begin(20);
        assert!(progress.attempts[0].interrupted && progress.attempts[0].ended_ms == 20);
        assert!(!progress.attempts[1].interrupted && progress.attempts[1].ended_ms == 0);
        progress.cancel(30, 40);
        assert!(!progress.attempts[1].interrupted && progress.attempts[1].ended_ms == 30);
        assert!(progress.is().is_end() && !progress.interrupt(50));
    }

    #[test]
    fn what_is_made_again_has_all_its_attempts_before_it() {
        let mut progress = Progress::new(&Call { due_ms: 5, ..Call::default() });
        for time in 0..REMEMBERED as u64 + 7 {
            progress.begin(10 + time);
        }
        progress.set_state(State::Dead);
        (progress.ended_ms, progress.keep_until_ms, progress.waits) = (500, 600, 3);
        progress.redrive(700, 1);
        assert_eq!((progress.is(), progress.due_ms, progress.redrives), (State::Queued, 700, 1));
        assert_eq!((progress.counted(), progress.attempts.len(), progress.waits), (0, REMEMBERED, 0));
        assert!(!progress.is_over(10_000));
        progress.begin(800);
        assert_eq!(progress.counted(), 1);
    }
}
