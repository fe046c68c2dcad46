//! What a program was told, by whom: defaults, then a file, then variables, then flags, each above the one before.
//!
//! A program declares each of its keys once, as a [`Key`] or a [`Maybe`]; from that table come the file's keys, the
//! variables, the flags, `--help` and `--print-config`. Reading never stops at the first mistake: those of all layers are
//! reported together, each with its place and what would be right, also where a higher layer overrides the wrong value. For
//! the same reason flags are read here and not by clap, which stops at the first wrong one: clap writes the help.
//!
//! A key `listen.grpc` is `grpc:` under `listen:` in the file, `STOKER_LISTEN_GRPC` and `--listen-grpc`. A list or a map of a
//! higher layer replaces the lower one whole. Some keys are [live](Key::live): a running process takes up their new values when it reads its
//! settings again. Values are kept as they were written, so that what is shown can be written
//! again; a secret one is never shown, not even in a mistake.

mod help;
mod key;
pub mod kind;
mod layers;
mod reference;
pub mod registries;
mod show;
#[cfg(test)]
mod tests;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

pub use key::{Declared, Key, Maybe, Problems, Spec, Table};
use key::{Fallback, Value};
pub use kind::Kind;

use crate::yaml;

/// What all variables of ours begin with.
const PREFIX: &str = "STOKER_";

/// The variable that names the file, unless `--config` does.
const FILE_VARIABLE: &str = "STOKER_CONFIG";

/// The exit code of a program that was told something wrong.
const WRONG_SETTINGS: u8 = 2;

/// Who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: the program's own value.
    Default,
    /// A place in the file; line and column count from 1, line 0 means the file as a whole.
    File { path: PathBuf, line: usize, column: usize },
    /// An environment variable.
    Variable(String),
    /// A flag, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One thing wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Absent for what nobody said although somebody must.
    pub origin: Option<Origin>,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl From<yaml::Mistake> for Mistake {
    fn from(mistake: yaml::Mistake) -> Self {
        let yaml::Mistake { file, line, column, text } = mistake;
        Self { origin: Some(Origin::File { path: file, line, column }), text }
    }
}

/// Everything that is wrong: the file's places in their order, then variables, then flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mistake| writeln!(f, "{mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// One value as it was written: of a list one of its items, of a map one of its pairs.
#[derive(Debug, Clone)]
pub struct Item {
    /// The name of a pair of a map, else empty.
    key: String,
    text: String,
    origin: Origin,
}

/// A key's value in one layer.
#[derive(Debug, Clone)]
struct Raw {
    items: Vec<Item>,
    origin: Origin,
}

/// A program and what it can be told.
#[derive(Clone, Copy)]
pub struct Program {
    /// Its name, like `stoker-lb`.
    pub name: &'static str,
    pub version: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Lines under `Examples:` in the help.
    pub examples: &'static str,
    pub tables: &'static [Table],
}

/// What the program is to do now.
#[derive(Debug)]
pub enum Outcome {
    /// Run with these.
    Run(Settings),
    /// Write this to STDOUT and end: it was asked for help, its version or its settings.
    Say(String),
}

impl Program {
    /// Reads this process's flags, variables and file. What the program is asked to say, and every mistake, is written here.
    ///
    /// # Errors
    /// The code to end with.
    pub fn settings(&self) -> Result<Settings, ExitCode> {
        match self.load(std::env::args_os().skip(1), std::env::vars_os()) {
            Ok(Outcome::Run(settings)) => Ok(settings),
            Ok(Outcome::Say(text)) => {
                // Who closed our STDOUT has read enough.
                std::io::stdout().write_all(text.as_bytes()).ok();
                Err(ExitCode::SUCCESS)
            }
            Err(mistakes) => Err(self.refuse(&mistakes)),
        }
    }

    /// Writes mistakes to STDERR and gives the code to end with.
    pub fn refuse(&self, mistakes: &Mistakes) -> ExitCode {
        eprint!("{mistakes}");
        eprintln!("{} did not start; --help shows every setting", self.name);
        ExitCode::from(WRONG_SETTINGS)
    }

