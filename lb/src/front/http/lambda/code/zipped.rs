//! What is in a zip, read with suspicion: it comes from outside.
//!
//! Bytes are counted while they come, whatever the zip says about itself; no name leads out of the directory that it is, nothing is there twice, and
//! links are given last, when nothing comes any more that could be written through one.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Component, Path, PathBuf};

use zip::ZipArchive;

use super::{Refused, broken};

/// Bytes of all files of a zip together, as AWS has it.
pub const MOST_BYTES: u64 = 262_144_000;

/// Files, directories and links of a zip.
const MOST_ENTRIES: usize = 50_000;

/// Bytes of a name in it, and of where a link leads.
const LONGEST_NAME: usize = 1024;

/// Directories in each other.
pub const DEEPEST: usize = 64;

/// Who takes what is in a zip. A directory comes before what is in it.
pub trait Files {
    /// Whether a file or a directory can have this name.
    fn takes(&self, name: &[u8]) -> bool;
    fn directory(&mut self, path: &Path) -> io::Result<()>;
    fn file(&mut self, path: &Path, size: u64, executable: bool, content: &mut dyn Read) -> io::Result<()>;
    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()>;
}

fn bad(text: impl std::fmt::Display) -> Refused {
    Refused::parameter(format!("Could not unzip uploaded file. {text}."))
}

/// Gives all that is in a zip, if it is no more than that.
pub fn unzip(zip: &[u8], most: u64, files: &mut impl Files) -> Result<(), Refused> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(bad)?;
    if archive.len() > MOST_ENTRIES {
        return Err(bad(format!("It has more than {MOST_ENTRIES} entries")));
    }
    let (mut left, mut links, mut seen) = (most, Vec::new(), Seen::default());
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        let path = entry.enclosed_name().filter(|path| fits(path, files));
        let path = path.ok_or_else(|| bad(format!("{name:?} is no name for a file in it")))?;
        let above = if entry.is_dir() { Some(path.as_path()) } else { path.parent() };
        if !seen.directories(above, files).map_err(failed)? || !entry.is_dir() && !seen.file(&path) {
            return Err(bad(format!("{name:?} is there twice, or a file and a directory")));
        }
        if entry.is_dir() {
            continue;
        }
        if entry.is_symlink() {
            let mut target = Vec::new();
            entry.by_ref().take(LONGEST_NAME as u64 + 1).read_to_end(&mut target).map_err(bad)?;
            let target = PathBuf::from(String::from_utf8(target).map_err(bad)?);
            if !stays_inside(&path, &target) {
                return Err(bad(format!("{name:?} is a link that leads out of it")));
            }
            links.push((path, target));
            continue;
        }
        if entry.unix_mode().is_some_and(|mode| !matches!(mode & 0o170_000, 0 | 0o100_000)) {
            return Err(bad(format!("{name:?} is neither a file nor a directory nor a link")));
        }
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        let size = entry.size();
        let mut content = Counted { inner: entry, left, most, wrong: None };
        let taken = files.file(&path, size, executable, &mut content);
        left = content.left;
        if let Some(wrong) = content.wrong {
            return Err(wrong);
        }
        taken.map_err(failed)?;
    }
    links.iter().try_for_each(|(path, target)| files.link(path, target)).map_err(failed)
}

/// What a zip says of itself: the bytes of its files, and whether it has a `bootstrap`.
pub fn look(zip: &[u8]) -> Result<(u64, bool), Refused> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(bad)?;
    let mut bytes = 0u64;
    for at in 0..archive.len().min(MOST_ENTRIES) {
        bytes = bytes.saturating_add(archive.by_index_raw(at).map_err(bad)?.size());
    }
    Ok((bytes, archive.index_for_name("bootstrap").is_some()))
}

/// What taking a file fails with: it is too much, or not what it was said to be, or something is wrong here.
fn failed(error: io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData => bad(error),
        _ => broken("unpacking code", &error),
    }
}

/// The names of a zip so far, and whether each is a directory.
#[derive(Default)]
struct Seen(BTreeMap<PathBuf, bool>);

impl Seen {
    /// Makes a directory, and those that lead to it, where they are not there yet; whether they can be.
    fn directories(&mut self, path: Option<&Path>, files: &mut impl Files) -> io::Result<bool> {
        let path = path.unwrap_or(Path::new(""));
        match self.0.get(path) {
            _ if path.as_os_str().is_empty() => return Ok(true),
            Some(directory) => return Ok(*directory),
            None => {}
        }
        if !self.directories(path.parent(), files)? {
            return Ok(false);
        }
        self.0.insert(path.to_owned(), true);
        files.directory(path)?;
        Ok(true)
    }

    /// Whether it is the first of its name.
    fn file(&mut self, path: &Path) -> bool {
        self.0.insert(path.to_owned(), false).is_none()
    }
}

/// Counts what is read, and remembers whether it was reading that failed.
struct Counted<R> {
    inner: R,
    left: u64,
    most: u64,
    wrong: Option<Refused>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer).inspect_err(|error| self.wrong = Some(bad(error)))?;
        let Some(left) = self.left.checked_sub(read as u64) else {
            let text = format!("Unzipped size must be smaller than {} bytes", self.most);
            self.wrong = Some(Refused::parameter(text));
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.left = left;
        Ok(read)
    }
}

/// Whether a path within a zip is one that a file can have.
fn fits(path: &Path, files: &impl Files) -> bool {
    let depth = path.components().count();
    (1..=DEEPEST).contains(&depth)
        && path.as_os_str().len() <= LONGEST_NAME
        && path.components().all(|part| matches!(part, Component::Normal(name) if name.len() <= 255 && files.takes(name.as_encoded_bytes())))
}

/// Whether a link at `path` leads to something in the same tree, by its words alone.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    if target.as_os_str().is_empty() || target.as_os_str().len() > LONGEST_NAME {
        return false;
    }
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}
