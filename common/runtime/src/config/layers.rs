//! The three layers above the defaults: what each says, and what in it cannot be understood.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use saphyr::{Marker, Scalar, YamlData};

use super::kind::Shape;
use super::{Declared, FILE_VARIABLE, Item, Mistake, Origin, PREFIX, Raw, Spec, show, words};
use crate::yaml::{self, Node, kind};

/// A variable of ours that is no key is a typing mistake if it is this close to one. Farther ones are somebody else's:
/// Kubernetes puts `STOKER_…_SERVICE_HOST` there for a service of that name.
const TYPING_MISTAKE: usize = 2;

/// What one layer says.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// By the key's name.
    pub values: BTreeMap<&'static str, Raw>,
    pub mistakes: Vec<Mistake>,
    /// The file that it names.
    pub file: Option<PathBuf>,
    /// What it asks for instead of a start.
    pub asked: Option<Asked>,
}

/// What flags can ask for instead of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    Settings,
    Version,
    Help,
}

impl Layer {
    fn wrong(&mut self, origin: Origin, text: impl Into<String>) {
        self.mistakes.push(Mistake { origin: Some(origin), text: text.into() });
    }
}

/// Reads flags: `--flag value`, `--flag=value`, and a switch alone or with `true` or `false`.
pub(super) fn flags(arguments: impl IntoIterator<Item = OsString>, keys: &[&'static dyn Declared]) -> Layer {
    let mut layer = Layer::default();
    let by_flag: BTreeMap<String, &'static Spec> =
        keys.iter().map(|key| (key.spec().flag(), key.spec())).collect();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let argument = argument.to_string_lossy().into_owned();
        let Some(flag) = argument.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            match argument.as_str() {
                "-h" => layer.asked = layer.asked.max(Some(Asked::Help)),
                "-V" => layer.asked = layer.asked.max(Some(Asked::Version)),
                _ => layer.mistakes.push(Mistake {
                    origin: None,
                    text: format!("`{argument}` is not a flag: every setting has a name, like --config FILE"),
                }),
            }
            continue;
        };
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        let asked = match flag.as_str() {
            "help" => Some(Asked::Help),
            "version" => Some(Asked::Version),
            "print-config" => Some(Asked::Settings),
            _ => None,
        };
        if asked.is_some() {
            layer.asked = layer.asked.max(asked);
            continue;
        }
        let spec = by_flag.get(&flag).copied();
        let is_switch = spec.is_some_and(|spec| spec.shape == Shape::Switch);
        let mut next = |is: &dyn Fn(&str) -> bool| {
            let next = arguments.next_if(|next| is(&next.to_string_lossy()))?;
            Some(next.into_string())
        };
        let value = match (value, is_switch) {
            (Some(value), _) => Some(Ok(value)),
            (None, true) => {
                Some(next(&|next| matches!(next, "true" | "false")).unwrap_or_else(|| Ok("true".to_owned())))
            }
            (None, false) => next(&|next| !next.starts_with("--")),
        };
        let origin = Origin::Flag(flag.clone());
        if spec.is_none() && flag != "config" {
            let known = by_flag.keys().map(String::as_str).chain(["config", "print-config"]);
            let text = match words::nearest(&flag, known) {
                Some(near) => format!("there is no such flag: did you mean `--{near}`?"),
                None => "there is no such flag: --help shows them all".to_owned(),
            };
            layer.wrong(origin, text);
            continue;
        }
        let value = match value {
            Some(Ok(value)) => value,
            Some(Err(_)) => {
                layer.wrong(origin, "its value is not UTF-8");
                continue;
            }
            None => {
                let what = spec.map_or("FILE", |spec| spec.what);
                layer.wrong(origin, format!("has no value: write --{flag} {what}"));
                continue;
            }
        };
        match spec {
            None if layer.file.is_some() => layer.wrong(origin, "stands here twice: there is one file"),
            None => layer.file = Some(PathBuf::from(value)),
            Some(spec) => {
                let items = spec.items(&value, &origin);
                match layer.values.get_mut(spec.name) {
                    None => _ = layer.values.insert(spec.name, Raw { items, origin }),
                    Some(raw) if matches!(spec.shape, Shape::List | Shape::Map) => raw.items.extend(items),
                    Some(_) => layer.wrong(origin, "stands here twice: write it once"),
                }
            }
        }
    }
    layer
}

/// Reads variables. An empty one counts as not set.
pub(super) fn variables(
    all: impl IntoIterator<Item = (OsString, OsString)>,
    keys: &[&'static dyn Declared],
) -> Layer {
    let mut layer = Layer::default();
    let all: BTreeMap<OsString, OsString> = all.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let mut known = BTreeSet::from([FILE_VARIABLE.to_owned()]);
    for key in keys {
        let spec = key.spec();
        for name in spec.variables() {
            let value = all.get(&OsString::from(&name)).map(|value| value.clone().into_string());
            let origin = Origin::Variable(name.clone());
            match value {
                Some(Ok(text)) => {
                    let items = spec.items(&text, &origin);
                    layer.values.entry(spec.name).or_insert(Raw { items, origin });
                }
                Some(Err(_)) => layer.wrong(origin, format!("`{}`: the value is not UTF-8", spec.name)),
                None => {}
            }
            known.insert(name);
        }
    }
    layer.file = all.get(&OsString::from(FILE_VARIABLE)).map(PathBuf::from);
    for name in all.keys().filter_map(|name| name.to_str()) {
        if name.starts_with(PREFIX) && !known.contains(name) {
            let near = known.iter().map(|known| (words::distance(name, known), known)).min();
            if let Some((_, near)) = near.filter(|(distance, _)| *distance <= TYPING_MISTAKE) {
                let text = format!("there is no such variable: did you mean `{near}`?");
                layer.wrong(Origin::Variable(name.to_owned()), text);
            }
        }
    }
    layer
}

/// Reads a file.
pub(super) fn file(path: &Path, keys: &[&'static dyn Declared]) -> Layer {
    let text = match yaml::load(path) {
        Ok(text) => text,
        Err(mistake) => return Layer { mistakes: vec![mistake.into()], ..Layer::default() },
    };
    let mut reader = Reader { yaml: yaml::Reader::new(path), path, keys, values: BTreeMap::new() };
    if let Some(document) = reader.yaml.document(&text, "write all settings in one") {
        reader.mapping(None, &document);
    }
    let Reader { yaml, values, .. } = reader;
    let mistakes = yaml.finish().into_iter().map(Mistake::from).collect();
    Layer { values, mistakes, ..Layer::default() }
}

struct Reader<'a> {
    yaml: yaml::Reader<'a>,
    path: &'a Path,
    keys: &'a [&'static dyn Declared],
    values: BTreeMap<&'static str, Raw>,
}