    /// Reads these flags (without the program's name), these variables, and the file that they name.
    ///
    /// # Errors
    /// Every mistake of every layer.
    pub fn load(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Outcome, Mistakes> {
        let keys = self.keys();
        let mut flags = layers::flags(arguments, &keys);
        match flags.asked {
            Some(layers::Asked::Help) => return Ok(Outcome::Say(help::text(self))),
            Some(layers::Asked::Version) => {
                return Ok(Outcome::Say(format!("{} {}\n", self.name, self.version)));
            }
            Some(layers::Asked::Settings) | None => {}
        }
        let mut variables = layers::variables(variables, &keys);
        let file = flags.file.take().or(variables.file.take());
        let mut file = file.map(|file| layers::file(&file, &keys)).unwrap_or_default();
        // What is missing may stand in a file that could not be read.
        let unread = !file.mistakes.is_empty() && file.values.is_empty();
        let mut mistakes = Vec::new();
        mistakes.append(&mut file.mistakes);
        mistakes.append(&mut variables.mistakes);
        mistakes.append(&mut flags.mistakes);
        let layers = [&file.values, &variables.values, &flags.values];
        let entries: Vec<_> = keys.iter().map(|key| entry(*key, layers, unread, &mut mistakes)).collect();
        if !mistakes.is_empty() {
            mistakes.sort_by_key(order);
            return Err(Mistakes(mistakes));
        }
        let settings = Settings { program: *self, entries };
        Ok(match flags.asked {
            Some(_) => Outcome::Say(settings.to_yaml()),
            None => Outcome::Run(settings),
        })
    }

    fn keys(&self) -> Vec<&'static dyn Declared> {
        let keys: Vec<_> = self.tables.iter().flat_map(|table| table.iter().copied()).collect();
        let mut taken = BTreeSet::from(["config".to_owned(), "print-config".to_owned()]);
        for key in &keys {
            let spec = key.spec();
            assert!(taken.insert(spec.flag()), "two keys have the flag --{}", spec.flag());
            let section = spec.place().0;
            assert!(keys.iter().all(|k| Some(k.spec().name) != section), "{} is in a key", spec.name);
        }
        keys
    }
}

/// Mistakes of a file stand in its order, however they were found.
fn order(mistake: &Mistake) -> (u8, usize, usize) {
    match &mistake.origin {
        Some(Origin::File { line, column, .. }) => (0, *line, *column),
        Some(Origin::Variable(_)) => (1, 0, 0),
        Some(Origin::Flag(_)) => (2, 0, 0),
        Some(Origin::Default) | None => (3, 0, 0),
    }
}

fn entry(
    key: &'static dyn Declared,
    layers: [&BTreeMap<&'static str, Raw>; 3],
    unread: bool,
    mistakes: &mut Vec<Mistake>,
) -> Entry {
    let spec = key.spec();
    let mut entry = Entry { key, given: None };
    for raw in layers.iter().filter_map(|layer| layer.get(spec.name)) {
        entry.take(raw.clone(), mistakes);
    }
    if entry.given.is_some() || layers.iter().any(|layer| layer.contains_key(spec.name)) {
        return entry;
    }
    let text = match spec.fallback {
        Fallback::Text(text) => Ok(text.to_owned()),
        Fallback::Found(find) => find().map_err(|why| format!("has no default here ({why})")),
        Fallback::Mistake if unread => return entry,
        Fallback::Mistake => Err("is missing".to_owned()),
        Fallback::Nothing => return entry,
    };
    match text {
        Ok(text) => {
            let raw = Raw { items: spec.items(&text, &Origin::Default), origin: Origin::Default };
            entry.take(raw, mistakes);
        }
        Err(why) => {
            let variable = spec.variables().next().unwrap_or_default();
            let text = format!(
                "`{}` {why}: write --{} {}, {variable}, or a line in the file",
                spec.name,
                spec.flag(),
                spec.what
            );
            mistakes.push(Mistake { origin: None, text });
        }
    }
    entry
}

/// What is other than before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    pub live: Vec<&'static str>,
    pub fixed: Vec<&'static str>,
}

