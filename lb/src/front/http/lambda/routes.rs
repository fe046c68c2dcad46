//! Which method and path is which action of AWS's API, for everything that is no call: a table for each kind of thing that a path is about. AWS gives each kind
//! a date of its own, with which its paths begin.

use http::Method;
use http::request::Parts;
use serde_json::Value;

use super::super::control::base;
use super::{Refused, Target, absent, change, decoded, events, functions, layers, limits, not_here, policy};
use super::{query, urls, versions};
use crate::auth::Caller;
use crate::front::Front;

const FUNCTIONS: &str = "2015-03-31";
const ACCOUNT: &str = "2016-08-19";
const TAGS: &str = "2017-03-31";
const RESERVED: &str = "2017-10-31";
const LAYERS: &str = "2018-10-31";
const EVENTS: &str = "2019-09-25";
const PROVISIONED: &str = "2019-09-30";
const URLS: &str = "2021-10-31";

/// The status of an answer, and its body if it has one.
pub type Answered = (u16, Option<Value>);

/// There is nothing to say.
const DONE: Answered = (204, None);

fn ok(body: Value) -> Answered {
    (200, Some(body))
}

fn created(body: Value) -> Answered {
    (201, Some(body))
}

/// A request that is no call.
pub struct Request<'a> {
    pub front: &'a Front,
    pub parts: &'a Parts,
    pub body: &'a [u8],
    pub caller: &'a Caller,
    /// It came by TLS.
    pub secure: bool,
}

/// Where a table does not have the path: none of its actions.
type Routed = Result<Option<Answered>, Refused>;

