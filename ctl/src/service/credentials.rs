//! The connection string of a service, and the tokens made of it.

use std::str::FromStr;
use std::time::Duration;

use twinboot::hub::auth::{AuthError, SasToken};
use twinboot::redact::Secret;
use twinboot::system::unix_now;

/// Signing costs nothing, so each request has a token of its own: it must only outlive that request and
/// the few minutes that two clocks may differ by.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Why a connection string was not taken. Never holds a part that could be a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("part {position} of the connection string is not `Name=value`")]
    NotAPair { position: usize },
    #[error("the connection string has no {name}")]
    Missing { name: &'static str },
    #[error("HostName in the connection string is neither `host` nor `host:port`")]
    InvalidHost,
    #[error("this is the connection string of a device: take that of a policy with ServiceConnect")]
    OfADevice,
    #[error(transparent)]
    Key(#[from] AuthError),
}

/// Who asks, and which hub.
#[derive(Clone, Debug)]
pub struct Credentials {
    host_name: String,
    port: Option<u16>,
    policy: String,
    key: Secret,
}

impl Credentials {
    /// `host`, or `host:port`.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host_name),
            None => self.host_name.clone(),
        }
    }

    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// A new token.
    pub fn token(&self) -> Result<SasToken, AuthError> {
        SasToken::for_service(&self.host_name, &self.policy, &self.key, unix_now(), TOKEN_LIFE)
    }
}

impl FromStr for Credentials {
    type Err = CredentialsError;

    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        let (mut host, mut policy, mut key) = (None, None, None);
        for (index, part) in text.trim().split(';').enumerate().filter(|(_, part)| !part.trim().is_empty()) {
            // Keys end in `=`, so only the first one separates.
            let not_a_pair = CredentialsError::NotAPair { position: index + 1 };
            let (name, value) = part.split_once('=').ok_or(not_a_pair)?;
            match name.trim().to_ascii_lowercase().as_str() {
                "hostname" => host = Some(value.trim()),
                "sharedaccesskeyname" => policy = Some(value.trim()),
                "sharedaccesskey" => key = Some(value.trim()),
                "deviceid" => return Err(CredentialsError::OfADevice),
                // What Azure may add one day is no reason to refuse the rest.
                _ => {}
            }
        }
        let (host_name, port) = split_host(host.ok_or(CredentialsError::Missing { name: "HostName" })?)?;
        let policy = policy.ok_or(CredentialsError::Missing { name: "SharedAccessKeyName" })?.to_owned();
        let key = Secret::new(key.ok_or(CredentialsError::Missing { name: "SharedAccessKey" })?);
        let credentials = Self { host_name, port, policy, key };
        // A key that is none is told now, not at the first request.
        credentials.token()?;
        Ok(credentials)
    }
}

fn split_host(text: &str) -> Result<(String, Option<u16>), CredentialsError> {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().map_err(|_| CredentialsError::InvalidHost)?)),
        None => (text, None),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) {
        return Err(CredentialsError::InvalidHost);
    }
    Ok((name.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

    #[test]
    fn a_policys_string_is_taken_with_and_without_a_port() {
        for (host, authority) in
            [("h.azure-devices.net", "h.azure-devices.net"), ("localhost:8443", "localhost:8443")]
        {
            let text = format!("HostName={host};SharedAccessKeyName=service;SharedAccessKey={KEY}\n");
            let credentials: Credentials = text.parse().unwrap();
            assert_eq!((credentials.authority().as_str(), credentials.policy()), (authority, "service"));
            let token = credentials.token().unwrap();
            assert!(token.expose().ends_with("&skn=service"), "{}", token.expose());
            assert!(!format!("{credentials:?}").contains("a2tra"));
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        let table = [
            (String::new(), CredentialsError::Missing { name: "HostName" }),
            (
                format!("HostName=h;SharedAccessKey={KEY}"),
                CredentialsError::Missing { name: "SharedAccessKeyName" },
            ),
            (
                "HostName=h;SharedAccessKeyName=p".to_owned(),
                CredentialsError::Missing { name: "SharedAccessKey" },
            ),
            (format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}"), CredentialsError::OfADevice),
            (
                format!("HostName=h:x;SharedAccessKeyName=p;SharedAccessKey={KEY}"),
                CredentialsError::InvalidHost,
            ),
            ("HostName=h;c2VjcmV0".to_owned(), CredentialsError::NotAPair { position: 2 }),
            (
                "HostName=h;SharedAccessKeyName=p;SharedAccessKey=%%%".to_owned(),
                CredentialsError::Key(AuthError::InvalidKey),
            ),
        ];
        for (text, expected) in table {
            let error = text.parse::<Credentials>().unwrap_err();
            assert!(!error.to_string().contains("a2tra"));
            assert_eq!(error, expected);
        }
    }
}
