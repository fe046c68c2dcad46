//! What AWS Lambda's API makes of functions and changes of them: each a revision.
//!
//! Whoever changes a function has read it before: a change that another has overtaken is refused, and not made to something else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize as _;
use serde_json::{Map, Value};
use stoker_core::FunctionSpec;
use stoker_core::function::{Format, FunctionName, Root};
use stoker_registry::revisions::{Change, Expect, Proposal, Revision};

use super::draft::{CODE_AT, Draft};
use super::functions::{self, notes};
use super::layers::{self, Used};
use super::{Refused, Target, arn, split};
use crate::auth::{Caller, Permission};
use crate::directory::DEFAULT_APP;
use crate::front::Front;

/// What a function has on AWS where its maker says nothing.
const TIMEOUT_MS: u64 = 3000;

/// The same for the time to become ready.
const INIT_TIMEOUT_MS: u64 = 10_000;

/// A request's body as an object.
pub fn fields(operation: &str, body: &[u8]) -> Result<Map<String, Value>, Refused> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body)
        .map_err(|error| Refused::parameter(format!("the request is not what {operation} takes: {error}")))
}

pub fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, Refused> {
    value.as_str().ok_or_else(|| Refused::parameter(format!("{key} is a text")))
}

/// Whether a value asks for nothing: what is not kept here may be said as long as it says nothing.
pub fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::String(text) => text.is_empty() || text == "None",
        Value::Array(list) => list.iter().all(is_nothing),
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Number(_) => false,
    }
}

/// Code cannot be taken.
pub fn no_code() -> Refused {
    let text = "this balancer keeps no code: set lambda.code to a repository of a registry, or to a directory that balancers and runners see; or use an image";
    Refused::parameter(text)
}

/// Keeps notes with the newest revision of a function, or takes them away: that makes another, which runs the same.
pub async fn keep_notes(
    front: &Front,
    name: &FunctionName,
    changes: Vec<(String, Option<String>)>,
) -> Result<(), Refused> {
    let release = front.directory.functions().releases.get(name).cloned();
    let release = release
        .ok_or_else(|| Refused::missing(format!("Function not found: {}", arn(name.function(), None))))?;
    let newest = &release.newest;
    let mut notes = newest.notes.clone();
    for (note, text) in changes {
        match text {
            Some(text) => _ = notes.insert(note, text),
            None => _ = notes.remove(&note),
        }
    }
    let (spec, expect) = (FunctionSpec::clone(&newest.spec), Expect::Newest(newest.number));
    front.registry.apply(vec![Proposal { spec, notes: Some(notes), hold: false, expect }]).await?;
    Ok(())
}

/// A version that somebody says it has seen.
pub fn unchanged(revision: &Revision, body: &Map<String, Value>) -> Result<(), Refused> {
    match body.get("RevisionId").filter(|id| !is_nothing(id)) {
        Some(id) if *id != functions::revision_id(&revision.spec.digest(), revision.number) => {
            Err(Refused::changed())
        }
        _ => Ok(()),
    }
}

/// `CreateFunction`.
pub async fn create(front: &Front, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    let mut fields = fields("CreateFunction", body)?;
    let name = fields.remove("FunctionName").unwrap_or_default();
    let (asked, qualifier) = split(text("FunctionName", &name)?)?;
    let (app, function) = asked.split_once('.').unwrap_or((DEFAULT_APP, &asked));
    front.guard.allow(caller, Permission::Manage, app)?;
    if let Some(qualifier) = qualifier {
        let text = format!(
            "FunctionName names the version or alias {qualifier:?}: a new function has none, leave it out"
        );
        return Err(Refused::parameter(text));
    }
    let name = FunctionName::new(app, function).ok_or_else(|| {
        Refused::parameter(format!("FunctionName {asked:?} is none: write letters, digits, - and _"))
    })?;
    if front.directory.find(name.as_str()).is_some() {
        return Err(Refused::conflict(format!("Function already exist: {function}")));
    }
    let mut draft = Draft::new(FunctionSpec::new(name.clone(), Vec::new(), PathBuf::new()));
    draft.spec.format = Format::Lambda;
    draft.spec.timeout_ms = TIMEOUT_MS;
    draft.spec.init_timeout_ms = INIT_TIMEOUT_MS;
    let (mut package, mut tags) = (String::new(), BTreeMap::new());
    for (key, value) in &fields {
        match key.as_str() {
            "Code" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    if !draft.coded(key, value)? {
                        return Err(Refused::parameter(format!("Code.{key} is not kept here: leave it out")));
                    }
                }
            }
            "Layers" => draft.layers(&layers::wanted(front, caller, value).await?)?,
            "PackageType" if !value.is_null() => text(key, value)?.clone_into(&mut package),
            "Tags" if !value.is_null() => {
                tags = BTreeMap::deserialize(value)
                    .map_err(|error| Refused::parameter(format!("Tags: {error}")))?;
            }
            key => {
                if !draft.configure(key, value)? && !draft.coded(key, value)? && !is_nothing(value) {
                    return Err(Refused::parameter(format!("{key} is not kept here: leave it out")));
                }
            }
        }
    }
    let image = draft.spec.root.is_image();
    match (package.as_str(), image, draft.zip.is_some()) {
        ("" | "Zip", false, true) | ("Image", true, false) => {}
        ("Image", ..) => return Err(Refused::parameter("Code.ImageUri is missing: the package is an image")),
        (_, true, _) => return Err(Refused::parameter("Code.ImageUri belongs to PackageType Image")),
        (_, false, false) => return Err(Refused::parameter("Code.ZipFile or Code.ImageUri is missing")),
        (other, ..) => {
            return Err(Refused::parameter(format!("PackageType {other:?} is none of Zip, Image")));
        }
    }
    let zips = [notes::RUNTIME, notes::LAYERS].iter().any(|note| draft.notes.contains_key(*note));
    if image && (zips || !draft.spec.format_options.handler.is_empty()) {
        return Err(Refused::parameter("Runtime, Handler and Layers belong to a zip, not to an image"));
    }
    draft.settle(front, None).await?;
    let version = draft.apply(front, Expect::Nothing).await?;
    if !tags.is_empty() {
        let tag = Change::Tag { set: tags, unset: Vec::new() };
        front.registry.change_function(&name, tag).await?;
    }
    sweep(front);
    shown(front, &name, asked, version)
}

