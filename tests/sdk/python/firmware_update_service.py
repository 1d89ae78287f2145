"""Updates the firmware of a device and follows it in the twin until it is applied.

The service half of the Python firmware update tutorial of 2018, for the service SDK that can still be installed: it
calls `firmwareUpdate`, and then looks for the same words in the text of the twin. One thing is new: beside the
image's URI the payload has its SHA-256, since twinboot installs nothing that it cannot verify.

usage: firmware_update_service.py CONNECTION_STRING DEVICE URI SHA256 [SECONDS_BETWEEN_LOOKS]
"""

import sys
import time

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod

METHOD_NAME = "firmwareUpdate"
TIMEOUT_SECS = 60
SECONDS_BETWEEN_LOOKS = 6

# What stands in the twin, and what it means to a person. The last one is the end.
WORDS = {
    '"firmwareStatus":"standBy"': "Waiting on device...",
    '"firmwareStatus":"downloading"': "Downloading firmware...",
    '"firmwareStatus":"applying"': "Download complete, applying firmware...",
    '"firmwareStatus":"completed"': "Firmware applied",
}


def describe(twin_text):
    return next((meaning for word, meaning in WORDS.items() if word in twin_text), "Unknown status")


def run(connection_string, device_id, uri, sha256, pause_secs):
    registry = IoTHubRegistryManager.from_connection_string(connection_string)
    payload = {"fwPackageUri": uri, "fwPackageCheckValue": sha256}
    method = CloudToDeviceMethod(
        method_name=METHOD_NAME, payload=payload, response_timeout_in_seconds=TIMEOUT_SECS
    )
    print("Direct Method called.")
    print(registry.invoke_device_method(device_id, method).payload)

    print("Device Twin queried, press Ctrl-C to exit")
    while True:
        # As the hub wrote it: no space after a colon.
        twin_text = registry.protocol.devices.get_twin(device_id, raw=True).response.text
        meaning = describe(twin_text)
        print(meaning, flush=True)
        if meaning == "Firmware applied":
            print("Get reported properties from device twin:")
            print(twin_text)
            return
        time.sleep(pause_secs)


if __name__ == "__main__":
    connection_string, device_id, uri, sha256, *pause = sys.argv[1:]
    run(connection_string, device_id, uri, sha256, float(pause[0]) if pause else SECONDS_BETWEEN_LOOKS)
