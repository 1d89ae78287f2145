"""The provisioning device SDK against the provisioning service, and the device SDK with what comes of it."""

import base64
import hashlib
import hmac
import os
from contextlib import contextmanager

import pytest
from azure.iot.device import X509, IoTHubDeviceClient, ProvisioningDeviceClient
from azure.iot.device.exceptions import ClientError, ServiceError
from conftest import CA_PEM, caller, new_id

ID_SCOPE = os.environ["DPS_ID_SCOPE"]
SYMMETRIC_KEY = {"type": "symmetricKey"}


@pytest.fixture(scope="session")
def dps():
    return caller(os.environ["DPS_SERVICE"], "2021-10-01")


@pytest.fixture
def enroll(dps, rest, faults):
    """Enrolls: `enroll("enrollments", id, attestation, …)` gives the enrollment. All of it ends with the test."""
    # The service asks for three seconds between two polls.
    faults(retryAfterSecs=1)
    paths = []

    def put(kind, name, attestation, **members):
        answer = dps("PUT", f"/{kind}/{name}", json={"attestation": attestation} | members)
        assert answer.status_code == 200, answer.text
        paths.append((dps, f"/{kind}/{name}"))
        return answer.json()

    put.device = lambda device_id: paths.append((rest, f"/devices/{device_id}"))
    yield put
    for service, path in paths:
        service("DELETE", path, headers={"If-Match": "*"})


def key_of(enrollment):
    return enrollment["attestation"]["symmetricKey"]["primaryKey"]


def derived(group_key, registration_id):
    digest = hmac.new(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def with_key(registration_id, key, **options):
    return ProvisioningDeviceClient.create_from_symmetric_key(
        provisioning_host="localhost", registration_id=registration_id, id_scope=ID_SCOPE, symmetric_key=key,
        server_verification_cert=CA_PEM, **options,
    )


def with_certificate(registration_id, certificate, **options):
    return ProvisioningDeviceClient.create_from_x509_certificate(
        provisioning_host="localhost", registration_id=registration_id, id_scope=ID_SCOPE,
        x509=X509(certificate.cert_file, certificate.key_file), server_verification_cert=CA_PEM, **options,
    )


@contextmanager
def registration_refused(text):
    """The SDK wraps what the service says."""
    with pytest.raises(ClientError) as refusal:
        yield
    assert isinstance(refusal.value.__cause__, ServiceError)
    assert text in str(refusal.value.__cause__)


def connects(client):
    client.connect()
    twin = client.get_twin()
    client.shutdown()
    return twin


def connects_with_key(state, key):
    text = f"HostName={state.assigned_hub};DeviceId={state.device_id};SharedAccessKey={key}"
    return connects(IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=CA_PEM))


def connects_with_certificate(state, certificate):
    return connects(IoTHubDeviceClient.create_from_x509_certificate(
        X509(certificate.cert_file, certificate.key_file), hostname=state.assigned_hub, device_id=state.device_id,
        server_verification_cert=CA_PEM,
    ))


def test_a_device_registers_with_its_key(enroll, registry, dps, transport):
    registration_id = new_id()
    initial_twin = {"tags": {"site": "north"}, "properties": {"desired": {"a": 1}}}
    enrollment = enroll("enrollments", registration_id, SYMMETRIC_KEY, initialTwin=initial_twin)
    enroll.device(registration_id)
    result = with_key(registration_id, key_of(enrollment), **transport).register()
    state = result.registration_state
    assert (result.status, state.device_id, state.assigned_hub) == ("assigned", registration_id, "localhost")
    assert state.sub_status == "initialAssignment"
    assert connects_with_key(state, key_of(enrollment))["desired"] == {"a": 1, "$version": 2}
    assert registry.get_twin(registration_id).tags == {"site": "north"}
    registered = dps("GET", f"/registrations/{registration_id}").json()
    assert (registered["status"], registered["deviceId"]) == ("assigned", registration_id)
    # The second time, it finds what it had.
    again = with_key(registration_id, key_of(enrollment), **transport).register().registration_state
    assert (again.device_id, again.sub_status) == (registration_id, "deviceDataMigrated")


