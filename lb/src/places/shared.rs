//! What a balancer claims of one function's places: pure steps, each of what calls want, what others claim, and the time.

use std::sync::Arc;
use std::time::Duration;

use stoker_policy::sharing::{self, Demand, REST, Share, TURN};
use stoker_registry::Claim;
use tokio::time::Instant;

use crate::directory::{Gate, Outlook};

/// What calls want is looked at anew after this: a turn, so that a wish that has passed stands in nobody's way for longer.
const LINGER: Duration = Duration::from_millis(500);

/// What they wanted is kept for so long, if nobody else wants it: those who were refused come again after a second.
const MEMORY: Duration = Duration::from_secs(2);

/// Where the registry did not answer, it is asked again after this: calls go on meanwhile, and a store that comes back should not find everybody at its door.
const AWAY: Duration = Duration::from_secs(1);

/// What others claim of the same function.
#[derive(Default)]
pub struct Others<'a> {
    pub demands: Vec<Demand<'a>>,
    /// Places that they hold.
    pub places: u32,
    /// Somebody's claim has changed.
    pub news: bool,
}

/// See the module.
pub struct Shared {
    pub gate: Arc<Gate>,
    /// 0 where there is none any more.
    pub limit: u32,
    held: Held,
    /// What its calls wanted lately, and until when that is believed.
    wants: u32,
    until: Instant,
    ticket: u64,
    /// What was written last, but for the places.
    written: (u32, u64),
    share: Share,
    /// When there were fewer before.
    since: Instant,
    /// The registry gave less than others' claims promised: it is asked again when there is news.
    short: bool,
    tick: Option<Instant>,
    turn: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Places(u32),
    /// It is not known: the registry does not answer, or has forgotten, or the limit has changed.
    Unknown,
}

impl Shared {
    /// One of which nothing is held.
    pub fn new(gate: Arc<Gate>, limit: u32, now: Instant) -> Self {
        Self {
            gate,
            limit,
            held: Held::Places(0),
            wants: 0,
            until: now,
            ticket: 0,
            written: (0, 0),
            share: Share { places: 0, level: 0, turns: false },
            since: now,
            short: false,
            tick: None,
            turn: None,
        }
    }

    /// What is held is to be found out.
    pub fn forget(&mut self) {
        (self.held, self.tick) = (Held::Unknown, None);
    }

    pub fn is_over(&self) -> bool {
        self.limit == 0 && self.holds_nothing()
    }

    pub fn holds_nothing(&self) -> bool {
        self.held == Held::Places(0) && self.written == (0, 0)
    }

    /// When it is looked at again, whatever happens.
    pub fn next(&self) -> Option<Instant> {
        [self.tick, self.turn].into_iter().flatten().min()
    }

    /// What is to be claimed now, if anything else than before.
    pub fn step(&mut self, now: Instant, me: &str, others: &Others<'_>) -> Option<Claim> {
        let overdue = self.tick.is_some_and(|tick| tick <= now);
        if self.held == Held::Unknown && self.tick.is_some() && !overdue {
            return None;
        }
        self.short &= !others.news && !overdue;
        self.listen(now, overdue);
        let demand = |ticket| Demand { wants: self.wants, ticket, holder: me };
        if self.wants > 0 && self.ticket == 0 {
            self.ticket = sharing::last_ticket(&others.demands);
        }
        let mut share = sharing::share(self.limit, &demand(self.ticket), &others.demands);
        let held = match self.held {
            Held::Places(held) => held,
            Held::Unknown => 0,
        };
        self.turn = None;
        if share.places > share.level && share.turns && held > share.level {
            // Ours is an odd one, and somebody waits for it.
            let ends = self.since + if self.gate.inside() < held { REST } else { TURN };
            if ends <= now {
                (self.ticket, self.since) = (sharing::last_ticket(&others.demands), now);
                share = sharing::share(self.limit, &demand(self.ticket), &others.demands);
            } else {
                self.turn = Some(ends);
            }
        }
        self.share = share;
        let left = match self.held {
            Held::Places(_) => self.gate.shrink(share.places),
            // Until the registry answers, the limit is this balancer's own.
            Held::Unknown => share.places.max(self.gate.inside()),
        };
        let free = self.limit.saturating_sub(others.places);
        let places = match self.held {
            _ if self.limit == 0 => 0,
            Held::Unknown => left.min(self.limit),
            Held::Places(held) if share.places < held => left.min(held),
            Held::Places(held) if self.short => held,
            Held::Places(held) => share.places.min(free.max(held)),
        };
        if self.wants == 0 && places == 0 {
            self.ticket = 0;
        }
        let claim = Claim { places, wants: self.wants, ticket: self.ticket };
        if self.held == Held::Places(places) && self.written == (claim.wants, claim.ticket) {
            self.tell(places);
            return None;
        }
        Some(claim)
    }

    /// Takes in what calls want.
    fn listen(&mut self, now: Instant, overdue: bool) {
        let demand = if overdue { self.gate.look() } else { self.gate.demand() }.min(self.limit);
        if demand >= self.wants {
            (self.wants, self.until) = (demand, now + MEMORY);
        } else if overdue && self.until <= now {
            self.wants = demand;
        }
        let active = self.wants > 0 || self.held != Held::Places(0);
        if overdue || self.tick.is_none() {
            self.tick = active.then_some(now + LINGER);
        }
    }

    /// Tells the gate how things stand.
    fn tell(&self, held: u32) {
        let outlook = match self.wants > held {
            false => Outlook::Ask,
            true if self.share.turns || self.share.places > held => Outlook::Soon,
            true => Outlook::None,
        };
        self.gate.tell(Some(held.min(self.share.places)), held, outlook);
    }

    /// What the registry says to a claim.
    pub fn took(&mut self, claim: Claim, answer: Result<u32, stoker_registry::Error>, now: Instant) {
        match answer {
            Ok(held) => {
                if self.held != Held::Places(held)
                    && !matches!(self.held, Held::Places(before) if before > held)
                {
                    self.since = now;
                }
                self.held = Held::Places(held);
                self.written = (claim.wants, claim.ticket);
                self.short = held < claim.places;
                self.tell(held);
            }
            Err(error) => {
                tracing::debug!(%error, "places could not be held: the limit is this balancer's own for now");
                self.held = Held::Unknown;
                self.tick = Some(now + AWAY);
                self.turn = None;
                self.gate.tell(None, 0, Outlook::Ask);
            }
        }
    }
}
