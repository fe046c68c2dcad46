//! The file: its tables, and what each request does to them. Nothing here waits for anything but the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use tokio::sync::{broadcast, oneshot, watch};

use super::Config;
use super::bodies::{self, Bodies};
use crate::record::{Answer, Call, Kept, Progress, State};
use crate::{Backlog, End, Error, Filter, Follow, Taken, Ticket};

type Records = TableDefinition<'static, &'static str, &'static [u8]>;

/// Without bodies.
const CALLS: Records = TableDefinition::new("calls");
const BODIES: Records = TableDefinition::new("bodies");
/// Of calls that have been taken at least once.
const PROGRESS: Records = TableDefinition::new("progress");
const ANSWERS: Records = TableDefinition::new("answers");
/// What waits: function, when it is due, id.
const DUE: TableDefinition<'static, (&str, u64, &str), ()> = TableDefinition::new("due");
/// What runs, and the number of its ticket.
const RUNNING: TableDefinition<'static, &str, u64> = TableDefinition::new("running");
/// What has ended: until when it is kept, id.
const ENDED: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("ended");
/// Everything: when it was submitted, id.
const MADE: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("made");

/// After every id.
const LAST: &str = "\u{10ffff}";

/// The database's own memory.
const CACHE: usize = 16 << 20;

/// How many that are not kept any more go at once.
const FORGET: usize = 512;

/// What others see of the store.
pub struct Shared {
    pub db: Mutex<Option<Arc<Database>>>,
    pub lanes: Mutex<Lanes>,
    pub news: watch::Sender<u64>,
    pub ended: broadcast::Sender<String>,
    pub cancelled: broadcast::Sender<String>,
}

impl Shared {
    fn db(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the file, once nothing is written any more.
    pub fn close(&self) {
        self.db().take();
    }

    /// A snapshot.
    pub fn reader(&self) -> Result<Reader, Error> {
        let db = self.db().clone().ok_or_else(|| Error::Unavailable("its file is not open".to_owned()))?;
        let read = db.begin_read().map_err(broken)?;
        Ok(Reader { read, _db: db })
    }
}

/// What there is of each function.
#[derive(Default)]
pub struct Lanes(BTreeMap<String, Lane>);

#[derive(Default)]
struct Lane {
    queued: u64,
    running: u64,
    /// When the first is due.
    first: Option<u64>,
    /// When the next is due of those that were not when this was looked up.
    next: Option<u64>,
}

impl Lanes {
    /// Functions of which something is due.
    pub fn due(&self, now: u64) -> Vec<String> {
        let due = self.0.iter().filter(|(_, lane)| lane.first.is_some_and(|first| first <= now));
        due.map(|(function, _)| function.clone()).collect()
    }

