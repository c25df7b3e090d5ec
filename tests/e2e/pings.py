"""Pings that go on until they are stopped, so that an answer may be late without being lost."""

from __future__ import annotations

import re
import signal
import tempfile
import time
from ipaddress import IPv4Address

from flannel_udp.host.netns import Namespace

Times = tuple[float, float]  # when a packet was sent and its answer arrived: time.monotonic()


class Pings:
    """Fifty a second from one host or container to an address."""

    def __init__(self, source: Namespace, target: IPv4Address) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        command = ["ping", "-n", "-D", "-i", "0.02", str(target)]
        self._ping = source.popen(command, stdout=self._output)

    def __enter__(self) -> Pings:
        return self

    def __exit__(self, *_: object) -> None:
        self._ping.kill()
        self._ping.wait()
        self._output.close()

    def stop(self) -> dict[int, Times]:
        """The answered pings, by number."""
        self._ping.send_signal(signal.SIGINT)
        self._ping.wait(timeout=30)
        self._output.seek(0)
        pattern = r"\[([\d.]+)\] .* icmp_seq=(\d+) .* time=([\d.]+) ms"
        epoch = time.time() - time.monotonic()
        return {
            int(number): (float(at) - epoch - float(ms) / 1000, float(at) - epoch)
            for at, number, ms in re.findall(pattern, self._output.read())
        }


def lost(answered: dict[int, Times]) -> list[int]:
    """The numbers without an answer. One after the last answer is not lost but on its way."""
    return sorted(set(range(1, max(answered) + 1)) - set(answered))


def longest(answered: dict[int, Times]) -> float:
    """The seconds that the slowest answer took."""
    return max(ended - began for began, ended in answered.values())
