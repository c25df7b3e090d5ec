"""What the operator asked for (Options) and what the cluster agreed on (NetworkConfig); pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

DEFAULT_PORT = 8285


@dataclass(frozen=True, slots=True)
class Options:
    """The daemon's flags, parsed and validated. Times carry their unit in a comment."""

    etcd_endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    etcd_prefix: str = "/coreos.com/network"
    etcd_keyfile: Path | None = None
    etcd_certfile: Path | None = None
    etcd_cafile: Path | None = None
    etcd_username: str = ""
    etcd_password: str = field(default="", repr=False)
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: IPv4Address | None = None
    subnet_file: Path = Path("/run/flannel/subnet.env")
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    subnet_lease_renew_margin: int = 60  # minutes, 1..1439
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    healthz_ip: str = "0.0.0.0"
    healthz_port: int = 0  # 0 = off
    iptables_resync: int = 5  # seconds
    iptables_forward_rules: bool = True
    ip_blackhole_route: bool = False
    source_check: bool = True
    verbosity: int = 0


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """``<prefix>/config`` after defaults, masking and validation."""

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    port: int = DEFAULT_PORT
    mtu_cap: int | None = None
    enable_nftables: bool = False

    def is_compatible(self, subnet: IPv4Network) -> bool:
        """Whether a host may hold this subnet under this config (length and range)."""
        return (
            subnet.prefixlen == self.subnet_len
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )
