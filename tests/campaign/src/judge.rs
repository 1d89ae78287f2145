//! What must hold of whatever a power cut leaves.

use twinboot::update::{Outcome, State};

use crate::kept::Kept;
use crate::machine::Fault;
use crate::uboot::{COPY_BYTES, Environment, Slot};

/// More than a trial has boots.
const RESETS: usize = 6;

/// What is known of a machine's update outside of the machine.
pub struct Update<'run> {
    /// The slot that it started from.
    pub from: Slot,
    /// What the other slot is to hold.
    pub image: &'run [u8],
    /// The method was answered.
    pub accepted: bool,
    /// U-Boot gave the trial up.
    pub fell_back: bool,
    /// What the twin says of its end.
    pub ended: Option<&'run str>,
}

impl Update<'_> {
    /// A good slot boots, at this start and at all that follow; and it is the one that the twin names. Gives the one
    /// that boots first.
    pub fn boots(&self, mut medium: Vec<u8>, mut is_whole: impl FnMut(Slot) -> bool) -> Result<Slot, Fault> {
        let first = Environment::load(&medium);
        if let Some(status) = self.ended {
            let named = if status == "completed" { self.from.other() } else { self.from };
            if first.is_trial() || first.slot() != named {
                return Err(format!("the twin says {status}, the environment {first}"));
            }
        }
        let mut boots_first = None;
        for reset in 1..=RESETS {
            let environment = Environment::load(&medium);
            if environment.current.is_none() {
                return Err("both copies of the environment are bad".to_owned());
            }
            let start = environment.start();
            if !is_whole(start.slot) {
                let slot = start.slot.letter();
                return Err(format!("slot {slot} boots at reset {reset}, and holds no whole image"));
            }
            for (offset, copy) in start.saves {
                medium[offset..offset + COPY_BYTES].copy_from_slice(&copy);
            }
            boots_first.get_or_insert(start.slot);
        }
        Ok(boots_first.unwrap_or(self.from))
    }

    /// State file, environment and what is in the `target` slot do not contradict each other.
    pub fn agrees(&self, kept: &Kept, environment: &Environment, target: &[u8]) -> Result<(), Fault> {
        self.contradiction(kept, environment, target).map_or(Ok(()), |fault| {
            Err(format!("in state {}, {fault}; the environment has {environment}", kept.phase()))
        })
    }

    fn contradiction(&self, kept: &Kept, environment: &Environment, target: &[u8]) -> Option<&'static str> {
        let (state, armed) = (kept.state(), environment.is_trial());
        let is_in = environment.slot();
        let proven = kept.image_bytes() as usize;
        let (old, new) = (self.from, self.from.other());
        let committed = |slot| !armed && is_in == slot;
        if self.accepted && !kept.knows_update() {
            return Some("an update that was answered with 200 is not known");
        }
        if armed && matches!(state, State::Idle { .. } | State::Asking { .. } | State::Installing { .. }) {
            return Some("a trial is armed that the daemon does not know of");
        }
        if kept.is_installed() && !target.starts_with(self.image) {
            return Some("the target does not hold the image");
        }
        if target[..proven] != self.image[..proven] {
            return Some("the target does not hold what the checkpoint says");
        }
        if matches!(state, State::Rebooting { .. }) && !armed && !self.fell_back {
            return Some("no trial is armed, and the boot loader gave none up");
        }
        if matches!(state, State::Trial { .. }) && !armed && !self.fell_back && is_in == old {
            return Some("the trial is lost");
        }
        match kept.outcome() {
            Some(Outcome::Succeeded) if !committed(new) => Some("the new slot is not committed"),
            Some(Outcome::RolledBack(_)) if !committed(old) => Some("the old slot is not in force"),
            Some(Outcome::Failed(_)) => Some("the update failed"),
            _ => None,
        }
    }
}
