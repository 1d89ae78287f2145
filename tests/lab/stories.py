"""What the lab shows: each story is a function of a `Scene`, and fails by an exception."""

import functools
import json
import time

import images
from board import KINDS, Failed

# Emulation on a loaded machine: a boot takes 10 s, and an install 30 s, where nothing else runs.
BOOT_SECS = 120
UPDATE_SECS = 400
TRIAL_SECS = 600

STORIES = {}
FAST = ("good",)


def story(function, environment="raw", boards=tuple(KINDS)):
    function.environment, function.boards = environment, boards
    STORIES[function.__name__.replace("_", "-")] = function
    return function


def story_of(environment):
    """One whose board has U-Boot's environment there."""
    return functools.partial(story, environment=environment)


def story_on(*boards):
    """One of these boards alone."""
    return functools.partial(story, boards=boards)


class Scene:
    """One board with its cloud; what several stories have in common."""

    def __init__(self, board, hub, images, clock, make_image, log):
        self.board, self.hub, self.images, self.clock, self.log = board, hub, images, clock, log
        self.make_image = make_image

    def check(self, what, condition):
        if not condition:
            raise Failed(what)
        self.log.story(f"ok: {what}")

    def wait(self, what, limit_secs, condition):
        """Until the condition gives something true, which is returned."""
        end = time.monotonic() + limit_secs
        while not (result := condition()):
            if time.monotonic() > end:
                raise Failed(f"waited {limit_secs} s in vain: {what}")
            time.sleep(0.3)
        self.log.story(f"ok: {what}")
        return result

    def wait_status(self, wanted, limit_secs, update_id=None):
        def reached():
            twin = self.hub.reported()
            firmware = twin.get("firmware") or {}
            if twin.get("firmwareStatus") != wanted or (update_id and firmware.get("updateId") != update_id):
                return None
            return twin

        twin = self.wait(f"the twin says {wanted}", limit_secs, reached)
        self.log.story(f"twin: {twin}")
        return twin

    def start(self, **power):
        self.board.power_on(**power)
        self.wait("the board is connected", BOOT_SECS, lambda: self.status("hubConnected") is True)
        self.wait("its clock is right", BOOT_SECS, lambda: "yes" in self.board.run(
            "timedatectl show -p NTPSynchronized --value"))

    def json(self, command):
        """What a command of the board prints as JSON; empty where it does not yet."""
        try:
            return json.loads(self.board.run(command, BOOT_SECS))
        except ValueError:
            return {}

    def status(self, key):
        return self.json("twinboot status --json").get(key)

    def request(self, variant, version):
        image = self.make_image(variant, version)
        update_id = f"{variant}-{version}"
        return {
            "fwPackageUri": self.images.url(image),
            "fwPackageCheckValue": image.sha256,
            "fwVersion": version,
            "fwSize": image.size,
            "updateId": update_id,
        }

    def begin(self, variant, version):
        """Calls `firmwareUpdate`; returns the id of the update."""
        request = self.request(variant, version)
        status, answer = self.hub.call("firmwareUpdate", request)
        self.log.story(f"firmwareUpdate {variant} {version}: {status} {answer}")
        self.check("the update is accepted", status == 200)
        return request["updateId"]

    def begin_and_fetch_half(self, variant, version):
        self.images.rate = 1_000_000
        update_id = self.begin(variant, version)
        self.wait("half of the image is fetched", UPDATE_SECS,
                  lambda: (self.hub.reported()["firmware"].get("progress") or {}).get("percent", 0) >= 50)
        return update_id

    def check_slot(self, slot):
        """The slot runs, is committed, and is what every witness names."""
        twin = self.hub.reported()
        self.check(f"the twin names slot {slot}", twin["firmware"]["slots"]["booted"] == slot)
        self.check(f"U-Boot's environment names slot {slot}", self.board.variable("boot_slot") == slot)
        self.check("no trial is armed", self.board.variable("upgrade_available") == "0")
        command_line = self.board.run("cat /proc/cmdline")
        self.check(f"the kernel was started from slot {slot}", f"twinboot.slot={slot}" in command_line)

    def confine(self):
        """Until the next boot, the service may reach what `check-config --unit` says of this board, and no more."""
        self.board.run("mkdir -p /run/systemd/system/twinboot.service.d && twinboot check-config --unit "
                       ">/run/systemd/system/twinboot.service.d/devices.conf && systemctl daemon-reload && "
                       "systemctl restart twinboot")
        self.wait("restarted, the board is connected", BOOT_SECS, lambda: self.status("hubConnected") is True)

    def environment_elsewhere(self):
        """Each of U-Boot and twinboot finds there what the other wrote: three boots are counted, and taken back."""
        self.falls_back("init-dies", "BootFailed", "abbba")
        self.confine()
        self.update("3.0", "b")
        checks = self.json("twinboot doctor --json").get("checks", [])
        found = [check for check in checks if check["check"].startswith("environment.") and check["level"] != "ok"]
        self.check(f"the doctor is content with the environment: {found}", checks and not found)

    def update(self, version, slot, variant="good"):
        update_id = self.begin(variant, version)
        twin = self.wait_status("completed", UPDATE_SECS, update_id)
        self.check("its version is reported", twin["firmware"]["currentFwVersion"] == version)
        self.check("the time of the update is reported", twin.get("lastFirmwareUpdate"))
        self.check_slot(slot)

    def falls_back(self, variant, code, boots):
        """An update that must end where it began, with no hand on the board."""
        self.start()
        update_id = self.begin(variant, "2.0")
        twin = self.wait_status("rolledBack", UPDATE_SECS + TRIAL_SECS, update_id)
        error = twin["firmware"]["error"]
        self.check(f"the reason is {code}: {error['message']}", error["code"] == code)
        self.check(f"the slots were booted in the order {boots}", self.board.boots() == boots)
        self.check("the version is the old one", twin["firmware"]["currentFwVersion"] == "1.0")
        self.check_slot("a")


