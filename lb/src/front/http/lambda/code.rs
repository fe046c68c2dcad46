//! Code that came as a zip, and where runners find it: in a directory that all see, or in a registry.
//!
//! A balancer keeps nothing, so it must be kept elsewhere before anybody is told that it is. Where that is says what the function is: one with a
//! workdir, or an image of its own. Layers are kept like code, and are the function's `/opt`. Runners know nothing of zips.

mod directory;
mod published;
mod zipped;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use ring::digest;
use stoker_core::error::{Code, Error};
use stoker_core::function::Root;
use stoker_image::Publisher;
use tokio::sync::Semaphore;

use self::directory::Directory;
pub use self::zipped::MOST_BYTES as MOST_UNPACKED;
use super::Refused;
use super::runtimes::Runtime;

/// Most bytes of a zip, as AWS has it.
pub const MOST_ZIPPED: usize = 50 << 20;

/// Zips taken in at once: each is in memory as a whole.
const AT_ONCE: usize = 2;

/// Where the code is in a root or an image, and where layers are, as on AWS.
const TASK: &str = "/var/task";
const OPT: &str = "/opt";

/// Where code is kept.
#[derive(Debug, Clone)]
pub enum CodePlace {
    /// Seen by balancers and runners at the same path.
    Directory(PathBuf),
    Registry(Arc<Publisher>),
}

/// See the module.
pub struct Store {
    place: Place,
    places: Semaphore,
}

enum Place {
    Directory(Arc<Directory>),
    Registry(Arc<Publisher>),
}

/// Code that is kept, and what runs it.
#[derive(Debug)]
pub struct Kept {
    /// By which it is found again.
    pub at: String,
    pub root: Root,
    pub workdir: PathBuf,
    /// What is `/opt` to it, where that is not in its root.
    pub opt: PathBuf,
    /// Those that pull it, where it takes some.
    pub credentials: Option<String>,
}

/// What a zip is, in AWS's words.
pub struct Zip {
    /// In base64.
    pub sha256: String,
    pub bytes: usize,
    /// What it says of the bytes in it.
    pub unpacked: u64,
    /// It has a `bootstrap`.
    pub starts: bool,
}

impl Zip {
    /// Looks at one. Blocking: reads all of it.
    fn of(zip: &[u8]) -> Result<(Self, digest::Digest), Refused> {
        let hash = digest::digest(&digest::SHA256, zip);
        let (unpacked, starts) = zipped::look(zip)?;
        let sha256 = BASE64.encode(hash.as_ref());
        Ok((Self { sha256, bytes: zip.len(), unpacked, starts }, hash))
    }
}

impl Store {
    pub fn new(place: CodePlace) -> Self {
        let place = match place {
            CodePlace::Directory(at) => Place::Directory(Directory::new(at, zipped::MOST_BYTES)),
            CodePlace::Registry(publisher) => Place::Registry(publisher),
        };
        Self { place, places: Semaphore::new(AT_ONCE) }
    }

    /// Holds a place for a zip, before its bytes come.
    pub async fn place(&self) -> tokio::sync::SemaphorePermit<'_> {
        // It is never closed.
        self.places.acquire().await.unwrap_or_else(|_| unreachable!("nobody closes it"))
    }

    /// Keeps a zip, for this runtime and with these layers, the last one topmost.
    pub async fn put(
        &self,
        zip: Bytes,
        runtime: &Runtime,
        layers: &[String],
    ) -> Result<(Kept, Zip), Refused> {
        let (zip, is, hash) = looked_at(zip).await?;
        let kept = match &self.place {
            Place::Directory(store) => store.put(zip, hash.as_ref(), runtime, layers).await,
            Place::Registry(publisher) => published::put(publisher, zip, runtime, layers).await,
        };
        Ok((kept?, is))
    }

    /// Code that is kept already, for this runtime and with these layers.
    pub async fn again(&self, at: &str, runtime: &Runtime, layers: &[String]) -> Result<Kept, Refused> {
        match &self.place {
            Place::Directory(store) => store.again(at, runtime, layers).await,
            Place::Registry(publisher) => published::again(publisher, at, runtime, layers).await,
        }
    }

    /// Keeps the zip of a layer; by what it is found again.
    pub async fn put_layer(&self, zip: Bytes) -> Result<(String, Zip), Refused> {
        let (zip, is, hash) = looked_at(zip).await?;
        let at = match &self.place {
            Place::Directory(store) => store.put_layer(zip, hash.as_ref()).await,
            Place::Registry(publisher) => published::put_layer(publisher, zip).await,
        };
        Ok((at?, is))
    }

    /// Removes what is none of these directories, once it has been so for long enough. What a registry keeps is its operator's to say.
    pub async fn sweep(&self, named: BTreeSet<PathBuf>) {
        if let Place::Directory(store) = &self.place {
            store.sweep(named).await;
        }
    }
}

async fn looked_at(zip: Bytes) -> Result<(Bytes, Zip, digest::Digest), Refused> {
    blocking(move || {
        let (is, hash) = Zip::of(&zip)?;
        Ok((zip, is, hash))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::new(Code::Internal, "storing the code failed").into()))
}

fn gone() -> Refused {
    Refused::parameter("the function's code is not here any more: send it with UpdateFunctionCode")
}

fn broken(what: &str, error: &io::Error) -> Refused {
    tracing::error!(%error, "{what} failed");
    Refused::aws(500, "ServiceException", Error::new(Code::Internal, format!("{what}: {error}")))
}
