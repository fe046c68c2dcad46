//! Programs that live where functions see nothing: an interpreter of a version manager in someone's home, say.
//!
//! A function without an image names its program, and the program's own files may lie outside the host directories that
//! are shown. What is needed is found out before the root is built, and as little as possible of it is shown: an
//! installation prefix (`…/versions/3.12/bin/python` → `…/versions/3.12`), never a home, never a directory that keeps
//! credentials beside programs; else the one file.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::super::launch::{DEFAULT_PATH, interpreter};
use crate::wire::{Failure, Plan};

/// An interpreter of an interpreter of …: as deep as the kernel goes.
const DEPTH: usize = 5;

/// Host paths, besides those under `shown`, that the command needs.
pub fn needed(plan: &Plan, shown: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let Some(program) = plan.program.command.first() else { return Ok(Vec::new()) };
    let Some(program) = find(plan, program) else {
        // Not there: the exec says so, and best.
        return Ok(Vec::new());
    };
    let mut needed = BTreeSet::new();
    let visible = |path: &Path| {
        let hidden = plan.hidden.iter().any(|name| path.starts_with(name));
        (shown.iter().any(|name| path.starts_with(name)) && !hidden)
            || (plan.workdir != Path::new("/") && path.starts_with(&plan.workdir))
    };
    let mut next = Some(program);
    for _ in 0..DEPTH {
        let Some(path) = next.take() else { break };
        // The path as named and every link it goes through, up to the file itself.
        let mut step = plain(&path);
        for _ in 0..16 {
            if !visible(&step) {
                needed.insert(unit(&step, plan.home.as_deref()));
            }
            let Ok(target) = std::fs::read_link(&step) else { break };
            step = plain(&step.parent().unwrap_or(Path::new("/")).join(target));
        }
        if let Ok(real) = std::fs::canonicalize(&path) {
            if !visible(&real) {
                needed.insert(unit(&real, plan.home.as_deref()));
            }
            next = interpreter(&real).map(PathBuf::from).filter(|path| path.is_absolute());
        }
    }
    // One inside another is shown with it.
    let all: Vec<_> = needed.into_iter().filter(|path| path.symlink_metadata().is_ok()).collect();
    Ok(all
        .iter()
        .filter(|path| !all.iter().any(|other| other != *path && path.starts_with(other)))
        .cloned()
        .collect())
}

/// The same path without `..`, which leads from a directory that is a link to the parent of what it leads to.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part != Component::ParentDir {
            plain.push(part);
            continue;
        }
        if plain.is_symlink()
            && let Ok(real) = plain.canonicalize()
        {
            plain = real;
        }
        plain.pop();
    }
    plain
}

/// Where the host has the program, as the function's own search would find it.
fn find(plan: &Plan, program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let path = plan.workdir.join(program);
        return path.metadata().is_ok().then_some(path);
    }
    let path = plan.program.env.iter().rev().find(|(name, _)| name == "PATH");
    path.map_or(DEFAULT_PATH, |(_, path)| path)
        .split(':')
        .map(|directory| plan.workdir.join(directory).join(program))
        .find(|candidate| candidate.metadata().is_ok_and(|metadata| metadata.is_file()))
}

/// What has to be shown for the program at `path` to run.
fn unit(path: &Path, home: Option<&Path>) -> PathBuf {
    let file = path.to_path_buf();
    let Some(directory) = path.parent() else { return file };
    let Some(prefix) = directory.parent() else { return file };
    let kind = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if matches!(kind, "bin" | "sbin" | "shims") && installation(prefix, home) {
        prefix.to_path_buf()
    } else {
        file
    }
}

/// A directory that holds an installed program and nothing personal.
fn installation(prefix: &Path, home: Option<&Path>) -> bool {
    let depth = prefix.components().count();
    let name = prefix.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_home = prefix == Path::new("/root")
        || prefix.parent().is_some_and(|parent| parent == Path::new("/home"))
        || Some(prefix) == home;
    // `.local` keeps all of a desktop's data, `.cargo` the tokens of a registry.
    depth >= 3 && !is_home && !matches!(name, ".local" | ".cargo" | ".config")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_little_as_possible_is_shown() {
        let of =
            |path: &str| unit(Path::new(path), Some(Path::new("/data/me/jo"))).to_str().unwrap().to_owned();
        assert_eq!(of("/home/ann/.nvm/versions/node/v20/bin/node"), "/home/ann/.nvm/versions/node/v20");
        assert_eq!(of("/home/ann/.pyenv/shims/python3"), "/home/ann/.pyenv");
        assert_eq!(of("/home/ann/.local/bin/tool"), "/home/ann/.local/bin/tool");
        assert_eq!(of("/home/ann/bin/tool"), "/home/ann/bin/tool");
        assert_eq!(of("/root/bin/tool"), "/root/bin/tool");
        assert_eq!(of("/home/ann/.cargo/bin/tool"), "/home/ann/.cargo/bin/tool");
        assert_eq!(of("/data/me/jo/bin/tool"), "/data/me/jo/bin/tool");
        assert_eq!(of("/srv/tool"), "/srv/tool");
        assert_eq!(of("/data/bin/tool"), "/data/bin/tool");
    }
}
