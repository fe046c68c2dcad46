//! What `stoker-lb` can be told: the table of its keys, and what becomes of their values.

mod lambda;
mod later;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::ids::{MAX_NAME, is_name};
use stoker_registry::etcd;
use stoker_runtime::config::kind::{ADDRESS, COUNT, DURATION, PATH, SIZE, TEXT};
use stoker_runtime::config::{Key, Kind, Maybe, Mistake, Mistakes, Program, Settings};
use stoker_runtime::server::{self, Etcd};
use stoker_runtime::tls::{self, Asks, Tls, exposed, open_to_others};
use stoker_runtime::{logs, metrics, telemetry};

use self::later::Place;
use crate::config::{Config, Limits};
use crate::serve;

static NAME: Key<String> = Key::found(
    "name",
    Kind::one("NAME", name),
    server::host_name,
    "How this balancer names itself to runners and in traces",
);
static LISTEN: Key<SocketAddr> = Key::new("listen", ADDRESS, "127.0.0.1:7070", "Where gRPC is served");
static HTTP_LISTEN: Key<SocketAddr> =
    Key::new("http_listen", ADDRESS, "127.0.0.1:7080", "Where HTTP is served");
static ADMIN_LISTEN: Key<SocketAddr> = Key::new(
    "admin_listen",
    ADDRESS,
    "127.0.0.1:7090",
    "Where /livez, /readyz, /metrics and /config are served",
);
static MAX_CALLS: Key<usize> =
    Key::new("max_calls", COUNT, "20000", "Most calls inside at once; more are refused as overload").live();
static MAX_CONNECTIONS: Key<usize> = Key::found(
    "max_connections",
    COUNT,
    || Ok(serve::usual().to_string()),
    "Most connections of clients at once, at both ports together; half of the files that the process may open, at most 30000. More are turned away",
);
static ADDRESS_SHARE: Key<usize> = Key::new(
    "address_share",
    COUNT,
    "50",
    "Percent of `max_calls` and of `max_connections` that one address (by IPv6 a /64) may have whose callers nobody knows; this machine's are not counted",
);
static SEND_TIMEOUT: Key<Duration> = Key::new(
    "send_timeout",
    DURATION,
    "60s",
    "How long a client may take nothing of an answer that waits for it; then it is given up, and its call cancelled",
);
static MAX_BODY: Key<u64> =
    Key::new("max_body", SIZE, "1GiB", "Most bytes of a request's body; bodies stream and use no memory");
/// The system gives connections up in milliseconds, of which it counts 2^32, and 0 is for ever.
const SEND_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
static MAX_WAIT: Key<Duration> =
    Key::new("max_wait", DURATION, "30s", "Longest that a call waits for a runner with room");
static QUEUE_TOTAL: Key<usize> =
    Key::new("queue.total", COUNT, "10000", "Most calls that wait for a runner with room");
static QUEUE_PER_FUNCTION: Key<usize> =
    Key::new("queue.per_function", COUNT, "2000", "Most of them of one function");
static QUEUE_BYTES: Key<u64> =
    Key::new("queue.bytes", SIZE, "128MiB", "Most bytes of bodies and heads that calls hold while they wait");
static QUEUE_BYTES_PER_FUNCTION: Key<u64> =
    Key::new("queue.bytes_per_function", SIZE, "32MiB", "Most of them of one function");
static EXPLAINED: Key<usize> = Key::new(
    "explained",
    COUNT,
    "4096",
    "Calls remembered for `stoker explain`: so many that failed, waited, were cold or slow, and so many others",
);
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
)
.live();
static CLIENT_CA: Maybe<PathBuf> = Key::required(
    "tls.client_ca",
    PATH,
    "The authority that signs the certificates of clients; by itself tls.ca",
)
.optional();
static ACCESS: Maybe<PathBuf> = Key::required(
    "access",
    PATH,
    "The access file: who may what, and how much; without one everybody may everything. Read again when it changes",
)
.optional();
static AUDIT: Maybe<PathBuf> = Key::required(
    "audit",
    PATH,
    "The file that changes and refusals are noted in; by itself they are in the log",
)
.optional();

static LATER_QUEUE: Key<Place> = Key::new(
    "later.queue",
    Kind::one("none|DIR|URL", later::place),
    "none",
    "Where asynchronous calls are kept: a directory, for this balancer alone; nats://HOST:4222, for all; several servers with commas",
);
static LATER_LEASE: Key<Duration> = Key::new(
    "later.lease",
    DURATION,
    "30s",
    "How long a balancer may be silent about an asynchronous call that it makes, before another makes it",
);
static LATER_NATS_USER: Maybe<String> =
    Key::required("later.nats_user", TEXT, "The user of NATS, where it asks for one").optional();
static LATER_NATS_PASSWORD: Maybe<String> =
    Key::required("later.nats_password", TEXT, "The password of later.nats_user").secret().optional();
static LATER_NATS_CA: Maybe<PathBuf> = Key::required(
    "later.nats_ca",
    PATH,
    "The certificate of the authority that signed NATS's; with it TLS is required",
)
.optional();
static LATER_NATS_REPLICAS: Key<usize> = Key::new(
    "later.nats_replicas",
    COUNT,
    "1",
    "Copies of what is kept in NATS: 3 in a cluster of three servers",
);

