"""The device SDK against the hub: messages to the cloud and from it, over both transports."""

import queue

import pytest
from azure.iot.device import Message
from conftest import LIMIT_SECS, until


@pytest.fixture
def events(rest, device):
    """Waits for so many messages of the device, and returns the last of them."""

    def wait(count):
        listed = lambda: rest("GET", f"/emulator/events/{device.id}").json()
        return until(lambda: len(listed()) == count and listed())[-1]

    return wait


def test_a_message_reaches_the_cloud_with_its_properties(device, events, transport):
    client = device.connect(**transport)
    message = Message(
        '{"temperature": 21.5}', message_id="m 1", content_type="application/json", content_encoding="utf-8"
    )
    message.correlation_id = "c&1"
    message.custom_properties = {"level": "warn/ing", "a key": "é=ü"}
    client.send_message(message)
    event = events(1)
    assert event["body"] == '{"temperature": 21.5}'
    assert event["properties"] == {
        "$.mid": "m 1",
        "$.cid": "c&1",
        "$.ct": "application/json",
        "$.ce": "utf-8",
        "level": "warn/ing",
        "a key": "é=ü",
    }
    client.send_message("plain")
    assert (events(2)["body"], events(2)["properties"]) == ("plain", {})


def test_a_large_message_fits(device, events):
    client = device.connect()
    # 256 KiB less what the SDK, which measures Python's objects, takes for overhead.
    body = "x" * (256 * 1024 - 100)
    client.send_message(body)
    assert events(1)["body"] == body


def send(rest, device, body, **properties):
    headers = {f"iothub-app-{key}": value for key, value in properties.items()}
    answer = rest("POST", f"/devices/{device.id}/messages/devicebound", data=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["messageId"]


def test_a_message_from_the_cloud_waits_for_the_device(registry, rest, device, transport):
    client = device.connect(**transport)
    messages = queue.Queue()
    client.on_message_received = messages.put
    first = send(rest, device, "first", colour="red")
    message = messages.get(timeout=LIMIT_SECS)
    assert (message.data, message.message_id, message.custom_properties) == (
        b"first",
        first,
        {"colour": "red"},
    )

    client.disconnect()
    send(rest, device, "second")
    send(rest, device, "third")
    client.connect()
    assert [messages.get(timeout=LIMIT_SECS).data for _ in range(2)] == [b"second", b"third"]

    client.disconnect()
    send(rest, device, "never")
    purged = registry.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device.id)
    assert (purged.device_id, purged.total_messages_purged) == (device.id, 1)
    client.connect()
    send(rest, device, "last")
    assert messages.get(timeout=LIMIT_SECS).data == b"last"
