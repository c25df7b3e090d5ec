"""``flannel-udp status --check``: the rules that judge host and leases by given facts (pure)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from flannel_udp.backends.pump.fallbacks import kernel_fault
from flannel_udp.cluster.lease import Lease
from flannel_udp.host.interface_choice import Bridge


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its subject, whether it passed, and a sentence.

    ``code`` is for programs and never changes its meaning: "ok", or what is wrong. A good finding
    whose code is not "ok" is a note: it breaks nothing.
    """

    code: str
    subject: str
    is_good: bool
    text: str


def good(subject: str, text: str) -> Finding:
    return Finding("ok", subject, True, text)


def bad(code: str, subject: str, text: str) -> Finding:
    return Finding(code, subject, False, text)


def note(code: str, subject: str, text: str) -> Finding:
    return Finding(code, subject, True, text)


def daemon_findings(status: Mapping[str, Any]) -> Iterator[Finding]:
    """What the daemon itself reports, also while it starts."""
    if status["ready"]:
        yield good("daemon", "it forwards, and subnet.env is written")
    else:
        yield bad("not-ready", "daemon", f"it is not ready: {status['reason']}")
    if difference := status.get("config_changed"):
        yield bad(
            "config-changed",
            "network config",
            f"it changed in etcd: {difference}; start the daemon again to follow it",
        )
    if conflict := status.get("public_ip_conflict"):
        yield bad("public-ip-conflict", "PublicIP", conflict)


def host_findings(
    status: Mapping[str, Any],
    *,
    ip_forward: bool,
    bridge_rules: bool | None,
    bridges: Iterable[Bridge],
) -> Iterator[Finding]:
    """``bridge_rules``: whether iptables sees packets between the ports of a bridge; None if
    br_netfilter is not loaded."""
    if ip_forward:
        yield good("ip_forward", "on")
    else:
        yield bad(
            "ip-forward-off",
            "ip_forward",
            "off: this host drops its containers' packets; run sysctl -w net.ipv4.ip_forward=1",
        )
    if fault := kernel_fault(status["kernel"], status["offloads"]):
        yield note("kernel-udp-gso", "kernel", fault)
    for problem in status["firewall"]["problems"]:
        yield bad("firewall-rule", "firewall", problem)
    for lack in status["firewall"].get("notes", ()):
        yield note("overlay-not-apart", "firewall", lack)
    if not status["firewall"]["problems"]:
        yield good("firewall", "no rule is known to harm the overlay")
    subnet = IPv4Network(status["subnet"])
    known = list(bridges)
    ours = [b for b in known if any(address in subnet for address in b.addresses)]
    for bridge in ours:
        if not bridge_rules:
            yield _bridge_rules_finding(bridge, is_loaded=bridge_rules is not None)
        yield _container_mtu(bridge, status)
    if not ours:
        yield from (_wrong_subnet(b, subnet) for b in known if b.name == "docker0")


def _bridge_rules_finding(bridge: Bridge, *, is_loaded: bool) -> Finding:
    consequence = (
        "iptables rules, such as those of Kubernetes services and of docker's icc=false, do not"
        f" hold between containers of {bridge.name}; if you rely on them, run"
    )
    if is_loaded:
        return note(
            "bridge-iptables-off",
            "br_netfilter",
            f"off: {consequence} sysctl -w net.bridge.bridge-nf-call-iptables=1",
        )
    return note(
        "br-netfilter-missing", "br_netfilter", f"not loaded: {consequence} modprobe br_netfilter"
    )


def _container_mtu(bridge: Bridge, status: Mapping[str, Any]) -> Finding:
    """Whether containers on ``bridge``, which is in our subnet, have at most the tunnel's MTU."""
    if bridge.port_mtu is not None and bridge.port_mtu > status["mtu"]:
        return bad(
            "container-mtu",
            bridge.name,
            f"containers send packets of up to {bridge.port_mtu} bytes and the tunnel takes"
            f" {status['mtu']}: give docker the options that mk-docker-opts writes, or the CNI"
            " plugin FLANNEL_MTU, and recreate the containers",
        )
    return good(bridge.name, f"{', '.join(map(str, bridge.addresses))} lies in our subnet")


def _wrong_subnet(docker: Bridge, subnet: IPv4Network) -> Finding:
    shown = ", ".join(map(str, docker.addresses)) or "no address"
    return bad(
        "docker-subnet",
        docker.name,
        f"{shown} is not in our subnet {subnet}: docker did not read its options; write them with"
        " mk-docker-opts and restart docker",
    )


def lease_findings(status: Mapping[str, Any], leases: Iterable[Lease]) -> Iterator[Finding]:
    """Compares the leases in etcd with the routes in use."""
    own = (IPv4Network(status["subnet"]), status["public_ip"])
    held = {(lease.subnet, str(lease.public_ip)) for lease in leases}
    routed = {
        (IPv4Network(subnet), peer["public_ip"])
        for peer in status["peers"]
        for subnet in peer["subnets"]
    }
    if own not in held:
        yield bad(
            "own-lease-missing",
            "our lease",
            f"missing in etcd: no key gives {own[0]} to {own[1]}, so no other host can send to us;"
            " start the daemon again to get one",
        )
    for subnet, public_ip in sorted(held - routed - {own}, key=str):
        yield bad(
            "lease-without-route",
            f"{public_ip} ({subnet})",
            "its lease is in etcd but has no route here; the log says why",
        )
    for subnet, public_ip in sorted(routed - held, key=str):
        yield bad(
            "route-without-lease",
            f"{public_ip} ({subnet})",
            "missing in etcd: the route here is all that is left of its lease; start its daemon"
            " again",
        )
    if held == routed | {own}:
        yield good("leases", f"the {len(held)} in etcd are those in use")
