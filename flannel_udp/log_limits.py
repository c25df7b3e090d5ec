"""How often a line is logged: every rule by which a repeated or long report is cut short.

Times are CLOCK_MONOTONIC seconds. Unless it says otherwise, an object is owned by one thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence, Set
from typing import Generic, TypeVar

_BURST = 10  # lines that a LineBudget allows at once
_LINE_EVERY = 60.0  # seconds for each further line

_REPEATS_LOGGED, _REPEATS_WITHIN = 5, 60.0  # seconds

LISTED = 20  # lines about one change; more are summed up

_K = TypeVar("_K", bound=Hashable)


class LineBudget:
    """Ten lines at once, then one a minute, for all who warn of the same trouble, in any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._left, self._counted_at = float(_BURST), clock()

    def allows(self) -> bool:
        """Whether a line may be logged now; if so, it is counted."""
        with self._lock:
            self._refill()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def charge(self) -> None:
        """Count a line that is logged in any case; later lines wait for it."""
        with self._lock:
            self._refill()
            self._left -= 1

    def _refill(self) -> None:
        now = self._clock()
        earned = (now - self._counted_at) / _LINE_EVERY
        self._left, self._counted_at = min(self._left + earned, _BURST), now


class ChangeLog:
    """Warns of a failure only when its text changes and the budget allows; else logs at DEBUG."""

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
        """Log ``message`` at INFO if the last warning was of a failure; returns whether it was."""
        if self._last is None:
            return False
        self._lines.charge()
        self._log.info("%s", message)
        self._last = None
        return True


class Repeats:
    """Logs one warning at most five times within a minute, and then says that it goes on."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._recent: deque[tuple[float, str]] = deque(maxlen=100)

    def warn(self, sentence: str) -> None:
        now = time.monotonic()
        self._recent.append((now, sentence))
        count = sum(now - at < _REPEATS_WITHIN and each == sentence for at, each in self._recent)
        self._log.log(
            logging.WARNING if count <= _REPEATS_LOGGED else logging.DEBUG, "%s", sentence
        )
        if count == _REPEATS_LOGGED:
            self._log.warning(
                "something undoes this again and again: further repairs are not logged"
            )


class Seen(Generic[_K]):
    """Which keys were reported lately. A key is new again after ``quiet`` seconds without it."""

    def __init__(self, *, quiet: float, most: int) -> None:
        """``most`` keys are remembered; while that many are, no other key is new."""
        self._quiet, self._most = quiet, most
        self._last: dict[_K, float] = {}

    def is_new(self, key: _K, now: float) -> bool:
        self._last = {each: at for each, at in self._last.items() if now - at < self._quiet}
        if key not in self._last and len(self._last) >= self._most:
            return False
        is_new = key not in self._last
        self._last[key] = now
        return is_new

    def forget(self, key: _K) -> None:
        self._last.pop(key, None)


class Lasting(Generic[_K]):
    """Conditions that come and go: each is reported when it begins, and when it has been absent for
    ``settled`` seconds."""

    def __init__(self, *, settled: float) -> None:
        self._settled = settled
        self._absent_since: dict[_K, float | None] = {}

    def observe(self, present: Set[_K], known: Set[_K], now: float) -> tuple[set[_K], set[_K]]:
        """The conditions that have begun, and those that have ended. One outside ``known`` is
        forgotten without a report."""
        begun = set(present) - self._absent_since.keys()
        self._absent_since = {
            each: None if each in present else now if since is None else since
            for each, since in [*self._absent_since.items(), *((new, None) for new in begun)]
            if each in present or each in known
        }
        ended = {
            each
            for each, since in self._absent_since.items()
            if since is not None and now - since >= self._settled
        }
        for each in ended:
            del self._absent_since[each]
        return begun, ended

    @property
    def due(self) -> float | None:
        """When to observe again although nothing changes; None if there is no need."""
        since = [at + self._settled for at in self._absent_since.values() if at is not None]
        return min(since, default=None)


def log_listed(log: logging.Logger, level: int, lines: Sequence[str], summary: str) -> None:
    """Log up to twenty lines one by one, more as ``summary``."""
    for line in lines if len(lines) <= LISTED else [summary]:
        log.log(level, "%s", line)
