"""The device SDK against the hub: what a device does in its daily life, over both of its transports."""

import json
import queue
import threading

import pytest
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from conftest import LIMIT_SECS, answer_methods, desired_patches, until
from msrest.exceptions import HttpOperationError


def desire(registry, device, patch):
    registry.update_twin(device.id, Twin(properties=TwinProperties(desired=patch)))


def test_twin(registry, device, transport):
    client = device.connect(**transport)
    empty = {"$version": 1}
    assert client.get_twin() == {"desired": empty, "reported": empty}

    patches = desired_patches(client)
    desire(registry, device, {"firmware": {"fwVersion": "2.0", "channel": "beta"}, "list": [1, {"a": None}]})
    assert False
