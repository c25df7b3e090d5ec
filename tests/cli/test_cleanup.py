from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flannel_udp.backends.pump.pump import open_tun
from flannel_udp.host import kernel_routes, locks, tunnel_device
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.host.firewall.rules import Policy
from flannel_udp.host.netns import Namespace

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
PROGRAM = (sys.executable, "-m", "flannel_udp", "cleanup")


def never(error: BaseException) -> None:
    raise error


def policy(number: int) -> Policy:
    """Of the network 10.NUMBER.0.0/16."""
    network, subnet = f"10.{number}.0.0/16", f"10.{number}.5.0/24"
    return Policy(IPv4Network(network), IPv4Network(subnet), masquerade=True, forward=True)


def test_cleanup_removes_only_what_no_running_daemon_uses(namespace: Namespace) -> None:
    for number, nftables in ((1, False), (2, True), (3, False), (4, True)):
        firewall = Firewall(policy(number), 8280 + number, nftables=nftables, resync=3600)
        namespace.call(firewall.__enter__)
        namespace.call(kernel_routes.add_blackhole, policy(number).subnet)
    # The daemons of the networks 3 and 4 run: they have a device, a route and a lock.
    for number in (3, 4):
        namespace.add_bridge(f"flannel{number}")
        namespace.add_route(policy(number).network, device=f"flannel{number}")
    lock = locks.hold(8284)
    namespace.call(lock.__enter__)

    result = namespace.run(PROGRAM, check=True)
    assert result.stdout.splitlines() == [
        "removed the blackhole route for 10.1.5.0/24",
        "removed the blackhole route for 10.2.5.0/24",
        "removed the iptables rules of 10.1.0.0/16",
        "removed the nftables rules of port 8282",
    ]
    left = namespace.run(["iptables-save"]).stdout + namespace.run(["ip", "route"]).stdout
    left += namespace.run(["nft", "list", "table", "ip", "flannel-ipv4"]).stdout
    assert [number for number in range(1, 5) if f"10.{number}.5.0/24" in left] == [3, 4]
    assert namespace.run(PROGRAM, check=True).stdout == "nothing was left\n"
    lock.__exit__(None, None, None)


def test_rules_that_a_running_flanneld_may_need_stay(namespace: Namespace, tmp_path: Path) -> None:
    """Its backend host-gw routes through eth0: only the process shows that it runs."""
    namespace.call(Firewall(policy(1), 8285, nftables=False, resync=3600).__enter__)
    namespace.call(kernel_routes.add_blackhole, policy(1).subnet)
    rules, routes = namespace.run(["iptables-save"]).stdout, namespace.run(["ip", "route"]).stdout
    program = str(tmp_path / "flanneld")
    shutil.copy(shutil.which("cat") or "", program)
    with namespace.popen([program], **PIPES) as flanneld:
        answered(flanneld)
        printed = namespace.run(PROGRAM, check=True).stdout
    assert printed == (
        "kept what is for 10.1.5.0/24, 10.1.0.0/16: it may belong to flanneld, which runs here as"
        f" process {flanneld.pid}; stop that to have it removed\n"
    )
    assert without_counters(namespace.run(["iptables-save"]).stdout) == without_counters(rules)
    assert namespace.run(["ip", "route"]).stdout == routes
    with subprocess.Popen([program], **PIPES) as elsewhere:  # in another network namespace
        answered(elsewhere)
        printed = namespace.run(PROGRAM, check=True).stdout
    assert "removed the iptables rules of 10.1.0.0/16" in printed
    assert "FLANNEL" not in namespace.run(["iptables-save"]).stdout


def answered(cat: subprocess.Popen[bytes]) -> None:
    """Return when it really runs."""
    assert cat.stdin
    assert cat.stdout
    cat.stdin.write(b"?\n")
    assert cat.stdout.readline() == b"?\n"


def without_counters(saved: str) -> list[str]:
    return [re.sub(r"\[.*\]", "", line) for line in saved.splitlines() if line[:1] != "#"]


def test_cleanup_deletes_a_device_that_nobody_serves(namespace: Namespace) -> None:
    """A service manager may keep its descriptor for a daemon that never comes."""
    kept = [namespace.call(open_tun) for _ in range(2)]
    for number, (_, device) in enumerate(kept):
        namespace.call(tunnel_device.mark, device, 8285 + number)
    foreign, _ = namespace.call(open_tun, "flannel.%d")
    lock = locks.hold(8286)
    namespace.call(lock.__enter__)
    assert namespace.run(PROGRAM, check=True).stdout == "removed the device flannel0\n"
    links = namespace.run(["ip", "-br", "link"], check=True).stdout
    assert re.findall("flannel[.0-9]+", links) == ["flannel1", "flannel.0"]
    lock.__exit__(None, None, None)
    for descriptor in (foreign, *(descriptor for descriptor, _ in kept)):
        os.close(descriptor)


def test_cleanup_without_rights_is_one_sentence(namespace: Namespace) -> None:
    namespace.call(Firewall(policy(1), 8285, nftables=False, resync=3600).__enter__)
    result = namespace.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM])
    assert result.returncode == 1
    assert result.stderr.startswith("flannel-udp: cannot write firewall rules: iptables-save says")
    assert result.stderr.count("\n") == 1
