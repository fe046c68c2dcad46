//! What is asked together goes into one transaction, and what became true with it is found out. Nothing here waits for anything but the
//! disk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::Database;
use tokio::sync::{broadcast, oneshot, watch};

use super::Config;
use super::bodies::Bodies;
use super::lanes::{Changes, Lanes};
use super::tables::{Effect, Reader, Tables, broken};
use super::waiters::Waiters;
use crate::record::{Call, Kept, Progress};
use crate::{End, Error, Follow, Taken, Ticket};

/// The database's own memory.
const CACHE: usize = 16 << 20;

/// What others see of the store.
pub struct Shared {
    pub db: Mutex<Option<Arc<Database>>>,
    /// Only those who serve take this lock, and not the thread that writes.
    pub lanes: Mutex<Lanes>,
    pub news: watch::Sender<u64>,
    pub waiters: Arc<Waiters>,
    pub cancelled: broadcast::Sender<String>,
}

impl Shared {
    fn db(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the file, once nothing is written any more. Who waits finds out.
    pub fn close(&self) {
        self.db().take();
        self.waiters.wake_all();
    }

    /// A snapshot.
    pub fn reader(&self) -> Result<Reader, Error> {
        let db = self.db().clone().ok_or_else(|| Error::Unavailable("its file is not open".to_owned()))?;
        Reader::new(db)
    }
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What can be asked.
pub enum Op {
    Submit { call: Call, reply: Reply<bool> },
    Take { function: String, most: usize, reply: Reply<Vec<Taken>> },
    Extend { ticket: Ticket, reply: Reply<()> },
    Finish { ticket: Ticket, end: End, reply: Reply<()> },
    Again { ticket: Ticket, progress: Progress, reply: Reply<()> },
    Cancel { id: String, keep_until_ms: u64, reply: Reply<Option<Kept>> },
    Redrive { id: String, reply: Reply<Option<(Kept, bool)>> },
}

impl Op {
    /// Whoever asked does not wait for it, but for others.
    pub fn can_wait(&self) -> bool {
        matches!(self, Op::Extend { .. } | Op::Finish { .. } | Op::Again { .. })
    }
}

/// What is to be written.
pub struct Work {
    pub batch: Vec<Op>,
    /// Functions of which something has become due.
    pub passed: Vec<String>,
    pub now: u64,
}

/// What came of it.
pub struct Written {
    pub became: Became,
    /// When it is time again, with nobody asking.
    pub next: Option<Duration>,
    tells: Vec<Tell>,
    outcome: Result<(), Error>,
}

impl Written {
    /// Whether the transaction is on disk.
    pub fn holds(&self) -> bool {
        self.outcome.is_ok()
    }

    /// Answers those who asked.
    pub fn tell(self) {
        for tell in self.tells {
            tell(self.outcome.clone());
        }
    }
}

/// What is true now that was not before.
pub enum Became {
    Nothing,
    Changed(Changes),
    /// It could not be written, and this is what there is.
    Found(Lanes),
}

/// Tells who asked, once it is known whether the transaction holds.
type Tell = Box<dyn FnOnce(Result<(), Error>) + Send>;

fn tell<T: Send + 'static>(reply: Reply<T>, done: Result<T, Error>) -> Tell {
    Box::new(move |committed| {
        // Whoever asked may have gone.
        reply.send(committed.and(done)).ok();
    })
}

/// The store.
pub struct Store {
    config: Config,
    shared: Arc<Shared>,
    bodies: Bodies,
    /// Who holds what, until when: lost with the process, whose calls are due again then.
    leases: HashMap<String, (u64, Instant)>,
    tickets: u64,
    /// The next record to be forgotten.
    forget: Option<u64>,
}

impl Store {
    pub fn open(config: Config, shared: Arc<Shared>, bodies: Bodies) -> Result<(Self, Lanes), Error> {
        let mut store = Self { config, shared, bodies, leases: HashMap::new(), tickets: 0, forget: None };
        let db = store.reopen()?;
        store.recover(&db, stoker_core::moment::now_ms())?;
        let lanes = store.survey()?;
        Ok((store, lanes))
    }

