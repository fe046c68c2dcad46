//! Who takes calls that are due, and how many: never more than there seems to be room for, and never before callers who wait.
//!
//! One task a balancer. It wakes when the queue has news, when a call that it made has ended, when a runner comes, and when nobody
//! waits for room any more. Functions take turns. Each has a [`Window`] of its own, and one that has nothing running may always run
//! one call, so that functions whose calls never end hold up no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stoker_core::backoff::Backoff;
use stoker_queue::Queue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{self, Feedback};
use super::background::BackgroundLimit;
use super::window::Window;
use super::{Counts, schedule};
use crate::front::Front;
use crate::serve::Stops;

/// Calls for later at once, over all functions.
const MOST: usize = 256;

/// Of those at most so many of one function.
const MOST_OF_ONE: usize = MOST / 4 * 3;

/// Functions with one call each that may run beyond that.
const BEYOND: usize = MOST;

/// Takes at once.
const TAKES: usize = 32;

/// How often the figures of the whole queue are looked up.
const MEASURE: Duration = Duration::from_secs(5);

/// Starts what makes calls for later, where there is a queue. All of it ends with `stops`, as tasks of `tasks`.
pub fn start(front: &Arc<Front>, tasks: &TaskTracker, stops: &Stops) {
    let Some(queue) = &front.later.queue else { return };
    let counts = front.later.counts.clone();
    let maker = Maker {
        front: front.clone(),
        queue: queue.clone(),
        counts,
        tasks: tasks.clone(),
        stops: stops.clone(),
        inside: Arc::default(),
    };
    tasks.spawn(maker.clone().run());
    tasks.spawn(schedule::run(front.clone(), queue.clone(), stops.calm.clone()));
    tasks.spawn(measure(maker));
}

/// What making calls needs.
#[derive(Clone)]
pub struct Maker {
    pub front: Arc<Front>,
    pub queue: Arc<dyn Queue>,
    pub counts: Counts,
    pub tasks: TaskTracker,
    pub stops: Stops,
    /// Calls that it has among those in this balancer.
    inside: Arc<AtomicUsize>,
}

/// One of those.
pub struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn measure(maker: Maker) {
    let mut ticks = tokio::time::interval(MEASURE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let looks = async {
        loop {
            ticks.tick().await;
            if let Err(error) = maker.counts.measure(&*maker.queue).await {
                tracing::debug!(%error, "the backlog of calls for later is not known");
            }
        }
    };
    tokio::select! {
        () = looks => {}
        () = maker.stops.calm.cancelled() => {}
    }
}

/// One function.
struct Lane {
    running: usize,
    window: Window,
}

struct Lanes {
    all: HashMap<String, Lane>,
    running: usize,
    /// Where the next round begins.
    turn: usize,
    background: BackgroundLimit,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { all: HashMap::new(), running: 0, turn: 0, background: BackgroundLimit::new(MOST / 4) }
    }
}

impl Maker {
    /// Counts a call among those in this balancer that nobody waits for.
    pub fn enter(&self) -> Inside {
        self.inside.fetch_add(1, Ordering::Relaxed);
        Inside(self.inside.clone())
    }

    async fn run(self) {
        let mut known = self.front.dispatch.fleet.known();
        let ready = async {
            // Both senders live as long as the process.
            known.wait_for(|known| *known).await.ok();
            self.front.directory.read().await;
        };
        tokio::select! {
            () = self.stops.calm.cancelled() => return,
            () = ready => {}
        }
        self.make().await;
    }