@story
def good(scene):
    """A good image ends `completed` in the other slot."""
    scene.start()
    scene.update("2.0", "b")
    scene.check("one boot from each slot", scene.board.boots() == "ab")


# Shows balena-os/balena-raspberrypi#254, meta-balena#1346, #1349, #2301, #3299.
@story
def init_dies(scene):
    """Its init ends: the kernel panics, three times; U-Boot goes back."""
    scene.falls_back("init-dies", "BootFailed", "abbba")
    scene.check("the kernel panicked three times", scene.board.console_count("Attempted to kill init") == 3)


# Shows fedora-iot/greenboot#107, #135, greenboot-rs#106, tiiuae/ghaf#2155.
@story
def kernel_panics(scene):
    """Its kernel panics after systemd has started, three times."""
    scene.falls_back("kernel-panics", "BootFailed", "abbba")
    scene.check("the kernel panicked three times", scene.board.console_count("sysrq triggered crash") == 3)


@story
def no_daemon(scene):
    """It has no daemon: twinboot-trial.timer reboots it until U-Boot goes back."""
    scene.falls_back("no-daemon", "BootFailed", "abbba")


@story
def not_enabled(scene):
    """Nobody has enabled its daemon: the same."""
    scene.falls_back("not-enabled", "BootFailed", "abbba")


@story
def bad_fstab(scene):
    """It cannot mount its data, and stays in emergency mode: twinboot-trial.timer reboots it until U-Boot goes back."""
    scene.falls_back("bad-fstab", "BootFailed", "abbba")
    scene.check("it was in emergency mode", scene.board.console_count("You are in emergency mode") > 0)


@story
def no_network(scene):
    """It does not reach the hub: its own daemon rolls it back."""
    scene.falls_back("no-network", "HealthCheckFailed", "aba")


@story
def truncated(scene):
    """Half a file system, with the right check value."""
    scene.falls_back("truncated", "BootFailed", "abbba")


@story
def three_updates(scene):
    """Three in a row, each to the other slot."""
    scene.start()
    for version, slot in (("2.0", "b"), ("3.0", "a"), ("4.0", "b")):
        scene.update(version, slot)
    scene.check("one boot for each", scene.board.boots() == "abab")


