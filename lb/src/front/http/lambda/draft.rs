//! A function as a request of AWS Lambda's API wants it: fields taken in one by one, code kept, and all of it made a revision.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize as _;
use serde_json::{Value, json};
use stoker_core::error::{Code, Error};
use stoker_core::function::Root;
use stoker_core::{FunctionSpec, ImageRef};
use stoker_registry::revisions::{Change, Expect, Proposal, Revision};

use super::Refused;
use super::change::{is_nothing, no_code, text};
use super::code::{MOST_UNPACKED, MOST_ZIPPED};
use super::functions::{self, notes};
use super::layers::Used;
use crate::front::Front;
use crate::front::operators::images::{self, Unpinned};

/// Where a revision's zip is kept.
pub const CODE_AT: &str = "stoker.code";

/// The bytes in that zip, and that it has no `bootstrap`.
const UNPACKED: &str = "stoker.code_unpacked";
const NO_BOOTSTRAP: &str = "stoker.no_bootstrap";

/// The function's variable that names a program to start its runtime with.
const WRAPPER: &str = "AWS_LAMBDA_EXEC_WRAPPER";

/// Lengths, as AWS has them.
const LONGEST_HANDLER: usize = 128;
const LONGEST_DESCRIPTION: usize = 256;

/// Variables that say what the function is: nobody else says it.
const RESERVED: [&str; 9] = [
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_RUNTIME_API",
    "_HANDLER",
];

fn variables_are_the_functions_own(variables: &BTreeMap<String, String>) -> Result<(), Refused> {
    let reserved: Vec<_> =
        variables.keys().map(String::as_str).filter(|key| RESERVED.contains(key)).collect();
    if !reserved.is_empty() {
        return Err(Refused::parameter(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {}",
            reserved.join(", ")
        )));
    }
    let named = |key: &str| {
        let mut bytes = key.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match variables.keys().find(|key| !named(key)) {
        None => Ok(()),
        Some(key) => Err(Refused::parameter(format!(
            "Environment.Variables: {key:?} is no name: write letters, digits and _, a letter first"
        ))),
    }
}

/// A function as a request changes it.
pub struct Draft {
    pub spec: FunctionSpec,
    pub notes: BTreeMap<String, String>,
    /// The code, where it came with the request.
    pub zip: Option<Bytes>,
    pub publish: bool,
    pub dry: bool,
}

impl Draft {
    pub fn new(spec: FunctionSpec) -> Self {
        Self { spec, notes: BTreeMap::new(), zip: None, publish: false, dry: false }
    }

    pub fn of(revision: &Revision) -> Self {
        let spec = FunctionSpec::clone(&revision.spec);
        Self { notes: revision.notes.clone(), ..Self::new(spec) }
    }

    fn note(&mut self, key: &str, text: &str) {
        match text {
            "" => drop(self.notes.remove(key)),
            text => drop(self.notes.insert(key.to_owned(), text.to_owned())),
        }
    }

