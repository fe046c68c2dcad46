//! How many calls this balancer holds at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};
use tokio::sync::Notify;

use crate::auth::{Meter, Share};
use crate::directory::Entered;

/// Counts the calls inside.
#[derive(Clone)]
pub struct Admission {
    inside: Arc<Inside>,
    most: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Inside {
    count: AtomicUsize,
    /// The last one left.
    empty: Notify,
}

/// A call's place; given back when dropped.
pub struct Admitted {
    inside: Arc<Inside>,
    /// Its place among those of its function.
    of_function: Option<Entered>,
    /// Its part of what its caller may ask for.
    share: Option<Share>,
}

impl Admitted {
    /// The same, as one of its function's too.
    pub fn of(mut self, entered: Entered) -> Self {
        self.of_function = Some(entered);
        self
    }

    /// Returns when it has its place among those of its function, which it nearly always has already.
    ///
    /// # Errors
    /// There is none.
    pub async fn settle(&mut self) -> Result<(), Error> {
        match &mut self.of_function {
            Some(entered) => entered.settle().await,
            None => Ok(()),
        }
    }

    /// The same, as one of its caller's too.
    pub fn sharing(mut self, share: Option<Share>) -> Self {
        self.share = share;
        self
    }

    /// What counts the bytes of the call's bodies, if its caller may only have so many.
    pub fn meter(&self) -> Option<&Meter> {
        self.share.as_ref()?.meter()
    }
}

impl Admission {
    pub fn new(most: usize) -> Self {
        Self { inside: Arc::default(), most: Arc::new(AtomicUsize::new(most)) }
    }

    /// Lets a call in.
    pub fn enter(&self) -> Result<Admitted, Error> {
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.inside.count.fetch_add(1, Ordering::Relaxed);
        let place = Admitted { inside: self.inside.clone(), of_function: None, share: None };
        let most = self.most.load(Ordering::Relaxed);
        if before >= most {
            drop(place);
            let text = format!("this balancer has {most} calls already, which is its limit");
            return Err(Error::new(Code::Overloaded, text).retry(Retry::After(Duration::from_millis(200))));
        }
        Ok(place)
    }

    /// From here on there may be so many; those that are inside stay.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Calls inside now.
    pub fn inside(&self) -> usize {
        self.inside.count.load(Ordering::Relaxed)
    }

    /// Returns when nobody is inside.
    pub async fn idle(&self) {
        loop {
            let empty = self.inside.empty.notified();
            if self.inside() == 0 {
                return;
            }
            empty.await;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.inside.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inside.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_come_back() {
        let admission = Admission::new(2);
        let held: Vec<_> = (0..2).map(|_| admission.enter().ok()).collect();
        assert_eq!(admission.enter().err().map(|e| e.code), Some(Code::Overloaded));
        let (idle, ()) = tokio::join!(
            async {
                admission.idle().await;
                admission.inside()
            },
            async {
                tokio::task::yield_now().await;
                drop(held);
            }
        );
        assert_eq!(idle, 0);
        assert!(admission.enter().is_ok());
    }
}
