//! `twinbootctl rollout status`.

use clap::Args;

use super::super::screen::{Live, print_line};
use super::super::{CliError, Ctl, Exit, keep_looking};
use super::Refresh;
use super::picture::Picture;

/// Show how far a rollout is, and why devices failed
///
/// Counts are of each open ring. WAITING are devices that are off, or have not
/// begun; CURRENT those that have the new version.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Status {
    /// Of the rollout
    name: String,
    /// Until Ctrl-C
    #[arg(long, short)]
    pub(super) watch: bool,
    #[command(flatten)]
    refresh: Refresh,
}

impl Status {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let mut live = Live::new();
        keep_looking(self.refresh.interval, async || {
            let picture = Picture::take(ctl, &self.name).await?;
            if ctl.json {
                print_line(&picture.json().to_string())?;
            } else {
                live.show(picture.text())?;
            }
            Ok((!self.watch).then_some(Exit::Done))
        })
        .await
    }
}
