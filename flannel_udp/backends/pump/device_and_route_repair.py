"""Keeping the tunnel whole: what other programs remove on this host is restored.

    whole --netlink event, or the pump fails--> inspect --faults--> repair --> inspect again
                                                   `----none----> whole

An inspection reads the state and compares it with the plan, so one path handles every fault and
every order of faults. Between two inspections there is a pause, so that neither a busy host nor a
program that undoes each repair makes this thread busy.
"""

import errno
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backends.pump.ends import Tunnel, has_lost_ends, reopen_lost_ends
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.errors import (
    AddressChangedError,
    DeviceError,
    InterfaceError,
    ShortageError,
    TunnelLostError,
)
from flannel_udp.host import interfaces, tunnel_device
from flannel_udp.host.interface_choice import ExternalInterface
from flannel_udp.host.kernel_events import HostChanges, host_changes
from flannel_udp.host.shortage import device_error
from flannel_udp.host.tunnel_device import TunnelState
from flannel_udp.log_limits import ChangeLog, Repeats
from flannel_udp.logs import DETAIL
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

_PAUSE = 0.1  # seconds between two inspections, or
_PAUSE_FACTOR = 5  # times the CPU time of the last one
_RETRY_AFTER = 0.5  # seconds after a repair that failed

# The daemon gives up a device that is deleted this often, or that cannot be opened again.
_MOST_LOSSES, _PER_SECONDS = 10, 60.0
_PATIENCE = 10.0  # seconds without a pump

# An interface that is configured anew, by DHCP or by hand, may lose its address for a moment.
_GRACE = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class TunnelPlan:
    """What the tunnel must be: the device has the first address of ``subnet``, ``mtu`` and the
    route to ``network``; the socket is bound to the address of ``external`` and ``port``."""

    subnet: IPv4Network
    mtu: int
    network: IPv4Network
    external: ExternalInterface
    port: int


