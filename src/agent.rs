//! The only loop: hub events, completions, signals -> step -> persist -> effects.

use crate::config::Config;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {}

/// Runs until something makes it impossible.
///
/// # Errors
/// None yet.
pub async fn run(_config: Config) -> Result<(), AgentError> {
    std::future::pending().await
}
