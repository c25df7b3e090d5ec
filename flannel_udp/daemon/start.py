"""How a process begins: with a new lease and tunnel, or with those of the last process."""

import contextlib
import logging
from dataclasses import dataclass
from ipaddress import IPv4Network

from flannel_udp.backends.pump.ends import open_tunnel
from flannel_udp.cluster.claims import Claims
from flannel_udp.cluster.registry import Registry
from flannel_udp.daemon.settings import Settings
from flannel_udp.daemon.shutdown import Shutdown
from flannel_udp.errors import EtcdError, HandoverError, InterfaceError, SubnetFileError
from flannel_udp.handover.takeover import Takeover
from flannel_udp.host import interfaces, kernel_routes, locks, subnet_env
from flannel_udp.host.firewall.tools import require_tool
from flannel_udp.observe.readiness import Readiness
from flannel_udp.options import Options
from flannel_udp.retry import retry_until
from flannel_udp.routing.routes import Knowledge, flaw_of_public_ip

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """The settings, and the leases as read just now or as the last process knew them."""

    settings: Settings
    known: Knowledge


def claim(
    options: Options,
    registry: Registry,
    shutdown: Shutdown,
    readiness: Readiness,
    data_plane: contextlib.ExitStack,
) -> Start | None:
    """Open a tunnel and lease a subnet in etcd; None if the end was requested meanwhile."""
    config = retry_until(
        shutdown.requested,
        registry.network_config,
        log,
        registry.lines,
        on_failure=readiness.not_ready,
    )
    if config is None:
        return None
    external, public_ip = interfaces.choose_external(options)
    if flaw := flaw_of_public_ip(public_ip, config.network):
        raise InterfaceError(
            f"the PublicIP {public_ip} is {flaw}, and the other hosts would refuse it: give this"
            " host's address with --public-ip, or choose another Network in the etcd config"
        )

    # Everything that can fail on this host comes before the lease: a start that fails claims none.
    data_plane.enter_context(locks.hold(config.port))
    kernel_routes.check_free(config.network)
    if options.ip_masq:
        require_tool(nftables=config.enable_nftables)
    tunnel = data_plane.enter_context(open_tunnel(external.address, config.port, options.offload))

    previous = _previous_subnet(options, config.network)
    acquired = retry_until(
        shutdown.requested,
        lambda: Claims(registry).acquire(config, public_ip, previous),
        log,
        registry.lines,
        retry_on=(EtcdError,),
        on_failure=readiness.not_ready,
    )
    if acquired is None:
        return None
    own, snapshot = acquired
    return Start(Settings(options, config, external, public_ip, own, tunnel), Knowledge(snapshot))


def resume(options: Options, taken: Takeover, shutdown: Shutdown) -> Start | None:
    """Continue where the last process stopped; None, and a fresh start is requested, if this host
    has another address now or the leases cannot be read."""
    head = taken.handover.head
    external, public_ip = interfaces.choose_external(options)
    if (external.address, public_ip) != (head.address, head.own.public_ip):
        shutdown.start_afresh(
            f"the last process sent from {head.address} as {head.own.public_ip}, and this one"
            f" would send from {external.address} as {public_ip}"
        )
        return None
    try:
        known = taken.handover.known()
    except HandoverError as error:
        shutdown.start_afresh(str(error))
        return None
    settings = Settings(options, head.config, external, public_ip, head.own, taken.tunnel)
    return Start(settings, known)


def _previous_subnet(options: Options, network: IPv4Network) -> IPv4Network | None:
    """The subnet that an earlier run wrote to subnet.env, unless it is of another Network."""
    try:
        previous = subnet_env.read_previous(options.subnet_file)
    except SubnetFileError as error:
        log.warning("%s; going on without it", error)
        return None
    if previous is None:
        return None
    if previous.network not in (None, network):
        log.warning(
            "ignoring %s: it is of network %s, etcd says %s",
            options.subnet_file,
            previous.network,
            network,
        )
        return None
    return previous.subnet
