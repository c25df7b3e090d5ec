"""One measurement of one way: real programs in the containers, each bounded in time.

They send from the first host's container to the second's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.plan import MEASUREMENTS
from bench.ways import Way
from flannel_udp.lab.lab import Lab

UDP_PORT = 5301
SLACK = 10.0  # seconds that a program may take longer than it was told to run
PING_GAP_US = 10_000  # between pings beside a stream

Samples = dict[str, float]  # by the names in plan.FIGURES; seconds


class MeasurementError(Exception):
    """A load generator failed; the message holds what it said."""


class Meter:
    """``traffic`` is the program made of traffic.c."""

    def __init__(self, lab: Lab, traffic: Path) -> None:
        self._source = lab.hosts[0].containers[0].netns
        self._target = lab.hosts[1].containers[0].netns
        self._traffic = str(traffic)

    def measure(self, measurement: str, way: Way, seconds: float) -> Samples:
        """``measurement`` is one of plan.MEASUREMENTS; the figures that it gives."""
        kind, number = measurement[:3], measurement[3:]
        if kind == "tcp":
            found = self._tcp(way, int(number), seconds)
        elif kind == "udp":
            found = self._udp(way, int(number), seconds)
        else:
            found = self._round_trip(way, seconds)
        wanted = MEASUREMENTS[measurement]
        return {figure: sample for figure, sample in found.items() if figure in wanted}

    def _tcp(self, way: Way, streams: int, seconds: float) -> Samples:
        """iperf3, with pings beside it."""
        server = ["iperf3", "--server", "--one-off", "--forceflush"]
        client = ["iperf3", "--client", str(way.target), "--json"]
        client += ["--time", f"{max(1, seconds):.0f}"]  # a whole number; 0 is for ever
        client += ["--parallel", str(streams), "--connect-timeout", "3000"]
        ping = [self._traffic, "ping", str(way.target), str(PING_GAP_US), str(seconds)]
        with self._server(server, "Server listening"):
            before = way.pump_seconds()
            with self._source.popen(ping, stdout=subprocess.PIPE, text=True) as pinger:
                try:
                    answer = self._source.run(client, timeout=seconds + SLACK).stdout
                    pings, _ = pinger.communicate(timeout=SLACK)
                finally:
                    pinger.kill()
            used = way.pump_seconds() - before
        result = json.loads(answer)
        if "error" in result:
            raise MeasurementError(f"iperf3, {way.name}: {result['error']}")
        received = result["end"]["sum_received"]
        gigabytes = received["bytes"] / 1e9
        samples = {
            f"tcp{streams}": received["seconds"] / gigabytes,
            "loaded_rtt": _numbers(pings, way)[0] * 1e-6,
        }
        return samples | {"cpu": used / gigabytes} if way.daemons else samples

    def _udp(self, way: Way, size: int, seconds: float) -> Samples:
        """Datagrams received while the sender sends as many as it can."""
        sink = [self._traffic, "sink", str(UDP_PORT), str(seconds)]
        flood = [self._traffic, "flood", str(way.target), str(UDP_PORT), str(size)]
        with self._server(sink, "ready") as server:
            sent = self._source.run([*flood, str(seconds + 0.1)], timeout=seconds + SLACK)
            if sent.returncode != 0:
                raise MeasurementError(f"flood, {way.name}: {sent.stdout}")
            counted, _ = server.communicate(timeout=SLACK)
        return {f"udp{size}": 1 / _numbers(counted, way)[0]}

    def _round_trip(self, way: Way, seconds: float) -> Samples:
        """One echo after another, as ``ping -f`` does."""
        ping = [self._traffic, "ping", str(way.target), "0", str(seconds)]
        p50, p99, *_ = _numbers(self._source.run(ping, timeout=seconds + SLACK).stdout, way)
        return {"rtt_p50": p50 * 1e-6, "rtt_p99": p99 * 1e-6}

    @contextmanager
    def _server(self, command: list[str], sign: str) -> Iterator[subprocess.Popen[Any]]:
        """A program in the target, from when it printed the sign; killed after."""
        with self._target.popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                for line in server.stdout or ():
                    if sign in line:
                        break
                yield server
            finally:
                server.kill()


def _numbers(text: str, way: Way) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise MeasurementError(f"{way.name}: {text.strip()}") from None
