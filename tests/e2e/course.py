"""The course of a fault: what was lost meanwhile, when it was noticed, when all was well again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import run_summary
from faults import Ctl, await_loss, await_news, no_packet_lost
from starvation import Starvation

from flannel_udp.lab.lab import Host

AT_ONCE = 2.0  # seconds until an end that the connection tells of is noticed
IN_SILENCE = 15.0  # until a server that says nothing any more is given up: 10 + 3, and a try
RECOVERY = 5.0  # a new try comes every 3 at the latest
AFTER_SILENCE = RECOVERY + 3.0  # if one is under way to where nobody answers, it has 3 itself


class Course:
    """Measures from one ``begin`` on, without the time in which the machine was busy elsewhere."""

    def __init__(self, starvation: Starvation) -> None:
        self.net = starvation.net
        self.times: list[str] = []
        self.begin()

    def begin(self) -> None:
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """On the clock, since ``begin``."""
        return time.monotonic() - self._since

    def comes(self, what: str, wait: Callable[[], object], *, within: float) -> None:
        """``wait`` returns when it has come, which it must ``within`` seconds since ``begin``."""
        wait()
        took = self.net(self._since, time.monotonic())
        self.times.append(f"{what} after {took:.1f} s (at most {within:g})")
        assert took <= within, self.times

    def is_noticed(self, *hosts: Host, within: float, how: str = "noticed") -> None:
        self.comes(how, partial(await_loss, *hosts), within=within)

    def is_over(self, hosts: Sequence[Host], ctl: Ctl, prefix: str, what: str = "well") -> None:
        """A new lease reaches all hosts, and their tables are what etcd says."""
        self.comes(f"{what} again", partial(await_news, hosts, ctl, prefix), within=RECOVERY)


@contextmanager
def course_of(fault: str, hosts: Sequence[Host], interval: float = 0.005) -> Iterator[Course]:
    """Containers of neighbouring hosts talk while the block runs, and miss no packet."""
    with Starvation(*hosts) as starvation:
        with no_packet_lost(hosts, interval) as streams:
            course = Course(starvation)
            yield course
        sent = sum(stream.sent for stream in streams)
    summary = f"{fault}: {', '.join(course.times)}, none of {sent} packets lost"
    print(summary)
    run_summary.FAULTS.append(summary)
