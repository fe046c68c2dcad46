//! Who waits for the end of which call. Each end wakes those who wait for it and nobody else: ten thousand may wait at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All who wait.
#[derive(Default)]
pub struct Waiters(Mutex<HashMap<String, Arc<Notify>>>);

/// One of them.
pub struct Waiter {
    id: String,
    of: Arc<Waiters>,
    /// Told when the call has ended.
    pub told: Arc<Notify>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for a call.
    pub fn enter(self: &Arc<Self>, id: &str) -> Waiter {
        let told = self.lock().entry(id.to_owned()).or_default().clone();
        Waiter { id: id.to_owned(), of: self.clone(), told }
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// A call has ended.
    pub fn wake(&self, id: &str) {
        if let Some(told) = self.lock().get(id) {
            told.notify_waiters();
        }
    }

    /// Nothing will end any more.
    pub fn wake_all(&self) {
        self.lock().values().for_each(|told| told.notify_waiters());
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut all = self.of.lock();
        // One is in the table, and one here.
        if Arc::strong_count(&self.told) <= 2 {
            all.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_wakes_who_waits_for_it_and_nothing_is_left_of_them() {
        let waiters = Arc::new(Waiters::default());
        let (one, two, other) = (waiters.enter("a"), waiters.enter("a"), waiters.enter("b"));
        let mut told = [&one, &two, &other].map(|waiter| Box::pin(waiter.told.notified()));
        told.iter_mut().for_each(|told| _ = told.as_mut().enable());
        waiters.wake("a");
        let woken = told.each_mut().map(|told| told.as_mut().enable());
        assert_eq!(woken, [true, true, false]);
        drop(told);
        drop(one);
        assert!(waiters.lock().contains_key("a"), "another waits for it still");
        drop((two, other));
        assert!(waiters.is_empty());
    }
}
