"""The device SDK against the hub: files that a device uploads."""

import pytest
import requests
from azure.iot.device.exceptions import ClientError
from conftest import LIMIT_SECS


def test_a_file_goes_up_in_three_steps(rest, device):
    client = device.client()
    storage = client.get_storage_info_for_blob("logs/today ü.txt")
    assert storage["blobName"] == f"{device.id}/logs/today ü.txt"
    url = f"https://{storage['hostName']}/{storage['containerName']}/{storage['blobName']}{storage['sasToken']}"
    put = requests.put(url, data=b"what happened", headers={"x-ms-blob-type": "BlockBlob"}, timeout=LIMIT_SECS)
    assert put.status_code == 201, put.text
    client.notify_blob_upload_status(storage["correlationId"], True, put.status_code, "there")
    [upload] = rest("GET", f"/emulator/uploads/{device.id}").json()
    assert (upload["name"], upload["sizeBytes"]) == ("logs/today ü.txt", 13)
    assert upload["notification"] == {"isSuccess": True, "statusCode": 201, "statusDescription": "there"}
    assert rest("GET", upload["path"]).content == b"what happened"
    # Told of once, it is over, and so is the access to the storage.
    with pytest.raises(ClientError):
        client.notify_blob_upload_status(storage["correlationId"], True, 200, "again")
    late = requests.put(url, data=b"late", headers={"x-ms-blob-type": "BlockBlob"}, timeout=LIMIT_SECS)
    assert late.status_code == 403


def test_only_the_device_may_upload_and_ten_files_at_once(device):
    stranger = device.client(key="a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=")
    with pytest.raises(ClientError):
        stranger.get_storage_info_for_blob("a")
    client = device.client()
    for number in range(10):
        client.get_storage_info_for_blob(f"{number}")
    with pytest.raises(ClientError):
        client.get_storage_info_for_blob("one too many")
