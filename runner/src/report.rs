//! What this runner says about itself: sampled from ledger and pools, published to the registry and to every session, on
//! change at most every 75 ms, and on a beat. A moment later than the change: who is told takes CPU, and the call that made it needs that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::{Capacity, Incarnation, RunnerName, RunnerState};
use stoker_registry::Registration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pool::Pools;

/// News that comes just after other news waits so long. A change is to be known everywhere within 100 ms, by way of etcd too.
const APART: Duration = Duration::from_millis(75);
/// News waits so long in any case: a short call is over by then, its beginning and its end are one, and it has met nobody on its way.
const SETTLED: Duration = Duration::from_millis(5);
const BEAT: Duration = Duration::from_secs(5);

/// What a runner says of itself that stays the same as long as it lives.
struct Identity {
    name: RunnerName,
    incarnation: Incarnation,
    address: String,
    zone: String,
    labels: BTreeMap<String, String>,
}

impl Identity {
    /// The record of this moment.
    fn record(&self, sequence: u64, pools: &Pools) -> Capacity {
        let survey = pools.survey();
        let total = pools.ledger.total();
        if let Some(meters) = &pools.meters {
            meters.look(&survey, total);
        }
        Capacity {
            runner: self.name.clone(),
            incarnation: self.incarnation,
            address: self.address.clone(),
            zone: self.zone.clone(),
            labels: self.labels.clone(),
            sequence,
            state: if pools.drains() { RunnerState::Draining } else { RunnerState::Ready },
            total,
            free: survey.free,
            reclaimable: survey.reclaimable,
            in_flight: survey.in_flight,
            waiting: survey.waiting,
            functions: survey.functions,
        }
    }
}

/// Makes the record.
pub struct Report {
    who: Identity,
    pools: Arc<Pools>,
    /// Of the last record that was made.
    sequence: AtomicU64,
    latest: watch::Sender<Arc<Capacity>>,
}

impl Report {
    pub fn new(
        name: RunnerName,
        incarnation: Incarnation,
        address: String,
        zone: String,
        labels: BTreeMap<String, String>,
        pools: Arc<Pools>,
    ) -> Arc<Self> {
        let who = Identity { name, incarnation, address, zone, labels };
        let first = who.record(1, &pools);
        let latest = watch::Sender::new(Arc::new(first));
        Arc::new(Self { who, pools, sequence: AtomicU64::new(1), latest })
    }

    pub fn name(&self) -> &RunnerName {
        &self.who.name
    }

    /// The record of this moment.
    pub fn now(&self) -> Capacity {
        self.who.record(self.sequence.fetch_add(1, Ordering::Relaxed) + 1, &self.pools)
    }

    /// The record as it is published.
    pub fn watch(&self) -> watch::Receiver<Arc<Capacity>> {
        self.latest.subscribe()
    }

    /// Tells every session now. The registry learns it with the next publication, which follows within [`APART`].
    pub fn tell(&self) -> Capacity {
        let record = self.now();
        // Another may tell at the same time, and the newer one has it.
        self.latest.send_if_modified(|latest| {
            let newer = latest.sequence < record.sequence;
            if newer {
                *latest = Arc::new(record.clone());
            }
            newer
        });
        record
    }

    async fn publish(&self, registration: &dyn Registration) {
        let record = self.tell();
        if let Err(error) = registration.publish(record).await {
            tracing::warn!(%error, "the capacity could not be published; the next beat tries again");
        }
    }

    /// Publishes until told to stop, and hands the registration back.
    pub async fn run(
        self: Arc<Self>,
        registration: Box<dyn Registration>,
        stop: CancellationToken,
    ) -> Box<dyn Registration> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return registration,
                () = self.pools.changed.notified() => {}
                () = tokio::time::sleep(BEAT) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return registration,
                () = tokio::time::sleep(SETTLED) => {}
            }
            self.publish(&*registration).await;
            tokio::select! {
                () = stop.cancelled() => return registration,
                () = tokio::time::sleep(APART - SETTLED) => {}
            }
        }
    }
}
