"""status, top and status --check show the real state of a running daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from etcd_server import wait_until
from instruments import HEALTH_FLAGS, EtcdWriter, lease_value, leases, log_lines, metrics, routes
from terminal import Terminal

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host, Lab


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=3, daemon_args=(*HEALTH_FLAGS, "--iptables-resync=1")) as lab:
        assert None not in lab.ping_matrix().values()
        yield lab


def command(host: Host, *argv: str) -> list[str]:
    return [sys.executable, "-m", "flannel_udp", *argv, f"--subnet-file={host.subnet_file}"]


def status(host: Host, *argv: str) -> subprocess.CompletedProcess[str]:
    return host.run(command(host, "status", *argv), timeout=60, env=child_environment())


def firewall(host: Host, hook: str, rule: str) -> contextlib.AbstractContextManager[None]:
    """One nftables rule during the block."""

    @contextlib.contextmanager
    def ruled() -> Iterator[None]:
        chain = f"{{ type filter hook {hook} priority 0; }}"
        rules = f"add table ip test; add chain ip test only {chain}; add rule ip test only {rule}"
        host.run(["nft", rules], check=True)
        try:
            yield
        finally:
            host.run(["nft", "delete table ip test"], check=True)

    return ruled()


def findings(host: Host, *wrapper: str) -> dict[str, str]:
    """Code and sentence of each bad finding, by subject; the exit code must agree."""
    check = [*wrapper, *command(host, "status", "--check", "--json")]
    result = host.run(check, timeout=60, env=child_environment())
    found = json.loads(result.stdout)
    bad = {
        each["subject"]: f"{each['code']}: {each['text']}" for each in found if not each["is_good"]
    }
    assert result.returncode == (1 if bad else 0), result.stderr
    return bad


def test_status_shows_the_state_of_the_daemon(lab: Lab) -> None:
    host, peers = lab.hosts[0], lab.hosts[1:]
    result = status(host)
    assert (result.returncode, result.stderr) == (0, "")
    text = result.stdout
    assert text.startswith("flannel-udp 0.1.0, ready\n")
    assert f"{host.subnet} of 10.1.0.0/16, leased for " in text
    assert "eth0 172.30.0.1, UDP port 8285" in text
    assert "flannel0, MTU 1472" in text
    for peer in peers:
        assert f"{peer.address}  {peer.subnet}" in text
    shown = json.loads(status(host, "--json").stdout)
    assert shown["subnet"] == str(host.subnet)
    assert 0 < shown["lease_seconds_left"] <= 86_400
    assert [peer["subnets"] for peer in shown["peers"]] == [[str(peer.subnet)] for peer in peers]
    assert all(0 < peer["age_seconds"] < 600 for peer in shown["peers"])


def test_status_reports_that_docker_masquerades(lab: Lab) -> None:
    host = lab.hosts[0]
    rule = ("POSTROUTING", "-s", str(host.subnet), "!", "-o", "docker0", "-j", "MASQUERADE")
    host.run(["iptables", "-t", "nat", "-A", *rule], check=True)
    wait_until(lambda: "docker masquerades" in status(host).stdout, "the rule being named")
    host.run(["iptables", "-t", "nat", "-D", *rule], check=True)
    wait_until(lambda: "docker" not in status(host).stdout, "the rule being seen gone")


def test_status_shows_why_a_daemon_is_not_ready(lab: Lab) -> None:
    host = lab.hosts[2]
    shown = json.loads(lab.etcdctl("get", "--print-value-only", f"{lab.prefix}/config"))
    assert host.stop_daemon() == 0
    lab.etcdctl("del", f"{lab.prefix}/config")
    try:
        host.start_daemon(wait=False)
        wait_until(lambda: "no network config" in status(host).stdout, "the reason")
        assert status(host).returncode == 1
        assert findings(host)["daemon"].startswith(
            "not-ready: it is not ready: there is no network"
        )
    finally:
        lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(shown))
    host.wait_until_ready()
    wait_until(lambda: status(host).returncode == 0, "being ready")


# status --check


def test_healthy_cluster_passes_every_check(lab: Lab) -> None:
    assert findings(lab.hosts[0]) == {}
    lines = status(lab.hosts[0], "--check").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 7
    for line, peer in zip(lines[5:], lab.hosts[1:], strict=True):
        assert f"{peer.address} ({peer.subnet.network_address}): answers in" in line  # type: ignore[union-attr]  # it has one


def peer_subject(host: Host) -> str:
    assert host.subnet
    return f"{host.address} ({host.subnet.network_address})"


def test_check_distinguishes_why_a_peer_does_not_answer(lab: Lab) -> None:
    host, second, third = lab.hosts
    to_third = f"ip daddr {third.address} udp dport 8285 drop"
    with firewall(host, "output", to_third), firewall(second, "input", "udp dport 8285 drop"):
        found = findings(host)
    assert set(found) == {peer_subject(second), peer_subject(third)}
    assert found[peer_subject(second)].startswith(
        "port-blocked: its host answers, but nothing comes back through UDP port 8285: a firewall"
    )
    assert found[peer_subject(third)].startswith("send-refused: this host refuses to send to it")

    second.kill_daemon()
    third.netns.set_link("eth0", state="down")
    try:
        found = findings(host)
    finally:
        third.netns.set_link("eth0", state="up")
        second.start_daemon()
    assert found[peer_subject(second)].startswith("port-closed: UDP port 8285 is closed there")
    assert found[peer_subject(third)].startswith(
        "host-down: neither the tunnel nor its host answers"
    )
    assert None not in lab.ping_matrix().values()


def test_check_measures_an_mtu_black_hole(lab: Lab) -> None:
    host, second, _ = lab.hosts
    with firewall(second, "input", "udp dport 8285 meta length > 1328 drop"):
        found = findings(host)
    assert set(found) == {peer_subject(second)}
    assert found[peer_subject(second)].startswith("mtu-black-hole: MTU black hole")
    assert "packets of 1472 bytes are lost, those of 1300 arrive" in found[peer_subject(second)]
    assert '"MTU": 1300' in found[peer_subject(second)]


def test_check_reports_leases_and_routes_that_differ(lab: Lab) -> None:
    host = lab.hosts[0]
    outside = f"{lab.prefix}/subnets/10.9.9.0-24"
    lab.etcdctl("put", outside, lease_value("172.30.0.77"))
    try:
        found = findings(host)
    finally:
        lab.etcdctl("del", outside)
    assert found == {
        "172.30.0.77 (10.9.9.0/24)": (
            "lease-without-route: its lease is in etcd but has no route here; the log says why"
        )
    }


def test_check_reports_leases_deleted_while_the_daemon_is_cut_off(lab: Lab) -> None:
    """The daemon is cut off from etcd by its group; the check has another one."""
    host = lab.hosts[0]
    own = f"{lab.prefix}/subnets/{host.subnet}".replace("/24", "-24")
    lease = f"{json.loads(lab.etcdctl('get', '--write-out=json', own))['kvs'][0]['lease']:x}"
    unknown_host = f"{lab.prefix}/subnets/10.1.251.0-24"
    lab.etcdctl("put", unknown_host, lease_value("172.30.0.77"))
    wait_until(lambda: "10.1.251.0/24" in routes(host), "the unknown host's route")
    try:
        with firewall(host, "input", "ip saddr 172.30.0.254 meta skgid 0 drop"):
            lab.etcdctl("del", unknown_host)
            lab.etcdctl("del", own)
            found = findings(host, "setpriv", "--regid=1", "--clear-groups")
            host.kill_daemon()
    finally:
        lab.etcdctl("put", own, lease_value(str(host.address)), f"--lease={lease}")
    host.start_daemon()
    assert found["our lease"].startswith(
        f"own-lease-missing: missing in etcd: no key gives {host.subnet} to {host.address}"
    )
    assert found["172.30.0.77 (10.1.251.0/24)"].startswith(
        "route-without-lease: missing in etcd: the route here is all that is left of its lease"
    )
    wait_until(
        lambda: all(str(host.subnet) in routes(peer) for peer in lab.hosts[1:]), "its return"
    )


def test_check_without_raw_sockets_reports_it_and_checks_the_rest(lab: Lab) -> None:
    host = lab.hosts[0]
    no_raw = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
    argv = [*no_raw, *command(host, "status", "--check")]
    result = host.run(argv, env=child_environment())
    assert (result.returncode, result.stderr) == (1, "")
    *rest, line = result.stdout.splitlines()
    assert line.startswith("bad  peers: they cannot be pinged: run this as root with CAP_NET_RAW")
    assert {each.split()[0] for each in rest} == {"ok"}


def test_check_of_many_down_hosts_takes_seconds(lab: Lab) -> None:
    """Checked one after the other, each host would take more than a second."""
    host = lab.hosts[0]
    gone = {f"10.1.{number}.0-24": f"172.31.0.{number}" for number in range(1, 255)}
    writer = EtcdWriter(lab)
    taken = set(leases(lab))
    gone = {name: address for name, address in gone.items() if name not in taken}
    writer.put_many({name: lease_value(address) for name, address in gone.items()})
    try:
        wait_until(lambda: len(host.status()["peers"]) == len(gone) + 2, "the routes")
        began = time.monotonic()
        found = findings(host)
        took = time.monotonic() - began
    finally:
        for name in gone:
            writer.delete(name)
    assert [each[:10] for each in found.values()] == ["host-down:"] * len(gone)
    assert took < len(gone) / 10


def test_check_reports_bad_settings_of_the_host(lab: Lab) -> None:
    host = lab.hosts[0]
    host.netns.sysctl("ipv4/ip_forward", 0)
    try:
        assert "sysctl -w net.ipv4.ip_forward=1" in findings(host)["ip_forward"]
    finally:
        host.netns.sysctl("ipv4/ip_forward", 1)


def test_check_reports_wrong_container_mtu_and_missing_bridge_settings(lab: Lab) -> None:
    host = lab.hosts[0]
    host.netns.sysctl("bridge/bridge-nf-call-iptables", 0)
    host.netns.set_link("c1", mtu=1500)
    try:
        lines = status(host, "--check").stdout.splitlines()
    finally:
        host.netns.sysctl("bridge/bridge-nf-call-iptables", 1)
        host.netns.set_link("c1", mtu=1472)
    (shown,) = [line for line in lines if line.startswith("bad")]
    assert shown.startswith("bad  docker0: containers send packets of up to 1500 bytes and the")
    (shown,) = [line for line in lines if line.startswith("note")]
    assert "sysctl -w net.bridge.bridge-nf-call-iptables=1" in shown


def test_check_reports_a_changed_network_config(lab: Lab) -> None:
    host, key = lab.hosts[0], f"{lab.prefix}/config"
    before = lab.etcdctl("get", "--print-value-only", key)
    lab.etcdctl("put", key, '{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":9000}}')
    try:
        wait_until(lambda: host.status()["config_changed"], "the change")
        changed = "Backend.Port is 9000, was 8285"
        assert f"the network config in etcd changed: {changed}; start the" in status(host).stdout
        assert metrics(host)["flannel_config_changed"] == 1
        found = findings(host)
    finally:
        lab.etcdctl("put", key, before)
    assert found == {
        "network config": f"config-changed: it changed in etcd: {changed}; start the daemon again"
        " to follow it"
    }
    wait_until(lambda: host.status()["config_changed"] is None, "the old config")
    assert metrics(host)["flannel_config_changed"] == 0


def test_both_hosts_with_one_public_ip_report_it(lab: Lab) -> None:
    """The second host takes the first one's subnet, and etcd sends no event about it."""
    first, _, second = lab.hosts
    assert second.stop_daemon() == 0
    second.subnet_file.unlink()
    second.start_daemon([f"--public-ip={first.address}"])
    assert second.subnet == first.subnet
    both = (first, second)
    sentence = f"another daemon uses PublicIP {first.address} too"
    wait_until(lambda: all(host.status()["public_ip_conflict"] for host in both), "the words", 30)
    assert findings(first)["PublicIP"].startswith(f"public-ip-conflict: {sentence}")
    for host in both:
        assert sentence in status(host).stdout
        assert metrics(host)["flannel_public_ip_conflict"] == 1
        assert len(log_lines(host, f"WARNING {sentence}")) == 1

    assert [host.stop_daemon() for host in both] == [0, 0]
    second.subnet_file.unlink()
    for host in both:
        host.start_daemon()
    assert first.subnet != second.subnet
    assert None not in lab.ping_matrix().values()
    assert [host.status()["public_ip_conflict"] for host in both] == [None, None]


