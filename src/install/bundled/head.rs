//! The beginning of a bundle: read as far as it is needed, and trusted before it is believed.

use bytes::{Bytes, BytesMut};
use minisign_verify::PublicKey;

use super::super::fetch::Source;
use super::super::parts::Remote;
use super::super::verify::{self, Check, Rule, Trust, VerifyError};
use super::super::{InstallError, Job};
use crate::bundle::{BundleError, HEADER_BYTES, Header, Index, Layout, MAGIC, Manifest, Signatures};
use crate::redact::display_url;
use crate::update::{KeyList, Sha256Digest};

/// The header, and with it mostly the manifest. What is too much is of the index.
const FIRST_BYTES: u64 = 4096;

/// A file that is read from its beginning.
#[derive(Debug)]
pub struct Front {
    /// The version of it that is there.
    pub remote: Remote,
    source: Source,
    /// Came, and was not taken yet.
    ahead: BytesMut,
    /// Of `ahead`.
    offset: u64,
}

impl Front {
    /// Asks for the first bytes.
    ///
    /// # Errors
    /// The source.
    pub async fn open(mut remote: Remote) -> Result<Self, InstallError> {
        let source = remote.open(0..FIRST_BYTES).await?;
        remote.validator = Some(source.validator());
        Ok(Self { remote, source, ahead: BytesMut::new(), offset: 0 })
    }

    /// Whether the server gives everything, and not the parts that it is asked for.
    pub fn is_whole(&self) -> bool {
        !self.source.is_part()
    }

    /// Whether it begins as a bundle does.
    ///
    /// # Errors
    /// The source.
    pub async fn has_magic(&mut self) -> Result<bool, InstallError> {
        Ok(*self.take(MAGIC.len()).await? == MAGIC)
    }

    /// From now on any version of the same size is taken for the one that is there: replicas of a server need not call
    /// it the same.
    pub fn take_any_version(&mut self) {
        self.remote.validator = Some(self.source.validator().of_any_version());
    }

    /// The next `len` bytes, or less at the end of the file.
    async fn take(&mut self, len: usize) -> Result<Bytes, InstallError> {
        while self.ahead.len() < len {
            if let Some(bytes) = self.remote.next(&mut self.source).await? {
                self.ahead.extend_from_slice(&bytes);
                continue;
            }
            let (from, end) = (self.offset + self.ahead.len() as u64, self.offset + len as u64);
            let ended = self.source.total_bytes().is_some_and(|total| from >= total);
            if self.is_whole() || ended {
                break;
            }
            self.source = self.remote.open(from..end).await?;
        }
        let taken = self.ahead.split_to(len.min(self.ahead.len())).freeze();
        self.offset += taken.len() as u64;
        Ok(taken)
    }

    /// Header, manifest, signatures.
    ///
    /// # Errors
    /// The source; no bundle, or not all of that.
    pub async fn signed(&mut self) -> Result<(Header, Bytes, Bytes), InstallError> {
        let header = Header::parse(&self.take(HEADER_BYTES).await?)?;
        let text = self.take(header.manifest_bytes as usize).await?;
        let signatures = self.take(header.signatures_bytes as usize).await?;
        match header.body_offset().saturating_sub(self.offset) {
            0 => Ok((header, text, signatures)),
            missing_bytes => Err(BundleError::Truncated { part: "manifest", missing_bytes }.into()),
        }
    }

    /// Whether the file ends where its last part does, as far as the server says.
    pub fn ends(&self, part: &'static str, end: u64) -> Result<(), BundleError> {
        let actual = self.source.total_bytes().unwrap_or(end);
        match actual.checked_sub(end) {
            Some(0) => Ok(()),
            Some(extra_bytes) => Err(BundleError::Trailing { part, extra_bytes }),
            None => Err(BundleError::Truncated { part, missing_bytes: end - actual }),
        }
    }

    /// What follows, as it comes, and where it is in the file; `None` at the end. Only where all of it comes.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, InstallError> {
        let bytes = match self.ahead.split().freeze() {
            ahead if ahead.is_empty() => self.remote.next(&mut self.source).await?.unwrap_or_default(),
            ahead => ahead,
        };
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        Ok(Some((offset, bytes)).filter(|(_, bytes)| !bytes.is_empty()))
    }
}