    /// Whether a body that is kept aside is that of a call or of its answer.
    pub fn wants_body(&self, name: &str) -> bool {
        let id = name.split('-').next().unwrap_or_default();
        let wants = |call: Call| call.body_name() == Some(name) || name == Call::answer_name(id);
        // When in doubt it stays.
        self.shared.reader().and_then(|reader| reader.call(id)).map_or(true, |call| call.is_some_and(wants))
    }

    fn reopen(&self) -> Result<Arc<Database>, Error> {
        if let Some(db) = self.shared.db().clone() {
            return Ok(db);
        }
        let path = self.config.directory.join("calls.redb");
        let db = Database::builder().set_cache_size(CACHE).create(&path).map_err(broken)?;
        let write = db.begin_write().map_err(broken)?;
        Tables::make(&write)?;
        write.commit().map_err(broken)?;
        let db = Arc::new(db);
        *self.shared.db() = Some(db.clone());
        Ok(db)
    }

    /// What ran in an earlier life was interrupted, and is due.
    fn recover(&self, db: &Database, now: u64) -> Result<(), Error> {
        let write = db.begin_write().map_err(broken)?;
        {
            let mut tables = Tables::open(&write)?;
            for id in tables.running()? {
                tables.interrupt(&id, now)?;
            }
        }
        write.commit().map_err(broken)
    }

    /// Counts what there is.
    fn survey(&mut self) -> Result<Lanes, Error> {
        let now = stoker_core::moment::now_ms();
        let (mut lanes, mut running) = (Lanes::default(), Vec::new());
        let reader = self.shared.reader()?;
        reader.waiting(|function, due| lanes.waits(function, due, now))?;
        for (id, number) in reader.running()? {
            if let Some(call) = reader.call(&id)? {
                lanes.runs(call.function);
            }
            running.push((id, number));
        }
        self.forget = reader.first_ended()?;
        // Whose taker was never told that it has them.
        for (id, number) in running {
            self.leases.entry(id).or_insert((number, Instant::now() + self.config.lease));
        }
        Ok(lanes)
    }

    /// How long nothing happens by itself.
    fn next(&self) -> Option<Duration> {
        let forget =
            self.forget.map(|at| Duration::from_millis(at.saturating_sub(stoker_core::moment::now_ms())));
        let leases = self.leases.values().map(|(_, until)| until.saturating_duration_since(Instant::now()));
        forget.into_iter().chain(leases).min()
    }

    /// One transaction for all of a batch and for what time has brought.
    pub fn write(&mut self, work: Work) -> Written {
        let Work { batch, passed, now } = work;
        let (mut effects, mut tells) = (Vec::new(), Vec::new());
        let outcome = self.transact(batch, now, Instant::now(), &mut effects, &mut tells);
        let became = match &outcome {
            Ok(()) => self.take_effect(effects, passed, now),
            Err(error) => {
                tracing::warn!(%error, "the queue could not write");
                // A file that failed once answers nothing more until it is opened again; what it holds then is the truth.
                *self.shared.db() = None;
                match self.reopen().and_then(|_| self.survey()) {
                    Ok(lanes) => Became::Found(lanes),
                    Err(error) => {
                        tracing::warn!(%error, "the queue's file cannot be opened again");
                        Became::Nothing
                    }
                }
            }
        };
        Written { became, next: self.next(), tells, outcome }
    }

