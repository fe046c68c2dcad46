//! Versions and aliases: to AWS a version is a revision that was published, with its number.

use std::collections::BTreeMap;

use http::request::Parts;
use serde_json::{Map, Value, json};
use stoker_core::error::{Code, Error};
use stoker_registry::revisions::{Alias, Change, Split, WHOLE};

use super::change::{self, fields, text};
use super::functions::{described, notes, with_marker};
use super::{LATEST, Refused, Target, arn, page, policy, query, urls};
use crate::front::Front;

/// Versions and aliases of one page where the caller does not say how many.
const PAGE: usize = 50;

/// `DeleteFunction`, of all of it or of one version.
pub async fn delete(front: &Front, target: Target) -> Result<(), Refused> {
    let name = &target.known.spec.name;
    match target.qualifier.as_deref() {
        None => front.registry.delete_function(name).await.map(drop)?,
        Some(LATEST) => {
            return Err(Refused::parameter(
                "$LATEST version cannot be deleted without deleting the function.",
            ));
        }
        Some(version) => {
            let number = version.parse().map_err(|_| {
                Refused::parameter(format!("{version:?} is no version: delete an alias by DeleteAlias"))
            })?;
            front.registry.change_function(name, Change::Remove(number)).await?;
        }
    }
    Ok(())
}

/// `PublishVersion`.
pub async fn publish(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("PublishVersion", body)?;
    let revision = target.revision(front)?;
    change::unchanged(&revision, &fields)?;
    if let Some(expected) = fields.get("CodeSha256").filter(|value| !value.is_null()) {
        let actual = &described(&target.name, &revision, None)["CodeSha256"];
        if expected != actual {
            let text = format!(
                "CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST ({actual}). Please try again with the CodeSHA256 in $LATEST."
            );
            return Err(Refused::parameter(text));
        }
    }
    if !revision.published {
        let mut own = BTreeMap::new();
        if let Some(description) = fields.get("Description").filter(|value| !value.is_null()) {
            own.insert(notes::DESCRIPTION.to_owned(), text("Description", description)?.to_owned());
        }
        let publish = Change::Publish { number: revision.number, notes: own };
        front.registry.change_function(&target.known.spec.name, publish).await?;
    }
    let published = target.revision(front)?;
    let version = published.number.to_string();
    Ok(described(&target.name, &published, Some(&version)))
}

/// `ListVersionsByFunction`.
pub fn list(front: &Front, parts: &Parts, target: &Target) -> Result<Value, Refused> {
    let functions = front.directory.functions();
    let name = &target.known.spec.name;
    let newest = functions
        .releases
        .get(name)
        .map(|release| (LATEST.to_owned(), described(&target.name, &release.newest, None)));
    let published = functions.revisions(name).filter(|revision| revision.published).map(|revision| {
        let version = revision.number.to_string();
        // By number, and not by digit.
        (format!("{:020}", revision.number), described(&target.name, revision, Some(&version)))
    });
    let (page, next) = page(parts, newest.into_iter().chain(published).collect(), PAGE)?;
    let versions: Vec<_> = page.into_iter().map(|(_, version)| version).collect();
    Ok(with_marker(json!({"Versions": versions}), next))
}

/// An alias as AWS knows it.
fn shown(name: &str, alias: &str, is: &Alias) -> Value {
    let mut shown = json!({
        "AliasArn": arn(name, Some(alias)),
        "Name": alias,
        "FunctionVersion": is.split.main.to_string(),
        "Description": is.description,
        "RevisionId": alias_id(alias, is),
    });
    if let Some((other, weight)) = is.split.other {
        let weight = f64::from(weight) / f64::from(WHOLE);
        let mut weights = Map::new();
        weights.insert(other.to_string(), weight.into());
        shown["RoutingConfig"] = json!({"AdditionalVersionWeights": weights});
    }
    shown
}

/// Another one after each change.
fn alias_id(alias: &str, is: &Alias) -> String {
    let name: u32 = alias.bytes().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("{name:08x}-0000-4000-8000-{:012x}", is.changes)
}

fn found(front: &Front, target: &Target, alias: &str) -> Result<Alias, Refused> {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    let found = release.and_then(|release| release.aliases.get(alias)).cloned();
    found
        .ok_or_else(|| Refused::missing(format!("Cannot find alias arn: {}", arn(&target.name, Some(alias)))))
}

/// The number of a version that an alias may lead to.
fn version(front: &Front, target: &Target, text: &str) -> Result<u64, Refused> {
    if text == LATEST {
        let text = "FunctionVersion: an alias leads to a version here; publish $LATEST, or call the function without a qualifier";
        return Err(Refused::parameter(text));
    }
    let number =
        text.parse().map_err(|_| Refused::parameter(format!("FunctionVersion {text:?} is no version")))?;
    let functions = front.directory.functions();
    let published =
        functions.revision(&target.known.spec.name, number).is_some_and(|revision| revision.published);
    match published {
        true => Ok(number),
        false => Err(Refused::missing(format!("Function not found: {}", arn(&target.name, Some(text))))),
    }
}