def test_a_device_registers_with_a_key_of_its_group(enroll):
    group, registration_id = new_id(), new_id()
    enrollment = enroll("enrollmentGroups", group, SYMMETRIC_KEY)
    enroll.device(registration_id)
    key = derived(key_of(enrollment), registration_id)
    state = with_key(registration_id, key).register().registration_state
    assert connects_with_key(state, key)["reported"] == {"$version": 1}


def test_a_device_registers_with_its_certificate(enroll, certificates, transport):
    registration_id = new_id()
    certificate = certificates.make(registration_id)
    client_certificates = {"primary": {"certificate": certificate.pem()}}
    enroll("enrollments", registration_id, {"type": "x509", "x509": {"clientCertificates": client_certificates}})
    enroll.device(registration_id)
    state = with_certificate(registration_id, certificate, **transport).register().registration_state
    assert connects_with_certificate(state, certificate)["desired"] == {"$version": 1}


def test_a_device_registers_with_a_certificate_of_its_groups_authority(enroll, certificates):
    group, registration_id = new_id(), new_id()
    authority = certificates.make("authority of devices", authority=True)
    certificate = certificates.make(registration_id, issuer=authority)
    signing_certificates = {"primary": {"certificate": authority.pem()}}
    enroll("enrollmentGroups", group, {"type": "x509", "x509": {"signingCertificates": signing_certificates}})
    enroll.device(registration_id)
    state = with_certificate(registration_id, certificate).register().registration_state
    assert connects_with_certificate(state, certificate)["desired"] == {"$version": 1}

    other = certificates.make(registration_id, issuer=certificates.make("another authority", authority=True))
    with registration_refused("error status code 401"):
        with_certificate(registration_id, other).register()


def test_nobody_registers_without_an_enrollment_or_with_a_wrong_key(enroll):
    registration_id = new_id()
    enroll("enrollments", registration_id, SYMMETRIC_KEY)
    strange = base64.b64encode(b"k" * 32).decode()
    for name in (registration_id, new_id()):
        with registration_refused("error status code 401"):
            with_key(name, strange).register()


def test_a_disabled_enrollment_is_told_so(enroll):
    registration_id = new_id()
    enrollment = enroll("enrollments", registration_id, SYMMETRIC_KEY, provisioningStatus="disabled")
    with registration_refused("registration status disabled"):
        with_key(registration_id, key_of(enrollment)).register()


def test_a_device_waits_while_it_is_assigned_and_the_service_is_busy(enroll, faults):
    registration_id = new_id()
    enrollment = enroll("enrollments", registration_id, SYMMETRIC_KEY)
    enroll.device(registration_id)
    faults(busyPolls=2, failNextRegistration=429)
    assert with_key(registration_id, key_of(enrollment)).register().status == "assigned"


@pytest.mark.parametrize("policy, status", [
    ({"updateHubAssignment": True, "migrateDeviceData": False}, "deviceDataReset"),
    ({"updateHubAssignment": False, "migrateDeviceData": False}, "initialAssignment"),
])
def test_what_a_second_registration_does_is_the_enrollments_policy(enroll, registry, policy, status):
    registration_id = new_id()
    enrollment = enroll("enrollments", registration_id, SYMMETRIC_KEY, reprovisionPolicy=policy)
    enroll.device(registration_id)
    with_key(registration_id, key_of(enrollment)).register()
    registry.update_twin(registration_id, {"tags": {"kept": True}})
    again = with_key(registration_id, key_of(enrollment)).register().registration_state
    assert again.sub_status == status
    kept = (registry.get_twin(registration_id).tags or {}).get("kept", False)
    assert kept is (status == "initialAssignment")
