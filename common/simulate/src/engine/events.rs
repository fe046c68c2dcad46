//! What happens next.

use std::cmp::Ordering;

use stoker_core::capacity::Warmth;

use super::node::Start;
use crate::trace::Micros;

/// Something that happens.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// The next call of the trace.
    Arrive,
    /// The next call of one who calls this function again and again, at this balancer.
    Caller {
        balancer: u32,
        function: u32,
    },
    /// A balancer hears that its call stands in a line.
    Accepted {
        call: u32,
        stamp: u32,
    },
    /// The second runner had nobody idle.
    SecondRefused {
        call: u32,
        stamp: u32,
        node: u32,
        warmth: Warmth,
    },
    /// An offer is at its runner.
    Offered {
        call: u32,
        stamp: u32,
    },
    /// A call that waits at a runner is offered to another that has somebody idle.
    Second {
        call: u32,
        stamp: u32,
        node: u32,
        life: u32,
    },
    /// A refusal is at its balancer.
    Refused {
        call: u32,
        stamp: u32,
        warmth: Warmth,
        closed: bool,
    },
    /// A call that waited may start.
    Begin {
        call: u32,
        stamp: u32,
    },
    /// The function is done.
    Done {
        call: u32,
        stamp: u32,
    },
    /// The answer is at the balancer.
    Answered {
        call: u32,
        stamp: u32,
        warmth: Warmth,
    },
    /// A rival's pause is over.
    Again {
        call: u32,
        stamp: u32,
    },
    /// A call has been without a runner for so long that it leaves.
    TooLong {
        call: u32,
        stamp: u32,
    },
    Overdue {
        node: u32,
        life: u32,
        call: u32,
        function: u32,
        pause: Micros,
    },
    Launched {
        node: u32,
        life: u32,
        function: u32,
        start: Start,
        took: Micros,
    },
    Expire {
        node: u32,
        life: u32,
        function: u32,
        container: u32,
    },
    Prewarm {
        node: u32,
        life: u32,
        function: u32,
        until: Micros,
    },
    /// Balancers look at who keeps what.
    Keep,
    /// A runner's record is on its way to everybody.
    News {
        node: u32,
        life: u32,
    },
    Heard {
        node: u32,
        life: u32,
    },
    /// The registry tells of loads.
    Report,
    /// The registry tells of a runner.
    Listed {
        node: u32,
    },
    Change {
        nth: u32,
    },
    Back {
        node: u32,
    },
}

/// One in the order of time; of those at the same time in the order in which they were made.
pub struct Entry {
    pub at: Micros,
    pub order: u64,
    pub event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
