//! A table of etcd as one immutable snapshot: list it, then watch it from that revision, and begin again when the watch ends.
//!
//! Beginning again always lists. What was missed meanwhile, compacted away, or lost with a restored or emptied etcd needs no case of
//! its own that way; a thousand runners are a megabyte. Until the first list the table is unknown, and as long as etcd is away the last
//! snapshot stands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::figures::Part;
use super::link::{self, Link, Outage, Trouble};
use super::record::Unreadable;

/// Keys of one request of a list.
const PAGE: i64 = 100;

/// Snapshots are at least so far apart: each is a copy, and work for whoever reads it. What arrives meanwhile goes into the next.
const APART: Duration = Duration::from_millis(10);

/// Responses that go into one snapshot at most.
const TOGETHER: usize = 1000;

/// What a snapshot is made of: the keys under a prefix.
pub trait Table: Clone + Default + Send + Sync + 'static {
    const PREFIX: &'static str;
    /// For logs.
    const WHAT: &'static str;
    /// For figures.
    const PART: Part;

    /// The table without a row.
    fn known() -> Self;

    /// Sets a row. `key` is without the prefix.
    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable>;

    /// Removes a row, if it is there.
    fn remove(&mut self, key: &str);
}

/// See the module.
pub struct View<T> {
    snapshot: watch::Sender<Arc<T>>,
    /// The revision that the snapshot has reached.
    revision: watch::Sender<i64>,
    /// Someone needs it now: a wait between attempts ends.
    wanted: Notify,
}

impl<T: Table> Default for View<T> {
    fn default() -> Self {
        Self { snapshot: watch::Sender::default(), revision: watch::Sender::new(0), wanted: Notify::new() }
    }
}

impl<T: Table> View<T> {
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.snapshot.subscribe()
    }

    /// Returns once the snapshot has what etcd had at `revision`.
    pub async fn reaches(&self, revision: i64) {
        self.wanted.notify_one();
        // It cannot fail: the sender lives as long as `self`.
        _ = self.revision.subscribe().wait_for(|reached| *reached >= revision).await;
    }

    /// Keeps the snapshot up to date until told to stop.
    pub async fn follow(self: Arc<Self>, link: Arc<Link>, stop: CancellationToken) {
        let mut follower = Follower {
            view: &self,
            unreadable: BTreeSet::new(),
            outage: Outage::new(&link, T::PART, T::WHAT),
            watched: false,
            member: link.good(),
        };
        let mut waits = link::waits();
        loop {
            let trouble = tokio::select! {
                () = stop.cancelled() => return,
                trouble = follower.list_and_watch(&link) => trouble,
            };
            follower.outage.goes_on(&trouble);
            follower.member = follower.member.wrapping_add(1);
            if std::mem::take(&mut follower.watched) {
                waits = link::waits();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wanted.notified() => {}
                () = tokio::time::sleep(waits.next().unwrap_or_default()) => {}
            }
        }
    }
}

struct Follower<'a, T> {
    view: &'a View<T>,
    /// Keys whose values were complained of: once each, however often they are written.
    unreadable: BTreeSet<String>,
    outage: Outage,
    /// This attempt came as far as a watch.
    watched: bool,
    /// Whom to ask.
    member: usize,
}

