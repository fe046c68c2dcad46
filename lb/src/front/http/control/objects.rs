//! How apps, functions and triggers look by Fn's API, and what goes with a function's revision for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stoker_core::FunctionSpec;
use stoker_core::function::{FunctionName, Root, Trigger, opaque_id};
use stoker_core::moment::rfc3339_millis;
use stoker_registry::apps::App;
use stoker_registry::revisions::{Expect, Proposal, Release};

use super::{Asked, Refused, wrong};

/// The note of a revision that holds [`Facts`].
const NOTE: &str = "fn";

const INVOKE: &str = "fnproject.io/fn/invokeEndpoint";
const ENDPOINT: &str = "fnproject.io/trigger/httpEndpoint";

/// What a trigger asks for besides its path: an extension, in the place that Fn has for such.
pub const RULES: &str = "stoker/http";

/// What Fn knows of a function besides its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Its variables without those of its app.
    pub config: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shape: String,
    pub created_ms: u64,
    pub updated_ms: u64,
    pub triggers: Vec<Named>,
}

/// What Fn knows of a trigger besides its path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    pub id: String,
    pub name: String,
    pub source: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, Value>,
    pub created_ms: u64,
    pub updated_ms: u64,
    /// What it asks for besides its path, which Fn does not know: the spec's.
    #[serde(skip)]
    pub rules: Trigger,
}

impl Named {
    /// As the spec has it.
    pub fn trigger(&self) -> Trigger {
        Trigger { http: self.source.clone(), ..self.rules.clone() }
    }
}

/// A function as this API sees it.
#[derive(Debug, Clone)]
pub struct Function {
    pub spec: Arc<FunctionSpec>,
    pub facts: Facts,
    /// Its newest revision, over which a change of it is written.
    pub revision: u64,
    /// It came in by this API, and its app's variables are its own.
    pub ours: bool,
}

impl Function {
    pub fn of(release: &Release) -> Self {
        let newest = &release.newest;
        let told = newest.notes.get(NOTE).and_then(|text| serde_json::from_str(text).ok());
        let ours = told.is_some();
        let mut facts: Facts = told.unwrap_or_else(|| Facts {
            config: newest.spec.env.clone(),
            created_ms: newest.created_ms,
            updated_ms: newest.created_ms,
            ..Facts::default()
        });
        // The paths are the spec's; what is known of them besides is kept as long as they are there.
        let mut known = std::mem::take(&mut facts.triggers);
        for trigger in &newest.spec.triggers {
            let at = known.iter().position(|named| named.source == trigger.http);
            let named = at.map_or_else(
                || unnamed(&newest.spec.name, trigger, newest.created_ms),
                |at| known.remove(at),
            );
            facts.triggers.push(Named { rules: trigger.clone(), ..named });
        }
        Self { spec: newest.spec.clone(), facts, revision: newest.number, ours }
    }

    pub fn name(&self) -> &FunctionName {
        &self.spec.name
    }

    /// The proposal that makes it what it is now, over the revision that was read; 0: a new one.
    pub fn proposal(&self, app: &App) -> Result<Proposal, Refused> {
        let mut spec = FunctionSpec::clone(&self.spec);
        spec.triggers = self.facts.triggers.iter().map(Named::trigger).collect();
        spec.env = app.config.clone();
        spec.env.extend(self.facts.config.clone());
        spec.check().map_err(|problems| {
            let all: Vec<_> =
                problems.iter().map(|problem| format!("{} {}", problem.field, problem.text)).collect();
            wrong(all.join("; "))
        })?;
        let note = serde_json::to_string(&self.facts).unwrap_or_default();
        let expect = if self.revision == 0 { Expect::Nothing } else { Expect::Newest(self.revision) };
        let notes = BTreeMap::from([(NOTE.to_owned(), note)]);
        Ok(Proposal { notes: Some(notes), expect, ..Proposal::from(spec) })
    }
}

/// What there is of a trigger that nobody named.
fn unnamed(function: &FunctionName, trigger: &Trigger, created_ms: u64) -> Named {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let path = trigger.http.trim_matches('/');
    let of = if path.is_empty() { function.function() } else { path };
    let all = std::iter::once(of).chain(trigger.methods.iter().chain(&trigger.hosts).map(String::as_str));
    let name = all.collect::<Vec<_>>().join("-").chars().map(plain).take(255).collect();
    let id = trigger_id(function.app(), trigger);
    Named { id, name, source: trigger.http.clone(), created_ms, updated_ms: created_ms, ..Named::default() }
}

/// The id of the trigger that takes these requests first.
pub fn trigger_id(app: &str, trigger: &Trigger) -> String {
    let (path, all) = (&trigger.http, trigger.to_string());
    // By its path alone where that is all, as it was before there were rules.
    let text = if all == *path { format!("{app}{path}") } else { format!("{app}{path}\n{all}") };
    opaque_id("trigger", &text)
}

/// What a trigger asks for besides its path, as an annotation's value; nothing where that is nothing.
fn rules(trigger: &Trigger) -> Option<Value> {
    let mut rules = serde_json::to_value(trigger).ok().filter(|_| !trigger.is_plain())?;
    rules.as_object_mut()?.remove("http");
    Some(rules)
}

