//! A function: its name, and everything that a runner must know to run it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::is_name;
use crate::image::ImageRef;
use crate::later::{Later, MAX_SCHEDULES, Schedule};
use crate::listed;
use crate::resources::Ask;
use crate::secret::SecretName;
pub use crate::trigger::{Cors, Trigger};

/// `app/function`; both parts are [names](is_name).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName {
    text: Arc<str>,
    slash: usize,
}

impl FunctionName {
    /// `None` unless both are names.
    pub fn new(app: &str, function: &str) -> Option<Self> {
        (is_name(app) && is_name(function))
            .then(|| Self { text: format!("{app}/{function}").into(), slash: app.len() })
    }

    /// Reads `app/function`.
    pub fn parse(text: &str) -> Option<Self> {
        let (app, function) = text.split_once('/')?;
        Self::new(app, function)
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> &str {
        &self.text[..self.slash]
    }

    /// The function within its app.
    #[must_use]
    pub fn function(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// `app/function`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id under which Fn's doors know it: 26 characters, the same on every machine for the same name.
    #[must_use]
    pub fn id(&self) -> String {
        opaque_id("fn", &self.text)
    }

    /// The id of its app.
    #[must_use]
    pub fn app_id(&self) -> String {
        Self::app_id_of(self.app())
    }

    /// The id of the app of this name.
    #[must_use]
    pub fn app_id_of(app: &str) -> String {
        opaque_id("app", app)
    }
}

/// 26 characters of Crockford's base 32 (130 bits of SHA-256), like the ids that Fn makes, but derived.
#[must_use]
pub fn opaque_id(kind: &str, text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let hash = Sha256::digest(format!("stoker:{kind}:{text}"));
    let mut out = String::with_capacity(26);
    let (mut bits, mut held) = (0u32, 0u32);
    for byte in hash {
        held = (held << 8) | u32::from(byte);
        bits += 8;
        while bits >= 5 && out.len() < 26 {
            bits -= 5;
            out.push(char::from(ALPHABET[((held >> bits) & 31) as usize]));
        }
    }
    out
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for FunctionName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a function: write app/function"))
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> String {
        name.text.as_ref().to_owned()
    }
}

/// How calls and answers are written for the function. Contracts: `docs/formats.md`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// STDIN and STDOUT once, one call per process.
    #[default]
    Default,
    /// HTTP/1.1 messages on STDIN and STDOUT.
    Http,
    /// JSON objects on STDIN and STDOUT.
    Json,
    /// A head in JSON, a blank line and the body on STDIN and STDOUT.
    JsonHttp,
    /// CloudEvents in JSON on STDIN and STDOUT.
    #[serde(rename = "cloudevent")]
    CloudEvent,
    /// HTTP/1.1 on a Unix socket, many calls.
    HttpStream,
    /// A startup message, then requests and replies in JSON on STDIN and STDOUT.
    Mless,
    /// AWS Lambda's Runtime API.
    Lambda,
}

listed!(Format: Default, Http, Json, JsonHttp, CloudEvent, HttpStream, Mless, Lambda);

impl Format {
    /// The name in files and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Default => "default",
            Format::Http => "http",
            Format::Json => "json",
            Format::JsonHttp => "json-http",
            Format::CloudEvent => "cloudevent",
            Format::HttpStream => "http-stream",
            Format::Mless => "mless",
            Format::Lambda => "lambda",
        }
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        use crate::machine::Listed as _;
        Self::ALL.iter().copied().find(|f| f.as_str() == text)
    }

    /// A container takes one call after the other, where the function does not say otherwise: see [`FunctionSpec::is_hot`].
    #[must_use]
    pub fn is_streamable(self) -> bool {
        self != Format::Default
    }

    /// Calls come on STDIN and STDOUT is the answer, so that it is no log.
    #[must_use]
    pub fn reads_stdio(self) -> bool {
        !matches!(self, Format::HttpStream | Format::Lambda)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which version of CloudEvents a function of the format `cloudevent` speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CloudEvents {
    /// 0.1, as Fn spoke it.
    #[default]
    #[serde(rename = "0.1")]
    V0_1,
    /// 1.0, structured JSON.
    #[serde(rename = "1.0")]
    V1_0,
}

listed!(CloudEvents: V0_1, V1_0);

impl CloudEvents {
    /// As files and events write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CloudEvents::V0_1 => "0.1",
            CloudEvents::V1_0 => "1.0",
        }
    }

    /// Reads the number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        use crate::machine::Listed as _;
        Self::ALL.iter().copied().find(|v| v.as_str() == text)
    }
}

