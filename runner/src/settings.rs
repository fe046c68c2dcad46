//! What `stoker-runner` can be told: the table of its keys, and what becomes of their values.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::cidr::Cidr;
use stoker_core::units::{format_cpu, format_size};
use stoker_core::{Resources, RunnerName};
use stoker_registry::etcd;
use stoker_runtime::config::kind::{
    ADDRESS, ADDRESSES, CIDRS, COUNT, CPU, DURATION, MAP, PATH, SERVER, SIZE, TEXT, TRUTH,
};
use stoker_runtime::config::{Key, Kind, Maybe, Mistake, Mistakes, Program, Settings, registries};
use stoker_runtime::server::{self, Etcd};
use stoker_runtime::tls::{self, Asks, Tls, exposed, open_to_others};
use stoker_runtime::{admin, logs, metrics, telemetry};
use stoker_sandbox::egress;
use stoker_sandbox::select::Choice;

use crate::app::Config;
use crate::machine::Machine;

/// Memory that a container is thought to need at least, to tell how many there may be.
const SMALL: u64 = 8 << 20;

/// Most containers, unless more are asked for.
const SLOTS: u64 = 1000;

static ETCD_LEASE: Key<Duration> =
    Key::new("etcd_lease", DURATION, "10s", "A runner that died is forgotten by etcd after this time");
static NAME: Key<RunnerName> = Key::found(
    "name",
    Kind::one("NAME", name),
    server::host_name,
    "Who this runner is; one live runner has a name",
);
static LISTEN: Key<SocketAddr> = Key::new(
    "listen",
    ADDRESS,
    "127.0.0.1:7170",
    "Where balancers are served; without TLS whoever reaches it can run programs here",
);
static ADMIN_LISTEN: Key<SocketAddr> = admin::listen("127.0.0.1:7190");
static ACCESS: Maybe<PathBuf> = Key::required(
    "access",
    PATH,
    "The access file: who may look at the admin pages, with `observe: [\"*\"]`; calls come from balancers alone. Read again when it changes",
)
.optional();
static ADVERTISE: Maybe<String> = Key::required(
    "advertise",
    SERVER,
    "How balancers reach it, like http://runner-1:7170; where it listens, if that is one address",
)
.optional();
static MEMORY: Key<u64> = Key::found(
    "memory",
    SIZE,
    || Ok(format_size(Machine::look().spare_memory())),
    "Memory that functions get together; four fifths of what the machine or the cgroup has",
);
static CPU_MILLIS: Key<u32> = Key::found(
    "cpu",
    CPU,
    || Ok(format_cpu(Machine::look().cpu_millis)),
    "CPU that functions get together; what the machine or the cgroup has",
);
static SLOTS_KEY: Maybe<usize> =
    Key::required("slots", COUNT, "Most containers at once; by itself one for each 8 MiB, at most 1000")
        .optional();
static SANDBOX: Key<Choice> = Key::new(
    "sandbox",
    Kind::choice(
        "auto|native|oci|docker|process",
        &[
            ("auto", Choice::Auto),
            ("native", Choice::Native),
            ("oci", Choice::Oci),
            ("docker", Choice::Docker),
            ("process", Choice::Process),
        ],
    ),
    "auto",
    "How functions are kept apart; auto takes the strongest that works here",
);
static OCI_RUNTIME: Maybe<PathBuf> = Key::required(
    "oci_runtime",
    PATH,
    "Program of the OCI runtime for the sandbox oci, by path or name; by itself the first found of crun, runc and youki",
)
.optional();
static DOCKER_SOCKET: Maybe<PathBuf> = Key::required(
    "docker_socket",
    PATH,
    "Where the daemon for the sandbox docker listens; by itself /var/run/docker.sock",
)
.optional();
static ALLOW_HOST_NETWORK: Key<bool> = Key::new(
    "allow_host_network",
    TRUTH,
    "false",
    "Functions with `network: host` run here: they reach all that this host does, its loopback among it",
);
static EGRESS_DENY: Key<Vec<Cidr>> = Key::new(
    "egress_deny",
    CIDRS,
    "",
    "Blocks of addresses that functions with `network: egress` may not reach, beside this host and cloud metadata",
);
static EGRESS_ALLOW: Key<Vec<Cidr>> =
    Key::new("egress_allow", CIDRS, "", "What of egress_deny they may reach all the same");
