//! Keys, and what they sign, by the real `minisign`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use tempfile::TempDir;
use twinboot::update::KeyList;

/// Three keys of a release engineer's.
pub struct Safe(TempDir);

impl Safe {
    pub fn new() -> Self {
        let safe = Self(tempfile::tempdir().unwrap());
        for name in ["old", "new", "other"] {
            let (public, secret) = (safe.path(&format!("{name}.pub")), safe.path(&format!("{name}.key")));
            minisign(&["-G", "-W", "-p", &public, "-s", &secret]);
        }
        safe
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn public(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        text.lines().nth(1).unwrap().to_owned()
    }

    pub fn list(&self, serial: u64, names: &[&str]) -> KeyList {
        let trusted: BTreeMap<_, _> =
            names.iter().map(|name| ((*name).to_owned(), self.public(name))).collect();
        KeyList { serial, trusted }
    }

    pub fn signature(&self, name: &str, manifest: &[u8]) -> Vec<u8> {
        fs::write(self.path("manifest"), manifest).unwrap();
        let (key, signature) = (self.path(&format!("{name}.key")), self.path("sig"));
        minisign(&["-S", "-W", "-s", &key, "-x", &signature, "-m", &self.path("manifest")]);
        fs::read(signature).unwrap()
    }
}

fn minisign(arguments: &[&str]) {
    assert!(Command::new("minisign").args(arguments).output().unwrap().status.success());
}
