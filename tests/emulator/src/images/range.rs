//! The `Range` header: RFC 9110, section 14.

/// What a `Range` header means for content of some length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// No range, or one that this server may ignore.
    Whole,
    /// From the first to the last byte, both included.
    Bytes { first: u64, last: u64 },
    /// Nothing of it is there: 416.
    Unsatisfiable,
}

/// Several ranges in one request are ignored, as the RFC allows.
pub(super) fn part(header: Option<&str>, length: u64) -> Part {
    let Some((first, last)) = header
        .and_then(|header| header.strip_prefix("bytes="))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, last) = match (first.is_empty(), first.parse::<u64>(), last.is_empty(), last.parse::<u64>()) {
        // The last so many bytes.
        (true, _, _, Ok(count)) => (length.saturating_sub(count), if count == 0 { 0 } else { length }),
        (_, Ok(first), true, _) => (first, length),
        (_, Ok(first), _, Ok(last)) if first <= last => (first, last.saturating_add(1)),
        _ => return Part::Whole,
    };
    let end = last.min(length);
    if first < end { Part::Bytes { first, last: end - 1 } } else { Part::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::{Part, part};

    #[test]
    fn ranges_mean_what_the_rfc_says() {
        let bytes = |first, last| Part::Bytes { first, last };
        for (header, expected) in [
            (None, Part::Whole),
            (Some("bytes=0-"), bytes(0, 99)),
            (Some("bytes=10-19"), bytes(10, 19)),
            (Some("bytes=90-1000"), bytes(90, 99)),
            (Some("bytes=-5"), bytes(95, 99)),
            (Some("bytes=-500"), bytes(0, 99)),
            (Some("bytes=100-"), Part::Unsatisfiable),
            (Some("bytes=-0"), Part::Unsatisfiable),
            (Some("bytes=9-3"), Part::Whole),
            (Some("bytes=1-2,5-6"), Part::Whole),
            (Some("lines=1-2"), Part::Whole),
        ] {
            assert_eq!(part(header, 100), expected, "{header:?}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }
}
