//! The boot loader of a board: its boot script, on the environment in the board's files.

use std::io;

use super::boot_script::{self, Run, Variables};
use super::uboot_env::UbootEnv;
use super::{Scheme, Slot};

/// What the boot loader was compiled with; also what a board leaves the factory with.
pub(super) fn default_variables(scheme: Scheme) -> Variables {
    let board = [("bootcmd", "run boot_slot_cmd || reset"), ("ethaddr", "00:11:22:33:44:55")];
    let all = boot_script::factory(scheme, Slot::A).into_iter().chain(board);
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// One run of the boot script. `None`: it found nothing to boot, and resets the board.
pub(super) fn choose(scheme: Scheme, env: &UbootEnv) -> io::Result<Option<Slot>> {
    let mut loaded = env.load(&default_variables(scheme))?;
    let Run { slot, saves } = boot_script::run(scheme, loaded.variables.clone());
    for variables in saves {
        loaded.variables = variables;
        env.save(&mut loaded)?;
    }
    Ok(slot)
}
