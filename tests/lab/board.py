"""The lab's boards: U-Boot, kernel and systemd of an emulated machine, its console, its power switch."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import environments


@dataclasses.dataclass(frozen=True)
class Kind:
    """What QEMU is told of a board, and who has it; the rest is in config/boards/qemu-NAME."""

    architecture: str  # Debian's name
    qemu_package: str
    u_boot: str  # what `build-u-boot NAME` makes
    qemu: tuple


def _accelerator(own):
    """KVM for this machine's own architecture. Without the processor's help it emulates what is not 64-bit, as U-Boot
    is here, and far more slowly than QEMU does."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        helped = re.search(r"^flags.*\b(vmx|svm)\b", file.read(), re.M)
    return "kvm" if own == os.uname().machine and helped and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


KINDS = {
    "arm64": Kind("arm64", "qemu-system-arm", "u-boot.bin",
                  ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-accel", "tcg")),
    "x86": Kind("amd64", "qemu-system-x86", "u-boot.rom",
                ("qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-accel", _accelerator("x86_64"))),
}

# How the image with the environment is attached. This SD card has no cache, and is never told to flush one: what it took
# is there.
MEDIA = {
    "sd.img": ("-device", "sdhci-pci", "-device", "sd-card,drive=sd", "-drive", "if=none,id=sd,format=raw,cache=writethrough,file={}"),
    "flash.img": ("-drive", "if=pflash,index=1,format=raw,file={}"),
}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Failed(Exception):
    """What a story waited for did not happen, or was not so."""


class Log:
    """The record of a story: what the board's console says and what the story does, in order, with times."""

    def __init__(self, path):
        self.lines = []
        self.began = time.monotonic()
        self.changed = threading.Condition()
        self.file = open(path, "w", encoding="utf-8")

    def add(self, who, text):
        with self.changed:
            self.file.write(f"{time.monotonic() - self.began:8.2f}  {who:7}  {text}\n")
            self.file.flush()
            self.lines.append((who, text))
            self.changed.notify_all()

    def story(self, text):
        self.add("STORY", text)

    def close(self):
        self.file.close()


class Board:
    """One board with the images of build-board in `directory`."""

    # What QEMU is told besides.
    qemu = ()

    def __init__(self, kind, u_boot, directory, log, environment=environments.ENVIRONMENTS["raw"]):
        self.kind, self.u_boot, self.directory, self.log = kind, u_boot, directory, log
        self.environment = environment
        self.medium, self.disk = (os.path.join(directory, name) for name in (environment.medium, "disk.img"))
        self.process = None
        self.seen = 0

    def power_on(self, rtc="utc"):
        """`rtc`: what the board's clock says at power-on, as a date of UTC."""
        self.shell_port = _free_port()
        self.log.story(f"power on, clock {rtc}")
        # Emulated, one processor is faster than two.
        command = [*self.kind.qemu, *self.qemu, "-smp", "1", "-m", "384", "-nodefaults", "-nographic", "-serial", "stdio"]
        command += ["-bios", self.u_boot, "-rtc", f"base={rtc}"]
        command += [argument.format(self.medium) for argument in MEDIA[self.environment.medium]]
        command += ["-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk"]
        command += ["-device", "virtio-rng-pci", "-device", "i6300esb", "-watchdog-action", "reset"]
        command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.shell_port}-:2222"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile="]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, console):
        for line in console:
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]", "", line.decode("utf-8", "replace"))
            if text.strip():
                self.log.add("console", text.rstrip())

    def power_cut(self):
        """Nothing is told to the board, and what it had in memory is gone."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.let_go()
            self.process.wait()
            self.reader.join(5)
            self.log.story("power cut")
        self.process = None

    def give_usb_port(self, stick):
        """From the next power-on on; the stick is an image."""
        self.monitor_port = _free_port()
        self.qemu = ("-device", "qemu-xhci", "-qmp", f"tcp:127.0.0.1:{self.monitor_port},server=on,wait=off",
                     "-blockdev", f"driver=raw,node-name=stick,file.driver=file,file.filename={stick}")

    def plug_stick(self):
        self._ask_qemu("device_add", driver="usb-storage", drive="stick", id="stick")
        self.log.story("the stick is plugged in")

    def unplug_stick(self):
        self._ask_qemu("device_del", id="stick")
        self.log.story("the stick is pulled out")

    def _ask_qemu(self, command, **arguments):
        with socket.create_connection(("127.0.0.1", self.monitor_port), 10) as monitor, monitor.makefile("rw") as lines:
            for execute, its in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": execute, "arguments": its}) + "\n")
                lines.flush()
                # Its greeting and its events come between.
                while "return" not in (answer := json.loads(lines.readline())):
                    if "error" in answer:
                        raise Failed(f"QEMU refuses {command}: {answer['error']}")

    def let_go(self):
        """Whatever keeps a killed machine from its end."""

    def wait_console(self, pattern, limit_secs):
        """Waits for a line of the console after the last one that was waited for."""
        end = time.monotonic() + limit_secs
        with self.log.changed:
            while True:
                while self.seen < len(self.log.lines):
                    who, text = self.log.lines[self.seen]
                    self.seen += 1
                    if who == "console" and re.search(pattern, text):
                        return text
                if not self.log.changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise Failed(f"the console did not say /{pattern}/ in {limit_secs} s")

    def console_count(self, pattern):
        with self.log.changed:
            return sum(1 for who, text in self.log.lines if who == "console" and re.search(pattern, text))

    def boots(self):
        """The slots that the boot script took, in order."""
        with self.log.changed:
            found = (re.search(r"twinboot: slot ([ab]), trial", text) for who, text in self.log.lines if who == "console")
            return "".join(match.group(1) for match in found if match)

    def run(self, script, limit_secs=60):
        """Runs a shell script as root; returns what it printed. It is asked again until the shell is there."""
        end = time.monotonic() + limit_secs
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.shell_port), 10) as shell:
                    shell.settimeout(max(1, end - time.monotonic()))
                    shell.sendall(f"exec 2>&1\necho up\n{script}\n".encode())
                    shell.shutdown(socket.SHUT_WR)
                    answer = b"".join(iter(lambda: shell.recv(65536), b"")).decode("utf-8", "replace")
                if answer.startswith("up\n"):
                    answer = answer[3:]
                    self.log.story(f"$ {script}\n{answer}".rstrip())
                    return answer
            except OSError:
                pass
            if time.monotonic() > end:
                raise Failed(f"the board's shell did not answer in {limit_secs} s: {script}")
            time.sleep(0.3)

    def variable(self, name):
        """A variable of the U-Boot environment, as libubootenv reads it."""
        config = os.path.join(self.directory, "fw_env.config")
        with open(config, "w", encoding="ascii") as file:
            file.writelines(f"{path} {offset:#x} {environments.SIZE_BYTES:#x}\n"
                            for path, offset in self.environment.locate(self.directory))
        command = ["fw_printenv", "-c", config, "-n", name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def lose_environment(self):
        """Noise over both of its copies, while the board is off."""
        with open(self.medium, "r+b") as file:
            for offset in self.environment.offsets:
                file.seek(offset)
                file.write(os.urandom(environments.SIZE_BYTES))
        self.log.story("both copies of the environment are overwritten")
