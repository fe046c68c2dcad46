//! Code in a registry: each zip a layer on top of the image of its runtime, pulled by runners like every other image.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use stoker_core::ImageRef;
use stoker_core::error::{Code, Error, Retry};
use stoker_core::function::Root;
use stoker_image::{Fault, Layer, LayerBuilder, Publisher, Top};

use super::super::runtimes::Runtime;
use super::zipped::{Files, MOST_BYTES, unzip};
use super::{Kept, OPT, Refused, TASK, blocking, broken, gone};

/// Most bytes of a layer, compressed: what 50 MiB of a zip can come to, and somewhat more.
const MOST: usize = 80 << 20;

/// Puts a zip there.
pub async fn put(
    publisher: &Arc<Publisher>,
    zip: Bytes,
    runtime: &Runtime,
    layers: &[String],
) -> Result<Kept, Refused> {
    let below = below(runtime)?;
    let layer = blocking(move || layer(&zip, TASK)).await?;
    publish(publisher, below, layers, Top::New(&layer)).await
}

/// Puts code that is there already on what its runtime is now.
pub async fn again(
    publisher: &Arc<Publisher>,
    at: &str,
    runtime: &Runtime,
    layers: &[String],
) -> Result<Kept, Refused> {
    publish(publisher, below(runtime)?, layers, Top::Of(&found(at)?)).await
}

/// Puts a layer there, as an image that is nothing else.
pub async fn put_layer(publisher: &Arc<Publisher>, zip: Bytes) -> Result<String, Refused> {
    let layer = blocking(move || layer(&zip, OPT)).await?;
    let image = publisher.publish(None, &[Top::New(&layer)]).await.map_err(refused)?;
    Ok(image.to_string())
}

fn found(at: &str) -> Result<ImageRef, Refused> {
    ImageRef::parse(at).map_err(|_| gone())
}

/// The image of a runtime; a runtime that is a program of the zip itself needs none.
fn below(runtime: &Runtime) -> Result<Option<&ImageRef>, Refused> {
    let own = runtime.command.first().is_some_and(|program| program.starts_with("./"));
    match &runtime.image {
        None if !own => Err(Refused::parameter(
            "Runtime has no image here: code is kept in a registry, on top of the image that lambda.runtimes names for its runtime",
        )),
        image => Ok(image.as_ref()),
    }
}

async fn publish(
    publisher: &Arc<Publisher>,
    below: Option<&ImageRef>,
    layers: &[String],
    code: Top<'_>,
) -> Result<Kept, Refused> {
    let layers = layers.iter().map(|at| found(at)).collect::<Result<Vec<_>, _>>()?;
    let tops: Vec<_> = layers.iter().map(Top::Of).chain([code]).collect();
    let image = publisher.publish(below, &tops).await.map_err(refused)?;
    Ok(Kept {
        at: image.to_string(),
        root: Root::Image(image),
        workdir: TASK.into(),
        opt: PathBuf::new(),
        credentials: publisher.credentials().map(str::to_owned),
    })
}

/// What cannot be mended by sending it again is no server's error: SDKs would send it again.
fn refused(error: stoker_image::Error) -> Refused {
    let text = format!("The code was not stored: {error}");
    tracing::warn!(%error, "code was not put into the registry");
    match error.fault {
        Fault::Missing | Fault::Denied | Fault::Image => Refused::parameter(text),
        Fault::Registry | Fault::Store | Fault::Full | Fault::Abandoned => {
            let retry = error.retry_after.map_or(Retry::Elsewhere, Retry::After);
            Error::new(Code::Unavailable, text).retry(retry).into()
        }
    }
}

/// A zip as a layer of what is in this directory: code is all of it, whatever the image below has there; a layer lies over those below it.
fn layer(zip: &[u8], at: &str) -> Result<Layer, Refused> {
    let mut files = Within { layer: LayerBuilder::new(MOST), at: at.trim_start_matches('/').into() };
    let made = match at == TASK {
        true => files.layer.only_directory(&files.at),
        false => files.layer.directory(&files.at),
    };
    made.map_err(|error| broken("making a layer", &error))?;
    unzip(zip, MOST_BYTES, &mut files)?;
    files.layer.finish().map_err(refused)
}

/// Files of a zip in a layer.
struct Within {
    layer: LayerBuilder,
    at: PathBuf,
}

impl Files for Within {
    fn takes(&self, name: &[u8]) -> bool {
        LayerBuilder::takes(name)
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.layer.directory(&self.at.join(path))
    }

    fn file(&mut self, path: &Path, size: u64, executable: bool, content: &mut dyn Read) -> io::Result<()> {
        self.layer.file(&self.at.join(path), size, executable, content)
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.layer.link(&self.at.join(path), target)
    }
}
