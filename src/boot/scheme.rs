//! What each boot script's variables mean: pure, one function per decision.
//!
//! Every decision sets what it needs and toggles nothing, so that it may be made twice. Each names the slot in full,
//! even where the boot script has it right already: a decision then holds whatever was there before.

use std::fmt::Display;

use super::{EnvPatch, Variables};
use crate::update::Slot;

/// Which variables the boot script reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `boot_slot`, `upgrade_available`, `bootcount`.
    Bootcount,
    /// RAUC's `BOOT_ORDER`, `BOOT_<slot>_LEFT`.
    Rauc,
    /// Mender's `mender_boot_part`, `upgrade_available`, `bootcount`; partition numbers of slots a and b.
    Mender {
        /// Partition number of slot `a` (`mender_boot_part` is decimal, `mender_boot_part_hex` hexadecimal).
        part_a: u32,
        /// Partition number of slot `b`.
        part_b: u32,
    },
}

/// The slot that `bootcount` boots, and that its `altbootcmd` changes.
pub const BOOT_SLOT: &str = "boot_slot";
const UPGRADE_AVAILABLE: &str = "upgrade_available";
const BOOTCOUNT: &str = "bootcount";
/// U-Boot compares `bootcount > bootlimit`, and without a limit it counts for nothing.
const BOOTLIMIT: &str = "bootlimit";
const MENDER_BOOT_PART: &str = "mender_boot_part";
const MENDER_BOOT_PART_HEX: &str = "mender_boot_part_hex";
const BOOT_ORDER: &str = "BOOT_ORDER";

/// What RAUC's boot script sets where the variables are missing.
const RAUC_DEFAULT_ORDER: [Slot; 2] = [Slot::A, Slot::B];
/// As [`RAUC_DEFAULT_ORDER`].
const RAUC_DEFAULT_LEFT: u32 = 3;

/// What the environment says about the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The slot that the boot loader tries first.
    pub primary: Slot,
    /// Whether the boot loader may run either slot: it counts attempts, or has used up those of its first choice.
    /// RAUC's variables do not tell a trial from a committed slot before its attempts are used up.
    pub trial: bool,
    /// Boots that the primary slot has left; `None` where they are not counted.
    pub attempts_left: Option<u8>,
    /// Whether slot `a` may be booted, where the scheme says so.
    pub a_bootable: Option<bool>,
    /// Whether slot `b` may be booted, where the scheme says so.
    pub b_bootable: Option<bool>,
}

impl View {
    /// Whether the boot loader may boot `slot`; `None` where the scheme cannot say.
    #[must_use]
    pub fn bootable(&self, slot: Slot) -> Option<bool> {
        match slot {
            Slot::A => self.a_bootable,
            Slot::B => self.b_bootable,
        }
    }
}

/// A variable that says nothing about the slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// There is no default for it.
    #[error("the boot environment has no `{name}`; does the boot script of this board follow `boot.scheme`?")]
    Missing {
        /// The variable.
        name: String,
    },
    /// Not a value of the scheme.
    #[error("the boot environment has `{name}={value}`, which is not {expected}")]
    BadValue {
        /// The variable.
        name: String,
        /// As it is, cut short.
        value: String,
        /// What would be one.
        expected: String,
    },
    /// Mender's two notations of one number.
    #[error(
        "the boot environment has `{MENDER_BOOT_PART}={decimal}` but `{MENDER_BOOT_PART_HEX}={hexadecimal:x}`"
    )]
    PartsDisagree {
        /// Partition by `mender_boot_part`.
        decimal: u32,
        /// Partition by `mender_boot_part_hex`.
        hexadecimal: u32,
    },
}

/// The decisions.
impl Scheme {
    /// Boots `target` next, on trial for `attempts` boots.
    #[must_use]
    pub fn activate(&self, target: Slot, attempts: u8) -> EnvPatch {
        match self {
            Self::Rauc => {
                // The slot to fall back to was committed: with attempts left, whatever its boots have used up.
                rauc_patch(&[target, target.other()], &[(target, attempts), (target.other(), attempts)])
            }
            Self::Bootcount | Self::Mender { .. } => {
                let mut patch = self.primary_patch(target);
                set(&mut patch, UPGRADE_AVAILABLE, "1");
                set(&mut patch, BOOTCOUNT, "0");
                set(&mut patch, BOOTLIMIT, attempts);
                patch
            }
        }
    }

