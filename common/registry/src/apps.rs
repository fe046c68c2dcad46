//! Apps: what is kept of one besides its functions.
//!
//! An app is there as long as it has a function; one that somebody made by itself is there until somebody removes it, and has a record here.
//! What is in the record concerns the door that made it and those functions that came by it: a function runs by its spec alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_core::ids::is_name;

/// The record of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Variables of every function that was made by the door that made the app.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// What clients attached to it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, Value>,
    /// Kept for clients that ask for it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syslog_url: Option<String>,
    /// Kept for clients that ask for it back.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shape: String,
    /// Layers of AWS Lambda's API, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Layer>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub updated_ms: u64,
    /// Counts its changes, so that who changes it can say which state of it was seen.
    pub changes: u64,
}

/// Files that functions of an app can have besides their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layer {
    /// Versions that were ever made: none has the number of another that was removed.
    pub made: u64,
    /// From the first on.
    pub versions: Vec<LayerVersion>,
}

/// What does not change any more of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerVersion {
    pub number: u64,
    /// By which its files are found again.
    pub at: String,
    /// Of its zip, in base64.
    pub sha256: String,
    /// Bytes of its zip, and of what is in it.
    pub size: u64,
    pub unpacked: u64,
    /// Kept for clients that ask for it back.
    pub description: String,
    pub license: String,
    pub runtimes: Vec<String>,
    pub architectures: Vec<String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// The records of all apps that have one.
#[derive(Debug, Clone, Default)]
pub struct Apps {
    /// The registry has been read at least once.
    pub known: bool,
    /// By name.
    pub by_name: BTreeMap<String, Arc<App>>,
}

impl Apps {
    /// What is to be written of `app` in place of what is there.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn next(&self, name: &str, app: App) -> Result<App, Refusal> {
        next(self.by_name.get(name).map(|app| app.changes), name, app)
    }
}

/// The same where `before` is what is known of the changes to what is there.
pub(crate) fn next(before: Option<u64>, name: &str, app: App) -> Result<App, Refusal> {
    if !is_name(name) {
        return Err(Refusal::NoName(name.to_owned()));
    }
    match before {
        None if app.changes > 0 => Err(Refusal::Changed(name.to_owned())),
        Some(_) if app.changes == 0 => Err(Refusal::Exists(name.to_owned())),
        Some(changes) if changes != app.changes => Err(Refusal::Changed(name.to_owned())),
        _ => Ok(App { changes: app.changes + 1, ..app }),
    }
}

/// Why an app is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It was to be new.
    #[error("there is an app `{0}` already")]
    Exists(String),
    /// Somebody else changed it after it was read.
    #[error("app `{0}` was changed by somebody else meanwhile: read it again")]
    Changed(String),
    #[error("`{0}` is no name of an app: 1 to 255 of [a-zA-Z0-9_-]")]
    NoName(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_who_read_the_same_one_writes() {
        let app = |changes| App { changes, ..App::default() };
        let mut apps = Apps::default();
        assert_eq!(apps.next("a", app(1)), Err(Refusal::Changed("a".into())));
        assert_eq!(apps.next("a b", app(0)), Err(Refusal::NoName("a b".into())));
        let first = apps.next("a", app(0)).unwrap();
        apps.by_name.insert("a".into(), Arc::new(first));
        assert_eq!(apps.next("a", app(0)), Err(Refusal::Exists("a".into())));
        let second = apps.next("a", app(1)).unwrap();
        apps.by_name.insert("a".into(), Arc::new(second));
        assert_eq!(apps.next("a", app(1)), Err(Refusal::Changed("a".into())));
        assert_eq!(apps.next("a", app(2)).unwrap().changes, 3);
    }
}
