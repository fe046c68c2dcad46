//! Frames on their way into a stream.
//!
//! Pushing never waits, so that giving credit and cancelling work from a destructor. What bounds it is the protocol: a call has at
//! most one offer, one start and one cancel under way, its body stays within the credit that the other side gave, and the
//! number of calls is bounded by admission. Where the other side is a client, what it may cause by not reading is bounded as
//! well: nothing new is taken from it before there is [room](Outbox::room).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;

struct Inner<T> {
    frames: VecDeque<T>,
    waker: Option<Waker>,
    /// Of one who waits for room.
    pusher: Option<Waker>,
    closed: bool,
}

/// So many frames are enough for one who can wait.
const ENOUGH: usize = 256;

/// The end that pushes.
pub struct Outbox<T>(Arc<Mutex<Inner<T>>>);

/// The end that a transport reads; ends once the outbox is closed and empty.
pub struct Outgoing<T>(Arc<Mutex<Inner<T>>>);

/// A new pair.
pub fn outbox<T>() -> (Outbox<T>, Outgoing<T>) {
    let inner =
        Arc::new(Mutex::new(Inner { frames: VecDeque::new(), waker: None, pusher: None, closed: false }));
    (Outbox(inner.clone()), Outgoing(inner))
}

fn lock<T>(inner: &Mutex<Inner<T>>) -> MutexGuard<'_, Inner<T>> {
    // No code that can panic runs under this lock.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Outbox<T> {
    /// Adds a frame; thrown away once closed.
    pub fn push(&self, frame: T) {
        let mut inner = lock(&self.0);
        if inner.closed {
            return;
        }
        inner.frames.push_back(frame);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the other side has taken most of what is there. For one task at a time.
    pub async fn room(&self) {
        std::future::poll_fn(|cx| {
            let mut inner = lock(&self.0);
            if inner.frames.len() < ENOUGH || inner.closed {
                return Poll::Ready(());
            }
            inner.pusher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Nothing more comes; what is there still goes out.
    pub fn close(&self) {
        let mut inner = lock(&self.0);
        inner.closed = true;
        if let Some(waker) = inner.waker.take() {
            drop(inner);
            waker.wake();
        }
    }
}

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut inner = lock(&self.0);
        if let Some(frame) = inner.frames.pop_front() {
            let pusher = if inner.frames.len() < ENOUGH { inner.pusher.take() } else { None };
            drop(inner);
            if let Some(pusher) = pusher {
                pusher.wake();
            }
            return Poll::Ready(Some(frame));
        }
        if inner.closed {
            return Poll::Ready(None);
        }
        inner.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Outgoing<T> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.closed = true;
        inner.frames.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _};

    #[tokio::test]
    async fn frames_keep_their_order_and_the_end_comes_last() {
        let (out, outgoing) = outbox();
        (0..3).for_each(|n| out.push(n));
        out.close();
        out.push(9);
        assert_eq!(outgoing.collect::<Vec<_>>().await, [0, 1, 2]);
    }

    #[tokio::test]
    async fn who_can_wait_waits_for_room() {
        let (out, mut outgoing) = outbox();
        (0..ENOUGH).for_each(|n| out.push(n));
        let mut room = Box::pin(out.room());
        assert!(room.as_mut().now_or_never().is_none());
        assert_eq!(outgoing.next().await, Some(0));
        room.await;
    }
}
