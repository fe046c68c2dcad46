//! YAML that people write: function files, settings and access files are read here, all in the same way.
//!
//! Reading never stops at the first mistake: each is noted with its line and column, and with what would be right. What may stand in a file
//! is said by whoever reads it. What all files share (one document, no key twice, values as they are written) is here, so that the same
//! mistake has the same words everywhere.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use saphyr::{
    AnnotatedMapping, LoadableYamlNode as _, MarkedYaml, Marker, Scalar, ScanError, Yaml, YamlData,
    YamlLoader,
};
use saphyr_parser::{Event, Parser};

use crate::config::words::nearest;

/// The longest file that is read, in bytes: it is in memory as a whole, and whatever stands in one is far shorter.
const MOST_BYTES: u64 = 16 << 20;

/// The most mappings and lists inside each other. Files of ours have five, and each takes its part of the stack.
const MOST_LEVELS: usize = 64;

/// A value in a file, with its place.
pub type Node<'y> = MarkedYaml<'y>;

/// Keys and values, in the order of the file.
pub type Mapping<'y> = AnnotatedMapping<'y, Node<'y>>;

/// The values of a mapping, by key.
pub type Fields<'n, 'y> = BTreeMap<String, &'n Node<'y>>;

/// One thing wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    pub file: PathBuf,
    /// From 1; 0 if it is about no place in the file.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.text),
            _ => write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.text),
        }
    }
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read, is longer than 16 MiB, or is no UTF-8.
pub fn load(path: &Path) -> Result<String, Mistake> {
    match File::open(path) {
        Ok(file) => load_from(path, file),
        Err(error) => Err(unread(path, &error)),
    }
}

/// The text that comes from `source`, of which mistakes say that it is `path`.
///
/// # Errors
/// As [`load`].
pub fn load_from(path: &Path, source: impl Read) -> Result<String, Mistake> {
    let mut bytes = Vec::new();
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unread(path, &error))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(nowhere(path, format!("is longer than {} MiB, the most that is read", MOST_BYTES >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let text = "is not UTF-8 from here on: save it as UTF-8".to_owned();
        Mistake { file: path.to_owned(), line, column, text }
    })?;
    // Some editors begin with a mark that says no more than that it is UTF-8.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn unread(path: &Path, error: &io::Error) -> Mistake {
    nowhere(path, format!("cannot be read: {error}"))
}

fn nowhere(path: &Path, text: String) -> Mistake {
    Mistake { file: path.to_owned(), line: 0, column: 0, text }
}

