//! What stands in etcd: keys, and values that people can read.
//!
//! Every value is JSON with a `version`. A reader takes the versions that it knows; a value of a newer one is not there for it.
//! Runners may get new fields within a version, since a balancer can do without them. What a function runs by may not: to run one without
//! heeding all of it would be wrong.
//!
//! A function's newest revision, and where its calls go, stand under its name; each revision before that under its number below.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::capacity::{Capacity, RunnerState, Warmth};
use stoker_core::function::{Digest, FunctionName, FunctionSpec};
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::resources::Resources;

use super::figures::Part;
use super::view::Table;
use crate::apps::{App, Apps};
use crate::places::{Claim, Claims};
use crate::revisions::{Release, Revision};
use crate::stored::{Head, Older};
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

/// The key of one of its revisions before the newest.
pub fn revision_key(name: &FunctionName, number: u64) -> String {
    format!("{}/{number}", function_key(name))
}

/// The key of an app.
pub fn app_key(name: &str) -> String {
    format!("{}{name}", Apps::PREFIX)
}

/// What the holders of places of a function have their keys below.
pub fn places_prefix(name: &FunctionName) -> String {
    format!("{}{name}/", Claims::PREFIX)
}

#[derive(Serialize, Deserialize)]
struct ClaimRecord {
    version: u32,
    places: u32,
    /// A balancer of before there were turns wants what it has.
    wants: Option<u32>,
    #[serde(default)]
    ticket: u64,
}

/// What stands in etcd for a claim on places.
pub fn claim_value(claim: &Claim) -> Vec<u8> {
    let &Claim { places, wants, ticket } = claim;
    write(&ClaimRecord { version: VERSION, places, wants: Some(wants), ticket })
}

/// Reads it.
pub fn claim(value: &[u8]) -> Result<Claim, Unreadable> {
    let ClaimRecord { places, wants, ticket, .. } = read(value)?;
    Ok(Claim { places, wants: wants.unwrap_or(places), ticket })
}

/// Whose claim a key below the prefix is, and on what.
fn claim_of(key: &str) -> Option<(FunctionName, &str)> {
    let (name, holder) = key.rsplit_once('/')?;
    Some((function_of(name)?.0, holder))
}

/// Which function a key below the prefix is about, and which of its revisions before the newest.
pub fn function_of(key: &str) -> Option<(FunctionName, Option<u64>)> {
    let mut parts = key.split('/');
    let name = FunctionName::new(parts.next()?, parts.next()?)?;
    let number = parts.next().map(|number| number.parse().ok().ok_or(())).transpose().ok()?;
    parts.next().is_none().then_some((name, number))
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
    #[serde(flatten)]
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
pub fn function_value(release: &Release) -> Vec<u8> {
    write(&FunctionRecord { version: VERSION, function: Head::new(release) })
}

/// The value of a revision before the newest.
pub fn revision_value(revision: &Revision) -> Vec<u8> {
    write(&FunctionRecord { version: VERSION, function: Older::new(revision) })
}

/// Reads a function's value; `name` is the one in its key.
fn function(name: &FunctionName, value: &[u8]) -> Result<Release, Unreadable> {
    let FunctionRecord { function, .. } = read::<FunctionRecord<Head>>(value)?;
    check(name, function.spec())?;
    Ok(function.release())
}

/// The same for a revision before the newest.
fn revision(name: &FunctionName, number: u64, value: &[u8]) -> Result<Revision, Unreadable> {
    let FunctionRecord { function, .. } = read::<FunctionRecord<Older>>(value)?;
    check(name, function.spec())?;
    let revision = function.revision();
    if revision.number != number {
        return Err(Unreadable::Garbage(format!("the record is that of revision {}", revision.number)));
    }
    Ok(revision)
}

fn check(name: &FunctionName, spec: &FunctionSpec) -> Result<(), Unreadable> {
    if spec.name != *name {
        return Err(Unreadable::Garbage(format!("the record is that of `{}`", spec.name)));
    }
    spec.check().map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(|p| format!("{} {}", p.field, p.text)).collect();
        Unreadable::Garbage(problems.join("; "))
    })
}

/// The guard's value.
pub fn guard_value() -> Vec<u8> {
    write(&serde_json::json!({ "version": VERSION }))
}

impl Table for Fleet {
    const PREFIX: &'static str = "/stoker/v1/runners/";
    const WHAT: &'static str = "the view of the fleet";
    const PART: Part = Part::Fleet;

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
    const PART: Part = Part::Functions;