# Shows balena-os/balena-raspberrypi#254, meta-balena#1346, #1349, #2301, #3299.
@story
def power_cut(scene):
    """Cut while the image is fetched, and again in the first boot of the trial; finished from where it was."""
    scene.start()
    update_id = scene.begin_and_fetch_half("good", "2.0")
    scene.board.power_cut()
    scene.images.rate = None
    fetched = len(scene.images.asked)
    scene.board.power_on()
    scene.board.wait_console("twinboot: slot b, trial 1, boot 1", UPDATE_SECS)
    again = scene.images.asked[fetched:]
    scene.check(f"it went on where it was: {again}", again and all(asked for asked in again))
    scene.board.wait_console("systemd.*Welcome|Welcome to|Started|Reached", BOOT_SECS)
    scene.board.power_cut()
    scene.board.power_on()
    scene.wait_status("completed", UPDATE_SECS, update_id)
    scene.check_slot("b")
    scene.check("the second boot of the trial was the good one", scene.board.boots() == "aabb")


@story
def hub_away(scene):
    """The hub is away from the moment the update is accepted until it is done; the report follows."""
    scene.start()
    update_id = scene.begin("good", "2.0")
    scene.hub.keep_out(["gateway-1"])
    scene.board.wait_console("twinboot: slot b, trial 1", UPDATE_SECS)
    scene.wait("the trial waits for the hub", BOOT_SECS, lambda: scene.status("hubConnected") is False)
    scene.hub.keep_out([])
    twin = scene.wait_status("completed", UPDATE_SECS, update_id)
    scene.check("the time of the update is reported", twin.get("lastFirmwareUpdate"))
    scene.check_slot("b")


# Shows F20.
@story
def clock_at_1970(scene):
    """The clock is at 1970 at power-on (systemd makes its own build date of it), and the time server late."""
    scene.clock.answering.clear()
    scene.board.power_on(rtc="1970-01-01T00:00:00")
    scene.wait("the daemon is up", BOOT_SECS, lambda: (scene.status("reported") or {}).get("firmwareStatus") == "standBy")
    off_secs = time.time() - int(scene.board.run("date +%s"))
    scene.check(f"the clock is {off_secs / 86400:.0f} days off", off_secs > 86400)
    scene.clock.answering.set()
    # The hub refused the token of a wrong time, and is asked again later and later.
    scene.wait("the board is connected", TRIAL_SECS, lambda: scene.status("hubConnected") is True)
    scene.update("2.0", "b")


@story
def cancel(scene):
    """`cancelFirmwareUpdate` ends the download, and the next update is taken."""
    scene.start()
    scene.images.rate = 500_000
    scene.begin("good", "2.0")
    scene.wait_status("downloading", BOOT_SECS)
    status, answer = scene.hub.call("cancelFirmwareUpdate")
    scene.check(f"the update is cancelled: {answer}", status == 200)
    twin = scene.wait_status("failed", BOOT_SECS)
    scene.check("the twin says so", twin["firmware"]["error"]["code"] == "Cancelled")
    scene.check_slot("a")
    scene.images.rate = None
    scene.update("3.0", "b")


@story
def rollback_by_hand(scene):
    """`twinboot rollback` after a good update: back to the predecessor."""
    scene.start()
    scene.update("2.0", "b")
    scene.log.story(scene.board.run("twinboot rollback"))
    twin = scene.wait_status("rolledBack", UPDATE_SECS)
    scene.check("the version is the old one", twin["firmware"]["currentFwVersion"] == "1.0")
    scene.check_slot("a")
    scene.check("one boot for each", scene.board.boots() == "aba")


@story
def overlay_root(scene):
    """An image whose root is an overlay of the slot: the slot is still found, and the next update goes to the other."""
    scene.start()
    scene.update("2.0", "b", "overlay")
    scene.check("the root is an overlay", "overlay" in scene.board.run("findmnt -no FSTYPE / || grep ' / ' /proc/mounts"))
    scene.update("3.0", "a")


@story
def memory_runs_out(scene):
    """The kernel kills the daemon for its memory in mid-download: it goes on where it was."""
    scene.start()
    update_id = scene.begin_and_fetch_half("good", "2.0")
    fetched = len(scene.images.asked)
    scene.board.run("systemctl set-property --runtime twinboot MemoryMax=2M")
    scene.wait("the kernel has killed it", BOOT_SECS, lambda: "result 'oom-kill'" in scene.board.run(
        "journalctl -b -u twinboot -o cat", BOOT_SECS))
    scene.board.run("systemctl set-property --runtime twinboot MemoryMax=infinity")
    scene.images.rate = None
    scene.wait_status("completed", UPDATE_SECS, update_id)
    again = scene.images.asked[fetched:]
    scene.check(f"it went on where it was: {again}", again and all(again))
    scene.check_slot("b")


