//! Code in a directory that the balancers and the runners see at the same path.
//!
//! A directory is named by the SHA-256 of its zip and does not change any more: it is complete when it has its name, so that a kill at any
//! point leaves nothing that looks like code and is none. Several layers are one tree of hard links, and so is, where a runtime has a root
//! of its own, the root with layers and code in it. What nobody names any more is removed a day after that was seen first.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ring::digest;
use stoker_core::function::Root;
use stoker_core::ids::CallId;
use stoker_core::text::hex;

use super::super::runtimes::{CLIENT_FILES, CLIENTS, Runtime};
use super::zipped::{Files, unzip};
use super::{Kept, OPT, Refused, TASK, blocking, broken, gone};

/// How long code stays that nobody names.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// Roots with code in them.
const ROOTS: &str = "roots";

/// Layers, and what several of them are together.
const LAYERS: &str = "layers";
const OPTS: &str = "opts";

/// What it is called that nobody names, until it is removed.
const MARK: &str = ".unused-";

/// See the module.
pub struct Directory {
    at: PathBuf,
    /// Bytes that a zip may become.
    most: u64,
}

impl Directory {
    pub fn new(at: PathBuf, most: u64) -> Arc<Self> {
        Arc::new(Self { at, most })
    }

    /// Unpacks a zip with this hash, or finds that it is there.
    pub async fn put(
        self: &Arc<Self>,
        zip: Bytes,
        hash: &[u8],
        runtime: &Runtime,
        layers: &[String],
    ) -> Result<Kept, Refused> {
        let directory = self.at.join(hex(hash));
        let (store, at) = (self.clone(), directory.clone());
        blocking(move || {
            store.made(&at, |beside| {
                unzip(&zip, store.most, &mut Unpacked(beside.to_owned(), CLIENTS))?;
                clients(beside).map_err(|error| broken("storing the code", &error))
            })
        })
        .await?;
        self.kept(directory, runtime, layers).await
    }

    /// Unpacks a layer with this hash, or finds that it is there.
    pub async fn put_layer(self: &Arc<Self>, zip: Bytes, hash: &[u8]) -> Result<String, Refused> {
        let directory = self.at.join(LAYERS).join(hex(hash));
        let (store, at) = (self.clone(), directory.clone());
        blocking(move || {
            store.made(&at, |beside| unzip(&zip, store.most, &mut Unpacked(beside.to_owned(), "")))
        })
        .await?;
        Ok(directory.to_string_lossy().into_owned())
    }

    /// Code that is here already, where a revision says that it is.
    pub async fn again(
        self: &Arc<Self>,
        at: &str,
        runtime: &Runtime,
        layers: &[String],
    ) -> Result<Kept, Refused> {
        self.kept(there(at)?, runtime, layers).await
    }

    async fn kept(
        self: &Arc<Self>,
        directory: PathBuf,
        runtime: &Runtime,
        layers: &[String],
    ) -> Result<Kept, Refused> {
        let at = directory.to_string_lossy().into_owned();
        let layers = layers.iter().map(|at| there(at)).collect::<Result<Vec<_>, _>>()?;
        let (store, from) = (self.clone(), runtime.rootfs.clone());
        let (root, workdir, opt) = blocking(move || {
            let opt = store.opt(&layers)?;
            Ok(match from {
                None => (Root::Host, directory, opt),
                Some(root) => {
                    let joined = store.join(&directory, &opt, &root)?;
                    (Root::Rootfs(joined), TASK.into(), PathBuf::new())
                }
            })
        })
        .await?;
        Ok(Kept { at, root, workdir, opt, credentials: None })
    }

    /// What layers are together, the last one topmost; nothing where there is none.
    fn opt(&self, layers: &[PathBuf]) -> Result<PathBuf, Refused> {
        let [_, _, ..] = layers else { return Ok(layers.first().cloned().unwrap_or_default()) };
        let all: Vec<_> = layers.iter().map(|layer| layer.as_os_str().as_encoded_bytes()).collect();
        let key = digest::digest(&digest::SHA256, &all.join(&0));
        let directory = self.at.join(OPTS).join(hex(key.as_ref()));
        self.made(&directory, |beside| {
            let laid = layers.iter().try_for_each(|layer| link_tree(layer, beside));
            laid.map_err(|error| broken("laying layers on each other", &error))
        })?;
        Ok(directory)
    }

