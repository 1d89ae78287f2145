//! The networked part: a process of its own that speaks with the hub and with image servers, and may do nothing
//! else.
//!
//! ```text
//! agent                              networked part
//! relay   --one connection-->        serve -> hub      the session with the hub
//! install --one per download-->      serve -> fetch    the bytes at one address
//! ```
//!
//! The agent calls, and the networked part answers, so it can reach nothing that the agent did not open for it.
//! Whatever comes from it is as little to be trusted as the network itself: frames are bounded before they are
//! read, unknown messages end the connection, and the image is verified on the agent's side.

pub mod relay;
pub mod serve;
pub mod wire;
