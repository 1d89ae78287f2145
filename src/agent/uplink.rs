//! How the hub is reached: by this process, or through the networked part.

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};

use crate::causes::one_line;
use crate::config::{self, Config};
use crate::hub::{self, HubEvent, Reported};
use crate::{network, system};

/// One of the two, if the machine has a hub at all.
pub(super) enum Uplink {
    Direct(config::Hub),
    /// The networked part's socket; it alone knows the hub.
    Relayed(PathBuf),
}

impl Uplink {
    pub(super) fn of(config: &Config) -> Option<Self> {
        let relayed = config.network.clone().map(Self::Relayed);
        relayed.or_else(|| config.hub.clone().map(Self::Direct))
    }

    /// Said of it until it is up for the first time.
    pub(super) fn awaited(&self) -> String {
        match self {
            Self::Direct(hub) => format!("not yet connected to {}", hub.host_name),
            Self::Relayed(_) => "the networked part has not answered yet".to_owned(),
        }
    }

    /// Keeps the session up until the sender of `reported` is dropped.
    pub(super) async fn run(self, events: mpsc::Sender<HubEvent>, reported: watch::Receiver<Reported>) {
        match self {
            Self::Direct(hub) => hub::run(hub, system::unix_now, events, reported).await,
            Self::Relayed(socket) => network::relay::run(socket, events, reported).await,
        }
    }

    /// Puts a file into the hub's storage; or says in one line why not.
    pub(super) async fn upload(&self, name: &str, bytes: Vec<u8>) -> Result<(), String> {
        match self {
            Self::Direct(hub) => {
                let uploaded = hub::upload::upload(hub, name, bytes, system::unix_now()).await;
                uploaded.map_err(|error| one_line(&error))
            }
            Self::Relayed(socket) => network::relay::upload(socket, name, &bytes).await,
        }
    }
}
