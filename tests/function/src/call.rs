//! A call as every format tells it, and the answer as every format can say it.

use crate::json::Value;

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub id: String,
    pub deadline: String,
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub content_type: String,
    pub body: Vec<u8>,
    /// What came, as it came, where that says more: the whole message, or the line of the request.
    pub told: Value,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            id: String::new(),
            deadline: String::new(),
            method: String::new(),
            url: String::new(),
            headers: Vec::new(),
            content_type: String::new(),
            body: Vec::new(),
            told: Value::Null,
        }
    }
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content_type: String,
    pub body: Vec<u8>,
    /// The function says that it failed, in the way of the format where it has one.
    pub failed: bool,
    /// The body comes in chunks, where the format has them.
    pub chunked: bool,
}

impl Answer {
    /// JSON, the type that every format can carry.
    pub fn json(value: &Value) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            content_type: "application/json".to_owned(),
            body: value.to_text().into_bytes(),
            failed: false,
            chunked: false,
        }
    }
}
