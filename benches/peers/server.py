"""What the peers fetch from: nginx, which counts what it sends, and a proxy that breaks off at a given byte."""

import os
import signal
import socket
import subprocess
import threading
import time

PORT, PROXY_PORT = 8480, 8490

CONFIGURATION = """
worker_processes 1;
pid {run}/nginx.pid;
error_log {run}/error.log warn;
user root;
events {{ worker_connections 2048; }}
http {{
  types {{ }}
  default_type application/octet-stream;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_requests 10000000;
  log_format bytes '$bytes_sent';
  access_log {run}/access.log bytes;
  client_body_temp_path {run}/t1; proxy_temp_path {run}/t2; fastcgi_temp_path {run}/t3;
  uwsgi_temp_path {run}/t4; scgi_temp_path {run}/t5;
  server {{ listen 127.0.0.1:{port}; root {www}; }}
}}
"""


class Server:
    """Serves a directory. What it sends is counted with the heads of its answers, as it is handed to the socket."""

    def __init__(self, www, run):
        os.makedirs(run, exist_ok=True)
        self.log = f"{run}/access.log"
        with open(f"{run}/nginx.conf", "w") as file:
            file.write(CONFIGURATION.format(www=www, run=run, port=PORT))
        self.process = subprocess.Popen(
            ["nginx", "-c", f"{run}/nginx.conf", "-e", f"{run}/error.log", "-g", "daemon off;"])
        for _ in range(100):
            try:
                return socket.create_connection(("127.0.0.1", PORT)).close()
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"nginx does not serve: see {run}/error.log")

    def sent_bytes(self):
        """Of all answers that ended."""
        time.sleep(0.2)  # It writes the log once the connection's end has come.
        with open(self.log) as log:
            return sum(map(int, log))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Proxy:
    """Before the server: after `limit` bytes of answers it is silent, and `on_limit` is called."""

    def __init__(self, limit=None, on_limit=None):
        self.limit, self.on_limit = limit, on_limit
        self.sent_bytes, self.is_cut = 0, False
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", PROXY_PORT), backlog=64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", PORT))
            for way in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.carry, args=way, daemon=True).start()

    def carry(self, source, sink, counts):
        try:
            while data := source.recv(65536):
                if counts and not self.admit(len(data)):
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def admit(self, length):
        with self.lock:
            if self.is_cut:
                return False
            if self.limit is None or self.sent_bytes + length < self.limit:
                self.sent_bytes += length
                return True
            self.is_cut = True
        self.on_limit()
        return False

    def stop(self):
        # Or the port is taken for as long as a thread waits at it.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