/// A key and what was given for it.
#[derive(Clone)]
struct Entry {
    key: &'static dyn Declared,
    given: Option<(Raw, Value)>,
}

impl Entry {
    fn texts(&self) -> Option<Vec<(&str, &str)>> {
        let (raw, _) = self.given.as_ref()?;
        Some(raw.items.iter().map(|item| (item.key.as_str(), item.text.as_str())).collect())
    }

    fn take(&mut self, raw: Raw, mistakes: &mut Vec<Mistake>) {
        match self.key.read(&raw.items) {
            Ok(value) => self.given = Some((raw, value)),
            Err(problems) => mistakes.extend(problems.into_iter().map(|(number, problem)| {
                let origin = raw.items.get(number).map_or(&raw.origin, |item| &item.origin);
                let name = self.key.spec().name;
                Mistake { origin: Some(origin.clone()), text: format!("`{name}`: {problem}") }
            })),
        }
    }
}

impl fmt::Debug for Entry {
    /// No value: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.spec().name)
    }
}

/// What the program was told, checked.
#[derive(Debug)]
pub struct Settings {
    program: Program,
    entries: Vec<Entry>,
}

impl Settings {
    /// The value of a key.
    ///
    /// # Panics
    /// If the program's tables do not have the key.
    #[must_use]
    pub fn get<T: Clone + Send + Sync>(&self, key: &Key<T>) -> T {
        self.value(key).expect("a key without a value was a mistake")
    }

    /// The value of a key, if there is one.
    ///
    /// # Panics
    /// If the program's tables do not have the key.
    #[must_use]
    pub fn maybe<T: Clone + Send + Sync>(&self, key: &Maybe<T>) -> Option<T> {
        self.value(&key.0)
    }

    /// What the process would be told if it started now.
    ///
    /// # Errors
    /// Every mistake of every layer.
    pub fn again(&self) -> Result<Self, Mistakes> {
        match self.program.load(std::env::args_os().skip(1), std::env::vars_os())? {
            Outcome::Run(settings) => Ok(settings),
            // A process that runs was not asked to say something instead.
            Outcome::Say(_) => Err(Mistakes(Vec::new())),
        }
    }

    /// The names of keys that have other values in `new`: those that are taken up, and those that need a restart.
    #[must_use]
    pub fn differences(&self, new: &Self) -> Differences {
        let mut differences = Differences::default();
        for (old, new) in self.entries.iter().zip(&new.entries) {
            if old.texts() != new.texts() {
                let spec = old.key.spec();
                let list = if spec.live { &mut differences.live } else { &mut differences.fixed };
                list.push(spec.name);
            }
        }
        differences
    }

    /// These settings, with the values that a running process takes up from `new`.
    #[must_use]
    pub fn with_live(&self, new: &Self) -> Self {
        let both = self.entries.iter().zip(&new.entries);
        let entries =
            both.map(|(old, new)| if old.key.spec().live { new.clone() } else { old.clone() }).collect();
        Self { program: self.program, entries }
    }

    /// A mistake that shows only between several values, at the place of this key's.
    #[must_use]
    pub fn mistake(&self, key: &dyn Declared, text: impl fmt::Display) -> Mistake {
        let name = key.spec().name;
        let origin = self.entry(name).given.as_ref().map(|(raw, _)| raw.origin.clone());
        Mistake { origin, text: format!("`{name}`: {text}") }
    }

    fn value<T: Clone + Send + Sync>(&self, key: &Key<T>) -> Option<T> {
        let (_, value) = self.entry(key.spec.name).given.as_ref()?;
        Some(value.downcast_ref::<T>().expect("a key's name stands for one type").clone())
    }

    fn entry(&self, name: &str) -> &Entry {
        let entry = self.entries.iter().find(|entry| entry.key.spec().name == name);
        entry.expect("a program reads the keys of its tables")
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
