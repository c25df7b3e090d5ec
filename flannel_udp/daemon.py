"""The daemon: what is started in which order, who hears of trouble, and the way back."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from ipaddress import IPv4Network

from flannel_udp import admin, hostlock, metrics, netdev, subnet_env, systemd
from flannel_udp.config import Options
from flannel_udp.config_watch import ConfigWatch
from flannel_udp.errors import AddressChangedError, EtcdError, FlannelError, SubnetFileError
from flannel_udp.etcd import Etcd
from flannel_udp.firewall import Firewall, require_tool
from flannel_udp.follower import Follower
from flannel_udp.held_leases import HeldLeases
from flannel_udp.lease import Events, Snapshot
from flannel_udp.lease_keeper import LeaseKeeper
from flannel_udp.overlay import Overlay
from flannel_udp.pump import Pump
from flannel_udp.pump_watch import PumpWatch
from flannel_udp.reconciler import Reconciler
from flannel_udp.registry import Registry
from flannel_udp.retry import retry_until
from flannel_udp.routes import RouteSet
from flannel_udp.status_report import StatusReport
from flannel_udp.tunnel import open_tunnel
from flannel_udp.tunnel_keeper import TunnelKeeper

log = logging.getLogger(__name__)

_SUBNET_FILE_RETRY = 5.0  # seconds
_STOP_PATIENCE = 5.0  # seconds for a thread that is inside an etcd call


class Shutdown:
    """The wish to stop, and why. Any thread may ask; the main thread obeys."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.error: FlannelError | None = None

    def stop(self) -> None:
        self.requested.set()

    def fail(self, error: BaseException) -> None:
        """Stop with exit code 1 and the error's sentence; the first error counts."""
        if self.error is None:
            if not isinstance(error, FlannelError):
                error = FlannelError(f"internal error: {error!r}; please report it with the log")
            self.error = error
        self.requested.set()


def run(options: Options) -> int:
    """Carry packets until a signal asks to stop; returns 0 then.

    Raises FlannelError for a fault that no waiting cures, and LeaseLostError when the lease is
    gone. Everything made on this host is removed again; the lease and subnet.env stay.
    """
    shutdown = Shutdown()
    _obey_signals(shutdown)
    with contextlib.ExitStack() as undo:
        readiness = admin.Readiness()
        board = admin.Board(readiness)
        if options.healthz_port:
            exposition = metrics.exposition(board.read)
            undo.enter_context(
                admin.serve_health(options.healthz_ip, options.healthz_port, readiness, exposition)
            )
        undo.enter_context(admin.serve_status(admin.status_path(options.subnet_file), board.read))
        _serve(options, shutdown, board, undo)
        systemd.notify("STOPPING=1")
    if shutdown.error:
        raise shutdown.error
    return 0


