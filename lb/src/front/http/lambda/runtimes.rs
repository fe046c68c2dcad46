//! What runs a function that came as a zip: for each of AWS's runtimes a root and a command, as the operator says, or what the host has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use stoker_core::ImageRef;

/// Stands in a command for the function's handler.
const HANDLER: &str = "{handler}";

/// The program that a zip brings, and where it is that of a layer.
const BOOTSTRAP: &str = "./bootstrap";
const OF_LAYER: &str = "/opt/bootstrap";

/// The directory, beside the handler, of what runs it where its zip has no runtime client.
pub const CLIENTS: &str = ".stoker";

/// What is in it.
pub const CLIENT_FILES: [(&str, &str); 2] =
    [("run.py", include_str!("runtimes/run.py")), ("run.cjs", include_str!("runtimes/run.cjs"))];

/// How a runtime runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Where code is in a directory: what the function sees as `/`, on the balancer and on every runner; none: the host's files.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Where code is in a registry: the image that it is put on; none: the code is all there is.
    #[serde(default, deserialize_with = "image")]
    pub image: Option<ImageRef>,
    /// Program and arguments, started where the code is.
    pub command: Vec<String>,
    /// Variables that the function's own give way to nothing.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The operator said nothing of it: what AWS's own runtime does when it starts is for us to do.
    #[serde(skip)]
    pub(super) by_itself: bool,
}

fn image<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<ImageRef>, D::Error> {
    let text = String::deserialize(from)?;
    ImageRef::parse(&text).map(Some).map_err(serde::de::Error::custom)
}

impl Runtime {
    /// The command for this handler, by way of a program that starts it where the function names one. A `bootstrap` may be `of_layer`.
    pub fn command(&self, handler: &str, wrapper: Option<&str>, of_layer: bool) -> Vec<String> {
        let wrapper = wrapper.filter(|program| self.by_itself && !program.is_empty());
        match &self.command[..] {
            // As on AWS a program without a runtime of its own is not wrapped.
            [program] if self.by_itself && program == BOOTSTRAP => {
                let program = if of_layer { OF_LAYER } else { BOOTSTRAP };
                vec![program.to_owned()]
            }
            command => {
                let command = command.iter().map(|part| part.replace(HANDLER, handler));
                wrapper.map(str::to_owned).into_iter().chain(command).collect()
            }
        }
    }
}

/// All that are known, by the names that AWS has for them.
#[derive(Debug, Clone, Default)]
pub struct Runtimes(BTreeMap<String, Runtime>);

impl Runtimes {
    /// Reads what an operator wrote: a mapping in JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|wrong| format!("{}: {wrong}", path.display()))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let all: BTreeMap<String, Value> = serde_json::from_slice(text).map_err(|error| {
            format!("{error}: write {{\"python3.12\": {{\"rootfs\": …, \"command\": […]}}}}")
        })?;
        let mut runtimes = BTreeMap::new();
        for (name, value) in all {
            let runtime = Runtime::deserialize(value).map_err(|error| format!("{name}: {error}"))?;
            if runtime.command.first().is_none_or(String::is_empty) {
                return Err(format!("{name}: command is missing: write the program and its arguments"));
            }
            if runtime.rootfs.as_ref().is_some_and(|root| !root.is_absolute()) {
                return Err(format!("{name}: rootfs is not an absolute path"));
            }
            runtimes.insert(name, runtime);
        }
        Ok(Self(runtimes))
    }

    /// What is wrong with them where code is kept in a registry, or is not.
    ///
    /// # Errors
    /// The first of them that cannot be.
    pub fn check(&self, registry: bool) -> Result<(), String> {
        for (name, runtime) in &self.0 {
            if registry && runtime.rootfs.is_some() {
                return Err(format!("{name}: code is kept in a registry: write `image`, not `rootfs`"));
            }
            if !registry && runtime.image.is_some() {
                return Err(format!(
                    "{name}: an `image` needs code that is kept in a registry, lambda.code: oci://…"
                ));
            }
        }
        Ok(())
    }

    /// The runtime of this name. Of those that the operator does not name, the host's programs run what is in the zip: its `bootstrap`, or
    /// its handler, by AWS's runtime client where it has that and else by ours.
    ///
    /// # Errors
    /// The names that would do.
    pub fn find(&self, name: &str) -> Result<Runtime, String> {
        if let Some(runtime) = self.0.get(name) {
            return Ok(runtime.clone());
        }
        let host: &[&str] = match name {
            _ if is_version(name, "python3.", "") => &["python3", ".stoker/run.py", HANDLER],
            _ if is_version(name, "nodejs", ".x") => &["node", ".stoker/run.cjs", HANDLER],
            "provided" | "provided.al2" | "provided.al2023" => &[BOOTSTRAP],
            _ => {
                let own: String = self.0.keys().map(|name| format!("{name}, ")).collect();
                return Err(format!(
                    "Runtime {name:?} is not known here: it is one of {own}python3.N, nodejsN.x, provided, provided.al2, provided.al2023"
                ));
            }
        };
        let command = host.iter().map(|part| (*part).to_owned()).collect();
        Ok(Runtime { command, by_itself: true, ..Runtime::default() })
    }
}

