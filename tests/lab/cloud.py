"""What the lab's board reaches over its network: the emulated IoT Hub, a server of images, and a clock."""

import http.server
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.request

from board import Failed

DEVICE = "gateway-1"
NTP_EPOCH = 2208988800


class Hub:
    """The emulated hub, and the identity that it gives to the board."""

    def __init__(self, emulator, directory):
        os.makedirs(directory, exist_ok=True)
        self.ca, out = os.path.join(directory, "ca.pem"), os.path.join(directory, "hub.out")
        command = [emulator, "serve", "--mqtt-port", "0", "--https-port", "0", "--host-name", "hub.lab"]
        command += ["--ca-file", self.ca, "--device", DEVICE]
        with open(out, "w") as output, open(os.path.join(directory, "hub.log"), "w") as log:
            self.process = subprocess.Popen(command, stdout=output, stderr=log)
        end = time.monotonic() + 30
        while "Ctrl-C" not in (text := open(out).read()):
            if time.monotonic() > end:
                raise Failed("the hub does not start")
            time.sleep(0.1)
        self.port = re.search(r"^devices:.*:(\d+)$", text, re.M).group(1)
        self.service = "https://localhost:" + re.search(r"^service:.*:(\d+)$", text, re.M).group(1)
        self.token = re.search(r"Authorization: ([^']*)'", text).group(1)
        self.connection_string = re.search(r"^connection string of device.*\n +(\S+)", text, re.M).group(1)
        self.context = ssl.create_default_context(cafile=self.ca)

    def write_identity(self, directory):
        os.makedirs(directory, exist_ok=True)
        text = re.sub(r"HostName=[^;]*", "HostName=hub.lab", self.connection_string)
        hub = '[hub]\nconnection_string_file = "/etc/twinboot/connection-string"\n'
        hub += f'ca_file = "/data/identity/hub-ca.pem"\nport = {self.port}\n'
        for name, content in (("connection-string", text), ("hub.toml", hub), ("hub-ca.pem", open(self.ca).read())):
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                file.write(content)
            os.chmod(file.name, 0o600 if name == "connection-string" else 0o644)

    def ask(self, path, body=None):
        url = f"{self.service}{path}?api-version=2021-04-12"
        request = urllib.request.Request(url, headers={"Authorization": self.token})
        request.data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, timeout=60, context=self.context) as answer:
            return json.loads(answer.read() or b"null")

    def call(self, method, payload=None):
        """A direct method: its status and its answer."""
        answer = self.ask(f"/twins/{DEVICE}/methods", {"methodName": method, "payload": payload})
        return answer["status"], answer["payload"]

    def twin(self):
        return self.ask(f"/twins/{DEVICE}")

    def reported(self):
        reported = self.twin()["properties"]["reported"]
        return {key: value for key, value in reported.items() if not key.startswith("$")}

    def keep_out(self, devices):
        self.ask("/emulator/faults", {"keepOut": devices})

    def close(self):
        self.process.terminate()
        self.process.wait(10)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # A board whose power goes does not say goodbye.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Images:
    """Serves the files of a directory over HTTP, with ranges, no faster than it is told; keeps what was asked for."""

    def __init__(self):
        images = self
        self.files, self.asked, self.rate = {}, [], None

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                images.answer(self)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, image):
        name = os.path.basename(image.path)
        self.files[name] = image
        return f"http://images.lab:{self.port}/{name}"

    def answer(self, handler):
        image = self.files.get(handler.path.lstrip("/"))
        if not image:
            return handler.send_error(404)
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        first = int(match.group(1)) if match else 0
        last = int(match.group(2)) if match and match.group(2) else image.size - 1
        handler.send_response(206 if match else 200)
        if match:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{image.size}")
        handler.send_header("ETag", f'"{image.sha256}"')
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(last + 1 - first))
        handler.end_headers()
        try:
            self.send(handler.wfile, image.path, first, last + 1)
        except OSError:
            handler.close_connection = True

    def send(self, out, path, position, end):
        with open(path, "rb") as file:
            file.seek(position)
            while position < end:
                chunk = file.read(min(1 << 16, end - position))
                out.write(chunk)
                position += len(chunk)
                if self.rate:
                    time.sleep(len(chunk) / self.rate)

    def close(self):
        self.server.shutdown()


class Clock:
    """A server of the network time protocol. The board's asks the usual port, so it must be that one."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 123))
        self.answering = threading.Event()
        self.answering.set()
        self.closing = threading.Event()
        self.socket.settimeout(0.2)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while not self.closing.is_set():
            try:
                request, address = self.socket.recvfrom(512)
            except TimeoutError:
                continue
            if len(request) < 48 or not self.answering.is_set():
                continue
            now = int((time.time() + NTP_EPOCH) * 2**32).to_bytes(8, "big")
            header = struct.pack(">BBbbII4s", 0x24, 1, 6, -20, 0, 0x10, b"LOCL")
            self.socket.sendto(header + now + request[40:48] + now + now, address)

    def close(self):
        # A socket that is being read from keeps its port.
        self.closing.set()
        self.thread.join()
        self.socket.close()
