//! Layers: files that functions have in `/opt`. Their versions are kept with the record of an app, their files where code is kept.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stoker_core::error::{Code, Error, Retry};
use stoker_core::ids::is_name;
use stoker_registry::apps::{self, App, Layer, LayerVersion};

use super::change::{fields, is_nothing, no_code, text};
use super::code::{MOST_UNPACKED, MOST_ZIPPED};
use super::functions::{date, with_marker};
use super::urls::now;
use super::{ACCOUNT, REGION, Refused, page, query};
use crate::auth::{Caller, Permission};
use crate::directory::DEFAULT_APP;
use crate::front::Front;
use crate::front::http::control;

/// Layers of one function, as AWS has it.
pub const MOST: usize = 5;

/// Versions of all layers of one app.
const MOST_VERSIONS: usize = 1000;

/// Layers, or versions, of one page where the caller does not say how many.
const PAGE: usize = 50;

/// Lengths of what is kept of a version, and how many runtimes and architectures it can name: AWS's.
const LONGEST_NAME: usize = 140;
const LONGEST_DESCRIPTION: usize = 256;
const LONGEST_LICENSE: usize = 512;
const MOST_RUNTIMES: usize = 15;
const MOST_ARCHITECTURES: usize = 2;

/// Attempts to write what somebody else changes too, and how long to wait until that is seen.
const ATTEMPTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// A layer by its app and its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    app: String,
    name: String,
}

impl Named {
    /// `name`, `app.name`, or the layer's ARN.
    fn parse(said: &str) -> Result<Self, Refused> {
        let (name, version) = split(said)?;
        match version {
            None => Ok(name),
            Some(_) => Err(invalid("layerName", said)),
        }
    }

    fn called(&self) -> String {
        match self.app == DEFAULT_APP {
            true => self.name.clone(),
            false => format!("{}.{}", self.app, self.name),
        }
    }

    fn arn(&self) -> String {
        format!("arn:aws:lambda:{REGION}:{ACCOUNT}:layer:{}", self.called())
    }

    fn version_arn(&self, number: u64) -> String {
        format!("{}:{number}", self.arn())
    }
}

/// What a text names: a layer, and perhaps one of its versions.
fn split(said: &str) -> Result<(Named, Option<u64>), Refused> {
    let wrong = || invalid("layerName", said);
    let parts: Vec<&str> = said.split(':').collect();
    let (called, version) = match parts[..] {
        ["arn", _, "lambda", _, account, "layer", ref rest @ ..] => {
            if account != ACCOUNT {
                let text = format!(
                    "{said} is a layer of another account, which cannot be reached from here: publish its zip with PublishLayerVersion"
                );
                let error = Error::new(Code::InvalidRequest, text);
                return Err(Refused::aws(403, "AccessDeniedException", error));
            }
            match rest {
                [called] => (*called, None),
                [called, version] => (*called, Some(version.parse().map_err(|_| wrong())?)),
                _ => return Err(wrong()),
            }
        }
        [called] => (called, None),
        _ => return Err(wrong()),
    };
    let (app, name) = called.split_once('.').unwrap_or((DEFAULT_APP, called));
    if !is_name(app) || !is_name(name) || called.len() > LONGEST_NAME {
        return Err(wrong());
    }
    Ok((Named { app: app.to_owned(), name: name.to_owned() }, version))
}

fn invalid(at: &str, said: &str) -> Refused {
    let text = format!(
        "1 validation error detected: Value '{said}' at '{at}' failed to satisfy constraint: Member must be the name or the ARN of a layer, of at most {LONGEST_NAME} letters, digits, - and _"
    );
    Refused::aws(400, "ValidationException", Error::new(Code::InvalidRequest, text))
}

fn absent() -> Refused {
    Refused::missing("The resource you requested does not exist.")
}

/// A layer that a function has, as it is kept with the function: it stays the function's when the version is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    pub arn: String,
    pub size: u64,
    pub unpacked: u64,
    pub at: String,
}

impl Used {
    /// Those that are kept in a note.
    pub fn read(note: Option<&str>) -> Vec<Self> {
        note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default()
    }

    pub fn shown(&self) -> Value {
        json!({"Arn": self.arn, "CodeSize": self.size})
    }
}