    /// Ends when the balancer stops, but not in the middle of taking calls: what was taken is made, or it would seem to have begun.
    async fn make(&self) {
        let (tell, mut ended) = mpsc::channel::<Feedback>(MOST + BEYOND);
        let mut news = self.queue.news();
        let mut waiting = self.front.dispatch.fleet.queue.length();
        let mut fleet = self.front.dispatch.fleet.changes();
        let cancels = Cancels::default();
        let listening = cancels.clone().listen(self.queue.cancelled());
        let mut listening = std::pin::pin!(listening);
        let mut lanes = Lanes::default();
        let mut failures = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
        while !self.stops.calm.is_cancelled() {
            news.mark_unchanged();
            waiting.mark_unchanged();
            fleet.mark_unchanged();
            let (mut pause, mut quiet) = (None, None);
            if *waiting.borrow() == 0 && !self.front.dispatch.fleet.runners().is_empty() {
                match self.fill(&mut lanes, &cancels, &tell).await {
                    Ok(taken) => {
                        failures = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
                        if taken > 0 {
                            // Others may have something by now.
                            continue;
                        }
                        quiet = lanes.background.until();
                    }
                    Err(error) => {
                        pause = failures.next();
                        tracing::warn!(%error, ?pause, "calls for later cannot be taken");
                    }
                }
            }
            let held_up = *waiting.borrow() > 0;
            tokio::select! {
                Some(feedback) = ended.recv() => {
                    lanes.ended(feedback);
                    while let Ok(feedback) = ended.try_recv() {
                        lanes.ended(feedback);
                    }
                }
                changed = news.changed(), if pause.is_none() => if changed.is_err() { return },
                _ = waiting.changed(), if held_up => {}
                _ = fleet.changed(), if lanes.running == 0 && pause.is_none() => {}
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                // Nobody may be waiting for answers by then.
                () = async { if let Some(at) = quiet { tokio::time::sleep_until(at.into()).await } }, if quiet.is_some() => {}
                () = &mut listening => return,
                () = self.stops.calm.cancelled() => return,
            }
        }
    }

