//! Functions as stores write them: JSON that people can read, the same in a file and in etcd.
//!
//! What was written before there were revisions is read as a first revision. Fields of later are let pass, but within a spec: to run a
//! function without heeding all of it would be wrong, to know less about its history is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::function::FunctionSpec;

use crate::revisions::{Alias, Release, Revision, Split};

/// A function's newest revision, and where calls go.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    #[serde(flatten)]
    newest: Older,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traffic: Option<Split>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    aliases: BTreeMap<String, Alias>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reserved: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

/// One revision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Older {
    function: FunctionSpec,
    #[serde(default = "first")]
    revision: u64,
    #[serde(default)]
    created_ms: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    published: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<String, String>,
}

fn first() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Head {
    pub fn new(release: &Release) -> Self {
        Self {
            newest: Older::new(&release.newest),
            traffic: release.traffic,
            aliases: release.aliases.clone(),
            reserved: release.reserved,
            tags: release.tags.clone(),
        }
    }

    pub fn release(self) -> Release {
        Release {
            newest: Arc::new(self.newest.revision()),
            traffic: self.traffic,
            aliases: self.aliases,
            reserved: self.reserved,
            tags: self.tags,
        }
    }

    pub fn spec(&self) -> &FunctionSpec {
        &self.newest.function
    }
}

impl Older {
    pub fn new(revision: &Revision) -> Self {
        Self {
            function: FunctionSpec::clone(&revision.spec),
            revision: revision.number,
            created_ms: revision.created_ms,
            published: revision.published,
            notes: revision.notes.clone(),
        }
    }

    pub fn revision(self) -> Revision {
        Revision {
            number: self.revision,
            spec: Arc::new(self.function),
            created_ms: self.created_ms,
            published: self.published,
            notes: self.notes,
        }
    }

    pub fn spec(&self) -> &FunctionSpec {
        &self.function
    }
}