/// The one version that takes a part of an alias's calls.
fn routing(front: &Front, target: &Target, config: &Value) -> Result<Option<(u64, u32)>, Refused> {
    let weights = match config.get("AdditionalVersionWeights") {
        None | Some(Value::Null) => return Ok(None),
        Some(weights) => weights.as_object(),
    };
    let weights = weights.ok_or_else(|| Refused::parameter("AdditionalVersionWeights is a mapping"))?;
    let mut all = weights.iter();
    let Some((other, weight)) = all.next() else { return Ok(None) };
    let part = weight.as_f64().filter(|part| (0.0..=1.0).contains(part));
    let (Some(part), None) = (part, all.next()) else {
        return Err(Refused::parameter(
            "AdditionalVersionWeights is one version and a number from 0.0 to 1.0",
        ));
    };
    let weight = (part * f64::from(WHOLE)).round() as u32;
    Ok(Some((version(front, target, other)?, weight)))
}

/// `CreateAlias`.
pub async fn create_alias(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("CreateAlias", body)?;
    let name = text("Name", fields.get("Name").unwrap_or(&Value::Null))?;
    let empty = Alias { split: Split::all(0), description: String::new(), changes: 0 };
    let leads = text("FunctionVersion", fields.get("FunctionVersion").unwrap_or(&Value::Null))?;
    let empty = Alias { split: Split::all(version(front, &target, leads)?), ..empty };
    set(front, &target, name, empty, &fields, None).await
}

/// `UpdateAlias`.
pub async fn update_alias(front: &Front, target: Target, name: &str, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("UpdateAlias", body)?;
    let mut alias = found(front, &target, name)?;
    if fields.get("RevisionId").is_some_and(|id| !id.is_null() && *id != alias_id(name, &alias)) {
        return Err(Refused::changed());
    }
    if let Some(leads) = fields.get("FunctionVersion").filter(|value| !value.is_null()) {
        alias.split.main = version(front, &target, text("FunctionVersion", leads)?)?;
    }
    let changes = alias.changes;
    set(front, &target, name, alias, &fields, Some(changes)).await
}

async fn set(
    front: &Front,
    target: &Target,
    name: &str,
    mut alias: Alias,
    fields: &Map<String, Value>,
    expect: Option<u64>,
) -> Result<Value, Refused> {
    if let Some(description) = fields.get("Description").filter(|value| !value.is_null()) {
        text("Description", description)?.clone_into(&mut alias.description);
    }
    if let Some(config) = fields.get("RoutingConfig").filter(|value| !value.is_null()) {
        alias.split.other = routing(front, target, config)?;
    }
    let change = Change::SetAlias {
        name: name.to_owned(),
        split: alias.split,
        description: alias.description,
        expect: Some(expect),
    };
    front.registry.change_function(&target.known.spec.name, change).await?;
    Ok(shown(&target.name, name, &found(front, target, name)?))
}

/// `GetAlias`.
pub fn alias(front: &Front, target: &Target, name: &str) -> Result<Value, Refused> {
    Ok(shown(&target.name, name, &found(front, target, name)?))
}

/// `ListAliases`.
pub fn aliases(front: &Front, parts: &Parts, target: &Target) -> Result<Value, Refused> {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    let only: Option<u64> = match query(parts, "FunctionVersion") {
        None => None,
        Some(text) => {
            let wrong =
                || Error::new(Code::InvalidRequest, format!("FunctionVersion {text:?} is no version"));
            Some(text.parse().map_err(|_| wrong())?)
        }
    };
    let all = release.into_iter().flat_map(|release| &release.aliases);
    let all = all.filter(|(_, alias)| only.is_none_or(|only| alias.split.main == only));
    let all = all.map(|(name, alias)| (name.clone(), shown(&target.name, name, alias))).collect();
    let (page, next) = page(parts, all, PAGE)?;
    let aliases: Vec<_> = page.into_iter().map(|(_, alias)| alias).collect();
    Ok(with_marker(json!({"Aliases": aliases}), next))
}

/// `DeleteAlias`, which is done when there is none.
pub async fn delete_alias(front: &Front, target: Target, name: &str) -> Result<(), Refused> {
    if found(front, &target, name).is_ok() {
        let change = Change::DeleteAlias(name.to_owned());
        front.registry.change_function(&target.known.spec.name, change).await?;
        // What was kept for it goes with it.
        let functions = front.directory.functions();
        let release = functions.releases.get(&target.known.spec.name);
        let notes = [urls::note(Some(name)), policy::note(Some(name))];
        let kept =
            release.is_some_and(|release| notes.iter().any(|note| release.newest.notes.contains_key(note)));
        if kept {
            let notes = notes.into_iter().map(|note| (note, None)).collect();
            change::keep_notes(front, &target.known.spec.name, notes).await?;
        }
    }
    Ok(())
}
