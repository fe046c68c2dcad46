//! Revisions of functions: what they were, where calls go, and what may be called by another name.
//!
//! Every change of a function makes a revision with the next number, for ever: its spec does not change any more. Calls that ask for none go
//! to the newest, or, while a [`Split`] says otherwise, to the one or two that it names; an alias is a name for such a split. All of it is
//! pure: [`Functions`] in, [`Functions`] out, the same for every store.
//!
//! The history is bounded: [`KEPT`] revisions before the newest stay, and besides them those that somebody holds: the calls that go there,
//! an alias, or that they were published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_core::ids::is_name;

use crate::{Applied, Error, Functions, check_triggers};

/// Revisions before the newest that stay although nobody holds them.
pub const KEPT: usize = 10;

/// Published revisions, aliases and tags of one function, at most.
pub const MOST_PUBLISHED: usize = 100;
pub const MOST_ALIASES: usize = 100;
pub const MOST_TAGS: usize = 50;

/// All calls, in parts of which a [`Split`] is made.
pub const WHOLE: u32 = 10_000;

/// Bytes of what a door keeps with a revision, at most.
const MOST_NOTES: usize = 16 * 1024;

/// A function as it was applied, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// From 1 on, in the order in which they were made.
    pub number: u64,
    pub spec: Arc<FunctionSpec>,
    /// Milliseconds since 1970; 0 where nobody wrote it down.
    pub created_ms: u64,
    /// Kept until somebody removes it.
    pub published: bool,
    /// What the door that made it keeps with it. Nothing that the function would run by.
    pub notes: BTreeMap<String, String>,
}

/// To which revisions calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Takes what the other does not.
    pub main: u64,
    /// Another, and how many of [`WHOLE`] go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<(u64, u32)>,
}

impl Split {
    /// All calls to one.
    #[must_use]
    pub fn all(main: u64) -> Self {
        Self { main, other: None }
    }

    /// The revision that takes the call of this seed: the same for the same seed, and over many seeds by the weights.
    #[must_use]
    pub fn pick(&self, seed: u64) -> u64 {
        match self.other {
            Some((other, weight)) if draw(seed) < u64::from(weight) => other,
            _ => self.main,
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        [Some(self.main), self.other.map(|(other, _)| other)].into_iter().flatten()
    }
}

/// A number below [`WHOLE`] out of a seed whose bits need not be good ones (splitmix64's finaliser).
fn draw(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    // The upper half of a product with 32 good bits: even to one in 400,000.
    ((mixed >> 32) * u64::from(WHOLE)) >> 32
}

/// A name for a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    pub split: Split,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Counts its changes, so that who changes it can say which state of it was seen.
    #[serde(default)]
    pub changes: u64,
}

/// What is known of a function besides its newest spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub newest: Arc<Revision>,
    /// Where calls go that ask for no revision; `None`: to the newest, whichever that is.
    pub traffic: Option<Split>,
    pub aliases: BTreeMap<String, Alias>,
    /// Calls that a balancer lets in at once; `None`: as many as there is room for.
    pub reserved: Option<u32>,
    pub tags: BTreeMap<String, String>,
}

/// What a function is to become.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub spec: FunctionSpec,
    /// What goes with the revision; `None`: nothing, or, where the spec stays, what goes with it already.
    pub notes: Option<BTreeMap<String, String>>,
    /// Calls stay where they go now, until they are rolled out.
    pub hold: bool,
    pub expect: Expect,
}

impl From<FunctionSpec> for Proposal {
    fn from(spec: FunctionSpec) -> Self {
        Self { spec, notes: None, hold: false, expect: Expect::Anything }
    }
}

/// What must be there for a proposal to be accepted: whoever read before writing says what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Nothing,
    /// The newest revision has this number.
    Newest(u64),
}

/// What applying did to a function, and its newest revision now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub applied: Applied,
    pub revision: u64,
}

/// A change of a function that makes no revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// So many of [`WHOLE`] calls go to the newest revision, the rest where most go now; all of them: to whichever is the newest from now
    /// on.
    Rollout(u32),
    /// All calls go to this one, whatever is applied, until they are rolled out again.
    Rollback(u64),
    /// Makes an alias, or changes what it is. `expect`: there is none (`Some(None)`), or it has been changed so often (`Some(Some(n))`).
    SetAlias {
        name: String,
        split: Split,
        description: String,
        expect: Option<Option<u64>>,
    },
    DeleteAlias(String),
    /// Keeps the newest revision, which must have this number, with what else goes with it.
    Publish {
        number: u64,
        notes: BTreeMap<String, String>,
    },
    /// Removes a revision; the newest stays, but is not published any more.
    Remove(u64),
    Reserve(Option<u32>),
    /// Sets the ones, and takes the others away.
    Tag {
        set: BTreeMap<String, String>,
        unset: Vec<String>,
    },
}

