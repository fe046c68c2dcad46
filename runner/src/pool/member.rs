//! A container as its pool sees it.

use std::sync::Arc;
use std::time::Instant;

use stoker_core::call::Cold;
use stoker_core::machine::Machine as _;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::why::Ended;
use crate::container::state::{Event, State};
use crate::container::{CONNECTION_IDLE, Container};
use crate::ledger::Grant;

pub struct Member {
    /// There once it is ready.
    pub container: Option<Arc<Container>>,
    pub state: State,
    pub calls: u32,
    /// No call ran in it yet.
    pub fresh: bool,
    /// Takes no more calls and ends with its last one, for this reason.
    pub doomed: Option<Ended>,
    /// Its secrets were compared with those that are there.
    pub compared: bool,
    /// The function's files changed while it was launched: it may have read the former ones.
    pub stale: bool,
    /// When it got ready, or its last call ended.
    pub since: Instant,
    connections: Vec<(UnixStream, Instant)>,
    /// It gave back what memory it did not need, idle since then.
    pub gave: Option<Instant>,
    /// Wakes its keeper, who sleeps while there is nothing to do.
    pub keeper: Arc<Notify>,
    /// Tells its keeper that it is gone.
    pub over: CancellationToken,
    /// The waiter that it was launched for.
    pub cause: Option<u64>,
    /// Why there was none that was warm.
    pub why: Cold,
    /// Memory and slot, for its whole life.
    _standing: Grant,
    /// CPU, while it starts or has calls.
    pub working: Option<Grant>,
}

impl Member {
    /// One that is about to be launched.
    pub fn new(standing: Grant, working: Option<Grant>, cause: Option<u64>, why: Cold) -> Self {
        Self {
            container: None,
            state: State::Creating,
            calls: 0,
            fresh: true,
            doomed: None,
            compared: false,
            stale: false,
            since: Instant::now(),
            connections: Vec::new(),
            gave: None,
            keeper: Arc::new(Notify::new()),
            over: CancellationToken::new(),
            cause,
            why,
            _standing: standing,
            working,
        }
    }

    /// One of the process's former program, without a call.
    pub fn taken_up(
        standing: Grant,
        container: Arc<Container>,
        since: Instant,
        fresh: bool,
        frozen: bool,
    ) -> Self {
        let mut member =
            Self { container: Some(container), fresh, since, ..Self::new(standing, None, None, Cold::First) };
        member.step(Event::Created);
        member.step(Event::Ready);
        if frozen {
            member.step(Event::Froze);
        }
        member
    }

    /// Makes a move, if its table has it.
    pub fn step(&mut self, event: Event) -> bool {
        match self.state.on(event) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(refused) => {
                tracing::warn!(%refused, "a container was asked for what it cannot do");
                false
            }
        }
    }

    /// Keeps a connection for the next call.
    pub fn connected(&mut self, connection: Option<UnixStream>) {
        self.connections.extend(connection.map(|c| (c, Instant::now())));
    }

    /// A connection that is not too old, if there is one.
    pub fn connection(&mut self) -> Option<UnixStream> {
        let (stream, since) = self.connections.pop()?;
        if since.elapsed() <= CONNECTION_IDLE {
            return Some(stream);
        }
        // The others are older still.
        self.connections.clear();
        None
    }

    /// Takes no call any more.
    pub fn ending(&mut self) {
        self.step(Event::Stop);
        self.connections.clear();
    }

    /// It ends, or will with the calls that it has.
    pub fn goes(&self) -> bool {
        self.state == State::Stopping || self.doomed.is_some()
    }

    /// It goes, and what it has is for others.
    pub fn gives_way(&self) -> bool {
        self.state == State::Stopping || self.doomed == Some(Ended::Evicted)
    }

    /// It serves, or could.
    pub fn serves(&self) -> bool {
        matches!(self.state, State::Idle | State::Busy | State::Frozen) && self.doomed.is_none()
    }
}
