//! The life of a container as a table.

use stoker_core::listed;
use stoker_core::machine::Machine;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The sandbox is being prepared.
    Creating,
    /// The function makes itself ready.
    Starting,
    /// Ready, no call.
    Idle,
    /// Runs at least one call.
    Busy,
    /// Ready, and standing still.
    Frozen,
    /// Takes no call any more; is being removed.
    Stopping,
    /// Holds nothing any more.
    Gone,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Created,
    Ready,
    /// It got a call while it had none.
    Took,
    /// Its last call ended.
    Freed,
    Froze,
    Thawed,
    /// It is not wanted, or not trusted, any more, or has ended.
    Stop,
    Ended,
}

listed!(State: Creating, Starting, Idle, Busy, Frozen, Stopping, Gone);
listed!(Event: Created, Ready, Took, Freed, Froze, Thawed, Stop, Ended);

impl Machine for State {
    type Event = Event;
    const MOVES: &'static [(Self, Event, Self)] = &[
        (State::Creating, Event::Created, State::Starting),
        (State::Starting, Event::Ready, State::Idle),
        (State::Idle, Event::Took, State::Busy),
        (State::Busy, Event::Freed, State::Idle),
        (State::Idle, Event::Froze, State::Frozen),
        (State::Frozen, Event::Thawed, State::Idle),
        (State::Creating, Event::Stop, State::Stopping),
        (State::Starting, Event::Stop, State::Stopping),
        (State::Idle, Event::Stop, State::Stopping),
        (State::Busy, Event::Stop, State::Stopping),
        (State::Frozen, Event::Stop, State::Stopping),
        (State::Stopping, Event::Ended, State::Gone),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::machine::Listed as _;

    #[test]
    fn every_pair() {
        let allowed: Vec<String> =
            State::table().lines().filter(|l| !l.ends_with("refused")).map(str::to_owned).collect();
        assert_eq!(
            allowed,
            [
                "Creating + Created -> Starting",
                "Creating + Stop -> Stopping",
                "Starting + Ready -> Idle",
                "Starting + Stop -> Stopping",
                "Idle + Took -> Busy",
                "Idle + Froze -> Frozen",
                "Idle + Stop -> Stopping",
                "Busy + Freed -> Idle",
                "Busy + Stop -> Stopping",
                "Frozen + Thawed -> Idle",
                "Frozen + Stop -> Stopping",
                "Stopping + Ended -> Gone",
            ]
        );
        assert_eq!(State::table().lines().count(), State::ALL.len() * Event::ALL.len());
    }
}
