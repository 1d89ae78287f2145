"""Certificates of devices, and of the authorities that issue them."""

import hashlib
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Certificate:
    cert_file: str
    key_file: str

    def pem(self):
        return Path(self.cert_file).read_text()

    def thumbprint(self, hash_name):
        return hashlib.new(hash_name, ssl.PEM_cert_to_DER_cert(self.pem())).hexdigest().upper()


class Workshop:
    """Makes certificates in a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.made = 0

    def make(self, common_name, issuer=None, authority=False):
        """A certificate, signed by itself or by `issuer`."""
        self.made += 1
        certificate = Certificate(*(str(self.directory / f"{self.made}.{kind}") for kind in ("pem", "key")))
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
        command += ["-subj", f"/CN={common_name}", "-out", certificate.cert_file]
        command += ["-keyout", certificate.key_file]
        command += ["-addext", f"basicConstraints=critical,CA:{'TRUE' if authority else 'FALSE'}"]
        if issuer:
            command += ["-CA", issuer.cert_file, "-CAkey", issuer.key_file]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return certificate