# top


@pytest.fixture
def top(lab: Lab) -> Iterator[Terminal]:
    terminal = Terminal(command(lab.hosts[0], "top", "--interval=0.2"))
    yield terminal
    terminal.close()


def left_clean(terminal: Terminal) -> bool:
    """It leaves the alternate screen, shows the cursor and restores the settings."""
    ends = [terminal.output.rindex(code) for code in (b"\x1b[?1049l", b"\x1b[?25h")]
    begins = [terminal.output.rindex(code) for code in (b"\x1b[?1049h", b"\x1b[?25l")]
    return min(ends) > max(begins) and terminal.after() == terminal.before


def test_top_shows_live_traffic(lab: Lab, top: Terminal) -> None:
    host, peer = lab.hosts[0], lab.hosts[1]
    ping = ["ping", "-n", "-i", "0.002", "-s", "1000", str(peer.ping_address)]
    with host.containers[0].netns.popen(ping, stdout=subprocess.DEVNULL) as traffic:
        try:
            text = top.wait_for(lambda text: "█" in text, "traffic")
        finally:
            traffic.kill()
    assert "flannel-udp 0.1.0  ready" in text
    rows = [line for line in text.splitlines() if line.strip().startswith("172.30.0.")]
    assert len(rows) == 2
    assert rows[0].strip().startswith(str(peer.address)), "the busiest is not on top"
    assert "kB" in rows[0]
    top.process.send_signal(signal.SIGINT)
    assert top.finish() == 0
    assert left_clean(top)


@pytest.mark.parametrize("way", ["q", "SIGTERM"])
def test_top_restores_the_terminal(top: Terminal, way: str) -> None:
    top.wait_for(lambda text: "172.30.0.3" in text, "the peers")
    if way == "q":
        os.write(top.master, b"q")
    else:
        top.process.send_signal(signal.SIGTERM)
    assert top.finish() == 0
    assert left_clean(top)


def test_top_waits_for_a_stopped_daemon(lab: Lab, top: Terminal) -> None:
    top.wait_for(lambda text: "172.30.0.3" in text, "the peers")
    assert lab.hosts[0].stop_daemon() == 0
    top.wait_for(lambda text: "no daemon runs here" in text, "its absence")
    lab.hosts[0].start_daemon()
    top.wait_for(lambda text: "172.30.0.3" in text, "the peers again")
    os.write(top.master, b"q")
    assert top.finish() == 0
    assert left_clean(top)
