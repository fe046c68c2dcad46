//! Images come before slots: a launch that would have to wait for its image holds nothing that others could use, and nothing is
//! launched until it is there.
//!
//! A version's first launch has its image fetched on the side, once for all who wait. What was fetched is held until a container
//! of the version holds it. Where it cannot be had, everybody who waits for it is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::{Digest, FunctionSpec};
use stoker_image::Image;

use super::{Action, Inner, Pools};
use crate::container::LaunchError;

/// How a version stands with its image.
#[derive(Default)]
pub enum Picture {
    /// It may be here; nobody asked.
    #[default]
    Unknown,
    /// Somebody waits for it, outside of all slots.
    Coming,
    /// It came for the next launch, and took so long.
    Here(Image, Duration),
}

impl Pools {
    /// Whether the next launch of a version must wait for its image, which is then under way.
    pub(super) fn fetches(&self, inner: &mut Inner, digest: Digest, actions: &mut Vec<Action>) -> bool {
        let Some(version) = inner.versions.get_mut(&digest) else { return false };
        match &version.picture {
            Picture::Here(..) => false,
            Picture::Coming => true,
            // What containers of it use is here.
            Picture::Unknown if version.members.values().any(|m| m.container.is_some()) => false,
            Picture::Unknown if self.launcher.images.has(&version.spec) => false,
            // Its launch says that images are nothing for it.
            Picture::Unknown if !self.launcher.driver.describe().isolates => false,
            Picture::Unknown => {
                version.picture = Picture::Coming;
                actions.push(Action::Fetch { digest, spec: version.spec.clone() });
                true
            }
        }
    }

    pub(super) async fn fetch(self: Arc<Self>, digest: Digest, spec: Arc<FunctionSpec>) {
        let begun = Instant::now();
        let came = tokio::select! {
            came = self.launcher.images.prepare(&spec) => came,
            () = self.stop.cancelled() => Err(LaunchError::Stopping),
        };
        let mut actions = Vec::new();
        let mut inner = self.inner();
        inner.moved(&digest);
        match came {
            Ok(image) => {
                if let Some(version) = inner.versions.get_mut(&digest) {
                    let here = |image| Picture::Here(image, begun.elapsed());
                    version.picture = image.map_or(Picture::Unknown, here);
                }
            }
            Err(error) => {
                if let (Some(meters), Some(blame)) = (&self.meters, error.blame()) {
                    meters.launch_failed(blame.as_str());
                }
                tracing::info!(function = %spec.name, %error, "an image cannot be had");
                inner.without_image(digest, &error, &mut actions);
            }
        }
        self.pump(&mut inner, &mut actions);
        self.refill(&mut inner, digest, false, &mut actions);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// What is told to a call of a version whose deadline comes before its image.
    pub(super) fn lacks_image(&self, digest: &Digest) -> Option<LaunchError> {
        let inner = self.inner();
        let version = inner.versions.get(digest)?;
        let spec = matches!(version.picture, Picture::Coming).then(|| version.spec.clone())?;
        drop(inner);
        let image = self.launcher.images.so_far(&spec);
        Some(LaunchError::Late(format!(
            "the deadline passed while it waited for {image}; it is fetched all the same, for later calls"
        )))
    }

    /// What was fetched for a launch that begins now.
    pub(super) fn fetched(&self, digest: &Digest) -> Option<(Image, Duration)> {
        let mut inner = self.inner();
        let picture = &mut inner.versions.get_mut(digest)?.picture;
        match std::mem::take(picture) {
            Picture::Here(image, took) => Some((image, took)),
            other => {
                *picture = other;
                None
            }
        }
    }
}

impl Inner {
    /// Tells all who wait, and tries again only for a call.
    fn without_image(&mut self, digest: Digest, error: &LaunchError, actions: &mut Vec<Action>) {
        let Some(version) = self.versions.get_mut(&digest) else { return };
        version.picture = Picture::Unknown;
        version.failing = true;
        for waiter in version.waiters.drain(..) {
            self.waiting -= 1;
            actions.push(Action::Give { give: waiter.give, given: Err(error.clone()) });
        }
    }
}
