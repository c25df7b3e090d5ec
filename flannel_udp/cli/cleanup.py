"""``flannel-udp cleanup``: removes what a daemon that is gone left on this host."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from flannel_udp.host import kernel_routes, locks, tunnel_device
from flannel_udp.host.firewall.tools import remove_dead

_PROC = Path("/proc")


def run() -> None:
    """Remove what is left and print what it was. Raises DeviceError and FirewallError."""
    flanneld = _flanneld_process()
    kept: list[IPv4Network] = []

    def is_served(network: IPv4Network) -> bool:
        """While flanneld runs, all of it is: its backend host-gw has no device that shows its
        Network."""
        if kernel_routes.is_served(network):
            return True
        if flanneld is not None:
            kept.append(network)
        return flanneld is not None

    removed = False
    for what in _remove_left(is_served):
        print(f"removed {what}")
        removed = True
    if kept:
        print(
            f"kept what is for {', '.join(map(str, kept))}: it may belong to flanneld, which runs"
            f" here as process {flanneld}; stop that to have it removed"
        )
    elif not removed:
        print("nothing was left")


def _remove_left(is_served: Callable[[IPv4Network], bool]) -> Iterator[str]:
    """Removes one thing after the other and yields what it was.

    A device without a daemon exists while a service manager keeps its descriptor for the next
    one. Devices go first: while one exists, its subnet and its Network count as served.
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


def _flanneld_process() -> int | None:
    """The pid of a flanneld in our network namespace, in a container or not; None without one."""
    ours = (_PROC / "self/ns/net").readlink()
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or we may not look at it
            is_flanneld = (folder / "comm").read_text().strip() == "flanneld"
            if is_flanneld and (folder / "ns/net").readlink() == ours:
                return int(folder.name)
    return None