    /// Takes what there is room for; how many that were.
    async fn fill(
        &self,
        lanes: &mut Lanes,
        cancels: &Cancels,
        tell: &mpsc::Sender<Feedback>,
    ) -> Result<usize, stoker_queue::Error> {
        let due = self.queue.lanes();
        // Calls that somebody waits for come first.
        let callers = self.front.admission.inside().saturating_sub(self.inside.load(Ordering::Relaxed));
        let most = lanes.background.most(callers, Instant::now()).unwrap_or(MOST);
        let wanted = lanes.share(&due, most);
        let mut taken = 0;
        for part in wanted.chunks(TAKES) {
            let takes = part.iter().map(|(function, room)| self.queue.take(function, *room));
            let mut failed = None;
            for ((function, _), calls) in part.iter().zip(futures_util::future::join_all(takes).await) {
                // What was taken has begun, whatever became of the other takes.
                let calls = calls.unwrap_or_else(|error| {
                    failed = Some(error);
                    Vec::new()
                });
                for call in calls {
                    taken += 1;
                    lanes.started(function);
                    let cancel = cancels.enter(&call.call.id);
                    let (maker, tell) = (self.clone(), tell.clone());
                    self.tasks.spawn(async move {
                        let feedback = attempt::run(&maker, call, cancel).await;
                        // It has room for all that run; whoever reads it may have stopped.
                        tell.send(feedback).await.ok();
                    });
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(taken)
    }
}

impl Lanes {
    /// How many to take of each function: in turns, one each, as long as there is room.
    fn share(&mut self, due: &[String], most: usize) -> Vec<(String, usize)> {
        if due.is_empty() {
            return Vec::new();
        }
        self.all.retain(|function, lane| lane.running > 0 || due.binary_search(function).is_ok());
        self.turn = (self.turn + 1) % due.len();
        let order: Vec<_> = due[self.turn..].iter().chain(&due[..self.turn]).collect();
        let mut given = vec![0usize; order.len()];
        let mut running = self.running;
        loop {
            let before = running;
            for (function, given) in order.iter().zip(&mut given) {
                let lane = self.all.get(*function);
                let here = lane.map_or(0, |lane| lane.running) + *given;
                let window = lane.map_or(1, |lane| lane.window.size());
                let room = if here == 0 { most + BEYOND } else { most };
                if here < window && running < room {
                    *given += 1;
                    running += 1;
                }
            }
            if running == before {
                break;
            }
        }
        let wanted = order.into_iter().zip(given).filter(|(_, given)| *given > 0);
        wanted.map(|(function, given)| (function.clone(), given)).collect()
    }

    fn started(&mut self, function: &str) {
        let new = || Lane { running: 0, window: Window::new(MOST_OF_ONE) };
        self.all.entry(function.to_owned()).or_insert_with(new).running += 1;
        self.running += 1;
    }

    fn ended(&mut self, feedback: Feedback) {
        self.running = self.running.saturating_sub(1);
        let Some(lane) = self.all.get_mut(&feedback.function) else { return };
        lane.running = lane.running.saturating_sub(1);
        match feedback.start {
            attempt::Start::Made { waited, cold, way } => {
                lane.window.started(waited, cold);
                if !cold {
                    self.background.made(way);
                }
            }
            attempt::Start::NoRoom => lane.window.refused(),
            attempt::Start::Unknown => {}
        }
    }
}

/// Calls that run here and may be cancelled from anywhere.
#[derive(Clone, Default)]
struct Cancels(Arc<std::sync::Mutex<HashMap<String, CancellationToken>>>);

/// A call's place among them.
pub struct Cancel {
    pub token: CancellationToken,
    id: String,
    of: Cancels,
}

impl Cancels {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn enter(&self, id: &str) -> Cancel {
        let token = CancellationToken::new();
        self.lock().insert(id.to_owned(), token.clone());
        Cancel { token, id: id.to_owned(), of: self.clone() }
    }

    /// Ends when the queue does.
    async fn listen(self, mut cancelled: tokio::sync::broadcast::Receiver<String>) {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            match cancelled.recv().await {
                Ok(id) => {
                    if let Some(token) = self.lock().get(&id) {
                        token.cancel();
                    }
                }
                // Those that were missed run to their end, which then counts for nothing.
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "cancelled calls run on"),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.of.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::later::attempt::Start;

    fn due(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn go(lanes: &mut Lanes, wanted: &[(String, usize)]) {
        for (function, given) in wanted {
            (0..*given).for_each(|_| lanes.started(function));
        }
    }

    fn ok(function: &str) -> Feedback {
        let start = Start::Made { waited: Duration::ZERO, cold: false, way: Duration::ZERO };
        Feedback { function: function.into(), start }
    }

    #[test]
    fn functions_that_never_end_leave_room_for_others() {
        let mut lanes = Lanes::default();
        let names: Vec<_> = (0..400).map(|n| format!("bad/{n:03}")).collect();
        for _ in 0..10 {
            let wanted = lanes.share(&names, MOST);
            go(&mut lanes, &wanted);
        }
        assert_eq!(lanes.running, 400, "one each, and no second before one has ended");
        let wanted = lanes.share(&due(&["good/a"]), MOST);
        assert_eq!(wanted, [("good/a".to_owned(), 1)]);
    }

    #[test]
    fn a_function_grows_with_what_it_finds_and_shares_with_another() {
        let mut lanes = Lanes::default();
        for _ in 0..200 {
            let wanted = lanes.share(&due(&["a/a"]), MOST);
            go(&mut lanes, &wanted);
            let running = lanes.running;
            (0..running).for_each(|_| lanes.ended(ok("a/a")));
        }
        let alone = lanes.share(&due(&["a/a"]), MOST);
        assert_eq!(alone, [("a/a".to_owned(), MOST_OF_ONE)]);
        for _ in 0..40 {
            let wanted = lanes.share(&due(&["a/a", "b/b"]), 10);
            assert!(wanted.iter().map(|(_, n)| n).sum::<usize>() <= 11, "{wanted:?}");
            go(&mut lanes, &wanted);
            for (function, given) in wanted {
                (0..given).for_each(|_| lanes.ended(ok(&function)));
            }
        }
        let mut wanted = lanes.share(&due(&["a/a", "b/b"]), 10);
        wanted.sort();
        assert_eq!(wanted, [("a/a".to_owned(), 5), ("b/b".to_owned(), 5)]);
    }

    #[test]
    fn what_has_gone_is_forgotten() {
        let mut lanes = Lanes::default();
        let wanted = lanes.share(&due(&["a/a"]), MOST);
        go(&mut lanes, &wanted);
        lanes.ended(ok("a/a"));
        lanes.share(&due(&["b/b"]), MOST);
        assert!(!lanes.all.contains_key("a/a") && lanes.running == 0);
    }
}
