//! What a function is given to show that it works: a name, in a shape that its format can carry.

use stoker_core::{Format, FunctionSpec};
use stoker_proto::v1;

/// A body and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub body: &'static str,
    pub content_type: &'static str,
    /// For those who write the body in JSON.
    pub base64: &'static str,
}

const TEXT: Sample = Sample { body: "Ada", content_type: "text/plain", base64: "QWRh" };
const JSON: Sample =
    Sample { body: r#"{"name":"Ada"}"#, content_type: "application/json", base64: "eyJuYW1lIjoiQWRhIn0=" };

impl Sample {
    /// For a function of this format: events are JSON, and so is what is wrapped into them.
    pub fn of(spec: &FunctionSpec) -> Self {
        match spec.format {
            Format::Json | Format::CloudEvent | Format::Mless | Format::Lambda => JSON,
            Format::Default | Format::Http | Format::JsonHttp | Format::HttpStream => TEXT,
        }
    }

    /// A head that says what the body is.
    pub fn head(self) -> v1::RequestHead {
        let header = v1::Header { name: "content-type".to_owned(), value: self.content_type.into() };
        v1::RequestHead { headers: vec![header], ..v1::RequestHead::default() }
    }
}
