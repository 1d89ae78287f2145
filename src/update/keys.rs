//! Whose signatures count, once an update has said so.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The keys that count in place of all others. A bundle brings it; it is in force once that bundle is committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyList {
    /// Of two lists the one with the higher number is the newer; from 1.
    pub serial: u64,
    /// minisign public keys in base64, by a name for people. Never empty.
    pub trusted: BTreeMap<String, String>,
}

impl fmt::Display for KeyList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key list {}", self.serial)?;
        for (index, (name, key)) in self.trusted.iter().enumerate() {
            let before = if index == 0 { ": " } else { ", " };
            write!(f, "{before}{name} ({})", key_id(key))?;
        }
        Ok(())
    }
}

/// The number by which `minisign` calls a public key in base64.
#[must_use]
pub fn key_id(key: &str) -> String {
    // Two bytes of algorithm, then the number, least byte first.
    let bytes = STANDARD.decode(key).unwrap_or_default();
    bytes.get(2..10).unwrap_or_default().iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_called_as_minisign_calls_it() {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let list = KeyList { serial: 3, trusted: [("release".to_owned(), key.to_owned())].into() };
        assert_eq!(list.to_string(), "key list 3: release (E7620F1842B4E81F)");
        assert_eq!(key_id("no key"), "");
    }
}
