//! The U-Boot environment on its medium.

/// Why an environment could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BootEnvError {}
