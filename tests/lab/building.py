"""What the lab is made of: the steps that build it, and the network that it runs in."""

import ctypes
import os
import subprocess
import time

from board import KINDS

TREE = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
TARGET = os.path.realpath(os.environ.get("CARGO_TARGET_DIR", os.path.join(TREE, "target")))
LAB = os.path.join(TARGET, "lab")

# Of linux/sched.h; os.unshare came with Python 3.12.
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000


def say(text):
    print(text, flush=True)


def build(*command):
    """A step whose last line tells what it made."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, text=True, check=True)
    say(f"   {time.monotonic() - began:6.1f} s  {' '.join(command)}")
    return done.stdout.strip().split("\n")[-1]


def build_all(board, environments):
    """The emulator, the root filesystem, and U-Boot for each of the environments."""
    say("== Building")
    kind = KINDS[board]
    # Of build-board too, which has no network to install anything from.
    build("packaging/need", f"{kind.qemu_package}:{kind.qemu[0]}", "libubootenv-tool:fw_printenv", "zstd:zstd",
          "e2fsprogs:debugfs", "iproute2:ip", "u-boot-tools:mkimage", "fdisk:sfdisk", "dosfstools:mkfs.vfat",
          "mtools:mcopy", "minisign:minisign")
    build("cargo", "build", "-q", "--locked", "--workspace", "--bin", "hub-emulator")
    package = (build("env", "WITHOUT_TOOL=1", "packaging/build-deb", kind.architecture)
               and newest_package(kind.architecture))
    u_boots = {name: build("tests/lab/build-u-boot", board, name)
               for name in sorted({environment.u_boot for environment in environments})}
    kernel = build("tests/lab/build-kernel", board)
    rootfs = build("tests/lab/build-rootfs", board, kind.architecture, package, kernel)
    return os.path.join(TARGET, "debug/hub-emulator"), rootfs, u_boots


def newest_package(architecture):
    directory = os.path.join(TARGET, "debian")
    found = [os.path.join(directory, name) for name in os.listdir(directory)
             if name.startswith("twinboot_") and name.endswith(f"_{architecture}.deb")]
    return max(found, key=os.path.getmtime)


def leave_network():
    """This process gets a loopback interface of its own, whose ports no other run of the lab has."""
    _unshare(CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def leave_mounts():
    """What this process mounts ends with it, however it ends."""
    _unshare(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def _unshare(what):
    if ctypes.CDLL(None, use_errno=True).unshare(what) != 0:
        raise OSError(ctypes.get_errno(), "cannot leave the namespaces of this machine")
