"""Where a board of the lab has U-Boot's environment: as U-Boot, its own Linux and this machine find both copies."""

import dataclasses
import os
import subprocess

# CONFIG_ENV_SIZE in config/u-boot.
SIZE_BYTES = 0x4000

# As in config/u-boot-fat, and the partition that build-board makes for them.
FAT_FILES = ("uboot.env", "uboot-redund.env")
FAT_OFFSET_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Environment:
    """One place; what Linux must know of it is changed in each root filesystem of the board, as images.py has it."""

    u_boot: str  # the build of build-u-boot
    medium: str  # the image that build-board makes
    boards: tuple  # which of them have such a place
    offsets: tuple = ()  # of the copies in the medium; none for files
    changes: dict = dataclasses.field(default_factory=dict)

    def locate(self, directory):
        """File and offset of each copy on this machine, for a board whose images are in the directory."""
        medium = os.path.join(directory, self.medium)
        if self.offsets:
            return [(medium, offset) for offset in self.offsets]
        files = [f"::{name}" for name in FAT_FILES]
        subprocess.run(["mcopy", "-n", "-o", "-i", f"{medium}@@{FAT_OFFSET_BYTES}", *files, directory], check=True)
        return [(os.path.join(directory, name), 0) for name in FAT_FILES]


def _fw_env(*places):
    return "".join(f"{place} {SIZE_BYTES:#x}\n" for place in places), 0o644


def _fstab(line):
    with open(os.path.join(os.path.dirname(__file__), "rootfs/etc/fstab"), encoding="ascii") as file:
        return file.read() + line + "\n", 0o644


# Part of the drop-in that `twinboot check-config --unit` makes.
def _writable(*paths):
    return "[Service]\n" + "".join(f"ReadWritePaths=-{path}\n" for path in paths), 0o644


ENVIRONMENTS = {
    # What config/boards has.
    "raw": Environment("raw", "sd.img", ("arm64", "x86"), (0x100000, 0x140000)),
    # For U-Boot the same places; for Linux a partition with a name.
    "partition": Environment("raw", "sd.img", ("arm64", "x86"), (0x100000, 0x140000), {
        "/etc/fw_env.config": _fw_env("/dev/disk/by-partlabel/env 0x0", "/dev/disk/by-partlabel/env 0x40000"),
    }),
    "fat": Environment("fat", "sd.img", ("arm64", "x86"), changes={
        "/etc/fw_env.config": _fw_env(*(f"/uboot/{name} 0x0" for name in FAT_FILES)),
        "/etc/fstab": _fstab("/dev/disk/by-partlabel/uboot  /uboot  vfat  noatime,umask=0077"),
        "/etc/systemd/system/twinboot.service.d/environment.conf": _writable(*(f"/uboot/{name}" for name in FAT_FILES)),
    }),
    # Linux has both banks of flash as one device, the environment's behind U-Boot's. Each copy has a sector of its own.
    "flash": Environment("flash", "flash.img", ("arm64",), (0x0, 0x40000), {
        "/etc/fw_env.config": _fw_env("/dev/mtd0 0x4000000", "/dev/mtd0 0x4040000"),
    }),
}
