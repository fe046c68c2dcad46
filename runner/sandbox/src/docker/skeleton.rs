//! What a container's root consists of before anything is mounted: a few directories and links, as an image of the daemon.
//!
//! Roots are plain directories of the host (see [`crate::Root`]), and a daemon takes only images. So the daemon is given an image that
//! has nothing but what cannot be mounted, the links at the top, and every directory at the top is mounted from the host. There are
//! few such images, most roots have the same links; each is made once, and found again by what is in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::contained::view::{Mount, View};

/// What the names of the images begin with: of no registry, so that none is ever asked for them.
const REPOSITORY: &str = "localhost/stoker-root";
/// Places at the top that are mounted anyway.
const OWN: [&str; 4] = ["dev", "proc", "sys", "tmp"];
/// A block of an archive; every entry here is one.
const BLOCK: usize = 512;

/// Adds an image's root to a view: what is at its top, mounted or made.
///
/// # Errors
/// [`Error::Platform`] when it cannot be listed.
pub fn add_image(view: &mut View, root: &Path, writable: bool) -> Result<(), Error> {
    let platform =
        |source| Error::Platform { step: format!("list the root directory {}", root.display()), source };
    let mut mounts = Vec::new();
    for entry in fs::read_dir(root).map_err(platform)? {
        let entry = entry.map_err(platform)?;
        let name = PathBuf::from(entry.file_name());
        if OWN.iter().any(|own| Path::new(own) == name) {
            continue;
        }
        let kind = entry.file_type().map_err(platform)?;
        let (host, at) = (entry.path(), Path::new("/").join(&name));
        if kind.is_symlink() {
            view.links.push((name, fs::read_link(host).map_err(platform)?));
        } else if kind.is_dir() {
            view.directories.push(name);
            mounts.push(if writable { Mount::Layer { host, at } } else { Mount::Show { host, at } });
        } else if kind.is_file() {
            mounts.push(Mount::Show { host, at });
        }
    }
    // Below what the view has in them.
    mounts.append(&mut view.mounts);
    view.mounts = mounts;
    Ok(())
}

/// The name of the image for a view, and its content.
///
/// # Errors
/// [`Error::Function`] for names that an archive does not take.
pub fn archive(view: &View) -> Result<(String, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    // An image without anything in it is none.
    let own = OWN.iter().map(PathBuf::from);
    let directories: BTreeSet<PathBuf> = view.directories.iter().cloned().chain(own).collect();
    for directory in &directories {
        bytes.extend(entry(directory, None)?);
    }
    let links: BTreeSet<_> = view.links.iter().collect();
    for (name, target) in links {
        bytes.extend(entry(name, Some(target))?);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    let digest = Sha256::digest(&bytes);
    let digest: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    // Podman takes no notice of the tag that is asked for.
    Ok((format!("{REPOSITORY}/{digest}"), bytes))
}

/// One entry of an archive: a directory, or a link.
fn entry(name: &Path, target: Option<&Path>) -> Result<[u8; BLOCK], Error> {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8], room: usize| {
        let space = block.get_mut(at..at + text.len()).filter(|_| text.len() <= room);
        space.map(|space| space.copy_from_slice(text))
    };
    let (kind, mode, text) = match target {
        None => (b"5", b"0000755\0", b"".as_slice()),
        Some(target) => (b"2", b"0000777\0", target.as_os_str().as_encoded_bytes()),
    };
    let fits = put(0, name.as_os_str().as_encoded_bytes(), 100).and(put(157, text, 100));
    put(100, mode, 8);
    put(108, b"0000000\0", 8);
    put(116, b"0000000\0", 8);
    put(124, b"00000000000\0", 12);
    put(136, b"00000000000\0", 12);
    put(148, b"        ", 8);
    put(156, kind, 1);
    put(257, b"ustar\x0000", 8);
    if fits.is_none() {
        return Err(Error::Function(format!(
            "/{} is a link or a directory of the image with too long a name",
            name.display()
        )));
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// Directories of the host that get a private layer, and where the layer's parts are.
#[derive(Debug)]
pub struct Layer {
    pub upper: PathBuf,
    pub work: PathBuf,
}

impl Layer {
    /// The layer of this number in a container's directory.
    pub fn new(directory: &Path, number: usize) -> Self {
        Self {
            upper: directory.join(format!("upper-{number}")),
            work: directory.join(format!("work-{number}")),
        }
    }

    /// Makes its directories; who owns the upper one may write at its top.
    ///
    /// # Errors
    /// What the file system says.
    pub fn make(&self, owner: Option<u32>) -> io::Result<()> {
        fs::create_dir(&self.upper)?;
        fs::create_dir(&self.work)?;
        std::os::unix::fs::chown(&self.upper, owner, owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_named_by_what_is_in_it() {
        let mut view = View::default();
        view.directories.push("usr".into());
        let (first, bytes) = archive(&view).unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        view.links.push(("bin".into(), "usr/bin".into()));
        let (second, bytes) = archive(&view).unwrap();
        assert_ne!(first, second);
        assert_eq!(archive(&view).unwrap().0, second);
        let last = &bytes[bytes.len() - 3 * BLOCK..bytes.len() - 2 * BLOCK];
        assert_eq!(
            (&last[..4], last[156], &last[157..164]),
            (b"bin\0".as_slice(), b'2', b"usr/bin".as_slice())
        );
    }

    #[test]
    fn names_too_long_for_an_archive_are_refused() {
        let mut view = View::default();
        view.links.push(("bin".into(), "x".repeat(101).into()));
        assert!(archive(&view).is_err());
    }
}
