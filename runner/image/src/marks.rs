//! What a layer says about the layers below it, which its own directory cannot hold.
//!
//! Kept beside the directory in a file of its own: one letter, a path, a NUL; links have a second path.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::tree;

/// Paths without a slash in front.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Removed from what is below.
    pub whiteouts: BTreeSet<Vec<u8>>,
    /// Directories of which nothing below is seen.
    pub opaque: BTreeSet<Vec<u8>>,
    /// Directories that the layer does not name, only what is in them: their owner and mode are those from below.
    pub implied: BTreeSet<Vec<u8>>,
    /// Hard links to files from below: path and target. No target is itself such a link.
    pub links: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Marks {
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |kind: u8, path: &[u8]| {
            out.push(kind);
            out.extend_from_slice(path);
            out.push(0);
        };
        self.whiteouts.iter().for_each(|path| put(b'w', path));
        self.opaque.iter().for_each(|path| put(b'o', path));
        self.implied.iter().for_each(|path| put(b'i', path));
        for (path, target) in &self.links {
            put(b'l', path);
            put(b't', target);
        }
        out
    }

    /// Reads what [`Marks::write`] wrote.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::store("the image store: the marks of a layer are damaged");
        let mut marks = Self::default();
        let mut rest = bytes;
        let mut link = None;
        while let Some((kind, after)) = rest.split_first() {
            let end = after.iter().position(|b| *b == 0).ok_or_else(damaged)?;
            let path = after[..end].to_vec();
            match (kind, link.take()) {
                (b'w', None) => drop(marks.whiteouts.insert(path)),
                (b'o', None) => drop(marks.opaque.insert(path)),
                (b'i', None) => drop(marks.implied.insert(path)),
                (b'l', None) => link = Some(path),
                (b't', Some(from)) => drop(marks.links.insert(from, path)),
                _ => return Err(damaged()),
            }
            rest = &after[end + 1..];
        }
        if link.is_some() { Err(damaged()) } else { Ok(marks) }
    }

    /// What was here, and in it, is not of this layer any more.
    pub fn forget(&mut self, path: &[u8]) {
        forget_in(&mut self.links, path);
        for set in [&mut self.implied, &mut self.opaque] {
            set.remove(path);
            let within: Vec<_> = set.range(inside(path)).cloned().collect();
            within.iter().for_each(|path| {
                set.remove(path);
            });
        }
    }

    /// Whether a directory is one that the layer does not name.
    pub fn is_implied(&self, directory: &[u8], name: &[u8]) -> bool {
        !self.implied.is_empty() && self.implied.contains(&tree::join(directory, name))
    }
}

/// The paths in a directory, among sorted ones.
fn inside(directory: &[u8]) -> std::ops::Range<Vec<u8>> {
    // The character behind the slash.
    [directory, b"/"].concat()..[directory, b"0"].concat()
}

/// Removes what is known of a path and of all that is in it.
pub(crate) fn forget_in<T>(map: &mut BTreeMap<Vec<u8>, T>, path: &[u8]) {
    map.remove(path);
    let within: Vec<_> = map.range(inside(path)).map(|(path, _)| path.clone()).collect();
    within.iter().for_each(|path| drop(map.remove(path)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=255u8, 0..20)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            whiteouts in proptest::collection::btree_set(path(), 0..5),
            opaque in proptest::collection::btree_set(path(), 0..5),
            implied in proptest::collection::btree_set(path(), 0..5),
            links in proptest::collection::btree_map(path(), path(), 0..5),
        ) {
            let marks = Marks { whiteouts, opaque, implied, links };
            let written = marks.write();
            prop_assert_eq!(Marks::read(&written).unwrap(), marks.clone());
            if let Some((_, cut)) = written.split_last() {
                prop_assert!(Marks::read(cut).is_err());
            }
        }

        #[test]
        fn noise_is_no_reason_to_panic(bytes: Vec<u8>) {
            if let Ok(marks) = Marks::read(&bytes) {
                prop_assert_eq!(Marks::read(&marks.write()).unwrap(), marks);
            }
        }
    }

    #[test]
    fn what_is_replaced_is_forgotten_with_all_that_is_in_it() {
        let set = |paths: &[&str]| paths.iter().map(|p| p.as_bytes().to_vec()).collect::<BTreeSet<_>>();
        let mut marks = Marks {
            opaque: set(&["a", "a/b", "ab"]),
            implied: set(&["a/c", "b"]),
            links: [("a/l", "x"), ("l", "a/x")].map(|(a, b)| (a.into(), b.into())).into(),
            ..Marks::default()
        };
        marks.forget(b"a");
        assert_eq!(marks.opaque, set(&["ab"]));
        assert_eq!(marks.implied, set(&["b"]));
        assert_eq!(marks.links, BTreeMap::from([(b"l".to_vec(), b"a/x".to_vec())]));
    }
}
