//! Who belongs to a sandbox, read from `/proc`.

use std::fs;
use std::time::Duration;

use crate::Usage;

/// A process as `/proc/PID/stat` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub state: char,
}

impl Process {
    /// It is neither stopped nor dead.
    pub fn runs(&self) -> bool {
        !matches!(self.state, 'T' | 't' | 'Z' | 'X' | 'x')
    }
}

/// Every process but the caller: of this pid namespace, or below the caller.
pub fn members(whole_namespace: bool) -> Vec<Process> {
    if !whole_namespace {
        return descendants();
    }
    let me = rustix::process::getpid().as_raw_nonzero().get();
    all().into_iter().filter(|process| process.pid != me).collect()
}

/// Children of the caller, their children, and so on.
pub fn descendants() -> Vec<Process> {
    below(rustix::process::getpid().as_raw_nonzero().get())
}

fn below(ancestor: i32) -> Vec<Process> {
    let mut rest = all();
    let mut found = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        rest.retain(|process| {
            if process.parent == parent {
                parents.push(process.pid);
                found.push(process.clone());
            }
            process.parent != parent
        });
    }
    found
}

/// Direct children of the caller, which has one thread. By its own list, where the kernel has one: a `/proc` that is mounted with `hidepid` does
/// not show an ordinary user those of its processes that hide their memory.
pub fn children() -> Vec<i32> {
    if let Ok(listed) = fs::read_to_string("/proc/thread-self/children") {
        return listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    let me = rustix::process::getpid().as_raw_nonzero().get();
    all().into_iter().filter(|process| process.parent == me).map(|process| process.pid).collect()
}

/// Memory that only this process has, in bytes: resident without what it shares.
pub fn private_memory(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut fields = text.split(' ').skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

/// What all that descend from this one use, seen from outside, where no cgroup counts it. Memory is what is only theirs; the most is what they have now,
/// or what one of them had by itself at some time. CPU time has the kernel's unit, mostly 10 ms, and lacks that of processes that nobody waited for.
/// Reads some files for each; sees nothing of what this `/proc` does not show.
pub fn usage_below(ancestor: i32) -> Usage {
    let mut seen = Usage::default();
    let text = |pid: i32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let mut ticks = ticks(&text(ancestor, "stat")).1;
    for pid in
        listed_below(ancestor).unwrap_or_else(|| below(ancestor).into_iter().map(|it| it.pid).collect())
    {
        let (now, highest) = anonymous(&text(pid, "status"));
        seen.memory += now;
        seen.memory_peak = seen.memory_peak.max(highest);
        let (own, waited_for) = self::ticks(&text(pid, "stat"));
        ticks += own + waited_for;
    }
    seen.memory_peak = seen.memory_peak.max(seen.memory);
    let second = rustix::param::clock_ticks_per_second().max(1);
    seen.cpu = Duration::from_micros(ticks.saturating_mul(1_000_000) / second);
    seen
}

/// Descendants by the kernel's own lists, which cost no look at every process of the machine. None where it keeps no such lists.
fn listed_below(ancestor: i32) -> Option<Vec<i32>> {
    // Of one that is gone there are none; one that is hidden has them all the same.
    fs::metadata(format!("/proc/{ancestor}/task")).ok()?;
    let children = |pid: i32| {
        let mut all = Vec::new();
        // A child is listed with the thread that made it.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let listed = match fs::read_to_string(thread.path().join("children")) {
                Ok(listed) => listed,
                // The thread is gone; or there are no lists.
                Err(_) if !thread.path().exists() => continue,
                Err(_) => return None,
            };
            all.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        Some(all)
    };
    let mut found = children(ancestor)?;
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        found.extend(children(pid)?);
        at += 1;
    }
    Some(found)
}

/// Memory that only one process has, now and at most, in bytes, of its `/proc/PID/status`.
fn anonymous(status: &str) -> (u64, u64) {
    let kib = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let field = |name| kib(name).unwrap_or(0);
    let shared = field("RssFile") + field("RssShmem");
    (field("RssAnon") << 10, field("VmHWM").saturating_sub(shared) << 10)
}

/// CPU time of a process, and of those that it has waited for, of its `/proc/PID/stat`.
fn ticks(stat: &str) -> (u64, u64) {
    let fields = stat.rfind(')').and_then(|end| stat.get(end + 2..)).unwrap_or_default();
    // In user and in kernel mode, for both.
    let mut times = fields.split(' ').skip(11).map(|field| field.parse::<u64>().unwrap_or(0));
    let mut two = || times.next().unwrap_or(0) + times.next().unwrap_or(0);
    (two(), two())
}

fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

/// The name may contain anything, closing brackets too: fields count from the last one.
fn parse(stat: &str) -> Option<Process> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    Some(Process { pid, state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_fool_the_reader() {
        let process = parse("42 (a) S 1 (b) T 7 42 42 0 -1").unwrap();
        assert_eq!(process, Process { pid: 42, parent: 7, state: 'T' });
        assert!(!process.runs());
    }

    #[test]
    fn what_was_given_back_counts_for_the_most() {
        let status = "Name:\tVmHWM: 9 kB\nVmHWM:\t   9000 kB\nVmRSS:\t    5000 kB\nRssAnon:\t    3000 kB\nRssFile:\t    1500 kB\nRssShmem:\t     500 kB\n";
        assert_eq!(anonymous(status), (3000 << 10, 7000 << 10));
        // A process that has ended, or a kernel's.
        assert_eq!(anonymous("Name:\tcat\nState:\tZ (zombie)\n"), (0, 0));
    }

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "42 (a) 1 2) T 7 42 42 0 -1 4194560 100 0 0 0 5 6 70 80 20 0 1 0 9";
        assert_eq!(ticks(stat), (11, 150));
        assert_eq!(ticks(""), (0, 0));
    }

    #[test]
    fn memory_of_descendants_is_seen_from_outside() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat; true"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its child is there when it answers.
        let (mut stdin, stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        std::io::Write::write_all(&mut stdin, b"?\n").unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut String::new()).unwrap();
        let pid = shell.id() as i32;
        let (seen, scanned, listed) = (usage_below(pid), below(pid), listed_below(pid));
        drop(stdin);
        shell.wait().unwrap();
        assert!(seen.memory > 0 && seen.memory_peak >= seen.memory, "{seen:?}");
        let scanned: Vec<_> = scanned.into_iter().map(|process| process.pid).collect();
        assert_eq!(scanned.len(), 1);
        assert_eq!(listed.unwrap_or(scanned.clone()), scanned);
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let found = descendants().iter().any(|process| process.pid == child.id() as i32)
            && children().contains(&(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }
}
