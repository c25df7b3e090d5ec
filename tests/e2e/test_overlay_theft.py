"""Programs behind a host's masquerading, and its users, reach for the overlay's own datagrams.

The second host masquerades its containers as docker does. A container there that sends from port
8285 to the first host gets, without our rules, the overlay's own 4-tuple in connection tracking.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from etcd_server import wait_until
from instruments import listen
from iptables_variants import VARIANTS, use_variant
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket
from scapy.layers.inet import IP, UDP

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.host import ANYWHERE, BRIDGE
from flannel_udp.lab.lab import Host, Lab

PORT = 8285
NFTABLES = "nftables"
RESYNC = "--iptables-resync=1"
OTHER_BRIDGE, OTHER_GATEWAY = "br-other", IPv4Interface("172.18.0.1/24")


@pytest.fixture(params=[*VARIANTS, NFTABLES])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What the daemons write their rules with; docker always uses iptables."""
    name = str(request.param)
    monkeypatch.setenv("PATH", use_variant(name if name in VARIANTS else "nft", tmp_path))
    return name


@pytest.fixture
def start_lab(make_lab: Callable[[Lab], Lab], tool: str) -> Callable[..., Lab]:
    """A lab whose second host also has a container on a network of its own; ``masquerade`` is where
    docker's rules for both go: -A behind all others or -I before them."""

    def start(*flags: str, masquerade: str | None = "-A") -> Lab:
        config = {"Network": "10.1.0.0/16", "EnableNFTables": tool == NFTABLES}
        path = {"PATH": os.environ["PATH"]}
        lab = make_lab(Lab(hosts=2, config=config, daemon_args=[RESYNC, *flags], daemon_env=path))
        if masquerade:
            masquerade_as_docker(lab.hosts[1], masquerade)
        return lab

    return start


def masquerade_as_docker(host: Host, how: str) -> None:
    for network, bridge in ((host.subnet, BRIDGE), (OTHER_GATEWAY.network, OTHER_BRIDGE)):
        iptables(host, "nat", f"{how} POSTROUTING -s {network} ! -o {bridge} -j MASQUERADE")


def iptables(host: Host, table: str, rule: str) -> None:
    host.run(["iptables", "-w", "20", "-t", table, *rule.split()], check=True)


@contextmanager
def foreign_container(host: Host) -> Iterator[Namespace]:
    """On another network of docker's, which is not of the overlay."""
    container = Namespace(f"{host.netns.name}-other")
    container.create()
    host.netns.add_bridge(OTHER_BRIDGE)
    host.netns.add_address(OTHER_BRIDGE, OTHER_GATEWAY)
    host.netns.add_veth("other", container, "eth0")
    host.netns.set_link("other", master=OTHER_BRIDGE)
    container.add_address("eth0", IPv4Interface((OTHER_GATEWAY.ip + 1, 24)))
    container.add_route(ANYWHERE, via=OTHER_GATEWAY.ip)
    try:
        yield container
    finally:
        container.delete()


@contextmanager
def thief(netns: Namespace, victim: Host) -> Iterator[socket.socket]:
    """Sends a byte from port 8285 to the other host's overlay."""
    with netns.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as stealing:
        stealing.bind(("0.0.0.0", PORT))
        stealing.setblocking(False)
        stealing.sendto(b"x", (str(victim.address), PORT))
        yield stealing


def forget_connections(host: Host) -> None:
    """As an idle while does."""

    def flush() -> None:
        with NFCTSocket() as conntrack:
            conntrack.flush()

    host.netns.call(flush)


def connections(host: Host, *words: str) -> list[str]:
    """Entries of connection tracking that contain all the words."""
    lines = host.run(["cat", "/proc/net/nf_conntrack"], check=True).stdout.splitlines()
    return [line for line in lines if all(word in line for word in words)]


def assert_overlay_is_whole(lab: Lab, stealing: socket.socket) -> None:
    """Everything that the first host sends reaches the second one's container."""
    one, other = lab.containers
    ping = ["ping", "-n", "-q", "-c", "10", "-i", "0.05", "-W", "2", str(other.address)]
    assert "10 received" in one.run(ping).stdout
    with pytest.raises(BlockingIOError):
        print("the container received", stealing.recv(2000))


@pytest.mark.parametrize("masquerade", ["-I", "-A"], ids=["docker first", "docker last"])
def test_no_container_takes_over_the_overlay(
    start_lab: Callable[..., Lab], masquerade: str
) -> None:
    lab = start_lab("--iptables-resync=3600", masquerade=masquerade)
    host = lab.hosts[1]
    # Without the guard the datagrams of the containers leave, as before a daemon's start.
    host.run(["nft", "flush", "chain", "ip", "flannel-ipv4", f"guard-{PORT}"])
    with foreign_container(host) as foreign:
        for container in (host.containers[0].netns, foreign):
            forget_connections(host)
            with thief(container, lab.hosts[0]) as stealing:
                assert connections(host, f"dst={host.address} sport={PORT} dport={PORT}")
                assert_overlay_is_whole(lab, stealing)


