"""The device SDK against the hub: who gets in, who is put out, and what survives a lost connection."""

import os
import queue
import re
import threading
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, X509
from azure.iot.device.exceptions import ClientError, ConnectionDroppedError, ConnectionFailedError, CredentialError
from azure.iot.hub.models import CloudToDeviceMethod
from azure.iot.hub.sastoken import SasToken
from certificates import Certificate
from conftest import CA_PEM, LIMIT_SECS, desire, desired_patches, refused, until

STRANGE_KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


def call(registry, device, name):
    # The hub may not have noticed yet that the device is back.
    method = CloudToDeviceMethod(
        method_name=name, payload={}, connect_timeout_in_seconds=20, response_timeout_in_seconds=20
    )
    return registry.invoke_device_method(device.id, method).status


def connected(registry, device):
    return registry.get_device(device.id).connection_state == "Connected"


def watch_states(client):
    """A queue of each change: whether the client is connected."""
    states = queue.Queue()
    client.on_connection_state_change = lambda: states.put(client.connected)
    return states


def heard(states, wanted):
    """Waits until the client says that it is connected, or that it is not: it may repeat itself."""
    while states.get(timeout=LIMIT_SECS) is not wanted:
        pass


def drop(faults, states):
    """Drops the client's connection, and waits until it is back."""
    faults(dropConnections=True)
    heard(states, False)
    heard(states, True)


def test_either_key_lets_the_device_in_and_no_other(registry, device, transport):
    secondary = registry.get_device(device.id).authentication.symmetric_key.secondary_key
    device.connect(key=secondary, **transport).disconnect()
    with pytest.raises(CredentialError):
        device.connect(key=STRANGE_KEY, **transport)


def test_a_token_made_elsewhere_is_good_until_it_expires(registry, device):
    token = str(SasToken(f"localhost/devices/{device.id}", device.key, ttl=4))
    expiry = int(re.search(r"se=(\d+)", token)[1])
    client = device.keep(IoTHubDeviceClient.create_from_sastoken(token, server_verification_cert=CA_PEM))
    client.connect()
    states = watch_states(client)
    # The hub ends the connection at the token's end, and lets the token in no more.
    heard(states, False)
    assert expiry <= time.time() <= expiry + 5
    with pytest.raises(CredentialError):
        client.connect()


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_a_certificate_lets_in_the_device_whose_thumbprint_it_has(registry, device, certificates, hash_name, transport):
    good, other = certificates.make("good"), certificates.make("other")
    identity = registry.get_device(device.id)
    registry.update_device_with_x509(
        device.id, identity.etag, good.thumbprint(hash_name), None, status="enabled"
    )

    def client(certificate):
        return device.keep(IoTHubDeviceClient.create_from_x509_certificate(
            X509(cert_file=certificate.cert_file, key_file=certificate.key_file),
            hostname="localhost", device_id=device.id, server_verification_cert=CA_PEM, **transport,
        ))

    with pytest.raises(CredentialError):
        client(other).connect()
    welcome = client(good)
    welcome.connect()
    assert welcome.get_twin()["desired"] == {"$version": 1}
    with pytest.raises(CredentialError):
        device.connect(**transport)


def test_a_certificate_of_an_authority_that_the_hub_trusts_lets_in_the_device_that_it_names(registry, device, certificates):
    identity = registry.get_device(device.id)
    registry.update_device_with_certificate_authority(device.id, identity.etag, "enabled")
    trusted = Certificate(*(f"{os.environ['DEVICE_CA']}.{kind}" for kind in ("pem", "key")))
    stranger = certificates.make("stranger", authority=True)

    def connect(name, issuer):
        certificate = certificates.make(name, issuer)
        device.keep(IoTHubDeviceClient.create_from_x509_certificate(
            X509(certificate.cert_file, certificate.key_file), hostname="localhost", device_id=device.id,
            server_verification_cert=CA_PEM,
        )).connect()

    connect(device.id, trusted)
    for name, issuer in (("another", trusted), (device.id, stranger)):
        with pytest.raises(CredentialError):
            connect(name, issuer)


def test_desired_properties_that_were_never_pushed_are_found_by_their_version(registry, device, faults):
    client = device.connect()
    states = watch_states(client)
    patches = desired_patches(client)
    desire(registry, device, {"a": 1})
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "$version": 2}
    faults(muteTwin=True)
    desire(registry, device, {"b": 2})
    faults(muteTwin=False)
    drop(faults, states)
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "b": 2, "$version": 3}


