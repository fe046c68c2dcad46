//! What becomes of the calls of `Event`: AWS's words for what is said of a function's asynchronous calls.

use serde_json::{Map, Value, json};
use stoker_core::FunctionSpec;
use stoker_core::later::{Later, Target as To};
use stoker_registry::revisions::{Expect, Proposal};

use super::change::{fields, text};
use super::target::split;
use super::{Refused, Target, arn};
use crate::auth::{Caller, Permission};
use crate::directory::Named;
use crate::front::Door;

/// `PutFunctionEventInvokeConfig`: what is not said has its default.
pub async fn put(door: &Door, target: Target, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    let fields = fields("PutFunctionEventInvokeConfig", body)?;
    change(door, &target, |later| set(door, with_defaults(later), &fields, caller)).await
}

/// `UpdateFunctionEventInvokeConfig`: what is not said stays.
pub async fn update(door: &Door, target: Target, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    get(door, &target)?;
    let fields = fields("UpdateFunctionEventInvokeConfig", body)?;
    change(door, &target, |later| set(door, later, &fields, caller)).await
}

/// `DeleteFunctionEventInvokeConfig`.
pub async fn delete(door: &Door, target: Target) -> Result<(), Refused> {
    get(door, &target)?;
    change(door, &target, |later| Ok(with_defaults(later))).await.map(drop)
}

/// `GetFunctionEventInvokeConfig`.
pub fn get(door: &Door, target: &Target) -> Result<Value, Refused> {
    target.unqualified()?;
    let revision = target.revision(door)?;
    let later = &revision.spec.later;
    if with_defaults(later.clone()) == *later {
        let whole = arn(&target.name, Some(super::LATEST));
        return Err(Refused::missing(format!("The function {whole} doesn't have an EventInvokeConfig")));
    }
    Ok(shown(door, target, later, revision.created_ms))
}

/// `ListFunctionEventInvokeConfigs`: of `$LATEST` there is one, of versions none.
pub fn list(door: &Door, target: &Target) -> Value {
    let all: Vec<_> = get(door, target).into_iter().collect();
    json!({ "FunctionEventInvokeConfigs": all })
}

/// What AWS's callers cannot say stays as it is.
fn with_defaults(later: Later) -> Later {
    let Later { max_attempts, max_age_ms, on_success, on_failure, .. } = Later::default();
    Later { max_attempts, max_age_ms, on_success, on_failure, ..later }
}

fn set(
    door: &Door,
    mut later: Later,
    fields: &Map<String, Value>,
    caller: &Caller,
) -> Result<Later, Refused> {
    let number = |key: &str, least: u64, most: u64| match fields.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Refused::parameter(format!("{key} is a number from {least} to {most}"))),
        },
    };
    if let Some(retries) = number("MaximumRetryAttempts", 0, 2)? {
        later.max_attempts = retries as u32 + 1;
    }
    if let Some(seconds) = number("MaximumEventAgeInSeconds", 60, 21_600)? {
        later.max_age_ms = seconds * 1000;
    }
    let destinations = fields.get("DestinationConfig").and_then(Value::as_object);
    for (key, to) in [("OnSuccess", &mut later.on_success), ("OnFailure", &mut later.on_failure)] {
        let Some(said) = destinations.and_then(|all| all.get(key)) else { continue };
        *to = match said.get("Destination").filter(|value| !value.is_null()) {
            None => None,
            Some(value) => Some(destination(door, key, text("Destination", value)?, caller)?),
        };
    }
    Ok(later)
}

/// A function that is here, and that the caller may call. Queues, topics and buses of AWS are not.
fn destination(door: &Door, key: &str, said: &str, caller: &Caller) -> Result<To, Refused> {
    let wrong = || {
        let text = "is no function of this fleet by its ARN, and nothing else can be a destination";
        Refused::parameter(format!("{key}: {said:?} {text}"))
    };
    let (name, _) = split(said).ok().filter(|_| said.starts_with("arn:")).ok_or_else(wrong)?;
    match door.directory.find_called(&name) {
        Named::One(known) => {
            door.guard.allow(caller, Permission::Invoke, known.spec.name.app())?;
            Ok(To::Function(known.spec.name.clone()))
        }
        Named::None | Named::Several => Err(wrong()),
    }
}

async fn change(
    door: &Door,
    target: &Target,
    change: impl FnOnce(Later) -> Result<Later, Refused>,
) -> Result<Value, Refused> {
    target.unqualified()?;
    let newest = target.revision(door)?;
    let mut spec = FunctionSpec::clone(&newest.spec);
    spec.later = change(spec.later)?;
    if let Some(problem) = spec.check().err().and_then(|problems| problems.into_iter().next()) {
        return Err(Refused::parameter(problem.text));
    }
    let expect = Expect::Newest(newest.number);
    let proposal = Proposal { spec, notes: Some(newest.notes.clone()), hold: false, expect };
    let later = proposal.spec.later.clone();
    let outcome = door.registry.apply(vec![proposal]).await?;
    let functions = door.directory.functions();
    let number = outcome.first().map_or(newest.number, |outcome| outcome.revision);
    let now = functions.revision(&target.known.spec.name, number);
    Ok(shown(door, target, &later, now.unwrap_or(&newest).created_ms))
}

fn shown(door: &Door, target: &Target, later: &Later, changed_ms: u64) -> Value {
    let to = |to: &Option<To>| match to {
        None => json!({}),
        Some(To::Function(name)) => {
            let known = door.directory.find(name.as_str());
            let called = known.map_or_else(|| name.to_string(), |known| door.directory.called(&known));
            json!({ "Destination": arn(&called, None) })
        }
        Some(other) => json!({ "Destination": other.to_string() }),
    };
    json!({
        "LastModified": changed_ms as f64 / 1000.0,
        "FunctionArn": arn(&target.name, Some(super::LATEST)),
        "MaximumRetryAttempts": later.max_attempts.saturating_sub(1),
        "MaximumEventAgeInSeconds": later.max_age_ms / 1000,
        "DestinationConfig": { "OnSuccess": to(&later.on_success), "OnFailure": to(&later.on_failure) },
    })
}
