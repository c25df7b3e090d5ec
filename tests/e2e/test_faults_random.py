"""Faults in any order, from a seed: two hosts keep forwarding, the others come and go.

``--faults-seconds`` and ``--faults-seed`` make it longer or repeat it: ``make soak-faults``.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from faults import CONFIG, DROP, RESET, await_agreement, cut_off, leases_in, no_packet_lost
from instruments import EtcdWriter, lease_value, unreachable

from flannel_udp.lab import Host, Lab

# What a daemon may use more after the run than after its first round.
MORE_THREADS, MORE_DESCRIPTORS, MORE_MEMORY = 8, 8, 24 << 20


class Fate:
    """What happens to the lab. Each fault is a context: it begins on entry and ends on exit."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab, self._random = lab, random.Random(seed)
        self._steady, self._others = lab.hosts[:2], lab.hosts[2:]

    def round(self) -> None:
        """Hosts that leave and return, are cut off or restart, and one fault of etcd itself."""
        chosen: list[tuple[str, Callable[[], AbstractContextManager[None]]]] = []
        if self._random.random() < 0.6:
            chosen.append(("leases change and the history is compacted", self._changed))
        for host in self._others:
            if self._random.random() < 0.4:
                chosen.append(self._leaving(host))
        for host in self._lab.hosts:
            if self._random.random() < 0.3:
                how = self._random.choice((DROP, RESET))
                chosen.append((f"{host.name} cut off by {how}", partial(cut_off, host, how)))
        if self._random.random() < 0.7:
            chosen.append(self._random.choice((("killed", self._killed), ("frozen", self._frozen))))
        for host in self._steady:
            if self._random.random() < 0.3:
                chosen.append((f"{host.name} executes itself again", partial(self._again, host)))
        pause = self._random.uniform(0.2, 3.0)
        print("; ".join(name for name, _ in chosen) or "nothing", f"for {pause:.1f} s", flush=True)
        with ExitStack() as faults:
            for _, fault in chosen:
                faults.enter_context(fault())
            time.sleep(pause)

    def _leaving(self, host: Host) -> tuple[str, Callable[[], AbstractContextManager[None]]]:
        how = self._random.choice(("stopped", "crashed", "revoked"))
        early = self._random.random() < 0.5
        return f"{host.name} {how}", partial(self._away, host, how, early)

    @contextmanager
    def _away(self, host: Host, how: str, early: bool) -> Iterator[None]:
        """``early``: it starts again while the other faults of the round last."""
        assert host.daemon
        if how == "stopped":
            assert host.stop_daemon() == 0
        elif how == "crashed":
            host.kill_daemon()
        else:
            name = str(host.subnet).replace("/", "-")
            self._lab.etcdctl("del", f"{self._lab.prefix}/subnets/{name}")
            assert host.daemon.wait(30) == 1
        if early:
            host.start_daemon(wait=False)
        yield
        if not early:
            host.start_daemon(wait=False)
        host.wait_until_ready(60)

    @contextmanager
    def _again(self, host: Host) -> Iterator[None]:
        """A restart that forwards throughout, whatever else fails at the time."""
        assert host.daemon
        host.daemon.send_signal(signal.SIGUSR2)
        yield
        host.wait_until_ready(60)

    @contextmanager
    def _changed(self) -> Iterator[None]:
        writer = EtcdWriter(self._lab)
        names = [f"10.1.{self._random.randint(130, 250)}.0-24" for _ in range(20)]
        for name in names:
            writer.put(name, lease_value(f"172.30.0.{self._random.randint(100, 200)}"))
        self._lab.etcdctl("compact", str(writer.delete(names[0])))
        yield

    @contextmanager
    def _killed(self) -> Iterator[None]:
        self._lab.etcd.kill()
        yield
        self._lab.etcd.start()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        self._lab.etcd.pause()
        yield
        self._lab.etcd.resume()


def usage(host: Host) -> tuple[int, int, int]:
    """Threads, descriptors and bytes of memory of a daemon."""
    assert host.daemon
    process = Path(f"/proc/{host.daemon.pid}")
    pages = int((process / "statm").read_text().split()[1])
    return (
        len(os.listdir(process / "task")),
        len(os.listdir(process / "fd")),
        pages * os.sysconf("SC_PAGE_SIZE"),
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
        before: list[tuple[int, int, int]] = []
        try:
            with no_packet_lost(steady):
                while time.monotonic() < end:
                    fate.round()
                    check(lab)
                    before = before or [usage(host) for host in steady]
        finally:
            for host in lab.hosts:
                print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
        for host, (threads, descriptors, memory) in zip(steady, before, strict=True):
            after = usage(host)
            print(f"{host.name} used {(threads, descriptors, memory)}, then {after}")
            assert after[0] <= threads + MORE_THREADS
            assert after[1] <= descriptors + MORE_DESCRIPTORS
            assert after[2] <= memory + MORE_MEMORY
        for host in lab.hosts:
            assert host.stop_daemon(signal.SIGTERM) == 0
            assert "Traceback" not in host.log_path.read_text()
