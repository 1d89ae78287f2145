//! Numbers and digests in the binary parts.

use super::BundleError;
use crate::update::Sha256Digest;

/// A cursor over one part.
pub struct Reader<'a> {
    part: &'static str,
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Reader<'a> {
    pub fn new(part: &'static str, bytes: &'a [u8]) -> Self {
        Self { part, rest: bytes, offset: 0 }
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BundleError> {
        let Some((array, rest)) = self.rest.split_first_chunk::<N>() else {
            let missing_bytes = (N - self.rest.len()) as u64;
            return Err(BundleError::Truncated { part: self.part, missing_bytes });
        };
        self.rest = rest;
        self.offset += N as u64;
        Ok(*array)
    }

    pub fn u32(&mut self) -> Result<u32, BundleError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn digest(&mut self) -> Result<Sha256Digest, BundleError> {
        Ok(Sha256Digest(self.array()?))
    }

    /// LEB128: seven bits a byte, the lowest first, in the fewest bytes.
    pub fn number(&mut self) -> Result<u64, BundleError> {
        let malformed = BundleError::Number { part: self.part, offset: self.offset };
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed)
    }

    /// A length, an offset or a count that fits 32 bits and is at most `limit`.
    pub fn u32_up_to(&mut self, what: &'static str, limit: u32) -> Result<u32, BundleError> {
        let value = self.number()?;
        u32::try_from(value).ok().filter(|value| *value <= limit).ok_or(BundleError::TooLarge {
            what,
            value,
            limit: limit.into(),
        })
    }

    /// A signed number: 0, -1, 1, -2, …
    pub fn signed(&mut self) -> Result<i64, BundleError> {
        let value = self.number()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub fn finish(self) -> Result<(), BundleError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(BundleError::Trailing { part: self.part, extra_bytes: extra as u64 }),
        }
    }
}

/// What [`Reader::number`] reads.
#[expect(clippy::cast_possible_truncation, reason = "masked to seven bits")]
pub fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// What [`Reader::signed`] reads.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_number(out, (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_read_back(unsigned: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, unsigned);
            put_signed(&mut bytes, signed);
            let mut reader = Reader::new("test", &bytes);
            prop_assert_eq!(reader.number().unwrap(), unsigned);
            prop_assert_eq!(reader.signed().unwrap(), signed);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn a_number_has_one_spelling() {
        for bytes in
            [&[0x80, 0x00][..], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(
                matches!(Reader::new("test", bytes).number(), Err(BundleError::Number { .. })),
                "{bytes:?}"
            );
        }
        assert!(matches!(Reader::new("test", &[0x80]).number(), Err(BundleError::Truncated { .. })));
    }
}
