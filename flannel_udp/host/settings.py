"""What the host's kernel tells beside the tunnel itself: settings, bridges, its count of drops."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address
from pathlib import Path
from socket import AF_INET

from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.host import netlink as netdev
from flannel_udp.host.interface import Bridge

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


def queue_drops(device: str) -> int:
    """Packets that the queue of a tunnel device did not take since it was made; 0 if it is gone."""
    with netdev.netlink(f"look at {device}") as ip:
        try:
            (link,) = ip.link("get", ifname=device)
        except NetlinkError:
            return 0
    return int(link.get("stats64")["tx_dropped"])
