//! Updates started by the cloud.
