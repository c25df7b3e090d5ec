"""The daemon: what is started in which order, who hears of trouble, and the way back."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import NoReturn, TypeVar

from flannel_udp.backends.pump.keeper import TunnelKeeper
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.backends.pump.watch import PumpWatch
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.config_watch import ConfigWatch
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.keeper import LeaseKeeper
from flannel_udp.cluster.lease import Events, Snapshot
from flannel_udp.cluster.registry import Registry
from flannel_udp.daemon.overlay import Overlay
from flannel_udp.daemon.shutdown import Shutdown, obey_signals
from flannel_udp.daemon.start import claim, go_on
from flannel_udp.errors import (
    AddressChangedError,
    CertificateError,
    DeviceError,
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
from flannel_udp.handover.recorder import HandoverKeeper
from flannel_udp.handover.state_report import StateReport
from flannel_udp.handover.takeover import Takeover, release
from flannel_udp.host import (
    interfaces,
    kernel_routes,
    locks,
    subnet_env,
    sysctl,
    systemd,
    tunnel_device,
)
from flannel_udp.host.clock_watch import ClockWatch
from flannel_udp.host.firewall.keeper import Firewall, remove_dead
from flannel_udp.observe import metrics
from flannel_udp.observe.health import serve_health
from flannel_udp.observe.readiness import Readiness, StatusSource
from flannel_udp.observe.status import StatusReport
from flannel_udp.observe.status_socket import serve_status, status_path
from flannel_udp.options import Options
from flannel_udp.retry import retry_until
from flannel_udp.routing.reachability import judge_ways
from flannel_udp.routing.reconciler import Reconciler
from flannel_udp.routing.routes import RouteSet

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_READY_RETRY = 1.0  # seconds
_STOP_PATIENCE = 5.0  # seconds for a thread that is inside an etcd call


def run(options: Options, taken: Takeover | None = None) -> int:
    """Carry packets until a signal asks to stop; returns 0 then.

    ``taken`` is what the last process left, carrying packets already. What was made on this host
    stays for a successor, and is removed if none will come; the lease and subnet.env stay in any
    case. Raises FlannelError for a fault that no waiting cures, and LeaseLostError when the lease
    is gone.
    """
    shutdown = Shutdown()
    obey_signals(shutdown)
    with contextlib.ExitStack() as data_plane:  # ends last: packets flow while all else ends
        if taken:
            data_plane.enter_context(taken.carried)
        # A true double hears what it is before it waits for etcd, or meets our health port.
        data_plane.enter_context(locks.hold_network(options.etcd_prefix, options.etcd_endpoints))
        with contextlib.ExitStack() as control:
            readiness = Readiness()
            source = StatusSource(readiness)
            if options.healthz_port:
                address = options.healthz_ip, options.healthz_port
                exposition = metrics.exposition(source.read)
                control.enter_context(serve_health(*address, readiness, exposition))
            status = serve_status(status_path(options.subnet_file), source.read)
            control.enter_context(status)
            try:
                _serve(options, taken, shutdown, source, data_plane, control)
            except (FlannelError, OSError) as error:
                shutdown.fail(error)
            except Exception as error:
                log.exception("the start ended")
                shutdown.fail(error)
            if not shutdown.has_successor:
                readiness.not_ready("stopping")
            if not shutdown.is_replaced:
                systemd.notify("STOPPING=1")
    if not shutdown.has_successor:
        release()
    if shutdown.error:
        raise shutdown.error
    if shutdown.is_replaced:
        _execute_again(shutdown.left)
    return 0


def _serve(
    options: Options,
    taken: Takeover | None,
    shutdown: Shutdown,
    source: StatusSource,
    data_plane: contextlib.ExitStack,
    control: contextlib.ExitStack,
) -> None:
    """Start everything, wait for the end; the stacks get what takes it back, last made first."""
    readiness = source.readiness
    left = data_plane.enter_context(contextlib.ExitStack())
    if taken:  # until this process has looked at it, and so made it its own
        left.callback(_remove_left, shutdown, taken.handover.head.config)

    def wait_for(attempt: Callable[[], _T]) -> _T | None:
        """What it returns. Where packets flow already, this host's faults are waited for."""
        if not taken:
            return attempt()
        return retry_until(
            *(shutdown.requested, attempt, log),
            retry_on=(CertificateError, FirewallError, InterfaceError),
            works="the start goes on",
            on_failure=readiness.not_ready,
        )

    etcd = wait_for(lambda: Etcd.connect(options))
    if etcd is None:
        return
    control.callback(etcd.close)
    registry = Registry(etcd, options.etcd_prefix)
    if taken:
        found = wait_for(lambda: go_on(options, taken, shutdown))
    else:
        found = claim(options, registry, shutdown, readiness, data_plane)
    if found is None:
        return
    overlay, snapshot = found.overlay, found.known.snapshot
    config, own, tunnel = overlay.config, overlay.own, overlay.tunnel

    made = data_plane.enter_context(contextlib.ExitStack())
    if taken:  # it was there before, and stays if this start fails
        data_plane.callback(_leave_made, shutdown, made)
    displace = taken is not None
    try:
        firewall = wait_for(lambda: _prepare_host(overlay, made, shutdown, displace=displace))
    except DeviceGoneError as error:
        if not taken:
            raise
        shutdown.start_afresh(str(error))
        return
    if firewall is None:
        return
    left.pop_all()

    pump = taken.pump if taken else data_plane.enter_context(Pump(overlay.pump_config()))
    pump.set_addresses(interfaces.own_addresses())
    flaw_of_way = judge_ways(tunnel.device)
    routes = RouteSet(config, own.subnet, overlay.public_ip, flaw_of_way)
    held = HeldLeases(overlay.public_ip, options.stale_hold, routes.is_sound)
    reconciler = Reconciler(routes, pump, held, shutdown.fail)
    control.callback(reconciler.close)
    if taken:
        reconciler.restore(found.known)
    else:
        reconciler.apply(snapshot)
    # What is loaded now stays: without this, the garbage collector walks through tens of thousands
    # of leases now and then, and no change becomes a route meanwhile.
    gc.freeze()

    def on_lost(error: LeaseLostError) -> None:
        pump.stop()  # at once: another host may have the subnet, and ending the rest takes time
        shutdown.fail(error)

    margin = options.subnet_lease_renew_margin * 60.0
    keeper = LeaseKeeper(registry, own, margin, on_lost, shutdown.fail)
    control.callback(_give_back_if_moved, shutdown, keeper, options)
    if taken:
        keeper.observe(snapshot)  # the last process may have seen more of our key than it settled

    def on_change(change: Snapshot | Events) -> None:
        keeper.observe(change)
        reconciler.apply(change)
        successor.changed()

    follower = Follower(registry, own, snapshot, on_change, shutdown.fail)
    memory = taken.memory if taken else data_plane.enter_context(MemoryFile.create())
    state = StateReport(overlay, keeper, reconciler)
    successor = HandoverKeeper(
        tunnel, memory, state.encoded, shutdown.fail, is_stored=taken is not None
    )
    config_watch = ConfigWatch(registry, config, shutdown.fail)
    status = StatusReport(
        overlay.settled(), keeper, follower, config_watch, reconciler, pump, firewall
    )
    control.enter_context(source.including(status.report))

    written = _write_subnet_env(options, overlay, readiness)
    _warn_of_host_settings()
    if not taken:
        pump.start()
    control.enter_context(successor)
    data_plane.callback(_leave_made, shutdown, made)
    data_plane.callback(_leave_descriptors, shutdown, successor)

    def on_restored() -> None:
        tunnel_device.mark(tunnel.device, config.port)
        successor.store()

    whole = TunnelKeeper(
        overlay.tunnel_plan(),
        tunnel,
        pump,
        lambda: interfaces.current_external(options),
        shutdown.fail,
        on_lost=release,
        on_restored=on_restored,
        on_fault=readiness.set_fault,
    )
    control.enter_context(whole)
    control.enter_context(PumpWatch(pump, whole.wake, shutdown.fail))
    control.enter_context(ClockWatch())
    for thread in (follower, keeper):
        _launch(thread, control)
    log.info(
        "forwarding: %s on %s, %d routes, PublicIP %s port %d, MTU %d",
        *(own.subnet, tunnel.device, len(routes.routes), overlay.public_ip),
        *(config.port, overlay.mtu),
    )
    while not (written and _has_rules(firewall, readiness)):
        if shutdown.requested.wait(_READY_RETRY):
            break
        written = written or _write_subnet_env(options, overlay, readiness)
    else:
        readiness.ready(follower.staleness)
        keeper.mark_ready()
        systemd.notify("READY=1", f"STATUS=forwarding {own.subnet} through {tunnel.device}")
    if taken:
        _confirm_config(registry, config, shutdown)
    _launch(config_watch, control)
    shutdown.requested.wait()