/// The program and its keys.
pub static PROGRAM: Program = Program {
    name: "stoker-lb",
    version: env!("CARGO_PKG_VERSION"),
    about: "The load balancer of a Stoker fleet: takes calls, places them on runners, brings back the answers.",
    examples: "  stoker-lb --etcd http://127.0.0.1:2379
  stoker-lb --etcd http://e1:2379,http://e2:2379 --listen 0.0.0.0:7070 --http-listen 0.0.0.0:7080 --insecure
  stoker-lb --etcd http://e1:2379 --listen 10.0.0.5:7070 --access access.yaml --tls-certificate lb.pem --tls-key lb.key --tls-ca ca.pem
  STOKER_ETCD=http://e1:2379 stoker-lb --config /etc/stoker/lb.yaml --print-config",
    tables: &[
        server::ETCD_KEYS,
        &[
            &NAME,
            &LISTEN,
            &HTTP_LISTEN,
            &ADMIN_LISTEN,
            &MAX_CALLS,
            &MAX_CONNECTIONS,
            &ADDRESS_SHARE,
            &SEND_TIMEOUT,
            &MAX_BODY,
            &MAX_WAIT,
            &QUEUE_TOTAL,
            &QUEUE_PER_FUNCTION,
            &QUEUE_BYTES,
            &QUEUE_BYTES_PER_FUNCTION,
            &EXPLAINED,
            &STREAMS,
            &DRAIN_GRACE,
        ],
        tls::KEYS,
        &[&CLIENT_CA, &ACCESS, &AUDIT],
        lambda::KEYS,
        &[&LATER_QUEUE, &LATER_LEASE, &LATER_NATS_USER, &LATER_NATS_PASSWORD, &LATER_NATS_CA, &LATER_NATS_REPLICAS],
        logs::KEYS,
        telemetry::KEYS,
        metrics::KEYS,
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
    /// Where changes are noted, if not in the log.
    pub audit: Option<PathBuf>,
    /// Odd, but perhaps meant.
    pub warnings: Vec<String>,
}

/// What a running balancer takes up of these settings.
pub fn live(settings: &Settings) -> (usize, Duration) {
    (settings.get(&MAX_CALLS), settings.get(&DRAIN_GRACE))
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
        let mut told = tls::Plan::new(settings, &mut mistakes);
        told.needs_ca(settings, &mut mistakes);
        mistakes
            .extend(addresses.iter().filter_map(|key| exposed(settings, &told, *key, settings.get(*key))));
        let access = settings.maybe(&ACCESS);
        let mut warnings = Vec::new();
        for key in [&LISTEN, &HTTP_LISTEN] {
            let address = settings.get(key);
            if access.is_some() || !open_to_others(address) {
                continue;
            }
            match told.insecure {
                true => warnings.push(format!("{address} can be reached from other machines, and nobody is asked who they are")),
                false => mistakes.push(settings.mistake(
                    key,
                    format!(
                        "{address} can be reached from other machines, and nobody is asked who they are: give `access`, the file of \
                         who may what, or write `insecure: true` where a network of its own keeps others out"
                    ),
                )),
            }
        }
        if let Some(files) = &mut told.files {
            files.client_ca = settings.maybe(&CLIENT_CA);
        }
        // Read here, so that what is wrong with a file is told with everything else.
        let tls = told.files.map(|files| Tls::load(files, Asks::Anybody)).transpose();
        let tls = tls.unwrap_or_else(|why| {
            mistakes.push(tls::Plan::wrong(settings, why));
            None
        });
        if let Some(Err(why)) = access.as_deref().map(stoker_runtime::auth::Access::read) {
            mistakes.push(settings.mistake(&ACCESS, why));
        }
        let max_connections = settings.get(&MAX_CONNECTIONS);
        let possible = serve::possible();
        if max_connections > possible {
            mistakes.push(settings.mistake(
                &MAX_CONNECTIONS,
                format!(
                    "{max_connections} connections take twice as many open files, and this process may open {}: write {possible} at most, or raise \
                     its hard limit (`ulimit -Hn`, `LimitNOFILE=` of its unit)",
                    possible * 2
                ),
            ));
        }
        let address_share = settings.get(&ADDRESS_SHARE);
        if !(1..=100).contains(&address_share) {
            let text = format!("{address_share} is no share: write 1 to 100 percent, where 100 is no limit");
            mistakes.push(settings.mistake(&ADDRESS_SHARE, text));
        }
        let send_timeout = settings.get(&SEND_TIMEOUT);
        if !SEND_TIMEOUTS.contains(&send_timeout) {
            let text = "is less than a second or more than a day: a minute is usual";
            mistakes.push(settings.mistake(&SEND_TIMEOUT, text.to_owned()));
        }
        let lambda = lambda::config(settings, &mut mistakes);
        let later = later::queue(settings, &mut mistakes);
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
                    bytes: bytes(settings.get(&QUEUE_BYTES)),
                    bytes_per_function: bytes(settings.get(&QUEUE_BYTES_PER_FUNCTION)),
                },
                explained: settings.get(&EXPLAINED),
                max_wait: settings.get(&MAX_WAIT),
                max_calls: settings.get(&MAX_CALLS),
                max_connections,
                address_share,
                send_timeout,
                max_body: settings.get(&MAX_BODY),
                tls,
                insecure: told.insecure,
                access,
                lambda,
                later,
                ..Config::default()
            },
            admin: settings.get(&ADMIN_LISTEN),
            etcd,
            telemetry: telemetry::Config::new(settings, &identity),
            drain_grace: settings.get(&DRAIN_GRACE),
            audit: settings.maybe(&AUDIT),
            warnings,
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

/// A size of memory.
fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
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
