//! Putting an image into a registry that is another with some layers more: how code gets to every runner that can pull images.
//!
//! Nothing is kept here. Layers of the image below are taken over within the registry where it can do that, and are copied where it cannot, or
//! where they come from another; what is there already is not sent again. The image has a tag of its own, the digits of its digest, for many
//! registries throw away what has none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use stoker_core::ImageRef;

use crate::digest::Digest;
use crate::document::{self, Descriptor, Platform};
use crate::error::{Error, Fault, Result};
use crate::layer::Layer;
use crate::limits;
use crate::registry::{Blob, Config, Documents, Registry, Session};

/// How long it may take in all. What has been sent until then need not be sent again.
const LIMIT: Duration = Duration::from_secs(300);

/// One repository, and the right to put images into it.
pub struct Publisher {
    registry: Arc<Registry>,
    repository: ImageRef,
    credentials: Option<String>,
}

/// A layer on top.
pub enum Top<'a> {
    New(&'a Layer),
    /// That of an image which was put there before.
    Of(&'a ImageRef),
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("repository", &self.name()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// For a repository, with the credentials of that name. Blocking: reads certificates.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn new(config: Config, repository: ImageRef, credentials: Option<String>) -> Result<Self> {
        Ok(Self { registry: Arc::new(Registry::new(config)?), repository, credentials })
    }

    /// The credentials that pull what is put there.
    #[must_use]
    pub fn credentials(&self) -> Option<&str> {
        self.credentials.as_deref()
    }

    fn name(&self) -> String {
        format!("{}/{}", self.repository.registry(), self.repository.repository())
    }

    /// Puts an image there that is another with these layers on top, the last one topmost, or these layers alone; its name for ever.
    ///
    /// # Errors
    /// See [`Error::fault`].
    pub async fn publish(&self, base: Option<&ImageRef>, tops: &[Top<'_>]) -> Result<ImageRef> {
        let late = || Err(Error::registry(format!("it took longer than {} s", LIMIT.as_secs())));
        // It is large, and whoever asks for it is deep within a request already: behind a pointer it takes none of their stack.
        let put = Box::pin(self.put(base, tops));
        let published = tokio::time::timeout(LIMIT, put).await.unwrap_or_else(|_| late());
        published.map_err(|error| error.about(format_args!("the repository {}", self.name())))
    }

    async fn put(&self, base: Option<&ImageRef>, tops: &[Top<'_>]) -> Result<ImageRef> {
        let to = self.registry.writing(&self.repository, self.credentials(), base).await?;
        let (mut layers, mut configuration) = match base {
            None => (Vec::new(), nothing()),
            Some(base) => {
                let below = self.below(&to, base).await;
                below.map_err(|error| error.about(format_args!("the image {base}")))?
            }
        };
        for top in tops {
            let (layer, content) = match top {
                Top::New(layer) => {
                    to.put(&Blob::Here(layer.blob.clone())).await?;
                    (described(document::LAYER, layer.digest, layer.blob.len()), layer.content)
                }
                Top::Of(image) => self.top(&to, image).await?,
            };
            layers.push(layer);
            configuration
                .pointer_mut("/rootfs/diff_ids")
                .and_then(Value::as_array_mut)
                .ok_or_else(|| Error::image("the configuration of the image below has no list of layers"))?
                .push(json!(content));
            if let Some(history) = configuration.get_mut("history").and_then(Value::as_array_mut) {
                history.push(json!({"created_by": "stoker", "comment": "a function's code"}));
            }
        }
        if layers.len() > limits::LAYERS {
            return Err(Error::image(format!("an image has at most {} layers", limits::LAYERS)));
        }
        let configuration = Bytes::from(configuration.to_string());
        let config = described(document::CONFIGURATION, Digest::of(&configuration), configuration.len());
        to.put(&Blob::Here(configuration)).await?;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": document::MANIFEST, "config": config, "layers": layers});
        let manifest = Bytes::from(manifest.to_string());
        let digest = Digest::of(&manifest);
        to.put_manifest(&digest.hex(), manifest).await?;
        ImageRef::parse(&format!("{}:{}@{digest}", self.name(), digest.hex())).map_err(Error::registry)
    }

    /// The layers of an image, put into the repository, and its configuration.
    async fn below(&self, to: &Session, base: &ImageRef) -> Result<(Vec<Value>, Value)> {
        // Of the credentials only what is for its registry; most images below are for everybody.
        let progress = Arc::default();
        let from = match self.registry.session(base, self.credentials(), &progress).await {
            Err(error) if error.fault == Fault::Image => self.registry.session(base, None, &progress).await?,
            session => session?,
        };
        let digest = from.resolve(base.digest().or(base.tag()).unwrap_or("latest")).await?;
        let Documents { layers, configuration, written } = from.documents(digest).await?;
        // Of as many layers as it says.
        if configuration.rootfs.diff_ids.len() != layers.len() {
            return Err(Error::image("its configuration speaks of other layers than its manifest"));
        }
        for &Descriptor { digest, size, .. } in &layers {
            to.put(&Blob::In { session: &from, digest, size }).await?;
        }
        let configuration = serde_json::from_slice(&written)
            .map_err(|error| Error::image(format!("its configuration cannot be understood: {error}")))?;
        let layers = layers.iter().map(|layer| described(kind(layer), layer.digest, layer.size));
        Ok((layers.collect(), configuration))
    }

    /// The top layer of an image that was put there before, and the digest of what is in it.
    async fn top(&self, to: &Session, image: &ImageRef) -> Result<(Value, Digest)> {
        let here = image.registry() == self.repository.registry()
            && image.repository() == self.repository.repository();
        let digest = image.digest().and_then(Digest::parse).filter(|_| here);
        let digest = digest.ok_or_else(|| Error::missing(format!("{image} is not in it")))?;
        let Documents { layers, configuration, .. } = to.documents(digest).await?;
        let (Some(layer), Some(content)) = (layers.last(), configuration.rootfs.diff_ids.last()) else {
            return Err(Error::image(format!("{image} has no layers")));
        };
        Ok((described(kind(layer), layer.digest, layer.size), *content))
    }
}

/// The configuration of an image with no layers yet.
fn nothing() -> Value {
    let Platform { os, architecture, .. } = Platform::here();
    json!({"os": os, "architecture": architecture, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}})
}

fn described(kind: &str, digest: Digest, size: impl Into<Value>) -> Value {
    let size: Value = size.into();
    json!({"mediaType": kind, "digest": digest, "size": size})
}

/// A layer's media type in OCI's words: a manifest of the one kind with layers of the other is refused by some.
fn kind(layer: &Descriptor) -> &str {
    match layer.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" | "" => document::LAYER,
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        kind => kind,
    }
}
