//! Code that came as a zip: unpacked once, in a directory that the balancers and the runners see at the same path.
//!
//! A directory is named by the SHA-256 of its zip and does not change any more: it is complete when it has its name, so that a kill at any
//! point leaves nothing that looks like code and is none. Where a runtime has a root of its own, the root with the code in it is a tree of
//! hard links beside it. What no revision names any more is removed a day after that was seen first.
//!
//! A zip comes from outside: what it holds is counted while it is unpacked, whatever it says about itself; no name leads out of its
//! directory, and links are made last, when nothing is written any more that could go through one.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Cursor, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ring::digest;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use tokio::sync::Semaphore;
use zip::ZipArchive;

use super::Refused;

/// Bytes of all files of a zip together, as AWS has it.
const MOST_BYTES: u64 = 262_144_000;

/// Files, directories and links of a zip.
const MOST_ENTRIES: usize = 50_000;

/// Bytes of a name in it, and of where a link leads.
const LONGEST_NAME: usize = 1024;

/// Directories in each other.
const DEEPEST: usize = 64;

/// Zips unpacked at once: each is in memory as a whole.
const AT_ONCE: usize = 2;

/// How long code stays that nobody names.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// Where the code is in a root of its own, as on AWS.
pub const TASK: &str = "/var/task";

/// Roots with code in them.
const ROOTS: &str = "roots";

/// What it is called that nobody names, until it is removed.
const MARK: &str = ".unused-";

/// See the module.
pub struct Store {
    directory: PathBuf,
    /// Bytes that a zip may become.
    most: u64,
    places: Semaphore,
}

/// A zip that was unpacked.
#[derive(Debug, Clone)]
pub struct Stored {
    /// As AWS writes it: SHA-256 in base64.
    pub sha256: String,
    /// Of the zip, if it came now.
    pub bytes: Option<usize>,
    /// Where its files are.
    pub directory: PathBuf,
    name: String,
}

impl Store {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, most: MOST_BYTES, places: Semaphore::new(AT_ONCE) }
    }

    /// Holds a place for a zip, before its bytes come.
    pub async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        // It is never closed.
        self.places.acquire().await.unwrap_or_else(|_| unreachable!("nobody closes it"))
    }

    /// Unpacks a zip, or finds that it is there.
    pub async fn put(self: &Arc<Self>, zip: Bytes) -> Result<Stored, Refused> {
        self.blocking(move |store| store.unpack(&zip)).await
    }

    /// Code that is here already, by the directory that a revision names.
    pub fn find(&self, directory: Option<&Path>) -> Result<Stored, Refused> {
        let gone = || {
            Refused::parameter("the function's code is not here any more: send it with UpdateFunctionCode")
        };
        let directory = directory.filter(|directory| directory.is_dir()).ok_or_else(gone)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash: Option<Vec<u8>> =
            (0..32).map(|at| u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()).collect();
        let sha256 = BASE64.encode(hash.ok_or_else(gone)?);
        Ok(Stored { sha256, bytes: None, directory: directory.to_owned(), name })
    }

    /// A root with the code in it, for a runtime that has one.
    pub async fn rooted(self: &Arc<Self>, stored: &Stored, root: PathBuf) -> Result<PathBuf, Refused> {
        let stored = stored.clone();
        self.blocking(move |store| store.join(&stored, &root)).await
    }

    /// Removes what is none of these directories, once it has been so for long enough.
    pub async fn sweep(self: &Arc<Self>, named: BTreeSet<PathBuf>) {
        let swept = self.blocking(move |store| {
            let places = [store.directory.clone(), store.directory.join(ROOTS)];
            let swept = places.iter().try_for_each(|place| sweep(place, &named, SystemTime::now()));
            swept.map_err(|error| broken("removing code that nobody uses", &error))
        });
        if let Err(refused) = swept.await {
            tracing::warn!(error = %refused.error, "code that nobody uses is left where it is");
        }
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|_| Err(Error::new(Code::Internal, "storing the code failed").into()))
    }

    fn unpack(&self, zip: &[u8]) -> Result<Stored, Refused> {
        let hash = digest::digest(&digest::SHA256, zip);
        let name: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let directory = self.directory.join(&name);
        let stored = Stored {
            sha256: BASE64.encode(hash.as_ref()),
            bytes: Some(zip.len()),
            directory: directory.clone(),
            name,
        };
        self.made(&directory, |beside| unpack(zip, beside, self.most))?;
        Ok(stored)
    }

    fn join(&self, stored: &Stored, root: &Path) -> Result<PathBuf, Refused> {
        let key = digest::digest(&digest::SHA256, root.as_os_str().as_encoded_bytes());
        let key: String = key.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let directory = self.directory.join(ROOTS).join(format!("{key}-{}", stored.name));
        self.made(&directory, |beside| {
            let linked = link_tree(root, beside).and_then(|()| {
                let task = beside.join(TASK.trim_start_matches('/'));
                match fs::remove_dir_all(&task) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                fs::create_dir_all(&task)?;
                link_tree(&stored.directory, &task)
            });
            linked.map_err(|error| broken(&format!("making a root of {}", root.display()), &error))
        })?;
        Ok(directory)
    }

    /// A directory that is there as a whole or not at all: made beside its place and renamed.
    fn made(&self, directory: &Path, make: impl FnOnce(&Path) -> Result<(), Refused>) -> Result<(), Refused> {
        let failed = |error: io::Error| broken("storing the code", &error);
        let place = directory.parent().unwrap_or(&self.directory);
        fs::create_dir_all(place).map_err(failed)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // It is wanted again.
        fs::remove_file(place.join(format!("{MARK}{name}"))).ok();
        if directory.is_dir() {
            return Ok(());
        }
        let beside = place.join(format!(".new-{}", CallId::new()));
        let made = public_directory(&beside).map_err(failed).and_then(|()| make(&beside)).and_then(|()| {
            // What has its name must be there after a loss of power too.
            File::open(&beside).and_then(|open| Ok(rustix::fs::syncfs(open)?)).map_err(failed)?;
            match fs::rename(&beside, directory) {
                // Somebody else was faster with the same.
                Err(error) if directory.is_dir() => {
                    tracing::debug!(%error, "the same code came twice");
                    Ok(())
                }
                renamed => renamed.map_err(failed),
            }
        });
        fs::remove_dir_all(&beside).ok();
        made
    }
}

