//! The balancer's image, built from its Dockerfile by a Docker daemon of the test's own, and run with nothing that it does not need; and for two processors,
//! pushed to a registry with an index of both.
//!
//! Base images come from a registry, and tests have none. The stages that build are therefore made of this machine's own programs, with a `cargo` that hands out
//! what was built before; every other instruction runs as it stands. `deploy/docker/try.sh` does the same with all images and the compose file.
//!
//! What is handed out for the other processor is what `STOKER_TEST_ARM64` names, a directory with programs that were compiled for it. Without that it is a
//! program of one line: of an index and of how images are made it shows as much.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use stoker_registry::testing::Etcd;
use stoker_tests::registry::Registry;
use stoker_tests::{deploy, program};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{checked, is_content};

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
        self.docker_of(Path::new("docker"), words)
    }

    fn docker_of(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program);
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
            // BuildKit leaves one of its own in it.
            for below in ["buildkit", ""] {
                fs::remove_dir(top.join(cgroup(&self.directory)).join(below)).ok();
            }
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// Of Debian's compiler for arm64.
const READELF: &str = "aarch64-linux-gnu-readelf";

/// An image with what the build stage runs: this machine's shell and tools, the program, and a `cargo` that hands it out; with one for arm64, what a compiler
/// for that brings along.
fn build_image(daemon: &Daemon, directory: &Path, for_arm64: Option<&Path>) {
    let root = directory.join("root");
    let mut tools = Vec::from(["sh", "bash", "cp", "mkdir", "grep", "dirname"].map(which));
    if for_arm64.is_some() {
        tools.extend(["sed", "basename", READELF].map(which));
    }
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
    script(
        "cargo",
        "#!/bin/sh\n\
         case \" $* \" in\n\
         *' --target aarch64-unknown-linux-gnu '*) from=/arm64 to=target/aarch64-unknown-linux-gnu/dist ;;\n\
         *) from=/usr/local/bin to=target/dist ;;\n\
         esac\n\
         mkdir -p $to && cp $from/stoker-lb $to/\n",
    );
    if let Some(program) = for_arm64 {
        fs::create_dir_all(root.join("arm64")).unwrap();
        fs::copy(program, root.join("arm64/stoker-lb")).unwrap();
        // Asked for, and not started: what it would compile is there.
        script("aarch64-linux-gnu-gcc", "#!/bin/sh\nexit 1\n");
        let libraries = root.join("usr/aarch64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        let copied = Command::new("cp").args(["-a", "/usr/aarch64-linux-gnu/lib"]).arg(libraries).status();
        assert!(copied.unwrap().success());
    }
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
    build_image(&daemon, directory.path(), None);
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

/// What is handed out as the balancer for arm64. `None` where there is neither that nor what could make it.
fn for_arm64(directory: &Path) -> Option<PathBuf> {
    if let Some(programs) = std::env::var_os("STOKER_TEST_ARM64") {
        return Some(Path::new(&programs).join("stoker-lb"));
    }
    let (source, program) = (directory.join("lb.c"), directory.join("stoker-lb"));
    fs::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"stoker-lb elsewhere\") < 0; }\n")
        .unwrap();
    let compiled = checked(Command::new("aarch64-linux-gnu-gcc").arg("-o").arg(&program).arg(&source))?;
    is_content(&compiled);
    Some(program)
}

/// Where there is a `docker` that has BuildKit. Those before 23 bring it along, for later ones it is a component that may be missing; Debian's may stand behind one
/// of these.
fn with_buildkit(daemon: &Daemon) -> Option<PathBuf> {
    let places = std::env::var_os("PATH").unwrap();
    fs::create_dir(daemon.directory.join("label")).unwrap();
    fs::write(daemon.directory.join("label/Dockerfile"), "FROM scratch\nLABEL nothing=else\n").unwrap();
    let found = std::env::split_paths(&places).find(|place| {
        let mut command = daemon.docker_of(&place.join("docker"), &["build"]);
        command.env("DOCKER_BUILDKIT", "1").arg(daemon.directory.join("label"));
        command.output().is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        println!("left out: no docker here has BuildKit (its component buildx is missing)");
    }
    found
}

#[test]
fn each_processor_is_given_its_own_image_by_one_name() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(registry) = Registry::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let Some(program) = for_arm64(directory.path()) else { return };
    if cfg!(not(target_arch = "x86_64")) {
        println!("left out: what is made here for another processor is for arm64");
        return;
    }
    build_image(&daemon, directory.path(), Some(&program));
    let name = format!("{}/stoker-lb:1", registry.address);
    let Some(place) = with_buildkit(&daemon) else { return };
    let path = std::env::join_paths(
        [place].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let published = |options: &[&str]| {
        // The same daemon and settings, by a script that calls `docker`.
        let mut command = Command::new(deploy::path("docker/publish.sh"));
        let like = daemon.docker(&[]);
        command.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("PATH", path.as_ref().unwrap());
        command.arg(registry.address.to_string()).arg("1").args(options).output().unwrap()
    };
    let options = ["lb", "--", "--network=none", "--build-arg=BUILD_IMAGE=build"];
    is_content(&published(&options));
    // Again: what is there by the same name is replaced.
    is_content(&published(&options));
    let index = daemon.done(&["manifest", "inspect", "--insecure", &name]);
    let index: serde_json::Value = serde_json::from_slice(&index.stdout).unwrap();
    let mut of: Vec<_> = index["manifests"].as_array().unwrap().iter().map(|one| &one["platform"]).collect();
    of.sort_by_key(|platform| platform["architecture"].to_string());
    assert_eq!(
        of,
        [
            &serde_json::json!({"architecture": "amd64", "os": "linux"}),
            &serde_json::json!({"architecture": "arm64", "os": "linux"})
        ]
    );
    for (architecture, machine) in [("amd64", "X86-64"), ("arm64", "AArch64")] {
        daemon.done(&["image", "prune", "--all", "--force"]);
        daemon.done(&["pull", "--platform", &format!("linux/{architecture}"), &name]);
        let pulled = daemon.done(&["image", "inspect", "-f", "{{.Architecture}} {{.Config.User}}", &name]);
        assert_eq!(String::from_utf8_lossy(&pulled.stdout).trim(), format!("{architecture} 10001:10001"));
        // All that is in it, as it would be there.
        let root = directory.path().join(architecture);
        fs::create_dir(&root).unwrap();
        daemon.done(&[
            "create",
            "--name",
            architecture,
            "--platform",
            &format!("linux/{architecture}"),
            &name,
        ]);
        daemon.done(&["cp", &format!("{architecture}:/."), &root.to_string_lossy()]);
        daemon.done(&["rm", architecture]);
        let inside = root.join("usr/local/bin/stoker-lb");
        let header = Command::new(READELF).arg("-h").arg(&inside).output().unwrap();
        let header = String::from_utf8_lossy(&header.stdout).into_owned();
        assert!(header.contains(machine), "{architecture}: {header}");
        let mut command = match architecture {
            "amd64" => Command::new(&inside),
            // With nothing but the libraries of the image.
            _ => {
                let mut emulator = Command::new("qemu-aarch64-static");
                emulator.arg("-L").arg(&root).arg(&inside);
                emulator
            }
        };
        let Some(version) = checked(command.arg("--version")) else { continue };
        is_content(&version);
        assert!(String::from_utf8_lossy(&version.stdout).starts_with("stoker-lb "), "{version:?}");
    }
}
