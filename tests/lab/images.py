"""Images to update the lab's board to: each the root filesystem with a few files changed, compressed."""

import hashlib
import os
import subprocess
import tempfile

from building import TARGET

# Of a service that starts when systemd is up, and before the daemon.
PANIC = "[Service]\nExecStartPre=+/bin/sh -c 'echo c >/proc/sysrq-trigger'\n"
WRONG_NETWORK = "[Match]\nType=ether\n[Network]\nAddress=192.168.77.7/24\nLinkLocalAddressing=no\n"
DYING_INIT = "#!/bin/sh\necho 'this init dies'\nexit 1\n"
# Neither its data nor, on that, its state.
BAD_FSTAB = """/dev/disk/by-partlabel/gone /data ext4 x-systemd.device-timeout=5s
/data/twinboot /var/lib/twinboot none bind
"""
# The root is writable in memory, over the slot.
OVERLAY_INIT = """#!/bin/sh
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mkdir lower
pivot_root . lower
mount --move /lower/dev /dev
exec chroot . /lib/systemd/systemd
"""

# An image of several frames goes on where it was after a power cut, at the begin of one.
FRAME_BYTES = 8 << 20

# name: paths with their new content (text or bytes) and mode; None removes the path.
VARIANTS = {
    "good": {},
    "init-dies": {"/usr/sbin/init": (DYING_INIT, 0o755)},
    "kernel-panics": {"/etc/systemd/system/dbus.service.d/panic.conf": (PANIC, 0o644)},
    "overlay": {"/usr/sbin/init": (OVERLAY_INIT, 0o755)},
    "bad-fstab": {"/etc/fstab": (BAD_FSTAB, 0o644)},
    "no-daemon": {"/usr/bin/twinboot": None},
    "not-enabled": {"/etc/systemd/system/multi-user.target.wants/twinboot.service": None},
    "no-network": {"/etc/systemd/network/eth.network": (WRONG_NETWORK, 0o644)},
    "truncated": {},
}


class Image:
    def __init__(self, path, version):
        self.path, self.version, self.size = path, version, os.path.getsize(path)
        with open(path, "rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def unpack(self, path):
        subprocess.run(["zstd", "-q", "-d", "-f", "-o", path, self.path], check=True)


def make(rootfs, variant, version):
    """The image, kept beside `rootfs`, the ext4 image that it is made from."""
    with open(__file__, "rb") as recipe:
        recipe_hash = hashlib.file_digest(recipe, "sha256").hexdigest()[:8]
    path = f"{rootfs.removesuffix('.ext4')}-{variant}-{version}-{recipe_hash}.ext4.zst"
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(rootfs)) as work:
            _make(rootfs, VARIANTS[variant], version, variant == "truncated", work, path)
    return Image(path, version)


def changed(rootfs, name, changes):
    """The ext4 image with these changes, kept beside `rootfs`."""
    if not changes:
        return rootfs
    changes_hash = hashlib.sha256(repr(changes).encode()).hexdigest()[:8]
    path = f"{rootfs.removesuffix('.ext4')}-{name}-{changes_hash}.ext4"
    with tempfile.TemporaryDirectory(dir=os.path.dirname(rootfs)) as work:
        os.rename(_change(rootfs, changes, work), path)
    return path


def _change(rootfs, changes, work):
    image = os.path.join(work, "image")
    subprocess.run(["cp", "--sparse=always", rootfs, image], check=True)
    commands = []
    for number, (name, change) in enumerate(changes.items()):
        directory = os.path.dirname(name)
        commands += [f"mkdir {directory}"] if directory.endswith(".d") else []
        commands += [f"rm {name}"]
        if change:
            content, mode = change
            source = os.path.join(work, str(number))
            with open(source, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
            os.chmod(source, mode)
            commands += [f"write {source} {name}"]
    subprocess.run(["debugfs", "-w", "-f", "-", image], input="\n".join(commands), text=True, check=True,
                   capture_output=True)
    return image


def _make(rootfs, changes, version, truncated, work, path):
    os_release = f"ID=debian\nVERSION_ID=12\nIMAGE_ID=twinboot-lab\nIMAGE_VERSION={version}\n"
    image = _change(rootfs, {"/usr/lib/os-release": (os_release, 0o644), **changes}, work)
    if truncated:
        os.truncate(image, os.path.getsize(image) // 2)
    with open(image, "rb") as source, open(path + ".part", "wb") as out:
        while piece := source.read(FRAME_BYTES):
            out.write(subprocess.run(["zstd", "-q", "-6"], input=piece, stdout=subprocess.PIPE, check=True).stdout)
    os.rename(path + ".part", path)


def stick(image, directory):
    """A USB stick with the image as a signed bundle: its path, and the public key."""
    def path(name):
        return os.path.join(directory, name)

    def run(*command):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    bundle, medium = path("update.twb"), path("stick.img")
    image.unpack(path("image"))
    run("minisign", "-G", "-W", "-f", "-p", path("stick.pub"), "-s", path("stick.key"))
    tool = (os.path.join(TARGET, "debug/twinbootctl"), "bundle")
    # As fast as it goes: what is tried is the stick.
    run(*tool, "create", "--version", image.version, "--image", f"rootfs={path('image')}", "--level", "1", "-o", bundle)
    run(*tool, "sign", bundle, "--key", path("stick.key"))
    run("truncate", "-s", f"{(os.path.getsize(bundle) >> 20) + 6}M", medium)
    subprocess.run(["sfdisk", "-q", medium], input="label: dos\nstart=1MiB, type=c\n", text=True, check=True)
    run("mkfs.vfat", "--offset", "2048", medium)
    run("mcopy", "-i", f"{medium}@@1M", bundle, "::")
    with open(path("stick.pub"), encoding="ascii") as file:
        return medium, file.read()
