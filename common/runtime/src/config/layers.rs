//! The three layers above the defaults: what each says, and what in it cannot be understood.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, MarkedYaml, Marker, Scalar, YamlData};

use super::kind::Shape;
use super::{Declared, FILE_VARIABLE, Item, Mistake, Origin, PREFIX, Raw, Spec, words};

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
    let mut reader = Reader { path, source: Vec::new(), keys, layer: Layer::default() };
    match std::fs::read_to_string(path) {
        Err(error) => {
            let origin = Origin::File { path: path.to_owned(), line: 0, column: 0 };
            reader.layer.wrong(origin, format!("cannot be read: {error}"));
        }
        Ok(text) => {
            reader.source = text.chars().collect();
            match MarkedYaml::load_from_str(&text) {
                Ok(documents) => reader.documents(&documents),
                Err(error) => reader.wrong(*error.marker(), format!("is not YAML: {}", error.info())),
            }
        }
    }
    reader.layer
}

type Node<'y> = MarkedYaml<'y>;

struct Reader<'a> {
    path: &'a Path,
    /// For the text of scalars as written: YAML reads `1.10` as a number.
    source: Vec<char>,
    keys: &'a [&'static dyn Declared],
    layer: Layer,
}

impl Reader<'_> {
    fn origin(&self, at: Marker) -> Origin {
        Origin::File { path: self.path.to_owned(), line: at.line().max(1), column: at.col() + 1 }
    }

    fn wrong(&mut self, at: Marker, text: impl Into<String>) {
        let origin = self.origin(at);
        self.layer.wrong(origin, text);
    }

    fn documents(&mut self, documents: &[Node<'_>]) {
        if let Some(second) = documents.get(1) {
            self.wrong(second.span.start, "is a second document: write all settings in one");
        }
        match documents.first() {
            // A file of comments sets nothing.
            None => {}
            Some(first) => self.mapping(None, first),
        }
    }

    /// The whole file, or one section of it.
    fn mapping(&mut self, section: Option<&str>, node: &Node<'_>) {
        let map = match &node.data {
            YamlData::Mapping(map) => map,
            YamlData::Value(Scalar::Null) => return,
            _ => {
                let of = section.map_or("the file".to_owned(), |section| format!("`{section}`"));
                let text = format!("{of} must be a mapping like `key: value`, not {}", kind(node));
                self.wrong(node.span.start, text);
                return;
            }
        };
        for (key, value) in map {
            let name = words::written(key, &self.source);
            let spec = self.specs().find(|spec| spec.place() == (section, name.as_str()));
            let is_section =
                section.is_none() && self.specs().any(|spec| spec.place().0 == Some(name.as_str()));
            match spec {
                Some(spec) => self.value(spec, value),
                None if is_section => self.mapping(Some(&name), value),
                None => self.unknown(section, key, &name),
            }
        }
    }

    fn specs(&self) -> impl Iterator<Item = &'static Spec> {
        self.keys.iter().map(|key| key.spec())
    }

    fn unknown(&mut self, section: Option<&str>, key: &Node<'_>, name: &str) {
        let here: BTreeSet<&'static str> = self
            .specs()
            .filter_map(|spec| match (spec.place(), section) {
                ((Some(of), key), Some(section)) => (of == section).then_some(key),
                ((of, key), None) => Some(of.unwrap_or(key)),
                ((None, _), Some(_)) => None,
            })
            .collect();
        let elsewhere = self.specs().find(|spec| spec.place().1 == name || spec.name == name);
        let of = section.map_or("the file".to_owned(), |section| format!("`{section}`"));
        let text = match (words::nearest(name, here.iter().copied()), elsewhere.map(Spec::place)) {
            (Some(near), _) => format!("`{name}` is not a key of {of}: did you mean `{near}`?"),
            (None, Some((Some(section), key))) => {
                format!("`{name}` is not a key of {of}: write `{key}` under `{section}`")
            }
            (None, Some((None, key))) => {
                format!("`{name}` is not a key of {of}: write `{key}` at the top of the file")
            }
            (None, None) => {
                let here: Vec<_> = here.into_iter().collect();
                format!("`{name}` is not a key of {of}: it has {}", here.join(", "))
            }
        };
        self.wrong(key.span.start, text);
    }

    fn value(&mut self, spec: &'static Spec, node: &Node<'_>) {
        let origin = self.origin(node.span.start);
        let name = spec.name;
        let items = match (spec.shape, &node.data) {
            (_, YamlData::Value(Scalar::Null)) => {
                self.wrong(node.span.start, format!("`{name}` has no value: leave it out for the default"));
                return;
            }
            (Shape::List, YamlData::Sequence(list)) => {
                list.iter().map(|node| self.item(name, String::new(), node)).collect()
            }
            (Shape::Map, YamlData::Mapping(map)) => map
                .iter()
                .map(|(key, node)| {
                    let key = words::written(key, &self.source);
                    self.item(name, key, node)
                })
                .collect(),
            (Shape::One | Shape::Switch, _) => self.item(name, String::new(), node).map(|item| vec![item]),
            (Shape::List, _) => {
                self.wrong(
                    node.span.start,
                    format!("`{name}` must be a list like [a, b], not {}", kind(node)),
                );
                None
            }
            (Shape::Map, _) => {
                let text = format!("`{name}` must be a mapping like {{name: text}}, not {}", kind(node));
                self.wrong(node.span.start, text);
                None
            }
        };
        if let Some(items) = items {
            self.layer.values.insert(name, Raw { items, origin });
        }
    }

    fn item(&mut self, name: &str, key: String, node: &Node<'_>) -> Option<Item> {
        if let YamlData::Value(scalar) = &node.data
            && *scalar != Scalar::Null
        {
            return Some(Item {
                key,
                text: words::written(node, &self.source),
                origin: self.origin(node.span.start),
            });
        }
        let of = if key.is_empty() { format!("`{name}`") } else { format!("`{key}` of `{name}`") };
        self.wrong(node.span.start, format!("{of} must be one value, not {}", kind(node)));
        None
    }
}

fn kind(node: &Node<'_>) -> &'static str {
    match &node.data {
        YamlData::Mapping(_) => "a mapping",
        YamlData::Sequence(_) => "a list",
        YamlData::Value(Scalar::Null) => "nothing",
        YamlData::Value(_) => "one value",
        _ => "a value of another kind",
    }
}
