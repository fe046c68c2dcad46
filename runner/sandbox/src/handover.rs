//! What a process leaves to the program that takes its place.
//!
//! `execve` keeps the process: its id, its children, its locks, and every descriptor that is not marked to be closed. Only its memory and
//! its threads go. So a runner is upgraded in place by becoming the new program, and what holds its sandboxes is never let go of:
//! at no moment do two runners have them, or none. [`PassedFds`] gather the descriptors that stay open, and become the program;
//! [`InheritedFds`] are what that finds. Whatever was not passed closes, and what hung on it ends as at any other end of a runner.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Base;
use crate::init_sandbox::Held;
use crate::{User, contained, state, supervisor, sys};

/// What spawner and inits understand. They live on as the program that they were started from, so whoever takes them up must speak as
/// that did: raised with every change to what is said to them.
pub const PROTOCOL: u32 = 2;

/// The variable that tells a program of what it inherits: the number of a descriptor.
const VARIABLE: &str = "STOKER_HANDOVER";
/// The name of the file behind it, for whoever looks at `/proc`.
const NAME: &str = "stoker-handover";

/// From here on SIGINT and SIGTERM end the process by themselves, as they do with any program that does not listen for them yet. What this program were
/// told now the next one would not know.
pub fn give_back_signals() {
    sys::default_signals(&[libc::SIGINT, libc::SIGTERM]);
}

/// A descriptor that stays open, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdNumber(i32);

/// Descriptors that are to stay open. Dropping it keeps none of them.
#[derive(Debug, Default)]
pub struct PassedFds(Vec<OwnedFd>);

/// What is written down for the program, which may be of an older release.
#[derive(Serialize, Deserialize)]
struct Manifest<T> {
    /// Whose it is: a program that was started by that process finds the variable, too.
    pid: u32,
    descriptors: Vec<i32>,
    /// Named as releases read it that have another word for it.
    #[serde(rename = "estate")]
    payload: T,
}

impl PassedFds {
    /// Has a copy of this descriptor stay open.
    ///
    /// # Errors
    /// When there are too many.
    pub fn keep(&mut self, descriptor: impl AsFd) -> io::Result<FdNumber> {
        // Away from the low numbers, which mean something to every program.
        let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, 10)?;
        let kept = FdNumber(copy.as_raw_fd());
        self.0.push(copy);
        Ok(kept)
    }

    /// Becomes this program, which finds `payload` in its [`InheritedFds`]. Nothing may be started meanwhile: it would inherit, too.
    /// Returns only when that cannot be, and why: then nothing has changed but what SIGHUP and SIGUSR2 do, which is nothing.
    pub fn become_program(self, program: &mut Command, payload: &impl Serialize) -> io::Error {
        match self.write_down(payload) {
            Ok(manifest) => {
                // Until the program listens for them they would end it.
                sys::ignore_signals(&[libc::SIGHUP, libc::SIGUSR2]);
                program.env(VARIABLE, manifest.as_raw_fd().to_string()).exec()
            }
            Err(error) => error,
        }
    }

    fn write_down(&self, payload: &impl Serialize) -> io::Result<OwnedFd> {
        let manifest = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        let manifest = rustix::io::fcntl_dupfd_cloexec(manifest, 10)?;
        let mut file = File::from(manifest);
        let descriptors = self.0.iter().map(AsRawFd::as_raw_fd).chain([file.as_raw_fd()]).collect();
        let text = serde_json::to_vec(&Manifest { pid: std::process::id(), descriptors, payload })?;
        file.write_all(&text)?;
        file.rewind()?;
        for descriptor in self.0.iter().map(AsFd::as_fd).chain([file.as_fd()]) {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(file.into())
    }
}

/// The descriptors that the process's former program has left. Those that nobody takes close with it.
#[derive(Debug)]
pub struct InheritedFds(HashMap<i32, OwnedFd>);

