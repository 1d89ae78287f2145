//! A device's update, told to the operator as the twin shows it.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::screen::Download;
use super::{CliError, Ctl, chain, notice};
use crate::follow::{Look, Outcome, Word};
use crate::report::{Amount, Report};

/// A hub allows a hundred reads of twins a second, to all its users together.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Story<'a> {
    ctl: &'a Ctl,
    device: &'a str,
    screen: Download,
    told: Option<Told>,
    /// There is something to follow: a hub in trouble is no reason to stop.
    has_begun: bool,
}

/// What was said last, so that only news are.
type Told = (Word, Option<String>, Option<Outcome>, Option<Amount>);

impl<'a> Story<'a> {
    pub fn new(ctl: &'a Ctl, device: &'a str, has_begun: bool) -> Self {
        Self { ctl, device, screen: Download::new(ctl.json), told: None, has_begun }
    }

    /// The twin, again after a while. An update does not end because it cannot be seen.
    pub async fn twin(&self) -> Result<Value, CliError> {
        if self.told.is_some() {
            sleep(POLL_INTERVAL).await;
        }
        loop {
            match self.ctl.service.twin(self.device).await {
                Err(error) if self.has_begun && error.is_passing() => {
                    notice(&format!("{}; looking again", chain(&error)));
                }
                seen => return Ok(seen?),
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    pub fn tell(&mut self, twin: &Value, look: &Look) -> Result<(), CliError> {
        let amount = look.amount.filter(|_| self.ctl.json);
        let news = (look.word, look.sentence.clone(), look.outcome.clone(), amount);
        if self.told.as_ref() != Some(&news) {
            self.say(twin, look)?;
            self.told = Some(news);
            self.has_begun = true;
        }
        look.amount.map_or(Ok(()), |amount| self.screen.amount(amount, look.bytes_per_sec))
    }

    fn say(&mut self, twin: &Value, look: &Look) -> Result<(), CliError> {
        self.screen.event(&look.event(self.device))?;
        let last_word = self.told.as_ref().map(|(word, ..)| *word);
        if matches!(last_word, Some(Word::Waiting | Word::Downloading)) && look.word == Word::Applied {
            // A small image was applied between two looks.
            self.screen.line(Word::Applying.text())?;
        }
        if let Some(outcome) = &look.outcome {
            self.screen.event(&outcome.event(self.device))?;
            return self.screen.line(&sentence(outcome, Report::of(twin)));
        }
        if last_word != Some(look.word) {
            self.screen.line(look.word.text())?;
        }
        look.sentence.as_ref().map_or(Ok(()), |sentence| self.screen.line(&format!("  {sentence}")))
    }
}

fn sentence(outcome: &Outcome, report: Report<'_>) -> String {
    let version = report.reported("firmware/currentFwVersion");
    let runs = match (version, report.reported("firmware/slots/booted")) {
        (Some(version), Some(slot)) => format!("; version {version} runs from slot {slot}"),
        (Some(version), None) => format!("; version {version} runs"),
        (None, _) => String::new(),
    };
    let word = match outcome {
        Outcome::Completed => return format!("{}{runs}", Word::Applied.text()),
        Outcome::Failed(why) => format!("{}: {why}", Word::Failed.text()),
        Outcome::RolledBack(why) => format!("{}: {why}", Word::RolledBack.text()),
        Outcome::Replaced(by) => return format!("This update is no longer there: the device is at `{by}`"),
        Outcome::Lost => return format!("This update is no longer there: the device reports none{runs}"),
    };
    format!("{word}{runs}")
}
