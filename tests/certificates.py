"""Certificates of authorities that nobody else knows, made by the openssl command."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import servers

__all__ = ["Certificate", "authority", "issue"]

ELLIPTIC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate and its key, in PEM files.

    Attributes:
        certificate: what everybody may have.
        key: what only its owner has.
    """

    certificate: Path
    key: Path


def authority(directory: Path, name: str) -> Certificate:
    """Make a certificate authority."""
    made = Certificate(certificate=directory / f"{name}.crt", key=directory / f"{name}.key")
    _openssl(
        "req", "-x509", *ELLIPTIC, "-days", "2", "-subj", f"/CN={name}", "-keyout", made.key, "-out", made.certificate
    )
    return made


def issue(by: Certificate, directory: Path, *, address: str) -> Certificate:
    """Make a server's certificate for an IP address and no host name."""
    made = Certificate(certificate=directory / "server.crt", key=directory / "server.key")
    request, extensions = directory / "server.csr", directory / "server.ext"
    extensions.write_text(f"subjectAltName=IP:{address}\n")
    _openssl("req", *ELLIPTIC, "-subj", "/CN=server", "-keyout", made.key, "-out", request)
    _openssl(
        "x509", "-req", "-in", request, "-CA", by.certificate, "-CAkey", by.key, "-set_serial", "7", "-days", "2",
        "-extfile", extensions, "-out", made.certificate,
    )  # fmt: skip
    return made


def _openssl(*arguments: str | os.PathLike[str]) -> None:
    binary = shutil.which("openssl")
    if binary is None:
        servers.refuse("no openssl command")
    subprocess.run([binary, *arguments], check=True, capture_output=True)
