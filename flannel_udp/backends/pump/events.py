"""The pump's events: refused packets and offloads are logged, and its end is reported."""

import logging
import os
import select
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from flannel_udp.backends.pump import fallbacks as sentences
from flannel_udp.backends.pump.ends import superpackets
from flannel_udp.backends.pump.fallbacks import Subject
from flannel_udp.backends.pump.pump import Pump, Refusal
from flannel_udp.log_limits import Lasting, Seen
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

# A host that joins may send before its lease has arrived here: that is not logged.
_GRACE = 3.0  # seconds
# A refusal is logged again after so long without one. The worker repeats it once a minute at most.
_QUIET = 3600.0  # seconds
_MOST_REMEMBERED = 256  # so that forged sources do not fill the log
# A path that takes small runs and refuses large ones would otherwise be logged every few seconds.
_SETTLED = 60.0  # seconds without a refusal
_PROTOCOLS = frozenset[Subject](("TCP", "UDP"))
_Key = tuple[IPv4Address, str]  # outer source and reason
_SOURCE_CHECK = ("drop_udp_unknown_peer", "drop_udp_spoofed_source")


class PumpWatch(Service):
    """Its thread waits for the pump's event descriptor."""

    def __init__(self, pump: Pump, on_failure: Callable[[], None]) -> None:
        """``on_failure`` is called when the worker has ended by itself; the pump may then be
        restarted, and is watched further."""
        super().__init__("pump-watch", None)
        self._pump, self._on_failure = pump, on_failure
        self._waiting: dict[_Key, tuple[float, Refusal]] = {}
        self._logged = Seen[_Key](quiet=_QUIET, most=_MOST_REMEMBERED)
        self._fallbacks = Lasting[Subject](settled=_SETTLED)
        self._offload_changes = 0
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        os.close(self._wake_fd)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._pump.event_fd, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._stopping.is_set():
            # First, because this thread may have met an error after it took the event.
            if self._pump.failure:
                self._on_failure()
            self._collect_refusals()
            self._log_refusals()
            self._log_fallbacks()
            if self._pump.event_fd in dict(poll.poll(self._timeout())):
                os.read(self._pump.event_fd, 8)

    def _timeout(self) -> float | None:
        """Milliseconds until a line is due although the pump reports nothing; None for never."""
        times = [at for at, _ in self._waiting.values()]
        times += [] if self._fallbacks.due is None else [self._fallbacks.due]
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _collect_refusals(self) -> None:
        now = time.monotonic()
        for refusal in self._pump.refusals():
            if self._logged.is_new(_key(refusal), now):
                self._waiting[_key(refusal)] = (now + _GRACE, refusal)

    def _log_refusals(self) -> None:
        now = time.monotonic()
        due = [refusal for at, refusal in self._waiting.values() if at <= now]
        if not due:
            return
        peers = {peer.public_ip for peer in self._pump.peers()}
        for refusal in due:
            del self._waiting[_key(refusal)]
            if refusal.reason == "drop_udp_unknown_peer" and refusal.outer_source in peers:
                self._logged.forget(_key(refusal))  # it had only just joined
                continue
            log.warning("%s", _sentence(refusal))

    def _log_fallbacks(self) -> None:
        now, due, changes = time.monotonic(), self._fallbacks.due, self._pump.offload_changes
        if changes == self._offload_changes and (due is None or now < due):
            return
        self._offload_changes = changes
        peers = self._pump.peers()
        refusing: set[Subject] = {peer.public_ip for peer in peers if peer.refuses_gso}
        known: set[Subject] = {peer.public_ip for peer in peers}
        begun, ended = self._fallbacks.observe(
            refusing | set(superpackets(self._pump.refused_offloads)), known | _PROTOCOLS, now
        )
        for line in sentences.begun(begun):
            log.warning("%s", line)
        for line in sentences.ended(ended):
            log.info("%s", line)


def _key(refusal: Refusal) -> _Key:
    return refusal.outer_source, refusal.reason


def _sentence(refusal: Refusal) -> str:
    if refusal.reason == "drop_udp_wrong_port":
        return (
            f"refused a datagram from {refusal.outer_source} port {refusal.outer_port}:"
            " udp_wrong_port; further such datagrams from there are only counted; the daemons of"
            " this network send from the overlay's port, so another program sent it: look for it"
            " there, or, if the network rewrites ports, start this daemon with --source-check"
            " address"
        )
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
