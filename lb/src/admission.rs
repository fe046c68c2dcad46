//! How many calls this balancer holds at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};

/// Counts the calls inside.
#[derive(Clone)]
pub struct Admission {
    inside: Arc<AtomicUsize>,
    most: usize,
}

/// A call's place; given back when dropped.
pub struct Admitted(Arc<AtomicUsize>);

impl Admission {
    pub fn new(most: usize) -> Self {
        Self { inside: Arc::default(), most }
    }

    /// Lets a call in.
    pub fn enter(&self) -> Result<Admitted, Error> {
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let place = Admitted(self.inside.clone());
        if before >= self.most {
            drop(place);
            let text = format!("this balancer has {} calls already, which is its limit", self.most);
            return Err(Error::new(Code::Overloaded, text).retry(Retry::After(Duration::from_millis(200))));
        }
        Ok(place)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let admission = Admission::new(2);
        let held: Vec<_> = (0..2).map(|_| admission.enter().ok()).collect();
        assert_eq!(admission.enter().err().map(|e| e.code), Some(Code::Overloaded));
        drop(held);
        assert!(admission.enter().is_ok());
        assert_eq!(admission.inside.load(Ordering::Relaxed), 0);
    }
}
