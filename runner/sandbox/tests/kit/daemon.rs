//! Daemons of Docker's API for tests: each with everything that it has in a directory of its own, and without a network.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::kit::{until, we_are_root};

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            Self::Podman => "podman",
        }
    }
}

/// A daemon that answers.
pub struct Daemon {
    kind: Kind,
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// Starts one and returns when it answers; `None` where tests with it are left out.
    pub fn start(kind: Kind, name: &str) -> Option<Self> {
        if std::env::var_os("STOKER_WITHOUT_DOCKER").is_some() {
            println!("left out, as STOKER_WITHOUT_DOCKER says");
            return None;
        }
        if !we_are_root() {
            println!("left out: only root can start {}", kind.program());
            return None;
        }
        // Short: the daemon binds sockets in it.
        let directory = std::env::temp_dir().join(format!("stoker-{kind:?}-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = match kind {
            Kind::Docker => dockerd(&directory),
            Kind::Podman => podman(&directory),
        };
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| {
            let program = kind.program();
            panic!("{program} cannot be started ({error}): install it (Debian: docker.io) or set STOKER_WITHOUT_DOCKER=1")
        });
        let mut daemon = Self { kind, child, directory };
        until("the daemon answers", || {
            let log = || std::fs::read_to_string(daemon.directory.join("log")).unwrap_or_default();
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended: {}", kind.program(), log());
            daemon.ask("/_ping").is_ok_and(|answer| answer.ends_with("OK"))
        });
        Some(daemon)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How many containers it has, in whatever state.
    pub fn containers(&self) -> usize {
        self.ask("/containers/json?all=true").unwrap().matches("\"Id\":").count()
    }
}

fn dockerd(directory: &Path) -> Command {
    std::fs::write(directory.join("config.json"), "{}").unwrap();
    let option = |name: &str, file: &str| format!("--{name}={}", directory.join(file).display());
    let mut command = Command::new(Kind::Docker.program());
    command
        .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
        .args([option("config-file", "config.json")])
        .args([option("data-root", "data"), option("exec-root", "exec"), option("pidfile", "pid")])
        .arg(format!("--host=unix://{}", directory.join("socket").display()))
        .arg(format!("--cgroup-parent=/{}", cgroup(directory)));
    command
}

fn podman(directory: &Path) -> Command {
    let path = |file: &str| directory.join(file).display().to_string();
    // Without a service manager, and without the machine's own settings.
    let settings = format!(
        "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"crun\"\ntmp_dir = \"{}\"\n",
        path("tmp")
    );
    std::fs::write(path("containers.conf"), settings).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        path("data"),
        path("run")
    );
    std::fs::write(path("storage.conf"), storage).unwrap();
    // Of a mixture of cgroup versions, its runtime must see the one that has the controllers.
    let unified = "/sys/fs/cgroup/unified";
    let hide = format!("test ! -d {unified} || umount {unified}; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", &hide, "sh"])
        .args([Kind::Podman.program(), "system", "service", "--time=0"])
        .arg(format!("unix://{}", path("socket")))
        .env("CONTAINERS_CONF", path("containers.conf"))
        .env("CONTAINERS_STORAGE_CONF", path("storage.conf"));
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // In order, so that it ends what it has started itself.
        Command::new("kill").arg(self.child.id().to_string()).status().ok();
        self.child.wait().ok();
        // Docker leaves a handle on the host's network mounted.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.directory) {
                Command::new("umount").arg("-l").arg(point).status().ok();
            }
        }
        // And the cgroups that its containers were in: Podman's have a name that all its services share.
        let own = match self.kind {
            Kind::Docker => vec![cgroup(&self.directory)],
            Kind::Podman => vec!["libpod_parent/conmon".to_owned(), "libpod_parent".to_owned()],
        };
        let tops = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for top in tops.map(|top| top.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            for own in &own {
                std::fs::remove_dir(top.join(own)).ok();
            }
        }
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// The name of a Docker daemon's own cgroup.
fn cgroup(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
