"""The service SDK against the hub: the registry, twins, and whom the hub lets do what."""

import pytest
import requests
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import (
    AuthenticationMechanism, CloudToDeviceMethod, ExportImportDevice, QuerySpecification, SymmetricKey, Twin,
    TwinProperties,
)
from conftest import LIMIT_SECS, SERVICE, Device, desired_patches, new_id, refused, until

PRIMARY, SECONDARY = ("a2V5LW9mLXNpeHRlZW4tYnl0ZXM=", "YW5vdGhlci1rZXktb2YtMTYtYnl0ZXM=")
SHA1, SHA256 = ("0123456789ABCDEF0123456789abcdef01234567", "0" * 64)


@pytest.fixture
def made(rest):
    """Registers device ids to delete at the end of the test: `made(id)` gives the id."""
    ids = []

    def note(device_id):
        ids.append(device_id)
        return device_id

    yield note
    for device_id in ids:
        rest("DELETE", f"/devices/{device_id}", headers={"If-Match": "*"})


def test_a_device_with_keys_from_its_beginning_to_its_end(registry, made):
    device_id = made(new_id())
    created = registry.create_device_with_sas(device_id, PRIMARY, SECONDARY, "enabled", status_reason="new")
    key = created.authentication.symmetric_key
    assert (created.device_id, created.status, created.status_reason) == (device_id, "enabled", "new")
    assert (created.authentication.type, key.primary_key, key.secondary_key) == ("sas", PRIMARY, SECONDARY)
    assert (created.connection_state, created.cloud_to_device_message_count) == ("Disconnected", 0)
    assert created.generation_id and created.etag and created.capabilities.iot_edge is False
    with refused(409, "DeviceAlreadyExists"):
        registry.create_device_with_sas(device_id, PRIMARY, SECONDARY, "enabled")

    updated = registry.update_device_with_sas(device_id, created.etag, SECONDARY, PRIMARY, "disabled")
    assert (updated.status, updated.authentication.symmetric_key.primary_key) == ("disabled", SECONDARY)
    assert (updated.generation_id, updated.etag != created.etag) == (created.generation_id, True)
    with refused(412, "PreconditionFailed"):
        registry.update_device_with_sas(device_id, created.etag, PRIMARY, SECONDARY, "enabled")
    assert registry.get_device(device_id).etag == updated.etag
    assert registry.get_twin(device_id).device_etag == updated.etag

    with refused(412, "PreconditionFailed"):
        registry.delete_device(device_id, etag=created.etag)
    registry.delete_device(device_id, etag=updated.etag)
    with refused(404, "DeviceNotFound"):
        registry.get_device(device_id)
    with refused(404, "DeviceNotFound"):
        registry.update_device_with_sas(device_id, updated.etag, PRIMARY, SECONDARY, "enabled")
    with refused(404, "DeviceNotFound"):
        registry.get_twin(device_id)


def test_devices_with_certificates(registry, made):
    own = registry.create_device_with_x509(made(new_id()), SHA1, SHA256, "enabled")
    thumbprint = own.authentication.x509_thumbprint
    assert own.authentication.type == "selfSigned"
    assert (thumbprint.primary_thumbprint, thumbprint.secondary_thumbprint) == (SHA1, SHA256)
    with refused(400):
        registry.create_device_with_x509(made(new_id()), "01:23", None, "enabled")

    signed = registry.create_device_with_certificate_authority(made(new_id()), "enabled")
    assert signed.authentication.type == "certificateAuthority"
    assert registry.get_twin(signed.device_id).authentication_type == "certificateAuthority"
    changed = registry.update_device_with_certificate_authority(signed.device_id, signed.etag, "disabled")
    assert changed.status == "disabled"


def test_a_device_id_has_no_strange_characters_and_128_at_most(registry, made):
    good = made(f"Aa0-.%_*?!(),:=@$'{new_id()}")
    registry.create_device_with_sas(good, PRIMARY, SECONDARY, "enabled")
    assert registry.get_device(good).device_id == good
    for bad in ("with space", "umlaut-ü", "x" * 129):
        with refused(400):
            registry.create_device_with_sas(bad, PRIMARY, SECONDARY, "enabled")


def test_devices_are_listed_and_counted(registry, made):
    before = registry.get_device_registry_statistics()
    ids = {made(new_id()) for _ in range(3)}
    for number, device_id in enumerate(ids):
        registry.create_device_with_sas(device_id, PRIMARY, SECONDARY, "enabled" if number else "disabled")
    assert ids <= {device.device_id for device in registry.get_devices()}
    assert len(registry.get_devices(2)) == 2
    after = registry.get_device_registry_statistics()
    assert after.total_device_count - before.total_device_count == 3
    assert after.enabled_device_count - before.enabled_device_count == 2
    assert after.disabled_device_count - before.disabled_device_count == 1


