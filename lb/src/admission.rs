//! How many calls this balancer holds at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};
use tokio::sync::Notify;

use crate::addresses::Counted;
use crate::auth::{Caller, Meter, Share};
use crate::directory::Entered;

/// How long one that was turned away should wait before it comes again.
const AGAIN: Duration = Duration::from_millis(200);

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
    /// Its place among those of its caller's address, if nobody knows its caller.
    of_address: Option<Counted>,
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

    /// Lets a call of this caller in.
    ///
    /// # Errors
    /// There are as many as there may be, or as many from the caller's address as one may have whom nobody knows.
    pub fn enter(&self, caller: &Caller) -> Result<Admitted, Error> {
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.inside.count.fetch_add(1, Ordering::Relaxed);
        let mut place =
            Admitted { inside: self.inside.clone(), of_function: None, of_address: None, share: None };
        let most = self.most.load(Ordering::Relaxed);
        if before >= most {
            drop(place);
            let text = format!("this balancer has {most} calls already, which is its limit");
            return Err(Error::new(Code::Overloaded, text).retry(Retry::After(AGAIN)));
        }
        let Some(address) = caller.address() else { return Ok(place) };
        let ((counted, before), most) = (address.call(), address.part(most));
        if before >= most {
            let text = format!(
                "{most} calls from this address are in this balancer already, which is as many as callers that nobody knows may have from one \
                 (`address_share`)"
            );
            return Err(Error::new(Code::RateLimited, text).retry(Retry::After(AGAIN)));
        }
        place.of_address = Some(counted);
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
    use http::HeaderMap;
    use stoker_runtime::audit::Audit;

    use super::*;
    use crate::addresses::Addresses;
    use crate::auth::{Guard, Origin};

    #[tokio::test]
    async fn places_come_back() {
        let admission = Admission::new(2);
        let caller = Caller::default();
        let held: Vec<_> = (0..2).map(|_| admission.enter(&caller).ok()).collect();
        assert_eq!(admission.enter(&caller).err().map(|e| e.code), Some(Code::Overloaded));
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
        assert!(admission.enter(&caller).is_ok());
    }

    #[tokio::test]
    async fn one_address_that_nobody_knows_leaves_room_for_others() {
        let admission = Admission::new(4);
        let (guard, addresses) = (Guard::open(Audit::into_log()), Addresses::new(50));
        let caller = async |address: &str| {
            let address = address.parse().ok();
            let counted = address.and_then(|address| addresses.find(address));
            let origin = Arc::new(Origin { address, counted, ..Origin::default() });
            guard.identify(&mut HeaderMap::new(), &origin).await.unwrap()
        };
        let (greedy, other) = (caller("192.0.2.1").await, caller("192.0.2.2").await);
        let held: Vec<_> =
            (0..2).map(|_| admission.enter(&greedy).unwrap_or_else(|e| panic!("{e}"))).collect();
        // Another connection of the same machine is no other machine.
        for caller in [&greedy, &caller("192.0.2.1").await] {
            let refused = admission.enter(caller).err().map(|error| (error.code, error.message));
            let (code, text) = refused.expect("it has its share");
            assert_eq!(code, Code::RateLimited);
            assert!(text.contains("2 calls from this address") && text.contains("address_share"), "{text}");
        }
        assert_eq!(admission.inside(), 2, "who is turned away holds nothing");
        let others: Vec<_> =
            (0..2).map(|_| admission.enter(&other).unwrap_or_else(|e| panic!("{e}"))).collect();
        assert_eq!(admission.enter(&other).err().map(|error| error.code), Some(Code::Overloaded));
        drop((held, others));
        let here = caller("127.0.0.1").await;
        let all: Vec<_> = (0..4).map_while(|_| admission.enter(&here).ok()).collect();
        assert_eq!(all.len(), 4, "this machine may be everybody");
        drop(all);
        assert!(admission.enter(&greedy).is_ok());
    }
}
