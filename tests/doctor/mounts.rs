//! Slots and state found on a root that is really mounted: plain, below an overlay, by every name that `root=` may have.

use std::fs;
use std::process::Command;

use crate::board::{Board, Checks, Disk, checks, put, succeed};

/// What `/` of a board is made of, apart from its own files: the programs, from this machine, and `/dev` as udev has it.
/// `$root` is where it is mounted, `$disk` the loop device, `$dir` the board's directory.
const FURNISH: &str = r#"
for directory in usr proc sys dev board program var/lib/twinboot; do mkdir -p $root/$directory; done
for link in bin lib lib64; do ln -sfn usr/$link $root/$link; done
mount --rbind /usr $root/usr
mount --bind $dir $root/board
mount --bind "$(dirname "$1")" $root/program
mount -t proc proc $root/proc
mount --bind $dir/proc/cmdline $root/proc/cmdline
mount --rbind /sys $root/sys
mount -t tmpfs dev $root/dev
mkdir -p $root/dev/disk/by-partlabel $root/dev/disk/by-partuuid
link() { # NUMBER LABEL UUID
    cp -a $disk"p$1" $root/dev/
    ln -s ../../"$(basename $disk)p$1" $root/dev/disk/by-partlabel/$2
    ln -s ../../"$(basename $disk)p$1" $root/dev/disk/by-partuuid/$3
}
link 2 rootfs_a 0f0e0d0c-02
link 3 rootfs_b 0f0e0d0c-03
link 5 u-boot-env0 0f0e0d0c-05
link 6 u-boot-env1 0f0e0d0c-06
exec chroot $root /program/"$(basename "$1")" doctor --json --config /board/config.toml
"#;

struct Mounted {
    board: Board,
    disk: Disk,
}

impl Mounted {
    /// File systems in both slots and in `data`, and the environment on two raw partitions. `None` where this is not root.
    fn new(kernel_arguments: &str) -> Option<Self> {
        let mut board = Board::new();
        let partitions = [
            (2, 0x2800, 0x4000),
            (3, 0x6800, 0x4000),
            (4, 0xA800, 0x2000),
            (5, 0x800, 0x800),
            (6, 0x1000, 0x800),
        ];
        let disk = Disk::new(board.dir.path(), &partitions)?;
        for number in [2, 3, 4] {
            succeed(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(disk.partition(number)));
        }
        for (slot, file) in [("rootfs_a", "DIR/slot_a"), ("rootfs_b", "DIR/slot_b")] {
            board.configure(file, &format!("/dev/disk/by-partlabel/{slot}"));
        }
        board.configure("DIR/proc", "/proc");
        board.configure("DIR/state", "/var/lib/twinboot");
        for (number, partition) in [(1, 5), (2, 6)] {
            fs::copy(board.path(&format!("env-{number}")), disk.partition(partition)).unwrap();
        }
        let line = |label| format!("/dev/disk/by-partlabel/{label} 0x0 0x1000\n");
        put(&board.path("fw_env.config"), line("u-boot-env0") + &line("u-boot-env1"));
        put(&board.path("proc/cmdline"), format!("quiet {kernel_arguments} panic=5 twinboot.script=1\n"));
        Some(Self { board, disk })
    }

