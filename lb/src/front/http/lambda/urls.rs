//! Function URLs, as they are managed: what AWS keeps of one is kept here with the newest revision of its function, for the function as a whole
//! or for one of its aliases.

use http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stoker_core::error::{Code, Error};
use stoker_core::function::{Cors, FunctionName};
use stoker_registry::revisions::Release;

use super::change::{self, fields, is_nothing};
use super::functions::{date, with_marker};
use super::{LATEST, Refused, Target, arn, page, url};
use crate::front::Front;

/// Configurations of one page where the caller does not say how many.
const PAGE: usize = 50;

/// The note that a URL is kept in; of an alias its name follows, after a dot.
const NOTE: &str = "aws.url";

/// Most bytes of what is said about pages of other sites.
const LARGEST_CORS: usize = 4096;

/// One URL's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Callers show who they are.
    pub iam: bool,
    /// Answers go on as they are made.
    pub streams: bool,
    /// As it was said.
    cors: Option<Value>,
    created_ms: u64,
    changed_ms: u64,
}

pub fn note(alias: Option<&str>) -> String {
    alias.map_or_else(|| NOTE.to_owned(), |alias| format!("{NOTE}.{alias}"))
}

impl Config {
    /// That of a function, or of one of its aliases, if it has one.
    pub fn find(release: &Release, alias: Option<&str>) -> Option<Self> {
        serde_json::from_str(release.newest.notes.get(&note(alias))?).ok()
    }

    /// What pages of other sites may do.
    pub fn cors(&self) -> Option<Cors> {
        pages(self.cors.as_ref()?).ok()
    }

    /// Takes in what a request says of it.
    fn set(&mut self, fields: &Map<String, Value>) -> Result<(), Refused> {
        for (key, value) in fields {
            match (key.as_str(), value.as_str()) {
                ("AuthType", Some(kind @ ("NONE" | "AWS_IAM"))) => self.iam = kind == "AWS_IAM",
                ("AuthType", _) => return Err(Refused::parameter("AuthType is one of NONE, AWS_IAM")),
                ("InvokeMode", Some(mode @ ("BUFFERED" | "RESPONSE_STREAM"))) => {
                    self.streams = mode == "RESPONSE_STREAM";
                }
                ("InvokeMode", _) if value.is_null() => {}
                ("InvokeMode", _) => {
                    return Err(Refused::parameter("InvokeMode is one of BUFFERED, RESPONSE_STREAM"));
                }
                ("Cors", _) if value.is_null() => {}
                ("Cors", _) if is_nothing(value) => self.cors = None,
                ("Cors", _) => {
                    pages(value)?;
                    self.cors = Some(value.clone());
                }
                _ if is_nothing(value) => {}
                (key, _) => {
                    return Err(Refused::parameter(format!("{key} is not kept here: leave it out")));
                }
            }
        }
        Ok(())
    }

    fn shown(&self, at: &At<'_>) -> Value {
        let mut shown = json!({
            "FunctionUrl": url::written(at.base, &at.target.known.spec.name, at.alias.as_deref()),
            "FunctionArn": arn(&at.target.name, at.alias.as_deref()),
            "AuthType": if self.iam { "AWS_IAM" } else { "NONE" },
            "InvokeMode": if self.streams { "RESPONSE_STREAM" } else { "BUFFERED" },
            "CreationTime": date(self.created_ms),
            "LastModifiedTime": date(self.changed_ms),
        });
        if let Some(cors) = &self.cors {
            shown["Cors"] = cors.clone();
        }
        shown
    }
}

/// What AWS's words about pages of other sites are here.
fn pages(said: &Value) -> Result<Cors, Refused> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Said {
        allow_origins: Option<Vec<String>>,
        allow_methods: Option<Vec<String>>,
        allow_headers: Option<Vec<String>>,
        expose_headers: Option<Vec<String>>,
        allow_credentials: Option<bool>,
        max_age: Option<u32>,
    }
    let wrong = |why: String| Refused::parameter(format!("Cors: {why}"));
    if said.to_string().len() > LARGEST_CORS {
        return Err(wrong(format!("it has more than {LARGEST_CORS} bytes")));
    }
    let said = Said::deserialize(said).map_err(|error| wrong(error.to_string()))?;
    let names = |names: Option<Vec<String>>| {
        names.unwrap_or_default().into_iter().map(|name| name.to_ascii_lowercase()).collect()
    };
    let mut methods = said.allow_methods.unwrap_or_default();
    if methods.iter().any(|method| method == "*") {
        // None named: any.
        methods.clear();
    }
    let cors = Cors {
        origins: names(said.allow_origins),
        methods,
        headers: names(said.allow_headers),
        expose: names(said.expose_headers),
        credentials: said.allow_credentials.unwrap_or_default(),
        max_age: said.max_age.unwrap_or_default(),
    };
    match cors.problems().into_iter().next() {
        None => Ok(cors),
        Some(problem) => Err(wrong(problem)),
    }
}

/// Whose URL a request is about.
struct At<'a> {
    target: Target,
    alias: Option<String>,
    /// How the request came here.
    base: &'a str,
}

