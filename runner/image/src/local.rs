//! Images in files: OCI layout directories, the same in a tar archive, and what `docker save` writes, old and new.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;
use crate::document::{self, Configuration, Descriptor, Document, Platform};
use crate::error::{Error, Result, from_read};
use crate::found::{Found, Place, open_file, read_document};
use crate::limits::{self, Limits};
use crate::metered::Metered;
use crate::read::{Compression, decompress};
use crate::scratch::{Bench, Scratch};
use crate::unpack::Room;

/// The document that a layout begins with.
pub(crate) const INDEX: &str = "index.json";
/// What a tar file is made of.
const BLOCK: usize = 512;
/// Files in an archive: documents and blobs, not files of images.
const FILES: usize = 100_000;
/// Symbolic links that lead from one file of an archive to another.
const HOPS: usize = 8;

/// Reads the documents of an archive. Blocking.
pub(crate) fn archive(
    path: &Path,
    bench: &Arc<Bench>,
    limits: &Limits,
    room: &mut dyn Room,
) -> Result<Found> {
    let mut file = open_file(path)?;
    let mut head = Vec::with_capacity(4);
    let failed = |error: io::Error| Error::image(format!("{} cannot be read: {error}", path.display()));
    (&mut file).take(4).read_to_end(&mut head).map_err(failed)?;
    if Compression::of(&head) == Compression::None {
        let files = Files::in_archive(file, Base::File(path.into()))?;
        return files.image();
    }
    // Blobs are looked up by their names, in no order: that needs the plain archive.
    let scratch = bench.place();
    let mut plain = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(scratch.path())
        .map_err(|error| Error::system("an archive cannot be decompressed", error))?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let most = limits.bytes.saturating_mul(2);
    let mut content = decompress(file).map_err(failed)?;
    let mut piece = vec![0; 1 << 20];
    let mut total = 0u64;
    loop {
        let n = content.read(&mut piece).map_err(|error| from_read("the archive", error))?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > most {
            return Err(Error::image(format!("the archive has more than {most} bytes in it")));
        }
        room.take(n as u64)?;
        plain
            .write_all(&piece[..n])
            .map_err(|error| Error::system("an archive cannot be decompressed", error))?;
    }
    Files::in_archive(plain, Base::Scratch(Arc::new(scratch)))?.image()
}

/// What is said of a directory that is none.
pub(crate) fn no_layout() -> Error {
    Error::image(
        "it is no OCI layout: there is no index.json in it (the directory of a root file system goes with `rootfs`)",
    )
}

/// What is said of a file that is none.
fn no_archive() -> Error {
    Error::image(
        "it is no archive of an image: neither what `docker save` writes, nor an OCI layout in a tar file",
    )
}

/// Whether a tar file may begin with this: a header with the sum of its bytes in it, or nothing.
fn begins_an_archive(first: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(first) else { return first.is_empty() };
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let sum = 148..156;
    // Counted with spaces in the place of itself.
    let bytes = block.iter().enumerate();
    let counted: u32 =
        bytes.map(|(at, byte)| if sum.contains(&at) { u32::from(b' ') } else { u32::from(*byte) }).sum();
    let said = String::from_utf8_lossy(&block[sum]);
    u32::from_str_radix(said.trim_matches(['\0', ' ']), 8).is_ok_and(|said| said == counted)
}

/// Reads the documents of a layout directory. Blocking.
pub(crate) fn layout(path: &Path) -> Result<Found> {
    Files::Directory(path.to_owned()).image()
}

enum Files {
    Directory(PathBuf),
    Archive { file: File, base: Base, entries: HashMap<Vec<u8>, Entry> },
}

/// The file that an archive is in.
#[derive(Clone)]
enum Base {
    File(Arc<Path>),
    Scratch(Arc<Scratch>),
}

#[derive(Debug, Clone)]
enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// To a path from the archive's root.
    Link(Vec<u8>),
}

