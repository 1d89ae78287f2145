//! Inputs of several parts.

/// A line of its own between two parts: a text that people can write, and that a dictionary can hold.
const SEPARATOR: &[u8] = b"\n%%\n";

/// The part before the first separator, and what follows it.
pub fn split(data: &[u8]) -> (&[u8], Option<&[u8]>) {
    match data.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        Some(at) => (&data[..at], Some(&data[at + SEPARATOR.len()..])),
        None => (data, None),
    }
}
