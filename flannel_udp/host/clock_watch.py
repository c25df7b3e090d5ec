"""Noticing that this host's clock was set.

Nothing of ours goes by it: leases and ages are counted on CLOCK_BOOTTIME. TLS certificates do, and
so do those who read the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from flannel_udp.units import span

log = logging.getLogger(__name__)

_LOOK_EVERY = 5.0  # seconds
_JUMP = 2.0  # seconds between two looks; a clock that is only corrected gains milliseconds
_AT_ONCE = 0.1  # seconds within which two clocks are read, or they cannot be compared


def _wall_clock() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def _steady_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Owns one thread from ``__enter__`` to ``__exit__``."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = _wall_clock,
        steady: Callable[[], float] = _steady_clock,
        look_every: float = _LOOK_EVERY,
    ) -> None:
        """``wall`` may be set by somebody, ``steady`` may not; both in seconds."""
        self._wall, self._steady, self._look_every = wall, steady, look_every
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock-watch", daemon=True)

    def __enter__(self) -> ClockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        before = self._ahead()
        while not self._stopping.wait(self._look_every):
            now = self._ahead()
            if before is not None and now is not None and abs(now - before) >= _JUMP:
                log.warning(
                    "this host's clock was set %s by %s: leases and packets do not go by it, but"
                    " TLS certificates and the times in the log do",
                    *("forward" if now > before else "back", span(abs(now - before))),
                )
            before = before if now is None else now

    def _ahead(self) -> float | None:
        """Seconds from one clock to the other; None if this process was stopped between them."""
        began = self._steady()
        wall = self._wall()
        return wall - began if self._steady() - began < _AT_ONCE else None
