//! A blob on its way: hashed as it comes, decompressed, hashed again as it is, unpacked. Nothing of it is kept before it is known to be
//! what it should be: the caller throws the directory away on an error.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, from_read, through_io};
use crate::limits::{self, Limits};
use crate::unpack::{Owners, Room, Unpacked, unpack};

const BUFFER: usize = 128 << 10;

/// What a layer must turn out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Digest of the blob as it is stored, where the image says it. Archives only know what is inside.
    pub blob: Option<Digest>,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the tar archive in it.
    pub content: Digest,
}

/// Unpacks a layer's blob into an empty directory, if it is what is expected. Blocking.
pub(crate) fn layer(
    source: impl Read,
    expected: &Expected,
    into: &OwnedFd,
    owners: Owners,
    limits: &Limits,
    room: &mut dyn Room,
) -> Result<Unpacked> {
    let arrived = Rc::new(Cell::new(0));
    let mut blob =
        Hashing::new(Measured { inner: source, left: expected.size, arrived: Rc::clone(&arrived) });
    let unpacked = {
        let plain = decompress(&mut blob).map_err(|error| from_read("the layer cannot be read", error))?;
        // Every entry has a header, and may have one for a long name.
        let most = limits.bytes.saturating_add(limits.entries.saturating_mul(4096));
        let mut content = Hashing::new(Bounded { inner: plain, arrived, most, out: 0 });
        let unpacked = unpack(&mut content, into, owners, limits, room)?;
        rest(&mut content)?;
        let digest = content.digest();
        if digest != expected.content {
            return Err(Error::image(format!("the layer's content is {digest}, not {}", expected.content)));
        }
        unpacked
    };
    rest(&mut blob)?;
    let bytes = blob.count();
    if bytes != expected.size {
        return Err(Error::image(format!("the layer's blob has {bytes} bytes, not {}", expected.size)));
    }
    match (blob.digest(), expected.blob) {
        (is, Some(should)) if is != should => {
            Err(Error::image(format!("the layer's blob is {is}, not {should}")))
        }
        _ => Ok(unpacked),
    }
}

fn rest(source: &mut impl Read) -> Result<()> {
    io::copy(source, &mut io::sink()).map_err(|error| from_read("the layer cannot be read", error))?;
    Ok(())
}

/// Whatever was used to compress it: told by its first bytes, as media types are often wrong.
pub(crate) fn decompress<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(4);
    (&mut source).take(4).read_to_end(&mut head)?;
    let kind = Compression::of(&head);
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(source));
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(Zstd { source: whole, decoder: FrameDecoder::new(), open: false }),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first four bytes.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or one to be skipped: some tools start with it.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Zstandard: any number of frames.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    /// Within a frame.
    open: bool,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.open {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.decoder.init(&mut self.source) {
                    Ok(()) => self.open = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        let skipped =
                            io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                        if skipped < u64::from(length) {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            } else if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            } else if self.decoder.is_finished() {
                self.open = false;
            } else {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
        }
    }
}

/// A source that may not be longer than it was said to be.
struct Measured<R> {
    inner: R,
    left: u64,
    arrived: Rc<Cell<u64>>,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return Err(through_io(Error::image("the layer's blob is longer than its image says"))),
        }
        self.arrived.set(self.arrived.get() + n as u64);
        Ok(n)
    }
}

/// What comes out of a decompressor, if it is not absurdly much.
struct Bounded<R> {
    inner: R,
    arrived: Rc<Cell<u64>>,
    most: u64,
    out: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.out = self.out.saturating_add(n as u64);
        if self.out > self.most {
            return Err(through_io(Error::image(format!("the layer has more than {} bytes", self.most))));
        }
        if self.out > limits::RATIO_FROM && self.out / limits::RATIO > self.arrived.get() {
            return Err(through_io(Error::image(format!(
                "the layer is more than {} times as large as its compressed form",
                limits::RATIO
            ))));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(arrived: u64, most: u64) -> Bounded<io::Repeat> {
        Bounded { inner: io::repeat(0), arrived: Rc::new(Cell::new(arrived)), most, out: 0 }
    }

    #[test]
    fn what_grows_absurdly_is_stopped() {
        let through =
            |arrived, most, bytes: u64| io::copy(&mut bounded(arrived, most).take(bytes), &mut io::sink());
        let enough = u64::MAX;
        assert!(through(1, enough, limits::RATIO_FROM).is_ok(), "small ones may be all zeros");
        let error = from_read("", through(1, enough, limits::RATIO_FROM + 1).unwrap_err());
        assert!(error.message.contains("200 times"), "{error}");
        let fine = (limits::RATIO_FROM + (1 << 20)) / limits::RATIO;
        assert!(through(fine, enough, limits::RATIO_FROM + (1 << 20)).is_ok());
        let error = from_read("", through(enough, 1 << 20, (1 << 20) + 1).unwrap_err());
        assert!(error.message.contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn a_blob_is_no_longer_than_was_said() {
        let arrived = Rc::default();
        let mut source = Measured { inner: io::repeat(0), left: 10, arrived };
        let error = from_read("", io::copy(&mut source, &mut io::sink()).unwrap_err());
        assert!(error.message.contains("longer than"), "{error}");
    }

    #[test]
    fn bytes_that_no_decompressor_knows_are_the_images_fault() {
        for head in
            [&[0x1f, 0x8b, 0xff, 0xff, 1, 2, 3][..], &[0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff, 0xff]]
        {
            let error =
                decompress(head).and_then(|mut plain| io::copy(&mut plain, &mut io::sink())).unwrap_err();
            assert_eq!(from_read("the layer", error).fault, crate::Fault::Image);
        }
        let cut = [&[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0][..], b"abc"].concat();
        assert!(decompress(&cut[..]).and_then(|mut plain| io::copy(&mut plain, &mut io::sink())).is_err());
    }
}
