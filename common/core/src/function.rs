//! A function: its name, and everything that a runner must know to run it.

mod check;
mod format;
mod name;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::check::Problem;
pub use self::format::{CloudEvents, Format, FormatOptions};
pub use self::name::{FunctionName, opaque_id};
use crate::image::ImageRef;
use crate::later::{Later, Schedule};
use crate::listed;
use crate::machine::Listed as _;
use crate::resources::Ask;
use crate::secret::SecretName;
pub use crate::trigger::{Cors, Trigger};

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

fn is_zero(number: &u64) -> bool {
    *number == 0
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

    pub(super) fn hello() -> FunctionSpec {
        let name = FunctionName::new("demo", "hello").unwrap();
        FunctionSpec::new(name, vec!["true".into()], "/tmp".into())
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
}