impl Reader<'_> {
    fn origin(&self, at: Marker) -> Origin {
        Origin::File { path: self.path.to_owned(), line: at.line(), column: at.col() + 1 }
    }

    /// The whole file, or one section of it. With nothing in it, or comments, it sets nothing.
    fn mapping(&mut self, section: Option<&str>, node: &Node<'_>) {
        if matches!(node.data, YamlData::Value(Scalar::Null)) {
            return;
        }
        let of = section.map_or("the file".to_owned(), |section| format!("`{section}`"));
        for (key, value) in self.yaml.mapping(&of, node, "`key: value`").into_iter().flatten() {
            let name = self.yaml.written(key);
            let known = self.keys.iter().find(|key| key.spec().place() == (section, name.as_str()));
            let is_section =
                section.is_none() && self.specs().any(|spec| spec.place().0 == Some(name.as_str()));
            match known {
                Some(known) => self.value(*known, value),
                None if is_section => self.mapping(Some(&name), value),
                None => self.unknown(section, &of, key, &name),
            }
        }
    }

    fn specs(&self) -> impl Iterator<Item = &'static Spec> {
        self.keys.iter().map(|key| key.spec())
    }

    fn unknown(&mut self, section: Option<&str>, of: &str, node: &Node<'_>, name: &str) {
        let here: BTreeSet<&'static str> = self
            .specs()
            .filter_map(|spec| match (spec.place(), section) {
                ((Some(of), key), Some(section)) => (of == section).then_some(key),
                ((of, key), None) => Some(of.unwrap_or(key)),
                ((None, _), Some(_)) => None,
            })
            .collect();
        let elsewhere = self.specs().find(|spec| spec.place().1 == name || spec.name == name);
        match (words::nearest(name, here.iter().copied()), elsewhere.map(Spec::place)) {
            (None, Some((Some(section), key))) => {
                self.yaml.unknown_but(node, of, &format!("write `{key}` under `{section}`"));
            }
            (None, Some((None, key))) => {
                self.yaml.unknown_but(node, of, &format!("write `{key}` at the top of the file"));
            }
            _ => self.yaml.unknown(node, &here.into_iter().collect::<Vec<_>>(), of),
        }
    }

    fn value(&mut self, key: &'static dyn Declared, node: &Node<'_>) {
        let origin = self.origin(node.span.start);
        let spec = key.spec();
        let name = spec.name;
        let items = match (spec.shape, &node.data) {
            (_, YamlData::Value(Scalar::Null)) => {
                self.yaml
                    .wrong(node.span.start, format!("`{name}` has no value: leave it out for the default"));
                return;
            }
            (Shape::List, YamlData::Sequence(list)) => {
                list.iter().map(|node| self.item(name, String::new(), node)).collect()
            }
            (Shape::Map, YamlData::Mapping(map)) => map
                .iter()
                .map(|(key, node)| {
                    let key = self.yaml.written(key);
                    self.item(name, key, node)
                })
                .collect(),
            (Shape::One | Shape::Switch, _) => self.item(name, String::new(), node).map(|item| vec![item]),
            (Shape::List | Shape::Map, _) => {
                let text = format!("`{name}` must be {}, not {}", self.several(key, node), kind(node));
                self.yaml.wrong(node.span.start, text);
                None
            }
        };
        if let Some(items) = items {
            self.values.insert(name, Raw { items, origin });
        }
    }

    /// What a list or a mapping should have looked like: with these very values where they stand as a flag has them, in one text. What would not be
    /// taken is not repeated: a URL may have a password in it.
    fn several(&self, key: &'static dyn Declared, node: &Node<'_>) -> String {
        let spec = key.spec();
        let items = match &node.data {
            YamlData::Value(_) if !spec.secret => {
                Some(spec.items(&self.yaml.written(node), &self.origin(node.span.start)))
            }
            _ => None,
        };
        let meant = items.filter(|items| key.read(items).is_ok());
        let meant = meant.map(|items| format!(": write {}", show::items(spec.shape, &items)));
        match spec.shape {
            Shape::Map => format!("a mapping{}", meant.as_deref().unwrap_or(" like {name: text}")),
            _ => format!("a list{}", meant.as_deref().unwrap_or(" like [a, b]")),
        }
    }

    fn item(&mut self, name: &str, key: String, node: &Node<'_>) -> Option<Item> {
        let of = if key.is_empty() { format!("`{name}`") } else { format!("`{key}` of `{name}`") };
        let text = self.yaml.text(&of, node)?;
        Some(Item { key, text, origin: self.origin(node.span.start) })
    }
}
