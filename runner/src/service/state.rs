//! One call on a session as a table: what either side may say next.

use stoker_core::listed;
use stoker_core::machine::Machine;

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Offered, not answered.
    Offered,
    /// Accepted: waits for a slot.
    Waiting,
    /// A slot is held; the balancer has the word.
    Held,
    /// The balancer gave its permission.
    Permitted,
    /// The function may see it.
    Running,
    /// It had its one outcome.
    Closed,
}

/// What either side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    // The balancer.
    Start,
    Body,
    Credit,
    Cancel,
    // This runner.
    Accept,
    Ready,
    Begin,
    Refuse,
    Finish,
}

listed!(State: Offered, Waiting, Held, Permitted, Running, Closed);
listed!(Event: Start, Body, Credit, Cancel, Accept, Ready, Begin, Refuse, Finish);

impl Machine for State {
    type Event = Event;
    // Body stands in every open state since its end needs no credit; what needs credit is counted beside this table.
    const MOVES: &'static [(Self, Event, Self)] = &[
        (State::Offered, Event::Body, State::Offered),
        (State::Offered, Event::Cancel, State::Offered),
        (State::Offered, Event::Accept, State::Waiting),
        (State::Offered, Event::Begin, State::Running),
        (State::Offered, Event::Refuse, State::Closed),
        (State::Offered, Event::Finish, State::Closed),
        (State::Waiting, Event::Body, State::Waiting),
        (State::Waiting, Event::Cancel, State::Waiting),
        (State::Waiting, Event::Ready, State::Held),
        (State::Waiting, Event::Refuse, State::Closed),
        (State::Waiting, Event::Finish, State::Closed),
        (State::Held, Event::Start, State::Permitted),
        (State::Held, Event::Body, State::Held),
        (State::Held, Event::Cancel, State::Held),
        (State::Held, Event::Refuse, State::Closed),
        (State::Held, Event::Finish, State::Closed),
        (State::Permitted, Event::Body, State::Permitted),
        (State::Permitted, Event::Cancel, State::Permitted),
        (State::Permitted, Event::Begin, State::Running),
        (State::Permitted, Event::Refuse, State::Closed),
        (State::Permitted, Event::Finish, State::Closed),
        (State::Running, Event::Body, State::Running),
        (State::Running, Event::Credit, State::Running),
        (State::Running, Event::Cancel, State::Running),
        (State::Running, Event::Refuse, State::Closed),
        (State::Running, Event::Finish, State::Closed),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::machine::Listed as _;

    #[test]
    fn every_pair() {
        for state in State::ALL {
            let allowed: Vec<_> = Event::ALL.iter().filter(|e| state.on(**e).is_ok()).collect();
            let expected = match state {
                State::Offered => "[Body, Cancel, Accept, Begin, Refuse, Finish]",
                State::Waiting => "[Body, Cancel, Ready, Refuse, Finish]",
                State::Held => "[Start, Body, Cancel, Refuse, Finish]",
                State::Permitted => "[Body, Cancel, Begin, Refuse, Finish]",
                State::Running => "[Body, Credit, Cancel, Refuse, Finish]",
                State::Closed => "[]",
            };
            assert_eq!(format!("{allowed:?}"), expected, "{state:?}");
        }
    }
}
