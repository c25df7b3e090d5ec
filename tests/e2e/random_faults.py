"""Random faults that overlap: each begins and ends at a random moment of a round."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from faults import DROP, RESET, cut_off
from instruments import EtcdWriter, lease_value

from flannel_udp.lab.lab import Host, Lab

LONGEST_PAUSE = 0.6  # seconds between two steps


@dataclass(frozen=True, slots=True)
class Fault:
    """``make`` returns a block that begins the fault on entry and ends it on exit."""

    name: str
    make: Callable[[], AbstractContextManager[None]]
    may_begin: Callable[[], bool] = lambda: True
    may_end: Callable[[], bool] = lambda: True


class RandomFaults:
    """Faults chosen by a seed. The first host's daemon runs throughout, the second one executes
    itself again in some rounds, and the others stop and start."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab, self._random = lab, random.Random(seed)
        self._etcd_serves = True
        self._cut: set[Host] = set()
        self._restarted: set[Host] = set()
        self.starts = dict.fromkeys(lab.hosts, 1)  # of the program, so far
        self.missed_compactions = 0  # while at least one host was cut off

    def round(self) -> None:
        """Returns when every fault is over and every daemon is ready."""
        waiting, running = self._choose_faults(), list[tuple[Fault, ExitStack]]()
        while waiting or running:
            begins = [fault for fault in waiting if fault.may_begin()]
            ends = [each for each in running if each[0].may_end()]
            # At 0.7 most faults overlap.
            if begins and (not ends or self._random.random() < 0.7):
                fault, stack = self._random.choice(begins), ExitStack()
                print(f"[{fault.name}", end=" ", flush=True)
                waiting.remove(fault)
                stack.enter_context(fault.make())
                running.append((fault, stack))
            else:
                fault, stack = self._random.choice(ends)
                print(f"{fault.name}]", end=" ", flush=True)
                running.remove((fault, stack))
                stack.close()
            time.sleep(self._random.uniform(0, LONGEST_PAUSE))
        print(flush=True)
        for host in self._lab.hosts:
            if host in self._restarted:
                host.wait_until_ready(60)
        self._restarted.clear()

    def _choose_faults(self) -> list[Fault]:
        chosen = []
        second, *others = self._lab.hosts[1:]
        if self._random.random() < 0.7:
            chosen.append(Fault("compaction", self._compacted, lambda: self._etcd_serves))
        if self._random.random() < 0.7:
            how = self._random.choice((self._killed, self._frozen))
            chosen.append(Fault(how.__name__.strip("_"), how))
        if self._random.random() < 0.4:
            chosen.append(Fault(f"{second.name} reexecuted", partial(self._reexecuted, second)))
        for host in others:
            if self._random.random() < 0.5:
                chosen.append(self._daemon_fault(host))
        for host in self._lab.hosts:
            if self._random.random() < 0.35:
                rule = self._random.choice((DROP, RESET))
                name = f"{host.name} {rule.split()[0]}"
                chosen.append(Fault(name, partial(self._cut_off, host, rule)))
        return chosen

    def _daemon_fault(self, host: Host) -> Fault:
        how = self._random.choice((self._stopped, self._crashed, self._revoked))
        name = f"{host.name} {how.__name__.strip('_')}"
        if how == self._revoked:
            # The daemon must reach etcd to learn of it.
            return Fault(
                name,
                partial(how, host),
                lambda: self._etcd_serves,
                lambda: self._etcd_serves and host not in self._cut,
            )
        return Fault(name, partial(how, host))

    @contextmanager
    def _cut_off(self, host: Host, rule: str) -> Iterator[None]:
        with cut_off(host, rule):
            self._cut.add(host)
            yield
        self._cut.remove(host)

    @contextmanager
    def _stopped(self, host: Host) -> Iterator[None]:
        assert host.stop_daemon() == 0
        yield
        self._start(host)

    @contextmanager
    def _crashed(self, host: Host) -> Iterator[None]:
        host.kill_daemon()
        yield
        self._start(host)

    @contextmanager
    def _revoked(self, host: Host) -> Iterator[None]:
        assert host.daemon
        name = str(host.subnet).replace("/", "-")
        self._lab.etcdctl("del", f"{self._lab.prefix}/subnets/{name}")
        yield
        assert host.daemon.wait(30) == 1
        self._start(host)

    def _start(self, host: Host) -> None:
        host.start_daemon(wait=False)
        self._restarted.add(host)
        self.starts[host] += 1

    @contextmanager
    def _reexecuted(self, host: Host) -> Iterator[None]:
        """A restart during which the host forwards, whatever else fails."""
        assert host.daemon
        host.daemon.send_signal(signal.SIGUSR2)
        self._restarted.add(host)
        self.starts[host] += 1
        yield

    @contextmanager
    def _compacted(self) -> Iterator[None]:
        writer = EtcdWriter(self._lab)
        names = [f"10.1.{self._random.randint(130, 250)}.0-24" for _ in range(20)]
        for name in names:
            writer.put(name, lease_value(f"172.30.0.{self._random.randint(100, 200)}"))
        self._lab.etcdctl("compact", str(writer.delete(names[0])))
        self.missed_compactions += bool(self._cut)
        yield

    @contextmanager
    def _killed(self) -> Iterator[None]:
        self._etcd_serves = False
        self._lab.etcd.kill()
        yield
        self._lab.etcd.start()
        self._etcd_serves = True

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        self._etcd_serves = False
        self._lab.etcd.pause()
        yield
        self._lab.etcd.resume()
        self._etcd_serves = True
