//! Making a layer: files that are put on top of an image.
//!
//! The same files make the same bytes, so that what is in a registry already is not sent again.

use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits;

/// When all files were changed last: archives of some kinds know no earlier time.
const TIME: u64 = 315_532_800;

/// A layer, compressed, in memory.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(crate) blob: Bytes,
    /// Of the blob.
    pub(crate) digest: Digest,
    /// Of the archive in it.
    pub(crate) content: Digest,
}

/// Takes files in. Everything belongs to root and can be read by everybody.
pub struct LayerBuilder {
    archive: tar::Builder<Hashed>,
}

/// Bytes on their way into the compressor.
struct Hashed {
    gzip: GzEncoder<Vec<u8>>,
    hash: Sha256,
    bytes: u64,
    most: usize,
}

impl Write for Hashed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.gzip.write(data)?;
        self.hash.update(&data[..n]);
        self.bytes += n as u64;
        if self.gzip.get_ref().len() > self.most {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("a layer of more than {} bytes", self.most),
            ));
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

impl LayerBuilder {
    /// Of at most so many bytes, compressed.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let gzip = GzEncoder::new(Vec::new(), Compression::default());
        Self { archive: tar::Builder::new(Hashed { gzip, hash: Sha256::new(), bytes: 0, most }) }
    }

    /// Whether a file of this name can be in a layer: some names say something about the layers below.
    #[must_use]
    pub fn takes(name: &[u8]) -> bool {
        !name.starts_with(b".wh.")
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// A directory.
    ///
    /// # Errors
    /// It has become too large.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Self::header(EntryType::Directory, 0o755, 0);
        self.archive.append_data(&mut header, path, io::empty())
    }

    /// A directory of which nothing is seen that layers below have in it.
    ///
    /// # Errors
    /// See [`Self::directory`].
    pub fn only_directory(&mut self, path: &Path) -> io::Result<()> {
        self.directory(path)?;
        let mut header = Self::header(EntryType::Regular, 0o644, 0);
        self.archive.append_data(&mut header, path.join(".wh..wh..opq"), io::empty())
    }

    /// A file of so many bytes.
    ///
    /// # Errors
    /// It cannot be read, has fewer or more bytes, or the layer has become too large.
    pub fn file(
        &mut self,
        path: &Path,
        size: u64,
        executable: bool,
        mut content: impl Read,
    ) -> io::Result<()> {
        let mut header = Self::header(EntryType::Regular, if executable { 0o755 } else { 0o644 }, size);
        let mut exactly = Exactly { content: &mut content, left: size };
        self.archive.append_data(&mut header, path, &mut exactly)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// See [`Self::directory`].
    pub fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        self.archive.append_link(&mut header, path, target)
    }

    /// The layer.
    ///
    /// # Errors
    /// It is one that no store would take: see [`limits::RATIO`].
    pub fn finish(self) -> Result<Layer> {
        let failed = |error: io::Error| Error::image(format!("the layer cannot be made: {error}"));
        let Hashed { gzip, hash, bytes, .. } = self.archive.into_inner().map_err(failed)?;
        let blob = Bytes::from(gzip.finish().map_err(failed)?);
        if bytes > limits::RATIO_FROM && bytes / limits::RATIO > blob.len() as u64 {
            let text =
                format!("the files are more than {} times as large as they are compressed", limits::RATIO);
            return Err(Error::image(text));
        }
        Ok(Layer { digest: Digest::of(&blob), blob, content: Digest::finished(hash) })
    }
}

/// What an archive says about a file is written before the file: nothing else may come then.
struct Exactly<'a, R> {
    content: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.content.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) if n > 0 || left == 0 => self.left = left,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is not as long as it was said to be",
                ));
            }
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(files: &[(&str, u64, &[u8])]) -> io::Result<Layer> {
        let mut builder = LayerBuilder::new(1 << 20);
        builder.only_directory(Path::new("var/task"))?;
        for (path, size, content) in files {
            builder.file(Path::new(path), *size, false, *content)?;
        }
        builder.finish().map_err(io::Error::other)
    }

    #[test]
    fn the_same_files_make_the_same_layer() {
        let one = layer(&[("var/task/a", 1, b"a")]).unwrap();
        let same = layer(&[("var/task/a", 1, b"a")]).unwrap();
        let other = layer(&[("var/task/a", 1, b"b")]).unwrap();
        assert_eq!((one.digest, one.content), (same.digest, same.content));
        assert_ne!(one.content, other.content);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&*one.blob).read_to_end(&mut plain).unwrap();
        assert_eq!(Digest::of(&plain), one.content);
    }

    #[test]
    fn what_is_longer_or_shorter_than_was_said_is_no_file() {
        for (size, content) in [(1, &b""[..]), (1, b"ab"), (0, b"a")] {
            assert!(layer(&[("a", size, content)]).is_err(), "{size}: {content:?}");
        }
    }

    #[test]
    fn too_much_is_refused_on_the_way_and_a_bomb_at_its_end() {
        let mut seed = 7u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(3 << 20)
        .collect();
        assert!(layer(&[("noise", noise.len() as u64, &noise)]).is_err());
        let mut builder = LayerBuilder::new(1 << 20);
        let zeros = limits::RATIO_FROM + (1 << 20);
        builder.file(Path::new("zeros"), zeros, false, io::repeat(0).take(zeros)).unwrap();
        assert!(builder.finish().unwrap_err().message.contains("200 times"));
    }
}