/// Takes the rules of a trigger out of its annotations.
pub fn take_rules(annotations: &mut BTreeMap<String, Value>) -> Result<Option<Trigger>, Refused> {
    let Some(mut rules) = annotations.remove(RULES) else { return Ok(None) };
    let said = |why: &str| wrong(format!("the annotation {RULES}: {why}"));
    let object = rules.as_object_mut().ok_or_else(|| said("it is no object"))?;
    let known = ["methods", "hosts", "headers", "query", "cors"];
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(said(&format!("{key:?} is none of {}", known.join(", "))));
    }
    object.insert("http".to_owned(), "/".into());
    serde_json::from_value(rules).map(Some).map_err(|why| said(&why.to_string()))
}

fn time(ms: u64) -> String {
    rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms))
}

impl Asked<'_> {
    pub fn app_object(&self, name: &str) -> Value {
        let record = self.apps.by_name.get(name).map(|app| App::clone(app)).unwrap_or_else(|| {
            let functions = self.functions.releases.iter().filter(|(function, _)| function.app() == name);
            let made = functions.map(|(_, release)| release.newest.created_ms).min().unwrap_or(0);
            App { created_ms: made, updated_ms: made, ..App::default() }
        });
        let mut object = json!({
            "id": FunctionName::app_id_of(name),
            "name": name,
            "config": record.config,
            "annotations": record.annotations,
            "shape": record.shape,
            "created_at": time(record.created_ms),
            "updated_at": time(record.updated_ms),
        });
        if let Some(url) = record.syslog_url {
            object["syslog_url"] = url.into();
        }
        object
    }

    pub fn fn_object(&self, function: &Function) -> Value {
        let (spec, facts, id) = (&function.spec, &function.facts, function.name().id());
        let mut annotations = facts.annotations.clone();
        annotations.insert(INVOKE.to_owned(), format!("{}/invoke/{id}", self.base).into());
        let image = match &spec.root {
            Root::Image(image) => image.asked().to_string(),
            _ => String::new(),
        };
        json!({
            "id": id,
            "name": function.name().function(),
            "app_id": function.name().app_id(),
            "image": image,
            "format": spec.format.as_str(),
            "memory": spec.memory >> 20,
            "timeout": spec.timeout_ms.div_ceil(1000),
            "idle_timeout": spec.idle_timeout_ms.div_ceil(1000),
            "config": facts.config,
            "annotations": annotations,
            "shape": facts.shape,
            "created_at": time(facts.created_ms),
            "updated_at": time(facts.updated_ms),
        })
    }

    pub fn trigger_object(&self, function: &FunctionName, trigger: &Named) -> Value {
        let mut annotations = trigger.annotations.clone();
        let endpoint = format!("{}/t/{}{}", self.base, function.app(), trigger.source);
        annotations.insert(ENDPOINT.to_owned(), endpoint.into());
        annotations.extend(rules(&trigger.rules).map(|rules| (RULES.to_owned(), rules)));
        json!({
            "id": trigger.id,
            "name": trigger.name,
            "app_id": function.app_id(),
            "fn_id": function.id(),
            "type": "http",
            "source": trigger.source,
            "annotations": annotations,
            "created_at": time(trigger.created_ms),
            "updated_at": time(trigger.updated_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_another_door_is_shown_with_names_of_its_own() {
        let name = FunctionName::new("shop", "cart").unwrap();
        let mut spec = FunctionSpec::new(name.clone(), vec!["true".into()], "/".into());
        spec.env.insert("KEY".into(), "value".into());
        spec.triggers = ["/", "/a/b c"].map(Trigger::new).into();
        let function = Function::of(&Release::first(spec));
        assert!(!function.ours);
        assert_eq!(function.facts.config["KEY"], "value");
        let names: Vec<_> = function.facts.triggers.iter().map(|trigger| trigger.name.as_str()).collect();
        assert_eq!(names, ["cart", "a-b-c"]);
        assert_eq!(function.facts.triggers[0].id, trigger_id("shop", &Trigger::new("/")));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let name = FunctionName::new("shop", "cart").unwrap();
        let spec = FunctionSpec::new(name, vec!["true".into()], "/".into());
        let mut function = Function::of(&Release::first(spec));
        function.facts.config.insert("MINE".into(), "1".into());
        function.facts.annotations.insert("note".into(), json!([1]));
        function.facts.triggers.push(Named {
            id: "x".into(),
            name: "n".into(),
            source: "/s".into(),
            rules: Trigger { methods: vec!["GET".into()], ..Trigger::new("/s") },
            ..Named::default()
        });
        let app = App { config: [("APP".to_owned(), "2".to_owned())].into(), ..App::default() };
        let proposal = function.proposal(&app).unwrap();
        assert_eq!(proposal.spec.env.len(), 2);
        let mut functions = stoker_registry::Functions::default();
        functions.apply(vec![Proposal { expect: Expect::Anything, ..proposal.clone() }], 1).unwrap();
        let read = Function::of(&functions.releases[&proposal.spec.name]);
        assert!(read.ours);
        assert_eq!(read.facts, function.facts);
    }

    #[test]
    fn times_are_fns() {
        assert_eq!(time(1_535_623_757_042), "2018-08-30T10:09:17.042Z");
    }
}
