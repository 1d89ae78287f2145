//! The signatures of a manifest: minisign texts, one after the other.

use super::{BundleError, SIGNATURES_BYTES_MAX, SIGNATURES_MAX};

/// Comment, signature, trusted comment, signature of both.
const LINES: usize = 4;

/// As they are stored: four lines each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures {
    texts: Vec<String>,
}

impl Signatures {
    /// Reads the part of a bundle, or a `.minisig` file.
    ///
    /// # Errors
    /// Other lines than minisign writes, too many signatures, too long ones.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        BundleError::at_most("the signatures' length", bytes.len() as u64, SIGNATURES_BYTES_MAX.into())?;
        let text = std::str::from_utf8(bytes).map_err(|_| BundleError::NotASignature { line: 1 })?;
        let lines: Vec<&str> = text.split_terminator('\n').map(|line| line.trim_end_matches('\r')).collect();
        BundleError::at_most(
            "the number of signatures",
            (lines.len() / LINES) as u64,
            SIGNATURES_MAX as u64,
        )?;
        let mut texts = Vec::new();
        for (number, lines) in lines.chunks(LINES).enumerate() {
            let is_one = matches!(lines, [first, _, third, _]
                if first.starts_with("untrusted comment: ") && third.starts_with("trusted comment: "));
            let text = lines.iter().flat_map(|line| [line, "\n"]).collect::<String>();
            if !is_one || minisign_verify::Signature::decode(&text).is_err() {
                return Err(BundleError::NotASignature { line: number * LINES + 1 });
            }
            texts.push(text);
        }
        Ok(Self { texts })
    }

    /// One more; the same one is kept once.
    ///
    /// # Errors
    /// Too many, or too long.
    pub fn add(&mut self, others: &Self) -> Result<(), BundleError> {
        for text in &others.texts {
            if !self.texts.contains(text) {
                self.texts.push(text.clone());
            }
        }
        *self = Self::parse(self.to_bytes().as_slice())?;
        Ok(())
    }

    /// Each as a `.minisig` file has it.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// As they are stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.texts.concat().into_bytes()
    }
}
