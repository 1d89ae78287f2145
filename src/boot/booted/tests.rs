use std::io::Write;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::boot::scheme::Scheme;

/// Slots that are files, and a procfs of our own.
struct Board {
    dir: TempDir,
    slots: Slots,
}

impl Board {
    fn new(mountinfo: &str, cmdline: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots {
            a: dir.path().join("slot_a"),
            b: dir.path().join("slot_b"),
            others: std::collections::BTreeMap::new(),
        };
        let board = Self { dir, slots };
        board.put("slot_a", b"");
        board.put("slot_b", b"");
        board.put("proc/self/mountinfo", mountinfo.as_bytes());
        board.put("proc/cmdline", cmdline.as_bytes());
        board
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().write_all(bytes).unwrap();
    }

    fn find(&self) -> Result<Evidence, BootedError> {
        find(&self.dir.path().join("proc"), &self.dir.path().join("disk"), &self.slots)
    }
}

/// `/` on a disk that is no slot, as a host of simulated boards has it.
const OTHER_ROOT: &str = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n";

fn devices() -> SlotDevices {
    let number = |minor| Some(DeviceNumber { major: 179, minor });
    SlotDevices {
        numbers: [(Slot::A, number(2)), (Slot::B, number(3))],
        paths: [(Slot::A, None), (Slot::B, None)],
    }
}

fn slot_by_mounts(text: &str) -> Option<Slot> {
    by_root_mount(&parse_mounts(text), &devices()).map(|evidence| evidence.slot)
}

#[test]
fn the_root_file_system_tells_the_slot() {
    assert_eq!(slot_by_mounts("25 1 179:2 / / rw,relatime shared:1 - ext4 /dev/root rw\n"), Some(Slot::A));
    assert_eq!(
        slot_by_mounts("25 1 179:3 / / ro shared:1 master:2 - squashfs /dev/mmcblk0p3 ro"),
        Some(Slot::B)
    );
    assert_eq!(slot_by_mounts("25 1 179:4 / / rw - ext4 /dev/mmcblk0p4 rw"), None);
    assert_eq!(slot_by_mounts("25 1 179:2 / /mnt rw - ext4 /dev/mmcblk0p2 rw"), None);
    assert_eq!(slot_by_mounts(""), None);
}

#[test]
fn of_two_mounts_on_the_root_the_last_is_seen() {
    let text =
        "1 0 0:2 / / rw - rootfs rootfs rw\n25 1 179:2 / / rw - ext4 a rw\n26 25 179:3 / / rw - ext4 b rw\n";
    assert_eq!(slot_by_mounts(text), Some(Slot::B));
}

#[test]
fn below_an_overlay_the_lowest_directory_tells_the_slot() {
    let text = "\
        30 1 0:28 / / rw - overlay overlay rw,lowerdir=/etc-defaults:/media/root-ro,upperdir=/rw/up,workdir=/rw/work\n\
        31 30 179:3 / /media/root-ro ro - squashfs /dev/mmcblk0p3 ro\n\
        32 30 179:7 / /rw rw - ext4 /dev/mmcblk0p7 rw\n";
    assert_eq!(slot_by_mounts(text), Some(Slot::B));
    let two_slots = "\
        30 1 0:28 / / rw - overlay overlay rw,lowerdir=/from-a/etc:/from-b,upperdir=/u,workdir=/w\n\
        31 30 179:2 / /from-a ro - squashfs a ro\n32 30 179:3 / /from-b ro - squashfs b ro\n";
    assert_eq!(slot_by_mounts(two_slots), Some(Slot::B));
    let one_by_one =
        two_slots.replace("lowerdir=/from-a/etc:/from-b", "lowerdir+=/from-a/etc,lowerdir+=/from-b");
    assert_eq!(slot_by_mounts(&one_by_one), Some(Slot::B));
    let unresolvable = "30 1 0:28 / / rw - overlay overlay rw,lowerdir=/gone,upperdir=/u,workdir=/w\n";
    assert_eq!(slot_by_mounts(unresolvable), None);
}

