//! What U-Boot does at a reset, to the byte and to the write: the choice of the environment's copy
//! (`env_import_redund`), the boot counter (`CONFIG_BOOTCOUNT_ENV`), and a boot script: the tree's, RAUC's
//! (`contrib/uboot.sh`), or Mender's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Size of a copy.
pub const COPY_BYTES: usize = 0x4000;

/// Where both copies are on their medium.
pub const COPIES: [usize; 2] = [0, 0x40000];

/// Size of the medium.
pub const SIZE_BYTES: usize = 0x80000;

const HEADER_BYTES: usize = 5;

/// Without the variable `bootlimit`.
const BOOTLIMIT: u32 = 3;

/// What RAUC's script gives a slot where none has an attempt left.
const RAUC_LEFT: &str = "3";

pub type Variables = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    A,
    B,
}

impl Slot {
    pub fn letter(self) -> &'static str {
        if self == Self::A { "a" } else { "b" }
    }

    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }

    /// Mender's number of its partition.
    fn part(self) -> &'static str {
        if self == Self::A { "2" } else { "3" }
    }

    /// RAUC's name of its attempts.
    fn left(self) -> &'static str {
        if self == Self::A { "BOOT_A_LEFT" } else { "BOOT_B_LEFT" }
    }
}

/// Whose boot script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    Own,
    Mender,
    Rauc,
}

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
        let names: &[&str] = match self.script() {
            Script::Own => &["boot_slot", "upgrade_available", "bootcount"],
            Script::Mender => &["mender_boot_part", "upgrade_available", "bootcount"],
            Script::Rauc => &["BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"],
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
        self.variables.get(name).map_or("", String::as_str)
    }

    /// As `simple_strtoul`: leading digits, else 0.
    fn number(&self, name: &str) -> u32 {
        let text = self.text(name);
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().unwrap_or(0)
    }

    /// Whose variables they are.
    pub fn script(&self) -> Script {
        if self.variables.contains_key("BOOT_ORDER") {
            Script::Rauc
        } else if self.variables.contains_key("mender_boot_part") {
            Script::Mender
        } else {
            Script::Own
        }
    }

    /// Never by RAUC's variables, which do not tell it.
    pub fn is_trial(&self) -> bool {
        self.number("upgrade_available") != 0
    }

    /// The one that a boot takes, if it need not count.
    pub fn slot(&self) -> Slot {
        match self.script() {
            Script::Own if self.text("boot_slot") == "b" => Slot::B,
            // By which it finds the kernel.
            Script::Mender if self.text("mender_boot_part_hex") == Slot::B.part() => Slot::B,
            Script::Own | Script::Mender => Slot::A,
            Script::Rauc => self.first_with_attempts().unwrap_or_else(|| self.order()[0]),
        }
    }

    /// RAUC's, which names one slot at least.
    fn order(&self) -> Vec<Slot> {
        let names = self.text("BOOT_ORDER").split_ascii_whitespace();
        names.map(|name| if name == "B" { Slot::B } else { Slot::A }).collect()
    }

    fn first_with_attempts(&self) -> Option<Slot> {
        self.order().into_iter().find(|slot| self.number(slot.left()) > 0)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
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
    pub fn start(self) -> Start {
        if self.script() == Script::Rauc { self.start_in_order() } else { self.start_counting() }
    }

    /// Takes an attempt at each start, of committed slots too.
    fn start_in_order(mut self) -> Start {
        let mut saves = Vec::new();
        if self.first_with_attempts().is_none() {
            for slot in [Slot::A, Slot::B] {
                self.set(slot.left(), RAUC_LEFT);
            }
            saves.push(self.save());
        }
        let slot = self.slot();
        let left = self.number(slot.left()) - 1;
        self.set(slot.left(), &left.to_string());
        saves.push(self.save());
        Start { slot, fell_back: slot != self.order()[0], saves }
    }

    fn start_counting(mut self) -> Start {
        let (mut saves, mut fell_back) = (Vec::new(), false);
        if self.is_trial() {
            let bootcount = self.number("bootcount") + 1;
            self.set("bootcount", &bootcount.to_string());
            saves.push(self.save());
            let bootlimit =
                if self.text("bootlimit").is_empty() { BOOTLIMIT } else { self.number("bootlimit") };
            if bootlimit > 0 && bootcount > bootlimit {
                let other = self.slot().other();
                self.set("upgrade_available", "0");
                if self.script() == Script::Mender {
                    self.set("mender_boot_part", other.part());
                    self.set("mender_boot_part_hex", other.part());
                } else {
                    // altbootcmd of config/u-boot/twinboot.env
                    self.set("boot_slot", other.letter());
                    self.set("bootcount", "0");
                }
                saves.push(self.save());
                fell_back = true;
            }
        }
        Start { slot: self.slot(), fell_back, saves }
    }
}

/// A medium as the factory leaves it, in both copies.
pub fn factory(script: Script, slot: Slot) -> Vec<u8> {
    let variables = match script {
        Script::Own => own_variables(slot),
        Script::Mender => vec![
            ("mender_boot_part", slot.part()),
            ("mender_boot_part_hex", slot.part()),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "1"),
        ],
        Script::Rauc => vec![
            ("BOOT_ORDER", if slot == Slot::A { "A B" } else { "B A" }),
            (Slot::A.left(), RAUC_LEFT),
            (Slot::B.left(), RAUC_LEFT),
        ],
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
