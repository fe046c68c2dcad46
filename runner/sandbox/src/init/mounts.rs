//! What a sandbox sees as `/`.
//!
//! Sources on the host are opened as detached trees first, made read-only as a whole (mounts below them too), then put
//! together on a root that is stacked on the old one; `pivot_root` and a lazy unmount leave nothing of the host's tree.
//! The files of an image keep their owners: its mount is mapped by the function's user namespace, where the kernel and the file
//! system can do that; else what belongs to others shows as nobody's, and is read by what everybody may.
//! No directory of the host is needed as a mount point, and nothing has to be cleaned up: it all lives in the sandbox's own
//! mount namespace. Paths inside the new root are resolved as if it were `/` already, so that symbolic links in an image lead nowhere.

pub mod expose;
mod kernel;
mod tree;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, mkdirat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, unmount,
};

pub use self::kernel::{Kernel, MASKED, MASKED_SYSTEM, PROTECTED, ahead};
use self::tree::*;
pub use self::tree::{NO_DEVICES, NO_SUID, inside, kind, tmpfs};
use crate::sys::{self, MountAttributes};
use crate::wire::{Failure, Identity, Names, Plan, RootPlan, Step};

/// The files that depend on the sandbox and not on its root.
pub const RESOLVER: &str = "/etc/resolv.conf";
pub const HOSTS: &str = "/etc/hosts";
pub const HOST_NAME: &str = "/etc/hostname";
/// What a directory of the host may stand in the place of.
pub const OPT: &str = "/opt";
/// Room for a shared directory outside `/tmp`: sockets and small files.
pub const SHARED_SIZE: u64 = 4 << 20;
/// Room for POSIX shared memory, at most; never more than the `/tmp`.
pub const SHM_SIZE: u64 = 64 << 20;

/// Leaves the host's mount namespace for one of our own. What is cloned from now on moves to the new root with us.
pub fn cut_off() -> Result<(), Failure> {
    sys::unshare(libc::CLONE_NEWNS).step(|| "unshare the mount namespace".to_owned())?;
    let host = path_only("/")?;
    sys::mount_setattr(
        host.as_fd(),
        MountAttributes { propagation: libc::MS_PRIVATE, recursive: true, ..Default::default() },
        None,
    )
    .step(|| "cut the mount namespace off".to_owned())
}

/// What comes of building a root.
#[derive(Default)]
pub struct Built {
    /// A handle on the shared directory.
    pub shared: Option<OwnedFd>,
    /// Detached trees that nobody needs any more. To close one means to wait for a grace period of the kernel: somebody always waits for an init.
    pub spent: Vec<OwnedFd>,
}

/// Builds the root and moves into it; `users` is the function's user namespace.
pub fn build(plan: &Plan, users: Option<&OwnedFd>, kernel: Option<Kernel>) -> Result<Built, Failure> {
    rustix::process::umask(Mode::empty());
    let (mut copies, mut spent) = (Vec::new(), Vec::new());
    if let (true, RootPlan::Host(names)) = (plan.writable_root, &plan.root) {
        let mut directories: Vec<_> =
            names.iter().filter(|name| name.symlink_metadata().is_ok_and(|found| found.is_dir())).collect();
        if in_a_user_namespace(plan) {
            // No layer is put over what something of the host's is mounted in, which might hide what is not for us: it is only shown.
            let mounts = fs::read_to_string("/proc/self/mountinfo").step(|| "look at mounts".to_owned())?;
            directories.retain(|name| !holds_mounts(&mounts, name));
        }
        let trees = directories.iter().map(|name| detach(name, READ_ONLY)).collect::<Result<Vec<_>, _>>()?;
        let made = overlays(trees, plan, &Layer::default(), &mut spent)?;
        copies = directories.iter().map(|name| (*name).clone()).zip(made).collect();
    }
    let (root, growing) = root(plan, users, &mut spent)?;
    let builder = Builder { plan, root, growing, copies, owner: plan.identity.owner() };
    spent.extend(builder.populate(kernel)?);
    Ok(Built { shared: builder.enter()?, spent })
}

struct Builder<'a> {
    plan: &'a Plan,
    root: OwnedFd,
    /// Missing files and directories of the root can be made.
    growing: bool,
    /// Host directories with a private layer, where the root is to be writable.
    copies: Vec<(PathBuf, OwnedFd)>,
    owner: u32,
}

