//! What devices ask of the hub, counted by what a real hub's quotas count.

/// Requests that have arrived from all devices so far, carried out or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// CONNECT packets.
    pub connects: u64,
    /// Reads of a twin.
    pub twin_reads: u64,
    /// Patches of reported properties.
    pub twin_updates: u64,
}
