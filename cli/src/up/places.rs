//! What a fleet keeps on disk: where that is, that nobody else uses it, and that it goes when it is of no more use.
//!
//! With `--state DIR`, functions are in the directory and runners below it; it is locked, since two fleets that wrote one file would
//! undo each other's changes. Without, runners are below the temporary directory, in one of our user's own: that place can be guessed, so one
//! that somebody else made there beforehand is refused.
//!
//! A fleet on a fixed port has runners of fixed names: each removes what the one before it left. A fleet on any free port has a directory
//! of its own, which is removed at the end. One that was killed leaves its directory; the next fleet of this kind takes it over, and the
//! name with it, so that its runners remove what is left there and none is left for ever.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::failure::Failure;

/// Held by the fleet whose directory it is in. Locks are let go by the kernel with the process.
const LOCK: &str = "up.lock";

/// See the module.
pub struct Places {
    /// Of `--state`, and its lock.
    state: Option<(PathBuf, File)>,
    /// Above the runners of this fleet, and of others that share it.
    base: PathBuf,
    runners: PathBuf,
    /// Of a fleet of its own: the directory's lock.
    own: Option<File>,
}

impl Places {
    /// Takes the places of a fleet. `own` names one that has a directory of its own.
    pub fn take(state: Option<&Path>, own: Option<&str>) -> Result<Self, Failure> {
        let state = match state {
            None => None,
            Some(directory) => Some(take_state(directory)?),
        };
        let base = match &state {
            Some((directory, _)) => directory.join("runners"),
            // The user's id keeps two users of one machine apart.
            None => {
                let user = rustix::process::geteuid().as_raw();
                private(std::env::temp_dir().join(format!("stoker-{user}")), user)?
            }
        };
        let base = std::path::absolute(&base).unwrap_or(base);
        let Some(name) = own else {
            return Ok(Self { state, runners: base.clone(), base, own: None });
        };
        let (runners, lock) =
            take_own(&base, name).map_err(|error| failed(&base, &format!("cannot be used: {error}")))?;
        Ok(Self { state, base, runners, own: Some(lock) })
    }

    /// Everything that fleets write of their own accord.
    pub fn all(&self) -> Vec<PathBuf> {
        let state = self.state.iter().map(|(directory, _)| directory);
        state
            .map(|directory| std::path::absolute(directory).unwrap_or_else(|_| directory.clone()))
            .chain([self.base.clone()])
            .collect()
    }

    /// The file of functions, if they are kept.
    pub fn functions(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|(directory, _)| directory.join("functions.json"))
    }

    /// Where calls for later are kept: with the functions, or as long as this fleet lives.
    pub fn queue(&self, name: &str) -> PathBuf {
        match &self.state {
            Some((directory, _)) => directory.join("queue"),
            None => self.runners.join(format!("{name}-queue")),
        }
    }

    /// Where code is kept that comes as a zip: with the functions, or for the fleets of this name.
    pub fn code(&self, name: &str) -> PathBuf {
        match &self.state {
            // Runners know it by this path too, wherever they are started.
            Some((directory, _)) => {
                std::path::absolute(directory).unwrap_or_else(|_| directory.clone()).join("code")
            }
            None => self.runners.join(format!("{name}-code")),
        }
    }

    /// Forgets the calls that an earlier fleet of this name left, where they are not to be kept.
    pub fn clear_queue(&self, name: &str) -> Result<(), Failure> {
        if self.state.is_some() {
            return Ok(());
        }
        let queue = self.queue(name);
        match fs::remove_dir_all(&queue) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&queue, &format!("cannot be removed: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Where each runner has a directory of its name.
    pub fn runners(&self) -> &Path {
        &self.runners
    }

    /// The name that goes with a directory of its own; not the one that was asked for if it was taken over.
    pub fn name(&self) -> Option<&str> {
        self.own.as_ref().and_then(|_| self.runners.file_name()?.to_str())
    }
}

impl Drop for Places {
    /// A directory of its own goes, unless a runner left something there that is still to be removed.
    fn drop(&mut self) {
        if self.own.is_none() {
            return;
        }
        let entries = fs::read_dir(&self.runners).into_iter().flatten().flatten();
        let left = entries.filter(|entry| entry.file_name() != LOCK && !prune(&entry.path())).count();
        if left == 0 {
            // The lock is still held: see `lock_own` for one who opens it now.
            fs::remove_file(self.runners.join(LOCK)).ok();
            fs::remove_dir(&self.runners).ok();
        }
    }
}

/// Removes a directory in which there are only directories; says whether it is gone.
fn prune(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    // As much as can go, goes.
    let left = entries.flatten().filter(|entry| !prune(&entry.path())).count();
    left == 0 && fs::remove_dir(directory).is_ok()
}

fn failed(directory: &Path, why: &str) -> Failure {
    Failure::usage(format!("{} {why}", directory.display()), "name another directory with --state")
}

fn take_state(directory: &Path) -> Result<(PathBuf, File), Failure> {
    fs::create_dir_all(directory).map_err(|error| failed(directory, &format!("cannot be made: {error}")))?;
    let file = directory.join(LOCK);
    let open = || File::options().create(true).truncate(false).write(true).open(&file);
    let lock = open().map_err(|error| failed(directory, &format!("cannot be written: {error}")))?;
    match lock.try_lock() {
        Ok(()) => Ok((directory.to_owned(), lock)),
        Err(TryLockError::WouldBlock) => {
            let text = format!("another `stoker up` keeps its functions in {}", directory.display());
            Err(Failure::usage(text, "stop it, or take another directory with --state"))
        }
        Err(TryLockError::Error(error)) => Err(failed(directory, &format!("cannot be locked: {error}"))),
    }
}

/// A directory for this user alone; made now, or by this user before.
fn private(directory: PathBuf, user: u32) -> Result<PathBuf, Failure> {
    match fs::DirBuilder::new().mode(0o700).create(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(&directory, &format!("cannot be made: {error}"))),
    }
    // Not by its path: what is looked at must be the directory itself, and no link to another.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&directory, flags, Mode::empty()).map(File::from);
    let found = opened.map_err(io::Error::from).and_then(|opened| opened.metadata());
    let metadata = found.map_err(|error| failed(&directory, &format!("is no directory of ours: {error}")))?;
    let mode = metadata.mode() & 0o7777;
    let why = if metadata.uid() != user {
        format!("belongs to user {}: whoever made it could change what is run here", metadata.uid())
    } else if mode & 0o022 != 0 {
        format!("can be written by others (its mode is {mode:o}): they could change what is run here")
    } else {
        return Ok(directory);
    };
    let advice = "remove it, or name another directory with --state (or, for what is temporary, with TMPDIR)";
    Err(Failure::usage(format!("{} {why}", directory.display()), advice))
}