def test_connected_devices_are_counted(registry, device):
    connected = lambda: registry.get_service_statistics().connected_device_count
    until(lambda: connected() == 0)
    client = device.connect()
    assert connected() == 1
    client.disconnect()
    until(lambda: connected() == 0)


def bulk(device_id, mode, **members):
    key = SymmetricKey(primary_key=PRIMARY, secondary_key=SECONDARY)
    authentication = AuthenticationMechanism(type="sas", symmetric_key=key)
    return ExportImportDevice(id=device_id, import_mode=mode, authentication=authentication, **members)


def test_devices_in_bulk(registry, made):
    ids = [made(new_id()) for _ in range(3)]
    result = registry.bulk_create_or_update_devices([bulk(id, "create", status="enabled") for id in ids])
    assert (result.is_successful, result.errors) == (True, [])
    assert registry.get_device(ids[0]).authentication.symmetric_key.primary_key == PRIMARY

    result = registry.bulk_create_or_update_devices([
        bulk(ids[0], "update", status="disabled"),
        bulk(ids[1], "updateTwin", tags={"ring": "canary"}),
        bulk(ids[2], "delete"),
    ])
    assert result.is_successful
    assert registry.get_device(ids[0]).status == "disabled"
    assert registry.get_twin(ids[1]).tags == {"ring": "canary"}
    with refused(404, "DeviceNotFound"):
        registry.get_device(ids[2])

    result = registry.bulk_create_or_update_devices([bulk(ids[0], "create"), bulk(ids[2], "create")])
    assert result.is_successful is False
    assert [(error.device_id, error.error_code) for error in result.errors] == [(ids[0], "DeviceAlreadyExists")]


def test_modules(registry, device, rest):
    module = registry.create_module_with_sas(device.id, "sensor", "me", PRIMARY, SECONDARY)
    assert (module.device_id, module.module_id, module.managed_by) == (device.id, "sensor", "me")
    with refused(409, "ModuleAlreadyExistsOnDevice"):
        registry.create_module_with_sas(device.id, "sensor", "me", PRIMARY, SECONDARY)
    module = registry.update_module_with_sas(device.id, "sensor", "you", module.etag, SECONDARY, PRIMARY)
    assert module.authentication.symmetric_key.primary_key == SECONDARY
    assert [module.module_id for module in registry.get_modules(device.id)] == ["sensor"]

    client = device.module_client("sensor", SECONDARY)
    client.connect()
    device.answer_methods(client, lambda name, payload: (200, [name, payload]))
    method = CloudToDeviceMethod(method_name="read", payload=7)
    result = registry.invoke_device_module_method(device.id, "sensor", method)
    assert (result.status, result.payload) == (200, ["read", 7])
    client.patch_twin_reported_properties({"a": 1})
    registry.update_module_twin(device.id, "sensor", Twin(tags={"b": 2}))
    twin = registry.get_module_twin(device.id, "sensor")
    assert (twin.properties.reported["a"], twin.tags, twin.module_id) == (1, {"b": 2}, "sensor")

    registry.delete_module(device.id, "sensor")
    with refused(404):
        registry.get_module(device.id, "sensor")
    with refused(404):
        registry.get_module_twin(device.id, "sensor")


def twin_with(tags=None, **desired):
    return Twin(tags=tags, properties=TwinProperties(desired=desired))


def test_twins_are_patched_and_replaced_under_their_etag(registry, device):
    first = registry.get_twin(device.id)
    patched = registry.update_twin(device.id, twin_with({"a": {"b": 1, "c": 2}}, x={"y": 1, "z": 2}), first.etag)
    with refused(412, "PreconditionFailed"):
        registry.update_twin(device.id, twin_with({"a": 1}), first.etag)
    patched = registry.update_twin(device.id, twin_with({"a": {"b": None}}, x={"y": None}), patched.etag)
    desired = patched.properties.desired
    assert (patched.tags, desired["x"], desired["$version"]) == ({"a": {"c": 2}}, {"z": 2}, 3)
    assert set(desired["$metadata"]) == {"$lastUpdated", "x"}
    # Without an etag, whatever is there is replaced: what is not mentioned goes.
    replaced = registry.replace_twin(device.id, twin_with({"new": True}, w=1))
    assert (replaced.tags, replaced.properties.desired["w"]) == ({"new": True}, 1)
    assert "x" not in replaced.properties.desired
    with refused(412, "PreconditionFailed"):
        registry.replace_twin(device.id, twin_with({}), patched.etag)
    with refused(400):
        registry.update_twin(device.id, twin_with({"a.b": 1}))
    with refused(400):
        registry.update_twin(device.id, twin_with({"text": "x" * 4000, "more": "x" * 4000, "much": "x" * 4000}))
    assert registry.get_twin(device.id).etag == replaced.etag


