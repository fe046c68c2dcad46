//! A cheap hash for keys that nobody outside can choose: our own numbers, and digests that were checked.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map by such a key.
pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// A set of such keys.
pub type QuickSet<K> = HashSet<K, BuildHasherDefault<Quick>>;

/// Mixes 64 bits of a key: all of a number, the first of a digest.
#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let len = bytes.len().min(8);
        first[..len].copy_from_slice(&bytes[..len]);
        self.write_u64(u64::from_le_bytes(first));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, _: usize) {
        // The length of a key, the same for all.
    }

    fn finish(&self) -> u64 {
        // The table uses the lowest and the highest bits; the lowest of a product are the poorest.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher as _;

    #[test]
    fn neighbours_are_far_apart() {
        let build = BuildHasherDefault::<Quick>::default();
        let buckets: HashSet<_> = (0..1000u64).map(|n| build.hash_one(n) & 1023).collect();
        assert!(buckets.len() > 500, "{}", buckets.len());
        let tags: HashSet<_> = (0..1000u64).map(|n| build.hash_one(n) >> 57).collect();
        assert!(tags.len() > 100, "{}", tags.len());
        let digests: HashSet<_> = (0..200u8).map(|n| build.hash_one([n; 32])).collect();
        assert_eq!(digests.len(), 200);
    }
}
