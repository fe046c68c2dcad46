//! In which format a function is spoken to, and what it may choose about that.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::not_absolute;
use super::is_zero;
use crate::call::{RequestHead, media_type};
use crate::listed;
use crate::machine::Listed as _;

/// How calls and answers are written for the function. Contracts: `docs/formats.md`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// STDIN and STDOUT once, one call per process.
    #[default]
    Default,
    /// HTTP/1.1 messages on STDIN and STDOUT.
    Http,
    /// JSON objects on STDIN and STDOUT.
    Json,
    /// A head in JSON, a blank line and the body on STDIN and STDOUT.
    JsonHttp,
    /// CloudEvents in JSON on STDIN and STDOUT.
    #[serde(rename = "cloudevent")]
    CloudEvent,
    /// HTTP/1.1 on a Unix socket, many calls.
    HttpStream,
    /// A startup message, then requests and replies in JSON on STDIN and STDOUT.
    Mless,
    /// AWS Lambda's Runtime API.
    Lambda,
}

listed!(Format: Default, Http, Json, JsonHttp, CloudEvent, HttpStream, Mless, Lambda);

impl Format {
    /// The name in files and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Default => "default",
            Format::Http => "http",
            Format::Json => "json",
            Format::JsonHttp => "json-http",
            Format::CloudEvent => "cloudevent",
            Format::HttpStream => "http-stream",
            Format::Mless => "mless",
            Format::Lambda => "lambda",
        }
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.as_str() == text)
    }

    /// A container takes one call after the other, where the function does not say otherwise: see [`is_hot`](super::FunctionSpec::is_hot).
    #[must_use]
    pub fn is_streamable(self) -> bool {
        self != Format::Default
    }

    /// Calls come on STDIN and STDOUT is the answer, so that it is no log.
    #[must_use]
    pub fn reads_stdio(self) -> bool {
        !matches!(self, Format::HttpStream | Format::Lambda)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which version of CloudEvents a function of the format `cloudevent` speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CloudEvents {
    /// 0.1, as Fn spoke it.
    #[default]
    #[serde(rename = "0.1")]
    V0_1,
    /// 1.0, structured JSON.
    #[serde(rename = "1.0")]
    V1_0,
}

listed!(CloudEvents: V0_1, V1_0);

impl CloudEvents {
    /// As files and events write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CloudEvents::V0_1 => "0.1",
            CloudEvents::V1_0 => "1.0",
        }
    }

    /// Reads the number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|v| v.as_str() == text)
    }
}

/// What a function may choose about its format: `format_options` in the function file. Everything off is the format as old
/// functions know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FormatOptions {
    /// The version, where the function's format is `cloudevent` or may be forced to it.
    pub cloudevents: CloudEvents,
    /// A request whose `Content-Type` is `application/cloudevents+json` reaches the function in the format `cloudevent`, whatever
    /// its own is: Fn's rule. Such calls have containers of their own.
    pub cloudevents_by_content_type: bool,
    /// `json`: bodies are base64 in both directions, and say so in `body_encoding`.
    pub base64_bodies: bool,
    /// `json-http`: one call per process, its STDOUT is the bare answer, as the Open Function Format had it.
    pub cold: bool,
    /// `default` and `http`: the variables of the Open Function Format too (`METHOD`, `ROUTE`, `REQUEST_URL`, `PARAM_…`, `HEADER_…`).
    pub open_function_variables: bool,
    /// `mless`: what the startup message names. `lambda`: what the runtime finds in `_HANDLER`.
    pub handler: String,
    /// `lambda`: bytes a second that a streamed answer may have once its burst is spent; 0: as fast as its reader takes it.
    #[serde(skip_serializing_if = "is_zero")]
    pub stream_rate: u64,
    /// `lambda`: bytes that a streamed answer may have at once; 0: [`FormatOptions::STREAM_BURST`].
    #[serde(skip_serializing_if = "is_zero")]
    pub stream_burst: u64,
    /// `lambda`: the runtime is told that it starts from a snapshot, and its hooks for that run at every start.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub snap_start: bool,
    /// `lambda`: the number of the version that it is, for callers that asked for a version or an alias; 0: `$LATEST`. A balancer says it
    /// of what it sends to runners; nobody applies it.
    #[serde(skip_serializing_if = "is_zero")]
    pub version: u64,
    /// `lambda`: a directory of the host that a function with the host's files sees as `/opt`, in the place of the host's; empty: the host's.
    #[serde(skip_serializing_if = "no_path")]
    pub opt: PathBuf,
}

