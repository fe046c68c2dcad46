//! What AWS Lambda's API makes of functions and changes of them: each a revision.
//!
//! Whoever changes a function has read it before: a change that another has overtaken is refused, and not made to something else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use stoker_core::function::{Format, FunctionName, Root};
use stoker_core::{FunctionSpec, ImageRef};
use stoker_registry::revisions::{Change, Expect, Revision, Wish};

use super::functions::{self, notes};
use super::{Refused, Target, arn, split};
use crate::auth::{Caller, Permission};
use crate::directory::DEFAULT_APP;
use crate::front::Door;
use crate::front::operators::images::{self, Unpinned};

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

/// A function as a request changes it.
struct Draft {
    spec: FunctionSpec,
    notes: BTreeMap<String, String>,
    /// Runtime and code of a zip.
    zip: Option<Bytes>,
    publish: bool,
    dry: bool,
}

impl Draft {
    fn new(spec: FunctionSpec) -> Self {
        Self { spec, notes: BTreeMap::new(), zip: None, publish: false, dry: false }
    }

    fn of(revision: &Revision) -> Self {
        let spec = FunctionSpec::clone(&revision.spec);
        Self { notes: revision.notes.clone(), ..Self::new(spec) }
    }

    fn note(&mut self, key: &str, text: &str) {
        match text {
            "" => drop(self.notes.remove(key)),
            text => drop(self.notes.insert(key.to_owned(), text.to_owned())),
        }
    }

