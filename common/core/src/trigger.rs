//! Triggers: which HTTP requests lead to a function, and which other sites' pages may send them.
//!
//! A path is made of segments. One that stands in braces, `{id}`, takes any one segment; a last one that is `*` or `{rest...}` takes what
//! is left, be it empty. Of the triggers that fit a request the most special takes it: by host, then segment by segment (a literal before
//! a parameter before what takes the rest), then by method, then by how many headers and how many query parameters it asks for. Two of
//! which none is more special are a [conflict](Trigger::conflicts), and refused where they are applied.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::is_header_name;

/// A way in besides the function's name. What is left empty, every request fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// The path after `/t/{app}`, with its leading slash.
    pub http: String,
    /// Methods, in upper case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Hosts without their port, in lower case; `*.example.com` is every name below that one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Headers that must have this value, by names in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Query parameters that must have this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// Which pages may call it; where there is none, the function's own counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
}

/// One part of a path between slashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    Literal(&'a str),
    /// Any one, by a name.
    Parameter(&'a str),
    /// All that is left; its name, if it has one.
    Rest(Option<&'a str>),
}

/// Limits of a trigger.
const PATH: usize = 2048;
const LISTED: usize = 32;
const PARAMETER: usize = 64;
const VALUE: usize = 1024;

impl Trigger {
    /// Every request of a path.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { http: path.into(), ..Self::default() }
    }

    /// It asks for nothing but its path, and says nothing else.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::new(self.http.as_str())
    }

    /// Its path in parts. A path that is none leads nowhere, and is taken literally.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment<'_>> {
        segments(&self.http).unwrap_or_else(|_| self.http.split('/').skip(1).map(Segment::Literal).collect())
    }

    /// Its path without the names of its parameters: the same for two that fit the same paths.
    #[must_use]
    pub fn shape(&self) -> String {
        let nameless = |segment: Segment<'_>| match segment {
            Segment::Literal(text) => format!("/{text}"),
            Segment::Parameter(_) => "/{}".to_owned(),
            Segment::Rest(_) => "/{...}".to_owned(),
        };
        self.segments().into_iter().map(nameless).collect()
    }

    /// A request may fit both, and neither is more special.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let meet = |one: &[String], two: &[String]| match (one.is_empty(), two.is_empty()) {
            (true, true) => true,
            (false, false) => one.iter().any(|name| two.contains(name)),
            _ => false,
        };
        let agree = |one: &BTreeMap<String, String>, two: &BTreeMap<String, String>| {
            one.len() == two.len()
                && one.iter().all(|(name, value)| two.get(name).is_none_or(|other| other == value))
        };
        meet(&self.hosts, &other.hosts)
            && meet(&self.methods, &other.methods)
            && agree(&self.headers, &other.headers)
            && agree(&self.query, &other.query)
            && self.shape() == other.shape()
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let path = &self.http;
        if !path.starts_with('/') || path.len() > PATH || path.contains(['?', '#', '\0', ' ']) {
            problems.push(format!("{path:?} is not a path: it starts with a slash and has no ?, # or space"));
        } else if let Err(why) = segments(path) {
            problems.push(format!("{path:?}: {why}"));
        }
        let lists = [("methods", self.methods.len()), ("hosts", self.hosts.len())];
        let maps = [("headers", self.headers.len()), ("query", self.query.len())];
        for (key, count) in lists.into_iter().chain(maps) {
            if count > LISTED {
                problems.push(format!("{key} of {path} has more than {LISTED} entries"));
            }
        }
        for method in &self.methods {
            problems.extend(wrong_method(method).map(|why| format!("methods of {path}: {why}")));
        }
        for host in &self.hosts {
            if !is_host(host.strip_prefix("*.").unwrap_or(host)) {
                problems.push(format!(
                    "hosts of {path}: {host:?} is not a host in lower case without a port, like shop.example or *.example"
                ));
            }
        }
        for (name, value) in &self.headers {
            if !is_token(name) || name.bytes().any(|b| b.is_ascii_uppercase()) {
                problems.push(format!("headers of {path}: {name:?} is not a header's name in lower case"));
            }
            if value.len() > VALUE || value.bytes().any(|b| b < b' ' || b == 0x7f) {
                problems.push(format!("headers of {path}: {name} cannot have this value"));
            }
        }
        for (name, value) in &self.query {
            if name.is_empty() || name.len() + value.len() > VALUE {
                problems.push(format!("query of {path}: {name:?} is empty, or too long with its value"));
            }
        }
        let cors = self.cors.iter().flat_map(Cors::problems);
        problems.extend(cors.map(|problem| format!("cors of {path}: {problem}")));
        problems
    }

    /// All that is wrong with those of one function.
    #[must_use]
    pub fn all_problems(triggers: &[Self]) -> Vec<String> {
        let mut problems: Vec<_> = triggers.iter().flat_map(Self::problems).collect();
        for (at, trigger) in triggers.iter().enumerate() {
            // One of them is told; who mends it sees the next.
            if let Some(other) = triggers[..at].iter().find(|other| other.conflicts(trigger)) {
                problems.push(format!(
                    "{trigger} takes the same requests as {other}, and neither is more special"
                ));
                break;
            }
        }
        problems
    }
}