def test_a_device_that_is_disabled_or_deleted_is_put_out(registry, device):
    client = device.connect()
    states = watch_states(client)
    identity = registry.get_device(device.id)
    key = identity.authentication.symmetric_key
    registry.update_device_with_sas(device.id, identity.etag, key.primary_key, key.secondary_key, "disabled")
    heard(states, False)
    with pytest.raises(CredentialError):
        device.connect()
    registry.delete_device(device.id)
    with pytest.raises(CredentialError):
        device.connect()


@pytest.mark.parametrize(
    "code, error",
    [
        # paho takes this one for a lost connection.
        (1, ConnectionDroppedError),
        (2, ClientError),
        (3, ConnectionFailedError),
        (4, CredentialError),
        (5, CredentialError),
    ],
)
def test_each_refusal_is_the_error_that_the_sdk_has_for_it(device, faults, code, error):
    faults(refuseConnects={"times": 1, "code": code})
    with pytest.raises(error) as refused:
        device.connect()
    assert refused.type is error
    device.connect()


def test_the_newer_of_two_connections_stays(registry, device):
    older = device.connect(connection_retry=False)
    states = watch_states(older)
    newer = device.connect()
    heard(states, False)
    device.answer_methods(newer, lambda name, _: (201, name))
    assert call(registry, device, "who") == 201


def test_after_a_drop_methods_and_desired_properties_come_without_a_new_subscription(
    registry, device, faults, transport
):
    client = device.connect(**transport)
    states = watch_states(client)
    device.answer_methods(client, lambda name, _: (200, name))
    patches = desired_patches(client)
    for version in (2, 3):
        # The SDK subscribes to nothing anew: the hub keeps its persisted session.
        drop(faults, states)
        if version == 2:
            # It knows no version yet to compare with, and hands on the whole document.
            assert patches.get(timeout=LIMIT_SECS) == {"$version": 1}
        assert call(registry, device, "stillThere") == 200
        desire(registry, device, {"a": version})
        assert patches.get(timeout=LIMIT_SECS) == {"a": version, "$version": version}
    client.patch_twin_reported_properties({"alive": True})
    assert patches.empty()


def test_desired_properties_that_changed_meanwhile_are_read_after_a_drop(registry, device, faults):
    client = device.connect()
    states = watch_states(client)
    patches = desired_patches(client)
    desire(registry, device, {"a": 1})
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "$version": 2}
    faults(keepOut=[device.id])
    heard(states, False)
    until(lambda: not connected(registry, device))
    desire(registry, device, {"b": 1})
    desire(registry, device, {"b": 2})
    faults(keepOut=[])
    # The hub sends none of them later. The SDK finds the new version and hands on the whole document.
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "b": 2, "$version": 4}
    assert patches.empty()


def test_after_a_clean_end_the_session_waits_for_the_device(registry, device):
    client = device.connect()
    device.answer_methods(client, lambda name, _: (200, name))
    patches = desired_patches(client)
    call(registry, device, "first")
    client.disconnect()
    until(lambda: not connected(registry, device))
    client.connect()
    assert patches.get(timeout=LIMIT_SECS) == {"$version": 1}
    assert call(registry, device, "again") == 200
    desire(registry, device, {"a": 1})
    assert patches.get(timeout=LIMIT_SECS) == {"a": 1, "$version": 2}


def test_refusals_that_may_pass_are_outlasted(registry, device, faults):
    client = device.connect()
    states = watch_states(client)
    device.answer_methods(client, lambda name, _: (200, name))
    faults(refuseConnects={"times": 2, "code": 3}, dropConnections=True)
    heard(states, False)
    heard(states, True)
    assert call(registry, device, "back") == 200


def test_a_hub_that_was_away_is_found_again(registry, device, faults):
    client = device.connect()
    states = watch_states(client)
    away = threading.Thread(target=lambda: faults(awaySecs=2))
    away.start()
    heard(states, False)
    heard(states, True)
    away.join(LIMIT_SECS)
    client.patch_twin_reported_properties({"alive": True})
    assert registry.get_twin(device.id).properties.reported["alive"] is True


def test_a_method_whose_answer_was_lost_with_the_connection_is_504101(registry, device, faults):
    client = device.connect()
    client.on_method_request_received = lambda request: faults(dropConnections=True)
    with refused(504, "GatewayTimeout"):
        call(registry, device, "lost")
