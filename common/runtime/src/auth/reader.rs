//! Reads YAML with all its mistakes at once, each with its place.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};

use crate::config::words;

pub type Node<'y> = MarkedYaml<'y>;

pub struct Reader<'a> {
    path: &'a Path,
    source: Vec<char>,
    pub mistakes: Vec<String>,
}

/// The values of a mapping, by key.
pub type Fields<'n, 'y> = BTreeMap<String, &'n Node<'y>>;

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, text: &str) -> Self {
        Self { path, source: text.chars().collect(), mistakes: Vec::new() }
    }

    /// The one document of a text.
    pub fn document<'y>(&mut self, text: &'y str) -> Option<Node<'y>> {
        match MarkedYaml::load_from_str(text) {
            Ok(mut documents) if documents.len() == 1 => documents.pop(),
            Ok(_) => {
                self.mistakes.push(format!("{}: must have one document", self.path.display()));
                None
            }
            Err(error) => {
                let at = error.marker();
                let place = format!("{}:{}:{}", self.path.display(), at.line().max(1), at.col() + 1);
                self.mistakes.push(format!("{place}: is not YAML: {}", error.info()));
                None
            }
        }
    }

    pub fn wrong(&mut self, node: &Node<'_>, text: impl std::fmt::Display) {
        let at = node.span.start;
        self.mistakes.push(format!("{}:{}:{}: {text}", self.path.display(), at.line().max(1), at.col() + 1));
    }

    /// A mapping with none but these keys.
    pub fn map<'n, 'y>(&mut self, what: &str, node: &'n Node<'y>, keys: &[&str]) -> Fields<'n, 'y> {
        let YamlData::Mapping(map) = &node.data else {
            self.wrong(
                node,
                format!("{what} must be a mapping like `{}: …`", keys.first().unwrap_or(&"key")),
            );
            return Fields::new();
        };
        let mut fields = Fields::new();
        for (key, value) in map {
            let name = words::written(key, &self.source);
            if !keys.contains(&name.as_str()) {
                let instead = match words::nearest(&name, keys.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it has {}", keys.join(", ")),
                };
                self.wrong(key, format!("`{name}` is not a key of {what}: {instead}"));
            } else {
                fields.insert(name, value);
            }
        }
        fields
    }

    /// The pairs of a mapping whose keys are anybody's.
    pub fn pairs(&mut self, what: &str, node: &Node<'_>) -> Vec<(String, String)> {
        let YamlData::Mapping(map) = &node.data else {
            self.wrong(node, format!("{what} must be a mapping like `name: text`"));
            return Vec::new();
        };
        map.iter()
            .filter_map(|(key, value)| Some((words::written(key, &self.source), self.text(what, value)?)))
            .collect()
    }

    pub fn list<'n, 'y>(&mut self, what: &str, node: Option<&&'n Node<'y>>) -> &'n [Node<'y>] {
        match node.map(|node| (*node, &node.data)) {
            None => &[],
            Some((_, YamlData::Sequence(list))) => list,
            Some((node, _)) => {
                self.wrong(node, format!("{what} must be a list"));
                &[]
            }
        }
    }

    pub fn text(&mut self, what: &str, node: &Node<'_>) -> Option<String> {
        match &node.data {
            YamlData::Value(scalar) if *scalar != Scalar::Null => Some(words::written(node, &self.source)),
            _ => {
                self.wrong(node, format!("{what} must be one value"));
                None
            }
        }
    }

    /// A text that must be there.
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
                self.wrong(of, format!("{what} has no `{key}`"));
                None
            }
        }
    }

    /// A text that may be there, read by `read`.
    pub fn maybe<T>(
        &mut self,
        fields: &Fields<'_, '_>,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = fields.get(key)?;
        let text = self.text(&format!("`{key}`"), node)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(node, format!("`{key}`: {why}"));
                None
            }
        }
    }
}
