"""Retries: how long to wait between two attempts."""

import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from flannel_udp.errors import EtcdError, NetworkConfigError
from flannel_udp.log_limits import ChangeLog, LineBudget

SHORTEST_DELAY, LONGEST_DELAY = 0.2, 3.0  # seconds

_T = TypeVar("_T")


class Backoff:
    """Seconds to wait before the next attempt, from 0.2 to 3: doubled each time and randomised, so
    that hosts that lost the same server do not all reconnect at once. Owned by one thread.
    """

    def __init__(self) -> None:
        self._most = 2 * SHORTEST_DELAY

    def next(self) -> float:
        delay = self._most * random.uniform(0.5, 1.0)
        self._most = min(self._most * 2, LONGEST_DELAY)
        return delay

    def reset(self) -> None:
        self._most = 2 * SHORTEST_DELAY


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
    """Call ``attempt`` until it raises none of ``retry_on``, and return its result; None when
    ``stop`` is set.

    Every other exception propagates. ``lines`` limits the warnings. ``works`` is logged when an
    attempt succeeds after a logged failure; ``on_failure`` gets the sentence of every failure.
    """
    backoff, changes = Backoff(), ChangeLog(log, lines)
    while not stop.is_set():
        try:
            result = attempt()
        except retry_on as error:
            if stop.is_set():  # which may have ended the call
                break
            changes.failed(f"{error}; trying again")
            if on_failure:
                on_failure(str(error))
            stop.wait(backoff.next())
        else:
            changes.works(works)
            return result
    return None
