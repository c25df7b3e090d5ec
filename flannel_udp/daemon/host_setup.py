"""What the overlay needs on this host beside the device itself: address, routes, firewall rules."""

import contextlib
import logging
from ipaddress import IPv4Network

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.daemon.settings import Settings
from flannel_udp.errors import DeviceError, FirewallError, SubnetFileError
from flannel_udp.host import kernel_routes, subnet_env, sysctl, tunnel_device
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.host.firewall.tools import remove_dead
from flannel_udp.options import Options

log = logging.getLogger(__name__)


def prepare(settings: Settings, made: contextlib.ExitStack, *, displace: bool) -> Firewall:
    """Configure device, routes and firewall, whatever an earlier process left of them.

    ``made`` gets what undoes it. With ``displace``, a foreign route to Network that stands in the
    place of ours is replaced, as while the daemon runs; else it is a DeviceError. Raises
    FirewallError too.
    """
    options, config = settings.options, settings.config
    device, network = settings.tunnel.device, config.network
    address, mtu = settings.tun_address, settings.mtu
    tunnel_device.configure(device, address, mtu, network, displace=displace)
    tunnel_device.mark(device, config.port)
    _remove_blackholes(network)
    if options.ip_blackhole_route:
        kernel_routes.add_blackhole(settings.own.subnet)
        made.callback(kernel_routes.remove_blackhole, settings.own.subnet)
    if not sysctl.ip_forward_enabled():
        log.warning(
            "net.ipv4.ip_forward is 0: this host drops its containers' packets until"
            " 'sysctl -w net.ipv4.ip_forward=1' is run"
        )
    return made.enter_context(
        Firewall(
            settings.firewall_policy(),
            config.port,
            nftables=config.enable_nftables,
            resync=options.iptables_resync,
            stale=_abandoned_network(options, network),
        )
    )


def remove_left(config: NetworkConfig) -> None:
    """Remove routes and rules that an earlier process made and no process will use."""
    try:
        _remove_blackholes(config.network)
        list(remove_dead(lambda each: each != config.network, lambda port: port != config.port))
    except (DeviceError, FirewallError) as error:
        log.warning("%s; run flannel-udp cleanup", error)


def _remove_blackholes(network: IPv4Network) -> None:
    for subnet in kernel_routes.blackholes():
        if subnet.subnet_of(network):
            kernel_routes.remove_blackhole(subnet)


def _abandoned_network(options: Options, network: IPv4Network) -> IPv4Network | None:
    """The other Network that an earlier run with this subnet.env served and that nobody serves."""
    with contextlib.suppress(SubnetFileError):  # it was logged when the lease was chosen
        previous = subnet_env.read_previous(options.subnet_file)
        left = previous.network if previous else None
        if left and left != network and not kernel_routes.is_served(left):
            return left
    return None