def _launch(thread: Follower | LeaseKeeper | ConfigWatch, control: contextlib.ExitStack) -> None:
    thread.start()
    control.callback(thread.join, _STOP_PATIENCE)
    control.callback(thread.stop)


def _prepare_host(
    overlay: Overlay, made: contextlib.ExitStack, shutdown: Shutdown, *, displace: bool
) -> Firewall:
    """Device, routes and firewall; what a process of before has left of them is put in order.

    ``displace``: a route that another program has put in the place of ours makes way, as while the
    daemon runs.
    """
    options, config = overlay.options, overlay.config
    device = overlay.tunnel.device
    address, mtu = overlay.tun_address, overlay.mtu
    tunnel_device.configure(device, address, mtu, config.network, displace=displace)
    tunnel_device.mark(device, config.port)
    for left in kernel_routes.blackholes():
        if left.subnet_of(config.network):
            kernel_routes.remove_blackhole(left)
    if options.ip_blackhole_route:
        kernel_routes.add_blackhole(overlay.own.subnet)
        made.callback(kernel_routes.remove_blackhole, overlay.own.subnet)
    return made.enter_context(
        Firewall(
            overlay.firewall_policy(),
            config.port,
            shutdown.fail,
            nftables=config.enable_nftables,
            resync=options.iptables_resync,
            stale=_abandoned_network(options, config.network),
        )
    )


