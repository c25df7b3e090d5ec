"""Faults in any order, from a seed: two hosts keep forwarding, the others come and go.

``--faults-seconds`` and ``--faults-seed`` make it longer or repeat it: ``make soak-faults``. What
takes a minute and leaves the processors alone, a long outage, passes meanwhile in another lab.
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
from fate import Fate
from faults import CONFIG, RECOVER_WITHIN, await_agreement, leases_in, no_packet_lost
from instruments import unreachable
from minute import Minute

from flannel_udp.lab.lab import Host, Lab

# What a process may use more than after its first two rounds. It has all its threads and
# descriptors by then; memory fills up a little for some minutes.
MORE_THREADS, MORE_DESCRIPTORS = 1, 1
MORE_MEMORY, MORE_MEMORY_A_ROUND = 1 << 20, 150 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """What a daemon's process has: of memory, the resident bytes."""

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
        """The most of each."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(max(pair) for pair in pairs))

    def has_grown_since(self, first: Usage, rounds: int) -> bool:
        return (
            self.threads > first.threads + MORE_THREADS
            or self.descriptors > first.descriptors + MORE_DESCRIPTORS
            or self.memory > first.memory + MORE_MEMORY + rounds * MORE_MEMORY_A_ROUND
        )


class Accounts:
    """What every process used, after its first two rounds and in later ones."""

    def __init__(self) -> None:
        self._first: dict[Host, Usage] = {}
        self._starts: dict[Host, int] = {}
        self._rounds: dict[Host, int] = defaultdict(int)

    def settle(self, host: Host, starts: int) -> None:
        """``starts`` tells whether it is the same process as before. What grows over the rounds
        stays above the bound; what is only there for the moment does not."""
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


def test_faults_in_any_order_end_in_agreement_and_cost_the_steady_hosts_no_packet(
    network_rights: None, pytestconfig: pytest.Config
) -> None:
    seconds: float = pytestconfig.getoption("faults_seconds")
    seed: int = pytestconfig.getoption("faults_seed")
    print(f"--faults-seed={seed}")
    with Lab(hosts=4, config=CONFIG) as lab:
        steady = lab.hosts[:2]
        fate, end = Fate(lab, seed), time.monotonic() + seconds
        accounts = Accounts()
        try:
            with no_packet_lost(steady):
                while time.monotonic() < end:
                    fate.round()
                    check(lab)
                    for host in lab.hosts:
                        accounts.settle(host, fate.starts[host])
        finally:
            for host in lab.hosts:
                print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
        print(f"{accounts}\n{fate.compactions_unheard} compactions while a host was cut off")
        for host in lab.hosts:
            assert host.stop_daemon(signal.SIGTERM) == 0
            assert "Traceback" not in host.log_path.read_text()


@pytest.fixture(scope="module", autouse=True)
def minute(
    network_rights: None, request: pytest.FixtureRequest
) -> Iterator[tuple[Minute, Future[None]] | None]:
    """It begins with this module, if its test is among those that run."""
    wanted = test_a_minute_without_etcd_fills_no_log_and_a_claim_in_old_data_wins_after_it
    if not any(item.name == wanted.__name__ for item in request.session.items):
        yield None
        return
    minute = Minute()
    with ThreadPoolExecutor(1) as beside:
        yield minute, beside.submit(minute.pass_by)
        minute.stop()


def test_a_minute_without_etcd_fills_no_log_and_a_claim_in_old_data_wins_after_it(
    minute: tuple[Minute, Future[None]],
) -> None:
    """A real one. retry.py's tests have ten, by a clock of their own."""
    passing, future = minute
    try:
        future.result(timeout=180)
    finally:
        print("\n".join(passing.report))
