//! The queue of one machine: a file of transactions ([`store`], [`tables`]), and large bodies as files beside it ([`bodies`]).
//!
//! One thread writes ([`writer`]). What is asked while it waits for the disk goes into the next transaction together, so that a thousand submits
//! cost one wait and not a thousand. Reads are made beside it, on snapshots. The file has one owner: a second process that opens it is
//! told so.

mod bodies;
mod lanes;
mod store;
mod tables;
mod waiters;
mod writer;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use stoker_core::moment::now_ms;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::bodies::Bodies;
use self::store::{Op, Shared, Store};
use self::tables::Reader;
use self::writer::Writer;
use crate::{Backlog, Call, End, Error, Filter, Kept, LEASE, Page, Pieces, Progress, Queue, Taken, Ticket};

/// Room that is left on the disk for calls that are here to end, once submits are refused.
pub const RESERVE: u64 = 64 << 20;

/// What is asked and not written yet.
const AHEAD: usize = 4096;

/// Reads at once. Each has a thread while it reads, and what a thread has once had stays with it for a while.
const READERS: usize = 4;

/// Ids of cancelled calls that a slow listener may be behind.
const NEWS: usize = 1024;

/// How a queue on disk behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it is; made if it is not there.
    pub directory: PathBuf,
    /// Free bytes below which submits are refused.
    pub reserve: u64,
    /// How long whoever took a call may be silent.
    pub lease: Duration,
}

impl Config {
    /// In a directory, with everything else as it should be.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), reserve: RESERVE, lease: LEASE }
    }
}

/// See the module.
pub struct DiskQueue {
    ops: Mutex<Option<mpsc::Sender<Op>>>,
    shared: Arc<Shared>,
    bodies: Bodies,
    readers: Arc<Semaphore>,
    lease: Duration,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl DiskQueue {
    /// Opens it, and starts the task and the thread that write; they end with [`Queue::stop`], or when the queue is dropped. Calls that an earlier life
    /// had begun are due again.
    ///
    /// # Errors
    /// The directory's or the file's, in words for people; also when another process has it open.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            db: Mutex::default(),
            lanes: Mutex::default(),
            news: watch::Sender::new(0),
            waiters: Arc::default(),
            cancelled: broadcast::Sender::new(NEWS),
        });
        let bodies = Bodies::new(&config.directory, config.reserve);
        let lease = config.lease;
        let opened = {
            let (shared, bodies, config) = (shared.clone(), bodies.clone(), config.clone());
            move || {
                make(&config.directory)?;
                let (store, lanes) = Store::open(config, shared, bodies.clone())?;
                bodies.clean(|name| store.wants_body(name));
                Ok::<_, Error>((Writer::start(store)?, lanes))
            }
        };
        let (writer, lanes) = blocking(opened).await?;
        *shared.lanes() = lanes;
        let (ops, asked) = mpsc::channel(AHEAD);
        let writer = tokio::spawn(writer::run(writer, shared.clone(), asked));
        let (ops, writer) = (Mutex::new(Some(ops)), Mutex::new(Some(writer)));
        Ok(Self { ops, shared, bodies, readers: Arc::new(Semaphore::new(READERS)), lease, writer })
    }

    async fn ask<T>(&self, op: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Op) -> Result<T, Error> {
        let closed = || Error::Unavailable("it is stopping".to_owned());
        let ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        ops.send(op(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| Error::Unavailable("it broke off while it wrote".to_owned()))?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let closed = |_| Error::Unavailable("it is stopping".to_owned());
        let reads = self.readers.clone().acquire_owned().await.map_err(closed)?;
        let shared = self.shared.clone();
        blocking(move || {
            let read = work(&shared.reader()?);
            drop(reads);
            read
        })
        .await
    }
}

fn make(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    // Bodies and answers are nobody else's.
    let made = builder.recursive(true).mode(0o700).create(directory.join(bodies::FOLDER));
    made.map_err(|error| Error::Unavailable(format!("{} cannot be made: {error}", directory.display())))
}

/// Work that waits for a disk, off the threads that serve.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Unavailable(format!("its work broke off: {error}"))))
}

#[async_trait]
impl Queue for DiskQueue {
    async fn submit(&self, call: Call) -> Result<bool, Error> {
        self.ask(|reply| Op::Submit { call, reply }).await
    }

    async fn put_body(&self, name: &str, pieces: Pieces) -> Result<u64, stoker_core::Error> {
        self.bodies.put(name, pieces).await
    }

    async fn body(&self, name: &str) -> Result<Pieces, Error> {
        self.bodies.get(name).await
    }

    async fn drop_body(&self, name: &str) {
        let (bodies, name) = (self.bodies.clone(), name.to_owned());
        // What stays is found at the next opening.
        blocking(move || {
            bodies.remove(&name);
            Ok(())
        })
        .await
        .ok();
    }

    async fn take(&self, function: &str, most: usize) -> Result<Vec<Taken>, Error> {
        let function = function.to_owned();
        self.ask(|reply| Op::Take { function, most, reply }).await
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    async fn extend(&self, ticket: &Ticket) -> Result<(), Error> {
        let ticket = ticket.clone();
        self.ask(|reply| Op::Extend { ticket, reply }).await
    }

    async fn finish(&self, ticket: &Ticket, end: End) -> Result<(), Error> {
        let ticket = ticket.clone();
        self.ask(|reply| Op::Finish { ticket, end, reply }).await
    }

    async fn again(&self, ticket: &Ticket, progress: Progress) -> Result<(), Error> {
        let ticket = ticket.clone();
        self.ask(|reply| Op::Again { ticket, progress, reply }).await
    }

    async fn cancel(&self, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error> {
        let id = id.to_owned();
        self.ask(|reply| Op::Cancel { id, keep_until_ms, reply }).await
    }

    async fn redrive(&self, id: &str) -> Result<Option<(Kept, bool)>, Error> {
        let id = id.to_owned();
        self.ask(|reply| Op::Redrive { id, reply }).await
    }

    async fn get(&self, id: &str) -> Result<Option<Kept>, Error> {
        let id = id.to_owned();
        self.read(move |reader| reader.kept(&id)).await
    }

    async fn wait(&self, id: &str) -> Result<Option<Kept>, Error> {
        let waiter = self.shared.waiters.enter(id);
        loop {
            let mut told = pin!(waiter.told.notified());
            // From here on no end is missed.
            told.as_mut().enable();
            match self.get(id).await? {
                Some(kept) if !kept.progress.is().is_end() => told.await,
                found => return Ok(found),
            }
        }
    }

    async fn list(&self, filter: Filter) -> Result<Page, Error> {
        self.read(move |reader| reader.list(filter)).await
    }

    fn lanes(&self) -> Vec<String> {
        let now = now_ms();
        self.shared.lanes().due(now)
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    fn cancelled(&self) -> broadcast::Receiver<String> {
        self.shared.cancelled.subscribe()
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        let now = now_ms();
        Ok(self.shared.lanes().backlog(now))
    }

    async fn stop(&self) {
        // The writer ends when it has written what was asked.
        self.ops.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.await.ok();
        }
        // Whoever still holds the queue keeps the file from nobody.
        self.shared.close();
    }
}

#[cfg(test)]
mod tests;
