"""Keeping the tunnel whole: what other programs take away on this host is put back.

    healthy --the kernel rings, or the pump fails--> look --amiss--> repair --> look again
                                                      `----well----> healthy

A look compares what is with what must be, so one way through handles every fault and every order
of faults. Looks keep their distance: neither a busy host nor a program that undoes each repair
makes this one busy.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType

from flannel_udp.backends.pump.ends import Tunnel, has_lost_ends, reopen_lost_ends
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.errors import (
    AddressChangedError,
    DeviceError,
    FlannelError,
    InterfaceError,
    TunnelLostError,
)
from flannel_udp.host import interfaces, tunnel_device
from flannel_udp.host.changes import HostChanges, host_changes
from flannel_udp.host.interface_choice import ExternalInterface
from flannel_udp.host.tunnel_device import TunnelState
from flannel_udp.log_limits import ChangeLog
from flannel_udp.logs import DETAIL

log = logging.getLogger(__name__)

_REST = 0.1  # seconds between two looks, or
_REST_FACTOR = 5  # times as long as the last one took
_TRY_AGAIN = 0.5  # seconds after a repair that failed

# A device that is deleted this often is no accident, and one that cannot be had back is no tunnel.
_MOST_LOSSES, _PER_SECONDS = 10, 60.0
_PATIENCE = 10.0  # seconds without a pump

_MOST_LINES = 5  # of the same words in _PER_SECONDS

# An interface that is set up anew, by DHCP or by hand, may be without its address for a moment.
_GRACE = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class TunnelPlan:
    """What must be: the device's subnet, whose first address it has, its MTU and its route; the
    socket's address and port."""

    subnet: IPv4Network
    mtu: int
    network: IPv4Network
    external: ExternalInterface
    port: int


