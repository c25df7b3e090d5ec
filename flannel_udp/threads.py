"""Threads with one owner: started, stopped, joined, and their errors reported, in one way."""

import logging
import threading
from collections.abc import Callable
from typing import Self

from flannel_udp.errors import FlannelError
from flannel_udp.log_limits import LineBudget
from flannel_udp.retry import Backoff

log = logging.getLogger(__name__)


class Service:
    """One daemon thread that runs ``_serve`` from ``start``, or ``__enter__``, until ``stop``.

    A subclass defines ``_serve``, which returns soon after ``_stopping`` is set, and ``_wake`` if
    its thread waits for anything else than ``_stopping``.
    """

    def __init__(self, name: str, on_fatal: Callable[[BaseException], None] | None) -> None:
        """``on_fatal`` gets the exception that ``_serve`` raises, and the thread ends. None is for
        a thread that only informs: its error is logged, and ``_serve`` is called again within
        three seconds."""
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; any thread may call."""
        self._stopping.set()
        self._wake()

    def join(self, timeout: float | None = None) -> bool:
        """Wait ``timeout`` seconds at most for the end; returns whether the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    def _serve(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        """Have ``_serve`` look at ``_stopping`` although nothing else happens."""

    def _run(self) -> None:
        name, backoff, lines = self._thread.name, Backoff(), LineBudget()
        while not self._stopping.is_set():
            try:
                self._serve()
                return
            except Exception as error:
                failure = error
            if self._on_fatal:
                if not isinstance(failure, FlannelError):
                    log.error("the thread %s met an error of its own", name, exc_info=failure)
                self._on_fatal(failure)
                return
            trace = None if isinstance(failure, FlannelError | OSError) else failure
            level = logging.WARNING if lines.allows() else logging.DEBUG
            log.log(level, "the thread %s starts again: %s", name, failure, exc_info=trace)
            self._stopping.wait(backoff.next())