/// Makes the root file system and stacks it on the old one; and whether it is still writable to us.
fn root(plan: &Plan, users: Option<&OwnedFd>, spent: &mut Vec<OwnedFd>) -> Result<(OwnedFd, bool), Failure> {
    let (tree, growing) = match &plan.root {
        RootPlan::Host(_) | RootPlan::Unchanged => {
            (tmpfs(&[("mode", "0755"), ("size", "1m"), ("nr_inodes", "4k")], NO_SUID | NO_DEVICES)?, true)
        }
        RootPlan::Directory(directory) => {
            let tree =
                detach(directory, NO_SUID | NO_DEVICES | READ_ONLY).map_err(|failure| {
                    match failure.errno {
                        libc::ENOENT | libc::ENOTDIR => Failure::function(format!(
                            "the root directory {} is not there, or is none",
                            directory.display()
                        )),
                        _ => failure,
                    }
                })?;
            if let (Identity::Mapped { .. }, Some(users)) = (plan.identity, users) {
                // A file system that cannot be mapped shows its files as nobody's: most images work all the same.
                sys::mount_setattr(
                    tree.as_fd(),
                    MountAttributes { set: libc::MOUNT_ATTR_IDMAP, recursive: true, ..Default::default() },
                    Some(users.as_fd()),
                )
                .ok();
            }
            let places = ["proc", "dev", "tmp"];
            let absent =
                |name: &&str| beneath(&tree, name).is_err_and(|error| error == rustix::io::Errno::NOENT);
            let missing = places.iter().any(|name| beneath(&tree, name).is_err());
            let shared = plan.shared.as_deref().filter(|path| !path.starts_with("/tmp"));
            let homeless = shared.is_some_and(|path| inside(&tree, path).is_err());
            let resolves = plan.names.as_ref().is_none_or(|names| !names.resolver.is_empty());
            let lost = resolves && inside(&tree, Path::new(RESOLVER)).is_err();
            if !plan.writable_root && !missing && !homeless && !lost {
                (tree, false)
            } else {
                let layer = Layer {
                    directories: places.into_iter().filter(absent).collect(),
                    names: absent(&"etc") && plan.names.is_some(),
                };
                let mut overlays = overlays(vec![tree], plan, &layer, spent)?;
                let tree =
                    overlays.pop().ok_or_else(|| Failure::function("the root directory has no name"))?;
                (tree, true)
            }
        }
    };
    stack(&tree)?;
    Ok((tree, growing))
}

/// What a private layer has from the start. Made through the overlay, each piece would take several times as long.
#[derive(Default)]
struct Layer {
    directories: Vec<&'static str>,
    /// The files of names, and the directory that they are in.
    names: bool,
}

impl Layer {
    fn fill(&self, layer: &OwnedFd) -> rustix::io::Result<()> {
        for name in &self.directories {
            mkdirat(layer, *name, Mode::from_raw_mode(0o755))?;
        }
        if self.names {
            mkdirat(layer, "etc", Mode::from_raw_mode(0o755))?;
            for path in [HOSTS, RESOLVER, HOST_NAME] {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
                let name = path.trim_start_matches('/');
                rustix::fs::openat(layer, name, flags, Mode::from_raw_mode(0o644))?;
            }
        }
        Ok(())
    }
}

