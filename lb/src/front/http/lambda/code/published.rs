//! Code in a registry: each zip a layer on top of the image of its runtime, pulled by runners like every other image.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use stoker_core::ImageRef;
use stoker_core::error::{Code, Error, Retry};
use stoker_core::function::Root;
use stoker_image::{Fault, Layer, LayerBuilder, Publisher, Top};

use super::super::runtimes::Runtime;
use super::zipped::{Files, MOST_BYTES, unzip};
use super::{Kept, Refused, TASK, blocking, broken, gone};

/// Most bytes of a layer, compressed: what 50 MiB of a zip can come to, and somewhat more.
const MOST: usize = 80 << 20;

/// Puts a zip there.
pub async fn put(publisher: &Arc<Publisher>, zip: Bytes, runtime: &Runtime) -> Result<Kept, Refused> {
    let below = below(runtime)?;
    let layer = blocking(move || layer(&zip)).await?;
    publish(publisher, below, Top::New(&layer)).await
}

/// Puts code that is there already on what its runtime is now.
pub async fn again(publisher: &Arc<Publisher>, at: &str, runtime: &Runtime) -> Result<Kept, Refused> {
    let image = ImageRef::parse(at).map_err(|_| gone())?;
    publish(publisher, below(runtime)?, Top::Of(&image)).await
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
    top: Top<'_>,
) -> Result<Kept, Refused> {
    let image = publisher.publish(below, top).await.map_err(refused)?;
    Ok(Kept {
        at: image.to_string(),
        root: Root::Image(image),
        workdir: TASK.into(),
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

/// A zip as a layer: the whole of the task's directory, whatever the image below has in it.
fn layer(zip: &[u8]) -> Result<Layer, Refused> {
    let mut files = InTask(LayerBuilder::new(MOST));
    let task = Path::new(TASK.trim_start_matches('/'));
    files.0.only_directory(task).map_err(|error| broken("making a layer", &error))?;
    unzip(zip, MOST_BYTES, &mut files)?;
    files.0.finish().map_err(refused)
}

/// Files of a zip in a layer.
struct InTask(LayerBuilder);

fn in_task(path: &Path) -> std::path::PathBuf {
    Path::new(TASK.trim_start_matches('/')).join(path)
}

impl Files for InTask {
    fn takes(&self, name: &[u8]) -> bool {
        LayerBuilder::takes(name)
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.0.directory(&in_task(path))
    }

    fn file(&mut self, path: &Path, size: u64, executable: bool, content: &mut dyn Read) -> io::Result<()> {
        self.0.file(&in_task(path), size, executable, content)
    }

    fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.0.link(&in_task(path), target)
    }
}
