//! How many calls of a function there are at once, its tags, and what an account may have.

use std::collections::BTreeMap;

use http::request::Parts;
use serde::Deserialize as _;
use serde_json::{Value, json};
use stoker_core::FunctionSpec;
use stoker_core::error::{Code, Error};
use stoker_core::function::limits;
use stoker_registry::revisions::{Change, Expect, Proposal, Revision};

use super::change::fields;
use super::{Refused, Target, arn, queries, query};
use crate::directory::PROVISIONED;
use crate::front::Front;

/// Calls at once of an account, as AWS has it where nobody asked for more. Nothing here holds them back.
const ACCOUNT: u32 = 1000;

/// `PutFunctionConcurrency`: so many calls of the function are let in at once, by every door of every balancer.
pub async fn reserve(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("PutFunctionConcurrency", body)?;
    let reserved = number("ReservedConcurrentExecutions", fields.get("ReservedConcurrentExecutions"))?;
    front.registry.change_function(&target.known.spec.name, Change::Reserve(Some(reserved))).await?;
    Ok(json!({"ReservedConcurrentExecutions": reserved}))
}

fn number(key: &str, value: Option<&Value>) -> Result<u32, Refused> {
    let number = value.and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    number
        .filter(|number| *number < u32::MAX)
        .ok_or_else(|| Refused::parameter(format!("{key} is a number from 0")))
}

/// `DeleteFunctionConcurrency`.
pub async fn unreserve(front: &Front, target: Target) -> Result<(), Refused> {
    target.unqualified()?;
    front.registry.change_function(&target.known.spec.name, Change::Reserve(None)).await?;
    Ok(())
}

/// `GetFunctionConcurrency`.
pub fn reserved(front: &Front, target: &Target) -> Value {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    match release.and_then(|release| release.reserved) {
        Some(reserved) => json!({"ReservedConcurrentExecutions": reserved}),
        None => json!({}),
    }
}

/// The newest revision, where the version or the alias that is asked about runs in its containers.
fn shared(front: &Front, target: &Target) -> Result<std::sync::Arc<Revision>, Refused> {
    if target.latest().is_some() {
        return Err(Refused::parameter(
            "Qualifier is missing: provisioned concurrency is of a version or an alias",
        ));
    }
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    let newest = release.map(|release| release.newest.clone());
    let newest =
        newest.ok_or_else(|| Refused::missing(format!("Function not found: {}", arn(&target.name, None))))?;
    let split = target.known.split();
    let runs = |number| {
        let revision = functions.revision(&target.known.spec.name, number);
        revision.is_some_and(|revision| revision.spec.digest() == newest.spec.digest())
    };
    if runs(split.main) || split.other.is_some_and(|(number, _)| runs(number)) {
        return Ok(newest);
    }
    let text = "provisioned concurrency is kept for what the newest revision runs, and this is another";
    Err(Refused::parameter(text))
}

/// `PutProvisionedConcurrencyConfig`: the function's `min_containers`.
pub async fn provision(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("PutProvisionedConcurrencyConfig", body)?;
    let key = "ProvisionedConcurrentExecutions";
    let wanted = number(key, fields.get(key))?;
    if !limits::MAX_CONTAINERS.contains(&wanted) {
        return Err(Refused::parameter(format!(
            "{key} is a number from 1 to {}",
            limits::MAX_CONTAINERS.end()
        )));
    }
    keep(front, &target, wanted).await?;
    Ok(config(wanted))
}

/// `DeleteProvisionedConcurrencyConfig`.
pub async fn unprovision(front: &Front, target: Target) -> Result<(), Refused> {
    keep(front, &target, 0).await
}

async fn keep(front: &Front, target: &Target, containers: u32) -> Result<(), Refused> {
    let newest = shared(front, target)?;
    let mut spec = FunctionSpec::clone(&newest.spec);
    spec.min_containers = containers;
    spec.max_containers = spec.max_containers.max(containers);
    let mut notes = newest.notes.clone();
    match target.qualifier.clone().filter(|_| containers > 0) {
        Some(qualifier) => notes.insert(PROVISIONED.to_owned(), qualifier),
        None => notes.remove(PROVISIONED),
    };
    let proposal = Proposal { spec, notes: Some(notes), hold: false, expect: Expect::Newest(newest.number) };
    front.registry.apply(vec![proposal]).await?;
    Ok(())
}

/// `GetProvisionedConcurrencyConfig`, and the list of all of them.
pub fn provisioned(front: &Front, parts: &Parts, target: Target) -> Result<Value, Refused> {
    if query(parts, "List").is_some() {
        let functions = front.directory.functions();
        let release = functions.releases.get(&target.known.spec.name);
        let Some(newest) = release.map(|release| &release.newest) else { return Ok(json!({})) };
        let digest = newest.spec.digest();
        let all = functions.revisions(&target.known.spec.name).filter(|revision| revision.published);
        let all = all.filter(|revision| newest.spec.min_containers > 0 && revision.spec.digest() == digest);
        let all = all.map(|revision| {
            let mut one = config(newest.spec.min_containers);
            one["FunctionArn"] = arn(&target.name, Some(&revision.number.to_string())).into();
            one
        });
        return Ok(json!({"ProvisionedConcurrencyConfigs": all.collect::<Vec<_>>()}));
    }
    match shared(front, &target)?.spec.min_containers {
        0 => {
            let text = "No Provisioned Concurrency Config found for this function";
            let error = Error::new(Code::NotFound, text);
            Err(Refused::aws(404, "ProvisionedConcurrencyConfigNotFoundException", error))
        }
        kept => Ok(config(kept)),
    }
}

fn config(kept: u32) -> Value {
    json!({
        "RequestedProvisionedConcurrentExecutions": kept,
        "AvailableProvisionedConcurrentExecutions": kept,
        "AllocatedProvisionedConcurrentExecutions": kept,
        "Status": "READY",
    })
}

/// `ListTags`.
pub fn tags(front: &Front, target: &Target) -> Value {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    json!({"Tags": release.map(|release| release.tags.clone()).unwrap_or_default()})
}

/// `TagResource`.
pub async fn tag(front: &Front, target: Target, body: &[u8]) -> Result<(), Refused> {
    let fields = fields("TagResource", body)?;
    let set = BTreeMap::deserialize(fields.get("Tags").cloned().unwrap_or_default())
        .map_err(|error| Refused::parameter(format!("Tags: {error}")))?;
    let change = Change::Tag { set, unset: Vec::new() };
    front.registry.change_function(&target.known.spec.name, change).await?;
    Ok(())
}

/// `UntagResource`.
pub async fn untag(front: &Front, parts: &Parts, target: Target) -> Result<(), Refused> {
    let change = Change::Tag { set: BTreeMap::new(), unset: queries(parts, "tagKeys").collect() };
    front.registry.change_function(&target.known.spec.name, change).await?;
    Ok(())
}

/// `GetAccountSettings`.
pub fn account(front: &Front) -> Value {
    let functions = front.directory.functions();
    let reserved = functions.releases.values().filter_map(|release| release.reserved);
    let reserved = reserved.fold(0u32, u32::saturating_add);
    json!({
        "AccountLimit": {
            "TotalCodeSize": 80_530_636_800u64,
            "CodeSizeUnzipped": 262_144_000,
            "CodeSizeZipped": 52_428_800,
            "ConcurrentExecutions": ACCOUNT,
            "UnreservedConcurrentExecutions": ACCOUNT.saturating_sub(reserved),
        },
        "AccountUsage": {"TotalCodeSize": 0, "FunctionCount": functions.by_name.len()},
    })
}
