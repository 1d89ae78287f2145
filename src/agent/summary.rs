//! The present step in one line, for `systemctl status` and `twinboot status`.

use crate::update::State;
use crate::update::report::{Facts, Phase, update_status};

/// For example `downloading 1.4.2: 42 %, 3.1 MB/s`.
#[must_use]
pub fn summary(facts: &Facts<'_>, bytes_per_sec: Option<u64>) -> String {
    let (_, sentence) = update_status(facts);
    let State::Installing { update, .. } = &facts.record.state else { return lower_first(&sentence) };
    let progress = facts.progress.unwrap_or_default();
    let what = update.request.version.as_deref().unwrap_or(update.request.id.as_str());
    let verb = match progress.phase {
        Phase::Downloading => "downloading",
        Phase::Waiting => return format!("waiting for the server to go on with {what}"),
        Phase::Verifying => "reading back",
    };
    let amount = match progress.percent() {
        Some(percent) => format!("{percent} %"),
        None => megabytes(progress.bytes),
    };
    match bytes_per_sec.filter(|_| progress.phase == Phase::Downloading) {
        Some(rate) => format!("{verb} {what}: {amount}, {}/s", megabytes(rate)),
        None => format!("{verb} {what}: {amount}"),
    }
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(megabytes(3_149_000), "3.1 MB");
        assert_eq!(megabytes(99_999), "0.0 MB");
        assert_eq!(lower_first("Standing by"), "standing by");
    }
}
