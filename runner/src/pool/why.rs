//! Why containers go, and why a call found none that was warm: what an operator wants to know of cold starts.

use stoker_core::call::Cold;

use super::member::Member;
use super::version::Version;

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nobody used it for longer than its function says.
    Expired,
    /// Others needed the room.
    Evicted,
    /// It ended by itself, or was not trusted after a call.
    Broken,
    /// Its format has a process a call.
    Once,
    /// The runner stops, or was drained; or its secrets were replaced.
    Drained,
}

impl Ended {
    pub const ALL: [Ended; 5] = [Ended::Expired, Ended::Evicted, Ended::Broken, Ended::Once, Ended::Drained];

    pub fn label(self) -> &'static str {
        match self {
            Ended::Expired => "expired",
            Ended::Evicted => "evicted",
            Ended::Broken => "broken",
            Ended::Once => "once",
            Ended::Drained => "drained",
        }
    }
}

/// Why a call finds no container that is ready, of a launch that begins now.
pub fn cold(version: &Version) -> Cold {
    let comes_or_serves = |member: &Member| member.container.is_none() || member.serves();
    match version.left {
        _ if version.members.values().any(comes_or_serves) => Cold::Busy,
        None => Cold::First,
        Some(Ended::Expired) => Cold::Expired,
        Some(Ended::Evicted) => Cold::Evicted,
        Some(Ended::Broken) => Cold::Broken,
        Some(Ended::Once) => Cold::Once,
        Some(Ended::Drained) => Cold::Drained,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_at_their_place() {
        Ended::ALL.iter().enumerate().for_each(|(at, why)| assert_eq!(at, *why as usize, "{why:?}"));
        // Counted by their places, too.
        Cold::ALL.iter().enumerate().for_each(|(at, why)| assert_eq!(at, *why as usize, "{why:?}"));
    }
}
