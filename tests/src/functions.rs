//! Functions for tests: the probe that misbehaves on demand, and one-liners of the shell.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_core::function::{Format, FunctionName, FunctionSpec, Trigger};

use crate::program;

/// The app of every test function.
pub const APP: &str = "t";

/// A function of [`APP`] that runs this command in the directory of the test programs.
///
/// # Panics
/// When `name` is no name.
#[must_use]
pub fn function(name: &str, command: &[&str]) -> FunctionSpec {
    let directory = program("probe").parent().map(Path::to_path_buf).unwrap_or_default();
    let command = command.iter().map(ToString::to_string).collect();
    let mut spec = FunctionSpec::new(FunctionName::new(APP, name).unwrap(), command, directory);
    spec.memory = 64 << 20;
    spec.timeout_ms = 20_000;
    spec.init_timeout_ms = 20_000;
    spec
}

/// The probe: `http-stream`, does what each call says.
#[must_use]
pub fn probe(name: &str) -> FunctionSpec {
    let mut spec = function(name, &[&program("probe").to_string_lossy()]);
    spec.format = Format::HttpStream;
    spec
}

/// The probe, told what to do before it listens.
#[must_use]
pub fn probe_that(name: &str, start: &str) -> FunctionSpec {
    probe(name).with_env("PROBE_START", start)
}

/// A script of the shell in the format `default`: STDIN is the request, STDOUT the answer.
#[must_use]
pub fn shell(name: &str, script: &str) -> FunctionSpec {
    function(name, &["sh", "-c", script])
}

/// Changes to a function, one a word.
pub trait Change {
    #[must_use]
    fn with_env(self, key: &str, value: &str) -> Self;
    #[must_use]
    fn with_workdir(self, directory: &Path) -> Self;
    #[must_use]
    fn with_trigger(self, path: &str) -> Self;
    #[must_use]
    fn with_timeout(self, timeout: Duration) -> Self;
    #[must_use]
    fn with_init_timeout(self, timeout: Duration) -> Self;
    #[must_use]
    fn with_idle_timeout(self, timeout: Duration) -> Self;
    #[must_use]
    fn with_memory(self, mebibytes: u64) -> Self;
    #[must_use]
    fn with_concurrency(self, calls: u32) -> Self;
    #[must_use]
    fn with_max_containers(self, containers: u32) -> Self;
    #[must_use]
    fn idempotent(self) -> Self;
}

impl Change for FunctionSpec {
    fn with_env(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    fn with_workdir(mut self, directory: &Path) -> Self {
        self.workdir = directory.to_owned();
        self
    }

    fn with_trigger(mut self, path: &str) -> Self {
        self.triggers.push(Trigger::new(path));
        self
    }

    fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = timeout.as_millis() as u64;
        self
    }

    fn with_init_timeout(mut self, timeout: Duration) -> Self {
        self.init_timeout_ms = timeout.as_millis() as u64;
        self
    }

    fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout_ms = timeout.as_millis() as u64;
        self
    }

    fn with_memory(mut self, mebibytes: u64) -> Self {
        self.memory = mebibytes << 20;
        self
    }

    fn with_concurrency(mut self, calls: u32) -> Self {
        self.concurrency = calls;
        self
    }

    fn with_max_containers(mut self, containers: u32) -> Self {
        self.max_containers = containers;
        self
    }

    fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }
}

/// A named pipe that functions can reach, whoever they run as: below a working directory of theirs.
#[derive(Debug)]
pub struct Pipe {
    directory: tempfile::TempDir,
    path: PathBuf,
}

impl Pipe {
    /// Makes one.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("stoker-pipe-").tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::empty(), 0)
            .unwrap();
        for (path, mode) in [(directory.path(), 0o755), (&path, 0o666)] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        Self { directory, path }
    }

    /// The working directory of functions that use it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Both of its ends: it never ends for those at the other ones.
    #[must_use]
    pub fn both(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }
}

impl Default for Pipe {
    fn default() -> Self {
        Self::new()
    }
}

/// What probes that were told `gate` wait for before they listen.
#[derive(Debug, Default)]
pub struct Gate {
    pipe: Pipe,
    opened: std::cell::OnceCell<File>,
}

impl Gate {
    /// One that is closed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `PROBE_GATE`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.pipe.path().to_str().unwrap()
    }

    /// The working directory of those who wait for it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.pipe.directory()
    }

    /// Lets so many of those pass that wait now or come later.
    pub fn open(&self, probes: usize) {
        self.opened.get_or_init(|| self.pipe.both()).write_all(&vec![b'g'; probes]).unwrap();
    }
}
