//! One runner: what it says of itself, its links, and what of it goes onto the board.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use stoker_core::capacity::{Capacity, RunnerState};
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::{Board, Peer, Seat};
use stoker_policy::placement;
use stoker_proto::{convert, v1};
use stoker_runtime::telemetry::Facts;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::version;
use crate::directory::Known;
use crate::link::session::Session;
use crate::link::state::{LinkEvent, LinkState};

/// A runner, as this balancer knows it.
pub struct Runner {
    pub name: String,
    pub address: String,
    /// What spans say of it.
    pub facts: Facts,
    pub seat: Seat,
    /// Where all runners are, and what this balancer saw of them.
    board: Arc<Mutex<Board<Arc<Runner>>>>,
    capacity: ArcSwap<(Capacity, Instant)>,
    pub links: Box<[Link]>,
    turn: AtomicUsize,
    in_flight: Arc<AtomicU32>,
    /// Those of them that stand in its line.
    in_line: Arc<AtomicU32>,
    /// Calls of ours that ended there.
    calls: AtomicU64,
    standing: watch::Sender<Standing>,
    /// Where another runner of its name is, while there is one.
    namesake: ArcSwapOption<String>,
}

/// How a runner stands in the registry. One that is not listed is kept as long as a link to it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Listed,
    Unlisted,
    /// Given up, for good: one that is listed anew is another.
    GivenUp,
}

/// A connection to a runner, with its stream.
#[derive(Default)]
pub struct Link {
    pub session: ArcSwapOption<Session>,
    /// The runner asked for no more offers here.
    draining: AtomicBool,
    pub channel: ArcSwapOption<Channel>,
    status: Mutex<(LinkState, String)>,
    /// Frames of the runner on all streams of this connection; only ever compared.
    heard: AtomicU32,
    /// The last answer to a question for a sign of life, and when it came.
    ponged: Mutex<Option<(u64, tokio::time::Instant)>>,
}

impl Peer for Runner {
    fn is_open(&self) -> bool {
        self.links.iter().any(Link::is_open) && self.capacity.load().0.state == RunnerState::Ready
    }

    fn load(&self) -> u32 {
        self.in_flight()
    }
}

/// Counts a call on a runner, or in its line, as long as it lives.
pub struct InFlight(Arc<AtomicU32>);

#[cfg(test)]
impl Default for InFlight {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    fn status(&self) -> MutexGuard<'_, (LinkState, String)> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the link on; a move that its table does not have is a mistake of ours, which is logged and changes nothing.
    pub fn on(&self, event: LinkEvent, reason: &str) {
        let mut status = self.status();
        match status.0.on(event) {
            Ok(next) => {
                *status = (next, reason.to_owned());
                self.draining.store(next == LinkState::Draining, Ordering::Relaxed);
            }
            Err(wrong) => tracing::error!(%wrong, "a link was moved against its table"),
        }
    }

    /// A frame has come.
    pub fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes with every frame that comes.
    pub fn heard(&self) -> u32 {
        self.heard.load(Ordering::Relaxed)
    }

    /// It has answered a question for a sign of life.
    pub fn pong(&self, number: u64) {
        let answered = Some((number, tokio::time::Instant::now()));
        *self.ponged.lock().unwrap_or_else(PoisonError::into_inner) = answered;
    }

    /// Which question it has answered last, and when.
    pub fn ponged(&self) -> Option<(u64, tokio::time::Instant)> {
        *self.ponged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the runner takes offers here.
    pub fn is_open(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.session.load().is_some()
    }
}

impl Runner {
    fn new(capacity: Capacity, links: usize, seat: Seat, board: Arc<Mutex<Board<Arc<Runner>>>>) -> Self {
        let now = Instant::now();
        Self {
            name: capacity.runner.as_str().to_owned(),
            address: capacity.address.clone(),
            facts: crate::observe::of_runner(&capacity),
            seat,
            board,
            capacity: ArcSwap::from_pointee((capacity, now)),
            links: (0..links.max(1)).map(|_| Link::default()).collect(),
            turn: AtomicUsize::new(0),
            in_flight: Arc::default(),
            in_line: Arc::default(),
            calls: AtomicU64::new(0),
            standing: watch::Sender::new(Standing::Listed),
            namesake: ArcSwapOption::empty(),
        }
    }