class TunnelKeeper(Service):
    """While its thread runs, it alone changes the device and the route. Any thread may call
    ``wake``."""

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
        """``choose_again`` returns the interface and address that a new start would choose, or
        raises InterfaceError. ``on_fatal`` gets what cannot be repaired. ``on_lost`` is called
        before lost ends are opened again; when it returns, nobody else may hold a copy of the old
        socket, which would keep the port. ``on_restored`` is called when the pump runs again.
        ``on_fault`` gets what could not be repaired yet, and None when there is no fault."""
        super().__init__("tunnel-keeper", on_fatal)
        self._on_lost, self._on_restored, self._on_fault = on_lost, on_restored, on_fault
        self._plan, self._tunnel, self._pump = plan, tunnel, pump
        self._choose_again = choose_again
        self._faults, self._external_faults = ChangeLog(log), ChangeLog(log)
        self._repairs = Repeats(log)
        self._lost: list[str] = []  # ends lost since the pump failed
        self._strays: tuple[str, ...] = ()
        self._addresses: frozenset[IPv4Address] = frozenset()
        self._losses: deque[float] = deque(maxlen=_MOST_LOSSES)  # their times, monotonic
        self._hopeless = False
        self._broken_since: float | None = None  # the pump, monotonic
        self._address_gone_since: float | None = None  # monotonic
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        os.close(self._wake_fd)

    def wake(self) -> None:
        """Have the tunnel inspected at once, as when the pump has failed."""
        os.eventfd_write(self._wake_fd, 1)

    _wake = wake

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                with host_changes(self._plan.network) as changes:
                    self._watch(changes)
            except OSError as error:
                fault = f"cannot be told of changes on this host: {error.strerror}"
                self._stopping.wait(self._put_off(device_error(error, fault)))

    def _watch(self, changes: HostChanges) -> None:
        while not self._stopping.is_set():
            began = time.thread_time()
            retry_after = self._check()
            self._stopping.wait(max(_PAUSE, _PAUSE_FACTOR * (time.thread_time() - began)))
            self._wait(changes, retry_after)

    def _wait(self, changes: HostChanges, seconds: float | None) -> None:
        """Wait for a change that may concern the tunnel, for ``seconds`` at most."""
        poll = select.poll()
        poll.register(changes, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            ready = dict(poll.poll(left))
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if changes.drain() or self._wake_fd in ready or not ready:
                return

    def _check(self) -> float | None:
        """Inspect and repair; the seconds after which to check again although nothing changes."""
        try:
            self._check_tunnel()
            self._update_addresses()
            retry_after = self._check_external()
        except DeviceError as error:
            return self._put_off(error)
        except OSError as error:
            return self._put_off(device_error(error, f"cannot repair it: {error.strerror}"))
        self._on_fault(None)
        self._faults.works("the tunnel is whole again")
        return retry_after

    def _put_off(self, error: DeviceError) -> float:
        """Report the fault; the seconds after which to try again. Raises TunnelLostError if there
        is no hope."""
        broken = self._broken_since
        if isinstance(error, ShortageError):
            self._broken_since = broken and time.monotonic()  # the patience begins after it
        elif self._hopeless or (broken and time.monotonic() - broken > _PATIENCE):
            raise TunnelLostError(str(error)) from None
        self._on_fault(f"the tunnel is not whole: {error}")
        self._faults.failed(f"the tunnel is not whole: {error}; trying again")
        return _RETRY_AFTER

    # The device and the socket

    def _check_tunnel(self) -> None:
        plan, device = self._plan, self._tunnel.device
        # The netlink event of a deleted device may arrive before the pump notices.
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
            self._repairs.warn(f"repaired {device}: {', '.join(faults)}")
        self._report_strays(state.strays)

    def _inspect(self) -> TunnelState:
        plan = self._plan
        return tunnel_device.inspect(self._tunnel.device, plan.subnet, plan.mtu, plan.network)

    def _restart(self) -> None:
        """Run the pump again between the ends. Raises DeviceError."""
        failure = self._pump.failure
        try:
            self._pump.restart(self._tunnel.tun_fd, self._tunnel.udp_fd)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                return  # it was stopped for good, with the lease: the daemon ends
            raise device_error(error, f"the pump does not start again: {error.strerror}") from None
        self._broken_since = None
        self._on_restored()
        if self._lost:
            self._repairs.warn(
                f"{' and '.join(self._lost)} had been removed by something else on this host:"
                " made anew, forwarding goes on"
            )
        elif failure:
            self._repairs.warn(f"the pump had ended ({failure.strerror}): forwarding goes on")
        self._lost.clear()

    def _count_loss(self) -> None:
        """Raises DeviceError if there were too many within a minute."""
        now = time.monotonic()
        self._losses.append(now)
        self._hopeless = len(self._losses) == _MOST_LOSSES and now - self._losses[0] < _PER_SECONDS
        if self._hopeless:
            raise DeviceError(
                f"{self._tunnel.device} or the UDP socket was lost {_MOST_LOSSES} times within"
                f" {_PER_SECONDS:g} s: find out what removes it, and start again"
            )

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

    def _update_addresses(self) -> None:
        """Give the pump this host's addresses, which no peer may use as an inner source."""
        addresses = interfaces.own_addresses()
        if addresses != self._addresses:
            self._pump.set_addresses(addresses)
            self._addresses = addresses

    # The external interface

    def _check_external(self) -> float | None:
        external = self._plan.external
        fault = interfaces.external_fault(external)
        if fault is None:
            self._address_gone_since = None
            self._external_faults.works(f"{external.name} and {external.address} are back")
            return None
        self._external_faults.failed(f"{fault.sentence}: nothing can be sent until it is back")
        return self._check_address_change() if fault.lost_address else None

    def _check_address_change(self) -> float | None:
        """Raises AddressChangedError if another address has replaced ours for some seconds."""
        external = self._plan.external
        try:
            found = self._choose_again()
        except InterfaceError:
            found = external
        if found.address == external.address:
            self._address_gone_since = None
            return None
        self._address_gone_since = self._address_gone_since or time.monotonic()
        left = self._address_gone_since + _GRACE - time.monotonic()
        if left > 0:
            return left
        raise AddressChangedError(
            f"the address of {external.name} has changed from {external.address} to"
            f" {found.address}: forwarding stops, start again to send from the new one"
        )
