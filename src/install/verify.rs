//! What an image must satisfy: a SHA-256 check value, or a minisign signature by a known key.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use bytes::Bytes;
use minisign_verify::{PublicKey, Signature, StreamVerifier};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::resume::read_prefix;
use super::slot::SlotDevice;
use super::{Feed, InstallError};
use crate::ownership;
use crate::update::{Code, KeyList, Sha256Digest};

/// A minisign file has four lines and some 300 bytes; comments may be longer.
pub const SIGNATURE_LIMIT_BYTES: usize = 4096;

/// Why an image is not the one that was meant.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nothing to verify by.
    #[error(
        "the request has no check value and {} holds no minisign key (*.pub): give fwPackageCheckValue, or install a key",
        keys.display()
    )]
    Unverifiable {
        /// The keys directory.
        keys: PathBuf,
    },
    /// Nobody's signature is known.
    #[error("only signed images are taken, and {} holds no minisign key (*.pub): install one", keys.display())]
    NoKeys {
        /// The keys directory.
        keys: PathBuf,
    },
    /// The keys directory cannot be read.
    #[error("cannot read signing keys in {}", path.display())]
    Keys {
        /// Directory or key file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A key file that is none.
    #[error("{key} is not a minisign public key")]
    BadKey {
        /// The file, or the name in a list.
        key: String,
        /// The decoder's words.
        source: minisign_verify::Error,
    },
    /// No signature beside the image.
    #[error(
        "there is no signature at {url}: sign the image with `minisign -S`{}",
        if *needed { "" } else { ", or give fwPackageCheckValue" }
    )]
    NoSignature {
        /// Without secrets.
        url: String,
        /// Whether only signed images are taken.
        needed: bool,
    },
    /// No signature in a bundle.
    #[error("the bundle at {url} is not signed: sign it with `twinbootctl bundle sign`")]
    NotSigned {
        /// Without secrets.
        url: String,
    },
    /// Something else beside the image.
    #[error("what is at {url} is not a minisign signature")]
    NotASignature {
        /// Without secrets.
        url: String,
    },
    /// Made with `minisign -l`.
    #[error(
        "the signature at {url} is of the legacy kind, which needs the whole image in memory: sign without -l"
    )]
    Legacy {
        /// Without secrets.
        url: String,
    },
    /// Signed by somebody else.
    #[error("the signature at {url} is by a key that is not in {trust}")]
    UnknownKey {
        /// Without secrets.
        url: String,
        /// Where the keys are that count.
        trust: String,
    },
    /// A list of keys that nobody vouches for, or that would be the last.
    #[error(
        "the bundle brings key list {serial}, and is not signed by a key {}: sign it by both",
        if *listed { "of that list" } else { "that counts on this device" }
    )]
    KeysNotSigned {
        /// Of the list.
        serial: u64,
        /// Whether it is a new key whose signature is missing.
        listed: bool,
        /// Of the last signature.
        source: Box<VerifyError>,
    },
    /// Two lists of one number.
    #[error(
        "the bundle brings other keys as key list {serial}, which this device has: give them the next number"
    )]
    OtherKeys {
        /// Of both.
        serial: u64,
    },
    /// Signed as another version: an older image cannot be passed off as a newer one.
    #[error(
        "the image is signed as version {signed}, and the request says {}",
        asked.as_deref().unwrap_or("none")
    )]
    OtherVersion {
        /// By the trusted comment.
        signed: String,
        /// By the request.
        asked: Option<String>,
    },
    /// Signed, but not these bytes.
    #[error("the signature does not belong to these bytes")]
    BadSignature,
    /// Another bundle than was meant.
    #[error(
        "the bundle's check value is {actual}, and was to be {expected}: a bundle's is the SHA-256 of its manifest, \
         which `twinbootctl bundle inspect` shows"
    )]
    ManifestDigest {
        /// The check value.
        expected: Sha256Digest,
        /// What the manifest gives.
        actual: Sha256Digest,
    },
    /// Other bytes than were meant.
    #[error("the image's SHA-256 is {actual}, its check value {expected}")]
    Digest {
        /// The check value.
        expected: Sha256Digest,
        /// What the bytes give.
        actual: Sha256Digest,
    },
}

impl VerifyError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unverifiable { .. } | Self::NoKeys { .. } | Self::Keys { .. } | Self::BadKey { .. } => {
                Code::Unverifiable
            }
            Self::Digest { .. } | Self::ManifestDigest { .. } => Code::DigestMismatch,
            Self::KeysNotSigned { .. } | Self::OtherKeys { .. } => Code::KeysRefused,
            _ => Code::SignatureInvalid,
        }
    }

    /// In the words of a bundle.
    pub(super) fn of_manifest(self) -> Self {
        match self {
            Self::Digest { expected, actual } => Self::ManifestDigest { expected, actual },
            other => other,
        }
    }
}

/// What an image must come with: `install.check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCheck {
    /// Nothing; but keys that are installed demand a signature where there is no check value.
    Optional,
    /// A check value, or a signature.
    Required,
    /// A signature, and it must fit the check value if there is one: who sends the request is not trusted to vouch
    /// for the image.
    Signature,
}

