//! Who belongs to a sandbox, read from `/proc`.

use std::fs;

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
    let mut rest = all();
    let mut found = Vec::new();
    let mut parents = vec![rustix::process::getpid().as_raw_nonzero().get()];
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