/// Reads one file, and notes what is wrong with it.
#[derive(Debug)]
pub struct Reader<'a> {
    path: &'a Path,
    /// The scalars as they are written, by where they begin, and aliases of them: YAML reads `1.10` as a number, a version or a variable wants
    /// it as it stands.
    scalars: HashMap<usize, String>,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    /// For the file at `path`.
    #[must_use]
    pub fn new(path: &'a Path) -> Self {
        Self { path, scalars: HashMap::new(), mistakes: Vec::new() }
    }

    /// The one document of the text; a null where there is none. `instead` says what to do who has a second one. Nothing where it is no YAML.
    pub fn document<'y>(&mut self, text: &'y str, instead: &str) -> Option<Node<'y>> {
        let loaded = self.scan(text).and_then(|()| {
            let mut loader = YamlLoader::<Node<'y>>::default();
            loader.allow_duplicate_keys(true);
            Parser::new_from_str(text).load(&mut loader, true)?;
            loader.error().map_or(Ok(()), |error| Err(error.clone()))?;
            Ok(loader.into_documents())
        });
        match loaded {
            Ok(documents) => {
                let mut documents = documents.into_iter();
                let first = documents.next();
                if let Some(second) = documents.next() {
                    self.wrong(second.span.start, format!("is a second document: {instead}"));
                }
                Some(first.unwrap_or_else(|| Node::from_bare_yaml(Yaml::Value(Scalar::Null))))
            }
            Err(error) => {
                self.wrong(*error.marker(), format!("is not YAML: {}", error.info()));
                None
            }
        }
    }

    /// How many mistakes there are so far.
    #[must_use]
    pub fn mistakes(&self) -> usize {
        self.mistakes.len()
    }

    /// All mistakes, in the order of their places.
    #[must_use]
    pub fn finish(mut self) -> Vec<Mistake> {
        self.mistakes.sort();
        self.mistakes
    }

    /// Notes how scalars are written, and keys that stand twice, of which the loader would name only the first; stops at what it would not survive.
    fn scan(&mut self, text: &str) -> Result<(), ScanError> {
        /// A mapping or a list that has begun.
        enum Open {
            List,
            /// With the lines of its keys.
            Mapping {
                keys: HashMap<String, usize>,
                value_is_next: bool,
            },
        }
        let (mut open, mut anchors) = (Vec::new(), HashMap::new());
        for event in Parser::new_from_str(text) {
            let (event, span) = event?;
            let written = match &event {
                Event::Scalar(text, _, anchor, _) => Some((text.to_string(), *anchor)),
                Event::Alias(anchor) => anchors.get(anchor).cloned().map(|text| (text, 0)),
                _ => None,
            };
            if let Some((text, anchor)) = written {
                if anchor != 0 {
                    anchors.insert(anchor, text.clone());
                }
                self.scalars.insert(span.start.index(), text);
            }
            let begins = matches!(
                event,
                Event::Scalar(..) | Event::Alias(_) | Event::SequenceStart(..) | Event::MappingStart(..)
            );
            if begins && let Some(Open::Mapping { keys, value_is_next }) = open.last_mut() {
                if let (false, Event::Scalar(key, ..)) = (*value_is_next, &event) {
                    match keys.get(&**key) {
                        None => _ = keys.insert(key.to_string(), span.start.line()),
                        Some(first) => {
                            let text =
                                format!("`{key}` stands here twice, first in line {first}: write it once");
                            self.wrong(span.start, text);
                        }
                    }
                }
                *value_is_next = !*value_is_next;
            }
            match event {
                Event::SequenceStart(..) => open.push(Open::List),
                Event::MappingStart(..) => {
                    open.push(Open::Mapping { keys: HashMap::new(), value_is_next: false })
                }
                Event::SequenceEnd | Event::MappingEnd => _ = open.pop(),
                _ => {}
            }
            if open.len() > MOST_LEVELS {
                let text = format!("more than {MOST_LEVELS} mappings and lists inside each other");
                return Err(ScanError::new(span.start, text));
            }
        }
        Ok(())
    }

    /// Notes that something is wrong at this place.
    pub fn wrong(&mut self, at: Marker, text: impl Into<String>) {
        // A node that nobody wrote has line 0.
        let (line, column) = (at.line().max(1), at.col() + 1);
        self.mistakes.push(Mistake { file: self.path.to_owned(), line, column, text: text.into() });
    }

    /// A place, as mistakes name it.
    #[must_use]
    pub fn place(&self, at: Marker) -> String {
        format!("{}:{}:{}", self.path.display(), at.line().max(1), at.col() + 1)
    }

    /// A scalar as it stands in the file: numbers and the like are not respelled. Of another node there is nothing.
    #[must_use]
    pub fn written(&self, node: &Node<'_>) -> String {
        let read = || self.scalars.get(&node.span.start.index()).cloned().unwrap_or_default();
        node.data.as_str().map_or_else(read, str::to_owned)
    }

    /// A key that `of` does not have; it has `keys`.
    pub fn unknown(&mut self, key: &Node<'_>, keys: &[&str], of: &str) {
        let instead = match nearest(&self.written(key), keys.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it has {}", keys.join(", ")),
        };
        self.unknown_but(key, of, &instead);
    }

    /// A key that `of` does not have, where it is known what to do `instead`.
    pub fn unknown_but(&mut self, key: &Node<'_>, of: &str, instead: &str) {
        let text = match &key.data {
            YamlData::Value(_) if self.written(key) == "<<" => {
                "merge keys (`<<`) are not taken: write the keys out, or give a whole value a name, like `env: &shared`, and use it again, like `env: *shared`"
                    .to_owned()
            }
            YamlData::Value(_) => format!("`{}` is not a key of {of}: {instead}", self.written(key)),
            _ => format!("a key of {of} must be one value, not {}", kind(key)),
        };
        self.wrong(key.span.start, text);
    }

    /// One value, as text. `what` is what it is, for the mistake.
    pub fn text(&mut self, what: &str, node: &Node<'_>) -> Option<String> {
        match &node.data {
            YamlData::Value(Scalar::Null) => self.wrong(node.span.start, format!("{what} has no value")),
            YamlData::Value(_) => return Some(self.written(node)),
            _ => self.wrong(node.span.start, format!("{what} must be one value, not {}", kind(node))),
        }
        None
    }

    /// A mapping, which looks like `example`.
    pub fn mapping<'n, 'y>(
        &mut self,
        what: &str,
        node: &'n Node<'y>,
        example: &str,
    ) -> Option<&'n Mapping<'y>> {
        if let YamlData::Mapping(map) = &node.data {
            return Some(map);
        }
        self.wrong(node.span.start, format!("{what} must be a mapping like {example}, not {}", kind(node)));
        None
    }

    /// A list, which looks like `example`.
    pub fn list<'n, 'y>(&mut self, what: &str, node: &'n Node<'y>, example: &str) -> Option<&'n [Node<'y>]> {
        if let YamlData::Sequence(list) = &node.data {
            return Some(list);
        }
        self.wrong(node.span.start, format!("{what} must be a list like {example}, not {}", kind(node)));
        None
    }

    /// The values of a mapping that has none but these keys; those of them that there are.
    pub fn fields<'n, 'y>(&mut self, what: &str, node: &'n Node<'y>, keys: &[&str]) -> Fields<'n, 'y> {
        let example = format!("`{}: …`", keys.first().unwrap_or(&"key"));
        let mut fields = Fields::new();
        for (key, value) in self.mapping(what, node, &example).into_iter().flatten() {
            let name = self.written(key);
            match keys.contains(&name.as_str()) {
                true => _ = fields.insert(name, value),
                false => self.unknown(key, keys, what),
            }
        }
        fields
    }

    /// The pairs of a mapping whose keys are anybody's; those that can be read.
    pub fn pairs(&mut self, what: &str, node: &Node<'_>) -> Vec<(String, String)> {
        let map = self.mapping(what, node, "`name: text`");
        map.into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((self.text(what, key)?, self.text(what, value)?)))
            .collect()
    }

    /// The text of a field that must be there.
    pub fn needed(
        &mut self,
        what: &str,
        of: &Node<'_>,
        fields: &Fields<'_, '_>,
        key: &str,
    ) -> Option<String> {
        match fields.get(key) {
            Some(node) => self.text(&format!("`{key}`"), node),
            None => {
                self.wrong(of.span.start, format!("{what} has no `{key}`"));
                None
            }
        }
    }

    /// The text of a field that may be there, understood by `read`.
    pub fn maybe<T>(
        &mut self,
        fields: &Fields<'_, '_>,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let text = self.text(&format!("`{key}`"), node)?;
        read(&text).map_err(|why| self.wrong(node.span.start, format!("`{key}`: {why}"))).ok()
    }
}

/// What a value is, for mistakes that want another kind.
#[must_use]
pub fn kind(node: &Node<'_>) -> &'static str {
    match &node.data {
        YamlData::Mapping(_) => "a mapping",
        YamlData::Sequence(_) => "a list",
        YamlData::Value(Scalar::Null) => "nothing",
        YamlData::Value(Scalar::Integer(_) | Scalar::FloatingPoint(_)) => "a number",
        YamlData::Value(Scalar::Boolean(_)) => "true or false",
        YamlData::Value(Scalar::String(_)) => "text",
        YamlData::Tagged(..) => "a value with a tag",
        _ => "a value of another kind",
    }
}

#[cfg(test)]
mod tests;
