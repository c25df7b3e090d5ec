"""``flannel-udp cleanup``: removes what a daemon that is gone left on this host."""

from __future__ import annotations

from collections.abc import Iterator

from flannel_udp import firewall, hostlock, netdev


def run() -> None:
    """Remove it and print what it was. Raises DeviceError and FirewallError."""
    removed = False
    for what in remove_left():
        print(f"removed {what}")
        removed = True
    if not removed:
        print("nothing was left")


def remove_left() -> Iterator[str]:
    """Removes one thing after the other and tells what it was.

    A device without a daemon is there when a service manager keeps its descriptor for the next
    one. It goes first, for as long as it is there its subnet and its network are served.
    """
    for device, port in netdev.marked_tunnels().items():
        if not hostlock.is_held(port):
            netdev.delete_tunnel(device)
            yield f"the device {device}"
    for subnet in netdev.blackholes():
        if not netdev.is_served(subnet):
            netdev.remove_blackhole(subnet)
            yield f"the blackhole route for {subnet}"
    yield from firewall.remove_dead(netdev.is_served, hostlock.is_held)