/// The layers that a request gives to a function.
pub async fn wanted(front: &Front, caller: &Caller, said: &Value) -> Result<Vec<Used>, Refused> {
    let arns = Vec::<String>::deserialize(said)
        .map_err(|error| Refused::parameter(format!("Layers is a list of ARNs: {error}")))?;
    if arns.len() > MOST {
        return Err(Refused::parameter(format!("Cannot reference more than {MOST} layers.")));
    }
    if arns.is_empty() {
        return Ok(Vec::new());
    }
    let apps = control::apps(front).await?;
    let mut all: Vec<(Named, Used)> = Vec::new();
    for arn in arns {
        let (named, version) = split(&arn)?;
        let Some(version) = version.filter(|_| arn.starts_with("arn:")) else {
            return Err(invalid("layers", &arn));
        };
        front.guard.allow(caller, Permission::Observe, &named.app)?;
        if let Some((_, other)) = all.iter().find(|(other, _)| *other == named) {
            let text = format!(
                "Two different versions of the same layer are not allowed to be referenced in the same function. {} and {arn} are versions of the same layer.",
                other.arn
            );
            return Err(Refused::parameter(text));
        }
        let found = apps.by_name.get(&named.app).and_then(|app| app.layers.get(&named.name));
        let found = found.and_then(|layer| layer.versions.iter().find(|one| one.number == version));
        let found =
            found.ok_or_else(|| Refused::parameter(format!("Layer version {arn} does not exist.")))?;
        let LayerVersion { size, unpacked, ref at, .. } = *found;
        all.push((named, Used { arn, size, unpacked, at: at.clone() }));
    }
    Ok(all.into_iter().map(|(_, used)| used).collect())
}

/// What is said of a version beside its files.
fn described(named: &Named, version: &LayerVersion) -> Value {
    let mut shown = json!({
        "LayerVersionArn": named.version_arn(version.number),
        "Version": version.number,
        "Description": version.description,
        "CreatedDate": date(version.created_ms),
    });
    for (key, list) in
        [("CompatibleRuntimes", &version.runtimes), ("CompatibleArchitectures", &version.architectures)]
    {
        if !list.is_empty() {
            shown[key] = json!(list);
        }
    }
    if !version.license.is_empty() {
        shown["LicenseInfo"] = version.license.as_str().into();
    }
    shown
}

fn whole(named: &Named, version: &LayerVersion) -> Value {
    let mut shown = described(named, version);
    shown["LayerArn"] = named.arn().into();
    shown["Content"] =
        json!({"Location": version.at, "CodeSha256": version.sha256, "CodeSize": version.size});
    shown
}

fn limited(key: &str, value: Option<&Value>, most: usize) -> Result<String, Refused> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(String::new()) };
    let text = text(key, value)?;
    if text.chars().count() > most {
        return Err(Refused::parameter(format!("{key} has more than {most} characters")));
    }
    Ok(text.to_owned())
}

fn list<T: DeserializeOwned>(key: &str, value: Option<&Value>, most: usize) -> Result<Vec<T>, Refused> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list = Vec::deserialize(value).map_err(|error| Refused::parameter(format!("{key}: {error}")))?;
    if list.len() > most {
        return Err(Refused::parameter(format!("{key} has more than {most} entries")));
    }
    Ok(list)
}

/// `PublishLayerVersion`.
pub async fn publish(front: &Front, called: &str, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    let named = Named::parse(called)?;
    front.guard.allow(caller, Permission::Manage, &named.app)?;
    let fields = fields("PublishLayerVersion", body)?;
    let mut version = LayerVersion {
        description: limited("Description", fields.get("Description"), LONGEST_DESCRIPTION)?,
        license: limited("LicenseInfo", fields.get("LicenseInfo"), LONGEST_LICENSE)?,
        runtimes: list("CompatibleRuntimes", fields.get("CompatibleRuntimes"), MOST_RUNTIMES)?,
        architectures: list(
            "CompatibleArchitectures",
            fields.get("CompatibleArchitectures"),
            MOST_ARCHITECTURES,
        )?,
        created_ms: now(),
        ..LayerVersion::default()
    };
    let wrong = version.architectures.iter().find(|one| !matches!(one.as_str(), "x86_64" | "arm64"));
    if let Some(wrong) = wrong {
        return Err(Refused::parameter(format!(
            "CompatibleArchitectures: {wrong:?} is none of x86_64, arm64"
        )));
    }
    let zip = content(&fields)?;
    let Some(store) = &front.lambda.code else { return Err(no_code()) };
    let (at, zip) = store.put_layer(zip.into()).await?;
    if zip.unpacked > MOST_UNPACKED {
        let text = format!("Unzipped size must be smaller than {MOST_UNPACKED} bytes");
        return Err(Refused::parameter(text));
    }
    (version.at, version.sha256, version.unpacked) = (at, zip.sha256, zip.unpacked);
    version.size = zip.bytes as u64;
    let published = change(front, &named.app, |app| {
        let versions: usize = app.layers.values().map(|layer| layer.versions.len()).sum();
        if versions >= MOST_VERSIONS {
            let text = format!("an app has at most {MOST_VERSIONS} versions of layers: delete some");
            let error = Error::new(Code::InvalidRequest, text);
            return Err(Refused::aws(400, "CodeStorageExceededException", error));
        }
        let layer = app.layers.entry(named.name.clone()).or_default();
        layer.made += 1;
        version.number = layer.made;
        layer.versions.push(version.clone());
        Ok(version.clone())
    });
    Ok(whole(&named, &published.await?))
}

