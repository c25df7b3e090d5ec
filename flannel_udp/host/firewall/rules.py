"""What the firewall must do for one overlay, whichever tool writes it (pure)."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

MULTICAST = IPv4Network("224.0.0.0/4")


class Comment(StrEnum):
    """What a rule of ours is for."""

    MASQUERADE = "flanneld masq"
    FORWARD = "flanneld forward"
    OVERLAY = "flanneld overlay"


class Verdict(Enum):
    """What happens to a packet that a rule matches."""

    ACCEPT = "accept"
    RETURN = "return"
    MASQUERADE = "masquerade"


@dataclass(frozen=True, slots=True)
class Match:
    """The addresses that a rule matches: those in ``network``, or with ``outside`` all others."""

    network: IPv4Network
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """Without a source or destination, any matches."""

    verdict: Verdict
    source: Match | None = None
    destination: Match | None = None


class Part(Enum):
    """How the overlay's own datagrams are kept apart from all other connections of the host."""

    ZONE = "zone"  # tracked in a zone of their own, so that no entry of others matches them
    PORT = "port"  # NAT rules of others do not apply to them
    GUARD = "guard"  # nothing but the daemon sends from their address and port


@dataclass(frozen=True, slots=True)
class Overlay:
    """Where the overlay's own datagrams arrive and leave.

    ``owner`` is the uid that opened the socket. With ``is_translated`` PublicIP is another address,
    so a NAT rule of this host may have to change theirs.
    """

    # The conntrack zone of these datagrams. Any number but 0, which all connections have by
    # default, would do: programs that number zones start at 1 (Open vSwitch) or 4097 (OpenStack).
    # The daemons of one host share it, because their ports differ.
    ZONE: ClassVar = 8285

    address: IPv4Address
    port: int
    owner: int = 0
    is_translated: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What one daemon wants: ``masquerade`` is --ip-masq, ``forward`` --iptables-forward-rules."""

    # kube-proxy marks packets that it will translate itself: as in flannel, they are left to it.
    KUBE_PROXY_MARK: ClassVar = "0x4000"

    network: IPv4Network
    subnet: IPv4Network
    masquerade: bool
    forward: bool
    random_fully: bool = True
    overlay: Overlay | None = None

    def masquerade_rules(self) -> tuple[Rule, ...]:
        """In flannel's order. The rule that returns packets with kube-proxy's mark precedes them.

        Packets inside the overlay keep their addresses; those that leave or enter it get the
        host's.
        """
        if not self.masquerade:
            return ()
        network, subnet = Match(self.network), Match(self.subnet)
        elsewhere = Match(self.network, outside=True)
        return (
            Rule(Verdict.RETURN, subnet, network),
            Rule(Verdict.RETURN, network, subnet),
            Rule(Verdict.RETURN, elsewhere, subnet),
            Rule(Verdict.MASQUERADE, network, Match(MULTICAST, outside=True)),
            Rule(Verdict.MASQUERADE, elsewhere, network),
        )

    def forward_rules(self) -> tuple[Rule, ...]:
        if not self.forward:
            return ()
        network = Match(self.network)
        return Rule(Verdict.ACCEPT, source=network), Rule(Verdict.ACCEPT, destination=network)
