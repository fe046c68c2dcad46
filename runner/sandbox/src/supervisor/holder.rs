//! Who has a supervisor's lock: a supervisor of an earlier runner of the name that has not ended yet.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that has a lock.
pub struct Holder {
    pub process: OwnedFd,
    pub pid: Pid,
    name: String,
    /// By a signal: it goes on when it is told to.
    pub stopped: bool,
    /// It stands still for a debugger.
    traced: bool,
}

impl Holder {
    /// Who has `lock`, if anybody that can be seen from here.
    ///
    /// # Errors
    /// What the kernel says when it is asked about locks.
    pub fn of(lock: &File) -> io::Result<Option<Self>> {
        let own = lock.metadata()?;
        // Numbers of devices are not told as files tell theirs on every file system: who has a file of this number is asked for it.
        let number = own.ino().to_string();
        let locks = fs::read_to_string("/proc/locks")?;
        let holds = |pid: Pid| {
            let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let mut files = files.filter_map(|file| fs::metadata(file.path()).ok());
            files.any(|file| (file.dev(), file.ino()) == (own.dev(), own.ino()))
        };
        for pid in locks.lines().filter_map(|line| holder(line, &number)).filter_map(Pid::from_raw) {
            // Before the look at its files, or it could be another process by now.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if !holds(pid) {
                continue;
            }
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let (name, state) = name_and_state(&stat);
            let (name, stopped, traced) = (name.to_owned(), state == Some('T'), state == Some('t'));
            return Ok(Some(Self { process, pid, name, stopped, traced }));
        }
        Ok(None)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.stopped, self.traced) {
            (true, _) => ", which was stopped",
            (_, true) => ", which a debugger holds",
            _ => "",
        };
        write!(formatter, "process {} ({}) of an earlier runner of this name{state},", self.pid, self.name)
    }
}

/// The process that has a lock on the file of this number, by a line of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`.
/// A line of one that waits has `->` behind its number.
fn holder(line: &str, file: &str) -> Option<i32> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?;
    (words.next()?.rsplit(':').next()? == file).then(|| pid.parse().ok())?
}

/// What `/proc/PID/stat` has behind the number: the name in parentheses, in which anything may be, and a letter.
fn name_and_state(stat: &str) -> (&str, Option<char>) {
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    name.map_or(("", None), |(name, rest)| (name, rest.trim_start().chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", "1234"), Some(4711));
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", "234"), None);
        assert_eq!(holder("1: -> FLOCK  ADVISORY  WRITE 4712 fe:00:1234 0 EOF", "1234"), None);
        assert_eq!(holder("2: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF", "1234"), None);
        assert_eq!(holder("", "1234"), None);
        assert_eq!(name_and_state("7 (a) b (c)) T 1 7"), ("a) b (c)", Some('T')));
        assert_eq!(name_and_state(""), ("", None));
    }

    #[test]
    fn whoever_has_a_lock_is_found() {
        use rustix::fs::{FlockOperation, flock};
        let path = std::env::temp_dir().join(format!("stoker-holder-test-{}", std::process::id()));
        let open = || File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let (held, other) = (open(), open());
        assert!(Holder::of(&other).unwrap().is_none(), "nobody has it");
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let holder = Holder::of(&other).unwrap().expect("we have it");
        assert_eq!(holder.pid, rustix::process::getpid());
        assert!(!holder.stopped && !holder.traced);
        let text = holder.to_string();
        assert!(text.starts_with(&format!("process {} (", std::process::id())), "{text}");
        fs::remove_file(path).unwrap();
    }
}
