"""Masquerading and forwarding, observed from containers and from a host outside the overlay."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network

import pytest
from etcd_server import wait_until
from instruments import connect, listen, log_lines, same_to_both, seen_by_both
from iptables_variants import VARIANTS, use_variant

from flannel_udp.host.kernel_routes import BLACKHOLE_METRIC
from flannel_udp.lab.host import BRIDGE
from flannel_udp.lab.lab import UNDERLAY, Container, Host, Lab

FLAGS = ("--ip-masq", "--iptables-resync=1", "--ip-blackhole-route")
NFTABLES = "nftables"


@pytest.fixture(scope="module", params=[*VARIANTS, NFTABLES])
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def masq_lab(
    network_rights: None, tool: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Two hosts with the FORWARD policy DROP, as docker sets it."""
    path = use_variant(tool if tool in VARIANTS else "nft", tmp_path_factory.mktemp("path"))
    config = {"Network": "10.1.0.0/16", "EnableNFTables": tool == NFTABLES}
    lab = Lab(
        hosts=2, config=config, daemon_args=FLAGS, daemon_env={"PATH": path}, start_daemons=False
    )
    with lab, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        if tool != NFTABLES:
            for host in lab.hosts:
                host.run(["iptables", "-w", "20", "-P", "FORWARD", "DROP"], check=True)
        lab.start_daemons()
        assert None not in lab.ping_matrix().values()
        yield lab


def rules(host: Host) -> list[str]:
    """All rules of flannel's chains in the host, without counters."""
    lines = host.run(["iptables-save"], check=True).stdout.splitlines()
    listing = host.run(["nft", "-s", "list", "table", "ip", "flannel-ipv4"]).stdout
    for chain in sorted(listing.split("\tchain ")):  # one that is written again comes last
        lines += chain.splitlines()
    return [line for line in lines if "flannel" in line.lower()]


def outside_listener(lab: Lab) -> socket.socket:
    """A TCP server on a host outside the overlay, which has no route into it."""

    def open_there() -> socket.socket:
        return socket.create_server((str(UNDERLAY.ip), 0))

    return lab.switch.call(open_there)


def test_packets_that_leave_the_overlay_are_masqueraded(masq_lab: Lab) -> None:
    with outside_listener(masq_lab) as server:
        server.settimeout(10)
        for host in masq_lab.hosts:
            with connect(host.containers[0], UNDERLAY.ip, server.getsockname()[1]) as client:
                accepted, peer = server.accept()
                with accepted:
                    assert peer[0] == str(host.address)
                    client.sendall(b"there")
                    assert accepted.recv(5) == b"there"
                    accepted.sendall(b"back")
                    assert client.recv(4) == b"back"


def test_nothing_inside_the_overlay_is_masqueraded(masq_lab: Lab) -> None:
    one, other = masq_lab.containers
    for client, server in ((one, other), (other, one)):
        assert seen_by_both(client, server, server.address) == same_to_both(
            client.address, server.address
        )
    for host, far in zip(masq_lab.hosts, (other, one), strict=True):
        assert host.subnet
        tunnel = host.subnet.network_address
        assert seen_by_both(host, far, far.address) == same_to_both(tunnel, far.address)
        assert seen_by_both(far, host, tunnel) == same_to_both(far.address, tunnel)


@contextmanager
def routed_outside(lab: Lab, network: IPv4Network) -> Iterator[None]:
    """The host outside the overlay uses the first host as its gateway to the network."""
    lab.switch.add_route(network, via=lab.hosts[0].address)
    yield
    lab.switch.run(["ip", "route", "del", str(network)], check=True)


def test_outside_host_reaches_local_containers_with_its_own_address(masq_lab: Lab) -> None:
    (host, _), (here, _) = masq_lab.hosts, masq_lab.containers
    assert host.subnet
    with routed_outside(masq_lab, host.subnet), listen(here, socket.SOCK_STREAM) as server:
        address = (str(here.address), server.getsockname()[1])
        with masq_lab.switch.call(lambda: socket.create_connection(address, timeout=10)):
            accepted, peer = server.accept()
            accepted.close()
    assert peer[0] == str(UNDERLAY.ip)


def test_outside_host_reaches_remote_containers_masqueraded_as_its_gateway(masq_lab: Lab) -> None:
    """Otherwise the answers would take another path than through the tunnel."""
    (host, other), (_, there) = masq_lab.hosts, masq_lab.containers
    assert host.subnet
    assert other.subnet
    with routed_outside(masq_lab, other.subnet), listen(there, socket.SOCK_STREAM) as server:
        address = (str(there.address), server.getsockname()[1])
        with masq_lab.switch.call(lambda: socket.create_connection(address, timeout=10)) as client:
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(b"back")
                assert client.recv(4) == b"back"
    assert peer[0] == str(host.subnet.network_address)


@pytest.mark.parametrize("mark", [None, 0x4000, 0x4001, 0x8000])
def test_packets_marked_by_kube_proxy_are_not_masqueraded(masq_lab: Lab, mark: int | None) -> None:
    (host, _), (here, _) = masq_lab.hosts, masq_lab.containers
    is_left = bool(mark and mark & 0x4000)
    assert host.subnet
    with (
        marked(host, here, mark),
        routed_outside(masq_lab, host.subnet),
        masq_lab.switch.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as server,
        here.netns.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as client,
    ):
        server.bind((str(UNDERLAY.ip), 0))
        server.settimeout(10)
        client.sendto(b"x", server.getsockname())
        _, source = server.recvfrom(1)
    assert source[0] == str(here.address if is_left else host.address)


