//! What this machine has for functions, or the cgroup around this process where that is less.

pub mod pressure;

use std::path::{Path, PathBuf};

/// Taken for the memory of a machine that does not say.
const FALLBACK_MEMORY: u64 = 1 << 30;

/// Memory and CPU.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Bytes.
    pub memory: u64,
    pub cpu_millis: u32,
}

impl Machine {
    /// Looks.
    #[must_use]
    pub fn look() -> Self {
        let read = |path: PathBuf| std::fs::read_to_string(path).ok();
        let total = read("/proc/meminfo".into()).and_then(|text| total_memory(&text));
        let text = read("/proc/self/cgroup".into()).unwrap_or_default();
        let limit = groups(&text).iter().filter_map(Group::limit).min();
        let total = total.unwrap_or(FALLBACK_MEMORY);
        // The standard library heeds the affinity mask and the cgroup's quota.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            memory: limit.map_or(total, |limit: u64| limit.min(total)),
            cpu_millis: u32::try_from(cores.saturating_mul(1000)).unwrap_or(u32::MAX),
        }
    }

    /// What functions may have of its memory, in whole MiB: the rest is for the runner, and for what else runs here.
    #[must_use]
    pub fn spare_memory(&self) -> u64 {
        (self.memory / 5 * 4) & !0xf_ffff
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    number_in(meminfo, "MemTotal:")?.checked_mul(1024)
}

/// The number behind a word at the beginning of a line.
fn number_in(text: &str, word: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Which kind of cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A cgroup that may limit our memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    directory: PathBuf,
    version: Version,
}

impl Group {
    /// Without a limit the file holds `max`, or a number larger than any memory.
    fn limit(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.directory.join(self.limit_file())).ok()?;
        text.trim().parse().ok()
    }

    fn limit_file(&self) -> &'static str {
        match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        }
    }
}

/// Our cgroup and each around it, of version 2 and of version 1.
fn groups(membership: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (top, version) = match controllers {
            "" => ("/sys/fs/cgroup", Version::Two),
            some if some.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", Version::One)
            }
            _ => continue,
        };
        // In a container the path may be the host's, of which only the top is seen here.
        let path = Path::new(path.trim_start_matches('/'));
        groups
            .extend(path.ancestors().map(|around| Group { directory: Path::new(top).join(around), version }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16 kB\n"), Some(16 << 10));
        assert_eq!(total_memory("nothing"), None);
        let machine = Machine::look();
        assert!(machine.memory > 0 && machine.spare_memory() < machine.memory && machine.cpu_millis > 0);
    }

    #[test]
    fn every_cgroup_around_counts() {
        let files = |text: &str| -> Vec<String> {
            let files = groups(text).into_iter().map(|group| group.directory.join(group.limit_file()));
            files.map(|file| file.display().to_string()).collect()
        };
        assert_eq!(
            files("0::/system.slice/x.service\n"),
            [
                "/sys/fs/cgroup/system.slice/x.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(files("5:cpu,cpuacct:/a\n4:memory:/\n"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert!(files("garbage").is_empty());
    }
}
