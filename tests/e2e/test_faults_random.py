"""Random faults from a seed: two hosts keep forwarding while the daemons of the others restart, and
hostile clients run beside them.

``--faults-seconds`` sets the duration, ``--faults-seed`` repeats a run: ``make soak-faults``. The
test of a long outage, which needs a minute but little CPU, runs meanwhile in another lab.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest
from etcd_server import wait_until
from faults import CONFIG, RECOVER_WITHIN, await_agreement, leases_in, no_packet_lost
from hostile_clients import hostile_neighbourhood
from instruments import HEALTH_FLAGS, health, unreachable
from long_outage import LongOutage
from random_faults import RandomFaults

from flannel_udp.lab.lab import Host, Lab

# How much more a process may use than after its first two rounds. It has all its threads and
# descriptors by then; its memory still grows a little for some minutes.
MORE_THREADS, MORE_DESCRIPTORS = 1, 1
MORE_MEMORY, MORE_MEMORY_A_ROUND = 1 << 20, 150 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """Threads, descriptors and resident bytes of a daemon's process."""

    threads: int
    descriptors: int
    memory: int

    @classmethod
    def of(cls, host: Host) -> Usage:
        assert host.daemon
        process = Path(f"/proc/{host.daemon.pid}")
        pages = int((process / "statm").read_text().split()[1])
        return cls(
            len(os.listdir(process / "task")),
            len(os.listdir(process / "fd")),
            pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def __or__(self, other: Usage) -> Usage:
        """The maximum of each."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(max(pair) for pair in pairs))

    def has_grown_since(self, first: Usage, rounds: int) -> bool:
        return (
            self.threads > first.threads + MORE_THREADS
            or self.descriptors > first.descriptors + MORE_DESCRIPTORS
            or self.memory > first.memory + MORE_MEMORY + rounds * MORE_MEMORY_A_ROUND
        )


class UsageRecord:
    """What every daemon's process used after its first two rounds, to compare later rounds with."""

    def __init__(self) -> None:
        self._first: dict[Host, Usage] = {}
        self._starts: dict[Host, int] = {}
        self._rounds: dict[Host, int] = defaultdict(int)

    def check(self, host: Host, starts: int) -> None:
        """Waits until the usage is below its bound, because a peak is no leak. Another number of
        ``starts`` than before means a new process, which is recorded again."""
        if self._starts.get(host) != starts:
            self._starts[host], self._first[host], self._rounds[host] = starts, Usage.of(host), 0
            return
        self._rounds[host] += 1
        first, rounds = self._first[host], self._rounds[host]
        if rounds == 1:  # some of its threads come and go
            self._first[host] = first | Usage.of(host)
            return
        wait_until(
            lambda: not Usage.of(host).has_grown_since(first, rounds),
            f"{host.name} having little more than {first}, {rounds} rounds later,",
            RECOVER_WITHIN,
        )

    def __str__(self) -> str:
        return "\n".join(
            f"{host.name}: {first}, {self._rounds[host]} rounds later {Usage.of(host)}"
            for host, first in self._first.items()
        )


def check(lab: Lab) -> None:
    """All hosts agree with etcd, no subnet has two owners and everybody reaches everybody."""
    await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
    subnets = list(leases_in(lab.etcdctl, lab.prefix))
    assert not [pair for pair in itertools.combinations(subnets, 2) if pair[0].overlaps(pair[1])]
    assert len({host.subnet for host in lab.hosts}) == len(lab.hosts)
    assert unreachable(lab) == []


def test_all_hosts_agree_after_faults_in_any_order(
    network_rights: None, pytestconfig: pytest.Config
) -> None:
    seconds: float = pytestconfig.getoption("faults_seconds")
    seed: int = pytestconfig.getoption("faults_seed")
    print(f"--faults-seed={seed}")
    with Lab(hosts=4, config=CONFIG, daemon_args=HEALTH_FLAGS) as lab:
        steady = lab.hosts[:2]
        faults, end = RandomFaults(lab, seed), time.monotonic() + seconds
        usage = UsageRecord()
        try:
            with no_packet_lost(steady):
                while time.monotonic() < end:
                    with hostile_neighbourhood(lab):
                        faults.round()
                        check(lab)
                        assert [health(host, "/readyz")[0] for host in lab.hosts] == [200] * 4
                    for host in lab.hosts:
                        usage.check(host, faults.starts[host])
        finally:
            for host in lab.hosts:
                print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
        print(f"{usage}\n{faults.missed_compactions} compactions while a host was cut off")
        for host in lab.hosts:
            assert host.stop_daemon(signal.SIGTERM) == 0
            assert "Traceback" not in host.log_path.read_text()


@pytest.fixture(scope="module", autouse=True)
def outage(
    network_rights: None, request: pytest.FixtureRequest
) -> Iterator[tuple[LongOutage, Future[None]] | None]:
    """Starts the outage with the first test of this module, if its own test is selected."""
    wanted = test_outage_of_a_minute_logs_little_and_loses_nothing
    if not any(item.name == wanted.__name__ for item in request.session.items):
        yield None
        return
    outage = LongOutage()
    with ThreadPoolExecutor(1) as executor:
        yield outage, executor.submit(outage.run)
        outage.stop()


def test_outage_of_a_minute_logs_little_and_loses_nothing(
    outage: tuple[LongOutage, Future[None]],
) -> None:
    """In real time; the tests of retry.py cover ten minutes with a simulated clock."""
    running, future = outage
    try:
        future.result(timeout=180)
    finally:
        print("\n".join(running.report))
