//! `/v2/triggers`.

use http::StatusCode;
use serde_json::{Map, Value};
use stoker_core::function::Trigger;
use stoker_core::ids::{MAX_NAME, is_name};
use stoker_core::moment::now_ms;
use stoker_runtime::auth::Permission;

use super::apps::missing as no_app;
use super::fns::missing as no_fn;
use super::objects::{Function, Named, RULES, take_rules, trigger_id};
use super::{Answer, Asked, Refused, annotations, conflict, text, wrong};

fn missing() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "Trigger not found")
}

impl Asked<'_> {
    /// The trigger of an id, as where it stands among those of its function.
    fn trigger(&self, id: &str) -> Option<(Function, usize)> {
        let mut functions = self.functions.releases.values().map(|release| Function::of(release));
        functions.find_map(|function| {
            let at = function.facts.triggers.iter().position(|trigger| trigger.id == id)?;
            Some((function, at))
        })
    }

    pub fn list_triggers(&self) -> Result<Answer, Refused> {
        let id = |key: &str| self.query.get(key).filter(|id| !id.is_empty());
        let app = id("app_id").ok_or_else(|| wrong("Missing App ID on Trigger"))?;
        let app = self.app_of(app).unwrap_or_default();
        if !app.is_empty() {
            self.front.guard.allow(self.caller, Permission::Observe, &app)?;
        }
        let functions = self.functions.releases.iter().filter(|(name, _)| name.app() == app);
        let functions = functions.filter(|(name, _)| id("fn_id").is_none_or(|id| name.id() == *id));
        let all = functions.flat_map(|(name, release)| {
            let triggers = Function::of(release).facts.triggers;
            triggers.into_iter().map(move |trigger| (trigger.name.clone(), (name, trigger)))
        });
        self.page(all.collect(), |(function, trigger)| self.trigger_object(function, trigger))
    }

    pub fn get_trigger(&self, id: &str) -> Result<Answer, Refused> {
        let (function, at) = self.trigger(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Observe, function.name().app())?;
        Ok(Answer::ok(self.trigger_object(function.name(), &function.facts.triggers[at])))
    }

    pub async fn create_trigger(&self, object: Map<String, Value>) -> Result<Answer, Refused> {
        let id = |key: &str| Ok::<_, Refused>(text(&object, key)?.unwrap_or_default());
        let app = self.app_of(id("app_id")?).ok_or_else(no_app)?;
        let mut function = self.function(id("fn_id")?).ok_or_else(no_fn)?;
        self.front.guard.allow(self.caller, Permission::Manage, &app)?;
        if function.name().app() != app {
            return Err(wrong("Invalid Fn ID - not owned by specified app"));
        }
        let on = function.name().to_string();
        if text(&object, "id")?.is_some() {
            return Err(wrong("ID cannot be provided for Trigger creation"));
        }
        let name = named(text(&object, "name")?.ok_or_else(|| wrong("Missing name on Trigger"))?)?;
        if text(&object, "type")? != Some("http") {
            return Err(wrong("Trigger Type Not Supported"));
        }
        let source = sourced(text(&object, "source")?.ok_or_else(|| wrong("Missing Trigger Source"))?)?;
        let mut annotations = annotations::new(&object)?;
        let rules = take_rules(&mut annotations)?.unwrap_or_default();
        let now = now_ms();
        let mut trigger = Named {
            id: String::new(),
            name: name.to_owned(),
            source: source.to_owned(),
            annotations,
            created_ms: now,
            updated_ms: now,
            rules,
        };
        apart(function.facts.triggers.iter(), &trigger)?;
        trigger.id = trigger_id(&app, &trigger.trigger());
        // What it is shown with.
        trigger.rules = trigger.trigger();
        function.facts.triggers.push(trigger);
        let at = function.facts.triggers.len() - 1;
        let written = self.write_trigger(function, at).await;
        self.note("create_trigger", &on, &written);
        written
    }

    pub async fn update_trigger(&self, id: &str, object: Map<String, Value>) -> Result<Answer, Refused> {
        if text(&object, "id")?.is_some_and(|told| told != id) {
            return Err(wrong("ID in path does not match ID in body"));
        }
        let (mut function, at) = self.trigger(id).ok_or_else(missing)?;
        let on = function.name().to_string();
        self.front.guard.allow(self.caller, Permission::Manage, function.name().app())?;
        let other =
            |key: &str, is: &str| Ok::<_, Refused>(text(&object, key)?.is_some_and(|told| told != is));
        if other("app_id", &function.name().app_id())? || other("fn_id", &function.name().id())? {
            return Err(wrong("a trigger stays with its function: delete it, and create another"));
        }
        if other("type", "http")? {
            return Err(wrong("Trigger Type Not Supported"));
        }
        let before = function.facts.triggers[at].clone();
        let mut trigger = before.clone();
        if let Some(name) = text(&object, "name")? {
            named(name)?.clone_into(&mut trigger.name);
        }
        if let Some(source) = text(&object, "source")? {
            sourced(source)?.clone_into(&mut trigger.source);
        }
        trigger.annotations = annotations::merged(trigger.annotations, &object)?;
        match take_rules(&mut trigger.annotations)? {
            Some(rules) => trigger.rules = rules,
            None if annotations::deletes(&object, RULES) => trigger.rules = Trigger::default(),
            None => {}
        }
        trigger.rules = trigger.trigger();
        let others = function.facts.triggers.iter().enumerate().filter(|(other, _)| *other != at);
        apart(others.map(|(_, other)| other), &trigger)?;
        if trigger != before {
            trigger.updated_ms = now_ms().max(before.updated_ms + 1);
        }
        function.facts.triggers[at] = trigger;
        let written = self.write_trigger(function, at).await;
        self.note("update_trigger", &on, &written);
        written
    }

    pub async fn delete_trigger(&self, id: &str) -> Result<Answer, Refused> {
        let (mut function, at) = self.trigger(id).ok_or_else(missing)?;
        let on = function.name().to_string();
        self.front.guard.allow(self.caller, Permission::Manage, function.name().app())?;
        function.facts.triggers.remove(at);
        let written = self.write_fn(function).await;
        self.note("delete_trigger", &on, &written);
        written.map(|_| Answer::gone())
    }

    async fn write_trigger(&self, function: Function, at: usize) -> Result<Answer, Refused> {
        let object = self.trigger_object(function.name(), &function.facts.triggers[at]);
        self.write_fn(function).await?;
        Ok(Answer::ok(object))
    }
}

/// Those of one function differ in both; that no other function has the path is for the registry to say.
fn apart<'a>(mut others: impl Iterator<Item = &'a Named> + Clone, trigger: &Named) -> Result<(), Refused> {
    if others.clone().any(|other| other.name == trigger.name) {
        return Err(conflict("Trigger already exists"));
    }
    let this = trigger.trigger();
    if others.any(|other| other.trigger().conflicts(&this)) {
        return Err(conflict("Trigger with the same type and source exists on this app"));
    }
    Ok(())
}

fn named(name: &str) -> Result<&str, Refused> {
    if name.len() > MAX_NAME {
        return Err(wrong(format!("Trigger name must be {MAX_NAME} characters or less")));
    }
    if is_name(name) { Ok(name) } else { Err(wrong("Invalid name for Trigger")) }
}

fn sourced(source: &str) -> Result<&str, Refused> {
    if source.starts_with('/') { Ok(source) } else { Err(wrong("Missing Trigger Source Prefix '/'")) }
}
