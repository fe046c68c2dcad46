//! Images made byte by byte, and what became of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stoker_image::{Config, Store};

/// `sha256:…` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

pub fn hex(bytes: &[u8]) -> String {
    digest(bytes).split_off("sha256:".len())
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub xattrs: Vec<(&'static str, &'static [u8])>,
}

#[derive(Debug, Clone)]
pub enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    Fifo,
    Device,
}

pub fn entry(path: &str, kind: Kind) -> Entry {
    let mode = if matches!(kind, Kind::Directory) { 0o755 } else { 0o644 };
    Entry { path: path.into(), kind, mode, owner: (0, 0), mtime: 1_600_000_000, xattrs: Vec::new() }
}

pub fn file(path: &str, content: &str) -> Entry {
    entry(path, Kind::File(content.into()))
}

pub fn directory(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

pub fn symlink(path: &str, target: &str) -> Entry {
    entry(path, Kind::Symlink(target.into()))
}

pub fn link(path: &str, target: &str) -> Entry {
    entry(path, Kind::Link(target.into()))
}

impl Entry {
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub fn xattr(mut self, name: &'static str, value: &'static [u8]) -> Self {
        self.xattrs.push((name, value));
        self
    }
}

/// A tar archive of these entries, in this order, however odd they are.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        if !entry.xattrs.is_empty() {
            let names: Vec<_> = entry.xattrs.iter().map(|(n, v)| (format!("SCHILY.xattr.{n}"), *v)).collect();
            tar.append_pax_extensions(names.iter().map(|(n, v)| (n.as_str(), *v))).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        let (kind, link, content): (_, &[u8], &[u8]) = match &entry.kind {
            Kind::File(content) => (tar::EntryType::Regular, b"", content),
            Kind::Directory => (tar::EntryType::Directory, b"", b""),
            Kind::Symlink(target) => (tar::EntryType::Symlink, target, b""),
            Kind::Link(target) => (tar::EntryType::Link, target, b""),
            Kind::Fifo => (tar::EntryType::Fifo, b"", b""),
            Kind::Device => (tar::EntryType::Char, b"", b""),
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        // The builder's own ways in refuse what hostile archives have.
        long(&mut tar, b'L', &entry.path, |field| {
            header.as_gnu_mut().unwrap().name[..field.len()].copy_from_slice(field)
        });
        if !link.is_empty() {
            let mut short = Vec::new();
            long(&mut tar, b'K', link, |field| short = field.to_vec());
            header.as_gnu_mut().unwrap().linkname[..short.len()].copy_from_slice(&short);
        }
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn long(tar: &mut tar::Builder<Vec<u8>>, kind: u8, name: &[u8], short: impl FnOnce(&[u8])) {
    if name.len() < 100 {
        return short(name);
    }
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..13].copy_from_slice(b"././@LongLink");
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    tar.append(&header, [name, b"\0"].concat().as_slice()).unwrap();
    short(&name[..99]);
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Two frames, with one to be skipped before and between them, as some tools write them.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frame =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let (one, two) = bytes.split_at(bytes.len() / 2);
    [skipped.clone(), frame(one), skipped, frame(two)].concat()
}

/// An image: its layers as plain archives, and its configuration.
#[derive(Debug, Clone)]
pub struct Made {
    pub layers: Vec<Vec<u8>>,
    pub config: Value,
}

impl Made {
    pub fn new(layers: &[&[Entry]]) -> Self {
        Self::of(layers.iter().map(|entries| tar(entries)).collect())
    }

    /// Of layers as they are.
    pub fn of(layers: Vec<Vec<u8>>) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let contents: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": contents},
        });
        Self { layers, config }
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config["config"][key] = value;
        self
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    /// As `docker save` wrote it before version 25: a directory for each layer, links for layers that are there already.
    pub fn old_archive(&self) -> Vec<u8> {
        let config = format!("{}.json", hex(&self.config_bytes()));
        let mut entries = Vec::new();
        let mut paths = Vec::new();
        let mut first = BTreeMap::new();
        for (n, layer) in self.layers.iter().enumerate() {
            let path = format!("layer{n}/layer.tar");
            entries.push(directory(&format!("layer{n}/")));
            match first.get(layer) {
                Some(before) => entries.push(symlink(&path, &format!("../{before}"))),
                None => {
                    entries.push(entry(&path, Kind::File(layer.clone())));
                    first.insert(layer.clone(), path.clone());
                }
            }
            paths.push(path);
        }
        let manifest = json!([{"Config": config, "RepoTags": ["x:1"], "Layers": paths}]).to_string();
        entries.push(entry(&config, Kind::File(self.config_bytes())));
        entries.push(file("manifest.json", &manifest));
        tar(&entries)
    }

    /// As `docker save` writes it today: an OCI layout with the old manifest beside it.
    pub fn new_archive(&self) -> Vec<u8> {
        let paths: Vec<_> = self.layers.iter().map(|layer| format!("blobs/sha256/{}", hex(layer))).collect();
        let config = format!("blobs/sha256/{}", hex(&self.config_bytes()));
        let manifest = json!([{"Config": config, "RepoTags": null, "Layers": paths}]).to_string();
        let mut files = self.files(&|layer| layer.to_vec());
        files.insert("manifest.json".into(), manifest.into_bytes());
        archive(&files)
    }

    /// The manifest, for layers that are stored like this.
    pub fn manifest(&self, store: &dyn Fn(&[u8]) -> Vec<u8>) -> Value {
        let describe = |bytes: &[u8], kind: &str| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()});
        let layers: Vec<_> =
            self.layers.iter().map(|layer| describe(&store(layer), "layer.v1.tar")).collect();
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(&self.config_bytes(), "config.v1+json"), "layers": layers,
        })
    }

    /// The files of an OCI layout, with layers stored like this.
    pub fn files(&self, store: &dyn Fn(&[u8]) -> Vec<u8>) -> BTreeMap<String, Vec<u8>> {
        let manifest = self.manifest(store).to_string().into_bytes();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len(),
        }]});
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|layer| store(layer)).collect();
        blobs.push(manifest);
        blobs.push(self.config_bytes());
        let mut files: BTreeMap<_, _> =
            blobs.into_iter().map(|blob| (format!("blobs/sha256/{}", hex(&blob)), blob)).collect();
        files.insert("oci-layout".into(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes());
        files.insert("index.json".into(), index.to_string().into_bytes());
        files
    }
}

