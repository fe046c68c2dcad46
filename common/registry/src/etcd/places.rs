//! Places of functions with a limit, in etcd: below each function a key for every holder, with how many it holds and wants, that lives as long as its lease.
//!
//! Whoever wants more reads what the others hold, and writes its own key only if none of theirs has changed since: all together never
//! hold more than the limit. A holder that is gone takes its keys along when its lease ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp};
use stoker_core::function::FunctionName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::link::{self, Link, Trouble};
use super::record;
use crate::Error;
use crate::places::{Claim, Claims, Places};

/// Changes that wait for their turn.
const WAITING: usize = 64;

/// See the module. Its task ends, and its places are given back, when it is dropped.
pub struct EtcdPlaces {
    holder: String,
    asks: mpsc::Sender<Ask>,
    claims: watch::Receiver<Arc<Claims>>,
    lost: watch::Receiver<u64>,
    _stop: DropGuard,
}

struct Ask {
    name: FunctionName,
    limit: u32,
    claim: Claim,
    answer: oneshot::Sender<Result<u32, Error>>,
}

impl EtcdPlaces {
    pub fn start(
        link: Arc<Link>,
        claims: watch::Receiver<Arc<Claims>>,
        lease: Duration,
        holder: &str,
    ) -> Self {
        let (asks, asked) = mpsc::channel(WAITING);
        let (lost, seen) = watch::channel(0);
        let stop = CancellationToken::new();
        let (name, holder) = (holder.to_owned(), holder.to_owned());
        let task = Holder { link, client: None, ttl: lease, name, lease: None, lost };
        tokio::spawn(task.run(asked, stop.clone()));
        Self { holder, asks, claims, lost: seen, _stop: stop.drop_guard() }
    }
}

#[async_trait]
impl Places for EtcdPlaces {
    fn holder(&self) -> &str {
        &self.holder
    }

    async fn hold(&self, name: &FunctionName, limit: u32, claim: Claim) -> Result<u32, Error> {
        let gone = || Error::Unavailable {
            attempt: "holding places in etcd".to_owned(),
            reason: "this is being stopped".to_owned(),
        };
        let (answer, told) = oneshot::channel();
        let ask = Ask { name: name.clone(), limit, claim, answer };
        self.asks.send(ask).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))
    }

    fn claims(&self) -> watch::Receiver<Arc<Claims>> {
        self.claims.clone()
    }

    fn lost(&self) -> watch::Receiver<u64> {
        self.lost.clone()
    }
}

/// The task.
struct Holder {
    link: Arc<Link>,
    /// The connection that did last: a new one takes time, with a password much of it.
    client: Option<Client>,
    ttl: Duration,
    name: String,
    lease: Option<Lease>,
    /// Counts how often everything that was held is held no more.
    lost: watch::Sender<u64>,
}

struct Lease {
    id: i64,
    /// When it is to be renewed.
    renew: Instant,
}