impl std::fmt::Display for Trigger {
    /// What it takes, on one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.methods.is_empty() {
            write!(f, "{} ", self.methods.join(","))?;
        }
        if !self.hosts.is_empty() {
            write!(f, "{}", self.hosts.join(","))?;
        }
        f.write_str(&self.http)?;
        for (name, value) in &self.query {
            write!(f, " {name}={value}")?;
        }
        for (name, value) in &self.headers {
            write!(f, " {name}: {value}")?;
        }
        Ok(())
    }
}

/// The parts of a path that starts with a slash.
fn segments(path: &str) -> Result<Vec<Segment<'_>>, String> {
    let mut parts: Vec<_> = path.split('/').skip(1).collect();
    let last = parts.pop().unwrap_or_default();
    let mut segments = Vec::with_capacity(parts.len() + 1);
    for part in parts {
        if part == "*" || part.ends_with("...}") {
            return Err(format!("`{part}` takes the rest of a path, so it stands at its end"));
        }
        segments.push(segment(part)?);
    }
    segments.push(match last {
        "*" => Segment::Rest(None),
        last => match last.strip_suffix("...}").and_then(|name| name.strip_prefix('{')) {
            Some(name) => Segment::Rest(Some(parameter(name)?)),
            None => segment(last)?,
        },
    });
    let names: Vec<_> = segments
        .iter()
        .filter_map(|segment| match segment {
            Segment::Parameter(name) | Segment::Rest(Some(name)) => Some(*name),
            _ => None,
        })
        .collect();
    // They become headers, whose names are the same in upper and lower case.
    let twice = names
        .iter()
        .enumerate()
        .find(|(at, name)| names[..*at].iter().any(|other| other.eq_ignore_ascii_case(name)));
    match twice {
        Some((_, name)) => Err(format!("the parameter `{name}` stands there twice")),
        None => Ok(segments),
    }
}

fn segment(part: &str) -> Result<Segment<'_>, String> {
    if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        return Ok(Segment::Parameter(parameter(name)?));
    }
    match part.contains(['{', '}']) {
        true => Err(format!("`{part}`: a parameter is all between two slashes, like /users/{{id}}")),
        false => Ok(Segment::Literal(part)),
    }
}

fn parameter(name: &str) -> Result<&str, String> {
    let good = (1..=PARAMETER).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match good {
        true => Ok(name),
        false => Err(format!(
            "`{name}` is no name of a parameter: 1 to {PARAMETER} of a-z, A-Z, 0-9 and _, beginning with a letter"
        )),
    }
}

fn is_token(text: &str) -> bool {
    text.len() <= PARAMETER && is_header_name(text)
}