/// Files as a tar archive.
pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    tar(&files.iter().map(|(path, bytes)| entry(path, Kind::File(bytes.clone()))).collect::<Vec<_>>())
}

/// Files as a directory.
pub fn write_all(directory: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, bytes) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A store and room beside it.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(directory.path().join("store"));
        change(&mut config);
        Self { store: Store::open(config).unwrap(), directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// What lies in a directory of the store.
    pub fn names(&self, part: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("store").join(part)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Everything about a tree that a function could see: a line for each file.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    look(root, Path::new(""), &mut seen);
    seen
}

fn look(root: &Path, path: &Path, seen: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(root.join(path)).unwrap() {
        let name = path.join(entry.unwrap().file_name());
        let whole = root.join(&name);
        let there = whole.symlink_metadata().unwrap();
        let kind = there.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&whole).unwrap().display())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else if kind.is_file() {
            format!("{:?}", String::from_utf8_lossy(&std::fs::read(&whole).unwrap()))
        } else {
            "something else".to_owned()
        };
        let mode = if kind.is_symlink() { 0 } else { there.mode() & 0o7777 };
        // An ordinary user is root in a sandbox of its own.
        let own = |id: u32, ours: u32| if !is_root() && id == ours { 0 } else { id };
        let uid = own(there.uid(), rustix::process::geteuid().as_raw());
        let gid = own(there.gid(), rustix::process::getegid().as_raw());
        let line = format!("{mode:o} {uid}:{gid} {what}");
        seen.insert(String::from_utf8_lossy(name.as_os_str().as_bytes()).into_owned(), line);
        if kind.is_dir() {
            look(root, &name, seen);
        }
    }
}

/// Which file it is, however it is called.
pub fn inode(path: impl AsRef<OsStr>) -> u64 {
    std::fs::symlink_metadata(Path::new(path.as_ref())).unwrap().ino()
}

/// Whether this is root, with the power to give files away.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
