//! `/v2/fns`.

use std::path::PathBuf;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value};
use stoker_core::function::{Format, FunctionName, Network, Root};
use stoker_core::ids::{MAX_NAME, is_name};
use stoker_core::moment::now_ms;
use stoker_core::{FunctionSpec, ImageRef};
use stoker_registry::apps::App;
use stoker_runtime::auth::Permission;

use super::apps::missing as no_app;
use super::objects::{Facts, Function};
use super::{Answer, Asked, Refused, annotations, conflict, number, text, wrong};
use crate::front::operators::images::{self, Unpinned};

/// Megabytes and seconds.
const LARGEST_MEMORY: i64 = 8192;
const LONGEST: i64 = 300;
const LONGEST_IDLE: i64 = 3600;

/// What a function has that says nothing of it.
const MEMORY: u64 = 128 << 20;
const TIMEOUT_MS: u64 = 30_000;
const IDLE_MS: u64 = 30_000;

pub fn missing() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "Fn not found")
}

impl Asked<'_> {
    /// The function of an id.
    pub fn function(&self, id: &str) -> Option<Function> {
        let (_, release) = self.functions.releases.iter().find(|(name, _)| name.id() == id)?;
        Some(Function::of(release))
    }

    /// What the record of an app has for its functions.
    pub fn record(&self, app: &str) -> App {
        self.apps.by_name.get(app).map(|app| App::clone(app)).unwrap_or_default()
    }

    pub fn list_fns(&self) -> Result<Answer, Refused> {
        let id = self.query.get("app_id").filter(|id| !id.is_empty());
        let app = self.app_of(id.ok_or_else(|| wrong("Missing AppID on Fn"))?);
        // As Fn has it, an app that is not there has no functions.
        let Some(app) = app else { return self.page(Vec::<(String, Function)>::new(), |_| Value::Null) };
        self.front.guard.allow(self.caller, Permission::Observe, &app)?;
        let all = self.functions.releases.iter().filter(|(name, _)| name.app() == app);
        let all = all.map(|(name, release)| (name.function().to_owned(), Function::of(release))).collect();
        self.page(all, |function| self.fn_object(function))
    }

    pub fn get_fn(&self, id: &str) -> Result<Answer, Refused> {
        let function = self.function(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Observe, function.name().app())?;
        Ok(Answer::ok(self.fn_object(&function)))
    }

    pub async fn create_fn(&self, object: Map<String, Value>) -> Result<Answer, Refused> {
        if text(&object, "id")?.is_some() {
            return Err(wrong("ID cannot be provided for Fn creation"));
        }
        let app = text(&object, "app_id")?.ok_or_else(|| wrong("Missing AppID on Fn"))?;
        let name = text(&object, "name")?.ok_or_else(|| wrong("Missing Fn name"))?;
        if name.len() > MAX_NAME {
            return Err(wrong(format!("Fn name must be {MAX_NAME} characters or less")));
        }
        if !is_name(name) {
            return Err(wrong("name must be a valid string"));
        }
        if text(&object, "image")?.is_none() {
            return Err(wrong("Missing image on Fn"));
        }
        let app = self.app_of(app).ok_or_else(no_app)?;
        self.front.guard.allow(self.caller, Permission::Manage, &app)?;
        let name = FunctionName::new(&app, name).ok_or_else(|| wrong("name must be a valid string"))?;
        let on = name.to_string();
        if self.functions.by_name.contains_key(&name) {
            return Err(conflict("Fn with specified name already exists"));
        }
        let mut spec = FunctionSpec::new(name, Vec::new(), PathBuf::new());
        // What Fn's functions have by themselves: its one format of today, the network, and its times.
        (spec.format, spec.network, spec.memory) = (Format::HttpStream, Network::Egress, MEMORY);
        (spec.timeout_ms, spec.idle_timeout_ms) = (TIMEOUT_MS, IDLE_MS);
        let now = now_ms();
        let facts = Facts {
            config: annotations::config(Default::default(), &object)?,
            annotations: annotations::new(&object)?,
            created_ms: now,
            updated_ms: now,
            ..Facts::default()
        };
        let mut function = Function { spec: Arc::new(spec), facts, revision: 0, ours: true };
        settle(&mut function, &object)?;
        let written = self.write_fn(function).await;
        self.note("create_fn", &on, &written);
        written
    }

    pub async fn update_fn(&self, id: &str, object: Map<String, Value>) -> Result<Answer, Refused> {
        if text(&object, "id")?.is_some_and(|told| told != id) {
            return Err(wrong("Fn ID in path does not match that in body"));
        }
        let mut function = self.function(id).ok_or_else(missing)?;
        let on = function.name().to_string();
        self.front.guard.allow(self.caller, Permission::Manage, function.name().app())?;
        let other =
            |key: &str, is: &str| Ok::<_, Refused>(text(&object, key)?.is_some_and(|told| told != is));
        if other("name", function.name().function())? || other("app_id", &function.name().app_id())? {
            return Err(wrong("Fn names and IDs cannot be modified"));
        }
        let before = function.clone();
        function.facts.config = annotations::config(function.facts.config, &object)?;
        function.facts.annotations = annotations::merged(function.facts.annotations, &object)?;
        settle(&mut function, &object)?;
        if function.facts != before.facts || function.spec != before.spec {
            function.facts.updated_ms = now_ms().max(before.facts.updated_ms + 1);
        }
        let written = self.write_fn(function).await;
        self.note("update_fn", &on, &written);
        written
    }

    pub async fn delete_fn(&self, id: &str) -> Result<Answer, Refused> {
        let function = self.function(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Manage, function.name().app())?;
        let deleted = self.front.registry.delete_function(function.name()).await.map_err(Refused::from);
        self.note("delete_fn", function.name().as_str(), &deleted);
        if deleted? { Ok(Answer::gone()) } else { Err(missing()) }
    }

    /// Writes a function and shows it.
    pub async fn write_fn(&self, mut function: Function) -> Result<Answer, Refused> {
        // What an app of Fn's gives its functions is its own: of another door's function all variables are its own already.
        let app = if function.ours { self.record(function.name().app()) } else { App::default() };
        let mut proposals = [function.proposal(&app)?];
        if let Root::Image(image) = &proposals[0].spec.root
            && !image.is_pinned()
        {
            let mut specs = [proposals[0].spec.clone()];
            images::pin(&self.front.dispatch.fleet, &mut specs).await.map_err(|unpinned| match unpinned {
                Unpinned::Unanswered(error) | Unpinned::Unasked(error) => Refused::from(error),
                Unpinned::Wrong(images) => {
                    wrong(images.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; "))
                }
            })?;
            let [spec] = specs;
            function.spec = Arc::new(spec.clone());
            proposals[0].spec = spec;
        }
        self.front.registry.apply(proposals.into()).await?;
        Ok(Answer::ok(self.fn_object(&function)))
    }
}