    /// Makes one and seats it on the board.
    pub(super) fn join(
        board: &Arc<Mutex<Board<Arc<Runner>>>>,
        capacity: Capacity,
        links: usize,
    ) -> Arc<Self> {
        let key = placement::key(capacity.runner.as_str().as_bytes());
        let total = capacity.total;
        let mut seats = board.lock().unwrap_or_else(PoisonError::into_inner);
        seats.join(key, total, Instant::now(), |seat| {
            Arc::new(Self::new(capacity, links, seat, board.clone()))
        })
    }

    /// One with a name and nothing else.
    #[cfg(test)]
    pub fn named(name: &str) -> Arc<Self> {
        let capacity = Capacity {
            runner: stoker_core::ids::RunnerName::new(name).expect("a name"),
            incarnation: stoker_core::ids::Incarnation::new(),
            address: "http://127.0.0.1:1".to_owned(),
            zone: String::new(),
            labels: Default::default(),
            sequence: 1,
            state: Default::default(),
            total: Resources::default(),
            free: Resources::default(),
            reclaimable: Resources::default(),
            in_flight: 0,
            waiting: 0,
            functions: Default::default(),
        };
        Self::join(&Arc::default(), capacity, 1)
    }

    /// Everything on it changes in the order of the runner's frames, so that a refusal never outlives the news that came after it.
    pub(super) fn board(&self) -> MutexGuard<'_, Board<Arc<Runner>>> {
        // No code that can panic runs under this lock.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session to offer on; they take turns.
    pub fn session(&self) -> Option<Arc<Session>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let links = (0..self.links.len()).map(|i| &self.links[(turn + i) % self.links.len()]);
        links.filter(|link| link.is_open()).find_map(|link| link.session.load_full())
    }

    /// A connection, for what is asked beside the sessions.
    pub fn channel(&self) -> Option<Channel> {
        self.links.iter().find_map(|link| link.channel.load_full()).map(|channel| (*channel).clone())
    }