static EGRESS_RESOLVERS: Key<Vec<IpAddr>> =
    Key::new("egress_resolvers", ADDRESSES, "", "Name servers for them; by itself those of this host");
static STATE: Key<PathBuf> = Key::found(
    "state",
    PATH,
    state,
    "A directory of this runner's own, for what a crash must not leave behind",
);
static IMAGES: Maybe<PathBuf> = Key::required(
    "images",
    PATH,
    "The directory of this runner's store of images; by itself `images` in `state`",
)
.optional();
static IMAGES_BUDGET: Key<u64> =
    Key::new("images_budget", SIZE, "20GiB", "What the store may take on disk; what is not used goes first");
static IMAGE_SIZE: Key<u64> = Key::new("image_size", SIZE, "16GiB", "What the files of one image may have");
static IMAGE_PULL_TIMEOUT: Key<Duration> = Key::new(
    "image_pull_timeout",
    DURATION,
    "5m",
    "How long one image may take to be fetched and unpacked, once it is its turn",
);
static REGISTRY_CREDENTIALS: Maybe<PathBuf> = Key::required(
    "registry_credentials",
    PATH,
    "A directory of files like Docker's config.json, which functions name in `credentials`",
)
.optional();
static SECRETS: Maybe<PathBuf> = Key::required(
    "secrets",
    PATH,
    "The directory of functions' secrets: files APP/NAME or APP/NAME/KEY, read for each launch",
)
.optional();
static ZONE: Maybe<String> =
    Key::required("zone", TEXT, "Where it stands, for those who place calls").optional();
static LABELS: Key<BTreeMap<String, String>> =
    Key::new("labels", MAP, "", "What else is known of it, for those who place calls");
static FREEZE_AFTER: Key<Duration> =
    Key::new("freeze_after", DURATION, "100ms", "An idle container is frozen after this time");
static DRAIN_GRACE: Key<Duration> = Key::new(
    "drain_grace",
    DURATION,
    "30s",
    "How long calls may take to finish when the runner stops; then their containers are ended",
)
.live();
static THREADS: Key<usize> =
    Key::new("threads", COUNT, "1", "Threads that serve calls; one is the cheapest, and enough for most");

/// The program and its keys.
pub static PROGRAM: Program = Program {
    name: "stoker-runner",
    version: env!("CARGO_PKG_VERSION"),
    about: "A runner of a Stoker fleet: keeps functions hot and runs the calls that balancers place here.",
    examples: "  stoker-runner --etcd http://127.0.0.1:2379
  stoker-runner --etcd http://e1:2379,http://e2:2379 --listen 0.0.0.0:7170 --advertise https://runner-1:7170 \
    --tls-certificate runner-1.pem --tls-key runner-1.key --tls-ca ca.pem
  stoker-runner --etcd http://e1:2379 --name runner-1 --memory 8GiB --cpu 4 --sandbox native
  STOKER_ETCD=http://e1:2379 stoker-runner --config /etc/stoker/runner.yaml --print-config",
    tables: &[
        server::ETCD_KEYS,
        &[
            &ETCD_LEASE,
            &NAME,
            &LISTEN,
            &ADMIN_LISTEN,
            &ACCESS,
            &ADVERTISE,
            &MEMORY,
            &CPU_MILLIS,
            &SLOTS_KEY,
            &SANDBOX,
            &OCI_RUNTIME,
            &DOCKER_SOCKET,
            &ALLOW_HOST_NETWORK,
            &EGRESS_DENY,
            &EGRESS_ALLOW,
            &EGRESS_RESOLVERS,
            &STATE,
            &IMAGES,
            &IMAGES_BUDGET,
            &IMAGE_SIZE,
            &IMAGE_PULL_TIMEOUT,
            &REGISTRY_CREDENTIALS,
            &registries::WITHOUT_TLS,
            &registries::CA,
            &SECRETS,
            &ZONE,
            &LABELS,
            &FREEZE_AFTER,
            &DRAIN_GRACE,
            &THREADS,
        ],
        tls::KEYS,
        logs::KEYS,
        telemetry::KEYS,
        metrics::KEYS,
    ],
};

