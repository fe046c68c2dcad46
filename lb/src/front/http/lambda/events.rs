//! What becomes of the calls of `Event`: AWS's words for what is said of a function's asynchronous calls.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use stoker_core::FunctionSpec;
use stoker_core::later::{Later, Target as To};
use stoker_registry::revisions::{Expect, Proposal, Revision};

use super::change::{fields, text};
use super::functions::notes;
use super::target::split;
use super::{Refused, Target, arn};
use crate::auth::{Caller, Permission};
use crate::directory::{DEFAULT_APP, Named};
use crate::front::Front;

/// What is said of a function's events: how they are made, and its destinations as they were written.
#[derive(Clone)]
struct Events {
    later: Later,
    notes: BTreeMap<String, String>,
}

impl Events {
    fn of(revision: &Revision) -> Self {
        Self { later: revision.spec.later.clone(), notes: revision.notes.clone() }
    }

    /// What AWS's callers cannot say stays as it is.
    fn with_defaults(mut self) -> Self {
        let Later { max_attempts, max_age_ms, on_success, on_failure, .. } = Later::default();
        self.later = Later { max_attempts, max_age_ms, on_success, on_failure, ..self.later };
        for note in [notes::ON_SUCCESS, notes::ON_FAILURE] {
            self.notes.remove(note);
        }
        self
    }

    fn set(mut self, front: &Front, fields: &Map<String, Value>, caller: &Caller) -> Result<Self, Refused> {
        let number = |key: &str, least: u64, most: u64| match fields.get(key).filter(|value| !value.is_null())
        {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| (least..=most).contains(number)) {
                Some(number) => Ok(Some(number)),
                None => Err(Refused::parameter(format!("{key} is a number from {least} to {most}"))),
            },
        };
        if let Some(retries) = number("MaximumRetryAttempts", 0, 2)? {
            self.later.max_attempts = retries as u32 + 1;
        }
        if let Some(seconds) = number("MaximumEventAgeInSeconds", 60, 21_600)? {
            self.later.max_age_ms = seconds * 1000;
        }
        let destinations = fields.get("DestinationConfig").and_then(Value::as_object);
        for (key, to, note) in [
            ("OnSuccess", &mut self.later.on_success, notes::ON_SUCCESS),
            ("OnFailure", &mut self.later.on_failure, notes::ON_FAILURE),
        ] {
            let Some(said) = destinations.and_then(|all| all.get(key)) else { continue };
            self.notes.remove(note);
            *to = match said.get("Destination").filter(|value| !value.is_null()) {
                None => None,
                Some(value) => {
                    let written = text("Destination", value)?;
                    let to = destination(front, key, written, caller)?;
                    self.notes.insert(note.to_owned(), written.to_owned());
                    Some(to)
                }
            };
        }
        Ok(self)
    }

    fn shown(&self, front: &Front, target: &Target, changed_ms: u64) -> Value {
        let to = |to: &Option<To>, note: &str| match to {
            None => json!({}),
            Some(To::Function(name)) => {
                // A function file may have named another since.
                let written = self.notes.get(note).filter(|written| {
                    split(written).is_ok_and(|(written, _)| match front.directory.find_called(&written) {
                        Named::One(known) => known.spec.name == *name,
                        Named::None | Named::Several => false,
                    })
                });
                let named = || match name.app() {
                    DEFAULT_APP => arn(name.function(), None),
                    app => arn(&format!("{app}.{}", name.function()), None),
                };
                json!({ "Destination": written.cloned().unwrap_or_else(named) })
            }
            Some(other) => json!({ "Destination": other.to_string() }),
        };
        let later = &self.later;
        let (on_success, on_failure) =
            (to(&later.on_success, notes::ON_SUCCESS), to(&later.on_failure, notes::ON_FAILURE));
        json!({
            "LastModified": changed_ms as f64 / 1000.0,
            "FunctionArn": arn(&target.name, Some(super::LATEST)),
            "MaximumRetryAttempts": later.max_attempts.saturating_sub(1),
            "MaximumEventAgeInSeconds": later.max_age_ms / 1000,
            "DestinationConfig": { "OnSuccess": on_success, "OnFailure": on_failure },
        })
    }
}

