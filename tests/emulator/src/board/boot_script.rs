//! What U-Boot and a boot script make of the variables at a reset: the boot counter (`CONFIG_BOOTCOUNT_ENV`), and the
//! script of this tree, RAUC's (`contrib/uboot.sh`), or Mender's. The campaign and the simulation compile this file too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names and values.
pub type Variables = BTreeMap<String, String>;

/// One of the two root file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The one that a board leaves the factory with, if nothing else is said.
    A,
    /// At first empty.
    B,
}

impl Slot {
    /// The one that is not this.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Mender's number of its partition.
    pub(crate) fn mender_part(self) -> &'static str {
        match self {
            Self::A => "2",
            Self::B => "3",
        }
    }

    /// RAUC's name of its attempts.
    fn rauc_left(self) -> &'static str {
        match self {
            Self::A => "BOOT_A_LEFT",
            Self::B => "BOOT_B_LEFT",
        }
    }
}

/// Which variables the boot script reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `boot_slot`, `upgrade_available`, `bootcount`.
    Bootcount,
    /// `BOOT_ORDER`, `BOOT_A_LEFT`, `BOOT_B_LEFT`.
    Rauc,
    /// `mender_boot_part`, `upgrade_available`, `bootcount`.
    Mender,
}

/// What RAUC's script gives a slot where none has an attempt left.
const RAUC_LEFT: &str = "3";

/// `CONFIG_BOOTCOUNT_BOOTLIMIT`: without the variable.
const BOOTLIMIT: u32 = 3;

/// What a board leaves the factory with.
pub fn factory(scheme: Scheme, slot: Slot) -> Vec<(&'static str, &'static str)> {
    let part = slot.mender_part();
    match scheme {
        Scheme::Bootcount => vec![
            ("boot_slot", slot.letter()),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "3"),
        ],
        Scheme::Rauc => vec![
            ("BOOT_ORDER", if slot == Slot::A { "A B" } else { "B A" }),
            (Slot::A.rauc_left(), RAUC_LEFT),
            (Slot::B.rauc_left(), RAUC_LEFT),
        ],
        Scheme::Mender => vec![
            ("mender_boot_part", part),
            ("mender_boot_part_hex", part),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "1"),
        ],
    }
}

/// One run of the boot script.
pub struct Run {
    /// `None`: it found nothing to boot, and resets the board.
    pub slot: Option<Slot>,
    /// What it saved on the way, one after the other.
    pub saves: Vec<Variables>,
}

/// Runs the boot script of these variables.
pub fn run(scheme: Scheme, variables: Variables) -> Run {
    match scheme {
        Scheme::Rauc => run_in_order(variables),
        Scheme::Bootcount | Scheme::Mender => run_counting(scheme, variables),
    }
}

/// Takes an attempt at each boot, of committed slots too. Where none is left, all get theirs back.
fn run_in_order(mut variables: Variables) -> Run {
    for (name, value) in factory(Scheme::Rauc, Slot::A) {
        if text(&variables, name).is_empty() {
            set(&mut variables, name, value);
        }
    }
    let slot = first_with_attempts(&variables);
    match slot {
        Some(slot) => {
            let left = number(&variables, slot.rauc_left(), 16).saturating_sub(1);
            set(&mut variables, slot.rauc_left(), &format!("{left:x}"));
        }
        None => {
            for slot in [Slot::A, Slot::B] {
                set(&mut variables, slot.rauc_left(), RAUC_LEFT);
            }
        }
    }
    Run { slot, saves: vec![variables] }
}

/// Counts while `upgrade_available` is set, and beyond the limit runs `altbootcmd`.
fn run_counting(scheme: Scheme, mut variables: Variables) -> Run {
    let mut saves = Vec::new();
    if is_trial(&variables) {
        let bootcount = number(&variables, "bootcount", 10).saturating_add(1);
        set(&mut variables, "bootcount", &bootcount.to_string());
        saves.push(variables.clone());
        let has_limit = !text(&variables, "bootlimit").is_empty();
        let bootlimit = if has_limit { number(&variables, "bootlimit", 10) } else { BOOTLIMIT };
        if bootlimit > 0 && bootcount > bootlimit {
            let other = slot(scheme, &variables).other();
            set(&mut variables, "upgrade_available", "0");
            if scheme == Scheme::Mender {
                set(&mut variables, "mender_boot_part", other.mender_part());
                set(&mut variables, "mender_boot_part_hex", other.mender_part());
            } else {
                // As config/u-boot/twinboot.env has it.
                set(&mut variables, "boot_slot", other.letter());
                set(&mut variables, "bootcount", "0");
            }
            saves.push(variables.clone());
        }
    }
    Run { slot: Some(slot(scheme, &variables)), saves }
}

/// Whether boots are counted. Never by RAUC's variables, which do not tell a trial.
pub fn is_trial(variables: &Variables) -> bool {
    number(variables, "upgrade_available", 10) != 0
}

/// The one that a boot takes, if it need not count.
pub fn slot(scheme: Scheme, variables: &Variables) -> Slot {
    let chosen = if scheme == Scheme::Rauc { first_with_attempts(variables) } else { None };
    chosen.unwrap_or_else(|| first(scheme, variables))
}

/// The one that is wanted, whether it may still boot or not.
pub fn first(scheme: Scheme, variables: &Variables) -> Slot {
    let is_b = match scheme {
        Scheme::Bootcount => text(variables, "boot_slot") == "b",
        // By which it finds the kernel.
        Scheme::Mender => text(variables, "mender_boot_part_hex") == Slot::B.mender_part(),
        Scheme::Rauc => order(variables).next() == Some(Slot::B),
    };
    if is_b { Slot::B } else { Slot::A }
}

fn order(variables: &Variables) -> impl Iterator<Item = Slot> {
    text(variables, "BOOT_ORDER").split_ascii_whitespace().filter_map(|name| match name {
        "A" => Some(Slot::A),
        "B" => Some(Slot::B),
        _ => None,
    })
}

fn first_with_attempts(variables: &Variables) -> Option<Slot> {
    order(variables).find(|slot| number(variables, slot.rauc_left(), 16) > 0)
}

/// Its value; a variable that is missing is empty.
pub fn text<'variables>(variables: &'variables Variables, name: &str) -> &'variables str {
    variables.get(name).map(String::as_str).unwrap_or_default()
}

/// As `simple_strtoul`: leading digits, else 0.
fn number(variables: &Variables, name: &str, radix: u32) -> u32 {
    let text = text(variables, name);
    let digits = text.find(|c: char| !c.is_digit(radix)).and_then(|end| text.get(..end)).unwrap_or(text);
    u32::from_str_radix(digits, radix).unwrap_or(0)
}

fn set(variables: &mut Variables, name: &str, value: &str) {
    variables.insert(name.to_owned(), value.to_owned());
}