/// What a running runner takes up of these settings.
pub fn live(settings: &Settings) -> Duration {
    settings.get(&DRAIN_GRACE)
}

/// What the values of all keys come to.
#[derive(Debug)]
pub struct Plan {
    pub runner: Config,
    pub admin: SocketAddr,
    /// Who may look there.
    pub access: Option<PathBuf>,
    pub insecure: bool,
    pub etcd: etcd::Config,
    pub telemetry: telemetry::Config,
    pub drain_grace: Duration,
    pub threads: usize,
    /// Odd, but perhaps meant.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Checks what shows only between several values.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn new(settings: &Settings) -> Result<Self, Mistakes> {
        let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
        let etcd = etcd(settings, &mut mistakes);
        let (listen, admin) = (settings.get(&LISTEN), settings.get(&ADMIN_LISTEN));
        if listen == admin && listen.port() != 0 {
            mistakes.push(
                settings
                    .mistake(&ADMIN_LISTEN, format!("{admin} is where balancers are served: give another")),
            );
        }
        let advertise = settings.maybe(&ADVERTISE);
        match advertised(listen, advertise.as_deref()) {
            Ok(warning) => warnings.extend(warning),
            Err(why) => mistakes.push(settings.mistake(&ADVERTISE, why)),
        }
        let told = tls::Plan::new(settings, &mut mistakes);
        told.needs_ca(settings, &mut mistakes);
        mistakes.extend(exposed(settings, &told, &LISTEN, listen));
        mistakes.extend(exposed(settings, &told, &ADMIN_LISTEN, admin));
        if told.insecure && told.files.is_none() && open_to_others(listen) {
            warnings.push(format!(
                "{listen} can be reached from other machines, and whoever reaches it can run programs here"
            ));
        }
        let by_tls = advertise.as_deref().is_some_and(|address| address.starts_with("https://"));
        match (advertise.is_some(), by_tls, told.files.is_some()) {
            (true, true, false) => {
                mistakes.push(settings.mistake(&ADVERTISE, "is https://, and there is no `tls.certificate`"))
            }
            (true, false, true) => mistakes.push(
                settings.mistake(&ADVERTISE, "is http://, and balancers are served with TLS: write https://"),
            ),
            _ => {}
        }
        // Read here, so that what is wrong with a file is told with everything else.
        let tls = told.files.map(|files| Tls::load(files, Asks::Balancers)).transpose();
        let tls = tls.unwrap_or_else(|why| {
            mistakes.push(tls::Plan::wrong(settings, why));
            None
        });
        let access = settings.maybe(&ACCESS);
        if let Some(Err(why)) = access.as_deref().map(stoker_runtime::auth::Access::read) {
            mistakes.push(settings.mistake(&ACCESS, why));
        }
        let (memory, cpu_millis) = (settings.get(&MEMORY), settings.get(&CPU_MILLIS));
        if memory == 0 {
            mistakes.push(
                settings.mistake(&MEMORY, "a runner without memory can run nothing: write it like 4GiB"),
            );
        }
        if cpu_millis == 0 {
            mistakes.push(
                settings
                    .mistake(&CPU_MILLIS, "a runner without CPU can run nothing: write it like 2, or 500m"),
            );
        }
        let slots = settings.maybe(&SLOTS_KEY).map_or((memory / SMALL).clamp(1, SLOTS), |slots| slots as u64);
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let name = settings.get(&NAME);
        let identity = telemetry::Identity {
            service: PROGRAM.name,
            version: PROGRAM.version,
            instance: name.to_string(),
        };
        let state = settings.get(&STATE);
        let state = std::path::absolute(&state).unwrap_or(state);
        let resources = Resources { memory, cpu_millis, slots };
        Ok(Self {
            runner: Config {
                listen,
                advertise,
                tls,
                sandbox: settings.get(&SANDBOX),
                oci_runtime: settings.maybe(&OCI_RUNTIME),
                docker_socket: settings.maybe(&DOCKER_SOCKET),
                allow_host_network: settings.get(&ALLOW_HOST_NETWORK),
                egress: egress::Config {
                    deny: settings.get(&EGRESS_DENY),
                    allow: settings.get(&EGRESS_ALLOW),
                    resolvers: settings.get(&EGRESS_RESOLVERS),
                },
                secrets: settings.maybe(&SECRETS),
                zone: settings.maybe(&ZONE).unwrap_or_default(),
                labels: settings.get(&LABELS),
                freeze_after: settings.get(&FREEZE_AFTER),
                images: images(settings, &state),
                ..Config::new(name, resources, state)
            },
            admin,
            access,
            insecure: told.insecure,
            etcd,
            telemetry: telemetry::Config::new(settings, &identity),
            drain_grace: settings.get(&DRAIN_GRACE),
            threads: settings.get(&THREADS),
            warnings,
        })
    }
}

