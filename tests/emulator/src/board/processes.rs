//! Which processes a daemon has started, by what the kernel says of each one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One that runs: zombies hold nothing any more.
struct Process {
    parent: i32,
    group: i32,
}

/// `root`, the processes of its group, and all that descend from those, whatever their group.
pub(super) fn family(root: i32) -> BTreeSet<i32> {
    let running = running();
    let in_group = running.iter().filter(|(pid, process)| **pid == root || process.group == root);
    let mut family: BTreeSet<i32> = in_group.map(|(pid, _)| *pid).collect();
    loop {
        let children = running.iter().filter(|(_, process)| family.contains(&process.parent));
        let larger: BTreeSet<i32> = children.map(|(pid, _)| *pid).chain(family.iter().copied()).collect();
        if larger.len() == family.len() {
            return family;
        }
        family = larger;
    }
}

/// Whether one of them still runs.
pub(super) fn any_runs(pids: &BTreeSet<i32>) -> bool {
    pids.iter().any(|pid| read(*pid).is_some())
}

fn running() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, read(pid)?))).collect()
}

/// `pid (name) state parent group …`: proc(5). The name may hold blanks and parentheses.
fn read(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let process = Process { parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? };
    (!matches!(state, "Z" | "X")).then_some(process)
}
