//! Patches in a file of their own, beside the bundle: made after it, or for bases that few devices run.

use std::ops::Range;
use std::sync::Arc;

use url::Url;

use super::super::parts::{BESIDE_OFFSET, Remote};
use super::super::verify::Rule;
use super::super::{InstallError, Job};
use super::head::{Front, Head, by_any_signature};
use crate::bundle::{BundleError, PatchFile, PatchPart, PatchRange};
use crate::causes::one_line;
use crate::redact::display_url;

/// Its patches, and where they are: as if the bundle went on with that file. None if the bundle names no such file, or
/// if it cannot be used: the chunks will do. `front` can fetch from it afterwards.
pub async fn patches(front: &mut Front, head: &Head, rule: &Rule, job: &Job) -> Vec<(PatchPart, PatchRange)> {
    let Some(name) = &head.manifest.patches_file else { return Vec::new() };
    match read(&front.remote, name, head, rule, job).await {
        Ok((beside, patches)) => {
            front.remote.beside = Some(Arc::new(beside));
            patches
        }
        Err(error) => {
            tracing::info!(file = %name, reason = %one_line(&error), "no patches from beside the bundle");
            Vec::new()
        }
    }
}

async fn read(
    bundle: &Remote,
    name: &str,
    head: &Head,
    rule: &Rule,
    job: &Job,
) -> Result<(Remote, Vec<(PatchPart, PatchRange)>), InstallError> {
    let mut remote = bundle.clone();
    remote.uri = uri_beside(&bundle.uri, name).unwrap_or_default();
    (remote.expected_bytes, remote.validator) = (None, None);
    // Before it is known to be of use it is not worth the wait for a server that is away.
    remote.limits.retry = remote.limits.retry.min(remote.limits.stall);
    let mut front = Front::open(remote).await?;
    let (header, text, signatures) = front.signed().await?;
    // A check value is the bundle's alone. What such a file makes is compared with the bundle's index in any case.
    if let Rule::SignedBy(keys) = rule {
        let found = (display_url(&front.remote.uri), &job.trust);
        by_any_signature(&text, &signatures, keys, None, found)??;
    }
    let file = PatchFile::parse(&text)?;
    if file.bundle != head.digest {
        let (actual, expected) = (file.bundle, head.digest);
        return Err(BundleError::Digest { part: "bundle that the patches are for", actual, expected }.into());
    }
    if front.is_whole() {
        return Err(BundleError::Field { field: "patches_file", why: "is not given in parts" }.into());
    }
    let (ranges, end) = file.layout(header);
    front.ends("frames", end)?;
    // Longer than one silent connection: the chunks in their place are many times more.
    front.remote.limits.retry = bundle.limits.retry.min(16 * bundle.limits.stall);
    let behind = |range: Range<u64>| BESIDE_OFFSET + range.start..BESIDE_OFFSET + range.end;
    let ranges = ranges
        .into_iter()
        .map(|range| PatchRange { table: behind(range.table), frames: behind(range.frames) });
    Ok((front.remote, file.patches.into_iter().zip(ranges).collect()))
}

/// The address of another file in the same directory; a query that may grant access stays.
fn uri_beside(uri: &str, name: &str) -> Option<String> {
    let base = Url::parse(uri).ok()?;
    let mut beside = base.join(name).ok()?;
    beside.set_query(base.query());
    Some(beside.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_beside_is_reached_by_the_same_credentials() {
        for (uri, beside) in [
            ("https://h/a/2.0.twb?sig=1/2", "https://h/a/p.twb?sig=1/2"),
            ("https://h/2.0.twb", "https://h/p.twb"),
            ("file:///media/stick/update.twb", "file:///media/stick/p.twb"),
        ] {
            assert_eq!(uri_beside(uri, "p.twb").as_deref(), Some(beside));
        }
    }
}