    /// Removes what is none of these directories, once it has been so for long enough.
    pub async fn sweep(self: &Arc<Self>, named: BTreeSet<PathBuf>) {
        let store = self.clone();
        let swept = blocking(move || {
            let beside = [ROOTS, LAYERS, OPTS].map(|place| store.at.join(place));
            let mut places = [&store.at].into_iter().chain(&beside);
            let swept = places.try_for_each(|place| sweep(place, &named, SystemTime::now()));
            swept.map_err(|error| broken("removing code that nobody uses", &error))
        });
        if let Err(refused) = swept.await {
            tracing::warn!(error = %refused.error, "code that nobody uses is left where it is");
        }
    }

    /// A root with layers and code in it, for a runtime that has one.
    fn join(&self, code: &Path, opt: &Path, root: &Path) -> Result<PathBuf, Refused> {
        let key = digest::digest(&digest::SHA256, root.as_os_str().as_encoded_bytes());
        let mut name = hex(key.as_ref().get(..8).unwrap_or_default());
        for part in [opt, code].into_iter().filter_map(Path::file_name) {
            name += "-";
            name += &part.to_string_lossy();
        }
        let directory = self.at.join(ROOTS).join(name);
        self.made(&directory, |beside| {
            let linked = link_tree(root, beside).and_then(|()| {
                if !opt.as_os_str().is_empty() {
                    let at = beside.join(OPT.trim_start_matches('/'));
                    ours(&at)?;
                    link_tree(opt, &at)?;
                }
                let task = beside.join(TASK.trim_start_matches('/'));
                match fs::remove_dir_all(&task) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                fs::create_dir_all(&task)?;
                link_tree(code, &task)
            });
            linked.map_err(|error| broken(&format!("making a root of {}", root.display()), &error))
        })?;
        Ok(directory)
    }

    /// A directory that is there as a whole or not at all: made beside its place and renamed.
    fn made(&self, directory: &Path, make: impl FnOnce(&Path) -> Result<(), Refused>) -> Result<(), Refused> {
        let failed = |error: io::Error| broken("storing the code", &error);
        let place = directory.parent().unwrap_or(&self.at);
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

/// A directory that was kept.
fn there(at: &str) -> Result<PathBuf, Refused> {
    let directory = PathBuf::from(at);
    if directory.is_absolute() && directory.is_dir() { Ok(directory) } else { Err(gone()) }
}

/// Files of a zip in a directory that is there, and a name that is for what is put beside them.
struct Unpacked(PathBuf, &'static str);

impl Files for Unpacked {
    fn takes(&self, name: &[u8]) -> bool {
        name != self.1.as_bytes()
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        public_directory(&self.0.join(path))
    }

    fn file(&mut self, path: &Path, _: u64, executable: bool, content: &mut dyn Read) -> io::Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file = File::options().write(true).create_new(true).mode(mode).open(self.0.join(path))?;
        io::copy(content, &mut file)?;
        file.set_permissions(Permissions::from_mode(mode))
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        symlink(target, self.0.join(path))
    }
}

/// Puts what runs a handler whose zip has no runtime client beside it.
fn clients(beside: &Path) -> io::Result<()> {
    let at = beside.join(CLIENTS);
    public_directory(&at)?;
    CLIENT_FILES.into_iter().try_for_each(|(name, text)| {
        let path = at.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))
    })
}

/// Functions run as others than we do.
fn public_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// The same tree in another place: its files by hard links, or copied where the place is on another file system. What is there already and is
/// not a directory in both gives way; links are never followed.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            ours(&target)?;
            link_tree(&path, &target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            continue;
        }
        away(&target)?;
        if kind.is_symlink() {
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

/// Makes a directory, where a file or a link gives way to it.
fn ours(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        away(path)?;
        fs::create_dir(path)?;
    }
    Ok(())
}

fn away(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
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
