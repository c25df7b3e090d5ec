"""The daemon: the order in which its parts start, and how they end.

The order is that of CONTRACT.md, "Start and stop". A lease takes this path, from left to right:

    etcd watch -> Registry -> Follower -> LeaseKeeper, Reconciler -> Pump
"""

import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from flannel_udp.backends.pump.device_and_route_repair import TunnelKeeper
from flannel_udp.backends.pump.events import PumpWatch
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.cluster.claims import Claims
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.config_watch import ConfigWatch
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.lease_keeper import LeaseKeeper
from flannel_udp.cluster.registry import Registry
from flannel_udp.daemon import host_setup
from flannel_udp.daemon.settings import Settings
from flannel_udp.daemon.shutdown import Shutdown, StopRequested, obey_signals
from flannel_udp.daemon.start import Start, claim, resume
from flannel_udp.errors import (
    AddressChangedError,
    CertificateError,
    DeviceGoneError,
    EtcdError,
    FirewallError,
    FlannelError,
    InterfaceError,
    LeaseLostError,
    SubnetFileError,
)
from flannel_udp.etcd.client import Etcd
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.recorder import RecordedState, Recorder
from flannel_udp.handover.takeover import Takeover, release
from flannel_udp.host import interfaces, locks, subnet_env, systemd, tunnel_device
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.observe import metrics
from flannel_udp.observe.health import serve_health
from flannel_udp.observe.readiness import Readiness, StatusSource
from flannel_udp.observe.status import StatusReport
from flannel_udp.observe.status_socket import serve_status, status_path
from flannel_udp.options import Options
from flannel_udp.retry import retry_until
from flannel_udp.routing.reachability import flaw_by_routes
from flannel_udp.routing.reconciler import Reconciler
from flannel_udp.routing.routes import Knowledge, RouteSet

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_READY_RETRY = 1.0  # seconds
_STOP_PATIENCE = 1.5  # seconds for each of three threads, whose calls of etcd have been ended
_GIVE_BACK_WITHIN = 3.0  # seconds


def run(options: Options, taken: Takeover | None = None) -> int:
    """Carry packets until a signal asks to stop; returns 0 then.

    ``taken`` is what the last process left: a pump that already carries packets. What was made on
    this host stays if a successor will use it; the lease and subnet.env always stay. Raises
    FlannelError for a fault that waiting does not cure.
    """
    shutdown = Shutdown()
    obey_signals(shutdown)
    with contextlib.ExitStack() as data_plane:  # closed last: packets flow while all else ends
        if taken:
            data_plane.enter_context(taken.carried)
        # First of all, so that a second daemon is refused before it waits for etcd or finds our
        # health port taken.
        data_plane.enter_context(locks.hold_network(options.etcd_prefix, options.etcd_endpoints))
        with contextlib.ExitStack() as control:
            status = _serve_status(options, control, patient=taken is not None)
            try:
                Daemon(options, taken, shutdown, status, data_plane, control).serve()
            except (FlannelError, OSError) as error:
                shutdown.fail(error)
            except Exception as error:
                log.exception("the start ended")
                shutdown.fail(error)
            if not shutdown.has_successor:
                status.readiness.not_ready("stopping")
            if not shutdown.is_replaced:
                systemd.notify("STOPPING=1")
    if not shutdown.has_successor:
        release()
    if shutdown.error:
        raise shutdown.error
    if shutdown.is_replaced:
        _execute_again(shutdown.left)
    return 0