/// What a function may choose about its format: `format_options` in the function file. Everything off is the format as old
/// functions know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormatOptions {
    /// The version, where the function's format is `cloudevent` or may be forced to it.
    pub cloudevents: CloudEvents,
    /// A request whose `Content-Type` is `application/cloudevents+json` reaches the function in the format `cloudevent`, whatever
    /// its own is: Fn's rule. Such calls have containers of their own.
    pub cloudevents_by_content_type: bool,
    /// `json`: bodies are base64 in both directions, and say so in `body_encoding`.
    pub base64_bodies: bool,
    /// `json-http`: one call per process, its STDOUT is the bare answer, as the Open Function Format had it.
    pub cold: bool,
    /// `default` and `http`: the variables of the Open Function Format too (`METHOD`, `ROUTE`, `REQUEST_URL`, `PARAM_…`, `HEADER_…`).
    pub open_function_variables: bool,
    /// `mless`: what the startup message names. `lambda`: what the runtime finds in `_HANDLER`.
    pub handler: String,
    /// `lambda`: bytes a second that a streamed answer may have once its burst is spent; 0: as fast as its reader takes it.
    #[serde(skip_serializing_if = "is_zero")]
    pub stream_rate: u64,
    /// `lambda`: bytes that a streamed answer may have at once; 0: [`FormatOptions::STREAM_BURST`].
    #[serde(skip_serializing_if = "is_zero")]
    pub stream_burst: u64,
    /// `lambda`: the runtime is told that it starts from a snapshot, and its hooks for that run at every start.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub snap_start: bool,
    /// `lambda`: the number of the version that it is, for callers that asked for a version or an alias; 0: `$LATEST`. A balancer says it
    /// of what it sends to runners; nobody applies it.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: u64,
    /// `lambda`: a directory of the host that a function with the host's files sees as `/opt`, in the place of the host's; empty: the host's.
    #[serde(skip_serializing_if = "no_path")]
    pub opt: PathBuf,
}

