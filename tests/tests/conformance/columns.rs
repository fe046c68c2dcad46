//! The columns of the table: formats, with those options that make another contract of them, and the drivers under them.

use stoker_core::function::{CloudEvents, Format, FunctionSpec};
use stoker_sandbox::select::Choice;
use stoker_tests::functions::{Change as _, function};
use stoker_tests::program;

/// A contract between Stoker and a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Default,
    Http,
    Json,
    JsonBase64,
    JsonHttp,
    JsonHttpCold,
    Event01,
    Event10,
    HttpStream,
    Mless,
    Lambda,
}

use Column::*;

/// Every one.
pub const ALL: &[Column] =
    &[Default, Http, Json, JsonBase64, JsonHttp, JsonHttpCold, Event01, Event10, HttpStream, Mless, Lambda];
/// One call per process.
pub const COLD: &[Column] = &[Default, JsonHttpCold];
/// Many calls per process, on a channel that carries one answer after the other.
pub const HOT: &[Column] = &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream, Mless];
/// Many calls per process.
pub const MANY: &[Column] = &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream, Mless, Lambda];
/// Many, on STDIN and STDOUT.
pub const HOT_STDIO: &[Column] = &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, Mless];
/// Calls and answers are whole messages in JSON.
pub const MESSAGES: &[Column] = &[Json, JsonBase64, Event01, Event10, Mless];
/// Bodies pass by.
pub const STREAMS: &[Column] = &[Default, Http, JsonHttp, JsonHttpCold, HttpStream];
/// The function sets the status.
pub const STATUS: &[Column] = &[Http, Json, JsonBase64, JsonHttp, Event01, Event10];
/// HTTP messages.
pub const HTTP: &[Column] = &[Http, HttpStream];

impl Column {
    /// The name in the document.
    pub fn name(self) -> &'static str {
        match self {
            Default => "default",
            Http => "http",
            Json => "json",
            JsonBase64 => "json (base64)",
            JsonHttp => "json-http",
            JsonHttpCold => "json-http (cold)",
            Event01 => "cloudevent 0.1",
            Event10 => "cloudevent 1.0",
            HttpStream => "http-stream",
            Mless => "mless",
            Lambda => "lambda",
        }
    }

    pub fn is_cold(self) -> bool {
        COLD.contains(&self)
    }

    /// The test function in this format.
    pub fn function(self, name: &str) -> FunctionSpec {
        let mut spec = function(name, &[&program("stoker-test-function").to_string_lossy()]);
        let options = &mut spec.format_options;
        spec.format = match self {
            Default => Format::Default,
            Http => Format::Http,
            Json | JsonBase64 => Format::Json,
            JsonHttp | JsonHttpCold => Format::JsonHttp,
            Event01 | Event10 => Format::CloudEvent,
            HttpStream => Format::HttpStream,
            Mless => Format::Mless,
            Lambda => Format::Lambda,
        };
        match self {
            JsonBase64 => options.base64_bodies = true,
            JsonHttpCold => options.cold = true,
            Event10 => options.cloudevents = CloudEvents::V1_0,
            Mless | Lambda => options.handler = "function.handler".to_owned(),
            _ => {}
        }
        if self == JsonHttpCold { spec.with_env("TEST_COLD", "yes") } else { spec }
    }
}

/// What a function runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Namespaces, made by root.
    Native,
    /// Namespaces, made by an ordinary user.
    Rootless,
    /// An OCI runtime.
    Oci,
    /// None.
    Process,
}

impl Driver {
    pub fn choice(self) -> Choice {
        match self {
            Driver::Native | Driver::Rootless => Choice::Native,
            Driver::Oci => Choice::Oci,
            Driver::Process => Choice::Process,
        }
    }
}
