//! The two tables of a link: how it stands to its runner, and how far each call on it is.

use stoker_core::listed;
use stoker_core::machine::Machine;

/// How a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkState {
    #[default]
    Connecting,
    Ready,
    Draining,
    Lost,
    Closed,
}

listed!(LinkState: Connecting, Ready, Draining, Lost, Closed);

/// What happens to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// The runner welcomed us.
    Welcomed,
    /// The runner asks for no more offers.
    Drain,
    /// It takes offers again.
    Resume,
    /// The stream broke, or could not be opened.
    Broke,
    /// The wait before the next attempt is over.
    Again,
    /// It is not wanted any more.
    Close,
}

listed!(LinkEvent: Welcomed, Drain, Resume, Broke, Again, Close);

impl Machine for LinkState {
    type Event = LinkEvent;
    const MOVES: &'static [(Self, LinkEvent, Self)] = {
        use LinkEvent as E;
        use LinkState::*;
        &[
            (Connecting, E::Welcomed, Ready),
            (Connecting, E::Broke, Lost),
            (Connecting, E::Close, Closed),
            (Ready, E::Drain, Draining),
            (Ready, E::Resume, Ready),
            (Ready, E::Broke, Lost),
            (Ready, E::Close, Closed),
            (Draining, E::Drain, Draining),
            (Draining, E::Resume, Ready),
            (Draining, E::Broke, Lost),
            (Draining, E::Close, Closed),
            (Lost, E::Again, Connecting),
            (Lost, E::Close, Closed),
        ]
    };
}

/// How far a call is, as its balancer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallState {
    /// Offered and not answered: it may start at any moment.
    Offered,
    /// It waits on the runner and will not start without us.
    Waiting,
    /// A slot is held for it.
    Held,
    /// It was told to start.
    Permitted,
    /// Input reaches the function.
    Running,
    /// The head of the answer came.
    Answering,
    /// Refused, finished or lost.
    Over,
}

listed!(CallState: Offered, Waiting, Held, Permitted, Running, Answering, Over);

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEvent {
    Refused,
    Accepted,
    Ready,
    /// Ours: the permission to start.
    Start,
    Started,
    Credit,
    Head,
    Body,
    Finished,
    Lost,
}

listed!(CallEvent: Refused, Accepted, Ready, Start, Started, Credit, Head, Body, Finished, Lost);

impl Machine for CallState {
    type Event = CallEvent;
    const MOVES: &'static [(Self, CallEvent, Self)] = {
        use CallEvent as E;
        use CallState::*;
        &[
            (Offered, E::Refused, Over),
            (Offered, E::Accepted, Waiting),
            (Offered, E::Started, Running),
            (Offered, E::Credit, Running),
            (Offered, E::Head, Answering),
            (Offered, E::Finished, Over),
            (Offered, E::Lost, Over),
            (Waiting, E::Refused, Over),
            (Waiting, E::Ready, Held),
            (Waiting, E::Finished, Over),
            (Waiting, E::Lost, Over),
            (Held, E::Start, Permitted),
            (Held, E::Refused, Over),
            (Held, E::Finished, Over),
            (Held, E::Lost, Over),
            // The container may end between Ready and Start: still not a byte reached it.
            (Permitted, E::Refused, Over),
            (Permitted, E::Started, Running),
            (Permitted, E::Credit, Running),
            (Permitted, E::Head, Answering),
            (Permitted, E::Finished, Over),
            (Permitted, E::Lost, Over),
            (Running, E::Started, Running),
            (Running, E::Credit, Running),
            (Running, E::Head, Answering),
            (Running, E::Finished, Over),
            (Running, E::Lost, Over),
            (Answering, E::Credit, Answering),
            (Answering, E::Body, Answering),
            (Answering, E::Finished, Over),
            (Answering, E::Lost, Over),
        ]
    };
}

impl CallState {
    /// Whether the function may have seen a byte of it.
    pub fn may_have_started(self) -> bool {
        !matches!(self, CallState::Waiting | CallState::Held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::machine::Listed as _;

    /// The machine against rules said in another way, for every pair.
    #[test]
    fn every_pair_of_a_call() {
        use CallState as S;
        for state in S::ALL.iter().copied() {
            for event in CallEvent::ALL.iter().copied() {
                let allowed = match event {
                    CallEvent::Lost | CallEvent::Finished => state != S::Over,
                    CallEvent::Refused => matches!(state, S::Offered | S::Waiting | S::Held | S::Permitted),
                    CallEvent::Accepted => state == S::Offered,
                    CallEvent::Ready => state == S::Waiting,
                    CallEvent::Start => state == S::Held,
                    CallEvent::Started | CallEvent::Head => {
                        matches!(state, S::Offered | S::Permitted | S::Running)
                    }
                    CallEvent::Credit => {
                        matches!(state, S::Offered | S::Permitted | S::Running | S::Answering)
                    }
                    CallEvent::Body => state == S::Answering,
                };
                assert_eq!(state.on(event).is_ok(), allowed, "{state:?} + {event:?}");
            }
        }
    }

    #[test]
    fn every_pair_of_a_link() {
        use LinkState as S;
        for state in S::ALL.iter().copied() {
            for event in LinkEvent::ALL.iter().copied() {
                let to = match (state, event) {
                    (S::Closed, _) => None,
                    (_, LinkEvent::Close) => Some(S::Closed),
                    (S::Connecting, LinkEvent::Welcomed) => Some(S::Ready),
                    (S::Ready | S::Draining, LinkEvent::Drain) => Some(S::Draining),
                    (S::Ready | S::Draining, LinkEvent::Resume) => Some(S::Ready),
                    (S::Connecting | S::Ready | S::Draining, LinkEvent::Broke) => Some(S::Lost),
                    (S::Lost, LinkEvent::Again) => Some(S::Connecting),
                    _ => None,
                };
                assert_eq!(state.on(event).ok(), to, "{state:?} + {event:?}");
            }
        }
    }
}