#[test]
fn blanks_in_mount_points_are_read() {
    let mounts = parse_mounts(r"36 35 98:0 / /mnt\040one\134two rw - ext3 /dev/my\040disk rw");
    assert_eq!(mounts[0].mount_point, Path::new(r"/mnt one\two"));
    assert_eq!(mounts[0].source, "/dev/my disk");
    assert_eq!(unescape(r"\04"), r"\04");
    assert_eq!(unescape(r"a\zzz\"), r"a\zzz\");
    assert_eq!(unescape(r"\377"), r"\377");
}

#[test]
fn kernel_arguments_are_read_as_the_kernel_reads_them() {
    let arguments =
        parse_arguments("quiet root=/dev/a foo=\"x y\" \"bar=1 2\" root=LABEL=r -- root=/dev/init\n");
    assert_eq!(last_value(&arguments, "root"), Some("LABEL=r"));
    assert_eq!(last_value(&arguments, "foo"), Some("x y"));
    assert_eq!(last_value(&arguments, "bar"), Some("1 2"));
    assert_eq!(last_value(&arguments, "quiet"), None);
}

#[test]
fn the_root_argument_is_found_by_its_device_number_and_by_the_links_of_udev() {
    let disk = Path::new("/dev/disk");
    let path = |value| root_path(value, disk).map(|path| path.display().to_string());
    assert_eq!(path("PARTUUID=5C2B-02"), Some("/dev/disk/by-partuuid/5c2b-02".into()));
    assert_eq!(path("PARTLABEL=root fs/a"), Some(r"/dev/disk/by-partlabel/root\x20fs\x2fa".into()));
    assert_eq!(path("LABEL=rootfs_a"), Some("/dev/disk/by-label/rootfs_a".into()));
    assert_eq!(path("UUID=../../../etc"), Some(r"/dev/disk/by-uuid/..\x2f..\x2f..\x2fetc".into()));
    assert_eq!(path("/dev/mmcblk0p2"), Some("/dev/mmcblk0p2".into()));
    assert_eq!(path("ubi0:rootfs"), None);
    let evidence = by_root_argument("179:3", disk, &devices()).unwrap();
    assert_eq!(evidence.slot, Slot::B);
}

#[test]
fn a_slot_that_is_a_file_is_named_by_the_command_line() {
    let board = Board::new(OTHER_ROOT, "console=ttyS0 twinboot.slot=b\n");
    let evidence = board.find().unwrap();
    let fact = Fact::SlotArgument { name: "twinboot.slot", value: "b".into() };
    assert_eq!(evidence, Evidence { slot: Slot::B, fact });
    assert_eq!(Board::new(OTHER_ROOT, "rauc.slot=A").find().unwrap().slot, Slot::A);

    let board = Board::new(OTHER_ROOT, "");
    board.put("proc/cmdline", format!("root={}", board.slots.a.display()).as_bytes());
    assert_eq!(board.find().unwrap().slot, Slot::A);

    fs::create_dir_all(board.dir.path().join("disk/by-partlabel")).unwrap();
    symlink(&board.slots.b, board.dir.path().join("disk/by-partlabel/rootfs_b")).unwrap();
    board.put("proc/cmdline", b"root=PARTLABEL=rootfs_b rauc.slot=B");
    assert_eq!(board.find().unwrap().slot, Slot::B);
}

#[test]
fn two_witnesses_that_disagree_are_an_error_that_names_both() {
    let message = Board::new(OTHER_ROOT, "twinboot.slot=a rauc.slot=B").find().unwrap_err().to_string();
    assert!(message.contains("`twinboot.slot=a`") && message.contains("`rauc.slot=B`"), "{message}");

    let board = Board::new(OTHER_ROOT, "");
    board.put("proc/cmdline", format!("root={} twinboot.slot=b", board.slots.a.display()).as_bytes());
    let message = board.find().unwrap_err().to_string();
    assert!(
        message.contains("slot_a`, which is slot a") && message.contains("`twinboot.slot=b`"),
        "{message}"
    );
}

#[test]
fn a_boot_from_neither_slot_says_what_was_seen() {
    let message = Board::new(OTHER_ROOT, "root=/dev/vda1 quiet").find().unwrap_err().to_string();
    for part in ["254:1 (/dev/vda1)", "`root=/dev/vda1`", "slot_a", "slot_b"] {
        assert!(message.contains(part), "{message}");
    }
    let error = Board::new(OTHER_ROOT, "rauc.slot=rescue").find().unwrap_err();
    assert!(matches!(error, BootedError::BadSlotArgument { name: "rauc.slot", .. }), "{error}");
}

#[test]
fn one_device_for_both_slots_is_an_error() {
    let mut board = Board::new(OTHER_ROOT, "twinboot.slot=a");
    let link = board.dir.path().join("link");
    symlink(&board.slots.a, &link).unwrap();
    board.slots.b = link;
    assert!(matches!(board.find(), Err(BootedError::SlotsAreOne { .. })));
}

#[test]
fn a_missing_or_endless_file_of_procfs_is_named() {
    let board = Board::new(OTHER_ROOT, "twinboot.slot=a");
    board.put("proc/cmdline", &vec![b' '; 2 << 20]);
    assert!(matches!(board.find(), Err(BootedError::TooLong { .. })));
    fs::remove_file(board.dir.path().join("proc/cmdline")).unwrap();
    assert!(matches!(board.find(), Err(BootedError::Read { path, .. }) if path.ends_with("proc/cmdline")));
}

#[test]
fn the_boot_id_is_that_of_the_kernel() {
    let board = Board::new("", "");
    let proc = board.dir.path().join("proc");
    board.put("proc/sys/kernel/random/boot_id", b"5c2b02f0-1e47-4a0c-9d5e-0123456789ab\n");
    assert_eq!(boot_id(&proc).unwrap().to_string(), "5c2b02f01e474a0c9d5e0123456789ab");
    board.put("proc/sys/kernel/random/boot_id", b"none\n");
    assert!(matches!(boot_id(&proc), Err(BootedError::BadBootId { .. })));
    assert_eq!(boot_id(Path::new("/proc")).unwrap(), boot_id(Path::new("/proc")).unwrap());
}

/// Shows canonical/snapd#5145, #5148.
#[test]
fn the_environment_must_name_the_booted_slot_except_during_a_trial() {
    let view = |text: &str| {
        let variables = text.split('|').map(|entry| entry.split_once('=').unwrap());
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Scheme::Bootcount.view(&variables).unwrap()
    };
    let booted = Evidence { slot: Slot::A, fact: Fact::RootMount(DeviceNumber { major: 179, minor: 2 }) };
    assert_eq!(agreement(&view("boot_slot=a|upgrade_available=0"), &booted), Ok(()));
    assert_eq!(agreement(&view("boot_slot=b|upgrade_available=1"), &booted), Ok(()));
    let message = agreement(&view("boot_slot=b|upgrade_available=0"), &booted).unwrap_err().to_string();
    assert!(
        message.contains("environment has slot b") && message.contains("179:2, which is slot a"),
        "{message}"
    );
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "(?s).{0,300}") {
        let lines = text.lines().count();
        prop_assert!(parse_mounts(&text).len() <= lines);
        prop_assert!(parse_arguments(&text).len() <= text.len());
    }

    #[test]
    fn any_mount_line_is_read_without_panic(
        number in "[0-9:]{0,30}", path in r"(\\[0-9]{0,4}|[a-z/é]){0,20}", rest in "[a-z -]{0,40}"
    ) {
        let mounts = parse_mounts(&format!("1 1 {number} / /{path} rw - {rest}"));
        prop_assert!(mounts.iter().all(|mount| mount.mount_point.is_absolute()));
    }
}
