//! A connection, with TLS or without, and the connections of a port.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::{AbortHandle, Aborted, abortable};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

use super::{Peer, Speaks, Tls};
use crate::metrics::{Counter, Handle as _};
use crate::net;

/// Handshakes of one port at once. One more takes the place of the oldest: who means it is done in a few turns, so that those that stand still go
/// first, and however many of them come, others are let in. Tests need fewer.
const HANDSHAKES: usize = if cfg!(test) { 8 } else { 1024 };

/// A connection as whatever is spoken on it sees it.
pub struct Secured {
    stream: Kind,
    /// Who is there, if it showed a certificate.
    peer: Option<Arc<Peer>>,
    /// From where, if it came in by a port.
    remote: Option<SocketAddr>,
}

enum Kind {
    Plain(TcpStream),
    // The state of a connection is large, and moved when it is handed on.
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

impl Secured {
    /// Without TLS.
    #[must_use]
    pub fn plain(stream: TcpStream) -> Self {
        Self { stream: Kind::Plain(stream), peer: None, remote: None }
    }

    pub(super) fn accepted(
        stream: tokio_rustls::server::TlsStream<TcpStream>,
        peer: Option<Arc<Peer>>,
    ) -> Self {
        Self { stream: Kind::Tls(Box::new(stream.into())), peer, remote: None }
    }

    pub(super) fn connected(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        Self { stream: Kind::Tls(Box::new(stream.into())), peer: None, remote: None }
    }

    /// Who came in, if it showed a certificate.
    #[must_use]
    pub fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }

    /// Whether nobody on the way can listen.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Kind::Tls(_))
    }

    /// From where it came in.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }
}

/// The same call on whichever stream it is.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().stream {
            Kind::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Kind::Tls($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

impl Connected for Secured {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The connections of a port, each when its handshake is done; one that hangs in it holds up no other.
pub struct Incoming {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    speaks: Speaks,
    shaking: FuturesUnordered<Pin<Box<dyn Future<Output = Shaken> + Send>>>,
    /// Ends one of them; by their numbers, which grow.
    ends: BTreeMap<u64, AbortHandle>,
    next: u64,
    failed: Counter,
}

/// A handshake's number, and what came of it: nothing, where another took its place.
type Shaken = (u64, Result<io::Result<Secured>, Aborted>);

impl Incoming {
    /// Nothing is accepted before this is polled. Dropping it drops the handshakes that run.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Option<Arc<Tls>>, speaks: Speaks) -> Self {
        net::listens(&listener);
        let (shaking, ends) = (FuturesUnordered::new(), BTreeMap::new());
        Self { listener, tls, speaks, shaking, ends, next: 0, failed: Counter::off() }
    }

    /// Counts with this the handshakes that come to nothing.
    #[must_use]
    pub fn counting(self, failed: Counter) -> Self {
        Self { failed, ..self }
    }

    /// Whether somebody whom the system has let in has not come out of this yet: in the queue of the port, or in a handshake.
    #[must_use]
    pub fn is_expecting(&self) -> bool {
        let mut port = [PollFd::new(&self.listener, PollFlags::IN)];
        !self.ends.is_empty()
            || rustix::event::poll(&mut port, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Stream for Incoming {
    type Item = io::Result<Secured>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            while let Poll::Ready(Some((number, done))) = this.shaking.poll_next_unpin(cx) {
                this.ends.remove(&number);
                if !matches!(done, Ok(Ok(_))) {
                    this.failed.add_one();
                }
                match done {
                    Ok(Ok(secured)) => return Poll::Ready(Some(Ok(secured))),
                    // Who is not let in is no trouble of the port's.
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(Aborted) => {
                        tracing::debug!("a TLS handshake stood still, and others wanted its place")
                    }
                }
            }
            let (stream, remote) = match std::task::ready!(this.listener.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            net::prepare(&stream).ok();
            let from = move |secured| Secured { remote: Some(remote), ..secured };
            let Some(tls) = &this.tls else { return Poll::Ready(Some(Ok(from(Secured::plain(stream))))) };
            let (tls, speaks) = (tls.clone(), this.speaks);
            if this.ends.len() >= HANDSHAKES
                && let Some((_, oldest)) = this.ends.pop_first()
            {
                oldest.abort();
            }
            let number = this.next;
            this.next += 1;
            let (shake, end) = abortable(async move { tls.accept(stream, speaks).await.map(from) });
            this.ends.insert(number, end);
            this.shaking.push(Box::pin(async move { (number, shake.await) }));
        }
    }
}