fn images(settings: &Settings, state: &std::path::Path) -> stoker_image::Config {
    let directory = settings.maybe(&IMAGES).unwrap_or_else(|| state.join("images"));
    let limits = stoker_image::Limits { bytes: settings.get(&IMAGE_SIZE), ..Default::default() };
    stoker_image::Config {
        budget: settings.get(&IMAGES_BUDGET),
        limits,
        pull_timeout: settings.get(&IMAGE_PULL_TIMEOUT),
        registries: stoker_image::RegistryConfig {
            without_tls: settings.get(&registries::WITHOUT_TLS),
            credentials: settings.maybe(&REGISTRY_CREDENTIALS),
            ca: settings.maybe(&registries::CA),
        },
        ..stoker_image::Config::new(std::path::absolute(&directory).unwrap_or(directory))
    }
}

fn etcd(settings: &Settings, mistakes: &mut Vec<Mistake>) -> etcd::Config {
    let told = Etcd::new(settings, mistakes);
    etcd::Config {
        lease: settings.get(&ETCD_LEASE),
        user: told.user.map(|(name, password)| etcd::User { name, password }),
        tls: told.tls.map(|tls| etcd::Tls { ca: tls.ca, identity: tls.identity }),
        ..etcd::Config::new(told.endpoints)
    }
}

/// Whether other machines find us by what we tell them: a warning, or what is wrong.
fn advertised(listen: SocketAddr, advertise: Option<&str>) -> Result<Option<String>, String> {
    let Some(advertise) = advertise else {
        return match listen.ip().is_unspecified() {
            true => Err(format!(
                "is missing: the runner listens on {listen}, all addresses, and balancers must be told one that leads here: \
                 write http://HOST:{}",
                listen.port()
            )),
            false => Ok(None),
        };
    };
    let uri: tonic::transport::Uri = advertise.parse().map_err(|error| format!("`{advertise}`: {error}"))?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = host.parse().ok();
    if address.is_some_and(|address| address.is_unspecified()) {
        return Err(format!(
            "`{advertise}` leads nowhere: {host} means all addresses of whoever reads it; write the host's name or address"
        ));
    }
    let Some(port) = uri.port_u16() else {
        return Err(format!("`{advertise}` has no port: write it like http://{host}:{}", listen.port()));
    };
    if port == 0 {
        return Err(format!("`{advertise}` has port 0, where nobody is: write the port that leads here"));
    }
    let own = host == "localhost" || address.is_some_and(|address| address.is_loopback());
    Ok((own && !listen.ip().is_loopback()).then(|| {
        format!(
            "balancers on other machines do not find this runner: it listens on {listen} but says {advertise}"
        )
    }))
}

fn name(text: &str) -> Result<RunnerName, String> {
    RunnerName::new(text)
        .filter(|_| text.len() <= 100)
        .ok_or_else(|| format!("`{text}` is not a name: write 1 to 100 of [a-zA-Z0-9_-]"))
}

/// Where programs of this user keep such things.
fn state() -> Result<String, String> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/stoker".to_owned());
    }
    let place = |variable: &str, within: &str| {
        std::env::var(variable)
            .ok()
            .filter(|home| home.starts_with('/'))
            .map(|home| format!("{home}/{within}"))
    };
    place("XDG_STATE_HOME", "stoker")
        .or_else(|| place("HOME", ".local/state/stoker"))
        .ok_or_else(|| "this user has no home".to_owned())
}

#[cfg(test)]
mod tests;
