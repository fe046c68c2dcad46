//! The one ledger of memory, CPU and slots. Taking returns a [`Grant`], dropping it gives back: what is admitted and what is
//! reported both come from here, so that they cannot disagree.

use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::Resources;

/// What the runner has, and what of it is free.
#[derive(Debug)]
pub struct Ledger {
    total: Resources,
    free: Mutex<Resources>,
}

impl Ledger {
    /// All of it free.
    pub fn new(total: Resources) -> Arc<Self> {
        Arc::new(Self { total, free: Mutex::new(total) })
    }

    pub fn total(&self) -> Resources {
        self.total
    }

    pub fn free(&self) -> Resources {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of `amount`, or nothing. An amount of nothing costs nothing, not even the lock.
    pub fn take(self: &Arc<Self>, amount: Resources) -> Option<Grant> {
        if amount != Resources::default() {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = free.checked_sub(amount)?;
        }
        Some(Grant { ledger: self.clone(), amount })
    }
}

/// A part of the ledger, given back when dropped.
#[derive(Debug)]
pub struct Grant {
    ledger: Arc<Ledger>,
    amount: Resources,
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.amount == Resources::default() {
            return;
        }
        let mut free = self.ledger.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_add(self.amount).expect("what comes back was taken from it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_made(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u32..40, 0u32..3), 0..60)) {
            let total = Resources { memory: 100, cpu_millis: 100, slots: 8 };
            let ledger = Ledger::new(total);
            let mut held = Vec::new();
            for (take, memory, cpu_millis, slots) in steps {
                if take {
                    held.extend(ledger.take(Resources { memory, cpu_millis, slots }));
                } else {
                    held.pop();
                }
                let sum = held.iter().try_fold(ledger.free(), |sum, g: &Grant| sum.checked_add(g.amount));
                prop_assert_eq!(sum, Some(total));
            }
            held.clear();
            prop_assert_eq!(ledger.free(), total);
        }
    }
}
