//! Calls for later: accepted now, made when there is room, never lost.
//!
//! A [`Queue`] keeps every call that was accepted until it has ended, and its result for a while after that. It knows nothing of
//! functions and runners: who [takes](Queue::take) a call makes it, and says how it ended. What makes a call safe is one order: it is
//! on disk before its submit is answered, its start is on disk before it starts, its end is on disk before it is forgotten. So whatever
//! dies, the call is there, and whether it may have run already is known. Every implementation passes [`conformance`].

pub mod conformance;
pub mod disk;
#[cfg(feature = "nats")]
pub mod nats;
mod record;
#[cfg(feature = "testing")]
pub mod testing;

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use stoker_core::error::{Code, Retry};
use tokio::sync::{broadcast, watch};

pub use disk::DiskQueue;
#[cfg(feature = "nats")]
pub use nats::NatsQueue;
pub use record::{Answer, Attempt, Call, Kept, Progress, State, derived_id};

/// Bodies over this many bytes are kept [aside](Queue::put_body), and not with their calls.
pub const INLINE: usize = 256 << 10;

/// How long whoever took a call may be silent about it, where nothing else is said.
pub const LEASE: Duration = Duration::from_secs(30);

/// A call that had a key is known for at least so long after its end, so that a late repetition meets it.
pub const KEY_KEPT: Duration = Duration::from_secs(3600);

fn no_body() -> Error {
    Error::Unsupported("the body of this call is not kept any more, so it cannot be made again".to_owned())
}

fn no_such_body() -> Error {
    Error::Spoiled("a body that was kept is not there any more".to_owned())
}

fn no_position() -> Error {
    Error::Unsupported("`after` is nothing that a list of calls gave out as `next`".to_owned())
}

/// Why the queue could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The disk behind it is full, or nearly so: what is left is for calls that are here already to end.
    #[error("the queue's disk is full: {0}")]
    Full(String),
    /// It is not there: nothing was asked of it.
    #[error("the queue is not there: {0}")]
    Absent(String),
    /// It does not answer. What was asked for may have been done.
    #[error("the queue does not answer: {0}")]
    Unavailable(String),
    /// What it has kept cannot be read. It does not help to ask again.
    #[error("{0}")]
    Spoiled(String),
    /// Whoever asked does not hold the call any more: it was cancelled, or another has it.
    #[error("the call was cancelled, or is held by another")]
    Lost,
    /// What it was told is not possible here.
    #[error("{0}")]
    Unsupported(String),
}

/// For those who asked by a call: whose fault it is, and whether to ask again.
impl From<&Error> for stoker_core::Error {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Full(_) => Code::Overloaded,
            Error::Absent(_) | Error::Unavailable(_) => Code::Unavailable,
            Error::Spoiled(_) => Code::Internal,
            Error::Lost => Code::Cancelled,
            Error::Unsupported(_) => Code::InvalidRequest,
        };
        let says = stoker_core::Error::new(code, error.to_string());
        match error {
            Error::Full(_) => says.retry(Retry::After(Duration::from_secs(10))),
            Error::Absent(_) | Error::Unavailable(_) => says.retry(Retry::After(Duration::from_secs(1))),
            Error::Spoiled(_) | Error::Lost | Error::Unsupported(_) => says,
        }
    }
}

/// A body in pieces.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, stoker_core::Error>> + Send>>;

/// A call that was taken, until it is [finished](Queue::finish) or put back [again](Queue::again).
#[derive(Debug)]
pub struct Taken {
    pub call: Call,
    /// As it stands now; its last attempt is the one that begins.
    pub progress: Progress,
    pub ticket: Ticket,
}

/// Who holds a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) id: String,
    pub(crate) number: u64,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub struct End {
    /// With its attempts, its state and how long it is kept.
    pub progress: Progress,
    pub answer: Option<Answer>,
    /// What is to be done because of it: at least once, and known by ids that are the same each time.
    pub then: Vec<Follow>,
}

/// What follows from the end of a call.
#[derive(Debug, Clone)]
pub enum Follow {
    /// Another call for later.
    Call(Call),
    /// A message to a subject of the queue's NATS.
    Message { subject: String, id: String, body: Bytes },
}

/// Which calls are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `app/function`; empty: all.
    pub function: String,
    pub state: Option<State>,
    pub limit: usize,
    /// Where the list before ended, as it [says](Page::next); empty: from the first.
    pub after: String,
}

/// A list ends with the call with which it has so many bytes: each may tell of a hundred failures, and a page has to fit into a message.
const PAGE_BYTES: usize = 2 << 20;

/// And with the one that is the last of so many that were looked at for it, where few of them are asked for: whoever asks for the next goes on there.
pub const LOOKED: usize = 5000;

/// Part of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Without their answers.
    pub calls: Vec<Kept>,
    /// Where the next begins; nothing: there are no more.
    pub next: Option<String>,
}

/// A page that is being filled.
struct Filling {
    filter: Filter,
    page: Page,
    bytes: usize,
    /// Calls that were looked at, and where the last of them stands.
    looked: usize,
    last: String,
}

impl Filling {
    fn new(filter: Filter) -> Self {
        Self { filter, page: Page::default(), bytes: 0, looked: 0, last: String::new() }
    }

    /// Looks at the next one, which stands there, or stood there and is gone. Whether to go on; else the page is complete.
    fn look(&mut self, kept: Option<Kept>, at: String) -> bool {
        let Filter { function, state, limit, .. } = &self.filter;
        let asked_for = kept.filter(|kept| {
            (function.is_empty() || kept.call.function == *function)
                && state.is_none_or(|state| state == kept.progress.is())
        });
        let full = self.page.calls.len() >= *limit || self.bytes >= PAGE_BYTES;
        if self.looked == LOOKED || full && asked_for.is_some() {
            self.page.next = Some(std::mem::take(&mut self.last));
            return false;
        }
        (self.looked, self.last) = (self.looked + 1, at);
        if let Some(mut kept) = asked_for {
            kept.answer = None;
            self.bytes += prost::Message::encoded_len(&kept);
            self.page.calls.push(kept);
        }
        true
    }
}

