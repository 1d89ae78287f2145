"""Power cuts of a running board whose disk loses and tears what was not flushed; README.md tells how."""

import collections
import json
import os
import random
import re
import subprocess
import threading
import time

from board import Board, Failed
from environments import ENVIRONMENTS

MEDIA = ("environment", "slot_a", "slot_b", "data")
ENVIRONMENT_AREA_BYTES = 0x80000
# Nothing that goes well takes so long, emulated on a loaded machine too.
UPDATE_SECS = 900
# A board that is reset more often does not come up again.
BOOTS_MAX = 40
# In one update. More than a trial has boots, so that some are given up.
CUTS_MAX = 5
TICK_SECS = 0.02
TWIN_SECS = 0.2


class Untrue(Failed):
    """What a cut left is not as it must be, or not as the twin says."""


class Disk:
    """The campaign's disk, a process: what the board wrote is there until the power goes, what it flushed stays."""

    def __init__(self, program, factory, directory):
        self.directory = os.path.join(directory, "disk")
        layout = json.dumps(layout_of(factory))
        self.process = subprocess.Popen([program, "guest", "--at", self.directory, "--layout", layout],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lock = threading.Lock()

    def ask(self, request, detail=None):
        """An answer is `done`, or an object with what was asked for."""
        with self.lock:
            self.process.stdin.write(json.dumps({request: detail} if detail is not None else request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise Failed(f"the disk is gone, asked for {request}")
        answer = json.loads(answer)
        return answer if isinstance(answer, str) else next(iter(answer.values()))

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


class CutBoard(Board):
    """A board with its images on such a disk."""

    def __init__(self, kind, u_boot, disk, log, is_busy_here):
        super().__init__(kind, u_boot, disk.directory, log)
        if is_busy_here and "tcg" in kind.qemu:
            # While it works, its time goes by that, 4 ns an instruction, and not by this machine's: loaded, a boot would
            # take longer than a trial may.
            self.qemu = ("-icount", "shift=2")
        self.disk_process = disk

    def let_go(self):
        # It does not die while it waits for the disk.
        self.disk_process.ask("release")


def layout_of(factory):
    """Where the media are in the files of a board."""
    disk = os.path.join(factory, "disk.img")
    table = json.loads(subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True).stdout)
    sector = table["partitiontable"].get("sectorsize", 512)
    found = {part["name"].replace("rootfs", "slot"): part for part in table["partitiontable"]["partitions"]}
    media = [{"medium": name, "start_bytes": found[name]["start"] * sector, "size_bytes": found[name]["size"] * sector}
             for name in MEDIA[1:]]
    environment = {"medium": "environment", "start_bytes": ENVIRONMENTS["raw"].offsets[0], "size_bytes": ENVIRONMENT_AREA_BYTES}
    return [{"path": os.path.join(factory, "sd.img"), "media": [environment]}, {"path": disk, "media": media}]


class Release:
    """An image to update to, as it is served and as it is in the slot (`raw`, a path)."""

    def __init__(self, image, version, raw):
        self.image, self.version, self.raw = image, version, raw


class Update:
    """One update of a life, and what is known of it."""

    def __init__(self, update_id, source, installed, release):
        self.id, self.source, self.target = update_id, source, "b" if source == "a" else "a"
        self.installed, self.release = installed, release
        self.accepted = self.fell_back = False
        self.called_at = self.ended = self.ended_at = None
        # The daemon does not know that it armed the trial that was given up, and arms it again.
        self.may_try_again = False
        # As the last cut left it.
        self.is_installed, self.proven, self.phase = False, 0, None

    def request(self, server):
        image = self.release.image
        return {"fwPackageUri": server.url(image), "fwPackageCheckValue": image.sha256, "fwSize": image.size,
                "fwVersion": self.release.version, "updateId": self.id}


class Measure:
    """How long an update takes that is not cut: in seconds, and in operations of the disk."""

    def __init__(self, update, progress, powered_at):
        target = MEDIA.index(f"slot_{update.target}")
        self.boot_secs = update.called_at - powered_at
        self.secs = update.ended_at - update.called_at
        # Activated, counted by U-Boot, committed, the version kept: four writes of the environment, of the same size.
        self.save, rest = divmod(progress["changes"][0], 4)
        if rest or not self.save:
            raise Failed(f"{progress['changes'][0]} changes of the environment are not four equal writes")
        self.writes, self.reads = progress["changes"][target], progress["reads"][target]


def moments(update, is_trial, measure, rng):
    """What a cut may wait for: each phase has its share, so that what takes a moment is cut as often as what takes long."""
    target = f"slot_{update.target}"

    def steps(*chain):
        """Each a medium, a kind and a count; the last count is the most of a random one."""
        *before, (medium, kind, most) = chain
        chain = [*before, (medium, kind, 1 + int(rng.random() * most))]
        return [{"medium": medium, "kind": kind, "count": count} for medium, kind, count in chain if count]

    left = round(measure.writes * (1 - update.proven / update.release.image.size))
    saves = 0 if is_trial else measure.save
    found = [
        steps(("environment", "change", saves), ("environment", "change", measure.save)),
        steps(("environment", "change", saves + measure.save), (target, "read", measure.reads // 8)),
        steps(("environment", "change", saves + measure.save), ("data", "change", 12)),
        steps(("environment", "change", saves + measure.save), ("environment", "change", measure.save)),
        steps(("environment", "change", saves + 2 * measure.save), ("data", "change", 4)),
    ]
    if is_trial:
        return found
    found += [
        steps(("environment", "change", measure.save)),
        steps(("environment", "change", measure.save), ("data", "change", 6)),
    ]
    if update.is_installed:
        return found
    return found + [
        steps(("data", "change", 12)),
        steps((target, "change", left)),
        steps((target, "change", left)),
        steps((target, "change", round(left * 0.9)), (target, "read", measure.reads // 2)),
    ]


class Life:
    """A board from the factory, told to update to the other slot and back, its power cut again and again. Its number
    and the seed of the campaign say how often, at which moments, and what survives."""

    def __init__(self, worker, board, number):
        self.worker, self.board, self.number = worker, board, number
        self.disk, self.hub, self.log = worker.disk, worker.hub, board.log
        # Where the cuts fell.
        self.fell = collections.Counter()
        self.resumed = 0

    def live(self):
        self.disk.ask("factory")
        self.power_on(is_trial=False)
        source, installed, *releases = "a", *self.worker.releases
        # The life that is not cut is over when it has told how long an update takes.
        releases = releases if self.worker.measure else releases[:1]
        for count, release in enumerate(releases, 1):
            if count > 1:
                # What the last one came to is what boots, and the next begins from there.
                self.power_on(is_trial=False)
            update = Update(f"life-{self.worker.seed}-{self.number}-{count}", source, installed, release)
            self.follow(update)
            if update.ended == "completed":
                source, installed = update.target, release

    def power_on(self, is_trial):
        self.is_trial = is_trial
        self.disk.ask("power_on")
        self.seen = len(self.log.lines)
        self.asked = len(self.worker.server.asked)
        self.board.power_on()
        self.powered_at = time.monotonic()

    def follow(self, update):
        """Until the twin says how the update ended, and once more without power."""
        planned = self.dice(update, "cuts").randint(1, CUTS_MAX) if self.worker.measure else 0
        cuts = 0
        while True:
            self.rng = self.dice(update, cuts)
            is_over = self.run(update, is_cut=cuts < planned)
            progress = self.disk.ask("progress")["progress"]
            self.board.power_cut()
            # The console says it before U-Boot saves it, and is read to its end by now.
            self.note_fall_back(update)
            fell = self.where(update, progress)
            verdict = self.judge(update)
            self.check_fetched(update)
            update.is_installed, update.proven, update.phase = (
                verdict[key] for key in ("is_installed", "proven_bytes", "phase"))
            if is_over:
                break
            cuts += 1
            self.fell[fell] += 1
            self.log.story(f"cut {fell}, {verdict['left']}, state {verdict['phase']}, slot {verdict['slot']} is next")
            self.power_on(verdict["is_trial"])
        self.check_end(update)
        if not self.worker.measure:
            self.worker.measure = Measure(update, progress, self.powered_at)

    def dice(self, update, what):
        """Each cut has dice of its own: that one came a little later does not change the next."""
        return random.Random(f"{update.id} {what}")

    def run(self, update, is_cut):
        """Until the power goes (False), or the twin says how the update ended (True)."""
        limit = time.monotonic() + UPDATE_SECS
        armed, cut_at, calling, next_look = not is_cut, None, None, 0
        while (now := time.monotonic()) < limit:
            if self.disk.ask("progress")["is_cut"]:
                return False
            if cut_at and now > cut_at:
                self.disk.ask("cut")
                return False
            if now > next_look:
                next_look = now + TWIN_SECS
                if self.look(update):
                    return True
                is_here = update.accepted or self.twin["connectionState"] == "Connected"
                if not armed and is_here:
                    armed, cut_at = True, self.arm(update)
                if is_here and not update.accepted and not (calling and calling.is_alive()):
                    calling = self.call(update)
            if self.board.process.poll() is not None:
                raise Failed(f"QEMU ended by itself: {self.board.process.returncode}")
            time.sleep(TICK_SECS)
        raise Failed(f"no end in {UPDATE_SECS} s: the twin says {self.twin}")

    def look(self, update):
        """Whether the twin says how the update ended."""
        self.note_fall_back(update)
        if (boots := len(self.board.boots())) > BOOTS_MAX:
            raise Failed(f"no end after {boots} boots")
        self.twin = self.hub.twin()
        reported = self.twin["properties"]["reported"]
        status, firmware = reported.get("firmwareStatus"), reported.get("firmware") or {}
        if firmware.get("updateId") == update.id and status in ("completed", "rolledBack", "failed"):
            update.ended, update.ended_at = status, time.monotonic()
        return update.ended

    def note_fall_back(self, update):
        if not update.fell_back and self.console_count("Bootlimit .* exceeded"):
            update.fell_back, update.may_try_again = True, update.phase == "installed"

    def call(self, update):
        """`firmwareUpdate`; the power may go before it is answered."""
        def wait_for_answer():
            try:
                status, answer = self.hub.call("firmwareUpdate", update.request(self.worker.server))
                self.log.story(f"firmwareUpdate: {status} {answer}")
                update.accepted |= status == 200
            except OSError as error:
                self.log.story(f"firmwareUpdate: {error}")

        update.called_at = update.called_at or time.monotonic()
        calling = threading.Thread(target=wait_for_answer, daemon=True)
        calling.start()
        return calling

    def arm(self, update):
        """Chooses the moment of a cut: by the disk's operations, or in seconds, which are returned as a time."""
        ways = moments(update, self.is_trial, self.worker.measure, self.rng)
        choice = self.rng.randrange(len(ways) + 2)
        if choice < len(ways):
            chosen = ways[choice]
            self.disk.ask("cut_after", chosen)
            self.log.story(f"the power will go after {chosen}")
            return None
        secs = self.rng.random() * self.worker.measure.secs
        self.log.story(f"the power will go in {secs:.3f} s")
        return time.monotonic() + secs

    def where(self, update, progress):
        """In what a cut fell, by what the disk and the console saw."""
        changes, last = progress["changes"], progress["last"][MEDIA.index(f"slot_{update.target}")]
        is_in_environment = progress["cut_at"] == "environment"
        save = self.worker.measure.save if self.worker.measure else 1
        saves = (changes[0] - is_in_environment) // save + self.is_trial
        if update.fell_back:
            return "while it was given up"
        if is_in_environment:
            return ("in the activation", "in U-Boot's counting", "in the commit", "after the commit")[min(saves, 3)]
        if saves:
            return ("", "in the reboot", "in the trial", "after the commit")[min(saves, 3)]
        if not update.accepted:
            return "in the call"
        if self.console_count(r"twinboot: slot") == 0 or last is None:
            return "in the boot"
        return "in the download" if last == "change" else "in the read back"

    def console_count(self, pattern):
        """Since the power came."""
        return sum(1 for who, text in self.log.lines[self.seen:] if who == "console" and re.search(pattern, text))

    def judge(self, update):
        verdict = self.disk.ask("judge", {
            "seed": self.rng.getrandbits(53), "update_id": update.id, "from": update.source,
            "from_image": update.installed.raw, "image": update.release.raw,
            "accepted": update.accepted, "fell_back": update.fell_back, "ended": update.ended,
        })
        if verdict["fault"]:
            raise Untrue(verdict["fault"])
        return verdict

    def check_fetched(self, update):
        """What is in the slot for certain is not fetched again."""
        asked = self.worker.server.asked[self.asked:]
        if not asked:
            return
        if update.is_installed:
            raise Failed(f"an installed image was fetched again: {asked}")
        if update.proven:
            if asked[0] != f"bytes={update.proven}-":
                raise Failed(f"{update.proven} bytes were proven, and {asked[0]} was asked for")
            self.resumed += 1

    def check_end(self, update):
        """The twin's word is true."""
        firmware = self.twin["properties"]["reported"]["firmware"]
        is_given_up = update.fell_back and not (update.may_try_again and update.ended == "completed")
        wanted = ("rolledBack", update.source, update.installed.version, "BootFailed") if is_given_up else \
            ("completed", update.target, update.release.version, None)
        said = (update.ended, firmware["slots"]["booted"], firmware["currentFwVersion"],
                (firmware.get("error") or {}).get("code"))
        if said != wanted:
            raise Untrue(f"the twin says {said}, and {wanted} is true")
