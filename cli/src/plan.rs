//! `apply --dry-run`: what applying would do, by what the fleet has now. Nothing is changed, and no registry of images is asked.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use stoker_core::FunctionSpec;
use stoker_core::units::{format_cpu, format_duration, format_size};
use stoker_proto::{convert, v1};

use crate::args::{Common, Output};
use crate::failure::Failure;
use crate::{client, output};

/// What a description says besides what is in a file.
const NOT_IN_A_FILE: [&str; 5] = ["id", "digest", "revision", "traffic", "containers"];

/// What would become of one function.
struct Step {
    app: String,
    name: String,
    outcome: &'static str,
    /// By key: what is there, and what would be.
    changes: Vec<(String, Value, Value)>,
}

pub async fn run(specs: &[FunctionSpec], common: &Common) -> Result<(), Failure> {
    let mut client = client::functions(&common.server).await?;
    let listed = client.list_functions(v1::ListFunctionsRequest::default()).await?.into_inner().functions;
    let there: HashMap<_, _> = listed
        .iter()
        .filter_map(|there| there.function.as_ref().map(|f| ((f.app.as_str(), f.name.as_str()), there)))
        .collect();
    let steps: Vec<_> = specs
        .iter()
        .map(|spec| step(there.get(&(spec.name.app(), spec.name.function())).copied(), spec))
        .collect();
    match common.output {
        Output::Json => output::print_json(&json!({
            "functions": steps.iter().map(|step| json!({
                "app": step.app, "name": step.name, "outcome": step.outcome,
                "changes": step.changes.iter().map(|(key, old, new)| (key.clone(), json!({"from": old, "to": new}))).collect::<Map<_, _>>(),
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            output::print(&steps.iter().map(Step::text).collect::<String>())?;
            output::say("Nothing was applied.\n");
            Ok(())
        }
    }
}

fn step(there: Option<&v1::FunctionDescription>, spec: &FunctionSpec) -> Step {
    let new = convert::to_function(spec);
    let (app, name) = (new.app.clone(), new.name.clone());
    let Some(there) = there else { return Step { app, name, outcome: "created", changes: Vec::new() } };
    let mut old = there.clone();
    if let Some(function) = &mut old.function {
        // Fixed to a digest when it was applied; the file has the name alone.
        if function.image.strip_prefix(&new.image).is_some_and(|rest| rest.starts_with('@')) {
            function.image.clone_from(&new.image);
        }
    }
    let new = v1::FunctionDescription { function: Some(new), ..Default::default() };
    let (Value::Object(old), Value::Object(new)) = (output::function(&old), output::function(&new)) else {
        return Step { app, name, outcome: "unchanged", changes: Vec::new() };
    };
    let differ = |key: &&String| !NOT_IN_A_FILE.contains(&key.as_str()) && old.get(*key) != new.get(*key);
    let changes: Vec<_> = new
        .keys()
        .filter(differ)
        .map(|key| (key.clone(), old.get(key).cloned().unwrap_or_default(), new[key].clone()))
        .collect();
    let outcome = if changes.is_empty() { "unchanged" } else { "updated" };
    Step { app, name, outcome, changes }
}

impl Step {
    fn text(&self) -> String {
        let mut text = match self.outcome {
            "unchanged" => format!("{}/{} is unchanged\n", self.app, self.name),
            outcome => format!("{}/{} would be {outcome}\n", self.app, self.name),
        };
        for (key, old, new) in &self.changes {
            // What has members is told by those that differ.
            if let (Value::Object(old), Value::Object(new)) = (old, new) {
                let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
                keys.sort_unstable();
                keys.dedup();
                for member in keys.into_iter().filter(|member| old.get(*member) != new.get(*member)) {
                    let of = |values: &Map<String, Value>| {
                        values.get(member).map_or("–".to_owned(), |value| words(member, value))
                    };
                    text += &format!("  {key}.{member}: {} → {}\n", of(old), of(new));
                }
            } else {
                let shown = key.trim_end_matches("_ms").trim_end_matches("_millis");
                text += &format!("  {shown}: {} → {}\n", words(key, old), words(key, new));
            }
        }
        text
    }
}

/// A value as a function file writes it.
fn words(key: &str, value: &Value) -> String {
    match (key, value) {
        (_, Value::Null) => "–".to_owned(),
        (_, Value::String(text)) if text.is_empty() => "–".to_owned(),
        ("cpu_millis" | "max_request" | "max_response", Value::Number(n)) if n.as_u64() == Some(0) => {
            "no limit".to_owned()
        }
        ("cpu_millis", Value::Number(n)) => format_cpu(n.as_u64().unwrap_or_default() as u32),
        ("memory" | "max_request" | "max_response", Value::Number(n)) => {
            format_size(n.as_u64().unwrap_or_default())
        }
        (key, Value::Number(n)) if key.ends_with("_ms") => {
            format_duration(std::time::Duration::from_millis(n.as_u64().unwrap_or_default()))
        }
        (_, Value::String(text)) => output::printable(text),
        (_, other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::ImageRef;

    fn spec() -> FunctionSpec {
        let name = stoker_core::FunctionName::new("app", "f").expect("a name");
        let mut spec = FunctionSpec::new(name, vec!["x".into()], "/".into());
        spec.env.insert("A".into(), "1".into());
        spec.env.insert("B".into(), "1".into());
        spec
    }

    fn there(spec: &FunctionSpec) -> v1::FunctionDescription {
        v1::FunctionDescription {
            function: Some(convert::to_function(spec)),
            id: "id".into(),
            revision: 7,
            ..Default::default()
        }
    }

    #[test]
    fn what_would_change_is_told_as_the_file_writes_it() {
        let old = there(&spec());
        assert_eq!(step(None, &spec()).text(), "app/f would be created\n");
        assert_eq!(step(Some(&old), &spec()).text(), "app/f is unchanged\n");
        let mut new = spec();
        new.memory = 256 << 20;
        new.cpu_millis = 250;
        new.timeout_ms = 90_000;
        new.command.push("y".into());
        new.env.remove("A");
        new.env.insert("B".into(), "2".into());
        assert_eq!(
            step(Some(&old), &new).text(),
            "app/f would be updated\n  command: [\"x\"] → [\"x\",\"y\"]\n  cpu: no limit → 250m\n  env.A: 1 → –\n  env.B: 1 → 2\n  \
             memory: 128MiB → 256MiB\n  timeout: 30s → 90s\n"
        );
    }

    #[test]
    fn an_image_that_was_fixed_to_its_digest_is_the_same_image() {
        let mut new = spec();
        new.root = stoker_core::function::Root::Image(ImageRef::parse("r.example/x:1").expect("an image"));
        let mut old = there(&new);
        let image = |image: &str| format!("{image}@sha256:{}", "0".repeat(64));
        old.function.as_mut().expect("one").image = image("r.example/x:1");
        assert_eq!(step(Some(&old), &new).outcome, "unchanged");
        old.function.as_mut().expect("one").image = image("r.example/x:12");
        assert_eq!(step(Some(&old), &new).outcome, "updated");
    }
}
