"""What one sender floods takes nothing from the others."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from etcd_server import wait_until
from instruments import log_lines
from streams import Stream

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import UNDERLAY, Host, Lab

PORT = 8285
FLOOD = Path(__file__).with_name("flood.py")
SECONDS = 3.0

# Fast enough for any rate limit, and slow enough for the worker to read every packet.
SCAN = """
import itertools, socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    print("scanning", flush=True)
    for number in itertools.count():
        try:
            out.sendto(b"anybody there?", (f"10.1.250.{number % 250 + 1}", 9))
        except OSError:
            pass
        if number % 20 == 0:
            time.sleep(0.002)
"""


@pytest.fixture(scope="module")
def pair(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2, containers=2) as lab:
        assert None not in lab.ping_matrix().values()
        yield lab


def stats(host: Host) -> dict[str, int]:
    found: dict[str, int] = host.status()["stats"]
    return found


@contextmanager
def flood(netns: Namespace, *arguments: object) -> Iterator[list[int]]:
    """Yields a list, which then has the number of datagrams sent."""
    command = [sys.executable, str(FLOOD), *map(str, arguments)]
    sent: list[int] = []
    with netns.popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "flooding\n"
            yield sent
            process.terminate()
            sent.append(int(process.stdout.readline()))
        finally:
            process.kill()


@pytest.mark.parametrize("whose", ["a program's on a member", "a stranger's from the same port"])
def test_a_flood_takes_no_receive_buffer_from_peers(pair: Lab, whose: str) -> None:
    target, member = pair.hosts
    of_member = whose == "a program's on a member"
    source, ports = (member.address, (0, 0)) if of_member else (UNDERLAY.ip, (PORT, 0))
    reasons = ["drop_udp_wrong_port", "drop_udp_not_ip", "drop_udp_flood", "udp_overflows"]
    before = stats(target)
    stream = Stream(member.containers[0], target.containers[0], 0.001)
    with ExitStack() as floods:
        sent = [
            floods.enter_context(
                flood(
                    member.netns if of_member else pair.switch, target.address, PORT, source, port
                )
            )
            for port in ports
        ]
        stream.start()
        time.sleep(SECONDS)
        stream.stop()
        stream.finish()
    total = sum(each for (each,) in sent)

    def counted() -> dict[str, int]:
        return {name: stats(target)[name] - before[name] for name in reasons}

    wait_until(lambda: sum(counted().values()) >= total, "everything being counted")
    # What the buffer did not hold may be the stream's.
    assert sum(counted().values()) <= total + counted()["udp_overflows"]
    assert counted()["drop_udp_flood"] > total * 0.9
    assert counted()["udp_overflows"] < total / 1000
    assert stream.sent - len(set(stream.received)) <= counted()["udp_overflows"]
    assert log_lines(target, "refused a ", f" from {source}")


def test_after_a_flood_refused_datagrams_are_read_and_counted_again(pair: Lab) -> None:
    target, member = pair.hosts
    with flood(member.netns, target.address, PORT, member.address, 0):
        wait_until(lambda: stats(target)["drop_udp_flood"] > 10_000, "the filter")

    def is_read() -> bool:
        assert pair.ping(member.containers[0], target.containers[0]) is not None  # wakes the worker
        before = stats(target)["drop_udp_wrong_port"]
        with member.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(b"?", (str(target.address), PORT))
        assert pair.ping(member.containers[0], target.containers[0]) is not None
        return stats(target)["drop_udp_wrong_port"] == before + 1

    wait_until(is_read, "the filter being gone")


def test_a_container_that_scans_leaves_icmp_answers_to_the_others(pair: Lab) -> None:
    scanner, other = pair.hosts[0].containers
    command = [sys.executable, "-c", SCAN]
    with scanner.netns.popen(command, stdout=subprocess.PIPE, text=True) as scan:
        try:
            assert scan.stdout
            assert scan.stdout.readline() == "scanning\n"
            suppressed = stats(pair.hosts[0])["icmp_suppressed"]
            wait_until(
                lambda: stats(pair.hosts[0])["icmp_suppressed"] > suppressed + 2000, "the limit"
            )
            ping = other.run(["ping", "-n", "-c", "20", "-i", "0.05", "-W", "1", "10.1.250.7"])
        finally:
            scan.kill()
    assert len(re.findall("Destination Net Unreachable", ping.stdout)) == 20