def test_a_replaced_twin_is_pushed_whole(registry, device):
    client = device.connect()
    patches = desired_patches(client)
    registry.replace_twin(device.id, twin_with({}, a=1, b={"c": 2}))
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "b": {"c": 2}, "$version": 2}


def manager(**changes):
    """A registry manager with a connection string that differs in some parts."""
    parts = dict(part.split("=", 1) for part in SERVICE.split(";")) | changes
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    return IoTHubRegistryManager.from_connection_string(text)


def test_nobody_gets_in_without_the_right_key(rest):
    for stranger in (manager(SharedAccessKey=PRIMARY), manager(SharedAccessKeyName="nobody")):
        with refused(401, "IotHubUnauthorizedAccess"):
            stranger.get_devices()
    # The SDK always sends a token.
    answer = requests.get("https://localhost/devices?api-version=2021-04-12", timeout=30)
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == (401, "IotHubUnauthorizedAccess")


def test_a_throttled_call_is_an_error_and_the_next_is_not(registry, device, faults):
    faults(throttle=1)
    with refused(429, "ThrottlingException"):
        registry.get_twin(device.id)
    assert registry.get_twin(device.id).device_id == device.id


def test_queries_are_paged(registry, made):
    ring = new_id()
    ids = sorted(made(f"{ring}-{number:02}") for number in range(7))
    for number, device_id in enumerate(ids):
        registry.create_device_with_sas(device_id, PRIMARY, SECONDARY, "enabled")
        registry.update_twin(device_id, twin_with({"ring": ring, "floor": number % 3}, n=number))
    query = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.ring = '{ring}'")
    pages, token = [], None
    while not pages or token:
        page = registry.query_iot_hub(query, token, 3)
        assert page.type == "Twin"
        pages.append([twin.device_id for twin in page.items])
        token = page.continuation_token
    assert [len(page) for page in pages] == [3, 3, 1]
    assert sorted(sum(pages, [])) == ids


@pytest.mark.parametrize(
    "tail, wanted",
    [
        ("tags.floor = 1", {1, 4}),
        ("tags.floor IN [0, 2] AND NOT properties.desired.n >= 5", {0, 2, 3}),
        ("(tags.floor = 0 OR properties.desired.n = 5) AND is_defined(tags.floor)", {0, 3, 5, 6}),
        ("properties.reported.firmware.version = '2.0'", {2}),
        ("properties.reported.firmware != '2.0' AND tags.floor > 7", set()),
        ("connectionState = 'Disconnected' AND status = 'enabled' AND tags.floor < 1", {0, 3, 6}),
    ],
)
def test_queries_choose(registry, rings, tail, wanted):
    query = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.ring = '{rings}' AND ({tail})")
    found = registry.query_iot_hub(query).items
    assert {int(twin.device_id[-2:]) for twin in found} == wanted


@pytest.fixture(scope="module")
def rings(registry, rest):
    """Seven devices with tags, desired properties, and one with a reported property. Gives what they share."""
    ring = new_id()
    devices = []
    for number in range(7):
        device = Device(registry.create_device_with_sas(f"{ring}-{number:02}", PRIMARY, SECONDARY, "enabled"))
        registry.update_twin(device.id, twin_with({"ring": ring, "floor": number % 3}, n=number))
        devices.append(device)
    client = devices[2].connect()
    client.patch_twin_reported_properties({"firmware": {"version": "2.0"}})
    client.shutdown()
    yield ring
    for device in devices:
        registry.delete_device(device.id)


def test_queries_project_and_count(registry, rings):
    def rows(query):
        page = registry.query_iot_hub(QuerySpecification(query=query.format(ring=f"tags.ring = '{rings}'")))
        assert page.type == "Raw"
        return [row if isinstance(row, dict) else row.as_dict() | row.additional_properties for row in page.items]

    assert rows("SELECT COUNT() AS devices FROM devices WHERE {ring}") == [{"devices": 7}]
    floors = rows("SELECT tags.floor AS floor, COUNT() AS n FROM devices WHERE {ring} GROUP BY tags.floor")
    assert sorted((row["floor"], row["n"]) for row in floors) == [(0, 3), (1, 2), (2, 2)]
    named = rows("SELECT deviceId, properties.desired.n AS n FROM devices WHERE {ring} AND tags.floor = 1")
    assert sorted(row["n"] for row in named) == [1, 4]


@pytest.mark.parametrize("query", ["", "SELECT", "SELECT * FROM nowhere", "SELECT * FROM devices WHERE a ="])
def test_a_query_that_is_none_is_refused(registry, query):
    with refused(400):
        registry.query_iot_hub(QuerySpecification(query=query))
