//! Which functions can run on this machine: those whose programs are there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use stoker_core::FunctionSpec;
use stoker_core::function::Root;

/// Where a function's program is looked for if its `env` has no `PATH`: what runners give, and not what this shell has.
const FUNCTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    } else if let Some(why) = unfit(&spec.workdir.join(name)).filter(|_| name.contains('/')) {
        format!("{name} {why}")
    } else if name.contains('/') {
        format!("{name} is not there")
    } else {
        format!("{name} is not installed")
    })
}

/// Why what is there cannot be run.
fn unfit(file: &Path) -> Option<String> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_dir() => Some("is a directory".to_owned()),
        Ok(_) => Some(format!("is not executable: chmod +x {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("cannot be looked at: {error}")),
    }
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
    fn missing_programs_are_told_apart() {
        let with = |command: &str| {
            let name = FunctionName::new("a", "b").unwrap();
            missing(&FunctionSpec::new(name, vec![command.into()], "/".into()))
        };
        assert_eq!(with("sh"), None);
        assert_eq!(with("/bin/sh"), None);
        assert_eq!(with("no-such-program").unwrap(), "no-such-program is not installed");
        assert_eq!(with("./no/such").unwrap(), "./no/such is not there");
        assert_eq!(with("./etc").unwrap(), "./etc is a directory");
        assert_eq!(with("/etc/passwd").unwrap(), "/etc/passwd is not executable: chmod +x /etc/passwd");
        assert!(with("x/target/release/mine").unwrap().ends_with("cargo build --release -p mine"));
    }
}