/// A function as it is now, or the version of it that was made.
fn shown(
    front: &Front,
    name: &FunctionName,
    asked: String,
    version: Option<String>,
) -> Result<Value, Refused> {
    let known = match &version {
        None => front.directory.find(name.as_str()),
        Some(version) => front.directory.qualified(name, version),
    };
    let known =
        known.ok_or_else(|| Refused::missing(format!("Function not found: {}", arn(&asked, None))))?;
    functions::configuration(front, &Target { name: asked, qualifier: version, known })
}

/// `UpdateFunctionConfiguration`.
pub async fn configuration(
    front: &Front,
    target: Target,
    body: &[u8],
    caller: &Caller,
) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("UpdateFunctionConfiguration", body)?;
    let revision = target.revision(front)?;
    unchanged(&revision, &fields)?;
    let mut draft = Draft::of(&revision);
    for (key, value) in &fields {
        match key.as_str() {
            "RevisionId" => {}
            "Layers" if value.is_null() => {}
            "Layers" => draft.layers(&layers::wanted(front, caller, value).await?)?,
            key if draft.configure(key, value)? => {}
            key => return Err(Refused::parameter(format!("{key} is not kept here: leave it out"))),
        }
    }
    let code_at = revision.notes.get(CODE_AT).cloned();
    match code_at {
        Some(at) if draft.runs_otherwise(&revision) => draft.settle(front, Some(at)).await?,
        None if draft.notes.contains_key(notes::LAYERS) => {
            let text = "Layers belong to a function that came as a zip: this one has its files otherwise";
            return Err(Refused::parameter(text));
        }
        _ => {}
    }
    draft.apply(front, Expect::Newest(revision.number)).await?;
    shown(front, &target.known.spec.name, target.name, None)
}

/// `UpdateFunctionCode`.
pub async fn code(front: &Front, target: Target, body: &[u8]) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("UpdateFunctionCode", body)?;
    let revision = target.revision(front)?;
    unchanged(&revision, &fields)?;
    let mut draft = Draft::of(&revision);
    for (key, value) in &fields {
        if key != "RevisionId" && !draft.coded(key, value)? && !is_nothing(value) {
            return Err(Refused::parameter(format!("{key} is not kept here: leave it out")));
        }
    }
    let image = functions::is_image(&revision);
    match (image, draft.zip.is_some()) {
        (true, false) => {}
        // The code of a zip may be kept as an image, which is not what was sent.
        (false, true) if draft.spec.root == revision.spec.root => {}
        (true, true) => {
            return Err(Refused::parameter("ImageUri is missing: the function's package is an image"));
        }
        (false, _) => return Err(Refused::parameter("ZipFile is missing: the function's package is a zip")),
    }
    if !image {
        draft.settle(front, None).await?;
    }
    if draft.dry {
        return functions::configuration(front, &target);
    }
    let version = draft.apply(front, Expect::Newest(revision.number)).await?;
    sweep(front);
    shown(front, &target.known.spec.name, target.name, version)
}

/// Has code removed that no revision names any more, beside what is asked now.
fn sweep(front: &Front) {
    let Some(store) = front.lambda.code.clone() else { return };
    let functions = front.directory.functions();
    let apps = front.registry.apps().borrow().clone();
    if !apps.known {
        // Whose layers there are is not known.
        return;
    }
    let kept = apps.by_name.values().flat_map(|app| app.layers.values());
    let kept = kept.flat_map(|layer| &layer.versions).map(|version| PathBuf::from(&version.at));
    let mut named: BTreeSet<PathBuf> = kept.collect();
    for revision in functions.by_name.keys().flat_map(|name| functions.revisions(name)) {
        named.extend(revision.notes.get(CODE_AT).map(PathBuf::from));
        let layers = Used::read(revision.notes.get(notes::LAYERS).map(String::as_str));
        named.extend(layers.into_iter().map(|layer| PathBuf::from(layer.at)));
        named.insert(revision.spec.format_options.opt.clone());
        named.insert(revision.spec.workdir.clone());
        if let Root::Rootfs(root) = &revision.spec.root {
            named.insert(root.clone());
        }
    }
    front.dispatch.tasks.spawn(async move { store.sweep(named).await });
}
