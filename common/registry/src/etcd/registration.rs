//! A runner's place in the fleet: a key that lives as long as a lease, and a task that sees to both.
//!
//! Whoever publishes only leaves the newest record here and goes on; the task writes it when etcd takes it. etcd may be away or silent
//! for as long as it likes: the task tries again, takes its lease up where it is still there, and else registers the same
//! incarnation under a new one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, KeyValue, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp,
    WatchOptions,
};
use stoker_core::capacity::Capacity;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::figures::Part;
use super::link::{self, Link, Outage, Trouble};
use super::record;
use crate::{Error, Registration};

/// etcd looks for leases that ended every half second; this is for that and for a slow answer.
const SWEEP: Duration = Duration::from_secs(2);

/// The longest that a starting runner waits for the lease of an earlier life to end.
const LONGEST_LEASE: Duration = Duration::from_secs(60);

/// See the module.
pub struct EtcdRegistration {
    latest: watch::Sender<Arc<Capacity>>,
    known: watch::Receiver<bool>,
    stop: CancellationToken,
    done: JoinHandle<()>,
}

impl EtcdRegistration {
    /// Registers at once if etcd answers; else the task does, when it does.
    ///
    /// # Errors
    /// [`Error::RunnerNameTaken`].
    pub async fn start(link: Arc<Link>, ttl: Duration, record: Capacity) -> Result<Self, Error> {
        let name = record.runner.clone();
        let latest = watch::Sender::new(Arc::new(record));
        let registered = watch::Sender::new(false);
        let known = registered.subscribe();
        let mut keeper = Keeper {
            key: record::runner_key(&name),
            outage: Outage::new(&link, Part::Registration, format!("the registration of {name}")),
            member: link.good(),
            latest: latest.subscribe(),
            link,
            ttl,
            lease: None,
            rival: None,
            registered,
        };
        let held = match keeper.first().await {
            Ok(held) => Some(held),
            Err(Unheld::Taken(row)) => {
                let address = keeper.address_of(&row);
                return Err(Error::RunnerNameTaken { name, address });
            }
            Err(Unheld::Trouble(trouble)) => {
                keeper.outage.goes_on(&trouble);
                None
            }
        };
        let stop = CancellationToken::new();
        let done = tokio::spawn(keeper.run(held, stop.clone()));
        Ok(Self { latest, known, stop, done })
    }
}

#[async_trait]
impl Registration for EtcdRegistration {
    async fn publish(&self, record: Capacity) -> Result<(), Error> {
        self.latest.send_replace(Arc::new(record));
        Ok(())
    }

    fn known(&self) -> watch::Receiver<bool> {
        self.known.clone()
    }

    async fn withdraw(mut self: Box<Self>) {
        self.stop.cancel();
        if let Err(error) = (&mut self.done).await {
            tracing::error!(%error, "the task of a registration failed");
        }
    }
}

impl Drop for EtcdRegistration {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The task.
struct Keeper {
    link: Arc<Link>,
    ttl: Duration,
    key: String,
    latest: watch::Receiver<Arc<Capacity>>,
    /// Whom to ask.
    member: usize,
    /// The lease that the key was, or was to be, written with.
    lease: Option<i64>,
    /// The lease of the last other runner of our name that the log was told of.
    rival: Option<i64>,
    /// The key was ours once.
    registered: watch::Sender<bool>,
    outage: Outage,
}

/// The key is written, and its lease is kept.
struct Held {
    client: Client,
    lease: i64,
    keeper: LeaseKeeper,
    replies: LeaseKeepAliveStream,
    /// A third of what etcd granted.
    beat: Duration,
}

/// Why the key is not ours.
enum Unheld {
    /// Another runner's record stands there.
    Taken(KeyValue),
    Trouble(Trouble),
}

impl<T: Into<Trouble>> From<T> for Unheld {
    fn from(trouble: T) -> Self {
        Unheld::Trouble(trouble.into())
    }
}

impl Keeper {
    /// The first attempt, for which the runner's start waits. A record under this name may be that of a life that was killed: it is
    /// given the time in which its lease would end, and is alive if it is still there then.
    async fn first(&mut self) -> Result<Held, Unheld> {
        let row = match self.hold().await {
            Err(Unheld::Taken(row)) => row,
            other => return other,
        };
        tracing::info!(key = self.key, "waiting for the lease of an earlier record of this name to end");
        let client = self.link.connect(self.member).await?;
        let left = self.link.within(client.lease_client().time_to_live(row.lease(), None)).await?.ttl();
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(LONGEST_LEASE);
        if let Ok(Err(trouble)) = tokio::time::timeout(left + SWEEP, self.change(&client, &row)).await {
            return Err(trouble.into());
        }
        self.hold().await
    }

