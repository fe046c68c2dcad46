//! What `stoker-lb` can be told: the table of its keys, and what becomes of their values.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use stoker_core::ids::{MAX_NAME, is_name};
use stoker_registry::etcd;
use stoker_runtime::config::kind::{ADDRESS, COUNT, DURATION, SIZE};
use stoker_runtime::config::{Key, Kind, Mistake, Mistakes, Program, Settings};
use stoker_runtime::server::{self, Etcd};
use stoker_runtime::{logs, telemetry};

use crate::config::{Config, Limits};

static NAME: Key<String> = Key::found(
    "name",
    Kind::one("NAME", name),
    server::host_name,
    "How this balancer names itself to runners and in traces",
);
static LISTEN: Key<SocketAddr> =
    Key::new("listen", ADDRESS, "127.0.0.1:7070", "Where gRPC is served; there is no authentication");
static HTTP_LISTEN: Key<SocketAddr> =
    Key::new("http_listen", ADDRESS, "127.0.0.1:7080", "Where HTTP is served; there is no authentication");
static ADMIN_LISTEN: Key<SocketAddr> = Key::new(
    "admin_listen",
    ADDRESS,
    "127.0.0.1:7090",
    "Where /livez, /readyz, /metrics and /config are served",
);
static MAX_CALLS: Key<usize> =
    Key::new("max_calls", COUNT, "20000", "Most calls inside at once; more are refused as overload");
static MAX_BODY: Key<u64> =
    Key::new("max_body", SIZE, "1GiB", "Most bytes of a request's body; bodies stream and use no memory");
static MAX_WAIT: Key<Duration> =
    Key::new("max_wait", DURATION, "30s", "Longest that a call waits for a runner with room");
static QUEUE_TOTAL: Key<usize> =
    Key::new("queue.total", COUNT, "10000", "Most calls that wait for a runner with room");
static QUEUE_PER_FUNCTION: Key<usize> =
    Key::new("queue.per_function", COUNT, "2000", "Most of them of one function");
static STREAMS: Key<usize> = Key::new(
    "streams_per_runner",
    COUNT,
    "1",
    "Streams to each runner, each on a connection of its own; one is the cheapest",
);
static DRAIN_GRACE: Key<Duration> = Key::new(
    "drain_grace",
    DURATION,
    "30s",
    "How long calls may take to finish when the balancer stops; then they are cut off",
);

/// The program and its keys.
pub static PROGRAM: Program = Program {
    name: "stoker-lb",
    version: env!("CARGO_PKG_VERSION"),
    about: "The load balancer of a Stoker fleet: takes calls, places them on runners, brings back the answers.",
    examples: "  stoker-lb --etcd http://127.0.0.1:2379
  stoker-lb --etcd http://e1:2379,http://e2:2379 --listen 0.0.0.0:7070 --http-listen 0.0.0.0:7080
  STOKER_ETCD=http://e1:2379 stoker-lb --config /etc/stoker/lb.yaml --print-config",
    tables: &[
        server::ETCD_KEYS,
        &[
            &NAME,
            &LISTEN,
            &HTTP_LISTEN,
            &ADMIN_LISTEN,
            &MAX_CALLS,
            &MAX_BODY,
            &MAX_WAIT,
            &QUEUE_TOTAL,
            &QUEUE_PER_FUNCTION,
            &STREAMS,
            &DRAIN_GRACE,
        ],
        logs::KEYS,
        telemetry::KEYS,
    ],
};

/// What the values of all keys come to.
#[derive(Debug)]
pub struct Plan {
    pub balancer: Config,
    pub admin: SocketAddr,
    pub etcd: etcd::Config,
    pub telemetry: telemetry::Config,
    pub drain_grace: Duration,
}

impl Plan {
    /// Checks what shows only between several values.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn new(settings: &Settings) -> Result<Self, Mistakes> {
        let name = settings.get(&NAME);
        let mut mistakes = Vec::new();
        let etcd = etcd(settings, &mut mistakes);
        let addresses = [&LISTEN, &HTTP_LISTEN, &ADMIN_LISTEN];
        mistakes.extend(taken_twice(settings, &addresses));
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let identity =
            telemetry::Identity { service: PROGRAM.name, version: PROGRAM.version, instance: name.clone() };
        Ok(Self {
            balancer: Config {
                name,
                grpc: settings.get(&LISTEN),
                http: settings.get(&HTTP_LISTEN),
                streams_per_runner: settings.get(&STREAMS),
                queue: Limits {
                    total: settings.get(&QUEUE_TOTAL),
                    per_function: settings.get(&QUEUE_PER_FUNCTION),
                },
                max_wait: settings.get(&MAX_WAIT),
                max_calls: settings.get(&MAX_CALLS),
                max_body: settings.get(&MAX_BODY),
                ..Config::default()
            },
            admin: settings.get(&ADMIN_LISTEN),
            etcd,
            telemetry: telemetry::Config::new(settings, &identity),
            drain_grace: settings.get(&DRAIN_GRACE),
        })
    }
}

fn etcd(settings: &Settings, mistakes: &mut Vec<Mistake>) -> etcd::Config {
    let told = Etcd::new(settings, mistakes);
    etcd::Config {
        user: told.user.map(|(name, password)| etcd::User { name, password }),
        tls: told.tls.map(|tls| etcd::Tls { ca: tls.ca, identity: tls.identity }),
        ..etcd::Config::new(told.endpoints)
    }
}

/// One address cannot serve two ports.
fn taken_twice(settings: &Settings, keys: &[&Key<SocketAddr>]) -> Vec<Mistake> {
    let mut seen = BTreeMap::new();
    let mut mistakes = Vec::new();
    for key in keys {
        let address = settings.get(*key);
        if address.port() != 0 && seen.insert(address, ()).is_some() {
            mistakes.push(settings.mistake(*key, format!("{address} is taken by another port of ours")));
        }
    }
    mistakes
}

fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is not a name: write 1 to {MAX_NAME} of [a-zA-Z0-9_-]"))
}