    fn transact(
        &mut self,
        batch: Vec<Op>,
        now: u64,
        instant: Instant,
        effects: &mut Vec<Effect>,
        tells: &mut Vec<Tell>,
    ) -> Result<(), Error> {
        let db = match self.reopen() {
            Ok(db) => db,
            Err(error) => {
                // They are told by what dropping them means: no answer.
                drop(batch);
                return Err(error);
            }
        };
        let room = match batch.iter().any(|op| matches!(op, Op::Submit { .. })) {
            true => self.bodies.room(0),
            false => Ok(()),
        };
        let lapsed: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, (_, until))| *until <= instant)
            .map(|(id, _)| id.clone())
            .collect();
        let write = db.begin_write().map_err(broken)?;
        {
            let mut tables = Tables::open(&write)?;
            for op in batch {
                tells.push(self.apply(&mut tables, op, &room, now, instant, effects)?);
            }
            for id in lapsed {
                effects.push(Effect::Released(id.clone()));
                if let Some(function) = tables.interrupt(&id, now)? {
                    effects.push(Effect::Count { function, queued: 1, running: -1 });
                }
            }
            if self.forget.is_some_and(|at| at <= now) {
                self.forget = tables.forget(now, effects)?;
            }
        }
        match effects.is_empty() {
            true => write.abort().map_err(broken),
            false => write.commit().map_err(broken),
        }
    }

    /// What is asked is refused before anything is changed for it: a transaction holds all of the others.
    fn apply(
        &mut self,
        tables: &mut Tables<'_>,
        op: Op,
        room: &Result<(), Error>,
        now: u64,
        instant: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<Tell, Error> {
        Ok(match op {
            Op::Submit { call, reply } => match room {
                Ok(()) => tell(reply, Ok(tables.submit(call, effects)?)),
                Err(full) => tell(reply, Err(full.clone())),
            },
            Op::Take { function, most, reply } => {
                let taken = tables.take(&function, most, now, &mut self.tickets, effects)?;
                tell(reply, Ok(taken))
            }
            Op::Extend { ticket, reply } => {
                let held = self.leases.get_mut(&ticket.id).filter(|(number, _)| *number == ticket.number);
                let done = held.map(|(_, until)| *until = instant + self.config.lease).ok_or(Error::Lost);
                tell(reply, done)
            }
            Op::Finish { ticket, end, reply } => {
                let done = match end.then.iter().any(|follow| matches!(follow, Follow::Message { .. })) {
                    true => Err(Error::Unsupported(
                        "a queue on disk has no subjects: use NATS, or name a function".to_owned(),
                    )),
                    false => tables.finish(&ticket, end, effects)?,
                };
                tell(reply, done)
            }
            Op::Again { ticket, progress, reply } => tell(reply, tables.again(&ticket, &progress, effects)?),
            Op::Cancel { id, keep_until_ms, reply } => {
                tell(reply, Ok(tables.cancel(&id, now, keep_until_ms, effects)?))
            }
            Op::Redrive { id, reply } => tell(reply, tables.redrive(&id, now, effects)?),
        })
    }

    fn take_effect(&mut self, effects: Vec<Effect>, passed: Vec<String>, now: u64) -> Became {
        let mut changes = Changes::default();
        let mut touched = BTreeSet::from_iter(passed);
        for effect in effects {
            match effect {
                Effect::Count { function, queued, running } => {
                    touched.insert(function.clone());
                    changes.counts.push((function, queued, running));
                }
                Effect::Held(id, number) => {
                    self.leases.insert(id, (number, Instant::now() + self.config.lease));
                }
                Effect::Released(id) => _ = self.leases.remove(&id),
                Effect::Ended(id) => changes.ended.push(id),
                Effect::Cancelled(id) => changes.cancelled.push(id),
                Effect::DropBody(name) => self.bodies.remove(&name),
            }
        }
        if self.forget.is_none() {
            self.forget = self.shared.reader().and_then(|reader| reader.first_ended()).unwrap_or(None);
        }
        if touched.is_empty() {
            return Became::Nothing;
        }
        match self.shared.reader().and_then(|reader| reader.firsts(touched, now)) {
            Ok(firsts) => changes.firsts = firsts,
            Err(error) => tracing::warn!(%error, "the queue could not look up what is due"),
        }
        Became::Changed(changes)
    }
}
