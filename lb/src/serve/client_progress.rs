//! What a client has said so far and whether it takes what there is for it, as far as patience with it depends on that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Duration, Instant};

/// What a client of HTTP/2 begins with. Whoever has said no more than a part of it has said nothing that a protocol could have its own time for.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// In place of the bytes of the preface where a client began with something else.
const ANOTHER: usize = PREFACE.len() + 1;

/// What is known of it. Only the task of the connection changes it.
#[derive(Debug)]
pub struct ClientProgress {
    came: Instant,
    /// Bytes of the preface so far, or [`ANOTHER`].
    preface: AtomicUsize,
    /// The last word was the client's.
    asked: AtomicBool,
    /// Nothing can be written.
    stuck: AtomicBool,
    /// Milliseconds after it came: when it was last stuck no more.
    free: AtomicU64,
    /// The system gave it up since it took nothing.
    deaf: AtomicBool,
    /// Its next answer is its last.
    parts: AtomicBool,
}

impl ClientProgress {
    fn new() -> Self {
        Self {
            came: Instant::now(),
            preface: AtomicUsize::default(),
            asked: AtomicBool::default(),
            stuck: AtomicBool::default(),
            free: AtomicU64::default(),
            deaf: AtomicBool::default(),
            parts: AtomicBool::default(),
        }
    }

    /// Whether it is clear which protocol is spoken.
    pub fn is_clear(&self) -> bool {
        self.preface.load(Ordering::Relaxed) >= PREFACE.len()
    }

    /// Whether it is clear, and HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.preface.load(Ordering::Relaxed) == PREFACE.len()
    }

    /// From now on each answer says that it is the last one.
    pub fn part(&self) {
        self.parts.store(true, Ordering::Relaxed);
    }

    pub fn parts(&self) -> bool {
        self.parts.load(Ordering::Relaxed)
    }

    /// Whether it began something that has no answer yet. One that rests between two requests has not.
    pub fn has_begun(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether it was given up since it did not take what there was for it.
    pub fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }

    /// Since when it has taken whatever there was for it: now, where it does not.
    pub fn takes_since(&self) -> Instant {
        match self.stuck.load(Ordering::Relaxed) {
            true => Instant::now(),
            false => self.came + Duration::from_millis(self.free.load(Ordering::Relaxed)),
        }
    }

    fn note(&self, said: &[u8]) {
        if said.is_empty() {
            return;
        }
        self.asked.store(true, Ordering::Relaxed);
        let before = self.preface.load(Ordering::Relaxed);
        let awaited = PREFACE.get(before..).unwrap_or_default();
        if !awaited.is_empty() {
            // The preface may be the beginning of what was said, and may not be whole yet.
            let is_it = said.starts_with(awaited) || awaited.starts_with(said);
            let so_far = if is_it { before + said.len().min(awaited.len()) } else { ANOTHER };
            self.preface.store(so_far, Ordering::Relaxed);
        }
    }

    fn answered(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }

    fn written<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let stuck = written.is_pending();
        if stuck != self.stuck.load(Ordering::Relaxed) {
            self.stuck.store(stuck, Ordering::Relaxed);
            let now = self.came.elapsed().as_millis();
            self.free.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.judged(written)
    }

    fn judged<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &done
            && error.kind() == io::ErrorKind::TimedOut
        {
            self.deaf.store(true, Ordering::Relaxed);
        }
        done
    }
}

/// A connection's stream that notes what is said on it, and whether it is taken.
pub struct ProgressStream<S> {
    stream: S,
    progress: Arc<ClientProgress>,
}

impl<S> ProgressStream<S> {
    /// Nothing was read of it before.
    pub fn new(stream: S) -> (Self, Arc<ClientProgress>) {
        let progress = Arc::new(ClientProgress::new());
        (Self { stream, progress: progress.clone() }, progress)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ProgressStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.progress.note(&buffer.filled()[before..]);
        self.progress.judged(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ProgressStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.progress.answered();
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.progress.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.progress.answered();
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.progress.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is encrypted may wait to be sent.
        let written = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress.written(written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.progress.written(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_preface_says_nothing_yet() {
        let clear = |said: &[&[u8]]| {
            let progress = ClientProgress::new();
            said.iter().for_each(|said| progress.note(said));
            progress.is_clear()
        };
        assert!(
            !clear(&[])
                && !clear(&[b""])
                && !clear(&[b"P"])
                && !clear(&[b"PRI * ", b"HTTP/2.0\r\n\r\nSM\r\n\r"])
        );
        assert!(clear(&[PREFACE]) && clear(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b"\r\n", b"more"]));
        assert!(
            clear(&[b"G"]) && clear(&[b"P", b"OST /"]) && clear(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore"])
        );
    }

    #[test]
    fn what_is_spoken_is_known_by_its_preface() {
        let http2 = |said: &[&[u8]]| {
            let progress = ClientProgress::new();
            said.iter().for_each(|said| progress.note(said));
            progress.is_http2()
        };
        assert!(
            !http2(&[]) && !http2(&[b"PRI * HTTP/2.0\r\n"]) && !http2(&[b"GET / HTTP/1.1\r\n\r\n", PREFACE])
        );
        assert!(http2(&[PREFACE, b"more"]) && http2(&[b"PRI * HTTP/2.0\r\n", b"\r\nSM\r\n\r\nand more"]));
    }

    #[test]
    fn who_has_its_answer_rests() {
        let progress = ClientProgress::new();
        assert!(!progress.has_begun());
        progress.note(b"GET / HT");
        assert!(progress.has_begun());
        progress.answered();
        assert!(!progress.has_begun());
    }
}
