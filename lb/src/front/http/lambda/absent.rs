//! What AWS keeps with a function and this does not: said to be none, as AWS says it, to those who only look. Tools that bring a function to a wished
//! state look at all of it.

use http::request::Parts;
use serde_json::{Value, json};
use stoker_core::error::{Code, Error};

use super::{Refused, Target, arn};
use crate::front::Door;

/// The answer to one who looks at what is not kept here; `None`: it is none of that.
pub fn look(door: &Door, parts: &Parts, segments: &[&str]) -> Result<Option<Value>, Refused> {
    let [date, kind, of @ ..] = segments else { return Ok(None) };
    let nothing = match (*date, *kind, of) {
        ("2015-03-31", "event-source-mappings", []) => json!({"EventSourceMappings": []}),
        ("2018-10-31", "layers", []) => json!({"Layers": []}),
        ("2020-04-22", "code-signing-configs", []) => json!({"CodeSigningConfigs": []}),
        (date, "functions", [name, of]) => {
            let known = matches!(
                (date, *of),
                ("2015-03-31", "policy")
                    | ("2020-06-30", "code-signing-config")
                    | ("2021-07-20", "runtime-management-config")
                    | ("2024-08-31", "recursion-config")
            );
            if !known {
                return Ok(None);
            }
            // Of a function that is not there nothing is known.
            let Target { name, qualifier, .. } = Target::of(door, parts, name)?;
            match *of {
                "code-signing-config" => json!({"FunctionName": name, "CodeSigningConfigArn": ""}),
                "runtime-management-config" => {
                    json!({"FunctionArn": arn(&name, qualifier.as_deref()), "UpdateRuntimeOn": "Auto"})
                }
                "recursion-config" => json!({"RecursiveLoop": "Allow"}),
                _ => {
                    let text = "The resource you requested does not exist.";
                    return Err(Refused::from(Error::new(Code::NotFound, text)));
                }
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(nothing))
}
