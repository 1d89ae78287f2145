//! Values that must not reach a log as they are.

use std::fmt;
use std::sync::LazyLock;

use regex_lite::{Captures, Regex};
use url::Url;

/// A secret text; prints as `[secret]`, and is read only by [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for the wire, never for a message.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// An address as it may be shown: a SAS link carries its credential in the query, a URL may carry a
/// password before the host.
#[must_use]
pub fn display_url(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "[not an address]".to_owned() };
    // Neither can fail to matter: a URL that refuses a user name has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let had_query = url.query().is_some();
    url.set_query(None);
    url.set_fragment(None);
    if had_query { format!("{url}?[secret]") } else { url.to_string() }
}

/// What a secret looks like in a text that others wrote, and what it becomes. The order matters: a key block goes
/// before its lines are looked at one by one.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let patterns = [
        // A block that is cut off counts to the end of the text.
        (
            r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)",
            "[secret key]",
        ),
        (r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#\x22'<>]*@", "${1}[secret]@"),
        (r"(://[^\s?\x22'<>]+)\?[^\s\x22'<>]+", "${1}?[secret]"),
        (r"(?i)(authorization\x22?\s*[:=]\s*\x22?)[^\r\n\x22]+", "${1}[secret]"),
        (r"(?i)(bearer\s+)[^\s\x22',;]+", "${1}[secret]"),
        // In quotes, in quotes of JSON within JSON, or up to the next that can be no part of it.
        (
            r#"(?ix)( (?: sharedaccesskey | sharedaccesssignature | accountkey | api[_-]?key | private[_-]?key | sig
               | signature | password | passwd | passphrase | pwd | psk | secret | token | credential )
               \\?["']? \s* (?: = | : | %3d ) \s* )
               (?: \\"[^"\\]* | "(?: [^"\\\n] | \\. )*"? | '[^'\n]*'? | [^\s"'&;]+ )"#,
            "${1}[secret]",
        ),
    ];
    // All of them are good: the test below has a line for each.
    patterns.into_iter().filter_map(|(pattern, to)| Some((Regex::new(pattern).ok()?, to))).collect()
});

/// Keys in base64, which has both cases and digits. Hexadecimal digests have one case, and are no secret.
static BASE64: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("[A-Za-z0-9+/]{40,}={0,2}").ok());

/// A text as it may leave the device: without keys, passwords, tokens, credentials and queries of addresses. Rather
/// takes too much than too little.
#[must_use]
pub fn redacted(text: &str) -> String {
    let replace = |text: String, (pattern, to): &(Regex, &str)| pattern.replace_all(&text, *to).into_owned();
    let text = PATTERNS.iter().fold(text.to_owned(), replace);
    let is_key = |run: &str| {
        run.contains(|c: char| c.is_ascii_uppercase())
            && run.contains(|c: char| c.is_ascii_lowercase())
            && run.contains(|c: char| c.is_ascii_digit())
    };
    let replace = |run: &Captures<'_>| {
        let run = run.get(0).map_or("", |run| run.as_str());
        if is_key(run) { "[secret]".to_owned() } else { run.to_owned() }
    };
    match &*BASE64 {
        Some(base64) => base64.replace_all(&text, replace).into_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_address_has_no_credentials() {
        let shown = display_url("https://user:word@host.example/a.img?sig=abc&se=1#frag");
        assert_eq!(shown, "https://host.example/a.img?[secret]");
        assert_eq!(display_url("not a url?sig=abc"), "[not an address]");
        assert_eq!(display_url("https://host.example/a.img"), "https://host.example/a.img");
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new("key")), "[secret]");
    }

    #[test]
    fn what_others_wrote_loses_its_secrets() {
        const KEY: &str = "QEM5tX0vZkq2mJ8wYbR1nPf7sLd4uGh3oTa6iVcKxNe=";
        let digest = "1f".repeat(32);
        for (secret, kept) in [
            (format!("HostName=h.example;DeviceId=d;SharedAccessKey={KEY}"), "DeviceId=d;"),
            ("SharedAccessSignature sr=h&sig=h1dden%3D&se=17".to_owned(), "&se=17"),
            (
                "fetch https://user:h1dden@h.example/a.img?X-Amz-Signature=h1dden done".to_owned(),
                "h.example/a.img?[",
            ),
            (
                r#"{"fwPackageUri":"https://h.example/a?sv=1\u0026sig=h1dden","n":1}"#.to_owned(),
                r#"","n":1}"#,
            ),
            (r#"{"password": "h1dden \" h1dden", "n": 1}"#.to_owned(), r#""n": 1"#),
            (r#"say {\"token\":\"h1dden\"}"#.to_owned(), "say"),
            ("MQTT_PASSWORD='h1dden h1dden' next".to_owned(), " next"),
            ("Authorization: Basic h1dden h1dden\nnext".to_owned(), "\nnext"),
            ("curl -H 'X: bearer h1dden' next".to_owned(), " next"),
            (format!("found {KEY} in memory"), " in memory"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nh1dden\n-----END EC PRIVATE KEY-----\nnext".to_owned(),
                "\nnext",
            ),
            ("first -----BEGIN PRIVATE KEY-----\nh1dden\nh1dden".to_owned(), "first"),
            (format!("digest {digest} sig=h1dden"), &digest),
            ("root=PARTUUID=4f68bce3-e8cd-4db1-96e7-fbcaf984b709 psk=h1dden".to_owned(), "fbcaf984b709 "),
        ] {
            let shown = redacted(&secret);
            assert!(!shown.contains("h1dden") && !shown.contains(KEY), "{shown}");
            assert!(shown.contains(kept) && shown.contains("[secret"), "{shown}");
        }
        let harmless = "update fw-1: slot b runs on trial; /dev/disk/by-partlabel/rootfs_b";
        assert_eq!(redacted(harmless), harmless);
    }
}
