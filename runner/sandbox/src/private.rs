//! What of the host's shown directories is not for everybody, where a function is our own user to the host.
//!
//! Without root no function can be made another user: what we may read it could, too. So whatever is kept there from others is hidden from
//! it: settings, keys and tokens of the runner's own above all. It is looked for once, when a driver starts; what is made or closed later
//! shows until the next start.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Directories of programs, which are for everybody, and too many to look at.
const PROGRAMS: [&str; 9] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/nix", "/gnu"];
/// As many files are looked at, at most.
const ENTRIES: usize = 100_000;
/// Each is mounted over in each sandbox: rather whole directories than more than this.
const MOUNTS: usize = 64;

/// Files and directories below these that we may look into and others may not. Blocks.
pub fn below(shown: &[PathBuf]) -> Vec<PathBuf> {
    let tops = shown.iter().filter(|path| !PROGRAMS.iter().any(|program| path.starts_with(program)));
    let mut left: Vec<_> = tops.cloned().collect();
    let mut found = BTreeSet::new();
    let mut looked = 0;
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            looked += 1;
            if looked > ENTRIES {
                tracing::warn!(
                    directory = %directory.display(),
                    "too many files to find all that functions are not to see; they are this user"
                );
                return few(found, shown);
            }
            let path = entry.path();
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                match closed(&path, metadata.mode(), 0o001, Access::EXEC_OK) {
                    true => drop(found.insert(path)),
                    false => left.push(path),
                }
            } else if !metadata.is_symlink() && closed(&path, metadata.mode(), 0o004, Access::READ_OK) {
                found.insert(path);
            }
        }
    }
    few(found, shown)
}

/// To others, and not to us.
fn closed(path: &Path, mode: u32, others: u32, ours: Access) -> bool {
    mode & others == 0 && access(path, ours).is_ok()
}

/// Directories in the place of many files in them, but never all that is shown.
fn few(mut found: BTreeSet<PathBuf>, shown: &[PathBuf]) -> Vec<PathBuf> {
    while found.len() > MOUNTS {
        let wider = |path: &PathBuf| match path.parent() {
            Some(parent) if !shown.iter().any(|top| top == parent) => parent.to_path_buf(),
            _ => path.clone(),
        };
        let wide: BTreeSet<_> = found.iter().map(wider).collect();
        let outer = |path: &&PathBuf| !path.ancestors().skip(1).any(|parent| wide.contains(parent));
        let outer: BTreeSet<_> = wide.iter().filter(outer).cloned().collect();
        if outer == found {
            break;
        }
        found = outer;
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_may_not_read_is_found() {
        let top = std::env::temp_dir().join(format!("stoker-private-{}", std::process::id()));
        let put = |name: &str, mode| {
            let path = top.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        put("all", 0o644);
        put("open/all", 0o604);
        let (own, shared) = (put("own", 0o600), put("open/shared", 0o640));
        let closed = put("closed/all", 0o644).parent().unwrap().to_path_buf();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("own", top.join("link")).unwrap();
        assert_eq!(below(&[top.clone(), "/usr/lib".into()]), [closed, shared, own]);
        for number in 0..=MOUNTS {
            put(&format!("many/{number}"), 0o600);
        }
        let (many, open) = (top.join("many"), top.join("open"));
        assert_eq!(below(std::slice::from_ref(&top)), [top.join("closed"), many, open, top.join("own")]);
        fs::remove_dir_all(top).unwrap();
    }
}