fn wrong_method(method: &str) -> Option<String> {
    let good = is_token(method) && !method.bytes().any(|b| b.is_ascii_lowercase());
    (!good).then(|| format!("{method:?} is not a method in upper case, like GET"))
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    text.len() <= 253
        && match v6 {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => text.split('.').all(label),
        }
}

/// Which pages of other sites may call a function from a browser, as the Fetch standard has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// `https://shop.example`, `https://*.shop.example`, or `*` alone: every site.
    pub origins: Vec<String>,
    /// Methods besides those that need no permission; none: those of the trigger, or any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Request headers besides those that need no permission, in lower case; `*` is all but `authorization`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Headers of answers that the page may read, in lower case; `*` is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Requests may have cookies and other credentials.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub credentials: bool,
    /// Seconds for which a browser may remember a permission; 0: as it likes.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_age: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Cors {
    /// Browsers remember no longer.
    pub const MAX_AGE: u32 = 86_400;

    /// Every site may.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }

    /// Whether pages of this origin may.
    #[must_use]
    pub fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|known| match known.split_once("*.") {
            _ if known == "*" => true,
            Some((scheme, domain)) => {
                let below = origin.strip_prefix(scheme).and_then(|host| host.strip_suffix(domain));
                below.is_some_and(|below| {
                    below.strip_suffix('.').is_some_and(|names| {
                        !names.is_empty()
                            && names.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
                    })
                })
            }
            None => known == origin,
        })
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.origins.is_empty() {
            problems.push("origins is missing: name the sites whose pages may call, or \"*\"".to_owned());
        }
        for origin in self.origins.iter().filter(|origin| *origin != "*" && *origin != "null") {
            let host = origin.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
            let good = host.is_some_and(|(_, host)| {
                let host = host.strip_prefix("*.").unwrap_or(host);
                let (name, port) = match host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
                    Some((name, port)) => (name, Some(port)),
                    None => (host, None),
                };
                is_host(name) && port.is_none_or(|port| port.parse::<u16>().is_ok())
            });
            if !good {
                problems.push(format!(
                    "origins: {origin:?} is no origin in lower case, like https://shop.example or https://*.shop.example:8443"
                ));
            }
        }
        let lists = [&self.origins, &self.methods, &self.headers, &self.expose];
        if lists.iter().any(|list| list.len() > LISTED) {
            problems.push(format!("one of its lists has more than {LISTED} entries"));
        }
        problems.extend(self.methods.iter().filter_map(|method| wrong_method(method)));
        for name in self.headers.iter().chain(&self.expose) {
            if !is_token(name) || name.bytes().any(|b| b.is_ascii_uppercase()) {
                problems.push(format!("{name:?} is not a header's name in lower case"));
            }
        }
        if self.credentials && self.is_for_all() {
            problems.push("credentials with the origin \"*\" would let every site act for whoever visits it: name the origins".to_owned());
        }
        if self.credentials && self.expose.iter().any(|name| name == "*") {
            problems.push(
                "expose: browsers take \"*\" for a name where there are credentials: name the headers"
                    .to_owned(),
            );
        }
        if self.max_age > Self::MAX_AGE {
            problems.push("max_age is more than 24h".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_literals_parameters_and_a_rest() {
        use Segment::{Literal, Parameter, Rest};
        for (path, is) in [
            ("/", vec![Literal("")]),
            ("/a/b", vec![Literal("a"), Literal("b")]),
            ("/users/{id}", vec![Literal("users"), Parameter("id")]),
            ("/{a}/x/{b_2}", vec![Parameter("a"), Literal("x"), Parameter("b_2")]),
            ("/static/*", vec![Literal("static"), Rest(None)]),
            ("/files/{path...}", vec![Literal("files"), Rest(Some("path"))]),
            ("/a*b/*c", vec![Literal("a*b"), Literal("*c")]),
        ] {
            let trigger = Trigger::new(path);
            assert_eq!((trigger.segments(), trigger.problems()), (is, Vec::new()), "{path}");
        }
        for (path, says) in [
            ("users", "not a path"),
            ("/a?b", "not a path"),
            ("/*/a", "at its end"),
            ("/{all...}/a", "at its end"),
            ("/x{id}", "all between two slashes"),
            ("/{id", "all between two slashes"),
            ("/{}", "no name of a parameter"),
            ("/{1a}", "no name of a parameter"),
            ("/{a-b}", "no name of a parameter"),
            ("/{...}", "no name of a parameter"),
            ("/{id}/{ID}", "twice"),
        ] {
            let problems = Trigger::new(path).problems();
            assert!(problems.len() == 1 && problems[0].contains(says), "{path}: {problems:?}");
        }
    }

    #[test]
    fn those_of_which_none_is_more_special_conflict() {
        let get = |path: &str, methods: &[&str]| Trigger {
            methods: methods.iter().map(|m| (*m).to_owned()).collect(),
            ..Trigger::new(path)
        };
        let at = |host: &str, path: &str| Trigger { hosts: vec![host.into()], ..Trigger::new(path) };
        let with = |name: &str, value: &str| Trigger {
            headers: [(name.to_owned(), value.to_owned())].into(),
            ..Trigger::new("/x")
        };
        for (one, two, conflict) in [
            (Trigger::new("/x"), Trigger::new("/x"), true),
            (Trigger::new("/{a}"), Trigger::new("/{b}"), true),
            (Trigger::new("/a/*"), Trigger::new("/a/{rest...}"), true),
            (Trigger::new("/{a}"), Trigger::new("/x"), false),
            (Trigger::new("/{a}"), Trigger::new("/*"), false),
            (Trigger::new("/{a}/b"), Trigger::new("/a/{b}"), false),
            (get("/x", &["GET", "PUT"]), get("/x", &["PUT"]), true),
            (get("/x", &["GET"]), get("/x", &["PUT"]), false),
            (get("/x", &["GET"]), get("/x", &[]), false),
            (at("a.example", "/x"), at("a.example", "/x"), true),
            (at("a.example", "/x"), at("*.example", "/x"), false),
            (at("a.example", "/x"), Trigger::new("/x"), false),
            (with("v", "1"), with("v", "2"), false),
            (with("v", "1"), with("w", "1"), true),
            (with("v", "1"), Trigger::new("/x"), false),
        ] {
            assert_eq!((one.conflicts(&two), two.conflicts(&one)), (conflict, conflict), "{one} and {two}");
        }
        let all = [Trigger::new("/a"), Trigger::new("/{b}"), Trigger::new("/{c}")];
        let problems = Trigger::all_problems(&all);
        assert_eq!(problems, ["/{c} takes the same requests as /{b}, and neither is more special"]);
    }

    #[test]
    fn origins_are_compared_as_a_whole() {
        let cors = |origins: &[&str]| Cors {
            origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            ..Cors::default()
        };
        for (known, origin, may) in [
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example", "https://shop.example.evil", false),
            ("https://shop.example", "https://shop.example:8443", false),
            ("https://*.shop.example", "https://a.b.shop.example", true),
            ("https://*.shop.example", "https://shop.example", false),
            ("https://*.shop.example", "https://evilshop.example", false),
            ("https://*.shop.example", "https://evil/.shop.example", false),
            ("https://*.shop.example", "http://a.shop.example", false),
            ("*", "https://any.example", true),
            ("null", "null", true),
            ("https://shop.example", "null", false),
        ] {
            assert_eq!(cors(&[known]).allows(origin), may, "{origin} by {known}");
            assert_eq!(cors(&[known]).problems(), Vec::<String>::new());
        }
        for wrong in [
            "shop.example",
            "https://Shop.example",
            "https://shop.example/",
            "ftp://a",
            "https://*",
            "https://a:b",
        ] {
            assert_eq!(cors(&[wrong]).problems().len(), 1, "{wrong}");
        }
        assert_eq!(cors(&[]).problems().len(), 1);
        let open = Cors { credentials: true, expose: vec!["*".into()], ..cors(&["*"]) };
        assert_eq!(open.problems().len(), 2);
    }
}