/// All that stands before the pieces.
#[derive(Debug)]
pub struct Head {
    /// What the bundle brings.
    pub manifest: Manifest,
    /// Of the manifest: the bundle's name.
    pub digest: Sha256Digest,
    /// Where everything is.
    pub layout: Layout,
    /// Whose signatures are to count once this is committed.
    pub keys: Option<KeyList>,
}

impl Head {
    /// Reads header, manifest and signatures, and lets `rule` judge them.
    ///
    /// # Errors
    /// The source; no bundle, or one that is not to be trusted.
    pub async fn read(front: &mut Front, rule: &Rule, job: &Job) -> Result<Self, InstallError> {
        let (header, text, signatures) = front.signed().await?;
        let digest = judge(&text, &signatures, rule, job)?;
        let manifest = Manifest::parse(&text)?;
        let keys = key_list(&manifest, &text, &signatures, job).await?;
        let layout = manifest.layout(header);
        front.ends("chunks", layout.pieces.end)?;
        Ok(Self { manifest, digest, layout, keys })
    }

    /// Reads the index, which follows.
    ///
    /// # Errors
    /// The source; another index than the manifest names, or one that makes no sense.
    pub async fn index(&self, front: &mut Front) -> Result<Index, InstallError> {
        let bytes = front.take(self.manifest.index.size_bytes as usize).await?;
        Ok(Index::parse(&bytes, &self.manifest)?)
    }
}

/// Nothing of a manifest is believed before this; gives its digest.
fn judge(text: &[u8], signatures: &[u8], rule: &Rule, job: &Job) -> Result<Sha256Digest, InstallError> {
    let judged = match rule {
        Rule::Unchecked => Check::Unchecked.judge(text),
        Rule::Digest(digest) => Check::Digest(*digest).judge(text),
        Rule::SignedBy(keys) => {
            let found = (display_url(&job.spec.uri), &job.trust);
            by_any_signature(text, signatures, keys, job.spec.check_value, found)?
        }
    };
    judged.map_err(|error| VerifyError::of_manifest(error).into())
}

/// The list of keys that the bundle brings, if it is newer than the one in force. It must be signed by a key that
/// counts, whatever the images are verified by; and by one that is to count, since a list whose keys nobody has would
/// be the last.
async fn key_list(
    manifest: &Manifest,
    text: &[u8],
    signatures: &[u8],
    job: &Job,
) -> Result<Option<KeyList>, InstallError> {
    let Some(list) = &manifest.keys else { return Ok(None) };
    match &job.trust.list {
        Some(ours) if ours == list || list.serial < ours.serial => return Ok(None),
        Some(ours) if list.serial == ours.serial => {
            return Err(VerifyError::OtherKeys { serial: list.serial }.into());
        }
        _ => {}
    }
    let trust = job.trust.clone();
    let ours = tokio::task::spawn_blocking(move || trust.keys());
    let ours = ours.await.map_err(|_| InstallError::Interrupted)??;
    for (keys, listed) in [(ours, false), (verify::listed(list)?, true)] {
        let found = (display_url(&job.spec.uri), &job.trust);
        by_any_signature(text, signatures, &keys, job.spec.check_value, found)?.map_err(|error| {
            let source = Box::new(VerifyError::of_manifest(error));
            VerifyError::KeysNotSigned { serial: list.serial, listed, source }
        })?;
    }
    Ok(Some(list.clone()))
}

/// Whether one of the signatures is of `text` and by one of the keys; what was found where is for messages.
pub fn by_any_signature(
    text: &[u8],
    signatures: &[u8],
    keys: &[PublicKey],
    check_value: Option<Sha256Digest>,
    (url, trust): (String, &Trust),
) -> Result<Result<Sha256Digest, VerifyError>, InstallError> {
    let mut judged = Err(VerifyError::NotSigned { url: url.clone() });
    for signature in Signatures::parse(signatures)?.texts() {
        judged = Check::by_signature(signature.as_bytes(), keys.to_vec(), check_value, (&url, trust))
            .and_then(|check| check.judge(text));
        if judged.is_ok() {
            break;
        }
    }
    Ok(judged)
}
