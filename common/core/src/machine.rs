//! State machines as tables.
//!
//! A machine is an enum of states, an enum of events and one `const` list of allowed moves. What the list does not name is
//! refused as a value ([`Invalid`]) that the caller counts or acts on: never a silent `if let`. The table dump lets a test
//! show every pair of state and event.

use std::fmt;

/// An enum whose values can be listed, for tables and their tests.
pub trait Listed: Copy + Eq + fmt::Debug + 'static {
    /// Every value, in the order in which tables show them.
    const ALL: &'static [Self];
}

/// A machine: its states, its events, its allowed moves.
pub trait Machine: Listed {
    /// What may happen to it.
    type Event: Listed;
    /// `(from, event, to)`. A pair that stands in no row is refused. A move to the same state is allowed where it is listed.
    const MOVES: &'static [(Self, Self::Event, Self)];

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Invalid`] when the table has no such move; the state stays as it was.
    fn on(self, event: Self::Event) -> Result<Self, Invalid<Self, Self::Event>> {
        Self::MOVES
            .iter()
            .find(|(from, on, _)| *from == self && *on == event)
            .map(|(_, _, to)| *to)
            .ok_or(Invalid { state: self, event })
    }

    /// The whole table as text, a line a state and event, refused pairs included.
    fn table() -> String {
        let mut out = String::new();
        for state in Self::ALL {
            for event in Self::Event::ALL {
                let to = match state.on(*event) {
                    Ok(to) => format!("{to:?}"),
                    Err(_) => "refused".to_owned(),
                };
                out.push_str(&format!("{state:?} + {event:?} -> {to}\n"));
            }
        }
        out
    }
}

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not allowed in state {state:?}")]
pub struct Invalid<S: fmt::Debug, E: fmt::Debug> {
    /// The state, unchanged.
    pub state: S,
    /// What was refused.
    pub event: E,
}

/// Implements [`Listed`] for an enum of plain values.
#[macro_export]
macro_rules! listed {
    ($name:ty: $($value:ident),+ $(,)?) => {
        impl $crate::machine::Listed for $name {
            const ALL: &'static [Self] = &[$(<$name>::$value),+];
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Door {
        Open,
        Shut,
    }
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Act {
        Push,
        Pull,
    }
    listed!(Door: Open, Shut);
    listed!(Act: Push, Pull);
    impl Machine for Door {
        type Event = Act;
        const MOVES: &'static [(Self, Act, Self)] =
            &[(Door::Open, Act::Push, Door::Shut), (Door::Shut, Act::Pull, Door::Open)];
    }

    #[test]
    fn table_shows_every_pair() {
        assert_eq!(
            Door::table(),
            "Open + Push -> Shut\nOpen + Pull -> refused\nShut + Push -> refused\nShut + Pull -> Open\n"
        );
        assert_eq!(Door::Open.on(Act::Pull), Err(Invalid { state: Door::Open, event: Act::Pull }));
    }
}