/// An overlay over each tree, all with their private layers on one tmpfs. Not attached yet. What they are made of is `spent`.
fn overlays(
    trees: Vec<OwnedFd>,
    plan: &Plan,
    layer: &Layer,
    spent: &mut Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, Failure> {
    let size = plan.tmp_size.max(1).to_string();
    let inodes = inodes(plan.tmp_size);
    let upper = tmpfs(&[("mode", "0755"), ("size", &size), ("nr_inodes", &inodes)], NO_SUID | NO_DEVICES)?;
    for number in 0..trees.len() {
        let step = || "mount an overlay".to_owned();
        for name in [number.to_string(), format!("{number}.work")] {
            mkdirat(&upper, name, Mode::from_raw_mode(0o755)).step(step)?;
        }
        if plan.writable_root {
            // Else the function could not even make a file beside the image's directories.
            give(&upper, &number.to_string(), plan.identity.owner())?;
        }
        beneath(&upper, &number.to_string()).and_then(|upper| layer.fill(&upper)).step(step)?;
    }
    // Before Linux 6.15 an overlay is made only of what is mounted somewhere. Nowhere afterwards: overlays have it by themselves.
    let mounted = !sys::kernel_is_at_least(6, 15);
    let parts = || trees.iter().chain([&upper]);
    if mounted {
        for part in parts() {
            stack(part)?;
        }
    }
    let made = trees.iter().enumerate().map(|(number, tree)| overlay(tree, &upper, number, plan)).collect();
    if !mounted {
        spent.extend(trees);
        spent.push(upper);
        return made;
    }
    // The last one first: a path to a covered mount leads to what covers it.
    for part in parts().rev() {
        unmount(format!("/proc/self/fd/{}", part.as_raw_fd()), UnmountFlags::DETACH)
            .step(|| "unmount the layers of an overlay".to_owned())?;
    }
    made
}

/// An overlay over a tree, its private layer that of this number in `upper`. Not attached yet.
fn overlay(tree: &OwnedFd, upper: &OwnedFd, number: usize, plan: &Plan) -> Result<OwnedFd, Failure> {
    let step = || "mount an overlay".to_owned();
    let handle = upper.as_raw_fd();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).step(step)?;
    fsconfig_set_string(&context, "lowerdir", format!("/proc/self/fd/{}", tree.as_raw_fd())).step(step)?;
    fsconfig_set_string(&context, "upperdir", format!("/proc/self/fd/{handle}/{number}")).step(step)?;
    fsconfig_set_string(&context, "workdir", format!("/proc/self/fd/{handle}/{number}.work")).step(step)?;
    if in_a_user_namespace(plan) {
        fsconfig_set_flag(&context, "userxattr").step(step)?;
    }
    fsconfig_create(&context).step(step)?;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).step(step)?;
    set(&tree, NO_SUID | NO_DEVICES, false).step(step)?;
    Ok(tree)
}

/// Without the power that only root on the host has, over mounts and attributes.
fn in_a_user_namespace(plan: &Plan) -> bool {
    matches!(plan.identity, Identity::Inside | Identity::Renamed)
}

/// A page of memory per inode at least, or empty files would be a way around a size.
pub fn inodes(size: u64) -> String {
    (size / 4096).clamp(64, 1 << 20).to_string()
}

