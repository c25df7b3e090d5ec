"""The rules of ``status --check``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.cluster.lease import Lease, encode_key
from flannel_udp.host.interface_choice import Bridge
from flannel_udp.observe.check_rules import (
    Finding,
    daemon_findings,
    good,
    host_findings,
    lease_findings,
)

STATUS: dict[str, Any] = {
    "subnet": "10.1.5.0/24",
    "public_ip": "172.30.0.1",
    "mtu": 1472,
    "firewall": {"problems": []},
    **{"kernel": "6.12.9", "offloads": ["TSO", "UDP GSO"]},
    "peers": [{"public_ip": "172.30.0.2", "subnets": ["10.1.6.0/24"]}],
}


def lease(subnet: str, public_ip: str) -> Lease:
    network = IPv4Network(subnet)
    return Lease(encode_key(network), network, IPv4Address(public_ip))


OURS, THEIRS = lease("10.1.5.0/24", "172.30.0.1"), lease("10.1.6.0/24", "172.30.0.2")


def bad(findings: list[Finding]) -> list[str]:
    return [f"{finding.subject}: {finding.text}" for finding in findings if not finding.is_good]


def test_every_problem_that_the_daemon_reports_is_bad() -> None:
    status: dict[str, Any] = {"ready": True, "config_changed": None, "public_ip_conflict": None}
    assert [*daemon_findings(status)] == [good("daemon", "it forwards, and subnet.env is written")]
    broken = {
        "ready": False,
        "reason": "cannot write",
        "config_changed": "Backend.Port is 9000, was 8285",
        "public_ip_conflict": "another daemon",
    }
    assert bad([*daemon_findings(broken)]) == [
        "daemon: it is not ready: cannot write",
        "network config: it changed in etcd: Backend.Port is 9000, was 8285; start the daemon again"
        " to follow it",
        "PublicIP: another daemon",
    ]


def test_a_starting_daemon_gives_one_finding() -> None:
    starting = {"ready": False, "reason": "starting"}
    (finding,) = daemon_findings(starting)
    assert (finding.code, finding.text) == ("not-ready", "it is not ready: starting")


def test_leases_that_are_all_in_use_are_good() -> None:
    findings = list(lease_findings(STATUS, [OURS, THEIRS]))
    assert findings == [good("leases", "the 2 in etcd are those in use")]


def test_our_lease_is_missing_also_if_another_host_has_it() -> None:
    for leases in ([THEIRS], [lease("10.1.5.0/24", "172.30.0.9"), THEIRS]):
        assert any(
            "our lease: missing in etcd" in each for each in bad([*lease_findings(STATUS, leases)])
        )


def test_leases_without_route_and_routes_without_lease_are_bad() -> None:
    (line,) = bad(list(lease_findings(STATUS, [OURS, THEIRS, lease("10.1.7.0/24", "172.30.0.3")])))
    assert line.startswith("172.30.0.3 (10.1.7.0/24): its lease is in etcd but has no route here")
    (line,) = bad(list(lease_findings(STATUS, [OURS])))
    assert line.startswith("172.30.0.2 (10.1.6.0/24): missing in etcd")


def host(*bridges: Bridge, ip_forward: bool = True, rules: bool | None = True) -> list[Finding]:
    return [*host_findings(STATUS, ip_forward=ip_forward, bridge_rules=rules, bridges=bridges)]


def bridge(name: str, address: str, mtu: int | None = 1472) -> Bridge:
    return Bridge(name, (IPv4Address(address),), mtu)


OURS_0, ELSEWHERE = bridge("docker0", "10.1.5.1"), bridge("docker0", "172.17.0.1", 1500)


def test_a_host_is_good_without_a_bridge_and_with_one_in_our_subnet() -> None:
    for bridges in ((), (OURS_0,), (bridge("cni0", "10.1.5.1", None),)):
        assert {finding.code for finding in host(*bridges)} == {"ok"}


def test_a_problem_of_the_host_is_reported_with_its_remedy() -> None:
    (line,) = bad(host(ip_forward=False))
    assert "sysctl -w net.ipv4.ip_forward=1" in line
    status = STATUS | {"firewall": {"problems": ["docker masquerades"]}}
    (line,) = bad([*host_findings(status, ip_forward=True, bridge_rules=True, bridges=())])
    assert line == "firewall: docker masquerades"
    (line,) = bad(host(ELSEWHERE))
    assert "docker0: 172.17.0.1 is not in our subnet 10.1.5.0/24" in line


def test_a_missing_protection_of_the_overlay_is_a_note() -> None:
    status = STATUS | {"firewall": {"problems": [], "notes": ["users can send as this host"]}}
    findings = [*host_findings(status, ip_forward=True, bridge_rules=True, bridges=())]
    assert bad(findings) == []
    (lack,) = (each for each in findings if each.code == "overlay-not-apart")
    assert lack.text == "users can send as this host"


def test_docker0_may_be_elsewhere_if_another_bridge_has_our_subnet() -> None:
    assert bad(host(ELSEWHERE, bridge("cni0", "10.1.5.1"))) == []


def test_containers_with_a_larger_mtu_than_the_tunnel_are_bad() -> None:
    (line,) = bad(host(bridge("cni0", "10.1.5.1", 1500)))
    assert line.startswith("cni0: containers send packets of up to 1500 bytes and the tunnel takes")


def test_iptables_rules_that_a_bridge_bypasses_are_a_note() -> None:
    for rules, code in ((None, "br-netfilter-missing"), (False, "bridge-iptables-off")):
        assert {finding.code for finding in host(rules=rules)} == {"ok"}, "without a bridge"
        found = host(OURS_0, rules=rules)
        assert bad(found) == []
        (note,) = (finding for finding in found if finding.code != "ok")
        assert note.code == code
    assert "modprobe br_netfilter" in host(OURS_0, rules=None)[2].text
    assert "sysctl -w net.bridge.bridge-nf-call-iptables=1" in host(OURS_0, rules=False)[2].text


def test_a_kernel_that_may_mangle_udp_gso_is_a_note() -> None:
    status = STATUS | {"kernel": "7.1.4"}
    (found,) = [
        each
        for each in host_findings(status, ip_forward=True, bridge_rules=True, bridges=())
        if each.subject == "kernel"
    ]
    assert (found.code, found.is_good) == ("kernel-udp-gso", True)
    assert "--offload tso" in found.text
