//! Keys and ids that were not there before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};

/// A new shared access key: 32 bytes, in base64.
pub(super) fn key() -> String {
    STANDARD.encode(bytes::<32>())
}

/// `2 * bytes` hexadecimal digits, at most 64.
pub(super) fn hex(count: usize) -> String {
    bytes::<32>().iter().take(count).map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // A system without random numbers has no TLS either, so nobody gets as far as to use zeros.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}
