//! What an extension asks for when it subscribes, checked as AWS checks it.

use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::Kind;

/// Which of the two APIs, which differ in their words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Telemetry,
    Logs,
}

impl Api {
    /// Versions of the events that subscribers may ask for. They differ in nothing that is sent here.
    fn schemas(self) -> &'static [&'static str] {
        match self {
            Api::Telemetry => &["2022-07-01", "2022-12-13", "2025-01-29"],
            Api::Logs => &["2020-08-15", "2021-03-18"],
        }
    }

    pub(super) fn subscribed(self) -> &'static str {
        match self {
            Api::Telemetry => "platform.telemetrySubscription",
            Api::Logs => "platform.logsSubscription",
        }
    }
}

/// Why a subscription is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It comes after the init.
    Closed(Api),
    Invalid(String),
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Http { port: u16, path: String },
    Tcp { port: u16 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub kinds: Vec<Kind>,
    pub items: usize,
    pub bytes: usize,
    pub timeout: Duration,
    pub destination: Destination,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: Option<String>,
    types: Vec<String>,
    #[serde(default)]
    buffering: Buffering,
    destination: Place,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Buffering {
    max_items: Option<u64>,
    max_bytes: Option<u64>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Place {
    protocol: String,
    #[serde(rename = "URI", alias = "uri")]
    uri: Option<String>,
    port: Option<u16>,
    method: Option<String>,
    encoding: Option<String>,
}

impl Subscription {
    pub fn read(api: Api, body: &[u8]) -> Result<Self, Refused> {
        let invalid = |text: String| Refused::Invalid(text);
        let body: Body = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
        if let Some(schema) = body.schema_version.filter(|schema| !api.schemas().contains(&schema.as_str())) {
            return Err(invalid(format!("schemaVersion: {schema:.64} is none of {:?}", api.schemas())));
        }
        let mut kinds = Vec::new();
        for text in &body.types {
            let kind = Kind::parse(text).ok_or_else(|| {
                invalid(format!("types: {text:.64} is none of platform, function, extension"))
            })?;
            if kinds.contains(&kind) {
                return Err(invalid(format!("types: {text} is there twice")));
            }
            kinds.push(kind);
        }
        if kinds.is_empty() {
            return Err(invalid("types: there must be one at least".to_owned()));
        }
        let within = |name: &str, said: Option<u64>, least: u64, most: u64, default: u64| match said {
            None => Ok(default),
            Some(value) if (least..=most).contains(&value) => Ok(value),
            Some(value) => {
                Err(invalid(format!("buffering.{name}: {value} is not within {least} and {most}")))
            }
        };
        let items = within("maxItems", body.buffering.max_items, 1000, 10_000, 10_000)?;
        let bytes = within("maxBytes", body.buffering.max_bytes, 262_144, 1_048_576, 262_144)?;
        let timeout = within("timeoutMs", body.buffering.timeout_ms, 25, 30_000, 1000)?;
        Ok(Self {
            kinds,
            items: usize::try_from(items).unwrap_or(usize::MAX),
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            timeout: Duration::from_millis(timeout),
            destination: body.destination.read()?,
        })
    }
}

impl Place {
    fn read(self) -> Result<Destination, Refused> {
        let invalid = |text: String| Err(Refused::Invalid(format!("destination.{text}")));
        match self.protocol.as_str() {
            "HTTP" => {}
            "TCP" => {
                return match self.port {
                    Some(port) if port > 0 => Ok(Destination::Tcp { port }),
                    _ => invalid("port: TCP needs one".to_owned()),
                };
            }
            other => return invalid(format!("protocol: {other:.64} is neither HTTP nor TCP")),
        }
        if self.method.as_deref().is_some_and(|method| method != "POST") {
            return invalid("method: only POST is supported".to_owned());
        }
        if self.encoding.as_deref().is_some_and(|encoding| encoding != "JSON") {
            return invalid("encoding: only JSON is supported".to_owned());
        }
        let Some(uri) = self.uri.as_deref().and_then(|uri| uri.parse::<Uri>().ok()) else {
            return invalid("URI: HTTP needs one".to_owned());
        };
        let local = matches!(uri.host(), Some("sandbox.localdomain" | "sandbox"));
        if uri.scheme_str() != Some("http") || !local {
            return invalid("URI: it must be of the form http://sandbox.localdomain:PORT/PATH".to_owned());
        }
        let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
        Ok(Destination::Http { port: uri.port_u16().unwrap_or(80), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = r#""destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:8080/x"}"#;

    #[test]
    fn what_is_left_out_has_defaults() {
        let read = |body: &str| Subscription::read(Api::Telemetry, body.as_bytes());
        let least = read(&format!(r#"{{"types":["platform"],{PLACE}}}"#)).unwrap();
        assert_eq!(least.destination, Destination::Http { port: 8080, path: "/x".into() });
        assert_eq!((least.items, least.bytes, least.timeout), (10_000, 262_144, Duration::from_secs(1)));
        let most = read(
            r#"{"schemaVersion":"2022-12-13","types":["platform","function","extension"],
                "buffering":{"maxItems":1000,"maxBytes":1048576,"timeoutMs":25},"destination":{"protocol":"TCP","port":9}}"#,
        )
        .unwrap();
        assert_eq!(most.destination, Destination::Tcp { port: 9 });
        assert_eq!((most.kinds.len(), most.items, most.bytes), (3, 1000, 1_048_576));
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        let cases = [
            ("", "EOF"),
            (r#"{"types":["platform"]}"#, "destination"),
            (&format!(r#"{{"types":[],{PLACE}}}"#), "types"),
            (&format!(r#"{{"types":["x"],{PLACE}}}"#), "types: x"),
            (&format!(r#"{{"types":["function","function"],{PLACE}}}"#), "twice"),
            (&format!(r#"{{"schemaVersion":"2021-03-18","types":["function"],{PLACE}}}"#), "schemaVersion"),
            (&format!(r#"{{"types":["function"],"buffering":{{"maxItems":999}},{PLACE}}}"#), "maxItems"),
            (&format!(r#"{{"types":["function"],"buffering":{{"maxBytes":1048577}},{PLACE}}}"#), "maxBytes"),
            (&format!(r#"{{"types":["function"],"buffering":{{"timeoutMs":24}},{PLACE}}}"#), "timeoutMs"),
            (r#"{"types":["function"],"destination":{"protocol":"UDP"}}"#, "protocol"),
            (r#"{"types":["function"],"destination":{"protocol":"TCP"}}"#, "port"),
            (r#"{"types":["function"],"destination":{"protocol":"HTTP"}}"#, "URI"),
            (
                r#"{"types":["function"],"destination":{"protocol":"HTTP","URI":"http://example.com:1/"}}"#,
                "URI",
            ),
            (r#"{"types":["function"],"destination":{"protocol":"HTTP","URI":"https://sandbox:1/"}}"#, "URI"),
            (
                r#"{"types":["function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:1/","method":"PUT"}}"#,
                "method",
            ),
        ];
        for (body, part) in cases {
            match Subscription::read(Api::Telemetry, body.as_bytes()) {
                Err(Refused::Invalid(text)) => assert!(text.contains(part), "{body}: {text}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }
}
