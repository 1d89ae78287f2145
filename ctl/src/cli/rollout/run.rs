//! `twinbootctl rollout run`: ring after ring.

use clap::Args;

use super::super::screen::{Live, print_line};
use super::super::{CliError, Ctl, Exit, keep_looking};
use super::Refresh;
use super::advance::{open_next, tell};
use super::picture::Picture;
use crate::rollout::Identity;
use crate::rollout::gate::Verdict;

const CODES: &str = "\
Exit codes:
  0   complete: all rings are open, and enough of the last one is done
  21  stopped by the gate: too many of an open ring failed or were rolled back

Devices of a ring that has been opened go on whatever the gate says, also those that are off and were told by the hub;
`twinbootctl rollout pause` keeps it from those that come to the ring later. Interrupted, it goes on where it was when it
is run again, here or elsewhere.";

/// Open ring after ring, as long as the gate allows
#[derive(Debug, Args)]
#[command(after_help = CODES, after_long_help = CODES)]
pub(super) struct Run {
    /// Of the rollout
    name: String,
    #[command(flatten)]
    refresh: Refresh,
}

impl Run {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let (mut live, mut identity) = (Live::new(), None);
        keep_looking(self.refresh.interval, async || self.step(ctl, &mut live, &mut identity).await).await
    }

    /// `identity` is that of the rollout at the first look: who ran it has not seen another one of its name.
    async fn step(
        &self,
        ctl: &Ctl,
        live: &mut Live,
        identity: &mut Option<Identity>,
    ) -> Result<Option<Exit>, CliError> {
        let picture = match identity {
            None => Picture::take(ctl, &self.name).await?,
            Some(identity) => Picture::take_same(ctl, &self.name, identity).await?,
        };
        identity.get_or_insert_with(|| picture.identity());
        if ctl.json {
            print_line(&picture.json().to_string())?;
        } else {
            live.show(picture.text())?;
        }
        match picture.verdict() {
            Verdict::Wait(_) => Ok(None),
            Verdict::Stop(_) => Ok(Some(Exit::GateStops)),
            Verdict::Complete => Ok(Some(Exit::Done)),
            verdict @ Verdict::Open => {
                open_next(ctl, picture.configuration, &picture.rollout).await?;
                tell(ctl, &picture.rollout, &verdict)?;
                *live = Live::new();
                Ok(None)
            }
        }
    }
}
