//! Functions as AWS Lambda describes them.

use std::sync::Arc;

use chrono::DateTime;
use http::request::Parts;
use serde_json::{Map, Value, json};
use stoker_core::FunctionSpec;
use stoker_core::function::{Digest, Root};
use stoker_registry::revisions::Revision;

use super::layers::Used;
use super::{LATEST, Refused, Target, arn, page, query};
use crate::front::Front;

/// Functions of one page where the caller does not say how many.
const PAGE: usize = 50;

/// What this API keeps with a revision, by these names.
pub mod notes {
    pub const ROLE: &str = "aws.role";
    pub const RUNTIME: &str = "aws.runtime";
    pub const DESCRIPTION: &str = "aws.description";
    /// SHA-256 of the zip, in base64.
    pub const SHA256: &str = "aws.code_sha256";
    /// Its bytes.
    pub const SIZE: &str = "aws.code_size";
    /// The layers, in JSON.
    pub const LAYERS: &str = "aws.layers";
    /// Destinations of events, as they were written.
    pub const ON_SUCCESS: &str = "aws.on_success";
    pub const ON_FAILURE: &str = "aws.on_failure";
}

/// A revision as AWS knows it: the version that changes, or one of the others.
pub fn described(name: &str, revision: &Revision, version: Option<&str>) -> Value {
    let spec = &revision.spec;
    let note = |key: &str| revision.notes.get(key).map(String::as_str);
    let digest = spec.digest();
    let image = is_image(revision);
    let qualifier = version.filter(|version| *version != LATEST);
    let mut configuration = json!({
        "FunctionName": name,
        "FunctionArn": arn(name, qualifier),
        "Role": note(notes::ROLE).unwrap_or_default(),
        "CodeSize": note(notes::SIZE).and_then(|size| size.parse::<u64>().ok()).unwrap_or_default(),
        "Description": note(notes::DESCRIPTION).unwrap_or_default(),
        "Timeout": spec.timeout_ms.div_ceil(1000),
        "MemorySize": spec.memory >> 20,
        "LastModified": date(revision.created_ms),
        "CodeSha256": note(notes::SHA256).map_or_else(|| digest.to_string(), str::to_owned),
        "Version": version.unwrap_or(LATEST),
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": revision_id(&digest, revision.number),
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "PackageType": if image { "Image" } else { "Zip" },
        "Architectures": [architecture()],
        "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
    });
    let layers = Used::read(note(notes::LAYERS));
    if !layers.is_empty() {
        configuration["Layers"] = layers.iter().map(Used::shown).collect();
    }
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
        configuration["Runtime"] = note(notes::RUNTIME).unwrap_or("provided.al2023").into();
        configuration["Handler"] = spec.format_options.handler.as_str().into();
    }
    configuration
}

/// Whether a function came as an image: the code of a zip may be kept as one, which is nobody's business.
pub fn is_image(revision: &Revision) -> bool {
    revision.spec.root.is_image() && !revision.notes.contains_key(notes::SHA256)
}

/// The architecture of this fleet, in AWS's words.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }
}

/// A revision in the form of AWS's revision ids: another for each.
pub fn revision_id(digest: &Digest, number: u64) -> String {
    let text = format!("{}{number:016x}", digest.to_string().get(..16).unwrap_or_default());
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default()).join("-")
}

/// Milliseconds since 1970 as AWS writes times.
pub fn date(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string()
}

impl Target {
    /// The revision that is meant; of an alias the main one.
    pub fn revision(&self, front: &Front) -> Result<Arc<Revision>, Refused> {
        let number = self.latest().unwrap_or(self.known.split().main);
        let functions = front.directory.functions();
        let revision = functions.revision(&self.known.spec.name, number).cloned();
        revision.ok_or_else(|| Refused::missing(format!("Function not found: {}", arn(&self.name, None))))
    }

    /// The version that it is to AWS.
    fn version(&self, revision: &Revision) -> String {
        self.latest().map_or_else(|| revision.number.to_string(), |_| LATEST.to_owned())
    }
}

/// `GetFunctionConfiguration`.
pub fn configuration(front: &Front, target: &Target) -> Result<Value, Refused> {
    let revision = target.revision(front)?;
    let mut configuration = described(&target.name, &revision, Some(&target.version(&revision)));
    if let Some(qualifier) = &target.qualifier {
        configuration["FunctionArn"] = arn(&target.name, Some(qualifier)).into();
    }
    Ok(configuration)
}

/// `GetFunction`.
pub fn description(front: &Front, target: &Target) -> Result<Value, Refused> {
    let revision = target.revision(front)?;
    let code = match &revision.spec.root {
        Root::Image(image) if is_image(&revision) => {
            json!({"RepositoryType": "ECR", "ImageUri": image.asked().to_string(), "ResolvedImageUri": image.to_string()})
        }
        _ => json!({"RepositoryType": "S3", "Location": location(&revision.spec)}),
    };
    let functions = front.directory.functions();
    let release = functions.releases.get(&target.known.spec.name);
    let tags = release.map(|release| release.tags.clone()).unwrap_or_default();
    let mut described = json!({"Configuration": configuration(front, target)?, "Code": code, "Tags": tags});
    if let Some(reserved) = release.and_then(|release| release.reserved) {
        described["Concurrency"] = json!({"ReservedConcurrentExecutions": reserved});
    }
    Ok(described)
}

/// Where a function's files are.
fn location(spec: &FunctionSpec) -> String {
    let written = spec.root.written().map(|(_, at)| at);
    written.unwrap_or_else(|| spec.workdir.to_string_lossy().into_owned())
}

/// `ListFunctions`: each as it is now, or, where all are asked for, with its versions behind it.
///
/// # Errors
/// `MaxItems` is no number of functions, or `FunctionVersion` another than all.
pub fn list(front: &Front, parts: &Parts) -> Result<Value, Refused> {
    let versions = match query(parts, "FunctionVersion").as_deref() {
        None => false,
        Some("ALL") => true,
        Some(other) => return Err(Refused::parameter(format!("FunctionVersion {other:?} is not ALL"))),
    };
    let functions = front.directory.functions();
    let mut all = Vec::new();
    for known in front.directory.all() {
        let (name, called) = (&known.spec.name, front.directory.called(&known));
        let Some(release) = functions.releases.get(name) else { continue };
        if versions {
            let published = functions.revisions(name).filter(|revision| revision.published);
            // By number, and not by digit.
            let published = published.map(|revision| {
                let version = Some(revision.number.to_string());
                (format!("{called}:{:020}", revision.number), (called.clone(), revision.clone(), version))
            });
            all.extend(published);
        }
        all.push((called.clone(), (called, release.newest.clone(), None)));
    }
    let (page, next) = page(parts, all, PAGE)?;
    let listed: Vec<_> = page
        .iter()
        .map(|(_, (called, revision, version))| described(called, revision, version.as_deref()))
        .collect();
    Ok(with_marker(json!({"Functions": listed}), next))
}

/// A page with the way to the next.
pub fn with_marker(mut page: Value, next: Option<String>) -> Value {
    if let Some(next) = next {
        page["NextMarker"] = next.into();
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_aws_does() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000+0000"),
            (1_709_251_199_007, "2024-02-29T23:59:59.007+0000"),
            (1_767_323_045_000, "2026-01-02T03:04:05.000+0000"),
        ] {
            assert_eq!(date(ms), text);
        }
    }
}
