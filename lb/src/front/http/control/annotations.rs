//! Annotations: what clients attach to an object, by Fn's rules.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Refused, wrong};

const MOST: usize = 100;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 512;

/// Those of a request, checked; a value that deletes its key is `None`.
fn given(object: &Map<String, Value>) -> Result<Vec<(String, Option<Value>)>, Refused> {
    let all = match object.get("annotations") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(all)) => all,
        Some(_) => return Err(wrong("Invalid JSON")),
    };
    let mut given = Vec::with_capacity(all.len());
    for (key, value) in all {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = "Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace";
            return Err(wrong(text));
        }
        if key.len() > LONGEST_KEY {
            let text = "Invalid annotation key length, annotation keys may not be larger than";
            return Err(wrong(format!("{text} {LONGEST_KEY} bytes")));
        }
        let deletes = value.is_null() || value == "";
        if !deletes && value.to_string().len() > LONGEST_VALUE {
            let text = "Invalid annotation value length, annotation values may not be larger than";
            return Err(wrong(format!("{text} {LONGEST_VALUE} bytes when serialized as JSON")));
        }
        given.push((key.clone(), (!deletes).then(|| value.clone())));
    }
    Ok(given)
}

/// Whether a request deletes a key.
pub fn deletes(object: &Map<String, Value>, key: &str) -> bool {
    let value = object.get("annotations").and_then(|all| all.get(key));
    value.is_some_and(|value| value.is_null() || value == "")
}

/// Those of a new object: there is nothing to delete yet.
pub fn new(object: &Map<String, Value>) -> Result<BTreeMap<String, Value>, Refused> {
    let mut all = BTreeMap::new();
    for (key, value) in given(object)? {
        let value = value.ok_or_else(|| {
            wrong("Invalid annotation value, annotation values may only be non-empty strings, numbers, objects, or arrays")
        })?;
        all.insert(key, value);
    }
    counted(all)
}

/// What there is with what a request changes of it.
pub fn merged(
    mut all: BTreeMap<String, Value>,
    object: &Map<String, Value>,
) -> Result<BTreeMap<String, Value>, Refused> {
    for (key, value) in given(object)? {
        match value {
            Some(value) => _ = all.insert(key, value),
            None => _ = all.remove(&key),
        }
    }
    counted(all)
}

fn counted(all: BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, Refused> {
    if all.len() > MOST {
        return Err(wrong(format!(
            "Invalid annotation change, new key(s) exceed maximum permitted number of annotations keys ({MOST})"
        )));
    }
    Ok(all)
}

/// Variables that a request changes: an empty value deletes its key.
pub fn config(
    mut all: BTreeMap<String, String>,
    object: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, Refused> {
    match object.get("config") {
        None | Some(Value::Null) => {}
        Some(Value::Object(given)) => {
            for (key, value) in given {
                match value.as_str().ok_or_else(|| wrong("Invalid JSON"))? {
                    "" => _ = all.remove(key),
                    value => _ = all.insert(key.clone(), value.to_owned()),
                }
            }
        }
        Some(_) => return Err(wrong("Invalid JSON")),
    }
    Ok(all)
}