fn no_path(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl FormatOptions {
    /// Longest `handler`, in bytes.
    pub const MAX_HANDLER: usize = 1024;
    /// What `stream_rate` and `stream_burst` may be, in bytes: AWS's own limits.
    pub const STREAM: std::ops::RangeInclusive<u64> = 32 << 10..=64 << 20;
    /// The burst where only the rate is given: AWS's.
    pub const STREAM_BURST: u64 = 6 << 20;

    /// Everything that is wrong with them for a function of this format: an option that the format does not have is a
    /// mistake, not decoration.
    #[must_use]
    pub fn problems(&self, format: Format) -> Vec<String> {
        use Format::{CloudEvent, Default, Http, HttpStream, Json, JsonHttp, Lambda, Mless};
        let mut problems = Vec::new();
        let mut only = |set: bool, key: &str, formats: &[Format]| {
            if set && !formats.contains(&format) {
                let formats: Vec<_> = formats.iter().map(|f| f.as_str()).collect();
                problems.push(format!("{key} belongs to {}, not to {format}", formats.join(" and ")));
            }
        };
        let version = self.cloudevents != CloudEvents::default() && !self.cloudevents_by_content_type;
        only(version, "cloudevents", &[CloudEvent]);
        let others = [Default, Http, Json, JsonHttp, HttpStream];
        only(self.cloudevents_by_content_type, "cloudevents_by_content_type", &others);
        only(self.base64_bodies, "base64_bodies", &[Json]);
        only(self.cold, "cold", &[JsonHttp]);
        only(self.open_function_variables, "open_function_variables", &[Default, Http]);
        only(!self.handler.is_empty(), "handler", &[Mless, Lambda]);
        only(self.stream_rate > 0, "stream_rate", &[Lambda]);
        only(self.stream_burst > 0, "stream_burst", &[Lambda]);
        only(self.snap_start, "snap_start", &[Lambda]);
        only(self.version > 0, "version", &[Lambda]);
        only(!no_path(&self.opt), "opt", &[Lambda]);
        if !no_path(&self.opt) && (!self.opt.is_absolute() || self.opt.as_os_str().len() > 4096) {
            problems.push(format!("opt: {}", not_absolute(&self.opt)));
        }
        for (key, value) in [("stream_rate", self.stream_rate), ("stream_burst", self.stream_burst)] {
            if value > 0 && !Self::STREAM.contains(&value) {
                problems.push(format!("{key} is not between 32KiB and 64MiB"));
            }
        }
        if self.stream_burst > 0 && self.stream_rate == 0 {
            problems.push("stream_burst does nothing without stream_rate".to_owned());
        }
        if format == Mless && self.handler.is_empty() {
            problems.push("handler is missing: format mless names one, like `func.handler`".to_owned());
        }
        if self.handler.len() > Self::MAX_HANDLER || self.handler.contains('\0') {
            problems
                .push(format!("handler is longer than {} bytes or has a NUL character", Self::MAX_HANDLER));
        }
        problems
    }

    /// Whether a call of this head reaches the function in the format `cloudevent` although its own is another.
    #[must_use]
    pub fn force_cloudevent(&self, head: &crate::call::RequestHead) -> bool {
        self.cloudevents_by_content_type
            && head.headers.get("content-type").is_some_and(|value| {
                let kind = value.split(';').next().unwrap_or_default().trim();
                kind.eq_ignore_ascii_case("application/cloudevents+json")
            })
    }
}

/// What the function sees as `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// The host's files, read-only.
    #[default]
    Host,
    /// A directory of the host.
    Rootfs(PathBuf),
    /// An image in a registry. Pinned to a digest when the function is applied.
    Image(ImageRef),
    /// A file on the runner: what `docker save` wrote, or an OCI layout in a tar archive.
    Archive(PathBuf),
    /// A directory on the runner: an OCI image layout.
    OciLayout(PathBuf),
}

impl Root {
    /// It is an image, which brings a command, an environment, a user and a work directory along.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self, Root::Image(_) | Root::Archive(_) | Root::OciLayout(_))
    }

    /// The key in the function file and its value; `None` for the host's files.
    #[must_use]
    pub fn written(&self) -> Option<(&'static str, String)> {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        match self {
            Root::Host => None,
            Root::Rootfs(at) => Some(("rootfs", path(at))),
            Root::Image(image) => Some(("image", image.to_string())),
            Root::Archive(at) => Some(("archive", path(at))),
            Root::OciLayout(at) => Some(("oci-layout", path(at))),
        }
    }
}

/// What the function may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// Outgoing connections.
    Egress,
    /// The host's network.
    Host,
}

listed!(Network: None, Egress, Host);

impl Network {
    /// The name in files and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Network::None => "none",
            Network::Egress => "egress",
            Network::Host => "host",
        }
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        use crate::machine::Listed as _;
        Self::ALL.iter().copied().find(|n| n.as_str() == text)
    }
}