    pub fn backlog(&self, now: u64) -> Vec<Backlog> {
        let of = |(function, lane): (&String, &Lane)| Backlog {
            function: function.clone(),
            queued: lane.queued,
            running: lane.running,
            oldest_due_ms: lane.first.filter(|first| *first <= now),
        };
        self.0.iter().map(of).collect()
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

/// What becomes true with the commit, in the order of what was asked.
enum Effect {
    Count { function: String, queued: i64, running: i64 },
    Held(String, u64),
    Released(String),
    Ended(String),
    Cancelled(String),
    DropBody(String),
}

/// Tells who asked, once it is known whether the transaction holds.
type Tell = Box<dyn FnOnce(Result<(), Error>) + Send>;

fn tell<T: Send + 'static>(reply: Reply<T>, done: Result<T, Error>) -> Tell {
    Box::new(move |committed| {
        // Whoever asked may have gone.
        reply.send(committed.and(done)).ok();
    })
}

pub fn broken(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Io(error) => bodies::failed("its file", &error),
        redb::Error::DatabaseAlreadyOpen => {
            Error::Unavailable("its file is open in another process: one at a time may have it".to_owned())
        }
        error => Error::Unavailable(error.to_string()),
    }
}

fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::Unavailable(format!("a record of its file is spoiled: {error}")))
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
    pub fn open(config: Config, shared: Arc<Shared>, bodies: Bodies) -> Result<Self, Error> {
        let mut store = Self { config, shared, bodies, leases: HashMap::new(), tickets: 0, forget: None };
        let db = store.reopen()?;
        store.recover(&db, crate::now_ms())?;
        store.survey()?;
        Ok(store)
    }

    /// Whether a body that is kept aside has its call.
    pub fn wants_body(&self, name: &str) -> bool {
        let id = name.split('-').next().unwrap_or_default();
        // When in doubt it stays.
        self.shared.reader().and_then(|reader| reader.call(id)).map_or(true, |call| call.is_some())
    }

    fn reopen(&self) -> Result<Arc<Database>, Error> {
        if let Some(db) = self.shared.db().clone() {
            return Ok(db);
        }
        let path = self.config.directory.join("calls.redb");
        let db = Database::builder().set_cache_size(CACHE).create(&path).map_err(broken)?;
        let write = db.begin_write().map_err(broken)?;
        Tables::open(&write)?;
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
            let ids: Result<Vec<_>, Error> = tables
                .running
                .iter()
                .map_err(broken)?
                .map(|row| row.map(|(id, _)| id.value().to_owned()).map_err(broken))
                .collect();
            for id in ids? {
                tables.interrupt(&id, now)?;
            }
        }
        write.commit().map_err(broken)
    }

    /// Counts what there is.
    fn survey(&mut self) -> Result<(), Error> {
        let now = crate::now_ms();
        let (mut lanes, mut running) = (BTreeMap::<String, Lane>::new(), Vec::new());
        let reader = self.shared.reader()?;
        for row in reader.read.open_table(DUE).map_err(broken)?.iter().map_err(broken)? {
            let (key, _) = row.map_err(broken)?;
            let (function, due, _) = key.value();
            if !lanes.contains_key(function) {
                lanes.insert(function.to_owned(), Lane { first: Some(due), ..Lane::default() });
            }
            let Some(lane) = lanes.get_mut(function) else { continue };
            lane.queued += 1;
            if lane.next.is_none() && due > now {
                lane.next = Some(due);
            }
        }
        for row in reader.read.open_table(RUNNING).map_err(broken)?.iter().map_err(broken)? {
            let (id, number) = row.map_err(broken)?;
            let (id, number) = (id.value().to_owned(), number.value());
            if let Some(call) = reader.call(&id)? {
                lanes.entry(call.function).or_default().running += 1;
            }
            running.push((id, number));
        }
        self.forget = reader.first_ended()?;
        // Whose taker was never told that it has them.
        for (id, number) in running {
            self.leases.entry(id).or_insert((number, Instant::now() + self.config.lease));
        }
        *self.shared.lanes() = Lanes(lanes);
        self.tick();
        Ok(())
    }

    fn tick(&self) {
        self.shared.news.send_modify(|count| *count += 1);
    }

    /// How long nothing happens by itself.
    pub fn next(&self) -> Option<Duration> {
        let now = crate::now_ms();
        let lanes = self.shared.lanes().0.values().filter_map(|lane| lane.next).min();
        let timers = [lanes, self.forget].into_iter().flatten();
        let timers = timers.map(|at| Duration::from_millis(at.saturating_sub(now)));
        let leases = self.leases.values().map(|(_, until)| until.saturating_duration_since(Instant::now()));
        timers.chain(leases).min()
    }

    /// One transaction for all of a batch and for what time has brought.
    pub fn write(&mut self, batch: Vec<Op>, now: u64, instant: Instant) {
        let mut effects = Vec::new();
        let mut tells = Vec::new();
        let outcome = self.transact(batch, now, instant, &mut effects, &mut tells);
        if let Err(error) = &outcome {
            tracing::warn!(%error, "the queue could not write");
            // A file that failed once answers nothing more until it is opened again; what it holds then is the truth.
            *self.shared.db() = None;
        }
        if outcome.is_ok() {
            self.take_effect(effects, now);
        } else if let Err(error) = self.reopen().and_then(|_| self.survey()) {
            tracing::warn!(%error, "the queue's file cannot be opened again");
        }
        for tell in tells {
            tell(outcome.clone());
        }
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

    fn take_effect(&mut self, effects: Vec<Effect>, now: u64) {
        let mut touched = BTreeSet::new();
        let mut files = Vec::new();
        {
            let mut lanes = self.shared.lanes();
            for effect in effects {
                match effect {
                    Effect::Count { function, queued, running } => {
                        let lane = lanes.0.entry(function.clone()).or_default();
                        lane.queued = lane.queued.saturating_add_signed(queued);
                        lane.running = lane.running.saturating_add_signed(running);
                        touched.insert(function);
                    }
                    Effect::Held(id, number) => {
                        self.leases.insert(id, (number, Instant::now() + self.config.lease));
                    }
                    Effect::Released(id) => _ = self.leases.remove(&id),
                    // Nobody may be listening.
                    Effect::Ended(id) => _ = self.shared.ended.send(id).ok(),
                    Effect::Cancelled(id) => _ = self.shared.cancelled.send(id).ok(),
                    Effect::DropBody(name) => files.push(name),
                }
            }
            let passed = lanes.0.iter().filter(|(_, lane)| lane.next.is_some_and(|next| next <= now));
            touched.extend(passed.map(|(function, _)| function.clone()));
        }
        for name in files {
            self.bodies.remove(&name);
        }
        if touched.is_empty() {
            return;
        }
        match self.shared.reader().and_then(|reader| reader.firsts(touched, now)) {
            Ok(firsts) => {
                let mut lanes = self.shared.lanes();
                for (function, first, next) in firsts {
                    let Some(lane) = lanes.0.get_mut(&function) else { continue };
                    (lane.first, lane.next) = (first, next);
                    if lane.queued == 0 && lane.running == 0 {
                        lanes.0.remove(&function);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the queue could not look up what is due"),
        }
        if self.forget.is_none() {
            self.forget = self.shared.reader().and_then(|reader| reader.first_ended()).unwrap_or(None);
        }
        self.tick();
    }
}

/// The tables of one transaction.
struct Tables<'t> {
    calls: Table<'t, &'static str, &'static [u8]>,
    bodies: Table<'t, &'static str, &'static [u8]>,
    progress: Table<'t, &'static str, &'static [u8]>,
    answers: Table<'t, &'static str, &'static [u8]>,
    due: Table<'t, (&'static str, u64, &'static str), ()>,
    running: Table<'t, &'static str, u64>,
    ended: Table<'t, (u64, &'static str), ()>,
    made: Table<'t, (u64, &'static str), ()>,
}

