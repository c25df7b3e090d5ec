"""Listening to the pump: what is refused goes to the log, its end to who can mend it."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from types import TracebackType

from flannel_udp.backends.pump.ends import superpackets
from flannel_udp.backends.pump.fallbacks import Fallbacks
from flannel_udp.backends.pump.pump import Pump, Refusal

log = logging.getLogger(__name__)

# A host that joins may send before its lease has reached us: that is not worth a line.
_GRACE = 3.0  # seconds
# What was said of a source stays said until nothing was heard of it for so long. The worker
# repeats a refusal once a minute at most.
_QUIET = 3600.0  # seconds
_MOST_HEARD = 256  # remembered: forged sources do not fill the log
_Key = tuple[IPv4Address, str]  # outer source and reason
_SOURCE_CHECK = ("drop_udp_unknown_peer", "drop_udp_spoofed_source")


class Heard:
    """Which refusals the log has had, as far as it is remembered. Times are CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._last: dict[_Key, float] = {}

    def is_new(self, key: _Key, now: float) -> bool:
        """Whether this one, heard now, is worth a line."""
        self._last = {key: at for key, at in self._last.items() if now - at < _QUIET}
        if key not in self._last and len(self._last) >= _MOST_HEARD:
            return False
        is_new = key not in self._last
        self._last[key] = now
        return is_new

    def forget(self, key: _Key) -> None:
        """It turned out not to be worth a line."""
        self._last.pop(key, None)


class PumpWatch:
    """Owns one thread, from ``__enter__`` to ``__exit__``."""

    def __init__(
        self,
        pump: Pump,
        on_failure: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """``on_failure`` is called when the worker has ended by itself; the pump may be restarted
        then, and is listened to further. ``on_fatal`` hears of an error of our own, and the thread
        ends."""
        self._pump, self._on_failure, self._on_fatal = pump, on_failure, on_fatal
        self._waiting: dict[_Key, tuple[float, Refusal]] = {}
        self._heard = Heard()
        self._fallbacks, self._offload_changes = Fallbacks(), 0
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="pump-watch", daemon=True)

    def __enter__(self) -> PumpWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._stop_writer)
        self._thread.join()
        os.close(self._stop_reader)

    def _run(self) -> None:
        try:
            self._listen()
        except Exception as error:
            log.exception("listening to the pump ended")
            self._on_fatal(error)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._pump.event_fd, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        while True:
            ready = dict(poll.poll(self._patience()))
            if self._stop_reader in ready:
                return
            if self._pump.event_fd in ready:
                os.read(self._pump.event_fd, 8)
            if self._pump.failure:
                self._on_failure()
            self._hear()
            self._report()
            self._look_at_offloads()

    def _patience(self) -> float | None:
        """Milliseconds until there is something to say although the pump is silent."""
        times = [at for at, _ in self._waiting.values()]
        times += [] if self._fallbacks.due is None else [self._fallbacks.due]
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _hear(self) -> None:
        now = time.monotonic()
        for refusal in self._pump.refusals():
            if self._heard.is_new(_key(refusal), now):
                self._waiting[_key(refusal)] = (now + _GRACE, refusal)

    def _report(self) -> None:
        now = time.monotonic()
        due = [refusal for at, refusal in self._waiting.values() if at <= now]
        if not due:
            return
        peers = {peer.public_ip for peer in self._pump.peers()}
        for refusal in due:
            del self._waiting[_key(refusal)]
            if refusal.reason == "drop_udp_unknown_peer" and refusal.outer_source in peers:
                self._heard.forget(_key(refusal))  # it had only just joined
                continue
            log.warning("%s", _sentence(refusal))

    def _look_at_offloads(self) -> None:
        now, due, changes = time.monotonic(), self._fallbacks.due, self._pump.offload_changes
        if changes == self._offload_changes and (due is None or now < due):
            return
        self._offload_changes = changes
        peers = self._pump.peers()
        begun, ended = self._fallbacks.observe(
            superpackets(self._pump.refused_offloads),
            {peer.public_ip for peer in peers if peer.refuses_gso},
            {peer.public_ip for peer in peers},
            now,
        )
        for line in begun:
            log.warning("%s", line)
        for line in ended:
            log.info("%s", line)


def _key(refusal: Refusal) -> _Key:
    return refusal.outer_source, refusal.reason


def _sentence(refusal: Refusal) -> str:
    advice = ""
    if refusal.reason in _SOURCE_CHECK:
        advice = (
            "; if a host of this network sends from another address than its PublicIP,"
            " start this daemon with --source-check off"
        )
    return (
        f"refused a packet from {refusal.outer_source}, inner {refusal.inner_source} to"
        f" {refusal.inner_destination}: {refusal.reason.removeprefix('drop_')};"
        f" further such packets from there are only counted{advice}"
    )