    /// Returns when the key is deleted or written again.
    async fn change(&self, client: &Client, row: &KeyValue) -> Result<(), Trouble> {
        let options = WatchOptions::new().with_start_revision(row.mod_revision() + 1);
        let mut watches = link::watches(client);
        let mut stream = self.link.within(watches.watch(self.key.as_str(), Some(options))).await?;
        while let Some(response) = stream.message().await? {
            if response.canceled() {
                break;
            }
            if !response.events().is_empty() {
                return Ok(());
            }
        }
        Err(Trouble::Ended("the watch on the runner's key ended".into()))
    }

    async fn run(mut self, held: Option<Held>, stop: CancellationToken) {
        let mut waits = link::waits();
        let mut held = held;
        loop {
            let trouble: &dyn std::fmt::Display = &tokio::select! {
                () = stop.cancelled() => break,
                trouble = self.hold_on(held.take(), &mut waits) => trouble,
            };
            self.outage.goes_on(trouble);
            self.member = self.member.wrapping_add(1);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(waits.next().unwrap_or_default()) => {}
            }
        }
        self.release().await;
    }

    /// Takes the key and keeps it, until something is in the way: returns what.
    async fn hold_on(&mut self, held: Option<Held>, waits: &mut stoker_core::backoff::Backoff) -> String {
        let held = match held {
            Some(held) => held,
            None => match self.hold().await {
                Ok(held) => held,
                Err(Unheld::Trouble(trouble)) => return trouble.to_string(),
                Err(Unheld::Taken(row)) => {
                    self.tell_of(&row);
                    return "another runner is registered under this name".to_owned();
                }
            },
        };
        self.outage.is_over();
        *waits = link::waits();
        self.keep(held).await.to_string()
    }

    /// Says who took our name while our lease was gone: that does not pass by itself, as an etcd that is away does.
    fn tell_of(&mut self, row: &KeyValue) {
        if self.rival.replace(row.lease()) == Some(row.lease()) {
            return;
        }
        let (name, address) = (self.latest.borrow().runner.clone(), self.address_of(row));
        tracing::error!(
            %name, address,
            "another runner is registered under this name: stop one of the two, or give it another name; balancers that start anew know that one alone"
        );
    }

    /// Where the runner is whose record stands under our name.
    fn address_of(&self, row: &KeyValue) -> String {
        let ours = self.latest.borrow();
        match record::runner(ours.runner.as_str(), row.value()) {
            Ok(theirs) => theirs.address,
            Err(_) => "an address that cannot be read".to_owned(),
        }
    }

    /// Looks who has the key, and makes it ours if nobody else has.
    async fn hold(&mut self) -> Result<Held, Unheld> {
        let client = self.link.connect(self.member).await?;
        let found = self.link.within(link::kv(&client).get(self.key.as_str(), None)).await?.take_kvs();
        let found = found.into_iter().next();
        if let Some(row) = found.as_ref().filter(|row| !self.may_replace(row)) {
            return Err(Unheld::Taken(row.clone()));
        }
        let (lease, keeper, replies, granted) = self.take_lease(&client).await?;
        let seen = found.map_or(0, |row| row.mod_revision());
        let record = self.latest.borrow_and_update().clone();
        let unchanged = Compare::mod_revision(self.key.as_str(), CompareOp::Equal, seen);
        let txn = Txn::new().when([unchanged]).and_then([self.put(&record, lease)]);
        if !self.link.within(link::kv(&client).txn(txn)).await?.succeeded() {
            return Err(Trouble::Ended("the runner's key changed while it was being written".into()).into());
        }
        self.registered.send_replace(true);
        Ok(Held { client, lease, keeper, replies, beat: granted / 3 })
    }