def _serve(
    options: Options, shutdown: Shutdown, board: admin.Board, undo: contextlib.ExitStack
) -> None:
    """Start everything, wait for the end; ``undo`` gets what takes it all back, last made first."""
    readiness = board.readiness
    etcd = Etcd.connect(options)
    undo.callback(etcd.close)
    registry = Registry(etcd, options.etcd_prefix)
    config = retry_until(
        shutdown.requested, registry.network_config, log, on_failure=readiness.not_ready
    )
    if config is None:
        return
    external, public_ip = netdev.choose_interface(options)

    # Everything that can fail on this host comes before the lease: a start that fails claims none.
    undo.enter_context(hostlock.hold(config.port))
    netdev.refuse_taken(config.network)
    if options.ip_masq:
        require_tool(nftables=config.enable_nftables)
    tunnel = undo.enter_context(open_tunnel(external.address, config.port, options.offload))

    previous = _previous_subnet(options, config.network)
    acquired = retry_until(
        shutdown.requested,
        lambda: registry.acquire(config, public_ip, previous),
        log,
        retry_on=(EtcdError,),
        on_failure=readiness.not_ready,
    )
    if acquired is None:
        return
    own, snapshot = acquired

    overlay = Overlay(options, config, external, public_ip, own, tunnel)
    netdev.configure_tunnel(tunnel.device, overlay.tun_address, overlay.mtu, config.network)
    for left in netdev.blackholes():  # by an earlier run that was killed
        if left.subnet_of(config.network):
            netdev.remove_blackhole(left)
    if options.ip_blackhole_route:
        netdev.add_blackhole(own.subnet)
        undo.callback(netdev.remove_blackhole, own.subnet)
    firewall = undo.enter_context(
        Firewall(
            overlay.firewall_policy(),
            config.port,
            nftables=config.enable_nftables,
            resync=options.iptables_resync,
            stale=_abandoned_network(options, config.network),
        )
    )

    margin = options.subnet_lease_renew_margin * 60.0
    keeper = LeaseKeeper(registry, own, margin, shutdown.fail, shutdown.fail)
    undo.callback(_give_back_if_moved, shutdown, keeper, options)
    pump = undo.enter_context(Pump(overlay.pump_config()))
    through_tunnel = netdev.through_tunnel(tunnel.device)
    routes = RouteSet(config, own.subnet, public_ip, through_tunnel)
    held = HeldLeases(public_ip, options.stale_hold)
    reconciler = Reconciler(routes, pump, held, shutdown.fail)
    undo.callback(reconciler.close)
    reconciler.apply(snapshot)

    def on_change(change: Snapshot | Events) -> None:
        keeper.observe(change)
        reconciler.apply(change)

    follower = Follower(registry, own, snapshot, on_change, shutdown.fail)
    config_watch = ConfigWatch(registry, config)
    status = StatusReport(overlay, keeper, follower, config_watch, reconciler, pump, firewall)
    undo.enter_context(board.show(status.report))

    written = _write_subnet_env(options, overlay, readiness)
    _warn_of_host_settings()
    pump.start()
    whole = TunnelKeeper(
        overlay.tunnel_plan(),
        tunnel,
        pump,
        lambda: netdev.current_interface(options),
        shutdown.fail,
    )
    undo.enter_context(whole)
    undo.enter_context(PumpWatch(pump, whole.wake))
    for thread in (follower, keeper, config_watch):
        thread.start()
        undo.callback(thread.join, _STOP_PATIENCE)
        undo.callback(thread.stop)
    log.info(
        "forwarding: %s on %s, %d routes, PublicIP %s port %d, MTU %d",
        *(own.subnet, tunnel.device, len(routes.routes), public_ip, config.port, overlay.mtu),
    )
    while not written and not shutdown.requested.wait(_SUBNET_FILE_RETRY):
        written = _write_subnet_env(options, overlay, readiness)
    if written:
        readiness.ready()
        keeper.mark_ready()
        systemd.notify("READY=1", f"STATUS=forwarding {own.subnet} through {tunnel.device}")
    shutdown.requested.wait()


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


def _obey_signals(shutdown: Shutdown) -> None:
    """SIGTERM and SIGINT ask for the end, also while the main thread waits for etcd.

    A thread of its own takes them: a handler would run in the main thread, between any two steps
    of the very event it has to set. It takes them until the process ends: a second one must not
    cut the clean-up short or change the exit code.
    """
    ours = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)

    def wait() -> None:
        while True:
            received = signal.sigwait(ours)
            if not shutdown.requested.is_set():
                log.info("stopping: %s", signal.Signals(received).name)
            shutdown.stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _previous_subnet(options: Options, network: IPv4Network) -> IPv4Network | None:
    """The subnet an earlier run wrote to subnet.env, if it is of this network."""
    try:
        env = subnet_env.read(options.subnet_file)
    except SubnetFileError as error:
        log.warning("%s; going on without it", error)
        return None
    if env is None:
        return None
    if env.network != network:
        log.warning(
            "ignoring %s: it is of network %s, etcd says %s",
            options.subnet_file,
            env.network,
            network,
        )
        return None
    return env.subnet_with_gateway.network


def _abandoned_network(options: Options, network: IPv4Network) -> IPv4Network | None:
    """The other network that an earlier run with this subnet.env served, and nobody serves now."""
    with contextlib.suppress(SubnetFileError):  # which was logged when the lease was chosen
        env = subnet_env.read(options.subnet_file)
        if env and env.network != network and not netdev.is_served(env.network):
            return env.network
    return None


def _write_subnet_env(options: Options, overlay: Overlay, readiness: admin.Readiness) -> bool:
    try:
        subnet_env.write(options.subnet_file, overlay.subnet_env())
    except SubnetFileError as error:
        if readiness.reason != str(error):  # once, not at every try
            log.warning("%s; forwarding, but not ready", error)
        readiness.not_ready(str(error))
        return False
    return True


def _warn_of_host_settings() -> None:
    if not netdev.ip_forward_enabled():
        log.warning(
            "net.ipv4.ip_forward is 0: this host drops its containers' packets until"
            " 'sysctl -w net.ipv4.ip_forward=1' is run"
        )
