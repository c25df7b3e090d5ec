"""Leaving the data plane to the next process: its descriptors, and a record of the state.

The state is recorded when the daemon stops for a successor, and while it runs: after a crash the
next process starts from the last record, and etcd delivers what it missed.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backends.pump.ends import Tunnel
from flannel_udp.backends.pump.pump import pack
from flannel_udp.handover import state
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.state import CHUNK, Head
from flannel_udp.host import systemd
from flannel_udp.logs import DETAIL
from flannel_udp.routing.routes import Knowledge
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between two records
_SHARE = 0.005  # of its time that the thread may encode: a large table is recorded less often
_YIELD = 0.0001  # seconds between two chunks, in which another thread gets the GIL


RecordedState = tuple[Head, Mapping[IPv4Network, IPv4Address], Knowledge]  # with the routes


class Recorder(Service):
    """Where a service manager stores descriptors, it gets them at ``__enter__``, and a thread
    records every change until ``__exit__``. ``leave`` is called last, for every successor."""

    def __init__(
        self,
        tunnel: Tunnel,
        memory: MemoryFile,
        read: Callable[[], RecordedState],
        *,
        is_stored: bool = False,
    ) -> None:
        """``read`` returns the present head, routes and leases, to any thread. ``is_stored``: the
        service manager has the descriptors from the last process."""
        super().__init__("handover", None)
        self._is_stored, self._memory, self._read = is_stored, memory, read
        self._descriptors = {
            state.TUN: tunnel.tun_fd,
            state.UDP: tunnel.udp_fd,
            state.STATE: memory.descriptor,
        }
        self._changed = threading.Event()

    def start(self) -> None:
        if systemd.keeps_descriptors():
            self._record()
            if not self._is_stored:
                self.store()
            super().start()

    def store(self) -> None:
        """Have the service manager keep the descriptors as they are now."""
        if systemd.keeps_descriptors():
            for name in self._descriptors:
                systemd.forget_descriptor(name)
            for name, descriptor in self._descriptors.items():
                systemd.store_descriptor(name, descriptor)

    def changed(self, _: object = None) -> None:
        """Note that the state has changed. Returns at once; any thread may call."""
        self._changed.set()

    def leave(self) -> dict[str, int]:
        """Record the last state; return copies of the descriptors by name, to be closed by the
        caller."""
        self._record()
        return {name: os.dup(descriptor) for name, descriptor in self._descriptors.items()}

    def _record(self) -> None:
        try:
            content = self._encoded()
            self._memory.write(content)
            log.log(DETAIL, "recorded the state for the next process: %d bytes", len(content))
        except OSError as error:
            log.warning("cannot record the state for the next process: %s", error.strerror)

    def _encoded(self) -> bytes:
        head, routes, known = self._read()
        rows = iter(routes.items())
        chunks = iter(lambda: dict(itertools.islice(rows, CHUNK)), {})
        return _join(state.encode(head, _join(map(pack, chunks)), known))

    def _wake(self) -> None:
        self._changed.set()

    def _serve(self) -> None:
        while self._changed.wait() and not self._stopping.is_set():
            self._changed.clear()
            began = time.monotonic()
            self._record()
            spent = time.monotonic() - began
            self._stopping.wait(max(_INTERVAL, spent / _SHARE))


def _join(chunks: Iterable[bytes]) -> bytes:
    """Join all chunks; yield to other threads after each, so that lease changes need not wait."""
    joined = []
    for chunk in chunks:
        joined.append(chunk)
        time.sleep(_YIELD)
    return b"".join(joined)
