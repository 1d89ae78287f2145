//! Who may connect: CONNECT's client id, user name, password and certificate against the registry.

use ring::digest;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};

use super::clock;
use super::identity::Authentication;
use super::policy::Permission;
use super::sas::Token;
use super::state::State;

/// A device that may come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admission {
    pub device: String,
    /// When its token expires, in seconds since 1970; none with a certificate.
    pub expiry: Option<i64>,
}

/// Judges a CONNECT. `certificate` is what the client showed in the TLS handshake, in DER.
///
/// The real hub does not document its codes; every refusal of credentials ever seen in the field was a 5.
pub(super) fn judge(
    state: &State,
    connect: &Connect,
    certificate: Option<&[u8]>,
) -> Result<Admission, ConnectReturnCode> {
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
    let login = connect.login.as_ref().ok_or(BadUserNamePassword)?;
    let (host, device) = host_and_device(&login.username).ok_or(BadUserNamePassword)?;
    if connect.client_id != device {
        return Err(BadClientId);
    }
    if !state.host_names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        return Err(NotAuthorized);
    }
    let known = state.devices.get(device).filter(|known| known.identity.enabled).ok_or(NotAuthorized)?;
    let authentication = &known.identity.authentication;
    let expiry = if login.password.is_empty() {
        let shown = certificate.map(thumbprints).ok_or(NotAuthorized)?;
        authentication.accepts_any_of(&shown).then_some(None).ok_or(NotAuthorized)?
    } else {
        let token = Token::parse(&login.password).ok_or(BadUserNamePassword)?;
        is_good(state, authentication, device, &token).then_some(Some(token.expiry)).ok_or(NotAuthorized)?
    };
    Ok(Admission { device: device.to_owned(), expiry })
}

/// Takes `host/device/?api-version=…` apart; very old clients stop after the device.
fn host_and_device(user_name: &str) -> Option<(&str, &str)> {
    let mut parts = user_name.split('/');
    let (host, device) = (parts.next()?, parts.next()?);
    let query = parts.next().unwrap_or("?api-version=");
    let understood = !host.is_empty() && !device.is_empty() && query.contains("api-version=");
    (understood && parts.next().is_none()).then_some((host, device))
}

fn is_good(state: &State, authentication: &Authentication, device: &str, token: &Token) -> bool {
    let signed = match (&token.policy, authentication) {
        (Some(_), _) => {
            let signer = state.policies.signer(token);
            signer.is_some_and(|policy| policy.allows(Permission::DeviceConnect))
        }
        (None, Authentication::Sas { primary, secondary }) => {
            token.is_signed_with(primary) || token.is_signed_with(secondary)
        }
        (None, Authentication::SelfSigned { .. }) => false,
    };
    signed
        && clock::until(token.expiry).is_some()
        && token.is_for(&state.host_names)
        && token.covers(&format!("devices/{device}"))
}

/// SHA-1 and SHA-256 of a certificate, in hexadecimal: the registry may hold either.
pub(super) fn thumbprints(certificate: &[u8]) -> [String; 2] {
    [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256].map(|algorithm| {
        let hash = digest::digest(algorithm, certificate);
        hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_name_names_host_and_device() {
        let user = "localhost/dev-1/?api-version=2021-04-12&DeviceClientType=x%2F1%3B";
        assert_eq!(host_and_device(user), Some(("localhost", "dev-1")));
        assert_eq!(host_and_device("localhost/dev-1/api-version=2018-06-30"), Some(("localhost", "dev-1")));
        assert_eq!(host_and_device("localhost/dev-1"), Some(("localhost", "dev-1")));
        assert_eq!(host_and_device("localhost/dev-1/?x=y"), None);
        assert_eq!(host_and_device("localhost"), None);
    }
}
