//! How much of an image is too much. Everything that comes from outside is held against one of these before it is kept.

/// Bytes of a manifest, an index or a configuration; registries take no larger ones.
pub(crate) const DOCUMENT: u64 = 4 << 20;
/// Layers of an image.
pub(crate) const LAYERS: usize = 256;
/// Manifests in one index.
pub(crate) const MANIFESTS: usize = 1024;
/// Indexes that lead to indexes.
pub(crate) const NESTING: usize = 4;
/// Parts of a path: far beyond what programs ship, and few enough for a directory tree to be walked with two open files for each.
pub(crate) const DEPTH: usize = 128;
/// Bytes of a path, and of a symbolic link's target: the kernel's.
pub(crate) const PATH: usize = 4095;
/// Bytes of a part of a path: the kernel's.
pub(crate) const NAME: usize = 255;
/// Symbolic links that lead on to one directory: the kernel's.
pub(crate) const LINKS: usize = 40;
/// Bytes of the headers of one entry of an archive, names and extended attributes included.
pub(crate) const ENTRY_HEADERS: u64 = 1 << 20;
/// Bytes of all names and extended attributes of a layer: what is kept in memory while it is unpacked. Images with 100,000 files have
/// some 10 MiB.
pub(crate) const NAMES: u64 = 128 << 20;
/// Extended attributes of one file, and the bytes of one: the kernel's.
pub(crate) const XATTRS: usize = 64;
pub(crate) const XATTR: usize = 64 << 10;
/// A layer whose content is this many times as large as its compressed form is a bomb. What deflate makes of text is 3 to 10 times,
/// of zeros 1,000.
pub(crate) const RATIO: u64 = 200;
/// The ratio says nothing below this: small images may hold a file of zeros.
pub(crate) const RATIO_FROM: u64 = 64 << 20;

/// What an operator may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the files of one image.
    pub bytes: u64,
    /// Files, directories and links of one image.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 1_000_000 }
    }
}
