"""An outage of etcd for one minute, which runs in a lab of its own beside other tests."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from contextlib import ExitStack, suppress
from functools import partial

from etcd_server import wait_until
from fault_timer import AFTER_SILENCE, RECOVERY, timed_fault
from faults import (
    CONFIG,
    DROP,
    RESET,
    UNKNOWN_HOST,
    await_agreement,
    await_loss,
    change_cut,
    cut_off,
)
from instruments import control_seconds, lease_value, leases, log_lines

from flannel_udp.lab.lab import Host, Lab

CONTEST = 60.0  # seconds before a claim in replaced data is accepted
MOST_LINES = 10 + 1  # of a daemon
MOST_CPU = 0.01  # of a processor

CUT_PERIOD = 4.0  # seconds between two changes of how the third host is cut off


class LongOutage:
    """Three hosts are cut off from etcd, the third by dropped and by reset connections in turn. The
    fourth finds etcd's data replaced, with its subnet's key naming another host.

    The three must log at most MOST_LINES, use at most MOST_CPU and lose no packet; the daemon of
    the fourth must end a minute after it read the key, not earlier and not later.
    """

    def __init__(self) -> None:
        self.report: list[str] = []
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the outage early, as a failure."""
        self._stopping.set()

    def run(self) -> None:
        """Raises AssertionError if one of the hosts does not behave as described above."""
        with Lab(hosts=4, config=CONFIG) as lab:
            try:
                self._run_in(lab)
            finally:
                for host in lab.hosts:
                    log = host.log_path.read_text()
                    self.report.append(f"--- daemon log of {host.name}\n{log}")
                    assert "Traceback" not in log

    def _run_in(self, lab: Lab) -> None:
        *cut, victim = lab.hosts
        dropped, reset, third = cut
        subnet = str(victim.subnet)
        name = subnet.replace("/", "-")
        with timed_fault("a minute without etcd", cut, interval=0.02) as timer:
            with ExitStack() as cuts:
                for host, how in ((dropped, DROP), (reset, RESET), (third, RESET)):
                    cuts.enter_context(cut_off(host, how))
                before = {host: len(log_lines(host)) for host in cut}
                lab.etcd.kill()
                lab.etcd.wipe()
                lab.etcd.start()
                lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(CONFIG))
                lab.etcdctl("put", f"{lab.prefix}/subnets/{name}", lease_value(UNKNOWN_HOST))
                wait_until(lambda: log_lines(victim, "another host claims", subnet), "the contest")
                timer.start()
                await_loss(*cut)
                used = {host: control_seconds(host) for host in cut}
                await_end = partial(self._await_end, victim, third)
                timer.expect("claim accepted", await_end, within=CONTEST + RECOVERY)
                lasted = timer.seconds
                assert lasted > CONTEST - 1
                for host in cut:
                    share = (control_seconds(host) - used[host]) / lasted
                    lines = len(log_lines(host)) - before[host]
                    self.report.append(f"{host.name}: {lines} lines, {share:.2%} of a processor")
                    assert share < MOST_CPU
                    assert lines <= MOST_LINES
                    unknown = log_lines(host, "the call failed")
                    assert not unknown, "a cause that is not recognised"
            assert log_lines(victim, "flannel-udp: ", f"taken over by {UNKNOWN_HOST}")
            assert leases(lab)[name] == lease_value(UNKNOWN_HOST)
            victim.start_daemon()
            timer.start()
            agreement = partial(await_agreement, lab.hosts, lab.etcdctl, lab.prefix)
            timer.expect("well again", agreement, within=AFTER_SILENCE)
        assert str(victim.subnet) != subnet

    def _await_end(self, victim: Host, alternating: Host) -> None:
        assert victim.daemon
        for how in itertools.cycle((DROP, RESET)):
            assert not self._stopping.is_set(), "stopped"
            change_cut(alternating, how)
            with suppress(subprocess.TimeoutExpired):
                assert victim.daemon.wait(CUT_PERIOD) == 1
                return
