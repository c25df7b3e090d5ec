"""A host that joins 10,000 or 65,536 others can reach each of them right after its start."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from instruments import EtcdWriter, lease_value, log_lines
from starvation import Starvation

from flannel_udp.lab.lab import Host, Lab

CONFIG = '{"Network":"10.0.0.0/7","SubnetLen":24,"Backend":{"Type":"udp"}}'
TMPFS = Path("/dev/shm")  # for etcd's data: the disk is not what is measured
PORT = 8285
ETH_P_ALL = 3
FIRST_SUBNET, FIRST_HOST = IPv4Address("10.8.0.0"), IPv4Address("172.31.0.1")


def subnet_of(number: int) -> IPv4Address:
    return FIRST_SUBNET + 256 * number


def host_of(number: int) -> IPv4Address:
    """The gateway of all hosts in the lab."""
    return FIRST_HOST + number


@pytest.fixture(scope="module")
def empty_lab(network_rights: None) -> Iterator[Lab]:
    """One host whose daemon is not started yet."""
    with (
        TemporaryDirectory(dir=TMPFS) as data,
        Lab(hosts=1, config=CONFIG, start_daemons=False, etcd_data=Path(data, "etcd")) as lab,
    ):
        yield lab


def fill(lab: Lab, count: int) -> None:
    """Writes leases until so many other hosts have one."""
    known = len(lab.etcdctl("get", "--prefix", "--keys-only", f"{lab.prefix}/subnets/").split())
    names = {f"{subnet_of(n)}-24": lease_value(str(host_of(n))) for n in range(known, count)}
    EtcdWriter(lab).put_many(names)


class Arrivals:
    """Records in a thread when each outer destination was first seen on the underlay."""

    def __init__(self, lab: Lab, wanted: set[IPv4Address]) -> None:
        self.first_seen: dict[IPv4Address, float] = {}
        self.complete = threading.Event()
        self._wanted = wanted

        def open_there() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            sniffer.bind(("underlay", ETH_P_ALL))
            sniffer.settimeout(0.1)
            return sniffer

        self._socket = lab.switch.call(open_there)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                packet = self._socket.recv(2048)
            except TimeoutError:
                continue
            if packet[9] != socket.IPPROTO_UDP or int.from_bytes(packet[22:24], "big") != PORT:
                continue
            target = IPv4Address(packet[16:20])
            if target in self._wanted and target not in self.first_seen:
                self.first_seen[target] = time.monotonic()
                if len(self.first_seen) == len(self._wanted):
                    self.complete.set()


def knock_until(stop: threading.Event, host: Host, numbers: list[int]) -> None:
    """Sends repeatedly to a container of each of these hosts."""
    with host.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as out:
        while not stop.wait(0.01):
            for number in numbers:
                out.sendto(b"knock", (str(subnet_of(number) + 2), 9))


def resident_megabytes(pid: int) -> float:
    """The peak resident memory of the process (VmHWM, see proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise AssertionError("no VmHWM")


def start_and_measure(lab: Lab, count: int) -> tuple[float, float]:
    """Seconds until a packet had left for each of fifty hosts, and the megabytes it took."""
    host = lab.hosts[0]
    chance = random.Random(8285)
    numbers = [0, count - 1, *chance.sample(range(1, count - 1), 48)]
    arrivals = Arrivals(lab, {host_of(number) for number in numbers})
    stop = threading.Event()
    knocking = threading.Thread(target=knock_until, args=(stop, host, numbers))
    knocking.start()
    with Starvation(host) as starvation:
        try:
            started = time.monotonic()
            host.start_daemon(wait=False)
            assert arrivals.complete.wait(60), "no packet left for some of the hosts"
        finally:
            stop.set()
            knocking.join()
            arrivals.stop()
        host.wait_until_ready()
        assert host.daemon
        reached = starvation.net_duration(started, max(arrivals.first_seen.values()))
        return reached, resident_megabytes(host.daemon.pid)


@pytest.mark.parametrize(("count", "within", "megabytes"), [(10_000, 1.5, 120), (65_536, 6, 180)])
def test_packets_leave_for_all_hosts_right_after_the_start(
    empty_lab: Lab, count: int, within: float, megabytes: float
) -> None:
    host = empty_lab.hosts[0]
    fill(empty_lab, count)
    seconds, memory = start_and_measure(empty_lab, count)
    print(f"packets left for all after {seconds:.2f} s; at most {memory:.0f} MB resident")
    assert log_lines(host, f"{count} routes")
    assert host.stop_daemon() == 0
    empty_lab.etcdctl("del", f"{empty_lab.prefix}/subnets/{str(host.subnet).replace('/', '-')}")
    assert seconds < within
    assert memory < megabytes