impl<T: Table> Follower<'_, T> {
    /// Returns when the watch ends, with the reason.
    async fn list_and_watch(&mut self, link: &Link) -> Trouble {
        match self.try_list_and_watch(link).await {
            Ok(trouble) | Err(trouble) => trouble,
        }
    }

    async fn try_list_and_watch(&mut self, link: &Link) -> Result<Trouble, Trouble> {
        let client = link.connect(self.member).await?;
        let (rows, listed) = list(link, &client, T::PREFIX).await?;
        let mut table = T::known();
        rows.iter().for_each(|row| self.put(&mut table, row));
        self.outage.heard(listed);
        self.publish(table, listed);
        self.watch(link, &client, listed + 1).await
    }

    /// Takes in what happens from a revision on.
    async fn watch(&mut self, link: &Link, client: &Client, from: i64) -> Result<Trouble, Trouble> {
        let options = WatchOptions::new().with_prefix().with_progress_notify().with_start_revision(from);
        let mut watches = link::watches(client);
        let mut stream = link.within(watches.watch(T::PREFIX, Some(options))).await?;
        loop {
            let mut next = stream.message().await;
            let mut table = T::clone(&self.view.snapshot.borrow());
            let (mut revision, mut taken) = (0, 0);
            let ended = loop {
                match next {
                    Ok(Some(response)) => match self.apply(&mut table, &response) {
                        Ok(reached) => revision = revision.max(reached),
                        Err(trouble) => break Some(trouble),
                    },
                    Ok(None) => break Some(Trouble::Ended("the watch ended".into())),
                    Err(error) => break Some(Trouble::Etcd(error)),
                }
                taken += 1;
                if taken == TOGETHER {
                    break None;
                }
                match stream.message().now_or_never() {
                    Some(more) => next = more,
                    None => break None,
                }
            };
            if revision > 0 {
                self.publish(table, revision);
            }
            if let Some(trouble) = ended {
                return Ok(trouble);
            }
            tokio::time::sleep(APART).await;
        }
    }

    fn publish(&mut self, table: T, revision: i64) {
        self.view.snapshot.send_replace(Arc::new(table));
        self.view.revision.send_replace(revision);
    }

    /// Takes the events in; says which revision they reach, 0 for none.
    fn apply(&mut self, table: &mut T, response: &WatchResponse) -> Result<i64, Trouble> {
        if response.compact_revision() > 0 {
            return Err(Trouble::Ended("what the watch was to tell has been compacted away".into()));
        }
        if response.canceled() {
            return Err(Trouble::Ended(format!("etcd ended the watch: {}", response.cancel_reason())));
        }
        if response.created() {
            self.watched = true;
            self.outage.is_over();
        }
        // Also of one without events, by which etcd says where it stands.
        self.outage.heard(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        let mut revision = 0;
        for event in response.events() {
            let Some(row) = event.kv() else { continue };
            revision = revision.max(row.mod_revision());
            match event.event_type() {
                EventType::Put => self.put(table, row),
                EventType::Delete => {
                    let key = String::from_utf8_lossy(row.key());
                    let name = key.strip_prefix(T::PREFIX).unwrap_or(&key);
                    self.unreadable.remove(name);
                    table.remove(name);
                }
            }
        }
        Ok(revision)
    }

    /// Sets a row. One that cannot be read is not there: what this process knows must not depend on what stood there before.
    fn put(&mut self, table: &mut T, row: &KeyValue) {
        let key = String::from_utf8_lossy(row.key());
        let name = key.strip_prefix(T::PREFIX).unwrap_or(&key);
        match table.put(name, row.value()) {
            Ok(()) => {
                self.unreadable.remove(name);
            }
            Err(why) => {
                table.remove(name);
                if self.unreadable.insert(name.to_owned()) {
                    tracing::warn!(%key, %why, "a value in etcd cannot be read and is left out");
                }
            }
        }
    }
}

/// Every row under `prefix` as of one revision, and that revision.
pub async fn list(link: &Link, client: &Client, prefix: &str) -> Result<(Vec<KeyValue>, i64), Trouble> {
    let mut kv = link::kv(client);
    let options = GetOptions::new().with_prefix().with_limit(PAGE);
    let mut page = link.within(kv.get(prefix, Some(options))).await?;
    let revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
    let end = end_of(prefix);
    let mut rows = page.take_kvs();
    while page.more() {
        let Some(last) = rows.last() else { break };
        let mut after = last.key().to_vec();
        after.push(0);
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
        page = link.within(kv.get(after, Some(options))).await?;
        rows.extend(page.take_kvs());
    }
    Ok((rows, revision))
}

/// The first key after all that begin with `prefix`, which ends with an ASCII character.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fleet;
    use crate::etcd::Config;
    use crate::testing::Etcd;

    #[tokio::test]
    async fn a_watch_on_what_was_compacted_ends_and_says_so() {
        let Some(etcd) = Etcd::start().await else { return };
        etcd.put([("/stoker/v1/runners/a".to_owned(), b"x".to_vec())]).await;
        etcd.compact().await;
        let link = Link::new(&Config::new(vec![etcd.endpoint()]));
        let view = View::<Fleet>::default();
        let mut follower = Follower {
            view: &view,
            unreadable: BTreeSet::new(),
            outage: Outage::new(&link, Part::Fleet, "a test"),
            watched: false,
            member: 0,
        };
        let client = link.connect(0).await.unwrap();
        let ended = follower.watch(&link, &client, 1).await.unwrap();
        assert!(matches!(&ended, Trouble::Ended(why) if why.contains("compacted")), "{ended}");
    }
}
