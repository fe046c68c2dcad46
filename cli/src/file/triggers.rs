//! `triggers` and `cors` in the function file.

use std::collections::BTreeMap;

use saphyr::YamlData;
use stoker_core::function::{Cors, FunctionSpec, Trigger};
use stoker_runtime::yaml::Node;

use super::{Known, Reader};

/// Keys of a trigger.
const KEYS: [&str; 6] = ["http", "methods", "hosts", "headers", "query", "cors"];

/// Keys of `cors`.
const CORS_KEYS: [&str; 6] = ["origins", "methods", "headers", "expose", "credentials", "max_age"];

/// Triggers that fit the same paths of an app: whose, and where each stands.
pub type Claims = BTreeMap<(String, String), Vec<(Trigger, String, String)>>;

impl Reader<'_> {
    pub(super) fn triggers(&mut self, node: &Node<'_>, key: &'static str) -> Option<Vec<Trigger>> {
        let list = self.yaml.list(&format!("`{key}`"), node, "[{http: /hello}]")?;
        let all: Vec<_> = list.iter().map(|item| self.trigger(item)).collect();
        all.into_iter().collect()
    }

    fn trigger(&mut self, item: &Node<'_>) -> Option<Trigger> {
        let map = self.yaml.mapping("a trigger", item, "{http: /hello}")?;
        let before = self.yaml.mistakes();
        let (mut trigger, mut has_path) = (Trigger::default(), false);
        for (name, value) in map {
            match name.data.as_str() {
                Some("http") => {
                    has_path = true;
                    trigger.http = self.text(value, "http").unwrap_or_default();
                }
                Some("methods") => trigger.methods = self.names(value, "methods").unwrap_or_default(),
                Some("hosts") => trigger.hosts = self.names(value, "hosts").unwrap_or_default(),
                Some("headers") => trigger.headers = self.pairs(value, "headers").unwrap_or_default(),
                Some("query") => trigger.query = self.pairs(value, "query").unwrap_or_default(),
                Some("cors") => trigger.cors = self.cors(value, "cors"),
                _ => self.yaml.unknown(name, &KEYS, "a trigger"),
            }
        }
        if !has_path {
            let text = "a trigger must have `http` with a path, like {http: /hello}";
            self.yaml.wrong(item.span.start, text);
        }
        trigger.headers = trigger.headers.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
        (self.yaml.mistakes() == before).then_some(trigger)
    }

    pub(super) fn cors(&mut self, node: &Node<'_>, key: &'static str) -> Option<Cors> {
        let map = self.yaml.mapping(&format!("`{key}`"), node, "{origins: [https://shop.example]}")?;
        let before = self.yaml.mistakes();
        let mut cors = Cors::default();
        for (name, value) in map {
            match name.data.as_str() {
                Some("origins") => cors.origins = self.names(value, "origins").unwrap_or_default(),
                Some("methods") => cors.methods = self.names(value, "methods").unwrap_or_default(),
                Some("headers") => cors.headers = self.lower(value, "headers"),
                Some("expose") => cors.expose = self.lower(value, "expose"),
                Some("credentials") => {
                    cors.credentials = self.truth(value, "credentials").unwrap_or_default()
                }
                Some("max_age") => {
                    let age = self.millis(value, "max_age").unwrap_or_default() / 1000;
                    cors.max_age = u32::try_from(age).unwrap_or(u32::MAX);
                }
                _ => self.yaml.unknown(name, &CORS_KEYS, "cors"),
            }
        }
        (self.yaml.mistakes() == before).then_some(cors)
    }

    /// One text, or several.
    fn names(&mut self, node: &Node<'_>, key: &'static str) -> Option<Vec<String>> {
        match &node.data {
            YamlData::Sequence(_) => self.strings(node, key),
            _ => self.text(node, key).map(|one| vec![one]),
        }
    }

    /// Names of headers, which people write in any case.
    fn lower(&mut self, node: &Node<'_>, key: &'static str) -> Vec<String> {
        let names = self.names(node, key).unwrap_or_default();
        names.into_iter().map(|name| name.to_ascii_lowercase()).collect()
    }

    fn pairs(&mut self, node: &Node<'_>, key: &'static str) -> Option<BTreeMap<String, String>> {
        let map = self.yaml.mapping(&format!("`{key}`"), node, "{name: value}")?;
        let all: Vec<_> =
            map.iter().map(|(name, value)| Some((self.text(name, key)?, self.text(value, key)?))).collect();
        all.into_iter().collect()
    }

    /// No two functions take the same requests. Those of one function are held against each other where it is checked.
    pub(super) fn unclaimed(&mut self, spec: &FunctionSpec, node: &Node<'_>, known: &mut Known) {
        for (n, trigger) in spec.triggers.iter().enumerate() {
            let at = match &node.data {
                YamlData::Sequence(list) => list.get(n).unwrap_or(node).span.start,
                _ => node.span.start,
            };
            let claims = known.triggers.entry((spec.name.app().to_owned(), trigger.shape())).or_default();
            let first = claims
                .iter()
                .find(|(other, owner, _)| owner != spec.name.as_str() && other.conflicts(trigger))
                .map(|(other, _, place)| {
                    format!(
                        "`{trigger}` is a trigger already, at {place}{}: a request leads to one function",
                        as_other(trigger, other)
                    )
                });
            match first {
                Some(text) => self.yaml.wrong(at, text),
                None => {
                    let place = self.yaml.place(at);
                    claims.push((trigger.clone(), spec.name.to_string(), place));
                }
            }
        }
    }
}

/// How the other is written, where that is another way.
fn as_other(trigger: &Trigger, other: &Trigger) -> String {
    let (trigger, other) = (trigger.to_string(), other.to_string());
    if trigger == other { String::new() } else { format!(" as `{other}`, and neither is more special") }
}