/// One version of a function. Serialised with serde (the registry's text form); [`Digest`] names the version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    pub name: FunctionName,
    pub root: Root,
    /// The name under which runners keep the credentials for the image's registry; empty: those that they have for everybody.
    #[serde(default)]
    pub credentials: String,
    /// What the function writes to its root is kept in a private layer that goes with the container; else the root is read-only.
    #[serde(default)]
    pub writable_root: bool,
    /// Program and arguments; empty only with an image, whose own they are then.
    pub command: Vec<String>,
    /// Absolute; empty only with an image, whose own it is then.
    pub workdir: PathBuf,
    pub format: Format,
    #[serde(default)]
    pub format_options: FormatOptions,
    /// Bytes.
    pub memory: u64,
    /// Thousandths of a core; 0 is no limit.
    pub cpu_millis: u32,
    /// Milliseconds in the function, once it has the input.
    pub timeout_ms: u64,
    /// Milliseconds to become ready.
    pub init_timeout_ms: u64,
    /// Milliseconds that a hot container is kept without a call.
    pub idle_timeout_ms: u64,
    /// Calls at once in one container.
    pub concurrency: u32,
    /// Containers that stand ready over the whole fleet, whether or not calls come.
    pub min_containers: u32,
    /// Containers that one runner starts at most.
    pub max_containers: u32,
    pub network: Network,
    pub env: BTreeMap<String, String>,
    /// Further variables, whose values only runners have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretName>,
    /// A call that may have started may be run again.
    pub idempotent: bool,
    pub triggers: Vec<Trigger>,
    /// Which pages may call it from a browser, where a trigger does not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Bytes of a request's body, and of an answer's; 0: as many as the balancer lets through.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_request: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_response: u64,
    /// How its asynchronous calls are made.
    #[serde(default, skip_serializing_if = "Later::is_default")]
    pub later: Later,
    /// When it is called by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<Schedule>,
}

/// Limits and defaults of a function's fields, in one place for every door through which a function comes in.
pub mod limits {
    use std::ops::RangeInclusive;

    /// Bytes.
    pub const MEMORY: RangeInclusive<u64> = 1 << 20..=1 << 40;
    pub const DEFAULT_MEMORY: u64 = 128 << 20;
    pub const CPU_MILLIS: RangeInclusive<u32> = 0..=1_024_000;
    /// Milliseconds.
    pub const TIMEOUT_MS: RangeInclusive<u64> = 1..=24 * 3_600_000;
    pub const DEFAULT_TIMEOUT_MS: u64 = 30_000;
    pub const INIT_TIMEOUT_MS: RangeInclusive<u64> = 1..=3_600_000;
    pub const DEFAULT_INIT_TIMEOUT_MS: u64 = 5_000;
    pub const IDLE_TIMEOUT_MS: RangeInclusive<u64> = 0..=24 * 3_600_000;
    pub const DEFAULT_IDLE_TIMEOUT_MS: u64 = 60_000;
    pub const CONCURRENCY: RangeInclusive<u32> = 1..=1_000;
    /// Over a whole fleet, and on one runner.
    pub const MIN_CONTAINERS: RangeInclusive<u32> = 0..=100_000;
    pub const MAX_CONTAINERS: RangeInclusive<u32> = 1..=10_000;
    pub const DEFAULT_MAX_CONTAINERS: u32 = 64;
    /// Environment variables, and their bytes together.
    pub const ENV: usize = 512;
    pub const ENV_BYTES: usize = 128 * 1024;
    pub const TRIGGERS: usize = 64;
    /// Bytes of a body, as far as a function may limit them.
    pub const BODY: u64 = 1 << 40;
    pub const COMMAND: usize = 256;
    pub const COMMAND_BYTES: usize = 64 * 1024;
}

impl FunctionSpec {
    /// A function of this name, command and work directory, everything else at its default.
    #[must_use]
    pub fn new(name: FunctionName, command: Vec<String>, workdir: PathBuf) -> Self {
        Self {
            name,
            root: Root::Host,
            credentials: String::new(),
            writable_root: false,
            command,
            workdir,
            format: Format::Default,
            format_options: FormatOptions::default(),
            memory: limits::DEFAULT_MEMORY,
            cpu_millis: 0,
            timeout_ms: limits::DEFAULT_TIMEOUT_MS,
            init_timeout_ms: limits::DEFAULT_INIT_TIMEOUT_MS,
            idle_timeout_ms: limits::DEFAULT_IDLE_TIMEOUT_MS,
            concurrency: 1,
            min_containers: 0,
            max_containers: limits::DEFAULT_MAX_CONTAINERS,
            network: Network::None,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            idempotent: false,
            triggers: Vec::new(),
            cors: None,
            max_request: 0,
            max_response: 0,
            later: Later::default(),
            schedules: Vec::new(),
        }
    }

