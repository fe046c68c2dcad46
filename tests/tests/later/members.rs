//! A queue of three members, one of which dies, or is cut off from the others: most of them go on, and no call is lost.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use stoker_core::backoff::split_mix;
use stoker_queue::testing::{CLUSTER, Nats};
use stoker_tests::cluster::cut::{Fault, Wire};

/// Longer than the others take to notice and to choose who leads.
const APART: Duration = Duration::from_secs(12);

/// The members, and the ways between them.
pub struct Members {
    all: Vec<Nats>,
    /// From one, to another.
    ways: HashMap<(usize, usize), Wire>,
}

impl Members {
    /// Three; `None` where tests with NATS are left out.
    pub async fn start() -> Option<Self> {
        let ways = Mutex::new(HashMap::new());
        let all = Nats::cluster(3, async |from, to, address| {
            let way = Wire::to(address).await;
            let address = way.address;
            ways.lock().unwrap().insert((from, to), way);
            address
        });
        let all = all.await?;
        Some(Self { all, ways: ways.into_inner().unwrap() })
    }

    /// Their addresses, for whoever may connect to any.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.all.iter().map(Nats::url).collect();
        urls.join(",")
    }

    /// One is killed, and starts again.
    pub async fn kill_one(&mut self, seed: &mut u64) {
        let n = split_mix(seed) as usize % self.all.len();
        println!("member {n} of the queue is killed");
        self.all[n].kill();
        self.all[n].start_again().await;
        self.all[n].is_whole().await;
    }

    /// Nothing passes for a while between one and the others; whoever is connected to it stays so.
    pub async fn part_one(&self, seed: &mut u64) {
        let n = split_mix(seed) as usize % self.all.len();
        println!("nothing passes between member {n} of the queue and the others");
        let fault = |fault| {
            for ((from, to), way) in &self.ways {
                if *from == n || *to == n {
                    way.fault(CLUSTER, fault);
                }
            }
        };
        fault(Fault::Silence);
        tokio::time::sleep(APART).await;
        // What was said into the silence is long out of date: they greet each other anew.
        fault(Fault::Cut);
        tokio::time::sleep(Duration::from_millis(200)).await;
        fault(Fault::None);
        self.all[n].is_whole().await;
    }
}
