//! Shared access signatures, as the hub reads them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;

/// A token, taken apart.
#[derive(Debug)]
pub(super) struct Token {
    /// The text that was signed: `sr` exactly as it arrived, a line feed, `se` exactly as it arrived. Clients
    /// escape `sr` in different ways, so a text put together anew would not verify.
    signed: String,
    signature: Vec<u8>,
    /// The hub it is made out for, without the port.
    host: String,
    /// The path under the host, without slashes at its ends; empty for a token that covers the whole hub.
    resource: String,
    /// Seconds since 1970.
    pub expiry: i64,
    /// The shared access policy whose key signed it; none for a device's own key.
    pub policy: Option<String>,
}

impl Token {
    /// Reads `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`, fields in any order.
    pub fn parse(text: &str) -> Option<Self> {
        let fields = text.strip_prefix("SharedAccessSignature ")?;
        let field = |name: &str| {
            let mut pairs = fields.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let (resource, expiry) = (field("sr")?, field("se")?);
        let signature = percent_decode_str(field("sig")?).decode_utf8().ok()?;
        let decoded = percent_decode_str(resource).decode_utf8().ok()?;
        let (host, path) = decoded.split_once('/').unwrap_or((&decoded, ""));
        // Old C clients append the API version to the resource.
        let path = path.split_once("/api-version=").map_or(path, |(path, _)| path);
        Some(Self {
            signed: format!("{resource}\n{expiry}"),
            signature: STANDARD.decode(signature.as_bytes()).ok()?,
            host: host.split_once(':').map_or(host, |(name, _port)| name).to_owned(),
            resource: path.trim_matches('/').to_owned(),
            expiry: expiry.parse().ok()?,
            policy: field("skn").filter(|policy| !policy.is_empty()).map(String::from),
        })
    }

    /// Whether the base64 `key` made the signature.
    pub fn is_signed_with(&self, key: &str) -> bool {
        let Ok(key) = STANDARD.decode(key) else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::verify(&key, self.signed.as_bytes(), &self.signature).is_ok()
    }

    /// Whether the token is for one of `hosts`.
    pub fn is_for(&self, hosts: &[String]) -> bool {
        hosts.iter().any(|host| host.eq_ignore_ascii_case(&self.host))
    }

    /// Whether the token is good for `path`: `/a/b` covers `/a/b/c` and not `/a/bc`.
    pub fn covers(&self, path: &str) -> bool {
        let mut asked = path.trim_matches('/').split('/');
        self.resource.is_empty()
            || self.resource.split('/').all(|part| asked.next().is_some_and(|a| a.eq_ignore_ascii_case(part)))
    }
}

/// Makes a policy's token for a whole hub; none if `key` is not base64.
pub(super) fn policy_token(host: &str, policy: &str, key: &str, expiry: i64) -> Option<String> {
    let resource = utf8_percent_encode(host, NON_ALPHANUMERIC);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).ok()?);
    let signature = STANDARD.encode(hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes()));
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    Some(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_made_by_microsofts_kits_verify() {
        let device = "SharedAccessSignature sr=localhost%3A18883%2Fdevices%2Fdev-2&sig=KdKCiR3%2BqO825vYCPIECCfgMU8BtBirTTLM6qUQR8Xw%3D&se=1795423419";
        let token = Token::parse(device).unwrap();
        assert!(token.is_signed_with(&STANDARD.encode([b'k'; 32])));
        assert!(token.covers("devices/dev-2"));
        assert!(!token.covers("devices/dev-22"));
        assert!(!token.covers("devices"));

        let service = "SharedAccessSignature sr=localhost%3A8443&sig=TRu7iR546JQpqR1mvLY/jQdCSVFn3qQZQS94qsQugi4%3D&se=1795423079&skn=iothubowner";
        let token = Token::parse(service).unwrap();
        assert!(token.is_signed_with(&STANDARD.encode([b's'; 32])));
        assert!(!token.is_signed_with(&STANDARD.encode([b't'; 32])));
        assert!(token.covers("twins/dev-2/methods"));
        assert_eq!(token.policy.as_deref(), Some("iothubowner"));
        assert_eq!(token.expiry, 1_795_423_079);
    }

    #[test]
    fn a_token_of_our_own_verifies() {
        let key = STANDARD.encode([b'k'; 32]);
        let token = Token::parse(&policy_token("localhost", "iothubowner", &key, 5).unwrap()).unwrap();
        assert!(token.is_signed_with(&key) && token.covers("twins/dev-1"));
        assert_eq!((token.expiry, token.policy.as_deref()), (5, Some("iothubowner")));
    }

    #[test]
    fn a_token_for_another_hub_is_told_apart() {
        let hosts = ["localhost".to_owned()];
        let token = |host| Token::parse(&format!("SharedAccessSignature sr={host}&sig=AAAA&se=1")).unwrap();
        assert!(token("LOCALHOST%3A8443%2Fdevices%2Fd").is_for(&hosts));
        assert!(!token("other.azure-devices.net").is_for(&hosts));
    }

    #[test]
    fn a_text_without_its_fields_is_no_token() {
        assert!(Token::parse("SharedAccessSignature sr=localhost&sig=AAAA").is_none());
        assert!(Token::parse("sr=localhost&sig=AAAA&se=1").is_none());
    }
}
