"""Leaving the data plane to the next process: its descriptors, and a state that is kept up to date.

The state is recorded when the daemon stops for a successor, and now and then before: after a crash
the next process starts from there, and etcd tells it what it missed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from flannel_udp.backends.pump.ends import Tunnel
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.takeover import STATE, TUN, UDP
from flannel_udp.host import systemd
from flannel_udp.logs import DETAIL

log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between two records
_SHARE = 0.005  # of its time the thread may encode: a large table is recorded less often


class HandoverKeeper:
    """Where a service manager stores descriptors, it gets them at ``__enter__``, and from there to
    ``__exit__`` a thread records changes. ``leave`` comes last, and is for every successor."""

    def __init__(
        self,
        tunnel: Tunnel,
        memory: MemoryFile,
        encode: Callable[[], bytes],
        on_fatal: Callable[[BaseException], None],
        *,
        is_stored: bool = False,
    ) -> None:
        """``encode`` tells the present state, to any thread. ``on_fatal`` hears of an error of our
        own, and the thread ends. ``is_stored``: the manager has the descriptors from the last
        process, which left them to this one."""
        self._is_stored, self._on_fatal = is_stored, on_fatal
        self._memory, self._encode = memory, encode
        self._descriptors = {TUN: tunnel.tun_fd, UDP: tunnel.udp_fd, STATE: memory.descriptor}
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)

    def __enter__(self) -> HandoverKeeper:
        if systemd.keeps_descriptors():
            self._record()
            if not self._is_stored:
                self.store()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def store(self) -> None:
        """Have the manager keep the descriptors as they are now."""
        if systemd.keeps_descriptors():
            for name in self._descriptors:
                systemd.forget_descriptor(name)
            for name, descriptor in self._descriptors.items():
                systemd.store_descriptor(name, descriptor)

    def changed(self) -> None:
        """The state is another one; returns at once, from any thread."""
        self._changed.set()

    def leave(self) -> dict[str, int]:
        """Record the last state; copies of the descriptors by name, now the caller's."""
        self._record()
        return {name: os.dup(descriptor) for name, descriptor in self._descriptors.items()}

    def _record(self) -> None:
        try:
            state = self._encode()
            self._memory.write(state)
            log.log(DETAIL, "recorded the state for the next process: %d bytes", len(state))
        except OSError as error:
            log.warning("cannot record the state for the next process: %s", error.strerror)

    def _run(self) -> None:
        try:
            while self._changed.wait() and not self._stopping.is_set():
                self._changed.clear()
                began = time.monotonic()
                self._record()
                spent = time.monotonic() - began
                self._stopping.wait(max(_INTERVAL, spent / _SHARE))
        except Exception as error:
            log.exception("recording the state for the next process ended")
            self._on_fatal(error)
