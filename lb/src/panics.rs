//! Mistakes of ours that end in a panic: a call that meets one has failed, and nothing else has.
//!
//! What runs many calls (a client's session, a link to a runner) and what a call depends on (the task that sends its body) is
//! guarded as well: nobody waits for something that will not come.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use stoker_core::error::{Code, Error};
use stoker_runtime::metrics::{Counter, Metrics};

use crate::metrics::PANICS;

/// Catches and counts them.
#[derive(Clone)]
pub struct Panics(Counter);

impl Panics {
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.one(&PANICS))
    }

    /// Runs something that may panic. It is pinned where it is large: handed on by value it would be copied at each step. What it shares with others it leaves as sound as any error would: locks are held over no code
    /// that panics, and what it counted is given back by guards.
    ///
    /// # Errors
    /// It panicked.
    pub fn catch<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Error>> {
        // No `async fn`: that would hold the work three times, as what it was given and as what each step made of it.
        AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(|panic| self.caught(&*panic)))
    }

    /// The same for a call, which has an outcome of its own.
    ///
    /// # Errors
    /// The call's own, or that it panicked.
    pub fn call<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Error>> {
        self.catch(call).map(|outcome| outcome.and_then(|outcome| outcome))
    }

    fn caught(&self, panic: &(dyn Any + Send)) -> Error {
        self.0.add_one();
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(said = said.unwrap_or_default(), "the balancer panicked: please report this");
        Error::new(Code::Internal, "the balancer made a mistake; its log says more").may_have_started()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_outcome_and_is_counted() {
        let metrics = Metrics::default();
        let panics = Panics::new(&metrics);
        assert_eq!(panics.call(async { Ok(1) }).await, Ok(1));
        let own = Error::new(Code::NotFound, "none");
        assert_eq!(panics.call::<()>(async { Err(own.clone()) }).await, Err(own.clone()));
        let inside = async {
            tokio::task::yield_now().await;
            panic!("on purpose")
        };
        let error = panics.call::<()>(inside).await.expect_err("it panicked");
        assert_eq!((error.code, error.may_have_started), (Code::Internal, true));
        assert!(!error.message.contains("on purpose"), "callers learn nothing of our insides");
        assert!(metrics.text().contains("stoker_lb_panics_total 1"), "{}", metrics.text());
    }
}
