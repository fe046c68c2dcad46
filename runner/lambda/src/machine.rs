//! The life of a runtime process as its calls tell it, as a table.

use stoker_core::listed;
use stoker_core::machine::Machine;

/// Where the runtime is. The names are those that AWS's texts show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The process runs and has not asked for anything.
    Started,
    /// It said that it cannot start. Final.
    InitError,
    /// It waits for an invocation.
    Ready,
    /// It has one.
    Running,
    /// Its answer arrives.
    InvocationResponse,
    /// Its error arrives.
    InvocationErrorResponse,
    /// It has answered, and has not asked for the next one.
    ResponseSent,
    /// It is initialised, and waits to be told that it was restored from a snapshot.
    RestoreReady,
    /// It was told, and runs its hooks.
    Restoring,
    /// One of them failed. Final.
    RestoreError,
}

listed!(
    State: Started, InitError, Ready, Running, InvocationResponse, InvocationErrorResponse, ResponseSent, RestoreReady, Restoring, RestoreError
);

impl State {
    /// As error texts write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Started => "Started",
            State::InitError => "InitError",
            State::Ready => "Ready",
            State::Running => "Running",
            State::InvocationResponse => "InvocationResponse",
            State::InvocationErrorResponse => "InvocationErrorResponse",
            State::ResponseSent => "RuntimeResponseSentState",
            State::RestoreReady => "RestoreReady",
            State::Restoring => "Restoring",
            State::RestoreError => "RestoreError",
        }
    }
}

/// What the runtime does, or what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It asks for an invocation: `next`.
    Next,
    /// One was handed to it.
    Handed,
    /// It begins to answer.
    Response,
    /// It begins to say that the invocation failed.
    Error,
    /// All of either has arrived.
    Sent,
    /// It says that it cannot start.
    InitError,
    /// It asks whether it was restored.
    RestoreNext,
    /// It was told that it is.
    Restored,
    /// It says that a hook for that failed.
    RestoreError,
}

listed!(Event: Next, Handed, Response, Error, Sent, InitError, RestoreNext, Restored, RestoreError);

impl Machine for State {
    type Event = Event;
    const MOVES: &'static [(Self, Event, Self)] = &[
        (State::Started, Event::Next, State::Ready),
        (State::Started, Event::InitError, State::InitError),
        // A second `next` waits beside the first.
        (State::Ready, Event::Next, State::Ready),
        (State::Ready, Event::Handed, State::Running),
        // A runtime that asks again is given the same invocation again.
        (State::Running, Event::Next, State::Running),
        (State::Running, Event::Response, State::InvocationResponse),
        (State::Running, Event::Error, State::InvocationErrorResponse),
        (State::InvocationResponse, Event::Sent, State::ResponseSent),
        (State::InvocationErrorResponse, Event::Sent, State::ResponseSent),
        (State::ResponseSent, Event::Next, State::Ready),
        (State::Started, Event::RestoreNext, State::RestoreReady),
        (State::RestoreReady, Event::Restored, State::Restoring),
        (State::Restoring, Event::Next, State::Ready),
        (State::Restoring, Event::RestoreError, State::RestoreError),
        // So some runtimes say that a hook failed.
        (State::Restoring, Event::InitError, State::RestoreError),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_what_the_contract_says() {
        let allowed: Vec<_> =
            State::table().lines().filter(|l| !l.ends_with("refused")).map(str::to_owned).collect();
        assert_eq!(
            allowed,
            [
                "Started + Next -> Ready",
                "Started + InitError -> InitError",
                "Started + RestoreNext -> RestoreReady",
                "Ready + Next -> Ready",
                "Ready + Handed -> Running",
                "Running + Next -> Running",
                "Running + Response -> InvocationResponse",
                "Running + Error -> InvocationErrorResponse",
                "InvocationResponse + Sent -> ResponseSent",
                "InvocationErrorResponse + Sent -> ResponseSent",
                "ResponseSent + Next -> Ready",
                "RestoreReady + Restored -> Restoring",
                "Restoring + Next -> Ready",
                "Restoring + InitError -> RestoreError",
                "Restoring + RestoreError -> RestoreError",
            ]
        );
        assert_eq!(State::table().lines().count(), 10 * 9);
    }
}
