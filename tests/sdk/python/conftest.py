"""The hub under test, as a service sees it, and devices on it."""

import os
import queue
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.auth import ConnectionStringAuthentication
from azure.iot.hub.models import Twin, TwinProperties
from certificates import Workshop
from msrest.exceptions import HttpOperationError

# A loaded machine may take its time; a test that passes does not wait for it.
LIMIT_SECS = 30
SERVICE = os.environ["HUB_SERVICE"]
CA_FILE = os.environ["HUB_CA"]
CA_PEM = Path(CA_FILE).read_text()


def until(condition, limit_secs=LIMIT_SECS):
    """Waits for a true value of `condition`, and returns it."""
    end = time.monotonic() + limit_secs
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit_secs} s, the last value is {value!r}"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def registry():
    return IoTHubRegistryManager.from_connection_string(SERVICE)


@pytest.fixture(scope="session")
def rest():
    """Calls of the REST API that the SDK does not offer: `rest("POST", "/path", json=…)`."""
    return caller(SERVICE, "2021-04-12")


def caller(connection_string, api_version):
    authentication = ConnectionStringAuthentication(connection_string)

    def call(method, path, **arguments):
        with authentication.signed_session() as session:
            url = f"https://{authentication['HostName']}{path}"
            query = {"api-version": api_version} | arguments.pop("params", {})
            return session.request(method, url, params=query, timeout=LIMIT_SECS, **arguments)

    return call


@pytest.fixture
def faults(rest):
    """Injects faults: `faults(dropConnections=True)`. None of them outlives the test."""

    def inject(**wanted):
        answer = rest("POST", "/emulator/faults", json=wanted)
        assert answer.status_code == 204, answer.text

    yield inject
    inject(refuseConnects={"times": 0}, keepOut=[], muteTwin=False, failNextPatch=0, throttle=0, busyPolls=0)


def new_id():
    return f"py-{uuid.uuid4()}"


@contextmanager
def refused(status, symbol=None):
    """The service SDK is refused with this status and, in the header that tells refusals apart, this name."""
    with pytest.raises(HttpOperationError) as refusal:
        yield refusal
    response = refusal.value.response
    assert response.status_code == status, response.text
    assert symbol in (None, response.headers["iothub-errorcode"]), response.text


class Device:
    """A registered device, and the clients that stand for it."""

    def __init__(self, identity):
        self.id = identity.device_id
        self.key = identity.authentication.symmetric_key.primary_key
        self.clients = []
        self.answers = []

    def client(self, key=None, **options):
        """A client that is not connected yet."""
        text = f"HostName=localhost;DeviceId={self.id};SharedAccessKey={key or self.key}"
        return self.keep(IoTHubDeviceClient.create_from_connection_string(
            text, server_verification_cert=CA_PEM, connection_retry_interval=1, **options
        ))

    def module_client(self, module_id, key):
        text = f"HostName=localhost;DeviceId={self.id};ModuleId={module_id};SharedAccessKey={key}"
        return self.keep(IoTHubModuleClient.create_from_connection_string(text, server_verification_cert=CA_PEM))

    def answer_methods(self, client, answer):
        """Answers each direct method with what `answer(name, payload)` returns, a status and a payload.

        Each in a thread of its own: the SDK calls its handlers one after the other.
        """

        def respond(request):
            status, payload = answer(request.name, request.payload)
            client.send_method_response(MethodResponse.create_from_method_request(request, status, payload))

        def handle(request):
            self.answers.append(threading.Thread(target=respond, args=[request]))
            self.answers[-1].start()

        client.on_method_request_received = handle

    def keep(self, client):
        self.clients.append(client)
        return client

    def connect(self, **options):
        client = self.client(**options)
        client.connect()
        return client


@pytest.fixture
def device(registry, rest):
    """A device with keys that the hub made. It and its clients end with the test."""
    device = Device(registry.create_device_with_sas(new_id(), None, None, "enabled"))
    yield device
    for answer in device.answers:
        answer.join(LIMIT_SECS)
    for client in device.clients:
        client.shutdown()
    # Some tests delete it themselves.
    rest("DELETE", f"/devices/{device.id}", headers={"If-Match": "*"})


@pytest.fixture
def certificates(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture(params=["mqtt", "websocket"])
def transport(request):
    """How a device client reaches the hub: MQTT on port 8883, or in a WebSocket on port 443."""
    return {"websockets": request.param == "websocket"}


def desired_patches(client):
    """A queue of the desired properties that are pushed from now on."""
    patches = queue.Queue()
    client.on_twin_desired_properties_patch_received = patches.put
    return patches


def desire(registry, device, patch):
    """Patches the desired properties."""
    registry.update_twin(device.id, Twin(properties=TwinProperties(desired=patch)))