/// Who may sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Directory of minisign public keys (`*.pub`), which the image brings.
    pub directory: PathBuf,
    /// What an update brought: it counts alone.
    pub list: Option<KeyList>,
}

impl Trust {
    /// The keys that count; none, if nothing brings one.
    ///
    /// # Errors
    /// When one cannot be read, or is no key.
    pub fn keys(&self) -> Result<Vec<PublicKey>, VerifyError> {
        match &self.list {
            Some(list) => listed(list),
            None => Ok(read_keys(&self.directory)?.into_iter().map(|(_, key)| key).collect()),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.list {
            Some(list) => list.fmt(f),
            None => self.directory.display().fmt(f),
        }
    }
}

/// What to verify an image by; decided before anything is fetched.
#[derive(Debug)]
pub enum Rule {
    /// The check value.
    Digest(Sha256Digest),
    /// A signature by one of these keys.
    SignedBy(Vec<PublicKey>),
    /// Nothing: only where the configuration says that a check is not required.
    Unchecked,
}

impl Rule {
    /// A check value binds the request to the bytes and is enough, unless only signatures are. Without one, keys
    /// that are installed demand a signature, also where no check is required.
    ///
    /// # Errors
    /// When there is nothing to verify by, or a key cannot be read.
    pub fn decide(
        check_value: Option<Sha256Digest>,
        trust: &Trust,
        check: ImageCheck,
    ) -> Result<Self, VerifyError> {
        if let (Some(digest), ImageCheck::Optional | ImageCheck::Required) = (check_value, check) {
            return Ok(Self::Digest(digest));
        }
        let known = trust.keys()?;
        let keys = trust.directory.clone();
        match check {
            _ if !known.is_empty() => Ok(Self::SignedBy(known)),
            ImageCheck::Optional => Ok(Self::Unchecked),
            ImageCheck::Required => Err(VerifyError::Unverifiable { keys }),
            ImageCheck::Signature => Err(VerifyError::NoKeys { keys }),
        }
    }
}

/// The keys of a list.
///
/// # Errors
/// When one is no key.
pub fn listed(list: &KeyList) -> Result<Vec<PublicKey>, VerifyError> {
    let key = |(name, key): (&String, &String)| {
        PublicKey::from_base64(key).map_err(|source| VerifyError::BadKey { key: name.clone(), source })
    };
    list.trusted.iter().map(key).collect()
}

/// The keys in `*.pub` of a directory, with their files; none, if there is no such directory.
///
/// # Errors
/// When one cannot be read, or is no key.
pub fn read_keys(directory: &Path) -> Result<Vec<(PathBuf, PublicKey)>, VerifyError> {
    let failed = |source| VerifyError::Keys { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut keys = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            let text = ownership::open(&path)
                .and_then(io::read_to_string)
                .map_err(|source| VerifyError::Keys { path: path.clone(), source })?;
            let key = PublicKey::decode(&text).map_err(|source| {
                let key = path.display().to_string();
                VerifyError::BadKey { key, source }
            })?;
            keys.push((path, key));
        }
    }
    Ok(keys)
}

/// A rule with everything at hand to apply it.
#[derive(Clone)]
pub enum Check {
    /// SHA-256 of the source.
    Digest(Sha256Digest),
    /// A signature of the source.
    Signature(Box<Signed>),
    /// Takes anything.
    Unchecked,
}

/// A signature by a key that is trusted.
#[derive(Clone)]
pub struct Signed {
    key: PublicKey,
    signature: Signature,
    /// The source must be this one, too.
    check_value: Option<Sha256Digest>,
}

impl Check {
    /// By the signature in `text`, and `check_value` if there is one. For messages: where the signature was found
    /// (without secrets), and where the `keys` are.
    ///
    /// # Errors
    /// When it is no signature, of the legacy kind, or by none of `keys`.
    pub fn by_signature(
        text: &[u8],
        keys: Vec<PublicKey>,
        check_value: Option<Sha256Digest>,
        (url, trust): (&str, &Trust),
    ) -> Result<Self, VerifyError> {
        let url = url.to_owned();
        let decoded = std::str::from_utf8(text).ok().and_then(|text| Signature::decode(text).ok());
        let Some(signature) = decoded else { return Err(VerifyError::NotASignature { url }) };
        for key in keys {
            match key.verify_stream(&signature).map(drop) {
                Ok(()) => return Ok(Self::Signature(Box::new(Signed { key, signature, check_value }))),
                Err(minisign_verify::Error::UnsupportedLegacyMode) => {
                    return Err(VerifyError::Legacy { url });
                }
                Err(_) => {}
            }
        }
        Err(VerifyError::UnknownKey { url, trust: trust.to_string() })
    }

    /// Whether the image may be called by this version. A signature that names one, by `version=...` in its trusted
    /// comment, is for that version alone.
    ///
    /// # Errors
    /// When it names another.
    pub fn admits_version(&self, asked: Option<&str>) -> Result<(), VerifyError> {
        let Self::Signature(by) = self else { return Ok(()) };
        let mut words = by.signature.trusted_comment().split_whitespace();
        match words.find_map(|word| word.strip_prefix("version=")) {
            Some(signed) if asked != Some(signed) => {
                Err(VerifyError::OtherVersion { signed: signed.to_owned(), asked: asked.map(str::to_owned) })
            }
            _ => Ok(()),
        }
    }

