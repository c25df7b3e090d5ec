"""``flannel-udp cleanup``: removes what a daemon that is gone left on this host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

from flannel_udp.cli import flanneld
from flannel_udp.host import kernel_routes, locks, tunnel_device
from flannel_udp.host.firewall.tools import remove_dead


def run() -> None:
    """Remove it and print what it was. Raises DeviceError and FirewallError."""
    neighbour = flanneld.process()
    kept: list[IPv4Network] = []

    def is_served(network: IPv4Network) -> bool:
        """Some of flannel's backends, as host-gw, have no device that would tell their network."""
        if kernel_routes.is_served(network):
            return True
        if neighbour is not None:
            kept.append(network)
        return neighbour is not None

    removed = False
    for what in _remove_left(is_served):
        print(f"removed {what}")
        removed = True
    if kept:
        print(
            f"kept what is for {', '.join(map(str, kept))}: it may belong to flanneld, which runs"
            f" here as process {neighbour}; stop that to have it removed"
        )
    elif not removed:
        print("nothing was left")


def _remove_left(is_served: Callable[[IPv4Network], bool]) -> Iterator[str]:
    """Removes one thing after the other and tells what it was.

    A device without a daemon is there when a service manager keeps its descriptor for the next
    one. It goes first, for as long as it is there its subnet and its network are served.
    """
    for device, port in tunnel_device.marked().items():
        if not locks.is_held(port):
            tunnel_device.delete(device)
            yield f"the device {device}"
    for subnet in kernel_routes.blackholes():
        if not is_served(subnet):
            kernel_routes.remove_blackhole(subnet)
            yield f"the blackhole route for {subnet}"
    yield from remove_dead(is_served, locks.is_held)