fn no_path(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

impl FormatOptions {
    /// Longest `handler`, in bytes.
    pub const MAX_HANDLER: usize = 1024;
    /// What `stream_rate` and `stream_burst` may be, in bytes: AWS's own limits.
    pub const STREAM: std::ops::RangeInclusive<u64> = 32 << 10..=64 << 20;
    /// The burst where only the rate is given: AWS's.
    pub const STREAM_BURST: u64 = 6 << 20;

    /// Everything that is wrong with them for a function of this format: an option that the format does not have is a
    /// mistake, not decoration.
    #[must_use]
    pub fn problems(&self, format: Format) -> Vec<String> {
        use Format::{CloudEvent, Default, Http, HttpStream, Json, JsonHttp, Lambda, Mless};
        let mut problems = Vec::new();
        let mut only = |set: bool, key: &str, formats: &[Format]| {
            if set && !formats.contains(&format) {
                let formats: Vec<_> = formats.iter().map(|f| f.as_str()).collect();
                problems.push(format!("{key} belongs to {}, not to {format}", formats.join(" and ")));
            }
        };
        let version = self.cloudevents != CloudEvents::default() && !self.cloudevents_by_content_type;
        only(version, "cloudevents", &[CloudEvent]);
        let others = [Default, Http, Json, JsonHttp, HttpStream];
        only(self.cloudevents_by_content_type, "cloudevents_by_content_type", &others);
        only(self.base64_bodies, "base64_bodies", &[Json]);
        only(self.cold, "cold", &[JsonHttp]);
        only(self.open_function_variables, "open_function_variables", &[Default, Http]);
        only(!self.handler.is_empty(), "handler", &[Mless, Lambda]);
        only(self.stream_rate > 0, "stream_rate", &[Lambda]);
        only(self.stream_burst > 0, "stream_burst", &[Lambda]);
        only(self.snap_start, "snap_start", &[Lambda]);
        only(self.version > 0, "version", &[Lambda]);
        only(!no_path(&self.opt), "opt", &[Lambda]);
        if !no_path(&self.opt) && (!self.opt.is_absolute() || self.opt.as_os_str().len() > 4096) {
            problems.push(format!("opt: {}", not_absolute(&self.opt)));
        }
        for (key, value) in [("stream_rate", self.stream_rate), ("stream_burst", self.stream_burst)] {
            if value > 0 && !Self::STREAM.contains(&value) {
                problems.push(format!("{key} is not between 32KiB and 64MiB"));
            }
        }
        if self.stream_burst > 0 && self.stream_rate == 0 {
            problems.push("stream_burst does nothing without stream_rate".to_owned());
        }
        if format == Mless && self.handler.is_empty() {
            problems.push("handler is missing: format mless names one, like `func.handler`".to_owned());
        }
        if self.handler.len() > Self::MAX_HANDLER || self.handler.contains('\0') {
            problems
                .push(format!("handler is longer than {} bytes or has a NUL character", Self::MAX_HANDLER));
        }
        problems
    }

    /// Whether a call of this head reaches the function in the format `cloudevent` although its own is another.
    #[must_use]
    pub fn force_cloudevent(&self, head: &RequestHead) -> bool {
        self.cloudevents_by_content_type
            && head
                .headers
                .get("content-type")
                .is_some_and(|value| media_type(value).eq_ignore_ascii_case("application/cloudevents+json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_belong_to_formats() {
        assert_eq!(FormatOptions::default().problems(Format::Json), Vec::<String>::new());
        let cold = FormatOptions { cold: true, ..Default::default() };
        assert_eq!(cold.problems(Format::JsonHttp), Vec::<String>::new());
        assert_eq!(cold.problems(Format::Json), ["cold belongs to json-http, not to json"]);
        let two = FormatOptions { cloudevents: CloudEvents::V1_0, base64_bodies: true, ..Default::default() };
        assert_eq!(two.problems(Format::Http).len(), 2);
        assert_eq!(FormatOptions::default().problems(Format::Mless).len(), 1);
        let handler = FormatOptions { handler: "f.h".into(), ..Default::default() };
        assert_eq!(handler.problems(Format::Mless), Vec::<String>::new());
        let text = r#"{"cloudevents":"1.0"}"#;
        assert_eq!(serde_json::from_str::<FormatOptions>(text).unwrap().cloudevents, CloudEvents::V1_0);
        assert!(serde_json::from_str::<FormatOptions>(r#"{"cloudevent":"1.0"}"#).is_err());
    }

    #[test]
    fn events_force_their_format_where_that_is_asked() {
        let forced = |on, kind: &'static str| {
            let mut head = RequestHead::default();
            head.headers.push("content-type", kind);
            FormatOptions { cloudevents_by_content_type: on, ..Default::default() }.force_cloudevent(&head)
        };
        assert!(forced(true, "application/cloudevents+json"));
        assert!(forced(true, "Application/CloudEvents+JSON; charset=utf-8"));
        assert!(!forced(false, "application/cloudevents+json"));
        assert!(!forced(true, "application/json"));
    }
}
