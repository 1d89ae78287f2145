//! Values that must not reach a log as they are.

use std::fmt;

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
}
