"""One daemon per network namespace and port.

The lock is an abstract unix socket (unix(7)): the kernel keeps such names apart by network
namespace, which a file in /run cannot, and drops them with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from flannel_udp.errors import DeviceError


@contextlib.contextmanager
def hold(port: int) -> Iterator[None]:
    """Keep every other daemon here off this UDP port. Raises DeviceError if one has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        try:
            lock.bind(f"\0flannel-udp/{port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise DeviceError(
                f"another flannel-udp already runs here on port {port}: stop it first, or give"
                " this one a network config with another Backend.Port"
            ) from None
        yield


def is_held(port: int) -> bool:
    """Whether a daemon runs here on this UDP port."""
    try:
        with hold(port):
            return False
    except DeviceError:
        return True