/// `PutFunctionEventInvokeConfig`: what is not said has its default.
pub async fn put(front: &Front, target: Target, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    let fields = fields("PutFunctionEventInvokeConfig", body)?;
    change(front, &target, |events| events.with_defaults().set(front, &fields, caller)).await
}

/// `UpdateFunctionEventInvokeConfig`: what is not said stays.
pub async fn update(front: &Front, target: Target, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    get(front, &target)?;
    let fields = fields("UpdateFunctionEventInvokeConfig", body)?;
    change(front, &target, |events| events.set(front, &fields, caller)).await
}

/// `DeleteFunctionEventInvokeConfig`.
pub async fn delete(front: &Front, target: Target) -> Result<(), Refused> {
    get(front, &target)?;
    change(front, &target, |events| Ok(events.with_defaults())).await.map(drop)
}

/// `GetFunctionEventInvokeConfig`.
pub fn get(front: &Front, target: &Target) -> Result<Value, Refused> {
    target.unqualified()?;
    let revision = target.revision(front)?;
    let events = Events::of(&revision);
    if events.clone().with_defaults().later == events.later {
        let whole = arn(&target.name, Some(super::LATEST));
        return Err(Refused::missing(format!("The function {whole} doesn't have an EventInvokeConfig")));
    }
    Ok(events.shown(front, target, revision.created_ms))
}

/// `ListFunctionEventInvokeConfigs`: of `$LATEST` there is one, of versions none.
pub fn list(front: &Front, target: &Target) -> Value {
    let all: Vec<_> = get(front, target).into_iter().collect();
    json!({ "FunctionEventInvokeConfigs": all })
}

/// A function that is here, and that the caller may call. Queues, topics and buses of AWS are not.
fn destination(front: &Front, key: &str, said: &str, caller: &Caller) -> Result<To, Refused> {
    let wrong = || {
        let text = "is no function of this fleet by its ARN, and nothing else can be a destination";
        Refused::parameter(format!("{key}: {said:?} {text}"))
    };
    let (name, qualifier) = split(said).ok().filter(|_| said.starts_with("arn:")).ok_or_else(wrong)?;
    if qualifier.is_some_and(|qualifier| qualifier != super::LATEST) {
        let text = "names a version or an alias: a destination is a function, leave the qualifier out";
        return Err(Refused::parameter(format!("{key}: {said:?} {text}")));
    }
    match front.directory.find_called(&name) {
        Named::One(known) => {
            front.guard.allow(caller, Permission::Invoke, known.spec.name.app())?;
            Ok(To::Function(known.spec.name.clone()))
        }
        Named::None | Named::Several => Err(wrong()),
    }
}

async fn change(
    front: &Front,
    target: &Target,
    change: impl FnOnce(Events) -> Result<Events, Refused>,
) -> Result<Value, Refused> {
    target.unqualified()?;
    let newest = target.revision(front)?;
    let events = change(Events::of(&newest))?;
    let mut spec = FunctionSpec::clone(&newest.spec);
    spec.later.clone_from(&events.later);
    if let Some(problem) = spec.check().err().and_then(|problems| problems.into_iter().next()) {
        return Err(Refused::parameter(problem.text));
    }
    let expect = Expect::Newest(newest.number);
    let proposal = Proposal { spec, notes: Some(events.notes.clone()), hold: false, expect };
    let outcome = front.registry.apply(vec![proposal]).await?;
    let functions = front.directory.functions();
    let number = outcome.first().map_or(newest.number, |outcome| outcome.revision);
    let now = functions.revision(&target.known.spec.name, number);
    Ok(events.shown(front, target, now.unwrap_or(&newest).created_ms))
}