class TunnelKeeper:
    """Owns one thread, from ``__enter__`` to ``__exit__``, which alone changes device and route
    then. ``wake`` may come from any thread."""

    def __init__(
        self,
        plan: TunnelPlan,
        tunnel: Tunnel,
        pump: Pump,
        choose_again: Callable[[], ExternalInterface],
        on_fatal: Callable[[BaseException], None],
        *,
        on_lost: Callable[[], None] = lambda: None,
        on_restored: Callable[[], None] = lambda: None,
        on_fault: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """``choose_again`` tells which interface and address a new start would take, or raises
        InterfaceError. ``on_fatal`` hears what cannot be repaired, and the thread ends.
        ``on_lost`` is called before lost ends are opened anew: when it returns, nobody else keeps
        the old ones, for a copy of the socket would hold the port. ``on_restored`` is called when
        the pump goes on. ``on_fault`` hears what could not be repaired yet, and None when all is
        well."""
        self._on_lost, self._on_restored, self._on_fault = on_lost, on_restored, on_fault
        self._plan, self._tunnel, self._pump = plan, tunnel, pump
        self._choose_again, self._on_fatal = choose_again, on_fatal
        self._faults, self._external_faults = ChangeLog(log), ChangeLog(log)
        self._lost: list[str] = []  # of the ends, since the pump failed
        self._strays: tuple[str, ...] = ()
        self._addresses: frozenset[IPv4Address] = frozenset()
        self._losses: deque[float] = deque(maxlen=_MOST_LOSSES)  # when; monotonic
        self._hopeless = False
        self._repairs: deque[tuple[float, str]] = deque(maxlen=100)
        self._broken_since: float | None = None  # the pump, monotonic
        self._homeless_since: float | None = None  # the address is on no interface, monotonic
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tunnel-keeper", daemon=True)

    def __enter__(self) -> TunnelKeeper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self.wake()
        self._thread.join()
        os.close(self._bell)

    def wake(self) -> None:
        """Look at once, as when the pump has failed."""
        os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        try:
            with host_changes(self._plan.network) as changes:
                while not self._stopping.is_set():
                    began = time.monotonic()
                    again = self._look()
                    self._stopping.wait(max(_REST, _REST_FACTOR * (time.monotonic() - began)))
                    self._wait(changes, again)
        except FlannelError as error:
            self._on_fatal(error)
        except Exception as error:
            log.exception("keeping the tunnel ended")
            self._on_fatal(error)

    def _wait(self, changes: HostChanges, seconds: float | None) -> None:
        """Until there is something to look at, or ``seconds`` have passed."""
        poll = select.poll()
        poll.register(changes, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            ready = dict(poll.poll(left))
            if self._bell in ready:
                os.eventfd_read(self._bell)
            if changes.drain() or self._bell in ready or not ready:
                return

    def _look(self) -> float | None:
        """Compare and repair; after how many seconds to look again even if nothing changes."""
        try:
            self._look_at_tunnel()
        except DeviceError as error:
            broken = self._broken_since
            if self._hopeless or (broken and time.monotonic() - broken > _PATIENCE):
                raise TunnelLostError(str(error)) from None
            self._on_fault(f"the tunnel is not whole: {error}")
            self._faults.failed(f"the tunnel is not whole: {error}; trying again")
            return _TRY_AGAIN
        self._on_fault(None)
        self._faults.works("the tunnel is whole again")
        self._look_at_addresses()
        return self._look_at_external()

    # The device and the socket

    def _look_at_tunnel(self) -> None:
        plan, device = self._plan, self._tunnel.device
        # The kernel may tell of a deleted device before the pump does.
        is_broken = self._pump.failure or has_lost_ends(self._tunnel)
        if is_broken and self._broken_since is None:
            self._broken_since = time.monotonic()
            self._on_lost()
        lost = reopen_lost_ends(self._tunnel, plan.external.address, plan.port)
        if lost:
            self._lost += lost
            self._count_loss()
        state = self._inspect()
        faults = state.faults
        log.log(DETAIL, "looked at %s: %s", device, ", ".join(faults) or "it is whole")
        if faults:
            address = plan.subnet.network_address
            tunnel_device.configure(device, address, plan.mtu, plan.network, displace=True)
            state = self._inspect()
        if self._lost or self._pump.failure:
            if not self._lost:
                self._count_loss()
            self._restart()
        elif faults:
            self._log_repair(f"repaired {device}: {', '.join(faults)}")
        self._report_strays(state.strays)

    def _inspect(self) -> TunnelState:
        plan = self._plan
        return tunnel_device.inspect(self._tunnel.device, plan.subnet, plan.mtu, plan.network)

    def _restart(self) -> None:
        """The pump goes on, or DeviceError is raised."""
        failure = self._pump.failure
        try:
            self._pump.restart(self._tunnel.tun_fd, self._tunnel.udp_fd)
        except OSError as error:
            raise DeviceError(f"the pump does not start again: {error.strerror}") from None
        self._broken_since = None
        self._on_restored()
        if self._lost:
            self._log_repair(
                f"{' and '.join(self._lost)} had been removed by something else on this host:"
                " made anew, forwarding goes on"
            )
        elif failure:
            self._log_repair(f"the pump had ended ({failure.strerror}): forwarding goes on")
        self._lost.clear()

    def _count_loss(self) -> None:
        """Raises DeviceError at one too many."""
        now = time.monotonic()
        self._losses.append(now)
        self._hopeless = len(self._losses) == _MOST_LOSSES and now - self._losses[0] < _PER_SECONDS
        if self._hopeless:
            raise DeviceError(
                f"{self._tunnel.device} or the UDP socket was lost {_MOST_LOSSES} times within"
                f" {_PER_SECONDS:g} s: find out what removes it, and start again"
            )

    def _log_repair(self, sentence: str) -> None:
        now = time.monotonic()
        self._repairs.append((now, sentence))
        recent = sum(now - at < _PER_SECONDS and each == sentence for at, each in self._repairs)
        log.log(logging.WARNING if recent <= _MOST_LINES else logging.DEBUG, "%s", sentence)
        if recent == _MOST_LINES:
            log.warning("something undoes this again and again: further repairs are not logged")

    def _report_strays(self, strays: tuple[str, ...]) -> None:
        if strays and strays != self._strays:
            log.warning(
                "these routes inside %s bypass the tunnel: %s",
                self._plan.network,
                "; ".join(strays),
            )
        elif self._strays and not strays:
            log.info("no route bypasses the tunnel any more")
        self._strays = strays

    def _look_at_addresses(self) -> None:
        """No peer may send in the name of this host, whichever addresses it gets."""
        addresses = interfaces.own_addresses()
        if addresses != self._addresses:
            self._pump.set_addresses(addresses)
            self._addresses = addresses

    # The external interface

    def _look_at_external(self) -> float | None:
        external = self._plan.external
        fault = interfaces.external_fault(external)
        if fault is None:
            self._homeless_since = None
            self._external_faults.works(f"{external.name} and {external.address} are back")
            return None
        self._external_faults.failed(f"{fault.sentence}: nothing can be sent until it is back")
        return self._look_for_another_address() if fault.lost_address else None

    def _look_for_another_address(self) -> float | None:
        """Raises AddressChangedError if another address has come in place of ours."""
        external = self._plan.external
        try:
            found = self._choose_again()
        except InterfaceError:
            found = external
        if found.address == external.address:
            self._homeless_since = None
            return None
        self._homeless_since = self._homeless_since or time.monotonic()
        left = self._homeless_since + _GRACE - time.monotonic()
        if left > 0:
            return left
        raise AddressChangedError(
            f"the address of {external.name} has changed from {external.address} to"
            f" {found.address}: forwarding stops, start again to send from the new one"
        )
