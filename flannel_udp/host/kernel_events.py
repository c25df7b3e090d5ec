"""The kernel's notices that links, addresses or routes of this host have changed.

A notice only causes another look; the state is then read again. So nothing depends on the order of
the notices, nor on receiving all of them.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_LINK,
)

from flannel_udp.host.kernel_routes import MAIN_TABLE
from flannel_udp.host.shortage import SHORTAGES

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBB")  # struct rtmsg: family, dst_len, src_len, tos, table
_MOST_BYTES = 1 << 16  # the kernel's messages come in datagrams of a few pages at most


class HostChanges:
    """Becomes readable when a link, an IPv4 address or a route has changed. Owned by one thread."""

    def __init__(self, kernel: socket.socket, network: IPv4Network) -> None:
        self._kernel, self._network = kernel, network

    def fileno(self) -> int:
        return self._kernel.fileno()

    def drain(self) -> bool:
        """Read the waiting notices; returns whether any may concern ``network`` or a link."""
        matters = False
        while True:
            try:
                messages = self._kernel.recv(_MOST_BYTES)
            except BlockingIOError:
                return matters
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                return True  # some were lost
            else:
                matters = matters or any(map(self._matters, _split(messages)))

    def _matters(self, message: bytes) -> bool:
        kind = _HEADER.unpack_from(message)[1]
        if kind in (RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR):
            return True
        if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
            return False
        # A host may learn many routes a second: only those that may lie inside Network count.
        _, length, _, _, table = _ROUTE.unpack_from(message, _HEADER.size)
        return bool(table == MAIN_TABLE and length >= self._network.prefixlen)


@contextmanager
def host_changes(network: IPv4Network) -> Iterator[HostChanges]:
    """No change is missed from the start of the block on."""
    with socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        NETLINK_ROUTE,
    ) as kernel:
        kernel.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))
        yield HostChanges(kernel, network)


def _split(messages: bytes) -> Iterator[bytes]:
    """The messages of one datagram, each padded to four bytes (netlink(7))."""
    while len(messages) >= _HEADER.size:
        length = max(_HEADER.size, _HEADER.unpack_from(messages)[0])
        yield messages[:length]
        messages = messages[length + 3 & ~3 :]