/// Why a change of revisions is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no function {0}")]
    NoFunction(FunctionName),
    #[error("there is no revision {1} of {0}")]
    NoRevision(FunctionName, u64),
    #[error("{0} has no alias `{1}`")]
    NoAlias(FunctionName, String),
    #[error("{0} is there already")]
    FunctionExists(FunctionName),
    #[error("{0} has an alias `{1}` already")]
    AliasExists(FunctionName, String),
    /// Somebody else was faster.
    #[error("{0} was changed meanwhile: look again")]
    Changed(FunctionName),
    #[error("revision {1} of {0} cannot be removed: {2}")]
    InUse(FunctionName, u64, String),
    #[error("{0} has no revision before its newest")]
    NothingBefore(FunctionName),
    #[error("{0}")]
    Wrong(String),
}

impl Refusal {
    /// What was named is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Refusal::NoFunction(_) | Refusal::NoRevision(..) | Refusal::NoAlias(..))
    }
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Refusal::Wrong(text.into()).into())
}

impl Functions {
    /// A revision that is kept.
    #[must_use]
    pub fn revision(&self, name: &FunctionName, number: u64) -> Option<&Arc<Revision>> {
        let newest = &self.releases.get(name)?.newest;
        if newest.number == number {
            return Some(newest);
        }
        self.older.get(name)?.get(&number)
    }

    /// All that are kept, from the newest on.
    pub fn revisions(&self, name: &FunctionName) -> impl Iterator<Item = &Arc<Revision>> {
        let newest = self.releases.get(name).map(|release| &release.newest);
        let older = self.older.get(name).into_iter().flat_map(|older| older.values().rev());
        newest.into_iter().chain(older)
    }

    /// Where calls of this function go that ask for no revision.
    #[must_use]
    pub fn traffic(&self, name: &FunctionName) -> Option<Split> {
        let release = self.releases.get(name)?;
        Some(release.traffic.unwrap_or(Split::all(release.newest.number)))
    }

    /// The newest spec, and those to which calls go besides: a function answers at the triggers of all of them.
    pub fn live(&self, name: &FunctionName) -> impl Iterator<Item = &Arc<FunctionSpec>> {
        let newest = self.by_name.get(name);
        let numbers = self.traffic(name).into_iter().flat_map(|split| split.numbers().collect::<Vec<_>>());
        let others = numbers.filter_map(|number| self.revision(name, number)).map(|revision| &revision.spec);
        newest.into_iter().chain(others.filter(move |spec| !newest.is_some_and(|n| Arc::ptr_eq(n, spec))))
    }

    /// Puts a release in its place, as a store has it.
    pub(crate) fn put(&mut self, release: Release) {
        let spec = release.newest.spec.clone();
        self.releases.insert(spec.name.clone(), Arc::new(release));
        self.by_name.insert(spec.name.clone(), spec);
    }

    /// The same for a revision before the newest.
    pub(crate) fn put_older(&mut self, revision: Revision) {
        let older = self.older.entry(revision.spec.name.clone()).or_default();
        Arc::make_mut(older).insert(revision.number, Arc::new(revision));
    }

    /// Takes a function's newest revision out, and all that is known of it but its history.
    pub(crate) fn take(&mut self, name: &FunctionName) -> bool {
        self.releases.remove(name);
        self.by_name.remove(name).is_some()
    }

    pub(crate) fn take_older(&mut self, name: &FunctionName, number: u64) {
        if let Some(older) = self.older.get_mut(name) {
            Arc::make_mut(older).remove(&number);
            if older.is_empty() {
                self.older.remove(name);
            }
        }
    }

    /// Removes a function with its history; says whether there was one.
    pub fn delete(&mut self, name: &FunctionName) -> bool {
        self.older.remove(name);
        self.take(name)
    }

