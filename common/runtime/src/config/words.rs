//! Words as people write them, and what they probably meant.

use stoker_core::text::unescape;

/// The known word that `word` was probably meant to be, without regard to case and to which separator was typed.
pub fn nearest<'n>(word: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '.'], "_");
    let word = plain(word);
    known
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove or change to make `b` of `a` (Levenshtein).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `a, b or c`.
pub fn or<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Replaces `%2C` and the like; what is no such sequence stays. Lets a value in `a=b,c=d` have a comma.
pub(super) fn percent_decoded(text: &str) -> String {
    String::from_utf8(unescape(text).into_owned()).unwrap_or_else(|_| text.to_owned())
}