def test_no_container_sends_from_the_overlays_port(start_lab: Callable[..., Lab]) -> None:
    lab = start_lab()
    (target, host), (there, here) = lab.hosts, lab.containers
    with foreign_container(host) as foreign, listen(there, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        address = (str(there.address), listener.getsockname()[1])
        source = IP(src=str(here.address + 1), dst=address[0])
        forged = bytes(source / UDP(sport=7, dport=address[1]) / b"forged")
        forget_connections(host)
        for container in (here.netns, foreign):
            with thief(container, target) as injecting:
                injecting.sendto(forged, (str(target.address), PORT))
        with here.netns.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as client:
            client.sendto(b"ours", address)
        assert listener.recv(100) == b"ours"


def test_a_user_who_had_the_port_first_cannot_send_as_the_overlay(
    start_lab: Callable[..., Lab],
) -> None:
    """On another address; the daemon cannot take it from him."""
    lab = start_lab()
    target, host = lab.hosts
    host.stop_daemon()
    with sending_user(host, target) as user:
        assert user.stdin
        assert user.stdout
        assert user.stdout.readline() == "bound\n"
        host.start_daemon()
        user.stdin.close()
        assert user.stdout.readline() == "refused\n"


def sending_user(host: Host, target: Host) -> subprocess.Popen[str]:
    """A program without rights; it names our address as the source when its input ends."""
    program = """
import socket, struct, sys
ours, theirs = ((address, int(sys.argv[3])) for address in sys.argv[1:3])
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.bind(("127.0.0.1", ours[1]))
print("bound", flush=True)
sys.stdin.read()
source = struct.pack("=i4s4s", 0, socket.inet_aton(ours[0]), bytes(4))
try:
    sender.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, source)], 0, theirs)
    print("sent")
except PermissionError:
    print("refused")
"""
    user = ["setpriv", "--reuid=65534", "--clear-groups", "--", "/usr/bin/env", "python3"]
    command = [*user, "-c", program, str(host.address), str(target.address), str(PORT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return host.netns.popen(command, text=True, **pipes)


def test_nat_rules_of_others_do_not_change_the_overlay(start_lab: Callable[..., Lab]) -> None:
    lab = start_lab(masquerade=None)
    (target, host), container = lab.hosts, lab.containers[1].address
    everything = "-A POSTROUTING -o eth0 -j MASQUERADE --random-fully"
    published = f"-A PREROUTING -p udp --dport {PORT} -j DNAT --to-destination {container}:{PORT}"
    for rule in (everything, published):
        iptables(host, "nat", rule)
    for each in lab.hosts:
        forget_connections(each)
    with lab.containers[1].netns.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as stealing:
        stealing.bind(("0.0.0.0", PORT))
        stealing.setblocking(False)
        assert_overlay_is_whole(lab, stealing)
    assert connections(target, f"src={host.address}", f"sport={PORT} dport={PORT}")
    assert not [
        line for line in connections(target, "udp") if f"sport={PORT} dport={PORT}" not in line
    ]


def test_no_theft_with_forward_rules_off_after_idle_time(start_lab: Callable[..., Lab]) -> None:
    lab = start_lab("--iptables-forward-rules=false")
    host = lab.hosts[1]
    for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
        host.netns.sysctl(f"netfilter/{name}", 1)
    for _ in range(2):
        assert lab.ping(lab.containers[0], lab.containers[1]) is not None
        wait_until(lambda: not connections(host, f"port={PORT}"), "the overlay's entries expiring")
        with thief(host.containers[0].netns, lab.hosts[0]) as stealing:
            assert_overlay_is_whole(lab, stealing)


def test_a_theft_before_the_start_ends_with_it(start_lab: Callable[..., Lab]) -> None:
    lab = start_lab()
    host = lab.hosts[1]
    host.stop_daemon()
    forget_connections(host)
    with thief(host.containers[0].netns, lab.hosts[0]) as stealing:
        assert connections(host, f"dst={host.address} sport={PORT} dport={PORT}")
        host.start_daemon()
        assert_overlay_is_whole(lab, stealing)


def test_rules_that_another_program_removes_come_back(start_lab: Callable[..., Lab]) -> None:
    lab = start_lab()
    host = lab.hosts[1]
    before = own_rules(host)
    assert before
    host.run(["nft", "delete", "table", "ip", "flannel-ipv4"], check=True)
    for table in ("raw", "nat"):
        iptables(host, table, "-F")
    wait_until(lambda: own_rules(host) == before, "the rules being restored")
    masquerade_as_docker(host, "-A")
    forget_connections(host)
    with thief(host.containers[0].netns, lab.hosts[0]) as stealing:
        assert_overlay_is_whole(lab, stealing)
    assert host.stop_daemon() == 0
    assert own_rules(host) == []


def own_rules(host: Host) -> list[str]:
    saved = host.run(["iptables-save"], check=True).stdout.splitlines()
    saved += host.run(["nft", "-s", "list", "table", "ip", "flannel-ipv4"]).stdout.splitlines()
    return sorted(line for line in saved if "flanneld overlay" in line)
