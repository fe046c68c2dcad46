//! What becomes of one call: submitted, begun, written about, cancelled, made again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::kv::{CreateErrorKind, UpdateErrorKind};
use async_nats::jetstream::message::{AckKind, Acker, PublishMessage, StreamMessage};
use bytes::Bytes;
use prost::Message as _;
use stoker_core::moment::now_ms;

use super::lane::Arrived;
use super::setup::Store;
use super::{Held, Inner, away, read};
use crate::record::{Call, Kept, Progress, State};
use crate::{End, Error, Follow, Taken, Ticket};

/// A call that could not be begun comes again after this.
const PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    pub fn subject(&self, function: &str, id: &str) -> String {
        format!("{}.call.{}.{id}", self.config.prefix, super::tokens(function))
    }

    pub async fn submit(self: &Arc<Self>, call: Call) -> Result<bool, Error> {
        let store = self.store().await?;
        // First the lane: a call whose lane nobody knows would wait until somebody looks.
        self.lane(&store, &call.function).await?;
        if !call.key.is_empty()
            && let Some((kept, revision)) = self.entry(&store, &call.id).await?
        {
            if !kept.progress.is_over(now_ms()) {
                return Ok(false);
            }
            // What was submitted once with this key is not known any more, and may not stand in the way of what is new.
            self.forget_entry(&store, &kept, revision).await?;
        }
        let message = PublishMessage::build()
            .payload(call.encode_to_vec().into())
            .message_id(&call.id)
            .expected_last_subject_sequence(0);
        let sent = store.jetstream.send_publish(self.subject(&call.function, &call.id), message).await;
        match sent.map_err(away)?.await {
            // A repetition within the server's window of duplicates.
            Ok(ack) => Ok(!ack.duplicate),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(away(error)),
        }
    }

    pub async fn entry(&self, store: &Store, id: &str) -> Result<Option<(Kept, u64)>, Error> {
        match store.progress.entry(id).await.map_err(away)? {
            Some(entry) if !entry.value.is_empty() => Ok(Some((read(entry.value)?, entry.revision))),
            _ => Ok(None),
        }
    }

    /// The message of a call that has not ended.
    pub async fn message(&self, store: &Store, id: &str) -> Result<Option<StreamMessage>, Error> {
        use async_nats::jetstream::stream::LastRawMessageErrorKind as Kind;
        let subject = format!("{}.call.*.*.{id}", self.config.prefix);
        match store.calls.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == Kind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    /// A call whose message was delivered: begun, or `None` where it is not to be made now.
    pub async fn begin(&self, store: &Store, arrived: Arrived) -> Option<Taken> {
        let until = arrived.at.into_std() + self.config.lease;
        let (message, acker) = arrived.message.split();
        match self.try_begin(store, &message.payload, &acker).await {
            Ok(Some((call, progress, revision))) => {
                let number = self.tickets.fetch_add(1, Ordering::Relaxed);
                let ticket = Ticket { id: call.id.clone(), number };
                let (id, function) = (call.id.clone(), call.function.clone());
                let body = call.body_name().map(str::to_owned);
                let acker = Arc::new(acker);
                self.held().insert(number, Held { id, function, body, revision, until, acker });
                Some(Taken { call, progress, ticket })
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a call for later could not be begun");
                acker.ack_with(AckKind::Nak(Some(PAUSE))).await.ok();
                None
            }
        }
    }

    async fn try_begin(
        &self,
        store: &Store,
        payload: &Bytes,
        acker: &Acker,
    ) -> Result<Option<(Call, Progress, u64)>, Error> {
        let call: Call = read(payload.clone())?;
        loop {
            let entry = self.entry(store, &call.id).await?;
            let (mut kept, revision) = match entry {
                Some((kept, revision)) => (kept, Some(revision)),
                None => {
                    let progress = Progress::new(&call);
                    (Kept { call: without_body(&call), progress, answer: None }, None)
                }
            };
            let now = now_ms();
            if kept.progress.is() == State::Dead && call.redrives > kept.progress.redrives {
                kept.progress.redrive(now, call.redrives);
            }
            if kept.progress.is().is_end() {
                // Its end was written, and whoever wrote it was gone before the message was.
                acker.ack().await.map_err(away)?;
                return Ok(None);
            }
            if kept.progress.is() == State::Queued && kept.progress.due_ms > now {
                let wait = Duration::from_millis(kept.progress.due_ms - now);
                acker.ack_with(AckKind::Nak(Some(wait))).await.map_err(away)?;
                return Ok(None);
            }
            if let Some(wait) = self.still_made(&call.id, &kept.progress).await {
                acker.ack_with(AckKind::Nak(Some(wait))).await.map_err(away)?;
                return Ok(None);
            }
            kept.progress.begin(now);
            if let Some(begun) = kept.progress.attempts.last_mut() {
                begun.holder.clone_from(&self.name);
            }
            // What is made again has its body in its message, like any other.
            kept.call = without_body(&call);
            let value = Bytes::from(kept.encode_to_vec());
            match revision {
                None => match store.progress.create(&call.id, value).await {
                    Ok(revision) => return Ok(Some((call, kept.progress, revision))),
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
                    Err(error) => return Err(away(error)),
                },
                Some(revision) => match store.progress.update(&call.id, value, revision).await {
                    Ok(revision) => return Ok(Some((call, kept.progress, revision))),
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                    Err(error) => return Err(away(error)),
                },
            }
        }
    }

    /// Whether a ticket is good, and for which revision of the call's record.
    pub fn holds(&self, ticket: &Ticket) -> Result<u64, Error> {
        let mut held = self.held();
        match held.get(&ticket.number) {
            Some(mine) if mine.id == ticket.id && mine.until > Instant::now() => Ok(mine.revision),
            _ => {
                held.remove(&ticket.number);
                Err(Error::Lost)
            }
        }
    }

    fn function_of(&self, ticket: &Ticket) -> Result<String, Error> {
        self.held().get(&ticket.number).map(|mine| mine.function.clone()).ok_or(Error::Lost)
    }

    pub async fn extend(&self, ticket: &Ticket) -> Result<(), Error> {
        self.holds(ticket)?;
        let acker = {
            let mut held = self.held();
            let mine = held.get_mut(&ticket.number).ok_or(Error::Lost)?;
            mine.until = Instant::now() + self.config.lease;
            mine.acker.clone()
        };
        acker.ack_with(AckKind::Progress).await.map_err(away)
    }

    pub async fn finish(self: &Arc<Self>, ticket: &Ticket, end: End) -> Result<(), Error> {
        self.holds(ticket)?;
        let store = self.store().await?;
        // Before the end is known: a follow-up is sent at least once, under an id that is the same each time.
        for follow in end.then {
            match follow {
                Follow::Call(call) => _ = self.submit(call).await?,
                Follow::Message { subject, id, body } => self.send(&store, subject, id, body).await?,
            }
        }
        let (progress, answer) = (end.progress, end.answer);
        let ended = progress.clone();
        let dead = progress.is() == State::Dead;
        store.note(&self.function_of(ticket)?, &ticket.id, &ended).await?;
        // Its message goes, and with it the body, without which it could not be made again.
        let message = if dead { self.message(&store, &ticket.id).await? } else { None };
        let body = message.map(|message| read::<Call>(message.payload)).transpose()?.map(|call| call.body);
        let ends = |kept: &mut Kept| {
            (kept.progress, kept.answer) = (progress, answer);
            kept.call.body = body.unwrap_or_default();
        };
        self.write(&store, ticket, ends).await?;
        self.ended(&ticket.id, &ended);
        let mine = self.held().remove(&ticket.number);
        if let Some(mine) = mine {
            // Should it be lost, whoever meets the message reads the end.
            mine.acker.ack().await.ok();
            if let Some(body) = mine.body.filter(|_| !dead) {
                store.bodies.delete(&body).await.ok();
            }
        }
        Ok(())
    }

    pub async fn again(&self, ticket: &Ticket, progress: Progress) -> Result<(), Error> {
        let store = self.store().await?;
        let wait = Duration::from_millis(progress.due_ms.saturating_sub(now_ms()));
        self.write(&store, ticket, |kept| kept.progress = progress).await?;
        let mine = self.held().remove(&ticket.number);
        if let Some(mine) = mine {
            // Should it be lost, the message comes again when the lease is over.
            mine.acker.ack_with(AckKind::Nak((!wait.is_zero()).then_some(wait))).await.ok();
        }
        Ok(())
    }

    /// Writes how far a call is, by whoever holds it.
    pub async fn write(
        &self,
        store: &Store,
        ticket: &Ticket,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), Error> {
        let revision = self.holds(ticket)?;
        let Some((mut kept, now)) = self.entry(store, &ticket.id).await? else { return Err(Error::Lost) };
        let before = kept.progress.clone();
        change(&mut kept);
        if now != revision {
            // Perhaps it was ourselves, and only the answer was lost.
            return if before == kept.progress { Ok(()) } else { self.lose(ticket) };
        }
        match store.progress.update(&ticket.id, kept.encode_to_vec().into(), revision).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => self.lose(ticket),
            Err(error) => Err(away(error)),
        }
    }

    fn lose(&self, ticket: &Ticket) -> Result<(), Error> {
        self.held().remove(&ticket.number);
        Err(Error::Lost)
    }

    pub async fn get(&self, store: &Store, id: &str) -> Result<Option<Kept>, Error> {
        for _ in 0..2 {
            if let Some((mut kept, _)) = self.entry(store, id).await? {
                kept.call.body.clear();
                return Ok((!kept.progress.is_over(now_ms())).then_some(kept));
            }
            if let Some(message) = self.message(store, id).await? {
                let call: Call = read(message.payload)?;
                let progress = Progress::new(&call);
                return Ok(Some(Kept { call: without_body(&call), progress, answer: None }));
            }
            // It may have been begun and ended between the two looks.
        }
        Ok(None)
    }

    pub async fn cancel(&self, store: &Store, id: &str, keep_until_ms: u64) -> Result<Option<Kept>, Error> {
        loop {
            let message = self.message(store, id).await?;
            let (mut kept, revision) = match (self.entry(store, id).await?, &message) {
                (Some((kept, _)), _) if kept.progress.is_over(now_ms()) => return Ok(None),
                (Some((kept, revision)), _) => (kept, Some(revision)),
                (None, Some(message)) => {
                    let call: Call = read(message.payload.clone())?;
                    let progress = Progress::new(&call);
                    (Kept { call: without_body(&call), progress, answer: None }, None)
                }
                (None, None) => return Ok(None),
            };
            if kept.progress.is().is_end() {
                (kept.answer, kept.call.body) = (None, Bytes::new());
                return Ok(Some(kept));
            }
            let ran = kept.progress.is() == State::Running;
            kept.progress.cancel(now_ms(), keep_until_ms);
            store.note(&kept.call.function, id, &kept.progress).await?;
            let value = Bytes::from(kept.encode_to_vec());
            let raced = match revision {
                None => match store.progress.create(id, value).await {
                    Ok(_) => false,
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => true,
                    Err(error) => return Err(away(error)),
                },
                Some(revision) => match store.progress.update(id, value, revision).await {
                    Ok(_) => false,
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => true,
                    Err(error) => return Err(away(error)),
                },
            };
            if raced {
                continue;
            }
            self.ended(id, &kept.progress);
            if let Some(message) = message {
                // What stays is met by whoever takes it next, who reads that it has ended.
                store.calls.delete_message(message.sequence).await.ok();
            }
            if ran {
                let subject = format!("{}.cancelled", self.config.prefix);
                self.client.publish(subject, id.to_owned().into()).await.map_err(away)?;
            }
            if let Some(body) = kept.call.body_name() {
                store.bodies.delete(body).await.ok();
            }
            return Ok(Some(kept));
        }
    }

    /// The message alone makes it again: whoever meets it in place of what was given up begins anew. That the table says so already is for
    /// those who look.
    pub async fn redrive(self: &Arc<Self>, store: &Store, id: &str) -> Result<Option<(Kept, bool)>, Error> {
        let seen = |kept: Option<Kept>| kept.map(|kept| (kept, false));
        let Some((mut kept, revision)) = self.entry(store, id).await? else {
            return Ok(seen(self.get(store, id).await?));
        };
        if kept.progress.is() != State::Dead || kept.progress.is_over(now_ms()) {
            return Ok(seen(self.get(store, id).await?));
        }
        if !kept.call.aside && kept.call.body_bytes > 0 && kept.call.body.is_empty() {
            return Err(crate::no_body());
        }
        let dead = kept.clone();
        let times = kept.progress.redrives + 1;
        let call = Call { redrives: times, ..kept.call.clone() };
        self.lane(store, &call.function).await?;
        // That of its last attempt may still be there, if its end was not heard by the server.
        if let Some(left) = self.message(store, id).await?
            && read::<Call>(left.payload)?.redrives < times
        {
            store.calls.delete_message(left.sequence).await.map_err(away)?;
        }
        let message = PublishMessage::build()
            .payload(call.encode_to_vec().into())
            .message_id(format!("{id}-{times}"))
            .expected_last_subject_sequence(0);
        let sent = store.jetstream.send_publish(self.subject(&call.function, id), message).await;
        let first = match sent.map_err(away)?.await {
            Ok(ack) => !ack.duplicate,
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => false,
            Err(error) => return Err(away(error)),
        };
        kept.progress.redrive(now_ms(), times);
        kept.call = without_body(&call);
        // Who has begun it meanwhile has written so.
        store.progress.update(id, kept.encode_to_vec().into(), revision).await.ok();
        store.strike(&dead).await;
        Ok(self.get(store, id).await?.map(|kept| (kept, first)))
    }

    /// Sends what follows from an end. A stream that keeps the subject says that it has it; without one whoever listens now hears it, who answers
    /// nothing.
    pub async fn send(&self, store: &Store, subject: String, id: String, body: Bytes) -> Result<(), Error> {
        match store.jetstream.stream_by_subject(&subject).await {
            Ok(_) => {}
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {
                return self.client.publish(subject, body).await.map_err(away);
            }
            Err(error) if error.kind() == GetStreamByNameErrorKind::InvalidSubject => {
                return Err(Error::Unsupported(format!("{subject:?} is no subject")));
            }
            Err(error) => return Err(away(error)),
        }
        // Sent once more, it is known by its id.
        let message = PublishMessage::build().payload(body).message_id(&id);
        let sent = store.jetstream.send_publish(subject, message).await.map_err(away)?;
        sent.await.map(|_| ()).map_err(away)
    }
}

fn without_body(call: &Call) -> Call {
    Call { body: Bytes::new(), ..call.clone() }
}
