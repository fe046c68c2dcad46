//! The file's tables, and what each request does to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, Table, TableDefinition,
    TableHandle as _, WriteTransaction,
};

use super::bodies;
use crate::record::{Answer, Call, Kept, Progress, State};
use crate::{End, Error, Filling, Filter, Follow, Page, Taken, Ticket};

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
/// What was given up: when it was submitted, id. So a list of it costs what there is of it.
const DEAD: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("dead");

/// After every id.
const LAST: &str = "\u{10ffff}";

/// How many that are not kept any more go at once.
const FORGET: usize = 512;

/// What becomes true with the commit, in the order of what was asked.
pub enum Effect {
    Count { function: String, queued: i64, running: i64 },
    Held(String, u64),
    Released(String),
    Ended(String),
    Cancelled(String),
    DropBody(String),
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
    M::decode(bytes)
        .map_err(|error| Error::Spoiled(format!("a record of the queue's file cannot be read: {error}")))
}

/// The tables of one transaction.
pub struct Tables<'t> {
    calls: Table<'t, &'static str, &'static [u8]>,
    bodies: Table<'t, &'static str, &'static [u8]>,
    progress: Table<'t, &'static str, &'static [u8]>,
    answers: Table<'t, &'static str, &'static [u8]>,
    due: Table<'t, (&'static str, u64, &'static str), ()>,
    running: Table<'t, &'static str, u64>,
    ended: Table<'t, (u64, &'static str), ()>,
    made: Table<'t, (u64, &'static str), ()>,
    dead: Table<'t, (u64, &'static str), ()>,
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
    /// Makes what there is none of. A file of a release that had no index of what was given up gets one.
    pub fn make(write: &'t WriteTransaction) -> Result<(), Error> {
        let mut names = write.list_tables().map_err(broken)?;
        let indexed = names.any(|table| table.name() == DEAD.name());
        let mut tables = Self::open(write)?;
        if !indexed {
            for row in tables.progress.iter().map_err(broken)? {
                let (id, progress) = row.map_err(broken)?;
                if read::<Progress>(progress.value())?.is() == State::Dead
                    && let Some(call) = find::<Call>(&tables.calls, id.value())?
                {
                    tables.dead.insert((call.submitted_ms, id.value()), ()).map_err(broken)?;
                }
            }
        }
        Ok(())
    }

    pub fn open(write: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            calls: write.open_table(CALLS).map_err(broken)?,
            bodies: write.open_table(BODIES).map_err(broken)?,
            progress: write.open_table(PROGRESS).map_err(broken)?,
            answers: write.open_table(ANSWERS).map_err(broken)?,
            due: write.open_table(DUE).map_err(broken)?,
            running: write.open_table(RUNNING).map_err(broken)?,
            ended: write.open_table(ENDED).map_err(broken)?,
            made: write.open_table(MADE).map_err(broken)?,
            dead: write.open_table(DEAD).map_err(broken)?,
        })
    }

    /// Ids of what runs.
    pub fn running(&self) -> Result<Vec<String>, Error> {
        let rows = self.running.iter().map_err(broken)?;
        rows.map(|row| row.map(|(id, _)| id.value().to_owned()).map_err(broken)).collect()
    }

    fn progress_of(&self, call: &Call) -> Result<Progress, Error> {
        Ok(find(&self.progress, &call.id)?.unwrap_or_else(|| Progress::new(call)))
    }

    pub fn submit(&mut self, mut call: Call, effects: &mut Vec<Effect>) -> Result<bool, Error> {
        if let Some(known) = find::<Call>(&self.calls, &call.id)? {
            let progress = self.progress_of(&known)?;
            if !progress.is_over(stoker_core::moment::now_ms()) {
                return Ok(false);
            }
            // Not kept any more, and not removed yet.
            self.remove(progress.keep_until_ms, &call.id, effects)?;
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

    pub fn take(
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

    pub fn finish(
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
        if end.progress.is() == State::Dead {
            self.dead.insert((call.submitted_ms, id), ()).map_err(broken)?;
        } else {
            self.bodies.remove(id).map_err(broken)?;
            effects.extend(call.body_name().map(|name| Effect::DropBody(name.to_owned())));
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

    pub fn again(
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
    pub fn interrupt(&mut self, id: &str, now: u64) -> Result<Option<String>, Error> {
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

    pub fn cancel(
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
        effects.extend(call.body_name().map(|name| Effect::DropBody(name.to_owned())));
        effects.push(Effect::Ended(id.to_owned()));
        Ok(Some(Kept { call, progress, answer: None }))
    }

    pub fn redrive(
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
            self.dead.remove((call.submitted_ms, id)).map_err(broken)?;
            let times = progress.redrives + 1;
            progress.redrive(now, times);
            put(&mut self.progress, id, &progress)?;
            self.due.insert((call.function.as_str(), now, id), ()).map_err(broken)?;
            effects.push(Effect::Count { function: call.function.clone(), queued: 1, running: 0 });
        }
        Ok(Ok(Some((Kept { call, progress, answer: None }, dead))))
    }

    /// Removes a call that has ended, and was kept until then.
    fn remove(&mut self, until: u64, id: &str, effects: &mut Vec<Effect>) -> Result<(), Error> {
        self.ended.remove((until, id)).map_err(broken)?;
        if let Some(call) = find::<Call>(&self.calls, id)? {
            self.made.remove((call.submitted_ms, id)).map_err(broken)?;
            self.dead.remove((call.submitted_ms, id)).map_err(broken)?;
            effects.extend(call.body_name().map(|name| Effect::DropBody(name.to_owned())));
        }
        if find::<Answer>(&self.answers, id)?.is_some_and(|answer| answer.aside) {
            effects.push(Effect::DropBody(Call::answer_name(id)));
        }
        for table in [&mut self.calls, &mut self.bodies, &mut self.progress, &mut self.answers] {
            table.remove(id).map_err(broken)?;
        }
        effects.push(Effect::Released(id.to_owned()));
        Ok(())
    }

    /// Forgets what need not be kept any more; when there is more to forget.
    pub fn forget(&mut self, now: u64, effects: &mut Vec<Effect>) -> Result<Option<u64>, Error> {
        let old: Result<Vec<(u64, String)>, Error> = self
            .ended
            .range(..=(now, LAST))
            .map_err(broken)?
            .take(FORGET)
            .map(|row| row.map(|(key, _)| (key.value().0, key.value().1.to_owned())).map_err(broken))
            .collect();
        for (until, id) in old? {
            self.remove(until, &id, effects)?;
        }
        let next = self.ended.iter().map_err(broken)?.next().transpose().map_err(broken)?;
        Ok(next.map(|(key, _)| key.value().0))
    }
}

/// A function, when its first call is due, and the first that is not due yet.
pub type Firsts = (String, Option<u64>, Option<u64>);

/// A snapshot of the file.
pub struct Reader {
    read: ReadTransaction,
    /// Open as long as it is read.
    _db: Arc<Database>,
}

impl Reader {
    pub fn new(db: Arc<Database>) -> Result<Self, Error> {
        let read = db.begin_read().map_err(broken)?;
        Ok(Self { read, _db: db })
    }

    /// Function and time of all that waits.
    pub fn waiting(&self, mut tell: impl FnMut(&str, u64)) -> Result<(), Error> {
        for row in self.read.open_table(DUE).map_err(broken)?.iter().map_err(broken)? {
            let (key, _) = row.map_err(broken)?;
            let (function, due, _) = key.value();
            tell(function, due);
        }
        Ok(())
    }

    /// Id and ticket of all that runs.
    pub fn running(&self) -> Result<Vec<(String, u64)>, Error> {
        let table = self.read.open_table(RUNNING).map_err(broken)?;
        let rows = table.iter().map_err(broken)?;
        rows.map(|row| row.map(|(id, number)| (id.value().to_owned(), number.value())).map_err(broken))
            .collect()
    }

    pub fn call(&self, id: &str) -> Result<Option<Call>, Error> {
        find(&self.read.open_table(CALLS).map_err(broken)?, id)
    }

    pub fn first_ended(&self) -> Result<Option<u64>, Error> {
        let ended = self.read.open_table(ENDED).map_err(broken)?;
        let first = ended.iter().map_err(broken)?.next().transpose().map_err(broken)?;
        Ok(first.map(|(key, _)| key.value().0))
    }

    /// What is due first of each of these.
    pub fn firsts(&self, functions: BTreeSet<String>, now: u64) -> Result<Vec<Firsts>, Error> {
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
        let kept = !progress.is_over(stoker_core::moment::now_ms());
        Ok(kept.then_some(Kept { call, progress, answer }))
    }

    pub fn list(&self, filter: Filter) -> Result<Page, Error> {
        let now = stoker_core::moment::now_ms();
        let from = if filter.state == Some(State::Dead) { DEAD } else { MADE };
        let made = self.read.open_table(from).map_err(broken)?;
        let progress = self.read.open_table(PROGRESS).map_err(broken)?;
        let rows = match filter.after.is_empty() {
            true => made.range(..(u64::MAX, LAST)),
            false => made.range(..position(&filter.after).ok_or_else(crate::no_position)?),
        };
        let calls = self.read.open_table(CALLS).map_err(broken)?;
        let mut filling = Filling::new(filter);
        for row in rows.map_err(broken)?.rev() {
            let (key, _) = row.map_err(broken)?;
            let (ms, id) = key.value();
            let kept = find::<Call>(&calls, id)?
                .map(|call| {
                    let found = find(&progress, id)?;
                    Ok(Kept { progress: found.unwrap_or_else(|| Progress::new(&call)), call, answer: None })
                })
                .transpose()?;
            let kept = kept.filter(|kept| !kept.progress.is_over(now));
            if !filling.look(kept, format!("{ms:x}.{id}")) {
                break;
            }
        }
        Ok(filling.page)
    }
}

/// What a list said of where the next begins.
fn position(text: &str) -> Option<(u64, &str)> {
    let (ms, id) = text.split_once('.')?;
    Some((u64::from_str_radix(ms, 16).ok()?, id))
}
