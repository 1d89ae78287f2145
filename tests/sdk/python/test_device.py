"""The device SDK against the hub: what a device does in its daily life, over both of its transports."""

import functools
import json
import threading
from contextlib import contextmanager

import pytest
from azure.iot.device.exceptions import ClientError, ServiceError
from azure.iot.hub.models import CloudToDeviceMethod
from conftest import LIMIT_SECS, desire, desired_patches, refused


def call(registry, device, name, payload, **timeouts):
    """Calls a direct method, and returns status and payload of the answer."""
    method = CloudToDeviceMethod(method_name=name, payload=payload, **timeouts)
    result = registry.invoke_device_method(device.id, method)
    return result.status, result.payload


@contextmanager
def refused_by_the_gateway(status, symbol, number):
    """As `refused`, with this number in a JSON text inside the body."""
    with refused(status, symbol) as refusal:
        yield
    assert json.loads(refusal.value.response.json()["Message"])["errorCode"] == number


@contextmanager
def twin_operation_refused(status):
    """The SDK wraps what the hub says."""
    with pytest.raises(ClientError) as refused:
        yield
    assert isinstance(refused.value.__cause__, ServiceError)
    assert str(refused.value.__cause__) == f"twin operation returned status {status}"


def test_desired_properties_are_read_and_pushed(registry, device, transport):
    client = device.connect(**transport)
    assert client.get_twin() == {"desired": {"$version": 1}, "reported": {"$version": 1}}

    patches = desired_patches(client)
    first = {"firmware": {"fwVersion": "2.0", "channel": "beta"}, "steps": [1, {"x": "y"}], "é": "ü"}
    desire(registry, device, first)
    assert patches.get(timeout=LIMIT_SECS) == first | {"$version": 2}
    # Only what changes is pushed, as it was written; a null takes away.
    second = {"firmware": {"channel": None}, "steps": []}
    desire(registry, device, second)
    assert patches.get(timeout=LIMIT_SECS) == second | {"$version": 3}
    assert client.get_twin()["desired"] == {
        "firmware": {"fwVersion": "2.0"}, "steps": [], "é": "ü", "$version": 3,
    }


def test_reported_properties_reach_the_service(registry, device, transport):
    client = device.connect(**transport)
    client.patch_twin_reported_properties({"firmwareStatus": "standBy", "firmware": {"a": 1, "b": 1.5}})
    client.patch_twin_reported_properties({"firmware": {"a": None}, "gone": None})

    twin = registry.get_twin(device.id)
    reported = twin.properties.reported
    metadata = reported.pop("$metadata")
    assert reported == {"firmwareStatus": "standBy", "firmware": {"b": 1.5}, "$version": 3}
    assert metadata["$lastUpdated"] and metadata["firmware"]["b"]["$lastUpdated"]
    assert set(metadata["firmware"]) == {"$lastUpdated", "b"}
    assert (twin.connection_state, twin.status, twin.authentication_type) == ("Connected", "enabled", "sas")
    # The device sees its own half without metadata, and no tags.
    registry.update_twin(device.id, {"tags": {"ring": "canary"}})
    assert client.get_twin()["reported"] == reported
    assert set(client.get_twin()) == {"desired", "reported"}


def nested(depth):
    """Objects, one in the other; the outermost, which is the section itself, does not count."""
    return functools.reduce(lambda inner, _: {"a": inner}, range(depth + 1), 1)


@pytest.mark.parametrize(
    "patch",
    [
        {"a key": 1},
        {"a.b": 1},
        {"list": [None]},
        {"text": "x" * 4097},
        {"big": 1 << 53},
        nested(11),
        {f"key{n}": "x" * 4000 for n in range(9)},
    ],
    ids=["space", "dot", "null in array", "long text", "large number", "deep", "32 KiB"],
)
def test_a_reported_patch_beyond_the_limits_is_refused_and_changes_nothing(device, patch):
    client = device.connect()
    with twin_operation_refused(400):
        client.patch_twin_reported_properties({"good": 1} | patch)
    assert client.get_twin()["reported"] == {"$version": 1}
    client.patch_twin_reported_properties({"good": 1})


