"""``flannel-udp cleanup``: removes what a daemon that was killed left on this host."""

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
    """Removes one thing after the other and tells what it was."""
    for subnet in netdev.blackholes():
        if not netdev.is_served(subnet):
            netdev.remove_blackhole(subnet)
            yield f"the blackhole route for {subnet}"
    yield from firewall.remove_dead(netdev.is_served, hostlock.is_held)