/// Whether a name is these two words with a number between them.
fn is_version(name: &str, before: &str, after: &str) -> bool {
    let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    number.is_some_and(|number| (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_word_comes_before_the_hosts_programs() {
        let text = br#"{"python3.12": {"rootfs": "/roots/py", "command": ["/bin/py", "-m", "ric", "{handler}"], "env": {"A": "1"}}}"#;
        let runtimes = Runtimes::parse(text).unwrap();
        let own = runtimes.find("python3.12").unwrap();
        assert_eq!(own.command("f.h", Some("/opt/wrap"), false), ["/bin/py", "-m", "ric", "f.h"]);
        assert_eq!(own.rootfs.as_deref(), Some(Path::new("/roots/py")));
        let command =
            |name: &str| runtimes.find(name).map(|runtime| runtime.command("f.h", None, false).join(" "));
        let wrapped =
            |name: &str| runtimes.find(name).unwrap().command("f.h", Some("/opt/wrap"), true).join(" ");
        assert_eq!(wrapped("python3.13"), "/opt/wrap python3 .stoker/run.py f.h");
        assert_eq!(wrapped("provided.al2"), "/opt/bootstrap");
        assert_eq!(command("python3.13").as_deref(), Ok("python3 .stoker/run.py f.h"));
        assert_eq!(command("nodejs22.x").as_deref(), Ok("node .stoker/run.cjs f.h"));
        assert_eq!(command("provided.al2023").as_deref(), Ok("./bootstrap"));
        for unknown in ["python2.7", "python3.", "nodejs22", "nodejs.x", "java21", "", "python3.x1"] {
            assert!(command(unknown).unwrap_err().contains("python3.12"), "{unknown}");
        }
    }

    #[test]
    fn what_code_is_put_on_is_where_the_code_is() {
        let check = |text: &str, registry| Runtimes::parse(text.as_bytes()).unwrap().check(registry);
        let image = r#"{"x": {"command": ["a"], "image": "registry.example/python:3"}}"#;
        let rootfs = r#"{"x": {"command": ["a"], "rootfs": "/roots/x"}}"#;
        let neither = r#"{"x": {"command": ["a"]}}"#;
        assert_eq!((check(image, true), check(rootfs, false)), (Ok(()), Ok(())));
        assert_eq!((check(neither, true), check(neither, false)), (Ok(()), Ok(())));
        assert!(check(image, false).unwrap_err().contains("oci://"));
        assert!(check(rootfs, true).unwrap_err().contains("image"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("[]", "write"),
            (r#"{"x": {}}"#, "command"),
            (r#"{"x": {"command": []}}"#, "command"),
            (r#"{"x": {"command": ["a"], "image": "B"}}"#, "lower case"),
            (r#"{"x": {"command": ["a"], "picture": "b"}}"#, "picture"),
            (r#"{"x": {"command": ["a"], "rootfs": "b"}}"#, "rootfs"),
        ] {
            let wrong = Runtimes::parse(text.as_bytes()).unwrap_err();
            assert!(wrong.contains(named), "{text}: {wrong}");
        }
    }
}
