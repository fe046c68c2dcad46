//! The files of `deploy/`, read by those who hold them against what the programs do.

use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode as _, Yaml};
use serde_json::Value;

/// A file or directory below `deploy/`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// Every file below `deploy/`.
#[must_use]
pub fn files() -> Vec<PathBuf> {
    fn walk(directory: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), into)
            } else {
                into.push(entry.path())
            }
        }
    }
    let mut all = Vec::new();
    walk(&path(""), &mut all);
    all.sort();
    all
}

/// The text of a file.
#[must_use]
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The one document of a YAML file, as JSON; `<<` is merged in, as Compose does it.
#[must_use]
pub fn yaml(path: &Path) -> Value {
    let source = text(path);
    let documents =
        Yaml::load_from_str(&source).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let [document] = &documents[..] else { panic!("{}: {} documents", path.display(), documents.len()) };
    json(document)
}

fn json(node: &Yaml<'_>) -> Value {
    if let Some(map) = node.as_mapping() {
        let mut merged = serde_json::Map::new();
        let mut own = serde_json::Map::new();
        for (key, value) in map {
            let key = key.as_str().map_or_else(|| format!("{:?}", json(key)), str::to_owned);
            match (key.as_str(), json(value)) {
                ("<<", Value::Object(under)) => merged.extend(under),
                (_, value) => _ = own.insert(key, value),
            }
        }
        merged.extend(own);
        return Value::Object(merged);
    }
    if let Some(list) = node.as_vec() {
        return Value::Array(list.iter().map(json).collect());
    }
    if let Some(text) = node.as_str() {
        return text.into();
    }
    if let Some(number) = node.as_integer() {
        return number.into();
    }
    if let Some(number) = node.as_floating_point() {
        return number.into();
    }
    node.as_bool().map_or(Value::Null, Value::Bool)
}

/// Every query of the dashboards and rules, and where it stands.
#[must_use]
pub fn queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in files() {
        let is = |end: &str| file.to_string_lossy().ends_with(end);
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if is(".json") && file.parent().is_some_and(|parent| parent.ends_with("dashboards")) {
            let dashboard: Value = serde_json::from_str(&text(&file)).unwrap();
            expressions(&dashboard, &name, &mut found);
        } else if is("rules.yaml") {
            expressions(&yaml(&file), &name, &mut found);
        }
    }
    assert!(!found.is_empty(), "deploy/ has no query");
    found
}

fn expressions(node: &Value, place: &str, found: &mut Vec<(String, String)>) {
    match node {
        Value::Object(map) => {
            let title = map.get("title").or(map.get("alert")).or(map.get("record")).and_then(Value::as_str);
            let place = title.map_or_else(|| place.to_owned(), |title| format!("{place}, {title}"));
            // Logs are asked for in another language.
            let of_metrics = map.get("datasource").is_none_or(|source| source["type"] == "prometheus");
            if let Some(Value::String(query)) = map.get("expr").filter(|_| of_metrics) {
                found.push((place.clone(), query.clone()));
            }
            map.values().for_each(|value| expressions(value, &place, found));
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, place, found)),
        _ => {}
    }
}

/// The names of our metrics in a query.
pub fn metrics(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("stoker_") || word.starts_with("process_"))
}
