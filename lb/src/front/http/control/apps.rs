//! `/v2/apps`.

use http::StatusCode;
use serde_json::{Map, Value};
use stoker_core::function::FunctionName;
use stoker_core::ids::{MAX_NAME, is_name};
use stoker_core::moment::now_ms;
use stoker_registry::apps::App;
use stoker_runtime::auth::Permission;

use super::objects::Function;
use super::{Answer, Asked, Refused, annotations, conflict, text, wrong};

const SHAPES: [&str; 3] = ["GENERIC_X86", "GENERIC_ARM", "GENERIC_X86_ARM"];
const SYSLOG: [&str; 5] = ["tcp", "udp", "unix", "unixgram", "tcp+tls"];

pub fn missing() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "App not found")
}

impl Asked<'_> {
    pub fn list_apps(&self) -> Result<Answer, Refused> {
        let all = self.app_names().into_iter().filter(|name| self.front.guard.sees(self.caller, name));
        let all = all.map(|name| (name.clone(), name)).collect();
        self.page(all, |name| self.app_object(name))
    }

    pub fn get_app(&self, id: &str) -> Result<Answer, Refused> {
        let name = self.app_of(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Observe, &name)?;
        Ok(Answer::ok(self.app_object(&name)))
    }

    pub async fn create_app(mut self, object: Map<String, Value>) -> Result<Answer, Refused> {
        if text(&object, "id")?.is_some() {
            return Err(wrong("App ID cannot be supplied on create"));
        }
        let name = text(&object, "name")?.ok_or_else(|| wrong("Missing Name"))?.to_owned();
        if name.len() > MAX_NAME {
            return Err(wrong(format!("App name must be {MAX_NAME} characters or less")));
        }
        if !is_name(&name) {
            return Err(wrong("Invalid app name"));
        }
        self.front.guard.allow(self.caller, Permission::Manage, &name)?;
        let annotations = annotations::new(&object)?;
        let config = annotations::config(Default::default(), &object)?;
        let now = now_ms();
        let app = App { config, annotations, created_ms: now, updated_ms: now, ..App::default() };
        let app = settled(app, &object)?;
        if self.app_names().contains(&name) {
            return Err(conflict("App already exists"));
        }
        self.write_app("create_app", &name, app).await
    }

    pub async fn update_app(mut self, id: &str, object: Map<String, Value>) -> Result<Answer, Refused> {
        if text(&object, "id")?.is_some_and(|told| told != id) {
            return Err(wrong("App ID in path does not match ID in body"));
        }
        let name = self.app_of(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Manage, &name)?;
        if text(&object, "name")?.is_some_and(|told| told != name) {
            return Err(conflict("Could not update - name is immutable"));
        }
        let now = now_ms();
        let app = self.apps.by_name.get(&name).map_or_else(
            || App { created_ms: now, updated_ms: now, ..App::default() },
            |app| App::clone(app),
        );
        let config = annotations::config(app.config.clone(), &object)?;
        let annotations = annotations::merged(app.annotations.clone(), &object)?;
        let before = app.clone();
        let mut app = settled(App { config, annotations, ..app }, &object)?;
        if app != before {
            app.updated_ms = now.max(before.updated_ms + 1);
        }
        self.write_app("update_app", &name, app).await
    }

    /// Writes the record, and then the functions that have its variables: a failure in between is mended by the same request again.
    async fn write_app(&mut self, what: &str, name: &str, app: App) -> Result<Answer, Refused> {
        let ours = self.functions.releases.iter().filter(|(function, _)| function.app() == name);
        let ours = ours.map(|(_, release)| Function::of(release)).filter(|function| function.ours);
        let proposals = ours.map(|function| function.proposal(&app)).collect::<Result<Vec<_>, _>>()?;
        let written = async {
            self.front.registry.put_app(name, app).await?;
            self.front.registry.apply(proposals).await?;
            Ok::<_, Refused>(())
        };
        let written = written.await;
        self.note(what, name, &written);
        written?;
        self.apps = self.front.registry.apps().borrow().clone();
        Ok(Answer::ok(self.app_object(name)))
    }

    pub async fn delete_app(&self, id: &str) -> Result<Answer, Refused> {
        let name = self.app_of(id).ok_or_else(missing)?;
        self.front.guard.allow(self.caller, Permission::Manage, &name)?;
        let functions: Vec<FunctionName> =
            self.functions.by_name.keys().filter(|function| function.app() == name).cloned().collect();
        let deleted = async {
            for function in &functions {
                self.front.registry.delete_function(function).await?;
            }
            self.front.registry.delete_app(&name).await?;
            Ok::<_, Refused>(())
        };
        let deleted = deleted.await;
        self.note("delete_app", &name, &deleted);
        deleted.map(|()| Answer::gone())
    }

    /// Notes a change.
    pub fn note<T>(&self, what: &str, on: &str, outcome: &Result<T, Refused>) {
        let outcome = outcome.as_ref().map(|_| ()).map_err(|refused| &refused.error);
        self.front.guard.note(self.caller, what, &[on.to_owned()], outcome);
    }
}

/// What a request says of the rest.
fn settled(mut app: App, object: &Map<String, Value>) -> Result<App, Refused> {
    if let Some(shape) = text(object, "shape")? {
        if !SHAPES.contains(&shape) {
            return Err(wrong("Invalid app shape"));
        }
        shape.clone_into(&mut app.shape);
    }
    match object.get("syslog_url") {
        None | Some(Value::Null) => {}
        Some(_) => {
            app.syslog_url = text(object, "syslog_url")?.map(str::to_owned);
            if let Some(url) = &app.syslog_url {
                syslog(url)?;
            }
        }
    }
    if app.shape.is_empty() {
        SHAPES[0].clone_into(&mut app.shape);
    }
    Ok(app)
}

fn syslog(url: &str) -> Result<(), Refused> {
    let Some((scheme, _)) = url.split_once("://").filter(|(_, rest)| !rest.is_empty()) else {
        return Err(wrong(format!("invalid syslog url: {url:?}")));
    };
    if !SYSLOG.contains(&scheme) {
        let known = SYSLOG.join(", ");
        return Err(wrong(format!(
            "invalid syslog url: {url:?} invalid scheme, only [{known}] are supported"
        )));
    }
    Ok(())
}
