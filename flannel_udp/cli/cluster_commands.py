"""``flannel-udp config`` and ``flannel-udp lease``: operands to calls of Cluster, and output."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.cluster import go_json
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.operator import Cluster, Entry
from flannel_udp.errors import ClusterError, UsageError
from flannel_udp.etcd.client import Etcd
from flannel_udp.options import Options


@contextmanager
def _connected(options: Options) -> Iterator[Cluster]:
    with closing(Etcd.connect(options)) as etcd:
        yield Cluster(etcd, options.etcd_prefix)


def config(action: str, text: str | None, options: Options, *, force: bool) -> None:
    """``text`` is JSON, or - to read it from stdin. Raises FlannelError."""
    if text == "-":
        text = sys.stdin.read()
    if action == "validate" and text is not None:
        _describe(NetworkConfig.parse(text))
        return
    with _connected(options) as cluster:
        if action == "set":
            if text is None:
                raise UsageError("config set needs the config, or - to read it from stdin")
            cluster.set_config(text, force=force)
            print(f"written to {cluster.config_key}")
            return
        if text is not None:
            raise UsageError(f"config {action} takes no config")
        found = cluster.config_text()
    if found is None:
        raise ClusterError(
            f"there is no network config at {cluster.config_key}: flannel-udp config set writes one"
        )
    if action == "show":
        print(found.decode(errors="replace"))
    _describe(NetworkConfig.parse(found))


def _describe(config: NetworkConfig) -> None:
    mtu = "as the interface allows" if config.mtu_cap is None else f"at most {config.mtu_cap}"
    nftables = "nftables" if config.enable_nftables else "iptables"
    print(
        f"Network {config.network}, each host a /{config.subnet_len} from {config.subnet_min} to"
        f" {config.subnet_max}\nUDP port {config.port}, MTU {mtu}, firewall rules by {nftables}"
    )


def lease(action: str, operands: list[str], options: Options, *, as_json: bool) -> None:
    """Raises FlannelError."""
    with _connected(options) as cluster:
        match action, operands:
            case "list", []:
                _list(cluster.entries(), as_json=as_json)
            case "reserve", [subnet, public_ip]:
                cluster.reserve(_subnet(subnet), _address(public_ip))
                print(f"{subnet} is reserved for {public_ip}")
            case "revoke", [subnet]:
                entry = cluster.revoke(_subnet(subnet))
                holder = entry.lease.public_ip if entry.lease else "an unreadable key"
                print(f"revoked {subnet} of {holder}; a daemon that holds it ends with exit code 1")
            case _:
                usage = {
                    "list": "lease list",
                    "reserve": "lease reserve SUBNET PUBLIC_IP",
                    "revoke": "lease revoke SUBNET",
                }
                raise UsageError(f"write flannel-udp {usage[action]}")


def _list(entries: list[Entry], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_fields(entry) for entry in entries], indent=1))
        return
    for entry in entries:
        if entry.lease:
            kind = "reservation" if entry.lease.is_reservation else "lease"
            backend = entry.lease.backend_type or "udp"
            print(f"{entry.lease.subnet!s:<18} {entry.lease.public_ip!s:<15} {kind} {backend}")
        else:
            print(f"unreadable: {entry.fault}")


def _fields(entry: Entry) -> dict[str, object]:
    lease = entry.lease
    if lease is None:
        return {"key": entry.kv.key, "fault": entry.fault}
    return {
        "key": entry.kv.key,
        "subnet": str(lease.subnet),
        "public_ip": str(lease.public_ip),
        "reservation": lease.is_reservation,
        "backend": lease.backend_type or "udp",
    }


def _subnet(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise UsageError(
            f"{go_json.shown(text)} is no subnet such as 10.1.5.0/24: {error}"
        ) from None


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise UsageError(f"{go_json.shown(text)} is no IPv4 address") from None
