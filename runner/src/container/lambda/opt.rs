//! What is in the `/opt` of a function, where layers and images have their extensions.

use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

/// Extensions beside this file are not started, and may not register.
const NONE: &str = "disable-extensions-jwigqn8j";

/// The extensions in the directory `opt` of a root, none of which is a directory; `None` where there shall be none. Links lead nowhere outside of the root.
pub fn extensions(root: &Path, opt: &str) -> Option<Vec<String>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(root, flags, Mode::empty()) else { return Some(Vec::new()) };
    let mark = OFlags::PATH | OFlags::CLOEXEC;
    let at = |name: &str| format!("{opt}/{name}");
    if rustix::fs::openat2(&root, at(NONE), mark, Mode::empty(), ResolveFlags::IN_ROOT).is_ok() {
        return None;
    }
    let directory = rustix::fs::openat2(root, at("extensions"), flags, Mode::empty(), ResolveFlags::IN_ROOT);
    // Most functions have none.
    let Ok(entries) = directory.and_then(Dir::new) else { return Some(Vec::new()) };
    let names = entries.flatten().filter(|entry| entry.file_type() != FileType::Directory);
    // In an order that does not depend on the file system.
    let mut names: Vec<_> = names.filter_map(|e| e.file_name().to_str().ok().map(str::to_owned)).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extensions_of_a_root_are_its_files() {
        let root = tempfile::tempdir().unwrap();
        let found = || extensions(root.path(), "opt");
        assert_eq!(extensions(&root.path().join("absent"), "opt"), Some(Vec::new()));
        assert_eq!(found(), Some(Vec::new()), "there is no directory for them");
        let directory = root.path().join("opt/extensions");
        std::fs::create_dir_all(root.path().join("opt")).unwrap();
        std::fs::write(&directory, "a file in its place").unwrap();
        assert_eq!(found(), Some(Vec::new()));
        std::fs::remove_file(&directory).unwrap();
        std::fs::create_dir_all(directory.join("a-directory")).unwrap();
        assert_eq!(found(), Some(Vec::new()));
        for name in ["second", "first", ".hidden"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", directory.join("a-link")).unwrap();
        assert_eq!(found(), Some(vec!["a-link".into(), "first".into(), "second".into()]));
        // The same of a directory that stands in the place of the root's.
        let beside = extensions(&root.path().join("opt"), ".");
        assert_eq!(beside.map(|found| found.len()), Some(3));
        // A directory that leads out of the root leads nowhere.
        std::fs::rename(&directory, root.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", &directory).unwrap();
        assert_eq!(found().map(|found| found.len()), Some(3));
        std::fs::write(root.path().join("opt").join(NONE), "").unwrap();
        assert_eq!(found(), None);
    }
}
