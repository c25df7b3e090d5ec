"""The certificate files that the flags name, read and checked before any connection."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from flannel_udp.errors import CertificateError

# Where distributions keep their roots; Python may have been built with another default.
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_MOST_BYTES = 16 << 20  # a system's list of authorities has a quarter of one MiB


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM bytes: the authorities we trust, and the certificate and key we present, if any."""

    roots: bytes
    chain: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def load(cafile: Path | None, certfile: Path | None, keyfile: Path | None) -> Certificates:
    """Read and check the files. Without ``cafile`` the system's authorities are trusted.

    A CA alone is enough to verify the server. Raises CertificateError for a file that is
    unreadable or no certificate, a key that is encrypted or belongs to another certificate, and a
    certificate without key or a key without certificate.
    """
    if certfile and not keyfile:
        raise CertificateError(
            f"--etcd-certfile {certfile} was given without its private key: add --etcd-keyfile"
        )
    if keyfile and not certfile:
        raise CertificateError(
            f"--etcd-keyfile {keyfile} was given without its certificate: add --etcd-certfile"
        )
    roots = _read("--etcd-cafile", cafile) if cafile else _system_roots()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise CertificateError(
            f"--etcd-cafile {cafile} holds no PEM certificate: give the certificate of the"
            " authority that signed etcd's"
        ) from None
    if not certfile or not keyfile:
        return Certificates(roots)
    chain, key = _read("--etcd-certfile", certfile), _read("--etcd-keyfile", keyfile)
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise CertificateError(
            f"--etcd-certfile {certfile} and --etcd-keyfile {keyfile} are not a PEM certificate"
            " and its unencrypted private key: check both files"
        ) from None
    return Certificates(roots, chain, key)


def _read(flag: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CertificateError(
            f"{flag} {path} cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    if len(content) > _MOST_BYTES:  # a device such as /dev/zero would fill the memory
        raise CertificateError(
            f"{flag} {path} holds more than {_MOST_BYTES >> 20} MiB: it is no certificate file;"
            " check the path"
        )
    return content


def _system_roots() -> bytes:
    # Without this, gRPC for Python trusts a list of its own (grpc/grpc issue 40580).
    for path in (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS):
        if path and Path(path).is_file():
            return _read("the system's list of authorities", Path(path))
    raise CertificateError(
        "an https etcd endpoint needs certificate authorities and this system has none:"
        " give --etcd-cafile or install ca-certificates"
    )
