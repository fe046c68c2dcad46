//! Answers of one connection by HTTP/2, of which its client may take some and leave others: what it leaves for too long is given up.
//!
//! Windows are each stream's own, so that the connection says nothing of them. Nor does the body: it is not asked for more while what it gave last waits, and
//! so whoever drives it looks.
//!
//! An answer's head and its body are two steps of its task, and the connection could send the first without the second. A client that hears of an error
//! while it still sends may end its body right there, curl for one. If it had said how long that would be, the rest of the answer would be lost: what is
//! shorter than it was to be is a broken stream, which ends at once with all that waits for it. So to such a client they leave together.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::Service;
use stoker_runtime::cork::{Hold, Holds};
use stoker_runtime::metrics::Counter;
use tokio::time::{Instant, Sleep};

use super::client_progress::ClientProgress;

thread_local! {
    /// Whether the body that was asked last gave something, which waits until it is asked again. `None` where none was asked.
    static GAVE: Cell<Option<bool>> = const { Cell::new(None) };

    /// Holds the head back until whoever drives the answer has asked for its body.
    static HEAD: Cell<Option<Hold>> = const { Cell::new(None) };
}

/// Lets go of the head, also where there was a panic.
struct LetGo;

impl Drop for LetGo {
    fn drop(&mut self) {
        drop(HEAD.take());
    }
}

/// A body that tells whoever drives it whether it waits for its reader.
pub struct Offered<B: Body> {
    body: B,
    /// Why it breaks off, once all before it has had a turn to leave.
    failed: Option<B::Error>,
}

impl<B> Body for Offered<B>
where
    B: Body<Data = Bytes, Error: Unpin> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        GAVE.set(Some(matches!(frame, Poll::Ready(Some(Ok(_))))));
        match frame {
            // HTTP/1 drops a connection whose answer fails with all that it has not written yet: the head too, if that came in this turn, and its
            // client would be left without a word. So it rests once before.
            Poll::Ready(Some(Err(error))) => {
                self.failed = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A service whose answers are [`Offered`].
pub struct Offering<S> {
    pub service: S,
    /// Of the connection.
    pub holds: Holds,
    /// Of its client.
    pub progress: Arc<ClientProgress>,
}

impl<S, B> Service<Request<Incoming>> for Offering<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Unpin,
    B: Body,
{
    type Response = Response<Offered<B>>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let sends = request.version() == Version::HTTP_2
            && request.headers().contains_key(CONTENT_LENGTH)
            && !request.body().is_end_stream();
        let holds = sends.then(|| self.holds.clone());
        // HTTP/2 has another word for it.
        let client = (request.version() < Version::HTTP_2).then(|| self.progress.clone());
        Answering { answer: self.service.call(request), holds, client }
    }
}

/// An answer that will be [`Offered`].
pub struct Answering<F> {
    answer: F,
    /// Where head and body are to leave together.
    holds: Option<Holds>,
    /// Where it says itself whether it is the last one.
    client: Option<Arc<ClientProgress>>,
}

impl<B: Body, F: Future<Output = Result<Response<B>, Infallible>> + Unpin> Future for Answering<F> {
    type Output = Result<Response<Offered<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut answer) = ready!(Pin::new(&mut self.answer).poll(cx));
        if self.client.as_ref().is_some_and(|client| client.parts()) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(holds) = &self.holds {
            HEAD.set(Some(holds.hold()));
        }
        Poll::Ready(Ok(answer.map(|body| Offered { body, failed: None })))
    }
}

/// Drives the answers of one connection, each as a task.
#[derive(Clone)]
pub struct Answers {
    progress: Arc<ClientProgress>,
    patience: Duration,
    left: Counter,
}

impl Answers {
    /// To this client, which may leave what there is for it for as long as this; counts those that it left longer.
    pub fn new(progress: Arc<ClientProgress>, patience: Duration, left: Counter) -> Self {
        Self { progress, patience, left }
    }

    /// Ends with the answer, or drops it when its client has left it for too long.
    async fn drive(self, answer: impl Future) {
        let mut answer = pin!(answer);
        let mut waits: Option<Instant> = None;
        // From the first time on, and set anew only when it is over: what is large waits for a moment many times.
        let mut look: Option<Pin<Box<Sleep>>> = None;
        let ended = std::future::poll_fn(|cx| {
            GAVE.set(None);
            let _let_go = LetGo;
            if answer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            if let Some(gave) = GAVE.take() {
                waits = gave.then(Instant::now);
            }
            let Some(since) = waits else { return Poll::Pending };
            // While nothing can be written the whole connection waits, and the system looks after that.
            let until = || since.max(self.progress.takes_since()) + self.patience;
            let look = look.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
            while look.as_mut().poll(cx).is_ready() {
                let until = until();
                if Instant::now() >= until {
                    return Poll::Ready(false);
                }
                look.as_mut().reset(until);
            }
            Poll::Pending
        });
        if !ended.await {
            self.left.add_one();
        }
    }
}