# Shows hub.mender.io t/2167.
@story
def environment_lost(scene):
    """Both copies of U-Boot's environment are gone: the board boots, says so, and takes no update."""
    scene.board.lose_environment()
    scene.start()
    scene.check("slot a was booted", scene.board.boots() == "a")
    status, answer = scene.hub.call("firmwareUpdate", scene.request("good", "2.0"))
    scene.check(f"no update is accepted: {answer}", (status, answer["error"]["code"]) == (412, "EnvironmentUnusable"))


@story_of("partition")
def environment_partition(scene):
    """The environment is in a partition of its own."""
    scene.environment_elsewhere()


# Shows canonical/snapd#5145, #5148.
@story_of("fat")
def environment_fat(scene):
    """The environment is two files on a FAT partition."""
    scene.environment_elsewhere()


@story_of("flash")
def environment_flash(scene):
    """The environment is in NOR flash."""
    scene.environment_elsewhere()


@story_on("x86")
def usb_stick(scene):
    """A stick with a signed bundle is plugged in: nothing happens, until this device is to take updates so."""
    stick, key = images.stick(scene.make_image("good", "2.0"), scene.board.directory)
    scene.board.give_usb_port(stick)
    scene.start()
    unit = "twinboot-usb@sda1.service"
    scene.board.plug_stick()
    scene.wait("systemd knows the stick", BOOT_SECS, lambda: scene.board.run(
        f"systemctl show -P ConditionTimestampMonotonic {unit}").strip() not in ("", "0"))
    scene.check("and leaves it alone", scene.board.run(f"systemctl show -P ConditionResult {unit}").strip() == "no")
    scene.check("nothing is mounted", "/run/media" not in scene.board.run("cat /proc/mounts"))
    scene.board.unplug_stick()
    scene.wait("the stick is gone", BOOT_SECS, lambda: scene.board.run("test -e /dev/sda1 || echo gone").strip() == "gone")
    scene.board.run(f"mount -o remount,rw / && printf '%s' '{key}' >/etc/twinboot/keys/stick.pub && "
                    "touch /etc/twinboot/updates-from-usb && mount -o remount,ro /")
    scene.board.plug_stick()
    twin = scene.wait_status("completed", UPDATE_SECS)
    scene.check("its version is reported", twin["firmware"]["currentFwVersion"] == "2.0")
    scene.check_slot("b")
    scene.check("one boot from each slot", scene.board.boots() == "ab")
    scene.check("nothing was fetched", not scene.images.asked)


@story
def sandbox(scene):
    """In the packaged units' sandbox the kernel gives the slots and no other device, and the slot is found."""
    scene.start()
    drop_in = scene.board.run("twinboot check-config --unit")
    scene.check("a drop-in for this board is offered", "DeviceAllow=" in drop_in)
    scene.confine()
    probe = "for d in vda vda1 vda2 vda3 vda4 mmcblk0; do dd if=/dev/$d of=/dev/null bs=512 count=1 2>/dev/null " \
            "&& echo $d opened || echo $d refused; done; cat /proc/net/dev"
    scene.board.run(f"cat >/run/probe <<'X'\n#!/bin/sh\n{probe}\nX\nchmod 755 /run/probe\n"
                    "printf '[Service]\\nExecStartPre=/bin/sh -c \"/run/probe >/run/twinboot/probe\"\\n' "
                    ">/run/systemd/system/twinboot.service.d/probe.conf\n"
                    "systemctl daemon-reload; systemctl restart twinboot")
    found = scene.board.run("cat /run/twinboot/probe; systemctl is-active twinboot")
    for device, answer in (("vda2", "opened"), ("vda3", "opened"), ("mmcblk0", "opened"),
                           ("vda1", "refused"), ("vda4", "refused"), ("vda ", "refused")):
        scene.check(f"{device.strip()} is {answer}", f"{device.strip()} {answer}" in found)
    scene.check("the unit has no network", "eth0" not in found)
    scene.wait("restarted in it, the daemon finds the booted slot", BOOT_SECS,
               lambda: [slot["slot"] for slot in scene.json("twinboot slots --json") if slot["running"]] == ["a"])