impl Builder<'_> {
    fn populate(&self, kernel: Option<Kernel>) -> Result<Option<OwnedFd>, Failure> {
        if let RootPlan::Host(names) = &self.plan.root {
            self.host(names)?;
            if let Some(opt) = &self.plan.opt {
                self.opt(&normal(opt)?)?;
            }
        }
        match &self.plan.names {
            Some(names) => self.own_names(names)?,
            None => self.host_names()?,
        }
        let spent = self.kernel(kernel)?;
        self.temporary()?;
        match &self.plan.root {
            RootPlan::Host(names) => {
                self.workdir(names)?;
                for path in expose::needed(self.plan, names)? {
                    self.show(&path, &path)?;
                }
            }
            // Images name work directories that they do not have: engines make them.
            RootPlan::Directory(_) if self.plan.writable_root => {
                let directory = normal(&self.plan.workdir)?;
                if let Err(rustix::io::Errno::NOENT) = inside(&self.root, &directory) {
                    give(&self.directory(&directory)?, "", self.owner)?;
                }
            }
            RootPlan::Directory(_) | RootPlan::Unchanged => {}
        }
        Ok(spent)
    }

    /// The host's own directories, and places that programs expect to exist.
    fn host(&self, names: &[PathBuf]) -> Result<(), Failure> {
        for name in names {
            let Ok(metadata) = name.symlink_metadata() else { continue };
            let Ok(inner) = name.strip_prefix("/") else { continue };
            if metadata.is_symlink() {
                let target = fs::read_link(name).step(|| format!("read {}", name.display()))?;
                symlinkat(target, &self.root, inner).step(|| format!("link {}", name.display()))?;
            } else if metadata.is_dir() {
                match self.copies.iter().find(|(copied, _)| copied == name) {
                    Some((_, tree)) => {
                        attach(tree, &self.directory(name)?).step(|| format!("show {}", name.display()))?;
                    }
                    None => self.show(name, name)?,
                }
            }
        }
        for name in ["/home", "/root", "/run", "/srv", "/sys", "/var"] {
            self.directory(Path::new(name))?;
        }
        self.hide()?;
        symlinkat("../tmp", &self.root, "var/tmp").step(|| "link /var/tmp".to_owned())?;
        symlinkat("../run", &self.root, "var/run").step(|| "link /var/run".to_owned())?;
        Ok(())
    }

    /// Covers what is not for everybody, but for what a function has in its own directory.
    fn hide(&self) -> Result<(), Failure> {
        let workdir = normal(&self.plan.workdir)?;
        for path in &self.plan.hidden {
            if workdir != Path::new("/") && path.starts_with(&workdir) {
                continue;
            }
            // Gone since, or none of this sandbox's.
            let Ok(target) = inside(&self.root, path) else { continue };
            let step = || format!("hide {}", path.display());
            let cover = match kind(&target).step(step)? {
                FileType::Directory => {
                    let options = [("mode", "0755"), ("size", "64k"), ("nr_inodes", "64")];
                    let cover = tmpfs(&options, NO_SUID | NO_DEVICES)?;
                    set(&cover, READ_ONLY, false).step(step)?;
                    cover
                }
                // A device that is none here: nobody can open it.
                _ => detach(Path::new("/dev/null"), READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC)?,
            };
            attach(&cover, &target).step(step)?;
        }
        Ok(())
    }

    /// A directory in the place of the host's `/opt`.
    fn opt(&self, directory: &Path) -> Result<(), Failure> {
        if !directory.is_dir() {
            let path = directory.display();
            return Err(Failure::function(format!("the directory {path} for /opt does not exist")));
        }
        self.show(directory, Path::new(OPT))
    }

    /// With the host's network, names are resolved as the host does. Its `/etc/resolv.conf` often leads into the hidden
    /// `/run`; an image's own is covered.
    fn host_names(&self) -> Result<(), Failure> {
        for name in [RESOLVER, HOSTS] {
            let Ok(real) = fs::canonicalize(name) else { continue };
            match self.plan.root {
                RootPlan::Host(_) if real.starts_with("/run") => self.show(&real, &real)?,
                RootPlan::Directory(_) => {
                    if let Some(target) = self.name_file(name)? {
                        let tree = detach(&real, READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC)?;
                        attach(&tree, &target).step(|| format!("show {name}"))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The files that say what names mean, and what our own is, over those of the root.
    fn own_names(&self, names: &Names) -> Result<(), Failure> {
        let step = || "make the files of names".to_owned();
        let files =
            tmpfs(&[("mode", "0755"), ("size", "64k"), ("nr_inodes", "8")], NO_SUID | NO_DEVICES | NO_EXEC)?;
        // Parts of what is mounted somewhere can be shown elsewhere. It stays, below the private /tmp: to unmount it would mean to wait for
        // a grace period of the kernel.
        attach(&files, &self.mount_point("tmp")?).step(step)?;
        let host_name = format!("{}\n", self.plan.id);
        for (path, content) in [(HOSTS, &names.hosts), (RESOLVER, &names.resolver), (HOST_NAME, &host_name)] {
            let name = path.trim_start_matches("/etc/");
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
            let file = rustix::fs::openat(&files, name, flags, Mode::from_raw_mode(0o644)).step(step)?;
            fs::File::from(file).write_all(content.as_bytes()).step(step)?;
            let Some(target) = self.name_file(path)? else { continue };
            let tree = copy(&beneath(&files, name).step(step)?).step(step)?;
            set(&tree, READ_ONLY, false).step(step)?;
            attach(&tree, &target).step(|| format!("show {path}"))?;
        }
        Ok(())
    }

    /// Where a file of `/etc` is or can be; nowhere if the root lacks it and is read-only.
    fn name_file(&self, path: &str) -> Result<Option<OwnedFd>, Failure> {
        match inside(&self.root, Path::new(path)) {
            Err(rustix::io::Errno::NOENT) => {}
            // An image's links that lead in a circle, or behind a file.
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => return Ok(None),
            found => {
                let found = found.step(|| format!("open {path}"))?;
                return match kind(&found).step(|| format!("open {path}"))? {
                    FileType::Directory => Err(Failure::function(no_file(path))),
                    _ => Ok(Some(found)),
                };
            }
        }
        match &self.plan.root {
            // A link of the host's into what is hidden.
            RootPlan::Host(_) | RootPlan::Unchanged => match fs::canonicalize(path) {
                Ok(real) if real != Path::new(path) => self.file(&real).map(Some),
                _ => Ok(None),
            },
            // An image's link to nowhere stays one.
            RootPlan::Directory(_) if beneath(&self.root, path.trim_start_matches('/')).is_ok() => Ok(None),
            RootPlan::Directory(_) if self.growing => match self.file(Path::new(path)) {
                // A directory of somebody else's, in which our user can make nothing.
                Err(failure) if in_a_user_namespace(self.plan) && failure.errno == libc::EACCES => Ok(None),
                made => made.map(Some),
            },
            RootPlan::Directory(_) => Ok(None),
        }
    }

    /// Shows a file or directory of the host read-only at `at`.
    fn show(&self, host: &Path, at: &Path) -> Result<(), Failure> {
        let tree = detach(host, READ_ONLY | NO_SUID | NO_DEVICES)?;
        let directory = host.metadata().is_ok_and(|metadata| metadata.is_dir());
        let target = if directory { self.directory(at)? } else { self.file(at)? };
        attach(&tree, &target).step(|| format!("show {}", at.display()))
    }

    /// The function's directory at its own path, whatever is hidden or closed on the way.
    fn workdir(&self, names: &[PathBuf]) -> Result<(), Failure> {
        let directory = normal(&self.plan.workdir)?;
        for reserved in ["/proc", "/dev", "/sys"] {
            if directory.starts_with(reserved) {
                return Err(Failure::function(format!("the work directory may not be in {reserved}")));
            }
        }
        if directory == Path::new("/") || directory == Path::new("/tmp") {
            return Ok(());
        }
        let metadata = directory.metadata().map_err(|error| {
            let path = directory.display();
            match error.kind() {
                io::ErrorKind::NotFound => {
                    Failure::function(format!("the work directory {path} does not exist"))
                }
                _ => Failure::function(format!("the work directory {path}: {error}")),
            }
        })?;
        if !metadata.is_dir() {
            let path = directory.display();
            return Err(Failure::function(format!("the work directory {path} is not a directory")));
        }
        if names.iter().any(|name| directory.starts_with(name)) {
            let Some(closed) = self.closed_parent(&directory) else {
                // Visible already, and open to the function.
                return Ok(());
            };
            let cover = tmpfs(&[("mode", "0755"), ("size", "64k")], NO_SUID | NO_DEVICES)?;
            let tree = detach(&directory, READ_ONLY | NO_SUID | NO_DEVICES)?;
            attach(&cover, &self.directory(&closed)?).step(|| format!("cover {}", closed.display()))?;
            let target = self.directory(&directory)?;
            set(&cover, READ_ONLY, false).step(|| format!("cover {}", closed.display()))?;
            return attach(&tree, &target).step(|| format!("show {}", directory.display()));
        }
        self.show(&directory, &directory)
    }

    /// The first directory on the way that the function's user cannot pass. Our own user passes where we do, but for what is hidden.
    fn closed_parent(&self, directory: &Path) -> Option<PathBuf> {
        if in_a_user_namespace(self.plan) {
            return self.plan.hidden.iter().find(|hidden| directory.starts_with(hidden)).cloned();
        }
        let mut parents: Vec<_> = directory.ancestors().skip(1).collect();
        parents.reverse();
        parents
            .into_iter()
            .find(|parent| parent.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 == 0))
            .map(Path::to_path_buf)
    }

    /// The private `/tmp`, and the shared directory in it or by itself.
    fn temporary(&self) -> Result<(), Failure> {
        let size = self.plan.tmp_size.max(1).to_string();
        let files = inodes(self.plan.tmp_size);
        let tmp = tmpfs(&[("mode", "1777"), ("size", &size), ("nr_inodes", &files)], NO_SUID | NO_DEVICES)?;
        attach(&tmp, &self.mount_point("tmp")?).step(|| "mount /tmp".to_owned())?;
        let Some(shared) = &self.plan.shared else { return Ok(()) };
        let shared = normal(shared)?;
        let step = || format!("make the shared directory {}", shared.display());
        let directory = self.directory(&shared)?;
        if !shared.starts_with("/tmp") {
            let size = SHARED_SIZE.to_string();
            let files = inodes(SHARED_SIZE);
            let options = [("mode", "0700"), ("size", &*size), ("nr_inodes", &files)];
            let own = tmpfs(&options, NO_SUID | NO_DEVICES)?;
            attach(&own, &directory).step(step)?;
            return give(&own, "", self.owner);
        }
        if shared != Path::new("/tmp") {
            give(&directory, "", self.owner)?;
        }
        Ok(())
    }

    /// Makes the new root `/`, and the old one unreachable.
    fn enter(self) -> Result<Option<OwnedFd>, Failure> {
        let shared = match &self.plan.shared {
            Some(path) => Some(
                inside(&self.root, &normal(path)?)
                    .step(|| format!("open the shared directory {}", path.display()))?,
            ),
            None => None,
        };
        if !(self.plan.writable_root && matches!(self.plan.root, RootPlan::Directory(_))) {
            set(&self.root, READ_ONLY, false).step(|| "make the root read-only".to_owned())?;
        }
        rustix::process::fchdir(&self.root).step(|| "enter the new root".to_owned())?;
        rustix::process::pivot_root(".", ".").step(|| "pivot_root".to_owned())?;
        unmount(".", UnmountFlags::DETACH).step(|| "unmount the old root".to_owned())?;
        rustix::process::chdir("/").step(|| "enter the new root".to_owned())?;
        self.verify()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(shared)
    }

    /// `/..` must be `/`: were anything of the host left mounted over the new root, that is the way to it.
    fn verify(&self) -> Result<(), Failure> {
        let step = || "look at the new root".to_owned();
        let root = rustix::fs::fstat(&self.root).step(step)?;
        let above = rustix::fs::stat("/..").step(step)?;
        if (root.st_dev, root.st_ino) == (above.st_dev, above.st_ino) {
            return Ok(());
        }
        Err(Failure { function: false, step: "leave the old root".to_owned(), errno: libc::EBUSY })
    }

    /// A mount point that must be a plain directory: a link in an image would put it somewhere else.
    fn mount_point(&self, name: &str) -> Result<OwnedFd, Failure> {
        let step = || format!("open the mount point /{name}");
        let there = match beneath(&self.root, name) {
            Err(rustix::io::Errno::NOENT) => return self.directory(Path::new(name)),
            there => there.step(step)?,
        };
        let what = match kind(&there).step(step)? {
            FileType::Directory => return Ok(there),
            FileType::Symlink => "a symbolic link",
            _ => "a file",
        };
        Err(Failure::function(format!("/{name} is {what} in the image; it must be a directory")))
    }

    /// Opens a directory of the new root, making what is missing of it.
    fn directory(&self, path: &Path) -> Result<OwnedFd, Failure> {
        self.make(path, |parent, name| mkdirat(parent, name, Mode::from_raw_mode(0o755)))
    }

    /// Opens a file of the new root, making it empty if it is missing.
    fn file(&self, path: &Path) -> Result<OwnedFd, Failure> {
        self.make(path, |parent, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        })
    }

    fn make(
        &self,
        path: &Path,
        create: impl Fn(BorrowedFd<'_>, &Path) -> rustix::io::Result<()>,
    ) -> Result<OwnedFd, Failure> {
        let path = &Path::new("/").join(path);
        let step = || format!("make {} in the new root", path.display());
        let (parent, name) = match (inside(&self.root, path), path.parent(), path.file_name()) {
            (Err(rustix::io::Errno::NOENT), Some(parent), Some(name)) => (parent, name),
            (found, ..) => return found.step(step),
        };
        let around = self.directory(parent)?;
        create(around.as_fd(), Path::new(name)).map_err(|error| match error {
            rustix::io::Errno::EXIST => {
                Failure::function(format!("{} is a symbolic link to nowhere in the image", path.display()))
            }
            rustix::io::Errno::ROFS => Failure::function(format!(
                "{} does not exist in the read-only root and cannot be made there",
                path.display()
            )),
            error => Failure { function: false, step: step(), errno: error.raw_os_error() },
        })?;
        inside(&self.root, path).step(step)
    }
}

/// Said of an image that has a directory where a file of the sandbox's own is mounted.
pub fn no_file(path: &str) -> String {
    format!("{path} is a directory in the image; it must be a file, or not be there")
}

/// An absolute path without `.`; with `..` it is refused, for nobody can say what it means across links.
pub fn normal(path: &Path) -> Result<PathBuf, Failure> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(Failure::function(format!("{} must be an absolute path without ..", path.display())));
    }
    Ok(path.components().collect())
}
