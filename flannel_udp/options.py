"""The daemon's flags, parsed and validated (pure)."""

import posixpath
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LOG_FORMATS = ("text", "json")
SOURCE_CHECKS = ("full", "address", "off")
OFFLOAD_PRESETS = ("auto", "full", "tso", "none")


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
    stale_hold: int = 86_400  # seconds, 0 = off
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    healthz_ip: str = "0.0.0.0"
    healthz_port: int = 0  # 0 = off
    iptables_resync: int = 5  # seconds
    iptables_forward_rules: bool = True
    ip_blackhole_route: bool = False
    source_check: str = "full"  # one of SOURCE_CHECKS
    offload: str = "auto"  # one of OFFLOAD_PRESETS
    busy_poll_us: int = 100  # microseconds at most, 0 = off
    verbosity: int = 0
    log_format: str = "text"  # one of LOG_FORMATS


def clean_prefix(prefix: str) -> str:
    """The etcd prefix with trailing, double and dot elements cleaned, as flannel's path.Join does.

    A missing leading slash stays missing: adding it would look under other keys than flannel does.
    The root comes back as "", so that ``f"{prefix}/config"`` is always the key.
    """
    cleaned = posixpath.normpath(prefix)
    if cleaned.startswith("/"):
        return "/" + cleaned.lstrip("/") if cleaned.strip("/") else ""
    return cleaned
