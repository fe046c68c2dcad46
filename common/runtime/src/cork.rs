//! Short writes of a connection that leave together.
//!
//! HTTP/2 as its library writes it flushes behind each frame of data of 256 bytes or more. So the answer to a unary call leaves in two
//! writes, the second for its trailers alone, and of many requests or answers that are there at once each leaves by itself. Here what is
//! short waits until the task of the connection has done all that it can do now, and leaves in one write. Nothing waits longer than that
//! but for a [`Hold`], and what is long is not copied.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is longer goes out as it is.
const SHORT: usize = 16 << 10;

/// Most bytes that are held.
const MOST: usize = 64 << 10;

/// A connection at rest keeps no more room than this.
const KEPT: usize = 2 << 10;

/// Most parts of one write that are looked at; there are two or three.
const PARTS: usize = 8;

/// A connection's stream. Its clones are the same one.
pub struct Corked<S> {
    cork: Arc<Mutex<Cork<S>>>,
    holds: Holds,
}

/// Keeps what is short where it is, also while the task of the connection rests: for another task that writes to the connection in two steps of which the
/// first must not be seen without the second. To be held for moments: everything that is short waits with it.
#[derive(Debug)]
pub struct Hold(Holds);

impl Drop for Hold {
    fn drop(&mut self) {
        let before = self.0.0.count.fetch_add(ONE_ENDED - 1, Ordering::AcqRel);
        if there(before) == 1 {
            self.0.0.rests.wake();
        }
    }
}

/// Whoever may [`hold`](Self::hold) the short writes of one connection.
#[derive(Debug, Clone, Default)]
pub struct Holds(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    /// How many there are in its lower half, how many have ended in its upper.
    count: AtomicU64,
    /// The task of the connection, if it rests with something held back.
    rests: AtomicWaker,
}

const ONE_ENDED: u64 = 1 << 32;

/// How many there are.
fn there(count: u64) -> u32 {
    count as u32
}

/// What shows that one has ended.
fn ended(count: u64) -> u64 {
    count / ONE_ENDED
}

impl Holds {
    /// From now on nothing short leaves.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Hold(self.clone())
    }

    fn count(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Whether there is one, of whose end the task is told.
    fn are_there(&self, cx: &Context<'_>) -> bool {
        if there(self.count()) == 0 {
            return false;
        }
        self.0.rests.register(cx.waker());
        // The last may have gone before it could know whom to wake.
        there(self.count()) > 0
    }
}

struct Cork<S> {
    stream: S,
    held: Vec<u8>,
    /// Bytes of `held` that are out.
    gone: usize,
    /// Why what was held could not leave; for whoever uses the stream next.
    failed: Option<io::Error>,
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self { cork: self.cork.clone(), holds: self.holds.clone() }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Nothing is held yet. What is from now on leaves only while [`drive`](Self::drive) has the connection.
    #[must_use]
    pub fn new(stream: S) -> Self {
        let cork = Cork { stream, held: Vec::new(), gone: 0, failed: None };
        Self { cork: Arc::new(Mutex::new(cork)), holds: Holds::default() }
    }

    /// For tasks beside that of the connection.
    #[must_use]
    pub fn holds(&self) -> Holds {
        self.holds.clone()
    }

    /// Drives the connection on this stream to its end, and sends what is held whenever it rests.
    pub async fn drive<C: Future>(&self, mut connection: Pin<&mut C>) -> C::Output {
        std::future::poll_fn(|cx| {
            let ended = loop {
                let before = self.holds.count();
                let done = connection.as_mut().poll(cx);
                if done.is_pending() && self.holds.are_there(cx) {
                    return Poll::Pending;
                }
                // The second step of one that has ended meanwhile may have come too late for this turn.
                if done.is_ready() || ended(self.holds.count()) == ended(before) {
                    break done;
                }
            };
            let mut cork = self.lock();
            if let Poll::Ready(Err(error)) = cork.release(cx) {
                cork.held.clear();
                cork.gone = 0;
                cork.failed = Some(error);
                // The connection learns of it when it next reads or writes: now.
                cx.waker().wake_by_ref();
            }
            ended
        })
        .await
    }
}

