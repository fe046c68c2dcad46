//! What stands in etcd: keys, and values that people can read.
//!
//! Every value is JSON with a `version`. A reader takes the versions that it knows; a value of a newer one is not there for it.
//! Runners may get new fields within a version, since a balancer can do without them. Functions may not: to run one without heeding
//! all of it would be wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::capacity::{Capacity, RunnerState, Warmth};
use stoker_core::function::{Digest, FunctionName, FunctionSpec};
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::resources::Resources;

use super::view::Table;
use crate::{Fleet, Functions};

/// The one version so far.
const VERSION: u32 = 1;

/// Written together with every change of a function, so that writers notice each other.
pub const FUNCTIONS_GUARD: &str = "/stoker/v1/guards/functions";

/// The key of a runner.
pub fn runner_key(name: &RunnerName) -> String {
    format!("{}{name}", Fleet::PREFIX)
}

/// The key of a function.
pub fn function_key(name: &FunctionName) -> String {
    format!("{}{name}", Functions::PREFIX)
}

/// Why a value cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A newer build wrote it.
    Newer(u32),
    /// It is something else.
    Garbage(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Newer(version) => {
                write!(f, "it has version {version}, this build knows {VERSION}: upgrade it")
            }
            Unreadable::Garbage(text) => f.write_str(text),
        }
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct FunctionRecord<T> {
    version: u32,
    function: T,
}

#[derive(Serialize, Deserialize)]
struct RunnerRecord {
    version: u32,
    name: String,
    incarnation: String,
    address: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    sequence: u64,
    state: State,
    total: Resources,
    free: Resources,
    #[serde(default)]
    reclaimable: Resources,
    in_flight: u32,
    waiting: u32,
    /// By digest.
    #[serde(default)]
    functions: BTreeMap<String, Warm>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ready,
    Draining,
}

#[derive(Serialize, Deserialize)]
struct Warm {
    idle: u32,
    busy: u32,
    waiting: u32,
}

fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Unreadable> {
    let garbage = |error: serde_json::Error| Unreadable::Garbage(error.to_string());
    let Versioned { version } = serde_json::from_slice(value).map_err(garbage)?;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    serde_json::from_slice(value).map_err(garbage)
}

fn write(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has only string keys")
}

/// A runner's value.
pub fn runner_value(c: &Capacity) -> Vec<u8> {
    write(&RunnerRecord {
        version: VERSION,
        name: c.runner.to_string(),
        incarnation: c.incarnation.to_string(),
        address: c.address.clone(),
        zone: c.zone.clone(),
        labels: c.labels.clone(),
        sequence: c.sequence,
        state: match c.state {
            RunnerState::Ready => State::Ready,
            RunnerState::Draining => State::Draining,
        },
        total: c.total,
        free: c.free,
        reclaimable: c.reclaimable,
        in_flight: c.in_flight,
        waiting: c.waiting,
        functions: c
            .functions
            .iter()
            .map(|(digest, w)| (digest.to_string(), Warm { idle: w.idle, busy: w.busy, waiting: w.waiting }))
            .collect(),
    })
}

/// Reads a runner's value; `name` is the one in its key.
pub fn runner(name: &str, value: &[u8]) -> Result<Capacity, Unreadable> {
    let garbage = |text: String| Unreadable::Garbage(text);
    let record: RunnerRecord = read(value)?;
    let runner = RunnerName::new(name).ok_or_else(|| garbage(format!("`{name}` is not a runner's name")))?;
    if record.name != name {
        return Err(garbage(format!("the record is that of `{}`", record.name)));
    }
    let incarnation = u64::from_str_radix(&record.incarnation, 16)
        .map_err(|_| garbage(format!("`{}` is not an incarnation", record.incarnation)))?;
    let functions = record
        .functions
        .iter()
        .map(|(digest, w)| {
            let digest = digest_from(digest).ok_or_else(|| garbage(format!("`{digest}` is not a digest")))?;
            Ok((digest, Warmth { idle: w.idle, busy: w.busy, waiting: w.waiting }))
        })
        .collect::<Result<_, Unreadable>>()?;
    Ok(Capacity {
        runner,
        incarnation: Incarnation(incarnation),
        address: record.address,
        zone: record.zone,
        labels: record.labels,
        sequence: record.sequence,
        state: match record.state {
            State::Ready => RunnerState::Ready,
            State::Draining => RunnerState::Draining,
        },
        total: record.total,
        free: record.free,
        reclaimable: record.reclaimable,
        in_flight: record.in_flight,
        waiting: record.waiting,
        functions,
    })
}

fn digest_from(hex: &str) -> Option<Digest> {
    let mut bytes = [0u8; 32];
    if hex.len() != 2 * bytes.len() || !hex.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..hex.len()).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(Digest(bytes))
}

/// A function's value.
pub fn function_value(spec: &FunctionSpec) -> Vec<u8> {
    write(&FunctionRecord { version: VERSION, function: spec })
}