def test_a_reported_patch_at_the_limits_is_taken(device):
    client = device.connect()
    patch = nested(10) | {"k" * 1024: "x" * 4096, "low": -(1 << 52), "high": (1 << 52) - 1, "": 1.0}
    client.patch_twin_reported_properties(patch)
    assert client.get_twin()["reported"] == patch | {"$version": 2}


def test_a_throttled_reported_patch_is_an_error_and_the_next_is_not(device, faults):
    client = device.connect()
    faults(failNextPatch=429)
    with twin_operation_refused(429):
        client.patch_twin_reported_properties({"a": 1})
    client.patch_twin_reported_properties({"a": 1})


@pytest.mark.parametrize("payload", [{"a": [1, None, "é"]}, "text", 5, True, None, []], ids=repr)
def test_a_method_carries_any_json_both_ways(registry, device, transport, payload):
    client = device.connect(**transport)
    device.answer_methods(client, lambda name, received: (200, {"name": name, "received": received}))
    # The service SDK sends an empty text for no payload.
    received = "" if payload is None else payload
    assert call(registry, device, "firmwareUpdate", payload) == (
        200, {"name": "firmwareUpdate", "received": received},
    )


def test_the_devices_own_status_comes_back_with_200(registry, device, transport):
    client = device.connect(**transport)
    device.answer_methods(client, lambda name, _: (404, None))
    assert call(registry, device, "no such method%", {}) == (404, None)


def test_methods_in_flight_are_answered_in_any_order(registry, device):
    client = device.connect()
    second_came = threading.Event()

    def answer(name, _):
        if name == "first":
            assert second_came.wait(LIMIT_SECS)
        second_came.set()
        return 200, name

    device.answer_methods(client, answer)
    answers = {}
    first = threading.Thread(target=lambda: answers.update(first=call(registry, device, "first", {})))
    first.start()
    answers["second"] = call(registry, device, "second", {})
    first.join(LIMIT_SECS)
    assert answers == {"first": (200, "first"), "second": (200, "second")}


def test_a_method_of_a_device_that_is_away_is_404103(registry, device):
    with refused_by_the_gateway(404, "DeviceNotOnline", 404103):
        call(registry, device, "anything", {})
    # Connected is not enough: it has to subscribe to methods.
    device.connect()
    with refused_by_the_gateway(404, "DeviceNotOnline", 404103):
        call(registry, device, "anything", {})


def test_a_method_waits_for_the_device_as_long_as_it_is_asked_to(registry, device):
    client = device.client()
    connecting = threading.Timer(0.5, lambda: device.answer_methods(client, lambda name, _: (200, name)))
    connecting.start()
    timeouts = {"connect_timeout_in_seconds": 20, "response_timeout_in_seconds": 20}
    assert call(registry, device, "late", {}, **timeouts) == (200, "late")
    connecting.join()


def test_a_method_that_is_not_answered_in_time_is_504101(registry, device):
    client = device.connect()
    client.on_method_request_received = lambda request: None
    with refused_by_the_gateway(504, "GatewayTimeout", 504101):
        call(registry, device, "silence", {}, response_timeout_in_seconds=5)


def test_a_method_of_nobody_is_404(registry):
    with refused(404, "DeviceNotFound"):
        registry.invoke_device_method("nobody", CloudToDeviceMethod(method_name="anything", payload={}))


@pytest.mark.parametrize(
    "name, timeouts",
    [
        ("m", {"response_timeout_in_seconds": 4}),
        ("m", {"response_timeout_in_seconds": 301}),
        ("m", {"connect_timeout_in_seconds": 301, "response_timeout_in_seconds": 300}),
        ("m", {"connect_timeout_in_seconds": 10, "response_timeout_in_seconds": 5}),
        (" ", {}),
        ("m" * 101, {}),
    ],
)
def test_a_method_call_beyond_the_limits_is_refused(registry, device, name, timeouts):
    with refused(400, "ArgumentInvalid") as refusal:
        call(registry, device, name, {}, **timeouts)
    assert "ErrorCode:ArgumentInvalid" in refusal.value.response.json()["Message"]
