//! Small disks that can be filled to the last byte.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// A small disk, mounted where only the test and what it starts sees it: in a [network of its own](crate::net::run).
#[must_use]
pub fn mounted(directory: &Path, options: &str) -> PathBuf {
    let options = std::ffi::CString::new(options).unwrap();
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
    directory.to_owned()
}

/// Takes everything that is left: names of files as well as their bytes.
#[derive(Debug)]
pub struct Full(Vec<PathBuf>);

impl Full {
    /// Fills a disk whose names are limited too.
    #[must_use]
    pub fn fill(disk: &Path) -> Self {
        let mut files = vec![disk.join("filler")];
        let mut file = File::create(&files[0]).expect("there is room for a name");
        while file.write_all(&[1; 4096]).is_ok() {}
        for n in 0.. {
            let path = disk.join(format!("filler-{n}"));
            if File::create(&path).is_err() {
                return Self(files);
            }
            files.push(path);
        }
        unreachable!("a disk has an end");
    }

    /// Gives it back.
    pub fn free(self) {
        self.0.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}
