//! What a function sees besides its image: which of the host's files an engine has to show, and where.
//!
//! The same as in a native sandbox (see [`crate::init::mounts`]), said in words that every engine has: binds of host paths, layers over
//! them, and directories that hide.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::engine::shown;
use crate::init::mounts::{HOST_NAME, HOSTS, OPT, RESOLVER, expose, inside, kind, no_file, normal};
use crate::wire::Plan;
use crate::{Error, Root, Spec};

/// Directories that programs expect, empty.
const EMPTY: [&str; 6] = ["home", "root", "run", "srv", "sys", "var"];
/// Links that programs expect.
const LINKS: [(&str, &str); 2] = [("var/tmp", "../tmp"), ("var/run", "../run")];

/// One thing to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// This host path, read-only and with all that is mounted in it.
    Show { host: PathBuf, at: PathBuf },
    /// This host directory with a private layer over it.
    Layer { host: PathBuf, at: PathBuf },
    /// A file with this content, read-only.
    Text { content: String, at: PathBuf },
    /// Nothing, so that what lies there is hidden and other things can be shown in it.
    Cover { at: PathBuf },
}

/// What is mounted in which order, on which root.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Directories of the root, relative to it; where it is not an image's.
    pub directories: Vec<PathBuf>,
    /// Links of the root and what they say; where it is not an image's.
    pub links: Vec<(PathBuf, PathBuf)>,
    pub mounts: Vec<Mount>,
}

impl View {
    /// Looks at the host. Blocks as long as file systems do. An image's root may be `growing`: then what lacks a place gets one.
    ///
    /// # Errors
    /// [`Error::Function`] for a work directory or a root that is not there; [`Error::Platform`].
    pub fn new(spec: &Spec, plan: &Plan, host_paths: &[PathBuf], growing: bool) -> Result<Self, Error> {
        let mut view = Self::default();
        let host_paths = &shown(host_paths, spec.opt.as_deref());
        if let Root::Host = spec.root {
            view.host(host_paths, spec.writable_root)?;
            view.hide(plan, host_paths);
            view.opt(spec.opt.as_deref())?;
        }
        if let Root::Directory(directory) = &spec.root
            && !directory.is_dir()
        {
            let path = directory.display();
            return Err(Error::Function(format!("the root directory {path} is not there, or is none")));
        }
        view.names(spec, plan, growing)?;
        if let Root::Host = spec.root {
            view.workdir(&spec.workdir, host_paths, &plan.hidden)?;
            for path in expose::needed(plan, host_paths)? {
                view.mounts.push(Mount::Show { host: path.clone(), at: path });
            }
        }
        Ok(view)
    }

    fn host(&mut self, names: &[PathBuf], writable: bool) -> Result<(), Error> {
        for name in names {
            let Ok(metadata) = name.symlink_metadata() else { continue };
            let Ok(inner) = name.strip_prefix("/") else { continue };
            if metadata.is_symlink() {
                let target = fs::read_link(name)
                    .map_err(|source| Error::Platform { step: format!("read {}", name.display()), source })?;
                self.links.push((inner.to_path_buf(), target));
            } else if metadata.is_dir() {
                let (host, at) = (name.clone(), name.clone());
                self.directories.push(inner.to_path_buf());
                self.mounts.push(if writable { Mount::Layer { host, at } } else { Mount::Show { host, at } });
            }
        }
        self.directories.extend(EMPTY.map(PathBuf::from));
        self.links.extend(LINKS.map(|(name, target)| (name.into(), target.into())));
        Ok(())
    }

    /// A directory in the place of the host's `/opt`.
    fn opt(&mut self, asked: Option<&Path>) -> Result<(), Error> {
        let Some(asked) = asked else { return Ok(()) };
        let host = normal(asked)?;
        if !host.is_dir() {
            return Err(Error::Function(format!("the directory {} for /opt does not exist", host.display())));
        }
        self.directories.push(PathBuf::from(OPT.trim_start_matches('/')));
        self.mounts.push(Mount::Show { host, at: OPT.into() });
        Ok(())
    }