impl Holder {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, stop: CancellationToken) {
        loop {
            let renew = self.lease.as_ref().map(|lease| lease.renew);
            tokio::select! {
                () = stop.cancelled() => break,
                ask = asked.recv() => match ask {
                    Some(ask) => {
                        let held = self.hold(&ask).await;
                        // Who does not wait any more asks again when it needs to know.
                        ask.answer.send(held).ok();
                    }
                    None => break,
                },
                () = tokio::time::sleep_until(renew.unwrap_or_else(Instant::now)), if renew.is_some() => self.renew().await,
            }
        }
        let Some(lease) = self.lease.take() else { return };
        let link = self.link.clone();
        let revoked = self.ask("giving places back", async |client: Client| {
            match link.within(client.lease_client().revoke(lease.id)).await {
                Ok(_) | Err(Trouble::LeaseGone) => Ok(()),
                Err(trouble) => Err(trouble),
            }
        });
        if let Err(error) = revoked.await {
            tracing::warn!(%error, "places could not be given back: their lease ends by itself");
        }
    }

    /// Asks by the connection that there is, and by another where that is broken.
    async fn ask<T, F: Future<Output = Result<T, Trouble>>>(
        &mut self,
        attempt: &str,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, Error> {
        if let Some(client) = &self.client {
            match ask(client.clone()).await {
                Err(trouble) if trouble.is_away() => self.client = None,
                answer => return answer.map_err(|trouble| self.link.error(attempt, &trouble)),
            }
        }
        let by = async |client: Client| Ok((ask(client.clone()).await?, client));
        let (answer, client) = self.link.ask(attempt, by).await?;
        self.client = Some(client);
        Ok(answer)
    }

    async fn renew(&mut self) {
        let Some(lease) = &self.lease else { return };
        let (id, link) = (lease.id, self.link.clone());
        let there = self.ask("keeping places", async |client: Client| {
            match link.within(client.lease_client().keep_alive(id)).await {
                Ok(_) => Ok(true),
                Err(Trouble::LeaseGone) => Ok(false),
                Err(trouble) => Err(trouble),
            }
        });
        match there.await {
            Ok(true) => self.lease = Some(Lease { id, renew: Instant::now() + self.ttl / 3 }),
            // It may have ended by now, and others may have the places.
            Ok(false) | Err(_) => self.lose(),
        }
    }

    fn lose(&mut self) {
        self.lease = None;
        self.lost.send_modify(|times| *times += 1);
    }

    async fn lease(&mut self) -> Result<i64, Error> {
        if let Some(lease) = &self.lease {
            return Ok(lease.id);
        }
        let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let link = self.link.clone();
        let grant =
            async |client: Client| Ok(link.within(client.lease_client().grant(ttl, None)).await?.id());
        let id = self.ask("holding places", grant).await?;
        self.lease = Some(Lease { id, renew: Instant::now() + self.ttl / 3 });
        Ok(id)
    }

    async fn hold(&mut self, ask: &Ask) -> Result<u32, Error> {
        let all = record::places_prefix(&ask.name);
        let own = format!("{all}{}", self.name);
        loop {
            let lease = self.lease().await?;
            let link = self.link.clone();
            let held = self.ask("holding places", async |client: Client| {
                match write(&link, &client, &all, &own, lease, ask).await {
                    Ok(held) => Ok(Some(held)),
                    Err(Trouble::LeaseGone) => Ok(None),
                    Err(trouble) => Err(trouble),
                }
            });
            match held.await? {
                Some(Some(held)) => return Ok(held),
                // Another holder came between, so there was progress: look again.
                Some(None) => {}
                None => self.lose(),
            }
        }
    }
}

/// Writes what is held from now on, unless another holder came between.
async fn write(
    link: &Link,
    client: &Client,
    all: &str,
    own: &str,
    lease: i64,
    ask: &Ask,
) -> Result<Option<u32>, Trouble> {
    let options = GetOptions::new().with_prefix();
    let found = link.within(link::kv(client).get(all, Some(options))).await?;
    let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
    let (mut mine, mut others) = (None, 0u32);
    for row in found.kvs() {
        // What cannot be read is nobody's that we know how to heed.
        let claim = record::claim(row.value()).unwrap_or_default();
        match row.key() == own.as_bytes() {
            true => mine = Some((claim, row.lease())),
            false => others = others.saturating_add(claim.places),
        }
    }
    let held = ask.claim.places.min(ask.limit.saturating_sub(others));
    let claim = Claim { places: held, ..ask.claim };
    if mine.map_or(claim.is_empty(), |(before, with)| before == claim && with == lease && !claim.is_empty()) {
        return Ok(Some(held));
    }
    let change = match claim.is_empty() {
        true => TxnOp::delete(own, None::<DeleteOptions>),
        false => TxnOp::put(own, record::claim_value(&claim), Some(PutOptions::new().with_lease(lease))),
    };
    let unchanged = Compare::mod_revision(all, CompareOp::Less, revision + 1).with_prefix();
    let done = link.within(link::kv(client).txn(Txn::new().when([unchanged]).and_then([change]))).await?;
    Ok(done.succeeded().then_some(held))
}
