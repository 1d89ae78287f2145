use std::collections::BTreeMap;
use std::path::PathBuf;

use minisign_verify::PublicKey;
use twinboot::bundle::{HEADER_BYTES, Header, Signatures};
use twinboot::install::verify::{Check, Trust, listed};
use twinboot::update::KeyList;

/// A bundle that minisign signed.
const BUNDLE: &[u8] = include_bytes!("../../tests/data/bundle/tiny.twb");
const SIGNATURE: &str = include_str!("../../tests/data/bundle/tiny.minisig");
const KEY: &str = include_str!("../../tests/data/bundle/tiny.pub");

/// minisign: one input as a signature, as a key, in a list of keys, as what is signed, and as a bundle's signatures.
pub fn signatures(data: &[u8]) {
    let signed = signed();
    let key = PublicKey::decode(KEY).expect("minisign made it");
    as_signature(data, &key, signed);
    as_signed(data, &key, signed);
    if let Ok(signatures) = Signatures::parse(data) {
        let bytes = signatures.to_bytes();
        assert!(signatures.texts().len() <= 8);
        assert_eq!(Signatures::parse(&bytes).expect("what was written is read"), signatures);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        as_key(text, signed);
    }
}

/// The manifest.
fn signed() -> &'static [u8] {
    let header = Header::parse(&BUNDLE[..HEADER_BYTES]).expect("it is a bundle");
    &BUNDLE[HEADER_BYTES..][..header.manifest_bytes as usize]
}

fn check(signature: &[u8], key: PublicKey) -> Option<Check> {
    let trust = Trust { directory: PathBuf::new(), list: None };
    Check::by_signature(signature, vec![key], None, ("here", &trust)).ok()
}

/// What verifies is the signature that was made: nobody can make another one for the same bytes.
fn as_signature(data: &[u8], key: &PublicKey, signed: &[u8]) {
    let Some(check) = check(data, key.clone()) else { return };
    let mut other = signed.to_vec();
    other[0] ^= 1;
    assert!(check.judge(&other).is_err(), "other bytes are not signed");
    if check.judge(signed).is_ok() {
        let text = std::str::from_utf8(data).expect("a signature is text");
        assert_eq!(essence(text), essence(SIGNATURE));
    }
}

/// All lines but the comment that is not signed.
fn essence(signature: &str) -> Vec<&str> {
    signature.lines().skip(1).take(3).map(str::trim_end).collect()
}

fn as_signed(data: &[u8], key: &PublicKey, signed: &[u8]) {
    let check = check(SIGNATURE.as_bytes(), key.clone()).expect("minisign made it");
    assert_eq!(check.judge(data).is_ok(), data == signed);
}

/// Another key does not verify what it did not sign. The first two letters of a key name its algorithm, `Ed` or `ED`,
/// which are the same for a key.
fn as_key(text: &str, signed: &[u8]) {
    let of_list = KeyList { serial: 1, trusted: BTreeMap::from([("key".to_owned(), text.to_owned())]) };
    let of_list = listed(&of_list).ok().and_then(|mut keys| keys.pop());
    for key in PublicKey::decode(text).ok().into_iter().chain(of_list) {
        if check(SIGNATURE.as_bytes(), key).is_some_and(|check| check.judge(signed).is_ok()) {
            let (_, of_key) = KEY.lines().nth(1).expect("a key file has two lines").split_at(2);
            assert!(text.contains(of_key), "{text}");
        }
    }
}
