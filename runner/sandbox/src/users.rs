//! Which users and groups there are, where the runner itself is in a user namespace.

use std::fs;
use std::ops::Range;

/// Whether all of these are users and groups here. Outside of user namespaces every number is one.
pub fn known(range: Range<u32>) -> bool {
    ["uid_map", "gid_map"].into_iter().all(|map| {
        // A kernel without user namespaces has no such file.
        fs::read_to_string(format!("/proc/self/{map}")).map_or(true, |text| covers(&text, &range))
    })
}

/// Whether a map in the form of `/proc/PID/uid_map` (first inside, first outside, count) has all of a range.
fn covers(map: &str, range: &Range<u32>) -> bool {
    let extents: Vec<Range<u64>> = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse::<u64>);
            let (first, count) = (fields.next()?.ok()?, fields.nth(1)?.ok()?);
            Some(first..first + count)
        })
        .collect();
    let mut next = u64::from(range.start);
    while next < u64::from(range.end) {
        match extents.iter().find(|extent| extent.contains(&next)) {
            Some(extent) => next = extent.end,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_a_range_or_lacks_some_of_it() {
        let whole = "         0          0 4294967295\n";
        assert!(covers(whole, &(1_900_000_000..1_900_016_384)));
        assert!(!covers("0 1000 1\n", &(1_900_000_000..1_900_016_384)));
        assert!(covers("0 1000 1\n", &(0..1)));
        let split = "0 1000 1\n1 100000 65535\n65536 300000 10\n";
        assert!(covers(split, &(0..65_546)));
        assert!(!covers(split, &(0..65_547)));
        assert!(!covers("", &(0..1)));
    }
}