impl Request<'_> {
    /// Does what the method and the path, cut into `segments`, ask for.
    ///
    /// # Errors
    /// What the action refuses, or that there is none.
    pub async fn answer(&self, segments: &[&str]) -> Result<Answered, Refused> {
        let routed = match segments {
            [FUNCTIONS, "functions", name, "versions" | "aliases", ..] => {
                self.versions(name, &segments[3..]).await
            }
            [FUNCTIONS, "functions", name, "policy", rest @ ..] => self.policy(name, rest).await,
            [FUNCTIONS, "functions", rest @ ..] => self.functions(rest).await,
            [RESERVED, "functions", name, "concurrency"] => self.reserved(name).await,
            // Who looks at what is reserved does so by the date of what is provisioned.
            [PROVISIONED, "functions", name, "concurrency"] => self.look_at_reserved(name),
            [PROVISIONED, "functions", name, "provisioned-concurrency"] => self.provisioned(name).await,
            [EVENTS, "functions", name, "event-invoke-config", rest @ ..] => self.events(name, rest).await,
            [URLS, "functions", name, kind] => self.urls(name, kind).await,
            [LAYERS, "layers", rest @ ..] => self.layers(rest).await,
            [TAGS, "tags", name] => self.tags(name).await,
            [ACCOUNT, "account-settings"] if self.method() == "GET" => {
                Ok(Some(ok(limits::account(self.front))))
            }
            _ => Ok(None),
        };
        match routed? {
            Some(answered) => Ok(answered),
            None => self.absent(segments),
        }
    }

    fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    /// The function that a segment names.
    fn target(&self, name: &str) -> Result<Target, Refused> {
        Target::of(self.front, self.parts, name)
    }

    async fn functions(&self, rest: &[&str]) -> Routed {
        let Self { front, parts, body, caller, .. } = *self;
        Ok(Some(match (self.method(), rest) {
            ("GET", []) => ok(functions::list(front, parts)?),
            ("POST", []) => created(change::create(front, body, caller).await?),
            ("GET", [name]) => ok(functions::description(front, &self.target(name)?)?),
            ("DELETE", [name]) => {
                versions::delete(front, self.target(name)?).await?;
                DONE
            }
            ("GET", [name, "configuration"]) => ok(functions::configuration(front, &self.target(name)?)?),
            ("PUT", [name, "configuration"]) => {
                ok(change::configuration(front, self.target(name)?, body, caller).await?)
            }
            ("PUT", [name, "code"]) => ok(change::code(front, self.target(name)?, body).await?),
            _ => return Ok(None),
        }))
    }

    /// What was published, and its aliases.
    async fn versions(&self, name: &str, rest: &[&str]) -> Routed {
        let Self { front, parts, body, .. } = *self;
        Ok(Some(match (self.method(), rest) {
            ("POST", ["versions"]) => created(versions::publish(front, self.target(name)?, body).await?),
            ("GET", ["versions"]) => ok(versions::list(front, parts, &self.target(name)?)?),
            ("POST", ["aliases"]) => created(versions::create_alias(front, self.target(name)?, body).await?),
            ("GET", ["aliases"]) => ok(versions::aliases(front, parts, &self.target(name)?)?),
            ("GET", ["aliases", alias]) => ok(versions::alias(front, &self.target(name)?, &decoded(alias)?)?),
            ("PUT", ["aliases", alias]) => {
                ok(versions::update_alias(front, self.target(name)?, &decoded(alias)?, body).await?)
            }
            ("DELETE", ["aliases", alias]) => {
                versions::delete_alias(front, self.target(name)?, &decoded(alias)?).await?;
                DONE
            }
            _ => return Ok(None),
        }))
    }

    /// Who else may call a function.
    async fn policy(&self, name: &str, rest: &[&str]) -> Routed {
        let Self { front, parts, body, .. } = *self;
        Ok(Some(match (self.method(), rest) {
            ("GET", []) => ok(policy::get(front, &self.target(name)?)?),
            ("POST", []) => created(policy::add(front, self.target(name)?, body).await?),
            ("DELETE", [sid]) => {
                let seen = query(parts, "RevisionId");
                policy::remove(front, self.target(name)?, &decoded(sid)?, seen.as_deref()).await?;
                DONE
            }
            _ => return Ok(None),
        }))
    }

    /// Concurrency that is reserved for a function, which is also all that it may have.
    async fn reserved(&self, name: &str) -> Routed {
        Ok(Some(match self.method() {
            "PUT" => ok(limits::reserve(self.front, self.target(name)?, self.body).await?),
            "DELETE" => {
                limits::unreserve(self.front, self.target(name)?).await?;
                DONE
            }
            _ => return Ok(None),
        }))
    }

    fn look_at_reserved(&self, name: &str) -> Routed {
        Ok(match self.method() {
            "GET" => Some(ok(limits::reserved(self.front, &self.target(name)?))),
            _ => None,
        })
    }

    /// Containers that stand ready.
    async fn provisioned(&self, name: &str) -> Routed {
        let Self { front, parts, body, .. } = *self;
        Ok(Some(match self.method() {
            "PUT" => (202, Some(limits::provision(front, self.target(name)?, body).await?)),
            "GET" => ok(limits::provisioned(front, parts, self.target(name)?)?),
            "DELETE" => {
                limits::unprovision(front, self.target(name)?).await?;
                DONE
            }
            _ => return Ok(None),
        }))
    }

    /// What becomes of asynchronous calls.
    async fn events(&self, name: &str, rest: &[&str]) -> Routed {
        let Self { front, body, caller, .. } = *self;
        Ok(Some(match (self.method(), rest) {
            ("PUT", []) => ok(events::put(front, self.target(name)?, body, caller).await?),
            ("POST", []) => ok(events::update(front, self.target(name)?, body, caller).await?),
            ("GET", []) => ok(events::get(front, &self.target(name)?)?),
            ("GET", ["list"]) => ok(events::list(front, &self.target(name)?)),
            ("DELETE", []) => {
                events::delete(front, self.target(name)?).await?;
                DONE
            }
            _ => return Ok(None),
        }))
    }

    async fn urls(&self, name: &str, kind: &str) -> Routed {
        let Self { front, parts, body, secure, .. } = *self;
        let base = || base(parts, secure);
        Ok(Some(match (self.method(), kind) {
            ("POST", "url") => created(urls::create(front, self.target(name)?, &base(), body).await?),
            ("PUT", "url") => ok(urls::update(front, self.target(name)?, &base(), body).await?),
            ("GET", "url") => ok(urls::get(front, self.target(name)?, &base())?),
            ("DELETE", "url") => {
                urls::delete(front, self.target(name)?).await?;
                DONE
            }
            ("GET", "urls") => ok(urls::list(front, parts, &self.target(name)?, &base())?),
            _ => return Ok(None),
        }))
    }

    async fn layers(&self, rest: &[&str]) -> Routed {
        let Self { front, parts, body, caller, .. } = *self;
        Ok(Some(match (self.method(), rest) {
            ("GET", []) => ok(layers::all(front, parts, caller).await?),
            ("GET", [name, "versions"]) => ok(layers::versions(front, parts, &decoded(name)?, caller).await?),
            ("POST", [name, "versions"]) => {
                created(layers::publish(front, &decoded(name)?, body, caller).await?)
            }
            ("GET", [name, "versions", version]) => {
                ok(layers::get(front, &decoded(name)?, version, caller).await?)
            }
            ("DELETE", [name, "versions", version]) => {
                layers::delete(front, &decoded(name)?, version, caller).await?;
                DONE
            }
            (_, [name, "versions", version, "policy", ..]) => {
                return Err(layers::policy(front, &parts.method, &decoded(name)?, version, caller).await);
            }
            _ => return Ok(None),
        }))
    }

    async fn tags(&self, name: &str) -> Routed {
        let Self { front, parts, body, .. } = *self;
        match self.method() {
            "GET" => return Ok(Some(ok(limits::tags(front, &self.target(name)?)))),
            "POST" => limits::tag(front, self.target(name)?, body).await?,
            "DELETE" => limits::untag(front, parts, self.target(name)?).await?,
            _ => return Ok(None),
        }
        Ok(Some(DONE))
    }

    /// What AWS has and this does not, which some may be told all the same.
    fn absent(&self, segments: &[&str]) -> Result<Answered, Refused> {
        let Self { front, parts, body, .. } = *self;
        let looked = match parts.method {
            Method::GET => absent::look(front, parts, segments)?,
            _ => None,
        };
        let known = match looked {
            None => absent::wish(front, parts, segments, body)?,
            some => some,
        };
        known.map(ok).ok_or_else(|| not_here(parts))
    }
}
