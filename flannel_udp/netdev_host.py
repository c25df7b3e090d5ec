"""What the overlay needs of its host beside the tunnel: forwarding, and bridges that fit it."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET

from flannel_udp import netdev
from flannel_udp.interface import Bridge

_SYSCTLS = Path("/proc/sys/net")


def ip_forward_enabled() -> bool:
    """Whether the kernel routes between interfaces (``net.ipv4.ip_forward``)."""
    return (_SYSCTLS / "ipv4/ip_forward").read_text().strip() == "1"


def bridged_packets_meet_iptables() -> bool | None:
    """``net.bridge.bridge-nf-call-iptables``; None where the module br_netfilter is missing."""
    try:
        return (_SYSCTLS / "bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except FileNotFoundError:
        return None


def bridges() -> list[Bridge]:
    """All of this host, by name."""
    with netdev.netlink("list the bridges") as ip:
        links = netdev.dump(ip.link)
        addresses: dict[int, list[IPv4Address]] = defaultdict(list)
        for message in netdev.dump(ip.addr, family=AF_INET):
            addresses[message["index"]].append(IPv4Address(message.get("local")))
    mtus: dict[int, list[int]] = defaultdict(list)
    for link in links:
        if master := link.get("master"):
            mtus[master].append(link.get("mtu"))
    return sorted(
        Bridge(
            link.get("ifname"),
            tuple(addresses[link["index"]]),
            max(mtus[link["index"]], default=None),
        )
        for link in links
        if (link.get("linkinfo") or {}).get("kind") == "bridge"
    )