/// What a request says of the rest.
fn settle(function: &mut Function, object: &Map<String, Value>) -> Result<(), Refused> {
    let spec = Arc::make_mut(&mut function.spec);
    if let Some(image) = text(object, "image")? {
        spec.root = Root::Image(ImageRef::parse(image).map_err(|why| wrong(format!("image: {why}")))?);
    }
    if let Some(format) = text(object, "format")? {
        spec.format = Format::parse(format).ok_or_else(|| wrong("Invalid format on Fn"))?;
    }
    if let Some(timeout) = number(object, "timeout")? {
        let fits = (1..=LONGEST).contains(&timeout);
        let wrong = || wrong(format!("timeout value is out of range, must be between 0 and {LONGEST}"));
        spec.timeout_ms = if fits { timeout.unsigned_abs() * 1000 } else { return Err(wrong()) };
    }
    if let Some(idle) = number(object, "idle_timeout")? {
        let fits = (1..=LONGEST_IDLE).contains(&idle);
        let wrong =
            || wrong(format!("idle_timeout value is out of range, must be between 0 and {LONGEST_IDLE}"));
        spec.idle_timeout_ms = if fits { idle.unsigned_abs() * 1000 } else { return Err(wrong()) };
    }
    if let Some(memory) = number(object, "memory")? {
        let fits = (1..=LARGEST_MEMORY).contains(&memory);
        let wrong =
            || wrong(format!("memory value is out of range. It should be between 0 and {LARGEST_MEMORY}"));
        spec.memory = if fits { memory.unsigned_abs() << 20 } else { return Err(wrong()) };
    }
    if let Some(shape) = text(object, "shape")? {
        shape.clone_into(&mut function.facts.shape);
    }
    Ok(())
}
