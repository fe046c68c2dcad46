//! The secrets of functions: files that the operator puts on the runner, and Kubernetes where it mounts them.
//!
//! A function names them, and they are read for each launch: what is replaced is what the next container gets. An app has a directory of its
//! own, so that whoever may change the functions of one app reads no secret of another. Their values go into the environment of the function's process
//! and nowhere else: of those that a container was launched with a [`Print`] is kept, so that one with former values is known. When to compare, a
//! [`Watch`] says; what becomes of such containers is the [pool](crate::pool)'s to decide.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stoker_core::ContainerId;
use stoker_core::function::FunctionSpec;
use stoker_core::secret::SecretName;
use stoker_runtime::reload::{Changed, Directories};

use crate::container::LaunchError;

/// Bytes of one secret.
const LARGEST: u64 = 64 << 10;
/// Directories that are watched at most: the kernel's are for all programs of a user.
const WATCHED: usize = 4096;

/// Where they are: `DIRECTORY/APP/NAME`, or `DIRECTORY/APP/NAME/KEY`.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Option<PathBuf>);

impl Secrets {
    /// Those in this directory; none without one.
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self(directory)
    }

    /// What tells when they change; `None` where there are none.
    pub fn watch(&self) -> Option<Watch> {
        let root = self.0.clone()?;
        let directories = Directories::new().map_err(|error| blind(&error)).ok();
        Some(Watch { root, directories, complete: true })
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

/// By what two sets of values differ, for one container: nobody sees by it that two containers have the same.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print([u8; 32]);

impl Print {
    /// Of what this container is launched with.
    pub fn of(container: &ContainerId, values: &[(String, String)]) -> Self {
        let mut hash = Sha256::new();
        let parts = values.iter().flat_map(|(variable, value)| [variable.as_str(), value.as_str()]);
        for part in std::iter::once(container.as_str()).chain(parts) {
            // With its length, so that no two lists look the same.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for Print {
    /// Short values could be guessed by it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Print(…)")
    }
}

/// Tells when secrets that are in use may have changed.
///
/// Directories are watched: those in which the files are, and those above, since each of them may be a link that is swapped, or be put in the place of
/// another. Where the kernel watches nothing it never tells.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    directories: Option<Directories>,
    /// All of them are watched that should be; where not, that was said.
    complete: bool,
}

impl Watch {
    /// Watches for these functions, and for no others any more, with everything where it is now.
    pub fn cover<'s>(&mut self, specs: impl IntoIterator<Item = &'s FunctionSpec>) {
        let Some(directories) = &mut self.directories else { return };
        let wanted: BTreeSet<_> = specs.into_iter().flat_map(|spec| places(&self.root, spec)).collect();
        let (count, most) = (wanted.len(), WATCHED);
        let mut unwatched = directories.watch(wanted.into_iter().take(most));
        // When there is one, the one above tells.
        unwatched.retain(|(_, error)| {
            !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        });
        let complete = count <= most && unwatched.is_empty();
        if self.complete && !complete {
            let first = unwatched.first();
            tracing::warn!(
                directories = count, most, first = ?first,
                "some directories of secrets are not watched: what changes in them is seen at launches alone"
            );
        }
        self.complete = complete;
    }

    /// Returns when something may have changed.
    pub async fn changed(&mut self) -> Changed {
        if let Some(directories) = &self.directories {
            match directories.changed(|_| true).await {
                Ok(changed) => return changed,
                Err(error) => blind(&error),
            }
            self.directories = None;
        }
        std::future::pending().await
    }

    /// Returns when nothing has changed for a moment, with what did.
    pub async fn quiet(&self) -> Changed {
        match &self.directories {
            // If it fails, so does the next.
            Some(directories) => directories.quiet(|_| true).await.unwrap_or_default(),
            None => Changed::default(),
        }
    }

    /// Whether what changed may be a secret of this function.
    pub fn concerns(&self, changed: &Changed, spec: &FunctionSpec) -> bool {
        places(&self.root, spec).iter().any(|place| changed.is_in(place))
    }
}

/// Where a change may be one of a function's secrets.
fn places(root: &Path, spec: &FunctionSpec) -> BTreeSet<PathBuf> {
    let app = root.join(spec.name.app());
    let names = spec.secrets.values().map(|name| app.join(name.as_str()));
    let mut places: BTreeSet<_> = names.filter_map(|file| Some(file.parent()?.to_owned())).collect();
    places.extend([root.to_owned(), app]);
    places
}

fn blind(error: &io::Error) {
    tracing::warn!(%error, "secrets are not watched: what is replaced is seen at launches alone");
}

