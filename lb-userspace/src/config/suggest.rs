//! "Did you mean ...?"

/// The candidate that was most probably meant, if one is near enough.
pub(super) fn nearest<'a>(given: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if given.len() > 40 {
        return None;
    }
    let given = given.to_ascii_lowercase().replace('-', "_");
    let (distance, best) = candidates.iter().map(|c| (distance(&given, c), *c)).min_by_key(|(d, _)| *d)?;
    // A third of the word may be wrong, but never all of a short one.
    (distance <= (best.len().max(given.len()) / 3).max(1) && distance < best.len().min(given.len()))
        .then_some(best)
}

/// Edits between two words: insertions, deletions, replacements and swaps of neighbours (optimal
/// string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let keys = ["interval", "timeout", "rise", "fall", "port", "path", "host"];
        assert_eq!(nearest("intervall", &keys), Some("interval"));
        assert_eq!(nearest("Interval", &keys), Some("interval"));
        assert_eq!(nearest("time-out", &keys), Some("timeout"));
        assert_eq!(nearest("prot", &keys), Some("port"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest("x", &keys), None);
        assert_eq!(nearest("", &keys), None);
        assert_eq!(nearest(&"interval".repeat(99), &keys), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
