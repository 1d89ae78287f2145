//! What U-Boot does at a reset, to the byte and to the write: the choice of the environment's copy
//! (`env_import_redund`), and what the boot script saves.

use std::fmt;

use crate::boot_script::{self, Run, Variables};
pub use crate::boot_script::{Scheme, Slot};

/// Size of a copy.
pub const COPY_BYTES: usize = 0x4000;

/// Where both copies are on their medium.
pub const COPIES: [usize; 2] = [0, 0x40000];

/// Size of the medium.
pub const SIZE_BYTES: usize = 0x80000;

const HEADER_BYTES: usize = 5;

/// The environment as a whole.
#[derive(Clone, Debug)]
pub struct Environment {
    pub variables: Variables,
    /// The copy in force and its serial number; `None` where both are bad, and defaults are in force.
    pub current: Option<(usize, u8)>,
}

/// One start of U-Boot.
#[derive(Clone, Debug)]
pub struct Start {
    pub slot: Slot,
    /// It gave a trial up.
    pub fell_back: bool,
    /// Copies that it wrote: offset and bytes.
    pub saves: Vec<(usize, Vec<u8>)>,
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: &[&str] = match self.scheme() {
            Scheme::Bootcount => &["boot_slot", "upgrade_available", "bootcount"],
            Scheme::Mender => &["mender_boot_part", "upgrade_available", "bootcount"],
            Scheme::Rauc => &["BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"],
        };
        let words: Vec<_> = names.iter().map(|name| format!("{name}={}", self.text(name))).collect();
        f.write_str(&words.join(" "))
    }
}

impl Environment {
    pub fn load(medium: &[u8]) -> Self {
        let copies = COPIES.map(|offset| decode(&medium[offset..offset + COPY_BYTES]));
        let (variables, current) = match copies {
            [Some((_, first)), Some((variables, serial))] if newer(serial, first) => {
                (variables, Some((1, serial)))
            }
            [Some((variables, serial)), _] => (variables, Some((0, serial))),
            [None, Some((variables, serial))] => (variables, Some((1, serial))),
            [None, None] => (Variables::new(), None),
        };
        Self { variables, current }
    }

    pub fn text(&self, name: &str) -> &str {
        boot_script::text(&self.variables, name)
    }

    /// Whose variables they are.
    pub fn scheme(&self) -> Scheme {
        if self.variables.contains_key("BOOT_ORDER") {
            Scheme::Rauc
        } else if self.variables.contains_key("mender_boot_part") {
            Scheme::Mender
        } else {
            Scheme::Bootcount
        }
    }

    /// Never by RAUC's variables, which do not tell it.
    pub fn is_trial(&self) -> bool {
        boot_script::is_trial(&self.variables)
    }

    /// The one that a boot takes, if it need not count.
    pub fn slot(&self) -> Slot {
        boot_script::slot(self.scheme(), &self.variables)
    }

    /// `saveenv`: the copy that is not in force becomes so.
    fn save(&mut self) -> (usize, Vec<u8>) {
        let (target, serial) = match self.current {
            Some((0, serial)) => (1, serial.wrapping_add(1)),
            Some((_, serial)) => (0, serial.wrapping_add(1)),
            None => (0, 1),
        };
        self.current = Some((target, serial));
        (COPIES[target], encode(&self.variables, serial))
    }

    /// From reset to the choice of the slot.
    pub fn start(mut self) -> Start {
        let scheme = self.scheme();
        let first = boot_script::first(scheme, &self.variables);
        let mut saves = Vec::new();
        loop {
            let Run { slot, saves: saved } = boot_script::run(scheme, self.variables.clone());
            for variables in saved {
                self.variables = variables;
                saves.push(self.save());
            }
            // Without one, the script resets.
            if let Some(slot) = slot {
                return Start { slot, fell_back: slot != first, saves };
            }
        }
    }
}

/// A medium as the factory leaves it, in both copies.
pub fn factory(scheme: Scheme, slot: Slot) -> Vec<u8> {
    let variables = match scheme {
        Scheme::Bootcount => own_variables(slot),
        Scheme::Mender | Scheme::Rauc => boot_script::factory(scheme, slot),
    };
    let variables: Variables =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut medium = vec![0; SIZE_BYTES];
    for (offset, serial) in COPIES.into_iter().zip([2, 1]) {
        medium[offset..offset + COPY_BYTES].copy_from_slice(&encode(&variables, serial));
    }
    medium
}

fn own_variables(slot: Slot) -> Vec<(&'static str, &'static str)> {
    let text = include_str!("../../../config/u-boot/twinboot.env");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    // As a board has it, but for the sandbox build, which runs in a directory of the script.
    let bootcmd = ("bootcmd", "load hostfs - 0x1000000 boot.fit; source 0x1000000:script");
    let console = [("stdin", "serial"), ("stdout", "serial"), ("stderr", "serial")];
    let variables = lines.filter_map(|line| line.split_once('='));
    variables.chain([bootcmd]).chain(console).chain([("boot_slot", slot.letter())]).collect()
}

/// 0 follows 255, and between equals the first is in force.
fn newer(second: u8, first: u8) -> bool {
    match (first, second) {
        (255, 0) => true,
        (0, 255) => false,
        _ => second > first,
    }
}

fn encode(variables: &Variables, serial: u8) -> Vec<u8> {
    let mut data: Vec<u8> =
        variables.iter().flat_map(|(name, value)| format!("{name}={value}\0").into_bytes()).collect();
    data.resize(COPY_BYTES - HEADER_BYTES, 0);
    let mut copy = crc32fast::hash(&data).to_le_bytes().to_vec();
    copy.push(serial);
    copy.append(&mut data);
    copy
}

fn decode(copy: &[u8]) -> Option<(Variables, u8)> {
    let (crc, rest) = copy.split_first_chunk::<4>()?;
    let (serial, data) = rest.split_first()?;
    if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
        return None;
    }
    let entries = data.split(|byte| *byte == 0).take_while(|entry| !entry.is_empty());
    let variables = entries.filter_map(|entry| {
        let text = String::from_utf8_lossy(entry);
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Some((variables.collect(), *serial))
}