impl<F> Executor<F> for Answers
where
    F: Future + Send + 'static,
{
    fn execute(&self, answer: F) {
        tokio::spawn(self.clone().drive(answer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use hyper_util::rt::TokioIo;
    use stoker_runtime::cork::Corked;
    use stoker_runtime::metrics::Metrics;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A body that takes its time with what it has, in which the connection could do anything.
    struct Late {
        word: Option<Bytes>,
        seen: mpsc::Receiver<()>,
    }

    impl Body for Late {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            // Ends at once where a client has seen the head, which it should not.
            _ = self.seen.recv_timeout(Duration::from_millis(300));
            Poll::Ready(self.word.take().map(|word| Ok(Frame::data(word))))
        }

        fn is_end_stream(&self) -> bool {
            self.word.is_none()
        }
    }

    /// The kinds of the frames in what was received.
    fn kinds(mut bytes: &[u8]) -> Vec<u8> {
        let mut kinds = Vec::new();
        while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
            kinds.push(*kind);
            bytes = &rest[u32::from_be_bytes([0, *a, *b, *c]) as usize..];
        }
        kinds
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_still_sends_gets_the_head_of_an_answer_with_its_body() {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (sees, seen) = mpsc::channel();
        let seen = std::sync::Mutex::new(Some(seen));
        let service = hyper::service::service_fn(move |_: Request<Incoming>| {
            let seen = seen.lock().unwrap().take().unwrap();
            let body = Late { word: Some(Bytes::from_static(b"no")), seen };
            Box::pin(async { Ok::<_, Infallible>(Response::new(body)) })
        });
        let stream = Corked::new(server);
        let (_, progress) = super::super::client_progress::ProgressStream::new(tokio::io::empty());
        let left = Metrics::default().one(&crate::metrics::PANICS);
        let answers = Answers::new(progress.clone(), Duration::from_secs(60), left);
        let service = Offering { service, holds: stream.holds(), progress };
        tokio::spawn(async move {
            let connection = hyper::server::conn::http2::Builder::new(answers)
                .serve_connection(TokioIo::new(stream.clone()), service);
            stream.drive(std::pin::pin!(connection).as_mut()).await.ok();
        });
        let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        request.extend_from_slice(b"\0\0\0\x04\0\0\0\0\0");
        // POST / with content-length 9, of which nothing comes.
        request.extend_from_slice(b"\0\0\x09\x01\x04\0\0\0\x01\x83\x86\x84\x41\x01x\x5c\x019");
        client.write_all(&request).await.unwrap();
        let mut received = vec![0; 64 << 10];
        loop {
            let count = client.read(&mut received).await.unwrap();
            let came = kinds(&received[..count]);
            assert!(count > 0, "it ended");
            if came.contains(&HEADERS) {
                sees.send(()).ok();
                assert!(came.contains(&DATA), "{came:?}");
                break;
            }
        }
    }

    /// A body that breaks off behind its first piece, in the same turn.
    struct Broken(Option<Bytes>);

    impl Body for Broken {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(Some(self.0.take().map(Frame::data).ok_or_else(|| std::io::ErrorKind::Other.into())))
        }
    }

    #[tokio::test]
    async fn what_came_before_an_answer_broke_off_is_sent() {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let service = hyper::service::service_fn(|_: Request<Incoming>| {
            Box::pin(async { Ok::<_, Infallible>(Response::new(Broken(Some(Bytes::from_static(b"half"))))) })
        });
        let (server, progress) = super::super::client_progress::ProgressStream::new(server);
        let stream = Corked::new(server);
        let service = Offering { service, holds: stream.holds(), progress };
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream.clone()), service);
            stream.drive(std::pin::pin!(connection).as_mut()).await.unwrap_err();
        });
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        let received = String::from_utf8(received).unwrap();
        assert!(
            received.starts_with("HTTP/1.1 200 OK\r\n") && received.ends_with("4\r\nhalf\r\n"),
            "{received:?}"
        );
    }
}