    /// Whether a record under our name gives way to ours.
    fn may_replace(&self, row: &KeyValue) -> bool {
        // A live runner's record has a lease.
        if row.lease() == 0 || Some(row.lease()) == self.lease {
            return true;
        }
        let ours = self.latest.borrow();
        match record::runner(ours.runner.as_str(), row.value()) {
            Ok(theirs) if theirs.incarnation == ours.incarnation => true,
            // An address serves one process: this one. Who had it before is gone.
            Ok(theirs) => !*self.registered.borrow() && theirs.address == ours.address,
            Err(_) => false,
        }
    }

    /// The lease that we had, if it is still there, or a new one.
    async fn take_lease(
        &mut self,
        client: &Client,
    ) -> Result<(i64, LeaseKeeper, LeaseKeepAliveStream, Duration), Trouble> {
        let mut leases = client.lease_client();
        if let Some(id) = self.lease {
            match self.link.within(leases.keep_alive(id)).await {
                Ok((keeper, replies)) => {
                    let left = self.link.within(leases.time_to_live(id, None)).await?.granted_ttl();
                    return Ok((id, keeper, replies, seconds(left)));
                }
                Err(Trouble::LeaseGone) => self.lease = None,
                Err(trouble) => return Err(trouble),
            }
        }
        let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let granted = self.link.within(leases.grant(ttl, None)).await?;
        self.lease = Some(granted.id());
        let (keeper, replies) = self.link.within(leases.keep_alive(granted.id())).await?;
        Ok((granted.id(), keeper, replies, seconds(granted.ttl())))
    }

    /// Keeps the lease and writes what is published, until one of them fails.
    async fn keep(&mut self, mut held: Held) -> Trouble {
        let mut beat = tokio::time::interval(held.beat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                _ = beat.tick() => self.renew(&mut held).await,
                changed = self.latest.changed() => match changed {
                    Ok(()) => self.write(&held).await,
                    // The registration was dropped: the task is being stopped.
                    Err(_) => std::future::pending().await,
                },
            };
            if let Err(trouble) = done {
                if matches!(trouble, Trouble::LeaseGone) {
                    self.lease = None;
                }
                return trouble;
            }
        }
    }

    async fn renew(&self, held: &mut Held) -> Result<(), Trouble> {
        self.link.within(held.keeper.keep_alive()).await?;
        match self.link.within(held.replies.message()).await? {
            Some(reply) if reply.ttl() > 0 => Ok(()),
            Some(_) => Err(Trouble::LeaseGone),
            None => Err(Trouble::Ended("etcd stopped keeping the lease".into())),
        }
    }

    /// Writes the newest record, if the key is still the one that we wrote.
    async fn write(&mut self, held: &Held) -> Result<(), Trouble> {
        let record = self.latest.borrow_and_update().clone();
        let ours = Compare::lease(self.key.as_str(), CompareOp::Equal, held.lease);
        let txn = Txn::new().when([ours]).and_then([self.put(&record, held.lease)]);
        match self.link.within(link::kv(&held.client).txn(txn)).await?.succeeded() {
            true => Ok(()),
            false => Err(Trouble::Ended("the runner's key was deleted, or another has it".into())),
        }
    }

    fn put(&self, record: &Capacity, lease: i64) -> TxnOp {
        let options = PutOptions::new().with_lease(lease);
        TxnOp::put(self.key.as_str(), record::runner_value(record), Some(options))
    }

    /// Takes the runner out. Where etcd does not answer, the lease ends by itself.
    async fn release(self) {
        let Some(lease) = self.lease else { return };
        let revoked = self.link.ask("taking the runner out", async |client: Client| {
            match self.link.within(client.lease_client().revoke(lease)).await {
                Ok(_) | Err(Trouble::LeaseGone) => Ok(()),
                Err(trouble) => Err(trouble),
            }
        });
        if let Err(error) = revoked.await {
            tracing::warn!(%error, key = self.key, "the runner could not be taken out: its lease ends by itself");
        }
    }
}

fn seconds(s: i64) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0)).max(Duration::from_secs(1))
}