    fn known() -> Self {
        Self { known: true, ..Self::default() }
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        match function_of(key) {
            Some((name, None)) => self.put(function(&name, value)?),
            Some((name, Some(number))) => self.put_older(revision(&name, number, value)?),
            None => return Err(Unreadable::Garbage(format!("`{key}` is not the key of a function"))),
        }
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        match function_of(key) {
            Some((name, None)) => _ = self.take(&name),
            Some((name, Some(number))) => self.take_older(&name, number),
            None => {}
        }
    }
}

impl Table for Claims {
    const PREFIX: &'static str = "/stoker/v1/places/";
    const WHAT: &'static str = "the view of the places of functions";
    const PART: Part = Part::Places;

    fn known() -> Self {
        Self::default()
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        let (name, holder) =
            claim_of(key).ok_or_else(|| Unreadable::Garbage(format!("`{key}` is not the key of a claim")))?;
        self.put(name, holder, claim(value)?);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some((name, holder)) = claim_of(key) {
            self.remove(&name, holder);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct AppRecord {
    version: u32,
    app: App,
}

/// What stands in etcd for an app.
pub fn app_value(app: &App) -> Vec<u8> {
    write(&AppRecord { version: VERSION, app: app.clone() })
}

/// Reads it.
pub fn app(value: &[u8]) -> Result<App, Unreadable> {
    Ok(read::<AppRecord>(value)?.app)
}

impl Table for Apps {
    const PREFIX: &'static str = "/stoker/v1/apps/";
    const WHAT: &'static str = "the view of the apps";
    const PART: Part = Part::Apps;

    fn known() -> Self {
        Self { known: true, ..Self::default() }
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Unreadable> {
        self.by_name.insert(key.to_owned(), Arc::new(app(value)?));
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        self.by_name.remove(key);
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
    fn claims_survive_the_way_and_may_be_of_before_and_of_later() {
        let whole = Claim { places: 2, wants: 5, ticket: 7 };
        assert_eq!(claim(&claim_value(&whole)), Ok(whole));
        assert_eq!(claim(br#"{"version":1,"places":3}"#), Ok(Claim::of(3)));
        assert_eq!(
            claim(br#"{"version":1,"places":3,"wants":4,"ticket":1,"mood":"good"}"#).unwrap().wants,
            4
        );
        let name = FunctionName::new("a", "f").unwrap();
        assert_eq!(claim_of("a/f/lb-1"), Some((name, "lb-1")));
        for key in ["a/f", "a", "", "a b/f/lb"] {
            assert_eq!(claim_of(key), None, "{key}");
        }
    }

    #[test]
    fn functions_survive_the_way_and_have_no_fields_of_later() {
        let spec = conformance::function("app", "f");
        let release = Release::first(spec.clone());
        let name = &spec.name;
        let value = function_value(&release);
        assert_eq!(function(name, &value), Ok(release.clone()));
        let text = String::from_utf8(value).unwrap();
        let later = text.replacen(r#""command""#, r#""vault":"on","command""#, 1);
        assert_ne!(text, later);
        assert!(
            matches!(function(name, later.as_bytes()), Err(Unreadable::Garbage(e)) if e.contains("vault"))
        );
        // As it was before there were revisions.
        let before = serde_json::json!({"version": 1, "function": spec}).to_string();
        assert_eq!(function(name, before.as_bytes()), Ok(release.clone()));
        let older =
            Revision { number: 7, created_ms: 5, published: true, ..Revision::clone(&release.newest) };
        let value = revision_value(&older);
        assert_eq!(revision(name, 7, &value), Ok(older));
        assert!(revision(name, 8, &value).is_err());
    }

    #[test]
    fn keys_say_which_revision() {
        let of = |key: &str| function_of(key).map(|(name, number)| (name.to_string(), number));
        assert_eq!(of("a/f"), Some(("a/f".to_owned(), None)));
        assert_eq!(of("a/f/12"), Some(("a/f".to_owned(), Some(12))));
        for key in ["a", "a/f/", "a/f/x", "a/f/1/2", "a b/f", ""] {
            assert_eq!(of(key), None, "{key}");
        }
    }

    #[test]
    fn newer_versions_are_told_from_garbage() {
        let newer = br#"{"version":2,"anything":[1,2,3]}"#;
        assert_eq!(runner("a", newer), Err(Unreadable::Newer(2)));
        assert_eq!(function(&FunctionName::new("a", "b").unwrap(), newer), Err(Unreadable::Newer(2)));
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
        let name = spec.name.clone();
        let value = function_value(&Release::first(spec));
        assert!(matches!(function(&name, &value), Err(Unreadable::Garbage(e)) if e.contains("timeout")));
        let other = FunctionName::new("app", "g").unwrap();
        assert!(matches!(function(&other, &value), Err(Unreadable::Garbage(_))));
        assert!(matches!(function(&name, b"\xff\xfe"), Err(Unreadable::Garbage(_))));
    }
}
