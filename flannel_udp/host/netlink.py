"""The one door to rtnetlink: a socket, reading lists of objects, and the kernel's errors.

Everything here concerns the network namespace of the calling thread.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.errors import DeviceError, DeviceGoneError

IFF_UP = 0x1

_INTERRUPTED_DUMP_TRIES = 8
_GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)

Message = Any  # pyroute2's decoded netlink message: a dict with get()


@contextmanager
def netlink(doing: str) -> Iterator[IPRoute]:
    """A netlink socket; what the kernel refuses inside the block becomes a DeviceError."""
    try:
        # No multicast groups: on a busy host their messages would only fill the receive buffer.
        with IPRoute(groups=0, ext_ack=True) as ip:
            yield ip
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise DeviceError(
                f"cannot {doing}: not permitted; run as root (CAP_NET_ADMIN)"
            ) from None
        raise DeviceError(f"cannot {doing}: the kernel answered '{error.args[1]}'") from None


@contextmanager
def tolerate_gone() -> Iterator[None]:
    """The block may try to remove what does not exist."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def dump(read: Callable[..., Any], **query: Any) -> list[Message]:
    """All objects of a kind; read again if the kernel reports that the list changed meanwhile."""
    for _ in range(_INTERRUPTED_DUMP_TRIES):
        messages = list(read("dump", **query))
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
            break
    return messages


def index_of(ip: IPRoute, name: str) -> int:
    """Raises DeviceGoneError if there is no such interface."""
    for index in ip.link_lookup(ifname=name):
        return int(index)
    raise DeviceGoneError(f"network device {name} is missing: something else removed it")


def interface_names(ip: IPRoute) -> dict[int, str]:
    """The interfaces' names by index."""
    return {link["index"]: link.get("ifname") for link in dump(ip.link)}