    /// Covers what is not for everybody, but for what a function has in its own directory.
    fn hide(&mut self, plan: &Plan, names: &[PathBuf]) {
        let whole = plan.workdir == Path::new("/");
        let shown = |path: &&PathBuf| names.iter().any(|name| path.starts_with(name));
        let hidden = plan.hidden.iter().filter(shown);
        for path in hidden.filter(|path| whole || !path.starts_with(&plan.workdir)) {
            let at = path.clone();
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() => self.mounts.push(Mount::Cover { at }),
                Ok(_) => self.mounts.push(Mount::Text { content: String::new(), at }),
                // Gone since.
                Err(_) => {}
            }
        }
    }

    /// The files that say what names mean: the sandbox's own, or the host's where it has the host's network.
    fn names(&mut self, spec: &Spec, plan: &Plan, growing: bool) -> Result<(), Error> {
        let host_name = format!("{}\n", spec.id);
        let own = plan.names.as_ref().map(|names| {
            [(HOSTS, &names.hosts), (RESOLVER, &names.resolver), (HOST_NAME, &host_name)].to_vec()
        });
        let Some(own) = own else {
            for name in [HOSTS, RESOLVER] {
                let Ok(host) = fs::canonicalize(name) else { continue };
                let at = match &spec.root {
                    // Shown with the rest of /etc, unless it leads into what is hidden.
                    Root::Host => host.starts_with("/run").then(|| host.clone()),
                    Root::Directory(root) => name_file(root, name, growing)?,
                };
                self.mounts.extend(at.map(|at| Mount::Show { host, at }));
            }
            return Ok(());
        };
        for (name, content) in own {
            let at = match &spec.root {
                Root::Host => fs::canonicalize(name).ok(),
                Root::Directory(root) => name_file(root, name, growing)?,
            };
            self.mounts.extend(at.map(|at| Mount::Text { content: content.clone(), at }));
        }
        Ok(())
    }

    /// The function's directory at its own path, whatever is hidden or closed on the way.
    fn workdir(&mut self, asked: &Path, names: &[PathBuf], hidden: &[PathBuf]) -> Result<(), Error> {
        let directory = normal(asked)?;
        for reserved in ["/proc", "/dev", "/sys"] {
            if directory.starts_with(reserved) {
                return Err(Error::Function(format!("the work directory may not be in {reserved}")));
            }
        }
        if directory == Path::new("/") || directory == Path::new("/tmp") {
            return Ok(());
        }
        let path = directory.display();
        let metadata = directory.metadata().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Function(format!("the work directory {path} does not exist")),
            _ => Error::Function(format!("the work directory {path}: {error}")),
        })?;
        if !metadata.is_dir() {
            return Err(Error::Function(format!("the work directory {path} is not a directory")));
        }
        if names.iter().any(|name| directory.starts_with(name)) {
            let Some(closed) = closed_parent(&directory, hidden) else { return Ok(()) };
            self.mounts.push(Mount::Cover { at: closed });
        }
        self.mounts.push(Mount::Show { host: directory.clone(), at: directory });
        Ok(())
    }
}

/// The first directory on the way that the function's user cannot pass. Our own user passes where we do, but for what is hidden.
fn closed_parent(directory: &Path, hidden: &[PathBuf]) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return hidden.iter().find(|hidden| directory.starts_with(hidden)).cloned();
    }
    let mut parents: Vec<_> = directory.ancestors().skip(1).collect();
    parents.reverse();
    parents
        .into_iter()
        .find(|parent| parent.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 == 0))
        .map(Path::to_path_buf)
}

/// Where a file of `/etc` is or can be in an image; nowhere if it lacks it and cannot grow, or has a link to nowhere.
///
/// # Errors
/// [`Error::Function`] for a directory in its place.
fn name_file(root: &Path, name: &str, growing: bool) -> Result<Option<PathBuf>, Error> {
    let failed = |error: rustix::io::Errno| {
        let step = format!("look at the root directory {}", root.display());
        Error::Platform { step, source: error.into() }
    };
    let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(root, root_flags, Mode::empty()).map_err(failed)?;
    match inside(&handle, Path::new(name)) {
        Ok(there) if kind(&there).map_err(failed)? == FileType::Directory => {
            Err(Error::Function(no_file(name)))
        }
        Ok(_) => Ok(Some(PathBuf::from(name))),
        Err(rustix::io::Errno::NOENT) => {
            let dangling = root.join(name.trim_start_matches('/')).symlink_metadata().is_ok();
            Ok((growing && !dangling).then(|| PathBuf::from(name)))
        }
        // An image's links that lead in a circle, or behind a file.
        Err(_) => Ok(None),
    }
}

/// Whether a root has a directory of this name; a link in an image would put what is mounted there somewhere else.
///
/// # Errors
/// [`Error::Function`] for a link, or a file.
pub fn has_mount_point(root: &Path, at: &Path) -> Result<bool, Error> {
    let mut so_far = root.to_path_buf();
    for part in at.strip_prefix("/").unwrap_or(at) {
        so_far.push(part);
        match so_far.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(found) => {
                let what = if found.is_symlink() { "a symbolic link" } else { "a file" };
                return Err(Error::Function(format!(
                    "{} is {what} in the image; it must be a directory",
                    at.display()
                )));
            }
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}
