//! What a function has here whatever its revision: how many of its calls are let in at once, where somebody has said so, and what became of
//! those that ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};

use crate::activity::Tally;

/// No limit.
const OPEN: u32 = u32::MAX;

/// One function's, for as long as the function is there.
pub struct Gate {
    limit: AtomicU32,
    /// Counted also while there is no limit: one that is set later holds at once.
    inside: AtomicU32,
    pub tally: Tally,
}

impl Default for Gate {
    fn default() -> Self {
        Self { limit: AtomicU32::new(OPEN), inside: AtomicU32::new(0), tally: Tally::default() }
    }
}

/// A call inside; it leaves when this is dropped.
pub struct Entered(Arc<Gate>);

impl Gate {
    /// From now on so many.
    pub fn limit(&self, limit: Option<u32>) {
        self.limit.store(limit.unwrap_or(OPEN), Ordering::Relaxed);
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != OPEN
    }

    /// Lets a call in.
    ///
    /// # Errors
    /// As many are inside as may be.
    pub fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let limit = self.limit.load(Ordering::Relaxed);
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let entered = Entered(self.clone());
        if before < limit {
            return Ok(entered);
        }
        let text =
            format!("{limit} calls of this function run here already, which is what is reserved for it");
        Err(Error::new(Code::Overloaded, text).retry(Retry::After(Duration::from_secs(1))))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_many_as_reserved_and_come_back() {
        let gate = Arc::new(Gate::default());
        let before = gate.enter().ok();
        gate.limit(Some(2));
        let held = gate.enter().ok();
        assert!(held.is_some() && gate.is_limited());
        assert_eq!(gate.enter().err().map(|error| error.code), Some(Code::Overloaded));
        drop(before);
        assert!(gate.enter().is_ok());
        gate.limit(Some(0));
        drop(held);
        assert!(gate.enter().is_err(), "nobody");
        gate.limit(None);
        assert!(gate.enter().is_ok());
    }
}