fn read(app: &Path, name: &SecretName) -> Result<String, String> {
    let wrong =
        |why: &dyn fmt::Display| format!("the secret `{name}` of the function's app cannot be used: {why}");
    // A pipe would have its reader wait for somebody who writes.
    let at_once = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = std::fs::File::options().read(true).custom_flags(at_once).open(app.join(name.as_str()));
    let file = opened.map_err(|error| wrong(&error))?;
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

    /// Puts a directory with one key where Kubernetes has a secret, as it does.
    fn swap(secret: &Path, version: &str, value: &str) {
        std::fs::create_dir_all(secret.join(version)).unwrap();
        std::fs::write(secret.join(version).join("password"), value).unwrap();
        std::os::unix::fs::symlink(version, secret.join("..tmp")).unwrap();
        std::fs::rename(secret.join("..tmp"), secret.join("..data")).unwrap();
        if !secret.join("password").exists() {
            std::os::unix::fs::symlink("..data/password", secret.join("password")).unwrap();
        }
    }

    #[tokio::test]
    async fn what_changes_is_told_of_the_functions_that_use_it() {
        let directory = tempfile::tempdir().unwrap();
        let secret = |app: &str| directory.path().join(app).join("db");
        swap(&secret("shop"), "..1", "first");
        swap(&secret("bank"), "..1", "first");
        let secrets = Secrets::new(Some(directory.path().to_owned()));
        let shop = spec("shop", &[("P", "db/password")]);
        let bank = spec("bank", &[("P", "db/password"), ("KEY", "key")]);
        let mut watch = secrets.watch().unwrap();
        let all = [&shop, &bank];
        watch.cover(all);
        let next = async |watch: &mut Watch| {
            let limit = std::time::Duration::from_secs(60);
            let mut changed = tokio::time::timeout(limit, watch.changed()).await.expect("it is told");
            changed.extend(watch.quiet().await);
            let concerned = all.map(|spec| watch.concerns(&changed, spec));
            // As after each.
            watch.cover(all);
            concerned
        };
        swap(&secret("shop"), "..2", "second");
        assert_eq!(next(&mut watch).await, [true, false]);
        // A file that comes, is written where it is, or is replaced by another.
        std::fs::write(directory.path().join("bank/key"), "1").unwrap();
        assert_eq!(next(&mut watch).await, [false, true]);
        std::fs::write(directory.path().join("bank/key"), "2").unwrap();
        assert_eq!(next(&mut watch).await, [false, true]);
        std::fs::write(directory.path().join("bank/..new"), "3").unwrap();
        std::fs::rename(directory.path().join("bank/..new"), directory.path().join("bank/key")).unwrap();
        assert_eq!(next(&mut watch).await, [false, true]);
        // Another directory takes the place of one, and is the one that is watched.
        swap(&directory.path().join("new"), "..1", "third");
        assert_eq!(next(&mut watch).await, [true, true], "somebody's may be there");
        std::fs::rename(secret("shop"), directory.path().join("old")).unwrap();
        std::fs::rename(directory.path().join("new"), secret("shop")).unwrap();
        assert!(next(&mut watch).await[0]);
        swap(&secret("shop"), "..2", "fourth");
        assert_eq!(next(&mut watch).await, [true, false]);
        // Who is not covered any more is not watched.
        watch.cover([&bank]);
        swap(&secret("shop"), "..3", "fifth");
        std::fs::write(directory.path().join("bank/key"), "4").unwrap();
        assert_eq!(next(&mut watch).await, [false, true]);
    }

    #[test]
    fn values_differ_in_their_prints_and_containers_too() {
        let pairs = |all: &[(&str, &str)]| -> Vec<_> {
            all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let id = |seq| ContainerId::new(stoker_core::Incarnation(7), seq);
        let print = |seq, all: &[(&str, &str)]| Print::of(&id(seq), &pairs(all));
        let first = print(1, &[("A", "1"), ("B", "23")]);
        assert_eq!(first, print(1, &[("A", "1"), ("B", "23")]));
        assert_ne!(first, print(1, &[("A", "1"), ("B", "24")]));
        assert_ne!(first, print(1, &[("A", "12"), ("B", "3")]));
        assert_ne!(first, print(2, &[("A", "1"), ("B", "23")]));
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
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, app.join("pipe"), kind, mode, 0).unwrap();
        assert!(refused(spec("shop", &[("P", "pipe")])).await.contains("it is no file"));
        std::fs::write(app.join("key"), b"hun\0ter2").unwrap();
        let why = refused(spec("shop", &[("P", "key")])).await;
        assert!(why.contains("no text") && !why.contains("ter2"), "{why}");
        let none = Secrets::default().resolve(&wanted).await;
        assert!(matches!(none, Err(LaunchError::Platform(why)) if why.contains("give it `secrets`")));
    }
}
