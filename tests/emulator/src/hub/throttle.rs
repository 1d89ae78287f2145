//! Refusing calls as too many, by the kind of operation, when a test asks for it.

use hyper::Method;
use serde::Deserialize;

use super::failure::Failure;
use super::state::State;

/// What a call of a service counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operation {
    RegistryRead,
    RegistryWrite,
    TwinRead,
    TwinWrite,
    Query,
    DirectMethod,
    ConfigurationRead,
    ConfigurationWrite,
    JobRead,
    JobWrite,
    Message,
}

impl Operation {
    /// What a request counts as; nothing for those that are no part of the real hub's API.
    pub(super) fn of(method: &Method, segments: &[&str]) -> Option<Self> {
        let reads = method == Method::GET;
        let either = |read, write| Some(if reads { read } else { write });
        match segments {
            ["devices", "query"] => Some(Self::Query),
            ["devices", _, "messages" | "commands", ..] => Some(Self::Message),
            ["devices" | "statistics", ..] => either(Self::RegistryRead, Self::RegistryWrite),
            ["twins", .., "methods"] => Some(Self::DirectMethod),
            ["twins", ..] => either(Self::TwinRead, Self::TwinWrite),
            ["configurations", ..] => either(Self::ConfigurationRead, Self::ConfigurationWrite),
            ["jobs", ..] => either(Self::JobRead, Self::JobWrite),
            _ => None,
        }
    }
}

impl State {
    /// Whether the call is one too many.
    pub fn throttle(&mut self, operation: Operation) -> Result<(), Failure> {
        for kind in [Some(operation), None] {
            if let Some(left @ 1..) = self.faults.throttle.get_mut(&kind) {
                *left = left.saturating_sub(1);
                let message = "The request has been throttled. Wait 10 seconds and try again.";
                let message = format!("{message} Operation type: {operation:?}");
                return Err(Failure::new(429, "ThrottlingException", message));
            }
        }
        Ok(())
    }
}