/// Writes a record.
fn put(
    table: &mut Table<'_, &'static str, &'static [u8]>,
    id: &str,
    record: &impl Message,
) -> Result<(), Error> {
    table.insert(id, record.encode_to_vec().as_slice()).map_err(broken)?;
    Ok(())
}

fn find<M: Message + Default>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    id: &str,
) -> Result<Option<M>, Error> {
    table.get(id).map_err(broken)?.map(|bytes| read(bytes.value())).transpose()
}

impl<'t> Tables<'t> {
    fn open(write: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            calls: write.open_table(CALLS).map_err(broken)?,
            bodies: write.open_table(BODIES).map_err(broken)?,
            progress: write.open_table(PROGRESS).map_err(broken)?,
            answers: write.open_table(ANSWERS).map_err(broken)?,
            due: write.open_table(DUE).map_err(broken)?,
            running: write.open_table(RUNNING).map_err(broken)?,
            ended: write.open_table(ENDED).map_err(broken)?,
            made: write.open_table(MADE).map_err(broken)?,
        })
    }

    fn progress_of(&self, call: &Call) -> Result<Progress, Error> {
        Ok(find(&self.progress, &call.id)?.unwrap_or_else(|| Progress::new(call)))
    }

    fn submit(&mut self, mut call: Call, effects: &mut Vec<Effect>) -> Result<bool, Error> {
        if self.calls.get(call.id.as_str()).map_err(broken)?.is_some() {
            return Ok(false);
        }
        let body = std::mem::take(&mut call.body);
        put(&mut self.calls, &call.id, &call)?;
        if !body.is_empty() {
            self.bodies.insert(call.id.as_str(), body.as_ref()).map_err(broken)?;
        }
        self.made.insert((call.submitted_ms, call.id.as_str()), ()).map_err(broken)?;
        self.due.insert((call.function.as_str(), call.due_ms, call.id.as_str()), ()).map_err(broken)?;
        effects.push(Effect::Count { function: call.function, queued: 1, running: 0 });
        Ok(true)
    }

    fn take(
        &mut self,
        function: &str,
        most: usize,
        now: u64,
        tickets: &mut u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<Taken>, Error> {
        let range = self.due.range((function, 0, "")..=(function, now, LAST)).map_err(broken)?;
        let due: Result<Vec<(u64, String)>, Error> = range
            .take(most)
            .map(|row| row.map(|(key, _)| (key.value().1, key.value().2.to_owned())).map_err(broken))
            .collect();
        let mut taken = Vec::new();
        for (due, id) in due? {
            self.due.remove((function, due, id.as_str())).map_err(broken)?;
            effects.push(Effect::Count { function: function.to_owned(), queued: -1, running: 1 });
            let Some(mut call) = find::<Call>(&self.calls, &id)? else { continue };
            if let Some(body) = self.bodies.get(id.as_str()).map_err(broken)? {
                call.body = Bytes::copy_from_slice(body.value());
            }
            let mut progress = self.progress_of(&call)?;
            progress.begin(now);
            put(&mut self.progress, &id, &progress)?;
            *tickets += 1;
            self.running.insert(id.as_str(), *tickets).map_err(broken)?;
            effects.push(Effect::Held(id.clone(), *tickets));
            taken.push(Taken { call, progress, ticket: Ticket { id, number: *tickets } });
        }
        Ok(taken)
    }

    /// The call of a ticket, if it still holds it.
    fn held(&self, ticket: &Ticket) -> Result<Option<Call>, Error> {
        let id = ticket.id.as_str();
        let number = self.running.get(id).map_err(broken)?.map(|number| number.value());
        if number != Some(ticket.number) {
            return Ok(None);
        }
        find(&self.calls, id)
    }

    fn finish(
        &mut self,
        ticket: &Ticket,
        end: End,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), Error>, Error> {
        let Some(call) = self.held(ticket)? else { return Ok(Err(Error::Lost)) };
        let id = call.id.as_str();
        self.running.remove(id).map_err(broken)?;
        put(&mut self.progress, id, &end.progress)?;
        if let Some(answer) = &end.answer {
            put(&mut self.answers, id, answer)?;
        }
        self.ended.insert((end.progress.keep_until_ms, id), ()).map_err(broken)?;
        if end.progress.is() != State::Dead {
            self.bodies.remove(id).map_err(broken)?;
            if call.aside {
                effects.push(Effect::DropBody(id.to_owned()));
            }
        }
        effects.push(Effect::Released(id.to_owned()));
        effects.push(Effect::Ended(id.to_owned()));
        effects.push(Effect::Count { function: call.function, queued: 0, running: -1 });
        for follow in end.then {
            if let Follow::Call(call) = follow {
                self.submit(call, effects)?;
            }
        }
        Ok(Ok(()))
    }

    fn again(
        &mut self,
        ticket: &Ticket,
        progress: &Progress,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<(), Error>, Error> {
        let Some(call) = self.held(ticket)? else { return Ok(Err(Error::Lost)) };
        self.put_back(&call, progress)?;
        effects.push(Effect::Released(call.id));
        effects.push(Effect::Count { function: call.function, queued: 1, running: -1 });
        Ok(Ok(()))
    }

    fn put_back(&mut self, call: &Call, progress: &Progress) -> Result<(), Error> {
        let id = call.id.as_str();
        self.running.remove(id).map_err(broken)?;
        put(&mut self.progress, id, progress)?;
        self.due.insert((call.function.as_str(), progress.due_ms, id), ()).map_err(broken)?;
        Ok(())
    }

    /// Whoever ran it is gone: it is due again. Its function, unless it did not run.
    fn interrupt(&mut self, id: &str, now: u64) -> Result<Option<String>, Error> {
        if self.running.get(id).map_err(broken)?.is_none() {
            return Ok(None);
        }
        let Some(call) = find::<Call>(&self.calls, id)? else { return Ok(None) };
        let mut progress = self.progress_of(&call)?;
        progress.interrupt(now);
        progress.set_state(State::Queued);
        progress.due_ms = now;
        self.put_back(&call, &progress)?;
        Ok(Some(call.function))
    }

    fn cancel(
        &mut self,
        id: &str,
        now: u64,
        keep_until_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Kept>, Error> {
        let Some(call) = find::<Call>(&self.calls, id)? else { return Ok(None) };
        let mut progress = self.progress_of(&call)?;
        match progress.is() {
            State::Queued => {
                let key = (call.function.as_str(), progress.due_ms, id);
                self.due.remove(key).map_err(broken)?;
                effects.push(Effect::Count { function: call.function.clone(), queued: -1, running: 0 });
            }
            State::Running => {
                self.running.remove(id).map_err(broken)?;
                effects.push(Effect::Released(id.to_owned()));
                effects.push(Effect::Cancelled(id.to_owned()));
                effects.push(Effect::Count { function: call.function.clone(), queued: 0, running: -1 });
            }
            State::Done | State::Dead | State::Cancelled => {
                return Ok(Some(Kept { call, progress, answer: None }));
            }
        }
        progress.cancel(now, keep_until_ms);
        put(&mut self.progress, id, &progress)?;
        self.ended.insert((keep_until_ms, id), ()).map_err(broken)?;
        self.bodies.remove(id).map_err(broken)?;
        if call.aside {
            effects.push(Effect::DropBody(id.to_owned()));
        }
        effects.push(Effect::Ended(id.to_owned()));
        Ok(Some(Kept { call, progress, answer: None }))
    }

    fn redrive(
        &mut self,
        id: &str,
        now: u64,
        effects: &mut Vec<Effect>,
    ) -> Result<Result<Option<(Kept, bool)>, Error>, Error> {
        let Some(call) = find::<Call>(&self.calls, id)? else { return Ok(Ok(None)) };
        let mut progress = self.progress_of(&call)?;
        if progress.is_over(now) {
            return Ok(Ok(None));
        }
        let dead = progress.is() == State::Dead;
        if dead {
            let inline = !call.aside && call.body_bytes > 0;
            if inline && self.bodies.get(id).map_err(broken)?.is_none() {
                return Ok(Err(crate::no_body()));
            }
            self.ended.remove((progress.keep_until_ms, id)).map_err(broken)?;
            let times = progress.redrives + 1;
            progress.redrive(now, times);
            put(&mut self.progress, id, &progress)?;
            self.due.insert((call.function.as_str(), now, id), ()).map_err(broken)?;
            effects.push(Effect::Count { function: call.function.clone(), queued: 1, running: 0 });
        }
        Ok(Ok(Some((Kept { call, progress, answer: None }, dead))))
    }

    /// Forgets what need not be kept any more; when there is more to forget.
    fn forget(&mut self, now: u64, effects: &mut Vec<Effect>) -> Result<Option<u64>, Error> {
        let old: Result<Vec<(u64, String)>, Error> = self
            .ended
            .range(..=(now, LAST))
            .map_err(broken)?
            .take(FORGET)
            .map(|row| row.map(|(key, _)| (key.value().0, key.value().1.to_owned())).map_err(broken))
            .collect();
        for (until, id) in old? {
            self.ended.remove((until, id.as_str())).map_err(broken)?;
            if let Some(call) = find::<Call>(&self.calls, &id)? {
                self.made.remove((call.submitted_ms, id.as_str())).map_err(broken)?;
                if call.aside {
                    effects.push(Effect::DropBody(id.clone()));
                }
            }
            if find::<Answer>(&self.answers, &id)?.is_some_and(|answer| answer.aside) {
                effects.push(Effect::DropBody(Call::answer_name(&id)));
            }
            for table in [&mut self.calls, &mut self.bodies, &mut self.progress, &mut self.answers] {
                table.remove(id.as_str()).map_err(broken)?;
            }
            effects.push(Effect::Released(id));
        }
        let next = self.ended.iter().map_err(broken)?.next().transpose().map_err(broken)?;
        Ok(next.map(|(key, _)| key.value().0))
    }
}

/// A function, when its first call is due, and the first that is not due yet.
type Firsts = (String, Option<u64>, Option<u64>);

/// A snapshot of the file.
pub struct Reader {
    read: ReadTransaction,
    /// Open as long as it is read.
    _db: Arc<Database>,
}

impl Reader {
    fn call(&self, id: &str) -> Result<Option<Call>, Error> {
        find(&self.read.open_table(CALLS).map_err(broken)?, id)
    }

    fn first_ended(&self) -> Result<Option<u64>, Error> {
        let ended = self.read.open_table(ENDED).map_err(broken)?;
        let first = ended.iter().map_err(broken)?.next().transpose().map_err(broken)?;
        Ok(first.map(|(key, _)| key.value().0))
    }

    /// What is due first of each of these.
    fn firsts(&self, functions: BTreeSet<String>, now: u64) -> Result<Vec<Firsts>, Error> {
        let due = self.read.open_table(DUE).map_err(broken)?;
        let from = |function: &str, from: u64| {
            let mut range = due.range((function, from, "")..=(function, u64::MAX, LAST)).map_err(broken)?;
            let first = range.next().transpose().map_err(broken)?;
            Ok::<_, Error>(first.map(|(key, _)| key.value().1))
        };
        let of = |function: String| {
            let first = from(&function, 0)?;
            let next = match first {
                Some(first) if first > now => Some(first),
                Some(_) => from(&function, now + 1)?,
                None => None,
            };
            Ok((function, first, next))
        };
        functions.into_iter().map(of).collect()
    }

    pub fn kept(&self, id: &str) -> Result<Option<Kept>, Error> {
        let Some(call) = self.call(id)? else { return Ok(None) };
        let progress = find(&self.read.open_table(PROGRESS).map_err(broken)?, id)?;
        let answer = find(&self.read.open_table(ANSWERS).map_err(broken)?, id)?;
        let progress = progress.unwrap_or_else(|| Progress::new(&call));
        // What is not kept any more is gone, whether or not it is removed yet.
        let kept = !progress.is_over(crate::now_ms());
        Ok(kept.then_some(Kept { call, progress, answer }))
    }

    pub fn list(&self, filter: &Filter) -> Result<(Vec<Kept>, bool), Error> {
        let now = crate::now_ms();
        let made = self.read.open_table(MADE).map_err(broken)?;
        let progress = self.read.open_table(PROGRESS).map_err(broken)?;
        let mut found = Vec::new();
        for row in made.iter().map_err(broken)?.rev() {
            let (key, _) = row.map_err(broken)?;
            let id = key.value().1;
            let Some(call) = self.call(id)? else { continue };
            if !filter.function.is_empty() && filter.function != call.function {
                continue;
            }
            let progress: Option<Progress> = find(&progress, id)?;
            let progress = progress.unwrap_or_else(|| Progress::new(&call));
            if progress.is_over(now) || filter.state.is_some_and(|state| state != progress.is()) {
                continue;
            }
            if found.len() == filter.limit {
                return Ok((found, true));
            }
            found.push(Kept { call, progress, answer: None });
        }
        Ok((found, false))
    }
}
