"""What the firewall must do for one overlay, whichever tool writes it (pure)."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network

MULTICAST = IPv4Network("224.0.0.0/4")

# kube-proxy marks packets that it will translate itself: as in flannel, they are left to it.
KUBE_PROXY_MARK = 0x4000

MASQUERADE_COMMENT = "flanneld masq"
FORWARD_COMMENT = "flanneld forward"


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


@dataclass(frozen=True, slots=True)
class Policy:
    """What one daemon wants: ``masquerade`` is --ip-masq, ``forward`` --iptables-forward-rules."""

    network: IPv4Network
    subnet: IPv4Network
    masquerade: bool
    forward: bool
    random_fully: bool = True

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