/// A directory that a fleet of this kind left when it was killed, or a new one of this name; with its lock.
fn take_own(base: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(base)?;
    for entry in fs::read_dir(base)?.flatten() {
        let directory = entry.path();
        // Those of fixed names have no lock.
        if directory.join(LOCK).is_file()
            && let Some(lock) = lock_own(&directory)?
        {
            return Ok((directory, lock));
        }
    }
    let directory = base.join(name);
    loop {
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(lock) = lock_own(&directory)? {
            return Ok((directory, lock));
        }
    }
}

/// Locks a directory; `None` if another fleet has it, or has just removed it.
fn lock_own(directory: &Path) -> io::Result<Option<File>> {
    let file = directory.join(LOCK);
    let lock = match File::options().create(true).truncate(false).write(true).open(&file) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever had it may have removed the directory between our opening and our locking.
    let same = fs::metadata(&file).is_ok_and(|now| lock.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
    Ok(same.then_some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_directory_that_somebody_else_could_have_made_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("stoker-1");
        assert_eq!(private(place.clone(), user()).unwrap(), place);
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
        assert!(private(place.clone(), user()).is_ok(), "it is ours");
        let refused = |says: &str| {
            let failure = private(place.clone(), user()).unwrap_err();
            assert!(failure.what().contains(says), "{}", failure.what());
        };
        for mode in [0o777, 0o770, 0o702] {
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            refused("can be written by others");
        }
        fs::remove_dir(&place).unwrap();
        symlink(top.path(), &place).unwrap();
        refused("is no directory of ours");
        fs::remove_file(&place).unwrap();
        fs::write(&place, "").unwrap();
        refused("is no directory of ours");
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        let failure = private(place, user() + 1).unwrap_err();
        assert!(failure.what().contains(&format!("belongs to user {}", user())), "{}", failure.what());
    }

    #[test]
    fn a_state_directory_has_one_fleet() {
        let top = tempfile::tempdir().unwrap();
        let state = top.path().join("a/state");
        let first = Places::take(Some(&state), None).unwrap();
        assert_eq!(first.functions(), Some(state.join("functions.json")));
        assert_eq!((first.runners(), first.name()), (state.join("runners").as_path(), None));
        let failure = Places::take(Some(&state), None).err().unwrap();
        assert!(
            failure.what().starts_with("another `stoker up` keeps its functions in"),
            "{}",
            failure.what()
        );
        drop(first);
        assert!(Places::take(Some(&state), None).is_ok());
    }

    #[test]
    fn a_directory_of_its_own_goes_at_the_end() {
        let top = tempfile::tempdir().unwrap();
        let places = Places::take(Some(top.path()), Some("runner-p1")).unwrap();
        assert_eq!(places.name(), Some("runner-p1"));
        let runners = places.runners().to_owned();
        fs::create_dir_all(runners.join("runner-p1-1/native/runner-p1-1/lives")).unwrap();
        drop(places);
        assert!(!runners.exists());
    }

    #[test]
    fn what_was_left_is_taken_over_and_kept_while_it_is_needed() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path().to_owned();
        let (first, lock) = take_own(&base, "runner-p1").unwrap();
        let (second, _second_lock) = take_own(&base, "runner-p2").unwrap();
        assert_eq!((first.clone(), second), (base.join("runner-p1"), base.join("runner-p2")));
        let record = first.join("runner-p1-1/native/runner-p1-1/lives/one.json");
        fs::create_dir_all(record.parent().unwrap()).unwrap();
        fs::write(&record, "{}").unwrap();
        // Killed: only the lock is gone.
        drop(lock);
        let (third, lock) = take_own(&base, "runner-p3").unwrap();
        assert_eq!(third, first);
        let places = Places { state: None, base: base.clone(), runners: third, own: Some(lock) };
        assert_eq!(places.name(), Some("runner-p1"));
        drop(places);
        assert!(record.exists(), "it says what is still to be removed");
        let (fourth, _lock) = take_own(&base, "runner-p4").unwrap();
        assert_eq!(fourth, first);
    }
}
