"""Measures how long the daemons take to notice a fault and to recover from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import run_summary
from faults import Ctl, await_loss, await_new_lease, no_packet_lost
from starvation import Starvation

from flannel_udp.lab.lab import Host

NOTICED_AT_ONCE = 2.0  # seconds until a closed connection is noticed
NOTICED_IN_SILENCE = 15.0  # until a silent server is given up: 10 + 3, and one more attempt
RECOVERY = 5.0  # the daemons try again at least every 3
AFTER_SILENCE = RECOVERY + 3.0  # an attempt that gets no answer takes 3 itself


class FaultTimer:
    """Measures from the last ``start``, without the time in which the machine ran others."""

    def __init__(self, starvation: Starvation) -> None:
        self.net_duration = starvation.net_duration
        self.times: list[str] = []
        self.start()

    def start(self) -> None:
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since ``start``."""
        return time.monotonic() - self._since

    def expect(self, what: str, wait: Callable[[], object], *, within: float) -> None:
        """Call ``wait``, which must return at most ``within`` seconds after ``start``."""
        wait()
        took = self.net_duration(self._since, time.monotonic())
        self.times.append(f"{what} after {took:.1f} s (at most {within:g})")
        assert took <= within, self.times

    def expect_noticed(self, *hosts: Host, within: float, what: str = "noticed") -> None:
        self.expect(what, partial(await_loss, *hosts), within=within)

    def expect_recovery(
        self, hosts: Sequence[Host], ctl: Ctl, prefix: str, what: str = "well"
    ) -> None:
        """A new lease must reach all hosts, and their routes must agree with etcd."""
        self.expect(f"{what} again", partial(await_new_lease, hosts, ctl, prefix), within=RECOVERY)


@contextmanager
def timed_fault(fault: str, hosts: Sequence[Host], interval: float = 0.005) -> Iterator[FaultTimer]:
    """Sends packets between neighbouring hosts during the block, of which none may be lost.

    Adds what the timer measured to the summary of the test run.
    """
    with Starvation(*hosts) as starvation:
        with no_packet_lost(hosts, interval) as streams:
            timer = FaultTimer(starvation)
            yield timer
        sent = sum(stream.sent for stream in streams)
    summary = f"{fault}: {', '.join(timer.times)}, none of {sent} packets lost"
    print(summary)
    run_summary.FAULTS.append(summary)