    /// Keeps `slot`. What the other slot may do stays as it is in `variables`.
    ///
    /// # Errors
    /// When `variables` do not tell what the other slot may do.
    pub fn commit(&self, slot: Slot, attempts: u8, variables: &Variables) -> Result<EnvPatch, SchemeError> {
        match self {
            Self::Rauc => {
                let rauc = Rauc::read(variables)?;
                let order: &[Slot] =
                    if rauc.bootable(slot.other()) { &[slot, slot.other()] } else { &[slot] };
                Ok(rauc_patch(order, &[(slot, attempts)]))
            }
            Self::Bootcount | Self::Mender { .. } => Ok(self.settled_patch(slot)),
        }
    }

    /// Boots `to` next, for good, and not the other slot.
    #[must_use]
    pub fn roll_back(&self, to: Slot, attempts: u8) -> EnvPatch {
        match self {
            Self::Rauc => rauc_patch(&[to], &[(to, attempts), (to.other(), 0)]),
            Self::Bootcount | Self::Mender { .. } => self.settled_patch(to),
        }
    }

    /// Sees to it that `target`, about to be overwritten, is not booted. Empty where the scheme cannot say that.
    #[must_use]
    pub fn disable(&self, target: Slot) -> EnvPatch {
        match self {
            Self::Rauc => rauc_patch(&[target.other()], &[(target, 0)]),
            Self::Bootcount | Self::Mender { .. } => EnvPatch::default(),
        }
    }

    /// Gives `slot`, which runs, at rest and well, its attempts back: RAUC's boot script takes one at every boot, so
    /// a committed slot too would run out of them. One that has run out and left `slot` to run is no longer the first.
    /// Empty where only trials are counted.
    ///
    /// # Errors
    /// When `variables` do not tell what the slots may do.
    pub fn confirm(&self, slot: Slot, attempts: u8, variables: &Variables) -> Result<EnvPatch, SchemeError> {
        let mut patch = EnvPatch::default();
        if *self == Self::Rauc {
            let rauc = Rauc::read(variables)?;
            if rauc.first() != slot && !rauc.bootable(rauc.first()) {
                return self.commit(slot, attempts, variables);
            }
            if rauc.left(slot) < u32::from(attempts) {
                set(&mut patch, &left_name(slot), format_args!("{attempts:x}"));
            }
        }
        Ok(patch)
    }

    /// What the boot script will do.
    ///
    /// # Errors
    /// When a variable says nothing about the slots, or is missing and has no default.
    pub fn view(&self, variables: &Variables) -> Result<View, SchemeError> {
        match self {
            Self::Bootcount => counted_view(variables, boot_slot(variables)?),
            Self::Mender { part_a, part_b } => {
                counted_view(variables, mender_slot(variables, *part_a, *part_b)?)
            }
            Self::Rauc => Ok(Rauc::read(variables)?.view()),
        }
    }

    /// The slot that is tried first, in the variables of schemes that have just one.
    fn primary_patch(&self, slot: Slot) -> EnvPatch {
        let mut patch = EnvPatch::default();
        match self {
            Self::Bootcount => set(&mut patch, BOOT_SLOT, slot),
            Self::Mender { part_a, part_b } => {
                let part = if slot == Slot::A { part_a } else { part_b };
                set(&mut patch, MENDER_BOOT_PART, part);
                set(&mut patch, MENDER_BOOT_PART_HEX, format_args!("{part:x}"));
            }
            Self::Rauc => {}
        }
        patch
    }

    fn settled_patch(&self, slot: Slot) -> EnvPatch {
        let mut patch = self.primary_patch(slot);
        set(&mut patch, UPGRADE_AVAILABLE, "0");
        set(&mut patch, BOOTCOUNT, "0");
        patch
    }
}

fn set(patch: &mut EnvPatch, name: &str, value: impl Display) {
    patch.0.insert(name.to_owned(), Some(value.to_string()));
}

/// U-Boot has no empty variables.
fn value<'variables>(variables: &'variables Variables, name: &str) -> Option<&'variables str> {
    variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn bad_value(name: &str, value: &str, expected: impl Into<String>) -> SchemeError {
    let value = value.chars().take(64).collect();
    SchemeError::BadValue { name: name.to_owned(), value, expected: expected.into() }
}

/// A missing variable is `None`; where it stands, it must be a number.
fn number(variables: &Variables, name: &str, radix: u32) -> Result<Option<u32>, SchemeError> {
    let Some(text) = value(variables, name) else { return Ok(None) };
    let digits = if radix == 16 { text.strip_prefix("0x").unwrap_or(text) } else { text };
    let parsed = if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() };
    let expected = if radix == 16 { "a hexadecimal number" } else { "a decimal number" };
    parsed.map(Some).ok_or_else(|| bad_value(name, text, expected))
}

