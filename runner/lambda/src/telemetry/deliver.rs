//! The way of events to one subscriber: gathered into batches, each sent on a connection of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::subscribe::{Destination, Subscription};
use super::{Connect, Event, Kind, Waiting};

pub(super) struct Delivery {
    pub connect: Connect,
    pub subscription: Subscription,
    pub events: mpsc::Receiver<Arc<Event>>,
    pub waiting: Arc<Waiting>,
    /// Nobody wants any of it any more.
    pub over: CancellationToken,
    /// No more comes.
    pub last: CancellationToken,
}

impl Delivery {
    /// Until it is over, or the last was delivered.
    pub async fn run(mut self) {
        let over = self.over.clone();
        tokio::select! {
            () = over.cancelled() => {}
            () = self.all() => {}
        }
    }

    async fn all(&mut self) {
        while let Some(batch) = self.gather().await {
            let size = batch.iter().map(|event| event.json.len()).sum();
            if self.send(&batch).await.is_err() {
                batch.iter().for_each(|event| self.waiting.lose(event.json.len()));
            }
            self.waiting.bytes.fetch_sub(size, Ordering::Relaxed);
        }
    }

    /// The next batch: full, or as old as it may be, or the last. `None` when there is no more.
    async fn gather(&mut self) -> Option<Vec<Arc<Event>>> {
        let first = tokio::select! {
            biased;
            event = self.events.recv() => event?,
            () = self.last.cancelled() => return None,
        };
        let due = Instant::now() + self.subscription.timeout;
        let (mut size, mut batch) = (first.json.len(), vec![first]);
        while batch.len() < self.subscription.items && size < self.subscription.bytes {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => {
                        size += event.json.len();
                        batch.push(event);
                    }
                    None => break,
                },
                () = self.last.cancelled() => break,
                () = sleep_until(due) => break,
            }
        }
        Some(batch)
    }

    async fn send(&self, batch: &[Arc<Event>]) -> io::Result<()> {
        let records = self.waiting.lost.swap(0, Ordering::Relaxed);
        let bytes = self.waiting.lost_bytes.swap(0, Ordering::Relaxed);
        let lost = (records > 0).then(|| {
            let record = json!({
                "droppedRecords": records,
                "droppedBytes": bytes,
                "reason": "Consumer seems to have fallen behind as it has not acknowledged receipt of logs.",
            });
            Event::new(Kind::Platform, None, "platform.logsDropped", &record)
        });
        let all = batch.iter().chain(&lost);
        let sent = match &self.subscription.destination {
            Destination::Tcp { port } => {
                let mut stream = (self.connect)(*port).await?;
                let mut lines = BytesMut::new();
                for event in all {
                    lines.extend_from_slice(&event.json);
                    lines.put_u8(b'\n');
                }
                stream.write_all(&lines).await?;
                stream.shutdown().await
            }
            Destination::Http { port, path } => {
                let mut body = BytesMut::from(&b"["[..]);
                for event in all {
                    if body.len() > 1 {
                        body.put_u8(b',');
                    }
                    body.extend_from_slice(&event.json);
                }
                body.put_u8(b']');
                self.post(*port, path, body.freeze()).await
            }
        };
        if sent.is_err() {
            // They are told again.
            self.waiting.lost.fetch_add(records, Ordering::Relaxed);
            self.waiting.lost_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        sent
    }

    async fn post(&self, port: u16, path: &str, body: Bytes) -> io::Result<()> {
        let stream = (self.connect)(port).await?;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::post(path)
            .header("host", format!("sandbox.localdomain:{port}"))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let exchange = async {
            let answer = send.send_request(request).await.map_err(io::Error::other)?;
            let status = answer.status();
            // What it says is of no interest; that it is whole lets the connection end well.
            let mut body = answer.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            match status.is_success() {
                true => Ok(()),
                false => Err(io::Error::other(format!("answered {status}"))),
            }
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            done = &mut exchange => done,
            ended = &mut connection => match ended {
                // Its last words may still be on their way to the exchange.
                Ok(()) => exchange.await,
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }
}