/// The zip of a request.
fn content(fields: &Map<String, Value>) -> Result<Vec<u8>, Refused> {
    let content = fields.get("Content").and_then(Value::as_object);
    let content = content.ok_or_else(|| Refused::parameter("Content is missing: send a zip as ZipFile"))?;
    if let Some(key) = ["S3Bucket", "S3Key", "S3ObjectVersion"]
        .into_iter()
        .find(|key| content.get(*key).is_some_and(|value| !is_nothing(value)))
    {
        return Err(Refused::parameter(format!(
            "Content.{key}: there is no S3 here; send the zip as ZipFile"
        )));
    }
    let zip = content.get("ZipFile").filter(|zip| !is_nothing(zip));
    let zip = zip.ok_or_else(|| Refused::parameter("Content.ZipFile is missing"))?;
    let zip = BASE64
        .decode(text("Content.ZipFile", zip)?)
        .map_err(|error| Refused::parameter(format!("Content.ZipFile is not base64: {error}")))?;
    if zip.len() > MOST_ZIPPED {
        let text = format!("Zipped size must be smaller than {MOST_ZIPPED} bytes");
        return Err(Refused::from(Error::new(Code::RequestTooLarge, text)));
    }
    Ok(zip)
}

/// Changes the record of an app, again where somebody else was faster.
async fn change<T>(
    front: &Front,
    app: &str,
    mut change: impl FnMut(&mut App) -> Result<T, Refused>,
) -> Result<T, Refused> {
    control::apps(front).await?;
    let mut seen = front.registry.apps();
    for _ in 0..ATTEMPTS {
        let record = seen.borrow_and_update().by_name.get(app).map(|app| App::clone(app));
        let now = now();
        let mut record = record.unwrap_or_else(|| App { created_ms: now, ..App::default() });
        record.updated_ms = now.max(record.updated_ms);
        let done = change(&mut record)?;
        match front.registry.put_app(app, record).await {
            Ok(()) => return Ok(done),
            Err(stoker_registry::Error::App(apps::Refusal::Changed(_) | apps::Refusal::Exists(_))) => {
                // What they wrote is on its way.
                _ = tokio::time::timeout(PATIENCE, seen.changed()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let text = "the layers of this app are changed by others all the time: try again";
    Err(Error::new(Code::RateLimited, text).retry(Retry::After(PATIENCE)).into())
}

/// A version's number out of a path.
fn number(text: &str) -> Result<u64, Refused> {
    match text.parse::<i64>() {
        Ok(number) if number >= 1 => Ok(number.unsigned_abs()),
        Ok(_) => Err(Refused::parameter("Layer Version Cannot be less than 1.")),
        Err(_) => Err(Refused::parameter(format!("VersionNumber {text:?} is no number"))),
    }
}

async fn found(front: &Front, caller: &Caller, named: &Named) -> Result<Option<Layer>, Refused> {
    front.guard.allow(caller, Permission::Observe, &named.app)?;
    let apps = control::apps(front).await?;
    Ok(apps.by_name.get(&named.app).and_then(|app| app.layers.get(&named.name)).cloned())
}

/// `GetLayerVersion`.
pub async fn get(front: &Front, called: &str, version: &str, caller: &Caller) -> Result<Value, Refused> {
    let (named, version) = (Named::parse(called)?, number(version)?);
    let layer = found(front, caller, &named).await?;
    let versions = layer.map(|layer| layer.versions).unwrap_or_default();
    let version = versions.iter().find(|one| one.number == version).ok_or_else(absent)?;
    Ok(whole(&named, version))
}

/// Permissions of a version are not kept: there is one account. Who looks finds none, as AWS says it of a version that is its account's alone.
pub async fn policy(front: &Front, method: &Method, called: &str, version: &str, caller: &Caller) -> Refused {
    match get(front, called, version, caller).await {
        Err(refused) => refused,
        Ok(_) if *method == Method::GET => {
            Refused::missing("No policy is associated with the given resource.")
        }
        Ok(_) => {
            let text = "permissions of layers are not kept: whoever may observe the layer's app uses it, and nobody else does (the access file says who)";
            Refused::unsupported(text)
        }
    }
}

/// `DeleteLayerVersion`, which is done when there is none. Functions that have it keep it.
pub async fn delete(front: &Front, called: &str, version: &str, caller: &Caller) -> Result<(), Refused> {
    let (named, version) = (Named::parse(called)?, number(version)?);
    front.guard.allow(caller, Permission::Manage, &named.app)?;
    let layer = found(front, caller, &named).await?;
    if !layer.is_some_and(|layer| layer.versions.iter().any(|one| one.number == version)) {
        return Ok(());
    }
    let without = |app: &mut App| {
        if let Some(layer) = app.layers.get_mut(&named.name) {
            layer.versions.retain(|one| one.number != version);
        }
        Ok(())
    };
    change(front, &named.app, without).await
}

/// Those versions that a list asks for.
fn matching<'v>(parts: &Parts, layer: &'v Layer) -> impl Iterator<Item = &'v LayerVersion> + use<'v> {
    let (runtime, architecture) = (query(parts, "CompatibleRuntime"), query(parts, "CompatibleArchitecture"));
    let fits =
        |wanted: &Option<String>, list: &[String]| wanted.as_ref().is_none_or(|one| list.contains(one));
    // The newest first.
    let versions = layer.versions.iter().rev();
    versions.filter(move |one| fits(&runtime, &one.runtimes) && fits(&architecture, &one.architectures))
}

/// `ListLayerVersions`.
pub async fn versions(front: &Front, parts: &Parts, called: &str, caller: &Caller) -> Result<Value, Refused> {
    let named = Named::parse(called)?;
    let layer = found(front, caller, &named).await?.unwrap_or_default();
    // By number, from the last one down.
    let all = matching(parts, &layer).map(|one| (format!("{:020}", u64::MAX - one.number), one)).collect();
    let (page, next) = page(parts, all, PAGE)?;
    let versions: Vec<_> = page.into_iter().map(|(_, one)| described(&named, one)).collect();
    Ok(with_marker(json!({ "LayerVersions": versions }), next))
}

/// `ListLayers`: each by its newest version that is asked for; and `GetLayerVersionByArn`, which comes the same way.
pub async fn all(front: &Front, parts: &Parts, caller: &Caller) -> Result<Value, Refused> {
    if query(parts, "find").as_deref() == Some("LayerVersion") {
        let arn = query(parts, "Arn").unwrap_or_default();
        let (named, Some(version)) = split(&arn)? else { return Err(invalid("arn", &arn)) };
        return get(front, &named.called(), &version.to_string(), caller).await;
    }
    let apps: Arc<apps::Apps> = control::apps(front).await?;
    let mut all = Vec::new();
    for (app, record) in apps.by_name.iter().filter(|(app, _)| front.guard.sees(caller, app)) {
        for (name, layer) in &record.layers {
            let named = Named { app: app.clone(), name: name.clone() };
            let Some(newest) = matching(parts, layer).next() else { continue };
            let newest = described(&named, newest);
            let shown = json!({"LayerName": named.called(), "LayerArn": named.arn(), "LatestMatchingVersion": newest});
            all.push((named.called(), shown));
        }
    }
    let (page, next) = page(parts, all, PAGE)?;
    let layers: Vec<_> = page.into_iter().map(|(_, layer)| layer).collect();
    Ok(with_marker(json!({ "Layers": layers }), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_in_every_way_of_aws() {
        let of =
            |text: &str| split(text).map(|(named, version)| (named.arn(), version)).map_err(|r| r.name().1);
        let arn = |name: &str| format!("arn:aws:lambda:us-east-1:012345678912:layer:{name}");
        assert_eq!(of("tools"), Ok((arn("tools"), None)));
        assert_eq!(of("demo.tools"), Ok((arn("demo.tools"), None)));
        assert_eq!(of(&arn("tools")), Ok((arn("tools"), None)));
        assert_eq!(of("arn:aws:lambda:eu-west-1:012345678912:layer:tools:7"), Ok((arn("tools"), Some(7))));
        for wrong in ["", "a b", "a/b", "tools:7", &arn("tools:x"), &arn("tools:1:2"), &"a".repeat(141)] {
            assert_eq!(of(wrong), Err("ValidationException"), "{wrong}");
        }
        let theirs = "arn:aws:lambda:us-east-1:580247275435:layer:LambdaInsightsExtension:14";
        assert_eq!(of(theirs), Err("AccessDeniedException"));
    }

    #[test]
    fn numbers_begin_at_one() {
        assert_eq!(number("12").ok(), Some(12));
        for wrong in ["0", "-1", "x", ""] {
            assert_eq!(number(wrong).map_err(|refused| refused.name().0), Err(400), "{wrong}");
        }
    }
}