fn boot_slot(variables: &Variables) -> Result<Slot, SchemeError> {
    match value(variables, BOOT_SLOT) {
        Some("a") => Ok(Slot::A),
        Some("b") => Ok(Slot::B),
        Some(other) => Err(bad_value(BOOT_SLOT, other, "`a` or `b`")),
        None => Err(SchemeError::Missing { name: BOOT_SLOT.to_owned() }),
    }
}

fn mender_slot(variables: &Variables, part_a: u32, part_b: u32) -> Result<Slot, SchemeError> {
    let decimal = number(variables, MENDER_BOOT_PART, 10)?
        .ok_or_else(|| SchemeError::Missing { name: MENDER_BOOT_PART.to_owned() })?;
    match number(variables, MENDER_BOOT_PART_HEX, 16)? {
        Some(hexadecimal) if hexadecimal != decimal => {
            Err(SchemeError::PartsDisagree { decimal, hexadecimal })
        }
        _ if decimal == part_a => Ok(Slot::A),
        _ if decimal == part_b => Ok(Slot::B),
        _ => Err(bad_value(MENDER_BOOT_PART, &decimal.to_string(), format!("{part_a} or {part_b}"))),
    }
}

/// U-Boot takes a missing number for 0: no trial, no boots counted, no limit.
fn counted_view(variables: &Variables, primary: Slot) -> Result<View, SchemeError> {
    let trial = number(variables, UPGRADE_AVAILABLE, 10)?.unwrap_or(0) != 0;
    let bootcount = number(variables, BOOTCOUNT, 10)?.unwrap_or(0);
    let bootlimit = number(variables, BOOTLIMIT, 10)?.unwrap_or(0);
    let counts = trial && bootlimit > 0;
    Ok(View {
        primary,
        trial,
        attempts_left: counts.then(|| at_most_u8(bootlimit.saturating_sub(bootcount))),
        a_bootable: None,
        b_bootable: None,
    })
}

fn at_most_u8(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn rauc_name(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "A",
        Slot::B => "B",
    }
}

fn left_name(slot: Slot) -> String {
    format!("BOOT_{}_LEFT", rauc_name(slot))
}

/// Hexadecimal without `0x`: U-Boot's `setexpr`, which counts it down, reads and writes it so.
fn rauc_left(variables: &Variables, slot: Slot) -> Result<u32, SchemeError> {
    Ok(number(variables, &left_name(slot), 16)?.unwrap_or(RAUC_DEFAULT_LEFT))
}

/// `order` is never empty: every boot script that finds no slot resets or waits for someone.
fn rauc_patch(order: &[Slot], lefts: &[(Slot, u8)]) -> EnvPatch {
    let mut patch = EnvPatch::default();
    let names: Vec<&str> = order.iter().map(|slot| rauc_name(*slot)).collect();
    set(&mut patch, BOOT_ORDER, names.join(" "));
    for (slot, left) in lefts {
        set(&mut patch, &left_name(*slot), format_args!("{left:x}"));
    }
    patch
}

/// RAUC's variables, read.
struct Rauc {
    /// Not empty.
    order: Vec<Slot>,
    a_left: u32,
    b_left: u32,
}

impl Rauc {
    fn read(variables: &Variables) -> Result<Self, SchemeError> {
        let text = value(variables, BOOT_ORDER).unwrap_or_default();
        let order = text
            .split_ascii_whitespace()
            .map(|name| match name {
                "A" => Ok(Slot::A),
                "B" => Ok(Slot::B),
                _ => Err(bad_value(BOOT_ORDER, text, "a list of `A` and `B`")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            order: if order.is_empty() { RAUC_DEFAULT_ORDER.to_vec() } else { order },
            a_left: rauc_left(variables, Slot::A)?,
            b_left: rauc_left(variables, Slot::B)?,
        })
    }

    fn left(&self, slot: Slot) -> u32 {
        match slot {
            Slot::A => self.a_left,
            Slot::B => self.b_left,
        }
    }

    fn bootable(&self, slot: Slot) -> bool {
        self.order.contains(&slot) && self.left(slot) > 0
    }

    fn first(&self) -> Slot {
        self.order.first().copied().unwrap_or(Slot::A)
    }

    fn view(&self) -> View {
        let first = self.first();
        // Where no slot has attempts left, the boot script gives them all back and takes the first.
        let primary = self.order.iter().copied().find(|slot| self.bootable(*slot)).unwrap_or(first);
        View {
            primary,
            // The attempt that was taken for this very boot may have been the last.
            trial: !self.bootable(first),
            attempts_left: Some(at_most_u8(self.left(primary))),
            a_bootable: Some(self.bootable(Slot::A)),
            b_bootable: Some(self.bootable(Slot::B)),
        }
    }
}

#[cfg(test)]
mod tests;
