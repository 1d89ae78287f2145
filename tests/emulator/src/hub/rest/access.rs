//! Who may ask for what: tokens of the shared access policies against the permissions a path needs.

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::hub::clock;
use crate::hub::failure::Failure;
use crate::hub::policy::Permission;
use crate::hub::sas::Token;
use crate::hub::state::State;

/// The permissions of which a token needs one.
fn needed(method: &Method, segments: &[&str]) -> &'static [Permission] {
    use Permission::{RegistryRead, RegistryWrite, ServiceConnect};
    let reads = method == Method::GET;
    match segments {
        ["devices", "query"] | ["devices", _, "messages" | "commands", ..] => &[ServiceConnect],
        ["devices" | "statistics", ..] if reads => &[RegistryRead],
        ["devices" | "emulator", ..] => &[RegistryWrite],
        // The documentation names none for configurations; tools are known to use either.
        ["configurations", ..] if reads => &[RegistryRead, ServiceConnect],
        ["configurations", ..] => &[RegistryWrite, ServiceConnect],
        _ => &[ServiceConnect],
    }
}

/// Lets a request in, or says why not.
pub(super) fn authorize(
    state: &State,
    method: &Method,
    headers: &HeaderMap,
    segments: &[&str],
) -> Result<(), Failure> {
    if state.faults.away {
        return Err(Failure::new(503, "ServiceUnavailable", "The hub is away."));
    }
    let refuse = |why: &str| Err(Failure::new(401, "IotHubUnauthorizedAccess", why));
    let Some(header) = headers.get(AUTHORIZATION) else { return refuse("Authorization header missing") };
    let Some(token) = header.to_str().ok().and_then(Token::parse) else {
        return refuse("The authorization header is not a shared access signature.");
    };
    let Some(policy) = state.policies.signer(&token) else {
        return refuse("The token is not signed with the key of one of the hub's policies.");
    };
    if !needed(method, segments).iter().any(|permission| policy.allows(*permission)) {
        return refuse("The token's policy lacks the permission.");
    }
    if !token.is_for(&state.host_names) || !token.covers(&segments.join("/")) {
        return refuse("The token is for another resource.");
    }
    if clock::until(token.expiry).is_none() {
        return refuse("The token has expired.");
    }
    Ok(())
}
