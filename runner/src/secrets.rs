//! The secrets of functions: files that the operator puts on the runner, and Kubernetes where it mounts them.
//!
//! A function names them, and they are read for each launch: what is replaced is what the next container gets. An app has a directory of its
//! own, so that whoever may change the functions of one app reads no secret of another. Their values go into the environment of the function's process
//! and nowhere else.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use stoker_core::function::FunctionSpec;
use stoker_core::secret::SecretName;

use crate::container::LaunchError;

/// Bytes of one secret.
const LARGEST: u64 = 64 << 10;

/// Where they are: `DIRECTORY/APP/NAME`, or `DIRECTORY/APP/NAME/KEY`.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Option<PathBuf>);

impl Secrets {
    /// Those in this directory; none without one.
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self(directory)
    }

    /// The variables of a function whose values are secrets, as they are now.
    ///
    /// # Errors
    /// One is not there, or is none: another runner may have it. What is in a file is not repeated.
    pub async fn resolve(&self, spec: &FunctionSpec) -> Result<Vec<(String, String)>, LaunchError> {
        if spec.secrets.is_empty() {
            return Ok(Vec::new());
        }
        let Some(directory) = &self.0 else {
            let text = "the function's env names secrets, and this runner has none: give it `secrets`";
            return Err(LaunchError::Platform(text.to_owned()));
        };
        let (app, wanted) = (directory.join(spec.name.app()), spec.secrets.clone());
        // Files may be on a slow disk, and calls are served on this thread.
        let read = tokio::task::spawn_blocking(move || {
            let one = |(variable, name): (_, SecretName)| Ok((variable, read(&app, &name)?));
            wanted.into_iter().map(one).collect::<Result<Vec<_>, String>>()
        });
        match read.await {
            Ok(read) => read.map_err(LaunchError::Platform),
            Err(error) => Err(LaunchError::Platform(format!("the secrets were not read: {error}"))),
        }
    }
}

fn read(app: &Path, name: &SecretName) -> Result<String, String> {
    let wrong = |why: &dyn std::fmt::Display| {
        format!("the secret `{name}` of the function's app cannot be used: {why}")
    };
    let file = std::fs::File::open(app.join(name.as_str())).map_err(|error| wrong(&error))?;
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err(wrong(&"it is no file: of several values one is named like NAME/KEY"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(wrong(&format!("it has more than {LARGEST} bytes")));
    }
    // Most editors end a file so; a variable has no NUL.
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(wrong(&"it is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::FunctionName;

    fn spec(app: &str, secrets: &[(&str, &str)]) -> FunctionSpec {
        let mut spec = FunctionSpec::new(FunctionName::new(app, "f").unwrap(), vec!["x".into()], "/".into());
        spec.secrets =
            secrets.iter().map(|(k, v)| ((*k).to_owned(), SecretName::parse(v).unwrap())).collect();
        spec
    }

    #[tokio::test]
    async fn the_next_launch_has_what_is_there_and_an_app_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let app = directory.path().join("shop");
        // As Kubernetes mounts them: links into a directory that is swapped at once.
        std::fs::create_dir_all(app.join("db/..1")).unwrap();
        std::fs::write(app.join("db/..1/password"), "first\n").unwrap();
        std::os::unix::fs::symlink("..1", app.join("db/..data")).unwrap();
        std::os::unix::fs::symlink("..data/password", app.join("db/password")).unwrap();
        std::fs::write(app.join("key"), "plain").unwrap();
        let secrets = Secrets::new(Some(directory.path().to_owned()));
        let wanted = spec("shop", &[("PASSWORD", "db/password"), ("KEY", "key")]);
        let of = async || secrets.resolve(&wanted).await.unwrap();
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(of().await, [pair("KEY", "plain"), pair("PASSWORD", "first")]);
        std::fs::create_dir(app.join("db/..2")).unwrap();
        std::fs::write(app.join("db/..2/password"), "second").unwrap();
        std::os::unix::fs::symlink("..2", app.join("db/..tmp")).unwrap();
        std::fs::rename(app.join("db/..tmp"), app.join("db/..data")).unwrap();
        assert_eq!(of().await[1], pair("PASSWORD", "second"));

        let refused = async |spec: FunctionSpec| match secrets.resolve(&spec).await {
            Err(LaunchError::Platform(why)) => why,
            other => panic!("{other:?}"),
        };
        let other = refused(spec("other", &[("P", "db/password")])).await;
        assert!(other.contains("`db/password`") && !other.contains("second"), "{other}");
        assert!(refused(spec("shop", &[("P", "db")])).await.contains("it is no file"));
        std::fs::write(app.join("key"), b"hun\0ter2").unwrap();
        let why = refused(spec("shop", &[("P", "key")])).await;
        assert!(why.contains("no text") && !why.contains("ter2"), "{why}");
        let none = Secrets::default().resolve(&wanted).await;
        assert!(matches!(none, Err(LaunchError::Platform(why)) if why.contains("give it `secrets`")));
    }
}