/// Reads a function's value; `name` is the one in its key.
fn function(name: &str, value: &[u8]) -> Result<FunctionSpec, Unreadable> {
    let FunctionRecord { function, .. } = read::<FunctionRecord<FunctionSpec>>(value)?;
    if function.name.as_str() != name {
        return Err(Unreadable::Garbage(format!("the record is that of `{}`", function.name)));
    }
    if let Err(problems) = function.check() {
        let problems: Vec<String> = problems.iter().map(|p| format!("{} {}", p.field, p.text)).collect();
        return Err(Unreadable::Garbage(problems.join("; ")));
    }
    Ok(function)
}

/// The guard's value.
pub fn guard_value() -> Vec<u8> {
    write(&serde_json::json!({ "version": VERSION }))
}

impl Table for Fleet {
    const PREFIX: &'static str = "/stoker/v1/runners/";
    const WHAT: &'static str = "the view of the fleet";

    fn known() -> Self {
        Self { known: true, ..Self::default() }
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        let record = runner(key, value)?;
        self.runners.insert(record.runner.clone(), Arc::new(record));
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(name) = RunnerName::new(key) {
            self.runners.remove(&name);
        }
    }
}

impl Table for Functions {
    const PREFIX: &'static str = "/stoker/v1/functions/";
    const WHAT: &'static str = "the view of the functions";

    fn known() -> Self {
        Self { known: true, ..Self::default() }
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        let spec = function(key, value)?;
        self.by_name.insert(spec.name.clone(), Arc::new(spec));
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(name) = FunctionName::parse(key) {
            self.by_name.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    fn full() -> Capacity {
        let mut record = conformance::runner("r-1");
        record.incarnation = Incarnation(0x0123_4567_89ab_cdef);
        record.zone = "z".into();
        record.labels.insert("gpu".into(), "yes".into());
        record.sequence = 7;
        record.state = RunnerState::Draining;
        record.waiting = 3;
        record.functions.insert(Digest([0xa5; 32]), Warmth { idle: 1, busy: 2, waiting: 3 });
        record
    }

    #[test]
    fn runners_survive_the_way() {
        let record = full();
        assert_eq!(runner("r-1", &runner_value(&record)), Ok(record));
    }

    #[test]
    fn runners_may_have_fields_of_later() {
        let text = String::from_utf8(runner_value(&full())).unwrap();
        let text = text.replacen('{', r#"{"mood":"good","#, 1);
        assert_eq!(runner("r-1", text.as_bytes()), Ok(full()));
    }

    #[test]
    fn functions_survive_the_way_and_have_no_fields_of_later() {
        let spec = conformance::function("app", "f");
        let value = function_value(&spec);
        assert_eq!(function("app/f", &value), Ok(spec));
        let text = String::from_utf8(value).unwrap();
        let later = text.replacen(r#""command""#, r#""vault":"on","command""#, 1);
        assert_ne!(text, later);
        assert!(
            matches!(function("app/f", later.as_bytes()), Err(Unreadable::Garbage(e)) if e.contains("vault"))
        );
    }

    #[test]
    fn newer_versions_are_told_from_garbage() {
        let newer = br#"{"version":2,"anything":[1,2,3]}"#;
        assert_eq!(runner("a", newer), Err(Unreadable::Newer(2)));
        assert_eq!(function("a/b", newer), Err(Unreadable::Newer(2)));
    }

    #[test]
    fn garbage_is_refused_with_a_reason() {
        let good = String::from_utf8(runner_value(&full())).unwrap();
        let cases = [
            ("r-1", String::new()),
            ("r-1", "hello".into()),
            ("r-1", "{}".into()),
            ("r-1", "null".into()),
            ("r-1", r#"{"version":1}"#.into()),
            ("r-2", good.clone()),
            ("no name", good.clone()),
            ("r-1", good.replace(&"a5".repeat(32), "a5")),
            ("r-1", good.replace(&"a5".repeat(32), &"é".repeat(32))),
            ("r-1", good.replace("draining", "asleep")),
            ("r-1", good.replace(&full().incarnation.to_string(), "later")),
        ];
        for (name, text) in cases {
            let refused = runner(name, text.as_bytes());
            assert!(
                matches!(&refused, Err(Unreadable::Garbage(e)) if !e.is_empty()),
                "{name} {text}: {refused:?}"
            );
        }
        let mut spec = conformance::function("app", "f");
        spec.timeout_ms = 0;
        assert!(
            matches!(function("app/f", &function_value(&spec)), Err(Unreadable::Garbage(e)) if e.contains("timeout"))
        );
        assert!(matches!(function("app/g", &function_value(&spec)), Err(Unreadable::Garbage(_))));
        assert!(matches!(function("app/f", b"\xff\xfe"), Err(Unreadable::Garbage(_))));
    }
}
