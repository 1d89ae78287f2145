use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinboot::boot::booted::{Evidence, Fact, argument, boot_id, booted_slot, home};
use twinboot::config::Slots;
use twinboot::install::slot::{mount_point, swap_names};
use twinboot::update::Slot;

use crate::part::split;
use crate::scratch::Scratch;

/// Files that every machine has, in place of the slots: `root=` may name them.
const SLOTS: [(Slot, &str); 2] = [(Slot::A, "/etc/passwd"), (Slot::B, "/etc/group")];

thread_local! {
    static PROC: Scratch = Scratch::new();
}

/// procfs: the kernel's command line, and `mountinfo` behind a separator; all of it also as `mountinfo` and `swaps`.
pub fn proc(data: &[u8]) {
    let (command_line, mounts) = split(data);
    let mounts = mounts.unwrap_or_default();
    PROC.with(|proc| {
        proc.write("cmdline", command_line);
        proc.write("self/mountinfo", mounts);
        proc.write("sys/kernel/random/boot_id", command_line);
        which_slot(proc.directory(), &String::from_utf8_lossy(command_line));
        which_boot(proc.directory(), command_line);
        let [(_, a), (_, b)] = SLOTS;
        if let Ok(home) = home(proc.directory(), Path::new(a), &slots(a, b)) {
            let known = |file_system| String::from_utf8_lossy(mounts).contains(file_system);
            assert!(home.file_system.as_deref().is_none_or(known));
        }
    });
    nothing_hides_a_user(&String::from_utf8_lossy(data));
}

/// Whatever stands before it, a slot that is mounted, or is swap, is not taken for a free one.
fn nothing_hides_a_user(text: &str) {
    let mounts = format!("{text}\n36 22 259:3 / /mnt rw - ext4 /dev/x rw\n");
    assert!(mount_point(&mounts, "259:3").is_some());
    let swaps = format!("Filename\tType\n{text}\n/dev/x partition 8 0 -2\n");
    assert!(swap_names(&swaps).any(|name| name == "/dev/x"));
}

fn slots(a: &str, b: &str) -> Slots {
    Slots { a: PathBuf::from(a), b: PathBuf::from(b), others: BTreeMap::new() }
}

/// A slot is booted only if the command line says so: the devices here are no mounts.
fn which_slot(proc: &Path, command_line: &str) {
    let [(_, a), (_, b)] = SLOTS;
    let found = booted_slot(proc, &slots(a, b));
    let said = |name| argument(proc, name).expect("it can be read");
    match &found {
        Ok(Evidence { slot, fact: Fact::SlotArgument { name, value } }) => {
            assert_eq!(said(name).as_ref(), Some(value));
            assert!(value.eq_ignore_ascii_case(&slot.to_string()) && command_line.contains(value.as_str()));
        }
        Ok(Evidence { slot, fact: Fact::RootArgument(value) }) => {
            assert_eq!(said("root").as_ref(), Some(value));
            let (_, device) = SLOTS[usize::from(*slot == Slot::B)];
            assert_eq!(std::fs::canonicalize(value).ok(), std::fs::canonicalize(device).ok());
        }
        Ok(Evidence { fact: Fact::RootMount(device), .. }) => panic!("no slot is a device: {device}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let (Ok(evidence), Some(named)) = (&found, said("twinboot.slot")) {
        assert!(named.eq_ignore_ascii_case(&evidence.slot.to_string()), "all that know it agree");
    }
    // With the slots changed over, what is known by its device is the other slot.
    if let (Ok(one), Ok(other)) = (&found, booted_slot(proc, &slots(b, a)))
        && let Fact::RootArgument(_) = one.fact
    {
        assert_ne!(one.slot, other.slot);
    }
}

fn which_boot(proc: &Path, text: &[u8]) {
    let Ok(id) = boot_id(proc) else { return };
    let text = String::from_utf8_lossy(text);
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    assert_eq!(id.to_string(), digits.to_ascii_lowercase(), "a boot id is 32 digits");
}