fn broken(what: &str, error: &io::Error) -> Refused {
    tracing::error!(%error, "{what} failed");
    Refused::aws(500, "ServiceException", Error::new(Code::Internal, format!("{what}: {error}")))
}

fn bad(text: impl std::fmt::Display) -> Refused {
    Refused::parameter(format!("Could not unzip uploaded file. {text}."))
}

/// Functions run as others than we do.
fn public_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn unpack(zip: &[u8], into: &Path, most: u64) -> Result<(), Refused> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(bad)?;
    if archive.len() > MOST_ENTRIES {
        return Err(bad(format!("It has more than {MOST_ENTRIES} entries")));
    }
    let (mut left, mut links) = (most, Vec::new());
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(bad)?;
        let name = entry.name().map_err(bad)?.into_owned();
        let path = entry.enclosed_name().filter(|path| fits(path));
        let path = path.ok_or_else(|| bad(format!("{name:?} is no name for a file in it")))?;
        let whole = into.join(&path);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                bad(format!("{name:?} is there twice, or a file and a directory"))
            }
            _ => broken("unpacking code", &error),
        };
        if entry.is_dir() {
            directories(into, &path).map_err(failed)?;
            continue;
        }
        directories(into, path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        if entry.is_symlink() {
            let mut target = Vec::new();
            entry.by_ref().take(LONGEST_NAME as u64 + 1).read_to_end(&mut target).map_err(bad)?;
            let target = String::from_utf8(target).map_err(bad)?;
            if !stays_inside(&path, Path::new(&target)) {
                return Err(bad(format!("{name:?} is a link that leads out of it")));
            }
            links.push((whole, target, name));
            continue;
        }
        if entry.unix_mode().is_some_and(|mode| !matches!(mode & 0o170_000, 0 | 0o100_000)) {
            return Err(bad(format!("{name:?} is neither a file nor a directory nor a link")));
        }
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file =
            File::options().write(true).create_new(true).mode(mode).open(&whole).map_err(failed)?;
        left = copy(&mut entry, &mut file, left)?
            .ok_or_else(|| Refused::parameter(format!("Unzipped size must be smaller than {most} bytes")))?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    }
    for (path, target, name) in links {
        symlink(&target, &path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => bad(format!("{name:?} is there twice")),
            _ => broken("unpacking code", &error),
        })?;
    }
    Ok(())
}

/// Whether a path within a zip is one that a file can have.
fn fits(path: &Path) -> bool {
    let depth = path.components().count();
    (1..=DEEPEST).contains(&depth)
        && path.as_os_str().len() <= LONGEST_NAME
        && path.components().all(|part| matches!(part, Component::Normal(name) if name.len() <= 255))
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

/// A directory within another, with all that lead to it.
fn directories(into: &Path, path: &Path) -> io::Result<()> {
    let mut whole = into.to_owned();
    for part in path.components() {
        whole.push(part);
        match public_directory(&whole) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && whole.is_dir() => {}
            made => made?,
        }
    }
    Ok(())
}

/// Copies an entry; says what is left of all that a zip may hold, if anything is.
fn copy(entry: &mut impl io::Read, file: &mut File, mut left: u64) -> Result<Option<u64>, Refused> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = entry.read(&mut buffer).map_err(bad)?;
        if read == 0 {
            return Ok(Some(left));
        }
        let Some(rest) = left.checked_sub(read as u64) else { return Ok(None) };
        left = rest;
        file.write_all(&buffer[..read]).map_err(|error| broken("unpacking code", &error))?;
    }
}

/// The same tree in another place: its files by hard links, or copied where the place is on another file system.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            match fs::create_dir(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            link_tree(&path, &target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path)?, &target)?;
        } else if kind.is_file() {
            match fs::hard_link(&path, &target) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    fs::copy(&path, &target).map(drop)?;
                }
                linked => linked?,
            }
        }
    }
    Ok(())
}

/// Marks what nobody names, and removes what has been marked for long enough.
fn sweep(place: &Path, named: &BTreeSet<PathBuf>, now: SystemTime) -> io::Result<()> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_code = name.len() >= 64 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if !is_code {
            continue;
        }
        let mark = place.join(format!("{MARK}{name}"));
        if named.contains(&path) {
            fs::remove_file(&mark).ok();
            continue;
        }
        match mark.metadata() {
            Err(_) => drop(File::create(&mark)?),
            Ok(marked) => {
                if now.duration_since(marked.modified()?).is_ok_and(|age| age > UNUSED) {
                    fs::remove_dir_all(&path)?;
                    fs::remove_file(&mark)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