def _confirm_config(registry: Registry, config: NetworkConfig, shutdown: Shutdown) -> None:
    """Start afresh if etcd's network config is not the one that the last process went by."""
    found = retry_until(shutdown.requested, registry.network_config, log, registry.lines)
    if found is not None and found != config:
        shutdown.start_afresh("the network config in etcd has changed since the last start")


def _remove_left(shutdown: Shutdown, config: NetworkConfig) -> None:
    """Where the end comes before this process has anything in hand, and nobody goes on."""
    if shutdown.has_successor:
        return
    try:
        for blackhole in kernel_routes.blackholes():
            if blackhole.subnet_of(config.network):
                kernel_routes.remove_blackhole(blackhole)
        list(remove_dead(lambda each: each != config.network, lambda port: port != config.port))
    except (DeviceError, FirewallError) as error:
        log.warning("%s; run flannel-udp cleanup", error)


def _leave_made(shutdown: Shutdown, made: contextlib.ExitStack) -> None:
    """Where another process will go on, what was made on the host stays."""
    if shutdown.has_successor:
        made.pop_all()


def _leave_descriptors(shutdown: Shutdown, successor: HandoverKeeper) -> None:
    if shutdown.has_successor:
        shutdown.left = successor.leave()


def _give_back_if_moved(shutdown: Shutdown, keeper: LeaseKeeper, options: Options) -> None:
    """When this host has another address now, its lease is of no use under the old one.

    Free, the same subnet is leased again at the next start, which finds it in subnet.env. With
    ``--public-ip`` the lease does not name the address that has changed.
    """
    if not isinstance(shutdown.error, AddressChangedError) or options.public_ip is not None:
        return
    # A connection of its own: those that are open come from the address that is gone.
    with contextlib.closing(Etcd.connect(options)) as etcd:
        try:
            Registry(etcd, options.etcd_prefix).give_back(keeper.own)
        except EtcdError as error:
            log.warning("lease %s could not be given back: %s", keeper.own.subnet, error)


def _execute_again(descriptors: dict[str, int]) -> NoReturn:
    """The same program with the same flags, perhaps of a newer version."""
    try:
        systemd.execute(sys.executable, [sys.executable, *sys.orig_argv[1:]], descriptors)
    except OSError as error:
        raise FlannelError(
            f"cannot execute {sys.executable} again: {error.strerror}; start it"
        ) from None


def _abandoned_network(options: Options, network: IPv4Network) -> IPv4Network | None:
    """The other network that an earlier run with this subnet.env served, and nobody serves now."""
    with contextlib.suppress(SubnetFileError):  # which was logged when the lease was chosen
        previous = subnet_env.read_previous(options.subnet_file)
        left = previous.network if previous else None
        if left and left != network and not kernel_routes.is_served(left):
            return left
    return None


def _write_subnet_env(options: Options, overlay: Overlay, readiness: Readiness) -> bool:
    try:
        subnet_env.write(options.subnet_file, overlay.subnet_env())
    except SubnetFileError as error:
        if readiness.not_ready(str(error)):  # once, not at every try
            log.warning("%s; forwarding, but not ready", error)
        return False
    log.debug("wrote %s", options.subnet_file)
    return True


def _has_rules(firewall: Firewall, readiness: Readiness) -> bool:
    """Whether the traffic rules have been in place; the firewall logs why not."""
    if firewall.missing:
        readiness.not_ready(firewall.missing)
        return False
    return True


def _warn_of_host_settings() -> None:
    if not sysctl.ip_forward_enabled():
        log.warning(
            "net.ipv4.ip_forward is 0: this host drops its containers' packets until"
            " 'sysctl -w net.ipv4.ip_forward=1' is run"
        )
