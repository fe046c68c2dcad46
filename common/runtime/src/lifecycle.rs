//! From the first moment to the last: whether the process takes work, and its orderly end.
//!
//! Signals: the first one asks to stop, the second one leaves at once. An [`Ending`] then takes one phase after the other, each
//! with its limit and all with one: a phase that hangs is left behind, and a process whose end hangs altogether is ended.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of a process that was told twice.
pub const IMPATIENT: i32 = 130;

/// The exit code of a process whose end took too long.
pub const STUCK: i32 = 124;

/// What an [`Ending`] gives the process beyond its limit before it ends it.
const MARGIN: Duration = Duration::from_secs(2);

/// SIGINT and SIGTERM, from the moment of [`Signals::listen`]: before it they end the process in their own way.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// To be called first, within the runtime: what is started later can then be stopped in order.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns at the first signal, with its name. From then on a second one ends the process with [`IMPATIENT`], however far
    /// the drain has come.
    pub async fn stop_requested(mut self) -> &'static str {
        let first = self.next().await;
        // Lives until the process ends: that is what it waits for.
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(IMPATIENT);
        });
        first
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// From here on SIGHUP and SIGUSR2 do not end the process, which is what they do to one that does not listen for them. Whoever acts on them comes later in
/// its start, and may still hear of those that came before.
///
/// # Errors
/// The handlers cannot be installed.
pub fn heed_early() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    // The handlers stay though nobody listens any more.
    [SignalKind::hangup(), SignalKind::user_defined2()]
        .into_iter()
        .try_for_each(|kind| signal(kind).map(drop))
}

/// Where nothing is upgraded in place SIGUSR2 ends nothing, and the log says what to do `instead`.
///
/// # Errors
/// The handler cannot be installed.
pub fn refuse_upgrades(instead: &'static str) -> io::Result<()> {
    let mut asked = signal(SignalKind::user_defined2())?;
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            tracing::warn!(instead, "SIGUSR2 is for runners: this program is not upgraded in place");
        }
    });
    Ok(())
}

/// What [`Signals::stop_requested`] says by now: of a signal that has come, however recently, it says it.
pub async fn requested_by_now(stop: Pin<&mut impl Future<Output = &'static str>>) -> Option<&'static str> {
    tokio::select! {
        biased;
        why = stop => Some(why),
        // A handler only makes a note, which the runtime reads in its next turn; in a turn timers come after that.
        () = tokio::time::sleep(Duration::from_millis(1)) => None,
    }
}

/// Whether the process takes work, and why not. Shared by those who know and those who tell others.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    Ready,
    NotReady(String),
    /// Not ready, for good.
    Stopping(String),
}

impl Readiness {
    /// Not ready yet, for this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Arc::new(Mutex::new(State::NotReady(reason.into()))))
    }

    /// It takes work, unless it is stopping.
    pub fn ready(&self) {
        self.change(State::Ready);
    }

    /// It does not take work for now.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.change(State::NotReady(reason.into()));
    }

    /// It will never take work again.
    pub fn stopping(&self, reason: impl Into<String>) {
        self.change(State::Stopping(reason.into()));
    }

    /// Why it does not take work, if it does not.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        match &*self.state() {
            State::Ready => None,
            State::NotReady(reason) | State::Stopping(reason) => Some(reason.clone()),
        }
    }

    fn change(&self, to: State) {
        let mut state = self.state();
        if !matches!(*state, State::Stopping(_)) {
            *state = to;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An end in phases, over by a moment that is known from its beginning.
#[derive(Debug)]
pub struct Ending {
    over: Instant,
    /// Dropped when the end was orderly: the watchdog then leaves.
    _orderly: mpsc::Sender<()>,
}

impl Ending {
    /// Begins: phases have `limit` together. If this is still there some time after that (a blocked thread stops every
    /// future on it), the process is ended with [`STUCK`].
    ///
    /// # Errors
    /// The thread that sees to it cannot be started.
    pub fn begin(limit: Duration) -> io::Result<Self> {
        let (orderly, gone) = mpsc::channel::<()>();
        std::thread::Builder::new().name("ending".to_owned()).spawn(move || {
            if gone.recv_timeout(limit.saturating_add(MARGIN)) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the end took longer than {limit:?}: leaving");
                std::process::exit(STUCK);
            }
        })?;
        let now = Instant::now();
        let over = now.checked_add(limit).unwrap_or(now + Duration::from_secs(24 * 3600));
        Ok(Self { over, _orderly: orderly })
    }

    /// What is left for all further phases.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.over.saturating_duration_since(Instant::now())
    }

    /// One phase: `work`, for at most `limit` and what is left. What it came to, unless it took longer and was dropped.
    pub async fn phase<T>(&self, name: &str, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let (limit, began) = (limit.min(self.left()), Instant::now());
        let done = tokio::time::timeout(limit, work).await.ok();
        match done {
            Some(_) => tracing::info!(phase = name, took = ?began.elapsed(), "stopping"),
            None => tracing::warn!(phase = name, ?limit, "stopping: took too long and was left"),
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_has_a_reason_and_stopping_is_for_good() {
        let readiness = Readiness::new("waiting for the fleet");
        assert_eq!(readiness.why_not().as_deref(), Some("waiting for the fleet"));
        readiness.ready();
        assert_eq!(readiness.why_not(), None);
        readiness.not_ready("no runner");
        readiness.stopping("SIGTERM");
        readiness.ready();
        readiness.not_ready("other");
        assert_eq!(readiness.why_not().as_deref(), Some("SIGTERM"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_that_hangs_is_left_and_the_next_one_runs() {
        let ending = Ending::begin(Duration::from_secs(100)).unwrap();
        assert_eq!(ending.phase("hangs", Duration::from_secs(30), std::future::pending::<()>()).await, None);
        assert_eq!(ending.phase("works", Duration::from_secs(30), async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn nothing_runs_beyond_the_end() {
        let ending = Ending::begin(Duration::ZERO).unwrap();
        assert_eq!(ending.left(), Duration::ZERO);
        assert_eq!(ending.phase("late", Duration::from_secs(30), std::future::pending::<()>()).await, None);
    }
}
