//! CPU time of processes on this machine, thread by thread: what calls cost, which hardly depends on what else the machine does.
//!
//! A server is found by its port: the kernel's table of sockets names the socket that listens there, and the process that holds
//! it is the server. That works for servers of the same user on the same machine; for others there is nothing to tell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A thread's name in a process, summed over threads of one name.
pub type Times = BTreeMap<String, Duration>;

/// The process that listens on `address`, if it is here and ours.
pub fn listener(address: SocketAddr) -> Option<u32> {
    if !address.ip().is_loopback() {
        return None;
    }
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .find_map(|table| listening(&table, address.port()))?;
    let link = format!("socket:[{sockets}]");
    let holds = |pid: &u32| {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&link)))
    };
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(holds)
}

/// The number of the socket that listens on `port`, from one of the kernel's tables.
fn listening(table: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let local = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
        (local == port && *fields.get(3)? == LISTEN).then(|| fields.get(9)?.parse().ok())?
    })
}

/// What the threads of a process have used so far; empty where the kernel does not tell.
pub fn used(process: u32) -> Times {
    let mut times = Times::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return times };
    for thread in threads.flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).ok();
        let time = read("schedstat").and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        if let (Some(name), Some(nanos)) = (read("comm"), time) {
            *times.entry(name.trim_end().to_owned()).or_default() += Duration::from_nanos(nanos);
        }
    }
    times
}

/// What was used in between. Threads that have ended since are left out.
pub fn since(before: &Times, now: &Times) -> Times {
    let spent = |(name, time): (&String, &Duration)| {
        let spent = time.saturating_sub(before.get(name).copied().unwrap_or_default());
        (!spent.is_zero()).then(|| (name.clone(), spent))
    };
    now.iter().filter_map(spent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        assert_eq!(listener(address), Some(std::process::id()));
        assert_eq!(listener("127.0.0.1:0".parse().unwrap()), None);
        assert_eq!(listener("192.0.2.1:80".parse().unwrap()), None);
    }

    #[test]
    fn work_is_seen() {
        let before = used(std::process::id());
        let thread = std::thread::Builder::new().name("worker".to_owned());
        let work = thread.spawn(|| {
            let mut turns = 0u64;
            let me = || used(std::process::id()).get("worker").copied().unwrap_or_default();
            // Until the kernel says that time has passed: it counts only what was really used.
            while me() < Duration::from_millis(5) {
                turns = std::hint::black_box(turns + 1);
            }
            used(std::process::id())
        });
        let spent = since(&before, &work.unwrap().join().unwrap());
        assert!(spent["worker"] >= Duration::from_millis(5), "{spent:?}");
    }
}
