//! Calls that wait at a runner and could start at once at another that says that it has an idle container of their function.
//!
//! Those who wait in the balancer's [queue](crate::queue) come first: they have no place anywhere. News of a container that none of them
//! wants is given to one who stands here, the one that came first.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use stoker_core::function::Digest;
use tokio::sync::oneshot;

use crate::hash::QuickMap;

/// All of them. `R` is a runner.
pub struct Reoffers<R>(Arc<Shared<R>>);

struct Shared<R> {
    /// How many stand here: most of the time nobody, and then nothing else is looked at.
    count: AtomicUsize,
    inner: Mutex<Inner<R>>,
}

struct Inner<R> {
    lines: QuickMap<Digest, VecDeque<Call<R>>>,
    last: u64,
}

struct Call<R> {
    number: u64,
    /// Where it waits.
    at: Arc<R>,
    /// Thousandths of a core that it works with.
    works: u32,
    tell: oneshot::Sender<Arc<R>>,
}

/// A call that stands here, as long as this lives; gives a runner that seems to have somebody idle.
pub struct Standing<R> {
    all: Reoffers<R>,
    function: Digest,
    number: u64,
    told: oneshot::Receiver<Arc<R>>,
}

impl<R> Clone for Reoffers<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R> Default for Reoffers<R> {
    fn default() -> Self {
        let inner = Mutex::new(Inner { lines: QuickMap::default(), last: 0 });
        Self(Arc::new(Shared { count: AtomicUsize::new(0), inner }))
    }
}

impl<R> Reoffers<R> {
    fn lock(&self) -> MutexGuard<'_, Inner<R>> {
        // No code that can panic runs under this lock.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of `function`, which works with so many thousandths of a core, that waits `at` a runner.
    pub fn stand(&self, function: Digest, works: u32, at: Arc<R>) -> Standing<R> {
        let (tell, told) = oneshot::channel();
        let mut inner = self.lock();
        inner.last += 1;
        let number = inner.last;
        inner.lines.entry(function).or_default().push_back(Call { number, at, works, tell });
        self.0.count.fetch_add(1, Ordering::Relaxed);
        drop(inner);
        Standing { all: self.clone(), function, number, told }
    }

    /// `runner` says that so many containers of `function` are idle and so many thousandths of a core free: as many calls learn of it
    /// as could start there. On a busy runner containers are idle for want of CPU, and every balancer would offer a call to each of them in vain.
    /// Gives what CPU is left.
    pub fn idle(&self, function: &Digest, runner: &Arc<R>, containers: u32, mut cpu: u32) -> u32 {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return cpu;
        }
        let mut inner = self.lock();
        let Some(line) = inner.lines.get_mut(function) else { return cpu };
        for _ in 0..containers {
            // It has its place there already, and its turn.
            let Some(at) = line.iter().position(|call| !Arc::ptr_eq(&call.at, runner)) else { break };
            let Some(left) = cpu.checked_sub(line[at].works) else { break };
            cpu = left;
            let Some(call) = line.remove(at) else { break };
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            // One that has gone at this moment had no need of it.
            call.tell.send(runner.clone()).ok();
        }
        if line.is_empty() {
            inner.lines.remove(function);
        }
        cpu
    }

    /// The functions of those who stand here.
    pub fn functions(&self) -> Vec<Digest> {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.lock().lines.keys().copied().collect()
    }
}

impl<R> Future for Standing<R> {
    type Output = Option<Arc<R>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arc<R>>> {
        Pin::new(&mut self.told).poll(cx).map(Result::ok)
    }
}

impl<R> Drop for Standing<R> {
    fn drop(&mut self) {
        // Else the end of its teller would wake the call that is leaving: it would be polled in vain, and a session that drives many calls would stop
        // after two of them, and send what they say in a write of its own.
        self.told.close();
        let mut inner = self.all.lock();
        let Some(line) = inner.lines.get_mut(&self.function) else { return };
        if let Some(at) = line.iter().position(|call| call.number == self.number) {
            line.remove(at);
            self.all.0.count.fetch_sub(1, Ordering::Relaxed);
        }
        if line.is_empty() {
            inner.lines.remove(&self.function);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::task::{Wake, Waker};

    #[test]
    fn as_many_learn_of_it_as_could_start_and_nobody_of_his_own_runner() {
        let all = Reoffers::default();
        let (one, two) = (Arc::new(1), Arc::new(2));
        let (f, g) = (Digest([1; 32]), Digest([2; 32]));
        let mut calls: Vec<_> =
            [(f, &one), (f, &two), (f, &one), (g, &one)].map(|(f, at)| all.stand(f, 250, at.clone())).into();
        // Idle for want of CPU is not worth a try.
        assert_eq!(all.idle(&f, &two, 4, 249), 249);
        assert_eq!(all.idle(&f, &two, 1, 1000), 750);
        let told = |call: &mut Standing<i32>| call.now_or_never().flatten().map(|runner| *runner);
        assert_eq!(calls.iter_mut().map(told).collect::<Vec<_>>(), [Some(2), None, None, None]);
        assert_eq!(all.idle(&f, &two, 5, u32::MAX), u32::MAX - 250);
        assert_eq!(calls[1..].iter_mut().map(told).collect::<Vec<_>>(), [None, Some(2), None]);
        assert_eq!(all.functions().len(), 2);
        drop(calls);
        assert!(all.functions().is_empty());
        assert_eq!(all.0.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_leaves_is_not_woken_by_that() {
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let (all, f) = (Reoffers::default(), Digest([1; 32]));
        let mut call = all.stand(f, 250, Arc::new(1));
        assert!(Pin::new(&mut call).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(call);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        // One that is told is.
        let mut call = all.stand(f, 250, Arc::new(1));
        assert!(Pin::new(&mut call).poll(&mut Context::from_waker(&waker)).is_pending());
        all.idle(&f, &Arc::new(2), 1, 1000);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }
}