    /// The doctor on a root that `mounts` has put to `$root`, in a mount namespace of its own.
    fn doctor(&self, mounts: &str) -> Checks {
        put(&self.board.path("config.toml"), self.board.config.replace("DIR", "/board"));
        let script = format!("dir=$1 disk=$2 root=$1/root; shift 2; mkdir -p $root; {mounts}\n{FURNISH}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", &script, "sh"]).arg(self.board.dir.path());
        let output = command.arg(&self.disk.device).arg(env!("CARGO_BIN_EXE_twinboot")).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        checks(&serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// Level and a part of the evidence.
#[track_caller]
fn found(checks: &Checks, check: &str, level: &str, evidence: &str) {
    let found = &checks[check];
    assert!(found.0 == level && found.1.contains(evidence), "{check}: {checks:#?}");
}

const DATA: &str = "mkdir -p $root/var/lib/twinboot; mount ${disk}p4 $root/var/lib/twinboot";

#[test]
fn a_root_on_the_slot_itself() {
    let Some(mounted) = Mounted::new("root=PARTUUID=0F0E0D0C-02 twinboot.slot=a") else { return };
    let checks = mounted.doctor(&format!("mount ${{disk}}p2 $root; {DATA}"));
    found(&checks, "slots.booted", "ok", "which is slot a");
    assert!(checks["slots.booted"].1.starts_with("`/` is on device 259:"), "{checks:#?}");
    for (check, evidence) in [
        ("environment.location", "p5 at 0x0"),
        ("environment.copies", "both are good"),
        ("slots.agreement", ""),
        ("slots.free", "slot b"),
        ("slots.environment", ""),
        ("state.place", "on ext4"),
    ] {
        found(&checks, check, "ok", evidence);
    }
    // Without the partition `data` the state is on the slot; and the other slot may be mounted somewhere.
    let checks = mounted.doctor("mount ${disk}p2 $root; mkdir -p $root/old; mount ${disk}p3 $root/old");
    found(&checks, "state.place", "fault", "is on slot a");
    found(&checks, "slots.free", "fault", "mounted at /old");

    // The boot loader meant the other one.
    let Some(mounted) = Mounted::new("root=PARTUUID=0f0e0d0c-03") else { return };
    let checks = mounted.doctor(&format!("mount ${{disk}}p2 $root; {DATA}"));
    found(&checks, "slots.booted", "fault", "two facts disagree");
}

/// As the package overlayroot does it: both parts are moved below the new root.
const OVERLAY: &str = "
mount -t tmpfs media /media
mkdir -p /media/root-ro /media/root-rw
mount -o ro ${disk}p2 /media/root-ro
UPPER
mkdir -p /media/root-rw/up /media/root-rw/work
mount -t overlay overlayroot -o lowerdir=/media/root-ro,upperdir=/media/root-rw/up,workdir=/media/root-rw/work $root
mkdir -p $root/media/root-ro $root/media/root-rw";

const MOVED: &str = "
mount --make-rprivate /
mount --move /media/root-ro $root/media/root-ro
mount --move /media/root-rw $root/media/root-rw";

#[test]
fn a_root_below_an_overlay() {
    let in_memory = OVERLAY.replace("UPPER", "mount -t tmpfs rw /media/root-rw") + MOVED;
    let on_data = OVERLAY.replace("UPPER", "mount ${disk}p4 /media/root-rw") + MOVED;
    let Some(mounted) = Mounted::new("root=/dev/nowhere") else { return };

    let checks = mounted.doctor(&in_memory);
    found(&checks, "slots.booted", "ok", "which is slot a");
    found(&checks, "state.place", "fault", "a reboot empties it");
    let checks = mounted.doctor(&on_data);
    found(&checks, "slots.booted", "ok", "which is slot a");
    found(&checks, "state.place", "ok", "on ext4");
}

/// As initramfs scripts do that leave the lower directory behind: mountinfo names a path that nobody can look up.
#[test]
fn a_root_below_an_overlay_that_hides_it() {
    let hidden = OVERLAY.replace("UPPER", "mount ${disk}p4 /media/root-rw");
    for (arguments, evidence) in [
        ("root=PARTUUID=0F0E0D0C-02", "root=PARTUUID=0F0E0D0C-02"),
        ("root=PARTLABEL=rootfs_a", "root=PARTLABEL=rootfs_a"),
        ("twinboot.slot=a", "twinboot.slot=a"),
    ] {
        let Some(mounted) = Mounted::new(arguments) else { return };
        let checks = mounted.doctor(&hidden);
        found(&checks, "slots.booted", "ok", evidence);
        found(&checks, "state.place", "warning", "where that writes cannot be told");
    }
    let Some(mounted) = Mounted::new("root=/dev/nowhere") else { return };
    found(&mounted.doctor(&hidden), "slots.booted", "fault", "runs from neither slot");
}
