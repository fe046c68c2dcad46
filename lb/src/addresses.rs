//! What callers that nobody knows take of this balancer, by the address that they come from: so that one machine alone cannot take every connection or
//! every call and keep all others out.
//!
//! Who is known has limits of its own (the access file's), and whoever is on this machine may be everybody: a proxy, or the benches. Neither is counted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The addresses from which somebody is here. There are no more of them than connections and calls.
pub struct Addresses {
    /// Percent of all that one may have.
    share: usize,
    here: Mutex<HashMap<IpAddr, Weak<Address>>>,
}

/// One address, as long as a connection or a call of it is here.
pub struct Address {
    of: Arc<Addresses>,
    block: IpAddr,
    connections: AtomicUsize,
    calls: AtomicUsize,
}

/// One connection or call of an address; given back when dropped.
pub struct Counted {
    address: Arc<Address>,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Connection,
    Call,
}

impl Addresses {
    /// Of which each may have so many percent of what there may be; 100 is all of it.
    pub fn new(share: usize) -> Arc<Self> {
        Arc::new(Self { share, here: Mutex::default() })
    }

    /// The one that this address belongs to. `None` where it is not counted.
    pub fn find(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Address>> {
        let address = address.to_canonical();
        if self.share >= 100 || address.is_loopback() {
            return None;
        }
        let block = block(address);
        let mut here = self.lock();
        if let Some(found) = here.get(&block).and_then(Weak::upgrade) {
            return Some(found);
        }
        let new = Arc::new(Address {
            of: self.clone(),
            block,
            connections: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        });
        here.insert(block, Arc::downgrade(&new));
        Some(new)
    }

    /// What one may have of so many, at least one.
    fn part(&self, most: usize) -> usize {
        (most.saturating_mul(self.share) / 100).max(1)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Weak<Address>>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one machine may choose its address from: by IPv6 a whole network is given to each.
fn block(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl Address {
    /// One more connection of it, and how many there were before; it may have [`Self::part`] of what all may have.
    pub fn connection(self: &Arc<Self>) -> (Counted, usize) {
        self.one(What::Connection)
    }

    /// The same for a call.
    pub fn call(self: &Arc<Self>) -> (Counted, usize) {
        self.one(What::Call)
    }

    /// How many it may have where all together may have `most`.
    pub fn part(&self, most: usize) -> usize {
        self.of.part(most)
    }

    fn one(self: &Arc<Self>, what: What) -> (Counted, usize) {
        let before = self.count(what).fetch_add(1, Ordering::Relaxed);
        (Counted { address: self.clone(), what }, before)
    }

    fn count(&self, what: What) -> &AtomicUsize {
        match what {
            What::Connection => &self.connections,
            What::Call => &self.calls,
        }
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut here = self.of.lock();
        // Somebody of the same address may have come meanwhile.
        if here.get(&self.block).is_some_and(|found| found.strong_count() == 0) {
            here.remove(&self.block);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.address.count(self.what).fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Address").field(&self.block).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_here_as_long_as_somebody_of_it() {
        let all = Addresses::new(50);
        let at = |text: &str| all.find(text.parse().unwrap());
        let first = at("192.0.2.1").unwrap();
        let (connection, before) = first.connection();
        assert_eq!((before, first.part(5), first.part(1)), (0, 2, 1));
        let (call, _) = at("::ffff:192.0.2.1").unwrap().call();
        drop((first, connection));
        assert_eq!(at("192.0.2.1").unwrap().call().1, 1, "its connection has ended and a call has not");
        assert_eq!(all.lock().len(), 1);
        drop(call);
        assert_eq!(all.lock().len(), 0);
        // A network of IPv6 is one machine's; the next one is somebody else's.
        let one = at("2001:db8:0:1::1").unwrap();
        assert!(Arc::ptr_eq(&one, &at("2001:db8:0:1:ffff::2").unwrap()));
        assert!(!Arc::ptr_eq(&one, &at("2001:db8:0:2::1").unwrap()));
        assert!(at("127.0.0.2").is_none() && at("::1").is_none(), "this machine may be everybody");
        assert!(Addresses::new(100).find([192, 0, 2, 1].into()).is_none());
    }
}
