"""The network config that all hosts of a cluster share: ``<prefix>/config`` in etcd (pure)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Self, TypeVar

from flannel_udp.cluster import go_json
from flannel_udp.errors import BackendTypeError, NetworkConfigError

DEFAULT_PORT = 8285
MIN_MTU = 576  # RFC 791: what every IPv4 host must be able to receive
MAX_MTU = 65507  # the largest payload of a UDP datagram over IPv4

# flannel parses these with code of its own, which also gets a null, and refuses it.
_NEVER_NULL = ("Network", "SubnetMin", "SubnetMax", "IPv6Network", "Backend")

_T = TypeVar("_T", bool, int, str, dict[str, object])
_KIND_NAMES = {bool: "true or false", int: "a whole number", str: "a string", dict: "an object"}


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

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read the JSON of ``<prefix>/config`` by flannel's rules.

        Raises BackendTypeError for a backend other than udp, and NetworkConfigError for anything
        else that is wrong; the sentence names the field, what was found and what is allowed.
        """
        try:
            fields = go_json.parse_object(text)
        except ValueError as error:
            raise NetworkConfigError(
                f"the network config cannot be read: {error};"
                ' it must be an object such as {"Network": "10.1.0.0/16"}'
            ) from None
        nulls = go_json.null_names(text)
        for name in _NEVER_NULL:
            if name.casefold() in nulls:
                raise _wrong(name, "null", "given, or left out")
        port, mtu_cap = _backend(fields)
        if not _value(fields, "EnableIPv4", bool, True):
            raise _wrong("EnableIPv4", "false", "true: this program carries IPv4 only")
        if _value(fields, "EnableIPv6", bool, False):
            raise _wrong("EnableIPv6", "true", "false: this program carries IPv4 only")
        network = _network(fields)
        subnet_len = _subnet_len(fields, network)
        size = 1 << (32 - subnet_len)
        first = network.network_address + size
        last = network.broadcast_address - (size - 1)
        subnet_min = _subnet_bound(fields, "SubnetMin", first, network, subnet_len)
        subnet_max = _subnet_bound(fields, "SubnetMax", last, network, subnet_len)
        if subnet_min > subnet_max:
            raise _wrong("SubnetMin", f"{subnet_min}", f"at most SubnetMax, {subnet_max}")
        return cls(
            network=network,
            subnet_len=subnet_len,
            subnet_min=subnet_min,
            subnet_max=subnet_max,
            port=port,
            mtu_cap=mtu_cap,
            enable_nftables=_value(fields, "EnableNFTables", bool, False),
        )

    def is_compatible(self, subnet: IPv4Network) -> bool:
        """Whether a host may hold this subnet under this config (length and range)."""
        return (
            subnet.prefixlen == self.subnet_len
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )


def _wrong(name: str, found: str, allowed: str) -> NetworkConfigError:
    return NetworkConfigError(f"network config: {name} is {found}; it must be {allowed}")


def _value(fields: Mapping[str, object], name: str, kind: type[_T], default: _T) -> _T:
    """The field called ``name`` (in any case) as a JSON value of that kind, or the default."""
    value = fields.get(name.rpartition(".")[2].casefold(), default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(name, go_json.shown(value), _KIND_NAMES[kind])
    return value


def _backend(fields: Mapping[str, object]) -> tuple[int, int | None]:
    """Port and MTU cap. As in flannel, a missing Backend means udp; a missing Type is refused."""
    if "backend" not in fields:
        return DEFAULT_PORT, None
    backend: dict[str, object] = _value(fields, "Backend", dict, {})
    kind = _value(backend, "Backend.Type", str, "")
    if not kind:
        raise _wrong("Backend.Type", "missing", 'given, for example "udp"')
    if kind.lower() != "udp":
        raise BackendTypeError(
            f"network config: Backend.Type is {go_json.shown(kind)}, but this program carries only"
            ' "udp"; change the config or run flanneld on this host'
        )
    port = _value(backend, "Backend.Port", int, DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise _wrong("Backend.Port", go_json.shown(port), "1 to 65535")
    if "mtu" not in backend:
        return port, None
    mtu = _value(backend, "Backend.MTU", int, 0)
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise _wrong("Backend.MTU", go_json.shown(mtu), f"{MIN_MTU} to {MAX_MTU} bytes")
    return port, mtu


def _network(fields: Mapping[str, object]) -> IPv4Network:
    text = _value(fields, "Network", str, "")
    if not text:
        raise _wrong("Network", "missing", 'an IPv4 network such as "10.1.0.0/16"')
    address, _, length = text.partition("/")
    try:
        if not re.fullmatch("[0-9]{1,9}", length):
            raise ValueError("no length")
        network = IPv4Network((address, int(length)), strict=False)
    except ValueError:
        raise _wrong(
            "Network", go_json.shown(text), 'an IPv4 network such as "10.1.0.0/16"'
        ) from None
    if network.prefixlen == 0:
        raise _wrong("Network", go_json.shown(text), "smaller than the whole of IPv4")
    return network


def _subnet_len(fields: Mapping[str, object], network: IPv4Network) -> int:
    """flannel's rule: at least four subnets, of which the first stays unused."""
    length = _value(fields, "SubnetLen", int, 0)
    if length == 0:
        if network.prefixlen > 28:
            raise _wrong("Network", f'"{network}"', "/28 or larger, to hold four subnets")
        return 24 if network.prefixlen <= 22 else network.prefixlen + 2
    if length > 30 or length < network.prefixlen + 2:
        allowed = f"{network.prefixlen + 2} to 30, so that {network} holds four subnets"
        if network.prefixlen > 28:
            allowed = f"left out, and Network /28 or larger: {network} cannot hold four subnets"
        raise _wrong("SubnetLen", go_json.shown(length), allowed)
    return length


def _subnet_bound(
    fields: Mapping[str, object],
    name: str,
    default: IPv4Address,
    network: IPv4Network,
    subnet_len: int,
) -> IPv4Address:
    text = _value(fields, name, str, "0.0.0.0")
    try:
        address = IPv4Address(text)
    except ValueError:
        raise _wrong(name, go_json.shown(text), 'an IPv4 address such as "10.1.1.0"') from None
    if address == IPv4Address(0):  # flannel's zero value: not set
        return default
    if address not in network:
        raise _wrong(name, f"{address}", f"inside Network {network}")
    if int(address) % (1 << (32 - subnet_len)):
        raise _wrong(name, f"{address}", f"the first address of a /{subnet_len} subnet")
    return address
