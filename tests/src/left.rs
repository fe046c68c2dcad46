//! What a fleet left behind: processes, cgroups, mounts, sockets, files. Each fleet has a mark of its own, on the command line
//! of its spawners and in the environment of its functions, so that fleets side by side are not mistaken for each other.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::within;

/// The variable that carries the mark.
pub const MARK: &str = "STOKER_TEST_FLEET";

/// A process of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub command: String,
    /// It is a function, and not one of the programs around it.
    pub function: bool,
}

/// Every process that carries the mark. A process that has ended and was not collected yet has neither command line nor
/// environment, and is not counted.
#[must_use]
pub fn processes(mark: &str) -> Vec<Process> {
    found(&format!("{MARK}={mark}"), Some(mark))
}

/// Every process with this variable in its environment.
#[must_use]
pub fn with_variable(key: &str, value: &str) -> Vec<Process> {
    found(&format!("{key}={value}"), None)
}

/// Processes with this in their environment, or that on their command line.
fn found(assignment: &str, argument: Option<&str>) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id() as i32)
        .filter_map(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let function = read("environ").split(|byte| *byte == 0).any(|v| v == assignment.as_bytes());
            (function || argument.is_some_and(|part| command.contains(part))).then_some(Process {
                pid,
                command,
                function,
            })
        })
        .collect()
}

/// Every process below this one.
#[must_use]
pub fn descendants(root: i32) -> Vec<Process> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut found: Vec<i32> = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found[1..].iter().map(|pid| Process { pid: *pid, command: String::new(), function: false }).collect()
}

/// Something to wait on until those processes have ended.
pub struct Ending(Vec<AsyncFd<OwnedFd>>);

impl Ending {
    /// Watches every process that carries the mark now.
    #[must_use]
    pub fn of(mark: &str) -> Self {
        Self::of_processes(&processes(mark))
    }

    /// Watches these.
    #[must_use]
    pub fn of_processes(processes: &[Process]) -> Self {
        let watched = processes.iter().filter_map(|process| {
            let pid = Pid::from_raw(process.pid)?;
            // One that has ended meanwhile has nothing to be waited for.
            let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
            #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
            let watched = AsyncFd::with_interest(fd, Interest::READABLE);
            watched.ok()
        });
        Self(watched.collect())
    }

    /// Returns once all of them have ended.
    pub async fn wait(self) {
        for process in &self.0 {
            drop(within("the end of a process", process.readable()).await);
        }
    }
}

/// Everything of a fleet that is still there, in words. `state` is the directory of its runners.
#[must_use]
pub fn behind(mark: &str, runners: &[String], state: &Path) -> Vec<String> {
    let mut left: Vec<_> = processes(mark)
        .iter()
        .map(|process| format!("process {} {}", process.pid, process.command))
        .collect();
    left.extend(cgroups(runners).iter().map(|path| format!("cgroup {}", path.display())));
    let state = state.to_string_lossy();
    for (what, file) in [("mount", "/proc/self/mountinfo"), ("socket", "/proc/net/unix")] {
        let text = fs::read_to_string(file).unwrap_or_default();
        left.extend(text.lines().filter(|line| line.contains(&*state)).map(|line| format!("{what} {line}")));
    }
    files(Path::new(&*state), &mut left);
    left
}

/// Locks stay (who removes a lock file can take another's lock away), and directories of theirs. Nothing else does.
fn files(directory: &Path, left: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if name.starts_with("life-") {
                left.push(format!("directory {}", entry.path().display()));
            }
            files(&entry.path(), left);
        } else if !name.ends_with(".lock") {
            left.push(format!("file {}", entry.path().display()));
        }
    }
}

/// The cgroups of these runners, in every hierarchy.
#[must_use]
pub fn cgroups(runners: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path, name| {
        let ours = runners.iter().any(|runner| name.starts_with(&format!("stoker.{runner}.")));
        if ours {
            found.push(path.to_owned());
        }
    });
    found
}

fn walk(directory: &Path, each: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path(), &entry.file_name().to_string_lossy());
            walk(&entry.path(), each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// A process that waits, with these arguments and this mark in its environment.
    async fn shell(arguments: &[&str], mark: Option<&str>) -> tokio::process::Child {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "echo; read line"]).args(arguments).envs(mark.map(|mark| (MARK, mark)));
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        // A process has its command line only once its program runs.
        child.stdout.as_mut().unwrap().read_u8().await.unwrap();
        child
    }

    #[tokio::test]
    async fn what_is_left_is_seen() {
        let mark = format!("left-{}", std::process::id());
        let state = tempfile::tempdir().unwrap();
        let nothing = Vec::<String>::new();
        assert_eq!(behind(&mark, &[], state.path()), nothing);
        let (mut function, mut spawner) = (shell(&[], Some(&mark)).await, shell(&[&mark], None).await);
        fs::create_dir_all(state.path().join("native/r/life-1")).unwrap();
        fs::write(state.path().join("native/r/runner.lock"), "").unwrap();
        fs::write(state.path().join("native/r/life-1/record.json"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(state.path().join("s")).unwrap();
        let left = behind(&mark, &[], state.path());
        let of = |what: &str| left.iter().filter(|line| line.starts_with(what)).count();
        // The socket is a file as well.
        assert_eq!((of("process"), of("directory"), of("file"), of("socket")), (2, 1, 2, 1), "{left:#?}");
        let ending = Ending::of(&mark);
        function.kill().await.unwrap();
        spawner.kill().await.unwrap();
        ending.wait().await;
        assert_eq!(processes(&mark), []);
    }
}