@dataclass
class Daemon:
    """Starts each part and waits for the end. ``control`` and ``data_plane`` get what undoes a
    step; they are closed in this order, each with its last step first."""

    options: Options
    taken: Takeover | None
    shutdown: Shutdown
    status: StatusSource
    data_plane: contextlib.ExitStack
    control: contextlib.ExitStack
    _services: list[Follower | LeaseKeeper | ConfigWatch] = field(default_factory=list)

    def serve(self) -> None:
        """Returns when the end was requested, also before all parts have started."""
        with contextlib.suppress(StopRequested):
            self._serve()

    def _serve(self) -> None:
        registry, start, firewall = self._begin()
        settings = start.settings
        pump = self._pump(settings)
        reconciler = self._reconciler(settings, pump, start.known)
        keeper = self._lease_keeper(registry, settings, pump, start.known)
        recorder = self._recorder(settings, keeper, reconciler)

        follower = Follower(
            registry,
            settings.own,
            start.known.snapshot,
            consumers=(keeper.observe, reconciler.apply, recorder.changed),
            on_fatal=self.shutdown.fail,
        )
        config_watch = ConfigWatch(registry, settings.config)
        report = StatusReport(
            settings.facts(), keeper, follower, config_watch, reconciler, pump, firewall
        )
        self.control.enter_context(self.status.including(report.report))

        written = self._write_subnet_env(settings)
        self._forward(settings, pump, recorder)
        for service in (follower, keeper):
            self._launch(service)
        log.info(
            "forwarding: %s on %s, %d routes, PublicIP %s port %d, MTU %d",
            settings.own.subnet,
            settings.tunnel.device,
            pump.stats()["routes"],
            settings.public_ip,
            settings.config.port,
            settings.mtu,
        )
        if self._wait_until_usable(settings, firewall, written=written):
            self.status.readiness.ready(follower.staleness)
            keeper.mark_ready()
            status = f"STATUS=forwarding {settings.own.subnet} through {settings.tunnel.device}"
            systemd.notify("READY=1", status)
        if self.taken:
            self._confirm_config(registry, settings.config)
        self._launch(config_watch)
        self.shutdown.requested.wait()

    def _begin(self) -> tuple[Registry, Start, Firewall]:
        """Connect to etcd, settle the lease and the tunnel, and prepare this host."""
        left = self.data_plane.enter_context(contextlib.ExitStack())
        if self.taken:  # until this process has looked at what the last one made
            left.callback(self._remove_left, self.taken.handover.head.config)
        etcd = self._attempt(lambda: Etcd.connect(self.options))
        self.control.callback(etcd.close)
        self.shutdown.at_request(lambda: self._leave_etcd(etcd))
        registry = Registry(etcd, self.options.etcd_prefix)
        start = self._start(registry)
        firewall = self._prepare_host(start.settings)
        left.pop_all()
        return registry, start, firewall

    def _attempt(self, attempt: Callable[[], _T | None]) -> _T:
        """What ``attempt`` returns. Where packets already flow, faults of this host are retried.

        Raises StopRequested if the end was requested meanwhile, or if ``attempt`` returns None.
        """
        result = (
            attempt()
            if not self.taken
            else retry_until(
                self.shutdown.requested,
                attempt,
                log,
                retry_on=(CertificateError, FirewallError, InterfaceError),
                works="the start goes on",
                on_failure=self.status.readiness.not_ready,
            )
        )
        if result is None:
            raise StopRequested
        return result

    def _start(self, registry: Registry) -> Start:
        options, taken, shutdown = self.options, self.taken, self.shutdown
        if taken:
            return self._attempt(lambda: resume(options, taken, shutdown))
        return self._attempt(
            lambda: claim(options, registry, shutdown, self.status.readiness, self.data_plane)
        )

    def _prepare_host(self, settings: Settings) -> Firewall:
        made = self.data_plane.enter_context(contextlib.ExitStack())
        if self.taken:  # it was there before, and stays if this start fails
            self.data_plane.callback(self._leave_made, made)
        displace = self.taken is not None
        try:
            firewall = self._attempt(lambda: host_setup.prepare(settings, made, displace=displace))
        except DeviceGoneError as error:
            if not self.taken:
                raise
            self.shutdown.start_afresh(str(error))
            raise StopRequested from None
        self._made = made
        return firewall

    def _pump(self, settings: Settings) -> Pump:
        if self.taken:
            pump = self.taken.pump
        else:
            pump = self.data_plane.enter_context(Pump(settings.pump_config()))
        pump.set_addresses(interfaces.own_addresses())
        return pump

    def _reconciler(self, settings: Settings, pump: Pump, known: Knowledge) -> Reconciler:
        flaw_of_way = flaw_by_routes(settings.tunnel.device)
        routes = RouteSet(settings.config, settings.own.subnet, settings.public_ip, flaw_of_way)
        held = HeldLeases(settings.public_ip, self.options.stale_hold, routes.is_sound)
        reconciler = Reconciler(routes, pump, held, self.shutdown.fail)
        self.control.callback(reconciler.close)
        if self.taken:
            reconciler.restore(known)
        else:
            reconciler.apply(known.snapshot)
        # What is loaded now stays. Otherwise the garbage collector would walk through tens of
        # thousands of leases now and then, and lease changes would wait for it.
        gc.freeze()
        return reconciler

    def _lease_keeper(
        self, registry: Registry, settings: Settings, pump: Pump, known: Knowledge
    ) -> LeaseKeeper:
        def on_lost(error: LeaseLostError) -> None:
            pump.stop()  # at once: another host may have the subnet, and ending the rest takes time
            self.shutdown.fail(error)

        margin = self.options.subnet_lease_renew_margin * 60.0
        keeper = LeaseKeeper(Claims(registry), settings.own, margin, on_lost, self.shutdown.fail)
        self.control.callback(self._give_back_if_moved, keeper)
        if self.taken:
            keeper.observe(known.snapshot)  # the last process may have left a change unsettled
        return keeper

    def _recorder(
        self, settings: Settings, keeper: LeaseKeeper, reconciler: Reconciler
    ) -> Recorder:
        taken = self.taken
        memory = taken.memory if taken else self.data_plane.enter_context(MemoryFile.create())

        def read_state() -> RecordedState:
            known, routes = reconciler.known()
            return settings.head(keeper.own), routes, known

        return Recorder(settings.tunnel, memory, read_state, is_stored=taken is not None)

    def _forward(self, settings: Settings, pump: Pump, recorder: Recorder) -> None:
        """Start the pump, and what keeps it and the tunnel whole."""
        if not self.taken:
            pump.start()
        self.control.enter_context(recorder)
        self.data_plane.callback(self._leave_made, self._made)
        self.data_plane.callback(self._leave_descriptors, recorder)

        def on_restored() -> None:
            tunnel_device.mark(settings.tunnel.device, settings.config.port)
            recorder.store()

        keeper = TunnelKeeper(
            settings.tunnel_plan(),
            settings.tunnel,
            pump,
            lambda: interfaces.current_external(self.options),
            self.shutdown.fail,
            on_lost=release,
            on_restored=on_restored,
            on_fault=self.status.readiness.set_fault,
        )
        self.control.enter_context(keeper)
        self.control.enter_context(PumpWatch(pump, keeper.wake))

    def _launch(self, service: Follower | LeaseKeeper | ConfigWatch) -> None:
        self._services.append(service)
        if not self.shutdown.requested.is_set():
            service.start()
            self.control.callback(service.join, _STOP_PATIENCE)

    def _leave_etcd(self, etcd: Etcd) -> None:
        """End all calls of etcd, in whatever thread: it may hang."""
        for service in self._services:
            service.stop()
        etcd.close()

    def _wait_until_usable(self, settings: Settings, firewall: Firewall, *, written: bool) -> bool:
        """Wait until subnet.env is written and the traffic rules are in place; False if the end
        was requested before."""
        while not (written and self._has_rules(firewall)):
            if self.shutdown.requested.wait(_READY_RETRY):
                return False
            written = written or self._write_subnet_env(settings)
        return True

    def _has_rules(self, firewall: Firewall) -> bool:
        if firewall.unready_reason:
            self.status.readiness.not_ready(firewall.unready_reason)
            return False
        return True

    def _write_subnet_env(self, settings: Settings) -> bool:
        path = self.options.subnet_file
        try:
            subnet_env.write(path, settings.subnet_env())
        except SubnetFileError as error:
            if self.status.readiness.not_ready(str(error)):  # once, not at every attempt
                log.warning("%s; forwarding, but not ready", error)
            return False
        log.debug("wrote %s", path)
        return True

    def _confirm_config(self, registry: Registry, config: NetworkConfig) -> None:
        """Start afresh if the network config in etcd is not the one that the last process used."""
        requested = self.shutdown.requested
        found = retry_until(requested, registry.network_config, log, registry.lines)
        if found is not None and found != config:
            self.shutdown.start_afresh(
                "the network config in etcd has changed since the last start"
            )

    # The way back

    def _remove_left(self, config: NetworkConfig) -> None:
        if not self.shutdown.has_successor:
            host_setup.remove_left(config)

    def _leave_made(self, made: contextlib.ExitStack) -> None:
        """Keep what was made on the host if another process will use it."""
        if self.shutdown.has_successor:
            made.pop_all()

    def _leave_descriptors(self, recorder: Recorder) -> None:
        if self.shutdown.has_successor:
            self.shutdown.left = recorder.leave()

    def _give_back_if_moved(self, keeper: LeaseKeeper) -> None:
        """Delete our lease when this host has another address, since it names the old one.

        The next start finds the subnet in subnet.env and leases it again if it is free. With
        ``--public-ip`` the lease does not name the address that has changed.
        """
        error, options = self.shutdown.error, self.options
        if not isinstance(error, AddressChangedError) or options.public_ip is not None:
            return
        # By a new connection: the open ones come from the address that is gone.
        with contextlib.closing(Etcd.connect(options)) as etcd:
            timer = threading.Timer(_GIVE_BACK_WITHIN, etcd.close)
            timer.daemon = True
            timer.start()
            try:
                Claims(Registry(etcd, options.etcd_prefix)).give_back(keeper.own)
            except EtcdError as failure:
                log.warning("lease %s could not be given back: %s", keeper.own.subnet, failure)
            finally:
                timer.cancel()


def _serve_status(
    options: Options, control: contextlib.ExitStack, *, patient: bool
) -> StatusSource:
    """With ``patient``, a taken health port is waited for; else it is a DeviceError."""
    status = StatusSource(Readiness())
    if options.healthz_port:
        exposition = metrics.exposition(status.read)
        address = options.healthz_ip, options.healthz_port
        control.enter_context(serve_health(*address, status.readiness, exposition, patient=patient))
    control.enter_context(serve_status(status_path(options.subnet_file), status.read))
    return status


def _execute_again(descriptors: dict[str, int]) -> NoReturn:
    """Execute the same program with the same flags; it may be a newer version."""
    try:
        systemd.execute(sys.executable, [sys.executable, *sys.orig_argv[1:]], descriptors)
    except OSError as error:
        raise FlannelError(
            f"cannot execute {sys.executable} again: {error.strerror}; start it"
        ) from None
