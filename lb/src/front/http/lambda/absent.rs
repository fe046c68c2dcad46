//! What AWS keeps with a function and this does not: said to be none, as AWS says it, to those who only look, and to those who ask for what is so
//! anyway. Tools that bring a function to a wished state look at all of it.

use http::request::Parts;
use serde_json::{Value, json};

use super::change::{fields, is_nothing};
use super::{Refused, Target, arn};
use crate::front::Front;

const RECURSION: (&str, &str) = ("2024-08-31", "recursion-config");
const RUNTIME: (&str, &str) = ("2021-07-20", "runtime-management-config");
const SIGNING: (&str, &str) = ("2020-06-30", "code-signing-config");

/// The answer to one who looks at what is not kept here; `None`: it is none of that.
pub fn look(front: &Front, parts: &Parts, segments: &[&str]) -> Result<Option<Value>, Refused> {
    let nothing = match segments {
        ["2015-03-31", "event-source-mappings"] => json!({"EventSourceMappings": []}),
        ["2020-04-22", "code-signing-configs"] => json!({"CodeSigningConfigs": []}),
        [date, "functions", name, of] if [RECURSION, RUNTIME, SIGNING].contains(&(*date, *of)) => {
            // Of a function that is not there nothing is known.
            let target = Target::of(front, parts, name)?;
            match (*date, *of) {
                SIGNING => json!({"FunctionName": target.name, "CodeSigningConfigArn": ""}),
                RUNTIME => managed(&target),
                _ => json!({"RecursiveLoop": "Allow"}),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(nothing))
}

fn managed(target: &Target) -> Value {
    json!({"FunctionArn": arn(&target.name, target.qualifier.as_deref()), "UpdateRuntimeOn": "Auto"})
}

/// The answer to one who wants it otherwise, or as it is; `None`: it is none of that.
pub fn wish(front: &Front, parts: &Parts, segments: &[&str], body: &[u8]) -> Result<Option<Value>, Refused> {
    match (parts.method.as_str(), segments) {
        ("POST", ["2015-03-31", "event-source-mappings"]) => {
            let text = "event source mappings are not here: let something of yours read the source and call the function";
            Err(Refused::unsupported(text))
        }
        ("GET" | "PUT" | "DELETE", ["2015-03-31", "event-source-mappings", _]) => {
            Err(Refused::missing("The resource you requested does not exist."))
        }
        ("PUT", [date, "functions", name, of]) if [RECURSION, RUNTIME].contains(&(*date, *of)) => {
            let target = Target::of(front, parts, name)?;
            let is =
                if (*date, *of) == RUNTIME { managed(&target) } else { json!({"RecursiveLoop": "Allow"}) };
            let fields = fields(of, body)?;
            let other =
                fields.iter().find(|(key, value)| !is_nothing(value) && is.get(key.as_str()) != Some(*value));
            match other {
                None => Ok(Some(is)),
                Some((key, value)) => Err(Refused::parameter(format!("{key}: {value} cannot be had here"))),
            }
        }
        _ => Ok(None),
    }
}
