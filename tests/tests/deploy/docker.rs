//! The balancer's image, built from its Dockerfile by a Docker daemon of the test's own, and run with nothing that it does not need.
//!
//! Base images come from a registry, and tests have none. The stages that build are therefore made of this machine's own programs, with a `cargo` that hands out
//! what was built before; every other instruction runs as it stands. `deploy/docker/try.sh` does the same with all images and the compose file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use stoker_registry::testing::Etcd;
use stoker_tests::{deploy, program};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::is_content;

/// Its end takes everything of it along.
struct Daemon {
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// `None` where there is no Docker, or where we may not start it.
    fn start() -> Option<Self> {
        if std::env::var_os("STOKER_WITHOUT_DOCKER").is_some() || !rustix::process::geteuid().is_root() {
            println!("left out: only root can start a Docker daemon, or STOKER_WITHOUT_DOCKER says so");
            return None;
        }
        // Short: the daemon binds sockets in it.
        let directory = std::env::temp_dir().join(format!("stoker-i-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("config.json"), "{}").unwrap();
        let option = |name: &str, file: &str| format!("--{name}={}", directory.join(file).display());
        let mut child = Command::new("dockerd")
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args([option("config-file", "config.json"), option("data-root", "data")])
            .args([option("exec-root", "exec"), option("pidfile", "pid")])
            .arg(format!("--host=unix://{}", directory.join("socket").display()))
            .arg(format!("--cgroup-parent=/{}", cgroup(&directory)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut lines = std::io::BufRead::lines(log);
        let mut said = String::new();
        let listens = lines.by_ref().map_while(Result::ok).any(|line| {
            said.push_str(&line);
            said.push('\n');
            line.contains("API listen on")
        });
        assert!(listens, "dockerd ended:\n{said}");
        // So that it can go on writing; ends with it.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, directory })
    }

    fn docker(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(words).env("DOCKER_HOST", format!("unix://{}", self.directory.join("socket").display()));
        // The builder that the daemon has by itself.
        command.env("DOCKER_BUILDKIT", "0").env("HOME", &self.directory).stdin(Stdio::null());
        command
    }

    fn done(&self, words: &[&str]) -> Output {
        let output = self.docker(words).output().unwrap();
        assert!(output.status.success(), "docker {words:?}: {output:?}");
        output
    }
}

fn cgroup(directory: &Path) -> String {
    directory.file_name().unwrap().to_string_lossy().into_owned()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // In order, so that it ends what it has started itself.
        Command::new("kill").arg(self.child.id().to_string()).status().ok();
        self.child.wait().ok();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.directory) {
                Command::new("umount").arg("-l").arg(point).status().ok();
            }
        }
        let tops = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for top in tops.map(|top| top.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            fs::remove_dir(top.join(cgroup(&self.directory))).ok();
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// An image with what the build stage runs: this machine's shell and tools, the program, and a `cargo` that hands it out.
fn build_image(daemon: &Daemon, directory: &Path) {
    let root = directory.join("root");
    let tools = ["sh", "bash", "cp", "mkdir", "grep", "dirname"].map(which);
    for program in tools.into_iter().chain([program("stoker-lb")]) {
        let made = Command::new(deploy::path("docker/root.sh")).arg(program).arg(&root).output().unwrap();
        is_content(&made);
    }
    let script = |name: &str, content: &str| {
        let file = root.join("usr/local/bin").join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let ldd = fs::read_to_string(which("ldd")).unwrap();
    script("ldd", &ldd.replacen("/bin/bash", "/usr/local/bin/bash", 1));
    script("cargo", "#!/bin/sh\nmkdir -p target/dist && cp /usr/local/bin/stoker-lb target/dist/\n");
    fs::create_dir_all(root.join("bin")).unwrap();
    std::os::unix::fs::symlink("/usr/local/bin/sh", root.join("bin/sh")).unwrap();
    let tar = Command::new("tar").arg("-C").arg(&root).args(["-cf", "-", "."]).stdout(Stdio::piped()).spawn();
    let mut tar = tar.unwrap();
    let imported =
        daemon.docker(&["import", "-", "build"]).stdin(tar.stdout.take().unwrap()).output().unwrap();
    is_content(&imported);
    assert!(tar.wait().unwrap().success());
}

fn which(tool: &str) -> PathBuf {
    let found = ["/usr/bin", "/bin"].iter().map(|directory| Path::new(directory).join(tool));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("there is no {tool}"))
}

#[tokio::test]
async fn the_balancers_image_is_built_and_serves_as_nobody_from_a_root_that_it_cannot_change() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(etcd) = Etcd::start().await else { return };
    let directory = tempfile::tempdir().unwrap();
    build_image(&daemon, directory.path());
    let dockerfile = deploy::path("docker/lb.Dockerfile");
    let (dockerfile, context) = (dockerfile.to_string_lossy(), deploy::path(".."));
    let built =
        ["build", "--network=none", "--build-arg=BUILD_IMAGE=build", "-t", "stoker-lb", "-f", &*dockerfile];
    let output = daemon.docker(&built).arg(context).output().unwrap();
    is_content(&output);

    let endpoint = format!("STOKER_ETCD={}", etcd.endpoint());
    let mut command =
        daemon.docker(&["run", "--rm", "--name=lb", "--network=host", "--read-only", "--cap-drop=ALL"]);
    command.args(["--security-opt=no-new-privileges", "--pids-limit=64", "-e", &endpoint]);
    // Free ports of this machine: its network is the container's here.
    for port in ["STOKER_LISTEN", "STOKER_HTTP_LISTEN", "STOKER_ADMIN_LISTEN"] {
        command.arg("-e").arg(format!("{port}=127.0.0.1:0"));
    }
    command.args(["-e", "STOKER_LOG_FORMAT=json", "stoker-lb"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut admin, mut said) = (String::new(), String::new());
    loop {
        let line = stoker_tests::within("a line of the balancer's log", lines.next_line()).await.unwrap();
        let Some(line) = line else { panic!("it ended:\n{said}") };
        said.push_str(&line);
        said.push('\n');
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        match line["message"].as_str() {
            Some("serving") => admin = line["admin"].as_str().unwrap().to_owned(),
            Some("ready") => break,
            _ => {}
        }
    }
    let ready = std::net::TcpStream::connect(&admin).and_then(|mut stream| {
        std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.0\r\n\r\n")?;
        std::io::read_to_string(stream)
    });
    assert!(ready.as_ref().is_ok_and(|answer| answer.contains(" 200 ")), "{ready:?}");
    let inspect = |what: &str| {
        let output = daemon.done(&["inspect", "-f", what, "lb"]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let status = fs::read_to_string(format!("/proc/{}/status", inspect("{{.State.Pid}}"))).unwrap();
    for line in [
        "Uid:\t10001\t10001\t10001\t10001",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    // Nothing to start but the balancer.
    let shell = daemon.docker(&["exec", "lb", "/bin/sh", "-c", "true"]).output().unwrap();
    assert!(!shell.status.success(), "it has a shell");
    // It ends as it should when it is told to.
    daemon.done(&["kill", "--signal=TERM", "lb"]);
    let status = stoker_tests::within("its end", child.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}