impl<S> Corked<S> {
    fn lock(&self) -> MutexGuard<'_, Cork<S>> {
        // Only the task of the connection takes it, for one operation at a time.
        self.cork.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Sends what is held.
    fn release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.held.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[self.gone..]))?;
            self.left(count)?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// So many bytes of what is held are out.
    fn left(&mut self, count: usize) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.gone += count;
        if self.gone == self.held.len() {
            self.gone = 0;
            match self.held.capacity() > KEPT {
                true => self.held = Vec::new(),
                false => self.held.clear(),
            }
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let parts = &parts[..parts.len().min(PARTS)];
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if length <= SHORT && self.held.len() + length <= MOST {
            if self.held.capacity() < self.held.len() + length {
                // Once the room of a connection at rest is full, there is much to come.
                let room = if self.held.is_empty() { KEPT } else { MOST };
                self.held.reserve_exact(length.max(room - self.held.len()));
            }
            parts.iter().for_each(|part| self.held.extend_from_slice(part));
            return Poll::Ready(Ok(length));
        }
        while !self.held.is_empty() {
            let waiting = self.held.len() - self.gone;
            let mut all = [IoSlice::new(&[]); PARTS + 1];
            all[0] = IoSlice::new(&self.held[self.gone..]);
            all[1..=parts.len()].copy_from_slice(parts);
            let all = &all[..=parts.len()];
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, all))?;
            self.left(count.min(waiting))?;
            if count > waiting {
                return Poll::Ready(Ok(count - waiting));
            }
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut cork = self.lock();
        match cork.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut cork.stream).poll_read(cx, to),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }

    /// What is held leaves when the task rests, and not before.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cork = self.lock();
        ready!(cork.release(cx))?;
        Pin::new(&mut cork.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Counts its writes, and takes no more than so many bytes at once.
    struct Counted {
        written: Vec<Vec<u8>>,
        most: usize,
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.most);
            self.written.push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            self.poll_write(cx, &all)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_short_leaves_when_the_task_rests_and_what_is_long_at_once() {
        let stream = Corked::new(Counted { written: Vec::new(), most: usize::MAX });
        let written = || stream.lock().stream.written.iter().map(Vec::len).collect::<Vec<_>>();
        let connection = async {
            let mut stream = stream.clone();
            for _ in 0..10 {
                stream.write_all(&[7; 1000]).await?;
                stream.flush().await?;
            }
            assert!(written().is_empty());
            tokio::task::yield_now().await;
            assert_eq!(written(), [10_000]);
            stream.write_all(&[8; 1000]).await?;
            stream.write_all(&[9; SHORT + 1]).await?;
            assert_eq!(written(), [10_000, 1000 + SHORT + 1]);
            stream.write_all(&[1; 10]).await
        };
        stream.drive(pin!(connection)).await.unwrap();
        assert_eq!(written(), [10_000, 1000 + SHORT + 1, 10]);
        assert_eq!(stream.lock().held.capacity(), KEPT);
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_held_back_leaves_with_what_follows() {
        let stream = Corked::new(Counted { written: Vec::new(), most: usize::MAX });
        let written = || stream.lock().stream.written.iter().map(Vec::len).collect::<Vec<_>>();
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        let hold = stream.holds().hold();
        let mut turn = 0;
        // In its second turn another task ends its second step, too late for that turn to write it.
        let mut late = Some(stream.holds());
        let connection = std::future::poll_fn(|cx: &mut Context<'_>| {
            turn += 1;
            if turn == 2 {
                drop(late.take().map(|holds| holds.hold()));
            }
            let mut stream = stream.clone();
            assert!(Pin::new(&mut stream).poll_write(cx, &[turn; 10]).is_ready());
            match turn < 4 {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        });
        let mut connection = pin!(connection);
        let mut driven = pin!(stream.drive(connection.as_mut()));
        assert!(driven.as_mut().poll(&mut cx).is_pending());
        assert!(written().is_empty());
        let second = stream.holds().hold();
        drop(hold);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "another is there");
        drop(second);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(driven.as_mut().poll(&mut cx).is_pending());
        assert_eq!(written(), [30]);
        assert!(driven.as_mut().poll(&mut cx).is_ready());
        assert_eq!(written(), [30, 10]);
    }

    #[tokio::test]
    async fn a_connection_learns_that_what_was_held_cannot_leave() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let stream = Corked::new(near);
        let connection = async {
            let mut stream = stream.clone();
            stream.write_all(b"said to nobody").await.unwrap();
            tokio::task::yield_now().await;
            // By itself this would say that the other side has ended, which is no error.
            stream.read(&mut [0; 8]).await
        };
        assert_eq!(stream.drive(pin!(connection)).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Bytes come out as they went in, whatever the sizes, and however little the other side takes.
        #[test]
        fn nothing_is_lost_and_nothing_turned_round(
            writes in prop::collection::vec((0usize..40_000, any::<bool>()), 1..30), pipe in 1usize..100_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let stream = Corked::new(near);
                let mut expected = Vec::new();
                let pieces: Vec<_> = writes
                    .iter()
                    .enumerate()
                    .map(|(n, (length, rests))| (vec![n as u8; *length], *rests))
                    .collect();
                pieces.iter().for_each(|(piece, _)| expected.extend_from_slice(piece));
                let mut connection = pin!(async {
                    let mut stream = stream.clone();
                    for (piece, rests) in &pieces {
                        stream.write_all(piece).await.unwrap();
                        if *rests {
                            tokio::task::yield_now().await;
                        }
                    }
                    stream.shutdown().await.unwrap();
                });
                let mut got = Vec::new();
                let (read, ()) = tokio::join!(far.read_to_end(&mut got), stream.drive(connection.as_mut()));
                read.unwrap();
                assert!(got == expected);
            });
        }
    }
}
