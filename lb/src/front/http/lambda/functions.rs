//! Functions as AWS Lambda describes them, and what its API changes of them.

use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use stoker_core::FunctionSpec;
use stoker_core::error::{Code, Error};
use stoker_core::function::Root;

use super::{Refused, VERSION, arn};
use crate::directory::Known;
use crate::front::Door;

/// Functions of one page where the caller does not say how many.
const PAGE: usize = 50;

/// A function's configuration.
pub fn configuration(name: &str, known: &Known) -> Value {
    let spec = &known.spec;
    let digest = known.digest.to_string();
    let image = spec.root.is_image();
    let mut configuration = json!({
        "FunctionName": name,
        "FunctionArn": arn(name, None),
        "Role": "",
        "CodeSize": 0,
        "Description": "",
        "Timeout": spec.timeout_ms.div_ceil(1000),
        "MemorySize": spec.memory >> 20,
        // The registry keeps no times.
        "LastModified": "1970-01-01T00:00:00.000+0000",
        "CodeSha256": digest,
        "Version": VERSION,
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": revision(&digest),
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "PackageType": if image { "Image" } else { "Zip" },
        "Architectures": [if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }],
        "EphemeralStorage": {"Size": 512},
    });
    if !spec.env.is_empty() {
        configuration["Environment"] = json!({"Variables": spec.env});
    }
    if image {
        let mut own = Map::new();
        if !spec.command.is_empty() {
            own.insert("Command".to_owned(), json!(spec.command));
        }
        if !spec.workdir.as_os_str().is_empty() {
            own.insert("WorkingDirectory".to_owned(), json!(spec.workdir));
        }
        configuration["ImageConfigResponse"] = json!({"ImageConfig": own});
    } else {
        configuration["Runtime"] = "provided.al2023".into();
        configuration["Handler"] = spec.format_options.handler.as_str().into();
    }
    configuration
}

/// A function's version in the form of AWS's revisions.
fn revision(digest: &str) -> String {
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| digest.get(part).unwrap_or_default()).join("-")
}

/// `GetFunction`.
pub fn description(name: &str, known: &Known) -> Value {
    let code = match &known.spec.root {
        Root::Image(image) => {
            json!({"RepositoryType": "ECR", "ImageUri": image.unpinned().to_string(), "ResolvedImageUri": image.to_string()})
        }
        other => {
            let at = other.written().map(|(_, at)| at).unwrap_or_default();
            json!({"RepositoryType": "S3", "Location": at})
        }
    };
    json!({"Configuration": configuration(name, known), "Code": code, "Tags": {}})
}

/// `ListFunctions`: a page of them by name, and the name after which the next page begins.
///
/// # Errors
/// `MaxItems` is no number of functions.
pub fn list(door: &Door, most: Option<&str>, after: Option<&str>) -> Result<Value, Refused> {
    let most = match most {
        None => PAGE,
        Some(text) => text.parse().ok().filter(|most| (1..=10_000).contains(most)).ok_or_else(|| {
            Refused::parameter(format!("MaxItems is {text:?}: write a number from 1 to 10000"))
        })?,
    };
    let mut all: Vec<_> =
        door.directory.all().into_iter().map(|known| (door.directory.called(&known), known)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rest = all.iter().skip_while(|(name, _)| after.is_some_and(|after| name.as_str() <= after));
    let page: Vec<_> = rest.by_ref().take(most).collect();
    let mut answer = json!({
        "Functions": page.iter().map(|(name, known)| configuration(name, known)).collect::<Vec<_>>(),
    });
    if let (Some((last, _)), true) = (page.last(), rest.next().is_some()) {
        answer["NextMarker"] = last.as_str().into();
    }
    Ok(answer)
}

/// `UpdateFunctionConfiguration`: the function with what `body` says.
///
/// # Errors
/// What is wrong with it, or cannot be kept here.
pub fn updated(known: &Known, body: &[u8]) -> Result<FunctionSpec, Refused> {
    let wrong = |text: String| Refused::parameter(text);
    let changes: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
        wrong(format!("the request is not what UpdateFunctionConfiguration takes: {error}"))
    })?;
    let mut spec = FunctionSpec::clone(&known.spec);
    for (key, value) in &changes {
        match key.as_str() {
            _ if value.is_null() => {}
            "Timeout" => {
                let seconds =
                    value.as_u64().ok_or_else(|| wrong("Timeout is a number of seconds".to_owned()))?;
                spec.timeout_ms = seconds.saturating_mul(1000);
            }
            "MemorySize" => {
                let size = value.as_u64().ok_or_else(|| wrong("MemorySize is a number of MB".to_owned()))?;
                spec.memory = size.saturating_mul(1 << 20);
            }
            "Handler" => spec.format_options.handler = text(key, value)?.to_owned(),
            "Environment" => {
                let variables =
                    value.get("Variables").filter(|all| !all.is_null()).cloned().unwrap_or_else(|| json!({}));
                spec.env = std::collections::BTreeMap::deserialize(variables)
                    .map_err(|error| wrong(format!("Environment.Variables: {error}")))?;
            }
            "ImageConfig" => image(&mut spec, value)?,
            "RevisionId" => {
                if text(key, value)? != revision(&known.digest.to_string()) {
                    let text = "The RevisionId provided does not match the latest RevisionId. Call the GetFunction API to retrieve the latest RevisionId";
                    return Err(Refused::aws(
                        412,
                        "PreconditionFailedException",
                        Error::new(Code::InvalidRequest, text),
                    ));
                }
            }
            // Who the function is to AWS; nobody asks here.
            "Role" => {}
            _ => return Err(wrong(format!("{key} is not kept here: leave it out"))),
        }
    }
    spec.check().map_err(|problems| {
        let all: Vec<_> =
            problems.iter().map(|problem| format!("{} {}", problem.field, problem.text)).collect();
        wrong(all.join("; "))
    })?;
    Ok(spec)
}

fn image(spec: &mut FunctionSpec, value: &Value) -> Result<(), Refused> {
    let list = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(list) => Vec::<String>::deserialize(list)
            .map_err(|error| Refused::parameter(format!("ImageConfig.{key}: {error}"))),
    };
    spec.command = [list("EntryPoint")?, list("Command")?].concat();
    spec.workdir = match value.get("WorkingDirectory") {
        None | Some(Value::Null) => Default::default(),
        Some(at) => text("ImageConfig.WorkingDirectory", at)?.into(),
    };
    Ok(())
}

fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, Refused> {
    value.as_str().ok_or_else(|| Refused::parameter(format!("{key} is a text")))
}
