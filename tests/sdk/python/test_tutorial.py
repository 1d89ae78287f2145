"""The service script of the firmware update tutorial drives the built daemon."""

import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from conftest import CA_FILE, SERVICE, until

SCRIPT = Path(__file__).with_name("firmware_update_service.py")
BINARIES = Path(os.environ["CARGO_TARGET_DIR"], "debug")
# What the whole update takes at most, on a loaded machine.
STORY_LIMIT_SECS = 120


@pytest.fixture
def board(device, registry, tmp_path):
    """A board that runs the daemon and stands by. Gives the image that it may be updated to, and its SHA-256."""
    command = [BINARIES / "hub-emulator", "board", "--daemon", BINARIES / "twinboot", "--ca-file", CA_FILE]
    command += [
        "--connection-string",
        f"HostName=localhost;DeviceId={device.id};SharedAccessKey={device.key}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = dict(process.stdout.readline().split() for _ in range(3))
        standing_by = (
            lambda: registry.get_twin(device.id).properties.reported.get("firmwareStatus") == "standBy"
        )
        until(standing_by)
        yield told["image:"], told["sha256:"]
        process.terminate()


def test_the_tutorials_service_script_updates_a_board(device, registry, board):
    command = [sys.executable, SCRIPT, SERVICE, device.id, *board, "0.1"]
    story = subprocess.run(command, capture_output=True, text=True, timeout=STORY_LIMIT_SECS)
    assert story.returncode == 0, story.stderr
    lines = [line for line, _ in groupby(story.stdout.splitlines())]
    assert lines[0] == "Direct Method called."
    assert "Firmware update started" in lines[1]
    statuses = [line for line in lines[3:-2] if line != "Waiting on device..."]
    assert statuses == [
        "Downloading firmware...",
        "Download complete, applying firmware...",
        "Firmware applied",
    ]
    reported = registry.get_twin(device.id).properties.reported
    assert reported["firmware"]["currentFwVersion"] == "2.0"
    assert reported["lastFirmwareUpdate"]
