//! One container of a runtime: its bundle, and all that is removed with it.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rustix::process::Pid;

use super::Engine;
use super::config::{self, Parts};
use super::runtime::{Command, Layers};
use crate::contained::driver::{self, platform};
use crate::contained::view::{Mount, View, has_mount_point};
use crate::contained::{self, Guest, Handed, Holder};
use crate::init::mounts::normal;
use crate::wire::Plan;
use crate::{Error, Root, Spec};

/// The directory of one container, and all that is removed with it.
pub struct Bundle {
    pub engine: Arc<Engine>,
    pub number: u64,
    pub name: String,
    pub directory: PathBuf,
    pub door: PathBuf,
    pub guest: Guest,
}

impl Bundle {
    /// Where the runtime's own words go.
    pub fn output(&self) -> PathBuf {
        self.directory.join("output")
    }

    /// Makes the bundle. Blocks.
    pub fn write(&self, spec: &Spec, plan: &Plan) -> Result<Option<Layers>, Error> {
        let engine = &self.engine;
        let mut overlays = Vec::new();
        let mut system = true;
        let own = self.directory.join("root");
        let mut shown = None;
        match &spec.root {
            Root::Directory(image) => {
                // Where the runtime makes places for mounts, it does so in the root itself.
                let mut complete = !spec.writable_root && !engine.own_kernel;
                let shared = spec.shared.as_deref().filter(|shared| !shared.starts_with("/tmp"));
                for at in ["/proc", "/dev", "/tmp"].into_iter().map(Path::new).chain(shared) {
                    complete &= has_mount_point(image, at)?;
                }
                system = has_mount_point(image, Path::new("/sys"))?;
                if complete {
                    shown = Some((image.clone(), own.clone()));
                } else {
                    overlays.push((image.clone(), own.clone()));
                }
            }
            Root::Host => {}
        }
        let view = View::new(spec, plan, &engine.host_paths, !overlays.is_empty())?;
        let layers: Vec<_> = view
            .mounts
            .iter()
            .filter_map(|mount| match mount {
                Mount::Layer { host, at } => Some((host, at)),
                Mount::Show { .. } | Mount::Text { .. } | Mount::Cover { .. } => None,
            })
            .enumerate()
            .map(|(number, (host, at))| {
                let merged = self.directory.join(format!("merged-{number}"));
                overlays.push((host.clone(), merged.clone()));
                (at.clone(), merged)
            })
            .collect();
        let config = config::config(&Parts {
            spec,
            view: &view,
            user: self.guest.user(),
            groups: &self.guest.groups(&spec.groups),
            bundle: &self.directory,
            root: &own,
            writable: spec.writable_root && matches!(spec.root, Root::Directory(_)),
            system,
            layers: &layers,
            program: &engine.program,
            door: &self.door,
            cgroup: &engine.cgroup.join(&self.name),
            swap: engine.swap,
            own_kernel: engine.own_kernel,
        });
        let directory = self.directory.join("layers");
        self.lay_out(&view, &directory, &overlays, &config)
            .map_err(platform(format!("make the container's bundle {}", self.directory.display())))?;
        let handed = spec.shared.as_ref().filter(|_| engine.own_kernel);
        let handed = handed.map(|_| config::shared(&self.directory));
        Ok((shown.is_some() || handed.is_some() || !overlays.is_empty()).then_some(Layers {
            directory,
            size: spec.tmp_size,
            owner: spec.writable_root.then_some(self.guest.user().uid),
            // Images name work directories that they do not have: engines make them.
            workdir: (spec.writable_root && matches!(spec.root, Root::Directory(_)))
                .then(|| normal(&spec.workdir))
                .transpose()?,
            overlays,
            shown,
            handed,
        }))
    }

    fn lay_out(
        &self,
        view: &View,
        layers: &Path,
        overlays: &[(PathBuf, PathBuf)],
        config: &serde_json::Value,
    ) -> io::Result<()> {
        let make = |path: &Path| std::fs::DirBuilder::new().mode(0o755).recursive(true).create(path);
        let root = self.directory.join("root");
        make(&root)?;
        for directory in &view.directories {
            make(&root.join(directory))?;
        }
        for (link, target) in &view.links {
            symlink(target, root.join(link))?;
        }
        if !overlays.is_empty() {
            make(layers)?;
        }
        if self.engine.own_kernel {
            make(&config::shared(&self.directory))?;
        }
        for (_, at) in overlays {
            make(at)?;
        }
        for (number, mount) in view.mounts.iter().enumerate() {
            if let Mount::Text { content, .. } = mount {
                std::fs::write(config::text(&self.directory, number), content)?;
            }
        }
        let bytes = serde_json::to_vec(config).map_err(io::Error::other)?;
        // Its environment may hold secrets, and the directory is not closed to everybody.
        let mut file = std::fs::OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o600);
        file.open(self.directory.join("config.json"))?.write_all(&bytes)
    }
}

#[async_trait]
impl Holder for Bundle {
    fn entered(&self, _init: Pid) -> io::Result<()> {
        Ok(())
    }

    async fn remove(&self) {
        if self.directory.exists() {
            let command = Command {
                arguments: vec!["delete".to_owned(), "--force".to_owned(), self.name.clone()],
                output: self.directory.join("removal"),
                layers: None,
            };
            // What the runtime does not remove, or not know of, goes with the monitor.
            match self.engine.client.run(command).await {
                Ok(0) => {}
                Ok(status) => {
                    tracing::debug!(container = self.name, status, "nothing for the runtime to remove")
                }
                Err(error) => {
                    tracing::debug!(container = self.name, %error, "left for the monitor to remove");
                    return;
                }
            }
        }
        driver::remove_files(&self.directory, &self.door).await;
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let what = if frozen { "frozen" } else { "thawed" };
        Err(Error::Unsupported(format!(
            "this container has no cgroup of its own by which it could be {what}"
        )))
    }

    fn hand_over(&self) -> Handed {
        self.guest.hand_over(self.number)
    }

    fn hands_out(&self) -> bool {
        !self.engine.own_kernel
    }

    async fn last_words(&self) -> String {
        let said = std::fs::read(self.output()).unwrap_or_default();
        contained::last_of(&said)
    }
}
