"""A minute without etcd, long enough to run beside other tests."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from contextlib import ExitStack, suppress
from functools import partial

from course import AFTER_SILENCE, RECOVERY, course_of
from etcd_server import wait_until
from faults import (
    CONFIG,
    DROP,
    RESET,
    STRANGER,
    await_agreement,
    await_loss,
    cut_off,
    cut_off_by,
)
from instruments import control_seconds, lease_value, leases, log_lines

from flannel_udp.lab.lab import Host, Lab

CONTEST = 60.0  # seconds for which a claim in replaced data may be old news, by the contract
MOST_LINES = 10 + 1  # of a daemon
MOST_CPU = 0.01  # of a processor

TURN = 4.0  # seconds until the way in which a host is cut off is another one


class Minute:
    """Three hosts are cut off from etcd, the last one of them in ways that take turns. The fourth
    finds etcd's data replaced, and in it a claim on its subnet that nobody withdraws.

    They must log next to nothing, cost next to nothing, and lose no packet; the fourth must end,
    neither sooner nor later than a minute after it found the claim.
    """

    def __init__(self) -> None:
        self.report: list[str] = []
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End it early, as a failure."""
        self._stopping.set()

    def pass_by(self) -> None:
        """Raises AssertionError if something was not as it must be."""
        with Lab(hosts=4, config=CONFIG) as lab:
            try:
                self._pass_in(lab)
            finally:
                for host in lab.hosts:
                    log = host.log_path.read_text()
                    self.report.append(f"--- daemon log of {host.name}\n{log}")
                    assert "Traceback" not in log

    def _pass_in(self, lab: Lab) -> None:
        *cut, victim = lab.hosts
        dropped, reset, third = cut
        subnet = str(victim.subnet)
        name = subnet.replace("/", "-")
        with course_of("a minute without etcd", cut, interval=0.02) as course:
            with ExitStack() as cuts:
                for host, how in ((dropped, DROP), (reset, RESET), (third, RESET)):
                    cuts.enter_context(cut_off(host, how))
                before = {host: len(log_lines(host)) for host in cut}
                lab.etcd.kill()
                lab.etcd.wipe()
                lab.etcd.start()
                lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(CONFIG))
                lab.etcdctl("put", f"{lab.prefix}/subnets/{name}", lease_value(STRANGER))
                wait_until(lambda: log_lines(victim, "another host claims", subnet), "the contest")
                course.begin()
                await_loss(*cut)
                used = {host: control_seconds(host) for host in cut}
                ends = partial(self._ends, victim, third)
                course.comes("claim accepted", ends, within=CONTEST + RECOVERY)
                lasted = course.seconds
                assert lasted > CONTEST - 1
                for host in cut:
                    share = (control_seconds(host) - used[host]) / lasted
                    lines = len(log_lines(host)) - before[host]
                    self.report.append(f"{host.name}: {lines} lines, {share:.2%} of a processor")
                    assert share < MOST_CPU
                    assert lines <= MOST_LINES
                    unknown = log_lines(host, "the call failed")
                    assert not unknown, "a cause without its own words"
            assert log_lines(victim, "flannel-udp: ", f"taken over by {STRANGER}")
            assert leases(lab)[name] == lease_value(STRANGER)
            victim.start_daemon()
            course.begin()
            agreement = partial(await_agreement, lab.hosts, lab.etcdctl, lab.prefix)
            course.comes("well again", agreement, within=AFTER_SILENCE)
        assert str(victim.subnet) != subnet

    def _ends(self, victim: Host, turning: Host) -> None:
        assert victim.daemon
        for how in itertools.cycle((DROP, RESET)):
            assert not self._stopping.is_set(), "stopped"
            cut_off_by(turning, how)
            with suppress(subprocess.TimeoutExpired):
                assert victim.daemon.wait(TURN) == 1
                return
