//! One container of the daemon: its files here, and what is removed with it.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use hyper::Method;
use rustix::process::Pid;

use super::api::Content;
use super::skeleton::{self, Layer};
use super::{Engine, config, remove};
use crate::contained::driver::{self, platform};
use crate::contained::view::{Mount, View, has_mount_point};
use crate::contained::{self, Guest, Handed, Holder};
use crate::init::mounts::normal;
use crate::wire::Plan;
use crate::{Error, Root, Spec};

/// Files that the daemon puts into every container, if the root has a place for them.
const DAEMONS: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// What one container has, here and in the daemon.
pub struct Held {
    pub engine: Arc<Engine>,
    pub number: u64,
    pub name: String,
    pub directory: PathBuf,
    pub door: PathBuf,
    pub guest: Guest,
    /// The function may make something at the top of the root.
    pub grows: bool,
}

impl Held {
    /// Finds out what is to be mounted, and makes what is not there yet. Blocks.
    pub fn write(&self, spec: &Spec, plan: &Plan) -> Result<View, Error> {
        let failed = || platform(format!("make the container's files in {}", self.directory.display()));
        let make = |directory: &Path| std::fs::DirBuilder::new().mode(0o755).create(directory);
        make(&self.directory).map_err(failed())?;
        let mut view = View::new(spec, plan, &self.engine.host_paths, spec.writable_root)?;
        let mut home = None;
        if let Root::Directory(image) = &spec.root {
            for own in ["/proc", "/dev", "/tmp"] {
                has_mount_point(image, Path::new(own))?;
            }
            skeleton::add_image(&mut view, image, spec.writable_root)?;
            home = spec.writable_root.then(|| normal(&spec.workdir)).transpose()?;
        }
        // Images name work directories that they do not have: engines make them. One at the top is a layer over nothing.
        let top = home.as_deref().and_then(|home| home.components().nth(1));
        if let (Root::Directory(image), Some(top)) = (&spec.root, top)
            && image.join(top).symlink_metadata().is_err()
        {
            let nothing = self.directory.join("nothing");
            make(&nothing).map_err(failed())?;
            view.mounts.push(Mount::Layer { host: nothing, at: Path::new("/").join(top) });
        }
        lay_below_names(&mut view);
        let owner = spec.writable_root.then_some(self.guest.user().uid);
        self.lay_out(&view, owner, home.as_deref()).map_err(failed())?;
        Ok(view)
    }

    fn lay_out(&self, view: &View, owner: Option<u32>, home: Option<&Path>) -> io::Result<()> {
        for (number, mount) in view.mounts.iter().enumerate() {
            match mount {
                Mount::Text { content, .. } => {
                    std::fs::write(config::text(&self.directory, number), content)?;
                }
                Mount::Layer { host, at } => {
                    let layer = Layer::new(&self.directory, number);
                    layer.make(owner)?;
                    if let Some(below) = home.and_then(|home| home.strip_prefix(at).ok()) {
                        make_home(host, &layer.upper, below, owner)?;
                    }
                }
                Mount::Show { .. } | Mount::Cover { .. } => {}
            }
        }
        Ok(())
    }
}

/// Makes the work directory that an image names and does not have, in the layer over one of its directories.
fn make_home(lower: &Path, upper: &Path, below: &Path, owner: Option<u32>) -> io::Result<()> {
    let (mut lower, mut upper) = (lower.to_path_buf(), upper.to_path_buf());
    let mut made = false;
    for name in below {
        lower.push(name);
        upper.push(name);
        match lower.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => made = true,
            Ok(found) if found.is_dir() && !made => {}
            // A link or a file: the function's process says what it makes of it.
            _ => return Ok(()),
        }
        std::fs::create_dir(&upper)?;
        if !made {
            // A directory in both layers has the upper one's owner and mode.
            let found = lower.symlink_metadata()?;
            std::fs::set_permissions(&upper, found.permissions())?;
            std::os::unix::fs::chown(&upper, Some(found.uid()), Some(found.gid()))?;
        }
    }
    if made { std::os::unix::fs::chown(&upper, owner, owner) } else { Ok(()) }
}

/// The daemon puts files of its own into `/etc`, and makes places for them: where the root's has none, it gets a layer.
fn lay_below_names(view: &mut View) {
    for mount in &mut view.mounts {
        if let Mount::Show { host, at } = mount
            && at == Path::new("/etc")
            && DAEMONS.iter().any(|name| host.join(name).symlink_metadata().is_err())
        {
            *mount = Mount::Layer { host: host.clone(), at: at.clone() };
        }
    }
}

#[async_trait]
impl Holder for Held {
    fn entered(&self, init: Pid) -> io::Result<()> {
        if !self.grows || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        // The daemon's own layer, which belongs to root; nobody but our init is in the container yet.
        let user = self.guest.user();
        let root = format!("/proc/{}/root", init.as_raw_nonzero());
        std::os::unix::fs::chown(root, Some(user.uid), Some(user.gid))
    }

    async fn remove(&self) {
        if let Err(error) = remove(&self.engine.api, &self.name).await {
            tracing::warn!(container = self.name, %error, "a container could not be removed");
            return;
        }
        driver::remove_files(&self.directory, &self.door).await;
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let path = format!("/containers/{}/{}", self.name, if frozen { "pause" } else { "unpause" });
        self.engine.api.call(Method::POST, &path, Content::Nothing).await.map(drop)
    }

    async fn last_words(&self) -> String {
        // One that is not there has said nothing.
        contained::last_of(&self.engine.api.logs(&self.name).await.unwrap_or_default())
    }

    fn hand_over(&self) -> Handed {
        self.guest.hand_over(self.number)
    }
}
