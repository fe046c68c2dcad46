//! Who writes, and when. A task gathers what is asked; a thread of its own has the file, and takes no lock that those take who serve. What became
//! true is told by the task: one wake-up for all of a transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::moment::now_ms;
use tokio::sync::mpsc;

use super::store::{Became, Op, Shared, Store, Work, Written};
use crate::Error;

/// Most that goes into one transaction.
const BATCH: usize = 1024;

/// What nobody waits for waits so long for others, so that a call that ends does not have a transaction for itself.
const GATHER: Duration = Duration::from_millis(2);

/// So many need wait for no others.
const ENOUGH: usize = 64;

/// The timer looks at least so often, in case the clock of the machine is set.
const LOOK: Duration = Duration::from_secs(60);

/// A file that could not be written is tried again, with nobody asking, after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The thread that has the file: it ends when this is dropped.
pub struct Writer {
    work: mpsc::Sender<Work>,
    written: mpsc::Receiver<Written>,
}

impl Writer {
    pub fn start(mut store: Store) -> Result<Self, Error> {
        let (work, mut asked) = mpsc::channel(1);
        let (tell, written) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("queue-file".to_owned()).spawn(move || {
            while let Some(work) = asked.blocking_recv() {
                if tell.blocking_send(store.write(work)).is_err() {
                    return;
                }
            }
        });
        let failed = |error| Error::Unavailable(format!("its thread cannot be started: {error}"));
        thread.map(|_| Self { work, written }).map_err(failed)
    }

    /// `None` when the thread broke off.
    async fn write(&mut self, work: Work) -> Option<Written> {
        self.work.send(work).await.ok()?;
        self.written.recv().await
    }
}

/// Ends when nobody can ask any more, and all that was asked is written.
pub async fn run(mut writer: Writer, shared: Arc<Shared>, mut asked: mpsc::Receiver<Op>) {
    // At first it looks what time has brought.
    let mut at = Some(Instant::now());
    let mut rest = None::<Instant>;
    loop {
        let now = now_ms();
        let due = shared.lanes().next().map(|due| Duration::from_millis(due.saturating_sub(now)));
        let timers = [due, at.map(|at| at.saturating_duration_since(Instant::now())), Some(LOOK)];
        let pause = rest.map(|rest| rest.saturating_duration_since(Instant::now())).unwrap_or_default();
        let wait = timers.into_iter().flatten().min().unwrap_or(LOOK).max(pause);
        let mut batch = Vec::new();
        // Until then nothing changes by itself.
        match tokio::time::timeout(wait, asked.recv()).await {
            Ok(None) => return,
            Ok(Some(op)) => batch.push(op),
            Err(_) => {}
        }
        drain(&mut asked, &mut batch);
        if !batch.is_empty() && batch.iter().all(Op::can_wait) && shared.waiters.is_empty() {
            gather(&mut asked, &mut batch).await;
        }
        let now = now_ms();
        let passed = shared.lanes().passed(now);
        let Some(written) = writer.write(Work { batch, passed, now }).await else {
            // Whoever asks from now on is told that there is no answer; the file is sound.
            tracing::error!("the queue's writer broke off: please report this");
            return;
        };
        let now = Instant::now();
        at = written.next.map(|wait| now + wait);
        rest = (!written.holds()).then_some(now + AGAIN);
        know(&shared, written);
    }
}

fn drain(asked: &mut mpsc::Receiver<Op>, batch: &mut Vec<Op>) {
    while batch.len() < BATCH
        && let Ok(op) = asked.try_recv()
    {
        batch.push(op);
    }
}

/// Waits for others, until there are enough of them or one that does not wait.
async fn gather(asked: &mut mpsc::Receiver<Op>, batch: &mut Vec<Op>) {
    let late = tokio::time::sleep(GATHER);
    let mut late = std::pin::pin!(late);
    while batch.len() < ENOUGH {
        let op = tokio::select! {
            op = asked.recv() => op,
            () = &mut late => break,
        };
        let Some(op) = op else { break };
        let waits = op.can_wait();
        batch.push(op);
        if !waits {
            break;
        }
    }
    drain(asked, batch);
}

/// What became true is known to everybody, and then to those who asked.
fn know(shared: &Shared, mut written: Written) {
    let tick = || shared.news.send_modify(|count| *count += 1);
    match std::mem::replace(&mut written.became, Became::Nothing) {
        Became::Nothing => {}
        Became::Found(lanes) => {
            *shared.lanes() = lanes;
            // Some of them may have ended all the same.
            shared.waiters.wake_all();
            tick();
        }
        Became::Changed(changes) => {
            shared.lanes().change(changes.counts, changes.firsts);
            changes.ended.iter().for_each(|id| shared.waiters.wake(id));
            // Nobody may be listening.
            changes.cancelled.into_iter().for_each(|id| _ = shared.cancelled.send(id).ok());
            tick();
        }
    }
    written.tell();
}