    /// Of all bytes at once; gives their SHA-256.
    ///
    /// # Errors
    /// When they are not those that were meant.
    pub fn judge(&self, bytes: &[u8]) -> Result<Sha256Digest, VerifyError> {
        let mut verifier = self.start()?;
        verifier.update(bytes);
        verifier.finish()
    }

    fn start(&self) -> Result<Verifier<'_>, VerifyError> {
        let signature = match self {
            Self::Signature(by) => {
                Some(by.key.verify_stream(&by.signature).map_err(|_| VerifyError::BadSignature)?)
            }
            Self::Digest(_) | Self::Unchecked => None,
        };
        Ok(Verifier { check: self, sha256: Sha256::new(), signature })
    }
}

/// Bytes of the source; not known to be good before the end.
#[derive(Debug)]
pub struct Chunk {
    /// In order.
    pub bytes: Bytes,
    /// Over everything before them.
    pub before: Sha256,
}

/// What the decoder is told.
#[derive(Debug)]
pub enum Seen {
    /// The next bytes.
    Chunks(Vec<Chunk>),
    /// The source is complete, and the one that was meant.
    Verified(Sha256Digest),
}

/// The second stage: hands the source on as it is seen, and says at the end whether it was the right one.
///
/// `resumed` is what an earlier attempt had seen: the digest over the source, and how many bytes of it are in
/// the slot as they are, for a signature, which has no state to go on from.
///
/// # Errors
/// [`InstallError::Interrupted`] where a neighbour stopped; else why these are not the right bytes.
pub fn run(
    check: &Check,
    resumed: (Sha256, u64),
    (device, cancel): (&dyn SlotDevice, &watch::Receiver<bool>),
    chunks: &mut mpsc::Receiver<Feed>,
    seen: &SyncSender<Seen>,
) -> Result<(), InstallError> {
    let mut verifier = check.start()?;
    match resumed {
        (_, prefix_bytes) if verifier.signature.is_some() && prefix_bytes > 0 => {
            read_prefix(device, prefix_bytes, |bytes| {
                verifier.update(bytes);
                if *cancel.borrow() { Err(InstallError::Cancelled) } else { Ok(()) }
            })?;
        }
        (sha256, _) => verifier.sha256 = sha256,
    }
    let hand_on = |message| seen.send(message).map_err(|_| InstallError::Interrupted);
    loop {
        match chunks.blocking_recv() {
            Some(Feed::Chunks(chunks)) => {
                let see = |bytes: Bytes| {
                    let before = verifier.sha256.clone();
                    verifier.update(&bytes);
                    Chunk { bytes, before }
                };
                hand_on(Seen::Chunks(chunks.into_iter().map(see).collect()))?;
            }
            Some(Feed::End) => return hand_on(Seen::Verified(verifier.finish()?)),
            None => return Err(InstallError::Interrupted),
        }
    }
}

/// Sees every byte of the source once, in order.
struct Verifier<'a> {
    check: &'a Check,
    /// Of the bytes seen so far.
    sha256: Sha256,
    signature: Option<StreamVerifier<'a>>,
}

impl Verifier<'_> {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(signature) = &mut self.signature {
            signature.update(bytes);
        }
    }

    /// The source has ended; gives its SHA-256.
    fn finish(self) -> Result<Sha256Digest, VerifyError> {
        let actual = Sha256Digest(self.sha256.finalize().into());
        let expected = match self.check {
            Check::Digest(expected) => Some(*expected),
            Check::Signature(by) => by.check_value,
            Check::Unchecked => None,
        };
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(VerifyError::Digest { expected, actual });
        }
        match (self.check, self.signature) {
            (Check::Signature(_), Some(mut signature)) => {
                signature.finalize().map_err(|_| VerifyError::BadSignature)?;
                Ok(actual)
            }
            (Check::Signature(_), None) => Err(VerifyError::BadSignature),
            (Check::Digest(_) | Check::Unchecked, _) => Ok(actual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows F5.
    #[test]
    fn without_check_value_and_keys_nothing_is_taken_unless_the_configuration_says_so() {
        let keys = tempfile::tempdir().unwrap();
        let missing = keys.path().join("missing");
        let trust = |directory: &Path| Trust { directory: directory.to_owned(), list: None };
        for directory in [keys.path(), &missing] {
            let refused = Rule::decide(None, &trust(directory), ImageCheck::Required).unwrap_err();
            assert_eq!(refused.code(), Code::Unverifiable);
            assert!(matches!(
                Rule::decide(None, &trust(directory), ImageCheck::Optional),
                Ok(Rule::Unchecked)
            ));
        }
        fs::File::create(keys.path().join("bad.pub")).unwrap();
        let refused = Rule::decide(None, &trust(keys.path()), ImageCheck::Optional).unwrap_err();
        assert!(matches!(refused, VerifyError::BadKey { .. }));
    }
}
