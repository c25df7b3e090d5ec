"""Trying again: how long to wait, and how often to speak of it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from flannel_udp.errors import EtcdError, NetworkConfigError

SHORTEST_DELAY, LONGEST_DELAY = 0.2, 3.0  # seconds

# Of failures in turn, such as those of several endpoints, and what works again in between.
_MOST_LINES = 10  # at once
_LINE_EVERY = 60.0  # seconds, from then on

_T = TypeVar("_T")


class Backoff:
    """Seconds to wait before the next try, from 0.2 to 3: up to twice as many each time, and at
    random, so that the hosts that lost the same server do not return in step. Owned by one thread.
    """

    def __init__(self) -> None:
        self._most = 2 * SHORTEST_DELAY

    def next(self) -> float:
        delay = self._most * random.uniform(0.5, 1.0)
        self._most = min(self._most * 2, LONGEST_DELAY)
        return delay

    def reset(self) -> None:
        self._most = 2 * SHORTEST_DELAY


class LineBudget:
    """Ten lines at once, then one a minute, for all together who have something to say about the
    same trouble. Any thread may call."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left, self._counted_at = float(_MOST_LINES), clock()

    def allows(self) -> bool:
        """Whether there may be a line now, which is then counted."""
        with self._lock:
            self._earn()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def charge(self) -> None:
        """Count a line that must be: the next ones come later for it."""
        with self._lock:
            self._earn()
            self._left -= 1

    def _earn(self) -> None:
        now = self._clock()
        earned = (now - self._counted_at) / _LINE_EVERY
        self._left, self._counted_at = min(self._left + earned, _MOST_LINES), now


class ChangeLog:
    """Warns of a failure only when its words change, and as often as ``lines`` has room for it.

    The others are for --v=1. Owned by one thread.
    """

    def __init__(self, log: logging.Logger, lines: LineBudget | None = None) -> None:
        """``lines`` is shared with others who warn of the same trouble."""
        self._log, self._lines = log, lines or LineBudget()
        self._last: str | None = None

    def failed(self, message: str) -> None:
        if message != self._last and self._lines.allows():
            self._log.warning("%s", message)
            self._last = message
        else:
            self._log.debug("%s", message)

    def works(self, message: str) -> bool:
        """Logs ``message`` if it did not work before; whether it did so."""
        if self._last is None:
            return False
        self._lines.charge()
        self._log.info("%s", message)
        self._last = None
        return True


def retry_until(
    stop: threading.Event,
    attempt: Callable[[], _T],
    log: logging.Logger,
    lines: LineBudget | None = None,
    *,
    retry_on: tuple[type[Exception], ...] = (EtcdError, NetworkConfigError),
    works: str = "etcd answers and its data is good",
    on_failure: Callable[[str], object] | None = None,
) -> _T | None:
    """What ``attempt`` returns once it raises none of ``retry_on``; None when ``stop`` is set.

    Every other exception passes. ``lines`` is the room for warnings. ``works`` is logged when it
    succeeds after a logged failure; ``on_failure`` hears the sentence of every failure, for
    readiness.
    """
    backoff, changes = Backoff(), ChangeLog(log, lines)
    while not stop.is_set():
        try:
            result = attempt()
        except retry_on as error:
            changes.failed(f"{error}; trying again")
            if on_failure:
                on_failure(str(error))
            stop.wait(backoff.next())
        else:
            changes.works(works)
            return result
    return None
