"""flannel's chains as iptables-save prints them, and the change that they need (pure).

Several daemons share the chains. Each finds its rules by the comment and its Network; the jump to a
chain and the mark rule at its top are shared, and the last daemon removes them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Self

from flannel_udp.host.firewall.rules import Comment, Match, Overlay, Part, Policy, Rule, Verdict

_MARK = Policy.KUBE_PROXY_MARK

# Chains of docker that may drop packets before our jump; DOCKER-USER belongs to the operator.
_DOCKER_JUMP = re.compile(r"-j DOCKER(?!-USER\b)")
_DOCKER_MASQUERADE = re.compile(r"-s (\S+) ! -o \S+ -j MASQUERADE")
_CNI_JUMP = re.compile(r"-s (\S+) .*-j (CNI-\S+)")
_DOCKER_RAW_DROP = re.compile(r"-d (\S+) ! -i \S+ -j DROP")
# Of docker 28 and later. A bridge that docker named itself does not carry the host's subnet.
_DOCKER_BRIDGE_DROP = re.compile(r"! -i (?!br-[0-9a-f]{12} )(\S+) -o \1 -j DROP")
_NETWORK = re.compile(r"(?<!! )-[sd] (\S+)")
_TARGET = re.compile(r"-[jg] (\S+)")
_REFUSAL = re.compile(r"-j (DROP|REJECT\b.*)")
# An accept rule that has one of these matches does not accept the first datagram of a peer.
_OTHERS_ONLY = re.compile(r"(?<!! )(-i lo |-p (?!udp |all )|--(ct)?state (?!\S*NEW))")
_PORTS = re.compile(r"(?<!! )--dports? (\S+)")
_SPAN = re.compile(r"(\d+)(?::(\d+))?")
_OVERLAY_MARK = re.compile(rf'--comment "{Comment.OVERLAY} (\d+) ')


@dataclass(frozen=True, slots=True)
class _Place:
    """One of our chains: its table, the chain that jumps to it, and the rules at its top."""

    table: str
    parent: str
    chain: str
    comment: str
    top: tuple[str, ...] = ()
    before_docker: bool = False

    @property
    def comment_match(self) -> str:
        return f'-m comment --comment "{self.comment}"'

    @property
    def jump(self) -> str:
        return f"{self.comment_match} -j {self.chain}"


_MASQUERADE = _Place(
    "nat",
    "POSTROUTING",
    "FLANNEL-POSTRTG",
    Comment.MASQUERADE,
    top=(f'-m mark --mark {_MARK}/{_MARK} -m comment --comment "{Comment.MASQUERADE}" -j RETURN',),
)
_FORWARD = _Place("filter", "FORWARD", "FLANNEL-FWD", Comment.FORWARD, before_docker=True)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What iptables-save printed: rules by table and chain, and the policies of built-in chains."""

    rules: dict[str, dict[str, list[str]]]
    policies: dict[tuple[str, str], str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Takes any text; a rule without a match or target is ""."""
        rules: dict[str, dict[str, list[str]]] = {}
        policies = {}
        table: dict[str, list[str]] = {}
        name = ""
        for line in text.split("\n"):  # not splitlines: a comment may contain other line ends
            if line.startswith("*"):
                name = line[1:].strip()
                table = rules.setdefault(name, {})
            elif line.startswith(":"):
                chain, _, policy = line[1:].partition(" ")
                table.setdefault(chain, [])
                policies[name, chain] = policy.partition(" ")[0]
            elif line.startswith("-A "):
                chain, _, rule = line.removeprefix("-A ").partition(" ")
                table.setdefault(chain, []).append(rule)
        return cls(rules, policies)

    def of(self, table: str, chain: str) -> list[str]:
        return self.rules.get(table, {}).get(chain, [])


def change(found: Ruleset, policy: Policy, forward_place: _Place = _FORWARD) -> str:
    """What iptables-restore --noflush must read so that ``policy`` holds; "" if it does.

    Every table changes at once or not at all, so that no packet passes half of the rules. A policy
    that wants nothing removes our rules, and the chains if no other daemon uses them.
    ``forward_place`` is where the forward rules belong.
    """
    wanted = (_MASQUERADE, policy.masquerade_rules()), (forward_place, policy.forward_rules())
    return "".join(
        _transaction(place, found, policy.network, [_text(place, rule, policy) for rule in rules])
        for place, rules in wanted
    )


def overlay_rules(part: Part, overlay: Overlay) -> dict[tuple[str, str], str]:
    """By table and built-in chain."""
    address, port = overlay.address, overlay.port
    mark = f'-m comment --comment "{Comment.OVERLAY} {port} {part.value}" -j'
    arriving = f"-d {address}/32 -p udp -m udp --dport {port} {mark}"
    leaving = f"-s {address}/32 -p udp -m udp --sport {port} {mark}"
    zone, end = f"CT --zone {overlay.ZONE}", f"{address}:{port}"
    rules = {
        Part.ZONE: {
            ("raw", "PREROUTING"): f"{arriving} {zone}",
            ("raw", "OUTPUT"): f"{leaving} {zone}",
        },
        Part.PORT: {("nat", "PREROUTING"): f"{arriving} DNAT --to-destination {end}"},
    }
    if not overlay.is_translated:
        rules[Part.PORT]["nat", "POSTROUTING"] = f"{leaving} SNAT --to-source {end}"
    return rules.get(part, {})


def overlay_change(
    found: Ruleset, wanted: Mapping[tuple[str, str], str], port: int, part: Part | None = None
) -> str:
    """What iptables-restore --noflush must read so that of the overlay's rules for this port, or
    of one part of them, exactly those wanted are left, first in their chains; "" if it is so."""
    mark = f'--comment "{Comment.OVERLAY} {port} {part.value if part else ""}'
    commands: dict[str, list[str]] = {}
    places = {(table, chain) for table, chains in found.rules.items() for chain in chains}
    for table, chain in sorted(places | wanted.keys()):
        old = [rule for rule in found.of(table, chain) if mark in rule]
        new = [wanted[table, chain]] if (table, chain) in wanted else []
        if old != new:
            lines = _deletions((chain, rule) for rule in old)
            lines += [f"-I {chain} 1 {rule}" for rule in new]
            commands[table] = commands.get(table, []) + lines
    return "".join(_restored(table, lines) for table, lines in commands.items())


def overlay_ports(found: Ruleset) -> set[int]:
    """Of all daemons, running or dead, that keep their datagrams apart."""
    lines = [rule for chains in found.rules.values() for rules in chains.values() for rule in rules]
    return {int(match[1]) for match in map(_OVERLAY_MARK.search, lines) if match}


def is_only_behind_docker(found: Ruleset, policy: Policy) -> bool:
    """Whether all that must be changed is that docker's chains come before our jump."""
    anywhere = replace(_FORWARD, before_docker=False)
    return bool(change(found, policy)) and not change(found, policy, anywhere)


def networks(found: Ruleset) -> set[IPv4Network]:
    """The Network of every daemon, running or dead, that has rules here."""
    places = (_MASQUERADE, _FORWARD)
    lines = [rule for place in places for _, rule in _commented(place, found)]
    ends = ("-j ACCEPT", "-j MASQUERADE", "-j MASQUERADE --random-fully")
    # Only these rules contain Network itself, as their first address.
    named = [_NETWORK.search(line) for line in lines if line.endswith(ends)]
    found_networks = (_network(match[1]) for match in named if match)
    return {network for network in found_networks if network}


def complaints(found: Ruleset, policy: Policy, *, nftables: bool) -> list[str]:
    """How other programs' rules harm the overlay, a sentence each.

    ``nftables``: our own rules are in nftables, where they cannot overrule those of iptables.
    """
    sentences = []
    for rule in found.of("nat", "POSTROUTING"):
        match = _DOCKER_MASQUERADE.fullmatch(rule)
        source = _network(match[1]) if match else None
        if source and policy.subnet.subnet_of(source):
            sentences.append(
                f"docker masquerades {policy.subnet} ('{rule}'): containers of other hosts see this"
                " host's address instead of its containers'; run flannel-udp with --ip-masq, and"
                " docker with the options that mk-docker-opts writes then"
            )
    if _cni_masquerades(found, policy.subnet):
        sentences.append(
            f"a CNI plugin masquerades containers of {policy.subnet}: containers of other hosts see"
            " this host's address instead of theirs; set ipMasq to false in its config, run"
            " flannel-udp with --ip-masq, and make the containers anew"
        )
    for rule in found.of("raw", "PREROUTING"):
        match = _DOCKER_RAW_DROP.fullmatch(rule)
        destination = _network(match[1]) if match else None
        if destination and destination.subnet_of(policy.subnet):
            sentences.append(
                f"docker drops what other hosts send to its containers ('{rule}' in table raw):"
                ' set "allow-direct-routing": true in docker\'s daemon.json and restart docker'
            )
            break
    drops = found.policies.get(("filter", "FORWARD")) == "DROP"
    if nftables and policy.forward and drops:
        sentences.append(
            "the FORWARD chain of iptables drops by policy, as docker sets it, and an nftables rule"
            " cannot overrule it: set EnableNFTables to false in the network config, or run"
            " 'iptables -P FORWARD ACCEPT'"
        )
    if nftables and policy.forward:
        sentences += _bridge_drops(found)
    if policy.overlay and _refuses_peers(found, policy.overlay.port):
        sentences.append(
            "the INPUT chain of iptables drops what no rule accepts, and none accepts UDP port"
            f" {policy.overlay.port}: this host hears a peer only after it has sent to it; run"
            f" 'iptables -I INPUT -p udp --dport {policy.overlay.port} -j ACCEPT'"
        )
    if drops and not policy.forward and not _is_accepted(found, policy.network):
        sentences.append(
            "the FORWARD chain of iptables drops by policy, as docker sets it, and nothing there"
            f" accepts {policy.network}: start flannel-udp without --iptables-forward-rules=false,"
            " or accept packets from and to that network yourself"
        )
    return sentences


def _bridge_drops(found: Ruleset) -> list[str]:
    return [
        f"docker drops new connections to its containers from elsewhere than {match[1]} ('{rule}'"
        " in chain DOCKER), and an nftables rule cannot overrule it: set EnableNFTables to false in"
        " the network config"
        for rule in found.of("filter", "DOCKER")
        if (match := _DOCKER_BRIDGE_DROP.fullmatch(rule))
    ]


def _cni_masquerades(found: Ruleset, subnet: IPv4Network) -> bool:
    """Whether ``bridge`` or ``ptp`` with ipMasq has made its rules for one of our containers."""
    jumps = filter(None, map(_CNI_JUMP.fullmatch, found.of("nat", "POSTROUTING")))
    chains = [
        jump[2] for jump in jumps if (source := _network(jump[1])) and source.subnet_of(subnet)
    ]
    return any(
        rule.endswith("-j MASQUERADE") for chain in chains for rule in found.of("nat", chain)
    )


def _is_accepted(found: Ruleset, network: IPv4Network) -> bool:
    """Whether any rule accepts packets of the whole Network, or of the tunnel device."""
    accepting = [
        rule
        for rules in found.rules.get("filter", {}).values()
        for rule in rules
        if rule.endswith("-j ACCEPT")
    ]
    named = [_network(match[1]) for rule in accepting if (match := _NETWORK.search(rule))]
    return any(each and network.subnet_of(each) for each in named) or any(
        " flannel" in rule for rule in accepting
    )


def _refuses_peers(found: Ruleset, port: int) -> bool:
    """Whether INPUT drops by policy or by its last rule, and no rule that it leads to accepts the
    first datagram of a peer. Matches that are unknown here count as fulfilled."""
    chains, rules = ["INPUT"], []
    for chain in chains:  # grows
        rules += found.of("filter", chain)
        chains += {match[1] for rule in rules if (match := _TARGET.search(rule))} - {*chains}
    last = found.of("filter", "INPUT")[-1:]
    if found.policies.get(("filter", "INPUT")) != "DROP" and not any(map(_REFUSAL.match, last)):
        return False
    accepting = [rule for rule in rules if rule.endswith("-j ACCEPT")]
    return not any(_has_port(rule, port) for rule in accepting if not _OTHERS_ONLY.search(rule))


def _has_port(rule: str, port: int) -> bool:
    """Whether the rule is for this destination port, or for all."""
    match = _PORTS.search(rule)
    spans = _SPAN.findall(match[1]) if match else [("0", "65535")]
    return any(int(low) <= port <= int(high or low) for low, high in spans)


def _transaction(place: _Place, found: Ruleset, network: IPv4Network, wanted: list[str]) -> str:
    """With our rules, the chain goes too if none are wanted and no other daemon uses it."""
    chain, parent = place.chain, place.parent
    inside, outside = found.of(place.table, chain), found.of(place.table, parent)
    exists = chain in found.rules.get(place.table, {})
    old, new = _ours(place, found, network), [(chain, rule) for rule in wanted]
    tops = [rule for rule in inside if rule in place.top]
    jumps = [at for at, rule in enumerate(outside) if rule == place.jump]
    docker_jumps = [at for at, rule in enumerate(outside) if _DOCKER_JUMP.search(rule)]
    late = place.before_docker and jumps and docker_jumps and docker_jumps[0] < jumps[0]
    is_last = exists and all(rule in tops or (chain, rule) in old for rule in inside)
    commands = []
    if wanted and not exists:
        commands.append(f"-N {chain}")
    if old != new:
        commands += _deletions(old) + [f"-A {chain} {rule}" for rule in wanted]
    if wanted and not tuple(tops) == place.top == tuple(inside[: len(tops)]):
        commands += _deletions((chain, rule) for rule in tops)
        commands += [f"-I {chain} {at} {rule}" for at, rule in enumerate(place.top, 1)]
    if wanted and (len(jumps) != 1 or late):
        commands += _deletions((parent, place.jump) for _ in jumps)
        commands.append(f"-I {parent} {docker_jumps[0] + 1 if late else 1} {place.jump}")
    if is_last and not wanted:
        commands += _deletions((parent, place.jump) for _ in jumps)
        commands += _deletions((chain, rule) for rule in tops)
        commands.append(f"-X {chain}")
    return _restored(place.table, commands) if commands else ""


def _restored(table: str, commands: Iterable[str]) -> str:
    """The transaction as iptables-restore reads it."""
    return "\n".join([f"*{table}", *commands, "COMMIT", ""])


def _ours(place: _Place, found: Ruleset, network: IPv4Network) -> list[tuple[str, str]]:
    """Chain and rule of each rule that this or an earlier run wrote for the Network.

    flannel before 0.20 wrote its rules into the built-in chains, so these are searched too.
    """
    return [
        (chain, rule)
        for chain, rule in _commented(place, found)
        if any(f"{flag} {network} " in rule for flag in ("-s", "-d"))
    ]


def _commented(place: _Place, found: Ruleset) -> list[tuple[str, str]]:
    return [
        (chain, rule)
        for chain, rules in found.rules.get(place.table, {}).items()
        for rule in rules
        if place.comment_match in rule
    ]


def _network(text: str) -> IPv4Network | None:
    """None for an address pattern that iptables allows, such as 10.1.0.0/255.0.255.0."""
    try:
        return IPv4Network(text)
    except ValueError:
        return None


def _deletions(rules: Iterable[tuple[str, str]]) -> list[str]:
    return [f"-D {chain} {rule}" for chain, rule in rules]


def _text(place: _Place, rule: Rule, policy: Policy) -> str:
    """The rule exactly as iptables-save prints it."""
    parts = [*_match("-s", rule.source), *_match("-d", rule.destination), place.comment_match]
    parts += ["-j", rule.verdict.name]
    if rule.verdict is Verdict.MASQUERADE and policy.random_fully:
        parts.append("--random-fully")
    return " ".join(parts)


def _match(flag: str, match: Match | None) -> list[str]:
    if match is None:
        return []
    return ["!"] * match.outside + [flag, str(match.network)]
