//! The images of this runner's functions: the store, opened when it is first needed, and what an image adds to what a function says.

use std::path::Path;

use stoker_core::function::{FunctionSpec, Root};
use stoker_core::{Code, Error, ImageRef};
use stoker_image::{Config, Fault, Image, Source, Store};
use tokio::sync::OnceCell;

use crate::container::LaunchError;

/// See the module.
pub struct Images {
    config: Config,
    store: OnceCell<Store>,
}

impl Images {
    pub fn new(config: Config) -> Self {
        Self { config, store: OnceCell::new() }
    }

    /// Removes what an earlier life left half-done, where there is a store. One that cannot be used now is tried again when an image is
    /// needed, and fails that launch only.
    pub async fn clean_up(&self) {
        if self.config.directory.exists()
            && let Err(error) = self.store().await
        {
            tracing::warn!(%error, "the store of images cannot be used yet");
        }
    }

    async fn store(&self) -> Result<&Store, stoker_image::Error> {
        let open = || async {
            let config = self.config.clone();
            match tokio::task::spawn_blocking(move || Store::open(config)).await {
                Ok(opened) => opened,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        };
        self.store.get_or_try_init(open).await
    }

    /// The name of what an image's tag leads to now.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn resolve(
        &self,
        image: &ImageRef,
        credentials: Option<&str>,
    ) -> Result<ImageRef, stoker_image::Error> {
        self.store().await?.resolve(image, credentials).await
    }

    /// Whether a function can be launched without waiting for its image. Of files nobody can tell without looking: no.
    pub fn has(&self, spec: &FunctionSpec) -> bool {
        match &spec.root {
            Root::Host | Root::Rootfs(_) => true,
            Root::Image(image) => self.store.get().is_some_and(|store| store.has(image)),
            Root::Archive(_) | Root::OciLayout(_) => false,
        }
    }

    /// A function's image, fetched where it is not here. `None` for a function without.
    ///
    /// # Errors
    /// As a launch.
    pub async fn prepare(&self, spec: &FunctionSpec) -> Result<Option<Image>, LaunchError> {
        let Some(source) = source(spec) else { return Ok(None) };
        let prepared = match self.store().await {
            Ok(store) => store.prepare(&source).await,
            Err(error) => Err(error),
        };
        prepared.map(Some).map_err(|error| match error.fault {
            Fault::Missing | Fault::Denied | Fault::Image => LaunchError::Function(error.of_a_call()),
            Fault::Registry | Fault::Store | Fault::Full | Fault::Abandoned => {
                LaunchError::Platform(error.message)
            }
        })
    }

    /// Which image a function waits for and how far that is, as the middle of a sentence.
    pub fn so_far(&self, spec: &FunctionSpec) -> String {
        let Some(source) = source(spec) else { return "its image".to_owned() };
        let so_far = self.store.get().map(|store| store.so_far(&source)).unwrap_or_default();
        format!("{source}{so_far}")
    }

    /// A function's image as it was prepared before: with this root. `None` where that is not here any more, or another.
    pub async fn again(&self, spec: &FunctionSpec, root: &Path) -> Option<Image> {
        let store = self.store().await.ok()?;
        if let Root::Image(image) = &spec.root
            && !store.has(image)
        {
            return None;
        }
        self.prepare(spec).await.ok().flatten().filter(|image| image.root == root)
    }
}

/// Where a function's image comes from. `None` for a function without.
fn source(spec: &FunctionSpec) -> Option<Source> {
    Some(match &spec.root {
        Root::Host | Root::Rootfs(_) => return None,
        Root::Image(image) => {
            let credentials = Some(spec.credentials.clone()).filter(|name| !name.is_empty());
            Source::Registry { image: image.clone(), credentials }
        }
        Root::Archive(path) => Source::Archive(path.clone()),
        Root::OciLayout(path) => Source::OciLayout(path.clone()),
    })
}

/// What a function runs: its own word, else its image's.
///
/// # Errors
/// Neither says it.
pub fn command(spec: &FunctionSpec, image: Option<&Image>) -> Result<Vec<String>, LaunchError> {
    let command = match image {
        Some(image) if spec.command.is_empty() => image.config.command(),
        _ => spec.command.clone(),
    };
    if command.first().is_none_or(String::is_empty) {
        let text = "neither the function nor its image says what to run: write `command`";
        return Err(LaunchError::Function(Error::new(Code::FunctionInitFailed, text)));
    }
    Ok(command)
}
