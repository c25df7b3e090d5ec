"""Measures one datapath with real programs in the containers, each with a time limit.

They send from the first host's container to the second's.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.datapaths import Datapath
from bench.plan import MEASUREMENTS
from flannel_udp.lab.lab import Lab

UDP_PORT = 5301
SLACK = 10.0  # seconds that a program may run longer than requested
PING_GAP_US = 10_000  # between pings beside a stream

Samples = dict[str, float]  # by the names in plan.FIGURES; seconds


class MeasurementError(Exception):
    """A load generator failed; the message contains its output."""


class Meter:
    """``traffic`` is the program compiled from traffic.c."""

    def __init__(self, lab: Lab, traffic: Path) -> None:
        self._source = lab.hosts[0].containers[0].netns
        self._target = lab.hosts[1].containers[0].netns
        self._traffic = str(traffic)

    def measure(self, measurement: str, datapath: Datapath, seconds: float) -> Samples:
        """The figures of ``measurement``, which is one of plan.MEASUREMENTS."""
        kind, number = measurement[:3], measurement[3:]
        if kind == "tcp":
            found = self._tcp(datapath, int(number), seconds)
        elif kind == "udp":
            found = self._udp(datapath, int(number), seconds)
        else:
            found = self._round_trip(datapath, seconds)
        wanted = MEASUREMENTS[measurement]
        return {figure: sample for figure, sample in found.items() if figure in wanted}

    def _tcp(self, datapath: Datapath, streams: int, seconds: float) -> Samples:
        """iperf3, with pings at the same time."""
        server = ["iperf3", "--server", "--one-off", "--forceflush"]
        client = ["iperf3", "--client", str(datapath.target), "--json"]
        client += ["--time", f"{max(1, seconds):.0f}"]  # a whole number; 0 is endless
        client += ["--parallel", str(streams), "--connect-timeout", "3000"]
        ping = [self._traffic, "ping", str(datapath.target), str(PING_GAP_US), str(seconds)]
        with self._server(server, "Server listening"):
            before = datapath.pump_seconds()
            with self._source.popen(ping, stdout=subprocess.PIPE, text=True) as pinger:
                try:
                    answer = self._source.run(client, timeout=seconds + SLACK).stdout
                    pings, _ = pinger.communicate(timeout=SLACK)
                finally:
                    pinger.kill()
            used = datapath.pump_seconds() - before
        result = json.loads(answer)
        if "error" in result:
            raise MeasurementError(f"iperf3, {datapath.name}: {result['error']}")
        received = result["end"]["sum_received"]
        gigabytes = received["bytes"] / 1e9
        samples = {
            f"tcp{streams}": received["seconds"] / gigabytes,
            "loaded_rtt": _numbers(pings, datapath)[0] * 1e-6,
        }
        return samples | {"cpu": used / gigabytes} if datapath.daemons else samples

    def _udp(self, datapath: Datapath, size: int, seconds: float) -> Samples:
        """Received datagrams while the sender sends as fast as possible."""
        sink = [self._traffic, "sink", str(UDP_PORT), str(seconds)]
        flood = [self._traffic, "flood", str(datapath.target), str(UDP_PORT), str(size)]
        with self._server(sink, "ready") as server:
            sent = self._source.run([*flood, str(seconds + 0.1)], timeout=seconds + SLACK)
            if sent.returncode != 0:
                raise MeasurementError(f"flood, {datapath.name}: {sent.stdout}")
            counted, _ = server.communicate(timeout=SLACK)
        return {f"udp{size}": 1 / _numbers(counted, datapath)[0]}

    def _round_trip(self, datapath: Datapath, seconds: float) -> Samples:
        """One echo after another, as ``ping -f`` does."""
        ping = [self._traffic, "ping", str(datapath.target), "0", str(seconds)]
        p50, p99, *_ = _numbers(self._source.run(ping, timeout=seconds + SLACK).stdout, datapath)
        return {"rtt_p50": p50 * 1e-6, "rtt_p99": p99 * 1e-6}

    @contextmanager
    def _server(self, command: list[str], sign: str) -> Iterator[subprocess.Popen[Any]]:
        """Runs a program in the target; the block begins when it has printed ``sign``."""
        with self._target.popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                for line in server.stdout or ():
                    if sign in line:
                        break
                yield server
            finally:
                server.kill()


def _numbers(text: str, datapath: Datapath) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise MeasurementError(f"{datapath.name}: {text.strip()}") from None
