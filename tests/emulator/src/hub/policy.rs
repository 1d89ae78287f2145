//! Shared access policies: the five that every new hub has.

use serde::{Deserialize, Serialize};

use super::random;
use super::sas::Token;

/// What a policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    RegistryRead,
    RegistryWrite,
    /// Twins, methods, queries, jobs.
    ServiceConnect,
    /// To be a device.
    DeviceConnect,
}

/// The policy that may do everything.
pub(super) const OWNER: &str = "iothubowner";

/// Names and permissions of the policies.
const BUILT_IN: [(&str, &[Permission]); 5] = [
    (
        OWNER,
        &[
            Permission::RegistryRead,
            Permission::RegistryWrite,
            Permission::ServiceConnect,
            Permission::DeviceConnect,
        ],
    ),
    ("service", &[Permission::ServiceConnect]),
    ("device", &[Permission::DeviceConnect]),
    ("registryRead", &[Permission::RegistryRead]),
    ("registryReadWrite", &[Permission::RegistryRead, Permission::RegistryWrite]),
];

/// A policy of this hub.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Policy {
    name: String,
    /// Base64.
    pub key: String,
}

impl Policy {
    pub fn allows(&self, permission: Permission) -> bool {
        BUILT_IN.iter().any(|(name, permissions)| *name == self.name && permissions.contains(&permission))
    }
}

/// The policies of a hub.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Policies(Vec<Policy>);

impl Policies {
    /// All of them, with new keys.
    pub fn new() -> Self {
        Self(BUILT_IN.iter().map(|(name, _)| Policy { name: (*name).into(), key: random::key() }).collect())
    }

    pub fn named(&self, name: &str) -> Option<&Policy> {
        self.0.iter().find(|policy| policy.name == name)
    }

    /// The policy that the token names, if its key made the signature.
    pub fn signer(&self, token: &Token) -> Option<&Policy> {
        self.named(token.policy.as_deref()?).filter(|policy| token.is_signed_with(&policy.key))
    }
}
