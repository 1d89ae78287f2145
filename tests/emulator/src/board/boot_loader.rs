//! Which slot the boot loader takes: the three boot scripts, as U-Boot would run them.

use std::io;

use super::uboot_env::{Loaded, UbootEnv, Variables};
use super::{Scheme, Slot};

/// Mender's partition numbers.
pub(super) const MENDER_PART_A: &str = "2";
pub(super) const MENDER_PART_B: &str = "3";

/// What the boot loader was compiled with; also what a board leaves the factory with.
pub(super) fn default_variables(scheme: Scheme) -> Variables {
    let variables: &[(&str, &str)] = match scheme {
        Scheme::Bootcount => {
            &[("boot_slot", "a"), ("upgrade_available", "0"), ("bootcount", "0"), ("bootlimit", "3")]
        }
        Scheme::Rauc => &[("BOOT_ORDER", "A B"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "3")],
        Scheme::Mender => &[
            ("mender_boot_part", MENDER_PART_A),
            ("mender_boot_part_hex", MENDER_PART_A),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "1"),
        ],
    };
    let board = [("bootcmd", "run boot_slot_cmd || reset"), ("ethaddr", "00:11:22:33:44:55")];
    let all = variables.iter().chain(&board);
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// One run of the boot script. `None`: it found nothing to boot, and resets the board.
pub(super) fn choose(scheme: Scheme, env: &UbootEnv) -> io::Result<Option<Slot>> {
    let mut loaded = env.load(&default_variables(scheme))?;
    match scheme {
        Scheme::Bootcount => {
            let failed = trial_failed(env, &mut loaded)?;
            if failed {
                let other = boot_slot(&loaded).other();
                set(&mut loaded, "boot_slot", other.letter());
                set(&mut loaded, "upgrade_available", "0");
                set(&mut loaded, "bootcount", "0");
                env.save(&mut loaded)?;
            }
            Ok(Some(boot_slot(&loaded)))
        }
        Scheme::Mender => {
            let failed = trial_failed(env, &mut loaded)?;
            if failed {
                let part = if mender_slot(&loaded) == Slot::A { MENDER_PART_B } else { MENDER_PART_A };
                set(&mut loaded, "mender_boot_part", part);
                set(&mut loaded, "mender_boot_part_hex", part);
                set(&mut loaded, "upgrade_available", "0");
                env.save(&mut loaded)?;
            }
            Ok(Some(mender_slot(&loaded)))
        }
        Scheme::Rauc => choose_rauc(env, &mut loaded),
    }
}

/// `CONFIG_BOOTCOUNT_ENV`: counts while `upgrade_available` is set, and then saves; whether the limit is passed.
fn trial_failed(env: &UbootEnv, loaded: &mut Loaded) -> io::Result<bool> {
    if number(loaded, "upgrade_available", 10) == 0 {
        return Ok(false);
    }
    let bootcount = number(loaded, "bootcount", 10).saturating_add(1);
    set(loaded, "bootcount", &bootcount.to_string());
    env.save(loaded)?;
    let bootlimit = number(loaded, "bootlimit", 10);
    Ok(bootlimit > 0 && bootcount > bootlimit)
}

/// RAUC's `contrib/uboot.sh`: the first slot with attempts left; where there is none, all get them back.
fn choose_rauc(env: &UbootEnv, loaded: &mut Loaded) -> io::Result<Option<Slot>> {
    for (name, value) in [("BOOT_ORDER", "A B"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "3")] {
        if text(loaded, name).is_empty() {
            set(loaded, name, value);
        }
    }
    let order = text(loaded, "BOOT_ORDER").to_owned();
    for slot in order.split_ascii_whitespace().filter_map(Slot::from_rauc_name) {
        let name = format!("BOOT_{}_LEFT", slot.rauc_name());
        let left = number(loaded, &name, 16);
        if left > 0 {
            set(loaded, &name, &format!("{:x}", left - 1));
            env.save(loaded)?;
            return Ok(Some(slot));
        }
    }
    set(loaded, "BOOT_A_LEFT", "3");
    set(loaded, "BOOT_B_LEFT", "3");
    env.save(loaded)?;
    Ok(None)
}

/// `if test "${boot_slot}" = b`: anything else is slot a.
fn boot_slot(loaded: &Loaded) -> Slot {
    if text(loaded, "boot_slot") == "b" { Slot::B } else { Slot::A }
}

fn mender_slot(loaded: &Loaded) -> Slot {
    if text(loaded, "mender_boot_part") == MENDER_PART_B { Slot::B } else { Slot::A }
}

fn text<'loaded>(loaded: &'loaded Loaded, name: &str) -> &'loaded str {
    loaded.variables.get(name).map(String::as_str).unwrap_or_default()
}

/// As `simple_strtoul`: leading digits, else 0.
fn number(loaded: &Loaded, name: &str, radix: u32) -> u32 {
    let text = text(loaded, name);
    let digits = text.find(|c: char| !c.is_digit(radix)).and_then(|end| text.get(..end)).unwrap_or(text);
    u32::from_str_radix(digits, radix).unwrap_or(0)
}

fn set(loaded: &mut Loaded, name: &str, value: &str) {
    loaded.variables.insert(name.to_owned(), value.to_owned());
}
