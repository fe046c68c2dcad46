//! Names and ids as types, so that one kind cannot stand where another is meant.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{Builder, Uuid};

/// Longest name of an app, a function or a runner, in bytes.
pub const MAX_NAME: usize = 255;

/// Whether `text` is a name: 1 to [`MAX_NAME`] characters of `[a-zA-Z0-9_-]`.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Names one call from the client's door to the container: a UUIDv7, so that ids sort by time. What clients see as
/// `Fn-Call-Id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(Uuid);

impl CallId {
    /// A new id.
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        // `Uuid::now_v7` asks the kernel for random bytes each time, which is a system call for each call of a client. The keys of
        // std's hashers are random for each thread and new for each hasher: enough for ids, which are no secrets.
        let random = [RandomState::new().hash_one(0u8), RandomState::new().hash_one(1u8)];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut tail = [0; 10];
        tail[..8].copy_from_slice(&random[0].to_be_bytes());
        tail[8..].copy_from_slice(&random[1].to_be_bytes()[..2]);
        Self(Builder::from_unix_timestamp_millis(now.as_millis() as u64, &tail).into_uuid())
    }

    /// The id as its 16 bytes, for the wire.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Reads what [`CallId::as_bytes`] gave; `None` unless there are 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

/// A runner's stable name, unique in the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunnerName(Arc<str>);

impl RunnerName {
    /// `None` unless `text` [is a name](is_name).
    pub fn new(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a runner: a restart under the same name is a new peer, whatever was known of the old one is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// A new one, later than those made before on this machine (the time in it is milliseconds).
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        let (high, _) = Uuid::now_v7().as_u64_pair();
        Self(high)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One container on one runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(Arc<str>);

impl ContainerId {
    /// The `n`-th container of this incarnation of a runner.
    pub fn new(incarnation: Incarnation, n: u64) -> Self {
        Self(format!("c{:08x}-{n}", incarnation.0 as u32 ^ (incarnation.0 >> 32) as u32).into())
    }

    /// One that was written down. `None` if it is no such id.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        valid.then(|| Self(text.into()))
    }

    /// The id; `[a-z0-9-]`, at most 63 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(is_name("a") && is_name("A_b-9") && is_name(&"x".repeat(255)));
        for bad in ["", "a/b", "a b", "é", "a.b", &"x".repeat(256)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn ids_of_containers_round_trip() {
        let id = ContainerId::new(Incarnation(7), 9);
        assert_eq!(ContainerId::parse(id.as_str()), Some(id));
        for bad in ["", "A", "a/b", "é", &"x".repeat(64)] {
            assert_eq!(ContainerId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn call_ids_round_trip_and_differ() {
        let id = CallId::new();
        assert_eq!(CallId::from_slice(id.as_bytes()), Some(id));
        assert_eq!(CallId::parse(&id.to_string()), Some(id));
        assert_ne!(CallId::new(), id);
        assert_eq!(CallId::from_slice(b"short"), None);
        assert_eq!((id.0.get_version_num(), id.0.get_variant()), (7, uuid::Variant::RFC4122));
        let many = || (0..10_000).map(|_| CallId::new()).collect::<std::collections::HashSet<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(many)).collect();
        let all: std::collections::HashSet<_> =
            threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect();
        assert_eq!(all.len(), 40_000);
    }
}