    /// Takes in one field of a function's configuration; says whether it is one.
    fn configure(&mut self, key: &str, value: &Value) -> Result<bool, Refused> {
        let wrong = |text: String| Refused::parameter(text);
        match key {
            _ if value.is_null() => {}
            "Timeout" => {
                let seconds =
                    value.as_u64().ok_or_else(|| wrong("Timeout is a number of seconds".to_owned()))?;
                self.spec.timeout_ms = seconds.saturating_mul(1000);
            }
            "MemorySize" => {
                let size = value.as_u64().ok_or_else(|| wrong("MemorySize is a number of MB".to_owned()))?;
                self.spec.memory = size.saturating_mul(1 << 20);
            }
            "Handler" => self.spec.format_options.handler = text(key, value)?.to_owned(),
            "Environment" => {
                let variables =
                    value.get("Variables").filter(|all| !all.is_null()).cloned().unwrap_or_else(|| json!({}));
                self.spec.env = BTreeMap::deserialize(variables)
                    .map_err(|error| wrong(format!("Environment.Variables: {error}")))?;
            }
            "ImageConfig" => self.image_config(value)?,
            "Runtime" => self.note(notes::RUNTIME, text(key, value)?),
            "Description" => self.note(notes::DESCRIPTION, text(key, value)?),
            // Who the function is to AWS; nobody asks here.
            "Role" => self.note(notes::ROLE, text(key, value)?),
            "EphemeralStorage" if value.get("Size").is_some_and(|size| *size == 512) => {}
            // Traces are made of every call, and logs are text.
            "TracingConfig" => {}
            "LoggingConfig" if value.get("LogFormat").is_none_or(|format| *format == "Text") => {}
            _ if is_nothing(value) => {}
            "DeadLetterConfig" | "EphemeralStorage" | "FileSystemConfigs" | "KMSKeyArn" | "Layers"
            | "LoggingConfig" | "SnapStart" | "VpcConfig" => {
                return Err(wrong(format!("{key} is not kept here: leave it out")));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn image_config(&mut self, value: &Value) -> Result<(), Refused> {
        let list = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(list) => Vec::<String>::deserialize(list)
                .map_err(|error| Refused::parameter(format!("ImageConfig.{key}: {error}"))),
        };
        self.spec.command = [list("EntryPoint")?, list("Command")?].concat();
        self.spec.workdir = match value.get("WorkingDirectory") {
            None | Some(Value::Null) => PathBuf::new(),
            Some(at) => text("ImageConfig.WorkingDirectory", at)?.into(),
        };
        Ok(())
    }

    /// Takes in one field of a function's code; says whether it is one.
    fn coded(&mut self, key: &str, value: &Value) -> Result<bool, Refused> {
        match key {
            "ZipFile" if !value.is_null() => {
                let zip = BASE64
                    .decode(text(key, value)?)
                    .map_err(|error| Refused::parameter(format!("ZipFile is not base64: {error}")))?;
                self.zip = Some(zip.into());
            }
            "ImageUri" if !value.is_null() => {
                let image = ImageRef::parse(text(key, value)?)
                    .map_err(|wrong| Refused::parameter(format!("ImageUri: {wrong}")))?;
                self.spec.root = Root::Image(image);
            }
            "Architectures" => {
                let here = functions::architecture();
                let others = value.as_array().into_iter().flatten().any(|one| one != here);
                if others {
                    return Err(Refused::parameter(format!("Architectures: this fleet is {here}")));
                }
            }
            "Publish" => self.publish = value.as_bool().unwrap_or_default(),
            "DryRun" => self.dry = value.as_bool().unwrap_or_default(),
            "S3Bucket" | "S3Key" | "S3ObjectVersion" | "SourceKMSKeyArn" if !is_nothing(value) => {
                return Err(Refused::parameter(format!(
                    "{key}: there is no S3 here; send the zip as ZipFile"
                )));
            }
            "S3Bucket" | "S3Key" | "S3ObjectVersion" | "SourceKMSKeyArn" | "ZipFile" | "ImageUri" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes what runs the code of the runtime and the zip, where there is one or the runtime has changed.
    async fn settle(&mut self, door: &Door, code_at: Option<String>) -> Result<(), Refused> {
        let Some(runtime) = self.notes.get(notes::RUNTIME) else {
            return match &self.zip {
                Some(_) => Err(Refused::parameter("Runtime is missing: a zip needs one")),
                None => Ok(()),
            };
        };
        let Some(store) = &door.lambda.code else {
            let text = "this balancer keeps no code: set lambda.code to a repository of a registry, or to a directory that balancers and runners see; or use an image";
            return Err(Refused::parameter(text));
        };
        let runtime = door.lambda.runtimes.find(runtime).map_err(Refused::parameter)?;
        let handler = self.spec.format_options.handler.clone();
        if handler.is_empty() {
            return Err(Refused::parameter("Handler is missing: a zip needs one"));
        }
        let kept = match (self.zip.take(), code_at) {
            (Some(zip), _) => {
                let (kept, zip) = store.put(zip, &runtime).await?;
                self.note(notes::SHA256, &zip.sha256);
                self.note(notes::SIZE, &zip.bytes.to_string());
                kept
            }
            (None, Some(at)) => store.again(&at, &runtime).await?,
            (None, None) => return Err(Refused::parameter("ZipFile is missing")),
        };
        self.spec.command = runtime.command(&handler);
        (self.spec.root, self.spec.workdir) = (kept.root, kept.workdir);
        if let Some(credentials) = kept.credentials {
            self.spec.credentials = credentials;
        }
        for (key, value) in runtime.env {
            self.spec.env.entry(key).or_insert(value);
        }
        self.notes.insert(CODE_AT.to_owned(), kept.at);
        Ok(())
    }

    /// Makes it a revision; says which version that is, if it was to be one.
    async fn apply(mut self, door: &Door, expect: Expect) -> Result<Option<String>, Refused> {
        self.spec.check().map_err(|problems| {
            let all: Vec<_> =
                problems.iter().map(|problem| format!("{} {}", problem.field, problem.text)).collect();
            Refused::parameter(all.join("; "))
        })?;
        let specs = std::slice::from_mut(&mut self.spec);
        images::pin(&door.dispatch.fleet, specs).await.map_err(|unpinned| match unpinned {
            Unpinned::Failed(error) => error.into(),
            Unpinned::Wrong(wrong) => {
                let text: Vec<_> = wrong.into_iter().map(|(_, text)| text).collect();
                Refused::parameter(format!("Source image is not valid: {}", text.join("; ")))
            }
        })?;
        let name = self.spec.name.clone();
        let wish = Wish { spec: self.spec, notes: Some(self.notes), hold: false, expect };
        let outcome = door.registry.apply(vec![wish]).await?;
        let revision = outcome.first().map_or(1, |outcome| outcome.revision);
        if !self.publish {
            return Ok(None);
        }
        let publish = Change::Publish { number: revision, notes: BTreeMap::new() };
        door.registry.change_function(&name, publish).await?;
        Ok(Some(revision.to_string()))
    }
}

/// Where a revision's zip is kept.
const CODE_AT: &str = "stoker.code";

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
pub async fn create(door: &Door, body: &[u8], caller: &Caller) -> Result<Value, Refused> {
    let mut fields = fields("CreateFunction", body)?;
    let name = fields.remove("FunctionName").unwrap_or_default();
    let (asked, qualifier) = split(text("FunctionName", &name)?)?;
    let (app, function) = asked.split_once('.').unwrap_or((DEFAULT_APP, &asked));
    door.guard.allow(caller, Permission::Manage, app)?;
    let name = FunctionName::new(app, function).filter(|_| qualifier.is_none()).ok_or_else(|| {
        Refused::parameter(format!("FunctionName {asked:?} is none: write letters, digits, - and _"))
    })?;
    if door.directory.find(name.as_str()).is_some() {
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
    if image && (draft.notes.contains_key(notes::RUNTIME) || !draft.spec.format_options.handler.is_empty()) {
        return Err(Refused::parameter("Runtime and Handler belong to a zip, not to an image"));
    }
    draft.settle(door, None).await?;
    let version = draft.apply(door, Expect::Nothing).await?;
    if !tags.is_empty() {
        let tag = Change::Tag { set: tags, unset: Vec::new() };
        door.registry.change_function(&name, tag).await?;
    }
    sweep(door);
    shown(door, &name, asked, version)
}

/// A function as it is now, or the version of it that was made.
fn shown(door: &Door, name: &FunctionName, asked: String, version: Option<String>) -> Result<Value, Refused> {
    let known = match &version {
        None => door.directory.find(name.as_str()),
        Some(version) => door.directory.qualified(name, version),
    };
    let known =
        known.ok_or_else(|| Refused::missing(format!("Function not found: {}", arn(&asked, None))))?;
    functions::configuration(door, &Target { name: asked, qualifier: version, known })
}

/// `UpdateFunctionConfiguration`.
pub async fn configuration(door: &Door, target: Target, body: &[u8]) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("UpdateFunctionConfiguration", body)?;
    let revision = target.revision(door)?;
    unchanged(&revision, &fields)?;
    let mut draft = Draft::of(&revision);
    for (key, value) in &fields {
        if key != "RevisionId" && !draft.configure(key, value)? {
            return Err(Refused::parameter(format!("{key} is not kept here: leave it out")));
        }
    }
    let code_at = revision.notes.get(CODE_AT).cloned();
    let before = &revision.spec.format_options.handler;
    let moved = draft.notes.get(notes::RUNTIME) != revision.notes.get(notes::RUNTIME)
        || draft.spec.format_options.handler != *before;
    if moved && code_at.is_some() {
        draft.settle(door, code_at).await?;
    }
    draft.apply(door, Expect::Newest(revision.number)).await?;
    shown(door, &target.known.spec.name, target.name, None)
}

/// `UpdateFunctionCode`.
pub async fn code(door: &Door, target: Target, body: &[u8]) -> Result<Value, Refused> {
    target.unqualified()?;
    let fields = fields("UpdateFunctionCode", body)?;
    let revision = target.revision(door)?;
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
        draft.settle(door, None).await?;
    }
    if draft.dry {
        return functions::configuration(door, &target);
    }
    let version = draft.apply(door, Expect::Newest(revision.number)).await?;
    sweep(door);
    shown(door, &target.known.spec.name, target.name, version)
}

/// Has code removed that no revision names any more, beside what is asked now.
fn sweep(door: &Door) {
    let Some(store) = door.lambda.code.clone() else { return };
    let functions = door.directory.functions();
    let mut named = BTreeSet::new();
    for revision in functions.by_name.keys().flat_map(|name| functions.revisions(name)) {
        named.extend(revision.notes.get(CODE_AT).map(PathBuf::from));
        named.insert(revision.spec.workdir.clone());
        if let Root::Rootfs(root) = &revision.spec.root {
            named.insert(root.clone());
        }
    }
    door.dispatch.tasks.spawn(async move { store.sweep(named).await });
}