@contextmanager
def marked(host: Host, container: Container, mark: int | None) -> Iterator[None]:
    """Marks what the container sends, as kube-proxy's rules would."""
    chain = "{ type filter hook prerouting priority mangle; }"
    rule = f"ip saddr {container.address} meta mark set {mark or 0}"
    rules = f"add table ip test; add chain ip test only {chain}; add rule ip test only {rule}"
    host.run(["nft", rules], check=True)
    yield
    host.run(["nft", "delete table ip test"], check=True)


def test_packet_for_an_unused_address_is_dropped_by_the_blackhole(masq_lab: Lab) -> None:
    """Without a bridge the packet would be routed back into the tunnel."""
    (host, _), (_, there) = masq_lab.hosts, masq_lab.containers
    assert host.subnet
    nobody = host.subnet.network_address + 99

    def returned() -> int:
        """How many of three packets to an unused address are routed back into the tunnel."""
        before = host.status()["stats"]["tun_read_packets"]
        output = there.run(["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", str(nobody)]).stdout
        assert " 0 received" in output
        return int(host.status()["stats"]["tun_read_packets"] - before)

    blackhole = ["blackhole", str(host.subnet), "metric", str(BLACKHOLE_METRIC)]
    host.netns.set_link(BRIDGE, state="down")
    try:
        assert returned() == 0
        host.run(["ip", "route", "del", *blackhole], check=True)
        assert returned() >= 3
        host.run(["ip", "route", "add", *blackhole], check=True)
    finally:
        host.netns.set_link(BRIDGE, state="up")


def test_repair_of_rules_loses_no_packet(masq_lab: Lab, tool: str) -> None:
    """One of the two rules that accept a packet is repeatedly removed and restored."""
    host, (one, other) = masq_lab.hosts[0], masq_lab.containers
    before = rules(host)
    damage = ["iptables", "-w", "20", "-D", "FLANNEL-FWD", "1"]
    if tool == NFTABLES:
        damage = ["nft", "flush", "chain", "ip", "flannel-ipv4", "postrtg-8285"]
    ping = ["ping", "-n", "-q", "-i", "0.01", "-c", "250", "-W", "5", str(other.address)]
    repairs = 0
    with one.netns.popen(ping, stdout=subprocess.PIPE, text=True) as pinging:
        while pinging.poll() is None:
            host.run(damage, check=True)
            wait_until(lambda: rules(host) == before, "the rules being restored")
            repairs += 1
        summary, _ = pinging.communicate(timeout=30)
    assert "250 packets transmitted, 250 received" in summary
    assert repairs


def test_restart_after_a_kill_takes_over_the_rules(masq_lab: Lab) -> None:
    host = masq_lab.hosts[0]
    before = rules(host)
    assert before
    host.kill_daemon()
    assert rules(host) == before
    host.start_daemon()
    assert rules(host) == before
    assert None not in masq_lab.ping_matrix().values()
    blackhole = f"blackhole {host.subnet}"
    assert blackhole in host.run(["ip", "route"]).stdout
    assert host.stop_daemon() == 0
    assert rules(host) == []
    assert blackhole not in host.run(["ip", "route"]).stdout
    host.start_daemon()


def test_status_names_the_tool(masq_lab: Lab, tool: str) -> None:
    words = {"nft": "iptables v", "legacy": "(legacy)", NFTABLES: "nftables v"}
    for host in masq_lab.hosts:
        report = host.status()["firewall"]
        assert words[tool] in report["tool"]
        assert (report["masquerade"], report["forward"], report["problems"]) == (True, True, [])


# What would be without


@pytest.fixture
def plain_lab(make_lab: Callable[[Lab], Lab]) -> Lab:
    return make_lab(Lab(hosts=2, daemon_args=["--iptables-resync=1"]))


def test_without_the_flags_nothing_is_masqueraded_or_accepted(plain_lab: Lab) -> None:
    host, other = plain_lab.hosts
    assert plain_lab.ping(host.containers[0], UNDERLAY.ip, wait=1) is None
    assert "FLANNEL-POSTRTG" not in "".join(rules(host))
    assert plain_lab.ping(host.containers[0], other.containers[0]) is not None
    host.stop_daemon()
    host.run(["iptables", "-P", "FORWARD", "DROP"], check=True)
    host.start_daemon(["--iptables-forward-rules=false"])
    assert "flanneld forward" not in "".join(rules(host))
    assert plain_lab.ping(host.containers[0], other.containers[0], wait=1) is None
    (problem,) = host.status()["firewall"]["problems"]
    assert "nothing there accepts 10.1.0.0/16" in problem


def test_log_warns_that_nftables_cannot_overrule_dockers_drop(
    make_lab: Callable[[Lab], Lab],
) -> None:
    config = {"Network": "10.1.0.0/16", "EnableNFTables": True}
    lab = make_lab(Lab(hosts=1, config=config, start_daemons=False))
    (host,) = lab.hosts
    host.run(["iptables", "-P", "FORWARD", "DROP"], check=True)
    host.start_daemon()
    assert len(log_lines(host, "WARNING", "nftables rule cannot overrule it")) == 1
    assert "cannot overrule it" in host.status()["firewall"]["problems"][0]
