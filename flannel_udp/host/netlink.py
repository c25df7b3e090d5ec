"""The one door to rtnetlink: a socket, reading lists of objects, and the kernel's errors.

Everything here concerns the network namespace of the calling thread.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.errors import DeviceError, DeviceGoneError, ShortageError
from flannel_udp.host.shortage import ADVICE, SHORTAGES

IFF_UP = 0x1

# A burst of connections may take the last descriptors for a moment.
_PATIENCE, _RETRY_AFTER = 2.0, 0.05  # seconds
_DESCRIPTORS = 5  # that a pyroute2 socket needs while it is opened

_INTERRUPTED_DUMP_TRIES = 8
_GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)

Message = Any  # pyroute2's decoded netlink message: a dict with get()


@contextmanager
def netlink(doing: str) -> Iterator[IPRoute]:
    """A netlink socket; what the kernel refuses inside the block becomes a DeviceError.

    Waits for two seconds at most while descriptors or memory are short, and then raises
    ShortageError.
    """
    try:
        with _open() as ip:
            yield ip
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        raise ShortageError(f"cannot {doing}: {error.strerror}; {ADVICE}") from None
    except NetlinkError as error:
        answer = f"the kernel answered '{error.args[1]}'"
        if error.code in (errno.EPERM, errno.EACCES):
            answer = "not permitted; run as root (CAP_NET_ADMIN)"
        kind = ShortageError if error.code in SHORTAGES else DeviceError
        raise kind(f"cannot {doing}: {answer}") from None


def _open() -> IPRoute:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            # pyroute2 that runs out of descriptors in the middle writes a traceback to stderr.
            with ExitStack() as reserved:
                for _ in range(_DESCRIPTORS):
                    reserved.callback(os.close, os.eventfd(0))
            # No multicast groups: on a busy host their messages would only fill the receive buffer.
            return IPRoute(groups=0, ext_ack=True)
        except OSError as error:
            if error.errno not in SHORTAGES or time.monotonic() > until:
                raise
            time.sleep(_RETRY_AFTER)


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
