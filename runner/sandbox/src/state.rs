//! A driver's directory on the host: who holds the name, and what would be left behind.
//!
//! A runner's name belongs to one live runner at a time (a lock that the kernel drops with the process). What it has
//! outside its processes is written down before it is made, so that the next runner of the name can remove it, whatever
//! happened to this one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{Error, cgroup};

/// The directory of one driver of one runner.
pub struct State {
    directory: PathBuf,
    /// Holds the name.
    _lock: File,
    /// Tells this life of the runner from others of its name.
    incarnation: String,
}

/// What a life of a runner has outside its processes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    cgroups: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl State {
    /// Takes the name.
    ///
    /// # Errors
    /// [`Error::Platform`] when another live runner has it, or the directory cannot be made.
    pub fn open(state_dir: &Path, driver: &str, name: &str) -> Result<Self, Error> {
        let valid = !name.is_empty()
            && name.len() <= 100
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !valid {
            return Err(Error::Platform {
                step: format!("use {name:?} as the name of a runner"),
                source: io::Error::new(io::ErrorKind::InvalidInput, "letters, digits, - _ . only"),
            });
        }
        let directory = state_dir.join(driver).join(name);
        let fail = |source| Error::Platform {
            step: format!("open the sandbox state directory {}", directory.display()),
            source,
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(fail)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("runner.lock"))
            .map_err(fail)?;
        flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|error| Error::Platform {
            step: format!("take the runner name {name:?} (another live runner has it)"),
            source: error.into(),
        })?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let incarnation = format!("{now:x}-{:x}", std::process::id());
        fs::create_dir_all(directory.join("lives")).map_err(fail)?;
        Ok(Self { directory, _lock: lock, incarnation })
    }

    /// The name of our cgroups.
    pub fn cgroup_name(&self, name: &str) -> String {
        format!("{}{name}.{}", cgroup::PREFIX, self.incarnation)
    }

    /// A directory of this life, for what the driver has to keep on the host.
    pub fn life(&self) -> PathBuf {
        self.directory.join(format!("life-{}", self.incarnation))
    }

    /// Where this life is written down.
    pub fn record(&self) -> PathBuf {
        self.directory.join("lives").join(format!("{}.json", self.incarnation))
    }

    /// The spawner's lock: held until it has cleared everything away.
    pub fn spawner_lock(&self) -> PathBuf {
        self.directory.join("spawner.lock")
    }

    /// Writes down what this life has.
    ///
    /// # Errors
    /// [`Error::Platform`] when that fails; then nothing may be made.
    pub fn write_down(&self, cgroups: Vec<PathBuf>) -> Result<(), Error> {
        let record = Record { cgroups, directories: vec![self.life()] };
        let path = self.record();
        serde_json::to_vec(&record)
            .map_err(io::Error::other)
            .and_then(|bytes| fs::write(&path, bytes))
            .map_err(|source| Error::Platform { step: format!("write {}", path.display()), source })
    }

    /// Removes what earlier lives left: their processes, cgroups and directories. Says what it was.
    ///
    /// # Errors
    /// What could not be removed, after everything was tried.
    pub fn collect(&self) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        let mut failed = Vec::new();
        let Ok(entries) = fs::read_dir(self.directory.join("lives")) else { return Ok(removed) };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.record()) {
            let record: Record = match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
                Ok(Ok(record)) => record,
                // Cut off while it was written: nothing was made yet.
                _ => Record::default(),
            };
            let failures = failed.len();
            for directory in record.cgroups.iter().filter(|directory| directory.exists()) {
                // Only what carries our mark, whatever the file says.
                let ours = directory
                    .file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(cgroup::PREFIX));
                if !ours {
                    continue;
                }
                let leaves = cgroup::children(directory);
                cgroup::kill_all(directory);
                match cgroup::remove_tree(directory) {
                    Ok(()) => removed.push(format!(
                        "cgroup {} with {} sandbox(es)",
                        directory.display(),
                        leaves.len()
                    )),
                    Err(error) => failed.push(format!("{}: {error}", directory.display())),
                }
            }
            for directory in
                record.directories.iter().filter(|directory| directory.starts_with(&self.directory))
            {
                match fs::remove_dir_all(directory) {
                    Ok(()) => removed.push(format!("directory {}", directory.display())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => failed.push(format!("{}: {error}", directory.display())),
                }
            }
            if failed.len() == failures
                && let Err(error) = fs::remove_file(&path)
            {
                failed.push(format!("{}: {error}", path.display()));
            }
        }
        if failed.is_empty() {
            return Ok(removed);
        }
        Err(Error::Platform {
            step: "remove what an earlier runner left behind".to_owned(),
            source: io::Error::other(failed.join("; ")),
        })
    }
}