    /// Takes in one field of a function's configuration; says whether it is one.
    pub fn configure(&mut self, key: &str, value: &Value) -> Result<bool, Refused> {
        let wrong = |text: String| Refused::parameter(text);
        match key {
            _ if value.is_null() => {}
            "Timeout" => {
                let seconds =
                    value.as_u64().ok_or_else(|| wrong("Timeout is a number of seconds".to_owned()))?;
                self.spec.timeout_ms = seconds.saturating_mul(1000);
            }
            "MemorySize" => {
                let size = value.as_u64().ok_or_else(|| wrong("MemorySize is a number of MB".to_owned()))?;
                self.spec.memory = size.saturating_mul(1 << 20);
            }
            "Handler" => {
                let handler = text(key, value)?;
                if handler.len() > LONGEST_HANDLER || handler.contains(char::is_whitespace) {
                    return Err(wrong(format!(
                        "Handler has white space, or more than {LONGEST_HANDLER} bytes"
                    )));
                }
                handler.clone_into(&mut self.spec.format_options.handler);
            }
            "Environment" => {
                let variables =
                    value.get("Variables").filter(|all| !all.is_null()).cloned().unwrap_or_else(|| json!({}));
                self.spec.env = BTreeMap::deserialize(variables)
                    .map_err(|error| wrong(format!("Environment.Variables: {error}")))?;
                variables_are_the_functions_own(&self.spec.env)?;
            }
            "ImageConfig" => self.image_config(value)?,
            "Runtime" => self.note(notes::RUNTIME, text(key, value)?),
            "Description" => {
                let description = text(key, value)?;
                if description.chars().count() > LONGEST_DESCRIPTION {
                    return Err(wrong(format!("Description has more than {LONGEST_DESCRIPTION} characters")));
                }
                self.note(notes::DESCRIPTION, description);
            }
            // Who the function is to AWS; nobody asks here.
            "Role" => self.note(notes::ROLE, text(key, value)?),
            "EphemeralStorage" if value.get("Size").is_some_and(|size| *size == 512) => {}
            // Traces are made of every call, and logs are text.
            "TracingConfig" => {}
            "LoggingConfig" if value.get("LogFormat").is_none_or(|format| *format == "Text") => {}
            _ if is_nothing(value) => {}
            "DeadLetterConfig" | "EphemeralStorage" | "FileSystemConfigs" | "KMSKeyArn" | "LoggingConfig"
            | "SnapStart" | "VpcConfig" => {
                return Err(wrong(format!("{key} is not kept here: leave it out")));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Gives it these layers, in the place of those that it has.
    pub fn layers(&mut self, layers: &[Used]) -> Result<(), Refused> {
        let text = match layers {
            [] => String::new(),
            layers => serde_json::to_string(layers)
                .map_err(|error| Error::new(Code::Internal, error.to_string()))?,
        };
        self.note(notes::LAYERS, &text);
        Ok(())
    }

    fn used(&self) -> Vec<Used> {
        Used::read(self.notes.get(notes::LAYERS).map(String::as_str))
    }

    /// Whether its code is to be started otherwise, or on something else, than that of this revision.
    pub fn runs_otherwise(&self, revision: &Revision) -> bool {
        [notes::RUNTIME, notes::LAYERS].iter().any(|note| self.notes.get(*note) != revision.notes.get(*note))
            || self.spec.format_options.handler != revision.spec.format_options.handler
            || self.spec.env.get(WRAPPER) != revision.spec.env.get(WRAPPER)
    }

    fn image_config(&mut self, value: &Value) -> Result<(), Refused> {
        let list = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(list) => Vec::<String>::deserialize(list)
                .map_err(|error| Refused::parameter(format!("ImageConfig.{key}: {error}"))),
        };
        self.spec.command = [list("EntryPoint")?, list("Command")?].concat();
        self.spec.workdir = match value.get("WorkingDirectory") {
            None | Some(Value::Null) => PathBuf::new(),
            Some(at) => text("ImageConfig.WorkingDirectory", at)?.into(),
        };
        Ok(())
    }

    /// Takes in one field of a function's code; says whether it is one.
    pub fn coded(&mut self, key: &str, value: &Value) -> Result<bool, Refused> {
        match key {
            "ZipFile" if !value.is_null() => {
                let zip = BASE64
                    .decode(text(key, value)?)
                    .map_err(|error| Refused::parameter(format!("ZipFile is not base64: {error}")))?;
                if zip.len() > MOST_ZIPPED {
                    let text = format!("Zipped size must be smaller than {MOST_ZIPPED} bytes");
                    return Err(Refused::from(Error::new(Code::RequestTooLarge, text)));
                }
                self.zip = Some(zip.into());
            }
            "ImageUri" if !value.is_null() => {
                let image = ImageRef::parse(text(key, value)?)
                    .map_err(|wrong| Refused::parameter(format!("ImageUri: {wrong}")))?;
                self.spec.root = Root::Image(image);
            }
            "Architectures" => {
                let here = functions::architecture();
                let others = value.as_array().into_iter().flatten().any(|one| one != here);
                if others {
                    return Err(Refused::parameter(format!("Architectures: this fleet is {here}")));
                }
            }
            "Publish" => self.publish = value.as_bool().unwrap_or_default(),
            "DryRun" => self.dry = value.as_bool().unwrap_or_default(),
            "S3Bucket" | "S3Key" | "S3ObjectVersion" | "SourceKMSKeyArn" if !is_nothing(value) => {
                return Err(Refused::parameter(format!(
                    "{key}: there is no S3 here; send the zip as ZipFile"
                )));
            }
            "S3Bucket" | "S3Key" | "S3ObjectVersion" | "SourceKMSKeyArn" | "ZipFile" | "ImageUri" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes what runs the code of the runtime and the zip, where there is one or the runtime has changed.
    pub async fn settle(&mut self, front: &Front, code_at: Option<String>) -> Result<(), Refused> {
        let Some(runtime) = self.notes.get(notes::RUNTIME) else {
            return match &self.zip {
                Some(_) => Err(Refused::parameter("Runtime is missing: a zip needs one")),
                None => Ok(()),
            };
        };
        let Some(store) = &front.lambda.code else { return Err(no_code()) };
        let runtime = front.lambda.runtimes.find(runtime).map_err(Refused::parameter)?;
        let handler = self.spec.format_options.handler.clone();
        if handler.is_empty() {
            return Err(Refused::parameter("Handler is missing: a zip needs one"));
        }
        let layers = self.used();
        let at: Vec<_> = layers.iter().map(|layer| layer.at.clone()).collect();
        let kept = match (self.zip.take(), code_at) {
            (Some(zip), _) => {
                let (kept, zip) = store.put(zip, &runtime, &at).await?;
                self.note(notes::SHA256, &zip.sha256);
                self.note(notes::SIZE, &zip.bytes.to_string());
                self.note(UNPACKED, &zip.unpacked.to_string());
                self.note(NO_BOOTSTRAP, if zip.starts { "" } else { "true" });
                kept
            }
            (None, Some(at_code)) => store.again(&at_code, &runtime, &at).await?,
            (None, None) => return Err(Refused::parameter("ZipFile is missing")),
        };
        let unpacked = self.notes.get(UNPACKED).and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
        let all = layers.iter().fold(unpacked, |all: u64, layer| all.saturating_add(layer.unpacked));
        if all > MOST_UNPACKED {
            let text = format!(
                "Function code combined with layers exceeds the maximum allowed size of {MOST_UNPACKED} bytes. The actual size is {all} bytes."
            );
            return Err(Refused::parameter(text));
        }
        let of_layer = !layers.is_empty() && self.notes.contains_key(NO_BOOTSTRAP);
        self.spec.command =
            runtime.command(&handler, self.spec.env.get(WRAPPER).map(String::as_str), of_layer);
        (self.spec.root, self.spec.workdir) = (kept.root, kept.workdir);
        self.spec.format_options.opt = kept.opt;
        if let Some(credentials) = kept.credentials {
            self.spec.credentials = credentials;
        }
        for (key, value) in runtime.env {
            self.spec.env.entry(key).or_insert(value);
        }
        self.notes.insert(CODE_AT.to_owned(), kept.at);
        Ok(())
    }

    /// Makes it a revision; says which version that is, if it was to be one.
    pub async fn apply(mut self, front: &Front, expect: Expect) -> Result<Option<String>, Refused> {
        self.spec.check().map_err(|problems| {
            let all: Vec<_> =
                problems.iter().map(|problem| format!("{} {}", problem.field, problem.text)).collect();
            Refused::parameter(all.join("; "))
        })?;
        let specs = std::slice::from_mut(&mut self.spec);
        images::pin(&front.dispatch.fleet, specs).await.map_err(|unpinned| match unpinned {
            Unpinned::Unasked(error) => error.into(),
            // SDKs would send it again by themselves, each time for as long as a registry that is not there takes to be found missing.
            Unpinned::Unanswered(error) => {
                Refused::parameter(format!("Source image is not valid: {}", error.message))
            }
            Unpinned::Wrong(wrong) => {
                let text: Vec<_> = wrong.into_iter().map(|(_, text)| text).collect();
                Refused::parameter(format!("Source image is not valid: {}", text.join("; ")))
            }
        })?;
        let name = self.spec.name.clone();
        let proposal = Proposal { spec: self.spec, notes: Some(self.notes), hold: false, expect };
        let outcome = front.registry.apply(vec![proposal]).await?;
        let revision = outcome.first().map_or(1, |outcome| outcome.revision);
        if !self.publish {
            return Ok(None);
        }
        let publish = Change::Publish { number: revision, notes: BTreeMap::new() };
        front.registry.change_function(&name, publish).await?;
        Ok(Some(revision.to_string()))
    }
}