impl InheritedFds {
    /// What this program inherits, if it does. To be asked once, before anything is opened or started.
    ///
    /// # Errors
    /// When there is something, and it cannot be understood.
    pub fn find<T: DeserializeOwned>() -> io::Result<Option<(T, Self)>> {
        let Some(path) = std::env::var(VARIABLE).ok().and_then(|number| {
            let number: u32 = number.parse().ok()?;
            Some(PathBuf::from(format!("/proc/self/fd/{number}")))
        }) else {
            return Ok(None);
        };
        // The number may be anything by now: in a program that the one that inherited has started.
        let is_ours = |link: &Path| link.to_string_lossy().starts_with(&format!("/memfd:{NAME}"));
        if !std::fs::read_link(&path).is_ok_and(|link| is_ours(&link)) {
            return Ok(None);
        }
        let mut text = Vec::new();
        File::open(&path)?.read_to_end(&mut text)?;
        let manifest: Manifest<serde_json::Value> = serde_json::from_slice(&text)?;
        if manifest.pid != std::process::id() {
            return Ok(None);
        }
        // Before anything that can fail: what stays open by accident keeps a sandbox alive.
        let open = |number: &i32| sys::inherit(*number).ok().map(|descriptor| (*number, descriptor));
        let inherited = Self(manifest.descriptors.iter().filter_map(open).collect());
        let payload = serde_json::from_value(manifest.payload)?;
        Ok(Some((payload, inherited)))
    }

    /// Takes a descriptor.
    ///
    /// # Errors
    /// When it was not left, or was taken before.
    pub fn take(&mut self, kept: FdNumber) -> io::Result<OwnedFd> {
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("descriptor {} was not handed over", kept.0));
        self.0.remove(&kept.0).ok_or_else(missing)
    }
}

/// A driver as it is handed over, with what its sandboxes share.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedDriver {
    pub(crate) driver: String,
    pub(crate) state: state::Handed,
    pub(crate) base: Base,
    pub(crate) holder: HandedHolder,
}

/// The process that ends a driver's sandboxes with the runner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum HandedHolder {
    Spawner {
        spawner: supervisor::client::Handed,
        /// How many names of cgroups and of shared directories were given.
        leaves: u64,
        directories: u64,
    },
    Monitor {
        monitor: supervisor::client::Handed,
        program: contained::Program,
        /// How many containers were made.
        containers: u64,
    },
}

impl HandedDriver {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.driver
    }
}

/// A sandbox as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedSandbox {
    pub(crate) id: String,
    /// Whom the function is to the host, where that is not our own user.
    pub(crate) owner: Option<User>,
    /// See [`crate::Spec::stays`].
    pub(crate) stays: bool,
    pub(crate) control: FdNumber,
    /// Its init.
    pub(crate) init: FdNumber,
    /// The directory shared with it, and its path inside.
    pub(crate) shared: Option<(FdNumber, PathBuf)>,
    /// Launch stream and pipes of a process that is parked.
    pub(crate) parked: Option<[FdNumber; 4]>,
    /// The most memory that its init saw.
    pub(crate) watched: u64,
    pub(crate) held: Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was kept is written down under its number, and stays what it was.
    #[test]
    fn a_manifest_names_every_descriptor_that_stays_open() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut passed = PassedFds::default();
        let kept = [passed.keep(&read).unwrap(), passed.keep(&write).unwrap()];
        assert!(kept[0] != kept[1] && kept.iter().all(|kept| kept.0 >= 10));
        let manifest = passed.write_down(&("payload", kept)).unwrap();
        let mut text = String::new();
        File::from(manifest.try_clone().unwrap()).read_to_string(&mut text).unwrap();
        let read: Manifest<(String, [FdNumber; 2])> = serde_json::from_str(&text).unwrap();
        assert_eq!(read.pid, std::process::id());
        assert_eq!(read.descriptors, [kept[0].0, kept[1].0, manifest.as_raw_fd()]);
        assert_eq!(read.payload, ("payload".to_owned(), kept));
        for descriptor in passed.0.iter().chain([&manifest]) {
            assert_eq!(rustix::io::fcntl_getfd(descriptor).unwrap(), FdFlags::empty());
        }
    }

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut inherited = InheritedFds(HashMap::from([(10, File::open("/dev/null").unwrap().into())]));
        inherited.take(FdNumber(10)).unwrap();
        assert!(inherited.take(FdNumber(10)).is_err());
        assert!(inherited.take(FdNumber(11)).is_err());
    }
}
