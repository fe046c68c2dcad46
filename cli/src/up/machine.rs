//! What this machine has: memory, CPU, programs.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use stoker_core::FunctionSpec;
use stoker_core::function::Root;

/// Where a function's program is looked for if its `env` has no `PATH`: what runners give, and not what this shell has.
const FUNCTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Offered where nothing can be found out.
const FALLBACK_MEMORY: u64 = 1 << 30;

/// Memory and CPU of the machine, or of the cgroup around this process where that is less.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Bytes.
    pub memory: u64,
    pub cpu_millis: u32,
}

impl Machine {
    pub fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let total = read("/proc/meminfo").and_then(|text| total_memory(&text)).unwrap_or(FALLBACK_MEMORY);
        // Version 2 and version 1. Without a limit they hold `max`, or a number larger than any memory.
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limits.into_iter().filter_map(read).find_map(|text| text.trim().parse().ok());
        // The standard library heeds the affinity mask and the cgroup's quota.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            memory: limit.map_or(total, |limit: u64| limit.min(total)),
            cpu_millis: u32::try_from(cores * 1000).unwrap_or(u32::MAX),
        }
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The user's number.
pub fn user() -> u32 {
    std::fs::metadata("/proc/self").map_or(0, |me| me.uid())
}

/// Why a function cannot run on this machine: its program is not there. A function with a root of its own is not looked
/// into.
pub fn missing(spec: &FunctionSpec) -> Option<String> {
    let (Root::Host, Some(name)) = (&spec.root, spec.command.first()) else { return None };
    let path = spec.env.get("PATH").map_or(FUNCTION_PATH, String::as_str);
    if program(name, &spec.workdir, Some(path)).is_some() {
        return None;
    }
    if let Some(elsewhere) = program(name, &spec.workdir, None) {
        return Some(format!(
            "{} is outside the PATH of functions: write PATH into its env",
            elsewhere.display()
        ));
    }
    let file =
        Path::new(name).file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    Some(if name.contains("target/release/") {
        format!("not built yet: cargo build --release -p {file}")
    } else if name.contains('/') {
        format!("{name} is not there")
    } else {
        format!("{name} is not installed")
    })
}

/// Where a program is, looked up as `exec` does, in `path` or else in this process's own `PATH`.
pub fn program(name: &str, workdir: &Path, path: Option<&str>) -> Option<PathBuf> {
    let runs = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(workdir.join(name)).filter(|file| runs(file));
    }
    let own = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(path.unwrap_or(&own)).map(|directory| directory.join(name)).find(|file| runs(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::FunctionName;

    #[test]
    fn memory_is_read() {
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       16 kB\n"), None.or(Some(16 << 10)));
        assert_eq!(total_memory("nothing"), None);
        assert!(Machine::look().memory > 0);
    }

    #[test]
    fn missing_programs_are_told_apart() {
        let with = |command: &str| {
            let name = FunctionName::new("a", "b").unwrap();
            missing(&FunctionSpec::new(name, vec![command.into()], "/".into()))
        };
        assert_eq!(with("sh"), None);
        assert_eq!(with("/bin/sh"), None);
        assert_eq!(with("no-such-program").unwrap(), "no-such-program is not installed");
        assert_eq!(with("./no/such").unwrap(), "./no/such is not there");
        assert!(with("x/target/release/mine").unwrap().ends_with("cargo build --release -p mine"));
    }
}