/// How much there is of one function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    pub function: String,
    /// Waiting, for their time or for room.
    pub queued: u64,
    pub running: u64,
    /// When the oldest of those was due that wait and could start.
    pub oldest_due_ms: Option<u64>,
}

/// Where calls for later are kept.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Accepts a call: once this returns, it is on disk. `false` if a call of its id is here already, which stays as it is.
    ///
    /// # Errors
    /// The queue's. The same call can be submitted again.
    async fn submit(&self, call: Call) -> Result<bool, Error>;

    /// Keeps a body aside, under a name of `[a-z0-9-]`; returns its length. One of that name that is here already is replaced.
    ///
    /// # Errors
    /// The queue's, or the body's own.
    async fn put_body(&self, name: &str, pieces: Pieces) -> Result<u64, stoker_core::Error>;

    /// A body that is kept aside.
    ///
    /// # Errors
    /// The queue's; that there is none is [`Error::Spoiled`].
    async fn body(&self, name: &str) -> Result<Pieces, Error>;

    /// Forgets a body that no call is for.
    async fn drop_body(&self, name: &str);

    /// Takes calls of a function that are due, the longest due first. That an attempt of each begins is on disk when this
    /// returns. Whoever takes one says within [the lease](Queue::lease) that it still works on it, or loses it.
    ///
    /// # Errors
    /// The queue's.
    async fn take(&self, function: &str, most: usize) -> Result<Vec<Taken>, Error>;

    /// How long whoever took a call may be silent about it.
    fn lease(&self) -> Duration;

    /// Whoever took the call still works on it.
    ///
    /// # Errors
    /// [`Error::Lost`], or the queue's.
    async fn extend(&self, ticket: &Ticket) -> Result<(), Error>;

    /// The call has ended. What follows from that is accepted together with it, or before. The body of one that is dead is kept with it.
    ///
    /// # Errors
    /// [`Error::Lost`], or the queue's: then it can be asked again.
    async fn finish(&self, ticket: &Ticket, end: End) -> Result<(), Error>;

    /// The call goes back, to be taken again when `progress` says that it is due.
    ///
    /// # Errors
    /// [`Error::Lost`], or the queue's: then it can be asked again.
    async fn again(&self, ticket: &Ticket, progress: Progress) -> Result<(), Error>;

    /// Cancels a call that has not ended. The call as it stands then; `None` if there is none.
    ///
    /// # Errors
    /// The queue's.
    async fn cancel(&self, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error>;

    /// Has a call wait again that was given up and is still kept. The call as it stands then, and whether that was done; `None` if there
    /// is none.
    ///
    /// # Errors
    /// The queue's; also where its body is not kept any more.
    async fn redrive(&self, id: &str) -> Result<Option<(Kept, bool)>, Error>;

    /// A call.
    ///
    /// # Errors
    /// The queue's.
    async fn get(&self, id: &str) -> Result<Option<Kept>, Error>;

    /// The call, once it has ended; `None` if there is none.
    ///
    /// # Errors
    /// The queue's.
    async fn wait(&self, id: &str) -> Result<Option<Kept>, Error>;

    /// Calls, the newest first. Page after page tells once of each that was there when the first was asked for and still is. One page looks at
    /// [`LOOKED`] calls at most: it may have fewer than were asked for, or none, and be followed by another.
    ///
    /// # Errors
    /// The queue's; also where `after` is nothing that a list said.
    async fn list(&self, filter: Filter) -> Result<Page, Error>;

    /// Functions of which there may be something to take now.
    fn lanes(&self) -> Vec<String>;

    /// Ticks when there may be more to take.
    fn news(&self) -> watch::Receiver<u64>;

    /// Ids of calls that are cancelled, for those who run them.
    fn cancelled(&self) -> broadcast::Receiver<String>;

    /// How much there is.
    ///
    /// # Errors
    /// The queue's.
    async fn backlog(&self) -> Result<Vec<Backlog>, Error>;

    /// Ends its tasks. What is asked of it afterwards fails.
    async fn stop(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(function: &str) -> Kept {
        let call = Call { id: function.to_owned(), function: function.to_owned(), ..Call::default() };
        Kept { progress: Progress::new(&call), call, answer: None }
    }

    #[test]
    fn a_page_ends_when_it_is_full_or_has_looked_at_enough() {
        let filter = Filter { function: "a/b".into(), limit: 2, ..Filter::default() };
        let mut filling = Filling::new(filter.clone());
        for (at, function) in ["a/b", "a/c", "a/b", "a/c"].into_iter().enumerate() {
            assert!(filling.look(Some(kept(function)), at.to_string()));
        }
        assert!(filling.look(None, "4".into()), "it is gone");
        assert!(!filling.look(Some(kept("a/b")), "5".into()), "the third");
        // What was looked at is not looked at again.
        assert_eq!((filling.page.calls.len(), filling.page.next.as_deref()), (2, Some("4")));

        let mut filling = Filling::new(filter);
        for at in 0..LOOKED {
            assert!(filling.look(Some(kept("a/c")), at.to_string()));
        }
        assert!(!filling.look(Some(kept("a/b")), LOOKED.to_string()));
        assert_eq!((filling.page.calls.len(), filling.page.next), (0, Some((LOOKED - 1).to_string())));
    }
}