    /// Counts a call here.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.in_flight.clone())
    }

    /// Calls of ours that it has.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a call in its line.
    pub fn stand(&self) -> InFlight {
        self.in_line.fetch_add(1, Ordering::Relaxed);
        InFlight(self.in_line.clone())
    }

    /// Whether a call of ours stands in its line.
    pub fn has_ours(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) > 0
    }

    /// What it said last.
    pub fn capacity(&self) -> Arc<(Capacity, Instant)> {
        self.capacity.load_full()
    }

    /// Whether a record tells more than is known.
    pub(super) fn is_news(&self, record: &Capacity) -> bool {
        let known = self.capacity.load();
        let (life, known_life) = (record.incarnation.0, known.0.incarnation.0);
        life > known_life || (life == known_life && record.sequence > known.0.sequence)
    }

    /// Takes a record, unless a newer one of the same life is known.
    pub fn update(&self, record: Capacity, from_runner: bool) {
        let known = self.capacity.load();
        let (life, known_life) = (record.incarnation, known.0.incarnation);
        // A runner knows its own life; the registry may still tell of an earlier one, whose number is lower.
        if (life == known_life && known.0.sequence > record.sequence)
            || (!from_runner && life.0 < known_life.0)
        {
            return;
        }
        let now = Instant::now();
        let mut board = self.board();
        if life != known_life {
            board.renew(self.seat, now);
        }
        board.resize(self.seat, record.total);
        if from_runner {
            let warm = record.functions.iter().map(|(digest, warmth)| (version(digest), *warmth));
            board.spoke(self.seat, warm, now);
        }
        drop(board);
        self.capacity.store(Arc::new((record, now)));
    }

    fn warm(&self, board: &mut Board<Arc<Runner>>, warmth: Option<&v1::Warmth>, now: Instant) {
        if let Some(Ok((digest, warmth))) = warmth.map(convert::warmth) {
            board.said(self.seat, version(&digest), warmth, now);
        }
    }

    /// Calls of ours that ended there.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// A call ended there, and this is how warm its function is now.
    pub fn ended(&self, warmth: Option<&v1::Warmth>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut board = self.board();
        board.freed(self.seat);
        self.warm(&mut board, warmth, Instant::now());
    }

    /// It refused; full it is where it said so.
    pub fn refused(&self, full: bool, warmth: Option<&v1::Warmth>) {
        let (mut board, now) = (self.board(), Instant::now());
        if full {
            board.refused(self.seat, now);
        }
        self.warm(&mut board, warmth, now);
    }

    /// A call goes there: one idle container less, as far as we know, or one more in the line.
    pub fn used(&self, function: &Digest) {
        self.board().used(self.seat, version(function));
    }

    /// What it could give to new containers.
    pub fn room(&self) -> Resources {
        let record = &self.capacity.load().0;
        record.free.checked_add(record.reclaimable).unwrap_or(record.total)
    }

    /// Whether it is large enough for such a container.
    pub fn could_hold(&self, ask: &Ask) -> bool {
        self.capacity.load().0.total.could_hold(ask)
    }

    /// Whether it may be asked at all for a call of `function`.
    pub fn may_take(&self, function: &Known) -> bool {
        self.links.iter().any(Link::is_open)
            && placement::eligible(&self.capacity.load().0, &function.spec.ask())
    }

    /// Whether containers are worth keeping there: it takes calls, or a balancer that has just started has not tried it yet.
    pub fn may_keep(&self) -> bool {
        let untried = |link: &Link| {
            let (state, reason) = &*link.status();
            // Later attempts know why the one before failed.
            *state == LinkState::Connecting && reason.is_empty()
        };
        self.capacity.load().0.state == RunnerState::Ready
            && self.links.iter().any(|link| link.is_open() || untried(link))
    }

    /// Whether the registry lists it now.
    pub fn is_listed(&self) -> bool {
        *self.standing.borrow() == Standing::Listed
    }

    /// The registry lists it again, or still; `false` if it has been given up.
    pub(super) fn list(&self) -> bool {
        self.standing.send_if_modified(|standing| {
            let back = *standing == Standing::Unlisted;
            if back {
                *standing = Standing::Listed;
            }
            back
        });
        self.is_listed()
    }

    /// Another runner of its name is there, or none any more.
    pub(super) fn beside(&self, other: Option<&Runner>) {
        let known = self.namesake.load();
        if known.as_deref().map(String::as_str) != other.map(|other| other.address.as_str()) {
            self.namesake.store(other.map(|other| Arc::new(other.address.clone())));
        }
    }

    /// What people are told that it is called: with its address where its name alone would be that of two.
    pub fn title(&self) -> Cow<'_, str> {
        match *self.namesake.load() {
            None => Cow::Borrowed(&self.name),
            Some(_) => Cow::Owned(format!("{} at {}", self.name, self.address)),
        }
    }

    pub(super) fn unlist(&self) {
        self.standing.send_if_modified(|standing| {
            let gone = *standing == Standing::Listed;
            if gone {
                *standing = Standing::Unlisted;
            }
            gone
        });
    }

    /// Gives it up if nothing speaks for it any more: neither the registry nor a link. Says whether it is given up.
    pub fn give_up(&self) -> bool {
        let linked = self.links.iter().any(|link| link.session.load().is_some());
        self.standing.send_if_modified(|standing| {
            let over = *standing == Standing::Unlisted && !linked;
            if over {
                *standing = Standing::GivenUp;
            }
            over
        });
        *self.standing.borrow() == Standing::GivenUp
    }

    /// Returns when it is given up.
    pub async fn given_up(&self) {
        let mut standing = self.standing.subscribe();
        while !self.give_up() {
            // The sender is here.
            standing.changed().await.ok();
        }
    }

    /// How its links stand: the best of them, and what is wrong with it where something is.
    pub fn link(&self) -> (LinkState, String) {
        let best = |state: LinkState| match state {
            LinkState::Ready => 0,
            LinkState::Draining => 1,
            LinkState::Connecting => 2,
            LinkState::Lost => 3,
            LinkState::Closed => 4,
        };
        let links = self.links.iter().map(|link| link.status().clone());
        links.min_by_key(|(state, _)| best(*state)).unwrap_or((LinkState::Closed, String::new()))
    }

    /// For operators.
    pub fn describe(&self) -> v1::RunnerDescription {
        let capacity = self.capacity();
        let (state, mut reason) = self.link();
        if let Some(other) = self.namesake.load().as_deref().filter(|_| reason.is_empty()) {
            reason = match self.is_listed() {
                true => format!(
                    "the runner at {other} has the same name and is connected too: give one of the two another"
                ),
                false => format!(
                    "the registry names the runner at {other} for its name, and {} is used while its connection stands: give one of the two another",
                    self.address
                ),
            };
        }
        let link = match state {
            LinkState::Connecting => v1::LinkState::Connecting,
            LinkState::Ready => v1::LinkState::Ready,
            LinkState::Draining => v1::LinkState::Draining,
            LinkState::Lost | LinkState::Closed => v1::LinkState::Lost,
        };
        v1::RunnerDescription {
            capacity: Some(convert::to_capacity(&capacity.0)),
            link: link.into(),
            reason,
            age: Some(convert::to_duration(capacity.1.elapsed())),
        }
    }
}
