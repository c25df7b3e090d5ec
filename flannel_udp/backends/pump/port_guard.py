"""The socket that keeps the overlay's port on all addresses of this host.

A program that had the port on another address, such as 127.0.0.1, could send with ours as source
(IP_PKTINFO needs no rights), and peers would take its datagrams for this daemon's.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from flannel_udp.host import ports

log = logging.getLogger(__name__)


class PortGuard:
    """Belongs to the pump's socket, and to who owns that."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def hold(self, udp_fd: int) -> None:
        """Keep the port of the pump's socket. Where that fails, or a program has the port already,
        it is logged."""
        try:
            self._hold(udp_fd)
        except OSError as error:
            log.warning(
                "cannot keep the UDP port on all addresses of this host: %s; other programs could"
                " send from it in this host's name",
                error.strerror,
            )

    def _hold(self, udp_fd: int) -> None:
        guard = self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # what it receives is dropped
        with socket.socket(fileno=os.dup(udp_fd)) as pump, _shared(pump, guard):
            port = pump.getsockname()[1]
            with contextlib.suppress(OSError):  # the port is taken: its holder is looked for below
                guard.bind(("0.0.0.0", port))
            if other := ports.udp_holder(port, (udp_fd, guard.fileno())):
                log.warning(
                    "%s has UDP port %d too, on another address of this host: it can send packets"
                    " into the overlay in this host's name; stop it and restart this daemon",
                    other,
                    port,
                )

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()


@contextlib.contextmanager
def _shared(*sockets: socket.socket) -> Iterator[None]:
    """Within the block they may have one port; only sockets of our user could join them."""
    try:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
    finally:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
