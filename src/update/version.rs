//! Which of two version texts is newer.

use std::cmp::Ordering;

/// Compares like a person: runs of digits by value, the rest letter by letter, and a pre-release
/// (`1.4.0-rc1`) before its release. Firmware versions follow no one standard (`2.8.5`, `2026.11`, `v3`),
/// so none is demanded.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.strip_prefix('v').unwrap_or(a), b.strip_prefix('v').unwrap_or(b));
    let (a_release, a_pre) = a.split_once('-').map_or((a, None), |(r, p)| (r, Some(p)));
    let (b_release, b_pre) = b.split_once('-').map_or((b, None), |(r, p)| (r, Some(p)));
    compare_runs(a_release, b_release).then_with(|| match (a_pre, b_pre) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => compare_runs(a, b),
    })
}

fn compare_runs(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() && !b.is_empty() {
        let (a_run, a_rest) = split_run(a);
        let (b_run, b_rest) = split_run(b);
        let both_digits = a_run.starts_with(|c: char| c.is_ascii_digit())
            && b_run.starts_with(|c: char| c.is_ascii_digit());
        let order = if both_digits { compare_digits(a_run, b_run) } else { a_run.cmp(b_run) };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
    a.len().cmp(&b.len())
}

/// Splits off the first run of digits, or of anything else.
fn split_run(text: &str) -> (&str, &str) {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(text.len());
    text.split_at(end)
}

/// By value, whatever the length: no number type is long enough for every vendor.
fn compare_digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_as_a_person_would_order_them() {
        let ascending = ["1", "1.2", "1.2.9", "1.2.10-rc1", "1.2.10-rc2", "1.2.10", "v1.3", "2.0", "2026.11"];
        for (older, newer) in ascending.iter().zip(ascending.iter().skip(1)) {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        assert_eq!(compare("1.02", "1.2"), Ordering::Equal);
    }
}
