//! `twinbootctl watch`: a device, as long as somebody looks.

use clap::Args;

use super::story::Story;
use super::{CliError, Ctl, Exit};
use crate::follow::Follow;

/// Follow what a device does with its firmware, until Ctrl-C
///
/// Whoever began it: this tool, a rollout, or somebody at the device.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Watch {
    /// Its name in the hub
    device: String,
}

impl Watch {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let mut story = Story::new(ctl, &self.device, false);
        let mut follow = Follow::any();
        loop {
            let twin = story.twin().await?;
            story.tell(&twin, &follow.look(&twin))?;
        }
    }
}
