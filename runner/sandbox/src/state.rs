//! A driver's directory on the host: who holds the name, and what would be left behind.
//!
//! A runner's name belongs to one live runner at a time (a lock that the kernel drops with the process). What it has
//! outside its processes is written down before it is made, so that the next runner of the name can remove it, whatever
//! happened to this one.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::handover::{FdNumber, InheritedFds, PassedFds};
use crate::{Error, cgroup};

/// The directory of one driver of one runner.
pub struct State {
    directory: PathBuf,
    /// Directories that this life made, the outermost first.
    made: Vec<PathBuf>,
    /// Holds the name.
    lock: File,
    /// Tells this life of the runner from others of its name.
    incarnation: String,
    /// See [`State::sockets`].
    sockets: PathBuf,
}

/// Longest path of a directory in which functions find theirs: the kernel takes no socket's path over 107 bytes, and a
/// sandbox's number, the directory's name and a function's names within it come behind.
const LONGEST: usize = 58;

/// What is in it.
const LOCK: &str = "runner.lock";
const SPAWNER_LOCK: &str = "spawner.lock";
const LIVES: &str = "lives";

/// A driver's directory as it is handed over: the life goes on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    directory: PathBuf,
    made: Vec<PathBuf>,
    lock: FdNumber,
    incarnation: String,
    sockets: PathBuf,
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
    /// [`Error::Taken`] when another live runner has it, [`Error::Platform`] when the directory cannot be made.
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
        let mut made = Vec::new();
        let lock = loop {
            made.extend(make_directories([state_dir, &state_dir.join(driver), &directory])?);
            let path = directory.join(LOCK);
            let lock = File::options().create(true).truncate(false).write(true).open(&path);
            let lock = match lock {
                // The last runner of the name has just left, and took the directory along.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock.map_err(fail)?,
            };
            flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                rustix::io::Errno::WOULDBLOCK => {
                    Error::Taken { name: name.to_owned(), state: state_dir.to_owned() }
                }
                error => fail(error.into()),
            })?;
            let (held, there) = (lock.metadata().map_err(fail)?, path.symlink_metadata());
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                break lock;
            }
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let incarnation = format!("{now:x}-{:x}", std::process::id());
        fs::create_dir_all(directory.join(LIVES)).map_err(fail)?;
        let mut state = Self { directory, made, lock, incarnation, sockets: PathBuf::new() };
        state.sockets = short_enough(state.life()).unwrap_or_else(|| {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let places = [runtime, Some("/run".into()), Some("/tmp".into())].into_iter().flatten();
            // Nobody else has made one of this name: it is as good as random.
            let writable = |place: &PathBuf| {
                place.is_absolute() && rustix::fs::access(place, rustix::fs::Access::WRITE_OK).is_ok()
            };
            let name = format!("{}{}", cgroup::PREFIX, state.incarnation);
            let here = places.filter(writable).find_map(|place| short_enough(place.join(&name)));
            here.unwrap_or_else(|| PathBuf::from("/tmp").join(name))
        });
        Ok(state)
    }

    /// The name, and all that is noted under it, for the next program of this process.
    ///
    /// # Errors
    /// As [`PassedFds::keep`].
    pub fn hand_over(&self, passed: &mut PassedFds) -> io::Result<Handed> {
        Ok(Handed {
            directory: self.directory.clone(),
            made: self.made.clone(),
            lock: passed.keep(&self.lock)?,
            incarnation: self.incarnation.clone(),
            sockets: self.sockets.clone(),
        })
    }

    /// Goes on with a life.
    ///
    /// # Errors
    /// When it is that of another driver, name or state directory, or its lock was not left.
    pub fn take_up(
        handed: Handed,
        state_dir: &Path,
        driver: &str,
        name: &str,
        inherited: &mut InheritedFds,
    ) -> io::Result<Self> {
        let Handed { directory, made, lock, incarnation, sockets } = handed;
        let lock = File::from(inherited.take(lock)?);
        if directory != state_dir.join(driver).join(name) {
            return Err(refused(format!("{} is the state of another runner", directory.display())));
        }
        Ok(Self { directory, made, lock, incarnation, sockets })
    }

    /// Where plain processes have the directories that they share with the runner. Within [`State::life`], unless that is so long
    /// that no socket in it could be bound.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Makes [`State::sockets`], for our user alone. After it was written down.
    ///
    /// # Errors
    /// [`Error::Platform`] when that fails.
    pub fn make_sockets(&self) -> Result<(), Error> {
        match fs::DirBuilder::new().mode(0o700).create(&self.sockets) {
            // This life's own directory, where that is short enough.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.sockets == self.life() => {
                Ok(())
            }
            made => made.map_err(|source| Error::Platform {
                step: format!("make {}, for the sockets of functions", self.sockets.display()),
                source,
            }),
        }
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
        self.directory.join(LIVES).join(format!("{}.json", self.incarnation))
    }

    /// The spawner's lock: held until it has cleared everything away.
    pub fn spawner_lock(&self) -> PathBuf {
        self.directory.join(SPAWNER_LOCK)
    }

    /// The last act: removes the directory, unless there is something in it that an earlier life left. Whoever wants the name next
    /// makes a new one.
    pub fn remove(&self) {
        // All of it may be gone already, or stay: then the next life clears it away.
        if fs::remove_dir(self.directory.join(LIVES)).is_err() {
            return;
        }
        for file in [SPAWNER_LOCK, LOCK] {
            fs::remove_file(self.directory.join(file)).ok();
        }
        fs::remove_dir(&self.directory).ok();
        // Directories around it go with the last runner in them, if they came with us.
        for directory in self.made.iter().rev().filter(|made| **made != self.directory) {
            fs::remove_dir(directory).ok();
        }
    }

    /// Writes down what this life may have, before it has it. A later word takes the place of an earlier one, whole.
    ///
    /// # Errors
    /// [`Error::Platform`] when that fails; then nothing may be made.
    pub fn write_down(&self, cgroups: Vec<PathBuf>) -> Result<(), Error> {
        let record = Record { cgroups, directories: vec![self.life(), self.sockets.clone()] };
        let path = self.record();
        let next = path.with_extension("new");
        serde_json::to_vec(&record)
            .map_err(io::Error::other)
            .and_then(|bytes| fs::write(&next, bytes))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|source| Error::Platform { step: format!("write {}", path.display()), source })
    }

    /// Whether a directory that a record names may be removed, whatever the record says: it is in our own, or carries our mark and
    /// belongs to our user.
    fn is_ours(&self, directory: &Path) -> bool {
        let marked = directory
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(cgroup::PREFIX));
        let owner = || directory.symlink_metadata().map(|metadata| metadata.uid());
        let own = || owner().is_ok_and(|owner| owner == rustix::process::geteuid().as_raw());
        directory.starts_with(&self.directory) || (marked && own())
    }

    /// Removes what earlier lives left: their processes, cgroups and directories. Says what it was.
    ///
    /// # Errors
    /// What could not be removed, after everything was tried.
    pub fn collect(&self) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        let mut failed = Vec::new();
        let Ok(entries) = fs::read_dir(self.directory.join(LIVES)) else { return Ok(removed) };
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
            for directory in record.directories.iter().filter(|directory| self.is_ours(directory)) {
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

/// Makes those directories that are not there, each in the one before, for our user alone, and says which. One that others can
/// write to, or that belongs to another, is refused: they could put something of theirs in the place of what we keep in it.
fn make_directories<const N: usize>(directories: [&Path; N]) -> Result<Vec<PathBuf>, Error> {
    let fail = |directory: &Path, source| Error::Platform {
        step: format!("use {} for the state of sandboxes", directory.display()),
        source,
    };
    let mut made = Vec::new();
    for (at, directory) in directories.into_iter().enumerate() {
        let make = || fs::DirBuilder::new().mode(0o700).create(directory);
        let outermost = at == 0;
        let done = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && outermost => {
                let around = directory.parent().unwrap_or(directory);
                fs::DirBuilder::new().recursive(true).mode(0o700).create(around).and_then(|()| make())
            }
            done => done,
        };
        match done {
            Ok(()) => made.push(directory.to_path_buf()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(fail(directory, error)),
        }
        let safe = if outermost { outermost_is_safe(directory) } else { is_ours_alone(directory) };
        safe.map_err(|error| fail(directory, error))?;
    }
    Ok(made)
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Nobody else can take it, or what leads to it, away.
fn outermost_is_safe(directory: &Path) -> io::Result<()> {
    let (own, whole) = (rustix::process::geteuid().as_raw(), fs::canonicalize(directory)?);
    for (distance, around) in whole.ancestors().enumerate() {
        let found = fs::metadata(around)?;
        let owner = found.uid();
        // What is further out is of the machine's making; in the next two somebody may have been before us.
        if distance < 2 && owner != own && owner != 0 {
            return Err(refused(format!("{} belongs to user {owner}, not to user {own}", around.display())));
        }
        // Where everybody may write and the sticky bit is set, as in /tmp, only the owner of something moves it.
        if found.mode() & 0o002 != 0 && found.mode() & 0o1000 == 0 {
            let mode = found.mode() & 0o7777;
            return Err(refused(format!("everybody may write to {} (mode {mode:o})", around.display())));
        }
    }
    Ok(())
}

/// A directory that we made, or could have made.
fn is_ours_alone(directory: &Path) -> io::Result<()> {
    let (own, found) = (rustix::process::geteuid().as_raw(), fs::symlink_metadata(directory)?);
    if !found.is_dir() {
        return Err(refused("it is no directory".to_owned()));
    }
    if found.uid() != own {
        return Err(refused(format!("it belongs to user {}, not to user {own}", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(refused(format!("others may write to it (mode {:o})", found.mode() & 0o7777)));
    }
    Ok(())
}

fn short_enough(path: PathBuf) -> Option<PathBuf> {
    (path.as_os_str().len() <= LONGEST).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(what: &str) -> (PathBuf, String) {
        let driver = format!("{what}{}", std::process::id());
        (std::env::temp_dir().join(format!("stoker-state-test-{driver}")), driver)
    }

    /// What can be taken away from us, or was put there for us, is not used.
    #[test]
    fn directories_of_others_are_refused() {
        use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
        let (top, _) = temporary("o");
        let open = |state_dir: &Path| match State::open(state_dir, "d", "r") {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let state = top.join("runner");
        assert_eq!(open(&state), "fine");
        mode(&top, 0o777);
        assert!(open(&state).contains("everybody may write to"), "{}", open(&state));
        mode(&top, 0o1777);
        assert_eq!(open(&state), "fine");
        mode(&state.join("d/r"), 0o770);
        assert!(open(&state).ends_with("others may write to it (mode 770)"), "{}", open(&state));
        fs::rename(state.join("d/r"), state.join("d/s")).unwrap();
        symlink(state.join("d/s"), state.join("d/r")).unwrap();
        assert!(open(&state).ends_with("it is no directory"), "{}", open(&state));
        fs::remove_file(state.join("d/r")).unwrap();
        if rustix::process::geteuid().is_root() {
            for foreign in [&top, &state, &state.join("d")] {
                chown(foreign, Some(64_243), None).unwrap();
                assert!(open(&state).contains("belongs to user 64243"), "{}", open(&state));
                chown(foreign, Some(0), None).unwrap();
            }
        }
        fs::remove_dir_all(top).unwrap();
    }

    /// Who leaves in order leaves nothing, and takes nothing from whoever has the name next.
    #[test]
    fn an_orderly_end_leaves_nothing() {
        let (top, _) = temporary("e");
        fs::create_dir(&top).unwrap();
        let state_dir = top.join("runner");
        let state = State::open(&state_dir, "d", "r").unwrap();
        state.write_down(Vec::new()).unwrap();
        state.remove();
        assert!(state.record().exists(), "a life that was not cleared away is kept for the next");
        fs::remove_file(state.record()).unwrap();
        let taken = State::open(&state_dir, "d", "r").err().unwrap().to_string();
        assert!(taken.contains("another live runner has the name \"r\""), "{taken}");
        state.remove();
        assert!(!state_dir.exists());
        let next = State::open(&state_dir, "d", "r").unwrap();
        drop(state);
        assert!(State::open(&state_dir, "d", "r").is_err(), "the name is held");
        next.remove();
        fs::remove_dir(top).unwrap();
    }

    /// A life that ended right after it had made its cgroups had said before which they might be.
    #[test]
    fn cgroups_are_found_by_what_was_said_before_they_were_made() {
        let (top, _) = temporary("w");
        let state = State::open(&top, "d", "r").unwrap();
        let name = state.cgroup_name("state-test");
        state.write_down(cgroup::Base::places(&name, None)).unwrap();
        let made = cgroup::Base::create(&name, None).directories();
        drop(state);
        let next = State::open(&top, "d", "r").unwrap();
        let removed = next.collect().unwrap();
        assert_eq!(removed.len(), made.len(), "{removed:?} of {made:?}");
        assert!(made.iter().all(|directory| !directory.exists()), "{made:?}");
        fs::remove_dir_all(top).unwrap();
    }

    /// A function must be able to bind a socket of a long name in its directory, wherever the state directory is.
    #[test]
    fn paths_of_sockets_are_short() {
        let driver = format!("s{}", std::process::id());
        let top = std::env::temp_dir().join(format!("stoker-state-test-{driver}"));
        for (state_dir, within) in
            [(top.clone(), false), (top.join("d".repeat(120)), false), ("/tmp".into(), true)]
        {
            let state = State::open(&state_dir, &driver, "r").unwrap();
            state.make_sockets().unwrap();
            let directory = state.sockets().join("ffffff").join("0123abcd");
            assert!(within || !state.sockets().starts_with(&state_dir), "{}", state.sockets().display());
            fs::create_dir_all(&directory).unwrap();
            std::os::unix::net::UnixListener::bind(directory.join("s".repeat(32))).unwrap();
            assert!(state.is_ours(state.sockets()));
            fs::remove_dir_all(state.sockets()).unwrap();
            fs::remove_dir_all(state_dir.join(&driver)).unwrap();
        }
        fs::remove_dir_all(top).unwrap();
    }
}