    /// Names this version: the hash of all that makes its containers interchangeable. Triggers, sizes of bodies,
    /// schedules, what is said of asynchronous calls and the numbers of containers may change without a new version.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let same = Self { min_containers: 0, max_containers: 0, ..self.for_runners() };
        let text = serde_json::to_vec(&same).expect("a spec has only string keys");
        Digest(Sha256::digest(text).into())
    }

    /// What runners are told of it: nothing of what balancers alone act upon.
    #[must_use]
    pub fn for_runners(&self) -> Self {
        Self {
            triggers: Vec::new(),
            cors: None,
            max_request: 0,
            max_response: 0,
            idempotent: false,
            later: Later::default(),
            schedules: Vec::new(),
            ..self.clone()
        }
    }

    /// Names all of it, with what may change without a new version.
    #[must_use]
    pub fn whole_digest(&self) -> Digest {
        Digest(Sha256::digest(serde_json::to_vec(self).expect("a spec has only string keys")).into())
    }

    /// A container of it takes one call after the other.
    #[must_use]
    pub fn is_hot(&self) -> bool {
        self.format.is_streamable() && !(self.format == Format::JsonHttp && self.format_options.cold)
    }

    /// The same function in the format `cloudevent`, for calls that [must be](FormatOptions::force_cloudevent) in it.
    #[must_use]
    pub fn in_cloudevents(&self) -> Self {
        let options =
            FormatOptions { cloudevents: self.format_options.cloudevents, ..FormatOptions::default() };
        Self { format: Format::CloudEvent, format_options: options, concurrency: 1, ..self.clone() }
    }

    /// What a container of it needs.
    #[must_use]
    pub fn ask(&self) -> Ask {
        Ask { memory: self.memory, cpu_millis: self.cpu_millis }
    }

    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    #[must_use]
    pub fn init_timeout(&self) -> Duration {
        Duration::from_millis(self.init_timeout_ms)
    }

    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    /// Everything that is wrong with it, each with the field's name. Every door checks with this.
    ///
    /// # Errors
    /// All problems, in the order of the fields.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |field: &'static str, text: String| problems.push(Problem { field, text });
        match &self.root {
            Root::Rootfs(path) if !path.is_absolute() => wrong("rootfs", not_absolute(path)),
            Root::Archive(path) if !path.is_absolute() => wrong("archive", not_absolute(path)),
            Root::OciLayout(path) if !path.is_absolute() => wrong("oci-layout", not_absolute(path)),
            _ => {}
        }
        if !self.credentials.is_empty() {
            if !is_name(&self.credentials) {
                wrong(
                    "credentials",
                    format!("{:?} is not a name: write 1 to 255 of a-z, A-Z, 0-9, - and _", self.credentials),
                );
            }
            if !matches!(self.root, Root::Image(_)) {
                wrong("credentials", "belongs to `image`: nothing else is fetched from a registry".into());
            }
        }
        let own = |empty: bool| empty && self.root.is_image();
        if self.command.first().is_none_or(String::is_empty) && !own(self.command.is_empty()) {
            wrong(
                "command",
                "is missing: write the program and its arguments, like [\"python3\", \"func.py\"]".into(),
            );
        }
        let bytes: usize = self.command.iter().map(String::len).sum();
        if self.command.len() > limits::COMMAND || bytes > limits::COMMAND_BYTES {
            wrong(
                "command",
                format!("has more than {} parts or {} bytes", limits::COMMAND, limits::COMMAND_BYTES),
            );
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            wrong("command", "has a NUL character".into());
        }
        let workdir = self.workdir.as_os_str();
        if !(self.workdir.is_absolute() || own(workdir.is_empty())) || workdir.len() > 4096 {
            wrong("workdir", not_absolute(&self.workdir));
        }
        for problem in self.format_options.problems(self.format) {
            wrong("format_options", problem);
        }
        if self.root != Root::Host && !no_path(&self.format_options.opt) {
            wrong("format_options", "opt: a function with files of its own has its `/opt` in them".into());
        }
        range(&mut wrong, "memory", self.memory, &limits::MEMORY, crate::units::format_size);
        range(&mut wrong, "cpu", self.cpu_millis, &limits::CPU_MILLIS, crate::units::format_cpu);
        let time = |ms| crate::units::format_duration(Duration::from_millis(ms));
        range(&mut wrong, "timeout", self.timeout_ms, &limits::TIMEOUT_MS, time);
        range(&mut wrong, "init_timeout", self.init_timeout_ms, &limits::INIT_TIMEOUT_MS, time);
        range(&mut wrong, "idle_timeout", self.idle_timeout_ms, &limits::IDLE_TIMEOUT_MS, time);
        range(&mut wrong, "concurrency", self.concurrency, &limits::CONCURRENCY, |n| n.to_string());
        if self.concurrency > 1 && !matches!(self.format, Format::HttpStream | Format::Lambda) {
            wrong("concurrency", format!("format {} takes one call at a time", self.format.as_str()));
        }
        range(&mut wrong, "max_containers", self.max_containers, &limits::MAX_CONTAINERS, |n| n.to_string());
        range(&mut wrong, "min_containers", self.min_containers, &limits::MIN_CONTAINERS, |n| n.to_string());
        let bytes: usize = self.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if self.env.len() + self.secrets.len() > limits::ENV || bytes > limits::ENV_BYTES {
            wrong("env", format!("has more than {} variables or {} bytes", limits::ENV, limits::ENV_BYTES));
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                wrong("env", format!("{key:?} cannot be an environment variable"));
            }
        }
        for key in self.secrets.keys() {
            if key.is_empty() || key.contains(['=', '\0']) || key.len() > 1024 {
                wrong("env", format!("{key:?} cannot be an environment variable"));
            }
            if self.env.contains_key(key) {
                wrong("env", format!("{key:?} is a text and a secret: write one of them"));
            }
        }
        if self.triggers.len() > limits::TRIGGERS {
            wrong("triggers", format!("has more than {} entries", limits::TRIGGERS));
        }
        if self.triggers.len() <= limits::TRIGGERS {
            for problem in Trigger::all_problems(&self.triggers) {
                wrong("triggers", problem);
            }
        }
        for problem in self.cors.iter().flat_map(Cors::problems) {
            wrong("cors", problem);
        }
        for (field, bytes) in [("max_request", self.max_request), ("max_response", self.max_response)] {
            if bytes > limits::BODY {
                wrong(field, format!("is more than {}", crate::units::format_size(limits::BODY)));
            }
        }
        for problem in self.later.problems(&self.name) {
            wrong("async", problem);
        }
        if self.schedules.len() > MAX_SCHEDULES {
            wrong("schedules", format!("has more than {MAX_SCHEDULES} entries"));
        }
        for problem in self.schedules.iter().filter_map(Schedule::problem) {
            wrong("schedules", problem);
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

fn not_absolute(path: &Path) -> String {
    format!("`{}` is not an absolute path", path.display())
}

fn range<T: PartialOrd + Copy>(
    wrong: &mut impl FnMut(&'static str, String),
    field: &'static str,
    value: T,
    allowed: &std::ops::RangeInclusive<T>,
    show: impl Fn(T) -> String,
) {
    if !allowed.contains(&value) {
        wrong(
            field,
            format!("{} is not between {} and {}", show(value), show(*allowed.start()), show(*allowed.end())),
        );
    }
}

/// One thing that is wrong with a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key in the function file.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub text: String,
}

/// Names one version of a function: SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// `None` unless there are 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> FunctionSpec {
        let name = FunctionName::new("demo", "hello").unwrap();
        FunctionSpec::new(name, vec!["true".into()], "/tmp".into())
    }

    #[test]
    fn names_split_and_give_stable_ids() {
        let name = FunctionName::parse("demo/hello").unwrap();
        assert_eq!((name.app(), name.function(), name.as_str()), ("demo", "hello", "demo/hello"));
        assert_eq!(name.id().len(), 26);
        assert_eq!(name.id(), FunctionName::new("demo", "hello").unwrap().id());
        assert_ne!(name.id(), FunctionName::new("demo", "hell").unwrap().id());
        for bad in ["", "demo", "/x", "x/", "a/b/c", "a b/c"] {
            assert_eq!(FunctionName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_default_function_is_valid_and_survives_its_text_form() {
        let spec = hello();
        assert_eq!(spec.check(), Ok(()));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<FunctionSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn the_digest_changes_with_what_containers_depend_on_and_only_then() {
        let base = hello().digest();
        let with = |change: fn(&mut FunctionSpec)| {
            let mut spec = hello();
            change(&mut spec);
            spec.digest()
        };
        assert_eq!(base, with(|s| s.triggers.push(Trigger::new("/x"))));
        assert_eq!(base, with(|s| s.max_containers = 3));
        assert_eq!(hello().for_runners().digest(), base);
        assert_ne!(base, with(|s| s.memory += 1));
        assert_ne!(base, with(|s| s.format_options.cold = true));
        assert_ne!(base, with(|s| *s = s.in_cloudevents()));
        assert_ne!(base, with(|s| s.command.push("x".into())));
        assert_ne!(base, with(|s| _ = s.env.insert("A".into(), "b".into())));
        assert_ne!(base, with(|s| s.name = FunctionName::new("demo", "other").unwrap()));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let mut spec = hello();
        spec.command.clear();
        spec.workdir = "relative".into();
        spec.memory = 1;
        spec.timeout_ms = 0;
        spec.concurrency = 5;
        spec.min_containers = 100_001;
        spec.env.insert("A=B".into(), String::new());
        spec.triggers.push(Trigger::new("x"));
        let fields: Vec<_> = spec.check().unwrap_err().into_iter().map(|p| p.field).collect();
        assert_eq!(
            fields,
            ["command", "workdir", "memory", "timeout", "concurrency", "min_containers", "env", "triggers"]
        );
    }

    #[test]
    fn an_image_brings_its_own_command_and_work_directory() {
        let mut spec = hello();
        spec.root = Root::Image(ImageRef::parse("registry.example/hello:1").unwrap());
        (spec.command, spec.workdir) = (Vec::new(), PathBuf::new());
        assert_eq!(spec.check(), Ok(()));
        spec.root = Root::Archive("hello.tar".into());
        spec.credentials = "team".into();
        let fields: Vec<_> = spec.check().unwrap_err().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["archive", "credentials"]);
    }

    #[test]
    fn options_belong_to_formats() {
        assert_eq!(FormatOptions::default().problems(Format::Json), Vec::<String>::new());
        let cold = FormatOptions { cold: true, ..Default::default() };
        assert_eq!(cold.problems(Format::JsonHttp), Vec::<String>::new());
        assert_eq!(cold.problems(Format::Json), ["cold belongs to json-http, not to json"]);
        let two = FormatOptions { cloudevents: CloudEvents::V1_0, base64_bodies: true, ..Default::default() };
        assert_eq!(two.problems(Format::Http).len(), 2);
        assert_eq!(FormatOptions::default().problems(Format::Mless).len(), 1);
        let handler = FormatOptions { handler: "f.h".into(), ..Default::default() };
        assert_eq!(handler.problems(Format::Mless), Vec::<String>::new());
        let text = r#"{"cloudevents":"1.0"}"#;
        assert_eq!(serde_json::from_str::<FormatOptions>(text).unwrap().cloudevents, CloudEvents::V1_0);
        assert!(serde_json::from_str::<FormatOptions>(r#"{"cloudevent":"1.0"}"#).is_err());
    }

    #[test]
    fn events_force_their_format_where_that_is_asked() {
        let forced = |on, kind: &'static str| {
            let mut head = crate::RequestHead::default();
            head.headers.push("content-type", kind);
            FormatOptions { cloudevents_by_content_type: on, ..Default::default() }.force_cloudevent(&head)
        };
        assert!(forced(true, "application/cloudevents+json"));
        assert!(forced(true, "Application/CloudEvents+JSON; charset=utf-8"));
        assert!(!forced(false, "application/cloudevents+json"));
        assert!(!forced(true, "application/json"));
    }
}
