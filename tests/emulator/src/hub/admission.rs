//! Who may connect: CONNECT's client id, user name, password and certificate against the registry.

use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};
use rustls::pki_types::CertificateDer;

use super::certificates::{common_name, thumbprints};
use super::clock;
use super::identity::Authentication;
use super::policy::Permission;
use super::sas::Token;
use super::state::State;

/// A device that may come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// Or `device/module`.
    pub device: String,
    /// When its token expires, in seconds since 1970; none with a certificate.
    pub expiry: Option<i64>,
}

/// Judges a CONNECT. `chain` is what the client showed in the TLS handshake, its own certificate first.
///
/// The real hub does not document its codes; every refusal of credentials ever seen in the field was a 5.
pub(super) fn judge(
    state: &State,
    connect: &Connect,
    chain: &[CertificateDer<'_>],
) -> Result<Admission, ConnectReturnCode> {
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
    let login = connect.login.as_ref().ok_or(BadUserNamePassword)?;
    let (host, device) = host_and_key(&login.username).ok_or(BadUserNamePassword)?;
    if connect.client_id != device {
        return Err(BadClientId);
    }
    if !state.is_called(host) {
        return Err(NotAuthorized);
    }
    let expiry = check_credentials(state, device, &login.password, chain)?;
    Ok(Admission { device: device.to_owned(), expiry })
}

/// Whether these are the credentials of the device or module. Returns when they expire, in seconds since 1970.
pub(super) fn check_credentials(
    state: &State,
    key: &str,
    password: &str,
    chain: &[CertificateDer<'_>],
) -> Result<Option<i64>, ConnectReturnCode> {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized};
    let known = state.devices.get(key).filter(|_| is_enabled(state, key)).ok_or(NotAuthorized)?;
    let authentication = &known.identity.authentication;
    if password.is_empty() {
        return is_right(state, authentication, key, chain).then_some(None).ok_or(NotAuthorized);
    }
    let token = Token::parse(password).ok_or(BadUserNamePassword)?;
    is_good(state, authentication, key, &token).then_some(Some(token.expiry)).ok_or(NotAuthorized)
}

/// Takes `host/device[/module]/?api-version=…` apart; very old clients stop after the device.
fn host_and_key(user_name: &str) -> Option<(&str, &str)> {
    let (host, rest) = user_name.split_once('/')?;
    let key = match rest.split_once("/?").or_else(|| rest.rsplit_once('/')) {
        Some((key, query)) => query.contains("api-version=").then_some(key)?,
        None => rest,
    };
    let named = !host.is_empty() && key.split('/').all(|name| !name.is_empty());
    (named && key.split('/').count() <= 2).then_some((host, key))
}

/// A module comes in only as long as its device may.
fn is_enabled(state: &State, key: &str) -> bool {
    let enabled = |key| state.devices.get(key).is_some_and(|known| known.identity.enabled);
    enabled(key) && key.split_once('/').is_none_or(|(device, _)| enabled(device))
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
        (None, _) => false,
    };
    signed
        && clock::until(token.expiry).is_some()
        && token.is_for(&state.host_names)
        && token.covers(&format!("devices/{}", device.replace('/', "/modules/")))
}

/// Whether the chain that the client showed is the device's.
fn is_right(
    state: &State,
    authentication: &Authentication,
    device: &str,
    chain: &[CertificateDer<'_>],
) -> bool {
    let Some(shown) = chain.first() else { return false };
    match authentication {
        Authentication::Sas { .. } => false,
        Authentication::SelfSigned { .. } => authentication.accepts_any_of(&thumbprints(shown)),
        Authentication::CertificateAuthority => {
            common_name(shown).as_deref() == Some(device) && state.authorities.have_signed(chain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_name_names_host_and_key() {
        let user = "localhost/dev-1/?api-version=2021-04-12&DeviceClientType=x%2F1%3B";
        assert_eq!(host_and_key(user), Some(("localhost", "dev-1")));
        assert_eq!(host_and_key("localhost/dev-1/api-version=2018-06-30"), Some(("localhost", "dev-1")));
        assert_eq!(host_and_key("localhost/dev-1"), Some(("localhost", "dev-1")));
        assert_eq!(host_and_key("localhost/dev-1/?x=y"), None);
        assert_eq!(host_and_key("localhost"), None);
        assert_eq!(host_and_key("localhost/d/m/?api-version=1"), Some(("localhost", "d/m")));
        assert_eq!(host_and_key("localhost/d/m/n/?api-version=1"), None);
    }
}
