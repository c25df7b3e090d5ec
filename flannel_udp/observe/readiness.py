"""Whether containers can rely on the overlay, and the status as every reader gets it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flannel_udp import __version__

Status = dict[str, Any]


class Readiness:
    """Whether containers can rely on the overlay, and why not. Any thread may read or set it."""

    def __init__(self) -> None:
        self._reason: str | None = "starting"
        self._fault: str | None = None
        self._remark: Callable[[], str | None] = lambda: None

    @property
    def remark(self) -> str | None:
        """What an operator should know although the daemon is ready; None if there is nothing."""
        return self._remark()

    @property
    def reason(self) -> str | None:
        """Why the daemon is not ready; None when it is."""
        return self._reason or self._fault

    def not_ready(self, reason: str) -> bool:
        """Holds until ``ready``; returns whether the reason differs from the one before."""
        before, self._reason = self._reason, reason
        return before != reason

    def set_fault(self, fault: str | None) -> None:
        """What stops a daemon from forwarding after it was ready; None once it is repaired."""
        self._fault = fault

    def ready(self, remark: Callable[[], str | None] = lambda: None) -> None:
        """``remark`` is called whenever readiness is read."""
        self._remark, self._reason = remark, None


class StatusSource:
    """The status for all readers. A lock keeps the objects of the report alive during a read."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self._lock = threading.Lock()
        self._report: Callable[[], Status] | None = None

    @contextlib.contextmanager
    def including(self, report: Callable[[], Status]) -> Iterator[None]:
        """While entered, ``read`` includes what ``report`` returns."""
        self._set(report)
        try:
            yield
        finally:
            self._set(None)

    def read(self) -> Status:
        """Outside ``including`` it holds ``version``, ``ready`` and ``reason`` alone."""
        with self._lock:
            more = self._report() if self._report else {}
        reason = self.readiness.reason
        return {"version": __version__, "ready": reason is None, "reason": reason} | more

    def _set(self, report: Callable[[], Status] | None) -> None:
        with self._lock:
            self._report = report
