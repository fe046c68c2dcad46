//! An API that goes over to the next program of its process, with the requests that stand on its connections.
//!
//! A runtime that is idle waits for the answer to its `next`, and so do extensions. Such a request was read to its end, and nothing of its answer is written:
//! all that is left of it is who asks. So a connection goes over as its descriptor with that, and the next program reads the request
//! again, from memory, before it reads on.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::extensions::{Extensions, Waiting};
use crate::machine::State;
use crate::shared::Shared;
use crate::telemetry::Telemetry;
use crate::{About, RuntimeApi, api};

/// What an API leaves.
#[derive(Debug)]
pub struct Handed {
    pub listener: OwnedFd,
    /// What stands on each.
    pub connections: Vec<(OwnedFd, Option<Asks>)>,
    pub known: Known,
}

/// Who waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asks {
    /// The runtime, for an invocation.
    Runtime,
    /// The extension with this identifier, for an event.
    Extension(String),
}

impl Asks {
    /// Its request.
    fn request(&self) -> Bytes {
        match self {
            Self::Runtime => Bytes::from_static(
                b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: localhost\r\n\r\n",
            ),
            Self::Extension(id) => format!(
                "GET /2020-01-01/extension/event/next HTTP/1.1\r\nhost: localhost\r\n{}: {id}\r\n\r\n",
                api::EXTENSION
            )
            .into(),
        }
    }
}

/// What an API knows of those inside.
#[derive(Debug, Serialize, Deserialize)]
pub struct Known {
    release: Option<String>,
    extensions: Vec<Waiting>,
}

/// How it stands with a connection.
#[derive(Debug, Default)]
enum Stands {
    /// There is no request.
    #[default]
    Free,
    Busy,
    Waits(Asks),
}

/// A connection, for whoever hands it over.
#[derive(Debug)]
pub(crate) struct Place {
    socket: OwnedFd,
    stands: Mutex<Stands>,
}

impl Place {
    fn stands(&self) -> MutexGuard<'_, Stands> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come, or has been answered.
    pub fn busy(&self, busy: bool) {
        *self.stands() = if busy { Stands::Busy } else { Stands::Free };
    }

    /// Its request waits for what comes.
    pub fn waits(&self, asks: Asks) {
        *self.stands() = Stands::Waits(asks);
    }
}

/// The connections of an API.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Vec<Arc<Place>>>);

impl Places {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, socket: BorrowedFd<'_>) -> io::Result<Arc<Place>> {
        let place = Arc::new(Place { socket: socket.try_clone_to_owned()?, stands: Mutex::default() });
        self.all().push(place.clone());
        Ok(place)
    }

    pub fn leave(&self, place: &Arc<Place>) {
        self.all().retain(|other| !Arc::ptr_eq(other, place));
    }
}

impl RuntimeApi {
    /// Stops, and leaves what the next program needs to go on. For one whose function is idle.
    ///
    /// # Errors
    /// Why it cannot be handed over: then it goes on.
    pub fn hand_over(&self) -> Result<Handed, String> {
        let shared = &self.shared;
        if shared.telemetry.has_subscribers() {
            return Err("an extension of it subscribes to telemetry".to_owned());
        }
        let known = {
            let inner = shared.lock();
            let extensions = inner.extensions.waiting();
            let works = shared.several() && !inner.current.is_empty();
            let asks = inner.state == State::Ready && inner.pending.is_empty() && !works;
            let (true, Some(extensions)) = (asks, extensions) else {
                return Err("it does not wait for its next invocation".to_owned());
            };
            Known { release: inner.release.clone(), extensions }
        };
        let mut connections = Vec::new();
        for place in &*shared.places.all() {
            let asks = match &*place.stands() {
                Stands::Free => None,
                Stands::Busy => return Err("a request of it is being answered".to_owned()),
                Stands::Waits(asks) => Some(asks.clone()),
            };
            connections.push((place.socket.try_clone().map_err(text)?, asks));
        }
        let asked = connections.iter().filter_map(|(_, asks)| asks.as_ref());
        if asked.clone().all(|asks| *asks != Asks::Runtime) || asked.count() <= known.extensions.len() {
            return Err("it does not wait for its next invocation".to_owned());
        }
        let listener = self.listener.as_fd().try_clone_to_owned().map_err(text)?;
        // Nothing is read any more that the next program does not know of.
        self.stop.cancel();
        Ok(Handed { listener, connections, known })
    }

    /// Goes on with what the former program of this process has left. In a tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot take a descriptor.
    pub fn take_up(handed: Handed, about: About) -> io::Result<Self> {
        let Handed { listener, connections, known: Known { release, extensions } } = handed;
        let listener = Arc::new(TcpListener::from_std(listener.into())?);
        let mut former = Vec::new();
        for (socket, asks) in connections {
            let stream = tokio::net::TcpStream::from_std(TcpStream::from(socket))?;
            former.push(Again { first: asks.map(|asks| asks.request()).unwrap_or_default(), stream });
        }
        let stop = CancellationToken::new();
        let telemetry = Arc::new(Telemetry::new(about.connect.clone(), stop.clone()));
        // Whoever wanted to subscribe had to before its first invocation.
        telemetry.close();
        let shared = Arc::new(Shared::new(about, telemetry));
        {
            let mut inner = shared.lock();
            inner.release = release;
            inner.extensions = Extensions::again(extensions, shared.several());
        }
        tokio::spawn(api::serve(listener.clone(), shared.clone(), stop.clone(), former));
        Ok(Self { shared, listener, stop })
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// A connection on which a request is read again.
pub(crate) struct Again {
    first: Bytes,
    stream: tokio::net::TcpStream,
}

impl AsFd for Again {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Again {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, to);
        }
        let some = self.first.len().min(to.remaining());
        to.put_slice(&self.first[..some]);
        self.first.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Again {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