impl<'a> At<'a> {
    fn new(target: Target, base: &'a str) -> Result<Self, Refused> {
        let alias = match target.qualifier.as_deref() {
            None => None,
            Some(LATEST) => {
                return Err(Refused::parameter(
                    "a function URL is a function's or an alias's, not $LATEST's",
                ));
            }
            Some(version) if version.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(Refused::parameter(
                    "a function URL is a function's or an alias's, not a version's",
                ));
            }
            Some(alias) => Some(alias.to_owned()),
        };
        Ok(Self { target, alias, base })
    }

    fn name(&self) -> &FunctionName {
        &self.target.known.spec.name
    }

    fn found(&self, front: &Front) -> Result<Config, Refused> {
        let functions = front.directory.functions();
        let release = functions.releases.get(self.name());
        let found = release.and_then(|release| Config::find(release, self.alias.as_deref()));
        found.ok_or_else(|| {
            Refused::from(Error::new(Code::NotFound, "The resource you requested does not exist."))
        })
    }

    /// Keeps it, or takes it away.
    async fn keep(&self, front: &Front, config: Option<&Config>) -> Result<(), Refused> {
        let text = config.map(serde_json::to_string).transpose();
        let text = text.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        change::keep_notes(front, self.name(), vec![(note(self.alias.as_deref()), text)]).await
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `CreateFunctionUrlConfig`.
pub async fn create(front: &Front, target: Target, base: &str, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("CreateFunctionUrlConfig", body)?;
    let at = At::new(target, base)?;
    if at.found(front).is_ok() {
        let whole = arn(&at.target.name, at.alias.as_deref());
        return Err(Refused::conflict(format!(
            "Failed to create function url config for [functionArn = {whole}]. Error message: FunctionUrlConfig exists for this Lambda function"
        )));
    }
    if !fields.contains_key("AuthType") {
        return Err(Refused::parameter("AuthType is missing: NONE or AWS_IAM"));
    }
    let now = now();
    let mut config = Config { iam: true, streams: false, cors: None, created_ms: now, changed_ms: now };
    config.set(&fields)?;
    at.keep(front, Some(&config)).await?;
    Ok(config.shown(&at))
}

/// `UpdateFunctionUrlConfig`: what is not said stays.
pub async fn update(front: &Front, target: Target, base: &str, body: &[u8]) -> Result<Value, Refused> {
    let fields = fields("UpdateFunctionUrlConfig", body)?;
    let at = At::new(target, base)?;
    let mut config = at.found(front)?;
    config.set(&fields)?;
    config.changed_ms = now();
    at.keep(front, Some(&config)).await?;
    Ok(config.shown(&at))
}

/// `GetFunctionUrlConfig`.
pub fn get(front: &Front, target: Target, base: &str) -> Result<Value, Refused> {
    let at = At::new(target, base)?;
    Ok(at.found(front)?.shown(&at))
}

/// `DeleteFunctionUrlConfig`.
pub async fn delete(front: &Front, target: Target) -> Result<(), Refused> {
    let at = At::new(target, "")?;
    at.found(front)?;
    at.keep(front, None).await
}

/// `ListFunctionUrlConfigs`: the function's own, and those of its aliases.
pub fn list(front: &Front, parts: &Parts, target: &Target, base: &str) -> Result<Value, Refused> {
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    // First of all names, and one that a marker can have.
    let whole = |release: &Release| Some((LATEST.to_owned(), Config::find(release, None)?));
    let of_alias = |release: &Release, alias: &String| {
        Some((alias.clone(), Config::find(release, Some(alias.as_str()))?))
    };
    let all = release.into_iter().flat_map(|release| {
        let aliases = release.aliases.keys().filter_map(|alias| of_alias(release, alias));
        whole(release).into_iter().chain(aliases)
    });
    let (page, next) = page(parts, all.collect(), PAGE)?;
    let listed = page.into_iter().map(|(alias, config)| {
        let target = Target { name: target.name.clone(), qualifier: None, known: target.known.clone() };
        config.shown(&At { target, alias: Some(alias).filter(|alias| alias != LATEST), base })
    });
    Ok(with_marker(json!({"FunctionUrlConfigs": listed.collect::<Vec<_>>()}), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_pages_is_checked_and_kept() {
        let said = json!({
            "AllowOrigins": ["https://Shop.example"], "AllowMethods": ["*"], "AllowHeaders": ["X-Mine"],
            "ExposeHeaders": ["Date"], "AllowCredentials": true, "MaxAge": 60,
        });
        let cors = pages(&said).expect("good");
        assert_eq!((&*cors.origins, cors.methods.len()), (&["https://shop.example".to_owned()][..], 0));
        assert_eq!((&*cors.headers, &*cors.expose), (&["x-mine".to_owned()][..], &["date".to_owned()][..]));
        assert!(cors.credentials && cors.max_age == 60);
        for wrong in [
            json!({"AllowOrigins": ["*"], "AllowCredentials": true}),
            json!({"AllowOrigins": ["shop.example"]}),
            json!({"AllowMethods": ["GET"]}),
            json!({"AllowOrigins": ["*"], "MaxAge": 86_401}),
            json!({"AllowOrigins": ["*"], "Other": 1}),
            json!({"AllowOrigins": ["*"], "AllowHeaders": ["x".repeat(LARGEST_CORS)]}),
            json!("*"),
        ] {
            assert!(pages(&wrong).is_err(), "{wrong}");
        }
    }
}