/// A blob by its path: size and place.
type Blob = (u64, Place);

impl Files {
    fn in_archive(file: File, base: Base) -> Result<Self> {
        let unreadable = |error| from_read("the archive cannot be read", error);
        let mut reader = file.try_clone().map_err(unreadable)?;
        reader.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut first = Vec::with_capacity(BLOCK);
        (&mut reader).take(BLOCK as u64).read_to_end(&mut first).map_err(unreadable)?;
        if !begins_an_archive(&first) {
            return Err(no_archive());
        }
        reader.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let length = reader.metadata().map_err(unreadable)?.len();
        let allowance = Rc::new(Cell::new(limits::ENTRY_HEADERS));
        let mut archive = tar::Archive::new(Metered::new(reader, Rc::clone(&allowance)));
        let mut entries = HashMap::new();
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            allowance.set(limits::ENTRY_HEADERS);
            if entries.len() == FILES {
                return Err(Error::image(format!("the archive has more than {FILES} files")));
            }
            let Some(path) = within(b"", &entry.path_bytes()) else { continue };
            let link = || entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
            let found = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let (offset, size) = (entry.raw_file_position(), entry.size());
                    if offset.checked_add(size).is_none_or(|end| end > length) {
                        return Err(Error::image("the archive is cut off"));
                    }
                    Entry::File { offset, size }
                }
                tar::EntryType::Symlink => {
                    let (directory, _) = crate::tree::split(&path);
                    match within(directory, &link()) {
                        Some(target) => Entry::Link(target),
                        None => continue,
                    }
                }
                tar::EntryType::Link => match within(b"", &link()) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            entries.insert(path, found);
        }
        Ok(Files::Archive { file, base, entries })
    }

    fn find(&self, path: &str) -> Result<Option<Blob>> {
        match self {
            Files::Directory(directory) => {
                let Some(inside) = within(b"", path.as_bytes()) else { return Ok(None) };
                let inside = String::from_utf8_lossy(&inside).into_owned();
                let whole = directory.join(inside);
                match whole.symlink_metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    _ => {
                        let size = open_file(&whole)?.metadata();
                        let size = size.map_err(|error| Error::system("a file's size", error))?.len();
                        Ok(Some((size, Place::File(whole.into(), 0))))
                    }
                }
            }
            Files::Archive { base, entries, .. } => {
                let Some(mut at) = within(b"", path.as_bytes()) else { return Ok(None) };
                for _ in 0..HOPS {
                    match entries.get(&at) {
                        None => return Ok(None),
                        Some(Entry::Link(target)) => at.clone_from(target),
                        Some(&Entry::File { offset, size }) => {
                            let place = match base {
                                Base::File(path) => Place::File(Arc::clone(path), offset),
                                Base::Scratch(scratch) => Place::Scratch(Arc::clone(scratch), offset),
                            };
                            return Ok(Some((size, place)));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    fn need(&self, path: &str) -> Result<Blob> {
        self.find(path)?
            .ok_or_else(|| Error::image(format!("the file {} is missing in it", path.escape_debug())))
    }

    fn document(&self, blob: &Blob, what: &str) -> Result<Vec<u8>> {
        match (self, &blob.1) {
            (Files::Directory(_), Place::File(path, _)) => {
                read_document(&mut open_file(path)?, 0, blob.0, what)
            }
            (Files::Archive { file, .. }, Place::File(_, offset) | Place::Scratch(_, offset)) => {
                let mut file = file.try_clone().map_err(|error| Error::system("an archive", error))?;
                read_document(&mut file, *offset, blob.0, what)
            }
            (_, _) => Err(Error::image(format!("its {what} is in no file"))),
        }
    }

    fn image(&self) -> Result<Found> {
        if let Some(blob) = self.find("manifest.json")? {
            return self.saved(&self.document(&blob, "manifest.json")?);
        }
        if let Some(blob) = self.find(INDEX)? {
            return self.laid_out(&self.document(&blob, INDEX)?);
        }
        Err(Error::image("neither `manifest.json` (docker save) nor `index.json` (OCI) is in it"))
    }

    /// What `docker save` wrote: a list of images in words of its own.
    fn saved(&self, bytes: &[u8]) -> Result<Found> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            layers: Vec<String>,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
        }
        let images: Vec<Saved> = serde_json::from_slice(bytes)
            .map_err(|error| Error::image(format!("its manifest.json cannot be understood: {error}")))?;
        let [saved] = &images[..] else {
            let tags = images.iter().filter_map(|saved| saved.repo_tags.as_ref()?.first());
            return Err(several(images.len(), tags.map(String::as_str)));
        };
        let configuration = self.document(&self.need(&saved.config)?, "configuration")?;
        let blobs = saved.layers.iter().map(|path| {
            let (size, place) = self.need(path)?;
            Ok((None, size, place))
        });
        Found::new(Configuration::parse(&configuration, "")?, blobs.collect::<Result<_>>()?)
    }

    fn laid_out(&self, bytes: &[u8]) -> Result<Found> {
        let Document::Index(mut manifests) = Document::parse(bytes)? else {
            return Err(Error::image("its index.json is not an index"));
        };
        // One image may be there under many names.
        manifests.sort_by_key(|m| m.digest);
        manifests.dedup_by_key(|m| m.digest);
        let mut chosen = match &manifests[..] {
            [only] => only.clone(),
            many => {
                let name =
                    |m: &'_ Descriptor| m.annotations.get("org.opencontainers.image.ref.name").cloned();
                let named: Vec<_> = many.iter().filter_map(|m| Some((name(m)?, m))).collect();
                if named.len() > 1 {
                    return Err(several(named.len(), named.iter().map(|(name, _)| name.as_str())));
                }
                // Signatures lie beside an image, and what an index leads to.
                match (document::choose(many, &Platform::here()), &named[..]) {
                    (Err(_), [(_, named)]) if named.platform.is_none() => (*named).clone(),
                    (chosen, _) => chosen?.clone(),
                }
            }
        };
        for _ in 0..limits::NESTING {
            match Document::parse(&self.blob(&chosen, "manifest")?)? {
                Document::Index(manifests) => {
                    chosen = document::choose(&manifests, &Platform::here())?.clone()
                }
                Document::Manifest { config, layers } => {
                    let configuration = self.blob(&config, "configuration")?;
                    let configuration = Configuration::parse(&configuration, &config.media_type)?;
                    let blobs = layers.iter().map(|layer| {
                        let (size, place) = self.need(&path_of(&layer.digest))?;
                        if size != layer.size {
                            return Err(Error::image(format!(
                                "its layer {} has {size} bytes, not {}",
                                layer.digest, layer.size
                            )));
                        }
                        Ok((Some(layer.digest), size, place))
                    });
                    return Found::new(configuration, blobs.collect::<Result<_>>()?);
                }
            }
        }
        Err(Error::image("its indexes lead to indexes without end"))
    }

    /// A document that is what its digest says.
    fn blob(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
        let bytes = self.document(&self.need(&path_of(&descriptor.digest))?, what)?;
        let is = Digest::of(&bytes);
        if is != descriptor.digest {
            return Err(Error::image(format!("its {what} is {is}, not {}", descriptor.digest)));
        }
        Ok(bytes)
    }
}

/// An archive or a layout is one function's.
fn several<'a>(count: usize, names: impl Iterator<Item = &'a str>) -> Error {
    if count == 0 {
        return Error::image("it holds no image");
    }
    let names: Vec<_> = names.take(5).collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    Error::image(format!("it holds {count} images{names}, and a function has one: save that alone"))
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A path from a directory of the archive, both without links, from the archive's root. `None` where it leads out.
fn within(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let base: &[u8] = if path.starts_with(b"/") { b"" } else { directory };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|b| *b == b'/').chain(path.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}