    /// Creates functions, or makes new revisions of them: all or, on an error, none of it is to be kept.
    ///
    /// # Errors
    /// [`Error::TriggerTaken`], or a proposal that expected something else.
    pub fn apply(&mut self, proposals: Vec<Proposal>, now_ms: u64) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            outcomes.push(self.apply_one(proposal, now_ms)?);
        }
        check_triggers(self)?;
        Ok(outcomes)
    }

    fn apply_one(&mut self, proposal: Proposal, now_ms: u64) -> Result<Outcome, Error> {
        let name = proposal.spec.name.clone();
        let notes: usize = proposal.notes.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
        if notes > MOST_NOTES {
            return wrong(format!("what goes with {name} has more than {MOST_NOTES} bytes"));
        }
        let before = self.releases.get(&name).cloned();
        match (proposal.expect, &before) {
            (Expect::Nothing, Some(_)) => return Err(Refusal::FunctionExists(name).into()),
            (Expect::Newest(number), Some(before)) if before.newest.number != number => {
                return Err(Refusal::Changed(name).into());
            }
            (Expect::Newest(_), None) => return Err(Refusal::NoFunction(name).into()),
            _ => {}
        }
        let mut newest = Revision {
            number: 1,
            spec: Arc::new(proposal.spec),
            created_ms: now_ms,
            published: false,
            notes: proposal.notes.clone().unwrap_or_default(),
        };
        let Some(before) = before else {
            // What is left of a function of that name is nobody's history.
            self.older.remove(&name);
            let revision = newest.number;
            self.put(Release::of(newest));
            return Ok(Outcome { applied: Applied::Created, revision });
        };
        let same = *before.newest.spec == *newest.spec;
        if same && proposal.notes.as_ref().is_none_or(|notes| *notes == before.newest.notes) {
            return Ok(Outcome { applied: Applied::Unchanged, revision: before.newest.number });
        }
        let mut replaced = Revision::clone(&before.newest);
        // Where a build that knows no revisions wrote last, its number is not the highest.
        if let Some(highest) = self.older.get(&name).and_then(|older| older.keys().next_back())
            && *highest >= replaced.number
        {
            replaced.number = highest + 1;
        }
        newest.number = replaced.number + 1;
        let revision = newest.number;
        let mut release = Release { newest: Arc::new(newest), ..Release::clone(&before) };
        if proposal.hold && release.traffic.is_none() {
            release.traffic = Some(Split::all(replaced.number));
        }
        self.put_older(replaced);
        self.put(release);
        self.forget(&name);
        Ok(Outcome { applied: Applied::Updated, revision })
    }

    /// Removes what is older than the history goes and nobody holds.
    fn forget(&mut self, name: &FunctionName) {
        let Some(release) = self.releases.get(name).cloned() else { return };
        let held = release.held();
        let Some(older) = self.older.get(name) else { return };
        let free = older.values().rev().filter(|r| !r.published && !held.contains(&r.number));
        let gone: Vec<u64> = free.skip(KEPT).map(|revision| revision.number).collect();
        gone.into_iter().for_each(|number| self.take_older(name, number));
    }

    /// Changes what is known of a function besides its spec.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::TriggerTaken`]; nothing of it is to be kept then.
    pub fn change(&mut self, name: &FunctionName, change: Change) -> Result<(), Error> {
        let Some(release) = self.releases.get(name) else {
            return Err(Refusal::NoFunction(name.clone()).into());
        };
        let mut release = Release::clone(release);
        let newest = release.newest.number;
        match change {
            Change::Rollout(weight) => {
                release.traffic = match weight {
                    WHOLE => None,
                    0..WHOLE => {
                        let stable = match release.traffic {
                            Some(split) if split.main != newest => split.main,
                            _ => self.before(name, newest)?,
                        };
                        Some(Split { main: stable, other: (weight > 0).then_some((newest, weight)) })
                    }
                    _ => return wrong(format!("a part of the calls is 0 to {WHOLE}")),
                };
            }
            Change::Rollback(to) => {
                self.must_have(name, to)?;
                release.traffic = (to != newest).then_some(Split::all(to));
            }
            Change::SetAlias { name: alias, split, description, expect } => {
                self.set_alias(name, &mut release, alias, split, description, expect)?;
            }
            Change::DeleteAlias(alias) => {
                if release.aliases.remove(&alias).is_none() {
                    return Err(Refusal::NoAlias(name.clone(), alias).into());
                }
            }
            Change::Publish { number, notes } => {
                if number != newest {
                    return Err(Refusal::Changed(name.clone()).into());
                }
                let published = self.revisions(name).filter(|revision| revision.published).count();
                if !release.newest.published && published >= MOST_PUBLISHED {
                    return wrong(format!(
                        "{name} has {MOST_PUBLISHED} published revisions already: remove one"
                    ));
                }
                let mut revision = Revision::clone(&release.newest);
                revision.published = true;
                revision.notes.extend(notes);
                release.newest = Arc::new(revision);
            }
            Change::Remove(number) => {
                let in_use =
                    |why: &str| Err(Error::from(Refusal::InUse(name.clone(), number, why.to_owned())));
                self.must_have(name, number)?;
                if number != newest
                    && release.traffic.is_some_and(|split| split.numbers().any(|n| n == number))
                {
                    return in_use("calls go there");
                }
                let alias = release.aliases.iter().find(|(_, a)| a.split.numbers().any(|n| n == number));
                if let Some((alias, _)) = alias {
                    return in_use(&format!("the alias `{alias}` leads there"));
                }
                match (number == newest, release.newest.published) {
                    (false, _) => self.take_older(name, number),
                    (true, false) => return in_use("it is the newest"),
                    (true, true) => {
                        let revision = Revision { published: false, ..Revision::clone(&release.newest) };
                        release.newest = Arc::new(revision);
                    }
                }
            }
            Change::Reserve(reserved) => release.reserved = reserved,
            Change::Tag { set, unset } => {
                release.tags.extend(set);
                unset.iter().for_each(|key| _ = release.tags.remove(key));
                if release.tags.len() > MOST_TAGS
                    || release
                        .tags
                        .iter()
                        .any(|(key, value)| key.is_empty() || key.len() > 128 || value.len() > 256)
                {
                    return wrong(format!(
                        "a function has at most {MOST_TAGS} tags, with keys of 1 to 128 and values of up to 256 bytes"
                    ));
                }
            }
        }
        self.put(release);
        self.forget(name);
        check_triggers(self)
    }

    /// Where calls go when what is being rolled out is no good: where most go now, and where all go already, to the revision before.
    ///
    /// # Errors
    /// [`Refusal::NoFunction`], [`Refusal::NothingBefore`].
    pub fn before_now(&self, name: &FunctionName) -> Result<u64, Error> {
        match self.traffic(name) {
            None => Err(Refusal::NoFunction(name.clone()).into()),
            Some(Split { main, other: Some(_) }) => Ok(main),
            Some(Split { main, other: None }) => self.before(name, main),
        }
    }

    fn set_alias(
        &self,
        name: &FunctionName,
        release: &mut Release,
        alias: String,
        split: Split,
        description: String,
        expect: Option<Option<u64>>,
    ) -> Result<(), Error> {
        // A number is a revision, so it cannot be another name for one.
        if !is_name(&alias) || alias.len() > 128 || alias.bytes().all(|b| b.is_ascii_digit()) {
            return wrong(format!("`{alias}` is no alias: write 1 to 128 of [a-zA-Z0-9_-], not only digits"));
        }
        if description.len() > 256 {
            return wrong("a description has at most 256 bytes");
        }
        for number in split.numbers() {
            self.must_have(name, number)?;
        }
        if let Some((other, weight)) = split.other
            && (other == split.main || weight > WHOLE)
        {
            return wrong(format!(
                "an alias leads to two different revisions, the second with a part of up to {WHOLE}"
            ));
        }
        let before = release.aliases.get(&alias);
        match (expect, before) {
            (Some(None), Some(_)) => return Err(Refusal::AliasExists(name.clone(), alias).into()),
            (Some(Some(_)), None) => return Err(Refusal::NoAlias(name.clone(), alias).into()),
            (Some(Some(changes)), Some(before)) if before.changes != changes => {
                return Err(Refusal::Changed(name.clone()).into());
            }
            _ => {}
        }
        if before.is_none() && release.aliases.len() >= MOST_ALIASES {
            return wrong(format!("{name} has {MOST_ALIASES} aliases already: remove one"));
        }
        let changes = before.map_or(0, |before| before.changes + 1);
        release.aliases.insert(alias, Alias { split, description, changes });
        Ok(())
    }

    fn must_have(&self, name: &FunctionName, number: u64) -> Result<(), Error> {
        match self.revision(name, number) {
            Some(_) => Ok(()),
            None => Err(Refusal::NoRevision(name.clone(), number).into()),
        }
    }

    /// The last one before this.
    fn before(&self, name: &FunctionName, number: u64) -> Result<u64, Error> {
        let before = self.older.get(name).and_then(|older| older.range(..number).next_back());
        before.map(|(number, _)| *number).ok_or_else(|| Refusal::NothingBefore(name.clone()).into())
    }
}

impl Release {
    /// Of a function of which only its spec is known.
    #[must_use]
    pub fn first(spec: FunctionSpec) -> Self {
        let notes = BTreeMap::new();
        Self::of(Revision { number: 1, spec: Arc::new(spec), created_ms: 0, published: false, notes })
    }

    fn of(newest: Revision) -> Self {
        Self {
            newest: Arc::new(newest),
            traffic: None,
            aliases: BTreeMap::new(),
            reserved: None,
            tags: BTreeMap::new(),
        }
    }

    /// Revisions that must stay.
    fn held(&self) -> BTreeSet<u64> {
        let splits = self.aliases.values().map(|alias| &alias.split).chain(&self.traffic);
        splits.flat_map(Split::numbers).collect()
    }
}

#[cfg(test)]
mod tests;
