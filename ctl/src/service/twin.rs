//! Device twins.

use serde_json::Value;

use super::{Request, Service, ServiceError};

impl Service {
    /// The twin of a device, current: queries lag behind it.
    pub async fn twin(&self, device: &str) -> Result<Value, ServiceError> {
        self.json(Request::get(&["twins", device], &what(device))).await
    }
}

/// A device in messages.
pub fn what(device: &str) -> String {
    format!("device `{}`", twinboot::cli::paint::harmless(device))
}
